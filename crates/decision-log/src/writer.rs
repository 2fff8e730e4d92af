//! Events to lines.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kvroute_types::{InstanceId, Timestamp};

use crate::event::{Event, Route};
use crate::line::{Line, RouteLine};
use crate::prompts::Written;
use crate::receipt::{Receipt, RequestFacts};

/// Writes events as lines.
pub struct LogWriter<W> {
    out: W,
    names: BTreeMap<InstanceId, String>,
    written: Written,
}

impl<W: Write> LogWriter<W> {
    /// A log that begins with the next event, which should be a [`Event::Start`].
    pub fn new(out: W) -> Self {
        Self { out, names: BTreeMap::new(), written: Written::default() }
    }

    /// Writes one event.
    ///
    /// # Errors
    /// If `out` refuses; the log ends there.
    pub fn write(&mut self, at: Timestamp, event: &Event) -> io::Result<()> {
        let line = self.line(at, event);
        serde_json::to_writer(&mut self.out, &line)?;
        self.out.write_all(b"\n")
    }

    /// Passes on what is buffered.
    ///
    /// # Errors
    /// If `out` refuses.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn line(&mut self, at_ns: Timestamp, event: &Event) -> Line {
        match event {
            Event::Start(start) => {
                self.names.clear();
                self.written = Written::default();
                Line::Start { at_ns, start: start.clone() }
            }
            Event::InstanceAdded { id, name } => {
                self.names.insert(*id, name.clone());
                Line::InstanceAdded { at_ns, instance_id: *id, instance: name.clone() }
            }
            Event::InstanceRemoved { id } => {
                self.names.remove(id);
                Line::InstanceRemoved { at_ns, instance_id: *id }
            }
            Event::Eligible { id, eligible } => {
                Line::Eligible { at_ns, instance_id: *id, eligible: *eligible }
            }
            Event::Policy(policy) => Line::Policy { at_ns, policy: *policy },
            Event::Load { id, reading } => Line::Load {
                at_ns,
                instance_id: *id,
                waiting: reading.waiting,
                running: reading.running,
                kv_cache_usage: reading.kv_cache_usage,
                as_of_ns: reading.as_of,
            },
            Event::Cache { id, news } => Line::Cache { at_ns, instance_id: *id, news: news.into() },
            Event::Believed { id, believed } => {
                Line::Believed { at_ns, instance_id: *id, believed: *believed }
            }
            Event::InstanceRestarted { id } => Line::InstanceRestarted { at_ns, instance_id: *id },
            Event::Restored { snapshot } => {
                Line::Restored { at_ns, snapshot: BASE64.encode(snapshot) }
            }
            Event::Route(route) => self.route(at_ns, route),
            Event::FirstToken { request } => Line::FirstToken { at_ns, request: *request },
            Event::End { request } => Line::End { at_ns, request: *request },
            Event::Gap { lost } => Line::Gap { lost: *lost },
        }
    }

    fn route(&mut self, at_ns: Timestamp, route: &Route) -> Line {
        let Route { request, attempt, excluded, decision, receipt } = route;
        let (blocks_after, blocks) = self.written.abridge(&request.prompt_blocks);
        let name = |id: InstanceId| match self.names.get(&id) {
            Some(name) => Cow::Borrowed(name.as_str()),
            // Its line was lost.
            None => Cow::Owned(format!("instance-{id}")),
        };
        let told = receipt
            .as_ref()
            .map(|receipt| Receipt::new(receipt, &RequestFacts::from(route), name).into());
        let line = Box::new(RouteLine {
            at_ns,
            request: request.id,
            attempt: *attempt,
            instance_id: decision.map(|decision| decision.instance),
            reason: decision.map(|decision| decision.reason),
            predicted_cached_tokens: decision.and_then(|it| it.predicted_cached_tokens),
            session_key: request.session_key,
            prefix_key: request.prefix_key,
            prompt_tokens: request.prompt_tokens,
            max_output_tokens: request.max_output_tokens,
            priority: request.priority,
            excluded: excluded.clone(),
            prompt_blocks: request.prompt_blocks.len(),
            blocks_after,
            blocks,
            block_names: request.block_names,
            told,
        });
        if decision.is_some() { Line::Route(line) } else { Line::Refused(line) }
    }
}
