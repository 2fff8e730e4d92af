//! Which blocks of requests under way, and of recent ones, have come in events.

use std::collections::VecDeque;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use kvroute_types::BlockHash;
use rustc_hash::FxBuildHasher;

/// How many of the latest requests' first blocks are remembered.
///
/// Events of a request come while it is under way or soon after; this is the running list of the largest GPUs (vLLM
/// 0.32.0: 1,024 sequences from 160 GiB on).
pub(crate) const RECENT_ROOTS: usize = 1024;

/// Blocks that somebody waits for, with the numbers of the latest events that stored and removed each.
///
/// Looked up only. Each block is counted as often as it is watched, so the table is as large as its watchers are many.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    blocks: HashMap<BlockHash, Watch, FxBuildHasher>,
}

#[derive(Debug)]
struct Watch {
    watchers: u32,
    /// Number of the latest event that stored the block since it is watched; 0 if none did.
    stored_at: u64,
    /// The same for removals.
    removed_at: u64,
}

impl Watches {
    pub(crate) fn add(&mut self, block: BlockHash) {
        self.blocks
            .entry(block)
            .or_insert(Watch { watchers: 0, stored_at: 0, removed_at: 0 })
            .watchers += 1;
    }

    pub(crate) fn remove(&mut self, block: BlockHash) {
        if let Entry::Occupied(mut watch) = self.blocks.entry(block) {
            watch.get_mut().watchers -= 1;
            if watch.get().watchers == 0 {
                watch.remove();
            }
        }
    }

    /// Event `number`, from 1, stored these blocks.
    pub(crate) fn stored(&mut self, number: u64, blocks: impl Iterator<Item = u64>) {
        self.set(blocks, |watch| watch.stored_at = number);
    }

    /// Event `number`, from 1, removed a copy of each of these blocks.
    pub(crate) fn removed(&mut self, number: u64, blocks: impl Iterator<Item = u64>) {
        self.set(blocks, |watch| watch.removed_at = number);
    }

    /// Whether an event after event `number` stored the block, which is watched since before.
    pub(crate) fn was_stored_after(&self, number: u64, block: BlockHash) -> bool {
        self.blocks.get(&block).is_some_and(|watch| watch.stored_at > number)
    }

    /// The same for a removal.
    pub(crate) fn was_removed_after(&self, number: u64, block: BlockHash) -> bool {
        self.blocks.get(&block).is_some_and(|watch| watch.removed_at > number)
    }

    fn set(&mut self, blocks: impl Iterator<Item = u64>, change: impl Fn(&mut Watch)) {
        if self.blocks.is_empty() {
            return;
        }
        for block in blocks {
            if let Some(watch) = self.blocks.get_mut(&BlockHash(block)) {
                change(watch);
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }
}

/// First blocks of the latest [`RECENT_ROOTS`] requests.
#[derive(Debug, Default)]
pub(crate) struct RecentRoots {
    order: VecDeque<BlockHash>,
    /// How often each is in `order`. Looked up only.
    counts: HashMap<BlockHash, u32, FxBuildHasher>,
}

impl RecentRoots {
    pub(crate) fn add(&mut self, root: BlockHash) {
        if self.order.len() == RECENT_ROOTS
            && let Some(oldest) = self.order.pop_front()
            && let Entry::Occupied(mut count) = self.counts.entry(oldest)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        self.order.push_back(root);
        *self.counts.entry(root).or_insert(0) += 1;
    }

    pub(crate) fn contains(&self, root: BlockHash) -> bool {
        self.counts.contains_key(&root)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }
}
