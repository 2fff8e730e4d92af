//! The measured vLLM run on an RTX 4090 and its simulation, for the fidelity test and the example that prints it.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use kvroute_engine::{Engine, EngineConfig, EngineRequest};
use kvroute_lab::Latencies;
use kvroute_policy::PolicyConfig;
use kvroute_profile::{LatencyProfile, LogSecond, StepModel, read_engine_log, step_overhead};
use kvroute_sim::{SimConfig, SimOutcome, simulate};
use kvroute_types::{BlockSize, Timestamp};
use kvroute_workload::traces::{TraceFormat, TraceOptions};
use kvroute_workload::{Arrival, Plan, Workload, WorkloadRequest};

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

/// What the estimator of the profile's step overhead finds in a log under the profile's kernels, s: see
/// [`step_overhead`].
pub(crate) fn estimated_overhead_s(config: &SimConfig, log: &[LogSecond]) -> f64 {
    let kernels = StepModel { overhead_s: 0.0, ..config.profile.step.clone() };
    let (blocks, block_size) = (config.engine.kv_blocks, config.engine.block_size.get());
    let found = step_overhead(log, &kernels, blocks * block_size, block_size);
    found.quantile_s(0.5).expect("the run has seconds in which only decoding happens")
}

/// The measured run's once-a-second log.
pub(crate) fn measured_log() -> Vec<LogSecond> {
    let path = "../profile/data/rtx4090-llama3.1-8b/timeseries.csv";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let log = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    read_engine_log(log).expect("the committed log is well-formed")
}

/// The log that the run's engine would write if it took the steps of the configuration.
pub(crate) fn simulated_log(
    config: &SimConfig,
    (workload, plan): &(Workload, Plan),
) -> Vec<LogSecond> {
    let step = config.profile.step.clone();
    let mut engine = Engine::new(config.engine.clone(), step).expect("the settings are valid");
    let mut requests = workload.requests().iter().peekable();
    let (mut outputs, mut log) = (Vec::new(), Vec::new());
    let mut before = *engine.counters();
    for second in 1_u32.. {
        let until = Timestamp::from_secs_f64(f64::from(second));
        let arrival = |request: &WorkloadRequest| match request.arrival {
            Arrival::At(at) => at,
            _ => unreachable!("the trace has arrivals"),
        };
        while let Some(request) = requests.next_if(|request| arrival(request) <= until) {
            engine.advance(arrival(request), &mut outputs);
            let submitted = engine.submit(
                arrival(request),
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
        if requests.peek().is_none() && !engine.is_busy() {
            break;
        }
    }
    log
}

fn open(name: &str) -> BufReader<File> {
    let folder = "../../data/measured/vllm-rtx4090-llama3.1-8b";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
    BufReader::new(File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}
