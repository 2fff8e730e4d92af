//! What the engine counts, in the units and at the moments of vLLM's metrics (R59-R66).

use kvroute_types::{LoadSnapshot, RequestId, Timestamp};

use crate::events::CacheEvent;
use crate::request::FinishReason;

/// Counters since the engine started. Token counts unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `prefix_cache_queries`: tokens of requests at their first admission (R27).
    pub prefix_cache_queries: u64,
    /// `prefix_cache_hits`: of those, tokens found cached.
    pub prefix_cache_hits: u64,
    /// Queries of resumed requests; not exported by vLLM (R27).
    pub preempted_queries: u64,
    /// Hits of resumed requests; not exported by vLLM.
    pub preempted_hits: u64,
    /// `prompt_tokens`: full prompts, cached part included, when the first token is out.
    pub prompt_tokens: u64,
    /// `prompt_tokens_cached`, same moment.
    pub prompt_tokens_cached: u64,
    /// Prompt tokens computed for the first token: prompt less cached, same moment.
    pub prompt_tokens_computed: u64,
    /// Prompt tokens newly put in the cache by requests, as reported with their first token (R28).
    pub prompt_tokens_created: u64,
    /// `generation_tokens`.
    pub generation_tokens: u64,
    /// `num_preemptions`: counted with the victim's next token (R48).
    pub preemptions: u64,
    /// Requests finished by [`FinishReason::Stop`].
    pub finished_stop: u64,
    /// Requests finished by [`FinishReason::Length`].
    pub finished_length: u64,
    /// Requests aborted.
    pub aborted: u64,
    /// Samples of `iteration_tokens_total`: output batches with at least one token (R65).
    pub iterations: u64,
    /// Sum of `iteration_tokens_total`.
    pub iteration_tokens: u64,
    /// Scheduling steps that computed at least one token.
    pub steps: u64,
}

/// Gauges as of the last processed step (R60).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    /// `num_requests_running`.
    pub running: u32,
    /// `num_requests_waiting`, deferred ones included.
    pub waiting: u32,
    /// Those of `waiting` passed over for a transient reason (R63).
    pub deferred: u32,
    /// `kv_cache_usage_perc`, `0.0..=1.0`.
    pub kv_cache_usage: f64,
    /// Requests that arrived at or before this time are counted.
    pub as_of: Timestamp,
}

/// Gauges integrated over time, so that their means need no sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GaugeTotals {
    /// Sum of `waiting` over time, request-nanoseconds.
    pub waiting_ns: u128,
    /// Sum of `running` over time, request-nanoseconds.
    pub running_ns: u128,
    /// Integral of `kv_cache_usage` over time, ns.
    pub kv_cache_usage_ns: f64,
    /// Largest `waiting` seen.
    pub waiting_max: u32,
    /// Up to when the sums run.
    pub until: Timestamp,
}

impl GaugeTotals {
    /// Adds the time up to `now`, during which the gauges stood at `gauges`.
    pub(crate) fn add(&mut self, gauges: &Gauges, now: Timestamp) {
        let ns = now.nanos_since(self.until);
        self.waiting_ns += u128::from(ns) * u128::from(gauges.waiting);
        self.running_ns += u128::from(ns) * u128::from(gauges.running);
        self.kv_cache_usage_ns += ns as f64 * gauges.kv_cache_usage;
        self.waiting_max = self.waiting_max.max(gauges.waiting);
        self.until = now;
    }
}

impl From<Gauges> for LoadSnapshot {
    fn from(gauges: Gauges) -> Self {
        Self {
            waiting: gauges.waiting,
            running: gauges.running,
            kv_cache_usage: gauges.kv_cache_usage,
            as_of: gauges.as_of,
        }
    }
}

/// Something the engine tells the world, in time order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineOutput {
    /// An output token. Only the first of each request, unless `report_tokens` is set.
    Token {
        /// The request.
        id: RequestId,
        /// When the step that made it ended.
        at: Timestamp,
        /// Its number among the request's output tokens, from 0.
        index: u32,
        /// Prompt tokens found cached at first admission.
        cached_tokens: u32,
    },
    /// A request ended; its last token came with it.
    Finished(Finished),
    /// A reset of the prefix cache was taken in (R13).
    CacheReset {
        /// When.
        at: Timestamp,
        /// Whether the cache is empty now; false if blocks were in use.
        done: bool,
    },
    /// Cache events published with a step's outputs (R68), at the time given.
    CacheEvents {
        /// When the step ended.
        at: Timestamp,
        /// In order.
        events: Vec<CacheEvent>,
    },
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The request.
    pub id: RequestId,
    /// When the step that made its last token ended.
    pub at: Timestamp,
    /// Why it ended.
    pub reason: FinishReason,
    /// When the scheduler took it in (R64).
    pub queued: Timestamp,
    /// When the first step that admitted it was formed (R64).
    pub scheduled: Timestamp,
    /// When its first token was out.
    pub first_token: Timestamp,
    /// Prompt tokens found cached at first admission (R28).
    pub cached_tokens: u32,
    /// Output tokens.
    pub output_tokens: u32,
    /// Times it was preempted.
    pub preemptions: u32,
}
