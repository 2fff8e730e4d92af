//! The HTTP gateway: an OpenAI-compatible front for unmodified vLLM instances.
//!
//! [`Gateway::start`] runs it from a [`GatewayConfig`]. A request's way: `proxy` reads the body once, `prompt` finds the
//! routing fields and names the prompt's blocks, `fleet` asks the router core (`kvroute-router`, the one that the
//! simulator drives) and books the request, `upstream` sends the same bytes to the chosen instance, `relay` passes the
//! answer on. With `kv_events`, `naming` names the blocks as the engines do, and `events` tells the fleet what each
//! instance's cache holds. Beside that, `control` probes and reads the instances, `health` judges them, and `admin` is the
//! operator's door.
//!
//! # Invariants
//! * Exactly one call to an instance per try; a second try only before any byte has reached the client.
//! * Bodies and end-to-end header fields pass unchanged, in both directions. (One exception: the `traceparent` of a
//!   request whose span is exported.)
//! * A booking ends when its `fleet::Flight` is dropped, on every path; when no request is under way all gauges are zero.
//! * A request is one task: no channel and no spawned task per request, so a slow reader slows its instance down and
//!   nothing else, and dropping the task cancels everything.
//! * The fleet's lock is never held across a wait.
//! * Everything a client can make the gateway hold has a bound in [`LimitConfig`].
//!
//! # What it is not
//! It does not terminate TLS or authenticate, and it has no rule of its own about where a request goes.

mod admin;
mod client;
mod config;
mod control;
mod error;
mod events;
mod fleet;
mod health;
mod instance;
mod metrics;
mod naming;
mod prompt;
mod proxy;
mod receipts;
mod relay;
mod scrape;
mod server;
mod trace;
mod upstream;
mod usage;

pub use config::{
    GatewayConfig, HealthConfig, IndexConfig, InstanceConfig, InstanceEvents, InvalidConfig,
    KvEventsConfig, LimitConfig, LoadConfig, PromptConfig, ReceiptConfig, RetryConfig,
    TimeoutConfig, TracingConfig,
};
pub use instance::InvalidUrl;
pub use naming::TokenizerError;
pub use prompt::{prefix_key_of_ids, session_key};
pub use server::{Gateway, ReloadError, StartError};
