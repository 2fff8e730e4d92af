//! What a simulation tells.

use hdrhistogram::Histogram;
use kvroute_engine::{Counters, GaugeTotals};
use kvroute_types::{InstanceId, RequestRecord, Timestamp};

/// Everything a run left behind.
#[derive(Clone, Debug)]
pub struct SimOutcome {
    /// One per request, in request order.
    pub records: Vec<RequestRecord>,
    /// One per instance, in id order.
    pub instances: Vec<InstanceOutcome>,
    /// From when gauges, inter-token times and spread were measured.
    pub measured_from: Timestamp,
    /// When the last request ended.
    pub end: Timestamp,
    /// Mean over all measured decisions of the momentary spread of in-flight counts (standard deviation over mean); `None`
    /// if there was never anything in flight.
    pub in_flight_cov: Option<f64>,
    /// Fingerprint of all decisions in order.
    pub decision_log_hash: u64,
    /// Bytes the router's cache directory took at the end.
    pub index_memory_bytes: usize,
}

/// What one instance counted.
#[derive(Clone, Debug)]
pub struct InstanceOutcome {
    /// The instance.
    pub id: InstanceId,
    /// Its engine's counters.
    pub counters: Counters,
    /// Its engine's gauges, integrated from [`SimOutcome::measured_from`] to the end of the run.
    pub gauge_totals: GaugeTotals,
    /// Times between two tokens of one request since [`SimOutcome::measured_from`], ns.
    pub inter_token_ns: Histogram<u64>,
}
