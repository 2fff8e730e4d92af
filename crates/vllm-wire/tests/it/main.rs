//! Block hashes, KV events and frames against bytes of a real vLLM.

#![expect(clippy::unwrap_used, reason = "a fixture that does not read fails its test")]

mod block_hash;
mod fixtures;
mod frames;
mod kv_event;
mod properties;
