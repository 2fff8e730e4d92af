//! What a workload looks like, and how much of it a cache could serve.
//!
//! A prompt block can be a hit if it is full and does not hold the prompt's last token, as that one
//! is always computed (vLLM `get_computed_blocks`): block `i < floor((P - 1) / B)` of a prompt of
//! `P` tokens. Hits are the leading such blocks that are in the cache, in tokens over all prompt
//! tokens.
//!
//! * The **infinite cache** keeps every full block of prompts and outputs (an output's last token
//!   is never computed, so `floor((P + O - 1) / B)` blocks): no router over any fleet can do
//!   better.
//! * The **pooled LRU** is one cache of the whole fleet's size, of prompt blocks only; a prompt's
//!   partly filled last block takes a place too. A request looks up its leading blocks and then
//!   touches all its blocks from last to first, as vLLM frees them, so that of one request the tail
//!   is evicted first. All of that happens in one instant: the curve says what capacity alone
//!   costs, before routing or queueing.
//!
//! Requests are replayed by arrival; a closed-loop turn arrives `think` after the one before it, as
//! if service took no time.
//!
//! Quantiles are of type 7 (Hyndman and Fan 1996): linear between order statistics `floor(h)` and
//! `floor(h) + 1` with `h = (n - 1) q`, counted from 0.

use std::ops::RangeInclusive;

use kvroute_types::{BlockSize, RequestId, Timestamp};
use serde::Serialize;

use crate::{Arrival, Plan, PlanError, Workload};

/// A summary of a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceStats {
    /// Number of requests.
    pub requests: u32,
    /// Number of sessions.
    pub sessions: u32,
    /// From the first arrival to the last, seconds, as if service took no time.
    pub duration_s: f64,
    /// Prompt lengths.
    pub input_tokens: TokenSummary,
    /// Output lengths.
    pub output_tokens: TokenSummary,
    /// Share of prompt tokens that a cache without limit serves, `0.0..=1.0`.
    pub hit_rate_infinite_cache: f64,
    /// The same for one LRU cache of each capacity asked for.
    pub pooled_lru: Vec<LruPoint>,
}

/// Lengths in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TokenSummary {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median (type 7).
    pub p50: f64,
    /// 95th percentile (type 7).
    pub p95: f64,
    /// Longest.
    pub max: u32,
}

/// One point of the curve of hit rate over capacity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LruPoint {
    /// Capacity in tokens, rounded down to whole blocks in use.
    pub capacity_tokens: u64,
    /// Share of prompt tokens served, `0.0..=1.0`.
    pub hit_rate: f64,
}

impl TraceStats {
    /// Summarises `workload`, with hit rates at the granularity of `block_size` (the trace's own,
    /// if it has one, gives the figures that others publish).
    ///
    /// # Errors
    /// If the workload has too many distinct blocks; see [`Plan::new`].
    pub fn new(
        workload: &Workload,
        block_size: BlockSize,
        capacities_tokens: &[u64],
    ) -> Result<Self, PlanError> {
        let plan = Plan::new(workload, block_size)?;
        let order = replay_order(workload);
        let requests = workload.requests();
        let pooled_lru = capacities_tokens
            .iter()
            .map(|&capacity_tokens| LruPoint {
                capacity_tokens,
                hit_rate: lru_hit_rate(workload, &plan, &order, capacity_tokens),
            })
            .collect();
        Ok(Self {
            requests: u32::try_from(requests.len()).unwrap_or(u32::MAX),
            sessions: workload.sessions(),
            duration_s: duration_s(&order),
            input_tokens: TokenSummary::of(requests.iter().map(|r| r.prompt_tokens.0)),
            output_tokens: TokenSummary::of(requests.iter().map(|r| r.output_tokens.0)),
            hit_rate_infinite_cache: infinite_hit_rate(workload, &plan, &order, ALL),
            pooled_lru,
        })
    }

    /// Share of prompt tokens that a cache which never evicts and is shared by all serves, `0.0..=1.0`, at the block size of
    /// the plan; of the requests that arrive in `window`, if each answer took no time. The cache sees all of them.
    ///
    /// # Panics
    /// If the plan is not of this workload.
    pub fn infinite_hit_rate(
        workload: &Workload,
        plan: &Plan,
        window: RangeInclusive<Timestamp>,
    ) -> f64 {
        infinite_hit_rate(workload, plan, &replay_order(workload), window)
    }
}

impl TokenSummary {
    fn of(lengths: impl Iterator<Item = u32>) -> Self {
        let mut sorted: Vec<u32> = lengths.collect();
        sorted.sort_unstable();
        let sum: u64 = sorted.iter().copied().map(u64::from).sum();
        Self {
            mean: sum as f64 / sorted.len().max(1) as f64,
            p50: quantile(&sorted, 0.5),
            p95: quantile(&sorted, 0.95),
            max: sorted.last().copied().unwrap_or(0),
        }
    }
}

/// The type 7 quantile of sorted values; 0 if there are none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "h lies in 0..=n - 1")]
fn quantile(sorted: &[u32], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let h = last as f64 * q;
    let below = h.floor() as usize;
    let above = (below + 1).min(last);
    let (low, high) = (f64::from(sorted[below]), f64::from(sorted[above]));
    low + (h - below as f64) * (high - low)
}

/// Requests by arrival, ties by id.
fn replay_order(workload: &Workload) -> Vec<(Timestamp, RequestId)> {
    let requests = workload.requests();
    let mut arrivals = vec![Timestamp::ZERO; requests.len()];
    for request in requests {
        let at = match request.arrival {
            Arrival::At(at) => at,
            // Filled in when its predecessor, which has the smaller id, was visited.
            Arrival::AfterPrevious { think: pause } | Arrival::Paced { interval: pause } => {
                arrivals[request.id.index()] + pause
            }
        };
        arrivals[request.id.index()] = at;
        if let Some(next) = workload.next_turn(request.id) {
            arrivals[next.index()] = at;
        }
    }
    let mut order: Vec<_> = arrivals.into_iter().zip((0..).map(RequestId)).collect();
    order.sort_unstable();
    order
}

fn duration_s(order: &[(Timestamp, RequestId)]) -> f64 {
    match (order.first(), order.last()) {
        (Some(first), Some(last)) => last.0.since(first.0).as_secs_f64(),
        _ => 0.0,
    }
}

/// Blocks of a request that a cache deals with.
struct Blocks {
    /// Prompt blocks that can be hits.
    hittable: usize,
    /// Full prompt blocks.
    prompt: usize,
    /// Whether the prompt ends within a block.
    has_partial: bool,
    /// Full blocks of prompt and output that are computed.
    all: usize,
}

fn blocks(workload: &Workload, request: RequestId, block_size: BlockSize) -> Blocks {
    let request = &workload.requests()[request.index()];
    let (prompt, output) = (request.prompt_tokens.0, request.output_tokens.0);
    let full = |tokens: u32| (tokens / block_size.get()) as usize;
    Blocks {
        hittable: full(prompt.saturating_sub(1)),
        prompt: full(prompt),
        has_partial: !prompt.is_multiple_of(block_size.get()),
        all: full((prompt + output).saturating_sub(1)),
    }
}

/// Every time.
const ALL: RangeInclusive<Timestamp> = Timestamp::ZERO..=Timestamp::MAX;

fn rate(hit_blocks: u64, prompt_tokens: u64, block_size: BlockSize) -> f64 {
    (hit_blocks * u64::from(block_size.get())) as f64 / prompt_tokens.max(1) as f64
}

fn infinite_hit_rate(
    workload: &Workload,
    plan: &Plan,
    order: &[(Timestamp, RequestId)],
    window: RangeInclusive<Timestamp>,
) -> f64 {
    let mut seen = vec![false; plan.distinct_keys() as usize];
    let (mut hits, mut tokens) = (0, 0);
    for (at, request) in order {
        let request = *request;
        let blocks = blocks(workload, request, plan.block_size());
        let mut keys = plan.chain(request).keys().map(|key| key.0 as usize).take(blocks.all);
        // Keys name prefixes: behind the first unseen one all are unseen.
        let known =
            keys.by_ref().take_while(|&key| std::mem::replace(&mut seen[key], true)).count();
        if window.contains(at) {
            hits += known.min(blocks.hittable) as u64;
            tokens += u64::from(workload.requests()[request.index()].prompt_tokens.0);
        }
        keys.for_each(|key| seen[key] = true);
    }
    rate(hits, tokens, plan.block_size())
}

fn lru_hit_rate(
    workload: &Workload,
    plan: &Plan,
    order: &[(Timestamp, RequestId)],
    capacity_tokens: u64,
) -> f64 {
    let capacity = capacity_tokens / u64::from(plan.block_size().get());
    // A partly filled block can never be found again: each has a key that only its request uses.
    let partial = plan.distinct_keys() as usize;
    let mut cache = Lru::new(partial + order.len(), capacity);
    let mut keys = Vec::new();
    let mut hits = 0;
    for &(_, request) in order {
        let blocks = blocks(workload, request, plan.block_size());
        keys.clear();
        keys.extend(plan.chain(request).keys().take(blocks.prompt).map(|key| key.0 as usize));
        let leading = keys.iter().take(blocks.hittable);
        hits += leading.take_while(|key| cache.contains(**key)).count() as u64;
        if blocks.has_partial {
            cache.touch(partial + request.index());
        }
        keys.iter().rev().for_each(|key| cache.touch(*key));
    }
    let prompts = workload.requests().iter().map(|request| u64::from(request.prompt_tokens.0));
    rate(hits, prompts.sum(), plan.block_size())
}

/// The set of the `capacity` keys touched last: a ring threaded through an array, from newest to
/// oldest.
struct Lru {
    /// Neighbours of each key, then of the ring's joint: newer than the newest and older than the
    /// oldest.
    links: Vec<Link>,
    joint: usize,
    len: u64,
    capacity: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Link {
    newer: usize,
    older: usize,
}

/// Links of a key that is not in the ring.
const ABSENT: Link = Link { newer: usize::MAX, older: usize::MAX };

impl Lru {
    /// A cache of `capacity` of the keys `0..keys`.
    fn new(keys: usize, capacity: u64) -> Self {
        let mut links = vec![ABSENT; keys + 1];
        links[keys] = Link { newer: keys, older: keys };
        Self { links, joint: keys, len: 0, capacity }
    }

    fn contains(&self, key: usize) -> bool {
        self.links[key] != ABSENT
    }

    fn touch(&mut self, key: usize) {
        if self.contains(key) {
            self.remove(key);
        }
        let newest = self.links[self.joint].older;
        self.links[key] = Link { newer: self.joint, older: newest };
        self.links[self.joint].older = key;
        self.links[newest].newer = key;
        self.len += 1;
        if self.len > self.capacity {
            self.remove(self.links[self.joint].newer);
        }
    }

    fn remove(&mut self, key: usize) {
        let Link { newer, older } = std::mem::replace(&mut self.links[key], ABSENT);
        self.links[newer].older = older;
        self.links[older].newer = newer;
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_between_order_statistics() {
        assert!((quantile(&[1, 2, 3, 4], 0.5) - 2.5).abs() < 1e-12);
        assert!((quantile(&[10, 20, 30, 40, 50], 0.95) - 48.0).abs() < 1e-12);
        assert!((quantile(&[7], 0.95) - 7.0).abs() < 1e-12);
    }

    #[test]
    fn the_cache_keeps_what_was_touched_last() {
        let mut cache = Lru::new(5, 2);
        let held = |cache: &Lru| (0..5).filter(|&key| cache.contains(key)).collect::<Vec<_>>();
        cache.touch(0);
        cache.touch(1);
        cache.touch(0);
        cache.touch(4);
        assert_eq!(held(&cache), [0, 4]);
        cache.touch(3);
        assert_eq!(held(&cache), [3, 4]);
    }

    #[test]
    fn a_cache_without_room_holds_nothing() {
        let mut cache = Lru::new(2, 0);
        cache.touch(1);
        assert!(!cache.contains(1));
    }
}
