//! Distributions of lengths, counts and times, as configuration.

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Exp, Geometric, LogNormal};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A distribution over non-negative numbers. The unit is that of the field that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Distribution {
    /// Always the same value.
    Constant {
        /// The value, 0 or more.
        value: f64,
    },
    /// Exponential.
    Exponential {
        /// Arithmetic mean, above 0.
        mean: f64,
    },
    /// Geometric on 1, 2, 3, …: each further one comes with the same probability `1 - 1 / mean`.
    Geometric {
        /// Arithmetic mean, 1 or more.
        mean: f64,
    },
    /// Log-normal.
    LogNormal {
        /// Arithmetic mean (not the median), above 0.
        mean: f64,
        /// Standard deviation of the logarithm, 0 or more: `sqrt(2 ln(mean / median))`.
        sigma: f64,
    },
}

/// Why a distribution cannot be drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error(
    "{field}: {parameter} is {value}; give a finite number, {minimum} or more (a mean above 0)"
)]
pub struct DistributionError {
    /// The setting that holds the distribution.
    pub field: &'static str,
    /// The parameter at fault.
    pub parameter: &'static str,
    /// What was given.
    pub value: f64,
    /// The least value that makes sense.
    pub minimum: f64,
}

impl Distribution {
    /// Checks the parameters. `field` is the setting's name, for the error.
    pub(crate) fn sampler(self, field: &'static str) -> Result<Sampler, DistributionError> {
        let error =
            |parameter, value, minimum| DistributionError { field, parameter, value, minimum };
        let at_least = |parameter, value: f64, minimum: f64| {
            let valid = value.is_finite() && value >= minimum;
            if valid { Ok(value) } else { Err(error(parameter, value, minimum)) }
        };
        let mean_above_0 = |value: f64| match at_least("mean", value, 0.0)? {
            0.0 => Err(error("mean", value, 0.0)),
            mean => Ok(mean),
        };
        match self {
            Self::Constant { value } => Ok(Sampler::Constant(at_least("value", value, 0.0)?)),
            Self::Exponential { mean } => Exp::new(1.0 / mean_above_0(mean)?)
                .map(Sampler::Exponential)
                .map_err(|_| error("mean", mean, 0.0)),
            Self::Geometric { mean } => Geometric::new(1.0 / at_least("mean", mean, 1.0)?)
                .map(Sampler::Geometric)
                .map_err(|_| error("mean", mean, 1.0)),
            Self::LogNormal { mean, sigma } => {
                let sigma = at_least("sigma", sigma, 0.0)?;
                let mu = mean_above_0(mean)?.ln() - sigma * sigma / 2.0;
                LogNormal::new(mu, sigma)
                    .map(Sampler::LogNormal)
                    .map_err(|_| error("sigma", sigma, 0.0))
            }
        }
    }
}

/// A distribution that was checked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sampler {
    Constant(f64),
    Exponential(Exp<f64>),
    Geometric(Geometric),
    LogNormal(LogNormal<f64>),
}

impl Sampler {
    /// One draw.
    pub(crate) fn draw(&self, rng: &mut ChaCha8Rng) -> f64 {
        match self {
            Self::Constant(value) => *value,
            Self::Exponential(distribution) => distribution.sample(rng),
            Self::Geometric(further) => further.sample(rng) as f64 + 1.0,
            Self::LogNormal(distribution) => distribution.sample(rng),
        }
    }

    /// One draw, rounded to a count of at least 1 and at most 2^30.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the value is clamped to the range first"
    )]
    pub(crate) fn draw_count(&self, rng: &mut ChaCha8Rng) -> u32 {
        self.draw(rng).round().clamp(1.0, f64::from(1 << 30)) as u32
    }

    /// One draw of seconds, at most a year.
    pub(crate) fn draw_duration(&self, rng: &mut ChaCha8Rng) -> std::time::Duration {
        const YEAR_S: f64 = 365.0 * 86_400.0;
        std::time::Duration::from_secs_f64(self.draw(rng).clamp(0.0, YEAR_S))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrival::seeded;

    #[test]
    fn draws_have_the_stated_mean() {
        for (distribution, mean) in [
            (Distribution::Constant { value: 4.0 }, 4.0),
            (Distribution::Exponential { mean: 4.0 }, 4.0),
            (Distribution::Geometric { mean: 3.5 }, 3.5),
            (Distribution::Geometric { mean: 1.0 }, 1.0),
            (Distribution::LogNormal { mean: 89.0, sigma: 1.0 }, 89.0),
        ] {
            let sampler = distribution.sampler("x").unwrap();
            let mut rng = seeded(1);
            let sum: f64 = (0..200_000).map(|_| sampler.draw(&mut rng)).sum();
            assert!((sum / 200_000.0 / mean - 1.0).abs() < 0.02, "{distribution:?}: {sum}");
        }
    }

    #[test]
    fn bad_parameters_are_refused() {
        let bad = [
            Distribution::Constant { value: -1.0 },
            Distribution::Exponential { mean: 0.0 },
            Distribution::Geometric { mean: 0.5 },
            Distribution::LogNormal { mean: f64::NAN, sigma: 1.0 },
            Distribution::LogNormal { mean: 1.0, sigma: -1.0 },
        ];
        for distribution in bad {
            assert!(distribution.sampler("turns").is_err(), "{distribution:?}");
        }
    }
}
