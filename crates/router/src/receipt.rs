//! The route receipt: everything a decision was made from.

use std::time::Duration;

use kvroute_policy::Reason;
use kvroute_types::{InstanceId, RequestId, Timestamp};

use crate::config::DirectorySource;

/// One candidate in a receipt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredInstance {
    /// The instance.
    pub instance: InstanceId,
    /// Whether it could be chosen.
    pub eligible: bool,
    /// The policy's score, higher is better; `None` if the policy did not score it.
    pub score: Option<f64>,
    /// Leading prompt blocks the directory believed it to hold; 0 if the policy does not ask.
    pub matched_blocks: u32,
    /// From what that is known; `None` without a directory.
    pub matched_by: Option<DirectorySource>,
    /// Prefill work presumably left there ([`Candidate::prefill_left`](kvroute_policy::Candidate::prefill_left)); `None` if
    /// the policy does not ask.
    pub prefill_left: Option<u64>,
    /// How fast it prefills, over the fleet's mean ([`Candidate::prefill_speed`](kvroute_policy::Candidate::prefill_speed));
    /// `None` if the policy does not ask.
    pub prefill_speed: Option<f64>,
    /// Requests in flight there, by our own count.
    pub in_flight: u32,
    /// Waiting requests by the last reading; `None` without one.
    pub waiting: Option<u32>,
    /// Running requests by the last reading; `None` without one.
    pub running: Option<u32>,
    /// Share of its KV blocks in use by the last reading; `None` without one, or if the policy does not ask.
    pub kv_cache_usage: Option<f64>,
    /// Age of that reading.
    pub load_age: Option<Duration>,
}

/// Why a request went where it went.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteReceipt {
    /// The request.
    pub request: RequestId,
    /// When it was decided.
    pub at: Timestamp,
    /// The rule.
    pub policy: &'static str,
    /// The choice.
    pub instance: InstanceId,
    /// Why.
    pub reason: Reason,
    /// Time since the cache directory last changed; `None` if it never did or is not kept.
    pub index_age: Option<Duration>,
    /// Every instance, in id order.
    pub candidates: Vec<ScoredInstance>,
}
