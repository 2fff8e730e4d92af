//! Settings of an audit.

use kvroute_types::BlockSize;
use kvroute_vllm_wire::HashAlgo;
use serde::{Deserialize, Serialize};

/// When an index is believed, and when no longer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// How many of the latest audited requests are judged together; at least `requests_min`.
    ///
    /// Default 200: a fault that strikes one request in twenty shows ten times in it.
    pub window_requests: u32,
    /// Audited requests from which on an index is judged; at least 1. Precision is judged only over as many requests
    /// with a prediction, recall over as many with a hit.
    ///
    /// Default 32: few enough that a fault is found long before 200 requests, and enough that one evicted prompt among
    /// them is not a tenth.
    pub requests_min: u32,
    /// Precision below which the index is doubted, `0.0..=1.0`, if also more than the rest to 1 of the requests were
    /// promised too much (so that one long prompt does not decide).
    ///
    /// Default 0.9: blocks that are evicted between routing and admission cost a per cent or two, a wrong index nearly
    /// all (our choice).
    pub precision_min: f64,
    /// Recall below which the index is doubted, `0.0..=1.0`, if also more than the rest to 1 of the requests found what
    /// was not predicted.
    ///
    /// Default 0.9, as for `precision_min`.
    pub recall_min: f64,
    /// Share of audited requests with news missing (see the crate's documentation) above which the index is doubted,
    /// `0.0..=1.0`. It takes three of them anyway.
    ///
    /// Default 0.01: with all events there are none at all.
    pub missing_max: f64,
    /// Seconds after a request's end within which the event of its last prompt block must have come; at least 0.
    ///
    /// Default 2: vLLM publishes with the step that computes the block, so the event is under way before the first
    /// token; the rest is for a subscriber that reconnects and asks for a replay.
    pub confirm_s: f64,
    /// Good requests in a row after which a doubted index is believed again; at least 1. Doubled with each recovery in
    /// one life of the instance, up to 16 times.
    ///
    /// Default 64: one request in twenty being wrong leaves such a row a chance of 4 % (our choice).
    pub recover_requests: u32,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            window_requests: 200,
            requests_min: 32,
            precision_min: 0.9,
            recall_min: 0.9,
            missing_max: 0.01,
            confirm_s: 2.0,
            recover_requests: 64,
        }
    }
}

impl AuditConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// [`InvalidAudit`] names the first value out of its range.
    pub fn validate(&self) -> Result<(), InvalidAudit> {
        let Self {
            window_requests,
            requests_min,
            precision_min,
            recall_min,
            missing_max,
            confirm_s,
            recover_requests,
        } = *self;
        if requests_min == 0 || recover_requests == 0 {
            return Err(InvalidAudit::NoRequests { requests_min, recover_requests });
        }
        if window_requests < requests_min {
            return Err(InvalidAudit::WindowTooSmall { window_requests, requests_min });
        }
        let shares = [
            ("precision_min", precision_min),
            ("recall_min", recall_min),
            ("missing_max", missing_max),
        ];
        for (name, value) in shares {
            if !(0.0..=1.0).contains(&value) {
                return Err(InvalidAudit::NoShare { name, value });
            }
        }
        if !(confirm_s >= 0.0 && confirm_s.is_finite()) {
            return Err(InvalidAudit::BadConfirm { confirm_s });
        }
        Ok(())
    }
}

/// A setting of an audit is out of its range.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum InvalidAudit {
    /// A number of requests is zero.
    #[error(
        "requests_min is {requests_min} and recover_requests is {recover_requests}; give at least 1 for each"
    )]
    NoRequests {
        /// The value given.
        requests_min: u32,
        /// The value given.
        recover_requests: u32,
    },
    /// The window is never full enough to be judged.
    #[error(
        "window_requests is {window_requests}, below requests_min, so nothing would ever be judged; \
         give at least {requests_min}"
    )]
    WindowTooSmall {
        /// The value given.
        window_requests: u32,
        /// The least it may be.
        requests_min: u32,
    },
    /// A share is not one.
    #[error("{name} is {value}; give a share between 0 and 1")]
    NoShare {
        /// The setting.
        name: &'static str,
        /// The value given.
        value: f64,
    },
    /// The time for confirmation is not a time span.
    #[error("confirm_s is {confirm_s}; give a finite number of seconds, at least 0")]
    BadConfirm {
        /// The value given, seconds.
        confirm_s: f64,
    },
}

/// How blocks are named on this side; what the instance must agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// vLLM's `--prefix-caching-hash-algo`.
    pub algo: HashAlgo,
    /// vLLM's `--block-size`.
    pub block_size: BlockSize,
    /// The server's `PYTHONHASHSEED`, if it is set.
    pub pythonhashseed: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        assert_eq!(AuditConfig::default().validate(), Ok(()));
        for (text, setting) in [
            ("window_requests = 31", "window_requests is 31"),
            ("requests_min = 0", "requests_min is 0"),
            ("recover_requests = 0", "recover_requests is 0"),
            ("precision_min = 1.1", "precision_min is 1.1"),
            ("recall_min = nan", "recall_min is NaN"),
            ("missing_max = -0.1", "missing_max is -0.1"),
            ("confirm_s = inf", "confirm_s is inf"),
        ] {
            let config: AuditConfig = toml::from_str(text).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(setting) && error.contains("give"), "{error}");
        }
        assert!(toml::from_str::<AuditConfig>("precision = 1").is_err(), "unknown settings fail");
    }
}
