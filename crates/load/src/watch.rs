//! The instances' own account of a run: counters before and after, gauges in between.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::{InstanceTarget, Settings};
use crate::metrics::{CounterReset, Gauge, Metrics, MetricsDelta, ScrapeError, scrape};

/// A page that takes longer is counted as unreadable.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

/// What one instance said of itself over the run, the warm-up excluded.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceOutcome {
    /// Its name.
    pub name: String,
    /// Its page at the end of the warm-up, or before the first request without one. `None` if the run was over sooner.
    pub before: Option<Result<Metrics, ScrapeError>>,
    /// Its page after the last answer.
    pub after: Result<Metrics, ScrapeError>,
    /// Requests in the waiting queue.
    pub waiting: GaugeSamples,
    /// Requests in the running list.
    pub running: GaugeSamples,
    /// Fraction of KV blocks in use, `0.0..=1.0`.
    pub kv_cache_usage: GaugeSamples,
    /// Pages that could not be read in between; no samples then.
    pub failed_scrapes: u64,
}

impl InstanceOutcome {
    /// Growth of its counters; `None` if one of the two pages could not be read.
    ///
    /// # Errors
    /// If the instance was restarted in between.
    pub fn delta(&self) -> Option<Result<MetricsDelta, CounterReset>> {
        let before = self.before.as_ref()?.as_ref().ok()?;
        Some(self.after.as_ref().ok()?.since(before))
    }

    /// Today's names of the figures that its page after the run lacks; to be reported loudly.
    pub fn missing(&self) -> Vec<&'static str> {
        self.after.as_ref().map(Metrics::missing).unwrap_or_default()
    }
}

/// Samples of one gauge, at even distances in time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GaugeSamples {
    sum: f64,
    count: u32,
    max: Option<f64>,
}

impl GaugeSamples {
    /// Number of samples.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Mean; `None` without samples.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / f64::from(self.count))
    }

    /// Largest; `None` without samples.
    pub const fn max(&self) -> Option<f64> {
        self.max
    }

    fn add(&mut self, value: Option<f64>) {
        let Some(value) = value else { return };
        self.sum += value;
        self.count += 1;
        self.max = Some(self.max.map_or(value, |max| max.max(value)));
    }
}

/// The watch over all instances. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Watch {
    stops: Vec<oneshot::Sender<()>>,
    tasks: JoinSet<(usize, InstanceOutcome)>,
}

impl Watch {
    /// Reads every instance's counters (if there is no warm-up), and starts to watch.
    pub(crate) async fn start(settings: &Settings, warm_up: Duration) -> Self {
        let mut watch = Self { stops: Vec::new(), tasks: JoinSet::new() };
        let mut ready = JoinSet::new();
        for (index, instance) in settings.instances.iter().cloned().enumerate() {
            let (stop, stopped) = oneshot::channel();
            let (is_ready, readiness) = oneshot::channel();
            watch.stops.push(stop);
            let interval = settings.metrics_interval;
            watch.tasks.spawn(async move {
                (index, observe(instance, warm_up, interval, is_ready, stopped).await)
            });
            ready.spawn(readiness);
        }
        // An error is a task that panicked, which comes out at the end.
        while ready.join_next().await.is_some() {}
        watch
    }

    /// Reads the counters again and tells what there was, in the order of the instances.
    pub(crate) async fn finish(mut self) -> Vec<InstanceOutcome> {
        self.stops.clear();
        let mut outcomes = Vec::with_capacity(self.tasks.len());
        while let Some(outcome) = self.tasks.join_next().await {
            match outcome.map_err(tokio::task::JoinError::try_into_panic) {
                Ok(outcome) => outcomes.push(outcome),
                Err(Ok(panic)) => std::panic::resume_unwind(panic),
                Err(Err(error)) => {
                    unreachable!("no task is aborted while the watch lasts: {error}")
                }
            }
        }
        outcomes.sort_by_key(|(index, _)| *index);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

/// Watches one instance until `stopped`.
async fn observe(
    instance: InstanceTarget,
    warm_up: Duration,
    interval: Duration,
    is_ready: oneshot::Sender<()>,
    mut stopped: oneshot::Receiver<()>,
) -> InstanceOutcome {
    let read = || scrape(&instance.url, SCRAPE_TIMEOUT);
    let counted_from = Instant::now().checked_add(warm_up);
    let mut before = None;
    if warm_up.is_zero() {
        before = Some(read().await);
    }
    // Nobody listens any more if the run was dropped, and then nobody will want the outcome.
    let _ = is_ready.send(());
    let [mut waiting, mut running, mut kv_cache_usage] = [GaugeSamples::default(); 3];
    let mut failed_scrapes = 0;
    loop {
        let pause = async {
            match (&before, counted_from) {
                (Some(_), _) => sleep(interval).await,
                (None, Some(counted_from)) => sleep_until(counted_from).await,
                (None, None) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            () = pause => {}
        }
        let page = read().await;
        if let Ok(page) = &page {
            waiting.add(page.gauge(Gauge::Waiting));
            running.add(page.gauge(Gauge::Running));
            kv_cache_usage.add(page.gauge(Gauge::KvCacheUsage));
        } else {
            failed_scrapes += 1;
        }
        before.get_or_insert(page);
    }
    let after = read().await;
    let name = instance.name().to_owned();
    InstanceOutcome { name, before, after, waiting, running, kv_cache_usage, failed_scrapes }
}
