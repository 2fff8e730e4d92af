//! `adaptive`: the least delay to all, in what it has learned of the instances; nothing to tune.
//!
//! ```text
//! cost_i = s_i * ((W_i + w_i + F) * sqrt(b_i + 1) + price * w_i * sqrt(b + 1))      in tokens
//! w_i    = p - matched_i + d * matched_i         (what the request makes the instance compute)
//! price  = r / (1 - r) + 0.1 * c
//! choice = argmin over eligible i of cost_i;   ties: least in flight, least recently chosen, least id
//! ```
//!
//! * `p`: [`RequestView::prompt_tokens`]; `matched_i`: [`Candidate::matched_tokens`];
//! * `W_i`: work queued there: the same sum as `w_i` over the requests that have shown no first token;
//! * `b_i`: [`Candidate::in_flight`], `b` and `c`: the means of it and of [`Candidate::in_flight_decoding`] over the
//!   eligible instances;
//! * learned from first tokens: `F`, what a first token costs beside its own prefill (the step in progress, the step's
//!   least time, the network), in tokens; `d`, the share of tokens believed cached that are computed all the same;
//!   `s_i`, how much longer this instance takes for the same tokens than the fleet does;
//! * `r`: share of the instances' time that went into prefills in the last [`MEMORY_S`] s.
//!
//! How it reads. The first term is the request's own time to first token on a machine that a batch of `b_i` slows down
//! (LMetric multiplies by the batch itself, which on a busy fleet gives cached prefixes away too easily; the square
//! root does not). The second is what others pay for the tokens that this instance would have to compute: those that
//! come while the fleet is busy wait for them (`r / (1 - r)`, the mean wait behind a unit of work in a queue with
//! utilisation r), and those that decode stand still meanwhile (a tenth of a request each: they are slowed down, and not
//! kept from beginning). Where all instances would compute the same, it is a constant and the queue decides; where one
//! holds the prompt, the busier the fleet, the longer a queue is borne for it. When one instance gets everything, its
//! queue grows while `r` and `c` stay low, as they are means over the fleet and as an instance decodes no more than its batch.
//!
//! What is learned. As engines prefill in order, the time from one first token to the next, while prefills wait, is the
//! time that the later one took. A plane through those times over the tokens computed and the tokens believed cached has
//! `F`, `d` and the time per token in it, least in squares of relative errors, so that times for which the batch or the
//! cache was full say little; the ratio of an instance's times to what the fleet's plane says is `s_i`,
//! drawn towards 1 by [`PRIOR_SAMPLES`]. Old samples fade. Answers that are not streamed teach nothing. Before the
//! first samples `F`, `d` and `r` are 0 and `s_i` is 1.
//!
//! Source: our own. The exponent 1/2 and the weight 0.1 are the results of a search over the arena's workloads
//! (`docs/arena.md`), and not for users to set.

use std::time::Duration;

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible, scored};
use crate::config::Settings;
use crate::per_instance::PerInstance;
use crate::{Candidate, Decision, Event, LoadSignal, Needs, Policy, RequestView, Scores};

/// Weight of a request that decodes against one that waits for its first token.
const DECODING_WEIGHT: f64 = 0.1;
/// Time over which the prefill utilisation is a mean, s.
const MEMORY_S: f64 = 20.0;
/// Utilisation is taken to be no more than this: no price is infinite.
const UTILISATION_MAX: f64 = 0.95;
/// First tokens after which an old sample counts 1/e.
const MEMORY_SAMPLES: f64 = 512.0;
/// First tokens that the belief is worth that an instance is as fast as the others.
const PRIOR_SAMPLES: f64 = 128.0;
/// First tokens before anything is made of them.
const SAMPLES_MIN: f64 = 16.0;

/// `adaptive` has no parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveConfig {}

/// The `adaptive` policy.
#[derive(Clone, Debug, Default)]
pub struct Adaptive {
    instances: PerInstance<Watched>,
    fleet: Moments,
    line: Line,
    busy: Busy,
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
        let (mut n, mut in_flight, mut decoding) = (0_u32, 0_u64, 0_u64);
        for (_, candidate) in eligible(candidates) {
            n += 1;
            in_flight += u64::from(candidate.in_flight);
            decoding += u64::from(candidate.in_flight_decoding);
        }
        if n == 0 {
            return None;
        }
        let Line { fixed_tokens, recomputed, s_per_token: _ } = self.line;
        self.busy.fade(now);
        let used = (self.busy.share() / f64::from(n)).min(UTILISATION_MAX);
        let mean = |sum: u64| sum as f64 / f64::from(n);
        let price = (used / (1.0 - used) + DECODING_WEIGHT * mean(decoding))
            * (mean(in_flight) + 1.0).sqrt();

        let mut best = Best::new(LoadSignal::InFlight);
        for (position, candidate) in eligible(candidates) {
            let own = work(request.prompt_tokens.0.into(), candidate.matched_tokens, recomputed);
            let waiting = candidate
                .in_flight_prompt_tokens
                .saturating_sub(candidate.in_flight_decoding_tokens);
            let cached = waiting.saturating_sub(candidate.in_flight_uncached_tokens);
            let queued = candidate.in_flight_uncached_tokens as f64 + recomputed * cached as f64;
            let batch = f64::from(candidate.in_flight) + 1.0;
            let first_token = (queued + own + fixed_tokens) * batch.sqrt();
            let cost = self.instances[position].slowdown() * (first_token + price * own);
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
        let Event::FirstToken { now, candidates, position, waited, prompt_tokens, uncached_tokens } =
            event
        else {
            return;
        };
        let Some(watched) = self.instances.get_mut(candidates[position].id) else { return };
        // Whoever was before it may have gone without a first token.
        let taken = waited.min(now.since(watched.busy_since)).as_secs_f64();
        watched.busy_since = now;
        self.busy.fade(now);
        self.busy.prefill_s += taken;
        let computed = f64::from(uncached_tokens);
        let cached = f64::from(prompt_tokens.saturating_sub(uncached_tokens));
        self.fleet.add(computed, cached, taken);
        if let Some(line) = self.fleet.line() {
            self.line = line;
            watched.add(taken, line.time_s(computed, cached));
        }
    }
}

/// Tokens to compute for a prompt of which so much is believed cached.
fn work(prompt_tokens: f64, cached_tokens: u32, recomputed: f64) -> f64 {
    prompt_tokens - (1.0 - recomputed) * f64::from(cached_tokens)
}

/// What is learned of one instance.
#[derive(Clone, Debug, Default)]
struct Watched {
    /// When the prefill in progress began: that of the first request, or the first token before.
    busy_since: Timestamp,
    /// Samples, time taken and time by the fleet's line, s; old ones faded.
    samples: f64,
    taken_s: f64,
    expected_s: f64,
}

impl Watched {
    fn add(&mut self, taken_s: f64, expected_s: f64) {
        for sum in [&mut self.samples, &mut self.taken_s, &mut self.expected_s] {
            *sum *= KEPT;
        }
        self.samples += 1.0;
        self.taken_s += taken_s;
        self.expected_s += expected_s;
    }

    /// Time that it takes over the time that the fleet takes.
    fn slowdown(&self) -> f64 {
        if self.samples < 1.0 || self.expected_s <= 0.0 {
            return 1.0;
        }
        let prior_s = PRIOR_SAMPLES * self.expected_s / self.samples;
        (self.taken_s + prior_s) / (self.expected_s + prior_s)
    }
}

/// Shorter times count as this, s: of several requests in one step, all but one take next to nothing.
const TAKEN_MIN_S: f64 = 1e-3;
/// Share that stays of the sums when a sample comes.
const KEPT: f64 = 1.0 - 1.0 / MEMORY_SAMPLES;

/// Sums over prefills, each weighted by the inverse square of its time: tokens computed, tokens believed cached, time
/// taken (s), and their products; old ones faded.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    samples: f64,
    weight: f64,
    computed: f64,
    cached: f64,
    taken: f64,
    computed_2: f64,
    cached_2: f64,
    computed_cached: f64,
    computed_taken: f64,
    cached_taken: f64,
}

impl Moments {
    fn add(&mut self, computed: f64, cached: f64, taken_s: f64) {
        let weight = taken_s.max(TAKEN_MIN_S).powi(-2);
        for (sum, value) in [
            (&mut self.samples, 1.0),
            (&mut self.weight, weight),
            (&mut self.computed, weight * computed),
            (&mut self.cached, weight * cached),
            (&mut self.taken, weight * taken_s),
            (&mut self.computed_2, weight * computed * computed),
            (&mut self.cached_2, weight * cached * cached),
            (&mut self.computed_cached, weight * computed * cached),
            (&mut self.computed_taken, weight * computed * taken_s),
            (&mut self.cached_taken, weight * cached * taken_s),
        ] {
            *sum = KEPT * *sum + value;
        }
    }

    /// The plane of least squares through times over tokens computed and tokens believed cached; `None` before there are
    /// enough samples. Nothing in it is negative: what would be is left out.
    fn line(&self) -> Option<Line> {
        if self.samples < SAMPLES_MIN || self.computed_taken <= 0.0 {
            return None;
        }
        let n = self.weight;
        let covariance = |xy: f64, x: f64, y: f64| xy / n - (x / n) * (y / n);
        let computed_2 = covariance(self.computed_2, self.computed, self.computed);
        let cached_2 = covariance(self.cached_2, self.cached, self.cached);
        let both = covariance(self.computed_cached, self.computed, self.cached);
        let computed_taken = covariance(self.computed_taken, self.computed, self.taken);
        let cached_taken = covariance(self.cached_taken, self.cached, self.taken);
        let determinant = computed_2 * cached_2 - both * both;
        let mut of_computed = (cached_2 * computed_taken - both * cached_taken) / determinant;
        let mut of_cached = (computed_2 * cached_taken - both * computed_taken) / determinant;
        // They vary together, or one does not at all; or the more is believed cached, the faster it goes.
        let is_plane = determinant > 1e-3 * computed_2 * cached_2 && cached_2 > 1.0;
        if !is_plane || of_cached < 0.0 {
            of_cached = 0.0;
            of_computed = if computed_2 > 1.0 { computed_taken / computed_2 } else { 0.0 };
        }
        let mut fixed_s = (self.taken - of_computed * self.computed - of_cached * self.cached) / n;
        if of_computed <= 0.0 || fixed_s < 0.0 {
            of_computed = self.computed_taken / self.computed_2;
            (of_cached, fixed_s) = (0.0, 0.0);
        }
        Some(Line {
            fixed_tokens: fixed_s / of_computed,
            s_per_token: of_computed,
            recomputed: (of_cached / of_computed).min(1.0),
        })
    }
}

/// What a prefill takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Line {
    /// Fixed part, in tokens that take as long.
    fixed_tokens: f64,
    /// Time for a token to compute, s; 0 as long as nothing is known.
    s_per_token: f64,
    /// Share of tokens believed cached that are computed all the same, `0.0..=1.0`.
    recomputed: f64,
}

impl Line {
    fn time_s(&self, computed: f64, cached: f64) -> f64 {
        self.s_per_token * (self.fixed_tokens + computed + self.recomputed * cached)
    }
}

/// Time that went into prefills, over all instances; old times faded.
#[derive(Clone, Copy, Debug, Default)]
struct Busy {
    prefill_s: f64,
    /// Time in which that was, s: fades in the same way, so that a beginning counts in full.
    seconds: f64,
    as_of: Timestamp,
}

impl Busy {
    fn fade(&mut self, now: Timestamp) {
        let passed: Duration = now.since(self.as_of);
        let kept = (-passed.as_secs_f64() / MEMORY_S).exp();
        self.prefill_s *= kept;
        self.seconds = self.seconds * kept + (1.0 - kept) * MEMORY_S;
        self.as_of = self.as_of.max(now);
    }

    /// Instances that were busy with prefills, on average.
    fn share(&self) -> f64 {
        // Less than a second says nothing.
        if self.seconds < 1.0 { 0.0 } else { self.prefill_s / self.seconds }
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
        vec![
            "matched_tokens",
            "in_flight",
            "in_flight_uncached_tokens",
            "in_flight_prompt_tokens",
            "in_flight_decoding",
            "in_flight_decoding_tokens",
        ]
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Adaptive::default())
    }
}

#[cfg(test)]
mod tests {
    use kvroute_types::InstanceId;

    use super::*;
    use crate::Reason;
    use crate::fixtures::{assert_scores, burst, choose, choose_scored, in_flight, ten_blocks};

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_secs_f64(seconds)
    }

    /// A request is sent at `sent_s` and has its first token after `taken_s`.
    fn served(
        policy: &mut Adaptive,
        table: &[Candidate],
        sent_s: f64,
        taken_s: f64,
        (prompt_tokens, uncached_tokens): (u32, u32),
    ) {
        let decision =
            policy.choose(at(sent_s), &ten_blocks(), table, &mut Scores::new(false)).unwrap();
        policy.observe(Event::FirstToken {
            now: at(sent_s + taken_s),
            candidates: table,
            position: decision.position,
            waited: Duration::from_secs_f64(taken_s),
            prompt_tokens,
            uncached_tokens,
        });
    }

    /// Taught by one instance that a first token takes 10 ms and 0.1 ms a token to compute.
    fn taught() -> Adaptive {
        let mut policy = Adaptive::default();
        let table = [Candidate::new(InstanceId(99))];
        for (n, tokens) in (0..60).zip([100, 300, 500].into_iter().cycle()) {
            let taken_s = 0.01 + 1e-4 * f64::from(tokens);
            served(&mut policy, &table, f64::from(n) * 1e-3, taken_s, (tokens + 64, tokens));
        }
        policy
    }

    #[test]
    fn by_hand_before_anything_is_learned() {
        let mut table = in_flight([3, 0], [10, 0]);
        table[0].in_flight_uncached_tokens = 40;
        table[0].in_flight_prompt_tokens = 40;
        for candidate in &mut table {
            candidate.in_flight_decoding = candidate.in_flight;
        }
        // b = c = 1.5; price = 0.1 * 1.5 * sqrt(2.5) = 0.237171.
        // (40 + 5) * sqrt(4) + 0.237171 * 5 = 91.185854;   165 * 1 + 0.237171 * 165 = 204.133186.
        let (choice, scores) = choose_scored(&mut Adaptive::default(), &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -91.185854122563), (20, -204.133186044584)]);
        assert_eq!(choice, Some((0, Reason::CacheScore)));
        // 130 more tokens in the queue, and the idle one is better: 175 * 2 > 204.
        table[0].in_flight_uncached_tokens = 170;
        table[0].in_flight_prompt_tokens = 170;
        assert_eq!(
            choose(&mut Adaptive::default(), &ten_blocks(), &table),
            Some((1, Reason::LoadScore))
        );
    }

    #[test]
    fn the_line_is_that_of_the_times() {
        let line = taught().line;
        assert!((line.s_per_token - 1e-4).abs() < 1e-9, "{line:?}");
        assert!((line.fixed_tokens - 100.0).abs() < 1e-3, "{line:?}");
        assert!(line.recomputed.abs() < 1e-9, "{line:?}");
    }

    #[test]
    fn beliefs_count_for_what_they_are_worth() {
        let mut policy = Adaptive::default();
        let table = [Candidate::new(InstanceId(1))];
        // A quarter of what is believed cached takes as long as what is not.
        for n in 0..200_u32 {
            let (uncached, cached) = (100 + 100 * (n % 3), 1_000 * (n % 7));
            let taken_s = 0.01 + 1e-4 * f64::from(uncached) + 0.25e-4 * f64::from(cached);
            served(&mut policy, &table, f64::from(n), taken_s, (uncached + cached, uncached));
        }
        assert!((policy.line.recomputed - 0.25).abs() < 0.01, "{:?}", policy.line);
        // 165 - 0.75 * 160 = 45 tokens to compute, where 5 are believed to be.
        let line = policy.line;
        policy.instances = PerInstance::default();
        let (_, scores) = choose_scored(&mut policy, &ten_blocks(), &in_flight([0], [10]));
        let expected = 165.0 - (1.0 - line.recomputed) * 160.0;
        assert!((0.0 - scores[0].1 - line.fixed_tokens) / expected > 0.999, "{scores:?}");
    }

    #[test]
    fn a_slow_instance_gets_less() {
        let mut policy = Adaptive::default();
        let table = in_flight([0, 0], [0, 0]);
        for n in 0..400_u32 {
            let tokens = 100 + 100 * (n % 5);
            // Whichever is chosen: the second takes twice as long.
            let position = (n % 2) as usize;
            let only = [table[position].clone()];
            policy.instances.follow(&table);
            let watched = policy.instances.get_mut(only[0].id).unwrap();
            watched.busy_since = at(f64::from(n));
            let taken_s = f64::from(1 + n % 2) * (0.01 + 1e-4 * f64::from(tokens));
            policy.observe(Event::FirstToken {
                now: at(f64::from(n) + taken_s),
                candidates: &only,
                position: 0,
                waited: Duration::from_secs_f64(taken_s),
                prompt_tokens: tokens,
                uncached_tokens: tokens,
            });
        }
        let [fast, slow] = [0, 1].map(|position| policy.instances[position].slowdown());
        // 2 to 1, drawn towards equal by the prior.
        assert!((1.3..2.0).contains(&(slow / fast)), "{slow} {fast}");
        assert_eq!(choose(&mut policy, &ten_blocks(), &table).map(|it| it.0), Some(0));
    }

    #[test]
    fn what_waits_behind_another_is_not_charged_for_it() {
        let mut policy = Adaptive::default();
        let mut table = in_flight([0], [0]);
        let send = |policy: &mut Adaptive, table: &mut [Candidate]| {
            policy.choose(at(0.0), &ten_blocks(), table, &mut Scores::new(false)).unwrap();
            table[0].in_flight += 1;
        };
        send(&mut policy, &mut table);
        send(&mut policy, &mut table);
        for (now_s, waited_s) in [(1.0, 1.0), (1.5, 1.5)] {
            policy.observe(Event::FirstToken {
                now: at(now_s),
                candidates: &table,
                position: 0,
                waited: Duration::from_secs_f64(waited_s),
                prompt_tokens: 100,
                uncached_tokens: 100,
            });
        }
        // The second is charged half a second, and weighs four times as much.
        let fleet = &policy.fleet;
        assert!((fleet.weight - (KEPT + 4.0)).abs() < 1e-9, "{fleet:?}");
        assert!((fleet.taken - (KEPT + 2.0)).abs() < 1e-9, "{fleet:?}");
        assert!((policy.busy.prefill_s - 1.5).abs() < 0.1, "{:?}", policy.busy);
    }

    #[test]
    fn a_busy_fleet_bears_a_longer_queue_for_a_cached_prompt() {
        let mut table = in_flight([1, 1], [10, 0]);
        table[0].in_flight_uncached_tokens = 300;
        table[0].in_flight_prompt_tokens = 300;
        let mut policy = taught();
        policy.busy = Busy::default();
        assert_eq!(choose(&mut policy, &ten_blocks(), &table).unwrap().0, 1);
        // 36 s of prefill in 20 s on two instances: busy for 0.9 of the time.
        let mut policy = taught();
        policy.busy = Busy { prefill_s: 36.0, seconds: 20.0, as_of: Timestamp::ZERO };
        assert_eq!(choose(&mut policy, &ten_blocks(), &table).unwrap().0, 0);
    }

    #[test]
    fn a_burst_of_one_prompt_does_not_collapse() {
        let mut table = in_flight([0; 4], [0; 4]);
        let counts = burst(&mut Adaptive::default(), &ten_blocks(), &mut table, 64);
        assert!(counts.iter().all(|&count| count >= 10), "{counts:?}");
    }

    #[test]
    fn instances_may_come_and_go() {
        let mut policy = taught();
        let table = in_flight([0, 0], [0, 0]);
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
