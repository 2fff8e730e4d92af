//! Settings of one engine, under vLLM's names.

use kvroute_types::{BlockSize, TokenCount};
use serde::{Deserialize, Serialize};

/// Order of the waiting queue and choice of preemption victims (R39, R43).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchedulingPolicy {
    /// First come, first served; the latest admitted is preempted.
    #[default]
    Fcfs,
    /// Lower `priority` first, then earlier arrival; the highest `(priority, arrival)` is preempted.
    Priority,
}

/// Settings of one engine. Defaults are vLLM 0.32.0's for a server on a GPU below 70 GiB (R4, R5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "they mirror vLLM's switches one to one")]
pub struct EngineConfig {
    /// Tokens per KV block (`block_size`).
    pub block_size: BlockSize,
    /// KV blocks, the null block included (`num_gpu_blocks`): usable blocks are one fewer (R2).
    pub kv_blocks: u32,
    /// Longest sequence, prompt and output together, in tokens.
    pub max_model_len: u32,
    /// Token budget of one step, shared by prefill and decode (R34).
    pub max_num_batched_tokens: u32,
    /// Most requests in the running list (R37).
    pub max_num_seqs: u32,
    /// Whether finished blocks are kept and found again.
    pub enable_prefix_caching: bool,
    /// Whether a prompt may be prefilled over several steps.
    pub enable_chunked_prefill: bool,
    /// Most tokens of one request in one step while others exist; 0 is off (R36).
    pub long_prefill_token_threshold: u32,
    /// Whether that threshold rises to an even share of the budget (R36).
    pub long_prefill_token_threshold_adaptive: bool,
    /// Whether admission asks for room for the whole known sequence (R30).
    pub scheduler_reserve_full_isl: bool,
    /// Fraction of blocks kept free at admission while others run, `0.0..=1.0` (R31).
    pub watermark: f64,
    /// Queue order and victims.
    pub policy: SchedulingPolicy,
    /// Whether step k+1 is scheduled while k runs (R53).
    pub async_scheduling: bool,
    /// Whether stored, removed and cleared blocks are reported (R68).
    pub kv_events: bool,
    /// Whether every output token is reported, not only the first and the end. Turns leaping off.
    pub report_tokens: bool,
    /// Whether runs of equal decode steps may be leapt over (the result is the same bit for bit).
    pub leap: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            block_size: BlockSize::default(),
            kv_blocks: 27_900,
            max_model_len: 131_072,
            max_num_batched_tokens: 2_048,
            max_num_seqs: 256,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            long_prefill_token_threshold: 0,
            long_prefill_token_threshold_adaptive: false,
            scheduler_reserve_full_isl: true,
            watermark: 0.0,
            policy: SchedulingPolicy::Fcfs,
            async_scheduling: true,
            kv_events: false,
            report_tokens: false,
            leap: true,
        }
    }
}

/// A setting under which no engine could start or serve.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InvalidEngineConfig {
    /// A count that must be at least one is zero.
    #[error("{key} is 0; set it to at least 1")]
    Zero {
        /// The setting.
        key: &'static str,
    },
    /// R3: the longest sequence does not fit, so a request could wait for ever.
    #[error(
        "one sequence of max_model_len {max_model_len} tokens needs {needed} KV blocks of {block_size} \
         tokens, but only {usable} of {kv_blocks} are usable; raise kv_blocks to {} or lower max_model_len to {}",
        .needed + 1,
        u64::from(*.usable) * u64::from(.block_size.get())
    )]
    SequenceCannotFit {
        /// Longest sequence, tokens.
        max_model_len: u32,
        /// Blocks it needs.
        needed: u32,
        /// Tokens per block.
        block_size: BlockSize,
        /// Blocks that can be handed out.
        usable: u32,
        /// Blocks configured.
        kv_blocks: u32,
    },
    /// A prompt that must be prefilled in one step could exceed the step's budget, and would wait for ever.
    #[error(
        "without chunked prefill a prompt of max_model_len {max_model_len} tokens must fit one step of \
         max_num_batched_tokens {max_num_batched_tokens}; raise that to {max_model_len} or turn chunked prefill on"
    )]
    PromptExceedsStep {
        /// Longest sequence, tokens.
        max_model_len: u32,
        /// Token budget of a step.
        max_num_batched_tokens: u32,
    },
    /// More sequences than tokens in a step; vLLM refuses it (R4).
    #[error(
        "max_num_seqs {max_num_seqs} is more than max_num_batched_tokens {max_num_batched_tokens}; lower it"
    )]
    SequencesExceedStep {
        /// Sequences that may run at once.
        max_num_seqs: u32,
        /// Token budget of a step.
        max_num_batched_tokens: u32,
    },
    /// The watermark is not a fraction.
    #[error("watermark is {value}; it is a fraction of the KV blocks, 0.0 to 1.0")]
    Watermark {
        /// What was given.
        value: f64,
    },
}

impl EngineConfig {
    /// Blocks that can be handed out: all but the null block (R2).
    pub const fn usable_blocks(&self) -> u32 {
        self.kv_blocks.saturating_sub(1)
    }

    /// Checks what vLLM checks at start-up.
    ///
    /// # Errors
    /// [`InvalidEngineConfig`] names the setting and the remedy.
    pub fn validate(&self) -> Result<(), InvalidEngineConfig> {
        for (key, value) in [
            ("kv_blocks", self.kv_blocks),
            ("max_model_len", self.max_model_len),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_num_seqs", self.max_num_seqs),
        ] {
            if value == 0 {
                return Err(InvalidEngineConfig::Zero { key });
            }
        }
        let needed = self.block_size.blocks_for(TokenCount(self.max_model_len)).0;
        if needed > self.usable_blocks() {
            return Err(InvalidEngineConfig::SequenceCannotFit {
                max_model_len: self.max_model_len,
                needed,
                block_size: self.block_size,
                usable: self.usable_blocks(),
                kv_blocks: self.kv_blocks,
            });
        }
        let Self { max_num_batched_tokens, max_num_seqs, max_model_len, .. } = *self;
        if !self.enable_chunked_prefill && max_num_batched_tokens < max_model_len {
            return Err(InvalidEngineConfig::PromptExceedsStep {
                max_model_len,
                max_num_batched_tokens,
            });
        }
        if max_num_seqs > max_num_batched_tokens {
            return Err(InvalidEngineConfig::SequencesExceedStep {
                max_num_seqs,
                max_num_batched_tokens,
            });
        }
        if !(0.0..=1.0).contains(&self.watermark) {
            return Err(InvalidEngineConfig::Watermark { value: self.watermark });
        }
        Ok(())
    }
}
