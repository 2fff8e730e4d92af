//! Agentic coding sessions: one session per line, run-length coded ids of 64-token blocks.
//!
//! * **Identity.** Ids are local to a session and its sub-agents. What sessions share, tools and
//!   system prompt, is not encoded; it is modelled by giving the first `(tool_tokens +
//!   system_tokens) / 64` blocks of every session the content of one prompt per model (the first
//!   that `models` names). A later request keeps that content as far as its ids are those of the
//!   session's first request.
//! * **Ends.** The tokens behind the last full block, and the output, are private to the request.
//! * **Time.** Sessions start as a Poisson process; later turns follow after their `think`, or,
//!   where it was not recorded, after the gap to the request before less its `api` time. A
//!   sub-agent starts as long after its parent as in the recording, with breaks cut as the parent's
//!   are; one without its parent starts as a session does.
//! * **Dropped.** Requests with no output, and sessions with a prompt beyond the limit, are
//!   counted.

use std::io::BufRead;
use std::time::Duration;

use hashbrown::HashMap;
use kvroute_types::{Timestamp, mix64};
use rustc_hash::FxBuildHasher;
use serde::Deserialize;

use super::input::{bad_value, check_lengths, for_each_json_line};
use super::{TraceError, TraceFormat, TraceOptions, block_ids};
use crate::arrival::{schedule, seeded};
use crate::workload::{Content, Draft, WorkloadBuilder, stable_hash};
use crate::{Arrival, ArrivalProcess, GapShape, Segment, SegmentId, Workload};

const BLOCK_TOKENS: u32 = 64;

#[derive(Clone, Deserialize)]
struct Record {
    session: String,
    block_size: u32,
    tool_tokens: u32,
    system_tokens: u32,
    models: Vec<String>,
    parent: Option<String>,
    /// Seconds from the parent's start.
    spawn_t: Option<f64>,
    requests: Vec<Turn>,
}

#[derive(Clone, Deserialize)]
struct Turn {
    /// Seconds since the session began.
    t: f64,
    #[serde(rename = "in")]
    prompt_tokens: u32,
    #[serde(rename = "out")]
    output_tokens: u32,
    /// First id and number of ids.
    runs: Vec<(u64, u32)>,
    /// Seconds the client took before this request.
    think: Option<f64>,
    /// Seconds the recorded server took.
    api: Option<f64>,
}

pub(super) fn read(reader: impl BufRead, options: &TraceOptions) -> Result<Workload, TraceError> {
    let mut sessions = Sessions::new(options);
    let mut records: Vec<(usize, Record)> = Vec::new();
    for_each_json_line(reader, TraceFormat::Agentic, |line, mut record| {
        check(line, &mut record)?;
        records.push((line, record));
        Ok(())
    })?;
    let mut dropped = None;
    for round in 0..options.rounds.get() {
        for (line, record) in &records {
            sessions.push(*line, record.clone().in_round(round))?;
        }
        sessions.builder.dropped = *dropped.get_or_insert(sessions.builder.dropped);
    }
    sessions.finish()
}

impl Record {
    /// The same session under another name in every round: ids are local to a name.
    fn in_round(self, round: u32) -> Self {
        if round == 0 {
            return self;
        }
        let renamed = |name: String| format!("{name}, round {round}");
        Self { session: renamed(self.session), parent: self.parent.map(renamed), ..self }
    }
}

/// When a session starts.
enum Start {
    Drawn,
    After { parent: usize, offset: Duration },
}

struct Sessions {
    builder: WorkloadBuilder,
    options: TraceOptions,
    starts: Vec<Start>,
    /// Recorded and replayed times of each kept session's requests.
    timelines: Vec<Vec<(f64, f64)>>,
    /// By name: the number space of a session's ids.
    spaces: HashMap<String, u64, FxBuildHasher>,
    /// By name: the sessions that were kept.
    kept: HashMap<String, usize, FxBuildHasher>,
}

impl Sessions {
    fn new(options: &TraceOptions) -> Self {
        Self {
            builder: WorkloadBuilder::with_trace_blocks(BLOCK_TOKENS),
            options: *options,
            starts: Vec::new(),
            timelines: Vec::new(),
            spaces: HashMap::default(),
            kept: HashMap::default(),
        }
    }

    fn push(&mut self, line: usize, record: Record) -> Result<(), TraceError> {
        let space = self.space(&record);
        let recorded = record.requests.len();
        let limit = self.options.prompt_tokens_max.unwrap_or(u32::MAX);
        if record.requests.iter().any(|turn| turn.prompt_tokens > limit) {
            self.drop_requests(recorded);
            return Ok(());
        }
        let prefix = SharedPrefix::of(&record);
        let thinks = think_times_s(&record.requests, self.options.think_time_s_max);
        let timeline = replay_times(&record.requests, &thinks);
        let session_key = stable_hash(record.session.as_bytes());
        let first = self.builder.drafts.len();
        for (turn, think_s) in record.requests.iter().zip(thinks) {
            if turn.output_tokens == 0 {
                continue;
            }
            check_lengths(line, ("in", turn.prompt_tokens), ("out", turn.output_tokens))?;
            let (content, prefix_key) = self.content(space, prefix.as_ref(), turn);
            let arrival = if self.builder.drafts.len() == first {
                Arrival::At(Timestamp::ZERO)
            } else {
                Arrival::AfterPrevious { think: Duration::from_secs_f64(think_s) }
            };
            self.builder.push(Draft {
                session: u32::try_from(self.starts.len()).unwrap_or(u32::MAX),
                arrival,
                prompt_tokens: turn.prompt_tokens,
                output_tokens: turn.output_tokens,
                content,
                session_key,
                prefix_key,
            });
        }
        let kept = self.builder.drafts.len() - first;
        self.drop_requests(recorded - kept);
        if kept > 0 {
            self.keep(record, timeline);
        }
        Ok(())
    }

    fn keep(&mut self, record: Record, timeline: Vec<(f64, f64)>) {
        let parent = record.parent.and_then(|parent| self.kept.get(&parent).copied());
        let start = parent.zip(record.spawn_t).map(|(parent, spawn_s)| Start::After {
            parent,
            offset: offset(&self.timelines[parent], spawn_s, self.options.think_time_s_max),
        });
        self.kept.insert(record.session, self.starts.len());
        self.starts.push(start.unwrap_or(Start::Drawn));
        self.timelines.push(timeline);
    }

    /// The number space of a session's ids: its parent's, or one of its own.
    fn space(&mut self, record: &Record) -> u64 {
        const AGENTIC: u64 = 0x6167_656e;
        let inherited = record.parent.as_ref().and_then(|parent| self.spaces.get(parent)).copied();
        let own = SegmentId::derive(AGENTIC, self.spaces.len() as u64).0;
        let space = inherited.unwrap_or(own);
        self.spaces.insert(record.session.clone(), space);
        space
    }

    fn drop_requests(&mut self, requests: usize) {
        self.builder.dropped += u32::try_from(requests).unwrap_or(u32::MAX);
    }

    /// Content and prefix key of one request.
    fn content(
        &mut self,
        space: u64,
        prefix: Option<&SharedPrefix>,
        turn: &Turn,
    ) -> (Content, u64) {
        let shared = prefix.map(|prefix| prefix.segment(&turn.runs));
        let shared = shared.filter(|segment| segment.tokens > 0);
        let skip = shared.map_or(0, |segment| segment.tokens / BLOCK_TOKENS);
        let blocks: u32 = turn.runs.iter().map(|run| run.1).sum();
        let rest = turn.prompt_tokens - blocks * BLOCK_TOKENS + turn.output_tokens;
        let private = block_ids::private(self.builder.drafts.len(), rest);
        let own = skip_blocks(&turn.runs, skip).map(|(first, count)| Segment {
            id: SegmentId::derive(space, first),
            tokens: count * BLOCK_TOKENS,
        });
        let leading = shared.into_iter().chain(own).chain([private]);
        let prefix_key = leading.clone().next().map_or(0, |segment| mix64(segment.id.0));
        (self.builder.content(leading), prefix_key)
    }

    fn finish(mut self) -> Result<Workload, TraceError> {
        let mut starts = vec![Timestamp::ZERO; self.starts.len()];
        let process =
            ArrivalProcess { rate_per_s: self.options.sessions_per_s, shape: GapShape::default() };
        let drawn: Vec<&mut Timestamp> = starts
            .iter_mut()
            .zip(&self.starts)
            .filter_map(|(at, start)| matches!(start, Start::Drawn).then_some(at))
            .collect();
        schedule(drawn.len(), drawn, process, &mut seeded(self.options.seed))?;
        // A parent stands before its sub-agents, so its start is settled when theirs is asked for.
        for (session, start) in self.starts.iter().enumerate() {
            if let Start::After { parent, offset } = *start {
                starts[session] = starts[parent] + offset;
            }
        }
        for draft in &mut self.builder.drafts {
            if let Arrival::At(at) = &mut draft.arrival {
                *at = starts[draft.session as usize];
            }
        }
        Ok(self.builder.finish(TraceFormat::Agentic.name()))
    }
}

/// What the sessions of one model begin with.
struct SharedPrefix {
    id: SegmentId,
    blocks: u32,
    /// Ids of the session's first request.
    runs: Vec<(u64, u32)>,
}

impl SharedPrefix {
    fn of(record: &Record) -> Option<Self> {
        const SYSTEM: u64 = 0x7379_7374;
        let model = record.models.first()?;
        Some(Self {
            id: SegmentId::derive(SYSTEM, stable_hash(model.as_bytes())),
            blocks: record.tool_tokens.saturating_add(record.system_tokens) / BLOCK_TOKENS,
            runs: record.requests.first()?.runs.clone(),
        })
    }

    /// The part that a request with these ids has.
    fn segment(&self, runs: &[(u64, u32)]) -> Segment {
        let blocks = common_blocks(&self.runs, runs).min(self.blocks);
        Segment { id: self.id, tokens: blocks * BLOCK_TOKENS }
    }
}

/// Checks a session's facts and brings its runs into the one longest form.
fn check(line: usize, record: &mut Record) -> Result<(), TraceError> {
    if record.block_size != BLOCK_TOKENS {
        return Err(bad_value(line, "block_size", record.block_size.to_string(), "64"));
    }
    let times = |turn: &Turn| [Some(turn.t), turn.think, turn.api];
    let times = record.requests.iter().flat_map(times).flatten().chain(record.spawn_t);
    for time_s in times {
        if !(0.0..1e10).contains(&time_s) {
            return Err(bad_value(line, "a time", time_s.to_string(), "seconds, 0 or more"));
        }
    }
    for turn in &mut record.requests {
        let found = turn.runs.iter().map(|run| u64::from(run.1)).sum();
        let expected = u64::from(turn.prompt_tokens / BLOCK_TOKENS);
        if found != expected {
            let prompt_tokens = turn.prompt_tokens;
            let block_tokens = BLOCK_TOKENS;
            return Err(TraceError::BlockIds {
                line,
                found,
                expected,
                prompt_tokens,
                block_tokens,
            });
        }
        join_runs(&mut turn.runs);
    }
    Ok(())
}

/// Joins runs that continue one another: equal prefixes of ids are then equal prefixes of runs.
fn join_runs(runs: &mut Vec<(u64, u32)>) {
    runs.retain(|run| run.1 > 0);
    runs.dedup_by(|next, run| {
        let continues = run.0.checked_add(u64::from(run.1)) == Some(next.0);
        if continues {
            run.1 += next.1;
        }
        continues
    });
}

/// Number of leading ids that two joined lists of runs share.
fn common_blocks(a: &[(u64, u32)], b: &[(u64, u32)]) -> u32 {
    let mut common = 0;
    for (a, b) in a.iter().zip(b) {
        if a.0 != b.0 {
            break;
        }
        common += a.1.min(b.1);
        if a.1 != b.1 {
            break;
        }
    }
    common
}

/// The runs without their first `skip` ids.
fn skip_blocks(runs: &[(u64, u32)], skip: u32) -> impl Iterator<Item = (u64, u32)> + Clone {
    let mut skip = skip;
    runs.iter().filter_map(move |&(first, count)| {
        let skipped = skip.min(count);
        skip -= skipped;
        (skipped < count).then_some((first.wrapping_add(u64::from(skipped)), count - skipped))
    })
}

/// Think time before each request; that of the first is 0.
fn think_times_s(turns: &[Turn], max_s: Option<f64>) -> Vec<f64> {
    let later = turns.windows(2).map(|pair| {
        let [previous, turn] = pair else { return 0.0 };
        let gap = turn.t - previous.t - previous.api.unwrap_or(0.0);
        cut(turn.think.unwrap_or_else(|| gap.max(0.0)), max_s)
    });
    turns.first().map(|_| 0.0).into_iter().chain(later).collect()
}

/// Recorded time and replayed time (with thinks as cut and server times as recorded) of each
/// request.
fn replay_times(turns: &[Turn], thinks_s: &[f64]) -> Vec<(f64, f64)> {
    let mut at_s = 0.0;
    let mut served_s = 0.0;
    let replay = |(turn, think_s): (&Turn, &f64)| {
        at_s += served_s + think_s;
        served_s = turn.api.unwrap_or(0.0);
        (turn.t, at_s)
    };
    turns.iter().zip(thinks_s).map(replay).collect()
}

/// How long after its parent's start a sub-agent starts.
fn offset(parent: &[(f64, f64)], spawn_s: f64, max_s: Option<f64>) -> Duration {
    let before = parent.partition_point(|(recorded_s, _)| *recorded_s <= spawn_s);
    let (recorded_s, replayed_s) = before.checked_sub(1).map_or((0.0, 0.0), |index| parent[index]);
    Duration::from_secs_f64(replayed_s + cut(spawn_s - recorded_s, max_s))
}

fn cut(think_s: f64, max_s: Option<f64>) -> f64 {
    max_s.map_or(think_s, |max_s| think_s.min(max_s.max(0.0)))
}
