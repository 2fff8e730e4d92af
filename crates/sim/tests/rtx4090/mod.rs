//! The measured vLLM run on an RTX 4090 and its simulation, for the fidelity test and the example that prints it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use kvroute_engine::EngineConfig;
use kvroute_policy::PolicyConfig;
use kvroute_profile::LatencyProfile;
use kvroute_sim::{SimConfig, SimOutcome, simulate};
use kvroute_types::{BlockSize, Timestamp};
use kvroute_workload::traces::{TraceFormat, TraceOptions};
use kvroute_workload::{Plan, Workload};
use serde::Deserialize;

/// Latencies of every request of a run, in request order, s.
pub(crate) struct Latencies {
    /// Arrival to first token.
    pub(crate) ttft: Vec<f64>,
    /// `(last token - first token) / (output tokens - 1)`.
    pub(crate) tpot: Vec<f64>,
    /// Arrival to last token.
    pub(crate) e2e: Vec<f64>,
}

impl Latencies {
    /// Each latency's name and figures.
    pub(crate) fn figures(&self) -> [(&'static str, Figures); 3] {
        [("TTFT", &self.ttft), ("TPOT", &self.tpot), ("E2E", &self.e2e)]
            .map(|(name, samples)| (name, Figures::of(samples)))
    }

    fn push(&mut self, arrival: f64, first_token: f64, last_token: f64, output_tokens: u32) {
        self.ttft.push(first_token - arrival);
        self.e2e.push(last_token - arrival);
        if output_tokens > 1 {
            self.tpot.push((last_token - first_token) / f64::from(output_tokens - 1));
        }
    }

    const fn new() -> Self {
        Self { ttft: Vec::new(), tpot: Vec::new(), e2e: Vec::new() }
    }
}

/// What a run's latencies are summed up in, s.
pub(crate) struct Figures {
    /// `(name, value)`: mean, p50, p90, p95, p99; quantiles interpolate between neighbours (type 7), as upstream's do.
    pub(crate) all: [(&'static str, f64); 5],
}

impl Figures {
    fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        let quantile = |percent: usize| {
            let (below, rest) = (last * percent / 100, last * percent % 100);
            let above = (below + 1).min(last);
            sorted[below] + (sorted[above] - sorted[below]) * rest as f64 / 100.0
        };
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        let all = [
            ("mean", mean),
            ("p50", quantile(50)),
            ("p90", quantile(90)),
            ("p95", quantile(95)),
            ("p99", quantile(99)),
        ];
        Self { all }
    }
}

/// A run, measured or simulated.
pub(crate) struct Run {
    pub(crate) latencies: Latencies,
    /// First arrival to last token, s.
    pub(crate) duration_s: f64,
}

/// A line of `requests.jsonl`.
#[derive(Deserialize)]
struct MeasuredRequest {
    output_toks: u32,
    /// Wall clock, s.
    arrival_time: f64,
    /// Monotonic clock, s; so are the others.
    queued_ts: f64,
    first_token_ts: f64,
    last_token_ts: f64,
}

/// Reads the measured run.
///
/// Arrivals are on the wall clock, everything else on the monotonic one. No request is queued before it arrives, so the
/// clocks differ by at most the least `queued_ts - arrival_time`; that is taken for the difference. Every measured TTFT
/// is thus too short by what the fastest request took to reach the engine, a few milliseconds at most.
pub(crate) fn measured() -> Run {
    let requests: Vec<MeasuredRequest> = open("requests.jsonl")
        .lines()
        .map(|line| {
            serde_json::from_str(&line.expect("it can be read")).expect("one request a line")
        })
        .collect();
    let clocks_apart =
        requests.iter().map(|r| r.queued_ts - r.arrival_time).fold(f64::INFINITY, f64::min);
    let mut latencies = Latencies::new();
    let (mut first, mut last) = (f64::INFINITY, 0.0_f64);
    for request in &requests {
        let arrival = request.arrival_time + clocks_apart;
        let (first_token, last_token) = (request.first_token_ts, request.last_token_ts);
        latencies.push(arrival, first_token, last_token, request.output_toks);
        (first, last) = (first.min(arrival), last.max(last_token));
    }
    Run { latencies, duration_s: last - first }
}

/// The requests of the run at the arrivals that its client planned; it met them within 1 ms in the median.
pub(crate) fn workload() -> (Workload, Plan) {
    let trace = open("workload.jsonl.zst");
    let workload = TraceFormat::LlmServingSim
        .read(trace, &TraceOptions::default())
        .expect("the committed workload is well-formed");
    let plan = Plan::new(&workload, BlockSize::default()).expect("the workload is small");
    (workload, plan)
}

/// One instance with the resolved settings of the run.
pub(crate) fn config() -> SimConfig {
    let profile = LatencyProfile::builtin("rtx4090-llama3.1-8b").expect("it is built in");
    let config = SimConfig::new(1, PolicyConfig::RoundRobin {}, profile, 0);
    let engine = EngineConfig {
        block_size: BlockSize::default(),
        kv_blocks: 2_588,
        max_model_len: 32_768,
        max_num_batched_tokens: 2_048,
        max_num_seqs: 256,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        long_prefill_token_threshold: 0,
        scheduler_reserve_full_isl: true,
        async_scheduling: true,
        ..config.engine
    };
    SimConfig { engine, ..config }
}

/// Simulates the workload; every request makes as many tokens as it did in the trace.
pub(crate) fn simulated(
    config: &SimConfig,
    (workload, plan): &(Workload, Plan),
) -> (Run, SimOutcome) {
    let mut outcome = simulate(config, workload, plan, |_| {}).expect("the settings are valid");
    outcome.records.sort_by_key(|record| record.id);
    let mut latencies = Latencies::new();
    for record in &outcome.records {
        let first_token = record.first_token.expect("every request runs to its end");
        let [arrival, first, last] =
            [record.arrival, first_token, record.end].map(|at: Timestamp| at.as_secs_f64());
        latencies.push(arrival, first, last, record.output_tokens.0);
    }
    (Run { latencies, duration_s: outcome.end.as_secs_f64() }, outcome)
}

fn open(name: &str) -> BufReader<File> {
    let folder = "../../data/measured/vllm-rtx4090-llama3.1-8b";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
    BufReader::new(File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}
