//! The gateway's own Prometheus metrics, all named `kvroute_*`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kvroute_kv_events::Counters;
use kvroute_policy::Reason;
use kvroute_router::DirectorySource;
use kvroute_types::TokenCount;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::error::Failure;
use crate::fleet::IndexFigures;
use crate::health::EjectionCause;

type FloatGauge = Gauge<f64, AtomicU64>;
type Histograms = Family<RouteLabels, Histogram, fn() -> Histogram>;

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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SourceLabels {
    instance: String,
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NameLabels {
    names: &'static str,
    why: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EventLabels {
    instance: String,
    event: &'static str,
}

/// Counts the times that an instance's word was doubted.
pub(crate) struct DoubtCounter {
    instance: String,
    doubts: Family<CauseLabels, Counter>,
}

impl DoubtCounter {
    pub(crate) fn count(&self, cause: &'static str) {
        let labels = CauseLabels { instance: self.instance.clone(), cause };
        self.doubts.get_or_create(&labels).inc();
    }
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
    prompts: Family<NameLabels, Counter>,
    predicted_tokens: Family<SourceLabels, Counter>,
    cached_tokens: Family<SourceLabels, Counter>,
    correct_tokens: Family<SourceLabels, Counter>,
    index_believed: Family<InstanceLabels, Gauge>,
    index_doubts: Family<CauseLabels, Counter>,
    index_precision: Family<InstanceLabels, FloatGauge>,
    index_recall: Family<InstanceLabels, FloatGauge>,
    index_held_blocks: Family<InstanceLabels, Gauge>,
    index_blocks: Gauge,
    index_bytes_per_block: FloatGauge,
    index_snapshot_age: FloatGauge,
    index_refused_blocks: Counter,
    kv_events: Family<EventLabels, Counter>,
}

/// One instance's metrics under one policy, looked up once and then only counted.
pub(crate) struct RouteMetrics {
    outcomes: [Counter; 3],
    reasons: [Counter; Reason::ALL.len()],
    /// Predicted, cached and correctly predicted tokens, by what was routed and by what instances tell.
    predictions: [[Counter; 3]; 2],
    pub(crate) ttft: Histogram,
    pub(crate) itl: Histogram,
    pub(crate) e2e: Histogram,
}

impl RouteMetrics {
    pub(crate) fn decided(&self, reason: Reason) {
        self.reasons[reason as usize].inc();
    }

    /// So many tokens were predicted to be cached, and so many were.
    pub(crate) fn compared(
        &self,
        source: DirectorySource,
        predicted: TokenCount,
        cached: TokenCount,
    ) {
        let tokens = [predicted, cached, predicted.min(cached)];
        for (counter, tokens) in self.predictions[source as usize].iter().zip(tokens) {
            counter.inc_by(tokens.0.into());
        }
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
            prompts: Family::default(),
            predicted_tokens: Family::default(),
            cached_tokens: Family::default(),
            correct_tokens: Family::default(),
            index_believed: Family::default(),
            index_doubts: Family::default(),
            index_precision: Family::default(),
            index_recall: Family::default(),
            index_held_blocks: Family::default(),
            index_blocks: Gauge::default(),
            index_bytes_per_block: FloatGauge::default(),
            index_snapshot_age: FloatGauge::default(),
            index_refused_blocks: Counter::default(),
            kv_events: Family::default(),
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
        r.register("prompts", "Prompts by what names their blocks, and why", self.prompts.clone());
        r.register("index_predicted_tokens", "Prompt tokens predicted to be cached where the request went, of audited requests", self.predicted_tokens.clone());
        r.register("index_cached_tokens", "Prompt tokens that the engine reported as cached, of the same", self.cached_tokens.clone());
        r.register("index_correct_tokens", "The lesser of both, request by request: over predicted it is the precision, over cached the recall", self.correct_tokens.clone());
        r.register("index_believed", "Whether requests are routed by what the instance tells of its cache", self.index_believed.clone());
        r.register("index_doubts", "Times that the audit stopped believing an instance, by cause", self.index_doubts.clone());
        r.register("index_precision", "Share of the tokens predicted by what the instance tells that were cached, over its latest audited requests", self.index_precision.clone());
        r.register("index_recall", "Share of its cached tokens that were so predicted, over the same", self.index_recall.clone());
        r.register("index_held_blocks", "Distinct blocks that the instance holds by its own account", self.index_held_blocks.clone());
        r.register("index_blocks", "Distinct blocks that instances hold by their own account", self.index_blocks.clone());
        r.register("index_bytes_per_block", "Memory of what instances tell over its distinct blocks", self.index_bytes_per_block.clone());
        r.register("index_snapshot_age_seconds", "Time since the latest snapshot of what instances tell", self.index_snapshot_age.clone());
        r.register("index_refused_blocks", "Blocks told of that index.budget_bytes had no room for", self.index_refused_blocks.clone());
        r.register("kv_events", "What the subscription to the instance's KV events has counted since it began", self.kv_events.clone());
    }

    pub(crate) fn route(&self, instance: &str, policy: &'static str) -> Arc<RouteMetrics> {
        let labels = RouteLabels { instance: instance.to_owned(), policy };
        let outcome = |outcome| {
            let instance = instance.to_owned();
            self.requests.get_or_create_owned(&OutcomeLabels { instance, policy, outcome })
        };
        let predictions = |source| {
            let labels = SourceLabels { instance: instance.to_owned(), source };
            [&self.predicted_tokens, &self.cached_tokens, &self.correct_tokens]
                .map(|family| family.get_or_create_owned(&labels))
        };
        Arc::new(RouteMetrics {
            predictions: ["history", "events"].map(predictions),
            outcomes: ["answered", "failed", "abandoned"].map(outcome),
            reasons: Reason::ALL.map(|reason| {
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

    /// A prompt was named as engines name it, or by its text for this reason.
    pub(crate) fn named(&self, why_not: Option<&'static str>) {
        let labels = match why_not {
            None => NameLabels { names: "engine", why: "" },
            Some(why) => NameLabels { names: "text", why },
        };
        self.prompts.get_or_create(&labels).inc();
    }

    /// Counts the doubts about an instance.
    pub(crate) fn doubts(&self, instance: &str) -> DoubtCounter {
        DoubtCounter { instance: instance.to_owned(), doubts: self.index_doubts.clone() }
    }

    /// Sets the gauges of one instance's event stream, right before they are written out.
    pub(crate) fn index(&self, instance: &str, figures: &IndexFigures) {
        let labels = labels(instance);
        self.index_believed.get_or_create(&labels).set(figures.is_believed.into());
        let held = i64::try_from(figures.blocks).unwrap_or(i64::MAX);
        self.index_held_blocks.get_or_create(&labels).set(held);
        for (family, value) in [
            (&self.index_precision, figures.audit.precision),
            (&self.index_recall, figures.audit.recall),
        ] {
            match value {
                Some(value) => drop(family.get_or_create(&labels).set(value)),
                None => drop(family.remove(&labels)),
            }
        }
        for (event, count) in counted(&figures.counters) {
            let labels = EventLabels { instance: instance.to_owned(), event };
            self.kv_events.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
        }
    }

    /// Sets the gauges of what all instances tell.
    pub(crate) fn told(
        &self,
        blocks: u64,
        refused_blocks: u64,
        bytes: usize,
        snapshot_age_s: Option<f64>,
    ) {
        self.index_refused_blocks.inner().store(refused_blocks, Ordering::Relaxed);
        self.index_blocks.set(i64::try_from(blocks).unwrap_or(i64::MAX));
        self.index_bytes_per_block.set(if blocks == 0 {
            0.0
        } else {
            bytes as f64 / blocks as f64
        });
        self.index_snapshot_age.set(snapshot_age_s.unwrap_or(f64::NAN));
    }

    /// The gauges of an instance that was removed. Its counters stay.
    pub(crate) fn forget(&self, instance: &str) {
        let labels = labels(instance);
        for gauges in [
            &self.in_flight,
            &self.up,
            &self.missing_figures,
            &self.index_believed,
            &self.index_held_blocks,
        ] {
            gauges.remove(&labels);
        }
        for gauges in [&self.load_age, &self.index_precision, &self.index_recall] {
            gauges.remove(&labels);
        }
        for (event, _) in counted(&Counters::default()) {
            self.kv_events.remove(&EventLabels { instance: instance.to_owned(), event });
        }
    }

    pub(crate) fn write(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }
}

/// What a subscription counts, by label.
fn counted(counters: &Counters) -> impl Iterator<Item = (&'static str, u64)> {
    let errors: Vec<_> = counters.errors().map(|(kind, count)| (kind.name(), count)).collect();
    [
        ("connects", counters.connects),
        ("connect_failures", counters.connect_failures),
        ("messages", counters.messages),
        ("batches", counters.batches),
        ("events", counters.events),
        ("events_elsewhere", counters.events_elsewhere),
        ("duplicates", counters.duplicates),
        ("gaps", counters.gaps),
        ("replays", counters.replays),
        ("replay_failures", counters.replay_failures),
        ("replayed", counters.replayed),
        ("lost_batches", counters.lost_batches),
        ("losses", counters.losses),
        ("restarts", counters.restarts),
        ("quiet_checks", counters.quiet_checks),
        ("found_by_checks", counters.found_by_checks),
    ]
    .into_iter()
    .chain(errors)
}

fn labels(instance: &str) -> InstanceLabels {
    InstanceLabels { instance: instance.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_indexed_by_their_number() {
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
    }
}
