//! From measurements to a [`StepModel`].
//!
//! * [`fit_observations`]: times of whole steps, or of runs of steps such as a chunked prefill,
//!   as a live engine shows them; also published tables.
//! * [`fit_layer_profile`]: times of single layers, as a kernel profiler writes them.
//! * [`fit_decode_tail`]: what decodes of unequal length cost more, from the same profiler.
//! * [`step_overhead`]: what real decode steps took beyond the model, from an engine's log.
//!
//! Fits minimise *relative* error, since a 1 ms error is all of a decode step and nothing of a
//! prefill step. They are deterministic: the same input gives the same bits on every machine.

mod layers;
mod least_squares;
mod unequal;
mod windows;

use crate::load::StepLoad;
use crate::step::StepModel;

pub use layers::{
    AttentionTime, FitDomain, LayerFit, LayerProfile, LayerProfileError, ModelShape,
    fit_layer_profile,
};
pub use unequal::{TailFit, UnequalTime, fit_decode_tail, read_unequal_times};
pub use windows::{DecodeSecond, LogSecond, StepOverhead, read_engine_log, step_overhead};

/// One measured time and the engine steps it spans.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// The steps, back to back; one for a decode step, several for a chunked prefill.
    pub steps: Vec<StepLoad>,
    /// Measured time of all of them, s; positive.
    pub seconds: f64,
    /// Weight of the squared relative error, 1 if unsure; not negative.
    pub weight: f64,
}

impl Observation {
    /// A single step of unit weight.
    pub fn step(load: StepLoad, seconds: f64) -> Self {
        Self { steps: vec![load], seconds, weight: 1.0 }
    }

    /// What `model` says about the measured time, s.
    pub fn predicted_s(&self, model: &StepModel) -> f64 {
        self.steps.iter().map(|load| model.step_s(load)).sum()
    }

    /// `predicted / measured - 1`.
    pub fn relative_error(&self, model: &StepModel) -> f64 {
        self.predicted_s(model) / self.seconds - 1.0
    }
}

/// A coefficient of [`StepModel`] that a fit may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "each names the StepModel field of the same name, documented there"
)]
pub enum Coefficient {
    Overhead,
    KernelFloor,
    LinearFloor,
    LinearFloorPerToken,
    LinearPerToken,
    LinearJump,
    SamplePerSeq,
    PrefillPerToken,
    PrefillPerPair,
    PrefillTileRows,
    PrefillWaveRows,
    DecodePerSeq,
    DecodePerContextToken,
    MixedDecodePerSeq,
    MixedDecodePerContextToken,
    DecodeTailPerToken,
}

impl Coefficient {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Overhead,
        Self::KernelFloor,
        Self::LinearFloor,
        Self::LinearFloorPerToken,
        Self::LinearPerToken,
        Self::LinearJump,
        Self::SamplePerSeq,
        Self::PrefillPerToken,
        Self::PrefillPerPair,
        Self::PrefillTileRows,
        Self::PrefillWaveRows,
        Self::DecodePerSeq,
        Self::DecodePerContextToken,
        Self::MixedDecodePerSeq,
        Self::MixedDecodePerContextToken,
        Self::DecodeTailPerToken,
    ];

    /// Its place in a model.
    pub fn of(self, model: &mut StepModel) -> &mut f64 {
        match self {
            Self::Overhead => &mut model.overhead_s,
            Self::KernelFloor => &mut model.kernel_floor_s,
            Self::LinearFloor => &mut model.linear_floor_s,
            Self::LinearFloorPerToken => &mut model.linear_floor_s_per_token,
            Self::LinearPerToken => &mut model.linear_s_per_token,
            Self::LinearJump => &mut model.linear_jump_s,
            Self::SamplePerSeq => &mut model.sample_s_per_seq,
            Self::PrefillPerToken => &mut model.prefill_s_per_token,
            Self::PrefillPerPair => &mut model.prefill_s_per_pair,
            Self::PrefillTileRows => &mut model.prefill_tile_rows,
            Self::PrefillWaveRows => &mut model.prefill_wave_rows,
            Self::DecodePerSeq => &mut model.decode_s_per_seq,
            Self::DecodePerContextToken => &mut model.decode_s_per_context_token,
            Self::MixedDecodePerSeq => &mut model.mixed_decode_s_per_seq,
            Self::MixedDecodePerContextToken => &mut model.mixed_decode_s_per_context_token,
            Self::DecodeTailPerToken => &mut model.decode_tail_s_per_token,
        }
    }
}

/// Why observations cannot be fitted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FitError {
    /// Fewer measurements than unknowns.
    #[error(
        "{observations} observations cannot determine {free} coefficients: measure more points or free fewer"
    )]
    TooFewObservations {
        /// Measurements given.
        observations: usize,
        /// Coefficients to be found.
        free: usize,
    },
    /// A measured time that is not positive, or a weight that is negative.
    #[error(
        "observation {index}: {seconds} s with weight {weight}; times are positive, weights not negative"
    )]
    BadObservation {
        /// Its place in the input, from 0.
        index: usize,
        /// Its measured time.
        seconds: f64,
        /// Its weight.
        weight: f64,
    },
    /// A free coefficient starts at zero, which gives the search no scale.
    #[error(
        "coefficient {coefficient:?} starts at {value}: give a positive first guess of its magnitude"
    )]
    BadStart {
        /// The coefficient.
        coefficient: Coefficient,
        /// Its value in the start model.
        value: f64,
    },
}

/// The model that differs from `start` only in the `free` coefficients and has the least weighted
/// squared relative error over `observations`.
///
/// The start values of the free coefficients must be positive and of the right magnitude (within
/// a factor of some tens); the others are kept as they are.
///
/// # Errors
/// [`FitError`] if there are fewer observations than free coefficients, or an input is out of range.
pub fn fit_observations(
    observations: &[Observation],
    start: &StepModel,
    free: &[Coefficient],
) -> Result<StepModel, FitError> {
    if observations.len() < free.len() {
        return Err(FitError::TooFewObservations {
            observations: observations.len(),
            free: free.len(),
        });
    }
    let bad = |o: &Observation| {
        !(o.seconds.is_finite() && o.seconds > 0.0 && o.weight.is_finite() && o.weight >= 0.0)
    };
    if let Some(index) = observations.iter().position(bad) {
        let Observation { seconds, weight, .. } = observations[index];
        return Err(FitError::BadObservation { index, seconds, weight });
    }
    let mut model = start.clone();
    let mut values = Vec::with_capacity(free.len());
    for &coefficient in free {
        let value = *coefficient.of(&mut model);
        if !(value.is_finite() && value > 0.0) {
            return Err(FitError::BadStart { coefficient, value });
        }
        values.push(value);
    }
    let with = |values: &[f64]| {
        let mut model = start.clone();
        for (coefficient, value) in free.iter().zip(values) {
            *coefficient.of(&mut model) = *value;
        }
        model
    };
    let best = least_squares::minimise(&values, |values| {
        let model = with(values);
        observations.iter().map(|o| o.weight.sqrt() * o.relative_error(&model)).collect()
    });
    Ok(with(&best))
}

/// How far a model is from a set of measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residuals {
    /// Number of measurements.
    pub count: usize,
    /// Mean of the signed relative error: above 0 the model is slow.
    pub bias: f64,
    /// Median of the absolute relative error.
    pub median: f64,
    /// 95th percentile of the absolute relative error (nearest rank).
    pub p95: f64,
    /// Largest absolute relative error.
    pub max: f64,
}

impl Residuals {
    /// Residuals of `model`; `None` if there are no observations.
    pub fn of<'a>(
        model: &StepModel,
        observations: impl IntoIterator<Item = &'a Observation>,
    ) -> Option<Self> {
        let signed: Vec<f64> = observations.into_iter().map(|o| o.relative_error(model)).collect();
        let mut absolute: Vec<f64> = signed.iter().map(|error| error.abs()).collect();
        absolute.sort_by(f64::total_cmp);
        Some(Self {
            count: signed.len(),
            bias: signed.iter().sum::<f64>() / signed.len() as f64,
            median: *absolute.get(signed.len() / 2)?,
            p95: *absolute.get((signed.len() * 95).div_ceil(100).saturating_sub(1))?,
            max: *absolute.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(seqs: u32, seconds: f64) -> Observation {
        Observation::step(StepLoad::default().with_decodes(seqs, 0), seconds)
    }

    #[test]
    fn a_known_model_is_recovered() {
        let truth = StepModel {
            linear_floor_s: 0.015,
            linear_s_per_token: 9e-5,
            prefill_s_per_pair: 4e-9,
            ..StepModel::zero()
        };
        let chunks = [(0, 16), (0, 100), (0, 512), (0, 2048), (4096, 512), (8192, 2048)];
        let observations: Vec<_> = chunks
            .iter()
            .map(|&(before, chunk)| {
                let load = StepLoad::default().with_chunk(before, chunk, true);
                Observation::step(load, truth.step_s(&load))
            })
            .collect();
        let free =
            [Coefficient::LinearFloor, Coefficient::LinearPerToken, Coefficient::PrefillPerPair];
        let start = StepModel {
            linear_floor_s: 1e-2,
            linear_s_per_token: 1e-4,
            prefill_s_per_pair: 1e-9,
            ..StepModel::zero()
        };
        let found = fit_observations(&observations, &start, &free).unwrap();
        let residuals = Residuals::of(&found, &observations).unwrap();
        assert!(residuals.max < 1e-9, "{found:?} {residuals:?}");
    }

    #[test]
    fn bad_input_is_named() {
        let start = StepModel { overhead_s: 1e-3, ..StepModel::zero() };
        let two = [Coefficient::Overhead, Coefficient::SamplePerSeq];
        let error = fit_observations(&[decode(1, 1.0)], &start, &two).unwrap_err();
        assert_eq!(error, FitError::TooFewObservations { observations: 1, free: 2 });
        let rows = [decode(1, 1.0), decode(2, 0.0)];
        let error = fit_observations(&rows, &start, &two[..1]).unwrap_err();
        assert!(error.to_string().starts_with("observation 1: 0 s"), "{error}");
        let rows = [decode(1, 1.0), decode(2, 1.0)];
        let error = fit_observations(&rows, &start, &two).unwrap_err();
        assert!(error.to_string().starts_with("coefficient SamplePerSeq starts at 0"), "{error}");
    }

    #[test]
    fn residuals_by_hand() {
        let model = StepModel { overhead_s: 1.0, ..StepModel::zero() };
        let rows = [decode(1, 1.0), decode(1, 2.0), decode(1, 0.5)];
        let residuals = Residuals::of(&model, &rows).unwrap();
        let expected = Residuals { count: 3, bias: 0.5 / 3.0, median: 0.5, p95: 1.0, max: 1.0 };
        assert_eq!(residuals, expected);
        assert_eq!(Residuals::of(&model, []), None);
    }
}
