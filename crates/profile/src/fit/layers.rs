//! A step model from kernel times of single layers, in the CSV form of `LLMServingSim`'s profiler.
//!
//! Three files: *dense* (`layer,tokens,time_us`), *attention*
//! (`prefill_chunk,kv_prefill,n_decode,kv_decode,time_us`) and *per sequence*
//! (`layer,sequences,time_us`). The fit goes in three stages, each over its own kernels, so that
//! an error in one does not leak into the others: sampling, linear layers, attention.

use std::collections::BTreeMap;
use std::io;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Coefficient, FitError, Observation, fit_observations};
use crate::load::StepLoad;
use crate::step::StepModel;

/// Layers that run once a step, not once per transformer layer.
const ONCE_PER_STEP: [&str; 2] = ["embedding", "final_layernorm"];
/// Layers that run in each transformer layer. `layernorm` runs [`ModelShape::layernorms_per_layer`] times.
const PER_LAYER: [&str; 7] =
    ["act_fn", "down_proj", "gate_up_proj", "layernorm", "o_proj", "qkv_proj", "rotary_emb"];

/// Kernel times of one model on one device.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerProfile {
    /// Layer name, then tokens in the step, to seconds of one run of the layer.
    pub dense: BTreeMap<String, BTreeMap<u32, f64>>,
    /// Attention of one transformer layer.
    pub attention: Vec<AttentionTime>,
    /// Sequences in the step to seconds of `lm_head` plus sampler, whole model.
    pub per_sequence: BTreeMap<u32, f64>,
}

/// Attention time of one transformer layer for one batch: at most one prefill chunk, and decodes
/// of equal length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionTime {
    /// Tokens of the prefill chunk; 0 for none.
    pub prefill_chunk: u32,
    /// Tokens of its sequence computed before.
    pub kv_prefill: u32,
    /// Decoding sequences.
    pub n_decode: u32,
    /// Context of each, tokens.
    pub kv_decode: u32,
    /// Kernel time of one layer, s.
    pub seconds: f64,
}

/// How often the profiled layers occur in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Transformer layers (32 in Llama-3.1-8B).
    pub layers: u32,
    /// Layer norms per transformer layer (2 in Llama).
    pub layernorms_per_layer: u32,
}

/// The batches that the engine can form; the rest of a profile is left out of the fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FitDomain {
    /// KV tokens that fit on the device.
    pub max_kv_tokens: u64,
    /// Tokens that one step schedules at most.
    pub max_batched_tokens: u32,
}

/// A fitted model and the step times it was fitted to.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerFit {
    /// Kernel times only: [`StepModel::overhead_s`] is 0.
    pub step: StepModel,
    /// Whole steps of linear layers and sampling without attention, one per profiled token count.
    pub linear: Vec<Observation>,
    /// Whole steps put together from the measured kernels, one per profiled attention batch.
    pub steps: Vec<Observation>,
}

/// Why a layer profile cannot be read or fitted.
#[derive(Debug, thiserror::Error)]
pub enum LayerProfileError {
    /// A file that is not the expected CSV.
    #[error("cannot read the {file} profile; its columns are {columns}")]
    Csv {
        /// Which of the three files.
        file: &'static str,
        /// The columns it should have.
        columns: &'static str,
        /// What the CSV reader said.
        source: csv::Error,
    },
    /// A dense layer that nothing is known about.
    #[error(
        "unknown layer `{layer}` in the dense profile: say in `fit/layers.rs` how often it runs; \
         known: {}",
        .known.join(", ")
    )]
    UnknownLayer {
        /// The name found.
        layer: String,
        /// The names that the fit understands.
        known: Vec<&'static str>,
    },
    /// A layer without times, or not at every token count.
    #[error("the {file} profile has no time of `{layer}` at {at}: profile it again on one grid")]
    Missing {
        /// Which of the three files.
        file: &'static str,
        /// The layer.
        layer: &'static str,
        /// Tokens or sequences.
        at: u32,
    },
    /// Too few usable points, or times that are not positive.
    #[error("the layer times cannot be fitted")]
    Fit(#[from] FitError),
}

impl LayerProfile {
    /// Reads the three CSV files.
    ///
    /// # Errors
    /// [`LayerProfileError`] for a malformed file, an unknown layer, or layers on different grids.
    pub fn from_csv(
        dense: impl io::Read,
        attention: impl io::Read,
        per_sequence: impl io::Read,
    ) -> Result<Self, LayerProfileError> {
        let rows: Vec<DenseRow> = read("dense", "layer,tokens,time_us", dense)?;
        let mut by_layer: BTreeMap<String, BTreeMap<u32, f64>> = BTreeMap::new();
        for DenseRow { layer, tokens, time_us } in rows {
            by_layer.entry(layer).or_default().insert(tokens, time_us * 1e-6);
        }
        check_dense(&by_layer)?;

        let columns = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us";
        let attention: Vec<AttentionRow> = read("attention", columns, attention)?;
        let attention = attention.into_iter().map(AttentionTime::from).collect();

        let rows: Vec<SequenceRow> = read("per-sequence", "layer,sequences,time_us", per_sequence)?;
        let mut heads: BTreeMap<u32, f64> = BTreeMap::new();
        let mut samplers: BTreeMap<u32, f64> = BTreeMap::new();
        for SequenceRow { layer, sequences, time_us } in rows {
            let times = match layer {
                SequenceLayer::LmHead => &mut heads,
                SequenceLayer::Sampler => &mut samplers,
            };
            times.insert(sequences, time_us * 1e-6);
        }
        let mut per_sequence = BTreeMap::new();
        for (sequences, head) in heads {
            let missing = LayerProfileError::Missing {
                file: "per-sequence",
                layer: "sampler",
                at: sequences,
            };
            per_sequence.insert(sequences, head + samplers.get(&sequences).ok_or(missing)?);
        }
        Ok(Self { dense: by_layer, attention, per_sequence })
    }

    /// Seconds of all linear layers of a step, by its tokens.
    fn linear_s(&self, shape: ModelShape) -> BTreeMap<u32, f64> {
        let mut total: BTreeMap<u32, f64> = BTreeMap::new();
        for (layer, times) in &self.dense {
            let runs = if ONCE_PER_STEP.contains(&layer.as_str()) {
                1
            } else if layer == "layernorm" {
                shape.layers * shape.layernorms_per_layer
            } else {
                shape.layers
            };
            for (tokens, seconds) in times {
                *total.entry(*tokens).or_insert(0.0) += f64::from(runs) * seconds;
            }
        }
        total
    }
}

impl FitDomain {
    fn contains(&self, row: &AttentionTime) -> bool {
        let prefill = u64::from(row.prefill_chunk) + u64::from(row.kv_prefill);
        let decode = u64::from(row.n_decode) * u64::from(row.kv_decode);
        prefill + decode <= self.max_kv_tokens
            && row.prefill_chunk + row.n_decode <= self.max_batched_tokens
    }
}

impl AttentionTime {
    fn load(&self) -> StepLoad {
        let load = if self.prefill_chunk > 0 {
            StepLoad::default().with_chunk(self.kv_prefill, self.prefill_chunk, true)
        } else {
            StepLoad::default()
        };
        load.with_decodes(self.n_decode, u64::from(self.n_decode) * u64::from(self.kv_decode))
    }
}

/// Fits a step model to kernel times.
///
/// Linear layers get knee exponent 8, a jump above 16 tokens (the rows of the smallest tensor-core
/// tile) and GEMM tiles of 128 tokens above 256, the steps that NVIDIA's kernels show. Their points weigh by `1 / tokens`, so that each octave of batch sizes
/// counts alike. Attention points weigh by attention's share of their step, so that its error is
/// judged relative to the step, and decode-only, prefill-only and mixed batches count alike however
/// many points the profile has of each.
///
/// # Errors
/// [`LayerProfileError::Fit`] if the profile has too few points within `domain`.
pub fn fit_layer_profile(
    profile: &LayerProfile,
    shape: ModelShape,
    domain: FitDomain,
) -> Result<LayerFit, LayerProfileError> {
    let linear_s = profile.linear_s(shape);
    let sampling = fit_sampling(&profile.per_sequence)?;
    let linear = fit_linear(&linear_s)?;
    let batches: Vec<Batch> = profile
        .attention
        .iter()
        .filter(|row| domain.contains(row))
        .filter_map(|row| Batch::of(row, shape, &linear_s, &profile.per_sequence))
        .collect();
    let attention = fit_attention(&batches)?;

    let step = StepModel {
        kernel_floor_s: sampling.kernel_floor_s + attention.kernel_floor_s,
        sample_s_per_seq: sampling.sample_s_per_seq,
        linear_floor_s: linear.linear_floor_s,
        linear_floor_s_per_token: linear.linear_floor_s_per_token,
        linear_s_per_token: linear.linear_s_per_token,
        linear_knee: linear.linear_knee,
        linear_tile_tokens: linear.linear_tile_tokens,
        linear_tile_above_tokens: linear.linear_tile_above_tokens,
        linear_jump_s: linear.linear_jump_s,
        linear_jump_above_tokens: linear.linear_jump_above_tokens,
        ..attention
    };
    let steps = batches.iter().map(|batch| Observation::step(batch.load, batch.step_s)).collect();
    let one_sequence = profile.per_sequence.values().next().copied().unwrap_or(0.0);
    let linear = linear_s
        .iter()
        .map(|(&tokens, seconds)| {
            let load = StepLoad { tokens, sampled: 1, ..StepLoad::default() };
            // No attention in this row, but the model's floor has its launch: put it on both sides.
            Observation::step(load, seconds + one_sequence + attention.kernel_floor_s)
        })
        .collect();
    Ok(LayerFit { step, linear, steps })
}

/// One attention point with the rest of its step.
struct Batch {
    load: StepLoad,
    /// Attention over all layers, s.
    attention_s: f64,
    /// The whole step, s.
    step_s: f64,
}

/// Prefill only, decode only, or mixed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct BatchKind {
    prefill: bool,
    decode: bool,
}

impl Batch {
    /// `None` where the linear layers or the head were not profiled at this size.
    fn of(
        row: &AttentionTime,
        shape: ModelShape,
        linear_s: &BTreeMap<u32, f64>,
        per_sequence: &BTreeMap<u32, f64>,
    ) -> Option<Self> {
        let load = row.load();
        let attention_s = f64::from(shape.layers) * row.seconds;
        let step_s =
            attention_s + padded(linear_s, load.tokens)? + padded(per_sequence, load.sampled)?;
        Some(Self { load, attention_s, step_s })
    }

    fn kind(&self) -> BatchKind {
        BatchKind { prefill: self.load.prefill_tokens > 0, decode: self.load.decode_seqs > 0 }
    }
}

/// `lm_head` and sampler: a floor and a cost per sequence.
fn fit_sampling(per_sequence: &BTreeMap<u32, f64>) -> Result<StepModel, FitError> {
    let observations: Vec<_> = per_sequence
        .iter()
        .map(|(&sampled, &seconds)| {
            let load = StepLoad { tokens: sampled, sampled, ..StepLoad::default() };
            Observation { weight: 1.0 / f64::from(sampled), ..Observation::step(load, seconds) }
        })
        .collect();
    let start = StepModel { kernel_floor_s: 1e-3, sample_s_per_seq: 1e-6, ..StepModel::zero() };
    fit_observations(&observations, &start, &[Coefficient::KernelFloor, Coefficient::SamplePerSeq])
}

fn fit_linear(linear_s: &BTreeMap<u32, f64>) -> Result<StepModel, FitError> {
    let observations: Vec<_> = linear_s
        .iter()
        .map(|(&tokens, &seconds)| {
            let load = StepLoad { tokens, ..StepLoad::default() };
            Observation { weight: 1.0 / f64::from(tokens), ..Observation::step(load, seconds) }
        })
        .collect();
    let start = StepModel {
        linear_floor_s: 1e-2,
        linear_floor_s_per_token: 1e-5,
        linear_s_per_token: 1e-4,
        linear_knee: 8,
        linear_tile_tokens: 128,
        linear_tile_above_tokens: 256,
        linear_jump_s: 1e-3,
        linear_jump_above_tokens: 16,
        ..StepModel::zero()
    };
    let free = [
        Coefficient::LinearFloor,
        Coefficient::LinearFloorPerToken,
        Coefficient::LinearPerToken,
        Coefficient::LinearJump,
    ];
    fit_observations(&observations, &start, &free)
}

fn fit_attention(batches: &[Batch]) -> Result<StepModel, FitError> {
    let kinds: Vec<BatchKind> = batches.iter().map(Batch::kind).collect();
    let observations: Vec<_> = batches
        .iter()
        .zip(&kinds)
        .map(|(batch, kind)| {
            let share = batch.attention_s / batch.step_s;
            let of_its_kind = kinds.iter().filter(|other| *other == kind).count();
            Observation {
                weight: share * share / of_its_kind as f64,
                ..Observation::step(batch.load, batch.attention_s)
            }
        })
        .collect();
    let start = StepModel {
        kernel_floor_s: 3e-4,
        prefill_s_per_token: 1e-6,
        prefill_s_per_pair: 4e-9,
        prefill_tile_rows: 64.0,
        prefill_wave_rows: 256.0,
        decode_s_per_seq: 1e-5,
        decode_s_per_context_token: 1.5e-7,
        mixed_decode_s_per_seq: 3e-5,
        mixed_decode_s_per_context_token: 2.5e-7,
        ..StepModel::zero()
    };
    let free = [
        Coefficient::KernelFloor,
        Coefficient::PrefillPerToken,
        Coefficient::PrefillPerPair,
        Coefficient::PrefillWaveRows,
        Coefficient::DecodePerSeq,
        Coefficient::DecodePerContextToken,
        Coefficient::MixedDecodePerSeq,
        Coefficient::MixedDecodePerContextToken,
    ];
    let mut model = fit_observations(&observations, &start, &free)?;
    // The profile has one chunk a batch, whose wave hides its tile. A decode of the
    // variable-length kernel is a chunk of one row, so its slope shows the tile.
    model.prefill_tile_rows = model.mixed_decode_s_per_context_token / model.prefill_s_per_pair;
    Ok(model)
}

/// Time at the next profiled size, as kernels work in whole tiles and vLLM pads small batches up to
/// the sizes of its CUDA graphs (multiples of 8 to 256, of 16 to 512); `None` beyond the largest.
fn padded(times: &BTreeMap<u32, f64>, size: u32) -> Option<f64> {
    times.range(size..).next().map(|(_, seconds)| *seconds)
}

fn check_dense(dense: &BTreeMap<String, BTreeMap<u32, f64>>) -> Result<(), LayerProfileError> {
    let known: Vec<&'static str> = PER_LAYER.into_iter().chain(ONCE_PER_STEP).collect();
    if let Some(layer) = dense.keys().find(|layer| !known.contains(&layer.as_str())) {
        return Err(LayerProfileError::UnknownLayer { layer: layer.clone(), known });
    }
    for tokens in dense.values().flat_map(BTreeMap::keys).copied() {
        for &layer in &known {
            if !dense.get(layer).is_some_and(|times| times.contains_key(&tokens)) {
                return Err(LayerProfileError::Missing { file: "dense", layer, at: tokens });
            }
        }
    }
    Ok(())
}

fn read<T: DeserializeOwned>(
    file: &'static str,
    columns: &'static str,
    input: impl io::Read,
) -> Result<Vec<T>, LayerProfileError> {
    csv::Reader::from_reader(input)
        .deserialize()
        .collect::<Result<_, _>>()
        .map_err(|source| LayerProfileError::Csv { file, columns, source })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DenseRow {
    layer: String,
    tokens: u32,
    time_us: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttentionRow {
    prefill_chunk: u32,
    kv_prefill: u32,
    n_decode: u32,
    kv_decode: u32,
    time_us: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SequenceRow {
    layer: SequenceLayer,
    sequences: u32,
    time_us: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum SequenceLayer {
    LmHead,
    Sampler,
}

impl From<AttentionRow> for AttentionTime {
    fn from(row: AttentionRow) -> Self {
        let AttentionRow { prefill_chunk, kv_prefill, n_decode, kv_decode, time_us } = row;
        Self { prefill_chunk, kv_prefill, n_decode, kv_decode, seconds: time_us * 1e-6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEQUENCES: &str = "layer,sequences,time_us\nlm_head,1,1000\nsampler,1,25\n";
    const ATTENTION: &str = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n16,32,2,64,9.5\n";

    fn dense(layers: &[&str]) -> String {
        layers
            .iter()
            .fold("layer,tokens,time_us\n".to_owned(), |text, layer| text + layer + ",1,2.5\n")
    }

    #[test]
    fn per_layer_times_are_multiplied() {
        let all: Vec<&str> = PER_LAYER.into_iter().chain(ONCE_PER_STEP).collect();
        let profile = LayerProfile::from_csv(
            dense(&all).as_bytes(),
            ATTENTION.as_bytes(),
            SEQUENCES.as_bytes(),
        )
        .unwrap();
        let shape = ModelShape { layers: 32, layernorms_per_layer: 2 };
        // Six layers and two norms 32 times, two layers once.
        let expected = 2.5e-6 * f64::from(32 * (6 + 2) + 2);
        assert!((profile.linear_s(shape)[&1] - expected).abs() < 1e-12);
        assert!((profile.per_sequence[&1] - 1.025e-3).abs() < 1e-12);
        let load = profile.attention[0].load();
        assert_eq!((load.tokens, load.sampled, load.decode_context), (18, 3, 128));
        assert_eq!((load.prefill_pairs, load.prefill_context), (16 * 32 + 136, 48));
    }

    #[test]
    fn unusable_files_are_named() {
        let read = |dense: &str, attention: &str| {
            LayerProfile::from_csv(dense.as_bytes(), attention.as_bytes(), SEQUENCES.as_bytes())
                .unwrap_err()
                .to_string()
        };
        assert!(read(&dense(&["moe_gate"]), ATTENTION).contains("unknown layer `moe_gate`"));
        let some = dense(&["act_fn"]);
        assert!(read(&some, ATTENTION).contains("no time of `down_proj` at 1"));
        assert!(read("a,b\n1,2\n", ATTENTION).contains("columns are layer,tokens,time_us"));
    }

    #[test]
    fn sizes_between_profiled_ones_are_padded_up() {
        let times = BTreeMap::from([(16, 10.0), (24, 20.0)]);
        assert_eq!(padded(&times, 1), Some(10.0));
        assert_eq!(padded(&times, 16), Some(10.0));
        assert_eq!(padded(&times, 17), Some(20.0));
        assert_eq!(padded(&times, 25), None);
    }
}
