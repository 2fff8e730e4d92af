//! A simulated cluster made real: mock instances behind the gateway, in this process, over HTTP.

use std::num::NonZeroU32;

use kvroute_gateway::{Gateway, GatewayConfig};
use kvroute_lab::quantile;
use kvroute_load::{InstanceTarget, LoadConfig, LoadOutcome, PromptForm};
use kvroute_mock_server::{MockCluster, MockConfig, MockInstance};
use kvroute_policy::PolicyConfig;
use kvroute_router::Refresh;
use kvroute_sim::SimConfig;
use kvroute_types::RequestRecord;
use kvroute_workload::{Plan, Workload, WorkloadSpec};

use crate::failure::Failure;
use crate::live::{embedded_gateway, target, wait_until_ready};

/// Prompts are token ids below this.
pub(crate) const VOCABULARY: NonZeroU32 = NonZeroU32::new(32_000).expect("not 0");
/// Seconds between two load readings where the simulated ones are never old: as often as is sensible over HTTP.
const LOAD_REFRESH_MIN_S: f64 = 0.05;
/// Requests, one after the other on idle instances, from which the time that HTTP takes is measured.
const PROBES: u32 = 20;
/// What they are.
const PROBE: &str = "kind = \"uniform\"\nrequests_per_s = 8.0\nprompt_tokens = { kind = \"constant\", value = 64 }\n\
                     output_tokens = { kind = \"constant\", value = 2 }\n";

/// Plays a workload at fresh instances and a fresh gateway, made as the simulated cluster is; what `warm_up_s` and
/// `request_timeout_s` mean is told at [`LoadConfig`].
///
/// The network delay is HTTP's own ([`measure_one_way`]), whatever the cluster says.
pub(crate) async fn play(
    cluster: &SimConfig,
    workload: &Workload,
    warm_up_s: f64,
    request_timeout_s: f64,
) -> Result<LoadOutcome, Failure> {
    let mock = MockConfig {
        instances: cluster.instances,
        engine: cluster.engine.clone(),
        instances_per_device: cluster.instances_per_device,
        speeds: cluster.speeds.clone(),
        ..MockConfig::new(cluster.profile.clone())
    };
    let instances = MockCluster::start(mock).await.map_err(|error| Failure::Run(error.into()))?;
    let gateway = Gateway::start(gateway_config(cluster, &instances))
        .map_err(|error| Failure::Run(error.into()))?;
    wait_until_ready(&gateway).await?;
    let targets = instances.instances().iter().map(|i| target(&i.url()).map(InstanceTarget::new));
    let load = LoadConfig {
        target: target(&format!("http://{}", gateway.addr()))?,
        prompt_form: PromptForm::TokenIds { vocabulary: VOCABULARY },
        request_timeout_s,
        warm_up_s,
        instances: targets.collect::<Result<_, _>>()?,
        ..LoadConfig::default()
    };
    let outcome = kvroute_load::run(load, workload, |_| {}).await;
    let outcome = outcome.map_err(|error| Failure::Run(error.into()))?;
    gateway.shutdown().await;
    instances.shutdown().await;
    Ok(outcome)
}

/// Half of what first tokens take longer over HTTP than simulated without a network, s, when nothing else goes on: the
/// network delay with which a simulation of the cluster is comparable.
pub(crate) async fn measure_one_way(cluster: &SimConfig) -> Result<f64, Failure> {
    let cluster =
        SimConfig { network_delay_s: 0.0, policy: PolicyConfig::RoundRobin {}, ..cluster.clone() };
    let spec = WorkloadSpec::from_toml(PROBE).map_err(Failure::usage)?;
    let workload = spec.generate(cluster.seed, PROBES).map_err(Failure::usage)?;
    let live = play(&cluster, &workload, 0.0, 30.0).await?;
    let plan = Plan::new(&workload, cluster.engine.block_size).map_err(Failure::usage)?;
    let simulated = kvroute_sim::simulate(&cluster, &workload, &plan, |_| {});
    let simulated = simulated.map_err(|error| Failure::Run(error.into()))?;
    let median = |records: &[RequestRecord]| {
        let ttft_s =
            |record: &RequestRecord| Some(record.first_token?.since(record.arrival).as_secs_f64());
        let mut all: Vec<f64> = records.iter().filter_map(ttft_s).collect();
        all.sort_by(f64::total_cmp);
        quantile(&all, 0.5)
    };
    let more_s = median(&live.records).zip(median(&simulated.records)).map(|(l, s)| l - s);
    Ok((more_s.unwrap_or(0.0) / 2.0).max(0.0))
}

fn gateway_config(cluster: &SimConfig, instances: &MockCluster) -> GatewayConfig {
    let urls = instances.instances().iter().map(MockInstance::url);
    let mut gateway = embedded_gateway(urls, cluster.policy, cluster.seed);
    gateway.load.refresh_s = match cluster.router.load.refresh {
        Refresh::EveryS(seconds) => Some(seconds),
        Refresh::RealTime => Some(LOAD_REFRESH_MIN_S),
        Refresh::Never => None,
    };
    gateway.index.capacity_blocks = cluster.router.index_capacity_blocks;
    gateway
}
