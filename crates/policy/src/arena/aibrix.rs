//! `aibrix`: the longest match that is not far above the mean load, in standard deviations.
//!
//! ```text
//! max_r - min_r > A                                         -> argmin r_i
//! else the first of the i with m_i > 0 and
//!      r_i <= mean + f * sigma, by falling m_i, rising r_i  -> i
//! else                                                      -> argmin r_i
//! ```
//!
//! * `r_i`: [`Candidate::load`] by [`AibrixConfig::load`], in requests; `mean`, `sigma`, max, min over the
//!   eligible instances (`sigma` over all of them, so divided by their number);
//! * `m_i`: [`Candidate::matched_blocks`];
//! * `A`, `f`: [`AibrixConfig::balance_abs`], [`AibrixConfig::deviations`].
//!
//! Source: the policy `prefix-cache` of AIBrix (main, August 2026). Defaults are of its code: A 8, f 1 (with
//! blocks of 4 characters' tokens). Its readme says 16 and 2 (and blocks of 128):
//! `aibrix:balance_abs=16,deviations=2`.
//!
//! Where ours differs: the match comes from our cache directory, in its blocks, instead of a table of 200,000
//! blocks with a TTL of 20 minutes; equals end by our rule.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, Spread, eligible, least_loaded, match_share, record};
use crate::config::Settings;
use crate::{
    Candidate, Decision, InvalidPolicy, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};

/// Parameters of `aibrix`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AibrixConfig {
    /// Difference between the most and the least loaded, in requests, above which load alone decides. Default
    /// 8 (code).
    pub balance_abs: u32,
    /// Standard deviations above the mean up to which a match is followed; finite and at least 0. Default 1
    /// (code).
    pub deviations: f64,
    /// What counts as load. Default [`LoadSignal::InFlight`], as published.
    pub load: LoadSignal,
}

impl Default for AibrixConfig {
    fn default() -> Self {
        Self { balance_abs: 8, deviations: 1.0, load: LoadSignal::InFlight }
    }
}

/// The `aibrix` policy.
#[derive(Clone, Debug)]
pub struct Aibrix {
    config: AibrixConfig,
}

impl Policy for Aibrix {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { index: true, load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(N). Scores are shares of the prompt where a match decided, -1 for who is too loaded; negated loads
    /// where load did.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let AibrixConfig { balance_abs, deviations, load } = self.config;
        let Spread { least, most, mean, deviation } = Spread::of(candidates, load)?;
        if most - least > balance_abs {
            return least_loaded(candidates, load, Reason::Rebalanced, scores);
        }
        // Rounding must not shut out an instance at the bound.
        let bound = mean + deviations * deviation + 1e-9;
        let is_within = |candidate: &Candidate| f64::from(candidate.load(load)) <= bound;
        let (mut best, mut longest) = (Best::new(load), 0);
        for (position, candidate) in eligible(candidates) {
            longest = longest.max(candidate.matched_blocks);
            if candidate.matched_blocks > 0 && is_within(candidate) {
                best.offer(f64::from(candidate.matched_blocks), position, candidate);
            }
        }
        let Some((_, position, candidate)) = best.get() else {
            let reason = if longest > 0 { Reason::Spilled } else { Reason::LeastLoaded };
            return least_loaded(candidates, load, reason, scores);
        };
        record(candidates, scores, |_, candidate| {
            if is_within(candidate) { match_share(request, candidate) } else { -1.0 }
        });
        let is_longest = candidate.matched_blocks == longest;
        let reason = if is_longest { Reason::LongestMatch } else { Reason::Spilled };
        Some(Decision { position, reason })
    }
}

impl Settings for AibrixConfig {
    fn name(&self) -> &'static str {
        "aibrix"
    }

    fn summary(&self) -> &'static str {
        "the longest match within some standard deviations of the mean load, if in balance (AIBrix)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("balance_abs", "difference of most to least loaded that is too much, in requests"),
            ("deviations", "standard deviations above the mean load up to which a match counts"),
            ("load", LoadSignal::ABOUT),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        [&["matched_blocks"], self.load.signals()].concat()
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        InvalidPolicy::unless_weights(self.name(), &[("deviations", self.deviations)])
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Aibrix { config: *self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{assert_scores, burst, choose, choose_scored, in_flight, ten_blocks};

    fn policy() -> Aibrix {
        Aibrix { config: AibrixConfig::default() }
    }

    #[test]
    fn by_hand() {
        // Loads 2, 4, 4, 4, 5, 5, 7, 9: mean 5, sigma 2, so up to 7 requests.
        let loads = [2, 4, 4, 4, 5, 5, 7, 9];
        let table = in_flight(loads, [1, 0, 0, 0, 0, 0, 9, 10]);
        let (choice, scores) = choose_scored(&mut policy(), &ten_blocks(), &table);
        assert_eq!(choice, Some((6, Reason::Spilled)), "9 of 10 blocks at 7 requests");
        assert_scores(&scores[6..], &[(70, 0.9), (80, -1.0)]);
        let table = in_flight(loads, [1, 0, 0, 0, 0, 9, 9, 0]);
        assert_eq!(
            choose(&mut policy(), &ten_blocks(), &table),
            Some((5, Reason::LongestMatch)),
            "of equal matches the less loaded"
        );
        let table = in_flight(loads, [0, 0, 0, 0, 0, 0, 0, 10]);
        assert_eq!(choose(&mut policy(), &ten_blocks(), &table), Some((0, Reason::Spilled)));
        let table = in_flight(loads, [0; 8]);
        assert_eq!(choose(&mut policy(), &ten_blocks(), &table), Some((0, Reason::LeastLoaded)));
    }

    #[test]
    fn a_difference_above_8_leaves_it_to_load() {
        for (most, expected) in [(8, (0, Reason::LongestMatch)), (9, (1, Reason::Rebalanced))] {
            // Mean 8 / 2 = 4, sigma 4: at the bound of 8.
            let table = in_flight([most, 0], [10, 0]);
            assert_eq!(choose(&mut policy(), &ten_blocks(), &table), Some(expected), "{most}");
        }
        let config = AibrixConfig { balance_abs: 16, deviations: 2.0, ..AibrixConfig::default() };
        let table = in_flight([16, 0], [10, 0]);
        let choice = choose(&mut Aibrix { config }, &ten_blocks(), &table);
        assert_eq!(choice, Some((0, Reason::LongestMatch)), "the readme's values");
    }

    /// With two instances a load is never more than one deviation above the mean: only A spreads a shared
    /// prefix.
    #[test]
    fn with_two_instances_the_deviation_never_binds() {
        assert_eq!(burst(&mut policy(), &ten_blocks(), &mut in_flight([0; 2], [0; 2]), 9), [9, 0]);
        // With eight, f = 1 binds from the second request on: 1 > 1/8 + 0.33.
        let counts = burst(&mut policy(), &ten_blocks(), &mut in_flight([0; 8], [0; 8]), 8);
        assert!(counts.iter().all(|&count| count <= 2), "{counts:?}");
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["deviations=-1", "deviations=inf", "balance_abs=-1"] {
            assert!(format!("aibrix:{bad}").parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
