//! vLLM's own account of a run: its Prometheus page before and after.
//!
//! Names change between vLLM versions. Each figure has its names, today's (0.32) first; of those a page has, the first in
//! the list counts. A figure that a page does not have is `None`, never zero, and [`Metrics::missing`] names it.
//! Several engines on one page (data-parallel ranks, models) are added up, but for cache usage, which is the fullest one's.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use crate::config::Target;
use crate::http::get;

/// The figures of one page.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    gauges: BTreeMap<Gauge, f64>,
    counters: BTreeMap<Counter, f64>,
    summaries: BTreeMap<Summary, Buckets>,
}

/// What goes up and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gauge {
    /// Requests in the waiting queue.
    Waiting,
    /// Requests in the running list.
    Running,
    /// Fraction of KV blocks in use, `0.0..=1.0`, despite the `perc` in its name.
    KvCacheUsage,
}

/// What only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// Prompt tokens looked up in the prefix cache.
    PrefixCacheQueries,
    /// Prompt tokens found there.
    PrefixCacheHits,
    /// Prompt tokens of all requests, cached or not.
    PromptTokens,
    /// Output tokens.
    GenerationTokens,
    /// Preemptions.
    Preemptions,
}

/// What is observed per request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Summary {
    /// Time to first token, from the arrival in the server, s.
    Ttft,
    /// Time in the waiting queue, s.
    QueueTime,
    /// Time of prefill, s.
    PrefillTime,
    /// Prompt tokens whose KV was computed, not found in the cache.
    PrefillKvComputedTokens,
}

impl Gauge {
    /// All.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Running, Self::KvCacheUsage];

    /// Its names on the page.
    pub const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Waiting => &["vllm:num_requests_waiting"],
            Self::Running => &["vllm:num_requests_running"],
            // The latter is that of the V0 engine.
            Self::KvCacheUsage => &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
        }
    }
}

impl Counter {
    /// All.
    pub const ALL: [Self; 5] = [
        Self::PrefixCacheQueries,
        Self::PrefixCacheHits,
        Self::PromptTokens,
        Self::GenerationTokens,
        Self::Preemptions,
    ];

    /// Its names on the page.
    pub const fn names(self) -> &'static [&'static str] {
        match self {
            Self::PrefixCacheQueries => &[
                "vllm:prefix_cache_queries_total",
                "vllm:prefix_cache_queries",
                "vllm:gpu_prefix_cache_queries_total",
                "vllm:gpu_prefix_cache_queries",
            ],
            Self::PrefixCacheHits => &[
                "vllm:prefix_cache_hits_total",
                "vllm:prefix_cache_hits",
                "vllm:gpu_prefix_cache_hits_total",
                "vllm:gpu_prefix_cache_hits",
            ],
            Self::PromptTokens => &["vllm:prompt_tokens_total", "vllm:prompt_tokens"],
            Self::GenerationTokens => &["vllm:generation_tokens_total", "vllm:generation_tokens"],
            Self::Preemptions => &["vllm:num_preemptions_total", "vllm:num_preemptions"],
        }
    }
}

impl Summary {
    /// All.
    pub const ALL: [Self; 4] =
        [Self::Ttft, Self::QueueTime, Self::PrefillTime, Self::PrefillKvComputedTokens];

    /// Its names on the page, without `_bucket`, `_sum` and `_count`.
    pub const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Ttft => &["vllm:time_to_first_token_seconds"],
            Self::QueueTime => &["vllm:request_queue_time_seconds"],
            Self::PrefillTime => &["vllm:request_prefill_time_seconds"],
            Self::PrefillKvComputedTokens => &["vllm:request_prefill_kv_computed_tokens"],
        }
    }
}

/// A Prometheus histogram.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets {
    /// Upper bounds, increasing, the last one infinite, and how many observations are at or below.
    pub cumulative: Vec<(f64, f64)>,
    /// Sum of all observations.
    pub sum: f64,
    /// Number of all observations.
    pub count: f64,
}

impl Buckets {
    /// Mean of the observations; `None` if there are none.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    /// The quantile `q`, `0.0..=1.0`, as Prometheus' `histogram_quantile` estimates it: linear within a bucket, from 0 in
    /// the first; the highest finite bound if it is above all of them. `None` without observations.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.cumulative.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        let rank = q.clamp(0.0, 1.0) * total;
        let (mut lower, mut below) = (0.0, 0.0);
        for &(upper, count) in &self.cumulative {
            if count >= rank && count > below {
                if upper.is_infinite() {
                    return Some(lower);
                }
                return Some(lower + (upper - lower) * ((rank - below) / (count - below)));
            }
            (lower, below) = (if upper.is_finite() { upper } else { lower }, count);
        }
        Some(lower)
    }

    /// What was observed since `before`; `None` if something fell, or the bounds are others.
    fn since(&self, before: &Self) -> Option<Self> {
        let bounds = |buckets: &Self| {
            buckets.cumulative.iter().map(|(bound, _)| bound.to_bits()).collect::<Vec<_>>()
        };
        // A histogram without any label set yet has no buckets on some pages.
        let is_empty = before.cumulative.is_empty() && before.count == 0.0;
        if !is_empty && bounds(self) != bounds(before) {
            return None;
        }
        let pairs = self.cumulative.iter().enumerate();
        let cumulative = pairs
            .map(|(index, &(bound, count))| {
                let earlier = before.cumulative.get(index).map_or(0.0, |(_, count)| *count);
                growth(earlier, count).map(|growth| (bound, growth))
            })
            .collect::<Option<Vec<_>>>()?;
        let sum = growth(before.sum, self.sum)?;
        let count = growth(before.count, self.count)?;
        Some(Self { cumulative, sum, count })
    }
}

impl Metrics {
    /// Reads a page in the Prometheus text format. Lines that are not understood are passed over: a page holds much else.
    pub fn parse(page: &str) -> Self {
        let samples: Vec<Sample<'_>> = page.lines().filter_map(Sample::parse).collect();
        let of = |name: &'static str| {
            samples.iter().filter(move |sample| sample.name == name).map(|sample| sample.value)
        };
        let present = |names: &'static [&'static str]| {
            names.iter().copied().find(|name| of(name).next().is_some())
        };
        let mut metrics = Self::default();
        for gauge in Gauge::ALL {
            let Some(name) = present(gauge.names()) else { continue };
            let values = of(name);
            let value = match gauge {
                Gauge::KvCacheUsage => values.fold(0.0, f64::max),
                Gauge::Waiting | Gauge::Running => values.sum(),
            };
            metrics.gauges.insert(gauge, value);
        }
        for counter in Counter::ALL {
            let Some(name) = present(counter.names()) else { continue };
            metrics.counters.insert(counter, of(name).sum());
        }
        for summary in Summary::ALL {
            let read = |name: &&str| buckets(&samples, name);
            let Some(buckets) = summary.names().iter().find_map(read) else { continue };
            metrics.summaries.insert(summary, buckets);
        }
        metrics
    }

    /// A gauge, unless the page lacks it.
    pub fn gauge(&self, gauge: Gauge) -> Option<f64> {
        self.gauges.get(&gauge).copied()
    }

    /// A counter since the server began, unless the page lacks it.
    pub fn counter(&self, counter: Counter) -> Option<f64> {
        self.counters.get(&counter).copied()
    }

    /// A histogram since the server began, unless the page lacks it.
    pub fn summary(&self, summary: Summary) -> Option<&Buckets> {
        self.summaries.get(&summary)
    }

    /// Today's names of the figures that the page lacks.
    pub fn missing(&self) -> Vec<&'static str> {
        let gauges = Gauge::ALL.into_iter().filter(|gauge| self.gauge(*gauge).is_none());
        let counters = Counter::ALL.into_iter().filter(|counter| self.counter(*counter).is_none());
        let summaries = Summary::ALL.into_iter().filter(|summary| self.summary(*summary).is_none());
        let names = gauges.map(Gauge::names).chain(counters.map(Counter::names));
        let names = names.chain(summaries.map(Summary::names));
        names.filter_map(|names| names.first().copied()).collect()
    }

    /// What happened between `before` and this page of the same server.
    ///
    /// A figure that either page lacks is `None` in the delta.
    ///
    /// # Errors
    /// If a counter fell, which means that the server began anew in between: then nothing can be said of the run.
    pub fn since(&self, before: &Self) -> Result<MetricsDelta, CounterReset> {
        let mut delta = MetricsDelta::default();
        for (&counter, &now) in &self.counters {
            let Some(earlier) = before.counter(counter) else { continue };
            let reset = CounterReset { name: counter.names()[0] };
            delta.counters.insert(counter, growth(earlier, now).ok_or(reset)?);
        }
        for (&summary, now) in &self.summaries {
            let Some(earlier) = before.summary(summary) else { continue };
            let reset = CounterReset { name: summary.names()[0] };
            delta.summaries.insert(summary, now.since(earlier).ok_or(reset)?);
        }
        Ok(delta)
    }
}

/// How much counters grew between two pages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsDelta {
    counters: BTreeMap<Counter, f64>,
    summaries: BTreeMap<Summary, Buckets>,
}

/// A counter is lower than it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "{name} fell or changed its buckets: the instance was restarted during the run; run it again"
)]
pub struct CounterReset {
    /// Which.
    pub name: &'static str,
}

impl MetricsDelta {
    /// Growth of a counter; `None` if not measured.
    pub fn counter(&self, counter: Counter) -> Option<f64> {
        self.counters.get(&counter).copied()
    }

    /// Observations in between; `None` if not measured.
    pub fn summary(&self, summary: Summary) -> Option<&Buckets> {
        self.summaries.get(&summary)
    }

    /// Prompt tokens found in the prefix cache over those looked up, `0.0..=1.0`; `None` if not measured or none were.
    pub fn hit_rate(&self) -> Option<f64> {
        let queries = self.counter(Counter::PrefixCacheQueries).filter(|queries| *queries > 0.0)?;
        Some(self.counter(Counter::PrefixCacheHits)? / queries)
    }
}

/// Why a page could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScrapeError {
    /// No answer.
    #[error("{instance} does not answer /metrics: {problem}; check that it runs")]
    Unreachable {
        /// Base URL.
        instance: String,
        /// What happened.
        problem: String,
    },
    /// An answer without a page.
    #[error("{instance} answered /metrics with status {status}")]
    Status {
        /// Base URL.
        instance: String,
        /// HTTP status.
        status: u16,
    },
}

/// Reads the page of one instance.
///
/// # Errors
/// If it does not come within `timeout`, or with another status than 200.
pub async fn scrape(instance: &Target, timeout: Duration) -> Result<Metrics, ScrapeError> {
    Ok(Metrics::parse(&read_page(instance, timeout).await?))
}

/// The page as it came.
pub(crate) async fn read_page(instance: &Target, timeout: Duration) -> Result<String, ScrapeError> {
    let unreachable =
        |problem: String| ScrapeError::Unreachable { instance: instance.to_string(), problem };
    let answer = tokio::time::timeout(timeout, get(instance, "/metrics")).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("nothing after {timeout:?}")));
    let (status, body) = answer.map_err(unreachable)?;
    if status != http::StatusCode::OK {
        let instance = instance.to_string();
        return Err(ScrapeError::Status { instance, status: status.as_u16() });
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn growth(before: f64, after: f64) -> Option<f64> {
    (after >= before).then_some(after - before)
}

/// The histogram of a name, if the page has its sum and count; buckets of several label sets are added up.
fn buckets(samples: &[Sample<'_>], name: &str) -> Option<Buckets> {
    let suffixed = |suffix: &'static str| {
        samples.iter().filter(move |sample| sample.name.strip_prefix(name) == Some(suffix))
    };
    let total = |suffix| {
        let values = suffixed(suffix).map(|sample: &Sample<'_>| sample.value);
        values.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value))
    };
    let (sum, count) = (total("_sum")?, total("_count")?);
    let mut cumulative: Vec<(f64, f64)> = Vec::new();
    for sample in suffixed("_bucket") {
        let Some(bound) = sample.label("le").and_then(|bound| bound.parse::<f64>().ok()) else {
            continue;
        };
        match cumulative.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
            Some((_, count)) => *count += sample.value,
            None => cumulative.push((bound, sample.value)),
        }
    }
    cumulative.sort_by(|one, other| one.0.total_cmp(&other.0));
    Some(Buckets { cumulative, sum, count })
}

/// One line of a page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample<'a> {
    pub(crate) name: &'a str,
    labels: &'a str,
    value: f64,
}

impl<'a> Sample<'a> {
    /// `name{labels} value [timestamp]`; `None` for comments, other programs' metrics, and values that are no numbers.
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim();
        if !line.starts_with("vllm:") {
            return None;
        }
        let name_end = line.find(['{', ' ', '\t'])?;
        let (name, rest) = line.split_at(name_end);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => {
                let end = labels_end(rest)?;
                (&rest[..end], &rest[end + 1..])
            }
            None => ("", rest),
        };
        let value = rest.split_whitespace().next()?.parse::<f64>().ok()?;
        (value.is_finite() && value >= 0.0).then_some(Self { name, labels, value })
    }

    /// The value of a label. Only for those that need no unescaping.
    pub(crate) fn label(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        while let Some((label, value)) = rest.split_once("=\"") {
            let end = quote_end(value)?;
            if label.trim_matches([',', ' ']) == name {
                return Some(&value[..end]);
            }
            rest = &value[end + 1..];
        }
        None
    }
}

/// Where the labels end: at the first closing brace outside of quotes.
fn labels_end(text: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let next = from + text[from..].find(['}', '"'])?;
        if text.as_bytes()[next] == b'}' {
            return Some(next);
        }
        from = next + 2 + quote_end(&text[next + 1..])?;
    }
}

/// Where a quoted value ends: at the first quote without a backslash before it.
fn quote_end(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "counts come through unchanged")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: &str = include_str!("../tests/data/metrics.txt");

    #[test]
    fn a_page_of_vllm_is_read_in_full() {
        let metrics = Metrics::parse(PAGE);
        assert_eq!(metrics.missing(), Vec::<&str>::new());
        assert_eq!(metrics.gauge(Gauge::Waiting), Some(0.0));
        assert_eq!(metrics.counter(Counter::PrefixCacheQueries), Some(32_563.0));
        assert_eq!(metrics.counter(Counter::PrefixCacheHits), Some(352.0));
        let ttft = metrics.summary(Summary::Ttft).unwrap();
        assert_eq!(ttft.count, 46.0);
        assert!(ttft.cumulative.len() > 5);
        assert_eq!(ttft.cumulative.last().unwrap(), &(f64::INFINITY, 46.0));
        let computed = metrics.summary(Summary::PrefillKvComputedTokens).unwrap();
        assert_eq!(computed.sum, 32_182.0);
    }

    #[test]
    fn engines_are_added_up_and_old_names_known() {
        let metrics = Metrics::parse(
            "vllm:num_requests_waiting{engine=\"0\",m=\"a } \\\" b\"} 2.0\n\
             vllm:num_requests_waiting{engine=\"1\"} 3 1700000000\n\
             vllm:gpu_cache_usage_perc{engine=\"0\"} 0.25\nvllm:gpu_cache_usage_perc{engine=\"1\"} 0.5\n\
             vllm:gpu_prefix_cache_hits_total 1e3\n\
             vllm:time_to_first_token_seconds_bucket{le=\"+Inf\",engine=\"0\"} 2\n\
             vllm:time_to_first_token_seconds_bucket{engine=\"0\",le=\"0.1\"} 1\n\
             vllm:time_to_first_token_seconds_bucket{engine=\"1\",le=\"0.1\"} 1\n\
             vllm:time_to_first_token_seconds_bucket{engine=\"1\",le=\"+Inf\"} 1\n\
             vllm:time_to_first_token_seconds_sum 0.9\nvllm:time_to_first_token_seconds_count 3\n\
             vllm:num_requests_running NaN\n",
        );
        assert_eq!(metrics.gauge(Gauge::Waiting), Some(5.0));
        assert_eq!(metrics.gauge(Gauge::KvCacheUsage), Some(0.5));
        assert_eq!(metrics.counter(Counter::PrefixCacheHits), Some(1_000.0));
        let ttft = metrics.summary(Summary::Ttft).unwrap();
        assert_eq!(ttft.cumulative, [(0.1, 2.0), (f64::INFINITY, 3.0)]);
        assert!(metrics.missing().contains(&"vllm:num_requests_running"));
        assert!(metrics.missing().contains(&"vllm:prefix_cache_queries_total"));
        assert_eq!(metrics.gauge(Gauge::Running), None);
    }

    #[test]
    fn deltas_are_growth_and_a_restart_is_told() {
        let page = |queries: f64, hits: &str, ttft: f64| {
            Metrics::parse(&format!(
                "vllm:prefix_cache_queries_total {queries}\n{hits}\n\
                 vllm:time_to_first_token_seconds_bucket{{le=\"1\"}} {ttft}\n\
                 vllm:time_to_first_token_seconds_bucket{{le=\"+Inf\"}} {ttft}\n\
                 vllm:time_to_first_token_seconds_sum {ttft}\n\
                 vllm:time_to_first_token_seconds_count {ttft}\n"
            ))
        };
        let before = page(100.0, "vllm:prefix_cache_hits_total 10", 1.0);
        let delta = page(300.0, "vllm:prefix_cache_hits_total 60", 4.0).since(&before).unwrap();
        assert_eq!(delta.hit_rate(), Some(0.25));
        let ttft = delta.summary(Summary::Ttft).unwrap();
        assert_eq!((ttft.count, ttft.mean()), (3.0, Some(1.0)));
        let delta = page(300.0, "", 4.0).since(&before).unwrap();
        assert_eq!((delta.counter(Counter::PrefixCacheHits), delta.hit_rate()), (None, None));
        assert_eq!(delta.counter(Counter::Preemptions), None);
        let restarted = page(5.0, "", 4.0).since(&before).unwrap_err();
        assert_eq!(restarted.name, "vllm:prefix_cache_queries_total");
    }

    #[test]
    fn quantiles_are_linear_within_a_bucket() {
        let cumulative = vec![(1.0, 2.0), (3.0, 6.0), (f64::INFINITY, 8.0)];
        let buckets = Buckets { cumulative, sum: 0.0, count: 8.0 };
        assert_eq!(buckets.quantile(0.25), Some(1.0));
        assert_eq!(buckets.quantile(0.5), Some(2.0));
        assert_eq!(buckets.quantile(0.125), Some(0.5));
        assert_eq!(buckets.quantile(0.99), Some(3.0));
        assert_eq!(Buckets::default().quantile(0.5), None);
    }

    proptest! {
        #[test]
        fn no_page_makes_it_panic(lines in "(vllm:[a-z_]{0,12}[{}\"\\\\=, é0-9.a-z]{0,20}\n){0,6}") {
            let _ = Metrics::parse(&lines);
        }
    }
}
