//! The sans-IO router core: signals in, decisions out.
//!
//! [`Router`] holds the table of instances, the exact count of work in flight, the cache directory as far as it is
//! visible, and one policy. Two shells drive it: the HTTP gateway in real time and the simulator in virtual time;
//! neither adds a rule of its own, so a decision depends only on the calls made here.
//!
//! It is *not* a clock (every call carries its time), not a prober (health comes in as
//! [`Router::set_eligible`]), and it reads no sockets.

mod channel;
mod config;
mod directory;
mod in_flight;
mod prefill;
mod receipt;
mod router;

#[cfg(test)]
mod tests;

pub use channel::{InvalidSignal, Refresh, SignalConfig};
pub use config::{DirectorySource, InvalidRouterConfig, RouterConfig};
pub use directory::CacheNews;
pub use in_flight::Ticket;
pub use kvroute_cache_index::{ExactIndex, SnapshotError};
pub use receipt::{RouteReceipt, ScoredInstance};
pub use router::{Routed, Router};
