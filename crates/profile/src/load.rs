//! What one engine step computes.

use serde::{Deserialize, Serialize};

/// The work of one engine step, summed over its batch.
///
/// One batch mixes prefill chunks and decodes (vLLM V1 has no prefill or decode phase, R34), so the
/// two are counted side by side. A *decode* is a sequence that computes exactly one token; every
/// other scheduled sequence is a *prefill chunk*. Without speculative decoding
/// `tokens == prefill_tokens + decode_seqs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepLoad {
    /// All scheduled tokens: the rows of every linear layer.
    pub tokens: u32,
    /// Tokens of prefill chunks.
    pub prefill_tokens: u32,
    /// Query-key pairs of prefill attention: the sum over chunks of
    /// `chunk * context_before + chunk * (chunk + 1) / 2` (causal mask).
    pub prefill_pairs: u64,
    /// KV tokens that prefill attention reads: the sum over chunks of `context_before + chunk`.
    pub prefill_context: u64,
    /// Sequences that decode one token.
    pub decode_seqs: u32,
    /// Sum over the decodes of their context, in tokens, the new one included.
    pub decode_context: u64,
    /// Longest of those contexts, tokens; 0 without decodes.
    pub decode_context_max: u64,
    /// Sequences that sample a token in this step: all decodes and each prompt's last chunk.
    pub sampled: u32,
}

impl StepLoad {
    /// This load with a prefill chunk of `chunk` tokens that follow `context_before` computed
    /// ones; `samples` says that it is its prompt's last chunk.
    #[must_use]
    pub fn with_chunk(mut self, context_before: u32, chunk: u32, samples: bool) -> Self {
        let (before, new) = (u64::from(context_before), u64::from(chunk));
        self.tokens += chunk;
        self.prefill_tokens += chunk;
        self.prefill_pairs += new * before + new * (new + 1) / 2;
        self.prefill_context += before + new;
        self.sampled += u32::from(samples);
        self
    }

    /// This load with `seqs` more decodes of equal length that together attend to `context` tokens.
    #[must_use]
    pub fn with_decodes(mut self, seqs: u32, context: u64) -> Self {
        self.tokens += seqs;
        self.decode_seqs += seqs;
        self.decode_context += context;
        self.decode_context_max =
            self.decode_context_max.max(context.div_ceil(u64::from(seqs.max(1))));
        self.sampled += seqs;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_a_split_prompt_add_up_to_those_of_the_whole() {
        let whole = StepLoad::default().with_chunk(0, 100, true);
        let first = StepLoad::default().with_chunk(0, 64, false);
        let second = StepLoad::default().with_chunk(64, 36, true);
        assert_eq!(whole.prefill_pairs, 5050);
        assert_eq!(first.prefill_pairs + second.prefill_pairs, whole.prefill_pairs);
        assert_eq!(second.prefill_context, 100);
        assert_eq!((first.sampled, second.sampled), (0, 1));
    }

    #[test]
    fn chunks_and_decodes_share_the_tokens() {
        let load = StepLoad::default().with_chunk(0, 64, true).with_decodes(3, 300);
        assert_eq!(load.tokens, 67);
        assert_eq!(load.tokens, load.prefill_tokens + load.decode_seqs);
        assert_eq!(load.sampled, 4);
        let load = load.with_decodes(1, 250).with_decodes(2, 200);
        assert_eq!((load.decode_context, load.decode_context_max), (750, 250));
    }
}
