//! Several workloads on one fleet.

use kvroute_types::mix64;
use serde::{Deserialize, Serialize};

use super::{ChatSpec, Output, RagSpec, SpecError, UniformSpec, WorkloadSpec};

/// Workloads that run side by side, merged by time. A part's weight is its `requests_per_s`.
///
/// Each part draws from a generator of its own, so a changed setting in one leaves the others as
/// they were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixedSpec {
    /// The parts, at least one.
    pub parts: Vec<WorkloadSpec>,
}

impl Default for MixedSpec {
    /// Half conversations, a quarter retrieval, a quarter unrelated requests; 4 requests per second
    /// in all.
    fn default() -> Self {
        Self {
            parts: vec![
                WorkloadSpec::Chat(ChatSpec { requests_per_s: 2.0, ..ChatSpec::default() }),
                WorkloadSpec::Rag(RagSpec { requests_per_s: 1.0, ..RagSpec::default() }),
                WorkloadSpec::Uniform(UniformSpec {
                    requests_per_s: 1.0,
                    ..UniformSpec::default()
                }),
            ],
        }
    }
}

impl MixedSpec {
    /// Draws at least `requests` requests, in proportion to the parts' rates.
    pub(super) fn generate_into(
        &self,
        out: &mut Output,
        seed: u64,
        requests: u32,
    ) -> Result<(), SpecError> {
        if self.parts.is_empty() {
            return Err(SpecError::NoParts);
        }
        let total: f64 = self.parts.iter().map(WorkloadSpec::requests_per_s).sum();
        for (part, number) in self.parts.iter().zip(1_u64..) {
            let share = part.requests_per_s() / total;
            part.generate_into(out, mix64(seed ^ mix64(number)), part_of(requests, share))?;
        }
        Ok(())
    }
}

/// `share` of `requests`, rounded up.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates; a share that is not in 0..=1 fails later as a bad rate"
)]
fn part_of(requests: u32, share: f64) -> u32 {
    ((f64::from(requests) * share).ceil() as u32).clamp(1, requests)
}
