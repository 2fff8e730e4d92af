//! `kvroute demo`: six policies, live over HTTP on embedded instances, beside the simulator's prediction.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kvroute_experiment::hit_rate_bounds;
use kvroute_lab::{
    HitRateBounds, InstanceMeasurements, MeasurementWindow, Measurements, Mode, Pair, Preemptions,
    RunResult, Slo, comparison_html, comparison_table, figures, mean_in_flight,
};
use kvroute_load::LoadOutcome;
use kvroute_policy::PolicyConfig;
use kvroute_profile::LatencyProfile;
use kvroute_router::Refresh;
use kvroute_sim::SimConfig;
use kvroute_types::{InstanceId, Timestamp, mix64};
use kvroute_workload::{Plan, Reuses, TokenStream, Workload, WorkloadSpec};
use tokio::task::{JoinSet, spawn_blocking};

use crate::embedded::{self, VOCABULARY};
use crate::failure::Failure;
use crate::live::as_routed;
use crate::provenance::manifest;

/// Instances behind the gateway.
const INSTANCES: u32 = 2;
/// Requests of each run: enough that the way single requests happen to fall weighs little.
const REQUESTS: u32 = 420;
/// Runs at a time. An instance under test mostly waits for its modelled engine, so runs hardly disturb one another.
const RUNS_AT_A_TIME: usize = 9;
/// KV blocks of an instance: room for the shared documents, but not for everything.
const KV_BLOCKS: u32 = 3_000;
/// Seconds between the gateway's load readings.
const LOAD_REFRESH_S: f64 = 0.1;
/// What takes longer has failed.
const REQUEST_TIMEOUT_S: f64 = 30.0;
/// Simulated runs for each live one.
const SIMULATIONS: u32 = 21;
/// How far the simulated runs' delays lie from what was measured, at most, as a share of it.
const DELAY_SPREAD: f64 = 0.25;
/// The same of the interval of load readings: enough that every run reads at other moments.
const REFRESH_SPREAD: f64 = 0.05;

const WORKLOADS: [(&str, &str); 3] = [
    ("chat", include_str!("../demo/chat.toml")),
    ("rag", include_str!("../demo/rag.toml")),
    ("mixed", include_str!("../demo/mixed.toml")),
];

/// Six policies on embedded instances, live over HTTP and simulated, in under a minute.
///
/// Starts two simulated vLLM instances and the gateway on loopback for each run, drives real HTTP through them, and
/// compares with the simulator's prediction for the same requests. Needs nothing else installed.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Directory for results.json, report.html and the figures.
    #[arg(long, value_name = "DIR", default_value = "kvroute-demo")]
    out: PathBuf,

    /// Seed of the workloads and of the order of runs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// A workload, ready to run.
struct Prepared {
    workload: Workload,
    /// The same under the keys that the gateway reads from its requests, so that hashes agree.
    as_routed: Workload,
    plan: Plan,
    hit_rate_bounds: HitRateBounds,
}

/// What all runs share.
struct Setting {
    profile: LatencyProfile,
    seed: u64,
    /// Time of one way between client and engine, s: measured.
    one_way_s: f64,
}

pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))
        .map_err(Failure::Usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            result = demo(args) => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::Run(anyhow::anyhow!("stopped; nothing was written"))),
        }
    })
}

async fn demo(args: &DemoArgs) -> Result<(), Failure> {
    let started = SystemTime::now();
    let profile = LatencyProfile::builtin("a100-llama3.1-8b").map_err(Failure::usage)?;
    let mut setting = Setting { profile, seed: args.seed, one_way_s: 0.0 };
    let prepared: Vec<Arc<Prepared>> = WORKLOADS
        .iter()
        .map(|(name, spec)| {
            prepare(&setting.profile, name, spec, args.seed, REQUESTS).map(Arc::new)
        })
        .collect::<Result<_, _>>()?;
    let probed = simulated_config(&setting, PolicyConfig::RoundRobin {});
    setting.one_way_s = embedded::measure_one_way(&probed).await?;
    let setting = Arc::new(setting);
    eprintln!(
        "HTTP and timers take {:.2} ms each way; the simulator is told",
        1e3 * setting.one_way_s
    );

    let mut cells: Vec<(usize, PolicyConfig)> = (0..prepared.len())
        .flat_map(|workload| PolicyConfig::core().map(|policy| (workload, policy)))
        .collect();
    // Runs are shuffled, so that a drift of the machine favours no policy.
    cells.sort_by_key(|&(workload, policy)| {
        let name: u64 = policy.name().bytes().map(u64::from).fold(7, |h, b| mix64(h ^ b));
        mix64(args.seed ^ mix64(name ^ workload as u64))
    });

    let predictions = predict(&setting, &prepared, &cells).await?;

    let style = ProgressStyle::with_template("{bar:30} run {pos} of {len}: {msg}, {elapsed} gone");
    let progress = ProgressBar::new(cells.len() as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    progress.set_message(format!("{RUNS_AT_A_TIME} at a time"));
    let mut runs = cells.into_iter().zip(predictions);
    let mut running = JoinSet::new();
    let mut pairs = Vec::new();
    loop {
        let next = runs.by_ref().take(RUNS_AT_A_TIME - running.len());
        for ((workload, policy), sims) in next {
            let (setting, prepared) = (Arc::clone(&setting), Arc::clone(&prepared[workload]));
            running.spawn(async move {
                let live = live(&setting, &prepared, policy).await;
                live.map(|live| (workload, Pair { live, sims }))
            });
        }
        let Some(finished) = running.join_next().await else { break };
        pairs.push(finished.map_err(|error| Failure::Run(error.into()))??);
        progress.inc(1);
    }
    progress.finish_and_clear();
    let order = |policy: &str| PolicyConfig::core().iter().position(|it| it.name() == policy);
    pairs.sort_by_key(|(workload, pair)| (*workload, order(&pair.live.policy)));
    let pairs: Vec<Pair> = pairs.into_iter().map(|(_, pair)| pair).collect();
    let config = simulated_config(&setting, PolicyConfig::RoundRobin {});
    write_results(&args.out, started, &config, args.seed, &pairs)?;
    print!("{}", comparison_table(&pairs));
    println!("report: {}", args.out.join("report.html").display());
    Ok(())
}

/// What to expect of each run, by the simulator: before anything is measured, as it would take the processor from live
/// runs.
///
/// A prediction is over runs whose timings differ a little, as a policy that follows momentary load is chaotic: when a
/// request comes a millisecond later, it may find another instance the shorter queue, and leave its prefix there.
async fn predict(
    setting: &Arc<Setting>,
    prepared: &[Arc<Prepared>],
    cells: &[(usize, PolicyConfig)],
) -> Result<Vec<Vec<RunResult>>, Failure> {
    let start = |&(workload, policy): &(usize, PolicyConfig)| {
        let (setting, prepared) = (Arc::clone(setting), Arc::clone(&prepared[workload]));
        spawn_blocking(move || simulations(&setting, &prepared, policy))
    };
    let tasks: Vec<_> = cells.iter().map(start).collect();
    let mut predictions = Vec::new();
    for task in tasks {
        predictions.push(task.await.map_err(|error| Failure::Run(error.into()))??);
    }
    Ok(predictions)
}

fn simulations(
    setting: &Setting,
    prepared: &Prepared,
    policy: PolicyConfig,
) -> Result<Vec<RunResult>, Failure> {
    let steps = (0..SIMULATIONS).map(|i| 2.0 * f64::from(i) / f64::from(SIMULATIONS - 1) - 1.0);
    steps.map(|step| simulated(setting, prepared, policy, step)).collect()
}

fn prepare(
    profile: &LatencyProfile,
    name: &str,
    spec: &str,
    seed: u64,
    requests: u32,
) -> Result<Prepared, Failure> {
    let spec = WorkloadSpec::from_toml(spec).map_err(Failure::usage)?;
    let workload = spec.generate(seed, requests).map_err(Failure::usage)?.with_name(name);
    let as_routed = as_routed(workload.clone(), &TokenStream::new(VOCABULARY, 0));
    let config = sim_config(profile);
    let plan = Plan::new(&workload, config.engine.block_size).map_err(Failure::usage)?;
    let reuses = Reuses::new(&workload, &plan, Timestamp::ZERO..=Timestamp::MAX);
    let hit_rate_bounds = hit_rate_bounds(&reuses, INSTANCES, &config.engine);
    Ok(Prepared { workload, as_routed, plan, hit_rate_bounds })
}

fn sim_config(profile: &LatencyProfile) -> SimConfig {
    let mut config = SimConfig::new(INSTANCES, PolicyConfig::RoundRobin {}, profile.clone(), 0)
        .with_kv_blocks(KV_BLOCKS);
    kvroute_experiment::fit_model_len(&mut config.engine);
    config
}

/// The live half of a run: fresh instances, a fresh gateway, real HTTP.
async fn live(
    setting: &Setting,
    prepared: &Prepared,
    policy: PolicyConfig,
) -> Result<RunResult, Failure> {
    let config = simulated_config(setting, policy);
    let outcome = embedded::play(&config, &prepared.workload, 0.0, REQUEST_TIMEOUT_S).await?;
    Ok(live_result(setting, prepared, policy, &outcome))
}

/// The cluster that a simulated half runs on.
fn simulated_config(setting: &Setting, policy: PolicyConfig) -> SimConfig {
    let mut config = SimConfig { policy, seed: setting.seed, ..sim_config(&setting.profile) };
    config.router.load.refresh = Refresh::EveryS(LOAD_REFRESH_S);
    config.router.always_index = true;
    config.network_delay_s = setting.one_way_s;
    config
}

/// The simulated half: the same requests, engines, policy and signals, and the measured way. `step`, from -1 to 1, says
/// which of the timings that may be it has.
fn simulated(
    setting: &Setting,
    prepared: &Prepared,
    policy: PolicyConfig,
    step: f64,
) -> Result<RunResult, Failure> {
    let mut config = simulated_config(setting, policy);
    config.network_delay_s *= 1.0 + DELAY_SPREAD * step;
    config.router.load.refresh = Refresh::EveryS(LOAD_REFRESH_S * (1.0 + REFRESH_SPREAD * step));
    let began = Instant::now();
    let outcome = kvroute_sim::simulate(&config, &prepared.as_routed, &prepared.plan, |_| {});
    let outcome = outcome.map_err(|error| Failure::Run(error.into()))?;
    let wall_s = began.elapsed().as_secs_f64();
    let instances = instances(&outcome.records, outcome.end);
    Ok(RunResult::from_measurements(&Measurements {
        records: &outcome.records,
        instances_measured: instances,
        cov_in_flight: outcome.in_flight_cov,
        preemptions: Preemptions::InRecords,
        decision_log_hash: Some(outcome.decision_log_hash),
        ..measurements(setting, prepared, policy, Mode::Sim, wall_s)
    }))
}

fn live_result(
    setting: &Setting,
    prepared: &Prepared,
    policy: PolicyConfig,
    outcome: &LoadOutcome,
) -> RunResult {
    RunResult::from_measurements(&Measurements {
        records: &outcome.records,
        instances_measured: instances(&outcome.records, outcome.end),
        inter_token_ns: Some(outcome.inter_token_ns.clone()),
        ..measurements(setting, prepared, policy, Mode::Live, outcome.wall.as_secs_f64())
    })
}

/// What live and simulated results have in common.
fn measurements<'a>(
    setting: &Setting,
    prepared: &Prepared,
    policy: PolicyConfig,
    mode: Mode,
    wall_s: f64,
) -> Measurements<'a> {
    Measurements {
        policy: policy.name().to_owned(),
        policy_config: serde_json::to_value(policy).unwrap_or_default(),
        workload: prepared.workload.name().to_owned(),
        instances: INSTANCES,
        seed: setting.seed,
        mode,
        records: &[],
        window: MeasurementWindow::ALL,
        slo: Slo { ttft_ms: 500.0, tpot_ms: 50.0 },
        inter_token_ns: None,
        hit_rate_bounds: prepared.hit_rate_bounds,
        instances_measured: Vec::new(),
        cov_in_flight: None,
        preemptions: Preemptions::Unmeasured,
        decision_log_hash: None,
        wall_s,
    }
}

/// Mean requests in flight by instance, from the records alone, so that live and simulated runs are measured alike.
fn instances(
    records: &[kvroute_types::RequestRecord],
    end: Timestamp,
) -> Vec<InstanceMeasurements> {
    let instance = |id| InstanceMeasurements {
        in_flight_mean: mean_in_flight(records, id, Timestamp::ZERO, end),
        ..InstanceMeasurements::unmeasured(id)
    };
    (0..INSTANCES).map(|id| instance(InstanceId(id))).collect()
}

fn write_results(
    out: &Path,
    started: SystemTime,
    config: &SimConfig,
    seed: u64,
    pairs: &[Pair],
) -> Result<(), Failure> {
    let command: Vec<String> = std::env::args().collect();
    let html = comparison_html("kvroute demo", &command.join(" "), pairs);
    let runs: Vec<&RunResult> =
        pairs.iter().flat_map(|pair| [&pair.live].into_iter().chain(&pair.sims)).collect();
    let manifest = manifest(started, config, vec![seed], Vec::new())?;
    let json =
        serde_json::to_vec_pretty(&serde_json::json!({ "manifest": manifest, "runs": runs }));
    let mut files = vec![
        (PathBuf::from("results.json"), json.map_err(std::io::Error::from)?),
        (PathBuf::from("report.html"), html.into_bytes()),
    ];
    let figures = figures(pairs).into_iter();
    files.extend(figures.map(|(name, svg)| (Path::new("figures").join(name), svg.into_bytes())));
    fs::create_dir_all(out.join("figures"))?;
    for (name, content) in files {
        crate::output::write_atomically(&out.join(name), &content)?;
    }
    Ok(())
}
