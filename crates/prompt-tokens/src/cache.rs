//! A cache bounded in bytes, for values that are cheap to clone.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

/// Bytes that an entry is taken to cost besides its items: key, pointers, the cache's own tables.
const ENTRY_BYTES: u64 = 128;

/// Lists by 128-bit hash of what they were computed from; the least useful go when the bytes run out.
///
/// Two inputs with one hash would share a list. With 128 bits that does not happen by chance.
#[derive(Debug)]
pub(crate) struct Lists<T> {
    cache: Cache<u128, Arc<[T]>, Bytes, BuildHasherDefault<KeyIsHash>>,
}

impl<T> Lists<T> {
    /// An empty cache of at most `bytes`.
    pub(crate) fn new(bytes: u64) -> Self {
        let items = usize::try_from(bytes / (4 * ENTRY_BYTES)).unwrap_or(usize::MAX).max(1);
        let (hasher, lifecycle) = (BuildHasherDefault::default(), DefaultLifecycle::default());
        Self { cache: Cache::with(items, bytes, Bytes, hasher, lifecycle) }
    }

    pub(crate) fn get(&self, key: u128) -> Option<Arc<[T]>> {
        self.cache.get(&key)
    }

    pub(crate) fn insert(&self, key: u128, list: Arc<[T]>) {
        self.cache.insert(key, list);
    }

    /// Bytes held, by the cache's own reckoning.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.weight()
    }
}

#[derive(Clone, Debug)]
struct Bytes;

impl<T> Weighter<u128, Arc<[T]>> for Bytes {
    fn weight(&self, _: &u128, list: &Arc<[T]>) -> u64 {
        ENTRY_BYTES + size_of_val::<[T]>(list) as u64
    }
}

/// The keys are hashes already.
#[derive(Default)]
struct KeyIsHash(u64);

impl Hasher for KeyIsHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u128(&mut self, key: u128) {
        let [low, high] = [key, key >> 64].map(|half| half & u128::from(u64::MAX));
        self.0 = u64::try_from(low ^ high).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_within_the_bound() {
        let lists = Lists::<u32>::new(64 * 1024);
        for key in 0..10_000_u128 {
            // Spread like hashes.
            lists.insert(
                key.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835),
                Arc::from([7; 50]),
            );
            assert!(lists.bytes() <= 64 * 1024, "{}", lists.bytes());
        }
        assert!(lists.bytes() > 0);
    }
}
