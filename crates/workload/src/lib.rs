//! Workloads: who asks what, when, and which prompts share content with which.
//!
//! A request's content is a chain of [`Segment`]s, each the start of one fixed, endless stream of
//! tokens. Equal segments mean equal tokens, so sharing is exact and belongs to no block size:
//! [`Plan`] cuts the same workload into KV-cache blocks of any size, and [`TokenStream`] renders it
//! as token ids for a real server.
//!
//! * [`traces`]: readers of public traces;
//! * [`WorkloadSpec`]: synthetic workloads, described in TOML and drawn from a seed;
//! * [`TokenPrompt`]: requests given one by one as token ids;
//! * [`ArrivalProcess`]: when requests arrive, if not when the trace says;
//! * [`TraceStats`]: what a workload looks like and how much of it any cache could serve;
//! * [`Reuses`]: how much of it one cache of a given size could serve, at best too.
//!
//! **Not here:** files (readers take `impl BufRead`), clocks, routing, engines, tokenizers. The
//! crate is pure: the same bytes, spec and seed give the same workload.

mod arrival;
mod compose;
mod distribution;
mod intern;
mod prompts;
mod reuse;
mod segment;
mod stats;
mod synthetic;
pub mod traces;
mod workload;

pub use arrival::{ArrivalError, ArrivalProcess, GapShape};
pub use compose::ConcatError;
pub use distribution::{Distribution, DistributionError};
pub use intern::{Plan, PlanError};
pub use prompts::TokenPrompt;
pub use reuse::{PooledHitRates, Reuses};
pub use segment::{Segment, SegmentId, TokenStream};
pub use stats::{LruPoint, TokenSummary, TraceStats};
pub use synthetic::{ChatSpec, MixedSpec, RagSpec, SpecError, UniformSpec, WorkloadSpec};
pub use workload::{Arrival, Workload, WorkloadRequest};
