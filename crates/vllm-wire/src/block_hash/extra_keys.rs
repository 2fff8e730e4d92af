//! What of a request besides its tokens goes into its block hashes, in vLLM's order.

use std::num::NonZeroUsize;

use super::ExtraKey;
use crate::kv_event::{EventExtraKey, HashBytes};

/// SHA-256 of no bytes: what a block past the end of the prompt embeddings gets.
const SHA256_OF_NOTHING: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// What of a request besides its tokens goes into its block hashes (vLLM 0.32.0,
/// `generate_block_hash_extra_keys`). Releases before it may hash the same values untagged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtraKeys {
    /// The adapter, hashed into every block.
    pub lora: Option<LoraKey>,
    /// Multimodal items by offset, not overlapping; each is hashed into the blocks that it touches.
    pub mm: Vec<MmItem>,
    /// The request's `cache_salt`, hashed into the first block and through it into all others.
    /// An empty one counts as none, as in vLLM.
    pub cache_salt: Option<String>,
    /// For a prompt given as embeddings: SHA-256 of each block's slice of the tensor, in order.
    /// Blocks past the end get the hash of an empty slice.
    pub prompt_embeds: Option<Vec<[u8; 32]>>,
}

/// A `LoRA` adapter, as a block hash knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraKey {
    /// vLLM's `lora_name`, which is the request's `model`.
    pub name: String,
    /// vLLM's `lora_path`, where the server loaded it from.
    pub path: String,
}

/// A multimodal item (image, audio, video) and the tokens it stands at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MmItem {
    /// vLLM's `identifier`: the hash of the item, or the id the client gave it.
    pub identifier: String,
    /// First placeholder token, counted from the start of the prompt.
    pub offset: u64,
    /// Number of placeholder tokens.
    pub len: u64,
}

impl MmItem {
    const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

impl ExtraKeys {
    /// One block's `extra_keys` in a KV event: the same values without their tags (`to_event_extra_keys`).
    ///
    /// `block_start` is the block's first token, counted from the start of the prompt, and
    /// `block_size` its length in tokens.
    pub fn event_keys(
        &self,
        block_start: u64,
        block_size: NonZeroUsize,
    ) -> Option<Vec<EventExtraKey>> {
        let keys = self.of_block(block_start, block_size);
        (!keys.is_empty()).then(|| keys.iter().map(untagged).collect())
    }

    /// The keys of the block of `block_size` tokens that starts at token `block_start`.
    pub(super) fn of_block(&self, block_start: u64, block_size: NonZeroUsize) -> Vec<ExtraKey<'_>> {
        let block_size = block_size.get() as u64;
        let block_end = block_start.saturating_add(block_size);
        let mut keys = Vec::new();
        if let Some(LoraKey { name, path }) = &self.lora {
            keys.push(ExtraKey::Lora { name, path });
        }
        let first = self.mm.partition_point(|item| item.end() <= block_start);
        let touching = self.mm[first..].iter().take_while(|item| item.offset < block_end);
        keys.extend(touching.map(|MmItem { identifier, offset, .. }| ExtraKey::Mm {
            identifier,
            offset: offset.cast_signed().wrapping_sub(block_start.cast_signed()),
        }));
        if let Some(salt) = &self.cache_salt
            && block_start == 0
            && !salt.is_empty()
        {
            keys.push(ExtraKey::CacheSalt(salt));
        }
        if let Some(digests) = &self.prompt_embeds {
            let index = usize::try_from(block_start / block_size).ok();
            let digest = index.and_then(|index| digests.get(index));
            keys.push(ExtraKey::PromptEmbeds(digest.unwrap_or(&SHA256_OF_NOTHING)));
        }
        keys
    }
}

fn untagged(key: &ExtraKey<'_>) -> EventExtraKey {
    match *key {
        ExtraKey::Lora { name, .. } => EventExtraKey::Text(name.to_owned()),
        ExtraKey::Mm { identifier, offset } => {
            EventExtraKey::Mm { identifier: identifier.to_owned(), offset }
        }
        ExtraKey::CacheSalt(salt) => EventExtraKey::Text(salt.to_owned()),
        ExtraKey::PromptEmbeds(digest) => EventExtraKey::Digest(HashBytes::from(*digest)),
    }
}
