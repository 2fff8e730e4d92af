//! The index for several threads.

use parking_lot::RwLock;

use super::ExactIndex;

/// An [`ExactIndex`] behind a readers-writer lock: look-ups from any number of threads at once,
/// changes from any number of threads one after the other.
///
/// Which form for what:
/// * One thread, or a caller that has a lock of its own around all that a decision reads and writes
///   (the gateway around its router): the plain [`ExactIndex`]. A second lock would protect nothing.
/// * Events applied by tasks of their own while others look up: this one.
///
/// A lock per part of the index would let writers pass each other, but an event names its blocks by
/// hash alone, so that the parts would have to be by hash, and a look-up would take a lock for each
/// run on its path. Two copies of the index (left-right) would free readers of all waiting for twice
/// the memory and twice the work per event. Neither is worth it while an event holds the lock for
/// microseconds: apply events one by one, not a whole backlog under one [`update`](Self::update).
///
/// A waiting writer goes before readers that come after it, so writers do not starve.
#[derive(Debug)]
pub struct SharedExactIndex {
    index: RwLock<ExactIndex>,
}

impl SharedExactIndex {
    /// Shares an index.
    pub fn new(index: ExactIndex) -> Self {
        Self { index: RwLock::new(index) }
    }

    /// Calls `read` with the index as it is between two updates. Other readers go on meanwhile,
    /// updates wait. `read` must not call this index again.
    #[inline]
    pub fn read<R>(&self, read: impl FnOnce(&ExactIndex) -> R) -> R {
        read(&self.index.read())
    }

    /// Calls `change` with the index, alone. `change` must not call this index again.
    #[inline]
    pub fn update<R>(&self, change: impl FnOnce(&mut ExactIndex) -> R) -> R {
        change(&mut self.index.write())
    }

    /// The index, no longer shared.
    pub fn into_inner(self) -> ExactIndex {
        self.index.into_inner()
    }
}
