//! A cluster of simulated engines behind the real router, in virtual time.
//!
//! [`simulate`] runs one workload through one policy: an event loop in whole nanoseconds over the workload's arrivals,
//! the engines' steps and the signals' readings. The router and the policies are the ones the gateway runs.
//!
//! It is *not* a model of routing (that is `kvroute-router`) or of an engine (`kvroute-engine`); it only carries
//! requests and signals between the two, with the delays it was told. Every run starts with cold caches, and nothing
//! is random but what the seed draws.

mod clock;
mod cluster;
mod config;
mod devices;
mod fleet;
mod outcome;
mod perfect_load;
mod routers;

#[cfg(test)]
mod tests;

pub use cluster::simulate;
pub use config::{InvalidSim, RouterRestart, SimConfig};
pub use outcome::{InstanceOutcome, SimOutcome};
