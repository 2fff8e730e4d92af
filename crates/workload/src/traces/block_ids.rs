//! Prompts given as ids of blocks of a fixed size.
//!
//! Ids that count up by one are joined into one segment, named after the first of them. Splitting
//! at every other step is canonical: two id lists that agree on their first `n` ids split into the
//! same segments over those, so segments share exactly the prefixes that the ids share. (An id
//! counts only behind the same ids before it, as in a KV cache, even in traces that hash each block
//! alone.)

use crate::{Segment, SegmentId};

/// Splits `prompt_tokens` tokens in blocks of `block_tokens` into segments of number space `space`.
pub(super) fn segments(
    space: u64,
    ids: &[u64],
    block_tokens: u32,
    prompt_tokens: u32,
) -> impl Iterator<Item = Segment> {
    let mut left = prompt_tokens;
    ids.chunk_by(|a, b| a.checked_add(1) == Some(*b)).map(move |run| {
        let blocks = u32::try_from(run.len()).unwrap_or(u32::MAX);
        let tokens = blocks.saturating_mul(block_tokens).min(left);
        left -= tokens;
        Segment { id: SegmentId::derive(space, run[0]), tokens }
    })
}

/// Number space of a trace's block ids.
pub(super) const BLOCKS: u64 = 0x626c_6f63;

/// Content that only request number `request` has.
pub(super) fn private(request: usize, tokens: u32) -> Segment {
    const PRIVATE: u64 = 0x7072_6976;
    Segment { id: SegmentId::derive(PRIVATE, request as u64), tokens }
}

/// Prefix key of a prompt of block ids: its first two (Mooncake's first block is the same
/// everywhere).
pub(super) fn prefix_key(ids: &[u64]) -> u64 {
    ids.iter().take(2).fold(BLOCKS, |hash, id| kvroute_types::mix64(hash ^ *id))
}

/// Session key of a session known by a number only.
pub(super) fn session_key(session: u32) -> u64 {
    const SESSIONS: u64 = 0x7365_7373;
    SegmentId::derive(SESSIONS, u64::from(session)).0
}
