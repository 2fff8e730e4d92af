//! Which blocks a workload uses again, and what one cache of a given size makes of that.
//!
//! Requests are replayed one by one, in order of arrival, each in an instant: it looks up its leading blocks, computes the
//! rest and leaves its full blocks behind. Between two requests a cache of `C` blocks keeps at most `C` of the blocks that it
//! kept before or that the request left; what it does not keep is gone until it is computed again. Requests under way take no
//! room, so that for a fleet of `N` instances with `K` usable blocks each, `C = N K` is never less than the fleet has.
//!
//! A *reuse* is a row of blocks of one chain that request `j` uses and that request `i` was the last to use before. Depth `d`
//! of `j`'s chain was last used by the latest request that shares more than `d` blocks with `j`, so reuses of `j` are ordered:
//! the deeper, the earlier `i`. There are few of them where there are many blocks, and all that follows is made of them.
//!
//! * **Infinite**: everything is kept, so every reuse is a hit as far as a prompt's blocks can be hits.
//! * **LRU**: the `C` blocks used last are kept, of one request the first ones, as vLLM frees a request's blocks from last to
//!   first and evicts in the order of freeing (R9). Of the blocks last used by `i` it holds a row, from the first that no one
//!   used since to the first that was evicted.
//! * **Belady**: the blocks whose next use is furthest away go first, those without one before all (Belady, IBM Systems
//!   Journal 5(2), 1966). It knows the future, and no choice of what to keep gives more hits.
//!
//! **Why Belady is a bound although a block is of use only behind its ancestors.** Keeping a block from `i` to `j` for a hit
//! is an interval, `C` of which may overlap. Dropping the one that ends last whenever there are too many leaves as many as
//! can be (Faigle and Nawijn, Discrete Applied Mathematics 58(1), 1995), if intervals are independent. That is an upper bound
//! for any cache, and here it is reached: whoever uses a block uses its ancestors, so the interval of an ancestor that ends at
//! `j` lies within the block's own. As long as both are kept they end together, and the deeper one is dropped first. So when
//! `j` comes, the blocks kept for it are a row from its first one on, and every one is a hit. Which of those that end at `j`
//! are kept is thus a matter of their number. An interval that cannot end in a hit (`j` computes the block anyway, or does not
//! count) is worth nothing and never kept.
//!
//! It is a bound for the given order. Requests that are admitted in another one may find more.

use std::collections::BinaryHeap;
use std::ops::{Range, RangeInclusive};

use kvroute_types::{BlockSize, RequestId, Timestamp};

use crate::{Arrival, Plan, Workload};

/// What a workload uses again, under one block size; made once for caches of any size.
///
/// ```
/// # use kvroute_types::{BlockSize, Timestamp};
/// # use kvroute_workload::{Plan, Reuses, WorkloadSpec};
/// let workload = WorkloadSpec::builtin("chat").unwrap().generate(0, 300).unwrap();
/// let plan = Plan::new(&workload, BlockSize::default()).unwrap();
/// let rates = Reuses::new(&workload, &plan, Timestamp::ZERO..=Timestamp::MAX).hit_rates(2_000);
/// assert!(rates.lru <= rates.belady && rates.belady <= rates.infinite);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reuses {
    block_size: BlockSize,
    /// In order of arrival.
    requests: Vec<Use>,
    /// By the request that comes back, then from its first block on.
    rows: Vec<Reuse>,
    /// Of those the blocks that can be hits and count, by the request that leaves them.
    hopes: Vec<Hope>,
}

/// Hit rates of one cache that serves all requests of a workload: cached prompt tokens over prompt tokens, `0.0..=1.0`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PooledHitRates {
    /// The blocks used last are kept.
    pub lru: f64,
    /// The blocks used again soonest are kept: the most that any choice gives, in order of arrival.
    pub belady: f64,
    /// Everything is kept.
    pub infinite: f64,
}

/// Which blocks of a request a cache keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Full blocks of prompt and output; an output's last token is never computed (R22).
    Sequences,
    /// Full blocks of the prompt. Its partly filled last one takes a place too, although it can never be found again.
    Prompts,
}

/// One request, in blocks from its first on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    /// Prompt blocks that can be hits.
    hittable: u32,
    /// Blocks it leaves behind, those included that nobody can find.
    left: u32,
    /// Where its reuses begin and end.
    rows: (usize, usize),
    /// If it counts, its prompt tokens.
    counted_tokens: Option<u32>,
}

/// Blocks `blocks` of a chain, used again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reuse {
    /// Place of the request that used them last.
    from: u32,
    blocks: Range<u32>,
}

/// So many blocks that request `from` leaves and that are hits of `to`, if they are kept till then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hope {
    from: u32,
    to: u32,
    blocks: u32,
}

impl Reuses {
    /// Of `workload`, cut by its `plan`. Requests that arrive in `window` count, if each answer took no time; a cache sees all
    /// of them.
    ///
    /// A closed-loop turn arrives `think` after the one before it. The order is thus the workload's own, the same for whatever
    /// serves it; with absolute arrivals it is the order of every run.
    ///
    /// # Panics
    /// If the plan is not of this workload.
    pub fn new(workload: &Workload, plan: &Plan, window: RangeInclusive<Timestamp>) -> Self {
        Self::in_order(workload, plan, &replay_order(workload), window, Kept::Sequences)
    }

    pub(crate) fn in_order(
        workload: &Workload,
        plan: &Plan,
        order: &[(Timestamp, RequestId)],
        window: RangeInclusive<Timestamp>,
        kept: Kept,
    ) -> Self {
        let full = |tokens: u32| tokens / plan.block_size().get();
        let mut builder = Builder::new(plan.block_size(), plan.distinct_keys() as usize);
        for (at, id) in order {
            let request = &workload.requests()[id.index()];
            let (prompt, output) = (request.prompt_tokens.0, request.output_tokens.0);
            let (stored, lost) = match kept {
                Kept::Sequences => (full((prompt + output).saturating_sub(1)), 0),
                Kept::Prompts => {
                    (full(prompt), u32::from(!prompt.is_multiple_of(plan.block_size().get())))
                }
            };
            let keys = plan.chain(*id).keys().map(|key| key.0 as usize);
            let request = Use {
                hittable: full(prompt.saturating_sub(1)),
                left: stored + lost,
                rows: (0, 0),
                counted_tokens: window.contains(at).then_some(prompt),
            };
            builder.push(request, keys.take(stored as usize));
        }
        builder.finish()
    }

    /// What one cache of `capacity_blocks` blocks serves under each rule, from an empty start.
    pub fn hit_rates(&self, capacity_blocks: u64) -> PooledHitRates {
        PooledHitRates {
            lru: self.lru_hit_rate(capacity_blocks),
            belady: self.rate(self.belady_hits(capacity_blocks)),
            infinite: self.infinite_hit_rate(),
        }
    }

    /// What a cache that never evicts serves.
    pub fn infinite_hit_rate(&self) -> f64 {
        self.rate(self.hopes.iter().map(|hope| u64::from(hope.blocks)).sum())
    }

    pub(crate) fn lru_hit_rate(&self, capacity_blocks: u64) -> f64 {
        self.rate(self.lru_hits(capacity_blocks))
    }

    fn rate(&self, hit_blocks: u64) -> f64 {
        let tokens: u64 =
            self.requests.iter().filter_map(|r| r.counted_tokens).map(u64::from).sum();
        (hit_blocks * u64::from(self.block_size.get())) as f64 / tokens.max(1) as f64
    }

    fn lru_hits(&self, capacity: u64) -> u64 {
        // Of each request: what is held of the blocks that it was the last to use.
        let mut held: Vec<Range<u32>> = Vec::with_capacity(self.requests.len());
        let (mut oldest, mut len, mut hits) = (0, 0, 0);
        for request in &self.requests {
            let (mut found, mut is_unbroken) = (0, true);
            for Reuse { from, blocks } in &self.rows[request.rows.0..request.rows.1] {
                let row = &mut held[*from as usize];
                debug_assert_eq!(
                    row.start, blocks.start,
                    "blocks are used again from the first on"
                );
                let end = row.end.min(blocks.end);
                if is_unbroken {
                    found = end;
                    is_unbroken = end == blocks.end;
                }
                len -= u64::from(end - blocks.start);
                *row = blocks.end..row.end.max(blocks.end);
            }
            if request.counted_tokens.is_some() {
                hits += u64::from(found.min(request.hittable));
            }
            held.push(0..request.left);
            len += u64::from(request.left);
            while len > capacity {
                let row: &mut Range<u32> = &mut held[oldest];
                let over = u32::try_from(len - capacity).unwrap_or(u32::MAX);
                let cut = over.min(row.end - row.start);
                row.end -= cut;
                len -= u64::from(cut);
                oldest += usize::from(row.start == row.end);
            }
        }
        hits
    }

    fn belady_hits(&self, capacity: u64) -> u64 {
        // By the request whose hits they will be: how many blocks are held for it.
        let mut held = vec![0_u64; self.requests.len()];
        // Every request for which some are held, and requests for which none are any more.
        let mut furthest = BinaryHeap::new();
        let (mut hopes, mut len, mut hits) = (self.hopes.iter().peekable(), 0, 0);
        for at in 0..self.requests.len() {
            let found = std::mem::take(&mut held[at]);
            hits += found;
            len -= found;
            while let Some(hope) = hopes.next_if(|hope| hope.from as usize == at) {
                let of_next = &mut held[hope.to as usize];
                if *of_next == 0 {
                    furthest.push(hope.to);
                }
                *of_next += u64::from(hope.blocks);
                len += u64::from(hope.blocks);
            }
            while len > capacity {
                let last = furthest.peek().expect("whatever is held is held for someone");
                let of_last = &mut held[*last as usize];
                let cut = (len - capacity).min(*of_last);
                *of_last -= cut;
                len -= cut;
                if *of_last == 0 {
                    furthest.pop();
                }
            }
        }
        hits
    }
}

/// Finds reuses, request by request.
struct Builder {
    reuses: Reuses,
    /// By key: place of the request that used it last.
    last_use: Vec<u32>,
}

/// Last use of what was never used.
const NEVER: u32 = u32::MAX;

impl Builder {
    fn new(block_size: BlockSize, distinct_keys: usize) -> Self {
        let reuses =
            Reuses { block_size, requests: Vec::new(), rows: Vec::new(), hopes: Vec::new() };
        Self { reuses, last_use: vec![NEVER; distinct_keys] }
    }

    /// The next request, and the keys of the blocks that it leaves and others can find.
    fn push(&mut self, request: Use, keys: impl Iterator<Item = usize>) {
        let Reuses { requests, rows, hopes, .. } = &mut self.reuses;
        let place = u32::try_from(requests.len()).expect("requests have 32-bit ids");
        let first = rows.len();
        for (depth, key) in (0..).zip(keys) {
            let from = std::mem::replace(&mut self.last_use[key], place);
            match rows[first..].last_mut() {
                _ if from == NEVER => {}
                Some(latest) if latest.from == from => latest.blocks.end = depth + 1,
                _ => rows.push(Reuse { from, blocks: depth..depth + 1 }),
            }
        }
        let hittable = request.counted_tokens.map_or(0, |_| request.hittable);
        hopes.extend(rows[first..].iter().filter_map(|Reuse { from, blocks }| {
            let blocks = blocks.end.min(hittable).checked_sub(blocks.start).filter(|n| *n > 0)?;
            Some(Hope { from: *from, to: place, blocks })
        }));
        requests.push(Use { rows: (first, rows.len()), ..request });
    }

    fn finish(self) -> Reuses {
        let mut reuses = self.reuses;
        reuses.hopes.sort_unstable();
        reuses
    }
}

/// Requests by arrival, ties by id.
pub(crate) fn replay_order(workload: &Workload) -> Vec<(Timestamp, RequestId)> {
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

#[cfg(test)]
mod tests;
