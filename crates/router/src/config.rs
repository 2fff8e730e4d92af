//! Settings of the router core.

use kvroute_cache_index::{ConfigError, HistoryConfig, LastRouteConfig};
use kvroute_types::BlockSize;
use serde::{Deserialize, Serialize};

use crate::channel::{InvalidSignal, SignalConfig};

/// From what the directory knows which blocks an instance holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirectorySource {
    /// From what was routed there; it can only guess what was evicted.
    #[default]
    History,
    /// From what the instances tell of their caches ([`crate::CacheNews`]), and from what was routed there as far as an
    /// instance is not believed, or the request's blocks are not named as engines name them.
    Events,
}

/// Settings of the router core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouterConfig {
    /// Tokens per block of prompts that are named as engines name them ([`kvroute_policy::BlockNames::Engine`]).
    pub block_size: BlockSize,
    /// Tokens that a block of text stands for ([`kvroute_policy::BlockNames::Text`]), by estimate.
    pub text_block_size: BlockSize,
    /// From what the directory knows what an instance holds.
    pub directory: DirectorySource,
    /// Staleness of the cache directory. Its expiry is the age at which a routed prompt no longer counts as held; what
    /// instances tell of their caches does not expire.
    pub index: SignalConfig,
    /// Staleness of the load readings.
    pub load: SignalConfig,
    /// Most blocks an instance is believed to hold by what was routed there; its number of KV blocks, if known.
    pub index_capacity_blocks: Option<u32>,
    /// Bytes that knowing what instances hold may take: so many for what was routed there, and as many for what they tell.
    pub index_budget_bytes: usize,
    /// Most prefix keys, and most session keys, whose latest route is remembered.
    pub last_route_capacity_keys: u32,
    /// Whether the directory is kept even if the policy does not read it, so that predictions can be compared with
    /// what the engine reports.
    pub always_index: bool,
    /// Whether every decision leaves a [`crate::RouteReceipt`].
    pub receipts: bool,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            block_size: BlockSize::default(),
            text_block_size: BlockSize::default(),
            directory: DirectorySource::default(),
            index: SignalConfig::default(),
            load: SignalConfig::default(),
            index_capacity_blocks: HistoryConfig::default().capacity_blocks,
            index_budget_bytes: HistoryConfig::default().budget_bytes,
            last_route_capacity_keys: LastRouteConfig::default().capacity_keys,
            always_index: false,
            receipts: false,
        }
    }
}

/// A router that cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidRouterConfig {
    /// In the staleness of the cache directory.
    #[error("in the index signal")]
    Index(#[source] InvalidSignal),
    /// In the staleness of the load readings.
    #[error("in the load signal")]
    Load(#[source] InvalidSignal),
    /// In the cache directory.
    #[error("in the cache directory")]
    Directory(#[source] ConfigError),
}
