//! Workload time against the wall clock.

use std::time::Duration;

use kvroute_types::Timestamp;
use tokio::time::Instant;

/// Workload time runs `scale` times as fast as the real one, from zero at the start.
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
        Timestamp::ZERO + scaled(self.start.elapsed(), self.scale)
    }

    /// When `at` is on the wall clock; `None` if it is too far off to be told.
    pub(crate) fn instant(&self, at: Timestamp) -> Option<Instant> {
        self.start.checked_add(self.wall(at.since(Timestamp::ZERO)))
    }

    /// How long a span of workload time takes on the wall clock.
    pub(crate) fn wall(&self, span: Duration) -> Duration {
        scaled(span, 1.0 / self.scale)
    }
}

fn scaled(span: Duration, factor: f64) -> Duration {
    // Whole nanoseconds stay exact where nothing is scaled. (A quotient near 1 is not exactly 1.)
    if (factor - 1.0).abs() < f64::EPSILON {
        return span;
    }
    Duration::try_from_secs_f64(span.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn workload_time_is_scaled() {
        let (real, fast) = (Clock::start(1.0), Clock::start(10.0));
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(real.now().as_nanos(), 1_500_000_000);
        assert_eq!(fast.now().as_nanos(), 15_000_000_000);
        let at = fast.instant(Timestamp::from_secs_f64(20.0)).unwrap();
        assert_eq!(at - Instant::now(), Duration::from_millis(500));
    }
}
