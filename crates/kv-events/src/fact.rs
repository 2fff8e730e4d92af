//! What a subscription tells.

use kvroute_vllm_wire::{BlockRemoved, BlockStored, EventBatch, KvEvent, medium};

use crate::tracker::{Loss, Position};

/// What one step of the stream brought: all facts of one batch, or one fact of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// In order; apply them all before anything else. None for a batch that was all about other media than the GPU's
    /// memory.
    pub facts: Vec<Fact>,
    /// Where the stream stands once they are applied; `None` before anything is known of it. What the facts so far made
    /// and this position belong together in a snapshot.
    pub position: Option<Position>,
}

/// One piece of news about one instance's prefix cache, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The publisher is reachable. Whether it is still the same one is told before its next [`Fact::Stored`] or
    /// [`Fact::Removed`]: by a [`Fact::Cleared`] or [`Fact::Lost`], or by the absence of both.
    Connected,
    /// The publisher cannot be heard. What was said holds as long as the instance lives; a reader that knows it dead
    /// forgets it now.
    Disconnected,
    /// Blocks entered the cache. Count copies: a hash may be stored twice, and is gone when removed as often.
    Stored(BlockStored),
    /// One copy of each of these blocks left the cache. May name blocks that were never announced, after a loss.
    Removed(BlockRemoved),
    /// The cache is empty: forget all blocks of this instance.
    Cleared(Cleared),
    /// Something is missing for good: what was said before must not be relied on. Forget all blocks of this instance;
    /// what follows is true, though not complete until the cache has turned over.
    Lost(Loss),
    /// Every batch that the publisher had published when it was last asked has been told, from the latest
    /// [`Fact::Cleared`] or [`Fact::Lost`] on, or from the server's first batch (or the position resumed at) if there
    /// was neither. So after [`Fact::Lost`] this is no word about blocks stored before it that are still in the cache.
    ///
    /// Told after a replay that ended whole and whose sender is known to be the publisher followed: at each connect, at
    /// a gap, at a quiet check. At a quiet check only if anything was told since the last one. Never told without a
    /// replay endpoint. Batches published after the question may be on their way, or lost again, at any time.
    Synced,
}

/// Why a cache is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleared {
    /// The server said so (`/reset_prefix_cache`).
    Reset,
    /// The server began anew, which nothing announces; its numbers told (R73).
    Restarted,
}

/// The facts of a batch, and how many of its events were about another medium than the GPU's memory, which no prompt
/// can hit without being loaded first.
pub(crate) fn facts_of(batch: EventBatch) -> (Vec<Fact>, u64) {
    let is_gpu = |name: &Option<String>| name.as_deref().is_none_or(|name| name == medium::GPU);
    let mut elsewhere = 0;
    let facts = batch.events.into_iter().filter_map(|event| match event {
        KvEvent::BlockStored(stored) if is_gpu(&stored.medium) => Some(Fact::Stored(stored)),
        KvEvent::BlockRemoved(removed) if is_gpu(&removed.medium) => Some(Fact::Removed(removed)),
        KvEvent::AllBlocksCleared => Some(Fact::Cleared(Cleared::Reset)),
        KvEvent::BlockStored(_) | KvEvent::BlockRemoved(_) => {
            elsewhere += 1;
            None
        }
    });
    let facts = facts.collect();
    (facts, elsewhere)
}
