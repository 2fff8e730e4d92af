//! Faults on request, for tests of whatever talks to an engine.

use std::time::Duration;

use kvroute_types::mix64;
use serde::{Deserialize, Serialize};

use crate::answer::unit;

/// What an instance does wrong. The default is nothing.
///
/// Faults concern requests for inference (`POST /v1/chat/completions`, `/v1/completions`), except `metrics` and
/// `health`. Times are real, not scaled. All may be set while the instance serves; requests already taken in keep the
/// faults they began with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The engine gets each request this much later, ms. The headers of a stream come in time.
    pub extra_delay_ms: u64,
    /// Headers, and with them everything, come this much later, ms.
    pub header_delay_ms: u64,
    /// Fraction of requests answered with an error, `0.0..=1.0`, drawn from the server's seed.
    pub error_rate: f64,
    /// Status of those errors; `None` is 500.
    pub error_status: Option<u16>,
    /// Requests are taken in and never answered.
    pub hang: bool,
    /// The connection is cut after this many tokens of an answer (0: before the first); an answer that is not streamed
    /// is cut before its headers.
    pub cut_after_tokens: Option<u32>,
    /// After this many tokens of an answer nothing more comes, on a connection that stays open (what vLLM does to an
    /// open stream on SIGTERM).
    pub silent_after_tokens: Option<u32>,
    /// What is wrong with `GET /metrics`.
    pub metrics: MetricsFault,
    /// Status of `GET /health`; `None` is the truth.
    pub health_status: Option<u16>,
    /// Fraction of batches of KV events that never get a number, so that nobody can miss them, `0.0..=1.0`, drawn from
    /// their order.
    pub kv_events_untold: f64,
    /// Fraction of batches of KV events that are not sent when they are due, as from a full socket; a replay has them.
    pub kv_events_dropped: f64,
    /// Every prompt is salted with this, as by something between the gateway and vLLM that keeps tenants apart; a salt
    /// of the request's own goes first.
    pub cache_salt: Option<String>,
}

/// What is wrong with the metrics page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetricsFault {
    /// Nothing.
    #[default]
    None,
    /// Status 500.
    Error,
    /// Status 200 and no series at all.
    Empty,
    /// Status 200 and text that is no exposition format.
    Garbage,
    /// The page of another engine: none of vLLM's names.
    Foreign,
    /// Cut off in the middle of a line.
    Truncated,
    /// Never answered.
    Hang,
}

/// A setting of [`Faults`] out of range.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum InvalidFaults {
    /// No fraction.
    #[error("{key} is {value}; it is a fraction, 0.0 to 1.0")]
    Fraction {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: f64,
    },
    /// No status of an error.
    #[error("{key} is {value}; it is an HTTP status, 200 to 599")]
    Status {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: u16,
    },
}

impl Faults {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`InvalidFaults`] names the setting.
    pub fn validate(&self) -> Result<(), InvalidFaults> {
        let fractions = [
            ("error_rate", self.error_rate),
            ("kv_events_untold", self.kv_events_untold),
            ("kv_events_dropped", self.kv_events_dropped),
        ];
        if let Some((key, value)) = fractions.into_iter().find(|(_, it)| !(0.0..=1.0).contains(it))
        {
            return Err(InvalidFaults::Fraction { key, value });
        }
        let statuses = [("error_status", self.error_status), ("health_status", self.health_status)];
        for (key, value) in statuses {
            if let Some(value) = value.filter(|value| !(200..=599).contains(value)) {
                return Err(InvalidFaults::Status { key, value });
            }
        }
        Ok(())
    }

    /// Status of the injected error of request number `number`, if it is to have one.
    pub(crate) fn error_of(&self, seed: u64, number: u64) -> Option<u16> {
        let draw = unit(mix64(seed ^ mix64(number)));
        (draw < self.error_rate).then(|| self.error_status.unwrap_or(500))
    }

    pub(crate) const fn extra_delay(&self) -> Duration {
        Duration::from_millis(self.extra_delay_ms)
    }

    pub(crate) const fn header_delay(&self) -> Duration {
        Duration::from_millis(self.header_delay_ms)
    }
}
