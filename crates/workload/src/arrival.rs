//! When requests arrive.
//!
//! Gaps between arrivals are independent draws with mean `1 / rate` and coefficient of variation
//! `cv` (standard deviation over mean): exponential (`cv` = 1, a Poisson process), Gamma with shape
//! `1 / cv^2`, or Weibull with the shape `k` that solves `Γ(1 + 2/k) / Γ(1 + 1/k)^2 = 1 + cv^2`.
//! Gamma and Weibull are the families that fit production arrivals (`ServeGen`, arXiv 2505.09999,
//! section 3).

use std::num::NonZeroU32;
use std::time::Duration;

use kvroute_types::Timestamp;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Exp, Gamma, Weibull};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::workload::in_order;
use crate::{Arrival, Workload};

/// How irregular arrivals are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum GapShape {
    /// Independent arrivals: exponential gaps.
    Poisson {},
    /// Gamma gaps.
    Gamma {
        /// Coefficient of variation of the gaps, above 0; above 1 is burstier than Poisson.
        cv: f64,
    },
    /// Weibull gaps.
    Weibull {
        /// Coefficient of variation of the gaps, `0.02..=400`; above 1 is burstier than Poisson.
        cv: f64,
    },
}

impl Default for GapShape {
    fn default() -> Self {
        Self::Poisson {}
    }
}

/// A renewal process of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArrivalProcess {
    /// Mean arrivals per second, above 0.
    pub rate_per_s: f64,
    /// Distribution of the gaps.
    pub shape: GapShape,
}

/// Why arrivals cannot be drawn or scaled.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum ArrivalError {
    /// A rate or a scale that is not a positive number.
    #[error("{field} is {value}; give a finite number above 0")]
    NotPositive {
        /// What was wrong.
        field: &'static str,
        /// What was given.
        value: f64,
    },
    /// A coefficient of variation that no Weibull distribution of use has.
    #[error("the coefficient of variation of Weibull gaps is {cv}; give 0.02 to 400, or use gamma")]
    WeibullCv {
        /// What was given.
        cv: f64,
    },
}

impl Workload {
    /// The same requests, `scale` times as fast: absolute arrivals are divided by `scale`. Think
    /// times stay, as people do not type faster because a service is busy.
    ///
    /// # Errors
    /// If `scale` is not a positive number.
    pub fn with_rate_scale(mut self, scale: f64) -> Result<Self, ArrivalError> {
        let scale = positive("rate scale", scale)?;
        for at in self.absolute_arrivals() {
            *at = Timestamp::from_secs_f64(at.as_secs_f64() / scale);
        }
        Ok(self)
    }

    /// The same requests in the same order, arriving as `process` draws them from `seed`.
    ///
    /// `rate_per_s` counts requests. Only absolute arrivals are drawn: a closed-loop session's
    /// later turns follow its first, so sessions start at the rate that brings `rate_per_s`
    /// requests over all.
    ///
    /// # Errors
    /// If the process has no valid rate or coefficient of variation.
    pub fn with_arrivals(
        mut self,
        process: ArrivalProcess,
        seed: u64,
    ) -> Result<Self, ArrivalError> {
        let requests = self.requests.len();
        schedule(requests, self.absolute_arrivals(), process, &mut seeded(seed))?;
        Ok(self)
    }

    /// The same sessions in a closed loop of `clients` clients, all of which begin at time 0: as many sessions are under way
    /// at any time, until a client has none left.
    ///
    /// Sessions are dealt out in turn: client `k` of `C` plays sessions `k`, `k + C`, …, each as soon as the one before has
    /// ended. A turn comes when the one before has ended and its pause, if it has one, is over; times of the workload give
    /// the order of sessions and nothing else. Requests are numbered anew, session by session.
    ///
    /// It comes last: parts and mixtures of the result, made with other methods, do not keep the number of clients.
    #[must_use]
    pub fn in_closed_loop(mut self, clients: NonZeroU32) -> Self {
        let at_once = Arrival::AfterPrevious { think: Duration::ZERO };
        for request in &mut self.requests {
            let is_absolute = matches!(request.arrival, Arrival::At(_));
            request.arrival = match request.turn {
                0 if request.session.0 < clients.get() => Arrival::At(Timestamp::ZERO),
                _ if is_absolute => at_once,
                _ => request.arrival,
            };
        }
        self.requests.sort_by_key(|request| (request.session, request.turn));
        (self.requests, self.sessions) = in_order(self.requests);
        let first_turns = self.requests.iter().filter(|request| request.turn == 0);
        let first_turns: Vec<_> = first_turns.map(|request| request.id).collect();
        for request in self.requests.iter_mut().filter(|request| request.next.is_none()) {
            let following = request.session.index() + clients.get() as usize;
            request.next = first_turns.get(following).copied();
        }
        self
    }

    fn absolute_arrivals(&mut self) -> Vec<&mut Timestamp> {
        absolute(self.requests.iter_mut().map(|request| &mut request.arrival))
    }
}

/// The arrivals that are absolute.
pub(crate) fn absolute<'a>(
    arrivals: impl Iterator<Item = &'a mut Arrival>,
) -> Vec<&'a mut Timestamp> {
    arrivals
        .filter_map(|arrival| match arrival {
            Arrival::At(at) => Some(at),
            Arrival::AfterPrevious { .. } | Arrival::Paced { .. } => None,
        })
        .collect()
}

/// Draws the absolute arrivals among `requests` requests so that all of them together come at
/// `process.rate_per_s`.
pub(crate) fn schedule(
    requests: usize,
    absolute: Vec<&mut Timestamp>,
    process: ArrivalProcess,
    rng: &mut ChaCha8Rng,
) -> Result<(), ArrivalError> {
    let starts_per_request = absolute.len() as f64 / requests.max(1) as f64;
    let gap = process.unit_gap()?;
    let mean_gap_s = 1.0 / (process.rate_per_s * starts_per_request);
    let mut at_s = 0.0;
    for at in absolute {
        at_s += gap.sample(rng) * mean_gap_s;
        *at = Timestamp::from_secs_f64(at_s);
    }
    Ok(())
}

/// The one generator of this crate.
pub(crate) fn seeded(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// A gap distribution with mean 1.
enum UnitGap {
    Poisson(Exp<f64>),
    Gamma(Gamma<f64>),
    Weibull(Weibull<f64>),
}

impl UnitGap {
    fn sample(&self, rng: &mut ChaCha8Rng) -> f64 {
        match self {
            Self::Poisson(gap) => gap.sample(rng),
            Self::Gamma(gap) => gap.sample(rng),
            Self::Weibull(gap) => gap.sample(rng),
        }
    }
}

impl ArrivalProcess {
    /// Checks the rate and prepares the gaps.
    fn unit_gap(self) -> Result<UnitGap, ArrivalError> {
        positive("rate_per_s", self.rate_per_s)?;
        match self.shape {
            GapShape::Poisson {} => {
                let gap = Exp::new(1.0).map_err(|_| not_positive("rate_per_s", 1.0))?;
                Ok(UnitGap::Poisson(gap))
            }
            GapShape::Gamma { cv } => {
                let variance = positive("cv", cv)?.powi(2);
                let gap =
                    Gamma::new(1.0 / variance, variance).map_err(|_| not_positive("cv", cv))?;
                Ok(UnitGap::Gamma(gap))
            }
            GapShape::Weibull { cv } => {
                let shape = weibull_shape(cv)?;
                let scale = (-ln_gamma(1.0 + 1.0 / shape)).exp();
                let gap = Weibull::new(scale, shape).map_err(|_| ArrivalError::WeibullCv { cv })?;
                Ok(UnitGap::Weibull(gap))
            }
        }
    }
}

fn positive(field: &'static str, value: f64) -> Result<f64, ArrivalError> {
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(not_positive(field, value)) }
}

fn not_positive(field: &'static str, value: f64) -> ArrivalError {
    ArrivalError::NotPositive { field, value }
}

/// The Weibull shape whose coefficient of variation is `cv`, by bisection: the cv falls as the
/// shape grows.
fn weibull_shape(cv: f64) -> Result<f64, ArrivalError> {
    if !(0.02..=400.0).contains(&cv) {
        return Err(ArrivalError::WeibullCv { cv });
    }
    let (mut low, mut high) = (0.1_f64, 100.0_f64);
    // Each step halves the bracket: 60 steps exhaust the 53 bits of the mantissa.
    for _ in 0..60 {
        let middle = low.midpoint(high);
        if weibull_cv(middle) > cv {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low.midpoint(high))
}

fn weibull_cv(shape: f64) -> f64 {
    let ratio = ln_gamma(1.0 + 2.0 / shape) - 2.0 * ln_gamma(1.0 + 1.0 / shape);
    ratio.exp_m1().max(0.0).sqrt()
}

/// `ln Γ(x)` for `x >= 0.5`: Lanczos's approximation, g = 7, 9 terms (relative error about 1e-15).
fn ln_gamma(x: f64) -> f64 {
    const G: f64 = 7.0;
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let mut sum = 0.999_999_999_999_809_9;
    for (index, term) in (1_u32..).zip(TERMS) {
        sum += term / (x + f64::from(index));
    }
    let t = x + G + 0.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkloadSpec;

    fn mean_and_cv(shape: GapShape) -> (f64, f64) {
        let gap = ArrivalProcess { rate_per_s: 1.0, shape }.unit_gap().unwrap();
        let mut rng = seeded(3);
        let gaps: Vec<f64> = (0..200_000).map(|_| gap.sample(&mut rng)).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_stated_mean_and_cv() {
        for (shape, cv) in [
            (GapShape::Poisson {}, 1.0),
            (GapShape::Gamma { cv: 0.5 }, 0.5),
            (GapShape::Gamma { cv: 3.0 }, 3.0),
            (GapShape::Weibull { cv: 0.5 }, 0.5),
            (GapShape::Weibull { cv: 2.0 }, 2.0),
        ] {
            let (mean, measured) = mean_and_cv(shape);
            assert!((mean - 1.0).abs() < 0.03, "{shape:?}: mean {mean}");
            assert!((measured / cv - 1.0).abs() < 0.05, "{shape:?}: cv {measured}");
        }
    }

    #[test]
    fn the_gamma_function_and_the_shape_match_known_values() {
        assert!((ln_gamma(5.0) - 24.0_f64.ln()).abs() < 1e-13);
        assert!((ln_gamma(0.5) - std::f64::consts::PI.sqrt().ln()).abs() < 1e-13);
        // Shape 1 is the exponential distribution; shape 1/2 has cv sqrt(5).
        assert!((weibull_shape(1.0).unwrap() - 1.0).abs() < 1e-9);
        assert!((weibull_shape(5.0_f64.sqrt()).unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn clients_of_a_closed_loop_play_every_other_session() {
        let chat = WorkloadSpec::builtin("chat").unwrap().generate(1, 200).unwrap();
        let open = chat.clone();
        let clients = NonZeroU32::new(2).unwrap();
        let closed = chat.in_closed_loop(clients);
        assert_eq!((closed.requests().len(), closed.sessions()), (200, open.sessions()));
        for client in 0..2 {
            // Along the links from the client's first turn, all its sessions come in order.
            let first = closed.requests().iter().find(|r| r.session.0 == client).unwrap();
            assert_eq!(first.arrival, Arrival::At(Timestamp::ZERO));
            let mut request = first;
            let mut seen = vec![(request.session.0, request.turn)];
            while let Some(next) = closed.next_turn(request.id) {
                request = &closed.requests()[next.index()];
                assert!(matches!(request.arrival, Arrival::AfterPrevious { .. }));
                seen.push((request.session.0, request.turn));
            }
            let of_client = open.requests().iter().filter(|r| r.session.0 % 2 == client);
            let mut expected: Vec<_> = of_client.map(|r| (r.session.0, r.turn)).collect();
            expected.sort_unstable();
            assert_eq!(seen, expected);
        }
        // Think times within a session stay; between sessions there is none.
        let second_turn = |w: &Workload| w.requests().iter().find(|r| r.turn == 1).unwrap().arrival;
        assert_eq!(second_turn(&closed), second_turn(&open));
        let third = closed.requests().iter().find(|r| r.session.0 == 2).unwrap();
        assert_eq!(third.arrival, Arrival::AfterPrevious { think: Duration::ZERO });
    }

    #[test]
    fn more_clients_than_sessions_begin_all_at_once() {
        let chat = WorkloadSpec::builtin("chat").unwrap().generate(1, 20).unwrap();
        let closed = chat.in_closed_loop(NonZeroU32::MAX);
        let starts = closed.requests().iter().filter(|request| request.turn == 0);
        assert!(starts.clone().all(|request| request.arrival == Arrival::At(Timestamp::ZERO)));
        assert_eq!(starts.count(), closed.sessions() as usize);
    }

    #[test]
    fn bad_rates_and_shapes_are_refused_with_a_remedy() {
        let bad = ArrivalProcess { rate_per_s: 0.0, shape: GapShape::Poisson {} };
        let error = bad.unit_gap().err().unwrap();
        assert_eq!(error.to_string(), "rate_per_s is 0; give a finite number above 0");
        assert_eq!(weibull_shape(0.001), Err(ArrivalError::WeibullCv { cv: 0.001 }));
    }
}
