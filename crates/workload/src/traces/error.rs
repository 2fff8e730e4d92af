//! What can be wrong with a trace.

use std::io;

use thiserror::Error;

use super::TraceFormat;
use crate::{ArrivalError, DistributionError};

/// Why a trace could not be read. Lines count from 1, in the unpacked text.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The source failed.
    #[error("line {line}: the trace cannot be read")]
    Io {
        /// Line at which it happened.
        line: usize,
        /// The cause.
        source: io::Error,
    },
    /// A compressed file that was cut off.
    #[error("line {line}: the compressed data end too early; the file was cut off, get it again")]
    Truncated {
        /// Line at which the data ended.
        line: usize,
    },
    /// A record that is not JSON, or lacks a field.
    #[error("line {line}: not a record of the {format} format; check the format and this line")]
    Json {
        /// Line of the record.
        line: usize,
        /// The format asked for.
        format: TraceFormat,
        /// What the JSON parser says.
        source: serde_json::Error,
    },
    /// A CSV row that cannot be split into fields.
    #[error("line {line}: not a CSV row of the {format} format; check the format and this line")]
    Csv {
        /// Line of the row.
        line: usize,
        /// The format asked for.
        format: TraceFormat,
        /// What the CSV parser says.
        source: csv::Error,
    },
    /// A CSV header without a column that is needed.
    #[error("the header has no column {column:?}, only {found:?}; check the format")]
    MissingColumn {
        /// The column that is needed.
        column: &'static str,
        /// The columns there are.
        found: Vec<String>,
    },
    /// A value that makes no sense.
    #[error("line {line}: {field} is {found:?}; it must be {expected}")]
    BadValue {
        /// Line of the record.
        line: usize,
        /// The field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// An arrival before the one above it.
    #[error("line {line}: arrival {at_s} s is before {previous_s} s; sort the trace by arrival")]
    ArrivalOutOfOrder {
        /// Line of the record.
        line: usize,
        /// Its arrival, in seconds on the trace's clock.
        at_s: f64,
        /// The arrival above it.
        previous_s: f64,
    },
    /// A request without prompt or without output.
    #[error("line {line}: {field} is 0; remove requests that failed")]
    NoTokens {
        /// Line of the record.
        line: usize,
        /// The count that is zero.
        field: &'static str,
    },
    /// Block ids that do not cover the prompt.
    #[error(
        "line {line}: {found} block ids for a prompt of {prompt_tokens} tokens; blocks of \
         {block_tokens} tokens take {expected}; check the block size of the trace"
    )]
    BlockIds {
        /// Line of the record.
        line: usize,
        /// Ids found.
        found: u64,
        /// Ids needed.
        expected: u64,
        /// Prompt length.
        prompt_tokens: u32,
        /// Block size of the format.
        block_tokens: u32,
    },
    /// A list of token ids whose length contradicts the count beside it.
    #[error("line {line}: {field} holds {found} token ids, the count beside it says {expected}")]
    TokenIds {
        /// Line of the record.
        line: usize,
        /// The list.
        field: &'static str,
        /// Its length.
        found: usize,
        /// What the count says.
        expected: u32,
    },
    /// Messages of one number and of different lengths.
    #[error(
        "line {line}: text {text} has {found} tokens, and {expected} on line {first_line}; give \
         another text another number"
    )]
    TextLength {
        /// Line of the later one.
        line: usize,
        /// Their number.
        text: u64,
        /// Tokens of the later one.
        found: u32,
        /// Line of the first one.
        first_line: usize,
        /// Tokens of the first one.
        expected: u32,
    },
    /// No request at all.
    #[error(
        "the trace has no requests ({dropped} records were left out); check the file and the filters"
    )]
    Empty {
        /// Records left out by rule or filter.
        dropped: u32,
    },
    /// An option that makes no sense.
    #[error("the trace options cannot be used")]
    Arrival(#[from] ArrivalError),
    /// A think time that makes no sense.
    #[error("the trace options cannot be used")]
    Distribution(#[from] DistributionError),
}

impl TraceError {
    pub(super) fn io(line: usize, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated { line },
            _ => Self::Io { line, source },
        }
    }
}
