//! `kvroute load`.

use std::fs;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use kvroute_lab::{
    HitRateBounds, InstanceMeasurements, MeasurementWindow, Measurements, Mode, Preemptions,
    RunResult, Slo, mean_in_flight,
};
use kvroute_load::{Counter, InstanceTarget, LoadConfig, LoadOutcome, PromptForm, Target};
use kvroute_policy::PolicyConfig;
use kvroute_types::{InstanceId, Timestamp};

use crate::failure::Failure;
use crate::output::{Format, write_json};
use crate::provenance::manifest;
use crate::values;
use crate::workload_args::WorkloadArgs;

/// Drive an OpenAI-compatible endpoint with a workload and record every request.
///
/// Open loop by default: requests are sent at their intended times whatever the server does, and latencies run from those.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Base URL of the endpoint, http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    target: String,

    #[command(flatten)]
    workload: WorkloadArgs,

    /// Base URL of an instance behind the endpoint, in the order of its number: its metrics are read.
    #[arg(long, value_name = "URL", num_args = 1..)]
    instance: Vec<String>,

    /// Base URL of the admin API of the kvroute gateway at --target: its policy stands in the results.
    #[arg(long, value_name = "URL")]
    admin: Option<String>,

    /// Clients of a closed loop, each sending its next request when the one before has ended.
    #[arg(long, value_name = "N")]
    closed_loop: Option<NonZeroU32>,

    /// Text: chat messages. Token ids: completions, exact in length and content.
    #[arg(long, value_enum, default_value_t)]
    prompts: Prompts,

    /// Model name to ask for [default: none, the server's only one].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Seed of the workload.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Leave requests that arrive before this time out of the statistics.
    #[arg(long, value_name = "D", default_value = "0", value_parser = values::duration)]
    warm_up: Duration,

    /// Directory for results.json and requests.jsonl (one record a request).
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Form of the results.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// How prompts are rendered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Prompts {
    /// Chat messages of common words.
    #[default]
    Text,
    /// Token ids below 32,000.
    TokenIds,
}

pub(crate) fn run(args: &LoadArgs) -> Result<(), Failure> {
    let started = SystemTime::now();
    let config = config(args)?;
    let source = args.workload.source()?;
    let workload = source.load(args.seed)?;
    if let Some(out) = &args.out {
        let created =
            fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()));
        created.map_err(Failure::Usage)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let policy = || gateway_policy(args, &runtime);
    let policy_before = policy()?;
    let style =
        ProgressStyle::with_template("{bar:30} {pos} of {len} answered, {msg}, {elapsed} gone");
    let progress = ProgressBar::new(workload.requests().len() as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let outcome = runtime.block_on(kvroute_load::run(config.clone(), &workload, |now| {
        progress.set_position(now.completed + now.failed);
        progress.set_message(format!("{} failed", now.failed));
    }));
    progress.finish_and_clear();
    let outcome = outcome.map_err(Failure::usage)?;
    for (kind, failures) in &outcome.failures {
        eprintln!("{} requests failed ({kind:?}), the first: {}", failures.count, failures.example);
    }
    for instance in &outcome.instances {
        let missing = instance.missing();
        if !missing.is_empty() {
            eprintln!("{} has no metric {}; shown as -", instance.name, missing.join(", "));
        }
    }
    let late = outcome.late_sends;
    eprintln!(
        "sends were late by {:?} (median), {:?} (p99), {:?} (most)",
        late.p50, late.p99, late.max
    );

    let policy = policy_before.filter(|before| policy().is_ok_and(|after| after == Some(*before)));
    if policy.is_none() && policy_before.is_some() {
        eprintln!("the gateway's policy changed during the run; shown as unknown");
    }
    let run = result(args, workload.name(), policy, &outcome)?;
    let config = serde_json::json!({ "load": config, "workload": source.config() });
    let manifest = manifest(started, &config, vec![args.seed], source.inputs()?)?;
    let report = serde_json::json!({ "manifest": manifest, "runs": [&run] });
    if let Some(out) = &args.out {
        let lines = crate::output::json_lines(&outcome.records)?;
        let results = serde_json::to_vec_pretty(&report).map_err(std::io::Error::from)?;
        crate::output::write_atomically(&out.join("requests.jsonl"), &lines)?;
        crate::output::write_atomically(&out.join("results.json"), &results)?;
    }
    match args.format {
        Format::Table => print!("{}", kvroute_lab::text_table(&[run])),
        Format::Csv => kvroute_lab::write_csv(&[run], std::io::stdout().lock())?,
        Format::Json => write_json(&report)?,
    }
    if outcome.records.iter().all(|record| record.first_token.is_none()) {
        return Err(Failure::Run(anyhow!("no request was answered; is {} serving?", args.target)));
    }
    Ok(())
}

fn config(args: &LoadArgs) -> Result<LoadConfig, Failure> {
    let target = |url: &String| Target::try_from(url.clone()).map_err(Failure::usage);
    let instances: Result<Vec<_>, Failure> =
        args.instance.iter().map(|url| target(url).map(InstanceTarget::new)).collect();
    Ok(LoadConfig {
        target: target(&args.target)?,
        model: args.model.clone(),
        mode: match args.closed_loop {
            Some(concurrency) => kvroute_load::Mode::ClosedLoop { concurrency },
            None => kvroute_load::Mode::OpenLoop {},
        },
        prompt_form: match args.prompts {
            Prompts::Text => PromptForm::Text {},
            Prompts::TokenIds => {
                PromptForm::TokenIds { vocabulary: NonZeroU32::new(32_000).expect("not 0") }
            }
        },
        warm_up_s: args.warm_up.as_secs_f64(),
        instances: instances?,
        ..LoadConfig::default()
    })
}

fn result(
    args: &LoadArgs,
    workload: &str,
    policy: Option<PolicyConfig>,
    outcome: &LoadOutcome,
) -> Result<RunResult, Failure> {
    let from = Timestamp::from_secs_f64(args.warm_up.as_secs_f64());
    let instances = (0..).zip(&outcome.instances).map(|(id, instance)| {
        let id = InstanceId(id);
        InstanceMeasurements {
            instance: id,
            queue_depth_mean: instance.waiting.mean(),
            queue_depth_max: instance.waiting.max().map(whole),
            kv_cache_usage_mean: instance.kv_cache_usage.mean(),
            in_flight_mean: mean_in_flight(&outcome.records, id, from, outcome.end),
        }
    });
    let policy_config = policy.map(serde_json::to_value).transpose();
    Ok(RunResult::from_measurements(&Measurements {
        policy: policy.map_or("unknown", |policy| policy.name()).to_owned(),
        policy_config: policy_config.map_err(std::io::Error::from)?.unwrap_or_default(),
        workload: workload.to_owned(),
        instances: u32::try_from(args.instance.len()).unwrap_or(u32::MAX),
        seed: args.seed,
        mode: Mode::Live,
        records: &outcome.records,
        window: MeasurementWindow::from_time(from),
        slo: Slo { ttft_ms: 2_000.0, tpot_ms: 100.0 },
        inter_token_ns: Some(outcome.inter_token_ns.clone()),
        hit_rate_bounds: HitRateBounds::default(),
        instances_measured: instances.collect(),
        cov_in_flight: None,
        preemptions: preemptions(outcome).map_or(Preemptions::Unmeasured, Preemptions::Counter),
        decision_log_hash: None,
        wall_s: outcome.wall.as_secs_f64(),
    }))
}

/// The policy of the gateway; `None` if nobody said where its admin API is.
fn gateway_policy(
    args: &LoadArgs,
    runtime: &tokio::runtime::Runtime,
) -> Result<Option<PolicyConfig>, Failure> {
    let Some(url) = &args.admin else { return Ok(None) };
    let admin = Target::try_from(url.clone()).map_err(Failure::usage)?;
    let policy = runtime.block_on(kvroute_load::gateway_policy(&admin));
    policy.with_context(|| format!("no policy from {url}")).map(Some).map_err(Failure::Usage)
}

/// Preemptions of all instances; `None` if any of them did not tell.
fn preemptions(outcome: &LoadOutcome) -> Option<u64> {
    let of = |instance: &kvroute_load::InstanceOutcome| {
        instance.delta()?.ok()?.counter(Counter::Preemptions).map(|count| u64::from(whole(count)))
    };
    (!outcome.instances.is_empty())
        .then(|| outcome.instances.iter().map(of).sum::<Option<u64>>())?
}

/// A count that a metrics page tells as a float.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are whole, not negative, and far below 2^32; the cast saturates"
)]
fn whole(count: f64) -> u32 {
    count.round() as u32
}
