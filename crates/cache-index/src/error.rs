//! What can be wrong with a configuration.

use std::time::Duration;

use thiserror::Error;

/// Why a [`History`](crate::History), an [`ExactIndex`](crate::ExactIndex) or a
/// [`LastRoute`](crate::LastRoute) could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// `capacity_blocks` is zero.
    #[error(
        "capacity_blocks is 0, so nothing would ever match; \
         give the KV blocks of one instance, or leave it out for no limit per instance"
    )]
    ZeroCapacityBlocks,
    /// `capacity_keys` is zero.
    #[error("capacity_keys is 0, so nothing would ever match; give at least 1")]
    ZeroCapacityKeys,
    /// `expiry_s` is not a time span.
    #[error(
        "expiry_s is {expiry_s}; give a finite number of seconds above 0, \
         or leave it out so that entries never expire"
    )]
    BadExpiry {
        /// The value given, seconds.
        expiry_s: f64,
    },
    /// `budget_bytes` is too small to be of use.
    #[error("budget_bytes is {budget_bytes}; give at least {min_bytes} bytes")]
    BudgetTooSmall {
        /// The value given, bytes.
        budget_bytes: usize,
        /// The smallest value accepted, bytes.
        min_bytes: usize,
    },
}

/// Age in nanoseconds at which an entry is expired; `u64::MAX` (584 years) if entries never expire.
pub(crate) fn expiry_ns(expiry_s: Option<f64>) -> Result<u64, ConfigError> {
    let Some(expiry_s) = expiry_s else {
        return Ok(u64::MAX);
    };
    if expiry_s > 0.0
        && let Ok(expiry) = Duration::try_from_secs_f64(expiry_s)
    {
        // A span below half a nanosecond would round to "expired at once"; 1 ns is the least.
        Ok(u64::try_from(expiry.as_nanos()).unwrap_or(u64::MAX).max(1))
    } else {
        Err(ConfigError::BadExpiry { expiry_s })
    }
}
