//! `adaptive`: the least delay to all, in what it has learned of the instances; nothing to tune.
//!
//! ```text
//! cost_i = s_i * ((W_i + w_i + F) * sqrt(b_i + 1) + 0.1 * b * w_i * sqrt(b + 1))      in tokens
//! choice = argmin over eligible i of cost_i;   ties: least in flight, least recently chosen, least id
//! ```
//!
//! * `w_i`: prompt tokens that the instance would compute, [`RequestView::prompt_tokens`] -
//!   [`Candidate::matched_tokens`]; `W_i`: those queued there, [`Candidate::in_flight_uncached_tokens`];
//! * `b_i`: [`Candidate::in_flight`], `b`: its mean over the eligible instances;
//! * `F`: what a first token costs beside its own prefill (the step in progress, a step's least time), [`FIXED_TOKENS`];
//! * `s_i`: how much longer this instance takes for a token than the fleet does, learned; 1 within [`EQUAL`].
//!
//! How it reads. The first term is the request's own time to first token on a machine that a batch of `b_i` slows down
//! (LMetric multiplies by the batch itself, which on a busy fleet gives cached prefixes away too easily; the square
//! root does not). The second is what others pay for the tokens that this instance would have to compute: those in flight
//! stand still meanwhile, a tenth of a request each, as most decode and are slowed down, not kept from beginning. Where
//! all instances would compute the same, it is a constant and the queue decides; where one holds the prompt, the busier
//! the fleet, the longer a queue is borne for it. When one instance gets everything, its queue grows faster than `b`,
//! which is a mean over the fleet: so it does not stay so.
//!
//! What is learned. As engines prefill in order, the time from one first token to the next, while prefills wait, is the
//! time that the later one took; those of one step count as one. Divided by its tokens and `F`, the lower quartile of
//! these times is the time per token, of the fleet and of each instance. It is learned while at most [`QUIET`] requests are
//! in flight there: later ones hold waits for a place in the batch or in the cache, which are no time of a prefill. Answers
//! that are not streamed teach nothing. Before the first samples `s_i` is 1.
//!
//! Source: our own. The exponent 1/2, the weight 0.1 and `F` are the results of a search over the arena's workloads
//! (`docs/arena.md`), and not for users to set.

use std::time::Duration;

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible, scored, uncached_tokens};
use crate::config::Settings;
use crate::per_instance::PerInstance;
use crate::{Candidate, Decision, Event, LoadSignal, Needs, Policy, RequestView, Scores};

/// What a first token costs beside its own prefill, in tokens: a step that loads the weights and computes next to
/// nothing takes as long as 200 tokens on the profiles' GPUs.
const FIXED_TOKENS: f64 = 200.0;
/// Weight of a request in flight, which is slowed down, against one that waits for its first token.
const IN_FLIGHT_WEIGHT: f64 = 0.1;
/// Requests in flight up to which times are learned from.
const QUIET: u32 = 8;
/// First tokens this close together are of one step.
const ONE_STEP: Duration = Duration::from_millis(1);
/// Instances whose times per token differ by less than this factor count as equally fast: the batch and the lengths of
/// prompts move what is learned by tens of per cent, and equals are to take turns. Another kind of GPU is beyond it.
const EQUAL: f64 = 1.6;

/// `adaptive` has no parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveConfig {}

/// The `adaptive` policy.
#[derive(Clone, Debug, Default)]
pub struct Adaptive {
    instances: PerInstance<Watched>,
    /// Of all instances, s.
    time_per_token: LowerQuartile,
}

impl Policy for Adaptive {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn needs(&self) -> Needs {
        Needs { index: true, ..Needs::default() }
    }

    /// O(N), in two passes. Scores are negated costs, in tokens.
    fn choose(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        self.instances.follow(candidates);
        let (mut n, mut in_flight) = (0_u32, 0_u64);
        for (_, candidate) in eligible(candidates) {
            n += 1;
            in_flight += u64::from(candidate.in_flight);
        }
        let in_flight = in_flight as f64 / f64::from(n);
        let price = IN_FLIGHT_WEIGHT * in_flight * (in_flight + 1.0).sqrt();

        let mut best = Best::new(LoadSignal::InFlight);
        for (position, candidate) in eligible(candidates) {
            let own = f64::from(uncached_tokens(request, candidate));
            let queued = candidate.in_flight_uncached_tokens as f64;
            let batch = f64::from(candidate.in_flight) + 1.0;
            let first_token = (queued + own + FIXED_TOKENS) * batch.sqrt();
            let slowdown = self.instances[position].time_per_token.over(self.time_per_token);
            let cost = slowdown * (first_token + price * own);
            scores.record(candidate.id, 0.0 - cost);
            best.offer(0.0 - cost, position, candidate);
        }
        let (_, position, candidate) = best.get()?;
        if candidate.in_flight == candidate.in_flight_decoding {
            self.instances[position].busy_since = now;
        }
        Some(Decision { position, reason: scored(candidate) })
    }

    fn observe(&mut self, event: Event<'_>) {
        let Event::FirstToken { now, candidates, position, waited, uncached_tokens, .. } = event
        else {
            return;
        };
        let Some(watched) = self.instances.get_mut(candidates[position].id) else { return };
        // Whoever was before it may have gone without a first token.
        let taken = waited.min(now.since(watched.busy_since));
        watched.busy_since = now;
        watched.step_tokens += f64::from(uncached_tokens);
        if taken < ONE_STEP {
            return;
        }
        // The step before this one is whole now.
        let tokens = std::mem::replace(&mut watched.step_tokens, f64::from(uncached_tokens));
        let step = std::mem::replace(&mut watched.step, taken);
        if !step.is_zero() && candidates[position].in_flight <= QUIET {
            let before = tokens - f64::from(uncached_tokens);
            let s_per_token = step.as_secs_f64() / (before + FIXED_TOKENS);
            watched.time_per_token.add(s_per_token, self.time_per_token);
            self.time_per_token.add(s_per_token, LowerQuartile::default());
        }
    }
}

/// What is learned of one instance.
#[derive(Clone, Debug, Default)]
struct Watched {
    /// When the prefill in progress began: that of the first request, or the first token before.
    busy_since: Timestamp,
    /// Time that the latest step with first tokens took, and the tokens computed in it.
    step: Duration,
    step_tokens: f64,
    /// s.
    time_per_token: LowerQuartile,
}

/// The value that a quarter of what comes is below, followed in steps of a few per cent.
#[derive(Clone, Copy, Debug, Default)]
struct LowerQuartile {
    /// Natural logarithm of the value.
    ln: f64,
    samples: u32,
}

impl LowerQuartile {
    /// Smallest step, as a share of the value; the first ones are greater.
    const STEP_MIN: f64 = 0.01;

    /// Takes in a positive value; the first one is taken as far from `prior` as a step goes, if there is one.
    fn add(&mut self, value: f64, prior: Self) {
        let ln = value.ln();
        if self.samples == 0 {
            self.ln = if prior.samples == 0 { ln } else { prior.ln };
        }
        self.samples = self.samples.saturating_add(1);
        let step = (1.0 / f64::from(self.samples)).max(Self::STEP_MIN);
        // In balance when three times as many are above as below.
        if ln < self.ln {
            self.ln -= 3.0 * step;
        } else if ln > self.ln {
            self.ln += step;
        }
    }

    /// How many times the other it is; 1 if they are about equal, or one is not known.
    fn over(self, other: Self) -> f64 {
        let ratio = self.ln - other.ln;
        if self.samples == 0 || other.samples == 0 || ratio.abs() < EQUAL.ln() {
            return 1.0;
        }
        ratio.exp()
    }
}

impl Settings for AdaptiveConfig {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn summary(&self) -> &'static str {
        "the least delay to all by what it learns of the instances; nothing to tune (ours)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn signals(&self) -> Vec<&'static str> {
        vec!["matched_tokens", "in_flight", "in_flight_uncached_tokens", "in_flight_decoding"]
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Adaptive::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;
    use crate::fixtures::{assert_scores, burst, choose, choose_scored, in_flight, ten_blocks};

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_secs_f64(seconds)
    }

    /// First tokens on the instance, one after another and each with 100, 300 or 500 tokens to compute, at this time per token.
    fn teach(policy: &mut Adaptive, table: &[Candidate], position: usize, s_per_token: f64) {
        let mut now = at(1_000.0 * position as f64);
        for tokens in [100, 300, 500].into_iter().cycle().take(300) {
            policy.instances.follow(table);
            policy.instances[position].busy_since = now;
            let waited = Duration::from_secs_f64(s_per_token * (f64::from(tokens) + FIXED_TOKENS));
            now += waited;
            policy.observe(Event::FirstToken {
                now,
                candidates: table,
                position,
                waited,
                prompt_tokens: tokens,
                uncached_tokens: tokens,
            });
        }
    }

    #[test]
    fn by_hand_before_anything_is_learned() {
        let mut table = in_flight([3, 0], [10, 0]);
        table[0].in_flight_uncached_tokens = 40;
        // b = 1.5; price = 0.1 * 1.5 * sqrt(2.5) = 0.237171.
        // (40 + 5 + 200) * sqrt(4) + 0.237171 * 5 = 491.185854;   165 + 200 + 0.237171 * 165 = 404.133186.
        let (choice, scores) = choose_scored(&mut Adaptive::default(), &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -491.185_854_122_563), (20, -404.133_186_044_584)]);
        assert_eq!(choice, Some((1, Reason::LoadScore)));
        // 205 * 1.414 + 0.8 = 290 with one request there, and it is better to follow the cache.
        table[0].in_flight = 1;
        table[0].in_flight_uncached_tokens = 0;
        let choice = choose(&mut Adaptive::default(), &ten_blocks(), &table);
        assert_eq!(choice, Some((0, Reason::CacheScore)));
    }

    #[test]
    fn the_time_per_token_is_the_lower_quartile_s() {
        let mut quartile = LowerQuartile::default();
        for n in 0..20_000_u32 {
            // Uniform over 1 to 5, in a fixed order; a quarter of it is below 2.
            quartile
                .add(1.0 + 4.0 * f64::from(n * 7_919 % 1_000) / 1_000.0, LowerQuartile::default());
        }
        assert!((quartile.ln - 2.0_f64.ln()).abs() < 0.2, "{quartile:?}");
    }

    #[test]
    fn a_slow_instance_gets_less() {
        let table = in_flight([0, 0], [0, 0]);
        let mut policy = Adaptive::default();
        teach(&mut policy, &table, 0, 1e-4);
        teach(&mut policy, &table, 1, 2e-4);
        let of = |position: usize| policy.instances[position].time_per_token;
        assert!((of(1).over(of(0)) / 2.0).ln().abs() < 0.15, "{:?} {:?}", of(1), of(0));
        assert_eq!(choose(&mut policy, &ten_blocks(), &table).map(|it| it.0), Some(0));
        // A tenth more is no difference.
        let mut policy = Adaptive::default();
        teach(&mut policy, &table, 0, 1.0e-4);
        teach(&mut policy, &table, 1, 1.1e-4);
        let (_, scores) = choose_scored(&mut policy, &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -365.0), (20, -365.0)]);
    }

    #[test]
    fn what_waits_behind_another_is_not_charged_for_it_and_a_step_is_charged_once() {
        let table = in_flight([0], [0]);
        let mut policy = Adaptive::default();
        policy.instances.follow(&table);
        // All sent at time 0; the first step has two first tokens.
        for (now_s, tokens) in [(1.0, 300), (1.0, 500), (1.5, 100), (2.5, 100)] {
            policy.observe(Event::FirstToken {
                now: at(now_s),
                candidates: &table,
                position: 0,
                waited: Duration::from_secs_f64(now_s),
                prompt_tokens: tokens,
                uncached_tokens: tokens,
            });
        }
        // 1 s for 300 + 500 and 200 fixed, then 0.5 s for 100 and 200; the last is not whole yet.
        assert_eq!(policy.time_per_token.samples, 2);
        let first: f64 = 1.0 / 1_000.0;
        assert!((policy.time_per_token.ln - (first.ln() + 0.5)).abs() < 1e-9);
    }

    #[test]
    fn a_busy_fleet_bears_a_longer_queue_for_a_cached_prompt() {
        let choice = |in_flight_each: u32, queued: u64| {
            let mut table = in_flight([in_flight_each; 2], [10, 0]);
            table[0].in_flight_uncached_tokens = queued;
            choose(&mut Adaptive::default(), &ten_blocks(), &table).unwrap().0
        };
        // (300 + 205) * 1.414 + 0.1 * 1.414 * 5 > 365 * 1.414 + 0.1 * 1.414 * 165.
        assert_eq!(choice(1, 300), 1);
        // With 40 each: 505 + 4 * 5 < 365 + 4 * 165, all times sqrt(41).
        assert_eq!(choice(40, 300), 0);
        assert_eq!(choice(40, 900), 1);
    }

    #[test]
    fn times_of_a_full_instance_teach_nothing() {
        let mut policy = Adaptive::default();
        teach(&mut policy, &in_flight([QUIET + 1], [0]), 0, 1.0);
        assert_eq!(policy.time_per_token.samples, 0);
        teach(&mut policy, &in_flight([QUIET], [0]), 0, 1.0);
        assert!(policy.time_per_token.samples > 200);
    }

    #[test]
    fn a_burst_of_one_prompt_does_not_collapse() {
        let mut table = in_flight([0; 4], [0; 4]);
        let counts = burst(&mut Adaptive::default(), &ten_blocks(), &mut table, 64);
        assert!(counts.iter().all(|&count| count >= 10), "{counts:?}");
    }

    #[test]
    fn instances_may_come_and_go() {
        let table = in_flight([0, 0], [0, 0]);
        let mut policy = Adaptive::default();
        // Its first token comes before it was ever in a table that was chosen from.
        policy.observe(Event::FirstToken {
            now: at(1.0),
            candidates: &table,
            position: 1,
            waited: Duration::from_secs(1),
            prompt_tokens: 1,
            uncached_tokens: 1,
        });
        assert!(choose(&mut policy, &ten_blocks(), &table).is_some());
        assert_eq!(choose(&mut policy, &ten_blocks(), &[]), None);
    }
}
