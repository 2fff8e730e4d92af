//! Where each block hash is: a hash table of `u32` slots, made for few cache misses.
//!
//! * A bucket is one cache line with room for [`WIDTH`] slots and 32 bits of hash for each, so that
//!   a search for an unknown block touches one line, most often, and one for a known block one more,
//!   where the slot is.
//! * A full bucket sends what does not fit to the next and counts what passed it. So a search knows
//!   when to stop, and removing leaves no tombstone.
//! * The 32 bits also say which bucket a slot belongs to in a table of any size, in order: growing
//!   reads and writes memory in sequence, and needs nothing but the table.
//! * The table is cut into [`SHARDS`] by hash, which grow one at a time: growing never takes long and
//!   never needs much more memory than the table has.
//!
//! The table does not hold whole hashes: it asks its owner, who has them by slot.

use kvroute_types::BlockHash;
use prefetch_index::prefetch_index;

const WIDTH: usize = 7;
const SHARD_BITS: u32 = 6;
const SHARDS: usize = 1 << SHARD_BITS;
/// Smallest number of buckets.
const BUCKETS_MIN: usize = 4;

#[derive(Clone, Debug, Default)]
#[repr(align(64))]
struct Bucket {
    /// For each slot 32 bits of its hash.
    fractions: [u32; WIDTH],
    /// The occupied places, as bits.
    occupied: u8,
    /// How many slots passed the bucket; stays at 255 once there.
    passed: u8,
    slots: [u32; WIDTH],
}

impl Bucket {
    /// The occupied places with these 32 bits of hash, as bits.
    #[inline]
    fn places(&self, fraction: u32) -> u32 {
        let mut bits = 0;
        for (place, &other) in self.fractions.iter().enumerate() {
            bits |= u32::from(other == fraction) << place;
        }
        bits & u32::from(self.occupied)
    }

    /// The first vacant place; [`WIDTH`] if there is none.
    #[inline]
    fn vacant(&self) -> usize {
        (!self.occupied).trailing_zeros() as usize
    }
}

#[derive(Debug, Default)]
struct Shard {
    buckets: Vec<Bucket>,
    len: usize,
}

impl Shard {
    /// Whether one more slot needs more buckets: at 80 % most slots are still in their bucket.
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
#[derive(Clone, Copy)]
struct Home {
    shard: usize,
    /// Which bucket of the shard, as a fraction of all in units of 2^-32.
    fraction: u32,
}

impl Home {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "takes 32 of 64 bits")]
    fn of(hash: BlockHash) -> Self {
        // Hashes of engines are random bits; the product spreads those that are not.
        let mixed = hash.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            shard: (mixed >> (64 - SHARD_BITS)) as usize,
            fraction: (mixed >> (32 - SHARD_BITS)) as u32,
        }
    }
}

/// The bucket that a hash belongs to.
#[inline]
fn bucket(fraction: u32, buckets: usize) -> usize {
    ((u64::from(fraction) * buckets as u64) >> 32) as usize
}

#[inline]
fn next(at: usize, buckets: usize) -> usize {
    if at + 1 == buckets { 0 } else { at + 1 }
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

    /// Asks for the bucket, so that a search soon after finds it in the processor's cache.
    #[inline]
    pub(super) fn prefetch(&self, hash: BlockHash) {
        let home = Home::of(hash);
        let buckets = &self.shards[home.shard].buckets[..];
        prefetch_index(buckets, bucket(home.fraction, buckets.len()));
    }

    /// The slot of this hash for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: BlockHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let home = Home::of(hash);
        let buckets = &self.shards[home.shard].buckets[..];
        let mut at = bucket(home.fraction, buckets.len());
        for _ in 0..buckets.len() {
            let bucket = &buckets[at];
            let mut places = bucket.places(home.fraction);
            while places != 0 {
                let slot = bucket.slots[places.trailing_zeros() as usize];
                if is_it(slot) {
                    return Some(slot);
                }
                places &= places - 1;
            }
            if bucket.passed == 0 {
                return None;
            }
            at = next(at, buckets.len());
        }
        None
    }

    /// Adds a slot whose hash is not in the table.
    #[inline]
    pub(super) fn insert(&mut self, hash: BlockHash, slot: u32) {
        let home = Home::of(hash);
        let shard = &mut self.shards[home.shard];
        if shard.is_full() {
            self.buckets += grow(shard);
        }
        shard.len += 1;
        self.len += 1;
        place(&mut shard.buckets, home.fraction, slot);
    }

    /// Takes out a slot that is in the table under this hash.
    pub(super) fn remove(&mut self, hash: BlockHash, slot: u32) {
        let home = Home::of(hash);
        let shard = &mut self.shards[home.shard];
        shard.len -= 1;
        self.len -= 1;
        let buckets = &mut shard.buckets[..];
        let mut at = bucket(home.fraction, buckets.len());
        loop {
            let bucket = &mut buckets[at];
            let mut places = bucket.places(home.fraction);
            while places != 0 {
                let place = places.trailing_zeros();
                if bucket.slots[place as usize] == slot {
                    bucket.occupied &= !(1 << place);
                    return;
                }
                places &= places - 1;
            }
            assert_ne!(bucket.passed, 0, "the slot is in the table");
            if bucket.passed < u8::MAX {
                bucket.passed -= 1;
            }
            at = next(at, buckets.len());
        }
    }
}

/// Puts a slot into the first bucket with room; there is one, as the shard is not full.
#[inline]
fn place(buckets: &mut [Bucket], fraction: u32, slot: u32) {
    let mut at = bucket(fraction, buckets.len());
    loop {
        let bucket = &mut buckets[at];
        let vacant = bucket.vacant();
        if vacant < WIDTH {
            bucket.fractions[vacant] = fraction;
            bucket.slots[vacant] = slot;
            bucket.occupied |= 1 << vacant;
            return;
        }
        bucket.passed = bucket.passed.saturating_add(1);
        at = next(at, buckets.len());
    }
}

/// Moves a shard to a larger place; returns by how many buckets it grew.
#[cold]
fn grow(shard: &mut Shard) -> usize {
    let len = shard.grown_buckets();
    let mut buckets = vec![Bucket::default(); len];
    for old in &shard.buckets {
        let mut occupied = old.occupied;
        while occupied != 0 {
            let at = occupied.trailing_zeros() as usize;
            place(&mut buckets, old.fractions[at], old.slots[at]);
            occupied &= occupied - 1;
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

    /// The inverse of what hashes are multiplied by.
    const INVERSE: u64 = 0xf1de_83e1_9937_733d;

    proptest! {
        /// Hashes that crowd into few buckets, so that slots pass full ones and are taken out again.
        #[test]
        fn it_is_a_map(calls in proptest::collection::vec((any::<bool>(), 0..400_u64), 0..3_000)) {
            let hash_of = |slot: u32| {
                let crowd = u64::from(slot) / 40;
                // Ten crowds; in each, the first 20 hashes differ only in bits the table leaves out.
                let within = u64::from(slot) % 40;
                let bits = if within < 20 { within } else { within << 26 };
                BlockHash((crowd << 58 | bits).wrapping_mul(INVERSE))
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
                    table.insert(hash, slot);
                    prop_assert_eq!(table.allocated_bytes(), before + growth);
                    model.insert(hash, slot);
                } else if !insert && found.is_some() {
                    table.remove(hash, slot);
                    model.remove(&hash);
                }
                prop_assert_eq!(table.len(), model.len());
            }
            let passed = |table: &Table| -> u64 {
                let buckets = table.shards.iter().flat_map(|shard| &shard.buckets);
                buckets.map(|bucket| u64::from(bucket.passed)).sum()
            };
            for (&hash, &slot) in &model {
                prop_assert_eq!(table.find(hash, |other| hash_of(other) == hash), Some(slot));
            }
            // Once there is nothing in it, searches are as short as in a new one.
            for (&hash, &slot) in &model {
                table.remove(hash, slot);
            }
            prop_assert_eq!(passed(&table), 0);
        }
    }
}
