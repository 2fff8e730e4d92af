//! Lines to events.

use std::io::{self, BufRead};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kvroute_types::{LoadSnapshot, Timestamp};

use crate::event::{Decision, Event, FORMAT, LoggedRequest, Route};
use crate::line::{Line, RouteLine};
use crate::prompts::Read;

/// One line of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its number, from 1.
    pub line: u64,
    /// Time since the gateway started; zero for a gap.
    pub at: Timestamp,
    /// What happened.
    pub event: Event,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file itself.
    #[error("cannot read line {line}")]
    Io {
        /// The line.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// Not a line of a decision log.
    #[error(
        "line {line} is no event of a decision log; give a file that `kvroute serve --decision-log` has written"
    )]
    NotAnEvent {
        /// The line.
        line: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The log does not begin at its beginning.
    #[error(
        "line {line} comes before any start line; replay needs the log from the gateway's start on"
    )]
    NotStarted {
        /// The line.
        line: u64,
    },
    /// A form that this version does not know.
    #[error(
        "line {line}: the log has format {format}, this kvroute reads {FORMAT}; use the kvroute that wrote it"
    )]
    Format {
        /// The line.
        line: u64,
        /// Its form.
        format: u32,
    },
    /// Blocks that are no hashes or follow others that the log never held.
    #[error(
        "line {line}: its blocks are no hashes, or do not fit the lines before; is a line missing or changed?"
    )]
    Blocks {
        /// The line.
        line: u64,
    },
    /// The last line is not whole.
    #[error("line {line}, the last, is cut off: the gateway was killed, or is still writing")]
    Cut {
        /// The line.
        line: u64,
    },
}

/// Reads events from lines. After an error it is at its end.
pub struct LogReader<R> {
    lines: R,
    line: u64,
    read: Read,
    is_started: bool,
    is_over: bool,
}

impl<R: BufRead> LogReader<R> {
    /// Reads the lines of a whole log, or of several one after the other.
    pub fn new(lines: R) -> Self {
        Self { lines, line: 0, read: Read::default(), is_started: false, is_over: false }
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut text = Vec::new();
        self.line += 1;
        let line = self.line;
        let length = self.lines.read_until(b'\n', &mut text);
        if length.map_err(|source| ReadError::Io { line, source })? == 0 {
            return Ok(None);
        }
        let parsed: Line = serde_json::from_slice(&text).map_err(|source| {
            if text.ends_with(b"\n") {
                ReadError::NotAnEvent { line, source }
            } else {
                ReadError::Cut { line }
            }
        })?;
        let (at, event) = self.event(parsed)?;
        if !self.is_started {
            return Err(ReadError::NotStarted { line });
        }
        Ok(Some(Entry { line, at, event }))
    }

    fn event(&mut self, parsed: Line) -> Result<(Timestamp, Event), ReadError> {
        Ok(match parsed {
            Line::Start { at_ns, start } => {
                if start.format != FORMAT {
                    return Err(ReadError::Format { line: self.line, format: start.format });
                }
                self.is_started = true;
                self.read = Read::default();
                (at_ns, Event::Start(start))
            }
            Line::InstanceAdded { at_ns, instance_id: id, instance: name } => {
                (at_ns, Event::InstanceAdded { id, name })
            }
            Line::InstanceRemoved { at_ns, instance_id: id } => {
                (at_ns, Event::InstanceRemoved { id })
            }
            Line::Eligible { at_ns, instance_id: id, eligible } => {
                (at_ns, Event::Eligible { id, eligible })
            }
            Line::Policy { at_ns, policy } => (at_ns, Event::Policy(policy)),
            Line::Load { at_ns, instance_id, waiting, running, kv_cache_usage, as_of_ns } => {
                let reading = LoadSnapshot { waiting, running, kv_cache_usage, as_of: as_of_ns };
                (at_ns, Event::Load { id: instance_id, reading })
            }
            Line::Cache { at_ns, instance_id: id, news } => {
                let news = news.news().ok_or(ReadError::Blocks { line: self.line })?;
                (at_ns, Event::Cache { id, news })
            }
            Line::Believed { at_ns, instance_id: id, believed } => {
                (at_ns, Event::Believed { id, believed })
            }
            Line::InstanceRestarted { at_ns, instance_id: id } => {
                (at_ns, Event::InstanceRestarted { id })
            }
            Line::Restored { at_ns, snapshot } => {
                let snapshot = BASE64.decode(snapshot);
                let snapshot = snapshot.map_err(|_| ReadError::Blocks { line: self.line })?;
                (at_ns, Event::Restored { snapshot })
            }
            Line::Route(route) | Line::Refused(route) => (route.at_ns, self.route(*route)?),
            Line::FirstToken { at_ns, request } => (at_ns, Event::FirstToken { request }),
            Line::End { at_ns, request } => (at_ns, Event::End { request }),
            Line::Gap { lost } => (Timestamp::ZERO, Event::Gap { lost }),
        })
    }

    fn route(&mut self, route: RouteLine) -> Result<Event, ReadError> {
        let damaged = ReadError::Blocks { line: self.line };
        let prompt_blocks = self.read.complete(route.blocks_after.as_deref(), &route.blocks);
        let prompt_blocks = prompt_blocks.filter(|blocks| blocks.len() == route.prompt_blocks);
        let decision = route.instance_id.zip(route.reason).map(|(instance, reason)| Decision {
            instance,
            reason,
            predicted_cached_tokens: route.predicted_cached_tokens,
        });
        Ok(Event::Route(Box::new(Route {
            request: LoggedRequest {
                id: route.request,
                session_key: route.session_key,
                prefix_key: route.prefix_key,
                prompt_blocks: prompt_blocks.ok_or(damaged)?,
                block_names: route.block_names,
                prompt_tokens: route.prompt_tokens,
                max_output_tokens: route.max_output_tokens,
                priority: route.priority,
            },
            attempt: route.attempt,
            excluded: route.excluded,
            decision,
            receipt: None,
        })))
    }
}

impl<R: BufRead> Iterator for LogReader<R> {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.next_entry().transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }
}
