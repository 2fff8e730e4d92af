//! Requests and tables for the unit tests.

use kvroute_types::{InstanceId, LoadSnapshot, RequestId, Timestamp, TokenCount};

use crate::{BlockNames, Candidate, Decision, Policy, Reason, RequestView, Scores};

/// Position and reason of a decision.
pub(crate) type Choice = (usize, Reason);

/// A request without keys and without a full block.
pub(crate) fn request() -> RequestView<'static> {
    RequestView {
        id: RequestId(0),
        session_key: None,
        prefix_key: None,
        prompt_blocks: &[],
        block_names: BlockNames::Engine,
        prompt_tokens: TokenCount(100),
        max_output_tokens: None,
        priority: 0,
    }
}

/// Instances 10, 20, 30, … with the given numbers of running requests.
pub(crate) fn running(loads: &[u32]) -> Vec<Candidate> {
    (1..)
        .zip(loads)
        .map(|(i, &running)| Candidate {
            load: Some(LoadSnapshot {
                waiting: 0,
                running,
                kv_cache_usage: 0.0,
                as_of: Timestamp::ZERO,
            }),
            ..Candidate::new(InstanceId(10 * i))
        })
        .collect()
}

/// The policy's choice, without scores.
pub(crate) fn choose(
    policy: &mut impl Policy,
    request: &RequestView<'_>,
    candidates: &[Candidate],
) -> Option<Choice> {
    policy
        .choose(Timestamp::ZERO, request, candidates, &mut Scores::new(false))
        .map(|Decision { position, reason }| (position, reason))
}

/// The policy's choice and the scores it noted, by instance number.
pub(crate) fn choose_scored(
    policy: &mut impl Policy,
    request: &RequestView<'_>,
    candidates: &[Candidate],
) -> (Option<Choice>, Vec<(u32, f64)>) {
    let mut scores = Scores::new(true);
    let decision = policy.choose(Timestamp::ZERO, request, candidates, &mut scores);
    (
        decision.map(|Decision { position, reason }| (position, reason)),
        scores.as_slice().iter().map(|&(instance, score)| (instance.0, score)).collect(),
    )
}
