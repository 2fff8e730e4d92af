//! A profile from kernel times instead of a live instance.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use kvroute_profile::{
    EngineDefaults, FitDomain, LatencyProfile, LayerProfile, ModelShape, Provenance,
    fit_layer_profile, layered_profile, read_engine_log, step_overhead,
};
use serde::Deserialize;

use super::{CalibrateArgs, Sizes, name};
use crate::failure::Failure;

/// The parts of a bench run's `meta.json` that say how large the engine was.
#[derive(Deserialize)]
struct Meta {
    vllm_version: Option<String>,
    model: Option<String>,
    engine_kwargs: Option<EngineArgs>,
    kv_cache: Option<KvCache>,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "they are vLLM's")]
struct EngineArgs {
    max_num_seqs: Option<u32>,
    max_num_batched_tokens: Option<u32>,
    max_model_len: Option<u32>,
}

#[derive(Deserialize)]
struct KvCache {
    num_gpu_blocks: Option<u32>,
    block_size: Option<u32>,
}

/// Fits the kernel times in a directory.
pub(super) fn profile(args: &CalibrateArgs, folder: &Path) -> Result<LatencyProfile, Failure> {
    let meta = read_meta(&folder.join("meta.json"))?;
    let told = meta.as_ref().map(Sizes::from).unwrap_or_default();
    let engine = args.sizes.or(told).complete(&folder.join("meta.json").display().to_string())?;
    let layers = args.layers.ok_or_else(|| Failure::Usage(anyhow!("give --layers")))?;
    let shape =
        ModelShape { layers: layers.get(), layernorms_per_layer: args.layernorms_per_layer };
    let kv_tokens = u64::from(engine.kv_blocks) * u64::from(engine.block_size);
    let domain =
        FitDomain { max_kv_tokens: kv_tokens, max_batched_tokens: engine.max_num_batched_tokens };
    let fitted = || -> anyhow::Result<LatencyProfile> {
        let profile = LayerProfile::from_csv(
            open(folder, "profile_dense.csv")?,
            open(folder, "profile_attention.csv")?,
            open(folder, "profile_per_sequence.csv")?,
        )?;
        let fit = fit_layer_profile(&profile, shape, domain)?;
        let log = folder.join("timeseries.csv");
        let overhead = if log.exists() {
            let seconds = read_engine_log(File::open(&log)?)
                .with_context(|| format!("cannot read {}", log.display()))?;
            let kv_tokens = u32::try_from(kv_tokens).unwrap_or(u32::MAX);
            Some(step_overhead(&seconds, &fit.step, kv_tokens, engine.block_size))
        } else {
            eprintln!("no {}: the host's share of a step is left at 0", log.display());
            None
        };
        Ok(layered_profile(
            &fit,
            overhead.as_ref(),
            engine,
            &provenance(args, folder, meta.as_ref(), &engine),
        ))
    };
    fitted()
        .with_context(|| {
            format!("cannot make a profile of the kernel times in {}", folder.display())
        })
        .map_err(Failure::Usage)
}

fn provenance(
    args: &CalibrateArgs,
    folder: &Path,
    meta: Option<&Meta>,
    engine: &EngineDefaults,
) -> Provenance {
    let told = |of: fn(&Meta) -> &Option<String>| {
        meta.and_then(|meta| of(meta).clone()).unwrap_or_else(|| "unknown".to_owned())
    };
    let (version, model) = (told(|meta| &meta.vllm_version), told(|meta| &meta.model));
    let data =
        folder.file_name().map_or_else(|| "kernel times".into(), |name| name.to_string_lossy());
    Provenance {
        name: name(args),
        description: format!("{model} under vLLM {version}: a fit to kernel times ({data})."),
        origin: format!(
            "kernel times in {data} (vLLM {version}, model {model}), fitted by kvroute {} calibrate",
            env!("CARGO_PKG_VERSION")
        ),
        engine: format!(
            "From meta.json beside the kernel times or given by whoever made the fit: {} blocks of {} tokens.",
            engine.kv_blocks, engine.block_size
        ),
    }
}

impl From<&Meta> for Sizes {
    fn from(meta: &Meta) -> Self {
        let (args, cache) = (meta.engine_kwargs.as_ref(), meta.kv_cache.as_ref());
        Self {
            block_size: cache.and_then(|cache| cache.block_size),
            kv_blocks: cache.and_then(|cache| cache.num_gpu_blocks),
            max_model_len: args.and_then(|args| args.max_model_len),
            max_num_seqs: args.and_then(|args| args.max_num_seqs),
            max_num_batched_tokens: args.and_then(|args| args.max_num_batched_tokens),
        }
    }
}

/// `None` if the file is not there.
fn read_meta(path: &PathBuf) -> Result<Option<Meta>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    let read = || -> anyhow::Result<Meta> { Ok(serde_json::from_str(&fs::read_to_string(path)?)?) };
    read()
        .map(Some)
        .with_context(|| format!("cannot read {}", path.display()))
        .map_err(Failure::Usage)
}

fn open(folder: &Path, name: &str) -> anyhow::Result<File> {
    let path = folder.join(name);
    File::open(&path).with_context(|| format!("cannot read {}", path.display()))
}
