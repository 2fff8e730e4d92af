//! `LLMServingSim`: one JSON object per line, with the real token ids of prompt and output.
//!
//! Sharing is exact to the token. Sessions are found from prefixes (see `prefix_sessions`) over
//! prompt blocks of 16 tokens: a request continues one whose whole prompt it begins with, to the
//! block.

use std::io::BufRead;

use kvroute_types::{Timestamp, mix64};
use serde::Deserialize;

use super::input::{TraceClock, check_lengths, for_each_json_line};
use super::prefix_sessions::PrefixSessions;
use super::token_trie::TokenTrie;
use super::{TraceError, TraceFormat, block_ids};
use crate::workload::{Draft, WorkloadBuilder};
use crate::{Arrival, Workload};

const SESSION_BLOCK_TOKENS: usize = 16;
const PREFIX_KEY_TOKENS: usize = 64;

#[derive(Deserialize)]
struct Record {
    input_toks: u32,
    output_toks: u32,
    arrival_time_ns: u64,
    input_tok_ids: Vec<u32>,
    output_tok_ids: Vec<u32>,
}

pub(super) fn read(reader: impl BufRead) -> Result<Workload, TraceError> {
    let mut builder = WorkloadBuilder::default();
    let mut clock = TraceClock::default();
    let mut sessions = PrefixSessions::default();
    let mut trie = TokenTrie::default();
    for_each_json_line(reader, TraceFormat::LlmServingSim, |line, record: Record| {
        let (prompt_tokens, output_tokens) = (record.input_toks, record.output_toks);
        check_lengths(line, ("input_toks", prompt_tokens), ("output_toks", output_tokens))?;
        check_ids(line, "input_tok_ids", &record.input_tok_ids, prompt_tokens)?;
        check_ids(line, "output_tok_ids", &record.output_tok_ids, output_tokens)?;
        let arrival = clock.arrival(line, Timestamp::from_nanos(record.arrival_time_ns))?;
        let mut tokens = record.input_tok_ids;
        let blocks = tokens.chunks_exact(SESSION_BLOCK_TOKENS).map(hash_tokens);
        let session = sessions.assign(blocks);
        let prefix_key = hash_tokens(&tokens[..tokens.len().min(PREFIX_KEY_TOKENS)]);
        tokens.extend(record.output_tok_ids);
        let content = builder.content(trie.insert(&tokens));
        builder.push(Draft {
            session,
            arrival: Arrival::At(arrival),
            prompt_tokens,
            output_tokens,
            content,
            session_key: block_ids::session_key(session),
            prefix_key,
        });
        Ok(())
    })?;
    builder.literals = trie.into_literals().collect();
    Ok(builder.finish(TraceFormat::LlmServingSim.name()))
}

fn check_ids(
    line: usize,
    field: &'static str,
    ids: &[u32],
    expected: u32,
) -> Result<(), TraceError> {
    if ids.len() == expected as usize {
        return Ok(());
    }
    Err(TraceError::TokenIds { line, field, found: ids.len(), expected })
}

fn hash_tokens(tokens: &[u32]) -> u64 {
    tokens.iter().fold(0, |hash, token| mix64(hash ^ u64::from(*token)))
}
