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
    /// How fast the instances are against the profile, in turn: instance `i` has number `i` modulo the length. Each is
    /// positive; if there are none, all are as the profile says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub speeds: Vec<f64>,
    /// Settings of the router, the staleness of its signals among them.
    pub router: RouterConfig,
    /// One-way delay between gateway and instance, s.
    pub network_delay_s: f64,
    /// Measurements that are not per request (gauges over time, inter-token times, in-flight spread) begin here, s.
    pub measure_from_s: f64,
    /// They end here, s; at the end of the run by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measure_until_s: Option<f64>,
    /// Feeds the policy's and the signals' generators. The workload has its own.
    pub seed: u64,
    /// When the router is replaced by a new one, in the order of their times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub router_restarts: Vec<RouterRestart>,
    /// Time between two samples of every instance's state, s, above 0; none are kept by default. Sampling changes nothing
    /// else of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_every_s: Option<f64>,
}

/// The router goes and a new one takes its place, as when a gateway is restarted or another version of it rolled out.
///
/// The new router knows the instances and nothing else. Its cache directory is empty (a live gateway that hears KV events
/// can do better: it asks the instances for a replay). What is in flight goes on and ends, but the new router is not told
/// of it, and sees it in the instances' gauges alone. Readings and news that were on their way are lost. Its load readings
/// come on the old timetable, the first of them when that is next due; under [`Refresh::RealTime`] it gets the present
/// loads at once, as by a gateway's first scrape. The engines notice nothing and keep their caches.
///
/// What is due at the same time is handled first if it is an engine's step or an answer, and after it if it is a request or
/// a load reading. A restart at time 0 is none: it only sets the policy.
///
/// [`Refresh::RealTime`]: kvroute_router::Refresh::RealTime
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterRestart {
    /// When, s.
    pub at_s: f64,
    /// The rule from then on; as before if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyConfig>,
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
            speeds: Vec::new(),
            router: RouterConfig {
                block_size,
                index_capacity_blocks: Some(sizes.kv_blocks),
                ..RouterConfig::default()
            },
            profile,
            network_delay_s: 0.0,
            measure_from_s: 0.0,
            measure_until_s: None,
            seed,
            router_restarts: Vec::new(),
            sample_every_s: None,
        }
    }

    /// Whether its own numbers make sense; engine, policy and router are checked where they are made.
    pub(crate) fn validate(&self) -> Result<(), InvalidSim> {
        if self.instances == 0 {
            return Err(InvalidSim::NoInstances);
        }
        if self.instances_per_device == 0 {
            return Err(InvalidSim::NoInstancesPerDevice);
        }
        if let Some(&value) = self.speeds.iter().find(|it| !(it.is_finite() && **it > 0.0)) {
            return Err(InvalidSim::Speed { value });
        }
        for (key, value) in [
            ("network_delay_s", self.network_delay_s),
            ("measure_from_s", self.measure_from_s),
            ("measure_until_s", self.measure_until_s.unwrap_or(0.0)),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(InvalidSim::Seconds { key, value });
            }
        }
        if let Some(value) = self.sample_every_s
            && !(value.is_finite() && value > 0.0)
        {
            return Err(InvalidSim::SampleInterval { value });
        }
        Ok(())
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
    /// A speed out of range.
    #[error("a speed is {value}; give positive numbers, 1 for an instance as fast as the profile")]
    Speed {
        /// What was given.
        value: f64,
    },
    /// A sampling interval out of range.
    #[error(
        "sample_every_s is {value}; give a positive number of seconds, or leave it out for no samples"
    )]
    SampleInterval {
        /// What was given.
        value: f64,
    },
    /// Router restarts out of order.
    #[error(
        "the router restart at {at_s} s comes after the one at {previous_s} s; sort router_restarts by at_s, each later than \
         the one before"
    )]
    RestartOrder {
        /// The later in the list.
        at_s: f64,
        /// The one before it.
        previous_s: f64,
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
