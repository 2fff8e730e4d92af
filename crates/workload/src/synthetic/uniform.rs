//! Unrelated requests: what a router can win here it wins by load alone.

use kvroute_types::Timestamp;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Load, Output, SpecError, prefix_key};
use crate::workload::Draft;
use crate::{Arrival, Distribution, GapShape};

/// Single-turn requests that share nothing.
///
/// Lengths follow the Azure conversation trace of 2023: prompts mean 1,155 / median 1,020 tokens,
/// outputs mean 211 / median 129 (Splitwise, ISCA 2024).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UniformSpec {
    /// Offered load, requests per second.
    pub requests_per_s: f64,
    /// How irregularly requests arrive.
    pub arrivals: GapShape,
    /// Prompt length.
    pub prompt_tokens: Distribution,
    /// Output length.
    pub output_tokens: Distribution,
}

impl Default for UniformSpec {
    fn default() -> Self {
        Self {
            requests_per_s: 4.0,
            arrivals: GapShape::default(),
            prompt_tokens: Distribution::LogNormal { mean: 1155.0, sigma: 0.5 },
            output_tokens: Distribution::LogNormal { mean: 211.0, sigma: 0.99 },
        }
    }
}

impl UniformSpec {
    pub(super) fn generate_into(
        &self,
        out: &mut Output,
        rng: &mut ChaCha8Rng,
        requests: u32,
    ) -> Result<Load, SpecError> {
        let prompt = self.prompt_tokens.sampler("prompt_tokens")?;
        let output = self.output_tokens.sampler("output_tokens")?;
        for _ in 0..requests {
            let prompt = out.fresh(prompt.draw_count(rng));
            let output = out.fresh(output.draw_count(rng));
            let (session, session_key) = out.session();
            let content = out.builder.content([prompt, output]);
            out.builder.push(Draft {
                session,
                arrival: Arrival::At(Timestamp::ZERO),
                prompt_tokens: prompt.tokens,
                output_tokens: output.tokens,
                content,
                session_key,
                prefix_key: prefix_key(prompt),
            });
        }
        Ok((self.requests_per_s, self.arrivals))
    }
}
