//! Which instance is believed to hold which prefix: the router's cache directory.
//!
//! * [`History`] remembers *what was routed where* and infers from it what each instance holds: a
//!   compressed radix tree over chained block hashes, shared by all instances, with an exact LRU
//!   per instance, optional expiry, and memory bounded by a budget in bytes.
//! * [`LastRoute`] remembers, per key (a prefix, a session), the instance that was chosen last.
//!
//! What this crate is *not*: it does not read KV events and does not know what an engine really
//! holds (a directory built from events is a different type, with removals and copy counts); it
//! computes no hashes; it scores nothing and picks nothing. It is pure: time comes in as
//! [`Timestamp`](kvroute_types::Timestamp), and nothing here draws random numbers, reads the
//! environment or iterates over a hash map.

mod error;
mod history;
mod last_route;
mod recency;
mod slab;

pub use error::ConfigError;
pub use history::{History, HistoryConfig};
pub use last_route::{LastRoute, LastRouteConfig, Route};
