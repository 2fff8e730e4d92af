//! Counts whose unit is part of the type.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// A number of tokens.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct TokenCount(pub u32);

/// A number of KV-cache blocks.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BlockCount(pub u32);

/// Tokens per KV-cache block (vLLM `block_size`; 16 on GPUs by default, R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockSize(NonZeroU32);

impl BlockSize {
    /// A block size of `tokens` tokens; `None` if that is zero.
    pub const fn new(tokens: u32) -> Option<Self> {
        match NonZeroU32::new(tokens) {
            Some(tokens) => Some(Self(tokens)),
            None => None,
        }
    }

    /// Tokens per block.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Whole blocks in `tokens` tokens.
    pub const fn full_blocks(self, tokens: TokenCount) -> BlockCount {
        BlockCount(tokens.0 / self.0.get())
    }

    /// Blocks needed to hold `tokens` tokens, the last one perhaps partly filled.
    pub const fn blocks_for(self, tokens: TokenCount) -> BlockCount {
        BlockCount(tokens.0.div_ceil(self.0.get()))
    }
}

impl Default for BlockSize {
    fn default() -> Self {
        Self(NonZeroU32::new(16).unwrap_or(NonZeroU32::MIN))
    }
}

impl fmt::Display for TokenCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0)
    }
}

impl fmt::Display for BlockCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks", self.0)
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
