//! What to measure.

use super::Measure;
use crate::profile::EngineDefaults;

/// A measurement and how often to take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What to measure.
    pub measure: Measure,
    /// How often; the median counts.
    pub repetitions: u32,
}

/// How much to measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// A minute on a small model: seven prompt lengths, five cached shares, ten batches.
    #[default]
    Full,
    /// A few seconds, for a look: the corners only.
    Quick,
}

/// Longest prompt, tokens: more tells little and takes long.
const PROMPT_TOKENS_MAX: u32 = 16_384;
/// Shortest prompt, tokens.
const PROMPT_TOKENS_MIN: u32 = 48;
/// Largest batch of decodes.
const BATCH_MAX: u32 = 128;
/// Prompt of the decodes of short context, tokens.
const SHORT_CONTEXT: u32 = 64;

/// The measurements that determine a profile of an engine of these sizes, cheap ones first.
///
/// Prompts are twice as long each time, up to two steps' worth of tokens or what the engine takes. Batches of decodes
/// fit the cache with room to spare, so that none is preempted.
pub fn probes(engine: &EngineDefaults, effort: Effort) -> Vec<Probe> {
    let capacity = u64::from(engine.kv_blocks.saturating_sub(1)) * u64::from(engine.block_size);
    let capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
    let longest = (2 * engine.max_num_batched_tokens)
        .min(engine.max_model_len.saturating_sub(2))
        .min(capacity.saturating_sub(engine.block_size))
        .clamp(1, PROMPT_TOKENS_MAX);
    let (every, repetitions) = match effort {
        Effort::Full => (1, 6),
        Effort::Quick => (2, 2),
    };
    let mut lengths: Vec<u32> = (0..16)
        .step_by(every)
        .map(|halvings| longest >> halvings)
        .take_while(|length| *length >= PROMPT_TOKENS_MIN.min(longest))
        .collect();
    lengths.reverse();
    let whole_blocks = |tokens: u32| tokens / engine.block_size * engine.block_size;
    let first_token = |prompt_tokens: u32, cached_tokens: u32| Probe {
        measure: Measure::FirstToken { prompt_tokens, cached_tokens },
        repetitions: if prompt_tokens >= 2048 { repetitions.min(3) } else { repetitions },
    };

    let mut probes = Vec::new();
    for &length in &lengths {
        probes.push(first_token(length, 0));
        probes.push(first_token(length, whole_blocks(length - 1)));
    }
    let shares: &[(u32, u32)] = match effort {
        Effort::Full => &[(longest, 2), (longest, 4), (longest, 6), (longest, 7), (longest / 4, 4)],
        Effort::Quick => &[(longest, 4)],
    };
    // In eighths, since a prompt's last blocks cost most.
    probes.extend(
        shares
            .iter()
            .map(|&(length, eighths)| first_token(length, whole_blocks(length / 8 * eighths))),
    );
    // A probe without a cached block is one of the cold ones.
    let mut seen = std::collections::BTreeSet::new();
    probes.retain(|probe| seen.insert(probe.measure));

    let fits = |batch: u32, prompt: u32, output: u32| {
        let room = u64::from(capacity) * 9 / 10;
        batch <= engine.max_num_seqs.min(BATCH_MAX)
            && prompt + output < engine.max_model_len
            && u64::from(batch) * u64::from(prompt + output + engine.block_size) <= room
    };
    let contexts: &[(u32, usize)] = match effort {
        Effort::Full => &[(SHORT_CONTEXT, 1), (longest / 4, 2), (longest / 2, 2)],
        Effort::Quick => &[(SHORT_CONTEXT, 2), (longest / 4, 4)],
    };
    for &(prompt_tokens, every) in contexts {
        for batch in (0..8).step_by(every).map(|doublings| 1 << doublings) {
            // Long enough that most steps have the whole batch.
            let output_tokens = 64 + batch;
            if fits(batch, prompt_tokens, output_tokens) {
                probes.push(Probe {
                    measure: Measure::Decode { batch, prompt_tokens, output_tokens },
                    repetitions: repetitions.min(3),
                });
            }
        }
    }
    probes
}
