//! vLLM's bytes, exact: the hashes that name KV blocks, and the messages that announce them.
//!
//! * [`BlockHasher`] chains token ids into the block hashes that a vLLM server computes for the
//!   same tokens ([`HashAlgo`], [`ExtraKeys`]), so a router can look up a prompt that it has only
//!   tokenised, and a mock server can publish what the real one would.
//! * [`EventBatch`] is the payload of one KV-event message, to and from its `MessagePack` bytes.
//! * The frame functions ([`publish_frames`], [`replay_request_frames`] and their kin) split and
//!   build the multipart messages around it.
//!
//! Everything here is held to bytes recorded from vLLM 0.32.0, or computed by running its
//! functions (`tests/fixtures/README.md`); older forms are read too, where that is said.
//!
//! The crate is *not* a subscriber or a publisher: it opens no socket, keeps no sequence number and
//! knows no clock. Nor is it an index: what a stored or removed block means for a cache is for its
//! reader, who must count copies of a hash (vLLM stores one twice and removes it twice). It does
//! not tokenise, and it does not compute vLLM's `xxhash` digests: those start from a secret of the
//! server's process unless `PYTHONHASHSEED` is set. Events that carry them are read all the same.

mod block_hash;
mod frames;
mod kv_event;

pub use block_hash::{
    BlockDigest, BlockHasher, ExtraKeys, HashAlgo, LoraKey, MmItem, UnknownHashAlgo, none_hash,
};
pub use frames::{
    BatchFrames, END_SEQ, FrameError, ReplayForm, ReplayReply, parse_publish, parse_replay_reply,
    parse_replay_request, publish_frames, replay_batch_frames, replay_end_frames,
    replay_request_frames,
};
pub use kv_event::{
    BlockRemoved, BlockStored, DecodeError, EventBatch, EventExtraKey, ExternalHash, HashBytes,
    KvEvent, RawValue, medium,
};
