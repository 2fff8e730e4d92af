//! Runs of an experiment in real time: embedded instances behind the gateway, over HTTP.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;

use kvroute_experiment::{Live, LiveOutcome, LiveRun};
use kvroute_gateway::{Gateway, GatewayConfig, InstanceConfig};
use kvroute_lab::{
    InstanceMeasurements, Measurements, Mode, Preemptions, RunResult, mean_in_flight,
};
use kvroute_load::{InstanceTarget, LoadConfig, PromptForm};
use kvroute_mock_server::{MockCluster, MockConfig};
use kvroute_router::{DirectorySource, Refresh, SignalConfig};
use kvroute_sim::SimConfig;
use kvroute_types::InstanceId;

use crate::failure::Failure;
use crate::live::{target, wait_until_ready};

/// Prompts are token ids below this.
const VOCABULARY: NonZeroU32 = NonZeroU32::new(32_000).expect("not 0");

/// Embedded instances, fresh ones for each run.
pub(super) struct LiveInstances {
    runtime: tokio::runtime::Runtime,
}

impl LiveInstances {
    pub(super) fn new() -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { runtime })
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
    if config.instances_per_device > 1 {
        return refusal("a shared device");
    }
    Ok(())
}

async fn play(run: &LiveRun<'_>) -> Result<LiveOutcome, Failure> {
    let config = run.config;
    let mock = MockConfig {
        instances: config.instances,
        engine: config.engine.clone(),
        ..MockConfig::new(config.profile.clone())
    };
    let cluster = MockCluster::start(mock).await.map_err(|error| Failure::Run(error.into()))?;
    let gateway = Gateway::start(gateway_config(config, &cluster))
        .map_err(|error| Failure::Run(error.into()))?;
    wait_until_ready(&gateway).await?;
    let instances = cluster.instances().iter().map(|i| target(&i.url()).map(InstanceTarget::new));
    let load = LoadConfig {
        target: target(&format!("http://{}", gateway.addr()))?,
        prompt_form: PromptForm::TokenIds { vocabulary: VOCABULARY },
        request_timeout_s: 120.0,
        warm_up_s: run.window.from().as_secs_f64(),
        instances: instances.collect::<Result<_, _>>()?,
        ..LoadConfig::default()
    };
    let outcome = kvroute_load::run(load, run.workload, |_| {}).await;
    let outcome = outcome.map_err(|error| Failure::Run(error.into()))?;
    gateway.shutdown().await;
    cluster.shutdown().await;

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
        hit_rate_infinite_cache: Some(run.hit_rate_infinite_cache),
        instances_measured: instances.collect(),
        cov_in_flight: None,
        preemptions: Preemptions::Unmeasured,
        decision_log_hash: None,
        wall_s: outcome.wall.as_secs_f64(),
    });
    Ok(LiveOutcome { result, records: outcome.records })
}

fn gateway_config(config: &SimConfig, cluster: &MockCluster) -> GatewayConfig {
    let any_port: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let mut gateway = GatewayConfig {
        listen: any_port,
        admin_listen: any_port,
        threads: Some(1),
        instances: cluster.instances().iter().map(|i| InstanceConfig::new(i.url())).collect(),
        policy: config.policy,
        seed: config.seed,
        ..GatewayConfig::default()
    };
    gateway.load.refresh_s = match config.router.load.refresh {
        Refresh::EveryS(seconds) => Some(seconds),
        // As often as is sensible over HTTP.
        Refresh::RealTime => Some(0.05),
        Refresh::Never => None,
    };
    gateway.index.capacity_blocks = config.router.index_capacity_blocks;
    gateway.timeouts.lame_duck_s = 0.001;
    gateway
}
