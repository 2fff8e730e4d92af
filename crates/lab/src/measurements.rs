//! What was measured of one run.

use hdrhistogram::Histogram;
use kvroute_types::{InstanceId, RequestRecord, Timestamp};
use serde::{Deserialize, Serialize};

/// All that was measured of one run, by the simulator or by the load driver.
///
/// Requests are taken one by one, and [`MeasurementWindow`] is applied to them here. What comes aggregated
/// (gauges, counters, inter-token times) cannot be cut any more: it should be of that time, and a source that can only tell of the whole run is to say so where its results are shown.
#[derive(Clone, Debug)]
pub struct Measurements<'a> {
    /// Name of the policy, as on the command line.
    pub policy: String,
    /// The policy's full configuration.
    pub policy_config: serde_json::Value,
    /// Name of the workload.
    pub workload: String,
    /// Instances the run began with.
    pub instances: u32,
    /// Seed of all that was drawn.
    pub seed: u64,
    /// Simulated or live.
    pub mode: Mode,
    /// Every request of the run, whether it counts or not, in any order.
    pub records: &'a [RequestRecord],
    /// Which of them count.
    pub window: MeasurementWindow,
    /// The objective that goodput is measured against.
    pub slo: Slo,
    /// Gaps between the output tokens of the counted requests, ns, of all instances merged; keep 3
    /// significant digits (`Histogram::new(3)`). `None` if not measured.
    pub inter_token_ns: Option<Histogram<u64>>,
    /// Hit rates that the counted requests would have with one cache for all instances.
    pub hit_rate_bounds: HitRateBounds,
    /// Gauges of every instance, in any order. An instance that is left out counts as unmeasured if a
    /// record names it, and as absent if none does.
    pub instances_measured: Vec<InstanceMeasurements>,
    /// Coefficient of variation of the momentary `in_flight` over the instances (population standard
    /// deviation over mean), averaged over the run's decisions or over time. `None` if not measured.
    pub cov_in_flight: Option<f64>,
    /// Where the number of preemptions comes from.
    pub preemptions: Preemptions,
    /// Hash of the log of decisions; `None` if none was kept.
    pub decision_log_hash: Option<u64>,
    /// Time the run took on the machine that ran it, seconds.
    pub wall_s: f64,
}

/// Hit rates of one cache that serves all instances' requests from an empty start, `0.0..=1.0`: what a run's
/// own hit rate is held against. `None` where not known. The rules are those of `kvroute_workload::Reuses`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HitRateBounds {
    /// With room for as many blocks as all instances have, the blocks used last are kept. A yardstick and no bound: caches
    /// of their own that see fewer requests between two uses of a block may do a little better.
    pub pooled_lru: Option<f64>,
    /// With the same room, the blocks used again soonest are kept (Belady): the most that any rule gives.
    pub pooled_belady: Option<f64>,
    /// Nothing is evicted.
    pub infinite_cache: Option<f64>,
}

/// Who made the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The simulator, in virtual time.
    Sim,
    /// The load driver, over HTTP in real time.
    Live,
}

impl Mode {
    /// The name in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sim => "sim",
            Self::Live => "live",
        }
    }
}

/// Which requests count, by their intended arrival. Before it caches and queues fill (warm-up); after it no session begins
/// any more, and the load falls. All requests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeasurementWindow {
    from: Timestamp,
    until: Timestamp,
}

impl MeasurementWindow {
    /// Every request counts.
    pub const ALL: Self = Self { from: Timestamp::ZERO, until: Timestamp::MAX };

    /// Requests from `from` on.
    pub const fn from_time(from: Timestamp) -> Self {
        Self { from, until: Timestamp::MAX }
    }

    /// Requests from `from` to `until`, both included.
    pub const fn between(from: Timestamp, until: Timestamp) -> Self {
        Self { from, until }
    }

    /// Its beginning: the end of the warm-up.
    pub const fn from(self) -> Timestamp {
        self.from
    }

    /// Its end.
    pub const fn until(self) -> Timestamp {
        self.until
    }

    /// Whether a request of this intended arrival counts.
    pub fn counts(self, arrival: Timestamp) -> bool {
        (self.from..=self.until).contains(&arrival)
    }
}

/// A service-level objective on one request. Both parts are upper bounds, themselves allowed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    /// Bound on the time to first token, ms.
    pub ttft_ms: f64,
    /// Bound on the time per output token, ms.
    pub tpot_ms: f64,
}

/// Gauges of one instance, finite, over the time after the warm-up; `None` where not measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceMeasurements {
    /// The instance.
    pub instance: InstanceId,
    /// Requests in the engine's waiting queue (`vllm:num_requests_waiting`), mean over time.
    pub queue_depth_mean: Option<f64>,
    /// Largest number of requests seen in that queue.
    pub queue_depth_max: Option<u32>,
    /// Fraction of KV blocks in use, `0.0..=1.0` (`vllm:kv_cache_usage_perc`), mean over time.
    pub kv_cache_usage_mean: Option<f64>,
    /// Requests sent to the instance and not seen to end (the router's count), mean over time. Where
    /// requests are sent as they arrive, [`mean_in_flight`] knows it from the records.
    pub in_flight_mean: Option<f64>,
}

impl InstanceMeasurements {
    /// An instance of which nothing was measured.
    pub const fn unmeasured(instance: InstanceId) -> Self {
        Self {
            instance,
            queue_depth_mean: None,
            queue_depth_max: None,
            kv_cache_usage_mean: None,
            in_flight_mean: None,
        }
    }
}

/// Mean over the time from `from` to `until` of the requests in flight to `instance`, from their records;
/// `None` if that is no time at all.
///
/// ```text
/// mean = Σ |[arrival, end] ∩ [from, until]| / (until - from)
/// ```
///
/// A request counts from its intended arrival. That is when it is sent in the simulator; where the
/// gateway holds requests back, use the gateway's own count.
pub fn mean_in_flight(
    records: &[RequestRecord],
    instance: InstanceId,
    from: Timestamp,
    until: Timestamp,
) -> Option<f64> {
    let request_ns: u128 = records
        .iter()
        .filter(|r| r.instance == Some(instance))
        .map(|r| u128::from(r.end.min(until).nanos_since(r.arrival.max(from))))
        .sum();
    let ns = until.nanos_since(from);
    (ns > 0).then(|| request_ns as f64 / ns as f64)
}

/// Where the number of preemptions of a run comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preemptions {
    /// Each record knows its own (simulator).
    InRecords,
    /// The engines' counters say so (`vllm:num_preemptions_total`, growth over the counted part of the
    /// run, summed over instances); a client does not see them.
    Counter(u64),
    /// Nobody counted.
    Unmeasured,
}
