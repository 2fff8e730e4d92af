//! `kvroute validate`.

use std::fs::File;
use std::io::BufReader;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow};
use clap::Args;
use kvroute_lab::{InputFile, Latencies, LatencyComparison, Manifest, latency_figure};
use kvroute_router::Refresh;
use kvroute_sim::{SimConfig, simulate};
use kvroute_types::mix64;
use kvroute_workload::traces::decompress;
use kvroute_workload::{Plan, Workload};
use serde::Serialize;

use crate::cluster_args::{ClusterArgs, policies};
use crate::failure::Failure;
use crate::live::LiveRun;
use crate::output::{Format, json_lines, write_file, write_json, write_rows};
use crate::provenance::manifest;
use crate::workload_args::{WorkloadArgs, WorkloadSource};

/// Seconds between two load readings of the gateway that --live puts in front of several instances, if --load-refresh names
/// none.
const LOAD_REFRESH_S: f64 = 0.1;

/// Simulate a measured run and say how far the simulation is off.
///
/// The same requests go through the simulator, and the distributions of TTFT, TPOT and end-to-end latency are compared:
/// relative error = simulated / measured - 1. The workload must be the one that was measured, with its seed.
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    #[command(flatten)]
    workload: WorkloadArgs,

    #[command(flatten)]
    reference: Reference,

    /// Number of instances [default: 1, or those of --live].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Cluster")]
    instances: Option<u32>,

    /// Routing policy between several instances.
    #[arg(long, value_name = "NAME", default_value = "round-robin")]
    policy: String,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// Seed of workload and policy.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Model name to ask live instances for [default: none, an instance's only one].
    #[arg(long, value_name = "NAME", requires = "live")]
    model: Option<String>,

    /// Prompts at live instances are token ids below this; at most the model's vocabulary.
    #[arg(long, value_name = "N", default_value = "8000", requires = "live")]
    vocabulary: NonZeroU32,

    /// Write what was measured at live instances here, for `--measured` later.
    #[arg(long, value_name = "FILE", requires = "live")]
    save_measured: Option<PathBuf>,

    /// Write the measured and simulated distributions here, as SVG.
    #[arg(long, value_name = "FILE")]
    figure: Option<PathBuf>,

    /// Form of the results.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What the simulation is compared with.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Reference {
    /// Measured requests, one JSON object a line, plain, .gz or .zst: what `kvroute load` writes, or the stamps of vLLM's
    /// engine (the form of data/measured).
    #[arg(long, value_name = "FILE")]
    measured: Option<PathBuf>,

    /// Base URLs of live instances: the workload is played at them first, through an embedded gateway if they are several.
    /// One URL may also be a gateway with --instances behind it.
    #[arg(long, value_name = "URL", num_args = 1..)]
    live: Vec<String>,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Report<'a> {
    manifest: Manifest,
    #[serde(flatten)]
    comparison: &'a LatencyComparison,
}

/// Everything that decides the result, for the manifest.
#[derive(Serialize)]
struct EffectiveConfig<'a> {
    workload: crate::workload_args::WorkloadConfig,
    measured: Option<&'a Path>,
    live: &'a [String],
    /// Salt of the prompts at live instances.
    salt: Option<u64>,
    requests_compared: usize,
    cluster: &'a SimConfig,
}

pub(crate) fn run(args: &ValidateArgs) -> Result<(), Failure> {
    let started = SystemTime::now();
    let source = args.workload.source()?;
    let mut config = cluster(args)?;
    let workload = source.load(args.seed)?;
    let live = (!args.reference.live.is_empty()).then(|| live_run(args, &config, started));
    let (measured, workload) = match &live {
        None => (read_measured(args.reference.measured.as_deref())?, workload),
        Some(live) => {
            if args.reference.live.len() > 1 {
                config.router.load.refresh = Refresh::EveryS(live.load_refresh_s);
                config.router.always_index = true;
            }
            (measure(args, live, &workload)?, live.as_routed(workload))
        }
    };
    if let Some(last) = measured.last_id().filter(|id| id.index() >= workload.requests().len()) {
        return Err(Failure::Usage(anyhow!(
            "measured request {last} is not in the workload, which has {} requests (numbered from 0); give the workload \
             that was measured, with its --requests and --seed",
            workload.requests().len()
        )));
    }
    let plan = Plan::new(&workload, config.engine.block_size).map_err(Failure::usage)?;
    let outcome = simulate(&config, &workload, &plan, |_| {}).map_err(Failure::usage)?;
    let all = Latencies::of_records(&outcome.records);
    let simulated = all.only_those_of(&measured);
    eprintln!(
        "{} of the workload's {} requests were measured to their end ({} failed) and are compared with the profile {}",
        simulated.len(),
        workload.requests().len(),
        measured.failed(),
        config.profile.name
    );

    let comparison = LatencyComparison::new(&measured, &simulated);
    if let Some(path) = &args.figure {
        let title = format!("{} under {}", shortest(workload.name()), config.profile.name);
        write_file(path, latency_figure(&title, &measured, &simulated).as_bytes())?;
    }
    match args.format {
        Format::Table | Format::Csv => write_rows(args.format, &HEADER, &rows(&comparison))?,
        Format::Json => {
            let effective = EffectiveConfig {
                workload: source.config(),
                measured: args.reference.measured.as_deref(),
                live: &args.reference.live,
                salt: live.map(|live| live.salt),
                requests_compared: simulated.len(),
                cluster: &config,
            };
            let inputs = inputs(&source, args.reference.measured.as_deref())?;
            let manifest = manifest(started, &effective, vec![args.seed], inputs)?;
            write_json(&Report { manifest, comparison: &comparison })?;
        }
    }
    Ok(())
}

/// The cluster to be simulated.
fn cluster(args: &ValidateArgs) -> Result<SimConfig, Failure> {
    let urls = u32::try_from(args.reference.live.len()).unwrap_or(u32::MAX);
    let instances = args.instances.unwrap_or(urls.max(1));
    if urls > 1 && instances != urls {
        return Err(Failure::Usage(anyhow!(
            "--instances {instances} with {urls} live instances; leave --instances out"
        )));
    }
    let [policy] = policies(std::slice::from_ref(&args.policy))?[..] else {
        return Err(Failure::Usage(anyhow!("give one --policy, the one that was measured")));
    };
    args.cluster.config(&args.cluster.profile()?, policy, instances, args.seed)
}

fn live_run<'a>(args: &'a ValidateArgs, config: &SimConfig, started: SystemTime) -> LiveRun<'a> {
    let now = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    LiveRun {
        instances: &args.reference.live,
        policy: config.policy,
        load_refresh_s: match config.router.load.refresh {
            Refresh::EveryS(seconds) => seconds,
            Refresh::RealTime | Refresh::Never => LOAD_REFRESH_S,
        },
        directory: config.router.directory,
        kv_blocks: config.engine.kv_blocks,
        block_size: config.engine.block_size,
        model: args.model.clone(),
        vocabulary: args.vocabulary,
        // Another each time, or the instances' caches would hold the answers of the last run.
        salt: mix64(now.as_secs() ^ u64::from(now.subsec_nanos()).rotate_left(32)),
        seed: args.seed,
    }
}

/// Plays the workload at live instances.
fn measure(
    args: &ValidateArgs,
    live: &LiveRun<'_>,
    workload: &Workload,
) -> Result<Latencies, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(live.play(workload))?;
    if let Some(path) = &args.save_measured {
        write_file(path, &json_lines(&outcome.records)?)?;
    }
    let measured = Latencies::of_records(&outcome.records);
    if measured.is_empty() {
        return Err(Failure::Run(anyhow!("no request was answered; are the instances serving?")));
    }
    Ok(measured)
}

fn read_measured(path: Option<&Path>) -> Result<Latencies, Failure> {
    let path = path.expect("either --measured or --live is required");
    let read = || -> anyhow::Result<Latencies> {
        let file = decompress(BufReader::new(File::open(path)?))?;
        Ok(Latencies::read(file)?)
    };
    let read = read().with_context(|| format!("cannot read the measured run {}", path.display()));
    read.map_err(Failure::Usage)
}

fn inputs(source: &WorkloadSource<'_>, measured: Option<&Path>) -> Result<Vec<InputFile>, Failure> {
    let mut inputs = source.inputs()?;
    if let Some(path) = measured {
        inputs.push(InputFile::read(path).map_err(Failure::usage)?);
    }
    Ok(inputs)
}

const HEADER: [&str; 5] = ["latency", "figure", "measured", "simulated", "error"];

fn rows(comparison: &LatencyComparison) -> Vec<Vec<String>> {
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.2}"));
    let error = |value: Option<f64>| {
        value.map_or_else(|| "-".to_owned(), |error| format!("{:+.2} %", 100.0 * error))
    };
    let of_latency = |(latency, figures): (&str, &kvroute_lab::FigureComparison)| {
        figures.figures().map(|(figure, compared)| {
            vec![
                latency.to_owned(),
                figure.to_owned(),
                number(compared.measured),
                number(compared.simulated),
                error(compared.relative_error),
            ]
        })
    };
    let hit_rates = comparison.hit_rate;
    let percent = |rate: Option<f64>| number(rate.map(|rate| 100.0 * rate));
    let points = hit_rates.difference.map(|difference| 100.0 * difference);
    let hit_rate = vec![
        "hit_rate".to_owned(),
        "%".to_owned(),
        percent(hit_rates.measured),
        percent(hit_rates.simulated),
        points.map_or_else(|| "-".to_owned(), |points| format!("{points:+.2} points")),
    ];
    comparison.latencies().into_iter().flat_map(of_latency).chain([hit_rate]).collect()
}

/// A trace's name is its file's; the rest is in the manifest.
fn shortest(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or(name)
}
