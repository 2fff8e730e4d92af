//! Whether one instance is fit for use: ejection with exponential back-off, and a gradual return.
//!
//! Pure: probes, outcomes and time come in. That the last instance stays in use whatever it does is the fleet's rule.

use std::time::Duration;

use kvroute_types::Timestamp;
use serde::Serialize;

use crate::config::{HealthConfig, seconds};

/// Why an instance is out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EjectionCause {
    /// Its `/health` failed.
    Probe,
    /// Its answers failed.
    Requests,
    /// It took requests and fell silent.
    Silence,
}

impl EjectionCause {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Requests => "requests",
            Self::Silence => "silence",
        }
    }
}

/// Health of one instance. A new one is taken to be fit, until it shows otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    /// Why and until when it is out; then the next good probe brings it back.
    ejected: Option<(EjectionCause, Timestamp)>,
    /// When it was ejected last.
    pub(crate) ejected_at: Timestamp,
    /// Ejections without a time of good health between them; sets the length of the next.
    ejections: u32,
    /// Length of the latest.
    backoff: Duration,
    /// When it returned from it.
    returned_at: Timestamp,
    probe_failures: u32,
    request_failures: u32,
    /// Requests it may have at once while it returns; `None` for any number.
    allowance: Option<u32>,
    /// Whether it has ever answered.
    pub(crate) has_answered: bool,
    /// Whether the latest heard of it, from a probe or a request, was good.
    pub(crate) looks_well: bool,
}

impl Health {
    pub(crate) fn is_up(&self) -> bool {
        self.ejected.is_none()
    }

    pub(crate) fn cause(&self) -> Option<EjectionCause> {
        self.ejected.map(|(cause, _)| cause)
    }

    /// Whether its latest probes failed.
    pub(crate) fn is_unreachable(&self, config: &HealthConfig) -> bool {
        self.probe_failures >= config.probe_failures_max
    }

    /// Requests it may have at once; `None` for any number.
    pub(crate) fn allowance(&self) -> Option<u32> {
        self.allowance
    }

    /// A probe's outcome. True if it changed whether the instance is up.
    pub(crate) fn on_probe(&mut self, now: Timestamp, is_ok: bool, config: &HealthConfig) -> bool {
        self.looks_well = is_ok;
        if !is_ok {
            self.probe_failures += 1;
            return self.is_unreachable(config) && self.eject(now, EjectionCause::Probe, config);
        }
        self.probe_failures = 0;
        self.has_answered = true;
        match self.ejected {
            Some((_, until)) if now >= until => {
                self.ejected = None;
                self.request_failures = 0;
                self.allowance = Some(1);
                self.returned_at = now;
                true
            }
            _ => false,
        }
    }

    /// A request was answered, whatever with. True if the instance may now have more at once.
    pub(crate) fn on_success(&mut self, config: &HealthConfig) -> bool {
        self.request_failures = 0;
        self.has_answered = true;
        self.looks_well = true;
        let Some(allowance) = self.allowance else { return false };
        self.allowance = (allowance < config.recovery_requests).then_some(allowance + 1);
        true
    }

    /// A request failed by the instance's fault. True if that ejects it.
    pub(crate) fn on_failure(&mut self, now: Timestamp, config: &HealthConfig) -> bool {
        self.request_failures += 1;
        self.looks_well = false;
        // While it returns, a single failure is enough.
        let max = if self.allowance.is_some() { 1 } else { config.request_failures_max };
        self.request_failures >= max && self.eject(now, EjectionCause::Requests, config)
    }

    /// Takes it out for its next back-off. False if it is out already.
    pub(crate) fn eject(
        &mut self,
        now: Timestamp,
        cause: EjectionCause,
        config: &HealthConfig,
    ) -> bool {
        if self.ejected.is_some() {
            return false;
        }
        // A fast engine can serve many requests between two failures: only time tells whether it is well.
        if self.allowance.is_none() && now.since(self.returned_at) > self.backoff {
            self.ejections = 0;
        }
        let doubled = config.backoff_min_s * f64::from(1_u32 << self.ejections.min(20));
        self.backoff = seconds(doubled.min(config.backoff_max_s));
        self.ejected = Some((cause, now + self.backoff));
        self.ejected_at = now;
        self.ejections += 1;
        self.allowance = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: f64) -> Timestamp {
        Timestamp::from_secs_f64(s)
    }

    #[test]
    fn back_off_doubles_and_a_good_probe_ends_it() {
        let config = HealthConfig::default();
        let mut health = Health::default();
        assert!(!health.on_failure(at(0.0), &config));
        assert!(!health.on_failure(at(0.0), &config));
        assert!(health.on_failure(at(0.0), &config));
        assert!(!health.on_probe(at(0.9), true, &config), "the back-off lasts 1 s");
        assert!(health.on_probe(at(1.0), true, &config));
        assert_eq!(health.allowance(), Some(1));
        assert!(health.on_failure(at(1.1), &config), "one failure is enough while it returns");
        assert!(!health.on_probe(at(3.0), true, &config), "the second back-off lasts 2 s");
        assert!(health.on_probe(at(3.1), true, &config));
    }

    #[test]
    fn recovery_is_gradual() {
        let config = HealthConfig { recovery_requests: 3, ..HealthConfig::default() };
        let mut health = Health::default();
        health.eject(at(0.0), EjectionCause::Silence, &config);
        health.on_probe(at(1.0), true, &config);
        let allowances: Vec<_> = (0..3)
            .map(|_| {
                health.on_success(&config);
                health.allowance()
            })
            .collect();
        assert_eq!(allowances, [Some(2), Some(3), None]);
    }

    #[test]
    fn back_off_is_forgotten_after_as_long_in_good_health() {
        let config = HealthConfig { recovery_requests: 1, ..HealthConfig::default() };
        let mut health = Health::default();
        let mut eject = |at_s: f64| {
            health.eject(at(at_s), EjectionCause::Requests, &config);
            let backoff = health.backoff;
            health.on_probe(at(at_s) + backoff, true, &config);
            health.on_success(&config);
            assert_eq!(health.allowance(), None, "fully recovered");
            backoff.as_secs()
        };
        assert_eq!([0.0, 1.5, 5.0].map(&mut eject), [1, 2, 4]);
        assert_eq!(eject(14.0), 1, "it was well from 9 to 14 s");
    }

    #[test]
    fn one_lost_probe_is_forgiven() {
        let config = HealthConfig::default();
        let mut health = Health::default();
        assert!(!health.on_probe(at(0.0), false, &config));
        assert!(!health.on_probe(at(0.5), true, &config));
        assert!(!health.on_probe(at(1.0), false, &config));
        assert!(health.on_probe(at(1.5), false, &config));
        assert_eq!(health.cause(), Some(EjectionCause::Probe));
    }
}
