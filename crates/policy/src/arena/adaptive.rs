//! `adaptive`: the least delay to all; nothing to tune.
//!
//! ```text
//! wait_i = (L_i + S * w_i + F) * sqrt(b_i + 1) * max(1, (b_i + 1) / (2 (b + 1)))^2 * max(1, k_i / 0.9)^2
//! cost_i = (wait_i + P * m^2 * (1 + 8 e) * w_i) / v_i
//! choice = argmin over eligible i of cost_i;   ties: least in flight, least recently chosen, least id
//! ```
//!
//! * `w_i`: work ([`prefill_work`], in tokens) of the part of the prompt that the instance would compute:
//!   [`RequestView::prompt_tokens`] - [`Candidate::matched_tokens`], and where the session's last request went, the half of
//!   that, or [`ANSWER_TOKENS`] less if that is more. If the directory does not know the last prompt there any more, `q^2` of it is
//!   taken for cached and `q^2` of the half taken off; `q`: share of the latest returns of which the directory did not know;
//! * `L_i`: work that is presumably left to do there for requests before it, [`Candidate::prefill_left`];
//! * `b_i`: [`Candidate::in_flight`]; `b`: its mean and `m` its least over the eligible instances;
//! * `k_i`: `usage * (waiting + running + unseen + 1) / running` by the last reading ([`Candidate::load`]), the share of its KV blocks that
//!   all that is there and this request would take if they took what the running ones take; 0 without a reading or if none runs;
//! * `e`: share of the blocks computed lately that the fleet had computed before and has evicted everywhere, [`CapacityMisses`];
//! * `v_i`: how fast it prefills against the fleet's mean, [`Candidate::prefill_speed`]; 1 if that is within [`EQUAL`] of 1;
//! * `F`: what a first token costs beside its own prefill (the step in progress, a step's least time), [`FIXED_TOKENS`];
//!   `S`: [`SESSION_SHARE`] if the session's last request went to any of them, else [`SHARED_SHARE`]; `P`: [`PRICE`].
//!
//! How it reads. The first term is the request's own time to first token on a machine that a batch of `b_i` slows down
//! (LMetric multiplies by the batch itself, which on a busy fleet gives cached prefixes away too easily; the square
//! root does not), with who is more than twice as full as the mean held back. The second is what others pay for the tokens that
//! this instance would have to compute: nothing while any instance is idle, steeply more on a busy fleet. Where all instances would
//! compute the same, it is a constant and the queue decides; where one holds the prompt, the busier the fleet, the longer a
//! queue is borne for it.
//!
//! Why what is *left*. A long prompt takes seconds, and its first token is all that a router sees of it; a queue counted
//! until then is up to a whole prompt too long. vLLM computes prompts in order, so the time that the first of
//! them has had says how far it is ([`Candidate::prefill_left`] and the rate are the router's). And work, not tokens: at position 32,768 a token
//! costs twice what it costs at the beginning, so that in tokens long conversations look shorter than they are.
//!
//! Why the least and not the mean of `b_i` sets the price, and why twice the mean counts. A document that is cached and asked for by more than one
//! instance's share of all requests fills the batch there and not the queue of prefills. With a price by the mean, the holder
//! raised the price of a second copy by being full, and eight instances above capacity collapsed.
//!
//! Why own work counts less than what is queued, and least without a session. What a prompt without a history has computed is
//! there for all who share it: a second copy of a popular document is paid for once and spreads its load from then on, and with
//! equal weights too few were made, so that requests for a cached prompt waited behind prefills. The history of a conversation
//! serves nobody else.
//!
//! Why the session's last place. A directory of routed prompts does not know answers, and a second turn's prompt is
//! the first one's and its answer: on the first turn's instance the answer is cached, and by the directory all
//! instances that hold the system prompt look the same. So conversations wandered, and one that moves is held twice,
//! which costs most where caches are full. The cap is for long prompts, whose new tokens are not answers. The rule remembers by itself
//! where a session went and how long its prompt was. If the directory knows that prompt there, the answer is there as well; if it does not,
//! either it was evicted and the answer with it, or the directory is at fault. Where caches are large it seldom happens, and where the
//! directory does not learn, always: so the more often it happens, the more the rule's own memory counts.
//!
//! Why the KV blocks. Requests that do not fit wait until others have decoded to the end, which no count of prefills shows: a small cache,
//! or prompts that are a good part of it, fill up long before the batch does.
//!
//! Why capacity misses. A second copy pushes out what others ask for, which nobody feels while caches are large, and everybody
//! while they are small: there, copies are computed again and again, and a fleet that is busy with that collapses. What was computed before (some time ago:
//! the directory may not know yet) and is nowhere any more says how dear room is.
//! It multiplies the price by the least in flight and adds none by the mean, for the reason above: where a tenth of the cache events is lost, much that
//! is cached is taken for evicted, and with a price by the mean conversations then gathered on one instance, 5 to 9 times slower.
//!
//! Why speeds only beyond a fifth. An instance that does half of what the others do in a second is found out within some tens of prompts.
//! Where all are equal, the rates learnt differ by chance and by who has more to decode, and to follow them there is worse
//! than not to; the fifth makes that difference nothing.
//!
//! What was tried and lost. A price for what a copy pushes out that does not know how scarce room is (so much for a token, alone or times the share of
//! instances that prefill): where caches are large it loses more than it gains where they are small. The price of the M/G/1 queue's first policy iteration,
//! `rate of arrivals * (L_i w_i + w_i^2 / 2)` with a learnt rate, in place of the price and beside it: worse on chat, where batches and not prefills
//! are the limit, and with many prefixes.
//!
//! Source: our own. The exponents, `S`, `P`, `F`, [`KV_FULL`], [`SCARCE`], [`EQUAL`] and [`ANSWER_TOKENS`] are the results of a search over workloads of the arena
//! (`docs/arena.md`), and not for users to set.

use kvroute_types::{InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::capacity_misses::CapacityMisses;
use crate::choice::{Best, eligible, scored, uncached_tokens};
use crate::config::Settings;
use crate::sessions::Sessions;
use crate::{Candidate, Decision, LoadSignal, Needs, Policy, RequestView, Scores, prefill_work};

/// What a first token costs beside its own prefill, in tokens: a step that loads the weights and computes next to
/// nothing takes as long as 200 tokens on the profiles' GPUs.
const FIXED_TOKENS: f64 = 200.0;
/// Weight of own work against what is queued, where a copy may serve others.
const SHARED_SHARE: f64 = 0.3;
/// The same where the prompt is a conversation that goes on.
const SESSION_SHARE: f64 = 0.9;
/// Price of a token to compute, for each square of the requests in flight where there are fewest.
const PRICE: f64 = 0.005;
/// How many times more a token to compute costs where all that is computed are capacity misses, beside what it costs where none are.
const SCARCE: f64 = 8.0;
/// How many times as full as the mean an instance is before it is held back.
const FULL: f64 = 2.0;
/// Share of an instance's KV blocks beyond which it is held back.
const KV_FULL: f64 = 0.9;
/// Times the fleet's speed, or that part of it, up to which an instance is taken for as fast.
const EQUAL: f64 = 1.2;
/// Most tokens of a last answer that are taken for cached where they were computed.
const ANSWER_TOKENS: u32 = 256;
/// Most sessions remembered, and for how long after their last request, s.
const SESSIONS: (u32, f64) = (65_536, 7_200.0);
/// What a return counts with each later one.
const RETURN_DECAY: f64 = 0.99;
/// Returns that the directory is presumed to have known of before the first.
const RETURNS_PRESUMED: f64 = 1.0;

/// `adaptive` has no parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveConfig {}

/// The `adaptive` policy.
#[derive(Clone, Debug)]
pub struct Adaptive {
    sessions: Sessions<Stay>,
    returns: Returns,
    misses: CapacityMisses,
}

impl Default for Adaptive {
    fn default() -> Self {
        let (capacity, ttl_s) = SESSIONS;
        Self {
            sessions: Sessions::new(capacity, ttl_s),
            returns: Returns::default(),
            misses: CapacityMisses::default(),
        }
    }
}

/// A session's last request.
#[derive(Clone, Copy, Debug)]
struct Stay {
    instance: InstanceId,
    /// Full blocks of its prompt.
    blocks: u32,
    prompt_tokens: u32,
}

/// Whether the directory knew, when a session came back, of the prompt that its last request had brought.
#[derive(Clone, Copy, Debug)]
struct Returns {
    /// Those that it did not know of, and all; each counts less with each later one.
    unknown: f64,
    all: f64,
}

impl Default for Returns {
    fn default() -> Self {
        Self { unknown: 0.0, all: RETURNS_PRESUMED }
    }
}

impl Returns {
    fn learn(&mut self, is_known: bool) {
        self.unknown = self.unknown * RETURN_DECAY + if is_known { 0.0 } else { 1.0 };
        self.all = self.all * RETURN_DECAY + 1.0;
    }

    /// `q^2`: how much the memory of a session counts where the directory does not know of it.
    fn doubt(self) -> f64 {
        (self.unknown / self.all).powi(2)
    }
}

/// Where a session's last request went, and what of it is presumably there.
#[derive(Clone, Copy, Debug)]
struct Home {
    position: usize,
    /// Prompt tokens that are there whatever the directory says.
    tokens: u32,
    /// How surely the answer is.
    answer: f64,
}

impl Adaptive {
    /// Where the session's last request went, if it may go there again.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a number of tokens"
    )]
    fn home(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
    ) -> Option<Home> {
        let stay = self.sessions.get(now, request.session_key?)?;
        let position = candidates.binary_search_by_key(&stay.instance, |it| it.id).ok()?;
        let candidate = &candidates[position];
        if !candidate.eligible {
            return None;
        }
        // The last block may hold the beginning of the answer, or of what a template puts before it.
        let is_known = candidate.matched_blocks + 1 >= stay.blocks;
        self.returns.learn(is_known);
        let doubt = self.returns.doubt();
        let tokens = stay.prompt_tokens.min(request.prompt_tokens.0);
        Some(if is_known {
            Home { position, tokens: 0, answer: 1.0 }
        } else {
            Home { position, tokens: (doubt * f64::from(tokens)) as u32, answer: doubt }
        })
    }

    fn remember(&mut self, now: Timestamp, request: &RequestView<'_>, instance: InstanceId) {
        self.sessions.expire_one(now);
        if let Some(key) = request.session_key {
            let blocks = u32::try_from(request.prompt_blocks.len()).unwrap_or(u32::MAX);
            let stay = Stay { instance, blocks, prompt_tokens: request.prompt_tokens.0 };
            self.sessions.put(now, key, stay);
        }
    }
}

impl Policy for Adaptive {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn needs(&self) -> Needs {
        Needs {
            index: true,
            prefill_left: true,
            load: true,
            kv_cache_usage: true,
            ..Needs::default()
        }
    }

    /// O(N), in two passes. Scores are negated costs, in tokens.
    fn choose(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let (mut n, mut in_flight, mut least) = (0_u32, 0_u64, u32::MAX);
        let mut most_cached = 0;
        for (_, candidate) in eligible(candidates) {
            most_cached = most_cached.max(candidate.matched_blocks);
            n += 1;
            in_flight += u64::from(candidate.in_flight);
            least = least.min(candidate.in_flight);
        }
        let mean = in_flight as f64 / f64::from(n);
        let scarcity = self.misses.share();
        let price = PRICE * f64::from(least).powi(2) * (1.0 + SCARCE * scarcity);
        let home = self.home(now, request, candidates);
        let share = if home.is_some() { SESSION_SHARE } else { SHARED_SHARE };

        let mut best = Best::new(LoadSignal::InFlight);
        for (position, candidate) in eligible(candidates) {
            let here = home.filter(|home| home.position == position);
            let own = own_work(request, candidate, here) as f64;
            let left = candidate.prefill_left as f64;
            let batch = f64::from(candidate.in_flight) + 1.0;
            let full = (batch / (FULL * (mean + 1.0))).max(1.0);
            let kv_full = (kv_demand(candidate) / KV_FULL).max(1.0);
            let held_back = full * full * kv_full * kv_full;
            let wait = (left + share * own + FIXED_TOKENS) * batch.sqrt() * held_back;
            let cost = (wait + price * own) / speed(candidate);
            scores.record(candidate.id, 0.0 - cost);
            best.offer(0.0 - cost, position, candidate);
        }
        let (_, position, candidate) = best.get()?;
        self.remember(now, request, candidate.id);
        self.misses.learn(now, request.prompt_blocks, candidate.matched_blocks, most_cached);
        Some(Decision { position, reason: scored(candidate) })
    }
}

/// How fast it prefills against the fleet's mean, if that is worth telling from 1.
fn speed(candidate: &Candidate) -> f64 {
    let speed = candidate.prefill_speed;
    if (1.0 / EQUAL..=EQUAL).contains(&speed) { 1.0 } else { speed }
}

/// Share of its KV blocks that all its requests and one more would take, if they took what the running ones take; 0 if
/// that is not known.
fn kv_demand(candidate: &Candidate) -> f64 {
    let Some(load) = candidate.load.filter(|load| load.running > 0) else { return 0.0 };
    let beside = f64::from(load.waiting) + f64::from(candidate.unseen_in_flight) + 1.0;
    load.kv_cache_usage * (1.0 + beside / f64::from(load.running))
}

/// Work of the prompt tokens that the instance would compute, less what it presumably holds of the session's last answer.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a number of tokens"
)]
fn own_work(request: &RequestView<'_>, candidate: &Candidate, home: Option<Home>) -> u64 {
    let prompt = request.prompt_tokens.0;
    let mut own = uncached_tokens(request, candidate);
    if let Some(home) = home {
        own = own.min(prompt - home.tokens);
        own -= (home.answer * f64::from((own / 2).min(ANSWER_TOKENS))) as u32;
    }
    prefill_work(own, prompt - own)
}

impl Settings for AdaptiveConfig {
    fn name(&self) -> &'static str {
        "adaptive"
    }

    fn summary(&self) -> &'static str {
        "the least delay to all: prefill that is left and own by the batch, and a price on tokens to compute that grows with the fleet's load; nothing to tune (ours)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn signals(&self) -> Vec<&'static str> {
        vec![
            "session_key",
            "matched_tokens",
            "in_flight",
            "prefill_left",
            "prefill_speed",
            "waiting",
            "running",
            "kv_cache_usage",
        ]
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::<Adaptive>::default()
    }
}

#[cfg(test)]
mod tests {
    use kvroute_types::{BlockHash, LoadSnapshot, TokenCount};

    use super::*;
    use crate::Reason;
    use crate::fixtures::{assert_scores, burst, choose, choose_scored, in_flight, ten_blocks};

    fn adaptive() -> Adaptive {
        Adaptive::default()
    }

    /// A policy that has sent the session's first request, of that many blocks of 16 tokens, to the second of two
    /// instances that otherwise are the same.
    fn with_a_session_on_the_second(blocks: usize) -> Adaptive {
        let mut policy = adaptive();
        let mut table = in_flight([0, 0], [0, 0]);
        table[0].eligible = false;
        let first = RequestView {
            session_key: Some(7),
            prompt_blocks: &ten_blocks().prompt_blocks[..blocks],
            prompt_tokens: TokenCount(u32::try_from(16 * blocks).unwrap()),
            ..ten_blocks()
        };
        assert_eq!(choose(&mut policy, &first, &table), Some((1, Reason::LoadScore)));
        policy
    }

    #[test]
    fn by_hand() {
        let mut table = in_flight([3, 1], [10, 0]);
        table[0].prefill_left = 40;
        // b = 2; 4 is not more than 2 (2 + 1); price = 0.005 * 1. Of 165 tokens 5 are left, and 165: their work is the same in whole tokens.
        // (40 + 1.5 + 200) * sqrt(4) + 0.005 * 5 = 483.025;   (49.5 + 200) * sqrt(2) + 0.005 * 165 = 353.67...
        let (choice, scores) = choose_scored(&mut adaptive(), &ten_blocks(), &table);
        let second = 249.5 * 2.0_f64.sqrt() + 0.825;
        assert_scores(&scores, &[(10, -483.025), (20, -second)]);
        assert_eq!(choice, Some((1, Reason::LoadScore)));
        // 201.5 * 1.7 = 349 with two requests there and no queue, and it is better to follow the cache.
        table[0].prefill_left = 0;
        table[0].in_flight = 2;
        let choice = choose(&mut adaptive(), &ten_blocks(), &table);
        assert_eq!(choice, Some((0, Reason::CacheScore)));
    }

    #[test]
    fn who_is_twice_as_full_as_the_mean_is_held_back() {
        // b = 4.5; 10 is less than 2 * 5.5. (0.3 * 5 + 200) * sqrt(10) = 637.2 is what it costs, nothing being priced.
        let table = in_flight([9, 0], [10, 0]);
        let (_, scores) = choose_scored(&mut adaptive(), &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -201.5 * 10.0_f64.sqrt()), (20, -249.5)]);
        // Of four with b = 4: 17 of 2 * 5 is 1.7 times too much.
        let table = in_flight([16, 0, 0, 0], [10, 0, 0, 0]);
        let (_, scores) = choose_scored(&mut adaptive(), &ten_blocks(), &table);
        assert!((scores[0].1 + 201.5 * 17.0_f64.sqrt() * 1.7 * 1.7).abs() < 1e-9, "{scores:?}");
    }

    #[test]
    fn a_long_prompt_costs_more_than_its_tokens() {
        // 32,768 tokens and their attention: 49,152; behind as many cached ones, 32,768 cost 81,920.
        let mut table = in_flight([0, 0], [0, 0]);
        let long = RequestView { prompt_tokens: TokenCount(32_768), ..ten_blocks() };
        let (_, scores) = choose_scored(&mut adaptive(), &long, &table);
        assert!((scores[0].1 + 0.3 * 49_152.0 + 200.0).abs() < 1e-9, "{scores:?}");
        let longer = RequestView { prompt_tokens: TokenCount(65_536), ..ten_blocks() };
        table[0].matched_tokens = 32_768;
        let (_, scores) = choose_scored(&mut adaptive(), &longer, &table);
        assert!((scores[0].1 + 0.3 * 81_920.0 + 200.0).abs() < 1e-9, "{scores:?}");
    }

    #[test]
    fn the_last_answer_is_half_of_what_is_not_known_there() {
        let mut policy = with_a_session_on_the_second(1);
        let table = in_flight([0, 0], [0, 0]);
        let next = RequestView { session_key: Some(7), ..ten_blocks() };
        // A prompt of one block is not to be told from none. 0.9 * 165 + 200, and 0.9 * 83 + 200: of 165 tokens 82 are the answer.
        let (choice, scores) = choose_scored(&mut policy, &next, &table);
        assert_scores(&scores, &[(10, -348.5), (20, -274.7)]);
        assert_eq!(choice, Some((1, Reason::LoadScore)));
        // Of 1,000 tokens no more than 256; attention adds 15 to 1,000, and 14 to the last 744 of them.
        let mut policy = with_a_session_on_the_second(1);
        let long = RequestView { prompt_tokens: TokenCount(1000), ..next };
        let (_, scores) = choose_scored(&mut policy, &long, &table);
        assert_scores(&scores, &[(10, -1113.5), (20, -882.2)]);
        // Another session, and one whose place is out, are like prompts without one.
        let other = RequestView { session_key: Some(8), ..next };
        let (_, scores) = choose_scored(&mut policy, &other, &table);
        assert_scores(&scores, &[(10, -249.5), (20, -249.5)]);
        let mut out = table.clone();
        out[1].eligible = false;
        let (_, scores) = choose_scored(&mut policy, &next, &out);
        assert_scores(&scores, &[(10, -249.5)]);
    }

    #[test]
    fn a_prompt_that_the_directory_does_not_know_counts_by_how_often_that_happens() {
        // The last prompt had 9 blocks, and the directory knows of 7. The first return after one presumed: q^2 = (1 / 1.99)^2 = 0.2525, so
        // 36 of 144 tokens, but 112 are known. Of the 53 left 0.2525 * 26 are the answer.
        let mut policy = with_a_session_on_the_second(9);
        let table = in_flight([0, 0], [0, 7]);
        let next = RequestView { session_key: Some(7), ..ten_blocks() };
        let (_, scores) = choose_scored(&mut policy, &next, &table);
        assert_scores(&scores, &[(10, -348.5), (20, -(0.9 * 47.0 + 200.0))]);
        // It knows of none of 30 returns: q^2 = (26.03 / 26.77)^2 = 0.9455. Of the last prompt's 165 tokens 156 are there, and of the 9
        // left 0.9455 * 4 are the answer: 6 to compute.
        let table = in_flight([0, 0], [0, 0]);
        for _ in 0..28 {
            choose(&mut policy, &next, &table);
        }
        let (choice, scores) = choose_scored(&mut policy, &next, &table);
        assert_scores(&scores, &[(10, -348.5), (20, -(0.9 * 6.0 + 200.0))]);
        assert_eq!(choice, Some((1, Reason::LoadScore)));
        // A block less than the last prompt had is known well enough: 165 - 144 = 21, less 10.
        let table = in_flight([0, 0], [0, 9]);
        let (_, scores) = choose_scored(&mut policy, &next, &table);
        assert_scores(&scores, &[(10, -348.5), (20, -(0.9 * 11.0 + 200.0))]);
    }

    #[test]
    fn capacity_misses_raise_the_price() {
        let mut policy = adaptive();
        let blocks: Vec<BlockHash> = (0..256).map(BlockHash).collect();
        for s in [0.0, 60.0] {
            policy.misses.learn(Timestamp::from_secs_f64(s), &blocks, 0, 0);
        }
        // Two that hold nothing, with 3 requests each: e = 16 / (0.995 * 16 + 16), and the price 0.005 * 9 (1 + 8 e).
        let (_, scores) = choose_scored(&mut policy, &ten_blocks(), &in_flight([3, 3], [0, 0]));
        let cost = 249.5 * 2.0 + 0.005 * 9.0 * (1.0 + 8.0 / 1.995) * 165.0;
        assert_scores(&scores, &[(10, -cost), (20, -cost)]);
        // Whatever the mean, an idle instance has no price: else a holder that fills up would raise the price of leaving it.
        let table = in_flight([100, 0], [10, 0]);
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &table);
        assert!((scores[1].1 + 249.5).abs() < 1e-9, "{scores:?}");
        assert_eq!(choice, Some((1, Reason::LoadScore)));
    }

    #[test]
    fn who_has_no_kv_blocks_left_is_held_back() {
        let mut table = in_flight([0, 0], [0, 0]);
        let as_of = Timestamp::ZERO;
        let reading = |waiting, running, kv_cache_usage| {
            Some(LoadSnapshot { waiting, running, kv_cache_usage, as_of })
        };
        // 0.6 * (2 + 1) / 2 = 0.9 is as good as empty; 0.8 * (1 + 4 + 2 + 1) / 4 = 1.6 is 1.6 / 0.9 times too much.
        table[0].load = reading(0, 2, 0.6);
        table[1].load = reading(1, 4, 0.8);
        table[1].unseen_in_flight = 2;
        let (choice, scores) = choose_scored(&mut adaptive(), &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -249.5), (20, -249.5 * (1.6_f64 / 0.9).powi(2))]);
        assert_eq!(choice, Some((0, Reason::LoadScore)));
        // Nobody runs, so that nothing is known of what one takes.
        table[1].load = reading(1, 0, 0.8);
        let (_, scores) = choose_scored(&mut adaptive(), &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -249.5), (20, -249.5)]);
    }

    #[test]
    fn a_busy_fleet_bears_a_longer_queue_for_a_cached_prompt() {
        let choice = |in_flight_each: u32, left: u64| {
            let mut table = in_flight([in_flight_each; 2], [10, 0]);
            table[0].prefill_left = left;
            choose(&mut adaptive(), &ten_blocks(), &table).unwrap().0
        };
        // (200 + 201.5) * 1.414 + 0.005 * 5 > 249.5 * 1.414 + 0.005 * 165.
        assert_eq!(choice(1, 200), 1);
        // With 40 each, price 8: 401.5 * 6.4 + 8 * 5 = 2,611 < 249.5 * 6.4 + 8 * 165 = 2,918; 601.5 * 6.4 + 40 = 3,891.
        assert_eq!(choice(40, 200), 0);
        assert_eq!(choice(40, 400), 1);
    }

    #[test]
    fn who_is_half_as_fast_costs_twice_as_much() {
        let mut table = in_flight([0, 0], [0, 0]);
        table[0].prefill_speed = 0.5;
        table[1].prefill_speed = 1.19;
        // 0.3 * 165 + 200 = 249.5, over 0.5; 1.19 is as good as 1.
        let (choice, scores) = choose_scored(&mut adaptive(), &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -499.0), (20, -249.5)]);
        assert_eq!(choice, Some((1, Reason::LoadScore)));
    }

    #[test]
    fn a_burst_of_one_prompt_does_not_collapse() {
        let mut table = in_flight([0; 4], [0; 4]);
        let counts = burst(&mut adaptive(), &ten_blocks(), &mut table, 64);
        assert!(counts.iter().all(|&count| count >= 10), "{counts:?}");
    }

    #[test]
    fn nobody_is_chosen_of_nobody() {
        assert_eq!(choose(&mut adaptive(), &ten_blocks(), &[]), None);
    }
}
