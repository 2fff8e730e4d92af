//! Calibration: what to measure at an idle instance, and the profile that the measurements make.
//!
//! [`probes`] plans, [`Calibration::fit`] fits; whoever has sockets and a clock (`kvroute calibrate`) measures in between.
//! What a client sees is taken apart like this: the time to a first token is the front end's overhead and the steps of
//! the prompt's chunks, back to back; the time between two tokens of one sequence in a steady batch is one decode step.
//!
//! ```text
//! overhead(prompt)   line through (client's TTFT - engine's own prefill time) of cold prompts, by Theil and Sen
//! steps(prompt)      client's TTFT - overhead(prompt)
//! ```
//!
//! The line of Theil and Sen (medians of slopes and intercepts; Sen 1968, *J. Amer. Stat. Assoc.* 63) does not follow
//! the few points that another program on the machine disturbed.

mod plan;
mod sources;

use crate::fit::{Coefficient, FitError, Observation, Residuals, fit_observations};
use crate::load::StepLoad;
use crate::step::StepModel;

pub use plan::{Effort, Probe, probes};
pub use sources::{Provenance, layered_profile};

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Time to the first token of one prompt that has the instance to itself.
    FirstToken {
        /// Its length, tokens.
        prompt_tokens: u32,
        /// How many of its first tokens are in the prefix cache, in whole blocks.
        cached_tokens: u32,
    },
    /// Time between two tokens of one sequence while several of equal length decode together.
    Decode {
        /// How many.
        batch: u32,
        /// Length of each prompt, tokens.
        prompt_tokens: u32,
        /// Length of each answer, tokens.
        output_tokens: u32,
    },
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// What it is; `cached_tokens` as the instance told it.
    pub measure: Measure,
    /// Median over the repetitions, as the client saw it, s.
    pub seconds: f64,
    /// Mean over the repetitions of the engine's own prefill time, with the client's mean before it, s. Only of cold
    /// first tokens.
    pub means_s: Option<(f64, f64)>,
}

/// The kinds of measurements that are judged apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// First tokens of prompts that nobody has seen.
    Cold,
    /// First tokens of prompts whose every full block is cached.
    Warm,
    /// First tokens of partly cached prompts.
    PartlyCached,
    /// Decode steps.
    Decode,
}

impl Kind {
    /// All, in this order.
    pub const ALL: [Self; 4] = [Self::Cold, Self::Warm, Self::PartlyCached, Self::Decode];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold first token",
            Self::Warm => "warm first token",
            Self::PartlyCached => "first token, partly cached",
            Self::Decode => "decode step",
        }
    }
}

impl Measure {
    /// Its kind; `block_size` tells warm from partly cached.
    pub fn kind(self, block_size: u32) -> Kind {
        match self {
            Self::FirstToken { cached_tokens: 0, .. } => Kind::Cold,
            Self::FirstToken { prompt_tokens, cached_tokens }
                if prompt_tokens - cached_tokens <= block_size =>
            {
                Kind::Warm
            }
            Self::FirstToken { .. } => Kind::PartlyCached,
            Self::Decode { .. } => Kind::Decode,
        }
    }

    /// The engine steps that it spans, under a token budget.
    pub fn steps(self, max_num_batched_tokens: u32) -> Vec<StepLoad> {
        match self {
            Self::FirstToken { prompt_tokens, cached_tokens } => {
                chunks(prompt_tokens, cached_tokens, max_num_batched_tokens)
            }
            // Contexts grow from the prompt's length by the answer's: half way in the mean, and in the median.
            Self::Decode { batch, prompt_tokens, output_tokens } => {
                let context = u64::from(batch) * u64::from(prompt_tokens + output_tokens / 2);
                vec![StepLoad::default().with_decodes(batch, context)]
            }
        }
    }
}

/// The steps of one prompt under chunked prefill.
fn chunks(prompt_tokens: u32, cached_tokens: u32, max_num_batched_tokens: u32) -> Vec<StepLoad> {
    let mut steps = Vec::new();
    let mut done = cached_tokens;
    while done < prompt_tokens {
        let chunk = (prompt_tokens - done).min(max_num_batched_tokens);
        let last = done + chunk == prompt_tokens;
        steps.push(StepLoad::default().with_chunk(done, chunk, last));
        done += chunk;
    }
    steps
}

/// A step model and overheads, with what they were fitted to.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Step times.
    pub step: StepModel,
    /// Front end: time of a request that does not depend on its length, both ways, s.
    pub request_overhead_s: f64,
    /// Front end: growth per prompt token, s.
    pub request_overhead_s_per_prompt_token: f64,
    /// What the fit rests on, in the order measured.
    pub points: Vec<CalibrationPoint>,
    /// Measurements left out, since the front end's overhead alone is longer than they are: noise.
    pub left_out: Vec<Measured>,
}

/// One measurement beside the model.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrationPoint {
    /// What was measured.
    pub measured: Measured,
    /// Cold, warm, partly cached, or decode.
    pub kind: Kind,
    /// Its steps and their time, without the front end's overhead.
    pub observation: Observation,
    /// What the model says that the client should have seen, s.
    pub model_s: f64,
}

/// Why measurements make no profile.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    /// A kind of measurement without which nothing can be told.
    #[error("no usable measurement of a {}: measure again on a quieter machine", .0.name())]
    Missing(Kind),
    /// The instance does not tell its prefill times.
    #[error(
        "no cold prompt has the engine's own prefill time, without which the front end's overhead cannot be told from \
         it: the instance's /metrics needs vllm:request_prefill_time_seconds"
    )]
    NoPrefillTimes,
    /// Too few points, or times that are not positive.
    #[error("the measurements cannot be fitted")]
    Fit(#[from] FitError),
}

/// What a calibration determines.
const FREE: [Coefficient; 6] = [
    Coefficient::LinearFloor,
    Coefficient::LinearPerToken,
    Coefficient::SamplePerSeq,
    Coefficient::PrefillPerPair,
    Coefficient::PrefillTileRows,
    Coefficient::DecodePerContextToken,
];

/// Fits one after the other; the weights hardly change after the first few.
const REWEIGHTINGS: usize = 6;
/// Errors above so many medians are far off.
const FAR_OFF: f64 = 2.0;
/// Relative error below which a measurement is never far off.
const MEASURED_TO: f64 = 0.005;

impl Calibration {
    /// Fits a step model and overheads to measurements of one instance.
    ///
    /// Six coefficients, at the knee exponent with the least error; first tokens together weigh as much as decode
    /// steps. What cannot be told apart from outside is left at zero: see the sources of the profile.
    ///
    /// # Errors
    /// [`CalibrationError`] if a kind of measurement is missing or the fit fails.
    pub fn fit(
        measured: &[Measured],
        block_size: u32,
        max_num_batched_tokens: u32,
    ) -> Result<Self, CalibrationError> {
        let gaps: Vec<(u32, f64)> = measured
            .iter()
            .filter_map(|m| match (m.measure, m.means_s) {
                (Measure::FirstToken { prompt_tokens, .. }, Some((client_s, engine_s))) => {
                    Some((prompt_tokens, client_s - engine_s))
                }
                _ => None,
            })
            .collect();
        let (request_overhead_s, slope) =
            theil_sen(&gaps).ok_or(CalibrationError::NoPrefillTimes)?;
        let overhead_s = |measure| match measure {
            Measure::FirstToken { prompt_tokens, .. } => {
                request_overhead_s + slope * f64::from(prompt_tokens)
            }
            Measure::Decode { .. } => 0.0,
        };
        let (usable, left_out): (Vec<Measured>, Vec<Measured>) =
            measured.iter().partition(|m| m.seconds > overhead_s(m.measure));
        let of_kind = |kinds: &[Kind]| {
            usable.iter().filter(|m| kinds.contains(&m.measure.kind(block_size))).count()
        };
        for kind in [Kind::Cold, Kind::Decode] {
            if of_kind(&[kind]) == 0 {
                return Err(CalibrationError::Missing(kind));
            }
        }
        let (decodes, first_tokens) = (of_kind(&[Kind::Decode]), usable.len());
        let observations: Vec<Observation> = usable
            .iter()
            .map(|m| {
                let is_decode = matches!(m.measure, Measure::Decode { .. });
                let alike = if is_decode { decodes } else { first_tokens - decodes };
                Observation {
                    steps: m.measure.steps(max_num_batched_tokens),
                    seconds: m.seconds - overhead_s(m.measure),
                    weight: 1.0 / alike as f64,
                }
            })
            .collect();
        let step = fit_step(&observations)?;
        let points = usable
            .into_iter()
            .zip(observations)
            .map(|(measured, observation)| CalibrationPoint {
                kind: measured.measure.kind(block_size),
                model_s: overhead_s(measured.measure) + observation.predicted_s(&step),
                measured,
                observation,
            })
            .collect();
        Ok(Self {
            step,
            request_overhead_s,
            request_overhead_s_per_prompt_token: slope,
            points,
            left_out,
        })
    }

    /// How far the steps of one kind are off; `None` if none were measured.
    pub fn residuals(&self, kind: Kind) -> Option<Residuals> {
        let of_kind = self.points.iter().filter(|point| point.kind == kind);
        Residuals::of(&self.step, of_kind.map(|point| &point.observation))
    }

    /// What the model says that a client sees, s.
    pub fn client_s(&self, measure: Measure, max_num_batched_tokens: u32) -> f64 {
        let overhead_s = match measure {
            Measure::FirstToken { prompt_tokens, .. } => {
                self.request_overhead_s
                    + self.request_overhead_s_per_prompt_token * f64::from(prompt_tokens)
            }
            Measure::Decode { .. } => 0.0,
        };
        let steps = measure.steps(max_num_batched_tokens);
        overhead_s + steps.iter().map(|load| self.step.step_s(load)).sum::<f64>()
    }
}

/// The fit at the best knee exponent.
fn fit_step(observations: &[Observation]) -> Result<StepModel, FitError> {
    let mut best: Option<(f64, StepModel)> = None;
    for linear_knee in [1, 2, 4, 8] {
        let fitted = fit_at_knee(observations, linear_knee)?;
        let loss = observations.iter().map(|o| o.weight * o.relative_error(&fitted).abs()).sum();
        if best.as_ref().is_none_or(|(least, _)| loss < *least) {
            best = Some((loss, fitted));
        }
    }
    Ok(best.expect("four exponents were tried").1)
}

/// Least squares, in which a measurement far off weighs only as much as its error's size, not its square (Huber 1964,
/// *Ann. Math. Statist.* 35, by reweighting): one disturbed measurement shall not bend the rest.
fn fit_at_knee(observations: &[Observation], linear_knee: u32) -> Result<StepModel, FitError> {
    let mut model = StepModel { linear_knee, ..first_guess(observations) };
    let mut weighted = observations.to_vec();
    for _ in 0..REWEIGHTINGS {
        model = fit_observations(&weighted, &start_from(&model, observations), &FREE)?;
        let errors: Vec<f64> =
            observations.iter().map(|o| o.relative_error(&model).abs()).collect();
        let far = FAR_OFF * median(errors.clone()).unwrap_or(0.0).max(MEASURED_TO);
        for ((weighted, observation), error) in weighted.iter_mut().zip(observations).zip(errors) {
            weighted.weight = observation.weight * (far / error).min(1.0);
        }
    }
    model.mixed_decode_s_per_context_token = model.decode_s_per_context_token;
    Ok(model)
}

/// A model to start the next search from: a coefficient that went to 0 begins at its first guess again.
fn start_from(model: &StepModel, observations: &[Observation]) -> StepModel {
    let (mut start, mut guess) = (model.clone(), first_guess(observations));
    for coefficient in FREE {
        let value = coefficient.of(&mut start);
        if *value <= 0.0 {
            *value = *coefficient.of(&mut guess);
        }
    }
    start
}

/// The magnitude of each coefficient, from single points.
fn first_guess(observations: &[Observation]) -> StepModel {
    let shortest = observations.iter().map(|o| o.seconds).fold(f64::INFINITY, f64::min);
    let total =
        |o: &Observation, of: fn(&StepLoad) -> u64| o.steps.iter().map(of).sum::<u64>() as f64;
    let longest = observations.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let (tokens, pairs, seconds) = longest.map_or((1.0, 1.0, shortest), |o| {
        (total(o, |s| s.tokens.into()).max(1.0), total(o, |s| s.prefill_pairs).max(1.0), o.seconds)
    });
    StepModel {
        linear_floor_s: 0.9 * shortest,
        linear_s_per_token: 0.7 * seconds / tokens,
        sample_s_per_seq: 0.02 * shortest,
        prefill_s_per_pair: 0.3 * seconds / pairs,
        prefill_tile_rows: 50.0,
        decode_s_per_context_token: 5e-5 * shortest,
        ..StepModel::zero()
    }
}

/// Intercept and slope over whole numbers, both at least 0; `None` without points.
fn theil_sen(points: &[(u32, f64)]) -> Option<(f64, f64)> {
    let slopes = points.iter().enumerate().flat_map(|(index, (x, y))| {
        let others = points[index + 1..].iter().filter(move |(other, _)| other != x);
        others.map(move |(ox, oy)| (oy - y) / (f64::from(*ox) - f64::from(*x)))
    });
    let slope = median(slopes.collect()).unwrap_or(0.0).max(0.0);
    let intercept = median(points.iter().map(|(x, y)| y - slope * f64::from(*x)).collect())?;
    Some((intercept.max(0.0), slope))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some(f64::midpoint(values[last / 2], values[last.div_ceil(2)]))
}

#[cfg(test)]
mod tests;
