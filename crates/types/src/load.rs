//! What an instance says of its own load.

use serde::{Deserialize, Serialize};

use crate::{InstanceId, Timestamp};

/// One reading of an instance's gauges.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadSnapshot {
    /// Requests in the engine's waiting queue (`vllm:num_requests_waiting`, R60).
    pub waiting: u32,
    /// Requests in the engine's running list (`vllm:num_requests_running`, R60).
    pub running: u32,
    /// Fraction of KV blocks in use, `0.0..=1.0` (`vllm:kv_cache_usage_perc`, a fraction despite its
    /// name; cached blocks that nobody uses count as free, R11).
    pub kv_cache_usage: f64,
    /// Requests sent at or before this time are counted in the gauges, later ones are not. A scraper
    /// that cannot know better uses the time it asked.
    pub as_of: Timestamp,
}

/// State of one instance at one moment, as a timeline is made of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadSample {
    /// When.
    pub at: Timestamp,
    /// Of which instance.
    pub instance: InstanceId,
    /// Requests in the engine's waiting queue (`vllm:num_requests_waiting`, R60).
    pub waiting: u32,
    /// Requests in the engine's running list (`vllm:num_requests_running`, R60).
    pub running: u32,
    /// Fraction of KV blocks in use, `0.0..=1.0` (`vllm:kv_cache_usage_perc`).
    pub kv_cache_usage: f64,
    /// Requests that the router sent there and has not seen end.
    pub in_flight: u32,
}
