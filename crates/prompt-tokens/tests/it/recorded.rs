//! What a real vLLM 0.32.0 answered.

use std::num::NonZeroUsize;

use kvroute_prompt_tokens::{BlockHashes, Endpoint, HashSettings};
use kvroute_vllm_wire::{ExtraKeys, HashAlgo};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{fixture, open};

#[derive(Deserialize)]
struct Recorded {
    name: String,
    endpoint: String,
    body: Box<RawValue>,
    /// Prompt tokens that the server counted.
    count: usize,
    ids: Option<Vec<u32>>,
}

#[test]
fn recorded_prompts_have_the_recorded_ids() {
    let model = open("tiny");
    let text = std::fs::read_to_string(fixture("recorded.json")).unwrap();
    let recorded: Vec<Recorded> = serde_json::from_str(&text).unwrap();
    assert!(recorded.iter().filter(|entry| entry.ids.is_some()).count() >= 2);
    for Recorded { name, endpoint, body, count, ids } in recorded {
        let endpoint = if endpoint == "chat" { Endpoint::Chat } else { Endpoint::Completions };
        let tokens = model.from_body(endpoint, body.get().as_bytes(), None).unwrap();
        assert_eq!(tokens.prompts.concat().len(), count, "{name}");
        if let Some(ids) = ids {
            assert_eq!(tokens.prompts, [ids], "{name}");
        }
    }
}

/// The vectors of `vllm-wire`, all equal to hashes in events of a real vLLM.
#[test]
fn recorded_ids_have_the_recorded_hashes() {
    let path = fixture("../../../vllm-wire/tests/fixtures/block_hash_vectors.json");
    let vectors: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for algo in HashAlgo::ALL {
        for vector in vectors[algo.name()]["vectors"].as_array().unwrap() {
            let size = usize::try_from(vector["block_size"].as_u64().unwrap()).unwrap();
            let settings = HashSettings {
                algo,
                block_size: NonZeroUsize::new(size).unwrap(),
                pythonhashseed: None,
            };
            let hashes = BlockHashes::new(settings, 1 << 20);
            let ids: Vec<u32> = serde_json::from_value(vector["token_ids"].clone()).unwrap();
            let salt = vector["extra_keys_of_first_block"][0][1].as_str();
            let keys =
                ExtraKeys { cache_salt: salt.map(ToOwned::to_owned), ..ExtraKeys::default() };
            let expected: Vec<String> =
                serde_json::from_value(vector["all_block_hashes_hex"].clone()).unwrap();
            for _ in 0..2 {
                let found: Vec<String> =
                    hashes.of(&ids, &keys).iter().map(ToString::to_string).collect();
                assert_eq!(found, expected, "{}", vector["step"]);
            }
        }
    }
}
