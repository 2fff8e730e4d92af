//! The decision log: everything a router was told and what it decided, one JSON object a line, and its replay.
//!
//! A routing decision is a pure function of the calls made to the router before it. The log holds these calls in
//! order ([`Event`]), so the decisions can be made again ([`Replay`]): under the policy that made them, to see that
//! the log is whole, and under another one, to see what it would have decided ([`Comparison`]) and, by estimate, what
//! times to first token that would have led to ([`TtftEstimates`]).
//!
//! The crate is *not* told how a log comes about: it opens no file and owns no thread. The gateway writes logs
//! ([`LogWriter`]) and the command line reads them ([`LogReader`]).
//!
//! # Form
//! Each line has an `event` and, except `gap`, the time `at_ns` in nanoseconds since the gateway started.
//!
//! | `event` | other fields |
//! |---|---|
//! | `start` | `format` (now 2), `version`, `seed`, `policy`, `router`: a gateway started, with a fresh router |
//! | `instance-added` | `instance_id`, `instance` (its name) |
//! | `instance-removed` | `instance_id` |
//! | `eligible` | `instance_id`, `eligible`: whether it may be chosen |
//! | `policy` | `policy`: the policy was exchanged |
//! | `load` | `instance_id`, `waiting`, `running`, `kv_cache_usage`, `as_of_ns`: a reading arrived |
//! | `cache` | `instance_id`, `news`: `stored` (with `blocks`, and `after`, the block before them, or null), `removed` (with `blocks`), `cleared` or `lost` |
//! | `believed` | `instance_id`, `believed`: whether what the instance tells of its cache counts |
//! | `instance-restarted` | `instance_id`: its cache is gone |
//! | `restored` | `snapshot`: what instances told an earlier gateway, in Base64 |
//! | `route` | the fields of a [`Receipt`], and `instance_id`, `excluded`, `max_output_tokens`, `priority`, `blocks_after`, `blocks`, `block_names` |
//! | `refused` | as `route` without the decision: no instance could be chosen |
//! | `first-token`, `end` | `request` |
//! | `gap` | `lost`: so many events are missing here |
//!
//! A prompt's block hashes are chained, so each names its whole prefix: `blocks_after` is the last block that the log
//! has held before (null if none), and `blocks` are those after it, 16 hexadecimal digits each.

mod compare;
mod event;
mod line;
mod prompts;
mod reader;
mod receipt;
mod replay;
mod ttft;
mod writer;

#[cfg(test)]
mod tests;

pub use compare::{Comparison, Difference, InstanceShare, LogSummary, PolicyFigures};
pub use event::{Decision, Event, FORMAT, LoggedRequest, Route, Start};
pub use reader::{Entry, LogReader, ReadError};
pub use receipt::{Receipt, ReceiptCandidate, RequestFacts};
pub use replay::{Replay, ReplayError};
pub use ttft::{
    EXPLAINED_SHARE_MIN, EXTRAPOLATED_SHARE_MAX, MEAN_ERROR_MAX, NoTtft, PolicyTtft, REQUESTS_MIN,
    TtftEstimates, TtftModel,
};
pub use writer::LogWriter;
