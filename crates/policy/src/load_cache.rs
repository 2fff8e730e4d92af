//! `load-cache`: a weighted blend of cache affinity and load.
//!
//! ```text
//! score_i = alpha * affinity_i - beta * load_i / max_load
//! choice  = argmax over eligible i of score_i;   ties: least load, least recently chosen, least id
//!
//! affinity_i, paper:   1.0  if the latest request with this prefix key went to i
//!                      0.5  else if the latest request with this session key went to i
//!                      0    else
//! affinity_i, blocks:  matched_i / prompt_blocks;   0 if the prompt has no full block
//! ```
//!
//! * `alpha`, `beta`: [`LoadCacheConfig::alpha`], [`LoadCacheConfig::beta`], without unit;
//! * `load_i`: [`Candidate::load`] by [`LoadCacheConfig::load`], in requests; `max_load`: the greatest of
//!   the eligible instances. If that is 0, so is the load term;
//! * `matched_i`: [`Candidate::matched_blocks`]; `prompt_blocks`: length of [`RequestView::prompt_blocks`].
//!
//! Both terms lie in `0..=1` before weighting. The score and the affinity `paper` are of the original
//! study; `blocks` grades the match by what it saves (design, section 3). Only the ratio of the weights
//! matters for the choice.
//!
//! With `alpha > beta` a full match outweighs any load: when one prefix is in every prompt, its first
//! holder gets all requests, however long its queue (the study's 0.7 and 0.3 do so). With `alpha < beta` an
//! idle instance is always taken before the most loaded. The defaults are inside the region that `docs/answers.md`
//! (RQ2) shows to be robust.

use std::cmp::Ordering;

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::{
    Candidate, Decision, InvalidPolicy, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};

/// What cache affinity means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    /// 1.0 where the prefix was last sent, 0.5 where the session was, as in the original paper.
    Paper,
    /// The fraction of the prompt's full blocks that the cache directory believes are there.
    #[default]
    Blocks,
}

/// Parameters of `load-cache`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadCacheConfig {
    /// Weight of the affinity, finite and at least 0. Default 0.4.
    pub alpha: f64,
    /// Weight of the load, finite and at least 0. Default 0.6.
    pub beta: f64,
    /// What counts as affinity. Default [`Affinity::Blocks`].
    pub affinity: Affinity,
    /// What counts as load. Default [`LoadSignal::Total`] (design, section 3).
    pub load: LoadSignal,
}

impl Default for LoadCacheConfig {
    fn default() -> Self {
        Self { alpha: 0.4, beta: 0.6, affinity: Affinity::default(), load: LoadSignal::default() }
    }
}

/// The `load-cache` policy.
#[derive(Clone, Debug)]
pub struct LoadCache {
    config: LoadCacheConfig,
}

/// One eligible candidate in a decision.
#[derive(Clone, Copy, Debug)]
struct Scored<'a> {
    position: usize,
    candidate: &'a Candidate,
    /// `alpha * affinity`.
    cache_term: f64,
    score: f64,
}

impl Scored<'_> {
    /// Whether it is chosen over the other.
    fn beats(&self, other: &Self, load: LoadSignal) -> bool {
        let tie = |scored: &Self| {
            (scored.candidate.load(load), scored.candidate.last_chosen, scored.candidate.id)
        };
        match self.score.total_cmp(&other.score) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal => tie(self) < tie(other),
        }
    }
}

impl LoadCache {
    /// The policy with these parameters.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`] if a weight is negative, infinite or not a number.
    pub fn new(config: LoadCacheConfig) -> Result<Self, InvalidPolicy> {
        config.validate()?;
        Ok(Self { config })
    }

    fn score<'a>(
        &self,
        position: usize,
        candidate: &'a Candidate,
        request: &RequestView<'_>,
        max_load: u32,
    ) -> Scored<'a> {
        let LoadCacheConfig { alpha, beta, affinity, load } = self.config;
        let cache_term = alpha * affinity.of(candidate, request);
        let relative_load = match max_load {
            0 => 0.0,
            _ => f64::from(candidate.load(load)) / f64::from(max_load),
        };
        Scored { position, candidate, cache_term, score: cache_term - beta * relative_load }
    }
}

impl Policy for LoadCache {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { index: true, load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(N): two passes, the first for `max_load`.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let load = self.config.load;
        let eligible = || (0..).zip(candidates).filter(|(_, candidate)| candidate.eligible);
        let max_load = eligible().map(|(_, candidate)| candidate.load(load)).max()?;
        let mut best: Option<Scored<'_>> = None;
        for (position, candidate) in eligible() {
            let entry = self.score(position, candidate, request, max_load);
            scores.record(candidate.id, entry.score);
            if best.is_none_or(|best| entry.beats(&best, load)) {
                best = Some(entry);
            }
        }
        best.map(|Scored { position, cache_term, .. }| Decision {
            position,
            reason: if cache_term > 0.0 { Reason::CacheScore } else { Reason::LoadScore },
        })
    }
}

impl Affinity {
    /// The candidate's affinity to the request, `0.0..=1.0`.
    fn of(self, candidate: &Candidate, request: &RequestView<'_>) -> f64 {
        match self {
            Self::Paper if candidate.is_last_for_prefix => 1.0,
            Self::Paper if candidate.is_last_for_session => 0.5,
            Self::Paper => 0.0,
            Self::Blocks if request.prompt_blocks.is_empty() => 0.0,
            Self::Blocks => {
                f64::from(candidate.matched_blocks) / request.prompt_blocks.len() as f64
            }
        }
    }

    /// The signals it reads, by field of [`Candidate`].
    const fn signals(self) -> &'static [&'static str] {
        match self {
            Self::Paper => &["is_last_for_prefix", "is_last_for_session"],
            Self::Blocks => &["matched_blocks"],
        }
    }
}

impl Settings for LoadCacheConfig {
    fn name(&self) -> &'static str {
        "load-cache"
    }

    fn summary(&self) -> &'static str {
        "the best of alpha * cache affinity - beta * relative load"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("alpha", "weight of the cache affinity, at least 0"),
            ("beta", "weight of the load relative to the most loaded, at least 0"),
            (
                "affinity",
                "paper (1.0 where the prefix went last, 0.5 where the session did) or blocks \
                 (fraction of the prompt's blocks believed cached)",
            ),
            ("load", LoadSignal::ABOUT),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        [self.affinity.signals(), self.load.signals()].concat()
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        let weights = [("alpha", self.alpha), ("beta", self.beta)];
        InvalidPolicy::unless_weights(self.name(), &weights)
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(LoadCache { config: *self })
    }
}

#[cfg(test)]
mod tests {
    use kvroute_types::BlockHash;

    use super::*;
    use crate::fixtures::{choose, choose_scored, request, running};

    const TEN_BLOCKS: [BlockHash; 10] = [BlockHash(1); 10];
    /// The original study's weights.
    const STUDY: LoadCacheConfig = LoadCacheConfig {
        alpha: 0.7,
        beta: 0.3,
        affinity: Affinity::Blocks,
        load: LoadSignal::Total,
    };

    fn policy(config: LoadCacheConfig) -> LoadCache {
        LoadCache::new(config).unwrap()
    }

    fn ten_blocks() -> RequestView<'static> {
        RequestView { prompt_blocks: &TEN_BLOCKS, ..request() }
    }

    fn assert_scores(actual: &[(u32, f64)], expected: &[(u32, f64)]) {
        assert_eq!(actual.len(), expected.len(), "{actual:?}");
        for (&(id, score), &(expected_id, expected_score)) in actual.iter().zip(expected) {
            assert_eq!(id, expected_id);
            assert!((score - expected_score).abs() < 1e-12, "{actual:?} against {expected:?}");
        }
    }

    #[test]
    fn blocks_by_hand() {
        let mut table = running(&[8, 4, 0, 16]);
        for (candidate, matched) in table.iter_mut().zip([9, 5, 0, 10]) {
            candidate.matched_blocks = matched;
        }
        table[3].eligible = false; // neither chosen nor in max_load = 8
        let (decision, scores) = choose_scored(&mut policy(STUDY), &ten_blocks(), &table);
        // 0.7 * 0.9 - 0.3 * 8/8 = 0.33;   0.7 * 0.5 - 0.3 * 4/8 = 0.20;   0 - 0
        assert_scores(&scores, &[(10, 0.33), (20, 0.20), (30, 0.0)]);
        assert_eq!(decision, Some((0, Reason::CacheScore)));

        let (decision, scores) =
            choose_scored(&mut policy(LoadCacheConfig::default()), &ten_blocks(), &table);
        // 0.4 * 0.9 - 0.6 * 8/8 = -0.24;   0.4 * 0.5 - 0.6 * 4/8 = -0.10;   0 - 0
        assert_scores(&scores, &[(10, -0.24), (20, -0.10), (30, 0.0)]);
        assert_eq!(decision, Some((2, Reason::LoadScore)));
    }

    #[test]
    fn a_full_match_outweighs_any_load_only_with_more_weight_on_affinity() {
        let mut table = running(&[1_000, 0]);
        table[0].matched_blocks = 10;
        let choice = |config| choose(&mut policy(config), &ten_blocks(), &table).unwrap();
        assert_eq!(choice(STUDY), (0, Reason::CacheScore));
        assert_eq!(choice(LoadCacheConfig::default()), (1, Reason::LoadScore));
    }

    #[test]
    fn weights_decide_between_cache_and_load() {
        let mut table = running(&[8, 4, 0]);
        table[0].matched_blocks = 9;
        table[1].matched_blocks = 5;
        let choice = |alpha, beta| {
            let config = LoadCacheConfig { alpha, beta, ..LoadCacheConfig::default() };
            choose(&mut policy(config), &ten_blocks(), &table).unwrap()
        };
        assert_eq!(choice(1.0, 0.0), (0, Reason::CacheScore));
        // 0.36 - 0.6 = -0.24;   0.2 - 0.3 = -0.1;   0
        assert_eq!(choice(0.4, 0.6), (2, Reason::LoadScore));
        // 0.9 - 0.9 = 0;   0.5 - 0.45 = 0.05;   0
        assert_eq!(choice(1.0, 0.9), (1, Reason::CacheScore));
        assert_eq!(choice(0.0, 1.0), (2, Reason::LoadScore));
    }

    #[test]
    fn paper_by_hand() {
        let mut table = running(&[10, 5, 2, 0]);
        table[0].is_last_for_prefix = true;
        table[0].is_last_for_session = true; // the prefix match counts, not the sum
        table[1].is_last_for_session = true;
        table[2].matched_blocks = 10; // not read
        let config = LoadCacheConfig { affinity: Affinity::Paper, ..STUDY };
        let (decision, scores) = choose_scored(&mut policy(config), &ten_blocks(), &table);
        // 0.7 - 0.3;   0.35 - 0.15;   0 - 0.06;   0
        assert_scores(&scores, &[(10, 0.4), (20, 0.2), (30, -0.06), (40, 0.0)]);
        assert_eq!(decision, Some((0, Reason::CacheScore)));
    }

    #[test]
    fn a_prompt_without_a_full_block_has_no_affinity() {
        let mut table = running(&[2, 1]);
        table[0].matched_blocks = 1;
        let (decision, scores) =
            choose_scored(&mut policy(LoadCacheConfig::default()), &request(), &table);
        assert_scores(&scores, &[(10, -0.6), (20, -0.3)]);
        assert_eq!(decision, Some((1, Reason::LoadScore)));
    }

    #[test]
    fn an_idle_fleet_has_no_load_term() {
        let mut table = running(&[0, 0]);
        table[1].matched_blocks = 1;
        let (decision, scores) =
            choose_scored(&mut policy(LoadCacheConfig::default()), &ten_blocks(), &table);
        assert_scores(&scores, &[(10, 0.0), (20, 0.04)]);
        assert_eq!(decision, Some((1, Reason::CacheScore)));
    }

    #[test]
    fn equal_scores_end_by_load_then_turn_then_id() {
        // beta 0: the score is blind to load, the tie rule is not.
        let config = LoadCacheConfig { beta: 0.0, ..LoadCacheConfig::default() };
        let mut table = running(&[3, 1, 1, 1]);
        let choice =
            |table: &[Candidate]| choose(&mut policy(config), &ten_blocks(), table).unwrap().0;
        assert_eq!(choice(&table), 1, "least load, then id");
        for (candidate, last_chosen) in table.iter_mut().zip([0, 7, 5, 6]) {
            candidate.last_chosen = last_chosen;
        }
        assert_eq!(choice(&table), 2, "least load, then least recently chosen");
    }

    #[test]
    fn the_load_option_is_obeyed() {
        let mut table = running(&[5, 0]);
        table[1].in_flight = 1;
        let choice = |load| {
            let config = LoadCacheConfig { load, ..LoadCacheConfig::default() };
            choose(&mut policy(config), &request(), &table).unwrap().0
        };
        assert_eq!(choice(LoadSignal::Total), 1);
        assert_eq!(choice(LoadSignal::Waiting), 0, "nobody waits: by id");
        assert_eq!(choice(LoadSignal::InFlight), 0);
    }

    #[test]
    fn weights_must_be_finite_and_not_negative() {
        for bad in [-0.1, f64::NAN, f64::INFINITY] {
            for config in [
                LoadCacheConfig { alpha: bad, ..LoadCacheConfig::default() },
                LoadCacheConfig { beta: bad, ..LoadCacheConfig::default() },
            ] {
                assert!(LoadCache::new(config).is_err());
            }
        }
    }
}
