//! First blocks in events: whether the server names them as we do.
//!
//! An event carries the tokens of its blocks, so the name of a request's first block, which hangs on nothing before it,
//! can be computed again. If it differs, the server's settings do, whatever anybody asked.

use std::num::NonZeroUsize;

use kvroute_vllm_wire::{
    BlockDigest, BlockHasher, BlockStored, EventExtraKey, ExtraKeys, HashAlgo, MmItem, none_hash,
};

use crate::Naming;

/// How a root event's first block is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootName {
    /// As we name it.
    Ours,
    /// As we would with another algorithm.
    OtherAlgo(HashAlgo),
    /// Otherwise, and all that goes into the hash is known.
    OtherSeed,
    /// Otherwise, but the event may not tell all that went into the hash, or not as it was hashed.
    Unsure,
    /// Cannot be computed: of an adapter (the path is not in events), or malformed.
    Unknown,
}

/// Names first blocks. Keeps its buffers.
#[derive(Debug)]
pub(crate) struct RootCheck {
    block_size: NonZeroUsize,
    ours: BlockHasher,
    others: Vec<(HashAlgo, BlockHasher)>,
    digests: Vec<BlockDigest>,
}

impl RootCheck {
    pub(crate) fn new(naming: &Naming) -> Self {
        let block_size = usize::try_from(naming.block_size.get()).ok().and_then(NonZeroUsize::new);
        let block_size = block_size.unwrap_or(NonZeroUsize::MIN);
        let hasher = |algo| {
            let none_hash = none_hash(algo, naming.pythonhashseed.as_deref());
            BlockHasher::new(algo, none_hash, block_size, ExtraKeys::default())
        };
        let others = HashAlgo::ALL.into_iter().filter(|algo| *algo != naming.algo);
        Self {
            block_size,
            ours: hasher(naming.algo),
            others: others.map(|algo| (algo, hasher(algo))).collect(),
            digests: Vec::with_capacity(1),
        }
    }

    /// Looks at the first block of an event without parent, whose block size is ours. Hashes one block, and one more for
    /// each other algorithm if that is not it.
    pub(crate) fn check(&mut self, event: &BlockStored) -> RootName {
        let Some(tokens) = event.token_ids.get(..self.block_size.get()) else {
            return RootName::Unknown;
        };
        let Some(theirs) = event.block_hashes.first().map(|hash| hash.as_u64()) else {
            return RootName::Unknown;
        };
        let Some(keys) = keys_of_first_block(event) else {
            return RootName::Unknown;
        };
        let digests = &mut self.digests;
        let mut names_it = |hasher: &mut BlockHasher| {
            hasher.restart(keys.keys.clone());
            digests.clear();
            hasher.extend(tokens, digests);
            digests.first().is_some_and(|digest| digest.external_u64() == theirs)
        };
        if names_it(&mut self.ours) {
            return RootName::Ours;
        }
        let theirs =
            self.others.iter_mut().find_map(|(algo, hasher)| names_it(hasher).then_some(*algo));
        match theirs {
            Some(algo) => RootName::OtherAlgo(algo),
            None if keys.are_certain => RootName::OtherSeed,
            None => RootName::Unsure,
        }
    }
}

/// What besides tokens went into a first block's hash.
struct Keys {
    keys: ExtraKeys,
    /// Whether the event says for certain that this is all, in the form it was hashed in. Servers before 0.24 do not
    /// say, and some hashed the values without their tags.
    are_certain: bool,
}

/// The extra keys of an event's first block; `None` if they are not told in full.
fn keys_of_first_block(event: &BlockStored) -> Option<Keys> {
    if event.lora_name.is_some() || event.lora_id.is_some() {
        return None;
    }
    let mut keys = ExtraKeys::default();
    let listed = match event.extra_keys.as_ref().and_then(|blocks| blocks.first()) {
        None => return Some(Keys { keys, are_certain: false }),
        Some(None) => return Some(Keys { keys, are_certain: true }),
        Some(Some(listed)) => listed,
    };
    for key in listed {
        match key {
            EventExtraKey::Text(salt) if keys.cache_salt.is_none() => {
                keys.cache_salt = Some(salt.clone());
            }
            EventExtraKey::Mm { identifier, offset } => {
                // The length only says which later blocks the item touches.
                let offset = u64::try_from(*offset).ok()?;
                keys.mm.push(MmItem { identifier: identifier.clone(), offset, len: 1 });
            }
            EventExtraKey::Digest(digest) if keys.prompt_embeds.is_none() => {
                keys.prompt_embeds = Some(vec![digest.as_bytes().try_into().ok()?]);
            }
            EventExtraKey::Text(_) | EventExtraKey::Digest(_) | EventExtraKey::Other(_) => {
                return None;
            }
        }
    }
    Some(Keys { keys, are_certain: false })
}
