//! What came of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use kvroute_types::{RequestRecord, Timestamp};

use crate::FailureKind;
use crate::watch::InstanceOutcome;

/// All that was seen of one run, from the client's side.
#[derive(Clone, Debug)]
pub struct LoadOutcome {
    /// One record per request, in the order of the workload.
    pub records: Vec<RequestRecord>,
    /// Gaps between frames with content of the requests after the warm-up, ns of workload time, failed requests
    /// included. A frame is one token unless the server joins several.
    pub inter_token_ns: Histogram<u64>,
    /// How late the driver itself was.
    pub late_sends: LateSends,
    /// Failures by kind; the failed requests are among the records too.
    pub failures: BTreeMap<FailureKind, FailureCount>,
    /// Completed answers by their finish reason, as the server named it; `"none"` where it did not.
    pub finish_reasons: BTreeMap<String, u64>,
    /// Later turns of conversations whose prompt should hold the previous answer, and holds the planned one since that
    /// turn failed or the server told no token ids.
    pub planned_answers: u64,
    /// Values of `x-kvroute-instance` that are neither a configured name nor a number, with their number of answers;
    /// the records of those name no instance.
    pub unknown_instances: BTreeMap<String, u64>,
    /// What the configured instances said of themselves, in their order.
    pub instances: Vec<InstanceOutcome>,
    /// Connections opened; the other requests went over kept ones.
    pub connections: u64,
    /// When the last request had ended.
    pub end: Timestamp,
    /// Time the run took, wall clock.
    pub wall: Duration,
}

/// How far sends were behind their intended times, wall clock; over all requests. The timer has a resolution of 1 ms.
///
/// Latencies run from the intended times and so contain this: where it is not small against them, the driver is too slow
/// for the load and the run says little about the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LateSends {
    /// Median.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// Largest.
    pub max: Duration,
}

impl LateSends {
    pub(crate) fn of(behind_ns: &Histogram<u64>) -> Self {
        let at = |quantile| Duration::from_nanos(behind_ns.value_at_quantile(quantile));
        Self { p50: at(0.5), p99: at(0.99), max: Duration::from_nanos(behind_ns.max()) }
    }
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureCount {
    /// How many.
    pub count: u64,
    /// What the first of them said.
    pub example: String,
}

/// A histogram that grows as needed, with the 3 significant digits that the lab asks for.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("3 significant digits are valid")
}
