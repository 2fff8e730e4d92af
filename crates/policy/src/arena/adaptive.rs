//! `adaptive`: the least delay to all; nothing to tune.
//!
//! ```text
//! cost_i = (W_i + w_i + F) * sqrt(b_i + 1) + 0.1 * b * w_i * sqrt(b + 1)      in tokens
//! choice = argmin over eligible i of cost_i;   ties: least in flight, least recently chosen, least id
//! ```
//!
//! * `w_i`: prompt tokens that the instance would compute, [`RequestView::prompt_tokens`] -
//!   [`Candidate::matched_tokens`]; `W_i`: those queued there, [`Candidate::in_flight_uncached_tokens`];
//! * `b_i`: [`Candidate::in_flight`], `b`: its mean over the eligible instances;
//! * `F`: what a first token costs beside its own prefill (the step in progress, a step's least time), [`FIXED_TOKENS`].
//!
//! How it reads. The first term is the request's own time to first token on a machine that a batch of `b_i` slows down
//! (LMetric multiplies by the batch itself, which on a busy fleet gives cached prefixes away too easily; the square
//! root does not). The second is what others pay for the tokens that this instance would have to compute: those in flight
//! stand still meanwhile, a tenth of a request each, as most decode and are slowed down, not kept from beginning. Where
//! all instances would compute the same, it is a constant and the queue decides; where one holds the prompt, the busier
//! the fleet, the longer a queue is borne for it. When one instance gets everything, its queue grows faster than `b`,
//! which is a mean over the fleet: so it does not stay so.
//!
//! It takes all instances for equally fast, and beliefs for facts. Learning each instance's time per token from first
//! tokens was tried in three ways (least squares, the same with relative errors, a running quartile) and left out: near
//! capacity, waits for a place in the batch are in those times and make whoever is full look slow, which gives
//! its prefixes away; on equal instances each was slower than doing without. Unequal ones were not tried.
//!
//! Source: our own. The exponent 1/2, the weight 0.1 and `F` are the results of a search over workloads of the arena
//! (`docs/arena.md`), and not for users to set.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible, prefill_tokens, scored, uncached_tokens};
use crate::config::Settings;
use crate::{Candidate, Decision, LoadSignal, Needs, Policy, RequestView, Scores};

/// What a first token costs beside its own prefill, in tokens: a step that loads the weights and computes next to
/// nothing takes as long as 200 tokens on the profiles' GPUs.
const FIXED_TOKENS: f64 = 200.0;
/// Weight of a request in flight, which is slowed down, against one that waits for its first token.
const IN_FLIGHT_WEIGHT: f64 = 0.1;

/// `adaptive` has no parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveConfig {}

/// The `adaptive` policy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Adaptive;

impl Policy for Adaptive {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn needs(&self) -> Needs {
        Needs { index: true, ..Needs::default() }
    }

    /// O(N), in two passes. Scores are negated costs, in tokens.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let (mut n, mut in_flight) = (0_u32, 0_u64);
        for (_, candidate) in eligible(candidates) {
            n += 1;
            in_flight += u64::from(candidate.in_flight);
        }
        let in_flight = in_flight as f64 / f64::from(n);
        let price = IN_FLIGHT_WEIGHT * in_flight * (in_flight + 1.0).sqrt();

        let mut best = Best::new(LoadSignal::InFlight);
        for (position, candidate) in eligible(candidates) {
            let batch = f64::from(candidate.in_flight) + 1.0;
            let first_token =
                (prefill_tokens(request, candidate) as f64 + FIXED_TOKENS) * batch.sqrt();
            let cost = first_token + price * f64::from(uncached_tokens(request, candidate));
            scores.record(candidate.id, 0.0 - cost);
            best.offer(0.0 - cost, position, candidate);
        }
        let (_, position, candidate) = best.get()?;
        Some(Decision { position, reason: scored(candidate) })
    }
}

impl Settings for AdaptiveConfig {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn summary(&self) -> &'static str {
        "the least delay to all: queued and own prefill by the batch, and what the batch waits for; nothing to tune (ours)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn signals(&self) -> Vec<&'static str> {
        vec!["matched_tokens", "in_flight", "in_flight_uncached_tokens", "in_flight_decoding"]
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Adaptive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;
    use crate::fixtures::{assert_scores, burst, choose, choose_scored, in_flight, ten_blocks};

    #[test]
    fn by_hand() {
        let mut table = in_flight([3, 0], [10, 0]);
        table[0].in_flight_uncached_tokens = 40;
        // b = 1.5; price = 0.1 * 1.5 * sqrt(2.5) = 0.237171.
        // (40 + 5 + 200) * sqrt(4) + 0.237171 * 5 = 491.185854;   165 + 200 + 0.237171 * 165 = 404.133186.
        let (choice, scores) = choose_scored(&mut Adaptive, &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -491.185_854_122_563), (20, -404.133_186_044_584)]);
        assert_eq!(choice, Some((1, Reason::LoadScore)));
        // 205 * 1.414 + 0.8 = 290 with one request there, and it is better to follow the cache.
        table[0].in_flight = 1;
        table[0].in_flight_uncached_tokens = 0;
        let choice = choose(&mut Adaptive, &ten_blocks(), &table);
        assert_eq!(choice, Some((0, Reason::CacheScore)));
    }

    #[test]
    fn a_busy_fleet_bears_a_longer_queue_for_a_cached_prompt() {
        let choice = |in_flight_each: u32, queued: u64| {
            let mut table = in_flight([in_flight_each; 2], [10, 0]);
            table[0].in_flight_uncached_tokens = queued;
            choose(&mut Adaptive, &ten_blocks(), &table).unwrap().0
        };
        // (300 + 205) * 1.414 + 0.1 * 1.414 * 5 > 365 * 1.414 + 0.1 * 1.414 * 165.
        assert_eq!(choice(1, 300), 1);
        // With 40 each: 505 + 4 * 5 < 365 + 4 * 165, all times sqrt(41).
        assert_eq!(choice(40, 300), 0);
        assert_eq!(choice(40, 900), 1);
    }

    #[test]
    fn a_burst_of_one_prompt_does_not_collapse() {
        let mut table = in_flight([0; 4], [0; 4]);
        let counts = burst(&mut Adaptive, &ten_blocks(), &mut table, 64);
        assert!(counts.iter().all(|&count| count >= 10), "{counts:?}");
    }

    #[test]
    fn nobody_is_chosen_of_nobody() {
        assert_eq!(choose(&mut Adaptive, &ten_blocks(), &[]), None);
    }
}
