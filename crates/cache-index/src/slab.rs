//! A vector whose slots are reused: dense `u32` ids, no pointers.

use std::mem;
use std::ops::{Index, IndexMut};

/// The id of nothing.
pub(crate) const NIL: u32 = u32::MAX;

/// Values named by a `u32` id. Never holds more than `limit` values and never shrinks.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    items: Vec<T>,
    /// Ids of vacant slots. Has room for every slot, so that removing never allocates.
    free: Vec<u32>,
    limit: usize,
}

impl<T: Default> Slab<T> {
    /// Bytes that one slot takes.
    pub(crate) const SLOT_BYTES: usize = size_of::<T>() + size_of::<u32>();

    /// Smallest growth, in slots.
    const GROWTH_MIN: usize = 16;

    /// An empty slab for at most `limit` values.
    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.min(NIL as usize);
        Self { items: Vec::new(), free: Vec::new(), limit }
    }

    /// Stores `value` and returns its id. The caller keeps to the limit.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(id) = self.free.pop() {
            self[id] = value;
            return id;
        }
        if self.items.len() == self.items.capacity() {
            self.grow();
        }
        let id = u32::try_from(self.items.len()).expect("the limit is at most u32::MAX");
        self.items.push(value);
        id
    }

    /// Takes out the value named `id`, whose slot will be reused.
    pub(crate) fn remove(&mut self, id: u32) -> T {
        self.free.push(id);
        mem::take(&mut self[id])
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// Largest number of values.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes allocated.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.items.capacity() * size_of::<T>() + self.free.capacity() * size_of::<u32>()
    }

    /// Grows by a quarter: doubling would leave up to half of the memory unused.
    fn grow(&mut self) {
        let slots = self.items.len();
        assert!(slots < self.limit, "the caller keeps to the slab's limit of {}", self.limit);
        let growth = (slots / 4).max(Self::GROWTH_MIN).min(self.limit - slots);
        self.items.reserve_exact(growth);
        self.free.reserve_exact(slots + growth);
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    #[inline]
    fn index(&self, id: u32) -> &T {
        &self.items[id as usize]
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, id: u32) -> &mut T {
        &mut self.items[id as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_and_the_limit_is_never_overshot() {
        let mut slab = Slab::<u64>::new(100);
        let ids: Vec<u32> = (0..100).map(|value| slab.insert(value)).collect();
        assert_eq!(slab.len(), 100);
        assert_eq!(slab.allocated_bytes(), 100 * Slab::<u64>::SLOT_BYTES);
        assert_eq!(slab.remove(ids[40]), 40);
        assert_eq!(slab.len(), 99);
        assert_eq!(slab.insert(7), ids[40]);
        assert_eq!(slab[ids[40]], 7);
        assert_eq!(slab.allocated_bytes(), 100 * Slab::<u64>::SLOT_BYTES);
    }
}
