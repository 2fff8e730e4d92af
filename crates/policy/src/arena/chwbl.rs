//! `chwbl`: consistent hashing with bounded loads.
//!
//! ```text
//! open_i: r_i + 1 <= ceil(c * (sum_j r_j + 1) / n)
//! choice = the first open instance in the key's order;   without a key: argmin r_i
//! ```
//!
//! * key: [`RequestView::prefix_key`]; its order: by falling rendezvous weight ([`crate::HashRule`]);
//! * `r_i`: [`Candidate::load`] by [`ChwblConfig::load`], in requests; sum and `n` over the eligible
//!   instances;
//! * `c`: [`ChwblConfig::load_factor`].
//!
//! Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018; as a
//! router for language models in KubeAI: the first 100 characters, 125 % of the mean load. Virtual nodes are
//! 20 to 250 there, 160 in the vLLM router's ring.
//!
//! Where ours differs: the walk around the ring is a walk down the key's rendezvous order. It has no virtual
//! nodes to choose: each key orders all instances evenly and on its own, so an overloaded instance spills
//! over all others, not over its neighbours on the ring. The key is our prefix key (200 characters by
//! default). An open instance always exists: the least loaded is at most at the mean.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Spread, eligible, least_loaded};
use crate::config::Settings;
use crate::home::weight;
use crate::{
    Candidate, Decision, InvalidPolicy, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};

/// Parameters of `chwbl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChwblConfig {
    /// Most load of an instance, as a multiple of the mean; at least 1. Default 1.25 (KubeAI).
    pub load_factor: f64,
    /// What counts as load. Default [`LoadSignal::InFlight`], as published.
    pub load: LoadSignal,
}

impl Default for ChwblConfig {
    fn default() -> Self {
        Self { load_factor: 1.25, load: LoadSignal::InFlight }
    }
}

/// The `chwbl` policy.
#[derive(Clone, Debug)]
pub struct Chwbl {
    config: ChwblConfig,
}

impl Policy for Chwbl {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(N): the first open instance of an order is the greatest weight among the open. Notes scores (negated
    /// loads) only without a key.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let ChwblConfig { load_factor, load } = self.config;
        let Some(key) = request.prefix_key else {
            return least_loaded(candidates, load, Reason::Fallback, scores);
        };
        let n = eligible(candidates).count() as f64;
        let mean_with_it = Spread::of(candidates, load)?.mean + 1.0 / n;
        // Rounding of the mean must not lift a bound that is a whole number.
        let bound = (load_factor * mean_with_it - 1e-9).ceil();
        // The greatest weight of all, and of the open.
        let mut home: Option<(u64, usize)> = None;
        let mut open = None;
        for (position, candidate) in eligible(candidates) {
            let weight = weight(key, candidate.id);
            let is_greatest = |best: Option<(u64, usize)>| best.is_none_or(|it| weight > it.0);
            if is_greatest(home) {
                home = Some((weight, position));
            }
            if is_greatest(open) && f64::from(candidate.load(load)) + 1.0 <= bound {
                open = Some((weight, position));
            }
        }
        let (_, position) = open.or(home)?;
        let reason = if open == home { Reason::PrefixHome } else { Reason::Spilled };
        Some(Decision { position, reason })
    }
}

impl Settings for ChwblConfig {
    fn name(&self) -> &'static str {
        "chwbl"
    }

    fn summary(&self) -> &'static str {
        "consistent hashing of the prefix with bounded loads: the first in its order below the bound (KubeAI)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("load_factor", "most load of an instance as a multiple of the mean, at least 1"),
            ("load", LoadSignal::ABOUT),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        [&["prefix_key"], self.load.signals()].concat()
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        InvalidPolicy::unless_within(self.name(), "load_factor", self.load_factor, 1.0..=1e6)
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Chwbl { config: *self })
    }
}

#[cfg(test)]
mod tests {
    use kvroute_types::mix64;

    use super::*;
    use crate::HashRule;
    use crate::fixtures::{burst, choose, choose_scored, in_flight, ten_blocks};

    fn policy(load_factor: f64) -> Chwbl {
        Chwbl { config: ChwblConfig { load_factor, ..ChwblConfig::default() } }
    }

    fn prefixed(key: u64) -> RequestView<'static> {
        RequestView { prefix_key: Some(key), ..ten_blocks() }
    }

    #[test]
    fn by_hand() {
        // Rendezvous order of key 1 among ids 10, 20, 30, 40, by its weights.
        let mut order: Vec<usize> = (0..4).collect();
        let table = in_flight([0; 4], [0; 4]);
        order.sort_by_key(|&at| std::cmp::Reverse(weight(1, table[at].id)));
        let with = |loads: [u32; 4]| {
            let mut table = table.clone();
            for (&at, load) in order.iter().zip(loads) {
                table[at].in_flight = load;
            }
            let (position, reason) = choose(&mut policy(1.25), &prefixed(1), &table).unwrap();
            (order.iter().position(|&at| at == position).unwrap(), reason)
        };
        // The bound is ceil(1.25 * (sum + 1) / 4).
        assert_eq!(with([0, 0, 0, 0]), (0, Reason::PrefixHome));
        assert_eq!(with([3, 3, 3, 2]), (0, Reason::PrefixHome)); // 12 / 4 = 3, bound 3.75 -> 4: 3 + 1
        assert_eq!(with([4, 3, 3, 1]), (1, Reason::Spilled)); // the same bound: 4 + 1 > 4
        assert_eq!(with([5, 4, 3, 0]), (1, Reason::Spilled)); // 13 / 4, bound 4.0625 -> 5: 5 + 1 > 5, 4 + 1 <= 5
        assert_eq!(with([5, 5, 3, 0]), (2, Reason::Spilled)); // 14 / 4, bound 4.375 -> 5
    }

    #[test]
    fn a_burst_of_one_prefix_stays_within_the_bound() {
        let mut table = in_flight([0; 8], [0; 8]);
        let counts = burst(&mut policy(1.25), &prefixed(3), &mut table, 80);
        // ceil(1.25 * 10) = 13 at most.
        assert_eq!(counts.iter().copied().max(), Some(13), "{counts:?}");
        assert_eq!(
            burst(&mut policy(1.0), &prefixed(3), &mut in_flight([0; 8], [0; 8]), 80),
            [10; 8]
        );
    }

    #[test]
    fn without_a_bound_it_is_the_home_by_hash() {
        let table = in_flight([50, 0, 9, 3, 7], [0; 5]);
        for key in (0..100).map(mix64) {
            let home = HashRule::Rendezvous.home(key, &table).unwrap();
            let choice = choose(&mut policy(1e6), &prefixed(key), &table);
            assert_eq!(choice, Some((home, Reason::PrefixHome)));
        }
    }

    #[test]
    fn without_a_key_the_least_loaded_is_taken() {
        let (choice, scores) =
            choose_scored(&mut policy(1.25), &ten_blocks(), &in_flight([4, 2], [9, 0]));
        assert_eq!(choice, Some((1, Reason::Fallback)));
        assert_eq!(scores, [(10, -4.0), (20, -2.0)]);
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["load_factor=0.9", "load_factor=nan"] {
            assert!(format!("chwbl:{bad}").parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
