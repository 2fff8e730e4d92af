//! Event payloads against vLLM's.

use kvroute_vllm_wire::{
    BlockRemoved, BlockStored, DecodeError, EventBatch, EventExtraKey, ExternalHash, HashBytes,
    KvEvent,
};
use serde_json::{Value, json as value};

use crate::block_hash::external_json;
use crate::fixtures::{
    FUNCTIONS, LEGACY, RECORDED, REPLAYED, array, bytes, from_hex, json, messages, text, to_hex,
};

fn encoded(batch: &EventBatch) -> Vec<u8> {
    let mut out = Vec::new();
    batch.encode(&mut out);
    out
}

#[expect(clippy::unnecessary_wraps, reason = "fields that may be null read better so")]
fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// One Stored, one Removed, one Cleared.
fn small_batch() -> EventBatch {
    EventBatch {
        ts: 1.5,
        events: vec![
            KvEvent::BlockStored(BlockStored {
                block_hashes: vec![1.into(), (1 << 63).into()],
                token_ids: vec![1, 2],
                block_size: 2,
                medium: some("GPU"),
                extra_keys: Some(vec![None]),
                group_idx: Some(0),
                kv_cache_spec_kind: some("full_attention"),
                ..BlockStored::default()
            }),
            KvEvent::BlockRemoved(BlockRemoved {
                block_hashes: vec![7.into()],
                medium: some("GPU"),
                group_idx: Some(0),
                ..BlockRemoved::default()
            }),
            KvEvent::AllBlocksCleared,
        ],
        data_parallel_rank: Some(0),
    }
}

const SMALL_BATCH: &str = "93 cb3ff8000000000000 93
    8b a474797065 ab426c6f636b53746f726564 ac626c6f636b5f686173686573 92 01 cf8000000000000000
    b1706172656e745f626c6f636b5f68617368 c0 a9746f6b656e5f696473 92 01 02
    aa626c6f636b5f73697a65 02 a76c6f72615f6964 c0 a66d656469756d a3475055 a96c6f72615f6e616d65 c0
    aa65787472615f6b657973 91 c0 a967726f75705f696478 00 b26b765f63616368655f737065635f6b696e64
    ae66756c6c5f617474656e74696f6e
    84 a474797065 ac426c6f636b52656d6f766564 ac626c6f636b5f686173686573 91 07 a66d656469756d
    a3475055 a967726f75705f696478 00
    81 a474797065 b0416c6c426c6f636b73436c6561726564 00";

/// A value in every field, of the kinds that differ in bytes.
fn full_batch() -> EventBatch {
    let (digest, short) = (HashBytes::from([1; 32]), HashBytes::new(&[2; 16]).unwrap());
    EventBatch {
        ts: 1.5,
        events: vec![
            KvEvent::BlockStored(BlockStored {
                block_hashes: vec![ExternalHash::Bytes(digest)],
                parent_block_hash: Some(ExternalHash::Bytes(short)),
                token_ids: vec![u32::MAX],
                block_size: 1,
                lora_id: Some(-5),
                medium: some("CPU"),
                lora_name: Some("l".repeat(40)),
                extra_keys: Some(vec![
                    Some(vec![
                        EventExtraKey::Text("a".to_owned()),
                        EventExtraKey::Mm { identifier: "m".to_owned(), offset: -300 },
                        EventExtraKey::Digest(HashBytes::from([3; 32])),
                    ]),
                    None,
                    Some(vec![]),
                ]),
                group_idx: Some(3),
                kv_cache_spec_kind: some("sliding_window"),
                kv_cache_spec_sliding_window: Some(4096),
                locality: some("REMOTE"),
                ownership: some("tier-2"),
                session_id: some("sess-42"),
            }),
            KvEvent::BlockRemoved(BlockRemoved {
                block_hashes: vec![ExternalHash::Bytes(digest)],
                medium: some("STORAGE"),
                group_idx: Some(1),
                locality: some("LOCAL"),
                ownership: some("tier-2"),
            }),
        ],
        data_parallel_rank: Some(7),
    }
}

#[test]
fn batches_have_the_bytes_of_msgspec() {
    let removed = |hash: u64| {
        KvEvent::BlockRemoved(BlockRemoved {
            block_hashes: vec![hash.into()],
            medium: some("GPU"),
            group_idx: Some(0),
            ..BlockRemoved::default()
        })
    };
    let cases = [
        ("r70", small_batch()),
        ("every_field", full_batch()),
        (
            "no_optional_field",
            EventBatch {
                ts: 1.5,
                events: vec![
                    KvEvent::BlockStored(BlockStored { block_size: 16, ..BlockStored::default() }),
                    KvEvent::BlockRemoved(BlockRemoved::default()),
                ],
                data_parallel_rank: Some(0),
            },
        ),
        ("no_rank", EventBatch { ts: 1.5, events: vec![], data_parallel_rank: None }),
        (
            "many",
            EventBatch {
                ts: 1.5,
                events: (0..20).map(removed).collect(),
                data_parallel_rank: Some(65_536),
            },
        ),
    ];
    let functions = json(FUNCTIONS);
    assert_eq!(functions["events"].as_object().unwrap().len(), cases.len());
    for (name, batch) in cases {
        let expected = text(&functions["events"][name]);
        assert_eq!(to_hex(&encoded(&batch)), expected, "{name}");
        assert_eq!(EventBatch::decode(&from_hex(expected)).unwrap(), batch, "{name}");
    }
    assert_eq!(encoded(&small_batch()), from_hex(SMALL_BATCH));
}

/// The batch as `msgspec` shows it, for comparing; fields that are left out when null, if they are.
fn as_json(batch: &EventBatch) -> Value {
    let events: Vec<Value> = batch.events.iter().map(event_json).collect();
    value!([batch.ts, events, batch.data_parallel_rank])
}

fn event_json(event: &KvEvent) -> Value {
    let (mut json, optional) = match event {
        KvEvent::BlockStored(e) => (
            value!({
                "type": "BlockStored",
                "block_hashes": hashes_json(&e.block_hashes),
                "parent_block_hash": e.parent_block_hash.map(external_json),
                "token_ids": e.token_ids,
                "block_size": e.block_size,
                "lora_id": e.lora_id,
                "medium": e.medium,
                "lora_name": e.lora_name,
            }),
            vec![
                ("extra_keys", value!(e.extra_keys.as_deref().map(extra_keys_json))),
                ("group_idx", value!(e.group_idx)),
                ("kv_cache_spec_kind", value!(e.kv_cache_spec_kind)),
                ("kv_cache_spec_sliding_window", value!(e.kv_cache_spec_sliding_window)),
                ("locality", value!(e.locality)),
                ("ownership", value!(e.ownership)),
                ("session_id", value!(e.session_id)),
            ],
        ),
        KvEvent::BlockRemoved(e) => (
            value!({
                "type": "BlockRemoved",
                "block_hashes": hashes_json(&e.block_hashes),
                "medium": e.medium,
            }),
            vec![
                ("group_idx", value!(e.group_idx)),
                ("locality", value!(e.locality)),
                ("ownership", value!(e.ownership)),
            ],
        ),
        KvEvent::AllBlocksCleared => (value!({ "type": "AllBlocksCleared" }), vec![]),
    };
    for (name, value) in optional.into_iter().filter(|(_, value)| !value.is_null()) {
        json[name] = value;
    }
    json
}

fn hashes_json(hashes: &[ExternalHash]) -> Vec<Value> {
    hashes.iter().copied().map(external_json).collect()
}

fn extra_keys_json(blocks: &[Option<Vec<EventExtraKey>>]) -> Vec<Value> {
    let key = |key: &EventExtraKey| match key {
        EventExtraKey::Text(text) => value!(text),
        EventExtraKey::Mm { identifier, offset } => value!([identifier, offset]),
        EventExtraKey::Digest(digest) => value!({ "bytes": to_hex(digest.as_bytes()) }),
        EventExtraKey::Other(other) => value!({ "other": to_hex(other.as_bytes()) }),
    };
    let block = |keys: &Vec<EventExtraKey>| keys.iter().map(key).collect::<Vec<_>>();
    blocks.iter().map(|keys| value!(keys.as_ref().map(block))).collect()
}

#[test]
fn recorded_payloads() {
    let mut payloads = 0;
    for (_, recorded) in RECORDED {
        for message in messages(&json(recorded)) {
            let payload = &message.frames[2];
            let batch = EventBatch::decode(payload).unwrap();
            assert_eq!(to_hex(&encoded(&batch)), to_hex(payload), "seq {}", message.seq);
            // The JSON reader may be off in a float's last digit, so the time stands for itself.
            let mut expected = message.decoded;
            assert!((expected[0].as_f64().unwrap() - batch.ts).abs() < 1e-6);
            expected[0] = batch.ts.into();
            assert_eq!(as_json(&batch), expected, "seq {}", message.seq);
            payloads += 1;
        }
    }
    assert_eq!(payloads, 20);
}

#[test]
fn replayed_payloads() {
    let mut payloads = 0;
    for replayed in REPLAYED {
        for replay in json(replayed)["replays"].as_object().unwrap().values() {
            for message in array(&replay["received"]) {
                let payload = text(array(message).last().unwrap());
                if !payload.is_empty() && !payload.contains("...") {
                    let batch = EventBatch::decode(&from_hex(payload)).unwrap();
                    assert_eq!(to_hex(&encoded(&batch)), payload);
                    payloads += 1;
                }
            }
        }
    }
    assert_eq!(payloads, 12);
}

/// Arrays instead of maps: the synthetic form of older releases.
#[test]
fn legacy_payloads() {
    let legacy = json(LEGACY);
    let decoded = |name: &str| {
        let batch = EventBatch::decode(&bytes(&legacy["cases"][name]["payload_hex"])).unwrap();
        assert_eq!(batch.ts.to_bits(), 1000.5_f64.to_bits());
        (batch.events, batch.data_parallel_rank)
    };
    let stored = |stored| vec![KvEvent::BlockStored(stored)];
    let gpu = || some("GPU");
    assert_eq!(legacy["cases"].as_object().unwrap().len(), 5);

    let root = BlockStored {
        block_hashes: vec![11.into(), 22.into()],
        token_ids: (0..8).collect(),
        block_size: 4,
        medium: gpu(),
        extra_keys: Some(vec![None, None]),
        group_idx: Some(0),
        ..BlockStored::default()
    };
    assert_eq!(decoded("stored_root_int"), (stored(root), Some(0)));

    let child = BlockStored {
        block_hashes: vec![ExternalHash::Bytes([1; 32].into())],
        parent_block_hash: Some(ExternalHash::Bytes([2; 32].into())),
        token_ids: vec![5, 6, 7, 8],
        block_size: 4,
        lora_id: Some(3),
        medium: gpu(),
        lora_name: some("my-lora"),
        extra_keys: Some(vec![Some(vec![EventExtraKey::Text("my-lora".to_owned())])]),
        group_idx: Some(0),
        ..BlockStored::default()
    };
    assert_eq!(decoded("stored_child_lora_bytes"), (stored(child), Some(0)));

    let short = BlockStored {
        block_hashes: vec![11.into()],
        token_ids: vec![1, 2, 3, 4],
        block_size: 4,
        medium: gpu(),
        ..BlockStored::default()
    };
    assert_eq!(decoded("stored_without_optional_tail"), (stored(short), Some(0)));

    let removed = |hash: u64, group_idx| {
        let block_hashes = vec![hash.into()];
        KvEvent::BlockRemoved(BlockRemoved {
            block_hashes,
            medium: gpu(),
            group_idx,
            ..BlockRemoved::default()
        })
    };
    assert_eq!(decoded("removed"), (vec![removed(11, Some(0)), removed(22, None)], Some(0)));
    assert_eq!(decoded("cleared_no_rank"), (vec![KvEvent::AllBlocksCleared], None));
}

/// A batch, rank 0, with this one event, all in hex.
fn decode_event(event: &str) -> Result<KvEvent, DecodeError> {
    let payload = from_hex(&format!("93 cb3ff8000000000000 91 {event} 00"));
    EventBatch::decode(&payload).map(|batch| batch.events[0].clone())
}

const REMOVED: &str = "ac426c6f636b52656d6f766564";
const HASHES: &str = "ac626c6f636b5f686173686573";
const TYPE: &str = "a474797065";

#[test]
fn arrays_end_anywhere_after_the_required_fields() {
    // ["BlockStored", [1], null, [2], 1], as of the first releases with events.
    let stored = decode_event("95 ab426c6f636b53746f726564 9101 c0 9102 01").unwrap();
    let KvEvent::BlockStored(stored) = stored else { panic!("{stored:?}") };
    assert_eq!((stored.token_ids, stored.medium), (vec![2], None));
    // A field more than there are.
    let removed = decode_event(&format!("97 {REMOVED} 9107 c0 c0 c0 c0 9181a16101")).unwrap();
    assert!(matches!(removed, KvEvent::BlockRemoved(_)));
    assert_eq!(
        decode_event(&format!("91 {REMOVED}")),
        Err(DecodeError::MissingField { at: 11, of: "BlockRemoved", field: "block_hashes" })
    );
    assert_eq!(
        decode_event("90"),
        Err(DecodeError::MissingField { at: 11, of: "an event", field: "type" })
    );
}

#[test]
fn map_keys_come_in_any_order_and_unknown_ones_are_skipped() {
    let nested = "a16e 94 81a16b 92c2ca00000000 c403000000 d5000102 cf0000000000000000";
    let removed = decode_event(&format!("84 {nested} {HASHES} 9107 {TYPE} {REMOVED} a178 dc0000"));
    let expected = BlockRemoved { block_hashes: vec![7.into()], ..BlockRemoved::default() };
    assert_eq!(removed, Ok(KvEvent::BlockRemoved(expected)));
}

#[test]
fn a_parent_that_is_not_sent_is_not_a_null_parent() {
    let without = format!(
        "84 {TYPE} ab426c6f636b53746f726564 {HASHES} 9101 a9746f6b656e5f696473 9102 aa626c6f636b5f73697a65 01"
    );
    assert_eq!(
        decode_event(&without),
        Err(DecodeError::MissingField { at: 11, of: "BlockStored", field: "parent_block_hash" })
    );
}

#[test]
fn hashes_of_all_kinds() {
    let removed = |hash: &str| decode_event(&format!("92 {REMOVED} 91 {hash}"));
    let hash = |hash: &str| match removed(hash).unwrap() {
        KvEvent::BlockRemoved(removed) => removed.block_hashes[0],
        other => panic!("{other:?}"),
    };
    assert_eq!(hash("cfffffffffffffffff"), ExternalHash::Int(u64::MAX));
    // Python's `hash` of early releases may be negative.
    assert_eq!(hash("d3 ffffffffffffff00"), ExternalHash::Int(u64::MAX - 255));
    assert_eq!(hash("ff"), ExternalHash::Int(u64::MAX));
    let short = hash("c410 000102030405060708090a0b0c0d0e0f");
    assert_eq!(short.as_u64(), 0x0809_0a0b_0c0d_0e0f);
    assert_eq!(removed("c400"), Err(DecodeError::HashLength { at: 26, len: 0 }));
    assert_eq!(
        removed(&format!("c421 {}", "00".repeat(33))),
        Err(DecodeError::HashLength { at: 26, len: 33 })
    );
    assert!(matches!(removed("c0"), Err(DecodeError::WrongType { found: "null", .. })));
}

#[test]
fn extra_keys_of_unknown_shape_are_kept() {
    // [[1, ["a", 2, 3], {"k": [1.5f32]}, ["a", -2]]]
    let keys = "91 94 01 93a1610203 81a16b91ca3fc00000 92a161fe";
    let event = format!(
        "89 {TYPE} ab426c6f636b53746f726564 {HASHES} 90 b1706172656e745f626c6f636b5f68617368 c0 \
         a9746f6b656e5f696473 90 aa626c6f636b5f73697a65 01"
    ) + "a76c6f72615f6964 c0 a66d656469756d c0 a96c6f72615f6e616d65 c0 aa65787472615f6b657973"
        + keys;
    let decoded = decode_event(&event).unwrap();
    let KvEvent::BlockStored(stored) = &decoded else { panic!("{decoded:?}") };
    let kinds: Vec<String> = stored.extra_keys.as_ref().unwrap()[0]
        .as_ref()
        .unwrap()
        .iter()
        .map(|key| format!("{key:?}"))
        .collect();
    assert_eq!(
        kinds,
        [
            "Other(RawValue(01))",
            "Other(RawValue(93a1610203))",
            "Other(RawValue(81a16b91ca3fc00000))",
            "Mm { identifier: \"a\", offset: -2 }"
        ]
    );
    let batch = EventBatch { ts: 1.5, events: vec![decoded], data_parallel_rank: Some(0) };
    assert!(to_hex(&encoded(&batch)).contains(&keys.replace(' ', "")));
}

#[test]
fn errors_say_what_is_wrong() {
    let message = |payload: &str| EventBatch::decode(&from_hex(payload)).unwrap_err().to_string();
    let cases = [
        ("", "the payload ends inside a value, at byte 0; it was cut off or is not MessagePack"),
        (
            "83",
            "byte 0: the batch should be an array but is a map; the sender is not a vLLM release this reader knows",
        ),
        ("90", "the batch at byte 0 has no ts"),
        ("9101", "the batch at byte 0 has no events"),
        (
            "930190c000",
            "the batch ends at byte 4 but the payload does not; is it two messages in one?",
        ),
        (
            "930190cf0000000100000000",
            "byte 3: data_parallel_rank is 4294967296, which is out of its range",
        ),
        ("930190ff", "byte 3: data_parallel_rank is -1, which is out of its range"),
        (
            "920191 91a158",
            "byte 3: unknown event type `X`; known are BlockStored, BlockRemoved and AllBlocksCleared",
        ),
        ("920191 91a1ff", "byte 4: type is not UTF-8"),
        (
            "920191 c1",
            "byte 3: an event should be a map or an array but is no MessagePack; the sender is not a vLLM release this reader knows",
        ),
    ];
    for (payload, expected) in cases {
        assert_eq!(message(payload), expected, "{payload}");
    }
    let two = EventBatch::decode(&from_hex("920190")).unwrap();
    assert_eq!((two.ts, two.data_parallel_rank), (1.0, None));
}

#[test]
fn hostile_lengths_and_depths_are_refused() {
    let truncated = |payload: &[u8]| {
        assert!(matches!(EventBatch::decode(payload), Err(DecodeError::Truncated { .. })));
    };
    // Four thousand million batch items, events, map entries, hashes, bytes of text.
    truncated(&from_hex("ddffffffff"));
    truncated(&from_hex("9201ddffffffff"));
    truncated(&from_hex("920191dfffffffff"));
    truncated(&from_hex("920191 92 ac426c6f636b52656d6f766564 ddffffffff"));
    truncated(&from_hex("920191 91dbffffffff"));
    // An unknown field with a million arrays in one another: neither the stack nor time gives way.
    let mut deep = from_hex("920191 82 a474797065 b0416c6c426c6f636b73436c6561726564 a178");
    deep.extend([0x91].repeat(1_000_000));
    truncated(&deep);
    deep.push(0xc0);
    assert_eq!(EventBatch::decode(&deep).unwrap().events, [KvEvent::AllBlocksCleared]);
    // The same with maps of many entries, whose number overflows.
    let mut wide = from_hex("920191 82 a474797065 b0416c6c426c6f636b73436c6561726564 a178");
    wide.extend(from_hex("dfffffffff").repeat(1000));
    truncated(&wide);
}

#[test]
fn every_beginning_of_a_payload_is_truncated() {
    for batch in [small_batch(), full_batch()] {
        let payload = encoded(&batch);
        for len in 0..payload.len() {
            assert_eq!(
                EventBatch::decode(&payload[..len]),
                Err(DecodeError::Truncated { at: len }),
                "{len} bytes"
            );
        }
    }
}
