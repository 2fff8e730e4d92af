//! Writing a batch as `msgspec` writes vLLM 0.32.0's structs: shortest lengths and integers, fields
//! in the order of the class, and those with a default left out where they have it.

use std::fmt;

use rmp::encode::{
    write_array_len, write_bin, write_f64, write_map_len, write_nil, write_sint, write_str,
    write_uint,
};

use super::{
    BlockRemoved, BlockStored, EventBatch, EventExtraKey, ExternalHash, KvEvent, RawValue, name,
};

impl EventBatch {
    /// Adds the payload of this batch to `out`: the bytes vLLM 0.32.0 publishes for it.
    ///
    /// # Panics
    /// If a list or text has more than 2^32 - 1 items or bytes, more than the format can say.
    pub fn encode(&self, out: &mut Vec<u8>) {
        array(out, 3);
        written(write_f64(out, self.ts));
        array(out, self.events.len());
        for event in &self.events {
            match event {
                KvEvent::BlockStored(stored) => block_stored(out, stored),
                KvEvent::BlockRemoved(removed) => block_removed(out, removed),
                KvEvent::AllBlocksCleared => begin_event(out, name::ALL_BLOCKS_CLEARED, 0),
            }
        }
        or_nil(out, self.data_parallel_rank, uint);
    }
}

fn block_stored(out: &mut Vec<u8>, stored: &BlockStored) {
    let BlockStored {
        block_hashes,
        parent_block_hash,
        token_ids,
        block_size,
        lora_id,
        medium,
        lora_name,
        extra_keys,
        group_idx,
        kv_cache_spec_kind,
        kv_cache_spec_sliding_window,
        locality,
        ownership,
        session_id,
    } = stored;
    let optional = [
        extra_keys.is_some(),
        group_idx.is_some(),
        kv_cache_spec_kind.is_some(),
        kv_cache_spec_sliding_window.is_some(),
        locality.is_some(),
        ownership.is_some(),
        session_id.is_some(),
    ];
    begin_event(out, name::BLOCK_STORED, 7 + count(&optional));
    key(out, name::BLOCK_HASHES);
    list(out, block_hashes, |out, hash| external_hash(out, *hash));
    key(out, name::PARENT_BLOCK_HASH);
    or_nil(out, *parent_block_hash, external_hash);
    key(out, name::TOKEN_IDS);
    list(out, token_ids, |out, token| uint(out, *token));
    key(out, name::BLOCK_SIZE);
    uint(out, *block_size);
    key(out, name::LORA_ID);
    or_nil(out, *lora_id, sint);
    key(out, name::MEDIUM);
    or_nil(out, medium.as_deref(), text);
    key(out, name::LORA_NAME);
    or_nil(out, lora_name.as_deref(), text);
    or_omit(out, name::EXTRA_KEYS, extra_keys.as_ref(), |out, blocks| {
        list(out, blocks, |out, keys| {
            or_nil(out, keys.as_ref(), |out, keys| list(out, keys, extra_key));
        });
    });
    or_omit(out, name::GROUP_IDX, *group_idx, uint);
    or_omit(out, name::SPEC_KIND, kv_cache_spec_kind.as_deref(), text);
    or_omit(out, name::SLIDING_WINDOW, *kv_cache_spec_sliding_window, uint);
    or_omit(out, name::LOCALITY, locality.as_deref(), text);
    or_omit(out, name::OWNERSHIP, ownership.as_deref(), text);
    or_omit(out, name::SESSION_ID, session_id.as_deref(), text);
}

fn block_removed(out: &mut Vec<u8>, removed: &BlockRemoved) {
    let BlockRemoved { block_hashes, medium, group_idx, locality, ownership } = removed;
    let optional = [group_idx.is_some(), locality.is_some(), ownership.is_some()];
    begin_event(out, name::BLOCK_REMOVED, 2 + count(&optional));
    key(out, name::BLOCK_HASHES);
    list(out, block_hashes, |out, hash| external_hash(out, *hash));
    key(out, name::MEDIUM);
    or_nil(out, medium.as_deref(), text);
    or_omit(out, name::GROUP_IDX, *group_idx, uint);
    or_omit(out, name::LOCALITY, locality.as_deref(), text);
    or_omit(out, name::OWNERSHIP, ownership.as_deref(), text);
}

/// The map's head and its type; `fields` more follow.
fn begin_event(out: &mut Vec<u8>, event: &str, fields: usize) {
    written(write_map_len(out, len_u32(1 + fields)));
    key(out, name::TYPE);
    text(out, event);
}

fn external_hash(out: &mut Vec<u8>, hash: ExternalHash) {
    match hash {
        ExternalHash::Int(hash) => uint(out, hash),
        ExternalHash::Bytes(bytes) => written(write_bin(out, bytes.as_bytes())),
    }
}

fn extra_key(out: &mut Vec<u8>, key: &EventExtraKey) {
    match key {
        EventExtraKey::Text(key) => text(out, key),
        EventExtraKey::Mm { identifier, offset } => {
            array(out, 2);
            text(out, identifier);
            sint(out, *offset);
        }
        EventExtraKey::Digest(digest) => written(write_bin(out, digest.as_bytes())),
        EventExtraKey::Other(RawValue(bytes)) => out.extend_from_slice(bytes),
    }
}

fn key(out: &mut Vec<u8>, name: &str) {
    text(out, name);
}

fn text(out: &mut Vec<u8>, text: &str) {
    written(write_str(out, text));
}

fn uint(out: &mut Vec<u8>, value: impl Into<u64>) {
    written(write_uint(out, value.into()));
}

fn sint(out: &mut Vec<u8>, value: i64) {
    written(write_sint(out, value));
}

fn array(out: &mut Vec<u8>, len: usize) {
    written(write_array_len(out, len_u32(len)));
}

fn list<T>(out: &mut Vec<u8>, items: &[T], item: impl Fn(&mut Vec<u8>, &T)) {
    array(out, items.len());
    for value in items {
        item(out, value);
    }
}

fn or_nil<T>(out: &mut Vec<u8>, value: Option<T>, write: impl Fn(&mut Vec<u8>, T)) {
    match value {
        Some(value) => write(out, value),
        None => written(write_nil(out)),
    }
}

fn or_omit<T>(out: &mut Vec<u8>, name: &str, value: Option<T>, write: impl Fn(&mut Vec<u8>, T)) {
    if let Some(value) = value {
        key(out, name);
        write(out, value);
    }
}

fn count(present: &[bool]) -> usize {
    present.iter().filter(|present| **present).count()
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("a list in an event has fewer than 2^32 items")
}

/// `rmp` reports a writer's errors; a `Vec` has none.
fn written<T, E: fmt::Debug>(result: Result<T, E>) {
    result.expect("a Vec takes every write");
}
