//! The gateway's own Prometheus metrics, all named `kvroute_*`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use kvroute_policy::Reason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::error::Failure;
use crate::health::EjectionCause;

type FloatGauge = Gauge<f64, AtomicU64>;
type Histograms = Family<RouteLabels, Histogram, fn() -> Histogram>;

const REASONS: [Reason; 8] = [
    Reason::Rotation,
    Reason::LeastLoaded,
    Reason::LesserOfTwo,
    Reason::SessionHome,
    Reason::PrefixHome,
    Reason::Fallback,
    Reason::CacheScore,
    Reason::LoadScore,
];

/// How a request that was sent to an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answered in full, with whatever status.
    Answered,
    /// The instance failed it.
    Failed,
    /// The client left.
    Abandoned,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    instance: String,
    policy: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    instance: String,
    policy: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DecisionLabels {
    policy: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CauseLabels {
    instance: String,
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InstanceLabels {
    instance: String,
}

/// All families, and the registry that writes them out.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<OutcomeLabels, Counter>,
    decisions: Family<DecisionLabels, Counter>,
    ttft: Histograms,
    itl: Histograms,
    e2e: Histograms,
    errors: Family<ErrorLabels, Counter>,
    ejections: Family<CauseLabels, Counter>,
    retries: Family<InstanceLabels, Counter>,
    scrape_failures: Family<InstanceLabels, Counter>,
    missing_figures: Family<InstanceLabels, Gauge>,
    in_flight: Family<InstanceLabels, Gauge>,
    up: Family<InstanceLabels, Gauge>,
    load_age: Family<InstanceLabels, FloatGauge>,
    pub(crate) retries_denied: Counter,
    log_lines_lost: Counter,
    pub(crate) queued: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) index_bytes: Gauge,
}

/// One instance's metrics under one policy, looked up once and then only counted.
pub(crate) struct RouteMetrics {
    outcomes: [Counter; 3],
    reasons: [Counter; REASONS.len()],
    pub(crate) ttft: Histogram,
    pub(crate) itl: Histogram,
    pub(crate) e2e: Histogram,
}

impl RouteMetrics {
    pub(crate) fn decided(&self, reason: Reason) {
        self.reasons[reason as usize].inc();
    }

    pub(crate) fn ended(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].inc();
    }
}

impl Metrics {
    /// `log_lines_lost` is counted by the decision log.
    pub(crate) fn new(log_lines_lost: Counter) -> Self {
        // 1 ms to 524 s, and 0.5 ms to 16 s, in factors of 2.
        let latency: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 20));
        let gap: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let mut metrics = Self {
            registry: Registry::with_prefix("kvroute"),
            requests: Family::default(),
            decisions: Family::default(),
            ttft: Family::new_with_constructor(latency),
            itl: Family::new_with_constructor(gap),
            e2e: Family::new_with_constructor(latency),
            errors: Family::default(),
            ejections: Family::default(),
            retries: Family::default(),
            scrape_failures: Family::default(),
            missing_figures: Family::default(),
            in_flight: Family::default(),
            up: Family::default(),
            load_age: Family::default(),
            retries_denied: Counter::default(),
            log_lines_lost,
            queued: Gauge::default(),
            connections: Gauge::default(),
            index_bytes: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    #[rustfmt::skip]
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("requests", "Requests sent to an instance, by how they ended", self.requests.clone());
        r.register("decisions", "Routing decisions by reason", self.decisions.clone());
        r.register("ttft_seconds", "From arrival to the first byte of a streamed answer", self.ttft.clone());
        r.register("itl_seconds", "Between reads of one streamed answer", self.itl.clone());
        r.register("e2e_seconds", "From arrival to the end of the answer", self.e2e.clone());
        r.register("errors", "Failures told to clients, by type", self.errors.clone());
        r.register("ejections", "Instances taken out of use, by cause", self.ejections.clone());
        r.register("retries", "Requests tried elsewhere after this instance failed them", self.retries.clone());
        r.register("retries_denied", "Retries for which the budget was spent", self.retries_denied.clone());
        r.register("scrape_failures", "Readings of /metrics that failed", self.scrape_failures.clone());
        r.register("missing_figures", "Expected names that are not on the instance's /metrics page", self.missing_figures.clone());
        r.register("in_flight", "Requests sent and not ended", self.in_flight.clone());
        r.register("instance_up", "Whether the instance is in use", self.up.clone());
        r.register("load_age_seconds", "Age of the latest load reading", self.load_age.clone());
        r.register("log_lines_lost", "Receipts that the decision log could not keep up with", self.log_lines_lost.clone());
        r.register("queued", "Requests waiting for an instance below its cap", self.queued.clone());
        r.register("connections", "Client connections", self.connections.clone());
        r.register("index_bytes", "Memory of the cache directory", self.index_bytes.clone());
    }

    pub(crate) fn route(&self, instance: &str, policy: &'static str) -> Arc<RouteMetrics> {
        let labels = RouteLabels { instance: instance.to_owned(), policy };
        let outcome = |outcome| {
            let instance = instance.to_owned();
            self.requests.get_or_create_owned(&OutcomeLabels { instance, policy, outcome })
        };
        Arc::new(RouteMetrics {
            outcomes: ["answered", "failed", "abandoned"].map(outcome),
            reasons: REASONS.map(|reason| {
                self.decisions
                    .get_or_create_owned(&DecisionLabels { policy, reason: reason.name() })
            }),
            ttft: self.ttft.get_or_create_owned(&labels),
            itl: self.itl.get_or_create_owned(&labels),
            e2e: self.e2e.get_or_create_owned(&labels),
        })
    }

    pub(crate) fn error(&self, failure: &Failure) {
        self.errors.get_or_create(&ErrorLabels { kind: failure.kind() }).inc();
    }

    pub(crate) fn ejected(&self, instance: &str, cause: EjectionCause) {
        let labels = CauseLabels { instance: instance.to_owned(), cause: cause.name() };
        self.ejections.get_or_create(&labels).inc();
    }

    pub(crate) fn retried(&self, instance: &str) {
        self.retries.get_or_create(&labels(instance)).inc();
    }

    pub(crate) fn scraped(&self, instance: &str, missing: Option<usize>) {
        match missing {
            None => drop(self.scrape_failures.get_or_create(&labels(instance)).inc()),
            Some(count) => {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.missing_figures.get_or_create(&labels(instance)).set(count);
            }
        }
    }

    /// Sets the gauges of one instance, right before they are written out.
    pub(crate) fn instance(
        &self,
        instance: &str,
        in_flight: u32,
        is_up: bool,
        load_age: Option<Duration>,
    ) {
        let labels = labels(instance);
        self.in_flight.get_or_create(&labels).set(in_flight.into());
        self.up.get_or_create(&labels).set(is_up.into());
        match load_age {
            Some(age) => drop(self.load_age.get_or_create(&labels).set(age.as_secs_f64())),
            None => drop(self.load_age.remove(&labels)),
        }
    }

    /// The gauges of an instance that was removed. Its counters stay.
    pub(crate) fn forget(&self, instance: &str) {
        let labels = labels(instance);
        for gauges in [&self.in_flight, &self.up, &self.missing_figures] {
            gauges.remove(&labels);
        }
        self.load_age.remove(&labels);
    }

    pub(crate) fn write(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }
}

fn labels(instance: &str) -> InstanceLabels {
    InstanceLabels { instance: instance.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_indexed_by_their_number() {
        for (at, reason) in REASONS.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
    }
}
