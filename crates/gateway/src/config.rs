//! Settings of the gateway.

mod kv_events;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use kvroute_index_audit::InvalidAudit;
use kvroute_kv_events::{InvalidEndpoint, SourceConfig};
use kvroute_policy::{InvalidPolicy, LoadCacheConfig, PolicyConfig};
use kvroute_prompt_tokens::ContentFormat;
use kvroute_router::{DirectorySource, InvalidSignal, Refresh, RouterConfig, SignalConfig};
use kvroute_types::BlockSize;
use serde::{Deserialize, Serialize};

use crate::instance::{InvalidUrl, Target};

pub use kv_events::{InstanceEvents, KvEventsConfig};

/// Bytes of text that are taken for one token, and bytes in which a token id is hashed.
///
/// Four is the usual rule of thumb for English text and byte-pair vocabularies.
pub(crate) const BYTES_PER_TOKEN: u32 = 4;

/// Least budget of an index of what instances tell.
const EVENTS_BUDGET_BYTES_MIN: usize = 1 << 20;

/// Settings of the gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where clients connect. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where the admin API and `/metrics` are served. It has no authentication: keep it on loopback.
    pub admin_listen: SocketAddr,
    /// Serving threads, each with its own event loop, listener and connection pool; `None` for one per core.
    pub threads: Option<usize>,
    /// What is routed to.
    pub instances: Vec<InstanceConfig>,
    /// How it is chosen.
    pub policy: PolicyConfig,
    /// Feeds the policy's draws and the prompt hashes.
    pub seed: u64,
    /// How prompts are named.
    pub prompt: PromptConfig,
    /// The cache directory.
    pub index: IndexConfig,
    /// What instances tell of their caches.
    pub kv_events: KvEventsConfig,
    /// Load readings.
    pub load: LoadConfig,
    /// Probes, ejection and recovery.
    pub health: HealthConfig,
    /// Second tries.
    pub retry: RetryConfig,
    /// Time-outs.
    pub timeouts: TimeoutConfig,
    /// Bounds on what clients can make the gateway hold.
    pub limits: LimitConfig,
    /// What is kept of decisions.
    pub receipts: ReceiptConfig,
    /// Spans of requests.
    pub tracing: TracingConfig,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 8000).into(),
            admin_listen: (Ipv4Addr::LOCALHOST, 8001).into(),
            threads: None,
            instances: Vec::new(),
            policy: PolicyConfig::LoadCache(LoadCacheConfig::default()),
            seed: 0,
            prompt: PromptConfig::default(),
            index: IndexConfig::default(),
            kv_events: KvEventsConfig::default(),
            load: LoadConfig::default(),
            health: HealthConfig::default(),
            retry: RetryConfig::default(),
            timeouts: TimeoutConfig::default(),
            limits: LimitConfig::default(),
            receipts: ReceiptConfig::default(),
            tracing: TracingConfig::default(),
        }
    }
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceConfig {
    /// `http://HOST:PORT`, without a path.
    pub url: String,
    /// Its name in headers, metrics and the admin API; `HOST:PORT` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it publishes what its cache holds; if left out, it is asked (`GET /kv_event_sources`). Without meaning unless
    /// `kv_events.enabled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_events: Option<InstanceEvents>,
}

impl InstanceConfig {
    /// An unnamed instance.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), name: None, kv_events: None }
    }
}

/// How prompts are named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptConfig {
    /// Bytes of canonical text per hashed block; a multiple of 4, since 4 bytes count as one token.
    ///
    /// Default 64: 16 tokens, vLLM's usual block.
    pub block_bytes: u32,
    /// Characters of the system prompt (else of the first user message) that make the prefix key.
    pub prefix_chars: usize,
    /// Directory of the instances' model: `tokenizer.json` and what else makes prompts, as `chat_template.jinja`. With it
    /// the blocks of a text are named as the engines name them, which `kv_events` needs. Token ids need none.
    pub tokenizer: Option<PathBuf>,
    /// File of the instances' `--chat-template`, if they run with another than their model's.
    pub chat_template: Option<PathBuf>,
    /// The instances' `--chat-template-content-format`; `None` for `auto`.
    pub content_format: Option<ContentFormat>,
    /// The instances' `--exclude-tools-when-tool-choice-none`.
    pub exclude_tools_when_tool_choice_none: bool,
    /// The instances' `--default-chat-template-kwargs`.
    pub default_chat_template_kwargs: serde_json::Map<String, serde_json::Value>,
    /// Seconds that the instances' local time is ahead of UTC, for chat templates that tell the date.
    pub utc_offset_s: i32,
    /// Bytes for the token ids of recent texts.
    pub token_cache_bytes: u64,
}

impl Default for PromptConfig {
    fn default() -> Self {
        Self {
            block_bytes: 64,
            prefix_chars: 200,
            tokenizer: None,
            chat_template: None,
            content_format: None,
            exclude_tools_when_tool_choice_none: false,
            default_chat_template_kwargs: serde_json::Map::new(),
            utc_offset_s: 0,
            token_cache_bytes: 64 << 20,
        }
    }
}

/// The cache directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IndexConfig {
    /// How stale the policy sees it; fresh by default. For experiments.
    pub signal: SignalConfig,
    /// Most blocks an instance is believed to hold by what was routed there: its KV-cache bytes of text over
    /// `block_bytes`, if known.
    pub capacity_blocks: Option<u32>,
    /// Bytes that what was routed where may take, and as many what the instances tell, if they are listened to. Default
    /// 64 MiB, several million blocks.
    pub budget_bytes: usize,
    /// Most prefix keys, and most session keys, whose latest route is remembered.
    pub last_route_capacity_keys: u32,
}

impl Default for IndexConfig {
    fn default() -> Self {
        let RouterConfig { index, index_capacity_blocks, last_route_capacity_keys, .. } =
            RouterConfig::default();
        Self {
            signal: index,
            capacity_blocks: index_capacity_blocks,
            budget_bytes: 64 << 20,
            last_route_capacity_keys,
        }
    }
}

/// Load readings from the instances' `/metrics`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadConfig {
    /// Seconds between readings; `None` for no readings.
    pub refresh_s: Option<f64>,
    /// Seconds that a reading is kept back before it counts. For experiments; 0 by default.
    pub delay_s: f64,
    /// Share of readings that are dropped, `0.0..=1.0`. For experiments; 0 by default.
    pub loss: f64,
    /// Age in seconds at which a reading no longer counts, so that an instance whose metrics fail is judged by our
    /// own requests alone; `None` for never.
    pub expiry_s: Option<f64>,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self { refresh_s: Some(0.5), delay_s: 0.0, loss: 0.0, expiry_s: Some(10.0) }
    }
}

/// Probes, ejection and recovery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthConfig {
    /// Seconds between probes of `/health`.
    pub probe_interval_s: f64,
    /// Seconds that a probe, or a metrics reading, may take.
    pub probe_timeout_s: f64,
    /// Probes in a row that must fail before the instance is ejected.
    pub probe_failures_max: u32,
    /// Requests in a row that must fail (connection, 5xx, time-out, cut; never a client's 4xx) before it is ejected.
    pub request_failures_max: u32,
    /// Seconds of the first ejection; each further one doubles it, until the instance has been well for as long.
    pub backoff_min_s: f64,
    /// Seconds of the longest ejection.
    pub backoff_max_s: f64,
    /// Requests at once with which a returning instance counts as recovered: it starts with one, and each success
    /// allows one more.
    pub recovery_requests: u32,
    /// Seconds without a byte from any request, beyond the time its waiting prefill work explains, after which an
    /// instance with requests counts as hung; `None` to never judge by silence. Default 1.5: with a reading of
    /// `/metrics` that may tell of work done before the hang, up to `load.refresh_s` later, and the checks between,
    /// a hang is found within 3 s.
    pub silence_s: Option<f64>,
    /// Prefill tokens per second that an instance is credited with before its own rate has been seen.
    pub prefill_tokens_per_s_min: f64,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            probe_interval_s: 0.5,
            probe_timeout_s: 0.5,
            probe_failures_max: 2,
            request_failures_max: 3,
            backoff_min_s: 1.0,
            backoff_max_s: 60.0,
            recovery_requests: 32,
            silence_s: Some(1.5),
            prefill_tokens_per_s_min: 1_000.0,
        }
    }
}

/// Second tries, on another instance, before any byte reached the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// Most further tries of one request; 0 for none.
    pub tries_max: u32,
    /// Retries that each request adds to the common budget, so that an outage cannot multiply the load.
    pub budget_ratio: f64,
    /// Most retries the budget holds; it starts full.
    pub budget_max: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { tries_max: 2, budget_ratio: 0.2, budget_max: 100 }
    }
}

/// Time-outs, in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutConfig {
    /// For a client to send a request's head.
    pub request_head_s: f64,
    /// For a client to send a request's body.
    pub request_body_s: f64,
    /// For a connection to an instance.
    pub connect_s: f64,
    /// From sending a request to the first byte of the answer's body. An answer that is not streamed starts when it
    /// is complete, so this bounds whole generations.
    pub first_byte_s: f64,
    /// Silence within one answer.
    pub stall_s: f64,
    /// For an unused connection to an instance. Below uvicorn's 5 s, so that the instance never closes first.
    pub idle_s: f64,
    /// In the queue, when all instances are at their cap.
    pub queue_s: f64,
    /// At shutdown: for clients to move away, while requests are still taken and each answer closes its connection.
    pub lame_duck_s: f64,
    /// At shutdown: for the last requests to end.
    pub drain_s: f64,
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        Self {
            request_head_s: 10.0,
            request_body_s: 30.0,
            connect_s: 1.0,
            first_byte_s: 600.0,
            stall_s: 60.0,
            idle_s: 4.0,
            queue_s: 30.0,
            lame_duck_s: 0.2,
            drain_s: 30.0,
        }
    }
}

/// Bounds on what clients can make the gateway hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitConfig {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Bytes that one client connection reads at once, and may hold on to while it is open; at least 8,192. It takes
    /// as much as the client's requests fill: a body that fits in whole is not copied. What is held of an answer for a
    /// slow reader is less, and fixed.
    pub buffer_bytes: usize,
    /// Client connections; beyond them new ones wait in the listener's backlog.
    pub connections: usize,
    /// Requests at once per instance; `None` for no cap.
    pub instance_in_flight: Option<u32>,
    /// Requests that wait when all instances are at their cap.
    pub queue: usize,
    /// Unused connections kept per instance and thread.
    pub idle_connections: usize,
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            body_bytes: 16 << 20,
            head_bytes: 16 << 10,
            buffer_bytes: 128 << 10,
            connections: 16_384,
            instance_in_flight: None,
            queue: 1_024,
            idle_connections: 256,
        }
    }
}

/// What is kept of decisions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReceiptConfig {
    /// Latest receipts kept for the admin API.
    pub kept: usize,
    /// File to which every decision is appended with everything that it was made from, one JSON object a line, so that
    /// `kvroute replay` can make it again; `None` for no log.
    pub log: Option<PathBuf>,
}

impl Default for ReceiptConfig {
    fn default() -> Self {
        Self { kept: 256, log: None }
    }
}

/// Spans of requests, exported to an OpenTelemetry collector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracingConfig {
    /// Base URL of the collector's OTLP/HTTP receiver, `http://HOST:PORT` (4318 is its usual port); `None` for no
    /// spans. They go to `/v1/traces` there.
    pub otlp_endpoint: Option<String>,
    /// Share of requests without a `traceparent` that get a span, `0.0..=1.0`. Requests with one follow its sampled
    /// flag.
    pub sample_ratio: f64,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample_ratio: 1.0 }
    }
}

/// A configuration that cannot be served.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidConfig {
    /// No URL of an instance.
    #[error("instance {url:?}: {source}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        source: InvalidUrl,
    },
    /// One instance twice, or two under one name.
    #[error("instance {name:?} is listed twice; give each a URL and a name of its own")]
    DuplicateInstance {
        /// The name, or the URL, that comes twice.
        name: String,
    },
    /// A name that does not fit in a header.
    #[error("instance name {name:?} must be 1 to 128 visible ASCII characters without '/'")]
    Name {
        /// What was given.
        name: String,
    },
    /// An instance's event endpoint that cannot be connected to.
    #[error("kv_events of instance {url:?}: {source}")]
    Events {
        /// The instance.
        url: String,
        /// What is wrong with it.
        source: InvalidEndpoint,
    },
    /// In the audit's settings.
    #[error("in kv_events.audit")]
    Audit(#[source] InvalidAudit),
    /// News under way would be in no snapshot.
    #[error(
        "kv_events.snapshot cannot be kept of an index that is made stale; leave index.signal as it is"
    )]
    SnapshotOfStaleIndex,
    /// Not a number above zero.
    #[error("{key} is {value}; give a number above 0")]
    NotPositive {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: f64,
    },
    /// Below its least value.
    #[error("{key} is {value}; give at least {min}")]
    TooSmall {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: usize,
        /// The least accepted.
        min: usize,
    },
    /// Not whole tokens.
    #[error("prompt.block_bytes is {value}; give a multiple of 4, such as 64")]
    BlockBytes {
        /// What was given.
        value: u32,
    },
    /// No URL of a collector.
    #[error("tracing.otlp_endpoint is {url:?}; {source}")]
    OtlpEndpoint {
        /// What was given.
        url: String,
        /// What is wrong with it.
        source: InvalidUrl,
    },
    /// Not a share.
    #[error("tracing.sample_ratio is {value}; it is a share, 0.0 to 1.0")]
    SampleRatio {
        /// What was given.
        value: f64,
    },
    /// In the policy's parameters, or it is one for simulations.
    #[error("in the policy")]
    Policy(#[source] InvalidPolicy),
    /// In the staleness of the cache directory.
    #[error("in index.signal")]
    Index(#[source] InvalidSignal),
    /// In the load readings.
    #[error("in load")]
    Load(#[source] InvalidSignal),
}

impl GatewayConfig {
    /// Checks every range, and that instances differ.
    ///
    /// # Errors
    /// [`InvalidConfig`] names the first setting that is wrong, and the remedy.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        self.check_instances()?;
        self.check_numbers()?;
        self.policy.validate_live().map_err(InvalidConfig::Policy)?;
        self.index.signal.validate().map_err(InvalidConfig::Index)?;
        self.load_signal().validate().map_err(InvalidConfig::Load)?;
        if let Some(url) = &self.tracing.otlp_endpoint {
            let parsed = Target::parse(url);
            parsed.map_err(|source| InvalidConfig::OtlpEndpoint { url: url.clone(), source })?;
        }
        if !(0.0..=1.0).contains(&self.tracing.sample_ratio) {
            return Err(InvalidConfig::SampleRatio { value: self.tracing.sample_ratio });
        }
        if self.kv_events.enabled && self.index.budget_bytes < EVENTS_BUDGET_BYTES_MIN {
            let (key, value) = ("index.budget_bytes", self.index.budget_bytes);
            return Err(InvalidConfig::TooSmall { key, value, min: EVENTS_BUDGET_BYTES_MIN });
        }
        self.kv_events.audit.validate().map_err(InvalidConfig::Audit)?;
        if self.kv_events.snapshot.is_some() && self.index.signal != SignalConfig::default() {
            return Err(InvalidConfig::SnapshotOfStaleIndex);
        }
        let block_bytes = self.prompt.block_bytes;
        if block_bytes == 0 || !block_bytes.is_multiple_of(BYTES_PER_TOKEN) {
            return Err(InvalidConfig::BlockBytes { value: block_bytes });
        }
        Ok(())
    }

    fn check_instances(&self) -> Result<(), InvalidConfig> {
        let mut seen = BTreeSet::new();
        for instance in &self.instances {
            let (name, target) = instance.parse()?;
            instance.events()?;
            // A named instance is entered under its address too; one without a name, once.
            let keys = BTreeSet::from([name, target.authority]);
            for name in keys {
                if !seen.insert(name.clone()) {
                    return Err(InvalidConfig::DuplicateInstance { name });
                }
            }
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), InvalidConfig> {
        let (health, timeouts, limits) = (&self.health, &self.timeouts, &self.limits);
        let positive = [
            ("health.probe_interval_s", health.probe_interval_s),
            ("health.probe_timeout_s", health.probe_timeout_s),
            ("health.backoff_min_s", health.backoff_min_s),
            ("health.backoff_max_s", health.backoff_max_s),
            ("health.silence_s", health.silence_s.unwrap_or(1.0)),
            ("health.prefill_tokens_per_s_min", health.prefill_tokens_per_s_min),
            ("timeouts.request_head_s", timeouts.request_head_s),
            ("timeouts.request_body_s", timeouts.request_body_s),
            ("timeouts.connect_s", timeouts.connect_s),
            ("timeouts.first_byte_s", timeouts.first_byte_s),
            ("timeouts.stall_s", timeouts.stall_s),
            ("timeouts.idle_s", timeouts.idle_s),
            ("timeouts.queue_s", timeouts.queue_s),
            ("timeouts.lame_duck_s", timeouts.lame_duck_s),
            ("timeouts.drain_s", timeouts.drain_s),
            ("kv_events.snapshot_interval_s", self.kv_events.snapshot_interval_s),
        ];
        // The upper bound keeps every sum of an instant and a time-out in range.
        if let Some((key, value)) =
            positive.into_iter().find(|&(_, value)| !(value > 0.0 && value < 1e9))
        {
            return Err(InvalidConfig::NotPositive { key, value });
        }
        if !(0.0..=1e6).contains(&self.retry.budget_ratio) {
            let value = self.retry.budget_ratio;
            return Err(InvalidConfig::NotPositive { key: "retry.budget_ratio", value });
        }
        let least = [
            ("threads", self.threads.unwrap_or(1), 1),
            ("health.probe_failures_max", health.probe_failures_max as usize, 1),
            ("health.request_failures_max", health.request_failures_max as usize, 1),
            ("health.recovery_requests", health.recovery_requests as usize, 1),
            ("limits.body_bytes", limits.body_bytes, 1),
            ("limits.head_bytes", limits.head_bytes, 1_024),
            ("limits.buffer_bytes", limits.buffer_bytes, 8_192),
            ("limits.connections", limits.connections, 1),
            ("limits.instance_in_flight", limits.instance_in_flight.unwrap_or(1) as usize, 1),
            ("index.budget_bytes", self.index.budget_bytes, 64 << 10),
            ("index.capacity_blocks", self.index.capacity_blocks.unwrap_or(1) as usize, 1),
            ("index.last_route_capacity_keys", self.index.last_route_capacity_keys as usize, 1),
            ("kv_events.block_size", self.kv_events.block_size as usize, 1),
        ];
        match least.into_iter().find(|&(_, value, min)| value < min) {
            Some((key, value, min)) => Err(InvalidConfig::TooSmall { key, value, min }),
            None => Ok(()),
        }
    }

    /// The router core's part. The directory is always kept, so that every policy's predictions can be compared with
    /// what the engines report, and a policy can be exchanged for any other.
    pub(crate) fn router(&self) -> RouterConfig {
        let IndexConfig { signal, capacity_blocks, budget_bytes, last_route_capacity_keys } =
            self.index.clone();
        RouterConfig {
            block_size: BlockSize::new(self.kv_events.block_size).unwrap_or_default(),
            text_block_size: self.text_block_size(),
            directory: if self.kv_events.enabled {
                DirectorySource::Events
            } else {
                DirectorySource::History
            },
            index: signal,
            load: self.load_signal(),
            index_capacity_blocks: capacity_blocks,
            index_budget_bytes: budget_bytes,
            last_route_capacity_keys,
            always_index: true,
            receipts: self.receipts.kept > 0 || self.receipts.log.is_some(),
        }
    }

    fn text_block_size(&self) -> BlockSize {
        BlockSize::new(self.prompt.block_bytes / BYTES_PER_TOKEN).unwrap_or_default()
    }

    /// Readings take effect when they arrive: the interval between them is the scraper's.
    fn load_signal(&self) -> SignalConfig {
        let LoadConfig { refresh_s, delay_s, loss, expiry_s } = self.load;
        if refresh_s.is_some_and(|s| !(s > 0.0 && s < 1e9)) {
            // Out of range: let the signal's own check name it.
            let refresh = Refresh::EveryS(refresh_s.unwrap_or_default());
            return SignalConfig { refresh, delay_s, loss, expiry_s };
        }
        SignalConfig { refresh: Refresh::RealTime, delay_s, loss, expiry_s }
    }
}

impl InstanceConfig {
    /// Its name and where it is.
    pub(crate) fn parse(&self) -> Result<(String, Target), InvalidConfig> {
        let target = Target::parse(&self.url)
            .map_err(|source| InvalidConfig::Url { url: self.url.clone(), source })?;
        let name = self.name.clone().unwrap_or_else(|| target.authority.clone());
        let is_clean = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
        if name.is_empty() || name.len() > 128 || !is_clean {
            return Err(InvalidConfig::Name { name });
        }
        Ok((name, target))
    }
}

impl InstanceConfig {
    /// Where it publishes, if that is configured.
    pub(crate) fn events(&self) -> Result<Option<SourceConfig>, InvalidConfig> {
        let source = self.kv_events.as_ref().map(InstanceEvents::source).transpose();
        source.map_err(|source| InvalidConfig::Events { url: self.url.clone(), source })
    }
}

/// Seconds that were checked to be positive.
pub(crate) fn seconds(s: f64) -> Duration {
    Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(toml: &str) -> String {
        match toml::from_str::<GatewayConfig>(toml) {
            Err(error) => error.to_string(),
            Ok(config) => config.validate().unwrap_err().to_string(),
        }
    }

    #[test]
    fn defaults_are_valid_and_survive_a_round_trip() {
        let config = GatewayConfig {
            instances: vec![InstanceConfig::new("http://10.0.0.1:8000")],
            ..GatewayConfig::default()
        };
        config.validate().unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<GatewayConfig>(&text).unwrap(), config);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(error("listne = \"127.0.0.1:1\"").contains("unknown field `listne`"));
        assert!(error("[policy]\nkind = \"magic\"").contains("unknown variant `magic`"));
        let twice = "instances = [{ url = \"http://a:1\" }, { url = \"http://a:1/\" }]";
        assert_eq!(
            error(twice),
            "instance \"a:1\" is listed twice; give each a URL and a name of its own"
        );
        let same_name = "instances = [{ url = \"http://a:1\", name = \"x\" }, { url = \"http://b:1\", name = \"x\" }]";
        assert!(error(same_name).contains("\"x\" is listed twice"));
        let https = "instances = [{ url = \"https://a:1\" }]";
        assert!(error(https).contains("http://HOST:PORT"));
        assert!(error("[limits]\nbody_bytes = 0").contains("limits.body_bytes is 0"));
        assert!(error("[timeouts]\nstall_s = 0.0").contains("timeouts.stall_s is 0"));
        assert!(error("[prompt]\nblock_bytes = 30").contains("multiple of 4"));
        assert!(error("[tracing]\notlp_endpoint = \"localhost\"").contains("http://HOST:PORT"));
        assert!(error("[tracing]\nsample_ratio = 1.5").contains("tracing.sample_ratio is 1.5"));
        assert!(error("[load]\nrefresh_s = -1.0").contains("in load"));
        assert!(error("[policy]\nkind = \"oracle\"").contains("in the policy"));
    }
}
