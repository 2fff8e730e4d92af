//! The measurements and tables behind the built-in profiles, and the fits to them.
//!
//! Shared by the example that prints the numbers and the tests that hold the profiles to them.

use kvroute_profile::{
    Coefficient, FitDomain, LayerFit, LayerProfile, Measure, ModelShape, Observation, StepLoad,
    StepModel, StepOverhead, TailFit, fit_decode_tail, fit_layer_profile, fit_observations,
    read_engine_log, read_unequal_times, step_overhead,
};

/// A fit with what it was fitted to.
pub(crate) struct Fit {
    /// The result.
    pub(crate) step: StepModel,
    /// The measurements or table cells.
    pub(crate) observations: Vec<Observation>,
}

// --- RTX 4090: kernel times and one measured run, `data/rtx4090-llama3.1-8b` ---

/// KV tokens of the measured run: 2,588 blocks of 16.
const RTX4090_KV_TOKENS: u32 = 41_408;
/// Largest of the run's CUDA graphs at which `FlashAttention` 2 splits the contexts of a decode-only batch: its
/// `num_splits_heuristic` stops where sequences x KV heads (8) reach 0.8 x 2 x SMs (128), so between 24 and 32.
const RTX4090_TAIL_ABOVE_SEQS: u32 = 24;
/// What the steps of the measured run took beyond the kernels, s: found from its log by the simulator's `Estimator`
/// (`crates/sim/tests/rtx4090`).
const RTX4090_OVERHEAD_S: f64 = -6.318e-4;

/// Kernel fit of the RTX 4090, its step model with overhead, and the overhead's samples.
pub(crate) struct Rtx4090 {
    /// Kernel times and their fit.
    pub(crate) layers: LayerFit,
    /// What unequal contexts cost more.
    pub(crate) tail: TailFit,
    /// Decode-only seconds of the measured run against the kernel fit, contexts taken as equal.
    pub(crate) overhead: StepOverhead,
    /// The kernel fit with the tail and the overhead of the measured run.
    pub(crate) step: StepModel,
}

/// Fits the RTX 4090 profile.
pub(crate) fn rtx4090() -> Rtx4090 {
    let profile = LayerProfile::from_csv(
        include_bytes!("../../data/rtx4090-llama3.1-8b/profile_dense.csv").as_slice(),
        include_bytes!("../../data/rtx4090-llama3.1-8b/profile_attention.csv").as_slice(),
        include_bytes!("../../data/rtx4090-llama3.1-8b/profile_per_sequence.csv").as_slice(),
    )
    .expect("the committed profile is well-formed");
    let shape = ModelShape { layers: 32, layernorms_per_layer: 2 };
    let domain =
        FitDomain { max_kv_tokens: u64::from(RTX4090_KV_TOKENS), max_batched_tokens: 2048 };
    let layers = fit_layer_profile(&profile, shape, domain).expect("the grid is full");
    let log =
        read_engine_log(include_bytes!("../../data/rtx4090-llama3.1-8b/timeseries.csv").as_slice())
            .expect("the committed log is well-formed");
    let overhead = step_overhead(&log, &layers.step, RTX4090_KV_TOKENS, 16);
    let unequal = read_unequal_times(
        include_bytes!("../../data/rtx4090-llama3.1-8b/profile_skew.csv").as_slice(),
    )
    .expect("the committed times are well-formed");
    let tail =
        fit_decode_tail(&unequal, &profile, shape, domain, &layers.step, RTX4090_TAIL_ABOVE_SEQS)
            .expect("both kinds of batches are there");
    let step = tail.step.clone().plus_per_step(RTX4090_OVERHEAD_S);
    Rtx4090 { layers, tail, overhead, step }
}

// --- Published tables ---

/// What a step of a model computes and reads, in bf16.
pub(crate) struct Model {
    /// FLOP of the linear layers per token: 2 x weights outside the embedding and head.
    linear_flop_per_token: f64,
    /// Bytes of weights read by a decode step.
    weight_bytes: f64,
    /// FLOP of attention per query-key pair: 4 x layers x query heads x head dimension.
    flop_per_pair: f64,
    /// KV bytes per token: 2 x layers x KV heads x head dimension x 2 bytes.
    kv_bytes_per_token: f64,
}

/// Peak rates of a GPU from its data sheet.
pub(crate) struct Device {
    /// Dense bf16 with fp32 accumulation, FLOP/s.
    flops: f64,
    /// Memory, bytes/s.
    bandwidth: f64,
}

const LLAMA_8B: Model = Model {
    linear_flop_per_token: 13.96e9,
    weight_bytes: 15.0e9,
    flop_per_pair: 4.0 * 32.0 * 32.0 * 128.0,
    kv_bytes_per_token: 2.0 * 32.0 * 8.0 * 128.0 * 2.0,
};
const QWEN_HALF_B: Model = Model {
    linear_flop_per_token: 0.716e9,
    weight_bytes: 0.99e9,
    flop_per_pair: 4.0 * 24.0 * 14.0 * 64.0,
    kv_bytes_per_token: 2.0 * 24.0 * 2.0 * 64.0 * 2.0,
};
const H100_SXM: Device = Device { flops: 989e12, bandwidth: 3350e9 };
const A100_SXM: Device = Device { flops: 312e12, bandwidth: 2039e9 };
/// The data sheet's 362 TFLOP/s are with sparsity.
const L40S: Device = Device { flops: 181e12, bandwidth: 864e9 };
/// Twice the 56.3 TFLOP/s of FP32, the ratio of the RTX 4090, whose kernels reach 98 % of it.
const RTX5080: Device = Device { flops: 112.6e12, bandwidth: 960e9 };

/// Prefill from an empty cache at batch 1 and decode steps at 1,024 tokens of context each:
/// `AIConfigurator` 0.12 estimates from its measured vLLM operator tables. No host time.
pub(crate) struct PublishedTable {
    /// GPU and model.
    pub(crate) name: &'static str,
    /// Prompt tokens and ms.
    pub(crate) prefill: [(u32, f64); 3],
    /// Sequences and ms.
    pub(crate) decode: [(u32, f64); 4],
    model: Model,
    device: Device,
}

/// Llama-3.1-8B bf16 on an H100 SXM.
pub(crate) const H100: PublishedTable = PublishedTable {
    name: "h100-llama3.1-8b",
    prefill: [(512, 12.0), (2048, 43.5), (8192, 200.0)],
    decode: [(1, 6.2), (8, 6.6), (32, 8.3), (64, 10.3)],
    model: LLAMA_8B,
    device: H100_SXM,
};

/// Llama-3.1-8B bf16 on an A100 SXM.
pub(crate) const A100: PublishedTable = PublishedTable {
    name: "a100-llama3.1-8b",
    prefill: [(512, 36.0), (2048, 125.0), (8192, 557.0)],
    decode: [(1, 11.9), (8, 12.6), (32, 15.6), (64, 17.8)],
    model: LLAMA_8B,
    device: A100_SXM,
};

/// Qwen2.5-0.5B bf16 on an L40S (the tool's HYBRID mode with the model's shapes).
pub(crate) const L40S_QWEN: PublishedTable = PublishedTable {
    name: "l40s-qwen2.5-0.5b",
    prefill: [(512, 4.3), (2048, 12.9), (8192, 62.7)],
    decode: [(1, 1.9), (8, 2.1), (32, 2.4), (64, 2.8)],
    model: QWEN_HALF_B,
    device: L40S,
};

/// The coefficients that a table determines.
const TABLE_COEFFICIENTS: [Coefficient; 4] = [
    Coefficient::LinearFloor,
    Coefficient::LinearPerToken,
    Coefficient::PrefillPerPair,
    Coefficient::DecodePerContextToken,
];

impl PublishedTable {
    /// Its cells.
    pub(crate) fn observations(&self) -> Vec<Observation> {
        let prefill = self
            .prefill
            .iter()
            .map(|&(tokens, ms)| (StepLoad::default().with_chunk(0, tokens, true), ms));
        let decode = self.decode.iter().map(|&(seqs, ms)| {
            (StepLoad::default().with_decodes(seqs, u64::from(seqs) * 1024), ms)
        });
        prefill.chain(decode).map(|(load, ms)| Observation::step(load, ms * 1e-3)).collect()
    }

    /// Four physical coefficients to seven cells, at the knee exponent with the smallest worst error.
    pub(crate) fn fit(&self) -> Fit {
        let observations = self.observations();
        let worst = |step: &StepModel| {
            observations.iter().map(|o| o.relative_error(step).abs()).fold(0.0, f64::max)
        };
        let step = [8, 4, 2, 1]
            .into_iter()
            .map(|linear_knee| self.fit_at_knee(linear_knee))
            .reduce(|best, next| if worst(&next) < worst(&best) { next } else { best })
            .expect("there are four exponents");
        Fit { step, observations }
    }

    /// The fit at one knee exponent. A coefficient faster than the device's peak is held at the
    /// peak and the rest fitted again.
    ///
    /// The table has no mixed batch and no cached prefix. Decodes beside a chunk are taken to cost
    /// what they cost alone, and a chunk to read its context no faster than a decode does:
    /// `tile_rows = decode_s_per_context_token / prefill_s_per_pair`.
    pub(crate) fn fit_at_knee(&self, linear_knee: u32) -> StepModel {
        let peak = self.at_peak(linear_knee);
        let observations = self.observations();
        let mut free = TABLE_COEFFICIENTS.to_vec();
        let mut start = peak.clone();
        let mut fitted = loop {
            let mut fitted =
                fit_observations(&observations, &start, &free).expect("more cells than unknowns");
            let slow_enough = |coefficient: &Coefficient| {
                *coefficient.of(&mut fitted) >= *coefficient.of(&mut peak.clone())
            };
            let held_before = free.len();
            free.retain(slow_enough);
            if free.len() == held_before {
                break fitted;
            }
            start = peak.clone();
        };
        fitted.prefill_tile_rows = fitted.decode_s_per_context_token / fitted.prefill_s_per_pair;
        fitted.mixed_decode_s_per_context_token = fitted.decode_s_per_context_token;
        fitted
    }

    /// The model at the device's peak rates.
    fn at_peak(&self, linear_knee: u32) -> StepModel {
        let Self { model, device, .. } = self;
        StepModel {
            linear_knee,
            linear_floor_s: model.weight_bytes / device.bandwidth,
            linear_s_per_token: model.linear_flop_per_token / device.flops,
            prefill_s_per_pair: model.flop_per_pair / device.flops,
            decode_s_per_context_token: model.kv_bytes_per_token / device.bandwidth,
            ..StepModel::zero()
        }
    }
}

// --- RTX 5080: derived from the L40S table ---

/// Middle of the 3 to 6 ms that a decode step of a 0.5B model plausibly takes with its host work.
const DECODE_STEP_WITH_HOST_S: f64 = 4.5e-3;

/// Scales the L40S fit: compute terms by FLOP rate, memory terms by bandwidth; the host time is
/// what the kernels leave of the supposed decode step.
pub(crate) fn rtx5080() -> StepModel {
    let l40s = L40S_QWEN.fit().step;
    let compute = L40S.flops / RTX5080.flops;
    let memory = L40S.bandwidth / RTX5080.bandwidth;
    let scaled = StepModel {
        linear_floor_s: l40s.linear_floor_s * memory,
        linear_s_per_token: l40s.linear_s_per_token * compute,
        prefill_s_per_pair: l40s.prefill_s_per_pair * compute,
        prefill_tile_rows: l40s.prefill_tile_rows * memory / compute,
        decode_s_per_context_token: l40s.decode_s_per_context_token * memory,
        mixed_decode_s_per_context_token: l40s.mixed_decode_s_per_context_token * memory,
        ..l40s
    };
    let kernels = scaled.step_s(&StepLoad::default().with_decodes(1, 1024));
    StepModel { overhead_s: DECODE_STEP_WITH_HOST_S - kernels, ..scaled }
}

// --- cpu-tiny: a vLLM measured on one CPU core, `data/cpu-tiny` ---

/// The CPU fit and the front end's share of TTFT.
pub(crate) struct CpuTiny {
    /// Server-side prefill times and decode steps.
    pub(crate) fit: Fit,
    /// Client TTFT less server prefill at zero prompt tokens, s.
    pub(crate) request_overhead_s: f64,
    /// Its growth per prompt token, s.
    pub(crate) request_overhead_s_per_prompt_token: f64,
}

/// Largest step of the measured server, tokens.
const CPU_MAX_BATCHED_TOKENS: u32 = 2048;

/// Fits the CPU profile.
pub(crate) fn cpu_tiny() -> CpuTiny {
    let rows = prefill_rows();
    let gaps: Vec<(f64, f64)> = rows
        .iter()
        .filter_map(|row| {
            row.server_s.map(|server_s| (f64::from(row.prompt_tokens), row.client_s - server_s))
        })
        .collect();
    let (request_overhead_s, slope) = line(&gaps);
    let overhead = |tokens: u32| request_overhead_s + slope * f64::from(tokens);
    let prefill = rows.iter().map(|row| Observation {
        steps: row.measure.steps(CPU_MAX_BATCHED_TOKENS),
        seconds: row.server_s.unwrap_or_else(|| row.client_s - overhead(row.prompt_tokens)),
        weight: 1.0,
    });
    let observations: Vec<Observation> = prefill.chain(decode_observations()).collect();

    let start = StepModel {
        linear_knee: 1,
        linear_floor_s: 4e-3,
        linear_s_per_token: 8e-5,
        sample_s_per_seq: 1e-4,
        prefill_s_per_pair: 5e-8,
        prefill_tile_rows: 50.0,
        decode_s_per_context_token: 1e-7,
        ..StepModel::zero()
    };
    let free = [
        Coefficient::LinearFloor,
        Coefficient::LinearPerToken,
        Coefficient::SamplePerSeq,
        Coefficient::PrefillPerPair,
        Coefficient::PrefillTileRows,
        Coefficient::DecodePerContextToken,
    ];
    let fitted =
        fit_observations(&observations, &start, &free).expect("27 measurements, six unknowns");
    let step =
        StepModel { mixed_decode_s_per_context_token: fitted.decode_s_per_context_token, ..fitted };
    CpuTiny {
        fit: Fit { step, observations },
        request_overhead_s,
        request_overhead_s_per_prompt_token: slope,
    }
}

struct PrefillRow {
    prompt_tokens: u32,
    measure: Measure,
    client_s: f64,
    server_s: Option<f64>,
}

fn prefill_rows() -> Vec<PrefillRow> {
    let text = include_bytes!("../../data/cpu-tiny/prefill.csv");
    csv::Reader::from_reader(text.as_slice())
        .deserialize()
        .map(|row| {
            let (prompt_tokens, cached_tokens, client_ms, server_ms): (u32, u32, f64, Option<f64>) =
                row.expect("the committed table is well-formed");
            PrefillRow {
                prompt_tokens,
                measure: Measure::FirstToken { prompt_tokens, cached_tokens },
                client_s: client_ms * 1e-3,
                server_s: server_ms.map(|ms| ms * 1e-3),
            }
        })
        .collect()
}

/// Batch, prompt and output tokens, the engine's and the client's time between tokens, ms.
type DecodeRow = (u32, u32, u32, f64, f64);

/// Mean step of `batch` streams over their output: the context grows from the prompt's length by
/// the output's, so its mean is half way.
fn decode_observations() -> Vec<Observation> {
    let text = include_bytes!("../../data/cpu-tiny/decode.csv");
    csv::Reader::from_reader(text.as_slice())
        .deserialize()
        .map(|row| {
            let (batch, prompt_tokens, output_tokens, itl_ms, _client_ms): DecodeRow =
                row.expect("the committed table is well-formed");
            let measure = Measure::Decode { batch, prompt_tokens, output_tokens };
            Observation {
                steps: measure.steps(CPU_MAX_BATCHED_TOKENS),
                seconds: itl_ms * 1e-3,
                weight: 1.0,
            }
        })
        .collect()
}

/// Ordinary least squares: intercept and slope.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = points.iter().map(|(x, _)| (x - mean_x) * (x - mean_x)).sum();
    let slope = covariance / variance;
    (mean_y - slope * mean_x, slope)
}
