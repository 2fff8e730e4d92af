//! A decision with everything it was made from, by names.

use std::borrow::Cow;

use kvroute_policy::Reason;
use kvroute_router::{DirectorySource, RouteReceipt};
use kvroute_types::{InstanceId, TokenCount};
use serde::Serialize;

use crate::event::Route;

/// A decision with everything it was made from, by names. Field names are part of the contract.
#[derive(Clone, Debug, Serialize)]
pub struct Receipt {
    /// Number of the try.
    pub request: u32,
    /// Seconds since the gateway started.
    pub at_s: f64,
    /// Name of the policy.
    pub policy: &'static str,
    /// Where it went.
    pub instance: String,
    /// Why.
    pub reason: Reason,
    /// Prompt tokens believed cached there; `None` without a cache directory.
    pub predicted_cached_tokens: Option<u32>,
    /// Prompt length, exact or estimated.
    pub prompt_tokens: u32,
    /// Full blocks of the prompt.
    pub prompt_blocks: usize,
    /// Stable hash of the session key.
    pub session_key: Option<u64>,
    /// Stable hash of the prefix key.
    pub prefix_key: Option<u64>,
    /// Which try of the client's request this is, from 1.
    pub attempt: u32,
    /// Age of the cache directory's latest news, s.
    pub index_age_s: Option<f64>,
    /// Every instance, in the order of their ids.
    pub candidates: Vec<ReceiptCandidate>,
}

/// One instance in a [`Receipt`]; the fields of [`kvroute_router::ScoredInstance`].
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are those of ScoredInstance")]
pub struct ReceiptCandidate {
    pub instance: String,
    pub eligible: bool,
    pub score: Option<f64>,
    pub matched_blocks: u32,
    pub matched_by: Option<DirectorySource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_left: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_speed: Option<f64>,
    pub in_flight: u32,
    pub waiting: Option<u32>,
    pub running: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache_usage: Option<f64>,
    pub load_age_s: Option<f64>,
}

/// What a receipt says of the request beside the decision.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are those of Receipt")]
pub struct RequestFacts {
    pub predicted_cached_tokens: Option<TokenCount>,
    pub prompt_tokens: TokenCount,
    pub prompt_blocks: usize,
    pub session_key: Option<u64>,
    pub prefix_key: Option<u64>,
    pub attempt: u32,
}

impl From<&Route> for RequestFacts {
    fn from(route: &Route) -> Self {
        let Route { request, attempt, decision, .. } = route;
        Self {
            predicted_cached_tokens: decision.and_then(|it| it.predicted_cached_tokens),
            prompt_tokens: request.prompt_tokens,
            prompt_blocks: request.prompt_blocks.len(),
            session_key: request.session_key,
            prefix_key: request.prefix_key,
            attempt: *attempt,
        }
    }
}

impl Receipt {
    /// The receipt of a decision, with the names of its instances.
    pub fn new<'a>(
        route: &RouteReceipt,
        facts: &RequestFacts,
        name: impl Fn(InstanceId) -> Cow<'a, str>,
    ) -> Self {
        let RouteReceipt { request, at, policy, instance, reason, index_age, candidates } = route;
        let RequestFacts {
            predicted_cached_tokens,
            prompt_tokens,
            prompt_blocks,
            session_key,
            prefix_key,
            attempt,
        } = *facts;
        let candidates = candidates.iter().map(|candidate| ReceiptCandidate {
            instance: name(candidate.instance).into_owned(),
            eligible: candidate.eligible,
            score: candidate.score,
            matched_blocks: candidate.matched_blocks,
            matched_by: candidate.matched_by,
            prefill_left: candidate.prefill_left,
            prefill_speed: candidate.prefill_speed,
            in_flight: candidate.in_flight,
            waiting: candidate.waiting,
            running: candidate.running,
            kv_cache_usage: candidate.kv_cache_usage,
            load_age_s: candidate.load_age.map(|age| age.as_secs_f64()),
        });
        Self {
            request: request.0,
            at_s: at.as_secs_f64(),
            policy,
            instance: name(*instance).into_owned(),
            reason: *reason,
            predicted_cached_tokens: predicted_cached_tokens.map(|tokens| tokens.0),
            prompt_tokens: prompt_tokens.0,
            prompt_blocks,
            session_key,
            prefix_key,
            attempt,
            index_age_s: index_age.map(|age| age.as_secs_f64()),
            candidates: candidates.collect(),
        }
    }
}
