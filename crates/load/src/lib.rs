//! The HTTP load driver: plays a workload against any OpenAI-compatible endpoint, in real time.
//!
//! [`run`] sends the requests of a `kvroute_workload::Workload` to [`LoadConfig::target`] and writes one
//! `kvroute_types::RequestRecord` per request, as the simulator does. In the open loop a request is sent at its intended
//! time whatever the server does, and its latencies run from that time: a stalled server cannot hide behind a client
//! that waits for it (no coordinated omission). [`LoadOutcome::late_sends`] says how well the driver kept its own word.
//! What a client cannot see stays `None`: when the engine scheduled a request, and (as 0, see [`run`]) preemptions;
//! [`InstanceOutcome`] tells what the instances say of themselves, read from their Prometheus
//! pages ([`Metrics`]) before, during and after.
//!
//! A request's way: `prompt` renders it, `driver` keeps the schedule, `http` carries it, [`SseParser`] cuts the answer into
//! events, `answer` stamps and adds them up, `outcome` turns them into a record.
//!
//! # What it is not
//! No tokenizer (text prompts are words that most vocabularies hold as one token, see [`PromptForm::Text`]), no TLS, no
//! retries (but where a kept connection turns out to be closed before anything was written to it), no statistics beyond
//! counting: those are the lab's.

mod admin;
mod answer;
mod clock;
mod config;
mod driver;
mod facts;
mod failure;
mod http;
mod metrics;
mod outcome;
mod prompt;
mod sse;
mod watch;

pub use admin::{AdminError, gateway_policy};
pub use config::{InstanceTarget, InvalidConfig, InvalidUrl, LoadConfig, Mode, PromptForm, Target};
pub use driver::{LoadError, Progress, run};
pub use facts::{InstanceFacts, instance_facts};
pub use failure::FailureKind;
pub use metrics::{
    Buckets, Counter, CounterReset, Gauge, Metrics, MetricsDelta, ScrapeError, Summary, scrape,
};
pub use outcome::{FailureCount, LateSends, LoadOutcome};
pub use sse::{LineTooLong, SseParser};
pub use watch::{GaugeSamples, InstanceOutcome};
