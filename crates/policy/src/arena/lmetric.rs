//! `lmetric`: the least product of prefill work and batch size.
//!
//! ```text
//! choice = argmin over eligible i of  P_i * (b_i + 1);   ties: least load, least recently chosen, least id
//! P_i    = u_i + p - matched_i        (queued prefill and this request's)
//! ```
//!
//! * `u_i`: [`Candidate::in_flight_uncached_tokens`]: prefill of requests there that have shown no first
//!   token, what is believed cached left out; 0 if [`LmetricConfig::queued_prefill`] is off;
//! * `p`: [`RequestView::prompt_tokens`]; `matched_i`: [`Candidate::matched_tokens`];
//! * `b_i`: [`Candidate::load`] by [`LmetricConfig::load`], in requests: those that wait and those that run,
//!   with the 1 for this request.
//!
//! Source: LMetric ("Simple is Better: Multiplication May Be All You Need for LLM Request Scheduling"), which
//! has no parameters: `prefill_tokens(request, instance) * (batch_size + 1)`.
//!
//! How we read it: the new prefill tokens on an instance are all that it would have to compute, so what is
//! queued there counts. The draft for the SGLang router (#29574) counts this request's alone:
//! `lmetric:queued_prefill=false`. What is left of a prefill that has begun is not known to a gateway; until
//! its first token it counts in full. As the engine computes the last token in any case, the product is never
//! 0 for a prompt with a token.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible, scored, uncached_tokens};
use crate::config::Settings;
use crate::{Candidate, Decision, LoadSignal, Needs, Policy, RequestView, Scores};

/// Parameters of `lmetric`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LmetricConfig {
    /// Whether prefill that is queued on an instance counts beside the request's own. Default true (LMetric).
    pub queued_prefill: bool,
    /// What counts as the batch. Default [`LoadSignal::InFlight`]: exact, and what a gateway knows at once.
    pub load: LoadSignal,
}

impl Default for LmetricConfig {
    fn default() -> Self {
        Self { queued_prefill: true, load: LoadSignal::InFlight }
    }
}

/// The `lmetric` policy.
#[derive(Clone, Debug)]
pub struct Lmetric {
    config: LmetricConfig,
}

impl Policy for Lmetric {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { index: true, load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(N). Scores are negated products.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let LmetricConfig { queued_prefill, load } = self.config;
        let mut best = Best::new(load);
        for (position, candidate) in eligible(candidates) {
            let queued = if queued_prefill { candidate.in_flight_uncached_tokens } else { 0 };
            let prefill = queued + u64::from(uncached_tokens(request, candidate));
            let score = 0.0 - prefill as f64 * (f64::from(candidate.load(load)) + 1.0);
            scores.record(candidate.id, score);
            best.offer(score, position, candidate);
        }
        let (_, position, candidate) = best.get()?;
        Some(Decision { position, reason: scored(candidate) })
    }
}

impl Settings for LmetricConfig {
    fn name(&self) -> &'static str {
        "lmetric"
    }

    fn summary(&self) -> &'static str {
        "the least product of prefill tokens to compute and requests there (LMetric)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("queued_prefill", "whether prefill queued there counts too: true or false"),
            ("load", LoadSignal::ABOUT),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        let queued: &[_] = if self.queued_prefill { &["in_flight_uncached_tokens"] } else { &[] };
        [&["matched_tokens"], queued, self.load.signals()].concat()
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Lmetric { config: *self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;
    use crate::fixtures::{
        Choice, ScoreList, assert_scores, choose, choose_scored, in_flight, ten_blocks,
    };

    fn scores_of(config: LmetricConfig) -> (Option<Choice>, ScoreList) {
        let mut table = in_flight([7, 2, 0], [10, 5, 0]);
        for (candidate, queued) in table.iter_mut().zip([45, 115, 0]) {
            candidate.in_flight_uncached_tokens = queued;
        }
        choose_scored(&mut Lmetric { config }, &ten_blocks(), &table)
    }

    #[test]
    fn by_hand() {
        // 165 - 160 = 5 tokens to compute, 165 - 80 = 85, 165.
        // (45 + 5) * 8 = 400;   (115 + 85) * 3 = 600;   165 * 1.
        let (choice, scores) = scores_of(LmetricConfig::default());
        assert_scores(&scores, &[(10, -400.0), (20, -600.0), (30, -165.0)]);
        assert_eq!(choice, Some((2, Reason::LoadScore)));
        // Without the queue: 5 * 8, 85 * 3, 165 * 1.
        let (choice, scores) =
            scores_of(LmetricConfig { queued_prefill: false, ..LmetricConfig::default() });
        assert_scores(&scores, &[(10, -40.0), (20, -255.0), (30, -165.0)]);
        assert_eq!(choice, Some((0, Reason::CacheScore)));
    }

    #[test]
    fn the_batch_is_by_the_chosen_signal() {
        let mut table = in_flight([3, 0], [0, 0]);
        table[1].unseen_in_flight = 9;
        let choice = |load| {
            let config = LmetricConfig { load, ..LmetricConfig::default() };
            choose(&mut Lmetric { config }, &ten_blocks(), &table).unwrap().0
        };
        assert_eq!(choice(LoadSignal::InFlight), 1);
        assert_eq!(choice(LoadSignal::Total), 0);
    }

    #[test]
    fn on_an_idle_fleet_the_match_decides_and_equals_take_turns() {
        let mut policy = Lmetric { config: LmetricConfig::default() };
        let mut table = in_flight([0; 3], [0, 1, 0]);
        assert_eq!(choose(&mut policy, &ten_blocks(), &table), Some((1, Reason::CacheScore)));
        table[1].matched_blocks = 0;
        table[1].matched_tokens = 0;
        for (candidate, turn) in table.iter_mut().zip([3, 2, 1]) {
            candidate.last_chosen = turn;
        }
        assert_eq!(choose(&mut policy, &ten_blocks(), &table), Some((2, Reason::LoadScore)));
    }
}
