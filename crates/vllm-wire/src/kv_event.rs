//! KV-event payloads: one `MessagePack` message per batch of cache changes (`vllm/distributed/kv_events.py`).
//!
//! A batch is an array `[ts, [events], data_parallel_rank]`. Its events are maps since vLLM 0.24,
//! `{"type": "BlockStored", ...}`, and were arrays before, `["BlockStored", ...]`, with the same
//! fields in the same order. [`EventBatch::encode`] writes the map form of 0.32.0 byte for byte;
//! [`EventBatch::decode`] reads both.

mod decode;
mod encode;

use std::fmt;

use crate::BlockDigest;

pub use self::decode::DecodeError;

/// The storage media that vLLM 0.32.0 names in events; a GPU block is what its scheduler can hit.
pub mod medium {
    /// The device's own memory; `GPU` whatever the device, a CPU included.
    pub const GPU: &str = "GPU";
    /// Host memory, of an offloading KV connector.
    pub const CPU: &str = "CPU";
    /// Disk or remote storage, of an offloading KV connector.
    pub const STORAGE: &str = "STORAGE";
}

/// What happened in one engine's cache since its last batch, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventBatch {
    /// When the batch was made: seconds since the Unix epoch, by the server's clock.
    pub ts: f64,
    /// The events, in the order they happened; vLLM sends no empty batch.
    pub events: Vec<KvEvent>,
    /// The engine among the server's data-parallel ones; `Some(0)` if there is only one.
    pub data_parallel_rank: Option<u32>,
}

/// One change of an engine's prefix cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvEvent {
    /// Blocks got their hash: a prompt with their prefix can hit them from now on.
    BlockStored(BlockStored),
    /// One copy of each block is gone; another copy may remain.
    BlockRemoved(BlockRemoved),
    /// The cache was reset; no block is left.
    AllBlocksCleared,
}

/// The fields of a `BlockStored` event: consecutive blocks of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockStored {
    /// The blocks' hashes, first block first.
    pub block_hashes: Vec<ExternalHash>,
    /// Hash of the block before the first of these, `None` if that is a request's first block.
    pub parent_block_hash: Option<ExternalHash>,
    /// The token ids of all these blocks, in order: `block_size` of them for each.
    pub token_ids: Vec<u32>,
    /// Tokens per block.
    pub block_size: u32,
    /// The adapter's number at the server, `None` without one; vLLM advises to use the name.
    pub lora_id: Option<i64>,
    /// Where the blocks are: one of [`medium`]; `None` where a server does not say.
    pub medium: Option<String>,
    /// The adapter's name, `None` without one.
    pub lora_name: Option<String>,
    /// What besides tokens went into the hashes, one entry per block; `None` inside for a block
    /// with nothing, `None` outside where a server does not say.
    pub extra_keys: Option<Vec<Option<Vec<EventExtraKey>>>>,
    /// The KV-cache group of the blocks; a model whose layers are all of a kind has group 0 only.
    pub group_idx: Option<u32>,
    /// The group's kind of cache, such as `full_attention` or `sliding_window`.
    pub kv_cache_spec_kind: Option<String>,
    /// The group's sliding window, in tokens.
    pub kv_cache_spec_sliding_window: Option<u32>,
    /// `LOCAL` or `REMOTE` as seen from the server, `None` where it does not say.
    pub locality: Option<String>,
    /// The secondary offloading tier, where there is one.
    pub ownership: Option<String>,
    /// The session of the request that made the event (`X-Session-ID`); the blocks may be shared.
    pub session_id: Option<String>,
}

impl BlockStored {
    /// The blocks' hashes as numbers, see [`ExternalHash::as_u64`].
    pub fn hashes(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.block_hashes.iter().map(|hash| hash.as_u64())
    }

    /// The hash before the first of these as a number.
    pub fn parent(&self) -> Option<u64> {
        self.parent_block_hash.map(ExternalHash::as_u64)
    }
}

/// The fields of a `BlockRemoved` event; vLLM sends one event per block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockRemoved {
    /// The blocks' hashes.
    pub block_hashes: Vec<ExternalHash>,
    /// As in [`BlockStored::medium`].
    pub medium: Option<String>,
    /// As in [`BlockStored::group_idx`].
    pub group_idx: Option<u32>,
    /// As in [`BlockStored::locality`].
    pub locality: Option<String>,
    /// As in [`BlockStored::ownership`].
    pub ownership: Option<String>,
}

impl BlockRemoved {
    /// The blocks' hashes as numbers, see [`ExternalHash::as_u64`].
    pub fn hashes(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.block_hashes.iter().map(|hash| hash.as_u64())
    }
}

/// A block hash as an event carries it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExternalHash {
    /// The digest's last 8 bytes as a big-endian number: vLLM's default.
    Int(u64),
    /// The whole digest: with `VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0`.
    Bytes(HashBytes),
}

impl ExternalHash {
    /// The number that the server sends, or would send, for this block by default, so that hashes
    /// of both forms compare.
    pub fn as_u64(self) -> u64 {
        match self {
            Self::Int(hash) => hash,
            Self::Bytes(bytes) => {
                bytes.as_bytes().iter().fold(0, |hash, &byte| hash << 8 | u64::from(byte))
            }
        }
    }
}

impl From<u64> for ExternalHash {
    fn from(hash: u64) -> Self {
        Self::Int(hash)
    }
}

impl From<BlockDigest> for ExternalHash {
    /// The whole digest; the default form is [`BlockDigest::external_u64`].
    fn from(digest: BlockDigest) -> Self {
        Self::Bytes(HashBytes::from(*digest.as_bytes()))
    }
}

impl fmt::Debug for ExternalHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(hash) => write!(f, "Int({hash})"),
            Self::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

/// A digest of 1 to 32 bytes: 32 for vLLM's SHA-256 algorithms, 16 for its `xxhash` ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashBytes {
    /// The digest, then zeros.
    bytes: [u8; 32],
    len: u8,
}

impl HashBytes {
    /// The digest with these bytes; `None` if there are none, or more than 32.
    pub fn new(digest: &[u8]) -> Option<Self> {
        let len = u8::try_from(digest.len()).ok().filter(|len| (1..=32).contains(len))?;
        let mut bytes = [0; 32];
        bytes[..digest.len()].copy_from_slice(digest);
        Some(Self { bytes, len })
    }

    /// The bytes, 1 to 32 of them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl From<[u8; 32]> for HashBytes {
    fn from(bytes: [u8; 32]) -> Self {
        Self { bytes, len: 32 }
    }
}

impl fmt::Debug for HashBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bytes(")?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// One value that went into a block's hash besides its tokens, without the tag that the hash has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventExtraKey {
    /// An adapter's name, or the request's `cache_salt`: events do not tell which.
    Text(String),
    /// A multimodal item.
    Mm {
        /// The item's hash, or the id the client gave it.
        identifier: String,
        /// Its first token, counted from the block's start; negative if it began before.
        offset: i64,
    },
    /// SHA-256 of the block's prompt embeddings.
    Digest(HashBytes),
    /// A value of a shape that vLLM 0.32.0 does not send.
    Other(RawValue),
}

/// One well-formed `MessagePack` value, as it was received.
#[derive(Clone, PartialEq, Eq)]
pub struct RawValue(Box<[u8]>);

impl RawValue {
    /// The value's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RawValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawValue(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// Names of events and fields, which are the same in both forms and both directions.
mod name {
    pub(super) const TYPE: &str = "type";
    pub(super) const BLOCK_STORED: &str = "BlockStored";
    pub(super) const BLOCK_REMOVED: &str = "BlockRemoved";
    pub(super) const ALL_BLOCKS_CLEARED: &str = "AllBlocksCleared";

    pub(super) const BLOCK_HASHES: &str = "block_hashes";
    pub(super) const PARENT_BLOCK_HASH: &str = "parent_block_hash";
    pub(super) const TOKEN_IDS: &str = "token_ids";
    pub(super) const BLOCK_SIZE: &str = "block_size";
    pub(super) const LORA_ID: &str = "lora_id";
    pub(super) const MEDIUM: &str = "medium";
    pub(super) const LORA_NAME: &str = "lora_name";
    pub(super) const EXTRA_KEYS: &str = "extra_keys";
    pub(super) const GROUP_IDX: &str = "group_idx";
    pub(super) const SPEC_KIND: &str = "kv_cache_spec_kind";
    pub(super) const SLIDING_WINDOW: &str = "kv_cache_spec_sliding_window";
    pub(super) const LOCALITY: &str = "locality";
    pub(super) const OWNERSHIP: &str = "ownership";
    pub(super) const SESSION_ID: &str = "session_id";

    /// The fields of `BlockStored` in the order of the array form.
    pub(super) const STORED_FIELDS: &[&str] = &[
        BLOCK_HASHES,
        PARENT_BLOCK_HASH,
        TOKEN_IDS,
        BLOCK_SIZE,
        LORA_ID,
        MEDIUM,
        LORA_NAME,
        EXTRA_KEYS,
        GROUP_IDX,
        SPEC_KIND,
        SLIDING_WINDOW,
        LOCALITY,
        OWNERSHIP,
        SESSION_ID,
    ];
    /// The fields of `BlockRemoved` in the order of the array form.
    pub(super) const REMOVED_FIELDS: &[&str] =
        &[BLOCK_HASHES, MEDIUM, GROUP_IDX, LOCALITY, OWNERSHIP];
}
