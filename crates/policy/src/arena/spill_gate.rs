//! `spill-gate`: the longest match that is not far above the fleet's mean load.
//!
//! ```text
//! closed_i:  r_i > mean + margin  and  r_i > B * mean
//! margin     = min(64, max(4, k * sigma)),   sigma = sqrt(mean)
//! choice     = argmax of m_i over i with m_i / L > theta that are not closed;   without any: argmin r_i
//! ```
//!
//! * `r_i`: [`Candidate::load`] by [`SpillGateConfig::load`], in requests; `mean` over the eligible
//!   instances;
//! * `m_i`: [`Candidate::matched_blocks`]; `L`: length of [`RequestView::prompt_blocks`];
//! * `theta`, `B`, `k`: [`SpillGateConfig::match_threshold`], [`SpillGateConfig::balance_rel`],
//!   [`SpillGateConfig::sigmas`]; 4 and 64: [`SpillGateConfig::margin_least`],
//!   [`SpillGateConfig::margin_most`].
//!
//! Source: the spill gate of SMG 1.13.0 (`cache_aware`), with its defaults: theta 0.3, B 1.5, two sigma,
//! margin 4 to 64. It is the answer to the absolute guard of `threshold`, which small fleets never reach.
//!
//! How we read it: "the natural swing of an in-flight count at the pool's mean" is that of a Poisson count,
//! whose variance is its mean. A closed instance is skipped for this request, and the next longest match is
//! tried, as long as it is above theta. Only the gate is here: SMG's overlap decay, selection temperature,
//! KV-usage gates (all off by default) and overload exclusion are not, and a match is counted in blocks, not
//! in characters or tokens.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, Spread, eligible, least_loaded, match_share, record};
use crate::config::Settings;
use crate::{
    Candidate, Decision, InvalidPolicy, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};

/// Parameters of `spill-gate`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpillGateConfig {
    /// Share of the prompt above which a match counts, `0.0..=1.0`. Default 0.3 (SMG).
    pub match_threshold: f64,
    /// Ratio to the mean load above which an instance may be closed; at least 0. Default 1.5 (SMG).
    pub balance_rel: f64,
    /// Standard deviations above the mean from which on it is; at least 0. Default 2 (SMG).
    pub sigmas: f64,
    /// The least margin above the mean, in requests; at least 0. Default 4 (SMG).
    pub margin_least: f64,
    /// The greatest margin above the mean, in requests; at least 0. Default 64 (SMG).
    pub margin_most: f64,
    /// What counts as load. Default [`LoadSignal::InFlight`], as published.
    pub load: LoadSignal,
}

impl Default for SpillGateConfig {
    fn default() -> Self {
        Self {
            match_threshold: 0.3,
            balance_rel: 1.5,
            sigmas: 2.0,
            margin_least: 4.0,
            margin_most: 64.0,
            load: LoadSignal::InFlight,
        }
    }
}

impl SpillGateConfig {
    /// The greatest load of an open instance, in requests.
    fn limit(&self, mean: f64) -> f64 {
        let margin = (self.sigmas * mean.sqrt()).max(self.margin_least).min(self.margin_most);
        (mean + margin).max(self.balance_rel * mean)
    }
}

/// The `spill-gate` policy.
#[derive(Clone, Debug)]
pub struct SpillGate {
    config: SpillGateConfig,
}

impl Policy for SpillGate {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { index: true, load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(N). Scores are shares of the prompt where a match decided, -1 for a closed instance; negated loads
    /// where load did.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let SpillGateConfig { match_threshold, load, .. } = self.config;
        let limit = self.config.limit(Spread::of(candidates, load)?.mean);
        let is_closed = |candidate: &Candidate| f64::from(candidate.load(load)) > limit;
        let (mut longest, mut best) = (0.0_f64, Best::new(load));
        for (position, candidate) in eligible(candidates) {
            let share = match_share(request, candidate);
            if share > match_threshold {
                longest = longest.max(share);
                if !is_closed(candidate) {
                    best.offer(share, position, candidate);
                }
            }
        }
        let Some((share, position, _)) = best.get() else {
            let reason = if longest > 0.0 { Reason::Spilled } else { Reason::LeastLoaded };
            return least_loaded(candidates, load, reason, scores);
        };
        record(candidates, scores, |_, candidate| {
            if is_closed(candidate) { -1.0 } else { match_share(request, candidate) }
        });
        let reason = if share < longest { Reason::Spilled } else { Reason::LongestMatch };
        Some(Decision { position, reason })
    }
}

impl Settings for SpillGateConfig {
    fn name(&self) -> &'static str {
        "spill-gate"
    }

    fn summary(&self) -> &'static str {
        "the longest match whose load is not far above the mean; else the least loaded (SMG 1.13)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("match_threshold", "share of the prompt above which a match counts, 0 to 1"),
            ("balance_rel", "ratio to the mean load that is too much, at least 0"),
            ("sigmas", "standard deviations above the mean that are too much as well, at least 0"),
            ("margin_least", "the least that they may come to, in requests"),
            ("margin_most", "the most that they may come to, in requests"),
            ("load", LoadSignal::ABOUT),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        [&["matched_blocks"], self.load.signals()].concat()
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        let share = self.match_threshold;
        InvalidPolicy::unless_within(self.name(), "match_threshold", share, 0.0..=1.0)?;
        let weights = [
            ("balance_rel", self.balance_rel),
            ("sigmas", self.sigmas),
            ("margin_least", self.margin_least),
            ("margin_most", self.margin_most),
        ];
        InvalidPolicy::unless_weights(self.name(), &weights)
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(SpillGate { config: *self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{assert_scores, burst, choose, choose_scored, in_flight, ten_blocks};

    fn policy() -> SpillGate {
        SpillGate { config: SpillGateConfig::default() }
    }

    #[test]
    fn the_margin_is_two_sigma_between_4_and_64() {
        let limit = |mean| SpillGateConfig::default().limit(mean);
        for (mean, expected) in [
            (0.0, 4.0),         // 0 + max(4, 0)
            (1.0, 5.0),         // 1 + max(4, 2), above 1.5
            (4.0, 8.0),         // 4 + max(4, 4), above 6
            (16.0, 24.0),       // 16 + 8 = 1.5 * 16
            (100.0, 150.0),     // 100 + 20, below 1.5 * 100: both must be passed
            (1_600.0, 2_400.0), // 1600 + min(64, 80)
        ] {
            assert!((limit(mean) - expected).abs() < 1e-9, "{mean}: {}", limit(mean));
        }
    }

    #[test]
    fn a_match_above_the_limit_is_skipped_for_the_next() {
        // Mean 20 / 4 = 5, sigma 2.236, limit 5 + 4.472 = 9.472.
        let table = in_flight([9, 5, 3, 3], [10, 5, 3, 0]);
        assert_eq!(choose(&mut policy(), &ten_blocks(), &table), Some((0, Reason::LongestMatch)));
        let table = in_flight([10, 4, 3, 3], [10, 5, 3, 0]);
        let (choice, scores) = choose_scored(&mut policy(), &ten_blocks(), &table);
        assert_eq!(choice, Some((1, Reason::Spilled)));
        assert_scores(&scores, &[(10, -1.0), (20, 0.5), (30, 0.3), (40, 0.0)]);
        // 3 of 10 is no match, so the least loaded.
        let table = in_flight([10, 4, 4, 2], [10, 3, 3, 0]);
        assert_eq!(choose(&mut policy(), &ten_blocks(), &table), Some((3, Reason::Spilled)));
        let table = in_flight([10, 4, 4, 2], [3, 3, 3, 0]);
        assert_eq!(choose(&mut policy(), &ten_blocks(), &table), Some((3, Reason::LeastLoaded)));
    }

    /// What `threshold` lets grow to 65 on one of eight instances, the gate spreads.
    #[test]
    fn a_burst_of_one_prefix_spills_before_65() {
        let mut table = in_flight([0; 8], [0; 8]);
        let counts = burst(&mut policy(), &ten_blocks(), &mut table, 64);
        // It spills as far as it must: with 63 in flight the mean is 7.875 and the limit 7.875 + 2 * 2.806 = 13.49.
        assert_eq!(counts, [13, 13, 13, 13, 12, 0, 0, 0]);
        // First at 5 on one instance: 5 > 5 / 8 + 4.
        let mut table = in_flight([0; 8], [0; 8]);
        assert_eq!(burst(&mut policy(), &ten_blocks(), &mut table, 5)[0], 5);
        assert_eq!(burst(&mut policy(), &ten_blocks(), &mut table, 1)[..2], [5, 1]);
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["match_threshold=-0.1", "sigmas=-1", "margin_least=inf", "balance_rel=nan"] {
            assert!(format!("spill-gate:{bad}").parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
