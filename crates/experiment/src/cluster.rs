//! A cluster as an experiment file or the command line describes it.

use std::time::Duration;

use kvroute_engine::{EngineConfig, InvalidEngineConfig};
use kvroute_policy::PolicyConfig;
use kvroute_profile::LatencyProfile;
use kvroute_router::{DirectorySource, InvalidSignal, Refresh, SignalConfig};
use kvroute_sim::{RouterRestart, SimConfig};
use kvroute_types::BlockSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::values::{parse_duration, parse_refresh};

/// Engine sizes and signals of a cluster; what is left out is the latency profile's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSettings {
    /// Latency profile: a built-in name or a TOML file.
    pub profile: String,
    /// KV blocks of an instance, vLLM's null block included.
    pub kv_blocks: Option<u32>,
    /// Tokens per KV block.
    pub block_size: Option<u32>,
    /// Longest sequence, tokens; else the profile's, or what the KV blocks can hold.
    pub max_model_len: Option<u32>,
    /// Token budget of one step.
    pub max_num_batched_tokens: Option<u32>,
    /// Most requests that run at once on an instance.
    pub max_num_seqs: Option<u32>,
    /// Instances that share one device and slow each other down.
    pub instances_per_device: Option<u32>,
    /// How fast the instances are against the profile, in turn: `[1.0, 0.5]` makes every second one half as fast. All as
    /// the profile says if left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub speeds: Vec<f64>,
    /// Schedule step k+1 only after step k, as vLLM with async scheduling off.
    pub sync_scheduling: bool,
    /// Turn the engines' prefix cache off.
    pub no_prefix_caching: bool,
    /// One-way delay between gateway and instances.
    pub network_delay: Span,
    /// From what the cache directory knows what instances hold: `history` or `events`.
    #[schemars(with = "String")]
    pub directory: DirectorySource,
    /// How often the cache directory is brought up to date: 0 for real time, a span of time, or never.
    pub index_refresh: RefreshText,
    /// How often load is read from the instances.
    pub load_refresh: RefreshText,
    /// Delay of news for the cache directory.
    pub index_delay: Span,
    /// Delay of load readings.
    pub load_delay: Span,
    /// Share of news for the cache directory that is lost, `0.0..=1.0`.
    pub index_loss: f64,
    /// Share of load readings that is lost, `0.0..=1.0`.
    pub load_loss: f64,
    /// Age at which entries of the cache directory no longer count; never if left out.
    pub index_expiry: Option<Span>,
    /// Age at which load readings no longer count; never if left out.
    pub load_expiry: Option<Span>,
    /// Blocks that a directory of history believes an instance to hold, as a share of those it has: 1 is right, more
    /// believes in blocks that were evicted.
    pub believed_kv_blocks: f64,
    /// The gateway is started anew this often, with an empty directory; never if left out.
    pub router_restart_every: Option<Span>,
    /// Whether every run starts with cold caches, or finds what the runs before it left.
    pub caches: Caches,
}

/// What a run finds in the instances' caches.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Caches {
    /// Nothing.
    #[default]
    Cold,
    /// What the runs before it left: the policies in the order of the file, each over all seeds, one after the other on
    /// the same instances. The gateway is a new one each time.
    Kept,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            profile: "h100-llama3.1-8b".into(),
            kv_blocks: None,
            block_size: None,
            max_model_len: None,
            max_num_batched_tokens: None,
            max_num_seqs: None,
            instances_per_device: None,
            speeds: Vec::new(),
            sync_scheduling: false,
            no_prefix_caching: false,
            network_delay: Span::default(),
            directory: DirectorySource::default(),
            index_refresh: RefreshText::default(),
            load_refresh: RefreshText::default(),
            index_delay: Span::default(),
            load_delay: Span::default(),
            index_loss: 0.0,
            load_loss: 0.0,
            index_expiry: None,
            load_expiry: None,
            believed_kv_blocks: 1.0,
            router_restart_every: None,
            caches: Caches::default(),
        }
    }
}

/// A cluster that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCluster {
    /// A block of nothing.
    #[error("block_size is 0; give the engines' tokens per block, 16 for instance")]
    BlockSize,
    /// In the engine settings.
    #[error("vLLM would not start with these engine settings")]
    Engine(#[source] InvalidEngineConfig),
    /// In the staleness of a signal.
    #[error("in {signal}_refresh, {signal}_delay, {signal}_loss or {signal}_expiry")]
    Signal {
        /// `index` or `load`.
        signal: &'static str,
        /// What is wrong.
        #[source]
        source: InvalidSignal,
    },
    /// A number out of range.
    #[error("{key} is {value}; give {expected}")]
    OutOfRange {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: f64,
        /// What makes sense.
        expected: &'static str,
    },
}

impl ClusterSettings {
    /// The simulated cluster of `instances` instances under a policy and a seed, without restarts of the router.
    ///
    /// # Errors
    /// [`InvalidCluster`] names the setting and the remedy.
    pub fn sim_config(
        &self,
        profile: &LatencyProfile,
        policy: PolicyConfig,
        instances: u32,
        seed: u64,
    ) -> Result<SimConfig, InvalidCluster> {
        let mut config = SimConfig::new(instances, policy, profile.clone(), seed);
        if let Some(block_size) = self.block_size {
            let block_size = BlockSize::new(block_size).ok_or(InvalidCluster::BlockSize)?;
            config = config.with_block_size(block_size);
        }
        if let Some(kv_blocks) = self.kv_blocks {
            config = config.with_kv_blocks(kv_blocks);
        }
        let sizes = &mut config.engine;
        let set = |size: &mut u32, given: Option<u32>| *size = given.unwrap_or(*size);
        set(&mut sizes.max_num_batched_tokens, self.max_num_batched_tokens);
        // R4: left alone, the sequences give way to a smaller step.
        sizes.max_num_seqs =
            self.max_num_seqs.unwrap_or(sizes.max_num_seqs.min(sizes.max_num_batched_tokens));
        match self.max_model_len {
            Some(max_model_len) => sizes.max_model_len = max_model_len,
            None => fit_model_len(sizes),
        }
        sizes.async_scheduling = !self.sync_scheduling;
        sizes.enable_prefix_caching = !self.no_prefix_caching;
        sizes.validate().map_err(InvalidCluster::Engine)?;
        if !(self.believed_kv_blocks.is_finite() && self.believed_kv_blocks > 0.0) {
            return Err(InvalidCluster::OutOfRange {
                key: "believed_kv_blocks",
                value: self.believed_kv_blocks,
                expected: "a share above 0: 1 for as many as there are",
            });
        }
        config.router.index_capacity_blocks = config
            .router
            .index_capacity_blocks
            .map(|blocks| scaled(blocks, self.believed_kv_blocks));
        if let Some(instances) = self.instances_per_device {
            config.instances_per_device = instances;
        }
        if let Some(&value) = self.speeds.iter().find(|it| !(it.is_finite() && **it > 0.0)) {
            let expected = "positive numbers: 1 for an instance as fast as the profile";
            return Err(InvalidCluster::OutOfRange { key: "speeds", value, expected });
        }
        config.speeds.clone_from(&self.speeds);
        config.router.directory = self.directory;
        config.network_delay_s = self.network_delay.as_secs_f64();
        let signal = |refresh: RefreshText, delay: Span, loss, expiry: Option<Span>| SignalConfig {
            refresh: refresh.0,
            delay_s: delay.as_secs_f64(),
            loss,
            expiry_s: expiry.map(Span::as_secs_f64),
        };
        config.router.index =
            signal(self.index_refresh, self.index_delay, self.index_loss, self.index_expiry);
        config.router.load =
            signal(self.load_refresh, self.load_delay, self.load_loss, self.load_expiry);
        for (signal, checked) in [("index", &config.router.index), ("load", &config.router.load)] {
            checked.validate().map_err(|source| InvalidCluster::Signal { signal, source })?;
        }
        Ok(config)
    }

    /// When the router is started anew in a run of at most `run_s` seconds.
    pub(crate) fn router_restarts(&self, run_s: f64) -> Vec<RouterRestart> {
        let Some(every) = self.router_restart_every else { return Vec::new() };
        let restarts = (1_u32..).map(|k| f64::from(k) * every.as_secs_f64());
        restarts
            .take_while(|at_s| *at_s < run_s)
            .map(|at_s| RouterRestart { at_s, policy: None })
            .collect()
    }
}

/// A model's length is a limit, not a demand: it gives way to a smaller cache.
pub fn fit_model_len(engine: &mut EngineConfig) {
    let capacity = u64::from(engine.usable_blocks()) * u64::from(engine.block_size.get());
    engine.max_model_len = u32::try_from(capacity).unwrap_or(u32::MAX).min(engine.max_model_len);
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates; the factor is positive"
)]
fn scaled(blocks: u32, factor: f64) -> u32 {
    ((f64::from(blocks) * factor).round() as u32).max(1)
}

/// A span of time, written `250ms`, `1.5s`, `2min`, or as a number of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Span(pub Duration);

impl Span {
    /// In seconds.
    pub fn as_secs_f64(self) -> f64 {
        self.0.as_secs_f64()
    }
}

/// A refresh interval, written as a span of time, `0` for real time, or `never`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RefreshText(pub Refresh);

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        humantime::format_duration(self.0).to_string().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = TextOrNumber::deserialize(deserializer)?.text();
        parse_duration(&text).map(Self).map_err(de::Error::custom)
    }
}

impl Serialize for RefreshText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Refresh::RealTime => "0".serialize(serializer),
            Refresh::Never => "never".serialize(serializer),
            Refresh::EveryS(seconds) => {
                let every = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                Span(every).serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for RefreshText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = TextOrNumber::deserialize(deserializer)?.text();
        parse_refresh(&text).map(Self).map_err(de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Whole(i64),
    Number(f64),
}

impl TextOrNumber {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Whole(number) => number.to_string(),
            Self::Number(number) => number.to_string(),
        }
    }
}

/// Of both: text, or a number of seconds.
fn text_or_number(description: &str) -> schemars::Schema {
    schemars::json_schema!({
        "description": description,
        "anyOf": [{ "type": "string" }, { "type": "number", "minimum": 0 }],
    })
}

impl schemars::JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        text_or_number("A span of time: \"250ms\", \"1.5s\", \"2min\", or a number of seconds.")
    }
}

impl schemars::JsonSchema for RefreshText {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Refresh".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        text_or_number(
            "How often a signal is brought up to date: 0 for real time, a span of time, or \"never\".",
        )
    }
}
