//! Names of KV-cache blocks.
//!
//! A full block's content is known by everything up to its last token, so one name stands for the
//! whole prefix (vLLM's chained block hash, R14). Two forms are in use:
//!
//! * [`BlockHash`], 64 bits: what travels between processes and what the cache directory holds;
//! * [`BlockKey`], 32 bits, dense: the same identity interned. Equal keys mean equal prefixes, and
//!   blocks that follow one another usually have keys that follow one another, so tables indexed
//!   by key are read in memory order.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Chained hash of a block: identifies the block's tokens and all tokens before them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BlockHash(pub u64);

/// Interned block identity: a dense number that names one distinct prefix of whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey(pub u32);

impl BlockKey {
    /// The hash under which a simulated router sees this block. A bijection, so equal hashes mean equal keys.
    pub const fn hash(self) -> BlockHash {
        BlockHash(mix64(self.0 as u64))
    }
}

/// `len` consecutive blocks of a prefix whose keys are `start, start + 1, …`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyRun {
    /// Key of the first block of the run.
    pub start: BlockKey,
    /// Number of blocks; at least 1.
    pub len: u32,
}

/// The block keys of one request's tokens, prompt and output, in order, as runs.
///
/// Cheap to clone: requests of one session share the storage. A chain may be longer than the
/// request that uses it; users take the first blocks that they have tokens for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockChain {
    runs: Arc<[KeyRun]>,
}

impl BlockChain {
    /// A chain of the given runs.
    pub fn new(runs: impl Into<Arc<[KeyRun]>>) -> Self {
        Self { runs: runs.into() }
    }

    /// A chain of single keys; neighbours that count up by one are joined into runs.
    pub fn from_keys(keys: impl IntoIterator<Item = BlockKey>) -> Self {
        let mut runs: Vec<KeyRun> = Vec::new();
        for key in keys {
            match runs.last_mut() {
                Some(run) if run.start.0 + run.len == key.0 => run.len += 1,
                _ => runs.push(KeyRun { start: key, len: 1 }),
            }
        }
        Self::new(runs)
    }

    /// The runs, in order.
    pub fn runs(&self) -> &[KeyRun] {
        &self.runs
    }

    /// Number of blocks.
    pub fn len(&self) -> u32 {
        self.runs.iter().map(|run| run.len).sum()
    }

    /// Whether the chain holds no block at all.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = BlockKey> + '_ {
        self.runs.iter().flat_map(|run| (run.start.0..run.start.0 + run.len).map(BlockKey))
    }
}

/// A fixed, invertible mix of 64 bits (the finaliser of `SplitMix64`, Steele et al. 2014).
pub const fn mix64(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_keys_join_into_runs() {
        let chain = BlockChain::from_keys([4, 5, 6, 9, 10, 2].map(BlockKey));
        assert_eq!(chain.runs().len(), 3);
        assert_eq!(chain.len(), 6);
        assert_eq!(chain.keys().map(|k| k.0).collect::<Vec<_>>(), [4, 5, 6, 9, 10, 2]);
    }

    #[test]
    fn the_mix_is_the_published_one() {
        // First output of SplitMix64 seeded with 0, as in the reference implementation.
        assert_eq!(mix64(0), 0xe220_a839_7b1d_cdaf);
    }
}
