//! The cache directory as the policy sees it: what each instance holds, as far as is known, and where requests went, seen
//! through the index signal's channel.

use std::io::{Read, Write};

use kvroute_cache_index::{
    ConfigError, ExactIndex, ExactIndexConfig, History, HistoryConfig, LastRoute, LastRouteConfig,
    MatchBuffer, SnapshotError,
};
use kvroute_policy::{BlockNames, RequestView};
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
    /// Something was missed: what was told before does not count any more. The blocks may well be there.
    Lost,
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
    /// Empty if nothing is to be learned from it.
    blocks: Box<[BlockHash]>,
}

/// What instances hold by their own account.
#[derive(Debug)]
struct Told {
    index: ExactIndex,
    buffer: MatchBuffer,
    /// Instances that are not believed, sorted.
    doubted: Vec<InstanceId>,
    /// What each instance holds of the latest request looked up, believed or not.
    latest: Vec<(InstanceId, u32)>,
}

impl Told {
    fn is_believed(&self, instance: InstanceId) -> bool {
        self.doubted.binary_search(&instance).is_err()
    }
}

#[derive(Debug)]
pub(crate) struct Directory {
    /// What was routed where.
    history: History,
    /// `None` if the directory is one of history alone.
    told: Option<Box<Told>>,
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
        let capacity_blocks = config.index_capacity_blocks;
        let told = match config.directory {
            DirectorySource::History => None,
            DirectorySource::Events => Some(Box::new(Told {
                index: ExactIndex::new(ExactIndexConfig { budget_bytes })?,
                buffer: MatchBuffer::default(),
                doubted: Vec::new(),
                latest: Vec::new(),
            })),
        };
        Ok(Self {
            history: History::new(HistoryConfig { capacity_blocks, expiry_s, budget_bytes })?,
            told,
            last_for_prefix: LastRoute::new(last_route)?,
            last_for_session: LastRoute::new(last_route)?,
            channel: Channel::new(&config.index, seed),
            updated: None,
        })
    }

    /// What the instances tell, if it is listened to.
    pub(crate) fn told(&self) -> Option<&ExactIndex> {
        self.told.as_ref().map(|told| &told.index)
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
        let will_be_told = self.source_for(request, instance) == DirectorySource::Events;
        let prompt_blocks = if will_be_told { &[] } else { prompt_blocks };
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
        if self.told.is_none() {
            return;
        }
        let Some(at) = self.channel.effective_at(now) else { return };
        if at <= now && self.channel.is_empty() {
            self.apply_cache(at, instance, &news);
        } else {
            self.channel.send(at, News::Cache(instance, news));
        }
    }

    /// Says whether what the instance tells counts.
    pub(crate) fn set_believed(&mut self, instance: InstanceId, believed: bool) {
        let Some(told) = &mut self.told else { return };
        match told.doubted.binary_search(&instance) {
            Ok(at) if believed => drop(told.doubted.remove(at)),
            Err(at) if !believed => told.doubted.insert(at, instance),
            Ok(_) | Err(_) => {}
        }
    }

    /// From what is known which of the request's blocks the instance holds.
    pub(crate) fn source_for(
        &self,
        request: &RequestView<'_>,
        instance: InstanceId,
    ) -> DirectorySource {
        let told = self.told.as_ref().filter(|_| request.block_names == BlockNames::Engine);
        if told.is_some_and(|told| told.is_believed(instance)) {
            DirectorySource::Events
        } else {
            DirectorySource::History
        }
    }

    /// Calls `found` with every instance believed to hold leading blocks of the prompt, and how many.
    pub(crate) fn matches(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        mut found: impl FnMut(InstanceId, u32),
    ) {
        let blocks = request.prompt_blocks;
        let Some(told) = &mut self.told else {
            return self.history.matches(now, blocks, found);
        };
        told.latest.clear();
        if request.block_names == BlockNames::Text {
            return self.history.matches(now, blocks, found);
        }
        let Told { index, buffer, doubted, latest } = &mut **told;
        index.matches(buffer, blocks, |id, depth| latest.push((id, depth)));
        for &(id, depth) in latest.iter().filter(|(id, _)| doubted.binary_search(id).is_err()) {
            found(id, depth);
        }
        if !doubted.is_empty() {
            self.history.matches(now, blocks, |id, depth| {
                if doubted.binary_search(&id).is_ok() {
                    found(id, depth);
                }
            });
        }
    }

    /// Leading blocks of the request looked up last that the instance holds by its own account, believed or not; `None`
    /// if that cannot be said of this request.
    pub(crate) fn told_blocks(
        &self,
        request: &RequestView<'_>,
        instance: InstanceId,
    ) -> Option<u32> {
        let told = self.told.as_ref().filter(|_| request.block_names == BlockNames::Engine)?;
        let held = told.latest.iter().find(|(id, _)| *id == instance);
        Some(held.map_or(0, |&(_, depth)| depth))
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
        self.history.memory_bytes() + self.told().map_or(0, ExactIndex::memory_bytes)
    }

    /// The instance restarted or left: what it held is gone. News of it under way still arrives, as it would.
    pub(crate) fn forget(&mut self, instance: InstanceId) {
        if let Some(told) = &mut self.told {
            told.index.forget(instance);
        }
        self.forget_routes(instance);
    }

    fn forget_routes(&mut self, instance: InstanceId) {
        self.history.remove_instance(instance);
        self.last_for_prefix.remove_instance(instance);
        self.last_for_session.remove_instance(instance);
    }

    /// Writes what the instances have told ([`ExactIndex::snapshot`]).
    pub(crate) fn snapshot(&self, taken_at: Timestamp, out: impl Write) -> std::io::Result<()> {
        self.told().map_or(Ok(()), |index| index.snapshot(taken_at, out))
    }

    /// Puts a snapshot in the place of what the instances have told.
    pub(crate) fn restore(
        &mut self,
        config: &RouterConfig,
        input: impl Read,
    ) -> Result<(), SnapshotError> {
        if let Some(told) = &mut self.told {
            let budget_bytes = config.index_budget_bytes;
            (told.index, _) = ExactIndex::restore(ExactIndexConfig { budget_bytes }, input)?;
        }
        Ok(())
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
        if !blocks.is_empty() {
            self.history.insert(routed, instance, blocks);
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
        if let Some(told) = &mut self.told {
            match news {
                CacheNews::Stored { parent, blocks } => {
                    told.index.stored(instance, *parent, blocks);
                }
                CacheNews::Removed(blocks) => told.index.removed(instance, blocks),
                CacheNews::Cleared | CacheNews::Lost => told.index.cleared(instance),
            }
            if *news == CacheNews::Cleared {
                self.forget_routes(instance);
            }
        }
        self.updated = Some(at);
    }
}
