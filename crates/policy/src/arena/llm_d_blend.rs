//! `llm-d-blend`: the greatest weighted sum of four scores.
//!
//! ```text
//! score_i  = w_p * prefix_i + w_q * queue_i + w_k * kv_i + w_l * lru_i
//! prefix_i = m_i / L                      queue_i = (max_q - q_i) / (max_q - min_q),  1 if all are equal
//! kv_i     = 1 - usage_i                  lru_i   = 1 - rank_i / (N - 1)  if nobody has a match, else 1/2
//! choice   = argmax over eligible i of score_i;   ties: least load, least recently chosen, least id
//! ```
//!
//! * `m_i`: [`Candidate::matched_blocks`]; `L`: length of [`RequestView::prompt_blocks`];
//! * `q_i`, `usage_i`: waiting requests and KV usage of the last reading ([`Candidate::load`]), 0 without
//!   one; max and min over the eligible instances;
//! * `rank_i`: place of the instance, from 0, in the order of its last request without a match, never used
//!   first; `N`: number of instances;
//! * weights: [`LlmDBlendConfig::prefix_weight`], [`LlmDBlendConfig::queue_weight`],
//!   [`LlmDBlendConfig::kv_weight`], [`LlmDBlendConfig::lru_weight`].
//!
//! Source: llm-d router and Gateway API inference extension, the default profile until August 2026: prefix 3,
//! queue 2, KV usage 2; where the no-hit LRU scorer is used its weight is 2 (`llm-d-blend:lru_weight=2`; ours
//! is 0, off). The prefix scorer's own weight `w` is 0, its default, so a match counts by its share alone.
//! Their "maximum" picker.
//!
//! Where ours differs: the LRU order is of all instances in the table, eligible or not, and ours alone
//! (theirs is too); scores are equal seldom, and then end by our rule. What a reading cannot have counted is
//! not added, as there: the waiting queue of a stale reading is what it is.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible, match_share};
use crate::config::Settings;
use crate::per_instance::PerInstance;
use crate::{
    Candidate, Decision, InvalidPolicy, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};

/// Parameters of `llm-d-blend`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlmDBlendConfig {
    /// Weight of the share of the prompt that is cached, finite and at least 0. Default 3 (llm-d).
    pub prefix_weight: f64,
    /// Weight of the short queue, finite and at least 0. Default 2 (llm-d).
    pub queue_weight: f64,
    /// Weight of the free KV cache, finite and at least 0. Default 2 (llm-d).
    pub kv_weight: f64,
    /// Weight of not having had a request without a match lately, finite and at least 0. Default 0; 2 where
    /// llm-d uses it.
    pub lru_weight: f64,
}

impl Default for LlmDBlendConfig {
    fn default() -> Self {
        Self { prefix_weight: 3.0, queue_weight: 2.0, kv_weight: 2.0, lru_weight: 0.0 }
    }
}

/// The `llm-d-blend` policy.
#[derive(Clone, Debug)]
pub struct LlmDBlend {
    config: LlmDBlendConfig,
    /// Each instance's place in the order of last requests without a match; `None` for one that has just
    /// come.
    ranks: PerInstance<Option<u32>>,
}

impl LlmDBlend {
    /// Gives everyone in the table a place, newcomers the first ones.
    fn follow(&mut self, candidates: &[Candidate]) {
        if !self.ranks.follow(candidates) {
            return;
        }
        let ranks = self.ranks.values_mut();
        let mut order: Vec<usize> = (0..ranks.len()).collect();
        order.sort_by_key(|&position| ranks[position]); // `None` is the least; equals stay in the order of ids
        for (rank, position) in (0..).zip(order) {
            ranks[position] = Some(rank);
        }
    }

    /// The instance had a request without a match: it goes to the end of the order.
    fn used_cold(&mut self, position: usize) {
        let last = self.ranks.values_mut().len().saturating_sub(1);
        let Some(used) = self.ranks[position] else { return };
        for rank in self.ranks.values_mut().iter_mut().flatten() {
            *rank -= u32::from(*rank > used);
        }
        self.ranks[position] = u32::try_from(last).ok();
    }
}

impl Policy for LlmDBlend {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs {
            index: true,
            load: true,
            kv_cache_usage: self.config.kv_weight > 0.0,
            ..Needs::default()
        }
    }

    /// O(N), in two passes.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let LlmDBlendConfig { prefix_weight, queue_weight, kv_weight, lru_weight } = self.config;
        let keeps_order = lru_weight > 0.0;
        if keeps_order {
            self.follow(candidates);
        }
        let waiting = |candidate: &Candidate| candidate.load.map_or(0, |load| load.waiting);
        let (mut least, mut most, mut is_cold) = (u32::MAX, 0, true);
        for (_, candidate) in eligible(candidates) {
            (least, most) = (least.min(waiting(candidate)), most.max(waiting(candidate)));
            is_cold &= candidate.matched_blocks == 0;
        }
        let mut best = Best::new(LoadSignal::Total);
        for (position, candidate) in eligible(candidates) {
            let queue = if most > least {
                f64::from(most - waiting(candidate)) / f64::from(most - least)
            } else {
                1.0
            };
            let kv = 1.0 - candidate.load.map_or(0.0, |load| load.kv_cache_usage);
            let lru = match self.rank(keeps_order && is_cold, position) {
                Some(rank) if candidates.len() > 1 => {
                    1.0 - f64::from(rank) / (candidates.len() - 1) as f64
                }
                Some(_) => 1.0,
                None => 0.5,
            };
            let score = prefix_weight * match_share(request, candidate)
                + queue_weight * queue
                + kv_weight * kv
                + lru_weight * lru;
            scores.record(candidate.id, score);
            best.offer(score, position, candidate);
        }
        let (_, position, candidate) = best.get()?;
        if keeps_order && is_cold {
            self.used_cold(position);
        }
        let has_affinity = prefix_weight > 0.0 && candidate.matched_blocks > 0;
        let reason = if has_affinity { Reason::CacheScore } else { Reason::LoadScore };
        Some(Decision { position, reason })
    }
}

impl LlmDBlend {
    fn rank(&self, counts: bool, position: usize) -> Option<u32> {
        if counts { self.ranks[position] } else { None }
    }
}

impl Settings for LlmDBlendConfig {
    fn name(&self) -> &'static str {
        "llm-d-blend"
    }

    fn summary(&self) -> &'static str {
        "the best weighted sum of cached share, short queue and free KV cache (llm-d before August 2026)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("prefix_weight", "weight of the share of the prompt believed cached, at least 0"),
            ("queue_weight", "weight of the short waiting queue, at least 0"),
            ("kv_weight", "weight of the free share of the KV cache, at least 0"),
            ("lru_weight", "weight of the least recent request without a match, at least 0"),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        let mut signals = vec!["matched_blocks", "waiting"];
        if self.kv_weight > 0.0 {
            signals.push("kv_cache_usage");
        }
        signals
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        let weights = [
            ("prefix_weight", self.prefix_weight),
            ("queue_weight", self.queue_weight),
            ("kv_weight", self.kv_weight),
            ("lru_weight", self.lru_weight),
        ];
        InvalidPolicy::unless_weights(self.name(), &weights)
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(LlmDBlend { config: *self, ranks: PerInstance::default() })
    }
}

#[cfg(test)]
mod tests {
    use kvroute_types::{InstanceId, LoadSnapshot};

    use super::*;
    use crate::fixtures::{assert_scores, choose, choose_scored, in_flight, ten_blocks};

    fn policy(config: LlmDBlendConfig) -> LlmDBlend {
        LlmDBlend { config, ranks: PerInstance::default() }
    }

    fn table(readings: [(u32, f64); 3], matched: [u32; 3]) -> Vec<Candidate> {
        let mut table = in_flight([0; 3], matched);
        for (candidate, (waiting, kv_cache_usage)) in table.iter_mut().zip(readings) {
            let as_of = Timestamp::ZERO;
            candidate.load = Some(LoadSnapshot { waiting, running: 0, kv_cache_usage, as_of });
        }
        table
    }

    #[test]
    fn by_hand() {
        let table = table([(8, 0.9), (2, 0.5), (0, 0.25)], [10, 4, 0]);
        let (choice, scores) =
            choose_scored(&mut policy(LlmDBlendConfig::default()), &ten_blocks(), &table);
        // 3 * 1 + 2 * 0/8 + 2 * 0.1 = 3.2;   3 * 0.4 + 2 * 6/8 + 2 * 0.5 = 3.7;   0 + 2 * 1 + 2 * 0.75 = 3.5.
        assert_scores(&scores, &[(10, 3.2), (20, 3.7), (30, 3.5)]);
        assert_eq!(choice, Some((1, Reason::CacheScore)));
    }

    #[test]
    fn equal_queues_score_one_and_no_reading_is_an_idle_instance() {
        let mut table = table([(5, 0.5), (5, 0.5), (5, 0.5)], [0; 3]);
        let mut policy = policy(LlmDBlendConfig::default());
        let (_, scores) = choose_scored(&mut policy, &ten_blocks(), &table);
        assert_scores(&scores, &[(10, 3.0), (20, 3.0), (30, 3.0)]);
        table[2].load = None;
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &table);
        assert_scores(&scores, &[(10, 1.0), (20, 1.0), (30, 4.0)]);
        assert_eq!(choice, Some((2, Reason::LoadScore)));
    }

    #[test]
    fn requests_without_a_match_take_turns_if_the_lru_scorer_is_on() {
        let config = LlmDBlendConfig { lru_weight: 2.0, ..LlmDBlendConfig::default() };
        let mut policy = policy(config);
        let mut cold = in_flight([0; 3], [0; 3]);
        // All else equal at 2 + 2: the order of ids at first, 2 * (1, 1/2, 0).
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &cold);
        assert_scores(&scores, &[(10, 6.0), (20, 5.0), (30, 4.0)]);
        assert_eq!(choice, Some((0, Reason::LoadScore)));
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &cold);
        assert_scores(&scores, &[(10, 4.0), (20, 6.0), (30, 5.0)]);
        assert_eq!(choice, Some((1, Reason::LoadScore)));
        // A match leaves the order as it is, and everyone 1/2.
        let (choice, scores) =
            choose_scored(&mut policy, &ten_blocks(), &in_flight([0; 3], [5, 0, 0]));
        assert_scores(&scores, &[(10, 6.5), (20, 5.0), (30, 5.0)]);
        assert_eq!(choice, Some((0, Reason::CacheScore)));
        // A newcomer goes first, then it goes on with 30.
        cold.push(Candidate::new(InstanceId(40)));
        let turns = [(); 5].map(|()| choose(&mut policy, &ten_blocks(), &cold).unwrap().0);
        assert_eq!(turns, [3, 2, 0, 1, 3]);
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["prefix_weight=-1", "queue_weight=inf", "kv_weight=nan", "lru_weight=-2"] {
            assert!(format!("llm-d-blend:{bad}").parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
