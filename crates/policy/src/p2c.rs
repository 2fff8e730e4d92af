//! `p2c`: power of two choices.
//!
//! ```text
//! {a, b}  = two distinct eligible instances, every pair equally likely
//! choice  = argmin over i in {a, b} of load_i;   ties: least recently chosen, then least id
//! score_i = -load_i, for the two drawn
//! ```
//!
//! * `load_i`: [`Candidate::load`] by [`P2cConfig::load`], in requests.
//!
//! Mitzenmacher, "The power of two choices in randomized load balancing", IEEE Transactions on Parallel
//! and Distributed Systems 12(10), 2001. With a single eligible instance there is no second draw.
//!
//! A draw picks a position of the whole table and is repeated until it is eligible, at most
//! [`MAX_TRIES`] times; after that the eligible ones are counted and one of them is drawn by rank. Both
//! ways are uniform over the eligible, so the bound changes the cost and not the odds.

use kvroute_types::Timestamp;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::least_loaded::load_score;
use crate::{Candidate, Decision, LoadSignal, Needs, Policy, Reason, RequestView, Scores};

/// Draws before the eligible are counted. With half the table eligible, 1 decision in 128 gets there.
const MAX_TRIES: usize = 8;

/// Parameters of `p2c`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct P2cConfig {
    /// What counts as load. Default [`LoadSignal::Total`] (design, section 3).
    pub load: LoadSignal,
}

/// The `p2c` policy.
#[derive(Clone, Debug)]
pub struct P2c {
    config: P2cConfig,
    rng: ChaCha8Rng,
}

impl P2c {
    /// The policy with these parameters. Equal seeds draw equal pairs.
    pub fn new(config: P2cConfig, seed: u64) -> Self {
        Self { config, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// An eligible position other than `taken`, all equally likely; `None` if there is none.
    fn draw(&mut self, candidates: &[Candidate], taken: Option<usize>) -> Option<usize> {
        let may_be_drawn = |&i: &usize| candidates[i].eligible && Some(i) != taken;
        for _ in 0..MAX_TRIES.min(candidates.len()) {
            let drawn = self.below(candidates.len());
            if may_be_drawn(&drawn) {
                return Some(drawn);
            }
        }
        let eligible = (0..candidates.len()).filter(may_be_drawn);
        let rank = match eligible.clone().count() {
            0 => return None,
            n => self.below(n),
        };
        eligible.clone().nth(rank)
    }

    /// A number in `0..n`; `n` is at least 1.
    fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }
}

impl Policy for P2c {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(1) if most of the table is eligible, else O(N).
    fn choose(
        &mut self,
        _now: Timestamp,
        _request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let P2cConfig { load } = self.config;
        let first = self.draw(candidates, None)?;
        let second = self.draw(candidates, Some(first));
        let drawn = [Some(first), second];
        for candidate in drawn.into_iter().flatten().map(|position| &candidates[position]) {
            scores.record(candidate.id, load_score(candidate, load));
        }
        let position = drawn.into_iter().flatten().min_by_key(|&position| {
            let candidate = &candidates[position];
            (candidate.load(load), candidate.last_chosen, candidate.id)
        })?;
        Some(Decision { position, reason: Reason::LesserOfTwo })
    }
}

impl Settings for P2cConfig {
    fn name(&self) -> &'static str {
        "p2c"
    }

    fn summary(&self) -> &'static str {
        "power of two choices: the less loaded of two drawn at random"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[("load", LoadSignal::ABOUT)]
    }

    fn signals(&self) -> Vec<&'static str> {
        self.load.signals().to_vec()
    }

    fn policy(&self, seed: u64) -> Box<dyn Policy> {
        Box::new(P2c::new(*self, seed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fixtures::{choose, choose_scored, request, running};

    fn policy(seed: u64) -> P2c {
        P2c::new(P2cConfig::default(), seed)
    }

    /// How often each ordered pair of instances was drawn in `n` decisions.
    fn pairs(candidates: &[Candidate], n: u32) -> BTreeMap<(u32, u32), u32> {
        let mut policy = policy(1);
        let mut counts = BTreeMap::new();
        for _ in 0..n {
            let (_, scores) = choose_scored(&mut policy, &request(), candidates);
            *counts.entry((scores[0].0, scores[1].0)).or_default() += 1;
        }
        counts
    }

    /// Pearson's chi-squared statistic against equal counts.
    fn chi_squared(counts: &BTreeMap<(u32, u32), u32>) -> f64 {
        let total: u32 = counts.values().sum();
        let expected = f64::from(total) / counts.len() as f64;
        counts.values().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn all_pairs_of_eligible_instances_are_equally_likely() {
        let mut table = running(&[1, 2, 3, 4, 5]);
        table[2].eligible = false;
        let counts = pairs(&table, 24_000);
        assert_eq!(counts.len(), 12, "4 * 3 ordered pairs: {counts:?}");
        // 99.9th percentile of chi-squared with 11 degrees of freedom: 31.26.
        assert!(chi_squared(&counts) < 31.26, "{counts:?}");
    }

    #[test]
    fn few_eligible_among_many_are_equally_likely_too() {
        let mut table = running(&[0; 200]);
        for (i, candidate) in table.iter_mut().enumerate() {
            candidate.eligible = [17, 18, 150].contains(&i);
        }
        let counts = pairs(&table, 12_000);
        assert_eq!(counts.len(), 6, "3 * 2 ordered pairs: {counts:?}");
        // 99.9th percentile of chi-squared with 5 degrees of freedom: 20.52.
        assert!(chi_squared(&counts) < 20.52, "{counts:?}");
    }

    #[test]
    fn the_less_loaded_of_the_two_wins() {
        let table = running(&[7, 3]);
        let (decision, mut scores) = choose_scored(&mut policy(5), &request(), &table);
        scores.sort_by_key(|&(instance, _)| instance);
        assert_eq!(decision, Some((1, Reason::LesserOfTwo)));
        assert_eq!(scores, [(10, -7.0), (20, -3.0)]);
    }

    #[test]
    fn equals_are_told_apart_by_rule_not_by_the_draw() {
        let mut table = running(&[2, 2]);
        for seed in 0..20 {
            assert_eq!(choose(&mut policy(seed), &request(), &table).unwrap().0, 0, "by id");
        }
        table[0].last_chosen = 1;
        for seed in 0..20 {
            assert_eq!(choose(&mut policy(seed), &request(), &table).unwrap().0, 1, "by turn");
        }
    }

    #[test]
    fn the_most_loaded_is_never_chosen_while_there_are_two() {
        let table = running(&[1, 9, 2]);
        let mut policy = policy(3);
        assert!((0..1_000).all(|_| choose(&mut policy, &request(), &table).unwrap().0 != 1));
    }

    #[test]
    fn one_eligible_is_taken_and_none_is_none() {
        let mut table = running(&[1, 9, 2]);
        table[0].eligible = false;
        table[2].eligible = false;
        let choice = choose(&mut policy(0), &request(), &table);
        assert_eq!(choice, Some((1, Reason::LesserOfTwo)));
        table[1].eligible = false;
        assert_eq!(choose(&mut policy(0), &request(), &table), None);
        assert_eq!(choose(&mut policy(0), &request(), &[]), None);
    }

    #[test]
    fn the_load_option_is_obeyed() {
        let mut table = running(&[7, 3]);
        table[1].in_flight = 1;
        let mut policy = P2c::new(P2cConfig { load: LoadSignal::InFlight }, 0);
        assert_eq!(choose(&mut policy, &request(), &table).unwrap().0, 0);
    }
}
