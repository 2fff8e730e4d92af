//! Latency profiles: how long one engine step takes, the engine's size, and where each number is from.
//!
//! A [`LatencyProfile`] is a step-time formula ([`StepModel`]) with its coefficients, the request
//! overhead outside the engine, the engine's default sizes, and a [`Source`] for every number: a
//! profile with an unsourced number does not load. Five are built in ([`LatencyProfile::builtin`]),
//! others are TOML files of the same form. The `fit` functions make a [`StepModel`] from
//! measurements; the built-in profiles are what they give for the data under `data/` and the
//! tables in `examples/fit_profiles` (`cargo run -p kvroute-profile --example fit_profiles`), and
//! tests hold them to it.
//!
//! The crate is *not* an engine: it does not schedule, cache or queue, knows no clock, and does not
//! model two engines on one device slowing each other down. Nor does it measure: it plans what to measure
//! ([`probes`]) and fits what was ([`Calibration`]); `kvroute calibrate` does the rest.

mod builtin;
mod calibrate;
mod fit;
mod load;
mod profile;
mod step;

pub use builtin::UnknownProfile;
pub use calibrate::{
    Calibration, CalibrationError, CalibrationPoint, Effort, Kind, Measure, Measured, Probe,
    Provenance, layered_profile, probes,
};
pub use fit::{
    AttentionTime, Coefficient, DecodeSecond, FitDomain, FitError, LayerFit, LayerProfile,
    LayerProfileError, LogSecond, ModelShape, Observation, Residuals, StepOverhead, TailFit,
    UnequalTime, fit_decode_tail, fit_layer_profile, fit_observations, read_engine_log,
    read_unequal_times, step_overhead,
};
pub use load::StepLoad;
pub use profile::{EngineDefaults, LatencyProfile, ProfileError, Source, SourceKind};
pub use step::StepModel;
