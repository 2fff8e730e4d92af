//! Settings of the exact cache directory.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use kvroute_index_audit::{AuditConfig, Naming};
use kvroute_kv_events::{InvalidEndpoint, SourceConfig};
use kvroute_prompt_tokens::HashSettings;
use kvroute_types::BlockSize;
use kvroute_vllm_wire::HashAlgo;
use serde::{Deserialize, Serialize};

/// What instances tell of their prefix caches (vLLM's KV events), and how it is understood.
///
/// All instances must name their blocks alike. One that does not is found out by its events, and judged by what was
/// routed to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvEventsConfig {
    /// Whether instances are listened to.
    pub enabled: bool,
    /// Tokens per KV block: the instances' `--block-size`. Default 16, vLLM's on GPUs.
    pub block_size: u32,
    /// The instances' `--prefix-caching-hash-algo`.
    pub hash_algo: HashAlgo,
    /// The instances' `PYTHONHASHSEED`, if it is set.
    pub pythonhashseed: Option<String>,
    /// Paths of the instances' `LoRA` adapters by the name that requests have in `model`: both are part of the hashes.
    pub adapters: BTreeMap<String, String>,
    /// Bytes for the block hashes of recent prompts.
    pub hash_cache_bytes: u64,
    /// When what an instance tells is not believed.
    pub audit: AuditConfig,
    /// File that keeps what the instances have told, so that a restarted gateway knows it; `None` for none.
    pub snapshot: Option<PathBuf>,
    /// Seconds between two snapshots; one more is taken at the end.
    pub snapshot_interval_s: f64,
}

impl Default for KvEventsConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            block_size: 16,
            hash_algo: HashAlgo::default(),
            pythonhashseed: None,
            adapters: BTreeMap::new(),
            hash_cache_bytes: 64 << 20,
            audit: AuditConfig::default(),
            snapshot: None,
            snapshot_interval_s: 300.0,
        }
    }
}

impl KvEventsConfig {
    /// How blocks are named.
    pub(crate) fn naming(&self) -> Naming {
        let block_size = BlockSize::new(self.block_size).unwrap_or_default();
        Naming { algo: self.hash_algo, block_size, pythonhashseed: self.pythonhashseed.clone() }
    }

    /// The same for whoever hashes prompts.
    pub(crate) fn hash_settings(&self) -> HashSettings {
        let block_size = NonZeroUsize::new(self.block_size as usize).unwrap_or(NonZeroUsize::MIN);
        let pythonhashseed = self.pythonhashseed.clone();
        HashSettings { algo: self.hash_algo, block_size, pythonhashseed }
    }
}

/// Where one instance publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceEvents {
    /// Its PUB socket, `tcp://HOST:PORT`: the `endpoint` of its `--kv-events-config`, with its host in place of `*`.
    pub endpoint: String,
    /// Its ROUTER socket for replays. Without one, every lost batch and every reconnect empties what is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_endpoint: Option<String>,
    /// Beginning of its topic; empty for all.
    #[serde(default)]
    pub topic: String,
}

impl InstanceEvents {
    /// What to subscribe to.
    pub(crate) fn source(&self) -> Result<SourceConfig, InvalidEndpoint> {
        Ok(SourceConfig {
            replay: self.replay_endpoint.as_deref().map(str::parse).transpose()?,
            topic: self.topic.clone(),
            ..SourceConfig::new(self.endpoint.parse()?)
        })
    }
}
