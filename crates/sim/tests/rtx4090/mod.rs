//! The measured vLLM run on an RTX 4090 and its simulation, for the fidelity test and the example that prints it.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use kvroute_engine::EngineConfig;
use kvroute_lab::Latencies;
use kvroute_policy::PolicyConfig;
use kvroute_profile::LatencyProfile;
use kvroute_sim::{SimConfig, SimOutcome, simulate};
use kvroute_types::BlockSize;
use kvroute_workload::traces::{TraceFormat, TraceOptions};
use kvroute_workload::{Plan, Workload};

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

fn open(name: &str) -> BufReader<File> {
    let folder = "../../data/measured/vllm-rtx4090-llama3.1-8b";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
    BufReader::new(File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}
