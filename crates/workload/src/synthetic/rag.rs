//! Questions about shared documents: long common prefixes, popular ones and rare ones.

use kvroute_types::Timestamp;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Zipf};
use serde::{Deserialize, Serialize};

use super::{Load, Output, SpecError, prefix_key};
use crate::workload::Draft;
use crate::{Arrival, Distribution, GapShape};

/// Single-turn questions, each behind one of a set of documents (or long system prompts).
///
/// Lengths and popularity are assumptions: no public trace of retrieval prompts has content
/// identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RagSpec {
    /// Offered load, requests per second.
    pub requests_per_s: f64,
    /// How irregularly requests arrive.
    pub arrivals: GapShape,
    /// Number of documents, at least 1.
    pub documents: u32,
    /// Popularity of the `k`-th document falls as `k^-exponent`; 0 makes all equally popular.
    pub zipf_exponent: f64,
    /// Length of each document, drawn once per document.
    pub document_tokens: Distribution,
    /// Length of a question.
    pub question_tokens: Distribution,
    /// Length of an answer.
    pub answer_tokens: Distribution,
}

impl Default for RagSpec {
    fn default() -> Self {
        Self {
            requests_per_s: 4.0,
            arrivals: GapShape::default(),
            documents: 200,
            zipf_exponent: 1.0,
            document_tokens: Distribution::LogNormal { mean: 4000.0, sigma: 0.3 },
            question_tokens: Distribution::LogNormal { mean: 40.0, sigma: 0.8 },
            answer_tokens: Distribution::LogNormal { mean: 200.0, sigma: 0.6 },
        }
    }
}

impl RagSpec {
    pub(super) fn generate_into(
        &self,
        out: &mut Output,
        rng: &mut ChaCha8Rng,
        requests: u32,
    ) -> Result<Load, SpecError> {
        let tokens = self.document_tokens.sampler("document_tokens")?;
        let question = self.question_tokens.sampler("question_tokens")?;
        let answer = self.answer_tokens.sampler("answer_tokens")?;
        let popularity = self.popularity()?;
        let documents = out.shared(self.documents, &tokens, rng);
        for _ in 0..requests {
            let document = documents[rank(popularity.sample(rng), documents.len())];
            let question = out.fresh(question.draw_count(rng));
            let answer = out.fresh(answer.draw_count(rng));
            let (session, session_key) = out.session();
            let content = out.builder.content([document, question, answer]);
            out.builder.push(Draft {
                session,
                arrival: Arrival::At(Timestamp::ZERO),
                prompt_tokens: document.tokens + question.tokens,
                output_tokens: answer.tokens,
                content,
                session_key,
                prefix_key: prefix_key(document),
            });
        }
        Ok((self.requests_per_s, self.arrivals))
    }

    fn popularity(&self) -> Result<Zipf<f64>, SpecError> {
        if self.documents == 0 {
            return Err(SpecError::OutOfRange {
                field: "documents",
                value: 0.0,
                expected: "at least 1",
            });
        }
        let bad_exponent = || SpecError::OutOfRange {
            field: "zipf_exponent",
            value: self.zipf_exponent,
            expected: "a finite number, 0 or more",
        };
        if !self.zipf_exponent.is_finite() {
            return Err(bad_exponent());
        }
        Zipf::new(f64::from(self.documents), self.zipf_exponent).map_err(|_| bad_exponent())
    }
}

/// The index of a rank drawn from `1..=count`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ranks are whole numbers from 1; the cast saturates and the result is bounded"
)]
fn rank(drawn: f64, count: usize) -> usize {
    (drawn as usize).clamp(1, count) - 1
}
