//! Speed of whole simulations. Items are requests, so `items/s` is requests simulated per second.
//!
//! * `azure_like`: short prompts that share nothing, long batches of decodes: the engine's leaps.
//! * `mooncake`: prompts of 12k tokens on average with much shared: block tables, prefix look-up, the directory.
//! * `scaling`: conversations at constant load per instance: how the cost of a request grows with the cluster. A
//!   policy's own share of that growth is its difference from `round-robin`, which reads nothing; the growth of
//!   `round-robin` is that of memory: the engines of a large cluster do not fit the processor's caches, and a request
//!   meets one that was put away long ago. `separate_clusters` has the same engines and requests as the largest
//!   cluster, but finishes 8 instances before it turns to the next 8.
//!
//! ```text
//! cargo bench -p kvroute-sim -- scaling
//! ```

use std::fmt;
use std::fs::File;
use std::io::BufReader;

use divan::Bencher;
use divan::counter::ItemsCount;
use kvroute_profile::LatencyProfile;
use kvroute_sim::{SimConfig, simulate};
use kvroute_workload::traces::{TraceFormat, TraceOptions};
use kvroute_workload::{
    ChatSpec, Distribution, Plan, RagSpec, UniformSpec, Workload, WorkloadSpec,
};

const SEED: u64 = 1;
const MOONCAKE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/traces/mooncake-conversation.jsonl.zst");

const FEW: &[&str] = &["round-robin", "load-cache"];
const MANY: &[&str] = &["round-robin", "jsq", "p2c", "load-cache"];
const LARGEST: u32 = 1_024;

fn main() {
    divan::main();
}

/// One cluster to measure.
#[derive(Clone, Copy, Debug)]
struct Case {
    policy: &'static str,
    instances: u32,
}

impl Case {
    fn config(self) -> SimConfig {
        let policy = self.policy.parse().expect("the policy is known");
        let profile = LatencyProfile::builtin("h100-llama3.1-8b").expect("the profile is built in");
        SimConfig::new(self.instances, policy, profile, SEED)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} instances", self.policy, self.instances)
    }
}

fn cases(policies: &'static [&'static str], instances: &'static [u32]) -> Vec<Case> {
    let of = |&policy| instances.iter().map(move |&instances| Case { policy, instances });
    policies.iter().flat_map(of).collect()
}

/// 10,000 requests of the mean lengths of Azure's conversation trace, 1,155 and 211 tokens, at 20 per second; 262k KV
/// tokens per instance.
#[divan::bench(args = cases(FEW, &[4, 8]), sample_count = 5, sample_size = 1)]
fn azure_like(bencher: Bencher, case: Case) {
    let spec = UniformSpec { requests_per_s: 20.0, ..UniformSpec::default() };
    let workload = WorkloadSpec::Uniform(spec).generate(SEED, 10_000).expect("the spec is valid");
    bench(bencher, &case.config().with_kv_blocks(16_384), &workload);
}

/// The first 10,000 requests of Mooncake's conversation trace; 1M KV tokens per instance.
#[divan::bench(args = cases(FEW, &[4, 8]), sample_count = 5, sample_size = 1)]
fn mooncake(bencher: Bencher, case: Case) {
    bench(bencher, &case.config().with_kv_blocks(62_500), &long_prompts());
}

/// 200 requests per instance, of conversations that start at the rate of 4 requests/s per instance.
#[divan::bench(args = cases(MANY, &[2, 8, 32, 128, 512, LARGEST]), sample_count = 3, sample_size = 1)]
fn scaling(bencher: Bencher, case: Case) {
    bench(bencher, &case.config(), &conversations(case.instances, SEED));
}

#[divan::bench(sample_count = 3, sample_size = 1)]
fn separate_clusters(bencher: Bencher) {
    let config = Case { policy: "round-robin", instances: 8 }.config();
    let workloads: Vec<_> = (0..LARGEST / 8)
        .map(|number| conversations(8, u64::from(number)))
        .map(|workload| (plan(&config, &workload), workload))
        .collect();
    let requests = workloads.iter().map(|(_, workload)| workload.requests().len()).sum::<usize>();
    bencher.counter(ItemsCount::new(requests)).bench_local(|| {
        let runs =
            workloads.iter().map(|(plan, workload)| simulate(&config, workload, plan, |_| ()));
        runs.map(|outcome| outcome.expect("the configuration is valid").decision_log_hash)
            .fold(0, u64::wrapping_add)
    });
}

fn bench(bencher: Bencher, config: &SimConfig, workload: &Workload) {
    let plan = plan(config, workload);
    bencher.counter(ItemsCount::new(workload.requests().len())).bench_local(|| {
        simulate(config, workload, &plan, |_| ()).expect("the configuration is valid")
    });
}

fn plan(config: &SimConfig, workload: &Workload) -> Plan {
    Plan::new(workload, config.engine.block_size).expect("few enough blocks")
}

fn conversations(instances: u32, seed: u64) -> Workload {
    let spec = ChatSpec { requests_per_s: 4.0 * f64::from(instances), ..ChatSpec::default() };
    WorkloadSpec::Chat(spec).generate(seed, 200 * instances).expect("the spec is valid")
}

/// The trace, or a stand-in of the same load if it is not there.
fn long_prompts() -> Workload {
    let requests = 10_000;
    let Ok(file) = File::open(MOONCAKE) else {
        eprintln!("{MOONCAKE} is missing: a synthetic workload stands in");
        let spec = RagSpec {
            requests_per_s: 3.4,
            documents: 2_000,
            zipf_exponent: 0.6,
            document_tokens: Distribution::LogNormal { mean: 11_000.0, sigma: 0.9 },
            question_tokens: Distribution::LogNormal { mean: 1_000.0, sigma: 0.9 },
            answer_tokens: Distribution::LogNormal { mean: 343.0, sigma: 0.7 },
            ..RagSpec::default()
        };
        return WorkloadSpec::Rag(spec).generate(SEED, requests).expect("the spec is valid");
    };
    let trace = TraceFormat::Mooncake.read(BufReader::new(file), &TraceOptions::default());
    trace.expect("the trace is readable").take(requests)
}
