//! Hashes with a cache against hashes without.

use std::num::NonZeroUsize;

use kvroute_prompt_tokens::{BlockHashes, HashSettings};
use kvroute_vllm_wire::{
    BlockDigest, BlockHasher, ExtraKeys, HashAlgo, LoraKey, MmItem, none_hash,
};
use proptest::prelude::*;

fn settings(algo: HashAlgo, block_size: usize, seed: Option<&str>) -> HashSettings {
    HashSettings {
        algo,
        block_size: NonZeroUsize::new(block_size).unwrap(),
        pythonhashseed: seed.map(ToOwned::to_owned),
    }
}

fn plain(settings: &HashSettings, tokens: &[u32], keys: &ExtraKeys) -> Vec<BlockDigest> {
    let root = none_hash(settings.algo, settings.pythonhashseed.as_deref());
    let mut chain = BlockHasher::new(settings.algo, root, settings.block_size, keys.clone());
    let mut hashes = Vec::new();
    chain.extend(tokens, &mut hashes);
    hashes
}

fn keys() -> impl Strategy<Value = ExtraKeys> {
    let salt = prop::option::of("[ab]{0,2}");
    let lora = prop::option::of(("[ab]{1,2}", "[ab]{1,2}"));
    (salt, lora, prop::bool::weighted(0.1)).prop_map(|(cache_salt, lora, has_image)| ExtraKeys {
        lora: lora.map(|(name, path)| LoraKey { name, path }),
        mm: if has_image {
            vec![MmItem { identifier: "x".to_owned(), offset: 3, len: 9 }]
        } else {
            Vec::new()
        },
        cache_salt,
        prompt_embeds: None,
    })
}

proptest! {
    /// Prompts that share prefixes, over one cache that is at times too small to hold them.
    #[test]
    fn what_is_kept_does_not_show(
        algo in prop::sample::select(HashAlgo::ALL.to_vec()),
        block_size in 1..6_usize,
        seed in prop::option::of("[01]"),
        cache_bytes in prop::sample::select(vec![0, 4_000, 1 << 20]),
        prompts in prop::collection::vec(
            (prop::collection::vec((0..2_u32, 0..120_usize), 0..4), keys()), 1..12),
    ) {
        let settings = settings(algo, block_size, seed.as_deref());
        let hashes = BlockHashes::new(settings.clone(), cache_bytes);
        for (runs, keys) in &prompts {
            let tokens: Vec<u32> =
                runs.iter().flat_map(|&(token, count)| std::iter::repeat_n(token, count)).collect();
            prop_assert_eq!(hashes.of(&tokens, keys), plain(&settings, &tokens, keys));
        }
    }
}
