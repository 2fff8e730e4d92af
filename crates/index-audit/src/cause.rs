//! What an audit concludes.

use std::fmt;

use kvroute_vllm_wire::HashAlgo;

/// Why an index may not be believed.
///
/// [`Display`](fmt::Display) is one sentence: what is wrong and which setting to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The server's blocks are of another size than ours. Certain.
    BlockSize {
        /// Tokens per block on this side.
        ours: u32,
        /// Tokens per block in the server's events.
        theirs: u32,
    },
    /// The server hashes blocks with another algorithm than ours. Certain.
    HashAlgo {
        /// The server's algorithm.
        theirs: HashAlgo,
    },
    /// The server starts its hashes from another seed, or uses an algorithm that we cannot compute.
    HashSeed,
    /// The server hashes a cache salt into prompts that we name without it, or the other way round.
    Salt,
    /// The server hashes an adapter's name or path that is not the one we name it by.
    Lora,
    /// The server's prompts have other token ids than ours.
    Tokenizer,
    /// The index was not told all events.
    LostEvents,
    /// The predictions are wrong and nothing tells why.
    Unexplained,
}

impl Cause {
    /// Names of all causes, for labels.
    pub const NAMES: [&'static str; 8] = [
        "block-size",
        "hash-algo",
        "hash-seed",
        "salt",
        "lora",
        "tokenizer",
        "lost-events",
        "unexplained",
    ];

    /// The cause's name, for a label; one of [`NAMES`](Self::NAMES).
    pub const fn name(self) -> &'static str {
        match self {
            Self::BlockSize { .. } => "block-size",
            Self::HashAlgo { .. } => "hash-algo",
            Self::HashSeed => "hash-seed",
            Self::Salt => "salt",
            Self::Lora => "lora",
            Self::Tokenizer => "tokenizer",
            Self::LostEvents => "lost-events",
            Self::Unexplained => "unexplained",
        }
    }

    /// Whether only a root event that is named as we name it ends the doubt: good predictions cannot come before it.
    pub(crate) const fn is_of_hashes(self) -> bool {
        matches!(self, Self::BlockSize { .. } | Self::HashAlgo { .. } | Self::HashSeed)
    }

    /// How much the cause says: a doubt changes its cause only for one that says more.
    pub(crate) const fn rank(self) -> u8 {
        match self {
            Self::Unexplained => 0,
            Self::LostEvents => 1,
            Self::Salt | Self::Lora | Self::Tokenizer => 2,
            Self::BlockSize { .. } | Self::HashAlgo { .. } | Self::HashSeed => 3,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BlockSize { ours, theirs } => write!(
                f,
                "the server's KV events have blocks of {theirs} tokens where {ours} are configured; \
                 set the block size to {theirs}"
            ),
            Self::HashAlgo { theirs } => write!(
                f,
                "the server names blocks by {theirs}; set the hash algorithm to {theirs}, \
                 or start vLLM with the configured one (--prefix-caching-hash-algo)"
            ),
            Self::HashSeed => f.write_str(
                "the server's block hashes cannot be computed from its tokens; \
                 configure the PYTHONHASHSEED that vLLM was started with, \
                 and run vLLM 0.29 or newer with --prefix-caching-hash-algo sha256 or sha256_cbor",
            ),
            Self::Salt => f.write_str(
                "the server hashes a cache salt that is not known here, or lacks one that is; \
                 let requests carry their cache_salt through this gateway unchanged",
            ),
            Self::Lora => f.write_str(
                "the server's blocks of LoRA requests have other names; \
                 configure the adapter's name and path as vLLM knows them (--lora-modules)",
            ),
            Self::Tokenizer => f.write_str(
                "the server's prompts have other token ids; \
                 configure the model directory and chat template that vLLM serves, \
                 and check that the KV events are those of this instance",
            ),
            Self::LostEvents => f.write_str(
                "KV events are missing; \
                 check that prefix caching and KV events are on, give vLLM a replay endpoint \
                 and raise its hwm and buffer_steps (--kv-events-config), \
                 then reset the prefix cache once (POST /reset_prefix_cache)",
            ),
            Self::Unexplained => f.write_str(
                "the predictions differ from what the server reports for no known reason; \
                 check the index's memory budget, whether a KV connector serves tokens, \
                 and whether requests queue so long that their blocks are evicted before they run",
            ),
        }
    }
}

/// Whether an index may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Too few requests were audited to say; nothing speaks against it so far.
    Learning,
    /// Its predictions came true.
    Believed,
    /// It must not be relied on.
    Doubted(Cause),
}

impl Verdict {
    /// The verdict's name, for a label: `learning`, `believed` or `doubted`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Learning => "learning",
            Self::Believed => "believed",
            Self::Doubted(_) => "doubted",
        }
    }

    /// Why not, if it is doubted.
    pub const fn cause(self) -> Option<Cause> {
        match self {
            Self::Doubted(cause) => Some(cause),
            Self::Learning | Self::Believed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_name_and_a_remedy() {
        let causes = [
            Cause::BlockSize { ours: 16, theirs: 32 },
            Cause::HashAlgo { theirs: HashAlgo::Sha256Cbor },
            Cause::HashSeed,
            Cause::Salt,
            Cause::Lora,
            Cause::Tokenizer,
            Cause::LostEvents,
            Cause::Unexplained,
        ];
        assert_eq!(causes.map(Cause::name), Cause::NAMES);
        for cause in causes {
            let text = cause.to_string();
            assert!(text.contains("; ") && !text.ends_with('.') && !text.contains("  "), "{text}");
        }
    }
}
