//! Readers of public traces.
//!
//! Every reader takes `impl BufRead`, checks every record and returns the whole workload or an
//! error that names the line; there is no partial result. [`TraceFormat::read`] also unpacks gzip
//! and zstd.
//!
//! Arrivals count from the first request of the trace. Traces of arrivals are open-loop: requests
//! keep their times even where sessions are known, as recorded times include a recorded server's
//! delays. Traces of conversations (`ShareGPT`, agentic) are closed-loop: sessions start as a
//! Poisson process and later turns follow their predecessor after a think time.

mod agentic;
mod azure;
mod bailian;
mod block_ids;
mod burstgpt;
mod error;
mod input;
mod llmservingsim;
mod mooncake;
mod prefix_sessions;
mod sharegpt;
pub(crate) mod token_trie;

use std::fmt;
use std::io::BufRead;
use std::num::NonZeroU32;
use std::str::FromStr;

use thiserror::Error;

pub use error::TraceError;
pub use input::decompress;

use crate::{Distribution, Workload};

/// A trace format that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TraceFormat {
    /// Mooncake JSONL: ids of 512-token prefix blocks (FAST'25, `kvcache-ai/Mooncake`).
    Mooncake,
    /// Bailian (Qwen) JSONL: ids of 16-token blocks, chats with parents
    /// (`alibaba-edu/qwen-bailian-usagetraces-anon`).
    Bailian,
    /// Azure LLM inference CSV: arrivals and lengths (`Azure/AzurePublicDataset`).
    Azure,
    /// `BurstGPT` CSV: arrivals and lengths, sometimes sessions (`HPMLL/BurstGPT`).
    BurstGpt,
    /// `ShareGPT` V3 JSON: conversations as text. Token counts are estimated as a quarter of the
    /// characters.
    ShareGpt,
    /// Conversations as token counts, JSONL: `[["h", 34], ["g", 244], …]` of human, model, tool (`t`)
    /// and others. A third element numbers a text: equal numbers are equal texts.
    ShareGptLengths,
    /// `LLMServingSim` JSONL: real token ids of prompts and outputs (`casys-kaist/LLMServingSim`).
    LlmServingSim,
    /// Agentic coding sessions, JSONL: run-length coded ids of 64-token blocks, think times
    /// (from `callanjfox/kv-cache-tester`).
    Agentic,
}

/// No such trace format.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown trace format {name:?}; known are {}", TraceFormat::ALL.map(TraceFormat::name).join(", "))]
pub struct UnknownTraceFormat {
    /// What was asked for.
    pub name: String,
}

/// What a trace of conversations leaves open. Traces with arrivals of their own use none of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceOptions {
    /// Rate at which sessions start (Poisson), sessions per second.
    pub sessions_per_s: f64,
    /// Time from the end of an answer to the next human message, seconds; used by the `ShareGPT`
    /// formats (the agentic form records its own).
    pub think_time_s: Distribution,
    /// Time from the end of an answer that calls a tool to the request with its result, seconds; used
    /// as `think_time_s` is.
    pub tool_time_s: Distribution,
    /// Recorded think times are cut to this, seconds; `None` keeps breaks of hours.
    pub think_time_s_max: Option<f64>,
    /// Sessions in which any prompt is longer are left out, and counted as dropped.
    pub prompt_tokens_max: Option<u32>,
    /// How often the conversations of the file take place. Those of a later round are other people's:
    /// they say new things, but for what sessions share within a round.
    pub rounds: NonZeroU32,
    /// Seed of session starts and drawn think times.
    pub seed: u64,
}

impl Default for TraceOptions {
    /// One session per second, one round; log-normal think times with mean 30 s and tools that take
    /// 1 s, assumptions.
    fn default() -> Self {
        Self {
            sessions_per_s: 1.0,
            think_time_s: Distribution::LogNormal { mean: 30.0, sigma: 1.0 },
            tool_time_s: Distribution::Constant { value: 1.0 },
            think_time_s_max: None,
            prompt_tokens_max: None,
            rounds: NonZeroU32::MIN,
            seed: 0,
        }
    }
}

impl TraceFormat {
    /// All formats, in the order of their documentation.
    pub const ALL: [Self; 8] = [
        Self::Mooncake,
        Self::Bailian,
        Self::Azure,
        Self::BurstGpt,
        Self::ShareGpt,
        Self::ShareGptLengths,
        Self::LlmServingSim,
        Self::Agentic,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mooncake => "mooncake",
            Self::Bailian => "bailian",
            Self::Azure => "azure",
            Self::BurstGpt => "burstgpt",
            Self::ShareGpt => "sharegpt",
            Self::ShareGptLengths => "sharegpt-lengths",
            Self::LlmServingSim => "llmservingsim",
            Self::Agentic => "agentic",
        }
    }

    /// Whether requests have times; a trace of conversations only tells what follows what.
    pub const fn has_arrivals(self) -> bool {
        !matches!(self, Self::ShareGpt | Self::ShareGptLengths | Self::Agentic)
    }

    /// Reads a trace of this format: plain, gzip or zstd, told apart by the first bytes.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn read(
        self,
        reader: impl BufRead,
        options: &TraceOptions,
    ) -> Result<Workload, TraceError> {
        let unreadable = |source| TraceError::Io { line: 1, source };
        let reader = decompress(reader).map_err(unreadable)?;
        let workload = match self {
            Self::Mooncake => mooncake::read(reader),
            Self::Bailian => bailian::read(reader),
            Self::Azure => azure::read(reader),
            Self::BurstGpt => burstgpt::read(reader),
            Self::ShareGpt => sharegpt::read_text(reader, options),
            Self::ShareGptLengths => sharegpt::read_lengths(reader, options),
            Self::LlmServingSim => llmservingsim::read(reader),
            Self::Agentic => agentic::read(reader, options),
        }?;
        if workload.requests().is_empty() {
            return Err(TraceError::Empty { dropped: workload.dropped() });
        }
        Ok(workload)
    }
}

impl FromStr for TraceFormat {
    type Err = UnknownTraceFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| UnknownTraceFormat { name: name.to_owned() })
    }
}

impl fmt::Display for TraceFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
