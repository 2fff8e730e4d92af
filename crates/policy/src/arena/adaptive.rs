//! `adaptive`: the least delay to all; nothing to tune.
//!
//! ```text
//! cost_i = (W_i + w_i + F) * sqrt(b_i + 1) + P * b^2 * w_i          in tokens
//! choice = argmin over eligible i of cost_i;   ties: least in flight, least recently chosen, least id
//! ```
//!
//! * `w_i`: prompt tokens that the instance would compute: [`RequestView::prompt_tokens`] -
//!   [`Candidate::matched_tokens`], and at the place of the session's last request the half of that, or
//!   [`ANSWER_TOKENS`] less if that is more ([`Candidate::is_last_for_session`]); `W_i`: those queued there,
//!   [`Candidate::in_flight_uncached_tokens`];
//! * `b_i`: [`Candidate::in_flight`], `b`: its mean over the eligible instances;
//! * `F`: what a first token costs beside its own prefill (the step in progress, a step's least time), [`FIXED_TOKENS`];
//!   `P`: [`PRICE`].
//!
//! How it reads. The first term is the request's own time to first token on a machine that a batch of `b_i` slows down
//! (LMetric multiplies by the batch itself, which on a busy fleet gives cached prefixes away too easily; the square
//! root does not). The second is what others pay for the tokens that this instance would have to compute: nothing on an
//! idle fleet, steeply more on a busy one. Where all instances would compute the same, it is a constant and the queue
//! decides; where one holds the prompt, the busier the fleet, the longer a queue is borne for it. When one instance gets
//! everything, its queue of prefills grows faster than `b`, which is a mean over the fleet, so it does not stay so; but a
//! document that is cached and asked for by more than one instance's share of all requests fills the batch and not that
//! queue, and what fills it raises `b`: with eight instances above capacity that collapsed once (`docs/arena.md`).
//!
//! Why the session's last place. A directory of routed prompts does not know answers, and a second turn's prompt is
//! the first one's and its answer: on the first turn's instance the answer is cached, and by the directory all
//! instances that hold the system prompt look the same. So conversations wandered, and one that moves is held twice,
//! which costs most where caches are full. The cap is for long prompts, whose new tokens are not answers.
//!
//! It takes all instances for equally fast, and beliefs for facts. Learning each instance's time per token from first
//! tokens was tried in three ways (least squares, the same with relative errors, a running quartile) and left out: near
//! capacity, waits for a place in the batch are in those times and make whoever is full look slow, which gives
//! its prefixes away; on equal instances each was slower than doing without. Unequal ones were not tried. The price
//! of the M/G/1 queue's first policy iteration, `rho / (1 - rho) / mean(w) * (W_i w_i + w_i^2 / 2)` with a learned `rho`, was tried in
//! its place: as good on documents, far worse on chat, where batches and not prefills are the limit.
//!
//! Source: our own. The exponents, `P`, `F` and [`ANSWER_TOKENS`] are the results of a search over workloads of the arena
//! (`docs/arena.md`), and not for users to set.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible, scored, uncached_tokens};
use crate::config::Settings;
use crate::{Candidate, Decision, LoadSignal, Needs, Policy, RequestView, Scores};

/// What a first token costs beside its own prefill, in tokens: a step that loads the weights and computes next to
/// nothing takes as long as 200 tokens on the profiles' GPUs.
const FIXED_TOKENS: f64 = 200.0;
/// Price of a token to compute, for each square of the mean of requests in flight.
const PRICE: f64 = 0.005;
/// Most tokens of a last answer that are taken for cached where they were computed.
const ANSWER_TOKENS: f64 = 256.0;

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
        let price = PRICE * in_flight * in_flight;

        let mut best = Best::new(LoadSignal::InFlight);
        for (position, candidate) in eligible(candidates) {
            let own = own_tokens(request, candidate);
            let queued = candidate.in_flight_uncached_tokens as f64;
            let batch = f64::from(candidate.in_flight) + 1.0;
            let cost = (queued + own + FIXED_TOKENS) * batch.sqrt() + price * own;
            scores.record(candidate.id, 0.0 - cost);
            best.offer(0.0 - cost, position, candidate);
        }
        let (_, position, candidate) = best.get()?;
        Some(Decision { position, reason: scored(candidate) })
    }
}

/// Prompt tokens that the instance would compute, less what it presumably holds of the session's last answer.
fn own_tokens(request: &RequestView<'_>, candidate: &Candidate) -> f64 {
    let uncached = f64::from(uncached_tokens(request, candidate));
    let answer = if candidate.is_last_for_session { uncached / 2.0 } else { 0.0 };
    uncached - answer.min(ANSWER_TOKENS)
}

impl Settings for AdaptiveConfig {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn summary(&self) -> &'static str {
        "the least delay to all: queued and own prefill by the batch, and a price on tokens to compute that grows with the fleet's load; nothing to tune (ours)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn signals(&self) -> Vec<&'static str> {
        vec!["matched_tokens", "is_last_for_session", "in_flight", "in_flight_uncached_tokens"]
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Adaptive)
    }
}

#[cfg(test)]
mod tests {
    use kvroute_types::TokenCount;

    use super::*;
    use crate::Reason;
    use crate::fixtures::{assert_scores, burst, choose, choose_scored, in_flight, ten_blocks};

    #[test]
    fn by_hand() {
        let mut table = in_flight([3, 0], [10, 0]);
        table[0].in_flight_uncached_tokens = 40;
        // b = 1.5; price = 0.005 * 2.25 = 0.01125.
        // (40 + 5 + 200) * sqrt(4) + 0.01125 * 5 = 490.05625;   165 + 200 + 0.01125 * 165 = 366.85625.
        let (choice, scores) = choose_scored(&mut Adaptive, &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -490.056_25), (20, -366.856_25)]);
        assert_eq!(choice, Some((1, Reason::LoadScore)));
        // 205 * 1.414 = 290 with one request there, and it is better to follow the cache.
        table[0].in_flight = 1;
        table[0].in_flight_uncached_tokens = 0;
        let choice = choose(&mut Adaptive, &ten_blocks(), &table);
        assert_eq!(choice, Some((0, Reason::CacheScore)));
    }

    #[test]
    fn the_last_answer_is_half_of_what_is_not_known_there() {
        let mut table = in_flight([0, 0], [0, 0]);
        table[1].is_last_for_session = true;
        // 165 + 200, and 165 / 2 + 200.
        let (choice, scores) = choose_scored(&mut Adaptive, &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -365.0), (20, -282.5)]);
        assert_eq!(choice, Some((1, Reason::LoadScore)));
        // Of 1,000 tokens no more than 256.
        let long = RequestView { prompt_tokens: TokenCount(1000), ..ten_blocks() };
        let (_, scores) = choose_scored(&mut Adaptive, &long, &table);
        assert_scores(&scores, &[(10, -1200.0), (20, -944.0)]);
    }

    #[test]
    fn a_busy_fleet_bears_a_longer_queue_for_a_cached_prompt() {
        let choice = |in_flight_each: u32, queued: u64| {
            let mut table = in_flight([in_flight_each; 2], [10, 0]);
            table[0].in_flight_uncached_tokens = queued;
            choose(&mut Adaptive, &ten_blocks(), &table).unwrap().0
        };
        // (300 + 205) * 1.414 + 0.005 * 5 > 365 * 1.414 + 0.005 * 165.
        assert_eq!(choice(1, 300), 1);
        // With 40 each, price 8: 505 * 6.4 + 8 * 5 = 3,274 < 365 * 6.4 + 8 * 165 = 3,657; 905 * 6.4 + 40 = 5,835.
        assert_eq!(choice(40, 300), 0);
        assert_eq!(choice(40, 700), 1);
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
