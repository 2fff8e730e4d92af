//! What a subscription counts, from its start on.

use kvroute_vllm_wire::{DecodeError, FrameError};

/// Counts of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections to the publisher made.
    pub connects: u64,
    /// Attempts to reach the publisher that failed.
    pub connect_failures: u64,
    /// Messages from the publisher, usable or not.
    pub messages: u64,
    /// Batches used, live and replayed.
    pub batches: u64,
    /// Events in them.
    pub events: u64,
    /// Events about other media than the GPU's memory, which are not passed on.
    pub events_elsewhere: u64,
    /// Live batches that were known from a replay.
    pub duplicates: u64,
    /// Times a live batch showed that others are missing before it.
    pub gaps: u64,
    /// Replays asked for.
    pub replays: u64,
    /// Replays that failed: no connection, no answer in time, or an answer that is none.
    pub replay_failures: u64,
    /// Batches used that came by replay.
    pub replayed: u64,
    /// Quiet checks begun: replays asked for because no message had come for a while.
    pub quiet_checks: u64,
    /// Batches used that a quiet check brought; they are in `replayed` too.
    pub found_by_checks: u64,
    /// Batches known to be missing for good.
    pub lost_batches: u64,
    /// [`Fact::Lost`](crate::Fact::Lost) told, for whatever reason.
    pub losses: u64,
    /// Restarts of the server found by its numbers.
    pub restarts: u64,
    errors: [u64; ErrorKind::ALL.len()],
}

impl Counters {
    /// Things that could not be read, by kind; kinds with none included.
    pub fn errors(&self) -> impl Iterator<Item = (ErrorKind, u64)> + '_ {
        ErrorKind::ALL.into_iter().map(|kind| (kind, self.errors[kind as usize]))
    }

    pub(crate) fn count_error(&mut self, kind: ErrorKind) {
        self.errors[kind as usize] += 1;
    }
}

/// What was wrong with something that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// The connection broke ZMTP's rules or limits; it was closed.
    Protocol,
    /// A message of other frames than vLLM's.
    Frames,
    /// A payload that ends too early.
    Truncated,
    /// A payload with bytes after its end.
    TrailingBytes,
    /// A value of another type than its field's.
    WrongType,
    /// A number, hash or text that its field cannot hold.
    BadValue,
    /// A field that must be there is not.
    MissingField,
    /// An event of an unknown type.
    UnknownEvent,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Protocol,
        Self::Frames,
        Self::Truncated,
        Self::TrailingBytes,
        Self::WrongType,
        Self::BadValue,
        Self::MissingField,
        Self::UnknownEvent,
    ];

    /// Its name, as for the label of a metric.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Frames => "frames",
            Self::Truncated => "truncated",
            Self::TrailingBytes => "trailing_bytes",
            Self::WrongType => "wrong_type",
            Self::BadValue => "bad_value",
            Self::MissingField => "missing_field",
            Self::UnknownEvent => "unknown_event",
        }
    }
}

impl From<&FrameError> for ErrorKind {
    fn from(_: &FrameError) -> Self {
        Self::Frames
    }
}

impl From<&DecodeError> for ErrorKind {
    fn from(error: &DecodeError) -> Self {
        match error {
            DecodeError::Truncated { .. } => Self::Truncated,
            DecodeError::TrailingBytes { .. } => Self::TrailingBytes,
            DecodeError::WrongType { .. } => Self::WrongType,
            DecodeError::OutOfRange { .. }
            | DecodeError::HashLength { .. }
            | DecodeError::NotUtf8 { .. } => Self::BadValue,
            DecodeError::MissingField { .. } => Self::MissingField,
            DecodeError::UnknownEventType { .. } => Self::UnknownEvent,
        }
    }
}
