//! The cache directory as the policy sees it: what each instance holds, as far as is known, and where requests went, seen
//! through the index signal's channel.

use kvroute_cache_index::{
    ConfigError, ExactIndex, ExactIndexConfig, History, HistoryConfig, LastRoute, LastRouteConfig,
    MatchBuffer,
};
use kvroute_policy::RequestView;
use kvroute_types::{BlockHash, InstanceId, Timestamp};

use crate::channel::Channel;
use crate::config::{DirectorySource, RouterConfig};

/// What an instance tells of a change in its prefix cache (vLLM's KV events, R67-R70).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheNews {
    /// One copy more of each of these blocks, which follow one another.
    Stored {
        /// The block before the first; `None` if that begins a prompt.
        parent: Option<BlockHash>,
        /// In order of the prompt.
        blocks: Box<[BlockHash]>,
    },
    /// One copy of each of these blocks is gone.
    Removed(Box<[BlockHash]>),
    /// All blocks are gone.
    Cleared,
}

/// News for the directory.
#[derive(Debug)]
enum News {
    Routed(RoutedPrompt),
    Cache(InstanceId, CacheNews),
}

/// A request was routed.
#[derive(Debug)]
struct RoutedPrompt {
    at: Timestamp,
    instance: InstanceId,
    prefix_key: Option<u64>,
    session_key: Option<u64>,
    /// Empty if the directory does not learn from it.
    blocks: Box<[BlockHash]>,
}

/// What each instance is believed to hold.
#[derive(Debug)]
enum Holdings {
    Guessed(Box<History>),
    Told(Box<ExactIndex>, MatchBuffer),
}

#[derive(Debug)]
pub(crate) struct Directory {
    holdings: Holdings,
    last_for_prefix: LastRoute,
    last_for_session: LastRoute,
    channel: Channel<News>,
    /// When the latest news took effect.
    updated: Option<Timestamp>,
}

impl Directory {
    pub(crate) fn new(config: &RouterConfig, seed: u64) -> Result<Self, ConfigError> {
        let expiry_s = config.index.expiry_s;
        let last_route =
            LastRouteConfig { capacity_keys: config.last_route_capacity_keys, expiry_s };
        let budget_bytes = config.index_budget_bytes;
        let holdings = match config.directory {
            DirectorySource::History => {
                let capacity_blocks = config.index_capacity_blocks;
                let history =
                    History::new(HistoryConfig { capacity_blocks, expiry_s, budget_bytes })?;
                Holdings::Guessed(Box::new(history))
            }
            DirectorySource::Events => {
                let index = ExactIndex::new(ExactIndexConfig { budget_bytes })?;
                Holdings::Told(Box::new(index), MatchBuffer::default())
            }
        };
        Ok(Self {
            holdings,
            last_for_prefix: LastRoute::new(last_route)?,
            last_for_session: LastRoute::new(last_route)?,
            channel: Channel::new(&config.index, seed),
            updated: None,
        })
    }

    /// Whether it learns from [`CacheNews`].
    pub(crate) const fn hears_events(&self) -> bool {
        matches!(self.holdings, Holdings::Told(..))
    }

    /// Lets news take effect that is due by `now`.
    pub(crate) fn catch_up(&mut self, now: Timestamp) {
        while let Some((at, news)) = self.channel.receive(now) {
            match news {
                News::Routed(RoutedPrompt {
                    at: routed,
                    instance,
                    prefix_key,
                    session_key,
                    blocks,
                }) => {
                    self.apply_route(at, routed, instance, (prefix_key, session_key), &blocks);
                }
                News::Cache(instance, news) => self.apply_cache(at, instance, &news),
            }
        }
    }

    /// A request was routed at `now`; the directory will know in due time, or never.
    pub(crate) fn record(
        &mut self,
        now: Timestamp,
        instance: InstanceId,
        request: &RequestView<'_>,
    ) {
        let Some(at) = self.channel.effective_at(now) else { return };
        let RequestView { prefix_key, session_key, prompt_blocks, .. } = *request;
        let prompt_blocks = if self.hears_events() { &[] } else { prompt_blocks };
        if at <= now && self.channel.is_empty() {
            self.apply_route(at, now, instance, (prefix_key, session_key), prompt_blocks);
        } else {
            let blocks = prompt_blocks.into();
            let news = RoutedPrompt { at: now, instance, prefix_key, session_key, blocks };
            self.channel.send(at, News::Routed(news));
        }
    }

    /// An instance's cache changed at `now`; the directory will know in due time, or never.
    pub(crate) fn observe_cache(&mut self, now: Timestamp, instance: InstanceId, news: CacheNews) {
        if !self.hears_events() {
            return;
        }
        let Some(at) = self.channel.effective_at(now) else { return };
        if at <= now && self.channel.is_empty() {
            self.apply_cache(at, instance, &news);
        } else {
            self.channel.send(at, News::Cache(instance, news));
        }
    }

    /// Calls `found` with every instance believed to hold leading blocks of the prompt, and how many.
    pub(crate) fn matches(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        found: impl FnMut(InstanceId, u32),
    ) {
        match &mut self.holdings {
            Holdings::Guessed(history) => history.matches(now, request.prompt_blocks, found),
            Holdings::Told(index, buffer) => index.matches(buffer, request.prompt_blocks, found),
        }
    }

    /// Where the latest known requests with this request's prefix key and session key went.
    pub(crate) fn last_routes(
        &self,
        now: Timestamp,
        request: &RequestView<'_>,
    ) -> (Option<InstanceId>, Option<InstanceId>) {
        let last = |routes: &LastRoute, key: Option<u64>| {
            key.and_then(|key| routes.get(now, key)).map(|route| route.instance)
        };
        (
            last(&self.last_for_prefix, request.prefix_key),
            last(&self.last_for_session, request.session_key),
        )
    }

    /// When the latest news took effect; `None` before the first.
    pub(crate) const fn updated(&self) -> Option<Timestamp> {
        self.updated
    }

    /// Bytes that knowing what instances hold takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        match &self.holdings {
            Holdings::Guessed(history) => history.memory_bytes(),
            Holdings::Told(index, _) => index.memory_bytes(),
        }
    }

    /// The instance restarted or left: what it held is gone. News of it under way still arrives, as it would.
    pub(crate) fn forget(&mut self, instance: InstanceId) {
        match &mut self.holdings {
            Holdings::Guessed(history) => history.remove_instance(instance),
            Holdings::Told(index, _) => index.forget(instance),
        }
        self.last_for_prefix.remove_instance(instance);
        self.last_for_session.remove_instance(instance);
    }

    /// `routed` is when the request went there, by which recency and age count; `at` is when we learn of it.
    fn apply_route(
        &mut self,
        at: Timestamp,
        routed: Timestamp,
        instance: InstanceId,
        (prefix_key, session_key): (Option<u64>, Option<u64>),
        blocks: &[BlockHash],
    ) {
        if let Holdings::Guessed(history) = &mut self.holdings {
            history.insert(routed, instance, blocks);
        }
        if let Some(key) = prefix_key {
            self.last_for_prefix.insert(routed, key, instance);
        }
        if let Some(key) = session_key {
            self.last_for_session.insert(routed, key, instance);
        }
        self.updated = Some(at);
    }

    fn apply_cache(&mut self, at: Timestamp, instance: InstanceId, news: &CacheNews) {
        if let Holdings::Told(index, _) = &mut self.holdings {
            match news {
                CacheNews::Stored { parent, blocks } => index.stored(instance, *parent, blocks),
                CacheNews::Removed(blocks) => index.removed(instance, blocks),
                CacheNews::Cleared => index.cleared(instance),
            }
        }
        self.updated = Some(at);
    }
}
