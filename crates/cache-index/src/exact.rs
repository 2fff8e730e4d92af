//! The directory of what the instances say they hold.
//!
//! ```text
//!   table: hash -> slot          runs: sequences of blocks            who holds what of a run
//!   ┌──────┬──────┐
//!   │ h130 │  ●───┼──────────────► [h0 … h127 h128 h129 h130 …]      instance 3: 0..8192
//!   │ g0   │  ●───┼────┐                        ▲                    instance 7: 0..128, 140..150
//!   └──────┴──────┘    └──► [g0 g1 …]           │
//!                            branches off behind h127: not linked, found by its hash
//! ```
//!
//! A look-up finds the prompt's first block in the table, sees how far the run there agrees with the
//! prompt, and goes on with the first block that does not, until one is unknown or nobody is left.

mod chunks;
mod holdings;
mod match_buffer;
mod runs;
mod shared;
mod snapshot;
mod spans;
mod table;

#[cfg(test)]
mod tests;

use std::ops::Range;

use hashbrown::HashMap;
use kvroute_types::{BlockHash, InstanceId};
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use holdings::{Holdings, map_growth_bytes};
use runs::{Place, Runs};

pub use match_buffer::MatchBuffer;
pub use shared::SharedExactIndex;
pub use snapshot::SnapshotError;

/// Bounds of an [`ExactIndex`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExactIndexConfig {
    /// Most bytes of memory for the whole index; at least 1,048,576.
    ///
    /// Default 268,435,456 (256 MiB): at least 10 million distinct blocks of long prompts, the KV
    /// blocks of 160 instances with a million tokens each (our choice).
    pub budget_bytes: usize,
}

impl Default for ExactIndexConfig {
    fn default() -> Self {
        Self { budget_bytes: 256 << 20 }
    }
}

/// What each instance holds in its prefix cache, by its own account (vLLM's KV events).
///
/// For each instance the index has a set of block hashes, with the number of copies of each: an
/// engine may store the same hash twice, and then removing it once leaves it there. Equal hashes
/// are the same block on all instances, so each is kept once.
///
/// # What is exact
/// After any sequence of calls, with holes, copies and unknown parents, [`matches`](Self::matches)
/// gives for each instance the number of leading blocks of the prompt in its set. This holds
/// * as long as the budget was never hit: see below;
/// * for hashes that are *chained*: one hash stands for one whole prefix (vLLM's block hash), and
///   the blocks of one [`stored`](Self::stored) follow one another and its parent. Hashes that
///   break this promise make wrong matches, never a wrong set.
///
/// # Bounds
/// Memory stays within `budget_bytes`, always. A block for which there is no room is refused, and
/// with it the rest of its event: the blocks known longest are the ones that the instances share,
/// and room comes back as they remove blocks. So at the bound the index says less than is true,
/// never more. [`refused_blocks`](Self::refused_blocks) counts what it cost; above zero, raise the
/// budget. Memory is reused, not given back: what long prompts have left serves any other, but the
/// 64 bytes for the head of each run and the table keep their size.
///
/// # Cost
/// With `n` runs on a prompt's path of `b` blocks: a look-up takes O(n log b) plus the spans of these
/// runs, and does not allocate. Storing and removing take O(1) per block, plus O(log) of the run's
/// holders. [`cleared`](Self::cleared) takes what removing all its blocks takes.
#[derive(Debug)]
pub struct ExactIndex {
    runs: Runs,
    /// Looked up only; where all are visited they are put in order first.
    instances: HashMap<InstanceId, Holdings, FxBuildHasher>,
    /// What the instances' lists have allocated.
    instance_bytes: usize,
    budget_bytes: usize,
    refused_blocks: u64,
    unknown_removals: u64,
}

impl ExactIndex {
    /// Smallest budget, bytes.
    pub const BUDGET_BYTES_MIN: usize = 1 << 20;

    /// An empty index with these bounds.
    ///
    /// # Errors
    /// If the budget is below [`BUDGET_BYTES_MIN`](Self::BUDGET_BYTES_MIN).
    pub fn new(config: ExactIndexConfig) -> Result<Self, ConfigError> {
        let ExactIndexConfig { budget_bytes } = config;
        if budget_bytes < Self::BUDGET_BYTES_MIN {
            return Err(ConfigError::BudgetTooSmall {
                budget_bytes,
                min_bytes: Self::BUDGET_BYTES_MIN,
            });
        }
        Ok(Self {
            runs: Runs::new(),
            instances: HashMap::default(),
            instance_bytes: 0,
            budget_bytes,
            refused_blocks: 0,
            unknown_removals: 0,
        })
    }

    /// The instance stored one copy more of each of these blocks, which follow one another and
    /// `parent`; `None` if the first of them begins a prompt.
    ///
    /// The parent need not be known, nor held by this instance: it decides where the blocks are kept,
    /// not what the index answers.
    pub fn stored(
        &mut self,
        instance: InstanceId,
        parent: Option<BlockHash>,
        blocks: &[BlockHash],
    ) {
        if !self.know(instance) {
            self.refused_blocks += blocks.len() as u64;
            return;
        }
        self.prefetch(blocks, 0..AHEAD);
        // Where the next block would stand if it is unknown.
        let mut next = parent.and_then(|parent| self.runs.find(parent)).map(behind);
        // What was found or added and is not yet in a span.
        let mut run = next.map_or(0, |next| next.run);
        let mut part = 0..0;
        // How many are taken in, and for how many memory was asked for.
        let (mut done, mut asked) = (0, AHEAD);
        while done < blocks.len() {
            // Buckets two batches ahead; one batch ahead, where they are at hand by now, what is behind
            // full ones: that alone makes it 44 ns a block and not 49 (10 M blocks).
            asked = asked.max(done);
            self.prefetch(blocks, asked..done + 2 * AHEAD);
            self.prefetch_next(blocks, asked.saturating_sub(AHEAD).max(done)..done + AHEAD);
            asked = done + 2 * AHEAD;
            let Some((place, len)) = self.take_in(next, &blocks[done..]) else {
                self.refused_blocks += (blocks.len() - done) as u64;
                break;
            };
            if (place.run, place.at) != (run, part.end) || part.is_empty() {
                if !self.hold(instance, run, part) {
                    self.refused_blocks += (blocks.len() - done) as u64;
                    if place.run != run {
                        self.runs.trim(place.run);
                    }
                    return;
                }
                run = place.run;
                part = place.at..place.at;
            }
            part.end += len;
            done += len as usize;
            next = Some(Place { run, at: part.end });
        }
        self.hold(instance, run, part);
    }

    /// The instance removed one copy of each of these blocks. One that it does not hold is counted
    /// ([`unknown_removals`](Self::unknown_removals)) and otherwise ignored.
    pub fn removed(&mut self, instance: InstanceId, blocks: &[BlockHash]) {
        for batch in blocks.chunks(AHEAD) {
            if batch.len() > 1 {
                self.prefetch(batch, 0..AHEAD);
            }
            for &hash in batch {
                if !self.remove(instance, hash) {
                    self.unknown_removals += 1;
                }
            }
        }
    }

    /// The instance dropped all its blocks (vLLM `AllBlocksCleared`, or it restarted).
    pub fn cleared(&mut self, instance: InstanceId) {
        self.drop_all(instance);
    }

    /// The instance left: forgets what it held and that it was there.
    pub fn forget(&mut self, instance: InstanceId) {
        self.drop_all(instance);
        self.instances.remove(&instance);
    }

    /// Calls `found` for every instance that holds at least the first of these blocks, with the
    /// number of leading blocks it holds (1 or more).
    ///
    /// Once per instance. The order is a function of the calls before, so runs repeat, but is not
    /// otherwise defined. Allocates nothing once `buffer` has served a prompt with as many holders.
    #[inline]
    pub fn matches(
        &self,
        buffer: &mut MatchBuffer,
        blocks: &[BlockHash],
        found: impl FnMut(InstanceId, u32),
    ) {
        match_buffer::matches(&self.runs, &mut buffer.alive, blocks, found);
    }

    /// Whether the instance holds a copy of this block, whatever stands before it.
    pub fn holds(&self, instance: InstanceId, block: BlockHash) -> bool {
        self.runs.find(block).is_some_and(|Place { run, at }| {
            spans::containing(&self.runs.run(run).spans, instance, at).is_some()
        })
    }

    /// Distinct blocks that `instance` holds.
    pub fn len_blocks(&self, instance: InstanceId) -> u64 {
        self.instances.get(&instance).map_or(0, |held| held.blocks)
    }

    /// Blocks in the index, each counted once. A block that nobody holds any more can be among them
    /// for as long as somebody holds one of the 14 next to it and one after it.
    pub fn distinct_blocks(&self) -> u64 {
        self.runs.blocks() as u64
    }

    /// Blocks, counted once per instance, that were not taken in, or forgotten, for lack of budget.
    pub fn refused_blocks(&self) -> u64 {
        self.refused_blocks
    }

    /// Removals of blocks that the instance did not hold: blocks refused before, stored before this
    /// index began, or an event missed.
    pub fn unknown_removals(&self) -> u64 {
        self.unknown_removals
    }

    /// Bytes allocated, at most `budget_bytes`: what was asked of the allocator, not counting its own
    /// overhead. While a part of the table grows, a 256th of it is there twice.
    pub fn memory_bytes(&self) -> usize {
        self.runs.allocated_bytes() + self.instances.allocation_size() + self.instance_bytes
    }

    /// Whether there is room for so many more bytes.
    #[inline]
    fn fits(&self, bytes: usize) -> bool {
        bytes == 0 || self.memory_bytes() + bytes <= self.budget_bytes
    }

    fn prefetch(&self, blocks: &[BlockHash], part: Range<usize>) {
        for &hash in within(blocks, part) {
            self.runs.prefetch(hash);
        }
    }

    fn prefetch_next(&self, blocks: &[BlockHash], part: Range<usize>) {
        for &hash in within(blocks, part) {
            self.runs.prefetch_next(hash);
        }
    }

    /// Makes an instance known; returns whether it is.
    fn know(&mut self, instance: InstanceId) -> bool {
        if self.instances.contains_key(&instance) {
            return true;
        }
        let growth = map_growth_bytes(&self.instances);
        let fits = self.fits(growth);
        if fits {
            self.instances.insert(instance, Holdings::default());
        }
        fits
    }

    /// The place of the first of these blocks, and how many of them stand in a row there: known
    /// ones, or added ones. `None` if there is no room for the first.
    #[inline]
    fn take_in(&mut self, next: Option<Place>, blocks: &[BlockHash]) -> Option<(Place, u32)> {
        if let Some(next) = next {
            let len = if next.at < self.runs.run(next.run).len() {
                self.runs.common_len(next, blocks)
            } else {
                self.runs.fill(next.run, blocks)
            };
            if len > 0 {
                return Some((next, len));
            }
        }
        self.find_or_append(next, blocks[0]).map(|place| (place, 1))
    }

    /// The place of a block, which is added if it is unknown; `None` if there is no room for it.
    #[inline]
    fn find_or_append(&mut self, next: Option<Place>, hash: BlockHash) -> Option<Place> {
        if let Some(place) = self.runs.find(hash) {
            return Some(place);
        }
        let run = next.filter(|next| self.runs.run(next.run).len() == next.at).map(|next| next.run);
        if !self.runs.append_bytes(run, hash).is_some_and(|bytes| self.fits(bytes)) {
            return None;
        }
        if let (Some(parent), None) = (next, run) {
            self.runs.set_fork(parent.run, parent.at);
        }
        Some(self.runs.append(run, hash))
    }
}

/// Searches in a batch, for which memory is asked for together.
const AHEAD: usize = 16;

/// As much of a part as there is.
fn within(blocks: &[BlockHash], part: Range<usize>) -> &[BlockHash] {
    &blocks[part.start.min(blocks.len())..part.end.min(blocks.len())]
}

fn behind(place: Place) -> Place {
    Place { at: place.at + 1, ..place }
}
