//! Real time to model time and back.

use std::time::Duration;

use kvroute_types::Timestamp;
use tokio::time::Instant;

/// Model time runs `scale` times as fast as the real one, from zero at the start.
///
/// tokio's timers fire up to 1 ms late, so tokens reach the client that much later than the model says; the model
/// itself does not drift, and its stamps (in the metrics) are exact.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    scale: f64,
}

impl Clock {
    pub(crate) fn start(scale: f64) -> Self {
        Self { start: Instant::now(), scale }
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.to_model_ns(self.start.elapsed()))
    }

    /// The earliest real instant at which it is `at`.
    pub(crate) fn instant(&self, at: Timestamp) -> Instant {
        self.start
            + Duration::from_secs_f64(at.as_secs_f64() / self.scale)
            + Duration::from_nanos(1)
    }

    /// A real duration in model nanoseconds.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "durations are not negative, and the cast saturates"
    )]
    pub(crate) fn to_model_ns(self, real: Duration) -> u64 {
        (real.as_nanos() as f64 * self.scale) as u64
    }
}
