//! The cache directory as the policy sees it: what was routed where, seen through the index signal's channel.

use kvroute_cache_index::{ConfigError, History, HistoryConfig, LastRoute, LastRouteConfig};
use kvroute_policy::RequestView;
use kvroute_types::{BlockHash, InstanceId, Timestamp};

use crate::channel::Channel;
use crate::config::RouterConfig;

/// News for the directory: a request was routed.
#[derive(Debug)]
struct RoutedPrompt {
    at: Timestamp,
    instance: InstanceId,
    prefix_key: Option<u64>,
    session_key: Option<u64>,
    blocks: Box<[BlockHash]>,
}

#[derive(Debug)]
pub(crate) struct Directory {
    history: History,
    last_for_prefix: LastRoute,
    last_for_session: LastRoute,
    channel: Channel<RoutedPrompt>,
    /// When the latest news took effect.
    updated: Option<Timestamp>,
}

impl Directory {
    pub(crate) fn new(config: &RouterConfig, seed: u64) -> Result<Self, ConfigError> {
        let expiry_s = config.index.expiry_s;
        let last_route =
            LastRouteConfig { capacity_keys: config.last_route_capacity_keys, expiry_s };
        Ok(Self {
            history: History::new(HistoryConfig {
                capacity_blocks: config.index_capacity_blocks,
                expiry_s,
                budget_bytes: config.index_budget_bytes,
            })?,
            last_for_prefix: LastRoute::new(last_route)?,
            last_for_session: LastRoute::new(last_route)?,
            channel: Channel::new(&config.index, seed),
            updated: None,
        })
    }

    /// Lets news take effect that is due by `now`.
    pub(crate) fn catch_up(&mut self, now: Timestamp) {
        while let Some((at, news)) = self.channel.receive(now) {
            let RoutedPrompt { at: routed, instance, prefix_key, session_key, blocks } = news;
            self.apply(at, routed, instance, (prefix_key, session_key), &blocks);
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
        if at <= now && self.channel.is_empty() {
            self.apply(at, now, instance, (prefix_key, session_key), prompt_blocks);
        } else {
            let blocks = prompt_blocks.into();
            let news = RoutedPrompt { at: now, instance, prefix_key, session_key, blocks };
            self.channel.send(at, news);
        }
    }

    /// Calls `found` with every instance believed to hold leading blocks of the prompt, and how many.
    pub(crate) fn matches(
        &self,
        now: Timestamp,
        request: &RequestView<'_>,
        found: impl FnMut(InstanceId, u32),
    ) {
        self.history.matches(now, request.prompt_blocks, found);
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

    /// Bytes the history takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.history.memory_bytes()
    }

    /// The instance restarted or left: what it held is gone. News of it under way still arrives, as it would.
    pub(crate) fn forget(&mut self, instance: InstanceId) {
        self.history.remove_instance(instance);
        self.last_for_prefix.remove_instance(instance);
        self.last_for_session.remove_instance(instance);
    }

    /// `routed` is when the request went there, by which recency and age count; `at` is when we learn of it.
    fn apply(
        &mut self,
        at: Timestamp,
        routed: Timestamp,
        instance: InstanceId,
        (prefix_key, session_key): (Option<u64>, Option<u64>),
        blocks: &[BlockHash],
    ) {
        self.history.insert(routed, instance, blocks);
        if let Some(key) = prefix_key {
            self.last_for_prefix.insert(routed, key, instance);
        }
        if let Some(key) = session_key {
            self.last_for_session.insert(routed, key, instance);
        }
        self.updated = Some(at);
    }
}
