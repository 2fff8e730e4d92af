//! Token ids to block hashes, as the engine names its KV blocks, with the hashes of known prefixes kept.
//!
//! Hashing is a chain: a block's hash needs the one before it, and SHA-256 of a long prompt costs more than all else
//! here. So the chain is kept in groups of [`GROUP_BLOCKS`] blocks, each under a hash of everything before and in it:
//! what the chain starts from (algorithm, block size, seed, salt, adapter) and the tokens. That key takes one fast pass
//! over the tokens, and only what lies behind the last known group is hashed.

use std::num::NonZeroUsize;
use std::sync::Arc;

use kvroute_vllm_wire::{BlockDigest, BlockHasher, ExtraKeys, HashAlgo, none_hash};
use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

use crate::cache::Lists;

/// Blocks kept under one key.
const GROUP_BLOCKS: usize = 16;

/// What a server's block hashes are made with. All servers behind one router must agree on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashSettings {
    /// vLLM's `--prefix-caching-hash-algo`.
    pub algo: HashAlgo,
    /// Tokens per block: vLLM's `--block-size`.
    pub block_size: NonZeroUsize,
    /// The servers' `PYTHONHASHSEED`, if it is set.
    pub pythonhashseed: Option<String>,
}

/// Makes block hashes, remembering those of recent prompts. Shared between threads by reference.
#[derive(Debug)]
pub struct BlockHashes {
    settings: HashSettings,
    none_hash: BlockDigest,
    groups: Lists<BlockDigest>,
}

impl BlockHashes {
    /// Hashes made with these settings; at most `cache_bytes` go to those of recent prompts.
    pub fn new(settings: HashSettings, cache_bytes: u64) -> Self {
        let none_hash = none_hash(settings.algo, settings.pythonhashseed.as_deref());
        Self { settings, none_hash, groups: Lists::new(cache_bytes) }
    }

    /// What the hashes are made with.
    pub fn settings(&self) -> &HashSettings {
        &self.settings
    }

    /// The hash of each full block of a prompt, in order.
    ///
    /// `keys` are what besides the tokens counts: [`Tokens::cache_salt`](crate::Tokens::cache_salt), and the adapter if
    /// [`Tokens::model`](crate::Tokens::model) names one.
    pub fn of(&self, tokens: &[u32], keys: &ExtraKeys) -> Vec<BlockDigest> {
        let block_size = self.settings.block_size;
        let mut hashes = Vec::with_capacity(tokens.len() / block_size);
        let mut chain =
            BlockHasher::new(self.settings.algo, self.none_hash, block_size, keys.clone());
        if keys.mm.is_empty() && keys.prompt_embeds.is_none() {
            self.of_groups(tokens, keys, &mut chain, &mut hashes);
        }
        let rest = hashes.len() * block_size.get();
        chain.extend(&tokens[rest..], &mut hashes);
        hashes
    }

    /// Hashes the leading whole groups, from the cache as long as they are known.
    fn of_groups(
        &self,
        tokens: &[u32],
        keys: &ExtraKeys,
        chain: &mut BlockHasher,
        hashes: &mut Vec<BlockDigest>,
    ) {
        let group_tokens = GROUP_BLOCKS * self.settings.block_size.get();
        let mut key = self.root(keys);
        let mut bytes = Vec::with_capacity(group_tokens * 4 + 16);
        let mut is_known = true;
        for group in tokens.chunks_exact(group_tokens) {
            bytes.clear();
            bytes.extend_from_slice(&key.to_le_bytes());
            bytes.extend(group.iter().flat_map(|token| token.to_le_bytes()));
            key = xxh3_128_with_seed(&bytes, 0);
            if let Some(known) = self.groups.get(key) {
                hashes.extend_from_slice(&known);
                is_known = true;
                continue;
            }
            if is_known && let Some(&parent) = hashes.last() {
                chain.resume(parent, hashes.len() as u64);
            }
            is_known = false;
            let start = hashes.len();
            chain.extend(group, hashes);
            self.groups.insert(key, Arc::from(&hashes[start..]));
        }
        if is_known && let Some(&parent) = hashes.last() {
            chain.resume(parent, hashes.len() as u64);
        }
    }

    /// The key of the empty prefix.
    fn root(&self, keys: &ExtraKeys) -> u128 {
        let mut hash = Xxh3::new();
        hash.update(self.none_hash.as_bytes());
        hash.update(&self.settings.block_size.get().to_le_bytes());
        hash.update(self.settings.algo.name().as_bytes());
        let lora = keys.lora.as_ref();
        let texts = [
            lora.map(|lora| lora.name.as_str()),
            lora.map(|lora| lora.path.as_str()),
            keys.cache_salt.as_deref(),
        ];
        for text in texts {
            // The length goes first, so that texts cannot run into one another; an absent one has none.
            hash.update(&text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
            hash.update(text.unwrap_or_default().as_bytes());
        }
        hash.digest128()
    }
}
