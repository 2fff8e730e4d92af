//! Changes of an engine's prefix cache, in the order vLLM publishes them (R68).

use kvroute_types::BlockKey;

/// One change. Keys stand for vLLM's block hashes; whoever puts events on the wire translates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// Blocks were registered by one request in one scheduling step, before their KV exists. The same key may be
    /// stored more than once (R69).
    Stored {
        /// The blocks, in prefix order.
        keys: Vec<BlockKey>,
        /// The block before the first; `None` at the start of a sequence.
        parent: Option<BlockKey>,
    },
    /// One copy of the block was handed out again.
    Removed {
        /// The block.
        key: BlockKey,
    },
    /// The whole cache was emptied.
    Cleared,
}
