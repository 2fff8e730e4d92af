//! Capacity misses of a fleet: blocks that are computed again because no cache had room for them.

use std::time::Duration;

use hashbrown::HashMap;
use kvroute_types::{BlockHash, Timestamp};
use rustc_hash::FxBuildHasher;

/// Of so many blocks one is looked at for capacity misses.
const SAMPLED_OF: u64 = 16;
/// Most of those remembered in each of two generations, 9 MB: caches of 4 million blocks, or 140 A100s, are seen through at least.
const REMEMBERED_BLOCKS: usize = 250_000;
/// Time for which a block that was computed may be there without the directory's knowing.
const NEWS: Duration = Duration::from_secs(15);
/// What a decision's blocks count with each later one.
const MISS_DECAY: f64 = 0.995;

/// How many of the blocks that are computed were computed before and have been evicted everywhere: of a sample of all
/// blocks, by their hashes, so that a block is always in it or never (SHARDS, Waldspurger et al., FAST 2015).
///
/// 0 where caches hold all that is asked for, near 1 where most of what is computed had to make room before.
#[derive(Clone, Debug, Default)]
pub(crate) struct CapacityMisses {
    /// When blocks were last computed: those of late, and those of before, which go when the former are full.
    computed: [HashMap<BlockHash, Timestamp, FxBuildHasher>; 2],
    /// Those computed again, and all; each counts less with each later decision.
    again: f64,
    all: f64,
}

impl CapacityMisses {
    /// A prompt of these blocks is computed where so many of them are cached; the best holder has so many.
    pub(crate) fn learn(
        &mut self,
        now: Timestamp,
        blocks: &[BlockHash],
        cached: u32,
        most_cached: u32,
    ) {
        self.again *= MISS_DECAY;
        self.all *= MISS_DECAY;
        let uncached = blocks.iter().enumerate().skip(cached as usize);
        for (nth, block) in uncached.filter(|(_, block)| block.0.is_multiple_of(SAMPLED_OF)) {
            self.all += 1.0;
            let before = self.computed.iter().find_map(|known| known.get(block));
            let is_old = before.is_some_and(|&before| now.since(before) > NEWS);
            if is_old && nth >= most_cached as usize {
                self.again += 1.0;
            }
            if self.computed[0].len() >= REMEMBERED_BLOCKS {
                self.computed.swap(0, 1);
                self.computed[0].clear();
            }
            self.computed[0].insert(*block, now);
        }
    }

    /// The share of what is computed, `0.0..=1.0`, weighted towards the latest decisions; 0 before the first.
    pub(crate) fn share(&self) -> f64 {
        if self.all > 0.0 { self.again / self.all } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_computed_again_after_an_eviction_counts() {
        let blocks: Vec<BlockHash> = (0..160).map(BlockHash).collect();
        let mut misses = CapacityMisses::default();
        let at = Timestamp::from_secs_f64;
        // 10 of 160 are in the sample.
        misses.learn(at(0.0), &blocks, 0, 0);
        assert_eq!(misses.share().to_bits(), 0, "nothing was computed before");
        // All again, but half of them another instance holds: 5 of 10 and 0.995 * 10.
        misses.learn(at(20.0), &blocks, 0, 80);
        assert!((misses.share() - 5.0 / 19.95).abs() < 1e-9, "{}", misses.share());
        // So soon again they may well be there.
        misses.learn(at(35.0), &blocks, 0, 80);
        assert!((misses.share() - 4.975 / 29.850_25).abs() < 1e-9, "{}", misses.share());
        // 48 are cached, 32 more elsewhere: 7 computed, 5 of them evicted everywhere.
        misses.learn(at(60.0), &blocks, 48, 80);
        let share = (4.975 * 0.995 + 5.0) / (29.850_25 * 0.995 + 7.0);
        assert!((misses.share() - share).abs() < 1e-9, "{}", misses.share());
    }

    #[test]
    fn blocks_of_long_ago_are_forgotten() {
        let mut misses = CapacityMisses::default();
        let blocks = |from: u64| -> Vec<BlockHash> {
            (from..from + REMEMBERED_BLOCKS as u64).map(|n| BlockHash(SAMPLED_OF * n)).collect()
        };
        let (first, second, third) = (blocks(0), blocks(1 << 32), blocks(1 << 33));
        for blocks in [&first, &second] {
            misses.learn(Timestamp::ZERO, blocks, 0, 0);
        }
        let is_known = |misses: &CapacityMisses, block: &BlockHash| {
            misses.computed.iter().any(|known| known.contains_key(block))
        };
        assert!(is_known(&misses, &first[0]) && is_known(&misses, &second[0]));
        misses.learn(Timestamp::ZERO, &third, 0, 0);
        assert!(!is_known(&misses, &first[0]) && is_known(&misses, &second[0]));
        assert!(misses.computed.iter().all(|known| known.len() <= REMEMBERED_BLOCKS));
    }
}
