//! Block hashes against vLLM's.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use kvroute_vllm_wire::{
    BlockDigest, BlockHasher, BlockStored, EventBatch, EventExtraKey, ExternalHash, ExtraKeys,
    HashAlgo, KvEvent, LoraKey, MmItem, none_hash,
};
use serde_json::Value;

use crate::fixtures::{
    BLOCK_HASHES, FUNCTIONS, RECORDED, array, bytes, from_hex, int, json, messages, text, to_hex,
};

fn salted(salt: &str) -> ExtraKeys {
    ExtraKeys { cache_salt: Some(salt.to_owned()), ..ExtraKeys::default() }
}

fn hasher(algo: HashAlgo, block_size: usize, extra: ExtraKeys) -> BlockHasher {
    let block_size = NonZeroUsize::new(block_size).unwrap();
    BlockHasher::new(algo, none_hash(algo, None), block_size, extra)
}

fn hashes(algo: HashAlgo, block_size: usize, extra: ExtraKeys, tokens: &[u32]) -> Vec<BlockDigest> {
    let mut hashes = Vec::new();
    hasher(algo, block_size, extra).extend(tokens, &mut hashes);
    hashes
}

fn digest(hex: &str) -> BlockDigest {
    BlockDigest::new(from_hex(hex).try_into().unwrap())
}

#[test]
fn golden_values() {
    struct Golden {
        algo: HashAlgo,
        none: &'static str,
        none_seed_0: &'static str,
        blocks: [(&'static str, u64); 2],
        salted_abc: &'static str,
    }
    let golden = [
        Golden {
            algo: HashAlgo::Sha256,
            none: "066b1e8987e027138e98701c46128929378935f9b6cd1549105ae6b4f0d71198",
            none_seed_0: "1973e23848344dc43a988a9b478663803cfffe1243480253f9a3cf004b14aa7c",
            blocks: [
                (
                    "fe8fa5dda3210d0ca2031e37cbe3b001186773cd1c710beb2d45fcb51d434798",
                    3_262_291_359_910_021_016,
                ),
                (
                    "8be7aaa33831156d316f1f463ae57e643deb63f42e633e2d631df88815cc4629",
                    7_142_137_847_444_424_233,
                ),
            ],
            salted_abc: "0d710d1444966a86bfa6608d92ff006171612e86c62f785ecb36b6f935b4b76e",
        },
        Golden {
            algo: HashAlgo::Sha256Cbor,
            none: "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0",
            none_seed_0: "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e",
            blocks: [
                (
                    "dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749",
                    2_233_398_808_101_521_225,
                ),
                (
                    "c300ec275d7bf08af8fc63e76cdc0086911bbc7091e03c5cf892553bef84ef0c",
                    17_911_472_383_915_781_900,
                ),
            ],
            salted_abc: "f48a9bde36dd58e71d127c848f27aa2baaa237ec04c8c38ee9c9a8fbb5c17ce2",
        },
    ];
    let tokens: Vec<u32> = (0..32).collect();
    for Golden { algo, none, none_seed_0, blocks, salted_abc } in golden {
        assert_eq!(none_hash(algo, None), digest(none));
        assert_eq!(none_hash(algo, Some("0")), digest(none_seed_0));
        let got = hashes(algo, 16, ExtraKeys::default(), &tokens);
        assert_eq!(got, blocks.map(|(hex, _)| digest(hex)));
        assert_eq!(
            got.iter().map(BlockDigest::external_u64).collect::<Vec<_>>(),
            blocks.map(|(_, int)| int)
        );
        assert_eq!(hashes(algo, 16, salted("abc"), &tokens)[0], digest(salted_abc));
    }
}

#[test]
fn recorded_vectors() {
    let vectors = json(BLOCK_HASHES);
    for algo in HashAlgo::ALL {
        let of_algo = &vectors[algo.name()];
        assert_eq!(none_hash(algo, None).to_string(), of_algo["none_hash_hex"]);
        for vector in array(&of_algo["vectors"]) {
            let tokens: Vec<u32> = array(&vector["token_ids"]).iter().map(int).collect();
            let extra = match &vector["extra_keys_of_first_block"] {
                Value::Null => ExtraKeys::default(),
                keys => salted(text(&keys[0][1])),
            };
            let got = hashes(algo, int(&vector["block_size"]), extra, &tokens);
            let hex: Vec<String> = got.iter().map(ToString::to_string).collect();
            let ints: Vec<u64> = got.iter().map(BlockDigest::external_u64).collect();
            assert_eq!(Value::from(hex), vector["all_block_hashes_hex"], "{}", vector["step"]);
            assert_eq!(Value::from(ints), vector["as_event_ints"], "{}", vector["step"]);
        }
    }
}

/// Token ids in full, or as `start, start + step, ...`.
fn tokens(value: &Value) -> Vec<u32> {
    match value {
        Value::Array(tokens) => tokens.iter().map(int).collect(),
        run => {
            let (start, step): (u32, u32) = (int(&run["start"]), int(&run["step"]));
            (0..int(&run["count"])).map(|i| start.wrapping_add(step.wrapping_mul(i))).collect()
        }
    }
}

/// A text in full, or a text and how often to repeat it.
fn long_text(value: &Value) -> String {
    match value {
        Value::Array(repeated) => text(&repeated[0]).repeat(int(&repeated[1])),
        whole => text(whole).to_owned(),
    }
}

fn extra_keys(chain: &Value) -> ExtraKeys {
    let list = |name: &str| chain.get(name).map(|list| array(list).to_vec());
    ExtraKeys {
        lora: list("lora")
            .map(|lora| LoraKey { name: long_text(&lora[0]), path: long_text(&lora[1]) }),
        mm: list("mm").unwrap_or_default().iter().map(mm_item).collect(),
        cache_salt: chain.get("cache_salt").map(long_text),
        prompt_embeds: list("prompt_embeds")
            .map(|digests| digests.iter().map(|d| bytes(d).try_into().unwrap()).collect()),
    }
}

fn mm_item(item: &Value) -> MmItem {
    MmItem { identifier: long_text(&item[0]), offset: int(&item[1]), len: int(&item[2]) }
}

#[test]
fn none_hashes_of_vllms_functions() {
    for none in array(&json(FUNCTIONS)["none_hashes"]) {
        for algo in HashAlgo::ALL {
            assert_eq!(none_hash(algo, Some(text(&none["seed"]))).to_string(), none[algo.name()]);
        }
    }
}

#[test]
fn chains_of_vllms_functions() {
    let functions = json(FUNCTIONS);
    let chains = array(&functions["chains"]);
    assert!(chains.len() > 30);
    for chain in chains {
        let (tokens, extra) = (tokens(&chain["token_ids"]), extra_keys(chain));
        for algo in HashAlgo::ALL {
            let got = hashes(algo, int(&chain["block_size"]), extra.clone(), &tokens);
            assert_eq!(got.len(), int::<usize>(&chain["blocks"]), "{}", chain["name"]);
            let expected = array(&chain[algo.name()]);
            let shown: Vec<String> =
                got[got.len() - expected.len()..].iter().map(ToString::to_string).collect();
            assert_eq!(Value::from(shown), chain[algo.name()], "{algo}: {}", chain["name"]);
        }
    }
}

#[test]
fn extra_keys_of_vllms_events() {
    let mut checked = 0;
    for chain in array(&json(FUNCTIONS)["chains"]) {
        let (payload, sha256) = (chain.get("event_payload_hex"), chain.get("event_payload_sha256"));
        let (Some(expected), extra) = (payload.or(sha256), extra_keys(chain)) else {
            continue;
        };
        let (tokens, block_size) = (tokens(&chain["token_ids"]), int::<u32>(&chain["block_size"]));
        let size = NonZeroUsize::new(int(&chain["block_size"])).unwrap();
        let blocks: u64 = int(&chain["blocks"]);
        let full = size.get() * int::<usize>(&chain["blocks"]);
        let batch = EventBatch {
            ts: 2.25,
            events: vec![KvEvent::BlockStored(BlockStored {
                block_hashes: (0..blocks).map(ExternalHash::Int).collect(),
                token_ids: tokens[..full].to_vec(),
                block_size,
                lora_id: extra.lora.as_ref().map(|_| 3),
                medium: Some("GPU".to_owned()),
                lora_name: extra.lora.as_ref().map(|lora| lora.name.clone()),
                extra_keys: Some(
                    (0..blocks)
                        .map(|b| extra.event_keys(b * u64::from(block_size), size))
                        .collect(),
                ),
                group_idx: Some(0),
                kv_cache_spec_kind: Some("full_attention".to_owned()),
                ..BlockStored::default()
            })],
            data_parallel_rank: Some(0),
        };
        let mut encoded = Vec::new();
        batch.encode(&mut encoded);
        assert_eq!(EventBatch::decode(&encoded).unwrap(), batch, "{}", chain["name"]);
        let got = match payload {
            Some(_) => to_hex(&encoded),
            None => to_hex(&<sha2::Sha256 as sha2::Digest>::digest(&encoded)),
        };
        assert_eq!(got, text(expected), "{}", chain["name"]);
        checked += 1;
    }
    assert!(checked >= 12, "{checked}");
}

/// Recomputes each hash in the recorded events from the tokens in them: first blocks, blocks
/// chained to an earlier event's, blocks filled while decoding, salted ones, and repeats.
#[test]
fn hashes_in_recorded_events() {
    for (name, recorded) in RECORDED {
        let algo: HashAlgo = name.parse().unwrap();
        // The hasher as it was after each block, by the block's hash in events.
        let mut after: BTreeMap<ExternalHash, BlockHasher> = BTreeMap::new();
        let mut steps = Vec::new();
        for message in messages(&json(recorded)) {
            for event in EventBatch::decode(&message.frames[2]).unwrap().events {
                if let KvEvent::BlockStored(stored) = event {
                    check_stored(algo, &stored, &mut after);
                    steps.push(message.step.clone());
                }
            }
        }
        assert_eq!(
            steps,
            [
                "first_prompt_2_full_blocks",
                "extended_prompt",
                "decode_crosses_block",
                "decode_crosses_block",
                "exact_blocks_first",
                "exact_blocks_again",
                "cache_salt",
                "session_id_header",
                "report_mode_full",
                "first_request_after_reset"
            ]
        );
    }
}

fn check_stored(
    algo: HashAlgo,
    stored: &BlockStored,
    after: &mut BTreeMap<ExternalHash, BlockHasher>,
) {
    let block_size = usize::try_from(stored.block_size).unwrap();
    let mut hasher = match &stored.parent_block_hash {
        Some(parent) => after[parent].clone(),
        None => hasher(algo, block_size, salt_of(stored).map_or_else(ExtraKeys::default, salted)),
    };
    let blocks: Vec<&[u32]> = stored.token_ids.chunks(block_size).collect();
    assert_eq!(blocks.len(), stored.block_hashes.len());
    for (tokens, hash) in blocks.into_iter().zip(&stored.block_hashes) {
        let mut digests = Vec::new();
        hasher.extend(tokens, &mut digests);
        let expected = match hash {
            ExternalHash::Int(_) => ExternalHash::Int(digests[0].external_u64()),
            ExternalHash::Bytes(_) => digests[0].into(),
        };
        assert_eq!(*hash, expected);
        assert_eq!(hash.as_u64(), digests[0].external_u64());
        after.insert(*hash, hasher.clone());
    }
}

fn salt_of(stored: &BlockStored) -> Option<&str> {
    match stored.extra_keys.as_ref()?.first()?.as_ref()?.first()? {
        EventExtraKey::Text(salt) => Some(salt),
        _ => None,
    }
}

/// The prompts of the recorded long requests, which are not in the files but were made by this rule.
fn made_prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| 100 + (seed * 7919 + i * 31 + (i * i) % 97) % 16_000).collect()
}

/// A prompt of 3000 tokens, stored in two messages: only an excerpt and the length of each is kept.
#[test]
fn the_long_recorded_prompt() {
    for (name, recorded) in RECORDED {
        let recorded = json(recorded);
        let steps = array(&recorded["steps"]);
        let step = steps.iter().find(|step| step["step"] == "long_prompt_chunked").unwrap();
        let tokens = made_prompt(7, 3000);
        let all = hashes(name.parse().unwrap(), 32, ExtraKeys::default(), &tokens);
        assert_eq!(all.len(), 93);
        let parts = [(0, 64), (64, 93)];
        for (message, (start, end)) in array(&step["messages"]).iter().zip(parts) {
            let external = |digest: &BlockDigest| match name {
                "sha256" => ExternalHash::Int(digest.external_u64()),
                _ => (*digest).into(),
            };
            let event = BlockStored {
                block_hashes: all[start..end].iter().map(external).collect(),
                parent_block_hash: start.checked_sub(1).map(|parent| external(&all[parent])),
                token_ids: tokens[start * 32..end * 32].to_vec(),
                block_size: 32,
                medium: Some("GPU".to_owned()),
                extra_keys: Some(vec![None; end - start]),
                group_idx: Some(0),
                kv_cache_spec_kind: Some("full_attention".to_owned()),
                ..BlockStored::default()
            };
            let shown = array(&message["payload"][1][0]["block_hashes"]);
            for (index, shown) in [(0, &shown[0]), (end - start - 1, &shown[shown.len() - 1])] {
                assert_eq!(&external_json(event.block_hashes[index]), shown);
            }
            let mut encoded = Vec::new();
            EventBatch {
                ts: 1e9,
                events: vec![KvEvent::BlockStored(event)],
                data_parallel_rank: Some(0),
            }
            .encode(&mut encoded);
            assert_eq!(encoded.len(), int::<usize>(&message["payload_bytes"]));
        }
    }
}

pub(crate) fn external_json(hash: ExternalHash) -> Value {
    match hash {
        ExternalHash::Int(hash) => hash.into(),
        ExternalHash::Bytes(bytes) => serde_json::json!({ "bytes": to_hex(bytes.as_bytes()) }),
    }
}

#[test]
fn a_restarted_hasher_forgets() {
    let tokens: Vec<u32> = (0..50).collect();
    for algo in HashAlgo::ALL {
        let mut used = hasher(algo, 16, salted("abc"));
        let (mut before, mut after) = (Vec::new(), Vec::new());
        used.extend(&tokens, &mut before);
        assert_eq!((used.token_count(), used.last_hash()), (50, before[2]));
        used.restart(ExtraKeys::default());
        assert_eq!((used.token_count(), used.last_hash()), (0, none_hash(algo, None)));
        used.extend(&tokens, &mut after);
        assert_eq!(after, hashes(algo, 16, ExtraKeys::default(), &tokens));
        assert_ne!(after, before);
    }
}

#[test]
fn an_empty_salt_is_none() {
    let tokens: Vec<u32> = (0..16).collect();
    let plain = hashes(HashAlgo::Sha256, 16, ExtraKeys::default(), &tokens);
    assert_eq!(hashes(HashAlgo::Sha256, 16, salted(""), &tokens), plain);
}

#[test]
fn algorithms_have_vllms_names() {
    for algo in HashAlgo::ALL {
        assert_eq!(algo.to_string().parse(), Ok(algo));
    }
    let error = "xxhash".parse::<HashAlgo>().unwrap_err().to_string();
    assert!(error.contains("xxhash") && error.contains("sha256_cbor"), "{error}");
}
