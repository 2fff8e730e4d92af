//! The KV blocks of one engine: reference counts, the free queue and its exact order, the prefix cache (R6-R13).

use kvroute_types::BlockKey;

use crate::cached_blocks::CachedBlocks;
use crate::events::CacheEvent;

/// Marks a block that holds no registered content.
const NO_KEY: u32 = u32::MAX;
/// Id of the null block: never handed out, and the sentinel of the free queue's ring.
const NULL_BLOCK: u32 = 0;

#[derive(Clone, Copy, Debug)]
struct Block {
    /// Neighbours in the free queue; meaningless while `refs > 0`.
    prev: u32,
    next: u32,
    /// Registered content, or [`NO_KEY`].
    key: u32,
    /// Requests that use the block; 0 means it lies in the free queue.
    refs: u32,
}

/// Block pool and prefix cache.
///
/// Invariant: a block is in the free queue exactly when its reference count is 0; `free` counts those.
#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    free: u32,
    cached: CachedBlocks,
    events: Option<Vec<CacheEvent>>,
    /// What to undo, oldest first, to be back at the mark; `None` without one.
    journal: Option<Vec<Undo>>,
    /// `free` and `events` at the mark.
    at_mark: (u32, Option<Vec<CacheEvent>>),
    /// Kept for its memory.
    spare_journal: Vec<Undo>,
}

/// Takes back one change since the mark.
#[derive(Clone, Copy, Debug)]
enum Undo {
    /// The block was like this.
    Block { id: u32, block: Block },
    /// The block was registered under the key.
    Registered { key: BlockKey, id: u32 },
    /// The block was taken from among the holders of the key, where it stood at `place`.
    Unregistered { key: BlockKey, id: u32, place: usize },
}

impl BlockPool {
    /// A pool of `kv_blocks` blocks, all free, in the order 1, 2, … (R6).
    pub(crate) fn new(kv_blocks: u32, with_events: bool) -> Self {
        let ring = |id: u32| Block {
            prev: if id == 0 { kv_blocks - 1 } else { id - 1 },
            next: if id + 1 == kv_blocks { 0 } else { id + 1 },
            key: NO_KEY,
            refs: 0,
        };
        Self {
            blocks: (0..kv_blocks).map(ring).collect(),
            free: kv_blocks - 1,
            cached: CachedBlocks::new(),
            events: with_events.then(Vec::new),
            journal: None,
            at_mark: (0, None),
            spare_journal: Vec::new(),
        }
    }

    /// Begins to keep what [`BlockPool::rewind`] needs; no events are reported until then.
    pub(crate) fn mark(&mut self) {
        debug_assert!(self.journal.is_none(), "one mark at a time");
        self.journal = Some(std::mem::take(&mut self.spare_journal));
        self.at_mark = (self.free, self.events.take());
    }

    /// Back to the mark, with work proportional to the changes since; false, and nothing done, if there is none.
    pub(crate) fn rewind(&mut self) -> bool {
        let Some(mut journal) = self.journal.take() else { return false };
        for undo in journal.drain(..).rev() {
            match undo {
                Undo::Block { id, block } => self.blocks[id as usize] = block,
                Undo::Registered { key, id } => {
                    self.cached.remove(key, id);
                }
                Undo::Unregistered { key, id, place } => self.cached.insert_at(key, id, place),
            }
        }
        self.spare_journal = journal;
        (self.free, self.events) = std::mem::take(&mut self.at_mark);
        true
    }

    /// Blocks that can be handed out now.
    pub(crate) const fn free_blocks(&self) -> u32 {
        self.free
    }

    /// Fraction of usable blocks that some request holds (R11).
    pub(crate) fn usage(&self) -> f64 {
        let usable = self.blocks.len() - 1;
        1.0 - f64::from(self.free) / usable as f64
    }

    /// Appends the cached blocks of the leading keys of a run to `found`; see [`CachedBlocks::leading`].
    pub(crate) fn leading_cached(&self, start: BlockKey, len: u32, found: &mut Vec<u32>) -> u32 {
        self.cached.leading(start, len, found)
    }

    /// How many of `blocks` lie in the free queue: a hit on them costs a free block (R29).
    pub(crate) fn count_unreferenced(&self, blocks: &[u32]) -> u32 {
        let unreferenced = blocks.iter().filter(|&&id| self.blocks[id as usize].refs == 0).count();
        u32::try_from(unreferenced).expect("block ids are 32 bits")
    }

    /// A cache hit: takes the blocks out of the free queue if they lie there, and counts one more user (R8).
    pub(crate) fn touch(&mut self, hits: &[u32]) {
        if let Some(journal) = &mut self.journal {
            // Unlinking changes the neighbours, and where these are hits too, theirs.
            let beside =
                |&id: &u32| [id, self.blocks[id as usize].prev, self.blocks[id as usize].next];
            note(journal, &self.blocks, hits.iter().flat_map(beside));
        }
        for &id in hits {
            if self.blocks[id as usize].refs == 0 {
                self.unlink(id);
            }
            self.blocks[id as usize].refs += 1;
        }
    }

    /// Hands out `count` blocks from the head of the free queue, forgetting what they held (R7).
    pub(crate) fn allocate(&mut self, count: u32, table: &mut Vec<u32>) {
        assert!(count <= self.free, "allocating {count} blocks with {} free", self.free);
        if let Some(journal) = &mut self.journal {
            // The sentinel, those handed out and the one behind them.
            let next = |&id: &u32| Some(self.blocks[id as usize].next);
            let queue = std::iter::successors(Some(NULL_BLOCK), next);
            note(journal, &self.blocks, queue.take(count as usize + 2));
        }
        let mut id = self.blocks[NULL_BLOCK as usize].next;
        for _ in 0..count {
            let block = &mut self.blocks[id as usize];
            block.refs = 1;
            table.push(id);
            let next = block.next;
            if block.key != NO_KEY {
                let key = BlockKey(std::mem::replace(&mut block.key, NO_KEY));
                self.unregister(key, id);
                if let Some(events) = &mut self.events {
                    events.push(CacheEvent::Removed { key });
                }
            }
            id = next;
        }
        self.blocks[NULL_BLOCK as usize].next = id;
        self.blocks[id as usize].prev = NULL_BLOCK;
        self.free -= count;
    }

    /// Registers `block` under `key`, as its first content (R14, R21).
    pub(crate) fn register(&mut self, block: u32, key: BlockKey) {
        debug_assert_eq!(self.blocks[block as usize].key, NO_KEY, "a block is registered once");
        if let Some(journal) = &mut self.journal {
            note(journal, &self.blocks, [block]);
            journal.push(Undo::Registered { key, id: block });
        }
        self.blocks[block as usize].key = key.0;
        self.cached.insert(key, block);
    }

    /// Reports one registration call: all blocks it covered (R68).
    pub(crate) fn report_stored(
        &mut self,
        keys: impl Iterator<Item = BlockKey>,
        parent: Option<BlockKey>,
    ) {
        if let Some(events) = &mut self.events {
            events.push(CacheEvent::Stored { keys: keys.collect(), parent });
        }
    }

    /// Whether cache events are wanted.
    pub(crate) const fn reports_events(&self) -> bool {
        self.events.is_some()
    }

    /// Gives back a request's blocks, in table order; they are freed last block first (R9).
    pub(crate) fn free(&mut self, table: &[u32]) {
        // Unregistered blocks go to the head, the first freed ending up as the new head; registered ones to the tail.
        let mut after = NULL_BLOCK;
        let mut tail = self.blocks[NULL_BLOCK as usize].prev;
        if let Some(journal) = &mut self.journal {
            let head = self.blocks[NULL_BLOCK as usize].next;
            note(journal, &self.blocks, table.iter().copied().chain([NULL_BLOCK, head, tail]));
        }
        for &id in table.iter().rev() {
            let block = &mut self.blocks[id as usize];
            block.refs -= 1;
            if block.refs > 0 {
                continue;
            }
            self.free += 1;
            if block.key == NO_KEY {
                self.link_after(after, id);
                if tail == after {
                    tail = id;
                }
                after = id;
            } else {
                block.prev = tail;
                block.next = NULL_BLOCK;
                self.blocks[tail as usize].next = id;
                tail = id;
            }
        }
        self.blocks[NULL_BLOCK as usize].prev = tail;
    }

    /// Empties the prefix cache if no block is in use; the queue keeps its order (R13).
    pub(crate) fn reset(&mut self) -> bool {
        if self.free as usize != self.blocks.len() - 1 {
            return false;
        }
        for id in 0..self.blocks.len() {
            let id = u32::try_from(id).expect("block ids are 32 bits");
            if self.blocks[id as usize].key != NO_KEY {
                if let Some(journal) = &mut self.journal {
                    note(journal, &self.blocks, [id]);
                }
                let key = std::mem::replace(&mut self.blocks[id as usize].key, NO_KEY);
                self.unregister(BlockKey(key), id);
            }
        }
        if let Some(events) = &mut self.events {
            events.push(CacheEvent::Cleared);
        }
        true
    }

    /// Takes the events since the last call; empty when events are off.
    pub(crate) fn take_events(&mut self) -> Vec<CacheEvent> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes the block from among the holders of the key.
    fn unregister(&mut self, key: BlockKey, id: u32) {
        let place = self.cached.remove(key, id);
        if let Some(journal) = &mut self.journal {
            journal.push(Undo::Unregistered { key, id, place });
        }
    }

    fn unlink(&mut self, id: u32) {
        let Block { prev, next, .. } = self.blocks[id as usize];
        self.blocks[prev as usize].next = next;
        self.blocks[next as usize].prev = prev;
        self.free -= 1;
    }

    fn link_after(&mut self, prev: u32, id: u32) {
        let next = self.blocks[prev as usize].next;
        self.blocks[id as usize].prev = prev;
        self.blocks[id as usize].next = next;
        self.blocks[prev as usize].next = id;
        self.blocks[next as usize].prev = id;
    }

    /// The free queue from head to tail.
    #[cfg(test)]
    pub(crate) fn free_queue(&self) -> Vec<u32> {
        let next = |&id: &u32| Some(self.blocks[id as usize].next).filter(|&id| id != NULL_BLOCK);
        std::iter::successors(next(&NULL_BLOCK), next).collect()
    }
}

/// Journals blocks that are about to change.
fn note(journal: &mut Vec<Undo>, blocks: &[Block], ids: impl IntoIterator<Item = u32>) {
    let undo = |id: u32| Undo::Block { id, block: blocks[id as usize] };
    journal.extend(ids.into_iter().map(undo));
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "results are exact")]

    use super::*;

    /// Allocates, registers the first `full` blocks under keys from `first_key`, and returns the table.
    fn take(pool: &mut BlockPool, blocks: u32, full: u32, first_key: u32) -> Vec<u32> {
        let mut table = Vec::new();
        pool.allocate(blocks, &mut table);
        for i in 0..full {
            pool.register(table[i as usize], BlockKey(first_key + i));
        }
        table
    }

    #[test]
    fn r2_the_null_block_is_never_handed_out() {
        let mut pool = BlockPool::new(100, false);
        assert_eq!(pool.free_blocks(), 99);
        let table = take(&mut pool, 99, 0, 0);
        assert_eq!(table, (1..100).collect::<Vec<_>>());
    }

    #[test]
    fn r9_r10_shared_blocks_stay_until_the_last_user_leaves() {
        let mut pool = BlockPool::new(9, false);
        let a = take(&mut pool, 3, 2, 10);
        let mut b = a[..2].to_vec();
        pool.touch(&b);
        pool.allocate(1, &mut b);
        assert_eq!(b, [1, 2, 4]);
        pool.free(&a);
        pool.free(&b);
        // Both partial tails went to the head (the later freed in front), the shared blocks to the tail.
        assert_eq!(pool.free_queue(), [4, 3, 5, 6, 7, 8, 2, 1]);
    }

    #[test]
    fn r11_usage_counts_blocks_in_use_only() {
        let mut pool = BlockPool::new(100, false);
        let a = take(&mut pool, 3, 2, 10);
        let mut b = a[..2].to_vec();
        pool.touch(&b);
        pool.allocate(1, &mut b);
        assert!((pool.usage() - 4.0 / 99.0).abs() < 1e-12);
        pool.free(&a);
        pool.free(&b);
        assert_eq!(pool.usage(), 0.0);
    }

    #[test]
    fn r13_reset_needs_every_block_free() {
        let mut pool = BlockPool::new(9, true);
        let a = take(&mut pool, 2, 2, 10);
        assert!(!pool.reset());
        pool.free(&a);
        assert!(pool.reset());
        assert_eq!(pool.take_events(), [CacheEvent::Cleared]);
        assert_eq!(pool.leading_cached(BlockKey(10), 2, &mut Vec::new()), 0);
        assert_eq!(pool.free_queue(), [3, 4, 5, 6, 7, 8, 2, 1]);
    }
}
