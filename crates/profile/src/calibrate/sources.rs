//! The profile that a calibration makes, with the source of each number.

use super::{Calibration, Kind};
use crate::fit::{Coefficient, LayerFit, Residuals, StepOverhead};
use crate::profile::{EngineDefaults, LatencyProfile, Source, SourceKind};
use crate::step::StepModel;

/// Digits that a measurement is worth, and more.
const DIGITS: usize = 5;

/// Who measured what, for the profile's sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// Name of the profile.
    pub name: String,
    /// Device, model and engine, for people.
    pub description: String,
    /// Where the numbers come from: engine and version, address, model, date, tool; or a data set.
    pub origin: String,
    /// Where the engine's sizes come from.
    pub engine: String,
}

/// Step coefficients that a calibration determines.
const FITTED: [&str; 6] = [
    "step.linear_floor_s",
    "step.linear_s_per_token",
    "step.sample_s_per_seq",
    "step.prefill_s_per_pair",
    "step.prefill_tile_rows",
    "step.decode_s_per_context_token",
];

/// Step coefficients that the same measurements cannot tell from the fitted ones.
const LEFT_OUT: [&str; 9] = [
    "step.overhead_s",
    "step.kernel_floor_s",
    "step.linear_floor_s_per_token",
    "step.linear_tile_tokens",
    "step.linear_tile_above_tokens",
    "step.prefill_s_per_token",
    "step.prefill_wave_rows",
    "step.decode_s_per_seq",
    "step.mixed_decode_s_per_seq",
];

const ENGINE: [&str; 6] = [
    "engine.block_size",
    "engine.kv_blocks",
    "engine.max_num_batched_tokens",
    "engine.max_num_seqs",
    "engine.max_model_len",
    "engine.instances_per_device",
];

impl Calibration {
    /// The profile, numbers rounded to six digits.
    pub fn profile(&self, engine: EngineDefaults, provenance: &Provenance) -> LatencyProfile {
        let source = |fields: &[&str], kind, what: String| source(provenance, fields, kind, what);
        let sources = vec![
            source(&FITTED, SourceKind::Measured, self.what_was_fitted()),
            source(
                &["step.linear_knee"],
                SourceKind::Measured,
                format!("{}: of 1, 2, 4 and 8 the exponent with the least error.", self.step.linear_knee),
            ),
            source(
                &LEFT_OUT,
                SourceKind::Assumption,
                "Left out (0, or tiles of 1): from outside they cannot be told from the fitted coefficients; what is \
                 constant in a step is in linear_floor_s."
                    .to_owned(),
            ),
            source(
                &["step.mixed_decode_s_per_context_token"],
                SourceKind::Assumption,
                "Equal to decode_s_per_context_token: no mixed batch was measured by itself.".to_owned(),
            ),
            source(
                &["request_overhead_s", "request_overhead_s_per_prompt_token"],
                SourceKind::Measured,
                "Line of Theil and Sen through the client's TTFT less the engine's own prefill time over the length of cold \
                 prompts; prompts came as token ids, so nothing was tokenised. Includes the way back of the first token."
                    .to_owned(),
            ),
            source(
                &["response_overhead_s"],
                SourceKind::Derived,
                "0: a client cannot tell it from the request's, which contains it.".to_owned(),
            ),
            engine_source(provenance),
        ];
        LatencyProfile {
            name: provenance.name.clone(),
            description: provenance.description.clone(),
            request_overhead_s: rounded(self.request_overhead_s),
            request_overhead_s_per_prompt_token: rounded(self.request_overhead_s_per_prompt_token),
            response_overhead_s: 0.0,
            step: rounded_step(&self.step),
            engine,
            sources,
        }
    }

    fn what_was_fitted(&self) -> String {
        let kinds = Kind::ALL.into_iter().filter_map(|kind| Some((kind, self.residuals(kind)?)));
        let kinds: Vec<String> = kinds
            .map(|(kind, residuals)| {
                format!("{} {}", residuals.count, described(kind.name(), residuals))
            })
            .collect();
        let left_out = match self.left_out.len() {
            0 => String::new(),
            count => format!(
                " {count} measurements were shorter than the front end's overhead and are left out."
            ),
        };
        format!(
            "Least squares of relative error (Huber's: linear for what is far off), first tokens (less the front end's overhead) and decode steps weighing alike. \
             Measurements, medians of repetitions at an idle instance, and how far the model is off: {}.{left_out}",
            kinds.join("; ")
        )
    }
}

/// The profile of kernel times, numbers rounded to six digits. `overhead` is what an engine's log shows that kernels do not
/// explain; below zero, it comes off the kernel floor.
pub fn layered_profile(
    fit: &LayerFit,
    overhead: Option<&StepOverhead>,
    engine: EngineDefaults,
    provenance: &Provenance,
) -> LatencyProfile {
    let source = |fields: &[&str], kind, what: String| source(provenance, fields, kind, what);
    let residuals =
        |rows| Residuals::of(&fit.step, rows).map_or_else(String::new, |r| described("steps", r));
    let mean_s = overhead.and_then(StepOverhead::mean_s);
    let overhead_source = match mean_s {
        Some(mean_s) => source(
            &["step.overhead_s"],
            SourceKind::Measured,
            format!(
                "Mean, over the steps of the {} seconds of the engine's log in which only decoding happened, of what a step \
                 took beyond kernels of equal contexts: {:.3} ms (below zero, it is off the kernel floor). What unequal \
                 contexts cost is in it.",
                overhead.map_or(0, |overhead| overhead.seconds.len()),
                1e3 * mean_s
            ),
        ),
        None => source(
            &["step.overhead_s"],
            SourceKind::Assumption,
            "0: no engine's log (timeseries.csv) shows what kernels do not explain; real steps are longer.".to_owned(),
        ),
    };
    let sources = vec![
        overhead_source,
        source(
            &["step.kernel_floor_s", "step.sample_s_per_seq"],
            SourceKind::Measured,
            "Fit to lm_head and sampler by number of sequences; the floor includes the attention kernels' launch.".to_owned(),
        ),
        source(
            &[
                "step.linear_floor_s",
                "step.linear_floor_s_per_token",
                "step.linear_s_per_token",
                "step.linear_jump_s",
            ],
            SourceKind::Measured,
            format!("Fit to the linear layers by tokens, each octave weighing alike: {}.", residuals(&fit.linear)),
        ),
        source(
            &[
                "step.linear_knee",
                "step.linear_tile_tokens",
                "step.linear_tile_above_tokens",
                "step.linear_jump_above_tokens",
            ],
            SourceKind::Assumption,
            "The steps that NVIDIA's GEMM kernels show: a jump above 16 tokens, tiles of 128 above 256, a sharp knee."
                .to_owned(),
        ),
        source(
            &[
                "step.prefill_s_per_token",
                "step.prefill_s_per_pair",
                "step.prefill_wave_rows",
                "step.decode_s_per_seq",
                "step.decode_s_per_context_token",
                "step.mixed_decode_s_per_seq",
                "step.mixed_decode_s_per_context_token",
            ],
            SourceKind::Measured,
            format!(
                "Fit to attention by chunk, cached prefix, decodes and their context, within what the engine can batch: {}.",
                residuals(&fit.steps)
            ),
        ),
        source(
            &["step.prefill_tile_rows"],
            SourceKind::Derived,
            "mixed_decode_s_per_context_token / prefill_s_per_pair: beside a chunk a decode is a chunk of one row.".to_owned(),
        ),
        source(
            &["request_overhead_s", "request_overhead_s_per_prompt_token", "response_overhead_s"],
            SourceKind::Assumption,
            "0: kernel times say nothing of the front end.".to_owned(),
        ),
        engine_source(provenance),
    ];
    let step = fit.step.clone().plus_per_step(mean_s.unwrap_or(0.0));
    LatencyProfile {
        name: provenance.name.clone(),
        description: provenance.description.clone(),
        request_overhead_s: 0.0,
        request_overhead_s_per_prompt_token: 0.0,
        response_overhead_s: 0.0,
        step: rounded_step(&step),
        engine,
        sources,
    }
}

fn engine_source(provenance: &Provenance) -> Source {
    let mut source = source(provenance, &ENGINE, SourceKind::Measured, provenance.engine.clone());
    source.what.push_str(" One instance a device.");
    source
}

fn source(provenance: &Provenance, fields: &[&str], kind: SourceKind, what: String) -> Source {
    let fields = fields.iter().map(|field| (*field).to_owned()).collect();
    Source { fields, kind, what, origin: provenance.origin.clone() }
}

fn described(what: &str, residuals: Residuals) -> String {
    let percent = |share: f64| 100.0 * share;
    format!(
        "{what}: {:.1} % in the median, {:.1} % at most, {:+.1} % in the mean",
        percent(residuals.median),
        percent(residuals.max),
        percent(residuals.bias)
    )
}

fn rounded(value: f64) -> f64 {
    format!("{value:.DIGITS$e}").parse().unwrap_or(value)
}

fn rounded_step(step: &StepModel) -> StepModel {
    let mut step = step.clone();
    for coefficient in Coefficient::ALL {
        let value = coefficient.of(&mut step);
        *value = rounded(*value);
    }
    step
}
