//! Runs of an experiment in real time: embedded instances behind the gateway, over HTTP.

use kvroute_experiment::{Live, LiveOutcome, LiveRun};
use kvroute_lab::{
    InstanceMeasurements, Measurements, Mode, Preemptions, RunResult, mean_in_flight,
};
use kvroute_router::{DirectorySource, Refresh, SignalConfig};
use kvroute_sim::SimConfig;
use kvroute_types::InstanceId;

use crate::embedded;
use crate::failure::Failure;

/// Above every objective: what takes longer has failed.
const REQUEST_TIMEOUT_S: f64 = 120.0;

/// Embedded instances, fresh ones for each run.
pub(super) struct LiveInstances {
    runtime: tokio::runtime::Runtime,
}

impl LiveInstances {
    pub(super) fn new() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { runtime })
    }

    /// The network delay, s, with which a simulation of the cluster is comparable.
    pub(super) fn measure_one_way(&self, cluster: &SimConfig) -> Result<f64, Failure> {
        self.runtime.block_on(embedded::measure_one_way(cluster))
    }
}

impl Live for LiveInstances {
    fn run(&self, run: &LiveRun<'_>) -> Result<LiveOutcome, String> {
        playable(run.config)?;
        self.runtime.block_on(play(run)).map_err(|failure| format!("{failure:#}"))
    }
}

/// Whether real instances can be put in this condition.
fn playable(config: &SimConfig) -> Result<(), String> {
    let has_delay = |signal: &SignalConfig| signal.delay_s > 0.0 || signal.loss > 0.0;
    let refusal =
        |what: &str| Err(format!("{what} can only be simulated; leave such cells out with --only"));
    if has_delay(&config.router.index) || has_delay(&config.router.load) {
        return refusal("a delay or a loss of signals");
    }
    if config.router.directory == DirectorySource::Events {
        return refusal("a directory of events");
    }
    if config.router.index.refresh != Refresh::RealTime {
        return refusal("an index refresh");
    }
    Ok(())
}

async fn play(run: &LiveRun<'_>) -> Result<LiveOutcome, Failure> {
    let config = run.config;
    let warm_up_s = run.window.from().as_secs_f64();
    let outcome = embedded::play(config, run.workload, warm_up_s, REQUEST_TIMEOUT_S).await?;
    let (from, until) = (run.window.from(), run.window.until().min(outcome.end));
    let instances = (0..).zip(&outcome.instances).map(|(id, instance)| InstanceMeasurements {
        instance: InstanceId(id),
        queue_depth_mean: instance.waiting.mean(),
        queue_depth_max: None,
        kv_cache_usage_mean: instance.kv_cache_usage.mean(),
        in_flight_mean: mean_in_flight(&outcome.records, InstanceId(id), from, until),
    });
    let result = RunResult::from_measurements(&Measurements {
        policy: config.policy.name().to_owned(),
        policy_config: serde_json::to_value(config.policy).map_err(std::io::Error::from)?,
        workload: run.workload.name().to_owned(),
        instances: config.instances,
        seed: config.seed,
        mode: Mode::Live,
        records: &outcome.records,
        window: run.window,
        slo: run.slo,
        inter_token_ns: Some(outcome.inter_token_ns.clone()),
        hit_rate_bounds: run.hit_rate_bounds,
        instances_measured: instances.collect(),
        cov_in_flight: None,
        preemptions: Preemptions::Unmeasured,
        decision_log_hash: None,
        wall_s: outcome.wall.as_secs_f64(),
    });
    Ok(LiveOutcome { result, records: outcome.records })
}
