//! What a simulation tells.

use hdrhistogram::Histogram;
use kvroute_engine::{Counters, GaugeTotals};
use kvroute_types::{InstanceId, LoadSample, RequestRecord, Timestamp};

/// Everything a run left behind.
#[derive(Clone, Debug)]
pub struct SimOutcome {
    /// One per request, in request order.
    pub records: Vec<RequestRecord>,
    /// One per instance, in id order.
    pub instances: Vec<InstanceOutcome>,
    /// The state of every instance at time 0 and each multiple of the sampling interval before the last request ended:
    /// ordered by time, then by instance. Empty unless it was asked for
    /// ([`SimConfig::sample_every_s`](crate::SimConfig::sample_every_s)). What is due at the time of a sample has happened,
    /// but for requests that arrive with the workload.
    pub samples: Vec<LoadSample>,
    /// From when gauges, inter-token times and spread were measured.
    pub measured_from: Timestamp,
    /// Until when.
    pub measured_until: Timestamp,
    /// When the last request ended.
    pub end: Timestamp,
    /// Mean over all measured decisions of the momentary spread of in-flight counts (standard deviation over mean), as the
    /// router of the time saw it; `None` if there was never anything in flight.
    pub in_flight_cov: Option<f64>,
    /// Fingerprint of all decisions in order; of those of all routers, if there were several.
    pub decision_log_hash: u64,
    /// Bytes the (last) router's cache directory took at the end.
    pub index_memory_bytes: usize,
}

/// What one instance counted.
#[derive(Clone, Debug)]
pub struct InstanceOutcome {
    /// The instance.
    pub id: InstanceId,
    /// Its engine's counters.
    pub counters: Counters,
    /// Its engine's gauges, integrated from [`SimOutcome::measured_from`] to [`SimOutcome::measured_until`].
    pub gauge_totals: GaugeTotals,
    /// Times between two tokens of one request in that time, ns.
    pub inter_token_ns: Histogram<u64>,
}
