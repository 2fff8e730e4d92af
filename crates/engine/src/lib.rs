//! One simulated vLLM engine: block pool, scheduler, prefix cache and step time, rule by rule.
//!
//! Behaviour follows vLLM 0.32.0; `R…` in the docs are the numbered rules of `docs/engine-model.md`. Time is virtual
//! and comes in through [`Engine::advance`]; the length of a step comes from a [`kvroute_profile::StepModel`].
//! The same engine runs in the simulator and, paced by a real clock, behind the mock server's HTTP API.
//!
//! It is *not* a model of HTTP, tokenisation or the network (whoever drives it adds those), and it produces no text.
//! Out of scope as in the rules: hybrid models, `LoRA`, speculative decoding, KV connectors, structured output.

mod block_pool;
mod cached_blocks;
mod config;
mod engine;
mod events;
mod leap;
mod mark;
mod request;
mod scheduler;
mod stats;
mod waiting;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod properties;

pub use config::{EngineConfig, InvalidEngineConfig, SchedulingPolicy};
pub use engine::{Engine, RequestRejected};
pub use events::CacheEvent;
pub use mark::Mark;
pub use request::{EngineRequest, FinishReason};
pub use stats::{Counters, EngineOutput, Finished, GaugeTotals, Gauges};
