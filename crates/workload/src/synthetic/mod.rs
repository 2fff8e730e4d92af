//! Synthetic workloads: a spec in TOML, a seed, a number of requests.

mod chat;
mod mixed;
mod rag;
mod uniform;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use chat::ChatSpec;
pub use mixed::MixedSpec;
pub use rag::RagSpec;
pub use uniform::UniformSpec;

use crate::arrival::{absolute, schedule, seeded};
use crate::workload::WorkloadBuilder;
use crate::{
    ArrivalError, ArrivalProcess, DistributionError, GapShape, Segment, SegmentId, Workload,
};

/// A synthetic workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum WorkloadSpec {
    /// Multi-turn conversations.
    Chat(ChatSpec),
    /// Questions about shared documents.
    Rag(RagSpec),
    /// Several workloads at once.
    Mixed(MixedSpec),
    /// Unrelated requests: the control without sharing.
    Uniform(UniformSpec),
}

/// Why a spec gives no workload.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SpecError {
    /// Not TOML, or not a spec.
    #[error("not a workload spec; compare it with a built-in one ({})", WorkloadSpec::BUILTIN.join(", "))]
    Parse(#[from] toml::de::Error),
    /// No built-in spec of that name.
    #[error("no built-in workload {name:?}; known are {}", WorkloadSpec::BUILTIN.join(", "))]
    UnknownName {
        /// What was asked for.
        name: String,
    },
    /// A distribution with impossible parameters.
    #[error(transparent)]
    Distribution(#[from] DistributionError),
    /// An impossible arrival process.
    #[error(transparent)]
    Arrival(#[from] ArrivalError),
    /// A setting out of range.
    #[error("{field} is {value}; give {expected}")]
    OutOfRange {
        /// The setting.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What makes sense.
        expected: &'static str,
    },
    /// A workload of nothing.
    #[error("no requests were asked for; ask for at least 1")]
    NoRequests,
    /// A mixture of nothing.
    #[error("the mixture has no parts; add at least one [[parts]] table")]
    NoParts,
}

const SPECS: [(&str, &str); 4] = [
    ("chat", include_str!("../../specs/chat.toml")),
    ("rag", include_str!("../../specs/rag.toml")),
    ("mixed", include_str!("../../specs/mixed.toml")),
    ("uniform", include_str!("../../specs/uniform.toml")),
];

impl WorkloadSpec {
    /// Names of the built-in specs.
    pub const BUILTIN: [&str; 4] = [SPECS[0].0, SPECS[1].0, SPECS[2].0, SPECS[3].0];

    /// The built-in spec called `name`.
    ///
    /// # Errors
    /// If there is none; the error lists those that exist.
    pub fn builtin(name: &str) -> Result<Self, SpecError> {
        match SPECS.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => Self::from_toml(text),
            None => Err(SpecError::UnknownName { name: name.to_owned() }),
        }
    }

    /// Reads a spec.
    ///
    /// # Errors
    /// If the text is not TOML, or has an unknown or ill-typed setting.
    pub fn from_toml(text: &str) -> Result<Self, SpecError> {
        Ok(toml::from_str(text)?)
    }

    /// What the kind is called in a spec and in results.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Chat(_) => "chat",
            Self::Rag(_) => "rag",
            Self::Mixed(_) => "mixed",
            Self::Uniform(_) => "uniform",
        }
    }

    /// Offered load in requests per second, all turns counted.
    pub fn requests_per_s(&self) -> f64 {
        match self {
            Self::Chat(spec) => spec.requests_per_s,
            Self::Rag(spec) => spec.requests_per_s,
            Self::Mixed(spec) => spec.parts.iter().map(Self::requests_per_s).sum(),
            Self::Uniform(spec) => spec.requests_per_s,
        }
    }

    /// The same spec at another load. The parts of a mixture keep their proportions.
    #[must_use]
    pub fn with_rate(mut self, requests_per_s: f64) -> Self {
        let scale = requests_per_s / self.requests_per_s();
        match &mut self {
            Self::Chat(spec) => spec.requests_per_s = requests_per_s,
            Self::Rag(spec) => spec.requests_per_s = requests_per_s,
            Self::Uniform(spec) => spec.requests_per_s = requests_per_s,
            Self::Mixed(spec) => {
                for part in &mut spec.parts {
                    let share = part.requests_per_s() * scale;
                    *part = part.clone().with_rate(share);
                }
            }
        }
        self
    }

    /// Draws `requests` requests.
    ///
    /// The last session is cut short if need be. Sessions start empty-handed at time 0, so the load
    /// of a multi-turn workload climbs for about one session length: exclude that as warm-up.
    ///
    /// # Errors
    /// If `requests` is 0 or a setting is out of its range.
    pub fn generate(&self, seed: u64, requests: u32) -> Result<Workload, SpecError> {
        if requests == 0 {
            return Err(SpecError::NoRequests);
        }
        let mut out = Output::default();
        self.generate_into(&mut out, seed, requests)?;
        Ok(out.builder.finish(self.kind()).take(requests))
    }

    fn generate_into(&self, out: &mut Output, seed: u64, requests: u32) -> Result<(), SpecError> {
        let rng = &mut seeded(seed);
        let first = out.builder.drafts.len();
        let (requests_per_s, arrivals) = match self {
            Self::Mixed(spec) => return spec.generate_into(out, seed, requests),
            Self::Chat(spec) => spec.generate_into(out, rng, requests)?,
            Self::Rag(spec) => spec.generate_into(out, rng, requests)?,
            Self::Uniform(spec) => spec.generate_into(out, rng, requests)?,
        };
        // Times come last: the session rate follows from the turns that were really drawn.
        let drafts = &mut out.builder.drafts[first..];
        let process = ArrivalProcess { rate_per_s: requests_per_s, shape: arrivals };
        let starts = absolute(drafts.iter_mut().map(|draft| &mut draft.arrival));
        let drawn = usize::try_from(requests).unwrap_or(usize::MAX);
        schedule(drawn, starts, process, rng)?;
        Ok(())
    }
}

/// Offered load and shape of the arrivals, which every kind draws the same way.
type Load = (f64, GapShape);

/// What the kinds write to: one arena, one number space for segments, one for sessions.
#[derive(Debug, Default)]
struct Output {
    builder: WorkloadBuilder,
    segments: u64,
    sessions: u32,
}

impl Output {
    /// Content that nothing before it has.
    fn fresh(&mut self, tokens: u32) -> Segment {
        const SYNTHETIC: u64 = 0x7379_6e74;
        self.segments += 1;
        Segment { id: SegmentId::derive(SYNTHETIC, self.segments), tokens }
    }

    /// A new session and its key.
    fn session(&mut self) -> (u32, u64) {
        const SESSIONS: u64 = 0x7365_7373;
        self.sessions += 1;
        (self.sessions - 1, SegmentId::derive(SESSIONS, u64::from(self.sessions)).0)
    }

    /// Content shared by many sessions, of lengths drawn once.
    fn shared(
        &mut self,
        count: u32,
        tokens: &crate::distribution::Sampler,
        rng: &mut ChaCha8Rng,
    ) -> Vec<Segment> {
        (0..count).map(|_| self.fresh(tokens.draw_count(rng))).collect()
    }
}

/// The prefix key of a prompt that begins with `segment`.
fn prefix_key(segment: Segment) -> u64 {
    kvroute_types::mix64(segment.id.0)
}

#[cfg(test)]
mod tests;
