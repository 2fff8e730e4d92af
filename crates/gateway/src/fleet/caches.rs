//! What instances tell of their caches, and how far each is believed.

use std::collections::BTreeMap;

use kvroute_index_audit::{Audit, Cause, Expectation, Figures, Reported, Verdict};
use kvroute_kv_events::{Cleared, Counters, Fact, News, Position};
use kvroute_router::{CacheNews, DirectorySource, ExactIndex, Routed};
use kvroute_types::{BlockHash, InstanceId, RequestId, Timestamp};
use serde::Serialize;

use super::snapshot::Kept;
use super::{Core, Fleet};
use crate::config::KvEventsConfig;
use crate::instance::Instance;
use crate::metrics::DoubtCounter;
use crate::prompt::{Names, RoutingFacts};

/// What is known of one instance's event stream.
pub(super) struct CacheWatch {
    audit: Audit,
    block_size: u32,
    /// Where it publishes; `None` as long as that is not known.
    endpoint: Option<String>,
    /// Whether what it told is known to be complete: without replays nobody can say, so it counts as soon as it is heard.
    is_complete: bool,
    has_replay: bool,
    /// Where the stream stands: all before has been applied.
    position: Option<Position>,
    /// When a batch came last.
    heard: Option<Timestamp>,
    counters: Counters,
    scraped: Scraped,
    doubt: Option<Cause>,
    doubts: DoubtCounter,
    is_believed: bool,
}

/// The instance's own counter of hits beside our predictions, for answers that do not tell their cached tokens.
#[derive(Debug, Default)]
struct Scraped {
    /// Tokens, by the last page.
    hits: Option<f64>,
    /// Tokens predicted of the requests sent since.
    predicted: u64,
    /// Answers since, that told and that did not.
    telling: u32,
    silent: u32,
}

/// What was believed of a request when it was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prediction {
    /// Its number.
    pub(super) request: RequestId,
    /// From what its cached tokens were predicted; `None` if they were not.
    pub(super) source: Option<DirectorySource>,
    /// Whether the audit waits for it.
    pub(super) is_expected: bool,
    /// Whether its answer tells what one look-up found.
    pub(super) is_auditable: bool,
}

/// One instance's event stream as the admin API tells of it.
#[derive(Debug, Serialize)]
pub(crate) struct IndexStatus {
    /// Whether requests are routed by what it tells.
    believed: bool,
    /// Why not, if the audit doubts it: the cause's name, and a sentence with the remedy.
    doubt_cause: Option<&'static str>,
    doubt: Option<String>,
    endpoint: Option<String>,
    /// Seconds since it last told something.
    heard_age_s: Option<f64>,
    /// Distinct blocks that it holds by its own account.
    blocks: u64,
    /// Of its latest audited requests: share of the predicted tokens that were cached, and the other way round.
    precision: Option<f64>,
    recall: Option<f64>,
    audited_requests: u64,
    batches: u64,
    gaps: u64,
    lost_batches: u64,
    restarts: u64,
}

/// What the metrics page tells of one instance's event stream.
pub(crate) struct IndexFigures {
    pub(crate) is_believed: bool,
    pub(crate) blocks: u64,
    pub(crate) audit: Figures,
    pub(crate) counters: Counters,
}

impl CacheWatch {
    /// One that goes on from `position`, if that is known.
    pub(super) fn new(
        config: &KvEventsConfig,
        position: Option<Position>,
        doubts: DoubtCounter,
    ) -> Self {
        Self {
            audit: Audit::new(config.audit, &config.naming()),
            block_size: config.block_size,
            endpoint: None,
            is_complete: false,
            has_replay: false,
            position,
            heard: None,
            counters: Counters::default(),
            scraped: Scraped::default(),
            doubt: None,
            doubts,
            is_believed: false,
        }
    }

    /// Whether it is known where it publishes.
    pub(super) fn is_listened_to(&self) -> bool {
        self.endpoint.is_some()
    }

    /// Takes in what is about the stream itself; returns what is about the cache.
    fn take(&mut self, now: Timestamp, fact: Fact) -> Option<Change> {
        match fact {
            Fact::Connected => self.is_complete = !self.has_replay,
            Fact::Disconnected => {
                self.is_complete = false;
                self.audit.interrupted(now);
            }
            Fact::Synced => self.is_complete = true,
            Fact::Stored(stored) => {
                // A model with several kinds of layers has a group for each; the first decides what a prompt can hit.
                if stored.group_idx.unwrap_or(0) != 0 {
                    return None;
                }
                self.audit.stored(now, &stored);
                // Blocks of another size name nothing that a request here could have.
                let is_usable = stored.block_size == self.block_size;
                return is_usable.then(|| {
                    Change::News(CacheNews::Stored {
                        parent: stored.parent().map(BlockHash),
                        blocks: stored.hashes().map(BlockHash).collect(),
                    })
                });
            }
            Fact::Removed(removed) => {
                if removed.group_idx.unwrap_or(0) != 0 {
                    return None;
                }
                self.audit.evicted(now, &removed);
                let blocks = removed.hashes().map(BlockHash).collect();
                return Some(Change::News(CacheNews::Removed(blocks)));
            }
            Fact::Cleared(cleared) => {
                self.audit.cleared(now);
                return Some(match cleared {
                    Cleared::Reset => Change::News(CacheNews::Cleared),
                    Cleared::Restarted => Change::Restarted,
                });
            }
            Fact::Lost(_) => {
                self.audit.lost(now);
                return Some(Change::News(CacheNews::Lost));
            }
        }
        None
    }
}

/// A change of a cache.
enum Change {
    News(CacheNews),
    Restarted,
}

impl Fleet {
    /// Where an instance publishes, before it is listened to.
    pub(crate) fn on_event_source(&self, instance: &Instance, endpoint: String, has_replay: bool) {
        let mut core = self.core();
        let Some(watch) = core.watch_mut(instance.id) else { return };
        (watch.endpoint, watch.has_replay) = (Some(endpoint), has_replay);
    }

    /// What an instance told.
    pub(crate) fn on_cache_news(&self, instance: &Instance, news: News, counters: Counters) {
        let mut core = self.core();
        // Under the lock: the router hears of things in the order of time.
        let now = self.now();
        let id = instance.id;
        if core.watch_mut(id).is_none() {
            return;
        }
        let (unknown_before, refused_before) = (core.unknown_removals(), core.refused_blocks());
        for fact in news.facts {
            match &fact {
                Fact::Lost(loss) => {
                    tracing::warn!(instance = instance.name, ?loss, "KV events are missing");
                }
                Fact::Cleared(cleared) => {
                    tracing::info!(instance = instance.name, ?cleared, "the cache is empty");
                }
                _ => {}
            }
            let change = core.watch_mut(id).and_then(|watch| watch.take(now, fact));
            match change {
                Some(Change::News(news)) => core.router.observe_cache(now, id, news),
                Some(Change::Restarted) => core.router.instance_restarted(id),
                None => {}
            }
        }
        let unknown = core.unknown_removals() - unknown_before;
        let is_refused = core.refused_blocks() > refused_before;
        if let Some(watch) = core.watch_mut(id) {
            watch.position = news.position;
            watch.heard = Some(now);
            watch.counters = counters;
            watch.audit.removed(unknown);
            if is_refused {
                watch.audit.refused();
            }
        }
        core.judge_index(now, id);
    }

    /// What a subscription has counted so far.
    pub(crate) fn on_event_counters(&self, instance: &Instance, counters: Counters) {
        let mut core = self.core();
        let Some(watch) = core.watch_mut(instance.id) else { return };
        watch.counters = counters;
        let now = self.now();
        core.judge_index(now, instance.id);
    }

    /// Instances that are believed.
    pub(crate) fn believed_instances(&self) -> usize {
        let core = self.core();
        core.members().filter(|it| it.caches.as_ref().is_some_and(|it| it.is_believed)).count()
    }

    /// Where the stream of an instance stands, to go on from there.
    pub(crate) fn event_position(&self, instance: &Instance) -> Option<Position> {
        self.core().watch_mut(instance.id).and_then(|watch| watch.position)
    }
}

impl Core {
    fn watch_mut(&mut self, id: InstanceId) -> Option<&mut CacheWatch> {
        self.member_mut(id).and_then(|member| member.caches.as_mut())
    }

    fn unknown_removals(&self) -> u64 {
        self.router.told().map_or(0, ExactIndex::unknown_removals)
    }

    fn refused_blocks(&self) -> u64 {
        self.router.told().map_or(0, ExactIndex::refused_blocks)
    }

    /// A request was sent to an instance: what it should find there.
    pub(super) fn expect_cached(
        &mut self,
        now: Timestamp,
        request: RequestId,
        facts: &RoutingFacts,
        routed: &Routed,
    ) -> bool {
        let Names::Engine { has_extra_keys } = facts.names else { return false };
        let Some(told) = routed.told_cached_tokens.filter(|_| facts.is_auditable) else {
            return false;
        };
        // As long as the news is not complete, what is missing from it proves nothing.
        let watch = self.watch_mut(routed.instance).filter(|watch| watch.is_complete);
        let Some(watch) = watch else { return false };
        watch.scraped.predicted += u64::from(told.0);
        let expectation = Expectation {
            request,
            prompt_tokens: facts.prompt_tokens,
            blocks: &facts.prompt_blocks,
            predicted_cached_tokens: told,
            has_extra_keys,
        };
        watch.audit.routed(now, &expectation);
        true
    }

    /// A request that was expected was answered; `None` if the answer said nothing of its prompt.
    pub(super) fn compare_cached(
        &mut self,
        now: Timestamp,
        id: InstanceId,
        request: RequestId,
        reported: Option<Reported>,
    ) {
        let Some(watch) = self.watch_mut(id) else { return };
        let tells = reported.is_some_and(|reported| reported.cached_tokens.is_some());
        watch.scraped.telling += u32::from(tells);
        watch.scraped.silent += u32::from(!tells);
        watch.audit.ended(now, request, reported);
        self.judge_index(now, id);
    }

    /// The instance's page tells of so many tokens found in its cache, ever.
    pub(super) fn hits_counted(&mut self, now: Timestamp, id: InstanceId, hits: Option<f64>) {
        let Some(watch) = self.watch_mut(id) else { return };
        let last = std::mem::replace(&mut watch.scraped, Scraped { hits, ..Scraped::default() });
        let increase = hits.zip(last.hits).map(|(hits, before)| hits - before);
        // Only where no answer tells; a counter that fell is another engine's.
        if let Some(increase) = increase.filter(|increase| *increase >= 0.0)
            && (last.telling, last.silent > 0) == (0, true)
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count of tokens, not negative; the cast saturates"
            )]
            watch.audit.counted(now, last.predicted, increase as u64);
            self.judge_index(now, id);
        }
    }

    /// A request that was expected failed, or its client left.
    pub(super) fn forget_expected(&mut self, id: InstanceId, request: RequestId) {
        if let Some(watch) = self.watch_mut(id) {
            watch.audit.dropped(request);
        }
    }

    /// Brings in line whether an instance is believed.
    fn judge_index(&mut self, now: Timestamp, id: InstanceId) {
        let Some(watch) = self.watch_mut(id) else { return };
        let doubt = match watch.audit.verdict(now) {
            Verdict::Believed | Verdict::Learning => None,
            Verdict::Doubted(cause) => Some(cause),
        };
        let is_believed = watch.is_complete && doubt.is_none();
        let is_new_doubt = doubt != watch.doubt;
        watch.doubt = doubt;
        if let Some(cause) = doubt.filter(|_| is_new_doubt) {
            watch.doubts.count(cause.name());
        }
        if !is_new_doubt && is_believed == watch.is_believed {
            return;
        }
        watch.is_believed = is_believed;
        let figures = watch.audit.figures();
        let (precision, recall) = (figures.precision, figures.recall);
        self.router.set_believed(id, is_believed);
        let name = self.name(id);
        if let Some(cause) = doubt.filter(|_| is_new_doubt) {
            tracing::warn!(
                instance = %name,
                cause = cause.name(),
                precision,
                recall,
                "what the instance tells of its cache is not believed; it is judged by what was routed there: {cause}"
            );
        } else if is_believed {
            tracing::info!(instance = %name, "routed by what the instance tells of its cache");
        } else {
            tracing::info!(
                instance = %name,
                "what the instance tells of its cache is not complete; it is judged by what was routed there"
            );
        }
    }

    /// One instance's event stream, if it is listened to.
    pub(super) fn index_status(&self, now: Timestamp, id: InstanceId) -> Option<IndexStatus> {
        let watch = self.member(id)?.caches.as_ref()?;
        let figures = watch.audit.figures();
        Some(IndexStatus {
            believed: watch.is_believed,
            doubt_cause: watch.doubt.map(Cause::name),
            doubt: watch.doubt.as_ref().map(ToString::to_string),
            endpoint: watch.endpoint.clone(),
            heard_age_s: watch.heard.map(|heard| now.since(heard).as_secs_f64()),
            blocks: self.router.told().map_or(0, |told| told.len_blocks(id)),
            precision: figures.precision,
            recall: figures.recall,
            audited_requests: figures.audited,
            batches: watch.counters.batches,
            gaps: watch.counters.gaps,
            lost_batches: watch.counters.lost_batches,
            restarts: watch.counters.restarts,
        })
    }

    /// The same for the metrics page.
    pub(super) fn index_figures(&self, id: InstanceId) -> Option<IndexFigures> {
        let watch = self.member(id)?.caches.as_ref()?;
        Some(IndexFigures {
            is_believed: watch.is_believed,
            blocks: self.router.told().map_or(0, |told| told.len_blocks(id)),
            audit: watch.audit.figures(),
            counters: watch.counters.clone(),
        })
    }

    /// Where all streams stand, by the names of their instances.
    pub(super) fn positions(&self) -> BTreeMap<String, Kept> {
        let positions = self.members().filter_map(|member| {
            let position = member.caches.as_ref()?.position;
            Some((member.instance.name.clone(), Kept { id: member.instance.id, position }))
        });
        positions.collect()
    }
}
