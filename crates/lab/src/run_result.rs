//! The figures of one run, each defined once, here.
//!
//! A request *counts* if its intended arrival is in the measurement window (after the warm-up, before the load falls). Only `requests`, `completed`,
//! `failed`, their like in `per_instance`, and `reasons` are of the whole run; every other figure that is
//! made from records is of the counted requests. Gauges, counters and inter-token times arrive already
//! aggregated, over the time that whoever measured them chose ([`Measurements`] asks for the time after
//! the warm-up). With `arrival` the *intended* arrival (open loop, no coordinated omission):
//!
//! ```text
//! ttft = first_token - arrival                       e2e        = end - arrival
//! tpot = (e2e - ttft) / (output_tokens - 1)          queue_time = scheduled - arrival
//! ```
//!
//! `tpot` is undefined for one token or none, and such a request is not in its summary. Latencies are
//! summarised over completed requests (see [`Summary`] for the quantiles). A failed request has no
//! latency, but it is a miss of the SLO, and its arrival and end bound the run as any other's:
//!
//! ```text
//! duration     = last end - first arrival            goodput    = requests that meet the SLO / duration
//! offered rate = requests / (last arrival - first arrival)
//! hit rate     = cached prompt tokens / prompt tokens, of completed requests
//! precision    = Σ min(predicted, cached) / Σ predicted
//! recall       = Σ min(predicted, cached) / Σ cached
//! ```
//!
//! Whatever was not measured, or has zero below the line, is `None` (null in JSON). A figure of many
//! parts is `None` unless every part was measured: half a cluster's mean is not the cluster's, and a
//! server that reports only its hits would seem to have no misses.

use std::collections::BTreeMap;
use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use kvroute_types::{InstanceId, Outcome, RequestRecord, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    HitRateBounds, InstanceMeasurements, MeasurementWindow, Measurements, Mode, Preemptions, Slo,
    Summary,
};

/// Nanoseconds in a second.
const NS_PER_S: f64 = 1e9;
/// Nanoseconds in a millisecond.
const NS_PER_MS: f64 = 1e6;

/// The figures of one run. The JSON field names are contract; the module header has the definitions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Name of the policy.
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
    /// Requests of the run, warm-up included.
    pub requests: u64,
    /// Requests of the run that completed, warm-up included.
    pub completed: u64,
    /// Requests of the run that failed, warm-up included.
    pub failed: u64,
    /// From the first counted arrival to the last end of a counted request, s.
    pub duration_s: Option<f64>,
    /// Counted requests per second between the first and the last arrival; `None` if all arrive at once.
    pub offered_rps: Option<f64>,
    /// Counted requests that completed, per second of the duration.
    pub completed_rps: Option<f64>,
    /// Output tokens of counted requests that completed, per second of the duration.
    pub output_tokens_per_s: Option<f64>,
    /// Time to first token, ms.
    pub ttft_ms: Summary,
    /// Time per output token after the first, per request, ms.
    pub tpot_ms: Summary,
    /// Inter-token latency: each gap between two output tokens, ms, to 3 significant digits.
    pub itl_ms: Summary,
    /// From intended arrival to last token, ms.
    pub e2e_ms: Summary,
    /// From intended arrival to the first time an engine scheduled the request, ms.
    pub queue_time_ms: Summary,
    /// The objective behind `goodput_rps`.
    pub slo: Slo,
    /// Counted requests that meet both parts of the SLO, per second of the duration. A failed request
    /// misses it, and so does one without any token; with a single token only the TTFT part applies.
    pub goodput_rps: Option<f64>,
    /// What the prefix caches saved.
    pub cache: CacheResult,
    /// How evenly the instances were used.
    pub load: LoadResult,
    /// Preemptions of counted requests, or of the engines over the counted part of the run.
    pub preemptions: Option<u64>,
    /// One entry for each instance that was measured or served a request, in the order of their ids.
    pub per_instance: Vec<InstanceResult>,
    /// How well the router's cache directory knew the caches.
    pub index: IndexResult,
    /// Decisions of the whole run by the reason the policy gave. A request that reached no decision
    /// has an empty reason and is in none.
    pub reasons: BTreeMap<String, u64>,
    /// Hash of the log of decisions: equal hashes, equal decisions. `None` if no log was kept.
    pub decision_log_hash: Option<DecisionLogHash>,
    /// Time the run took on the machine that ran it, s. The one figure that is not the same each time.
    pub wall_s: f64,
}

/// What the prefix caches saved, over counted requests that completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheResult {
    /// Prompt tokens (vLLM `prefix_cache_queries`).
    pub prompt_tokens: u64,
    /// Prompt tokens found in a prefix cache (vLLM `prefix_cache_hits`); `None` unless every such
    /// request reported its own.
    pub cached_tokens: Option<u64>,
    /// Cached prompt tokens over prompt tokens, `0.0..=1.0`.
    pub hit_rate: Option<f64>,
    /// Prompt tokens whose KV had to be computed: prompt less cached. Recomputation after a preemption
    /// is not in it.
    pub kv_computed_tokens: Option<u64>,
    /// The hit rate with a cache that never evicts and is shared by all, `0.0..=1.0`: the bound.
    pub hit_rate_infinite_cache: Option<f64>,
    /// The hit rate with one LRU cache as large as all instances' together, `0.0..=1.0`. Results from before there was this
    /// figure have none.
    pub hit_rate_pooled_lru: Option<f64>,
    /// The same if the blocks used again soonest are kept (Belady): the bound for caches of this size, in order of arrival.
    pub hit_rate_pooled_belady: Option<f64>,
}

/// How evenly the instances were used. Load is `in_flight`: requests sent and not seen to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadResult {
    /// Largest over mean, over instances, of the time-mean load; 1 is even, the number of instances
    /// is the worst.
    pub imbalance_max_over_mean: Option<f64>,
    /// Largest over smallest, over instances, of the time-mean load; `None` if one had none.
    pub imbalance_max_over_min: Option<f64>,
    /// Coefficient of variation of the momentary load over instances, averaged over the run.
    pub cov_in_flight: Option<f64>,
    /// Mean over instances of the time-mean waiting queue, requests.
    pub queue_depth_mean: Option<f64>,
    /// Longest waiting queue of any instance, requests.
    pub queue_depth_max: Option<u32>,
}

/// The figures of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceResult {
    /// The instance.
    pub instance: InstanceId,
    /// Requests of the run that were sent to it, warm-up and failed ones included.
    pub requests: u64,
    /// Prompt tokens of counted requests that completed.
    pub prompt_tokens: u64,
    /// Prompt tokens of those found in its prefix cache; `None` unless each reported its own.
    pub cached_tokens: Option<u64>,
    /// Cached prompt tokens over prompt tokens, `0.0..=1.0`.
    pub hit_rate: Option<f64>,
    /// Waiting queue, mean over time, requests.
    pub queue_depth_mean: Option<f64>,
    /// Longest waiting queue, requests.
    pub queue_depth_max: Option<u32>,
    /// Fraction of KV blocks in use, mean over time, `0.0..=1.0`.
    pub kv_cache_usage_mean: Option<f64>,
    /// Time to first token of counted requests that completed, ms.
    pub ttft_ms: Summary,
}

/// How well the router's cache directory knew the caches: what it predicted to be cached on the chosen
/// instance against what was, in tokens, over counted requests for which both are known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexResult {
    /// Share of the predicted tokens that were cached, `0.0..=1.0`.
    pub precision: Option<f64>,
    /// Share of the cached tokens that were predicted, `0.0..=1.0`.
    pub recall: Option<f64>,
}

/// Hash of a log of decisions; in results a string of 16 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DecisionLogHash(pub u64);

/// A text that is no decision log hash.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("decision log hash {text:?} is not 16 hex digits")]
pub struct ParseHashError {
    /// The text.
    pub text: String,
    /// What is wrong with its digits; `None` if only their number is.
    #[source]
    pub source: Option<ParseIntError>,
}

impl RunResult {
    /// The figures of a run.
    ///
    /// # Panics
    /// If an instance was measured twice.
    pub fn from_measurements(measured: &Measurements<'_>) -> Self {
        let Measurements {
            policy,
            policy_config,
            workload,
            instances,
            seed,
            mode,
            records,
            window,
            slo,
            inter_token_ns,
            hit_rate_bounds,
            instances_measured,
            cov_in_flight,
            preemptions,
            decision_log_hash,
            wall_s,
        } = measured;

        let counted: Vec<_> = records.iter().filter(|r| window.counts(r.arrival)).collect();
        let done: Vec<_> = counted.iter().copied().filter(|r| is_completed(r)).collect();
        let completed = records.iter().filter(|r| is_completed(r)).count() as u64;

        let span = Span::of(&counted);
        let duration_s = span.map(|span| s_between(span.first_arrival, span.last_end));
        let arrivals_s = span.map(|span| s_between(span.first_arrival, span.last_arrival));
        let per_s = |amount: u64| duration_s.and_then(|s| ratio(amount as f64, s));
        let good = done.iter().filter(|r| meets(r, slo)).count() as u64;

        let gauges = gauges_of_all(records, instances_measured);
        Self {
            policy: policy.clone(),
            policy_config: policy_config.clone(),
            workload: workload.clone(),
            instances: *instances,
            seed: *seed,
            mode: *mode,
            requests: records.len() as u64,
            completed,
            failed: records.len() as u64 - completed,
            duration_s,
            offered_rps: arrivals_s.and_then(|s| ratio(counted.len() as f64, s)),
            completed_rps: per_s(done.len() as u64),
            output_tokens_per_s: per_s(done.iter().map(|r| u64::from(r.output_tokens.0)).sum()),
            ttft_ms: summary_ms(&done, ttft_ms),
            tpot_ms: summary_ms(&done, tpot_ms),
            itl_ms: inter_token_ns.as_ref().map(Summary::of_nanos).unwrap_or_default(),
            e2e_ms: summary_ms(&done, |r| Some(ms_between(r.arrival, r.end))),
            queue_time_ms: summary_ms(&done, |r| Some(ms_between(r.arrival, r.scheduled?))),
            slo: *slo,
            goodput_rps: per_s(good),
            cache: cache(PromptTokens::of(&done), *hit_rate_bounds),
            load: load(&gauges, *cov_in_flight),
            preemptions: match *preemptions {
                Preemptions::InRecords => {
                    Some(counted.iter().map(|r| u64::from(r.preemptions)).sum())
                }
                Preemptions::Counter(count) => Some(count),
                Preemptions::Unmeasured => None,
            },
            per_instance: per_instance(records, &gauges, *window),
            index: index(&counted),
            reasons: reasons(records),
            decision_log_hash: decision_log_hash.map(DecisionLogHash),
            wall_s: *wall_s,
        }
    }
}

impl fmt::Display for DecisionLogHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for DecisionLogHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        let error = |source| ParseHashError { text: text.to_owned(), source };
        if text.len() != 16 || text.starts_with('+') {
            return Err(error(None));
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|source| error(Some(source)))
    }
}

impl From<DecisionLogHash> for String {
    fn from(hash: DecisionLogHash) -> Self {
        hash.to_string()
    }
}

impl TryFrom<String> for DecisionLogHash {
    type Error = ParseHashError;

    fn try_from(text: String) -> Result<Self, ParseHashError> {
        text.parse()
    }
}

/// The times that bound the counted requests.
#[derive(Clone, Copy)]
struct Span {
    first_arrival: Timestamp,
    last_arrival: Timestamp,
    last_end: Timestamp,
}

impl Span {
    /// `None` if no request counts.
    fn of(counted: &[&RequestRecord]) -> Option<Self> {
        Some(Self {
            first_arrival: counted.iter().map(|r| r.arrival).min()?,
            last_arrival: counted.iter().map(|r| r.arrival).max()?,
            last_end: counted.iter().map(|r| r.end).max()?,
        })
    }
}

/// Prompt tokens of some requests, and how many of them were cached.
#[derive(Clone, Copy)]
struct PromptTokens {
    all: u64,
    cached: Option<u64>,
}

impl PromptTokens {
    fn of(done: &[&RequestRecord]) -> Self {
        Self {
            all: done.iter().map(|r| u64::from(r.prompt_tokens.0)).sum(),
            cached: done.iter().map(|r| Some(u64::from(r.cached_tokens?.0))).sum(),
        }
    }

    fn hit_rate(self) -> Option<f64> {
        ratio(self.cached? as f64, self.all as f64)
    }
}

/// `None` if there is nothing to divide by.
fn ratio(amount: f64, of: f64) -> Option<f64> {
    (of > 0.0).then(|| amount / of)
}

fn is_completed(record: &RequestRecord) -> bool {
    record.outcome == Outcome::Completed
}

fn ms_between(start: Timestamp, end: Timestamp) -> f64 {
    end.nanos_since(start) as f64 / NS_PER_MS
}

fn s_between(start: Timestamp, end: Timestamp) -> f64 {
    end.nanos_since(start) as f64 / NS_PER_S
}

fn ttft_ms(record: &RequestRecord) -> Option<f64> {
    Some(ms_between(record.arrival, record.first_token?))
}

fn tpot_ms(record: &RequestRecord) -> Option<f64> {
    let gaps = record.output_tokens.0.checked_sub(1)?;
    ratio(ms_between(record.first_token?, record.end), f64::from(gaps))
}

/// Whether a completed request meets both parts of the SLO, as far as they are defined for it.
fn meets(record: &RequestRecord, slo: &Slo) -> bool {
    ttft_ms(record).is_some_and(|ms| ms <= slo.ttft_ms)
        && tpot_ms(record).is_none_or(|ms| ms <= slo.tpot_ms)
}

fn summary_ms(done: &[&RequestRecord], ms: impl Fn(&RequestRecord) -> Option<f64>) -> Summary {
    Summary::of(done.iter().filter_map(|r| ms(r)).collect())
}

fn cache(tokens: PromptTokens, bounds: HitRateBounds) -> CacheResult {
    let HitRateBounds { pooled_lru, pooled_belady, infinite_cache } = bounds;
    CacheResult {
        prompt_tokens: tokens.all,
        cached_tokens: tokens.cached,
        hit_rate: tokens.hit_rate(),
        // A server that claims more hits than tokens has not told what it computed.
        kv_computed_tokens: tokens.cached.and_then(|cached| tokens.all.checked_sub(cached)),
        hit_rate_infinite_cache: infinite_cache,
        hit_rate_pooled_lru: pooled_lru,
        hit_rate_pooled_belady: pooled_belady,
    }
}

/// The gauges of every instance in the measurements or the records, in the order of their ids.
fn gauges_of_all(
    records: &[RequestRecord],
    measured: &[InstanceMeasurements],
) -> Vec<InstanceMeasurements> {
    let mut gauges = BTreeMap::new();
    for instance in measured {
        let before = gauges.insert(instance.instance, *instance);
        assert!(before.is_none(), "instance {} is measured once", instance.instance);
    }
    for instance in records.iter().filter_map(|r| r.instance) {
        gauges.entry(instance).or_insert(InstanceMeasurements::unmeasured(instance));
    }
    gauges.into_values().collect()
}

fn per_instance(
    records: &[RequestRecord],
    gauges: &[InstanceMeasurements],
    window: MeasurementWindow,
) -> Vec<InstanceResult> {
    let mut records_of: BTreeMap<InstanceId, Vec<&RequestRecord>> = BTreeMap::new();
    for record in records {
        if let Some(instance) = record.instance {
            records_of.entry(instance).or_default().push(record);
        }
    }
    let result = |gauges: &InstanceMeasurements| {
        let sent = records_of.get(&gauges.instance).map_or(&[][..], Vec::as_slice);
        let counts = |r: &&RequestRecord| window.counts(r.arrival) && is_completed(r);
        let done: Vec<_> = sent.iter().copied().filter(counts).collect();
        let tokens = PromptTokens::of(&done);
        InstanceResult {
            instance: gauges.instance,
            requests: sent.len() as u64,
            prompt_tokens: tokens.all,
            cached_tokens: tokens.cached,
            hit_rate: tokens.hit_rate(),
            queue_depth_mean: gauges.queue_depth_mean,
            queue_depth_max: gauges.queue_depth_max,
            kv_cache_usage_mean: gauges.kv_cache_usage_mean,
            ttft_ms: summary_ms(&done, ttft_ms),
        }
    };
    gauges.iter().map(result).collect()
}

fn load(gauges: &[InstanceMeasurements], cov_in_flight: Option<f64>) -> LoadResult {
    let in_flight = of_all(gauges, |instance| instance.in_flight_mean);
    let max = in_flight.iter().copied().max_by(f64::total_cmp);
    let min = in_flight.iter().copied().min_by(f64::total_cmp);
    let over = |below: Option<f64>| max.zip(below).and_then(|(max, below)| ratio(max, below));
    LoadResult {
        imbalance_max_over_mean: over(mean(&in_flight)),
        imbalance_max_over_min: over(min),
        cov_in_flight,
        queue_depth_mean: mean(&of_all(gauges, |instance| instance.queue_depth_mean)),
        queue_depth_max: of_all(gauges, |instance| instance.queue_depth_max).into_iter().max(),
    }
}

/// One gauge of each instance; none at all if an instance lacks it.
fn of_all<T>(
    gauges: &[InstanceMeasurements],
    gauge: impl Fn(&InstanceMeasurements) -> Option<T>,
) -> Vec<T> {
    gauges.iter().map(gauge).collect::<Option<_>>().unwrap_or_default()
}

/// `None` of nothing.
pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    ratio(values.iter().sum(), values.len() as f64)
}

fn index(counted: &[&RequestRecord]) -> IndexResult {
    let (mut predicted_tokens, mut cached_tokens, mut both_tokens) = (0, 0, 0);
    for record in counted {
        if let (Some(predicted), Some(cached)) =
            (record.predicted_cached_tokens, record.cached_tokens)
        {
            predicted_tokens += u64::from(predicted.0);
            cached_tokens += u64::from(cached.0);
            both_tokens += u64::from(predicted.min(cached).0);
        }
    }
    IndexResult {
        precision: ratio(both_tokens as f64, predicted_tokens as f64),
        recall: ratio(both_tokens as f64, cached_tokens as f64),
    }
}

fn reasons(records: &[RequestRecord]) -> BTreeMap<String, u64> {
    let mut reasons = BTreeMap::new();
    for record in records.iter().filter(|r| !r.reason.is_empty()) {
        *reasons.entry(record.reason).or_default() += 1;
    }
    reasons.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect()
}

#[cfg(test)]
mod tests;
