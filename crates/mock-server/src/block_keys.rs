//! Interned block identities: (block before, tokens of the block, salt) to [`BlockKey`].
//!
//! Two requests share the key of a block exactly when they share all tokens up to its end and the `cache_salt` (R14,
//! R17): the interner compares the tokens themselves, so there are no collisions.
//!
//! Memory: a key lives while a request in the engine uses it, the engine's cache holds a copy of it, or a longer prefix
//! that lives builds on it; then it is forgotten and its number is used again. So what is kept is bounded by the KV
//! blocks of the engine plus the requests in it (and what their prefixes hang on).

use std::hash::{Hash, Hasher};

use hashbrown::HashTable;
use kvroute_types::{BlockKey, BlockSize};
use kvroute_vllm_wire::{BlockDigest, BlockHasher, ExtraKeys};
use rustc_hash::FxHasher;

/// The interner of one engine.
#[derive(Debug, Default)]
pub(crate) struct BlockKeys {
    entries: Vec<Entry>,
    table: HashTable<u32>,
    free: Vec<u32>,
    /// Computes vLLM's hashes of new blocks, where events are published.
    hasher: Option<BlockHasher>,
}

/// A block as an event names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a> {
    /// vLLM's hash (R14); `None` in an interner without a hasher.
    pub(crate) digest: Option<BlockDigest>,
    pub(crate) tokens: &'a [u32],
    /// `cache_salt`, of a sequence's first block only.
    pub(crate) salt: Option<&'a str>,
}

#[derive(Debug, Default)]
struct Entry {
    /// The block before.
    parent: Option<BlockKey>,
    /// `cache_salt`, of a sequence's first block only.
    salt: Option<Box<str>>,
    tokens: Box<[u32]>,
    digest: Option<BlockDigest>,
    /// Requests that hold it, children interned, copies in the cache.
    references: u32,
    /// Of those, copies in the engine's cache.
    cached: u32,
}

impl BlockKeys {
    /// An interner that knows vLLM's hashes of its blocks; `hasher` is for blocks of the engine's size.
    pub(crate) fn with_hashes(hasher: BlockHasher) -> Self {
        Self { hasher: Some(hasher), ..Self::default() }
    }

    /// What stands behind a key that is kept.
    pub(crate) fn block(&self, key: BlockKey) -> Block<'_> {
        let Entry { digest, tokens, salt, .. } = &self.entries[key.0 as usize];
        Block { digest: *digest, tokens, salt: salt.as_deref() }
    }

    /// Keys of the full blocks of `tokens`. The last of them is held until [`BlockKeys::release`], and with it all.
    pub(crate) fn intern(
        &mut self,
        tokens: &[u32],
        block_size: BlockSize,
        salt: Option<&str>,
    ) -> Vec<BlockKey> {
        let mut keys = Vec::with_capacity(tokens.len() / block_size.get() as usize);
        let mut parent = None;
        for block in tokens.chunks_exact(block_size.get() as usize) {
            let salt = salt.filter(|_| parent.is_none());
            let key = self.find_or_insert(parent, salt, block);
            parent = Some(key);
            keys.push(key);
        }
        if let Some(last) = keys.last() {
            self.entries[last.0 as usize].references += 1;
        }
        keys
    }

    /// Lets go of a last key given out by [`BlockKeys::intern`].
    pub(crate) fn release(&mut self, last: BlockKey) {
        self.drop_reference(last);
    }

    /// The engine has stored a copy of the block.
    pub(crate) fn stored(&mut self, key: BlockKey) {
        let entry = &mut self.entries[key.0 as usize];
        entry.references += 1;
        entry.cached += 1;
    }

    /// The engine has evicted a copy of the block.
    pub(crate) fn removed(&mut self, key: BlockKey) {
        let entry = &mut self.entries[key.0 as usize];
        debug_assert!(entry.cached > 0, "only a stored block can be removed");
        entry.cached -= 1;
        self.drop_reference(key);
    }

    /// The engine has emptied its cache.
    pub(crate) fn cleared(&mut self) {
        for key in 0..self.entries.len() {
            let key = BlockKey(u32::try_from(key).expect("keys are 32 bits"));
            for _ in 0..std::mem::take(&mut self.entries[key.0 as usize].cached) {
                self.drop_reference(key);
            }
        }
    }

    /// Number of keys kept.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Number of blocks in the engine's cache, copies of one counted once.
    pub(crate) fn cached(&self) -> usize {
        self.entries.iter().filter(|entry| entry.cached > 0).count()
    }

    fn find_or_insert(
        &mut self,
        parent: Option<BlockKey>,
        salt: Option<&str>,
        tokens: &[u32],
    ) -> BlockKey {
        let hash = content_hash(parent, salt, tokens);
        let is_it = |&key: &u32| {
            let entry = &self.entries[key as usize];
            entry.parent == parent && *entry.tokens == *tokens && entry.salt.as_deref() == salt
        };
        if let Some(&key) = self.table.find(hash, is_it) {
            return BlockKey(key);
        }
        let entry = Entry {
            parent,
            salt: salt.map(Into::into),
            tokens: tokens.into(),
            digest: self.digest(parent, salt, tokens),
            references: 0,
            cached: 0,
        };
        let key = if let Some(key) = self.free.pop() {
            self.entries[key as usize] = entry;
            key
        } else {
            self.entries.push(entry);
            u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 blocks are alive")
        };
        if let Some(parent) = parent {
            self.entries[parent.0 as usize].references += 1;
        }
        let Self { entries, table, .. } = self;
        table.insert_unique(hash, key, |&key| entries[key as usize].hash());
        BlockKey(key)
    }

    /// vLLM's hash of a block, if hashes are wanted.
    fn digest(
        &mut self,
        parent: Option<BlockKey>,
        salt: Option<&str>,
        tokens: &[u32],
    ) -> Option<BlockDigest> {
        let hasher = self.hasher.as_mut()?;
        match parent {
            // Where in its sequence a later block starts does not matter: nothing but a salt is hashed with the
            // tokens, and that with the first block only.
            Some(parent) => {
                let parent = self.entries[parent.0 as usize].digest?;
                hasher.resume(parent, 1);
            }
            None => hasher
                .restart(ExtraKeys { cache_salt: salt.map(str::to_owned), ..ExtraKeys::default() }),
        }
        let mut digests = Vec::with_capacity(1);
        hasher.extend(tokens, &mut digests);
        digests.pop()
    }

    /// Drops one reference; what nothing refers to any more is forgotten, and so on up the prefix.
    fn drop_reference(&mut self, key: BlockKey) {
        let mut next = Some(key);
        while let Some(key) = next {
            let entry = &mut self.entries[key.0 as usize];
            entry.references -= 1;
            if entry.references > 0 {
                return;
            }
            let entry = std::mem::take(entry);
            if let Ok(found) = self.table.find_entry(entry.hash(), |&other| other == key.0) {
                found.remove();
            }
            self.free.push(key.0);
            next = entry.parent;
        }
    }
}

impl Entry {
    fn hash(&self) -> u64 {
        content_hash(self.parent, self.salt.as_deref(), &self.tokens)
    }
}

fn content_hash(parent: Option<BlockKey>, salt: Option<&str>, tokens: &[u32]) -> u64 {
    let mut hasher = FxHasher::default();
    (parent, salt, tokens).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> BlockSize {
        BlockSize::new(4).unwrap()
    }

    #[test]
    fn equal_prefixes_share_keys_and_salts_part_them() {
        let mut keys = BlockKeys::default();
        let tokens: Vec<u32> = (0..14).collect();
        let first = keys.intern(&tokens, size(), None);
        assert_eq!(first.len(), 3, "full blocks only");
        assert_eq!(keys.intern(&tokens[..9], size(), None), first[..2]);
        let salted = keys.intern(&tokens, size(), Some("a"));
        assert!(salted.iter().all(|key| !first.contains(key)));
        let mut other = tokens.clone();
        other[0] = 99;
        assert!(keys.intern(&other, size(), None).iter().all(|key| !first.contains(key)));
    }

    #[test]
    fn a_prefix_lives_as_long_as_what_builds_on_it() {
        let mut keys = BlockKeys::default();
        let chain = keys.intern(&[0; 12], size(), None);
        keys.stored(chain[2]);
        keys.release(chain[2]);
        assert_eq!(keys.len(), 3, "its last block is cached");
        assert_eq!(keys.intern(&[0; 12], size(), None), chain);
        keys.release(chain[2]);
        keys.removed(chain[2]);
        assert_eq!(keys.len(), 0);
    }

    #[test]
    fn clearing_the_cache_forgets_what_no_request_uses() {
        let mut keys = BlockKeys::default();
        let held = keys.intern(&[1; 8], size(), None);
        let other = keys.intern(&[2; 8], size(), None);
        for &key in held.iter().chain(&other).chain(&other) {
            keys.stored(key);
        }
        keys.release(other[1]);
        keys.cleared();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys.intern(&[1; 8], size(), None), held);
        let reused = keys.intern(&[3; 8], size(), None);
        assert!(other.contains(&reused[0]), "numbers are used again");
    }
}
