//! Which instance is believed to hold which prefix: the router's cache directory.
//!
//! * [`History`] remembers *what was routed where* and infers from it what each instance holds: a
//!   compressed radix tree over chained block hashes, shared by all instances, with an exact LRU
//!   per instance, optional expiry, and memory bounded by a budget in bytes.
//! * [`ExactIndex`] is told what each instance stores and removes (vLLM's KV events) and knows what it
//!   holds: runs of blocks found by hash, copies counted, memory bounded by a budget in bytes.
//!   [`SharedExactIndex`] is the same for several threads.
//! * [`LastRoute`] remembers, per key (a prefix, a session), the instance that was chosen last.
//!
//! What this crate is *not*: it does not read the bytes of KV events; it computes no hashes; it scores
//! nothing and picks nothing. It is pure: time comes in as
//! [`Timestamp`](kvroute_types::Timestamp), and nothing here draws random numbers, reads the
//! environment or iterates over a hash map.

mod error;
mod exact;
mod history;
mod last_route;
mod recency;
mod slab;

pub use error::ConfigError;
pub use exact::{ExactIndex, ExactIndexConfig, MatchBuffer, SharedExactIndex, SnapshotError};
pub use history::{History, HistoryConfig};
pub use last_route::{LastRoute, LastRouteConfig, Route};
