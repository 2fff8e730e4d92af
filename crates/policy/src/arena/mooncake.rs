//! `mooncake`: the least estimated time to first token.
//!
//! ```text
//! ttft_i = (u_i + p - matched_i) / R
//! choice = argmin over eligible i of ttft_i;   ties: least load, least recently chosen, least id
//! ```
//!
//! * `u_i / R`: time in the queue, `u_i`: [`Candidate::in_flight_uncached_tokens`];
//! * `(p - matched_i) / R`: the request's own prefill, `p`: [`RequestView::prompt_tokens`], `matched_i`:
//!   [`Candidate::matched_tokens`];
//! * `R`: [`MooncakeConfig::prefill_tokens_per_s`].
//!
//! Source: Mooncake (FAST 2025), the scheduler that minimises TTFT: queue time plus prefill time by cached
//! prefix, of each prefill instance. It is only in the paper; no defaults are published.
//!
//! Where ours differs: the paper fits prefill time to the lengths of prompt and prefix on its hardware; here
//! it is one rate for all tokens, so R scales the estimates (the scores in receipts) and not the choice. Left
//! out are the transfer of a cached prefix from another instance and the copying of hot blocks that goes with
//! it, as the gateway cannot move KV blocks, and the rejection of requests that would miss their SLO.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible, prefill_tokens, scored};
use crate::config::Settings;
use crate::{Candidate, Decision, InvalidPolicy, LoadSignal, Needs, Policy, RequestView, Scores};

/// Parameters of `mooncake`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MooncakeConfig {
    /// Prompt tokens that an instance computes in a second; above 0. Default 15,928: the peak that llm-d
    /// publishes with its routing default of August 2026.
    pub prefill_tokens_per_s: f64,
}

impl Default for MooncakeConfig {
    fn default() -> Self {
        Self { prefill_tokens_per_s: 15_928.0 }
    }
}

/// The `mooncake` policy.
#[derive(Clone, Debug)]
pub struct Mooncake {
    config: MooncakeConfig,
}

impl Policy for Mooncake {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { index: true, ..Needs::default() }
    }

    /// O(N). Scores are negated estimates, s.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let mut best = Best::new(LoadSignal::InFlight);
        for (position, candidate) in eligible(candidates) {
            let tokens = prefill_tokens(request, candidate);
            let score = 0.0 - tokens as f64 / self.config.prefill_tokens_per_s;
            scores.record(candidate.id, score);
            best.offer(score, position, candidate);
        }
        let (_, position, candidate) = best.get()?;
        Some(Decision { position, reason: scored(candidate) })
    }
}

impl Settings for MooncakeConfig {
    fn name(&self) -> &'static str {
        "mooncake"
    }

    fn summary(&self) -> &'static str {
        "the least estimated time to first token: queued prefill and this request's (Mooncake, without transfers)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[(
            "prefill_tokens_per_s",
            "prompt tokens that an instance computes in a second, at least 1",
        )]
    }

    fn signals(&self) -> Vec<&'static str> {
        vec!["matched_tokens", "in_flight_uncached_tokens"]
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        let rate = self.prefill_tokens_per_s;
        InvalidPolicy::unless_within(self.name(), "prefill_tokens_per_s", rate, 1.0..=1e9)
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Mooncake { config: *self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;
    use crate::fixtures::{assert_scores, choose, choose_scored, in_flight, ten_blocks};

    #[test]
    fn by_hand() {
        let mut policy = Mooncake { config: MooncakeConfig { prefill_tokens_per_s: 100.0 } };
        let mut table = in_flight([9, 1, 0], [10, 5, 0]);
        table[0].in_flight_uncached_tokens = 55;
        // (55 + 165 - 160) / 100, (0 + 165 - 80) / 100, 165 / 100.
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -0.6), (20, -0.85), (30, -1.65)]);
        assert_eq!(choice, Some((0, Reason::CacheScore)));
        // 81 + 5 > 85: it waits longer than it saves.
        table[0].in_flight_uncached_tokens = 81;
        assert_eq!(choose(&mut policy, &ten_blocks(), &table), Some((1, Reason::CacheScore)));
    }

    #[test]
    fn one_rate_scales_the_estimates_and_not_the_choice() {
        let mut table = in_flight([3, 1, 0], [10, 5, 0]);
        for (candidate, queued) in table.iter_mut().zip([500, 90, 300]) {
            candidate.in_flight_uncached_tokens = queued;
        }
        for prefill_tokens_per_s in [1.0, 15_928.0, 1e9] {
            let mut policy = Mooncake { config: MooncakeConfig { prefill_tokens_per_s } };
            assert_eq!(choose(&mut policy, &ten_blocks(), &table), Some((1, Reason::CacheScore)));
        }
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["prefill_tokens_per_s=0", "prefill_tokens_per_s=nan"] {
            assert!(format!("mooncake:{bad}").parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
