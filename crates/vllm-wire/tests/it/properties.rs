//! What holds for any input.

use std::num::NonZeroUsize;

use kvroute_vllm_wire::{
    BlockHasher, BlockRemoved, BlockStored, EventBatch, EventExtraKey, ExternalHash, ExtraKeys,
    HashAlgo, HashBytes, KvEvent, LoraKey, MmItem, none_hash, parse_publish, parse_replay_reply,
    parse_replay_request,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn hash() -> impl Strategy<Value = ExternalHash> {
    let bytes = |len| vec(any::<u8>(), len).prop_map(|b| HashBytes::new(&b).unwrap());
    prop_oneof![
        any::<u64>().prop_map(ExternalHash::Int),
        (0..300_u64).prop_map(ExternalHash::Int),
        bytes(32).prop_map(ExternalHash::Bytes),
        bytes(16).prop_map(ExternalHash::Bytes),
    ]
}

fn word() -> impl Strategy<Value = Option<String>> {
    option::of(prop_oneof!["[a-zäα🦀]{0,12}", "[a-z]{30,300}"])
}

fn extra_key() -> impl Strategy<Value = EventExtraKey> {
    prop_oneof![
        ".{0,40}".prop_map(EventExtraKey::Text),
        (".{0,40}", any::<i64>())
            .prop_map(|(identifier, offset)| EventExtraKey::Mm { identifier, offset }),
        any::<[u8; 32]>().prop_map(|digest| EventExtraKey::Digest(digest.into())),
    ]
}

prop_compose! {
    fn block_stored()(
        (block_hashes, parent_block_hash) in (vec(hash(), 0..20), option::of(hash())),
        (token_ids, block_size) in (vec(any::<u32>(), 0..40), any::<u32>()),
        lora_id in option::of(any::<i64>()),
        (medium, lora_name, kv_cache_spec_kind) in (word(), word(), word()),
        extra_keys in option::of(vec(option::of(vec(extra_key(), 0..4)), 0..4)),
        (group_idx, kv_cache_spec_sliding_window) in (any::<Option<u32>>(), any::<Option<u32>>()),
        (locality, ownership, session_id) in (word(), word(), word()),
    ) -> KvEvent {
        KvEvent::BlockStored(BlockStored {
            block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium, lora_name,
            extra_keys, group_idx, kv_cache_spec_kind, kv_cache_spec_sliding_window, locality,
            ownership, session_id,
        })
    }
}

prop_compose! {
    fn block_removed()(
        block_hashes in vec(hash(), 0..20),
        (medium, locality, ownership) in (word(), word(), word()),
        group_idx in any::<Option<u32>>(),
    ) -> KvEvent {
        KvEvent::BlockRemoved(BlockRemoved { block_hashes, medium, group_idx, locality, ownership })
    }
}

prop_compose! {
    fn batch()(
        ts in -1e12..1e12,
        events in vec(
            prop_oneof![block_stored(), block_removed(), Just(KvEvent::AllBlocksCleared)],
            0..20,
        ),
        data_parallel_rank in any::<Option<u32>>(),
    ) -> EventBatch {
        EventBatch { ts, events, data_parallel_rank }
    }
}

fn encoded(batch: &EventBatch) -> Vec<u8> {
    let mut out = Vec::new();
    batch.encode(&mut out);
    out
}

/// Whatever decodes has an encoding, and that decodes to the same.
fn decode_is_sound(payload: &[u8]) {
    if let Ok(batch) = EventBatch::decode(payload) {
        let again = EventBatch::decode(&encoded(&batch)).unwrap();
        // A mutation may have made the time NaN, which is not equal to itself.
        assert_eq!(again.events, batch.events);
    }
}

proptest! {
    #[test]
    fn batches_survive_the_wire(batch in batch()) {
        prop_assert_eq!(EventBatch::decode(&encoded(&batch)).unwrap(), batch);
    }

    #[test]
    fn random_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..400)) {
        decode_is_sound(&bytes);
    }

    /// Random bytes where a value is expected, so that they are not refused at the first byte.
    #[test]
    fn random_events_do_not_panic(
        prefix in prop_oneof![
            Just(&b"\x93\x01\x91\x9f\xabBlockStored"[..]),
            Just(&b"\x93\x01\x91\x82\xa4type\xabBlockStored\xaaextra_keys"[..]),
            Just(&b"\x93\x01\x91\x82\xa4type\xb0AllBlocksCleared\xa1x"[..]),
        ],
        bytes in vec(any::<u8>(), 0..100),
    ) {
        decode_is_sound(&[prefix, &bytes].concat());
    }

    #[test]
    fn mutated_batches_do_not_panic(
        batch in batch(),
        mutations in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut payload = encoded(&batch);
        for (index, byte) in mutations {
            let index = index.index(payload.len());
            payload[index] = byte;
        }
        decode_is_sound(&payload);
        payload.truncate(cut.index(payload.len()));
        decode_is_sound(&payload);
    }

    #[test]
    fn random_frames_do_not_panic(frames in vec(vec(any::<u8>(), 0..10), 0..6)) {
        let _ = parse_publish(&frames);
        let _ = parse_replay_reply(&frames);
        let _ = parse_replay_request(&frames);
    }

    /// The hashes do not depend on how the tokens were handed over, nor on what the hasher did before.
    #[test]
    fn hashing_is_incremental(
        tokens in vec(prop_oneof![0..300_u32, any::<u32>()], 0..200),
        block_size in 1..40_usize,
        cuts in vec(0..200_usize, 0..6),
        algo in prop::sample::select(HashAlgo::ALL.to_vec()),
        salt in option::of("[a-z]{0,3}"),
        lora in option::of(("[a-z]{1,3}", "[a-z/]{1,9}")),
        mm in vec((0..9_u64, 0..30_u64, "[a-z]{1,3}"), 0..5),
    ) {
        let mut at = 0;
        let extra = ExtraKeys {
            lora: lora.map(|(name, path)| LoraKey { name, path }),
            mm: mm.into_iter().map(|(gap, len, identifier)| {
                let offset = at + gap;
                at = offset + len;
                MmItem { identifier, offset, len }
            }).collect(),
            cache_salt: salt,
            prompt_embeds: None,
        };
        let size = NonZeroUsize::new(block_size).unwrap();
        let mut hasher = BlockHasher::new(algo, none_hash(algo, None), size, extra.clone());
        let mut whole = Vec::new();
        hasher.extend(&tokens, &mut whole);
        prop_assert_eq!(whole.len(), tokens.len() / block_size);
        prop_assert_eq!(hasher.token_count(), tokens.len() as u64);

        hasher.restart(extra.clone());
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(tokens.len())).collect();
        cuts.extend([0, tokens.len()]);
        cuts.sort_unstable();
        let mut parts = Vec::new();
        for pair in cuts.windows(2) {
            hasher.extend(&tokens[pair[0]..pair[1]], &mut parts);
        }
        prop_assert_eq!(&parts, &whole);

        // From the middle, given what the blocks before came to.
        for known in 1..=whole.len() {
            hasher.resume(whole[known - 1], known as u64);
            let mut rest = Vec::new();
            hasher.extend(&tokens[known * block_size..], &mut rest);
            prop_assert_eq!(&rest, &whole[known..]);
            prop_assert_eq!(hasher.token_count(), tokens.len() as u64);
        }

        hasher.restart(extra);
        let singly: Vec<_> = tokens.iter().filter_map(|token| hasher.push(*token)).collect();
        prop_assert_eq!(singly, whole);
    }
}
