//! The server over real sockets on the loopback interface.

#![expect(
    clippy::unwrap_used,
    reason = "allow-unwrap-in-tests does not reach helpers of integration tests"
)]

mod client;
mod faults;
mod fixtures;
#[cfg(feature = "libzmq")]
mod kv_events;
mod serving;
mod shape;
mod timing;
