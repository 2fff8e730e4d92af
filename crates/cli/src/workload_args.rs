//! Flags that choose a workload.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use kvroute_lab::InputFile;
use kvroute_workload::traces::{TraceFormat, TraceOptions};
use kvroute_workload::{ArrivalProcess, GapShape, Workload, WorkloadSpec};
use serde::Serialize;

use crate::failure::Failure;
use crate::values;

/// Requests drawn from a synthetic workload unless `--requests` says otherwise.
const SYNTHETIC_REQUESTS: u32 = 2_000;

/// Where requests come from.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkloadArgs {
    #[command(flatten)]
    source: Source,

    /// Requests per second, over all turns of all sessions. A trace's own times are replaced by drawn ones.
    #[arg(
        long,
        value_name = "X",
        conflicts_with = "rate_scale",
        allow_negative_numbers = true,
        help_heading = "Workload"
    )]
    rate: Option<f64>,

    /// Play a trace X times as fast.
    #[arg(long, value_name = "X", help_heading = "Workload")]
    rate_scale: Option<f64>,

    /// How arrivals are drawn with --rate.
    #[arg(long, value_enum, default_value_t, requires = "rate", help_heading = "Workload")]
    arrivals: Arrivals,

    /// Coefficient of variation of the gaps between arrivals (gamma, weibull).
    #[arg(
        long,
        value_name = "X",
        requires = "rate",
        default_value_t = 2.0,
        help_heading = "Workload"
    )]
    arrival_cv: f64,

    /// Use the first N requests of a trace, or draw N [default: a whole trace, 2000 drawn].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Workload")]
    requests: Option<u32>,

    #[command(flatten)]
    conversations: ConversationArgs,
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// Synthetic workload: chat, rag, mixed, uniform, or a TOML file of that form. Another file is a trace, by default of
    /// requests with token ids (llmservingsim).
    #[arg(long, value_name = "SPEC", help_heading = "Workload")]
    workload: Option<String>,

    /// Trace file, plain, .gz or .zst; needs --trace-format.
    #[arg(long, value_name = "FILE", requires = "trace_format", help_heading = "Workload")]
    trace: Option<PathBuf>,
}

/// What traces of conversations without arrivals leave open.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConversationArgs {
    /// Form of the trace: mooncake, bailian, azure, burstgpt, sharegpt, sharegpt-lengths, llmservingsim, agentic.
    #[arg(long, value_name = "FORMAT", help_heading = "Workload")]
    trace_format: Option<TraceFormat>,

    /// Session starts per second of a trace that has none (sharegpt, sharegpt-lengths, agentic) [default: 1].
    #[arg(long, value_name = "X", help_heading = "Workload")]
    session_rate: Option<f64>,

    /// Longest think time of a recorded session (agentic).
    #[arg(long, value_name = "D", value_parser = values::duration, help_heading = "Workload")]
    max_think_time: Option<Duration>,

    /// Leave out sessions with a longer prompt (tokens).
    #[arg(long, value_name = "N", help_heading = "Workload")]
    max_prompt_tokens: Option<u32>,
}

/// Shape of the arrival process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Arrivals {
    /// Independent arrivals.
    #[default]
    Poisson,
    /// Gamma gaps: bursts for a coefficient of variation above 1.
    Gamma,
    /// Weibull gaps.
    Weibull,
}

/// A workload as asked for, for the manifest.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct WorkloadConfig {
    trace: Option<String>,
    trace_format: Option<&'static str>,
    spec: Option<WorkloadSpec>,
    requests: Option<u32>,
    rate: Option<f64>,
    rate_scale: Option<f64>,
    arrivals: String,
    arrival_cv: f64,
    session_rate: f64,
    max_think_time_s: Option<f64>,
    max_prompt_tokens: Option<u32>,
}

/// A checked source of workloads, one per seed.
pub(crate) enum WorkloadSource<'a> {
    Synthetic { args: &'a WorkloadArgs, spec: Box<WorkloadSpec>, name: String },
    Trace { args: &'a WorkloadArgs, path: &'a Path, format: TraceFormat },
}

impl WorkloadArgs {
    /// Checks the flags and reads the specification; a trace is read by [`WorkloadSource::load`].
    pub(crate) fn source(&self) -> Result<WorkloadSource<'_>, Failure> {
        if let Some(path) = &self.source.trace {
            let format = self.conversations.trace_format.expect("--trace requires --trace-format");
            return Ok(WorkloadSource::Trace { args: self, path, format });
        }
        let name = self.source.workload.as_deref().expect("one source is required");
        if is_trace(name) {
            let format = self.conversations.trace_format.unwrap_or(TraceFormat::LlmServingSim);
            return Ok(WorkloadSource::Trace { args: self, path: Path::new(name), format });
        }
        if self.conversations.trace_format.is_some() {
            return Err(Failure::Usage(anyhow!(
                "--trace-format goes with --trace, or a --workload that is a file of requests"
            )));
        }
        let mut spec = read_spec(name)?;
        if self.rate_scale.is_some() {
            return Err(Failure::Usage(anyhow!(
                "--rate-scale is for traces; use --rate X requests/s"
            )));
        }
        if let (Some(rate), Arrivals::Poisson) = (self.rate, self.arrivals) {
            spec = spec.with_rate(rate);
        }
        Ok(WorkloadSource::Synthetic { args: self, spec: Box::new(spec), name: spec_name(name) })
    }
}

impl ConversationArgs {
    /// The trace format, if one was named.
    pub(crate) fn format(&self) -> Option<TraceFormat> {
        self.trace_format
    }

    /// Options for the reader of conversation traces.
    pub(crate) fn options(&self, seed: u64) -> TraceOptions {
        let defaults = TraceOptions::default();
        TraceOptions {
            sessions_per_s: self.session_rate.unwrap_or(defaults.sessions_per_s),
            think_time_s_max: self.max_think_time.map(|time| time.as_secs_f64()),
            prompt_tokens_max: self.max_prompt_tokens,
            seed,
            ..defaults
        }
    }
}

impl WorkloadSource<'_> {
    /// The workload under a seed.
    pub(crate) fn load(&self, seed: u64) -> Result<Workload, Failure> {
        match self {
            Self::Synthetic { args, spec, name } => {
                let requests = args.requests.unwrap_or(SYNTHETIC_REQUESTS);
                let workload = spec.generate(seed, requests).map_err(Failure::usage)?;
                let workload = workload.with_name(name.as_str());
                match (args.rate, args.arrivals) {
                    (Some(rate), Arrivals::Gamma | Arrivals::Weibull) => {
                        args.draw(workload, rate, seed)
                    }
                    _ => Ok(workload),
                }
            }
            Self::Trace { args, path, format } => {
                let workload = read_trace(path, *format, &args.conversations.options(seed))?;
                let workload = match args.requests {
                    Some(requests) => workload.take(requests),
                    None => workload,
                };
                match (args.rate, args.rate_scale) {
                    (Some(rate), _) => args.draw(workload, rate, seed),
                    (None, Some(scale)) => workload.with_rate_scale(scale).map_err(Failure::usage),
                    (None, None) => Ok(workload),
                }
            }
        }
    }

    /// Whether another seed gives another workload.
    pub(crate) fn depends_on_seed(&self) -> bool {
        match self {
            Self::Synthetic { .. } => true,
            Self::Trace { args, format, .. } => args.rate.is_some() || !format.has_arrivals(),
        }
    }

    /// What was asked for, for the manifest.
    pub(crate) fn config(&self) -> WorkloadConfig {
        let (args, trace, format, spec) = match self {
            Self::Synthetic { args, spec, .. } => (args, None, None, Some(spec.as_ref().clone())),
            Self::Trace { args, path, format } => {
                (args, Some(path.display().to_string()), Some(format.name()), None)
            }
        };
        let options = args.conversations.options(0);
        WorkloadConfig {
            trace,
            trace_format: format,
            spec,
            requests: args.requests,
            rate: args.rate,
            rate_scale: args.rate_scale,
            arrivals: format!("{:?}", args.arrivals).to_lowercase(),
            arrival_cv: args.arrival_cv,
            session_rate: options.sessions_per_s,
            max_think_time_s: options.think_time_s_max,
            max_prompt_tokens: options.prompt_tokens_max,
        }
    }

    /// Files that the workload is made of.
    pub(crate) fn inputs(&self) -> Result<Vec<InputFile>, Failure> {
        match self {
            Self::Synthetic { .. } => Ok(Vec::new()),
            Self::Trace { path, .. } => {
                InputFile::read(path).map(|input| vec![input]).map_err(Failure::usage)
            }
        }
    }
}

impl WorkloadArgs {
    fn draw(&self, workload: Workload, rate_per_s: f64, seed: u64) -> Result<Workload, Failure> {
        let shape = match self.arrivals {
            Arrivals::Poisson => GapShape::Poisson {},
            Arrivals::Gamma => GapShape::Gamma { cv: self.arrival_cv },
            Arrivals::Weibull => GapShape::Weibull { cv: self.arrival_cv },
        };
        workload.with_arrivals(ArrivalProcess { rate_per_s, shape }, seed).map_err(Failure::usage)
    }
}

/// Reads a whole trace file.
pub(crate) fn read_trace(
    path: &Path,
    format: TraceFormat,
    options: &TraceOptions,
) -> Result<Workload, Failure> {
    let read = || -> anyhow::Result<Workload> {
        let file = File::open(path)?;
        let workload = format.read(BufReader::new(file), options)?;
        let name =
            path.file_name().map_or_else(|| format.name().into(), |name| name.to_string_lossy());
        Ok(workload.with_name(format!("{}:{name}", format.name())))
    };
    read()
        .with_context(|| format!("cannot read the trace {}", path.display()))
        .map_err(Failure::Usage)
}

/// Whether a workload's name means a file of requests, and not a specification. A file that happens to be called like a
/// built-in workload does not stand in for it.
fn is_trace(name: &str) -> bool {
    let path = Path::new(name);
    let has = |extensions: &[&str]| {
        path.extension().is_some_and(|is| extensions.iter().any(|known| is == *known))
    };
    has(&["jsonl", "gz", "zst"])
        || (path.is_file() && !has(&["toml"]) && WorkloadSpec::builtin(name).is_err())
}

fn read_spec(name: &str) -> Result<WorkloadSpec, Failure> {
    if !values::is_file(name) {
        return WorkloadSpec::builtin(name)
            .with_context(|| {
                format!("--workload {name}: neither built in nor a path to a .toml file")
            })
            .map_err(Failure::Usage);
    }
    let read = || -> anyhow::Result<WorkloadSpec> {
        Ok(WorkloadSpec::from_toml(&fs::read_to_string(name)?)?)
    };
    read().with_context(|| format!("cannot read the workload {name}")).map_err(Failure::Usage)
}

fn spec_name(name: &str) -> String {
    Path::new(name)
        .file_stem()
        .map_or_else(|| name.into(), |stem| stem.to_string_lossy().into_owned())
}
