//! What a simulation is told.

use kvroute_engine::{EngineConfig, InvalidEngineConfig, RequestRejected};
use kvroute_policy::{InvalidPolicy, PolicyConfig};
use kvroute_profile::LatencyProfile;
use kvroute_router::{InvalidRouterConfig, RouterConfig};
use kvroute_types::{BlockSize, RequestId};
use serde::{Deserialize, Serialize};

/// One simulated cluster and the policy that routes to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimConfig {
    /// Number of instances; at least 1.
    pub instances: u32,
    /// The rule.
    pub policy: PolicyConfig,
    /// Settings of every engine.
    pub engine: EngineConfig,
    /// Length of the engines' steps, and the overheads around them.
    pub profile: LatencyProfile,
    /// Instances that share one device; they slow each other down while busy. 1 if each has its own.
    pub instances_per_device: u32,
    /// Settings of the router, the staleness of its signals among them.
    pub router: RouterConfig,
    /// One-way delay between gateway and instance, s.
    pub network_delay_s: f64,
    /// Measurements that are not per request (gauges over time, inter-token times, in-flight spread) begin here, s.
    pub measure_from_s: f64,
    /// Feeds the policy's and the signals' generators. The workload has its own.
    pub seed: u64,
}

impl SimConfig {
    /// `instances` instances of a profile, with the engine sizes it names, everything else at its default.
    pub fn new(instances: u32, policy: PolicyConfig, profile: LatencyProfile, seed: u64) -> Self {
        let sizes = profile.engine;
        let block_size = BlockSize::new(sizes.block_size).unwrap_or_default();
        Self {
            instances,
            policy,
            engine: EngineConfig {
                block_size,
                kv_blocks: sizes.kv_blocks,
                max_model_len: sizes.max_model_len,
                max_num_batched_tokens: sizes.max_num_batched_tokens,
                max_num_seqs: sizes.max_num_seqs,
                ..EngineConfig::default()
            },
            instances_per_device: sizes.instances_per_device,
            router: RouterConfig {
                block_size,
                index_capacity_blocks: Some(sizes.kv_blocks),
                ..RouterConfig::default()
            },
            profile,
            network_delay_s: 0.0,
            measure_from_s: 0.0,
            seed,
        }
    }

    /// Sets the engines' KV blocks, and with them what the router believes they hold. The longest sequence stays, and
    /// must fit (R3).
    #[must_use]
    pub fn with_kv_blocks(mut self, kv_blocks: u32) -> Self {
        self.engine.kv_blocks = kv_blocks;
        self.router.index_capacity_blocks = Some(kv_blocks);
        self
    }

    /// Sets the block size of engines and router.
    #[must_use]
    pub fn with_block_size(mut self, block_size: BlockSize) -> Self {
        self.engine.block_size = block_size;
        self.router.block_size = block_size;
        self
    }
}

/// A simulation that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSim {
    /// No instance to route to.
    #[error("0 instances; give at least 1")]
    NoInstances,
    /// Devices without instances.
    #[error("instances_per_device is 0; give 1, or the number of instances that share one device")]
    NoInstancesPerDevice,
    /// A delay out of range.
    #[error("{key} is {value}; give 0 or a positive number of seconds")]
    Seconds {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: f64,
    },
    /// The plan was made for another block size.
    #[error(
        "the plan cuts the workload into blocks of {plan} tokens, but the engines use {engine}; make the plan for \
         blocks of {engine}, or set the engines' block_size to {plan}"
    )]
    BlockSize {
        /// Of the plan.
        plan: BlockSize,
        /// Of the engines.
        engine: BlockSize,
    },
    /// Router and engines disagree about blocks.
    #[error(
        "the router counts in blocks of {router} tokens, but the engines use {engine}; set both to the same block_size"
    )]
    RouterBlockSize {
        /// Of the router.
        router: BlockSize,
        /// Of the engines.
        engine: BlockSize,
    },
    /// In the engine settings.
    #[error("in the engine settings")]
    Engine(#[source] InvalidEngineConfig),
    /// In the policy.
    #[error("in the policy")]
    Policy(#[source] InvalidPolicy),
    /// In the router settings.
    #[error("in the router settings")]
    Router(#[source] InvalidRouterConfig),
    /// A request of the workload could never run.
    #[error("request {id} of the workload can never run")]
    Request {
        /// Its number in the workload.
        id: RequestId,
        /// Why.
        #[source]
        source: RequestRejected,
    },
}
