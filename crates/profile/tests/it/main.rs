//! The built-in profiles against their data, and the step-time contract.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

#[path = "../../examples/fit_profiles/fits.rs"]
mod fits;

mod builtin;
mod refit;
mod step_time;
