//! The measured vLLM run on an RTX 4090 and its simulation, for the fidelity test and the example that prints it.

pub(crate) mod earlier_run;

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::Path;

use kvroute_engine::{Engine, EngineConfig, EngineRequest};
use kvroute_lab::Latencies;
use kvroute_policy::PolicyConfig;
use kvroute_profile::{
    DecodeSecond, LatencyProfile, LogSecond, StepModel, StepOverhead, read_engine_log,
    step_overhead,
};
use kvroute_sim::{SimConfig, SimOutcome, simulate};
use kvroute_types::{BlockSize, RequestId, Timestamp};
use kvroute_workload::traces::{TraceFormat, TraceOptions};
use kvroute_workload::{Arrival, ArrivalProcess, GapShape, Plan, Workload};

/// Reads the measured run.
pub(crate) fn measured() -> Latencies {
    Latencies::read(open("requests.jsonl")).expect("the committed requests are well-formed")
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

/// The same requests, arriving as irregularly at the same rate, at times drawn from `seed`.
pub(crate) fn workload_drawn_anew(seed: u64) -> (Workload, Plan) {
    // 300 requests in 29.1 s.
    let process = ArrivalProcess { rate_per_s: 10.3, shape: GapShape::default() };
    let workload = workload().0.with_arrivals(process, seed).expect("the rate is positive");
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
) -> (Latencies, SimOutcome) {
    let outcome = simulate(config, workload, plan, |_| {}).expect("the settings are valid");
    (Latencies::of_records(&outcome.records), outcome)
}

/// What a step takes beyond its kernels in the profile, s: [`Estimator::overhead_s`] of the measured run's log.
/// (`crates/profile/tests/it/refit.rs` holds the profile to the kernels plus this, `fidelity.rs` this to the log.)
pub(crate) const OVERHEAD_S: f64 = -6.318e-4;

/// Every second of a log.
pub(crate) const WHOLE_RUN: Range<f64> = 0.0..f64::INFINITY;

/// The run with steps that take `overhead_s` beyond their kernels.
pub(crate) fn with_overhead(config: &SimConfig, overhead_s: f64) -> SimConfig {
    let mut config = config.clone();
    config.profile.step = config.profile.step.plus_per_step(overhead_s - OVERHEAD_S);
    config
}

/// A log's decode-only seconds against the profile's kernels as if all contexts were equal: a log does not tell the
/// longest.
pub(crate) fn decode_seconds(config: &SimConfig, log: &[LogSecond]) -> StepOverhead {
    let kernels = with_overhead(config, 0.0).profile.step;
    let equal = StepModel { decode_tail_s_per_token: 0.0, ..kernels };
    let (blocks, block_size) = (config.engine.kv_blocks, config.engine.block_size.get());
    step_overhead(log, &equal, blocks * block_size, block_size)
}

/// Indirect inference (Gourieroux, Monfort and Renault 1993, *J. Appl. Econometrics* 8) of the step overhead from a
/// log: the overhead with which the simulated run's log shows what the log does. Whatever the statistic leaves out
/// (unequal lengths, recomputation unseen within a second) it leaves out of both logs.
///
/// The statistic is the mean time of a decode-only step beyond its kernels, in `seconds` of the log. Over simulated
/// runs it is close to a line in the overhead, which averages what one run shows by chance.
pub(crate) struct Estimator<'a> {
    config: &'a SimConfig,
    seconds: Range<f64>,
    /// Whether logs tell the KV usage. If not, contexts count as empty in all of them.
    has_usage: bool,
    /// The statistic without overhead, s.
    at_zero_s: f64,
    /// Its growth with the overhead.
    slope: f64,
}

impl<'a> Estimator<'a> {
    const OVERHEADS_MS: [f64; 6] = [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5];
    const SEEDS: Range<u64> = 1..9;

    pub(crate) fn new(
        config: &'a SimConfig,
        workload: &(Workload, Plan),
        seconds: Range<f64>,
    ) -> Self {
        let uncalibrated = Self { config, seconds, has_usage: true, at_zero_s: 0.0, slope: 1.0 };
        uncalibrated.calibrated(workload)
    }

    /// For logs that do not tell the KV usage.
    pub(crate) fn without_usage(config: &'a SimConfig, workload: &(Workload, Plan)) -> Self {
        let uncalibrated =
            Self { config, seconds: WHOLE_RUN, has_usage: false, at_zero_s: 0.0, slope: 1.0 };
        uncalibrated.calibrated(workload)
    }

    fn calibrated(mut self, workload: &(Workload, Plan)) -> Self {
        let points: Vec<(f64, f64)> = Self::OVERHEADS_MS
            .into_iter()
            .flat_map(|ms| Self::SEEDS.map(move |seed| (ms * 1e-3, seed)))
            .map(|(overhead_s, seed)| {
                let log = simulated_log(&with_overhead(self.config, overhead_s), workload, seed);
                (overhead_s, self.statistic_s(&log))
            })
            .collect();
        let mean =
            |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / points.len() as f64;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let covariance: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
        let variance: f64 = points.iter().map(|point| (point.0 - x) * (point.0 - x)).sum();
        self.slope = covariance / variance;
        self.at_zero_s = y - self.slope * x;
        self
    }

    /// What the statistic is in a log, s.
    fn statistic_s(&self, log: &[LogSecond]) -> f64 {
        let seen = |second: &LogSecond| LogSecond {
            kv_cache_pct: if self.has_usage { second.kv_cache_pct } else { 0.0 },
            ..*second
        };
        let log: Vec<LogSecond> = log.iter().map(seen).collect();
        let within = |second: &DecodeSecond| self.seconds.contains(&second.t);
        let seconds = decode_seconds(self.config, &log).seconds.into_iter().filter(within);
        let found = StepOverhead { seconds: seconds.collect() };
        found.mean_s().expect("there are seconds in which only decoding happens")
    }

    /// The overhead of the run that wrote the log, s.
    pub(crate) fn overhead_s(&self, log: &[LogSecond]) -> f64 {
        (self.statistic_s(log) - self.at_zero_s) / self.slope
    }
}

/// The measured run's once-a-second log.
pub(crate) fn measured_log() -> Vec<LogSecond> {
    let path = "../profile/data/rtx4090-llama3.1-8b/timeseries.csv";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let log = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    read_engine_log(log).expect("the committed log is well-formed")
}

/// The log that the run's engine would write if it took the steps of the configuration. Requests come up to 5 ms late,
/// drawn from `seed`, in their order: the run's client was 3 ms late at p99.
pub(crate) fn simulated_log(
    config: &SimConfig,
    (workload, plan): &(Workload, Plan),
    seed: u64,
) -> Vec<LogSecond> {
    let step = config.profile.step.clone();
    let mut engine = Engine::new(config.engine.clone(), step).expect("the settings are valid");
    let mut latest = Timestamp::ZERO;
    let arrivals = workload.requests().iter().map(|request| {
        let Arrival::At(at) = request.arrival else { unreachable!("the trace has arrivals") };
        latest = latest.max(at.plus_nanos(hash(seed, request.id) % 5_000_000));
        (latest, request)
    });
    let mut arrivals = arrivals.peekable();
    let (mut outputs, mut log) = (Vec::new(), Vec::new());
    let mut before = *engine.counters();
    for second in 1_u32.. {
        let until = Timestamp::from_secs_f64(f64::from(second));
        while let Some((at, request)) = arrivals.next_if(|(at, _)| *at <= until) {
            engine.advance(at, &mut outputs);
            let submitted = engine.submit(
                at,
                EngineRequest {
                    id: request.id,
                    chain: plan.chain(request.id).clone(),
                    prompt_tokens: request.prompt_tokens.0,
                    max_tokens: request.output_tokens.0,
                    stop_after: None,
                    priority: request.priority,
                    skip_reading_prefix_cache: false,
                },
            );
            submitted.expect("every request fits the engine");
        }
        engine.advance(until, &mut outputs);
        outputs.clear();
        let (now, gauges) = (*engine.counters(), *engine.gauges());
        log.push(LogSecond {
            t: f64::from(second),
            prompt_throughput: (now.prompt_tokens - before.prompt_tokens) as f64,
            gen_throughput: (now.generation_tokens - before.generation_tokens) as f64,
            running: gauges.running,
            waiting: gauges.waiting,
            kv_cache_pct: 100.0 * gauges.kv_cache_usage,
        });
        before = now;
        if arrivals.peek().is_none() && !engine.is_busy() {
            break;
        }
    }
    log
}

/// Some number for each seed and request (`SplitMix64`'s finaliser).
fn hash(seed: u64, request: RequestId) -> u64 {
    let mut bits = (seed << 32 | u64::from(request.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

fn open(name: &str) -> BufReader<File> {
    let folder = "../../data/measured/vllm-rtx4090-llama3.1-8b";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
    BufReader::new(File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}
