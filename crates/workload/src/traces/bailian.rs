//! Bailian (Qwen): one JSON object per line, ids of 16-token blocks, chats with parents.
//!
//! A request belongs to its parent's session; one whose parent is not in the trace (it came before
//! the recording, or is -1) starts a session. Turns count in order of arrival, so a regenerated
//! answer is a turn of its own. The id of a partial last block may be there or not; without one
//! those tokens are private. Outputs are private, as the trace does not say which later block holds
//! an answer.

use std::io::BufRead;

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;
use serde::Deserialize;

use super::block_ids::{self, BLOCKS};
use super::input::{TraceClock, check_lengths, for_each_json_line};
use super::{TraceError, TraceFormat};
use crate::workload::{Draft, WorkloadBuilder};
use crate::{Arrival, Workload};

const BLOCK_TOKENS: u32 = 16;

#[derive(Deserialize)]
struct Record {
    chat_id: i64,
    parent_chat_id: i64,
    /// Seconds since the trace began.
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
}

pub(super) fn read(reader: impl BufRead) -> Result<Workload, TraceError> {
    let mut builder = WorkloadBuilder::with_trace_blocks(BLOCK_TOKENS);
    let mut clock = TraceClock::default();
    let mut sessions = Chats::default();
    for_each_json_line(reader, TraceFormat::Bailian, |line, record: Record| {
        let (prompt_tokens, output_tokens) = (record.input_length, record.output_length);
        check_lengths(line, ("input_length", prompt_tokens), ("output_length", output_tokens))?;
        let covered = covered_tokens(line, &record.hash_ids, prompt_tokens)?;
        let arrival = Arrival::At(clock.arrival_in(line, "timestamp", record.timestamp, 1.0)?);
        let session = sessions.assign(record.chat_id, record.parent_chat_id);
        let prompt = block_ids::segments(BLOCKS, &record.hash_ids, BLOCK_TOKENS, covered);
        let rest = prompt_tokens - covered + output_tokens;
        let private = block_ids::private(builder.drafts.len(), rest);
        let content = builder.content(prompt.chain([private]));
        builder.push(Draft {
            session,
            arrival,
            prompt_tokens,
            output_tokens,
            content,
            session_key: block_ids::session_key(session),
            prefix_key: block_ids::prefix_key(&record.hash_ids),
        });
        Ok(())
    })?;
    Ok(builder.finish(TraceFormat::Bailian.name()))
}

/// Prompt tokens that the ids cover: all, or the full blocks.
fn covered_tokens(line: usize, ids: &[u64], prompt_tokens: u32) -> Result<u32, TraceError> {
    let found = ids.len() as u64;
    let (full, expected) = (prompt_tokens / BLOCK_TOKENS, prompt_tokens.div_ceil(BLOCK_TOKENS));
    if found == u64::from(expected) {
        return Ok(prompt_tokens);
    }
    if found == u64::from(full) {
        return Ok(full * BLOCK_TOKENS);
    }
    let expected = u64::from(expected);
    Err(TraceError::BlockIds { line, found, expected, prompt_tokens, block_tokens: BLOCK_TOKENS })
}

#[derive(Default)]
struct Chats {
    session_of: HashMap<i64, u32, FxBuildHasher>,
    sessions: u32,
}

impl Chats {
    fn assign(&mut self, chat: i64, parent: i64) -> u32 {
        let session = self.session_of.get(&parent).copied().unwrap_or_else(|| {
            self.sessions += 1;
            self.sessions - 1
        });
        self.session_of.insert(chat, session);
        session
    }
}
