//! Routing policies: each a choice over candidates, nothing else.
//!
//! A policy sees values ([`RequestView`], [`Candidate`]) and returns a [`Decision`]. It is *not* told of
//! sockets, clocks or engines, it keeps no cache directory of its own (the router's fills
//! [`Candidate::matched_blocks`]), and it cannot tell the gateway from the simulator.

mod api;

pub use api::{
    Candidate, Decision, Event, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};
