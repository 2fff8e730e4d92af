//! `kvroute simulate`.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::anyhow;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kvroute_experiment::{Simulated, hit_rate_bounds};
use kvroute_lab::{HitRateBounds, Manifest, MeasurementWindow, RunResult, Slo};
use kvroute_policy::PolicyConfig;
use kvroute_sim::{SimConfig, simulate};
use kvroute_types::Timestamp;
use kvroute_workload::{Plan, Reuses, Workload};
use serde::Serialize;

use crate::cluster_args::{ClusterArgs, policies};
use crate::failure::Failure;
use crate::output::{Format, write_json};
use crate::provenance::manifest;
use crate::values;
use crate::workload_args::{WorkloadArgs, WorkloadConfig};

/// Run a workload through routing policies over simulated vLLM instances, in virtual time.
///
/// One run per policy, number of instances and seed; every run starts with cold caches.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    #[command(flatten)]
    workload: WorkloadArgs,

    /// N clients at once, each taking the next session when its last one is over; arrival times give no more than the order
    /// of sessions.
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "rate_scale"], help_heading = "Workload")]
    closed_loop: Option<NonZeroU32>,

    /// Routing policies: names with optional parameters (load-cache:alpha=0.5,beta=0.5); all for the six, arena for
    /// these, the rules of other projects and the oracle.
    #[arg(long, value_name = "NAME", num_args = 1.., default_value = "all")]
    policy: Vec<String>,

    /// Number of instances; several give a run each.
    #[arg(long, value_name = "N", num_args = 1.., default_value = "2", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Cluster")]
    instances: Vec<u32>,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// First seed. It feeds the workload, the policies and the signal losses.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Number of seeds, counting up from --seed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    seeds: u32,

    /// Leave requests that arrive before this time out of the statistics.
    #[arg(long, value_name = "D", default_value = "0", value_parser = values::duration)]
    warm_up: Duration,

    /// Time to first token that counts as good, ms.
    #[arg(long, value_name = "MS", default_value_t = 2_000.0)]
    slo_ttft_ms: f64,

    /// Time per output token that counts as good, ms.
    #[arg(long, value_name = "MS", default_value_t = 100.0)]
    slo_tpot_ms: f64,

    /// Runs at the same time [default: the number of processors]. Results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Form of the results.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Report {
    manifest: Manifest,
    runs: Vec<RunResult>,
}

/// Everything that decides the result, for the manifest.
#[derive(Serialize)]
struct EffectiveConfig {
    workload: WorkloadConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    closed_loop: Option<NonZeroU32>,
    policies: Vec<PolicyConfig>,
    instances: Vec<u32>,
    warm_up_s: f64,
    slo: Slo,
    /// The first run's cluster; the others differ in policy, number of instances and seed alone.
    cluster: SimConfig,
}

/// One run to be made.
struct Cell {
    policy: PolicyConfig,
    instances: u32,
    config: SimConfig,
}

/// A workload under one seed, ready to run.
struct Prepared {
    workload: Workload,
    plan: Plan,
    /// Hit rates of one cache for all instances, by their number.
    bounds: BTreeMap<u32, HitRateBounds>,
}

pub(crate) fn run(args: &SimulateArgs) -> Result<(), Failure> {
    let started = SystemTime::now();
    let source = args.workload.source()?;
    let policies = policies(&args.policy)?;
    let profile = args.cluster.profile()?;
    if !(args.slo_ttft_ms > 0.0 && args.slo_tpot_ms > 0.0) {
        return Err(Failure::Usage(anyhow!("an SLO must be a positive number of milliseconds")));
    }
    let cells = |seed: u64| -> Result<Vec<Cell>, Failure> {
        let mut cells = Vec::new();
        for &policy in &policies {
            for &instances in &args.instances {
                let mut config = args.cluster.config(&profile, policy, instances, seed)?;
                config.measure_from_s = args.warm_up.as_secs_f64();
                cells.push(Cell { policy, instances, config });
            }
        }
        Ok(cells)
    };
    let first = cells(args.seed)?.into_iter().next();
    let cluster = first.ok_or_else(|| Failure::Usage(anyhow!("no policy or no instances")))?.config;

    let mut by_seed = Vec::new();
    let mut prepared: Option<Prepared> = None;
    for number in 0..args.seeds {
        let seed = args.seed + u64::from(number);
        let cells = cells(seed)?;
        if prepared.is_none() || source.depends_on_seed() {
            let workload = source.load(seed)?;
            let counted_from = Timestamp::from_secs_f64(cells[0].config.measure_from_s);
            prepared = Some(match args.closed_loop {
                // When its requests arrive is known only afterwards.
                Some(clients) => {
                    prepare(workload.in_closed_loop(clients), &cells, Timestamp::ZERO)?
                }
                None => prepare(workload, &cells, counted_from)?,
            });
        }
        let prepared = prepared.as_ref().expect("it was prepared above");
        by_seed.push(run_cells(args, prepared, &cells, seed)?);
    }
    // Seeds innermost: one policy's replicates stand together.
    let runs: Vec<RunResult> = (0..by_seed[0].len())
        .flat_map(|cell| by_seed.iter().map(move |runs| runs[cell].clone()))
        .collect();

    match args.format {
        Format::Table => {
            use std::io::Write;
            write!(std::io::stdout().lock(), "{}", kvroute_lab::text_table(&runs))?;
        }
        Format::Csv => kvroute_lab::write_csv(&runs, std::io::stdout().lock())?,
        Format::Json => {
            let config = EffectiveConfig {
                workload: source.config(),
                closed_loop: args.closed_loop,
                policies,
                instances: args.instances.clone(),
                warm_up_s: args.warm_up.as_secs_f64(),
                slo: slo(args),
                cluster,
            };
            let seeds = (0..args.seeds).map(|number| args.seed + u64::from(number)).collect();
            let manifest = manifest(started, &config, seeds, source.inputs()?)?;
            write_json(&Report { manifest, runs })?;
        }
    }
    Ok(())
}

fn slo(args: &SimulateArgs) -> Slo {
    Slo { ttft_ms: args.slo_ttft_ms, tpot_ms: args.slo_tpot_ms }
}

/// The cells differ in policy and number of instances alone.
fn prepare(
    workload: Workload,
    cells: &[Cell],
    counted_from: Timestamp,
) -> Result<Prepared, Failure> {
    let config = &cells[0].config;
    let plan = Plan::new(&workload, config.engine.block_size).map_err(Failure::usage)?;
    let reuses = Reuses::new(&workload, &plan, counted_from..=Timestamp::MAX);
    let mut bounds = BTreeMap::new();
    for Cell { instances, config, .. } in cells {
        let of_cell = || hit_rate_bounds(&reuses, *instances, &config.engine);
        bounds.entry(*instances).or_insert_with(of_cell);
    }
    Ok(Prepared { workload, plan, bounds })
}

/// Runs all cells, several at a time; results come in the order of the cells.
fn run_cells(
    args: &SimulateArgs,
    prepared: &Prepared,
    cells: &[Cell],
    seed: u64,
) -> Result<Vec<RunResult>, Failure> {
    let threads = args
        .threads
        .or_else(|| std::thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
        .min(cells.len());
    let requests = prepared.workload.requests().len() as u64;
    let progress = progress_bar(requests * cells.len() as u64, seed);
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<RunResult, Failure>>>> =
        cells.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(cell) = cells.get(at) else { return };
                    let result = run_cell(args, prepared, cell, seed, &progress);
                    *results[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            });
        }
    });
    progress.finish_and_clear();
    results
        .into_iter()
        .map(|result| {
            let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
            result.expect("every cell was run")
        })
        .collect()
}

fn run_cell(
    args: &SimulateArgs,
    prepared: &Prepared,
    cell: &Cell,
    seed: u64,
    progress: &ProgressBar,
) -> Result<RunResult, Failure> {
    let began = Instant::now();
    let mut reported = 0;
    let outcome = simulate(&cell.config, &prepared.workload, &prepared.plan, |ended| {
        progress.inc(u64::from(ended - reported));
        reported = ended;
    });
    let outcome = outcome.map_err(Failure::usage)?;
    let wall_s = began.elapsed().as_secs_f64();
    progress.inc(outcome.records.len() as u64 - u64::from(reported));
    let simulated = Simulated {
        policy: cell.policy,
        workload: prepared.workload.name(),
        instances: cell.instances,
        seed,
        window: MeasurementWindow::from_time(Timestamp::from_secs_f64(args.warm_up.as_secs_f64())),
        slo: slo(args),
        hit_rate_bounds: prepared.bounds[&cell.instances],
        wall_s,
    };
    Ok(simulated.result(&outcome))
}

/// Progress on standard error; silent where that is no terminal.
fn progress_bar(requests: u64, seed: u64) -> ProgressBar {
    let template = "{prefix} {bar:30} {percent:>3} %  {human_pos} of {human_len} requests, {per_sec}, {eta} left";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(requests).with_style(style).with_prefix(format!("seed {seed}"))
}
