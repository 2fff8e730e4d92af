//! The simulator as its callers see it.

#![expect(clippy::float_cmp, reason = "results are exact")]

mod arena;
mod closed_loop;
mod crossovers;
mod determinism;
mod devices;
mod directory;
mod errors;
mod invariants;
mod log;
mod restarts;
mod samples;
mod staleness;
mod theory;

pub(crate) use invariants::{configs, recipes};

use hdrhistogram::Histogram;
use kvroute_engine::{Counters, GaugeTotals};
use kvroute_policy::PolicyConfig;
use kvroute_profile::{LatencyProfile, StepModel};
use kvroute_types::{InstanceId, RequestRecord, Timestamp};
use kvroute_workload::traces::{TraceFormat, TraceOptions};
use kvroute_workload::{
    ChatSpec, Distribution, GapShape, Plan, RagSpec, UniformSpec, Workload, WorkloadSpec,
};

use crate::{RouterRestart, SimConfig, SimOutcome, simulate};

const SEED: u64 = 7;

/// A small cluster whose engines queue early: 8 sequences each, 2,000 blocks of 16.
pub(crate) fn cluster(instances: u32, policy: &str) -> SimConfig {
    let mut config = SimConfig::new(instances, policy.parse().unwrap(), profile(), SEED);
    config = config.with_kv_blocks(2_000);
    config.engine.max_model_len = 4_096;
    config.engine.max_num_seqs = 8;
    config
}

/// Steps whose length depends on all it may depend on, and nothing around them.
fn profile() -> LatencyProfile {
    let step = StepModel {
        overhead_s: 1e-3,
        linear_floor_s: 5e-3,
        linear_s_per_token: 37e-6,
        sample_s_per_seq: 11e-6,
        prefill_s_per_pair: 3.7e-9,
        decode_s_per_seq: 7e-6,
        decode_s_per_context_token: 151e-9,
        mixed_decode_s_per_seq: 9e-6,
        mixed_decode_s_per_context_token: 171e-9,
        ..StepModel::zero()
    };
    let base = LatencyProfile::builtin("rtx4090-llama3.1-8b").unwrap();
    LatencyProfile { step, ..base }
}

/// A profile in which every step takes as long.
pub(crate) fn even_steps(step_s: f64) -> LatencyProfile {
    LatencyProfile { step: StepModel { overhead_s: step_s, ..StepModel::zero() }, ..profile() }
}

pub(crate) fn run(config: &SimConfig, workload: &Workload) -> SimOutcome {
    let plan = Plan::new(workload, config.engine.block_size).unwrap();
    simulate(config, workload, &plan, |_| ()).unwrap()
}

/// Questions about 12 documents of 1,000 tokens.
pub(crate) fn rag(requests: u32, requests_per_s: f64) -> Workload {
    let spec = RagSpec {
        requests_per_s,
        documents: 12,
        zipf_exponent: 0.5,
        document_tokens: constant(1_000.0),
        question_tokens: Distribution::LogNormal { mean: 40.0, sigma: 0.8 },
        answer_tokens: Distribution::LogNormal { mean: 30.0, sigma: 0.6 },
        ..RagSpec::default()
    };
    WorkloadSpec::Rag(spec).generate(SEED, requests).unwrap()
}

/// Conversations behind one of 3 system prompts, with short breaks.
fn chat(requests: u32, requests_per_s: f64) -> Workload {
    let spec = ChatSpec {
        requests_per_s,
        turns: Distribution::Geometric { mean: 4.0 },
        system_prompts: 3,
        system_prompt_tokens: constant(300.0),
        answer_tokens: Distribution::LogNormal { mean: 40.0, sigma: 0.5 },
        think_time_s: Distribution::Exponential { mean: 1.0 },
        max_model_len_tokens: 3_000,
        ..ChatSpec::default()
    };
    WorkloadSpec::Chat(spec).generate(SEED, requests).unwrap()
}

/// Requests that share nothing; `cv` is that of the gaps between them.
fn uniform(requests: u32, requests_per_s: f64, cv: f64) -> Workload {
    let spec = UniformSpec {
        requests_per_s,
        arrivals: GapShape::Gamma { cv },
        prompt_tokens: Distribution::LogNormal { mean: 300.0, sigma: 0.7 },
        output_tokens: Distribution::LogNormal { mean: 50.0, sigma: 0.9 },
    };
    WorkloadSpec::Uniform(spec).generate(SEED, requests).unwrap()
}

/// Requests by hand: arrival in ms, prompt and output tokens, and the document (blocks of 512 tokens) of each prompt.
pub(crate) fn by_hand(requests: &[(u32, u32, u32, u32)]) -> Workload {
    let line = |&(at_ms, prompt, output, document): &(u32, u32, u32, u32)| {
        let ids = (0..prompt.div_ceil(512)).map(|block| (document * 1_000 + block).to_string());
        let ids = ids.collect::<Vec<_>>().join(",");
        format!(
            "{{\"timestamp\":{at_ms},\"input_length\":{prompt},\"output_length\":{output},\"hash_ids\":[{ids}]}}\n"
        )
    };
    let text: String = requests.iter().map(line).collect();
    TraceFormat::Mooncake.read(text.as_bytes(), &TraceOptions::default()).unwrap()
}

const fn constant(value: f64) -> Distribution {
    Distribution::Constant { value }
}

fn policies() -> Vec<PolicyConfig> {
    PolicyConfig::every()
}

/// Cached prompt tokens over prompt tokens.
fn hit_rate(outcome: &SimOutcome) -> f64 {
    let sum = |tokens: fn(&RequestRecord) -> u32| {
        outcome.records.iter().map(|record| u64::from(tokens(record))).sum::<u64>() as f64
    };
    sum(|record| record.cached_tokens.unwrap().0) / sum(|record| record.prompt_tokens.0)
}

/// Where each request went.
fn instances(outcome: &SimOutcome) -> Vec<InstanceId> {
    outcome.records.iter().map(|record| record.instance.unwrap()).collect()
}

pub(crate) fn ttft_s(record: &RequestRecord) -> f64 {
    record.first_token.unwrap().since(record.arrival).as_secs_f64()
}

fn e2e_s(record: &RequestRecord) -> f64 {
    record.end.since(record.arrival).as_secs_f64()
}

pub(crate) fn mean(outcome: &SimOutcome, of: fn(&RequestRecord) -> f64) -> f64 {
    outcome.records.iter().map(of).sum::<f64>() / outcome.records.len() as f64
}

/// All that can be seen of a run but its samples, to compare two.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen<'a> {
    records: &'a [RequestRecord],
    instances: Vec<(InstanceId, Counters, GaugeTotals, &'a Histogram<u64>)>,
    times: [Timestamp; 3],
    in_flight_cov: Option<f64>,
    decision_log_hash: u64,
    index_memory_bytes: usize,
}

impl<'a> From<&'a SimOutcome> for Seen<'a> {
    fn from(outcome: &'a SimOutcome) -> Self {
        let SimOutcome {
            records,
            instances,
            samples: _,
            measured_from,
            measured_until,
            end,
            in_flight_cov,
            decision_log_hash,
            index_memory_bytes,
        } = outcome;
        let instances =
            instances.iter().map(|i| (i.id, i.counters, i.gauge_totals, &i.inter_token_ns));
        Self {
            records,
            instances: instances.collect(),
            times: [*measured_from, *measured_until, *end],
            in_flight_cov: *in_flight_cov,
            decision_log_hash: *decision_log_hash,
            index_memory_bytes: *index_memory_bytes,
        }
    }
}
