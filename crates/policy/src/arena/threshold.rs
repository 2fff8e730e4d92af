//! `threshold`: the longest match, unless the fleet is out of balance or the match is short.
//!
//! ```text
//! out of balance:  max_r - min_r > A  and  max_r > B * min_r      -> argmin r_i
//! else             max over i of m_i / L  >  theta                -> argmax m_i
//! else                                                            -> argmin r_i
//! ```
//!
//! * `r_i`: [`Candidate::load`] by [`ThresholdConfig::load`], in requests; max and min over the eligible
//!   instances;
//! * `m_i`: [`Candidate::matched_blocks`]; `L`: length of [`RequestView::prompt_blocks`];
//! * `theta`, `A`, `B`: [`ThresholdConfig::match_threshold`], [`ThresholdConfig::balance_abs`],
//!   [`ThresholdConfig::balance_rel`]. All three comparisons are strict, as published.
//!
//! Source: the policy `cache_aware` of vllm-project/router 0.1.17 and of the SGLang router that it comes
//! from. Published defaults, two sets: the vLLM router's command line has theta 0.3, A 64, B 1.5 (ours too);
//! documentation and code of both have theta 0.5, A 32, B 1.1:
//! `threshold:match_threshold=0.5,balance_abs=32,balance_rel=1.1`.
//!
//! While no instance has more than A requests in flight, the guard cannot fire: with the defaults a prefix
//! that all share can put 64 requests on one instance and none on the others.
//!
//! Where ours differs: a match is counted in blocks, not in characters. Of several longest matches we take
//! the least loaded; there the prefix has one owner, the one that came last. If the owner is not healthy,
//! there it is the first healthy instance, here the longest match among the healthy.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, Spread, eligible, least_loaded, match_share, record};
use crate::config::Settings;
use crate::{
    Candidate, Decision, InvalidPolicy, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};

/// Parameters of `threshold`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThresholdConfig {
    /// Share of the prompt above which a match counts, `0.0..=1.0`. Default 0.3 (vllm-router's command line).
    pub match_threshold: f64,
    /// Difference between the most and the least loaded, in requests, above which the fleet may be out of
    /// balance. Default 64 (vllm-router's command line).
    pub balance_abs: u32,
    /// Ratio of the most to the least loaded above which it is; at least 0. Default 1.5 (vllm-router's
    /// command line).
    pub balance_rel: f64,
    /// What counts as load. Default [`LoadSignal::InFlight`], as published.
    pub load: LoadSignal,
}

impl Default for ThresholdConfig {
    fn default() -> Self {
        Self { match_threshold: 0.3, balance_abs: 64, balance_rel: 1.5, load: LoadSignal::InFlight }
    }
}

/// The `threshold` policy.
#[derive(Clone, Debug)]
pub struct Threshold {
    config: ThresholdConfig,
}

impl Policy for Threshold {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { index: true, load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(N). Scores are shares of the prompt where a match decided, negated loads where load did.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let ThresholdConfig { match_threshold, balance_abs, balance_rel, load } = self.config;
        let Spread { least, most, .. } = Spread::of(candidates, load)?;
        if most - least > balance_abs && f64::from(most) > balance_rel * f64::from(least) {
            return least_loaded(candidates, load, Reason::Rebalanced, scores);
        }
        let mut longest = Best::new(load);
        for (position, candidate) in eligible(candidates) {
            longest.offer(match_share(request, candidate), position, candidate);
        }
        let (share, position, _) = longest.get()?;
        if share > match_threshold {
            record(candidates, scores, |_, candidate| match_share(request, candidate));
            return Some(Decision { position, reason: Reason::LongestMatch });
        }
        least_loaded(candidates, load, Reason::LeastLoaded, scores)
    }
}

impl Settings for ThresholdConfig {
    fn name(&self) -> &'static str {
        "threshold"
    }

    fn summary(&self) -> &'static str {
        "the longest match, if long enough and the fleet in balance; else the least loaded (vLLM router, SGLang)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("match_threshold", "share of the prompt above which a match counts, 0 to 1"),
            ("balance_abs", "difference of most to least loaded that is too much, in requests"),
            ("balance_rel", "ratio of most to least loaded that is too much as well, at least 0"),
            ("load", LoadSignal::ABOUT),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        [&["matched_blocks"], self.load.signals()].concat()
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        let share = self.match_threshold;
        InvalidPolicy::unless_within(self.name(), "match_threshold", share, 0.0..=1.0)?;
        InvalidPolicy::unless_weights(self.name(), &[("balance_rel", self.balance_rel)])
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Threshold { config: *self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{assert_scores, burst, choose, choose_scored, in_flight, ten_blocks};

    fn policy(config: ThresholdConfig) -> Threshold {
        Threshold { config }
    }

    fn documented() -> Threshold {
        let config = ThresholdConfig {
            match_threshold: 0.5,
            balance_abs: 32,
            balance_rel: 1.1,
            ..ThresholdConfig::default()
        };
        policy(config)
    }

    #[test]
    fn by_hand() {
        let mut policy = policy(ThresholdConfig::default());
        // 4 of 10 blocks > 0.3; in balance: 60 - 1 <= 64.
        let table = in_flight([60, 1, 5], [4, 0, 2]);
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &table);
        assert_eq!(choice, Some((0, Reason::LongestMatch)));
        assert_scores(&scores, &[(10, 0.4), (20, 0.0), (30, 0.2)]);
        // 3 of 10 is not above 0.3.
        let (choice, scores) =
            choose_scored(&mut policy, &ten_blocks(), &in_flight([60, 1, 5], [3, 0, 2]));
        assert_eq!(choice, Some((1, Reason::LeastLoaded)));
        assert_scores(&scores, &[(10, -60.0), (20, -1.0), (30, -5.0)]);
    }

    #[test]
    fn the_guard_needs_both_the_difference_and_the_ratio() {
        for (loads, expected) in [
            ([65, 0], (1, Reason::Rebalanced)),
            ([64, 0], (0, Reason::LongestMatch)), // 64 is not above 64
            ([195, 130], (0, Reason::LongestMatch)), // 65 > 64, but 195 is not above 1.5 * 130
            ([196, 130], (1, Reason::Rebalanced)), // 196 > 195
        ] {
            let table = in_flight(loads, [10, 0]);
            let choice = choose(&mut policy(ThresholdConfig::default()), &ten_blocks(), &table);
            assert_eq!(choice, Some(expected), "{loads:?}");
        }
        // The other published set: 33 - 0 > 32.
        let choice = choose(&mut documented(), &ten_blocks(), &in_flight([33, 0], [10, 0]));
        assert_eq!(choice, Some((1, Reason::Rebalanced)));
    }

    #[test]
    fn below_65_in_flight_the_guard_is_inert_and_one_instance_gets_all() {
        let mut policy = policy(ThresholdConfig::default());
        let mut table = in_flight([0; 8], [0; 8]);
        let counts = burst(&mut policy, &ten_blocks(), &mut table, 65);
        assert_eq!(counts, [65, 0, 0, 0, 0, 0, 0, 0], "the 65th went there too: 64 - 0 <= 64");
        assert_eq!(burst(&mut policy, &ten_blocks(), &mut table, 1), [65, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn at_theta_zero_one_shared_block_is_a_match_and_none_is_not() {
        let mut policy =
            policy(ThresholdConfig { match_threshold: 0.0, ..ThresholdConfig::default() });
        let table = in_flight([30, 0], [1, 0]);
        assert_eq!(
            choose(&mut policy, &ten_blocks(), &table),
            Some((0, Reason::LongestMatch)),
            "1 of 10"
        );
        let table = in_flight([30, 0], [0, 0]);
        assert_eq!(choose(&mut policy, &ten_blocks(), &table), Some((1, Reason::LeastLoaded)));
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["match_threshold=1.5", "match_threshold=nan", "balance_rel=-1"] {
            assert!(format!("threshold:{bad}").parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
