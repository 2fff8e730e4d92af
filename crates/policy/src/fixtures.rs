//! Requests and tables for the unit tests.

use kvroute_types::{BlockHash, InstanceId, LoadSnapshot, RequestId, Timestamp, TokenCount};

use crate::{BlockNames, Candidate, Decision, Policy, Reason, RequestView, Scores, prefill_work};

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

/// Scores by instance number.
pub(crate) type ScoreList = Vec<(u32, f64)>;

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
) -> (Option<Choice>, ScoreList) {
    let mut scores = Scores::new(true);
    let decision = policy.choose(Timestamp::ZERO, request, candidates, &mut scores);
    (
        decision.map(|Decision { position, reason }| (position, reason)),
        scores.as_slice().iter().map(|&(instance, score)| (instance.0, score)).collect(),
    )
}

/// Ten blocks of 16 tokens and 5 more.
pub(crate) fn ten_blocks() -> RequestView<'static> {
    const TEN_BLOCKS: [BlockHash; 10] = [BlockHash(1); 10];
    RequestView { prompt_blocks: &TEN_BLOCKS, prompt_tokens: TokenCount(165), ..request() }
}

/// Instances 10, 20, 30, … with the given numbers of requests in flight, and of blocks of the prompt believed there.
pub(crate) fn in_flight<const N: usize>(loads: [u32; N], matched: [u32; N]) -> Vec<Candidate> {
    (1..)
        .zip(loads.into_iter().zip(matched))
        .map(|(i, (in_flight, matched_blocks))| Candidate {
            in_flight,
            unseen_in_flight: in_flight,
            matched_blocks,
            matched_tokens: 16 * matched_blocks,
            ..Candidate::new(InstanceId(10 * i))
        })
        .collect()
}

/// The fleet after `n` requests of one kind that all come before any ends, each booked as the router books it and known
/// to the directory at once: how many each instance got.
pub(crate) fn burst(
    policy: &mut impl Policy,
    request: &RequestView<'_>,
    candidates: &mut [Candidate],
    n: u64,
) -> Vec<u32> {
    for turn in 1..=n {
        let (position, _) = choose(policy, request, candidates).unwrap();
        let chosen = &mut candidates[position];
        let tokens = u64::from(request.prompt_tokens.0);
        chosen.in_flight += 1;
        chosen.unseen_in_flight += 1;
        chosen.in_flight_prompt_tokens += tokens;
        chosen.in_flight_uncached_tokens += tokens - u64::from(chosen.matched_tokens);
        let uncached = request.prompt_tokens.0 - chosen.matched_tokens;
        chosen.prefill_left += prefill_work(uncached, chosen.matched_tokens);
        chosen.matched_blocks = u32::try_from(request.prompt_blocks.len()).unwrap();
        chosen.matched_tokens = 16 * chosen.matched_blocks;
        chosen.last_chosen = turn;
    }
    candidates.iter().map(|candidate| candidate.in_flight).collect()
}

/// That the scores are these, by instance number.
pub(crate) fn assert_scores(actual: &[(u32, f64)], expected: &[(u32, f64)]) {
    assert_eq!(actual.len(), expected.len(), "{actual:?}");
    for (&(id, score), &(expected_id, expected_score)) in actual.iter().zip(expected) {
        assert_eq!(id, expected_id);
        assert!((score - expected_score).abs() < 1e-9, "{actual:?} against {expected:?}");
    }
}
