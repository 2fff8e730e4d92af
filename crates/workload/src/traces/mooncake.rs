//! Mooncake: one JSON object per line, ids of 512-token blocks in one space for the whole trace.
//!
//! The last id covers what is left of the prompt. Sessions are found from prefixes (see
//! `prefix_sessions`); outputs are private, as the trace does not say which later block holds an
//! answer.

use std::io::BufRead;

use serde::Deserialize;

use super::block_ids::{self, BLOCKS};
use super::input::{TraceClock, check_lengths, for_each_json_line};
use super::prefix_sessions::PrefixSessions;
use super::{TraceError, TraceFormat};
use crate::workload::{Draft, WorkloadBuilder};
use crate::{Arrival, Workload};

const BLOCK_TOKENS: u32 = 512;

#[derive(Deserialize)]
struct Record {
    /// Milliseconds since the trace began.
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
}

pub(super) fn read(reader: impl BufRead) -> Result<Workload, TraceError> {
    let mut builder = WorkloadBuilder::with_trace_blocks(BLOCK_TOKENS);
    let mut clock = TraceClock::default();
    let mut sessions = PrefixSessions::default();
    for_each_json_line(reader, TraceFormat::Mooncake, |line, record: Record| {
        let Record {
            timestamp,
            input_length: prompt_tokens,
            output_length: output_tokens,
            hash_ids,
        } = record;
        check_lengths(line, ("input_length", prompt_tokens), ("output_length", output_tokens))?;
        check_ids(line, &hash_ids, prompt_tokens)?;
        let arrival = Arrival::At(clock.arrival_in(line, "timestamp", timestamp, 1e-3)?);
        let full = &hash_ids[..(prompt_tokens / BLOCK_TOKENS) as usize];
        let session = sessions.assign(full.iter().copied());
        let prompt = block_ids::segments(BLOCKS, &hash_ids, BLOCK_TOKENS, prompt_tokens);
        let output = block_ids::private(builder.drafts.len(), output_tokens);
        let content = builder.content(prompt.chain([output]));
        builder.push(Draft {
            session,
            arrival,
            prompt_tokens,
            output_tokens,
            content,
            session_key: block_ids::session_key(session),
            prefix_key: block_ids::prefix_key(&hash_ids),
        });
        Ok(())
    })?;
    Ok(builder.finish(TraceFormat::Mooncake.name()))
}

fn check_ids(line: usize, ids: &[u64], prompt_tokens: u32) -> Result<(), TraceError> {
    let (found, expected) = (ids.len() as u64, u64::from(prompt_tokens.div_ceil(BLOCK_TOKENS)));
    if found == expected {
        return Ok(());
    }
    Err(TraceError::BlockIds { line, found, expected, prompt_tokens, block_tokens: BLOCK_TOKENS })
}
