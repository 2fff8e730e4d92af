//! `kvroute calibrate`.

mod figure;
mod layers;
mod measure;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::anyhow;
use clap::Args;
use kvroute_load::{InstanceFacts, instance_facts};
use kvroute_profile::{
    Calibration, Effort, EngineDefaults, Kind, LatencyProfile, Provenance, probes,
};

use crate::failure::Failure;
use crate::live::target;
use crate::output::{Format, write_file, write_rows};

/// Time within which an instance says what it is.
const FACTS_TIMEOUT: Duration = Duration::from_secs(10);

/// Measure an idle vLLM and write its latency profile.
///
/// Sends prompts of token ids that nobody has seen (so that cold is cold), some again in part or whole, and batches that
/// decode; fits step times and the front end's overhead; writes them with the source of each number. Nothing else may use
/// the instance meanwhile.
#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    #[command(flatten)]
    source: Source,

    /// Profile to write, in TOML.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Write what was measured, beside the model, here, as SVG.
    #[arg(long, value_name = "FILE", conflicts_with = "from_layer_profile")]
    figure: Option<PathBuf>,

    /// Name of the profile [default: that of the file].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Measure the corners only: some seconds, for a look.
    #[arg(long, conflicts_with = "from_layer_profile")]
    quick: bool,

    /// Model name to ask for [default: the instance's first].
    #[arg(long, value_name = "NAME", conflicts_with = "from_layer_profile")]
    model: Option<String>,

    /// Prompts are token ids below this; at most the model's vocabulary.
    #[arg(long, value_name = "N", default_value = "8000", value_parser = clap::value_parser!(u32).range(1_000..))]
    vocabulary: u32,

    #[command(flatten)]
    sizes: Sizes,

    /// Transformer layers of the model (--from-layer-profile).
    #[arg(long, value_name = "N", requires = "from_layer_profile")]
    layers: Option<NonZeroU32>,

    /// Layer norms in each of them (--from-layer-profile).
    #[arg(long, value_name = "N", default_value = "2", requires = "from_layer_profile")]
    layernorms_per_layer: u32,
}

/// What the profile is made of.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// Base URL of an idle instance, http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    instance: Option<String>,

    /// Directory with kernel times as the profiler of `LLMServingSim` writes them: `profile_dense.csv`,
    /// `profile_attention.csv`, `profile_per_sequence.csv`; sizes from `meta.json` and step overhead from `timeseries.csv`
    /// if they are there.
    #[arg(long, value_name = "DIR", requires = "layers")]
    from_layer_profile: Option<PathBuf>,
}

/// Sizes of the engine that is measured.
#[derive(Clone, Copy, Debug, Default, Args)]
struct Sizes {
    /// Tokens per KV block [default: what the instance tells].
    #[arg(long, value_name = "B", help_heading = "Engine", value_parser = clap::value_parser!(u32).range(1..))]
    block_size: Option<u32>,

    /// KV blocks, vLLM's `num_gpu_blocks` [default: what the instance tells].
    #[arg(long, value_name = "N", help_heading = "Engine", value_parser = clap::value_parser!(u32).range(2..))]
    kv_blocks: Option<u32>,

    /// Longest sequence, tokens [default: what the instance tells].
    #[arg(long, value_name = "N", help_heading = "Engine")]
    max_model_len: Option<u32>,

    /// Most sequences that run at once; no instance tells it.
    #[arg(long, value_name = "N", help_heading = "Engine")]
    max_num_seqs: Option<u32>,

    /// Token budget of one step; no instance tells it.
    #[arg(long, value_name = "N", help_heading = "Engine")]
    max_num_batched_tokens: Option<u32>,
}

impl Sizes {
    /// These, and what is told where these are silent.
    fn or(self, told: Self) -> Self {
        Self {
            block_size: self.block_size.or(told.block_size),
            kv_blocks: self.kv_blocks.or(told.kv_blocks),
            max_model_len: self.max_model_len.or(told.max_model_len),
            max_num_seqs: self.max_num_seqs.or(told.max_num_seqs),
            max_num_batched_tokens: self.max_num_batched_tokens.or(told.max_num_batched_tokens),
        }
    }

    /// All of them, or an error that names the flags of those that nobody told.
    fn complete(self, whose: &str) -> Result<EngineDefaults, Failure> {
        let all = [
            ("--block-size", self.block_size),
            ("--kv-blocks", self.kv_blocks),
            ("--max-model-len", self.max_model_len),
            ("--max-num-seqs", self.max_num_seqs),
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
        ];
        let missing: Vec<&str> =
            all.iter().filter(|(_, size)| size.is_none()).map(|(flag, _)| *flag).collect();
        let [
            Some(block_size),
            Some(kv_blocks),
            Some(max_model_len),
            Some(max_num_seqs),
            Some(max_num_batched_tokens),
        ] = all.map(|(_, size)| size)
        else {
            return Err(Failure::Usage(anyhow!(
                "{whose} does not tell all sizes of its engine; give {} (vLLM's log shows them when it starts)",
                missing.join(", ")
            )));
        };
        Ok(EngineDefaults {
            block_size,
            kv_blocks,
            max_num_batched_tokens,
            max_num_seqs,
            max_model_len,
            instances_per_device: 1,
        })
    }
}

impl From<&InstanceFacts> for Sizes {
    fn from(facts: &InstanceFacts) -> Self {
        Self {
            block_size: facts.block_size,
            kv_blocks: facts.kv_blocks,
            max_model_len: facts.max_model_len,
            ..Self::default()
        }
    }
}

pub(crate) fn run(args: &CalibrateArgs) -> Result<(), Failure> {
    let started = SystemTime::now();
    let profile = match (&args.source.instance, &args.source.from_layer_profile) {
        (Some(url), _) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(measured_profile(args, url, started))?
        }
        (None, Some(folder)) => layers::profile(args, folder)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    // Whatever the flags said, what is written can be read again.
    profile.validate().map_err(Failure::usage)?;
    write_file(&args.out, profile.to_toml().as_bytes())?;
    eprintln!("wrote {}", args.out.display());
    Ok(())
}

/// The profile of a live instance.
async fn measured_profile(
    args: &CalibrateArgs,
    url: &str,
    started: SystemTime,
) -> Result<LatencyProfile, Failure> {
    let target = target(url)?;
    let facts = instance_facts(&target, FACTS_TIMEOUT).await.map_err(Failure::usage)?;
    if let Some(busy) = facts.busy.filter(|busy| *busy > 0.0) {
        return Err(Failure::Usage(anyhow!(
            "{url} has {busy} requests running or waiting; calibrate an idle instance"
        )));
    }
    if facts.enable_prefix_caching == Some(false) {
        return Err(Failure::Usage(anyhow!(
            "{url} runs without prefix caching, so nothing can be told of cached prompts; start it with \
             --enable-prefix-caching"
        )));
    }
    let engine = args.sizes.or(Sizes::from(&facts)).complete(url)?;
    let effort = if args.quick { Effort::Quick } else { Effort::Full };
    let probes = probes(&engine, effort);
    let driver = measure::Driver::new(target, args.model.clone(), args.vocabulary, started);
    let began = Instant::now();
    let measured = driver.measure(&probes).await?;
    let took = began.elapsed();
    let budget = engine.max_num_batched_tokens;
    let calibration = Calibration::fit(&measured, engine.block_size, budget)
        .map_err(|e| Failure::Run(e.into()))?;
    print_residuals(&calibration)?;
    eprintln!("{} measurements in {:.1} s", measured.len(), took.as_secs_f64());
    if let Some(path) = &args.figure {
        let title = format!("Calibration of {}", name(args));
        write_file(path, figure::svg(&title, &calibration, &engine).as_bytes())?;
    }
    let provenance = provenance(args, url, &facts, started, &measured_with(&driver, took));
    Ok(calibration.profile(engine, &provenance))
}

fn measured_with(driver: &measure::Driver, took: Duration) -> String {
    format!("salt {:#x}, {:.0} s of measuring", driver.salt(), took.as_secs_f64())
}

fn provenance(
    args: &CalibrateArgs,
    url: &str,
    facts: &InstanceFacts,
    started: SystemTime,
    how: &str,
) -> Provenance {
    let told = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    let (version, model) = (told(&facts.version), told(&facts.model));
    let when = humantime::format_rfc3339_seconds(started);
    let Sizes { block_size, kv_blocks, max_model_len, max_num_seqs, max_num_batched_tokens } =
        args.sizes;
    let flags = [
        ("block_size", block_size),
        ("kv_blocks", kv_blocks),
        ("max_model_len", max_model_len),
        ("max_num_seqs", max_num_seqs),
        ("max_num_batched_tokens", max_num_batched_tokens),
    ];
    let given: Vec<&str> =
        flags.iter().filter(|(_, size)| size.is_some()).map(|(name, _)| *name).collect();
    let given = if given.is_empty() { "none".to_owned() } else { given.join(", ") };
    Provenance {
        name: name(args),
        description: format!("{model} served by vLLM {version}, measured by kvroute calibrate."),
        origin: format!(
            "vLLM {version} with model {model} at {url}, {when}, kvroute {} calibrate ({how})",
            env!("CARGO_PKG_VERSION")
        ),
        engine: format!(
            "Told by the instance (/metrics, /v1/models), but for what whoever measured it gave: {given}."
        ),
    }
}

/// The profile's name.
fn name(args: &CalibrateArgs) -> String {
    let of_file = || {
        let stem = Path::new(&args.out).file_stem();
        stem.map_or_else(|| "calibrated".into(), |stem| stem.to_string_lossy().into_owned())
    };
    args.name.clone().unwrap_or_else(of_file)
}

/// How far the model is off, by kind of measurement.
fn print_residuals(calibration: &Calibration) -> Result<(), Failure> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let rows: Vec<Vec<String>> = Kind::ALL
        .into_iter()
        .filter_map(|kind| {
            let residuals = calibration.residuals(kind)?;
            Some(vec![
                kind.name().to_owned(),
                residuals.count.to_string(),
                percent(residuals.median),
                percent(residuals.max),
                format!("{:+.1} %", 100.0 * residuals.bias),
            ])
        })
        .collect();
    let header = ["steps of", "points", "error: median", "most", "mean"];
    write_rows(Format::Table, &header, &rows)?;
    for left_out in &calibration.left_out {
        eprintln!("left out as noise: {left_out:?}");
    }
    Ok(())
}
