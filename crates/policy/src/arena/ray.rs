//! `ray`: the best match if it is good enough, else the smallest tree; power of two choices when out of
//! balance.
//!
//! ```text
//! max_r - min_r > A                 -> power of two choices by r_i
//! else max over i of m_i / L >= s   -> argmax m_i
//! else                              -> argmin tree_i
//! ```
//!
//! * `r_i`: [`Candidate::load`] by [`RayConfig::load`], in requests; max and min over the eligible instances;
//! * `m_i`: [`Candidate::matched_blocks`]; `L`: length of [`RequestView::prompt_blocks`];
//! * `tree_i`: prompt tokens that this rule has sent to the instance and that were not believed cached there;
//! * `A`, `s`: [`RayConfig::balance_abs`], [`RayConfig::match_share`].
//!
//! Source: `PrefixCacheAffinityRouter` of Ray Serve: imbalance 10 (a later version has it infinite: ray
//! #59390, `ray:balance_abs=4294967295`), match rate 10 %. Without a match it takes the replica whose prefix
//! tree is smallest.
//!
//! Where ours differs: the policy sees no tree. A tree grows by what a request adds to it, and by default
//! nothing is evicted from it, so its size is the sum that we keep. It begins at 0 for an instance that
//! joins, which gets the misses until it has caught up, as there. A match is counted in blocks, not in
//! characters; queues are our own requests in flight, not probed ones.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, Spread, eligible, match_share, record, uncached_tokens};
use crate::config::Settings;
use crate::per_instance::PerInstance;
use crate::{
    Candidate, Decision, InvalidPolicy, LoadSignal, Needs, P2c, P2cConfig, Policy, Reason,
    RequestView, Scores,
};

/// Parameters of `ray`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RayConfig {
    /// Difference between the most and the least loaded, in requests, above which power of two choices
    /// decides. Default 10 (Ray).
    pub balance_abs: u32,
    /// Least share of the prompt that is a match, `0.0..=1.0`. Default 0.1 (Ray).
    pub match_share: f64,
    /// What counts as load. Default [`LoadSignal::InFlight`].
    pub load: LoadSignal,
}

impl Default for RayConfig {
    fn default() -> Self {
        Self { balance_abs: 10, match_share: 0.1, load: LoadSignal::InFlight }
    }
}

/// The `ray` policy.
#[derive(Clone, Debug)]
pub struct Ray {
    config: RayConfig,
    power_of_two: P2c,
    /// Tokens sent to each instance that it did not have.
    trees: PerInstance<u64>,
}

impl Ray {
    fn new(config: RayConfig, seed: u64) -> Self {
        let power_of_two = P2c::new(P2cConfig { load: config.load }, seed);
        Self { config, power_of_two, trees: PerInstance::default() }
    }

    /// The best match if it is one, else the smallest tree.
    fn by_prefix(
        &self,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let RayConfig { match_share: least_share, load, balance_abs: _ } = self.config;
        let size = |position: usize| 0.0 - self.trees[position] as f64;
        let (mut longest, mut smallest) = (Best::new(load), Best::new(load));
        for (position, candidate) in eligible(candidates) {
            longest.offer(match_share(request, candidate), position, candidate);
            smallest.offer(size(position), position, candidate);
        }
        let (share, position, holder) = longest.get()?;
        if share >= least_share && holder.matched_blocks > 0 {
            record(candidates, scores, |_, candidate| match_share(request, candidate));
            return Some(Decision { position, reason: Reason::LongestMatch });
        }
        record(candidates, scores, |position, _| size(position));
        let (_, position, _) = smallest.get()?;
        Some(Decision { position, reason: Reason::LoadScore })
    }
}

impl Policy for Ray {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { index: true, load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(N). Scores are negated loads of the two drawn, shares of the prompt, or negated tree sizes, by what
    /// decided.
    fn choose(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        self.trees.follow(candidates);
        let Spread { least, most, .. } = Spread::of(candidates, self.config.load)?;
        let decision = if most - least > self.config.balance_abs {
            self.power_of_two.choose(now, request, candidates, scores)?
        } else {
            self.by_prefix(request, candidates, scores)?
        };
        let added = uncached_tokens(request, &candidates[decision.position]);
        self.trees[decision.position] += u64::from(added);
        Some(decision)
    }
}

impl Settings for RayConfig {
    fn name(&self) -> &'static str {
        "ray"
    }

    fn summary(&self) -> &'static str {
        "the best match if good enough, else the instance given the least new text; p2c if out of balance (Ray Serve)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            (
                "balance_abs",
                "difference of most to least loaded that leaves it to power of two choices",
            ),
            ("match_share", "least share of the prompt that is a match, 0 to 1"),
            ("load", LoadSignal::ABOUT),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        [&["matched_blocks", "matched_tokens"], self.load.signals()].concat()
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        InvalidPolicy::unless_within(self.name(), "match_share", self.match_share, 0.0..=1.0)
    }

    fn policy(&self, seed: u64) -> Box<dyn Policy> {
        Box::new(Ray::new(*self, seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{assert_scores, burst, choose, choose_scored, in_flight, ten_blocks};

    fn policy() -> Ray {
        Ray::new(RayConfig::default(), 1)
    }

    #[test]
    fn by_hand() {
        let mut policy = policy();
        // 1 of 10 blocks is 10 %: a match.
        let (choice, scores) =
            choose_scored(&mut policy, &ten_blocks(), &in_flight([10, 0, 0], [1, 0, 0]));
        assert_eq!(choice, Some((0, Reason::LongestMatch)));
        assert_scores(&scores, &[(10, 0.1), (20, 0.0), (30, 0.0)]);
        // It added 165 - 16 = 149 tokens there. No match now: the smallest tree, by turns and ids.
        let cold = in_flight([0, 5, 5], [0; 3]);
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &cold);
        assert_scores(&scores, &[(10, -149.0), (20, 0.0), (30, 0.0)]);
        assert_eq!(choice, Some((1, Reason::LoadScore)), "load does not count");
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &cold);
        assert_scores(&scores, &[(10, -149.0), (20, -165.0), (30, 0.0)]);
        assert_eq!(choice, Some((2, Reason::LoadScore)));
        assert_eq!(choose(&mut policy, &ten_blocks(), &cold), Some((0, Reason::LoadScore)));
    }

    #[test]
    fn out_of_balance_two_are_drawn() {
        let table = in_flight([11, 0, 0, 0], [10, 0, 0, 0]);
        let mut policy = policy();
        for _ in 0..50 {
            let (position, reason) = choose(&mut policy, &ten_blocks(), &table).unwrap();
            assert_eq!(reason, Reason::LesserOfTwo, "11 - 0 > 10");
            assert_ne!(position, 0, "it loses against any other");
        }
    }

    #[test]
    fn a_burst_of_one_prefix_collapses_until_10_are_in_flight() {
        let counts = burst(&mut policy(), &ten_blocks(), &mut in_flight([0; 4], [0; 4]), 11);
        assert_eq!(counts, [11, 0, 0, 0]);
        let counts = burst(&mut policy(), &ten_blocks(), &mut in_flight([0; 4], [0; 4]), 40);
        assert!(counts[1..].iter().all(|&count| count > 0), "{counts:?}");
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["match_share=2", "match_share=nan", "balance_abs=-1"] {
            assert!(format!("ray:{bad}").parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
