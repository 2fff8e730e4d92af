//! Block hashes as vLLM 0.32.0 computes them (`vllm/v1/core/kv_cache_utils.py`, `vllm/utils/hashing.py`).
//!
//! Only full blocks have a hash, and each covers the whole prefix:
//!
//! ```text
//! h[i] = SHA-256(serialise((h[i-1], (tokens of block i), extra keys of block i)))     h[-1] = none_hash
//! ```
//!
//! `serialise` is Python's pickle, protocol 5 (`sha256`, vLLM's default), or canonical CBOR
//! (`sha256_cbor`). The bytes are written as tokens come in, into one buffer that a hasher keeps,
//! and hashed once a block.

mod cbor;
mod extra_keys;
mod pickle;

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::cbor::CborWriter;
use self::pickle::PickleWriter;

pub use self::extra_keys::{ExtraKeys, LoraKey, MmItem};

/// The seed of [`none_hash`] when `PYTHONHASHSEED` is not set (vLLM's `DEFAULT_NONE_HASH_SEED`).
const DEFAULT_NONE_HASH_SEED: &str = "vllm-none-hash";

/// SHA-256 digest that names a full block and all tokens before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockDigest([u8; 32]);

impl BlockDigest {
    /// The digest with these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes, in the order SHA-256 gives them: how events carry the hash when the server
    /// runs with `VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0`.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The last 8 bytes, big-endian: how events carry the hash by default (vLLM's `maybe_convert_block_hash`).
    pub const fn external_u64(&self) -> u64 {
        let [.., b7, b6, b5, b4, b3, b2, b1, b0] = self.0;
        u64::from_be_bytes([b7, b6, b5, b4, b3, b2, b1, b0])
    }
}

impl From<[u8; 32]> for BlockDigest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for BlockDigest {
    /// 64 lower-case hex digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockDigest({self})")
    }
}

/// How a server serialises a block before hashing it: vLLM's `--prefix-caching-hash-algo`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum HashAlgo {
    /// `sha256`, vLLM's default: SHA-256 of the pickled block.
    #[default]
    Sha256,
    /// `sha256_cbor`: SHA-256 of the block in canonical CBOR.
    Sha256Cbor,
}

impl HashAlgo {
    /// Every algorithm, in the order vLLM lists them.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha256Cbor];

    /// vLLM's name of the algorithm.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha256Cbor => "sha256_cbor",
        }
    }
}

impl fmt::Display for HashAlgo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashAlgo {
    type Err = UnknownHashAlgo;

    fn from_str(name: &str) -> Result<Self, UnknownHashAlgo> {
        Self::ALL
            .into_iter()
            .find(|algo| algo.name() == name)
            .ok_or_else(|| UnknownHashAlgo { name: name.to_owned() })
    }
}

/// The name is no [`HashAlgo`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "hash algorithm `{name}` is not supported; run vLLM with `--prefix-caching-hash-algo sha256` or `sha256_cbor`"
)]
pub struct UnknownHashAlgo {
    /// The name as given.
    pub name: String,
}

/// The parent of a first block: the hash of a seed text (vLLM's `init_none_hash`).
///
/// `pythonhashseed` is the server's environment variable `PYTHONHASHSEED`, `None` where it is not
/// set. Servers before 0.29 then drew a random seed, so their hashes cannot be computed outside.
pub fn none_hash(algo: HashAlgo, pythonhashseed: Option<&str>) -> BlockDigest {
    let mut writer = BlockWriter::new(algo);
    writer.text_alone(pythonhashseed.unwrap_or(DEFAULT_NONE_HASH_SEED))
}

/// Hashes the full blocks of one request, token by token or all at once.
///
/// Tokens are prompt and output alike: vLLM hashes a block that fills up while decoding as it does
/// a block of the prompt. Any `u32` is a token id and any block size will do.
///
/// ```
/// use std::num::NonZeroUsize;
/// use kvroute_vllm_wire::{BlockHasher, ExtraKeys, HashAlgo, none_hash};
///
/// let root = none_hash(HashAlgo::Sha256, None);
/// let block_size = NonZeroUsize::new(16).unwrap();
/// let mut hasher = BlockHasher::new(HashAlgo::Sha256, root, block_size, ExtraKeys::default());
/// let (prompt, mut hashes) = ((0..40).collect::<Vec<u32>>(), Vec::new());
/// hasher.extend(&prompt, &mut hashes);
/// assert_eq!(hashes.len(), 2);
/// assert_eq!(hashes[0].external_u64(), 3_262_291_359_910_021_016);
/// ```
#[derive(Clone, Debug)]
pub struct BlockHasher {
    writer: BlockWriter,
    block_size: NonZeroUsize,
    extra: ExtraKeys,
    none_hash: BlockDigest,
    /// Hash of the last full block, `none_hash` before the first.
    parent: BlockDigest,
    /// Tokens in full blocks, which is where the block being filled starts.
    block_start: u64,
    /// Tokens of the block being filled, `0..block_size`; the writer holds them.
    filled: usize,
}

impl BlockHasher {
    /// A hasher at the start of a request.
    ///
    /// `none_hash` is what [`none_hash`] gives for the same algorithm; `block_size` is in tokens,
    /// and must be the server's `hash_block_size` (its `--block-size`, with one KV-cache group).
    pub fn new(
        algo: HashAlgo,
        none_hash: BlockDigest,
        block_size: NonZeroUsize,
        extra: ExtraKeys,
    ) -> Self {
        Self {
            writer: BlockWriter::new(algo),
            block_size,
            extra,
            none_hash,
            parent: none_hash,
            block_start: 0,
            filled: 0,
        }
    }

    /// Forgets all tokens and starts another request; the buffer stays.
    pub fn restart(&mut self, extra: ExtraKeys) {
        self.extra = extra;
        self.parent = self.none_hash;
        self.block_start = 0;
        self.filled = 0;
    }

    /// Takes the request's first `blocks` blocks as given, the last of which has the hash `parent`, and goes on behind
    /// them: for a prefix whose hashes are known. Tokens given so far are forgotten.
    pub fn resume(&mut self, parent: BlockDigest, blocks: u64) {
        self.parent = parent;
        self.block_start = blocks * self.block_size.get() as u64;
        self.filled = 0;
    }

    /// Adds the request's next token; gives the hash of the block that it fills.
    pub fn push(&mut self, token: u32) -> Option<BlockDigest> {
        self.fill(&[token])
    }

    /// Adds the request's next tokens; the hash of each block that they fill is added to `hashes`.
    pub fn extend(&mut self, mut tokens: &[u32], hashes: &mut Vec<BlockDigest>) {
        while !tokens.is_empty() {
            let (head, rest) = tokens.split_at(tokens.len().min(self.room()));
            hashes.extend(self.fill(head));
            tokens = rest;
        }
    }

    /// Hash of the last full block, or the none hash if no block is full: the parent of the next.
    pub const fn last_hash(&self) -> BlockDigest {
        self.parent
    }

    /// Tokens given so far.
    pub const fn token_count(&self) -> u64 {
        self.block_start + self.filled as u64
    }

    /// What goes into the hashes besides the tokens.
    pub const fn extra_keys(&self) -> &ExtraKeys {
        &self.extra
    }

    /// Tokens until the block being filled is full, at least 1.
    fn room(&self) -> usize {
        self.block_size.get() - self.filled
    }

    /// Adds tokens that do not go past the end of the block.
    fn fill(&mut self, tokens: &[u32]) -> Option<BlockDigest> {
        if self.filled == 0 {
            self.writer.begin(&self.parent, self.block_size.get());
        }
        self.writer.tokens(tokens);
        self.filled += tokens.len();
        if self.room() > 0 {
            return None;
        }
        let keys = self.extra.of_block(self.block_start, self.block_size);
        self.parent = self.writer.finish(self.block_size.get(), &keys);
        self.block_start = self.token_count();
        self.filled = 0;
        Some(self.parent)
    }
}

/// One of the tagged tuples that vLLM adds to a block's hash (`generate_block_hash_extra_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExtraKey<'a> {
    /// `("lora", name, path)`
    Lora { name: &'a str, path: &'a str },
    /// `("mm", identifier, offset)`, the offset in tokens from the block's start, negative if before it.
    Mm { identifier: &'a str, offset: i64 },
    /// `("cache_salt", salt)`
    CacheSalt(&'a str),
    /// `("prompt_embeds", digest)`
    PromptEmbeds(&'a [u8; 32]),
}

/// Writes a block, `((parent, tokens, extra keys))`, in the algorithm's serialisation, and hashes it.
#[derive(Clone, Debug)]
enum BlockWriter {
    Pickle(PickleWriter),
    Cbor(CborWriter),
}

impl BlockWriter {
    fn new(algo: HashAlgo) -> Self {
        match algo {
            HashAlgo::Sha256 => Self::Pickle(PickleWriter::default()),
            HashAlgo::Sha256Cbor => Self::Cbor(CborWriter::default()),
        }
    }

    /// Hash of a text that is the whole message.
    fn text_alone(&mut self, text: &str) -> BlockDigest {
        sha256(match self {
            Self::Pickle(writer) => writer.text_alone(text),
            Self::Cbor(writer) => writer.text_alone(text),
        })
    }

    /// Drops what was written and begins a block of `token_count` tokens.
    fn begin(&mut self, parent: &BlockDigest, token_count: usize) {
        match self {
            Self::Pickle(writer) => writer.begin(parent.as_bytes(), token_count),
            Self::Cbor(writer) => writer.begin(parent.as_bytes(), token_count),
        }
    }

    fn tokens(&mut self, tokens: &[u32]) {
        match self {
            Self::Pickle(writer) => writer.tokens(tokens),
            Self::Cbor(writer) => writer.tokens(tokens),
        }
    }

    /// Ends a block all of whose `token_count` tokens were written.
    fn finish(&mut self, token_count: usize, keys: &[ExtraKey<'_>]) -> BlockDigest {
        sha256(match self {
            Self::Pickle(writer) => writer.finish(token_count, keys),
            Self::Cbor(writer) => writer.finish(keys),
        })
    }
}

fn sha256(message: &[u8]) -> BlockDigest {
    BlockDigest(Sha256::digest(message).into())
}

#[cfg(test)]
mod tests;
