//! `llm-d-sticky`: where most of the prompt is cached, until saturated; then the least token load.
//!
//! ```text
//! kept   = i with m_i / L >= share and t_i <= tau;   all eligible if there is none
//! choice = argmin over kept i of min(t_i, 4,194,304);   ties: least load, least recently chosen, least id
//! ```
//!
//! * `m_i`: [`Candidate::matched_blocks`]; `L`: length of [`RequestView::prompt_blocks`];
//! * `t_i`: [`Candidate::in_flight_prompt_tokens`], the tokens outstanding;
//! * `share`, `tau`: [`LlmDStickyConfig::match_share`], [`LlmDStickyConfig::saturation_tokens`]; the cap of
//!   the token-load score is published with it.
//!
//! Source: llm-d router, default since August 2026 (prefix-cache affinity filter, then token-load scorer):
//! share 0.80, and an estimated extra TTFT of at most 18 s, where TTFT is outstanding tokens / 15,928 tok/s.
//! In tokens that is `tau = R_peak * T_max` = 286,704; llm-d's own token form says 286,720, which is our
//! default.
//!
//! How we read it: the tokens outstanding are the prompt tokens of all requests in flight, cached or not,
//! from our own exact count. Theirs are an estimate from what each of their routers sent.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible, match_share, record};
use crate::config::Settings;
use crate::{
    Candidate, Decision, InvalidPolicy, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};

/// Outstanding tokens from which on the token-load score is 0 (llm-d).
const LOAD_CAP_TOKENS: u64 = 4_194_304;

/// Parameters of `llm-d-sticky`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlmDStickyConfig {
    /// Least share of the prompt that must be cached, `0.0..=1.0`. Default 0.8 (llm-d).
    pub match_share: f64,
    /// Most prompt tokens outstanding on an instance that still attracts. Default 286,720 (llm-d).
    pub saturation_tokens: u64,
}

impl Default for LlmDStickyConfig {
    fn default() -> Self {
        Self { match_share: 0.8, saturation_tokens: 286_720 }
    }
}

/// The `llm-d-sticky` policy.
#[derive(Clone, Debug)]
pub struct LlmDSticky {
    config: LlmDStickyConfig,
}

fn score(candidate: &Candidate) -> f64 {
    let tokens = candidate.in_flight_prompt_tokens.min(LOAD_CAP_TOKENS);
    1.0 - tokens as f64 / LOAD_CAP_TOKENS as f64
}

impl Policy for LlmDSticky {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { index: true, ..Needs::default() }
    }

    /// O(N). Scores are the token load's, -1 for who does not attract while another does.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let LlmDStickyConfig { match_share: share, saturation_tokens } = self.config;
        let holds = |candidate: &Candidate| {
            candidate.matched_blocks > 0 && match_share(request, candidate) >= share
        };
        let attracts = |candidate: &Candidate| {
            holds(candidate) && candidate.in_flight_prompt_tokens <= saturation_tokens
        };
        let load = LoadSignal::InFlight;
        let (mut kept, mut all, mut is_held) = (Best::new(load), Best::new(load), false);
        for (position, candidate) in eligible(candidates) {
            all.offer(score(candidate), position, candidate);
            is_held |= holds(candidate);
            if attracts(candidate) {
                kept.offer(score(candidate), position, candidate);
            }
        }
        let is_kept = kept.get().is_some();
        record(candidates, scores, |_, candidate| {
            if !is_kept || attracts(candidate) { score(candidate) } else { -1.0 }
        });
        let reason = match (is_kept, is_held) {
            (true, _) => Reason::LongestMatch,
            (false, true) => Reason::Spilled,
            (false, false) => Reason::LeastLoaded,
        };
        let (_, position, _) = kept.get().or(all.get())?;
        Some(Decision { position, reason })
    }
}

impl Settings for LlmDStickyConfig {
    fn name(&self) -> &'static str {
        "llm-d-sticky"
    }

    fn summary(&self) -> &'static str {
        "where most of the prompt is cached until saturated, then the fewest tokens in flight (llm-d)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("match_share", "least share of the prompt that must be cached there, 0 to 1"),
            (
                "saturation_tokens",
                "most prompt tokens in flight on an instance that still attracts",
            ),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        vec!["matched_blocks", "in_flight_prompt_tokens"]
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        InvalidPolicy::unless_within(self.name(), "match_share", self.match_share, 0.0..=1.0)
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(LlmDSticky { config: *self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{assert_scores, choose, choose_scored, in_flight, ten_blocks};

    fn policy() -> LlmDSticky {
        LlmDSticky { config: LlmDStickyConfig::default() }
    }

    fn table(tokens: [u64; 3], matched: [u32; 3]) -> Vec<Candidate> {
        let mut table = in_flight([0; 3], matched);
        for (candidate, tokens) in table.iter_mut().zip(tokens) {
            candidate.in_flight_prompt_tokens = tokens;
        }
        table
    }

    #[test]
    fn by_hand() {
        let table = table([286_720, 200_000, 0], [8, 7, 0]);
        let (choice, scores) = choose_scored(&mut policy(), &ten_blocks(), &table);
        // 8 of 10 attracts at tau, 7 of 10 does not; 1 - 286,720 / 4,194,304 = 0.931640625.
        assert_scores(&scores, &[(10, 0.931_640_625), (20, -1.0), (30, -1.0)]);
        assert_eq!(choice, Some((0, Reason::LongestMatch)));
    }

    #[test]
    fn of_several_that_attract_the_least_token_load_is_taken_and_not_the_longest_match() {
        let table = table([5_000, 4_000, 0], [10, 8, 0]);
        assert_eq!(choose(&mut policy(), &ten_blocks(), &table), Some((1, Reason::LongestMatch)));
    }

    #[test]
    fn a_saturated_instance_attracts_no_more() {
        let saturated = table([286_721, 4_000, 3_000], [10, 2, 0]);
        assert_eq!(choose(&mut policy(), &ten_blocks(), &saturated), Some((2, Reason::Spilled)));
        let unknown = table([9, 4_000, 3_000], [7, 2, 0]);
        assert_eq!(choose(&mut policy(), &ten_blocks(), &unknown), Some((0, Reason::LeastLoaded)));
    }

    #[test]
    fn beyond_the_cap_all_are_equal() {
        let mut table = table([4_194_305, 9_000_000, 5_000_000], [0; 3]);
        table[0].in_flight = 2;
        table[2].in_flight = 1;
        assert_eq!(choose(&mut policy(), &ten_blocks(), &table), Some((1, Reason::LeastLoaded)));
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["match_share=1.1", "match_share=nan", "saturation_tokens=-1"] {
            assert!(format!("llm-d-sticky:{bad}").parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
