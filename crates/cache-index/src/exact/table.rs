//! Where each block hash is: a hash table of `u32` slots, made for few cache misses.
//!
//! * A bucket is one cache line with room for [`WIDTH`] slots and [`FRACTION_BITS`] of hash for each,
//!   so that a search for an unknown block touches one line, most often, and one for a known block
//!   one more, where the slot is.
//! * A full bucket sends what does not fit to the next and counts what passed it. So a search knows
//!   when to stop, and removing leaves no tombstone.
//! * These bits also say which bucket a slot belongs to in a table of any size, in order: growing
//!   reads and writes memory in sequence, and needs nothing but the table.
//! * The table is cut into [`SHARDS`] by hash, which grow one at a time: growing never takes long and
//!   never needs much more memory than the table has.
//!
//! The table does not hold whole hashes: it asks its owner, who has them by slot.

use kvroute_types::BlockHash;
use prefetch_index::prefetch_index;

/// Slots in a bucket.
const WIDTH: usize = 8;
/// All places of a bucket, as bits.
const ALL: u8 = u8::MAX;
const SHARD_BITS: u32 = 8;
const SHARDS: usize = 1 << SHARD_BITS;
/// Bits of hash that a bucket has for each slot: enough that in a table of 10 million slots one search
/// in 400 is led to a wrong slot.
const FRACTION_BITS: u32 = 24;
/// Smallest number of buckets.
const BUCKETS_MIN: usize = 1;

#[derive(Clone, Debug, Default)]
#[repr(align(64))]
struct Bucket {
    /// For each slot the lower 16 bits of its fraction: those that differ within a bucket.
    tags: [u16; WIDTH],
    /// The upper 8.
    tops: [u8; WIDTH],
    slots: [u32; WIDTH],
    /// The occupied places, as bits.
    occupied: u8,
    /// How many slots passed the bucket; stays at 255 once there.
    passed: u8,
}

impl Bucket {
    /// The occupied places that may have this fraction, as bits.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "takes the lower bits")]
    fn places(&self, fraction: u32) -> u32 {
        // Most searches for an unknown hash end here, 36 instructions earlier.
        let mut is_here = false;
        for &tag in &self.tags {
            is_here |= tag == fraction as u16;
        }
        if !is_here {
            return 0;
        }
        let mut bits = 0;
        for (place, &tag) in self.tags.iter().enumerate() {
            bits |= u32::from(tag == fraction as u16) << place;
        }
        bits & u32::from(self.occupied)
    }

    /// The fraction of the slot in a place.
    #[inline]
    fn fraction(&self, place: usize) -> u32 {
        u32::from(self.tops[place]) << 16 | u32::from(self.tags[place])
    }

    /// Puts a slot in a place.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "takes the bits apart")]
    fn set(&mut self, place: usize, fraction: u32, slot: u32) {
        self.tags[place] = fraction as u16;
        self.tops[place] = (fraction >> 16) as u8;
        self.slots[place] = slot;
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
    /// How many slots it takes in before it grows.
    vacancies: usize,
}

impl Shard {
    fn grown_buckets(&self) -> usize {
        (self.buckets.len() * 3).div_ceil(2).max(BUCKETS_MIN)
    }
}

/// Most slots in so many buckets: at 75 % most are still in their bucket.
fn slots_max(buckets: usize) -> usize {
    buckets * WIDTH * 3 / 4
}

#[derive(Debug)]
pub(super) struct Table {
    shards: Box<[Shard; SHARDS]>,
    buckets: usize,
    len: usize,
}

/// Where to look for a hash.
#[derive(Clone, Copy)]
struct Home {
    shard: usize,
    /// Which bucket of the shard, as a fraction of all in units of 2^-24.
    fraction: u32,
}

impl Home {
    #[inline]
    fn of(hash: BlockHash) -> Self {
        // Hashes of engines are random bits; the product spreads those that are not.
        let mixed = hash.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            shard: (mixed >> (64 - SHARD_BITS)) as usize,
            fraction: (mixed << SHARD_BITS >> (64 - FRACTION_BITS)) as u32,
        }
    }
}

/// The bucket that a hash belongs to.
#[inline]
fn bucket(fraction: u32, buckets: usize) -> usize {
    ((u64::from(fraction) * buckets as u64) >> FRACTION_BITS) as usize
}

#[inline]
fn next(at: usize, buckets: usize) -> usize {
    if at + 1 == buckets { 0 } else { at + 1 }
}

impl Table {
    pub(super) fn new() -> Self {
        let shards = Box::new(std::array::from_fn(|_| Shard::default()));
        Self { shards, buckets: 0, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes allocated.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.buckets * size_of::<Bucket>() + size_of::<[Shard; SHARDS]>()
    }

    /// Bytes by which [`insert`](Self::insert) of this hash will grow the table.
    #[inline]
    pub(super) fn growth_bytes(&self, hash: BlockHash) -> usize {
        let shard = &self.shards[Home::of(hash).shard];
        if shard.vacancies == 0 {
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

    /// Asks for the two buckets behind the one asked for before, if that is full.
    #[inline]
    pub(super) fn prefetch_next(&self, hash: BlockHash) {
        let home = Home::of(hash);
        let buckets = &self.shards[home.shard].buckets[..];
        let at = bucket(home.fraction, buckets.len());
        let is_full = buckets.get(at).is_some_and(|bucket| bucket.occupied == ALL);
        // No branch, which would be guessed wrong often: a bucket that is not full is at hand already.
        prefetch_index(buckets, at + usize::from(is_full));
        prefetch_index(buckets, at + 2 * usize::from(is_full));
    }

    /// The slot of this hash for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: BlockHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let home = Home::of(hash);
        find(&self.shards[home.shard].buckets, home.fraction, is_it)
    }

    /// Adds a slot whose hash is not in the table.
    #[inline]
    pub(super) fn insert(&mut self, hash: BlockHash, slot: u32) {
        let home = Home::of(hash);
        let shard = &mut self.shards[home.shard];
        if shard.vacancies == 0 {
            self.buckets += grow(shard);
        }
        shard.vacancies -= 1;
        self.len += 1;
        place(&mut shard.buckets, home.fraction, slot);
    }

    /// Adds the slots from `first` on for these hashes, up to the first hash that has a slot for
    /// which `is_it` holds, or that makes the table grow; returns how many it added.
    #[inline]
    pub(super) fn insert_unknown(
        &mut self,
        hashes: &[BlockHash],
        first: u32,
        is_it: impl Fn(u32, BlockHash) -> bool,
    ) -> u32 {
        let mut slot = first;
        for &hash in hashes {
            let home = Home::of(hash);
            let shard = &mut self.shards[home.shard];
            if shard.vacancies == 0
                || find(&shard.buckets, home.fraction, |slot| is_it(slot, hash)).is_some()
            {
                break;
            }
            shard.vacancies -= 1;
            place(&mut shard.buckets, home.fraction, slot);
            slot += 1;
        }
        self.len += (slot - first) as usize;
        slot - first
    }

    /// Takes out a slot that is in the table under this hash.
    pub(super) fn remove(&mut self, hash: BlockHash, slot: u32) {
        let home = Home::of(hash);
        let shard = &mut self.shards[home.shard];
        shard.vacancies += 1;
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

/// The slot with this fraction for which `is_it` holds.
#[inline]
fn find(buckets: &[Bucket], fraction: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
    let mut at = bucket(fraction, buckets.len());
    for _ in 0..buckets.len() {
        let bucket = &buckets[at];
        let mut places = bucket.places(fraction);
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

/// Puts a slot into the first bucket with room; there is one, as the shard is not full.
#[inline]
fn place(buckets: &mut [Bucket], fraction: u32, slot: u32) {
    let mut at = bucket(fraction, buckets.len());
    loop {
        let bucket = &mut buckets[at];
        let vacant = bucket.vacant();
        if vacant < WIDTH {
            bucket.set(vacant, fraction, slot);
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
        for at in 0..WIDTH {
            if old.occupied >> at & 1 == 1 {
                place(&mut buckets, old.fraction(at), old.slots[at]);
            }
        }
    }
    let grown = len - shard.buckets.len();
    shard.vacancies += slots_max(len) - slots_max(shard.buckets.len());
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

    /// Hashes in ten crowds; in each, the first 20 differ only in bits that the table leaves out.
    fn crowded(id: u64) -> BlockHash {
        let (crowd, within) = (id / 40, id % 40);
        let bits = if within < 20 { within } else { within << 32 };
        BlockHash((crowd << 58 | bits).wrapping_mul(INVERSE))
    }

    proptest! {
        /// Hashes that crowd into few buckets, so that slots pass full ones and are taken out again.
        #[test]
        fn it_is_a_map(calls in proptest::collection::vec((any::<bool>(), 0..400_u64), 0..3_000)) {
            let hash_of = |slot: u32| crowded(u64::from(slot));
            let mut table = Table::new();
            let mut model = BTreeMap::new();
            for (insert, id) in calls {
                let slot = u32::try_from(id).unwrap();
                let hash = crowded(id);
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

        /// Adding many is adding one by one up to the first known one, without growth.
        #[test]
        fn unknown_hashes_are_added_in_a_row(
            calls in proptest::collection::vec(proptest::collection::vec(0..400_u64, 1..20), 0..200)
        ) {
            let mut table = Table::new();
            // By slot, as the owner has them.
            let mut hashes: Vec<BlockHash> = Vec::new();
            for ids in calls {
                let new: Vec<BlockHash> = ids.into_iter().map(crowded).collect();
                let known = hashes.len();
                let first = u32::try_from(known).unwrap();
                hashes.extend(&new);
                let before = table.allocated_bytes();
                let is_it = |slot: u32, hash| hashes[slot as usize] == hash;
                let added = table.insert_unknown(&new, first, is_it) as usize;
                prop_assert_eq!(table.allocated_bytes(), before);
                let repeats = |at: &usize| hashes[..known + at].contains(&new[*at]);
                let unknown = (0..new.len()).find(repeats).unwrap_or(new.len());
                prop_assert!(added <= unknown);
                if added < unknown {
                    prop_assert!(table.growth_bytes(new[added]) > 0);
                    table.insert(new[added], first + u32::try_from(added).unwrap());
                    hashes.truncate(known + added + 1);
                } else {
                    hashes.truncate(known + added);
                }
                prop_assert_eq!(table.len(), hashes.len());
                for (slot, &hash) in hashes.iter().enumerate() {
                    let found = table.find(hash, |other| hashes[other as usize] == hash);
                    prop_assert_eq!(found.map(|found| found as usize), Some(slot));
                }
            }
        }
    }
}
