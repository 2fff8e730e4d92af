//! A vector that grows by whole chunks: nothing in it is ever copied or moved.

use std::ops::{Index, IndexMut};

use crate::slab::NIL;

/// Values named by dense `u32` ids, in chunks of `N` (a power of two).
///
/// Unlike [`Slab`](crate::slab::Slab) it never holds two copies of itself while it grows, and its
/// growth takes the same short time however large it is. Vacant values are chained by the owner.
#[derive(Debug)]
pub(super) struct Chunks<T, const N: usize> {
    chunks: Vec<Box<[T; N]>>,
    /// The next id that was never used.
    unused: u32,
}

impl<T: Default, const N: usize> Chunks<T, N> {
    /// Bytes of one chunk.
    pub(super) const CHUNK_BYTES: usize = N * size_of::<T>();

    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new(), unused: 0 }
    }

    /// Bytes that the next [`push`](Self::push) will allocate.
    pub(super) fn growth_bytes(&self) -> usize {
        if (self.unused as usize) < self.chunks.len() * N {
            return 0;
        }
        let pointers = self.chunks.len() == self.chunks.capacity();
        Self::CHUNK_BYTES + if pointers { self.allocated_pointers().max(32) } else { 0 }
    }

    /// The id of one more value, which is `T::default()`. The caller keeps to ids below `2^28`.
    pub(super) fn push(&mut self) -> u32 {
        let id = self.unused;
        if id as usize == self.chunks.len() * N {
            let values: Box<[T]> = std::iter::repeat_with(T::default).take(N).collect();
            let Ok(values) = values.try_into() else {
                unreachable!("a chunk has N values");
            };
            self.chunks.push(values);
        }
        self.unused += 1;
        id
    }

    /// Number of ids handed out.
    pub(super) fn len(&self) -> u32 {
        self.unused
    }

    /// Bytes allocated.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.chunks.len() * Self::CHUNK_BYTES + self.allocated_pointers()
    }

    fn allocated_pointers(&self) -> usize {
        self.chunks.capacity() * size_of::<Box<[T; N]>>()
    }
}

impl<T, const N: usize> Index<u32> for Chunks<T, N> {
    type Output = T;

    #[inline]
    fn index(&self, id: u32) -> &T {
        debug_assert_ne!(id, NIL);
        &self.chunks[id as usize / N][id as usize % N]
    }
}

impl<T, const N: usize> IndexMut<u32> for Chunks<T, N> {
    #[inline]
    fn index_mut(&mut self, id: u32) -> &mut T {
        &mut self.chunks[id as usize / N][id as usize % N]
    }
}
