//! The serialised bytes themselves; the hashes of them are tested in `tests/it/block_hash.rs`.

use super::*;

/// `seed` and a block's `parent`, `tokens` and `keys`, each as the bytes that are hashed, in hex.
fn serialised(algo: HashAlgo, parent: [u8; 32], tokens: &[u32], keys: &[ExtraKey<'_>]) -> String {
    let mut writer = BlockWriter::new(algo);
    writer.begin(&BlockDigest(parent), tokens.len());
    writer.tokens(tokens);
    hex(match &mut writer {
        BlockWriter::Pickle(writer) => writer.finish(tokens.len(), keys),
        BlockWriter::Cbor(writer) => writer.finish(keys),
    })
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.map(|digit| char::from_digit(digit.into(), 16).unwrap()).collect()
}

const PARENT: [u8; 32] = [0x11; 32];

#[test]
fn a_seed_is_serialised_as_a_text() {
    let seed = "vllm-none-hash";
    assert_eq!(
        hex(PickleWriter::default().text_alone(seed)),
        "80059512000000000000008c0e766c6c6d2d6e6f6e652d68617368942e"
    );
    assert_eq!(hex(CborWriter::default().text_alone(seed)), "6e766c6c6d2d6e6f6e652d68617368");
}

#[test]
fn a_block_is_serialised_as_python_does() {
    let parent = "11".repeat(32);
    assert_eq!(
        serialised(HashAlgo::Sha256, PARENT, &[1, 300, 70_000, 2], &[]),
        format!(
            "800595360000000000000043 20{parent}94 28 4b01 4d2c01 4a70110100 4b02 7494 4e 87942e"
        )
        .replace(' ', "")
    );
    assert_eq!(
        serialised(HashAlgo::Sha256Cbor, PARENT, &[1, 300, 70_000, 2], &[]),
        format!("83 5820{parent} 84 01 19012c 1a00011170 02 f6").replace(' ', "")
    );
}

#[test]
fn the_first_recorded_block_has_the_recorded_bytes() {
    let vectors = include_str!("../../tests/fixtures/block_hash_vectors.json");
    let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
    for algo in HashAlgo::ALL {
        let recorded = &vectors[algo.name()];
        let tokens = recorded["vectors"][0]["token_ids"].as_array().unwrap();
        let tokens: Vec<u32> =
            tokens[..32].iter().map(|t| u32::try_from(t.as_u64().unwrap()).unwrap()).collect();
        let root = none_hash(algo, None);
        assert_eq!(root.to_string(), recorded["none_hash_hex"]);
        assert_eq!(serialised(algo, root.0, &tokens, &[]), recorded["serialized_first_block_hex"]);
    }
}

#[test]
fn the_second_mm_tag_is_a_memo_reference() {
    let keys = [
        ExtraKey::Mm { identifier: "img", offset: 0 },
        ExtraKey::Mm { identifier: "img", offset: -2 },
    ];
    // Memo: 0 parent, 1 tokens, 2 "mm", 3 the first identifier.
    let first = "8c026d6d94 8c03696d6794 4b00 8794";
    let second = "6802 8c03696d6794 4afeffffff 8794";
    let pickled = serialised(HashAlgo::Sha256, PARENT, &[7], &keys);
    let end = format!("4b07 8594 {first} {second} 8694 87942e").replace(' ', "");
    assert!(pickled.ends_with(&end), "{pickled} does not end in {end}");
}

#[test]
fn integers_past_32_bits_are_written_as_long() {
    // `pickle.dumps(n, 5)[2:-1]`: numbers this long are framed alone.
    let cases = [
        (0x7fff_ffff, "4affffff7f"),
        (0x8000_0000, "8a050000008000"),
        (-0x8000_0000, "4a00000080"),
        (-0x8000_0001, "8a05ffffff7fff"),
        (1 << 39, "8a06000000008000"),
        (-1 << 39, "8a050000000080"),
        (i64::MAX, "8a08ffffffffffffff7f"),
        (i64::MIN, "8a080000000000000080"),
    ];
    for (value, expected) in cases {
        let keys = [ExtraKey::Mm { identifier: "img", offset: value }];
        let pickled = serialised(HashAlgo::Sha256, PARENT, &[7], &keys);
        let end = format!("{expected}87948594 87942e").replace(' ', "");
        assert!(pickled.ends_with(&end), "{value}: {pickled} does not end in {end}");
    }
}
