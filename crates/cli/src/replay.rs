//! `kvroute replay`.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use kvroute_decision_log::{
    Comparison, Decision, Difference, LogReader, LogSummary, PolicyFigures, ReadError,
};
use kvroute_policy::PolicyConfig;
use serde::Serialize;

use crate::cluster_args::{live_policies, several_live};
use crate::failure::Failure;
use crate::output::{Format, write_json, write_rows};

/// Make a gateway's decisions again from its decision log, and see what other policies would have decided.
///
/// First the log's own policies must reproduce every decision. A counterfactual changes where requests go and nothing
/// else: arrivals, eligibility, load readings and the time each request took stay as recorded, so it says how decisions
/// differ, not what the latencies would have been.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Decision log that `kvroute serve --decision-log` has written.
    #[arg(value_name = "RECEIPTS")]
    receipts: PathBuf,

    /// Policies to compare with: names with optional parameters, all or arena (as in `simulate`, without oracle) [default: none, the log is only checked].
    #[arg(long, value_name = "NAME", num_args = 1..)]
    policy: Vec<String>,

    /// Form of the results.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Report {
    log: Log,
    recorded: PolicyFigures,
    policies: Vec<PolicyRow>,
}

#[derive(Serialize)]
struct Log {
    file: PathBuf,
    #[serde(flatten)]
    summary: LogSummary,
    /// Whether the last line is cut off.
    is_cut: bool,
}

#[derive(Serialize)]
struct PolicyRow {
    policy: &'static str,
    policy_config: PolicyConfig,
    #[serde(flatten)]
    figures: PolicyFigures,
}

pub(crate) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    let policies = live_policies(&args.policy)?;
    let (comparison, is_cut) = read(args, &policies)?;
    let summary = comparison.summary();
    eprintln!("{} of {} decisions reproduced", summary.reproduced, summary.decisions);
    if summary.lost_events > 0 {
        eprintln!(
            "the log lost {} events (the disk was too slow); {} decisions after that, up to the gateway's next \
             start, are left out",
            summary.lost_events, summary.decisions_after_gaps
        );
    }
    if let Some(difference) = &summary.first_difference {
        return Err(Failure::Run(not_reproduced(difference)));
    }
    let figures = comparison.others();
    let policies = policies.into_iter().zip(figures).map(|(policy_config, figures)| PolicyRow {
        policy: policy_config.name(),
        policy_config,
        figures,
    });
    let report = Report {
        log: Log { file: args.receipts.clone(), summary: summary.clone(), is_cut },
        recorded: comparison.recorded(),
        policies: policies.collect(),
    };
    if args.format == Format::Json {
        return Ok(write_json(&report)?);
    }
    Ok(write_rows(args.format, &HEADER, &rows(&report, &args.policy))?)
}

/// The whole log, compared; and whether its last line is cut off.
fn read(args: &ReplayArgs, policies: &[PolicyConfig]) -> Result<(Comparison, bool), Failure> {
    let path = args.receipts.display();
    let file = File::open(&args.receipts).with_context(|| format!("cannot read {path}"));
    let mut comparison = Comparison::new(policies);
    for entry in LogReader::new(BufReader::new(file.map_err(Failure::Usage)?)) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(cut @ ReadError::Cut { .. }) => {
                eprintln!("{cut}; it is left out");
                return Ok((comparison, true));
            }
            Err(error) => {
                let error = anyhow::Error::new(error).context(format!("cannot replay {path}"));
                return Err(Failure::Usage(error));
            }
        };
        let added = comparison.add(&entry);
        let context = || format!("cannot replay line {} of {path}", entry.line);
        added.with_context(context).map_err(Failure::Usage)?;
    }
    if comparison.summary().starts == 0 {
        return Err(Failure::Usage(anyhow!("{path} is empty: no gateway has logged to it")));
    }
    Ok((comparison, false))
}

fn not_reproduced(difference: &Difference) -> anyhow::Error {
    let Difference { line, request, recorded, replayed } = difference;
    let words = |decision: &Option<Decision>| match decision {
        None => "no instance".to_owned(),
        Some(Decision { instance, reason, predicted_cached_tokens }) => format!(
            "instance {instance} ({}, {} tokens believed cached)",
            reason.name(),
            predicted_cached_tokens.map_or_else(|| "no".to_owned(), |tokens| tokens.0.to_string())
        ),
    };
    anyhow!(
        "the log's decisions are not reproduced; the first is line {line}, request {request}: recorded {}, now {}. Was \
         the log changed, or written by another version?",
        words(recorded),
        words(replayed)
    )
}

const HEADER: [&str; 8] = [
    "policy",
    "decisions",
    "differing",
    "differing_share",
    "predicted_cached_tokens",
    "predicted_hit_rate",
    "in_flight_imbalance",
    "per_instance",
];

/// `asked` are the policies as they were asked for, which tells those of one name apart.
fn rows(report: &Report, asked: &[String]) -> Vec<Vec<String>> {
    let names = asked.iter().flat_map(|name| match several_live(name) {
        Some(several) => several.iter().map(PolicyConfig::name).collect(),
        None => vec![name.as_str()],
    });
    let others = names.zip(&report.policies).map(|(name, policy)| (name, &policy.figures));
    std::iter::once(("recorded", &report.recorded))
        .chain(others)
        .map(|(name, figures)| row(name, figures))
        .collect()
}

fn row(name: &str, figures: &PolicyFigures) -> Vec<String> {
    let share = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.4}"));
    let per_instance: Vec<_> = figures
        .per_instance
        .iter()
        .map(|share| format!("{}={}", share.instance, share.decisions))
        .collect();
    vec![
        name.to_owned(),
        figures.decisions.to_string(),
        figures.differing.to_string(),
        share(figures.differing_share),
        figures.predicted_cached_tokens.map_or_else(String::new, |tokens| tokens.to_string()),
        share(figures.predicted_hit_rate),
        share(figures.in_flight_imbalance),
        per_instance.join(" "),
    ]
}
