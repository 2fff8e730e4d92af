//! Settings of a mock cluster.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kvroute_engine::{EngineConfig, InvalidEngineConfig};
use kvroute_profile::LatencyProfile;
use kvroute_types::BlockSize;
use serde::{Deserialize, Serialize};

use crate::faults::{Faults, InvalidFaults};
use crate::kv_events::KvEventsConfig;

/// Settings of a [`crate::MockCluster`].
///
/// There is no default, as none fits the profile and the engine: start from [`MockConfig::new`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MockConfig {
    /// Instances, each with an engine, a cache and an address of its own; at least 1.
    pub instances: u32,
    /// How long things take.
    pub profile: LatencyProfile,
    /// Sizes and switches of each engine. `kv_events` and `report_tokens` are turned on, whatever they say.
    pub engine: EngineConfig,
    /// Served model names, as `--served-model-name`; the first one labels the metrics. At least 1.
    pub models: Vec<String>,
    /// Address to listen at.
    pub host: IpAddr,
    /// Port of the first instance; instance `i` gets the port `i` above. 0: each gets a free one.
    pub port: u16,
    /// Model seconds in a real second; above 1 everything is faster. Positive.
    pub time_scale: f64,
    /// Seed of answers and faults.
    pub seed: u64,
    /// Mean length of an answer that ends by itself, tokens, the end-of-sequence token included; at least 1. A made-up
    /// number: no model is behind it.
    pub eos_mean_tokens: f64,
    /// vLLM's `--enable-prompt-tokens-details`: whether `usage` tells the cached tokens (R77). Off
    /// in vLLM by default; on in [`MockConfig::new`], as the cache is what one looks at here.
    pub enable_prompt_tokens_details: bool,
    /// vLLM's `--enable-force-include-usage`: whether every stream tells its usage, in every frame (R75).
    pub enable_force_include_usage: bool,
    /// vLLM's `VLLM_SERVER_DEV_MODE`: whether `POST /reset_prefix_cache` exists (R82).
    pub dev_mode: bool,
    /// Neighbouring instances that share a device; while k of them are busy each runs k times slower. At least 1.
    pub instances_per_device: u32,
    /// How fast the instances are against the profile, in turn: instance `i` has number `i` modulo the length. Each is
    /// positive; if there are none, all are as the profile says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub speeds: Vec<f64>,
    /// What goes wrong, on every instance, from the start.
    pub faults: Faults,
    /// Whether and how each instance publishes KV events.
    pub kv_events: Option<KvEventsConfig>,
    /// Answers without an engine, for measurements of what is in front of it.
    pub zero_delay: Option<ZeroDelay>,
}

/// Requests for inference are answered at once with fixed text; the body is read and not looked at, except for
/// `"stream": true`. Engines stay idle and faults do not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZeroDelay {
    /// Token events of a stream, besides the usage event and `[DONE]`.
    pub events: u32,
}

impl Default for ZeroDelay {
    /// 16 events, vLLM's default `max_tokens` of a completion.
    fn default() -> Self {
        Self { events: 16 }
    }
}

impl MockConfig {
    /// One instance of the profile's sizes at a free loopback port, in real time, without faults.
    pub fn new(profile: LatencyProfile) -> Self {
        let sizes = profile.engine;
        Self {
            instances: 1,
            engine: EngineConfig {
                block_size: BlockSize::new(sizes.block_size).unwrap_or_default(),
                kv_blocks: sizes.kv_blocks,
                max_model_len: sizes.max_model_len,
                max_num_batched_tokens: sizes.max_num_batched_tokens,
                max_num_seqs: sizes.max_num_seqs,
                ..EngineConfig::default()
            },
            models: vec!["mock".to_owned()],
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            time_scale: 1.0,
            seed: 0,
            eos_mean_tokens: 128.0,
            enable_prompt_tokens_details: true,
            enable_force_include_usage: false,
            dev_mode: true,
            instances_per_device: sizes.instances_per_device,
            speeds: Vec::new(),
            faults: Faults::default(),
            kv_events: None,
            zero_delay: None,
            profile,
        }
    }

    /// Address of instance `number`; its port is 0 if any free one will do.
    pub(crate) fn address(&self, number: u32) -> Result<SocketAddr, StartError> {
        self.nth_address(self.port, number)
    }

    /// The address `number` ports above `first`; its port is 0 if `first` is.
    pub(crate) fn nth_address(&self, first: u16, number: u32) -> Result<SocketAddr, StartError> {
        let port = if first == 0 {
            Some(0)
        } else {
            u16::try_from(number).ok().and_then(|number| first.checked_add(number))
        };
        let port = port.ok_or(StartError::PortRange { first, instances: self.instances })?;
        Ok(SocketAddr::new(self.host, port))
    }

    pub(crate) fn validate(&self) -> Result<(), StartError> {
        if self.instances == 0 {
            return Err(StartError::Zero { key: "instances" });
        }
        if self.instances_per_device == 0 {
            return Err(StartError::Zero { key: "instances_per_device" });
        }
        if self.models.is_empty() {
            return Err(StartError::NoModel);
        }
        let scales =
            [("time_scale", self.time_scale, 0.0), ("eos_mean_tokens", self.eos_mean_tokens, 1.0)];
        let speeds = self.speeds.iter().map(|&speed| ("speeds", speed, 0.0));
        for (key, value, least) in scales.into_iter().chain(speeds) {
            if !(value.is_finite() && value >= least && value > 0.0) {
                return Err(StartError::Number { key, value });
            }
        }
        self.faults.validate()?;
        Ok(())
    }
}

/// Why a cluster did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A count that must be at least one is zero.
    #[error("{key} is 0; set it to at least 1")]
    Zero {
        /// The setting.
        key: &'static str,
    },
    /// No model name.
    #[error("models is empty; name at least one")]
    NoModel,
    /// A number out of range.
    #[error("{key} is {value}; it must be finite and positive, and at least 1 for eos_mean_tokens")]
    Number {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: f64,
    },
    /// The ports run over the last one.
    #[error(
        "{instances} instances do not fit from port {first} up; take a lower port, or 0 for free ones"
    )]
    PortRange {
        /// Port of the first.
        first: u16,
        /// How many.
        instances: u32,
    },
    /// The faults make no sense.
    #[error("the faults are unusable")]
    Faults(#[from] InvalidFaults),
    /// The engine would not start.
    #[error("the engine's settings are unusable")]
    Engine(#[from] InvalidEngineConfig),
    /// A port is taken or not allowed.
    #[error("cannot listen at {address}; take another port, or 0 for a free one")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}
