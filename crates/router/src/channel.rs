//! Staleness as a property of a signal: how late, how often and how surely it reaches the policy.

use std::collections::VecDeque;
use std::time::Duration;

use kvroute_types::Timestamp;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How often a signal is brought up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refresh {
    /// At every change.
    #[default]
    RealTime,
    /// At whole multiples of this many seconds since the run began; above 0.
    EveryS(f64),
    /// Never: the policy does without the signal.
    Never,
}

impl Refresh {
    /// The interval, ns, at least 1; `None` if there is none.
    pub fn interval_ns(self) -> Option<u64> {
        match self {
            Self::EveryS(interval) => Some(Timestamp::from_secs_f64(interval).as_nanos().max(1)),
            Self::RealTime | Self::Never => None,
        }
    }
}

/// Staleness of one signal. The default is none: every change is seen at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignalConfig {
    /// When news is collected.
    pub refresh: Refresh,
    /// Time between collection and effect, s.
    pub delay_s: f64,
    /// Share of news that never arrives, `0.0..=1.0`, drawn independently for each piece.
    pub loss: f64,
    /// Age at which news no longer counts, s; `None` for never.
    pub expiry_s: Option<f64>,
}

/// A signal setting out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidSignal {
    /// Not a positive number of seconds.
    #[error("{key} is {value} s; give a positive number of seconds")]
    NotPositive {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: f64,
    },
    /// A negative or unbounded delay.
    #[error("delay_s is {value}; give 0 or a positive number of seconds")]
    Delay {
        /// What was given.
        value: f64,
    },
    /// Not a share.
    #[error("loss is {value}; it is a share, 0.0 to 1.0")]
    Loss {
        /// What was given.
        value: f64,
    },
}

impl SignalConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`InvalidSignal`] names the setting and the remedy.
    pub fn validate(&self) -> Result<(), InvalidSignal> {
        let positive = |key, value: f64| {
            let is_positive = value.is_finite() && value > 0.0;
            is_positive.then_some(()).ok_or(InvalidSignal::NotPositive { key, value })
        };
        if let Refresh::EveryS(value) = self.refresh {
            positive("refresh", value)?;
        }
        if let Some(value) = self.expiry_s {
            positive("expiry_s", value)?;
        }
        if !(self.delay_s.is_finite() && self.delay_s >= 0.0) {
            return Err(InvalidSignal::Delay { value: self.delay_s });
        }
        if !(0.0..=1.0).contains(&self.loss) {
            return Err(InvalidSignal::Loss { value: self.loss });
        }
        Ok(())
    }

    /// Age at which news no longer counts.
    pub(crate) fn expiry(&self) -> Option<Duration> {
        self.expiry_s.map(Duration::from_secs_f64)
    }
}

/// Carries one signal's news from where it happens to where the policy sees it.
#[derive(Debug)]
pub(crate) struct Channel<T> {
    refresh: Refresh,
    delay_ns: u64,
    loss: f64,
    rng: ChaCha8Rng,
    /// News under way, with the time it takes effect; in that order, since every piece has the same delay.
    under_way: VecDeque<(Timestamp, T)>,
}

impl<T> Channel<T> {
    /// A channel with a checked configuration.
    pub(crate) fn new(config: &SignalConfig, seed: u64) -> Self {
        Self {
            refresh: config.refresh,
            delay_ns: Timestamp::from_secs_f64(config.delay_s).as_nanos(),
            loss: config.loss,
            rng: ChaCha8Rng::seed_from_u64(seed),
            under_way: VecDeque::new(),
        }
    }

    /// When news of `now` takes effect; `None` if it is lost. Draws from the generator if there is a loss at all.
    pub(crate) fn effective_at(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.loss > 0.0 && self.rng.random_bool(self.loss) {
            return None;
        }
        if self.refresh == Refresh::Never {
            return None;
        }
        let collected = self.refresh.interval_ns().map_or(now, |interval| {
            Timestamp::from_nanos(now.as_nanos().div_ceil(interval).saturating_mul(interval))
        });
        Some(collected.plus_nanos(self.delay_ns))
    }

    /// Puts news under way that takes effect at `at` (from [`Channel::effective_at`]).
    pub(crate) fn send(&mut self, at: Timestamp, news: T) {
        debug_assert!(self.under_way.back().is_none_or(|(last, _)| *last <= at));
        self.under_way.push_back((at, news));
    }

    /// Whether anything is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The next news that takes effect by `now`.
    pub(crate) fn receive(&mut self, now: Timestamp) -> Option<(Timestamp, T)> {
        self.under_way.pop_front_if(|(at, _)| *at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(config: &SignalConfig, now_s: f64) -> Option<f64> {
        let mut channel = Channel::<()>::new(config, 1);
        channel.effective_at(Timestamp::from_secs_f64(now_s)).map(Timestamp::as_secs_f64)
    }

    #[test]
    fn news_waits_for_the_refresh_and_then_for_the_delay() {
        let real_time = SignalConfig::default();
        assert_eq!(at(&real_time, 1.25), Some(1.25));
        let every =
            SignalConfig { refresh: Refresh::EveryS(0.5), delay_s: 0.1, ..real_time.clone() };
        assert_eq!(at(&every, 1.25), Some(1.6));
        assert_eq!(at(&every, 1.5), Some(1.6));
        assert_eq!(at(&SignalConfig { refresh: Refresh::Never, ..real_time.clone() }, 1.0), None);
        assert_eq!(at(&SignalConfig { loss: 1.0, ..real_time }, 1.0), None);
    }

    #[test]
    fn losses_are_drawn_from_the_seed() {
        let config = SignalConfig { loss: 0.3, ..SignalConfig::default() };
        let draw = |seed| {
            let mut channel = Channel::<()>::new(&config, seed);
            (0..1_000).map(|_| channel.effective_at(Timestamp::ZERO).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let kept = draw(1).iter().filter(|&&kept| kept).count();
        assert!((650..750).contains(&kept), "{kept} of 1000 kept at 30 % loss");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let error = |config: SignalConfig| config.validate().unwrap_err().to_string();
        let ok = SignalConfig::default();
        assert!(error(SignalConfig { loss: 1.5, ..ok.clone() }).contains("loss is 1.5"));
        assert!(error(SignalConfig { delay_s: -1.0, ..ok.clone() }).contains("delay_s is -1"));
        assert!(
            error(SignalConfig { expiry_s: Some(0.0), ..ok.clone() }).contains("expiry_s is 0")
        );
        let refresh = Refresh::EveryS(f64::NAN);
        assert!(error(SignalConfig { refresh, ..ok }).contains("refresh is NaN"));
    }
}
