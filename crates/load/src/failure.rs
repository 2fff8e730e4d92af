//! Why a request failed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Ways to fail, as the client saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// No connection came about: refused, unreachable, no file descriptor left.
    Connect,
    /// The connection broke before the answer was complete.
    Connection,
    /// The answer was not complete within the time-out.
    TimedOut,
    /// An answer with another status than 200.
    Status(u16),
    /// The stream ended in order but without `[DONE]`.
    Truncated,
    /// An error inside a stream whose status was 200, or an answer that the engine says it aborted.
    InStream,
    /// An answer that could not be read.
    Malformed,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Connection => f.write_str("connection"),
            Self::TimedOut => f.write_str("timed-out"),
            Self::Status(status) => write!(f, "status-{status}"),
            Self::Truncated => f.write_str("truncated"),
            Self::InStream => f.write_str("in-stream"),
            Self::Malformed => f.write_str("malformed"),
        }
    }
}

/// One failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }
}
