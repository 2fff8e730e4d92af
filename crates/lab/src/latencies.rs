//! What each request of a run took, and how far a simulation of the run is off.
//!
//! With the times of one request,
//!
//! ```text
//! ttft = first token - arrival      e2e = last token - arrival
//! tpot = (last token - first token) / (output tokens - 1)      undefined for one token or none
//! relative error = simulated / measured - 1
//! hit rate = sum of cached prompt tokens / sum of prompt tokens
//! ```

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use kvroute_types::{Outcome, RequestId, RequestRecord, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Summary;

/// Milliseconds in a second.
const MS_PER_S: f64 = 1e3;
/// Nanoseconds in a millisecond.
const NS_PER_MS: f64 = 1e6;

/// When the requests of a run arrived, showed their first token and ended; by their number in the workload. Requests that
/// failed are only counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latencies {
    requests: BTreeMap<RequestId, RequestTimes>,
    failed: u64,
}

/// Times of one request on one clock, ms.
#[derive(Clone, Copy, Debug, PartialEq)]
struct RequestTimes {
    arrival_ms: f64,
    first_token_ms: f64,
    last_token_ms: f64,
    output_tokens: u32,
    /// Prompt tokens and those of them that were cached, where that was measured.
    prompt_and_cached: Option<(u32, u32)>,
}

/// Why measured requests cannot be read.
#[derive(Debug, Error)]
pub enum MeasuredError {
    /// The file broke off.
    #[error("line {line} cannot be read")]
    Io {
        /// Line, from 1.
        line: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A line of neither form.
    #[error(
        "line {line} is no measured request: give one JSON object a line, either a record of `kvroute load` (id, \
         arrival, first_token, end in ns; output_tokens, outcome) or stamps of vLLM's engine (request_id ending in the \
         request's number, output_toks, arrival_time, queued_ts, first_token_ts, last_token_ts in s)"
    )]
    Line {
        /// Line, from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A request's number cannot be found.
    #[error(
        "line {line}: request_id {name:?} does not end in the request's number, such as `bench-7`"
    )]
    Unnumbered {
        /// Line, from 1.
        line: usize,
        /// Its `request_id`.
        name: String,
    },
    /// A request twice.
    #[error("line {line}: request {id} was there before; give the requests of one run")]
    Twice {
        /// Line, from 1.
        line: usize,
        /// Its number.
        id: RequestId,
    },
    /// Tokens before the request, or the last before the first.
    #[error(
        "line {line}: arrival, first and last token of request {id} are not in this order; check the clocks"
    )]
    Order {
        /// Line, from 1.
        line: usize,
        /// Its number.
        id: RequestId,
    },
    /// Nothing to compare with.
    #[error("no measured request has ended well ({failed} failed); measure again")]
    Empty {
        /// Requests that failed.
        failed: u64,
    },
}

/// A line of either form.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Engine(EngineStamps),
    Record(Record),
}

/// What vLLM's engine stamped.
#[derive(Deserialize)]
struct EngineStamps {
    request_id: String,
    output_toks: u32,
    /// Wall clock, s.
    arrival_time: f64,
    /// Monotonic clock, s; so are the others.
    queued_ts: f64,
    first_token_ts: Option<f64>,
    last_token_ts: Option<f64>,
}

/// The fields of a [`RequestRecord`] that latencies are made of.
#[derive(Deserialize)]
struct Record {
    id: RequestId,
    outcome: Outcome,
    arrival: Timestamp,
    first_token: Option<Timestamp>,
    end: Timestamp,
    output_tokens: u32,
    #[serde(default)]
    prompt_tokens: Option<u32>,
    #[serde(default)]
    cached_tokens: Option<u32>,
}

impl Latencies {
    /// Those of a simulated run, or of one made by the load driver.
    pub fn of_records(records: &[RequestRecord]) -> Self {
        let mut latencies = Self::default();
        for record in records {
            let first_token = record.first_token.filter(|_| record.outcome == Outcome::Completed);
            latencies.add(
                record.id,
                first_token.map(|first_token| RequestTimes {
                    arrival_ms: ms(record.arrival),
                    first_token_ms: ms(first_token),
                    last_token_ms: ms(record.end),
                    output_tokens: record.output_tokens.0,
                    prompt_and_cached: record
                        .cached_tokens
                        .map(|cached| (record.prompt_tokens.0, cached.0)),
                }),
            );
        }
        latencies
    }

    /// Reads measured requests, one JSON object a line: records as `kvroute load` writes them, or the stamps of vLLM's
    /// engine as `LLMServingSim`'s bench writes them.
    ///
    /// vLLM stamps arrivals on the wall clock and everything else on the monotonic one. No request is queued before it
    /// arrives, so the clocks are at most the least `queued_ts - arrival_time` apart, and that is taken: every such TTFT
    /// and E2E is too short by what the fastest request took to reach the engine's queue.
    ///
    /// # Errors
    /// [`MeasuredError`] names the line and what it should be.
    pub fn read(reader: impl BufRead) -> Result<Self, MeasuredError> {
        let mut lines = Vec::new();
        for (line, text) in (1..).zip(reader.lines()) {
            let text = text.map_err(|source| MeasuredError::Io { line, source })?;
            if !text.trim().is_empty() {
                let parsed: Result<Line, _> = serde_json::from_str(&text);
                lines.push((line, parsed.map_err(|source| MeasuredError::Line { line, source })?));
            }
        }
        let clocks_apart_s = lines
            .iter()
            .filter_map(|(_, line)| match line {
                Line::Engine(stamps) => Some(stamps.queued_ts - stamps.arrival_time),
                Line::Record(_) => None,
            })
            .fold(f64::INFINITY, f64::min);
        let mut latencies = Self::default();
        for (line, request) in lines {
            let (id, times) = match request {
                Line::Engine(stamps) => (stamps.number(line)?, stamps.times(clocks_apart_s)),
                Line::Record(record) => (record.id, record.times()),
            };
            if times.is_some_and(|times| !times.are_in_order()) {
                return Err(MeasuredError::Order { line, id });
            }
            if !latencies.add(id, times) {
                return Err(MeasuredError::Twice { line, id });
            }
        }
        if latencies.requests.is_empty() {
            return Err(MeasuredError::Empty { failed: latencies.failed });
        }
        Ok(latencies)
    }

    /// Adds a request; without times, one that failed. False if it is there already.
    fn add(&mut self, id: RequestId, times: Option<RequestTimes>) -> bool {
        let Some(times) = times else {
            self.failed += 1;
            return true;
        };
        self.requests.insert(id, times).is_none()
    }

    /// Requests that ended well.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether no request ended well.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Requests that failed.
    pub const fn failed(&self) -> u64 {
        self.failed
    }

    /// The greatest number of a request that ended well.
    pub fn last_id(&self) -> Option<RequestId> {
        self.requests.last_key_value().map(|(id, _)| *id)
    }

    /// These without the requests that `other` does not have, so that both are of the same requests.
    #[must_use]
    pub fn only_those_of(&self, other: &Self) -> Self {
        let requests = self.requests.iter().filter(|(id, _)| other.requests.contains_key(id));
        Self { requests: requests.map(|(id, times)| (*id, *times)).collect(), failed: self.failed }
    }

    /// Time to first token of each request, ms, in their order.
    pub fn ttft_ms(&self) -> Vec<f64> {
        self.requests.values().map(|times| times.first_token_ms - times.arrival_ms).collect()
    }

    /// Time per output token after the first, ms, of each request that has more than one.
    pub fn tpot_ms(&self) -> Vec<f64> {
        let several = self.requests.values().filter(|times| times.output_tokens > 1);
        several
            .map(|times| {
                (times.last_token_ms - times.first_token_ms) / f64::from(times.output_tokens - 1)
            })
            .collect()
    }

    /// From arrival to last token of each request, ms, in their order.
    pub fn e2e_ms(&self) -> Vec<f64> {
        self.requests.values().map(|times| times.last_token_ms - times.arrival_ms).collect()
    }

    /// Share of the prompt tokens that were found in a cache; `None` unless it is known of every request.
    pub fn hit_rate(&self) -> Option<f64> {
        let (mut prompts, mut cached) = (0, 0);
        for times in self.requests.values() {
            let (prompt_tokens, cached_tokens) = times.prompt_and_cached?;
            prompts += u64::from(prompt_tokens);
            cached += u64::from(cached_tokens);
        }
        (prompts > 0).then(|| cached as f64 / prompts as f64)
    }

    /// From the first arrival to the last token, s; `None` without requests.
    pub fn duration_s(&self) -> Option<f64> {
        let first = self.requests.values().map(|times| times.arrival_ms).reduce(f64::min)?;
        let last = self.requests.values().map(|times| times.last_token_ms).reduce(f64::max)?;
        Some((last - first) / MS_PER_S)
    }
}

impl EngineStamps {
    fn number(&self, line: usize) -> Result<RequestId, MeasuredError> {
        let digits = self.request_id.rsplit(|c: char| !c.is_ascii_digit()).next();
        let number = digits.and_then(|digits| digits.parse().ok()).map(RequestId);
        number.ok_or_else(|| MeasuredError::Unnumbered { line, name: self.request_id.clone() })
    }

    fn times(&self, clocks_apart_s: f64) -> Option<RequestTimes> {
        Some(RequestTimes {
            arrival_ms: (self.arrival_time + clocks_apart_s) * MS_PER_S,
            first_token_ms: self.first_token_ts? * MS_PER_S,
            last_token_ms: self.last_token_ts? * MS_PER_S,
            output_tokens: self.output_toks,
            prompt_and_cached: None,
        })
    }
}

impl Record {
    fn times(&self) -> Option<RequestTimes> {
        let first_token = self.first_token.filter(|_| self.outcome == Outcome::Completed)?;
        Some(RequestTimes {
            arrival_ms: ms(self.arrival),
            first_token_ms: ms(first_token),
            last_token_ms: ms(self.end),
            output_tokens: self.output_tokens,
            prompt_and_cached: self.prompt_tokens.zip(self.cached_tokens),
        })
    }
}

impl RequestTimes {
    fn are_in_order(&self) -> bool {
        self.arrival_ms <= self.first_token_ms && self.first_token_ms <= self.last_token_ms
    }
}

fn ms(at: Timestamp) -> f64 {
    at.as_nanos() as f64 / NS_PER_MS
}

/// A measured run beside its simulation. The JSON field names are contract.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LatencyComparison {
    /// Time to first token.
    pub ttft_ms: FigureComparison,
    /// Time per output token after the first.
    pub tpot_ms: FigureComparison,
    /// From arrival to last token.
    pub e2e_ms: FigureComparison,
    /// Share of the prompt tokens that were cached, `0.0..=1.0`.
    pub hit_rate: HitRates,
}

/// The hit rates of both runs; `None` where one was not measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct HitRates {
    /// Of the measured run.
    pub measured: Option<f64>,
    /// Of the simulated run.
    pub simulated: Option<f64>,
    /// Simulated less measured.
    pub difference: Option<f64>,
}

/// The figures of one latency, ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FigureComparison {
    /// Arithmetic mean.
    pub mean: Compared,
    /// Median (quantiles are type 7, see [`Summary`]).
    pub p50: Compared,
    /// 90th percentile; not in the JSON form.
    #[serde(skip)]
    pub p90: Compared,
    /// 95th percentile.
    pub p95: Compared,
    /// 99th percentile.
    pub p99: Compared,
}

/// One figure of both runs; `None` where it was not measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Of the measured run.
    pub measured: Option<f64>,
    /// Of the simulated run.
    pub simulated: Option<f64>,
    /// `simulated / measured - 1`; `None` if either is, or if nothing was measured but zero.
    pub relative_error: Option<f64>,
}

impl LatencyComparison {
    /// Compares the distributions. They should be of the same requests: see [`Latencies::only_those_of`].
    pub fn new(measured: &Latencies, simulated: &Latencies) -> Self {
        Self {
            ttft_ms: FigureComparison::new(measured.ttft_ms(), simulated.ttft_ms()),
            tpot_ms: FigureComparison::new(measured.tpot_ms(), simulated.tpot_ms()),
            e2e_ms: FigureComparison::new(measured.e2e_ms(), simulated.e2e_ms()),
            hit_rate: HitRates::new(measured.hit_rate(), simulated.hit_rate()),
        }
    }

    /// Each latency with its name in JSON.
    pub const fn latencies(&self) -> [(&'static str, &FigureComparison); 3] {
        [("ttft_ms", &self.ttft_ms), ("tpot_ms", &self.tpot_ms), ("e2e_ms", &self.e2e_ms)]
    }
}

impl HitRates {
    fn new(measured: Option<f64>, simulated: Option<f64>) -> Self {
        let difference = measured.zip(simulated).map(|(measured, simulated)| simulated - measured);
        Self { measured, simulated, difference }
    }
}

impl FigureComparison {
    fn new(measured: Vec<f64>, simulated: Vec<f64>) -> Self {
        let (measured, simulated) = (Summary::of(measured), Summary::of(simulated));
        let figure = |of: fn(&Summary) -> Option<f64>| Compared::new(of(&measured), of(&simulated));
        Self {
            mean: figure(|summary| summary.mean),
            p50: figure(|summary| summary.p50),
            p90: figure(|summary| summary.p90),
            p95: figure(|summary| summary.p95),
            p99: figure(|summary| summary.p99),
        }
    }

    /// Each figure with its name.
    pub const fn figures(&self) -> [(&'static str, Compared); 5] {
        [
            ("mean", self.mean),
            ("p50", self.p50),
            ("p90", self.p90),
            ("p95", self.p95),
            ("p99", self.p99),
        ]
    }
}

impl Compared {
    fn new(measured: Option<f64>, simulated: Option<f64>) -> Self {
        let relative_error = measured
            .zip(simulated)
            .filter(|(measured, _)| *measured > 0.0)
            .map(|(measured, simulated)| simulated / measured - 1.0);
        Self { measured, simulated, relative_error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE: &str = r#"{"request_id":"bench-1","input_toks":9,"output_toks":3,"arrival_time":1000.5,"queued_ts":7.6,"scheduled_ts":7.7,"first_token_ts":8.5,"last_token_ts":8.9}
{"request_id":"bench-0","input_toks":9,"output_toks":1,"arrival_time":1000.0,"queued_ts":7.0,"scheduled_ts":7.0,"first_token_ts":7.25,"last_token_ts":7.25}
"#;

    fn close(is: &[f64], should: &[f64]) {
        assert_eq!(is.len(), should.len(), "{is:?}");
        assert!(is.iter().zip(should).all(|(is, should)| (is - should).abs() < 1e-6), "{is:?}");
    }

    #[test]
    fn engine_stamps_are_on_two_clocks() {
        let run = Latencies::read(ENGINE.as_bytes()).unwrap();
        // bench-0 reached the engine at once: the clocks are 993 s apart.
        close(&run.ttft_ms(), &[250.0, 1000.0]);
        close(&run.tpot_ms(), &[200.0]);
        close(&run.e2e_ms(), &[250.0, 1400.0]);
        close(&[run.duration_s().unwrap()], &[1.9]);
        assert_eq!(run.hit_rate(), None, "not among the stamps");
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        use kvroute_types::{SessionId, TokenCount};
        let record = |id: u32, outcome| RequestRecord {
            id: RequestId(id),
            session: SessionId(0),
            turn: 0,
            instance: None,
            reason: "none",
            outcome,
            arrival: Timestamp::from_nanos(1_000_000),
            scheduled: None,
            first_token: Some(Timestamp::from_nanos(3_000_000)),
            end: Timestamp::from_nanos(9_000_000),
            prompt_tokens: TokenCount(5),
            cached_tokens: Some(TokenCount(2)),
            predicted_cached_tokens: None,
            output_tokens: TokenCount(4),
            preemptions: 0,
        };
        let records = [record(0, Outcome::Completed), record(1, Outcome::Failed)];
        let lines = records.iter().map(|r| serde_json::to_string(r).unwrap() + "\n");
        let read = Latencies::read(lines.collect::<String>().as_bytes()).unwrap();
        assert_eq!(read, Latencies::of_records(&records));
        assert_eq!((read.len(), read.failed(), read.last_id()), (1, 1, Some(RequestId(0))));
        close(&read.ttft_ms(), &[2.0]);
        close(&read.tpot_ms(), &[2.0]);
        close(&[read.hit_rate().unwrap()], &[0.4]);
        let compared = LatencyComparison::new(&read, &read);
        assert_eq!(compared.hit_rate.difference, Some(0.0));
    }

    #[test]
    fn bad_lines_are_named() {
        let complaint = |text: &str| Latencies::read(text.as_bytes()).unwrap_err().to_string();
        assert!(complaint("{}\n").starts_with("line 1 is no measured request"));
        assert!(complaint(&ENGINE.replace("bench-1", "bench")).contains("\"bench\" does not end"));
        assert!(complaint(&ENGINE.replace("bench-1", "bench-0")).contains("was there before"));
        assert!(complaint(&ENGINE.replace("8.9", "8.4")).contains("not in this order"));
        assert!(complaint("").contains("no measured request has ended well"));
    }

    #[test]
    fn errors_are_relative_to_what_was_measured() {
        let measured = Latencies::read(ENGINE.as_bytes()).unwrap();
        let slower = ENGINE.replace("7.25", "7.5").replace("8.5", "9.5").replace("8.9", "10.3");
        let simulated = Latencies::read(slower.as_bytes()).unwrap();
        let compared = LatencyComparison::new(&measured, &simulated);
        close(&[compared.ttft_ms.mean.relative_error.unwrap()], &[1250.0 / 625.0 - 1.0]);
        close(&[compared.tpot_ms.p50.relative_error.unwrap()], &[1.0]);
        let one =
            LatencyComparison::new(&measured.only_those_of(&Latencies::default()), &simulated);
        assert_eq!(one.ttft_ms.p99.measured, None);
        assert_eq!(one.ttft_ms.p99.relative_error, None);
        let json = serde_json::to_value(compared).unwrap();
        assert_eq!(json["e2e_ms"].as_object().unwrap().len(), 4, "mean, p50, p95, p99: {json}");
    }
}
