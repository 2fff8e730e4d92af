//! `kvroute replay`.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use kvroute_decision_log::{
    Comparison, Decision, Difference, LogReader, LogSummary, PolicyFigures, PolicyTtft, ReadError,
    TtftEstimates, TtftModel,
};
use kvroute_lab::Summary;
use kvroute_policy::PolicyConfig;
use serde::Serialize;

use crate::cluster_args::{live_policies, several_live};
use crate::failure::Failure;
use crate::output::{Format, write_json, write_rows};

/// Make a gateway's decisions again from its decision log, and see what other policies would have decided and led to.
///
/// First the log's own policies must reproduce every decision. A counterfactual changes where requests go and nothing
/// else: arrivals, eligibility, load readings and the time each request took stay as recorded.
///
/// Its times to first token (TTFT) are estimated: a formula for what an instance has to do before a first token is fitted to
/// the recorded requests, judged by half of them that it was not fitted to, and applied to each policy's own queues. Compare
/// estimates with the estimate of the recorded policy, not with what was observed. They leave out decodes that slow down,
/// full KV caches and batches (so they say too little near saturation), differences between instances and chance, so
/// that p95 may be low; policies that are little apart may come in the wrong order. Where a log says too little or the
/// formula does not hold, there is no estimate, and stderr says why. `kvroute simulate` answers what this cannot.
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

/// Milliseconds in a second.
const MS_PER_S: f64 = 1e3;

/// What `--format json` prints.
#[derive(Serialize)]
struct Report {
    log: Log,
    /// `None` if the log gives no estimates.
    ttft: Option<Ttft>,
    recorded: Figures,
    policies: Vec<PolicyRow>,
}

/// What estimates are made from, and how good they are.
#[derive(Serialize)]
struct Ttft {
    /// Requests whose first token the log shows.
    requests: usize,
    /// Their TTFT.
    observed_ms: Spread,
    /// The same, each predicted by the half of the log that it is not in.
    held_out_ms: Spread,
    /// Share of the variance that these predictions explain.
    explained_share: f64,
    model: TtftModel,
}

#[derive(Serialize)]
struct Spread {
    mean: Option<f64>,
    p50: Option<f64>,
    p95: Option<f64>,
}

/// What one policy makes of the log, and is estimated to lead to.
#[derive(Serialize)]
struct Figures {
    #[serde(flatten)]
    decided: PolicyFigures,
    /// `None` without an estimate.
    estimated_ttft_ms: Option<Spread>,
    /// Share of requests estimated outside of what was recorded; `None` without an estimate.
    extrapolated_share: Option<f64>,
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
    figures: Figures,
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
    let estimates = comparison.ttft().inspect_err(|error| eprintln!("no TTFT estimates: {error}"));
    let estimates = estimates.ok();
    let names = names(&args.policy);
    if let Some(estimates) = &estimates {
        tell(estimates, &names);
    }
    let decided = comparison.others().into_iter().enumerate();
    let figures = decided.map(|(number, decided)| {
        let estimate = estimates.as_ref().and_then(|it| it.others[number].as_ref().ok());
        Figures::new(decided, estimate)
    });
    let policies = policies.into_iter().zip(figures).map(|(policy_config, figures)| PolicyRow {
        policy: policy_config.name(),
        policy_config,
        figures,
    });
    let report = Report {
        log: Log { file: args.receipts.clone(), summary: summary.clone(), is_cut },
        ttft: estimates.as_ref().map(Ttft::from),
        recorded: Figures::new(comparison.recorded(), estimates.as_ref().map(|it| &it.recorded)),
        policies: policies.collect(),
    };
    if args.format == Format::Json {
        return Ok(write_json(&report)?);
    }
    Ok(write_rows(args.format, &HEADER, &rows(&report, &names))?)
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

/// Says what the estimates are worth.
fn tell(estimates: &TtftEstimates, names: &[&str]) {
    let TtftEstimates { model, observed_s, held_out_s, explained_share, recorded: _, others } =
        estimates;
    let words = |Spread { mean, p50, p95 }| {
        let ms = |figure: Option<f64>| figure.map_or_else(String::new, |ms| format!("{ms:.1}"));
        format!("mean {}, p50 {}, p95 {}", ms(mean), ms(p50), ms(p95))
    };
    eprintln!(
        "TTFT of {} requests, ms: observed {}; as the half of the log predicts them that they are not in: {}, {:.2} of the \
         variance explained",
        observed_s.len(),
        words(Spread::of_s(observed_s)),
        words(Spread::of_s(held_out_s)),
        explained_share
    );
    let TtftModel { base_s, busy_s, own_s_per_token, queued_s_per_token, beside_s_per_request } =
        model;
    eprintln!(
        "estimated TTFT, ms: {:.2} + {:.2} at a busy instance + {:.2} per 1000 uncached tokens + {:.2} per 1000 such tokens \
         queued there + {:.3} per request in flight there",
        base_s * MS_PER_S,
        busy_s * MS_PER_S,
        own_s_per_token * 1e3 * MS_PER_S,
        queued_s_per_token * 1e3 * MS_PER_S,
        beside_s_per_request * MS_PER_S
    );
    for (name, estimate) in names.iter().zip(others) {
        if let Err(error) = estimate {
            eprintln!("no TTFT estimate for {name}: {error}");
        }
    }
}

impl From<&TtftEstimates> for Ttft {
    fn from(estimates: &TtftEstimates) -> Self {
        Self {
            requests: estimates.observed_s.len(),
            observed_ms: Spread::of_s(&estimates.observed_s),
            held_out_ms: Spread::of_s(&estimates.held_out_s),
            explained_share: estimates.explained_share,
            model: estimates.model,
        }
    }
}

impl Spread {
    /// Of times in s.
    fn of_s(times_s: &[f64]) -> Self {
        let summary = Summary::of(times_s.iter().map(|s| s * MS_PER_S).collect());
        Self { mean: summary.mean, p50: summary.p50, p95: summary.p95 }
    }
}

impl Figures {
    fn new(decided: PolicyFigures, estimate: Option<&PolicyTtft>) -> Self {
        Self {
            decided,
            estimated_ttft_ms: estimate.map(|it| Spread::of_s(&it.estimated_s)),
            extrapolated_share: estimate.map(|it| it.extrapolated_share),
        }
    }
}

/// The policies as they were asked for, which tells those of one name apart.
fn names(asked: &[String]) -> Vec<&str> {
    let names = asked.iter().flat_map(|name| match several_live(name) {
        Some(several) => several.iter().map(PolicyConfig::name).collect(),
        None => vec![name.as_str()],
    });
    names.collect()
}

const HEADER: [&str; 15] = [
    "policy",
    "decisions",
    "differing",
    "differing_share",
    "predicted_cached_tokens",
    "predicted_hit_rate",
    "in_flight_imbalance",
    "ttft_mean_ms",
    "ttft_p50_ms",
    "ttft_p95_ms",
    "estimated_ttft_mean_ms",
    "estimated_ttft_p50_ms",
    "estimated_ttft_p95_ms",
    "extrapolated_share",
    "per_instance",
];

fn rows(report: &Report, names: &[&str]) -> Vec<Vec<String>> {
    let observed = report.ttft.as_ref().map(|ttft| &ttft.observed_ms);
    let recorded = row("recorded", observed, &report.recorded);
    // What other policies' requests took, nobody has seen.
    let others = names.iter().zip(&report.policies);
    let others = others.map(|(name, policy)| row(name, None, &policy.figures));
    std::iter::once(recorded).chain(others).collect()
}

fn row(name: &str, observed: Option<&Spread>, figures: &Figures) -> Vec<String> {
    let Figures { decided, estimated_ttft_ms, extrapolated_share } = figures;
    let share = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.4}"));
    let spread = |spread: Option<&Spread>| {
        let figures = spread.map_or([None; 3], |it| [it.mean, it.p50, it.p95]);
        figures.map(|ms| ms.map_or_else(String::new, |ms| format!("{ms:.1}")))
    };
    let per_instance: Vec<_> = decided
        .per_instance
        .iter()
        .map(|share| format!("{}={}", share.instance, share.decisions))
        .collect();
    let mut row = vec![
        name.to_owned(),
        decided.decisions.to_string(),
        decided.differing.to_string(),
        share(decided.differing_share),
        decided.predicted_cached_tokens.map_or_else(String::new, |tokens| tokens.to_string()),
        share(decided.predicted_hit_rate),
        share(decided.in_flight_imbalance),
    ];
    row.extend(spread(observed));
    row.extend(spread(estimated_ttft_ms.as_ref()));
    row.extend([share(*extrapolated_share), per_instance.join(" ")]);
    row
}
