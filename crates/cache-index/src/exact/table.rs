//! Where each block hash is: a hash table of `u32` slots, made for few cache misses.
//!
//! * A bucket is one cache line with room for [`WIDTH`] slots and 8 bits of hash for each, so that
//!   most look-ups touch one line here and one where the slot is.
//! * A full bucket sends what does not fit to the next and counts what passed it. So a search knows
//!   when to stop, and removing leaves no tombstone.
//! * The table is cut into [`SHARDS`] by hash, which grow one at a time: growing never takes long and
//!   never needs much more memory than the table has.
//!
//! The table does not hold the hashes: it asks its owner, who has them by slot.

use kvroute_types::BlockHash;

const WIDTH: usize = 12;
const SHARD_BITS: u32 = 6;
const SHARDS: usize = 1 << SHARD_BITS;
/// Place in `marks` of the number of slots that passed the bucket, which stays at 255 once there.
const PASSED: usize = WIDTH;
/// Growth of a full shard, and the smallest number of buckets.
const BUCKETS_MIN: usize = 4;

#[derive(Clone, Debug, Default)]
#[repr(align(64))]
struct Bucket {
    /// For each slot 8 bits of its hash, 0 if vacant; then the count of what passed; then zeros.
    marks: [u8; 16],
    slots: [u32; WIDTH],
}

impl Bucket {
    /// The positions with this mark, as bits.
    #[inline]
    fn positions(&self, mark: u8) -> u32 {
        let mut bits = 0;
        for (at, &other) in self.marks.iter().enumerate() {
            bits |= u32::from(other == mark) << at;
        }
        bits & ((1 << WIDTH) - 1)
    }
}

#[derive(Debug, Default)]
struct Shard {
    buckets: Vec<Bucket>,
    len: usize,
}

impl Shard {
    /// Whether one more slot needs more buckets: at 80 % one slot in twenty is not in its bucket.
    fn is_full(&self) -> bool {
        (self.len + 1) * 5 > self.buckets.len() * WIDTH * 4
    }

    fn grown_buckets(&self) -> usize {
        (self.buckets.len() * 3 / 2).max(BUCKETS_MIN)
    }
}

#[derive(Debug)]
pub(super) struct Table {
    shards: Vec<Shard>,
    buckets: usize,
    len: usize,
}

/// Where to look for a hash.
struct Home {
    shard: usize,
    /// 32 bits that say which bucket, as a fraction of all.
    fraction: u64,
    mark: u8,
}

impl Home {
    #[inline]
    fn of(hash: BlockHash) -> Self {
        // Hashes of engines are random bits; the product spreads those that are not.
        let mixed = hash.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mark = (mixed >> 8) as u8;
        Self {
            shard: (mixed >> (64 - SHARD_BITS)) as usize,
            fraction: (mixed << SHARD_BITS) >> 32,
            mark: mark.max(1),
        }
    }

    #[inline]
    fn bucket(&self, buckets: usize) -> usize {
        ((self.fraction * buckets as u64) >> 32) as usize
    }
}

impl Table {
    pub(super) fn new() -> Self {
        let shards = std::iter::repeat_with(Shard::default).take(SHARDS).collect();
        Self { shards, buckets: 0, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes allocated.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.buckets * size_of::<Bucket>() + self.shards.capacity() * size_of::<Shard>()
    }

    /// Bytes by which [`insert`](Self::insert) of this hash will grow the table.
    #[inline]
    pub(super) fn growth_bytes(&self, hash: BlockHash) -> usize {
        let shard = &self.shards[Home::of(hash).shard];
        if shard.is_full() {
            (shard.grown_buckets() - shard.buckets.len()) * size_of::<Bucket>()
        } else {
            0
        }
    }

    /// Reads a word of the bucket, so that a search soon after finds it in the processor's cache.
    #[inline]
    pub(super) fn touch(&self, hash: BlockHash) -> u8 {
        let home = Home::of(hash);
        let buckets = &self.shards[home.shard].buckets;
        buckets.get(home.bucket(buckets.len())).map_or(0, |bucket| bucket.marks[PASSED])
    }

    /// The slot of this hash for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: BlockHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let home = Home::of(hash);
        let buckets = &self.shards[home.shard].buckets[..];
        let mut at = home.bucket(buckets.len());
        for _ in 0..buckets.len() {
            let bucket = &buckets[at];
            let mut positions = bucket.positions(home.mark);
            while positions != 0 {
                let slot = bucket.slots[positions.trailing_zeros() as usize];
                if is_it(slot) {
                    return Some(slot);
                }
                positions &= positions - 1;
            }
            if bucket.marks[PASSED] == 0 {
                return None;
            }
            at = next(at, buckets.len());
        }
        None
    }

    /// Adds a slot whose hash is not in the table. `hash_of` tells the hash of any slot in it.
    pub(super) fn insert(
        &mut self,
        hash: BlockHash,
        slot: u32,
        hash_of: impl Fn(u32) -> BlockHash,
    ) {
        let home = Home::of(hash);
        let shard = &mut self.shards[home.shard];
        if shard.is_full() {
            self.buckets += grow(shard, hash_of);
        }
        shard.len += 1;
        self.len += 1;
        place(&mut shard.buckets, &home, slot);
    }

    /// Takes out a slot that is in the table under this hash.
    pub(super) fn remove(&mut self, hash: BlockHash, slot: u32) {
        let home = Home::of(hash);
        let shard = &mut self.shards[home.shard];
        shard.len -= 1;
        self.len -= 1;
        let buckets = &mut shard.buckets[..];
        let mut at = home.bucket(buckets.len());
        loop {
            let bucket = &mut buckets[at];
            let mut positions = bucket.positions(home.mark);
            while positions != 0 {
                let position = positions.trailing_zeros() as usize;
                if bucket.slots[position] == slot {
                    bucket.marks[position] = 0;
                    return;
                }
                positions &= positions - 1;
            }
            let passed = &mut bucket.marks[PASSED];
            assert_ne!(*passed, 0, "the slot is in the table");
            if *passed < u8::MAX {
                *passed -= 1;
            }
            at = next(at, buckets.len());
        }
    }
}

#[inline]
fn next(at: usize, buckets: usize) -> usize {
    if at + 1 == buckets { 0 } else { at + 1 }
}

/// Puts a slot into the first bucket with room; there is one, as the shard is not full.
#[inline]
fn place(buckets: &mut [Bucket], home: &Home, slot: u32) {
    let mut at = home.bucket(buckets.len());
    loop {
        let bucket = &mut buckets[at];
        let vacant = bucket.positions(0);
        if vacant != 0 {
            let position = vacant.trailing_zeros() as usize;
            bucket.marks[position] = home.mark;
            bucket.slots[position] = slot;
            return;
        }
        bucket.marks[PASSED] = bucket.marks[PASSED].saturating_add(1);
        at = next(at, buckets.len());
    }
}

/// Moves a shard to a larger place; returns by how many buckets it grew.
#[cold]
fn grow(shard: &mut Shard, hash_of: impl Fn(u32) -> BlockHash) -> usize {
    let len = shard.grown_buckets();
    let mut buckets = vec![Bucket::default(); len];
    for bucket in &shard.buckets {
        for (&mark, &slot) in bucket.marks.iter().zip(&bucket.slots) {
            if mark != 0 {
                place(&mut buckets, &Home::of(hash_of(slot)), slot);
            }
        }
    }
    let grown = len - shard.buckets.len();
    shard.buckets = buckets;
    grown
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bucket_is_one_cache_line() {
        assert_eq!(size_of::<Bucket>(), 64);
    }

    proptest! {
        /// Hashes that crowd into few buckets, so that slots pass full ones and are taken out again.
        #[test]
        fn it_is_a_map(calls in proptest::collection::vec((any::<bool>(), 0..400_u64), 0..3_000)) {
            let hash_of = |slot: u32| {
                let crowd = u64::from(slot) / 40;
                BlockHash((crowd << 40 | u64::from(slot)).wrapping_mul(0xf1de_83e1_9937_733d))
            };
            let mut table = Table::new();
            let mut model = BTreeMap::new();
            for (insert, id) in calls {
                let slot = u32::try_from(id).unwrap();
                let hash = hash_of(slot);
                let found = table.find(hash, |other| hash_of(other) == hash);
                prop_assert_eq!(found, model.get(&hash).copied());
                if insert && found.is_none() {
                    let growth = table.growth_bytes(hash);
                    let before = table.allocated_bytes();
                    table.insert(hash, slot, hash_of);
                    prop_assert_eq!(table.allocated_bytes(), before + growth);
                    model.insert(hash, slot);
                } else if !insert && found.is_some() {
                    table.remove(hash, slot);
                    model.remove(&hash);
                }
                prop_assert_eq!(table.len(), model.len());
            }
            for (&hash, &slot) in &model {
                prop_assert_eq!(table.find(hash, |other| hash_of(other) == hash), Some(slot));
            }
        }
    }
}
