//! Subscriptions to a real libzmq publisher that acts as vLLM's, over the loopback interface.

#![expect(clippy::unwrap_used, reason = "a set-up that fails fails its test")]

mod hostile;
mod news;
mod proxy;
mod publisher;
mod recovery;
