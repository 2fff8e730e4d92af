//! `dynamo`: the least cost of prefill and decode blocks.
//!
//! ```text
//! cost_i   = w_p * max(prefill_i - credit_i, 0) + decode_i + w_a * active_i
//! prefill_i = (u_i + p) / B        credit_i = c * decay_i * matched_i / B        decode_i = (t_i + p) / B
//! decay_i  = 1 / (1 + d * (u_i - min_j u_j) / p)
//! choice   = argmin over eligible i of cost_i, ties at random;   if T > 0: i with probability ~ exp(-c'_i / T),
//!            c'_i = (cost_i - min) / (max - min)
//! ```
//!
//! * `u_i`: [`Candidate::in_flight_uncached_tokens`], the prefill outstanding; `t_i`:
//!   [`Candidate::in_flight_prompt_tokens`]; `active_i`: [`Candidate::in_flight_decoding`]; `matched_i`:
//!   [`Candidate::matched_tokens`];
//! * `p`: [`RequestView::prompt_tokens`]; `B`: [`DynamoConfig::block_tokens`];
//! * `w_p`, `c`, `d`, `w_a`, `T`: [`DynamoConfig::prefill_scale`], [`DynamoConfig::overlap_credit`],
//!   [`DynamoConfig::overlap_decay`], [`DynamoConfig::active_weight`], [`DynamoConfig::temperature`].
//!
//! Source: the KV router of Dynamo 1.6.1, with its defaults: `w_p` 1, `c` 1, `d` 0, `w_a` 0, `T` 0.
//!
//! How we read it: `decode_i` are the blocks of all active requests, booked when a request is admitted, plus
//! this one's (Dynamo's "potential active blocks"); the excess of outstanding prefill is that above the least
//! of the eligible. Where ours differs: blocks that generation adds are not counted, nor are blocks that two
//! active requests share counted once, as the gateway sees neither; there are no host, disk or shared tiers,
//! whose credits are 0. Dynamo draws ties from an unseeded generator, we from the run's seed.

use kvroute_types::Timestamp;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::choice::{eligible, record, scored};
use crate::config::Settings;
use crate::{Candidate, Decision, InvalidPolicy, Needs, Policy, RequestView, Scores};

/// Parameters of `dynamo`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DynamoConfig {
    /// Weight of prefill blocks against decode blocks, at least 0. Default 1 (Dynamo).
    pub prefill_scale: f64,
    /// Prefill blocks that a cached block spares, at least 0. Default 1 (Dynamo).
    pub overlap_credit: f64,
    /// How fast that credit fades with the prefill outstanding, at least 0. Default 0, not at all (Dynamo).
    pub overlap_decay: f64,
    /// Cost of a request that decodes, in blocks, at least 0. Default 0 (Dynamo).
    pub active_weight: f64,
    /// Temperature of the draw, at least 0; 0 takes the least cost. Default 0 (Dynamo).
    pub temperature: f64,
    /// Tokens of a block in the costs, above 0: of importance to `active_weight` alone. Default 16 (vLLM's
    /// block size).
    pub block_tokens: f64,
}

impl Default for DynamoConfig {
    fn default() -> Self {
        Self {
            prefill_scale: 1.0,
            overlap_credit: 1.0,
            overlap_decay: 0.0,
            active_weight: 0.0,
            temperature: 0.0,
            block_tokens: 16.0,
        }
    }
}

/// The `dynamo` policy.
#[derive(Clone, Debug)]
pub struct Dynamo {
    config: DynamoConfig,
    rng: ChaCha8Rng,
    /// Costs by position, infinite for who may not be chosen; kept for its memory.
    costs: Vec<f64>,
}

impl Dynamo {
    fn cost(&self, request: &RequestView<'_>, candidate: &Candidate, least_queued: u64) -> f64 {
        let DynamoConfig {
            prefill_scale,
            overlap_credit,
            overlap_decay,
            active_weight,
            temperature: _,
            block_tokens,
        } = self.config;
        let prompt = f64::from(request.prompt_tokens.0);
        let queued = candidate.in_flight_uncached_tokens;
        let excess = queued.saturating_sub(least_queued) as f64 / prompt.max(1.0);
        let credit =
            overlap_credit * f64::from(candidate.matched_tokens) / (1.0 + overlap_decay * excess);
        let prefill = (queued as f64 + prompt - credit).max(0.0);
        let decode = candidate.in_flight_prompt_tokens as f64 + prompt;
        (prefill_scale * prefill + decode) / block_tokens
            + active_weight * f64::from(candidate.in_flight_decoding)
    }

    /// One of the candidates of this cost, all equally likely.
    fn draw_equal(&mut self, cost: f64) -> Option<usize> {
        let mut drawn = None;
        let mut equals = 0_u32;
        for (position, &other) in self.costs.iter().enumerate() {
            if other <= cost {
                equals += 1;
                if equals == 1 || self.rng.random_range(0..equals) == 0 {
                    drawn = Some(position);
                }
            }
        }
        drawn
    }

    /// One of the eligible, the likelier the less it costs.
    fn draw_soft(&mut self, least: f64, greatest: f64) -> Option<usize> {
        let temperature = self.config.temperature;
        let range = if greatest > least { greatest - least } else { 1.0 };
        let weight = |cost: f64| (-(cost - least) / range / temperature).exp();
        let total: f64 = self.costs.iter().copied().map(weight).sum();
        let mut left = self.rng.random::<f64>() * total;
        let mut drawn = None;
        for (position, &cost) in self.costs.iter().enumerate() {
            if cost < f64::INFINITY {
                drawn = Some(position);
                left -= weight(cost);
                if left < 0.0 {
                    break;
                }
            }
        }
        drawn
    }
}

impl Policy for Dynamo {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { index: true, ..Needs::default() }
    }

    /// O(N). Scores are negated costs.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let queued = eligible(candidates).map(|(_, it)| it.in_flight_uncached_tokens);
        let least_queued = queued.min()?;
        let mut costs = std::mem::take(&mut self.costs);
        costs.clear();
        costs.extend(candidates.iter().map(|candidate| {
            if candidate.eligible {
                self.cost(request, candidate, least_queued)
            } else {
                f64::INFINITY
            }
        }));
        self.costs = costs;
        record(candidates, scores, |position, _| 0.0 - self.costs[position]);
        let finite = self.costs.iter().copied().filter(|cost| cost.is_finite());
        let (least, greatest) = finite
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), cost| {
                (least.min(cost), greatest.max(cost))
            });
        let position = if self.config.temperature > 0.0 {
            self.draw_soft(least, greatest)?
        } else {
            self.draw_equal(least)?
        };
        Some(Decision { position, reason: scored(&candidates[position]) })
    }
}

impl Settings for DynamoConfig {
    fn name(&self) -> &'static str {
        "dynamo"
    }

    fn summary(&self) -> &'static str {
        "the least cost: uncached prefill outstanding with this request, plus blocks in use (Dynamo's KV router)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("prefill_scale", "weight of a prefill block against a block in use, at least 0"),
            ("overlap_credit", "prefill blocks that a cached block spares, at least 0"),
            ("overlap_decay", "how fast the credit fades with outstanding prefill, at least 0"),
            ("active_weight", "cost of a decoding request, in blocks, at least 0"),
            ("temperature", "0 for the least cost; above it, instances are drawn by cost"),
            ("block_tokens", "tokens of a block in the costs, at least 1"),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        let mut signals =
            vec!["matched_tokens", "in_flight_uncached_tokens", "in_flight_prompt_tokens"];
        if self.active_weight > 0.0 {
            signals.push("in_flight_decoding");
        }
        signals
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        let weights = [
            ("prefill_scale", self.prefill_scale),
            ("overlap_credit", self.overlap_credit),
            ("overlap_decay", self.overlap_decay),
            ("active_weight", self.active_weight),
            ("temperature", self.temperature),
        ];
        InvalidPolicy::unless_weights(self.name(), &weights)?;
        InvalidPolicy::unless_within(self.name(), "block_tokens", self.block_tokens, 1.0..=1e6)
    }

    fn policy(&self, seed: u64) -> Box<dyn Policy> {
        Box::new(Dynamo { config: *self, rng: ChaCha8Rng::seed_from_u64(seed), costs: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use kvroute_types::TokenCount;

    use super::*;
    use crate::Reason;
    use crate::fixtures::{
        Choice, ScoreList, assert_scores, choose, choose_scored, in_flight, ten_blocks,
    };

    fn policy(config: DynamoConfig, seed: u64) -> Dynamo {
        Dynamo { config, rng: ChaCha8Rng::seed_from_u64(seed), costs: Vec::new() }
    }

    /// Ten blocks to the token, so that costs are whole blocks.
    fn request() -> RequestView<'static> {
        RequestView { prompt_tokens: TokenCount(160), ..ten_blocks() }
    }

    /// Prefill outstanding, prompt tokens in flight, decoding; 8 blocks of the prompt on the first, 4 on the
    /// second.
    fn table() -> Vec<Candidate> {
        let mut table = in_flight([0; 3], [8, 4, 0]);
        for (candidate, (queued, prompts, decoding)) in
            table.iter_mut().zip([(320, 960, 5), (0, 480, 3), (160, 160, 0)])
        {
            candidate.in_flight_uncached_tokens = queued;
            candidate.in_flight_prompt_tokens = prompts;
            candidate.in_flight_decoding = decoding;
        }
        table
    }

    fn scores_of(config: DynamoConfig) -> (Option<Choice>, ScoreList) {
        choose_scored(&mut policy(config, 0), &request(), &table())
    }

    #[test]
    fn by_hand() {
        // Prefill 20 + 10 - 8 = 22, 0 + 10 - 4 = 6, 10 + 10 = 20; decode 60 + 10, 30 + 10, 10 + 10.
        let (choice, scores) = scores_of(DynamoConfig::default());
        assert_scores(&scores, &[(10, -92.0), (20, -46.0), (30, -40.0)]);
        assert_eq!(choice, Some((2, Reason::LoadScore)));
        // Prefill weighs twice: 44 + 70, 12 + 40, 40 + 20.
        let (choice, scores) =
            scores_of(DynamoConfig { prefill_scale: 2.0, ..DynamoConfig::default() });
        assert_scores(&scores, &[(10, -114.0), (20, -52.0), (30, -60.0)]);
        assert_eq!(choice, Some((1, Reason::CacheScore)));
        // 2 blocks for each that decodes: 92 + 10, 46 + 6, 40.
        let (_, scores) = scores_of(DynamoConfig { active_weight: 2.0, ..DynamoConfig::default() });
        assert_scores(&scores, &[(10, -102.0), (20, -52.0), (30, -40.0)]);
    }

    #[test]
    fn the_credit_fades_with_the_excess_of_prefill() {
        // Excess over the least (0): 320 / 160 = 2 prompts, so the first credit is 8 / (1 + 0.5 * 2) = 4 blocks.
        let (_, scores) = scores_of(DynamoConfig { overlap_decay: 0.5, ..DynamoConfig::default() });
        assert_scores(&scores, &[(10, -96.0), (20, -46.0), (30, -40.0)]);
    }

    #[test]
    fn a_credit_makes_no_prefill_negative() {
        let (_, scores) =
            scores_of(DynamoConfig { overlap_credit: 9.0, ..DynamoConfig::default() });
        // 30 - 72, 10 - 36: nothing left to do.
        assert_scores(&scores, &[(10, -70.0), (20, -40.0), (30, -40.0)]);
    }

    #[test]
    fn equals_are_drawn_evenly_and_by_the_seed() {
        let mut table = in_flight([0; 5], [0; 5]);
        table[1].eligible = false;
        table[4].in_flight_prompt_tokens = 1;
        let draw = |seed| {
            let mut policy = policy(DynamoConfig::default(), seed);
            (0..3_000)
                .map(|_| choose(&mut policy, &request(), &table).unwrap().0)
                .collect::<Vec<_>>()
        };
        let drawn = draw(1);
        assert_eq!(drawn, draw(1));
        assert_ne!(drawn, draw(2));
        for (position, expected) in [(0, 1_000), (1, 0), (2, 1_000), (3, 1_000), (4, 0)] {
            let count = drawn.iter().filter(|&&it| it == position).count();
            // Binomial, standard deviation 26.
            assert!(count.abs_diff(expected) < 110, "{position}: {count}");
        }
    }

    #[test]
    fn a_temperature_draws_by_the_softmax_of_normalised_costs() {
        // Costs 92, 46, 40: normalised 1, 6 / 52, 0.
        // At T = 0.5: exp(-2) = 0.1353, exp(-0.2308) = 0.7939, 1; sum 1.9292.
        let config = DynamoConfig { temperature: 0.5, ..DynamoConfig::default() };
        let mut policy = policy(config, 3);
        let mut counts = [0_i32; 3];
        for _ in 0..10_000 {
            counts[choose(&mut policy, &request(), &table()).unwrap().0] += 1;
        }
        for (count, expected) in counts.into_iter().zip([701, 4_115, 5_184]) {
            // Standard deviation at most 50.
            assert!((count - expected).abs() < 200, "{counts:?}");
        }
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["prefill_scale=-1", "temperature=-0.1", "block_tokens=0", "overlap_decay=nan"] {
            assert!(format!("dynamo:{bad}").parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
