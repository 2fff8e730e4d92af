//! The recorded files under `tests/fixtures`, read.

use serde_json::Value;

pub(crate) const RECORDED: [(&str, &str); 2] = [
    ("sha256", include_str!("../fixtures/events.json")),
    ("sha256_cbor", include_str!("../fixtures/events-sha256_cbor-bytes.json")),
];
pub(crate) const REPLAYED: [&str; 2] = [
    include_str!("../fixtures/replay.json"),
    include_str!("../fixtures/replay-sha256_cbor-bytes.json"),
];
pub(crate) const BLOCK_HASHES: &str = include_str!("../fixtures/block_hash_vectors.json");
pub(crate) const LEGACY: &str = include_str!("../fixtures/legacy_array_form_synthetic.json");
pub(crate) const FUNCTIONS: &str = include_str!("../fixtures/vllm_function_vectors.json");

pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

pub(crate) fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

pub(crate) fn int<T: TryFrom<u64>>(value: &Value) -> T {
    T::try_from(value.as_u64().unwrap()).ok().unwrap()
}

pub(crate) fn bytes(hex: &Value) -> Vec<u8> {
    from_hex(text(hex))
}

pub(crate) fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter(|c| !c.is_whitespace()).map(hex_digit).collect();
    assert_eq!(digits.len() % 2, 0, "half a byte in {hex}");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.map(|digit| char::from_digit(digit.into(), 16).unwrap()).collect()
}

fn hex_digit(digit: char) -> u8 {
    u8::try_from(digit.to_digit(16).unwrap()).unwrap()
}

/// A message of a recorded event file of which all bytes are there.
pub(crate) struct Message {
    pub(crate) step: String,
    pub(crate) frames: Vec<Vec<u8>>,
    pub(crate) seq: u64,
    /// The payload as `msgspec` decoded it; bytes are `{"bytes": hex}`.
    pub(crate) decoded: Value,
}

pub(crate) fn messages(recorded: &Value) -> Vec<Message> {
    let mut messages = Vec::new();
    for step in array(&recorded["steps"]) {
        for message in array(&step["messages"]) {
            if let Some(frames) = message.get("frames_hex") {
                messages.push(Message {
                    step: text(&step["step"]).to_owned(),
                    frames: array(frames).iter().map(bytes).collect(),
                    seq: int(&message["seq"]),
                    decoded: message["payload"].clone(),
                });
            }
        }
    }
    messages
}
