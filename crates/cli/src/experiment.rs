//! `kvroute experiment`.

mod live;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use kvroute_experiment::{
    CellFilter, ExperimentSpec, Options, Plan, Progress, RunFault, Shard, Store, StoreFault,
    read_file, results, run as run_experiment,
};
use kvroute_lab::{ExperimentResults, Manifest, Mode};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::write_file;
use crate::provenance;
use live::LiveInstances;

#[derive(Debug, Subcommand)]
pub(crate) enum ExperimentCommand {
    /// Run what is missing of an experiment, and write its results and report.
    Run(RunArgs),
    /// Put the parts of an experiment together that ran with --shard.
    Merge(MergeArgs),
    /// Write the report of a run directory again.
    Report(ReportArgs),
    /// Set two runs side by side: two versions, or simulated and live.
    Compare(CompareArgs),
    /// Print the JSON Schema of experiment files.
    Schema,
}

/// Which experiment.
#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// Experiment file.
    file: PathBuf,

    /// The short version: the file's `quick` table is laid over the rest.
    #[arg(long)]
    quick: bool,

    /// Settings to replace, with dotted keys: `seeds=3`, `cluster.kv_blocks=2000`.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    file: FileArgs,

    /// Simulate, or play it in real time at embedded instances behind the gateway.
    #[arg(long, value_enum, default_value_t)]
    mode: ModeArg,

    /// Run directory [default: kvroute-runs/NAME]. What is there already is not run again.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// The K-th of N parts, for N machines; merge them afterwards.
    #[arg(long, value_name = "K/N")]
    shard: Option<Shard>,

    /// Only cells with these parts: workload=chat;policy=jsq. Keys: workload, policy, instances, load, sweep, value.
    #[arg(long, value_name = "KEY=VALUE;…")]
    only: Vec<CellFilter>,

    /// Runs at the same time [default: the number of processors; live: 1]. Simulated results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// Only say what would be run.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    file: FileArgs,

    /// Run directories of the parts.
    #[arg(required = true, value_name = "DIR")]
    parts: Vec<PathBuf>,

    /// Run directory of the whole.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Run directory.
    directory: PathBuf,

    /// Where to write the page [default: DIR/report.html].
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// A run directory.
    a: PathBuf,

    /// Another, with cells in common.
    b: PathBuf,

    /// Where to write the page [default: compare.html].
    #[arg(long, value_name = "FILE", default_value = "compare.html")]
    html: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    /// In virtual time.
    #[default]
    Sim,
    /// Over HTTP, in real time.
    Live,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Sim => Self::Sim,
            ModeArg::Live => Self::Live,
        }
    }
}

/// What makes an experiment what it is, for the manifest.
#[derive(Serialize)]
struct EffectiveConfig<'a> {
    name: &'a str,
    mode: Mode,
    experiment: &'a ExperimentSpec,
}

pub(crate) fn run(command: &ExperimentCommand) -> Result<(), Failure> {
    match command {
        ExperimentCommand::Run(args) => run_file(args),
        ExperimentCommand::Merge(args) => merge(args),
        ExperimentCommand::Report(args) => report(args),
        ExperimentCommand::Compare(args) => compare(args),
        ExperimentCommand::Schema => {
            crate::output::write_json(&ExperimentSpec::json_schema()).map_err(Failure::from)
        }
    }
}

impl FileArgs {
    fn plan(&self) -> Result<Plan, Failure> {
        let read = || -> anyhow::Result<Plan> {
            let (name, text) = read_file(&self.file)?;
            let spec = ExperimentSpec::from_toml(&text, self.quick, &self.set)?;
            let folder = self.file.parent().unwrap_or(Path::new(""));
            Ok(Plan::new(spec, &name, folder)?)
        };
        read()
            .with_context(|| format!("cannot use the experiment {}", self.file.display()))
            .map_err(Failure::Usage)
    }
}

fn manifest(plan: &Plan, mode: Mode) -> Result<Manifest, Failure> {
    let config = EffectiveConfig { name: plan.name(), mode, experiment: plan.spec() };
    let inputs = plan.inputs().map_err(Failure::usage)?;
    let seeds = plan.seeds().collect();
    Ok(provenance::manifest(SystemTime::now(), &config, seeds, inputs)?)
}

fn run_file(args: &RunArgs) -> Result<(), Failure> {
    let plan = args.file.plan()?;
    let quick = if args.file.quick { "-quick" } else { "" };
    let live = if args.mode == ModeArg::Live { "-live" } else { "" };
    let default_out = || Path::new("kvroute-runs").join(format!("{}{live}{quick}", plan.name()));
    let out = args.out.clone().unwrap_or_else(default_out);
    let wanted = plan.count(&args.only);
    if wanted == 0 {
        return Err(Failure::Usage(anyhow!(
            "--only leaves nothing to run; the cells: {}",
            plan.axes()
        )));
    }
    if args.dry_run {
        println!("{wanted} runs: {}", plan.axes());
        return Ok(());
    }
    let manifest = manifest(&plan, args.mode.into())?;
    let shard = args.shard.unwrap_or(Shard::WHOLE);
    let mut store = Store::open(&out, shard, &manifest).map_err(store_failure)?;
    let instances = match args.mode {
        ModeArg::Live => Some(LiveInstances::new()?),
        ModeArg::Sim => None,
    };
    if let Some(live) = &instances {
        let one_way_s = live.measure_one_way(&plan.base_cluster().map_err(Failure::usage)?)?;
        eprintln!(
            "HTTP and timers take {:.2} ms each way; the comparable simulation has --set cluster.network_delay={:.0}us",
            1e3 * one_way_s,
            1e6 * one_way_s
        );
    }
    let threads = args.threads.or_else(|| match args.mode {
        ModeArg::Live => None,
        ModeArg::Sim => std::thread::available_parallelism().ok(),
    });
    let options = Options {
        threads: threads.map_or(1, NonZeroUsize::get),
        shard,
        live: instances.as_ref().map(|live| live as &dyn kvroute_experiment::Live),
        only: args.only.clone(),
    };
    let bar = progress_bar(plan.name());
    let ran = run_experiment(&plan, &mut store, &options, &|now| show(&bar, now));
    bar.finish_and_clear();
    ran.map_err(|fault| run_failure(fault, &out))?;
    let done = plan.count_done(&args.only, &store);
    if done < wanted {
        println!(
            "this part is done ({done} of {wanted} runs are in {}); when all parts are: kvroute experiment merge",
            out.display()
        );
        return Ok(());
    }
    finish(&plan, &store, &out)
}

fn merge(args: &MergeArgs) -> Result<(), Failure> {
    let plan = args.file.plan()?;
    let first = read_manifest(&args.parts[0])?;
    let mode = if first.config["mode"] == "live" { Mode::Live } else { Mode::Sim };
    let manifest = manifest(&plan, mode)?;
    let mut store = Store::open(&args.out, Shard::WHOLE, &manifest).map_err(store_failure)?;
    for part in &args.parts {
        store.take_over(part, &manifest).map_err(store_failure)?;
    }
    let (done, all) = (store.done().len(), plan.runs());
    if !store.is_complete(&plan) {
        return Err(Failure::Run(anyhow!(
            "{done} of {all} runs are there; run the missing parts and merge again: what is there is kept"
        )));
    }
    finish(&plan, &store, &args.out)
}

/// Writes the results and the report of what is in the store.
fn finish(plan: &Plan, store: &Store, out: &Path) -> Result<(), Failure> {
    let results = results(plan, store, read_manifest(out)?);
    let json = results_json(&results)?;
    write_file(&out.join("results.json"), &json)?;
    write_report(&results, out, &out.join("report.html"))
}

fn report(args: &ReportArgs) -> Result<(), Failure> {
    let results = read_results(&args.directory)?;
    let html = args.html.clone().unwrap_or_else(|| args.directory.join("report.html"));
    write_report(&results, &args.directory, &html)
}

fn compare(args: &CompareArgs) -> Result<(), Failure> {
    let (a, b) = (read_results(&args.a)?, read_results(&args.b)?);
    let name = |path: &Path| path.display().to_string();
    let report = kvroute_lab::experiment_comparison((&name(&args.a), &a), (&name(&args.b), &b));
    write_file(&args.html, report.html.as_bytes())?;
    print!("{}", report.summary);
    println!("report: {}", args.html.display());
    Ok(())
}

/// Results as JSON, one run a line, so that versions can be compared line by line.
fn results_json(results: &ExperimentResults) -> Result<Vec<u8>, Failure> {
    let ExperimentResults { manifest, about, capacities, runs } = results;
    let mut json = format!("{{\"manifest\":{},\n\"about\":{}", line(manifest)?, line(about)?);
    json.push_str(",\n\"capacities\":");
    json.push_str(&lines(capacities)?);
    json.push_str(",\n\"runs\":");
    json.push_str(&lines(runs)?);
    json.push_str("}\n");
    Ok(json.into_bytes())
}

fn lines(rows: &[impl Serialize]) -> Result<String, Failure> {
    let rows: Vec<String> = rows.iter().map(line).collect::<Result<_, _>>()?;
    Ok(format!("[\n{}]", rows.join(",\n")))
}

fn line(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::from(std::io::Error::from(error)))
}

fn read_results(directory: &Path) -> Result<ExperimentResults, Failure> {
    let path = directory.join("results.json");
    let read = || -> anyhow::Result<ExperimentResults> {
        Ok(serde_json::from_slice(&std::fs::read(&path)?)?)
    };
    read()
        .with_context(|| {
            format!("cannot read {}; is this a finished run directory?", path.display())
        })
        .map_err(Failure::Usage)
}

fn read_manifest(directory: &Path) -> Result<Manifest, Failure> {
    let path = directory.join("manifest.json");
    let read =
        || -> anyhow::Result<Manifest> { Ok(serde_json::from_slice(&std::fs::read(&path)?)?) };
    read()
        .with_context(|| format!("cannot read {}; is this a run directory?", path.display()))
        .map_err(Failure::Usage)
}

fn write_report(results: &ExperimentResults, out: &Path, html: &Path) -> Result<(), Failure> {
    let report = kvroute_lab::experiment_report(results);
    for figure in &report.figures {
        let at = |extension: &str| out.join("figures").join(format!("{}.{extension}", figure.name));
        write_file(&at("svg"), figure.svg.as_bytes())?;
        write_file(&at("csv"), figure.csv.as_bytes())?;
        let png = kvroute_lab::svg_to_png(&figure.svg)
            .with_context(|| format!("cannot draw figure {}", figure.name))
            .map_err(Failure::Run)?;
        write_file(&at("png"), &png)?;
    }
    for table in &report.tables {
        let at = |extension: &str| out.join("tables").join(format!("{}.{extension}", table.name));
        write_file(&at("md"), table.markdown.as_bytes())?;
        write_file(&at("csv"), table.csv.as_bytes())?;
        write_file(&at("tex"), table.latex.as_bytes())?;
    }
    write_file(html, report.html.as_bytes())?;
    print!("{}", report.summary);
    println!("report: {}", html.display());
    Ok(())
}

fn progress_bar(name: &str) -> ProgressBar {
    let template = "{prefix} {bar:30} {pos} of {len} {msg}, {elapsed} gone, {eta} left";
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(1)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_prefix(name.to_owned())
}

fn show(bar: &ProgressBar, now: Progress) {
    let (what, done, of) = match now {
        Progress::Capacities { known, of } => ("capacities", known, of),
        Progress::Runs { done, of } => ("runs", done, of),
    };
    bar.set_length(of as u64);
    bar.set_position(done as u64);
    bar.set_message(what);
}

fn store_failure(fault: StoreFault) -> Failure {
    match fault {
        StoreFault::Io { .. } => Failure::Run(fault.into()),
        _ => Failure::usage(fault),
    }
}

fn run_failure(fault: RunFault, out: &Path) -> Failure {
    let is_usage = matches!(
        fault,
        RunFault::Spec(_)
            | RunFault::Workload { .. }
            | RunFault::Capacity { .. }
            | RunFault::Simulation { .. }
    );
    let error = anyhow::Error::new(fault).context(format!(
        "stopped; finished runs are in {}, and the same command goes on from there",
        out.display()
    ));
    if is_usage { Failure::Usage(error) } else { Failure::Run(error) }
}
