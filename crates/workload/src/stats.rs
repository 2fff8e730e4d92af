//! What a workload looks like, and how much of it a cache could serve.
//!
//! A prompt block can be a hit if it is full and does not hold the prompt's last token, as that one
//! is always computed (vLLM `get_computed_blocks`): block `i < floor((P - 1) / B)` of a prompt of
//! `P` tokens. Hits are the leading such blocks that are in the cache, in tokens over all prompt
//! tokens.
//!
//! * The **infinite cache** keeps every full block of prompts and outputs (an output's last token
//!   is never computed, so `floor((P + O - 1) / B)` blocks): no router over any fleet can do
//!   better. What a cache of limited size makes of the same blocks, [`Reuses::hit_rates`] says.
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

use crate::reuse::{Kept, Reuses, replay_order};
use crate::{Plan, PlanError, Workload};

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
        let reuses = |kept| Reuses::in_order(workload, &plan, &order, ALL, kept);
        let of_prompts = reuses(Kept::Prompts);
        let block_tokens = u64::from(block_size.get());
        let pooled_lru = capacities_tokens
            .iter()
            .map(|&capacity_tokens| LruPoint {
                capacity_tokens,
                hit_rate: of_prompts.lru_hit_rate(capacity_tokens / block_tokens),
            })
            .collect();
        Ok(Self {
            requests: u32::try_from(requests.len()).unwrap_or(u32::MAX),
            sessions: workload.sessions(),
            duration_s: duration_s(&order),
            input_tokens: TokenSummary::of(requests.iter().map(|r| r.prompt_tokens.0)),
            output_tokens: TokenSummary::of(requests.iter().map(|r| r.output_tokens.0)),
            hit_rate_infinite_cache: reuses(Kept::Sequences).infinite_hit_rate(),
            pooled_lru,
        })
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

fn duration_s(order: &[(Timestamp, RequestId)]) -> f64 {
    match (order.first(), order.last()) {
        (Some(first), Some(last)) => last.0.since(first.0).as_secs_f64(),
        _ => 0.0,
    }
}

/// Every time.
const ALL: RangeInclusive<Timestamp> = Timestamp::ZERO..=Timestamp::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_between_order_statistics() {
        assert!((quantile(&[1, 2, 3, 4], 0.5) - 2.5).abs() < 1e-12);
        assert!((quantile(&[10, 20, 30, 40, 50], 0.95) - 48.0).abs() < 1e-12);
        assert!((quantile(&[7], 0.95) - 7.0).abs() < 1e-12);
    }
}
