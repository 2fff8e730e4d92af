//! The instances, shared by all threads: the router core behind one lock, and the rules of who may be chosen.
//!
//! An instance may be chosen if it is up (or the last one left), not draining, and below its cap. The lock is held for
//! one decision or one piece of bookkeeping, which take microseconds, and never across a wait.

mod caches;
mod flight;
mod logged;
mod snapshot;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use kvroute_decision_log::{Receipt, RequestFacts};
use kvroute_kv_events::SourceConfig;
use kvroute_policy::{Candidate, Policy, PolicyConfig};
use kvroute_prompt_tokens::Endpoint;
use kvroute_router::InvalidRouterConfig;
use kvroute_types::{InstanceId, RequestId, Timestamp};
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::config::{GatewayConfig, InstanceConfig, InvalidConfig, seconds};
use crate::error::Failure;
use crate::health::{EjectionCause, Health};
use crate::instance::{Activity, Instance, Target};
use crate::metrics::{Metrics, RouteMetrics};
use crate::naming::Namer;
use crate::prompt::RoutingFacts;
use crate::receipts::{DecisionLog, LatestReceipts, RawReceipt};
use crate::scrape::Page;
use crate::trace::Tracer;
use caches::{CacheWatch, IndexStatus, Prediction};
use flight::Booking;
use logged::LoggedRouter;
use snapshot::Kept;

pub(crate) use caches::IndexFigures;
pub(crate) use flight::Flight;

/// Retries are counted in thousandths, so that a ratio can be added per request.
const BUDGET_UNIT: i64 = 1_000;

/// The instances and everything that is decided about them.
pub(crate) struct Fleet {
    started: Instant,
    core: Mutex<Core>,
    config: RwLock<Arc<GatewayConfig>>,
    /// Held while the configuration changes.
    changing: Mutex<()>,
    /// Rings when a waiting request may find an instance below its cap.
    freed: Notify,
    /// The same for requests that wait for their second try.
    freed_for_retries: Notify,
    requests: AtomicU32,
    retry_budget: AtomicI64,
    receipts: LatestReceipts,
    /// `None` if prompts are named by their text alone.
    namer: Option<Arc<Namer>>,
    /// `None` if no spans are exported.
    pub(crate) tracer: Option<Arc<Tracer>>,
    pub(crate) metrics: Metrics,
}

struct Core {
    router: LoggedRouter,
    /// By instance id; ids are never used again.
    members: Vec<Option<Member>>,
    /// Requests waiting for an instance below its cap.
    queued: usize,
    /// What an earlier gateway has kept of instances, until they are entered.
    kept: BTreeMap<String, Kept>,
    /// When the latest snapshot of what instances tell was taken.
    snapshot_unix_ns: Option<u64>,
}

struct Member {
    instance: Arc<Instance>,
    metrics: Arc<RouteMetrics>,
    health: Health,
    /// Whether it stays in use although it is not up, since no member is.
    is_last_resort: bool,
    is_draining: bool,
    /// Prefill tokens per second, as seen from first tokens.
    prefill_rate: Option<f64>,
    last_page: Option<Page>,
    /// The most that its token counters have said: they begin anew with the engine.
    progress: f64,
    missing: Vec<&'static str>,
    /// `None` if it is not listened to.
    caches: Option<CacheWatch>,
}

impl Member {
    fn is_in_use(&self) -> bool {
        !self.is_draining && (self.health.is_up() || self.is_last_resort)
    }

    /// Seconds that this much prefill may take before it is strange: twice the usual, as prompts are estimates.
    fn prefill_s_max(&self, tokens: u64, config: &GatewayConfig) -> f64 {
        let rate = self.prefill_rate.unwrap_or(config.health.prefill_tokens_per_s_min);
        2.0 * tokens as f64 / rate
    }
}

/// An instance as the admin API tells of it.
#[derive(Debug, Serialize)]
pub(crate) struct InstanceStatus {
    name: String,
    url: String,
    up: bool,
    draining: bool,
    ejected_for: Option<&'static str>,
    in_flight: u32,
    in_flight_uncached_tokens: u64,
    waiting: Option<u32>,
    running: Option<u32>,
    kv_cache_usage: Option<f64>,
    load_age_s: Option<f64>,
    prefix_cache_hit_rate: Option<f64>,
    prefill_tokens_per_s: Option<f64>,
    missing_figures: Vec<&'static str>,
    /// What it tells of its cache; `None` if it is not listened to.
    kv_events: Option<IndexStatus>,
}

/// What an admin request asked for that cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("there is no instance {name:?}")]
    UnknownInstance { name: String },
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
}

impl Fleet {
    pub(crate) fn new(
        config: GatewayConfig,
        log: Option<DecisionLog>,
        tracer: Option<Arc<Tracer>>,
        namer: Option<Arc<Namer>>,
    ) -> Result<Self, InvalidRouterConfig> {
        let policy = config.policy.build(config.seed).expect("the configuration was validated");
        let started = Instant::now();
        let metrics = Metrics::new(log.as_ref().map(DecisionLog::lost_total).unwrap_or_default());
        let core = Core {
            router: LoggedRouter::new(&config, policy, log, started)?,
            members: Vec::new(),
            queued: 0,
            kept: BTreeMap::new(),
            snapshot_unix_ns: None,
        };
        let fleet = Self {
            started,
            core: Mutex::new(core),
            changing: Mutex::new(()),
            freed: Notify::new(),
            freed_for_retries: Notify::new(),
            requests: AtomicU32::new(0),
            retry_budget: AtomicI64::new(i64::from(config.retry.budget_max) * BUDGET_UNIT),
            receipts: LatestReceipts::new(config.receipts.kept),
            namer,
            tracer,
            metrics,
            config: RwLock::new(Arc::new(config)),
        };
        let config = fleet.config();
        {
            let mut core = fleet.core();
            core.restore(&config.kv_events);
            let entered = core.set_instances(&config, &fleet.metrics);
            entered.expect("the configuration was validated");
            core.forget_the_gone();
        }
        Ok(fleet)
    }

    /// The configuration in effect.
    pub(crate) fn config(&self) -> Arc<GatewayConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Time since the gateway started.
    pub(crate) fn now(&self) -> Timestamp {
        self.timestamp(Instant::now())
    }

    pub(crate) fn timestamp(&self, at: Instant) -> Timestamp {
        Timestamp::ZERO + at.saturating_duration_since(self.started)
    }

    /// Names the blocks of a request's prompt as the engines do, where that is wanted and can be done.
    pub(crate) async fn name(&self, endpoint: Endpoint, body: &Bytes, facts: &mut RoutingFacts) {
        let Some(namer) = &self.namer else { return };
        match namer.name(endpoint, body, facts).await {
            Ok(()) => self.metrics.named(None),
            Err(unnamed) => {
                tracing::debug!(%unnamed, "a prompt is named by its text");
                self.metrics.named(Some(unnamed.kind()));
            }
        }
    }

    /// Chooses an instance and books the request there, waiting in the queue if all are at their cap.
    ///
    /// # Errors
    /// If there is no instance, or no room within the time that a request may wait.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        arrived: Instant,
        facts: &RoutingFacts,
    ) -> Result<Flight, Failure> {
        let config = self.config();
        self.earn_retries(&config);
        {
            let mut core = self.core();
            if core.queued == 0
                && let Some(flight) = self.route(&mut core, arrived, facts, &[])
            {
                return Ok(flight);
            }
            if core.members().all(|member| member.is_draining) {
                return Err(Failure::NoInstance);
            }
            if core.queued >= config.limits.queue {
                return Err(Failure::QueueFull);
            }
            core.queued += 1;
        }
        let _queued = Queued(self);
        // Whoever came first is woken first, one request per place that becomes free.
        let wait = async {
            loop {
                self.freed.notified().await;
                let mut core = self.core();
                if let Some(flight) = self.route(&mut core, arrived, facts, &[]) {
                    return flight;
                }
            }
        };
        // A place may have come free before this request was in the queue.
        self.freed.notify_one();
        timeout(seconds(config.timeouts.queue_s), wait).await.map_err(|_| Failure::QueueTimeout)
    }

    /// Chooses another instance after those in `tried` failed, waiting in the queue if all others are at their cap;
    /// `None` if there is none, or the budget is spent.
    pub(crate) async fn admit_retry(
        self: &Arc<Self>,
        arrived: Instant,
        facts: &RoutingFacts,
        tried: &[InstanceId],
    ) -> Option<Flight> {
        let take = |budget: i64| (budget >= BUDGET_UNIT).then(|| budget - BUDGET_UNIT);
        let spent =
            self.retry_budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err();
        if spent {
            self.metrics.retries_denied.inc();
            return None;
        }
        let config = self.config();
        let placed = timeout(seconds(config.timeouts.queue_s), async {
            let mut queued = None;
            loop {
                // Made before looking, so that no place is missed that comes free in between.
                let freed = self.freed_for_retries.notified();
                {
                    let mut core = self.core();
                    if let routed @ Some(_) = self.route(&mut core, arrived, facts, tried) {
                        return routed;
                    }
                    let is_new = |member: &Member| !tried.contains(&member.instance.id);
                    if !core.members().any(|it| it.is_in_use() && is_new(it)) {
                        // One that only serves its back-off is better than an error.
                        core.open_all_that_may_do(&config);
                        let flight = self.route(&mut core, arrived, facts, tried);
                        core.refresh_all(&config);
                        return flight;
                    }
                    if queued.is_none() && core.queued >= config.limits.queue {
                        return None;
                    }
                    queued.get_or_insert_with(|| {
                        core.queued += 1;
                        Queued(self)
                    });
                }
                freed.await;
            }
        });
        let Ok(Some(flight)) = placed.await else {
            self.retry_budget.fetch_add(BUDGET_UNIT, Ordering::Relaxed);
            return None;
        };
        if let Some(&failed) = tried.last() {
            self.metrics.retried(&self.core().name(failed));
        }
        Some(flight)
    }

    /// A place may have come free: one waiting request looks, and all that wait for their second try, as it may be at
    /// an instance that some of them have tried.
    fn place_freed(&self) {
        self.freed.notify_one();
        self.freed_for_retries.notify_waiters();
    }

    fn route(
        self: &Arc<Self>,
        core: &mut Core,
        arrived: Instant,
        facts: &RoutingFacts,
        tried: &[InstanceId],
    ) -> Option<Flight> {
        let sent = Instant::now();
        let now = self.timestamp(sent);
        let request = RequestId(self.requests.fetch_add(1, Ordering::Relaxed));
        let attempt = u32::try_from(tried.len() + 1).unwrap_or(u32::MAX);
        let mut routed = core.router.route_except(now, &facts.view(request), tried, attempt)?;
        let member = core.members[routed.instance.index()].as_ref().expect("it was a candidate");
        let (instance, metrics) = (Arc::clone(&member.instance), Arc::clone(&member.metrics));
        metrics.decided(routed.reason);
        let is_expected = core.expect_cached(now, request, facts, &routed);
        let source = core.router.matched_by(&facts.view(request), routed.instance);

        let candidate = core.candidate(routed.instance).expect("it was a candidate");
        let work_tokens = candidate.in_flight_uncached_tokens;
        if candidate.in_flight == 1 {
            instance.activity.has_work_again(now);
        }
        core.refresh(routed.instance, &self.config());
        if core.queued > 0 {
            self.freed.notify_one();
        }
        if let Some(route) = routed.receipt.take() {
            let facts = RequestFacts {
                predicted_cached_tokens: routed.predicted_cached_tokens,
                prompt_tokens: facts.prompt_tokens,
                prompt_blocks: facts.prompt_blocks.len(),
                session_key: facts.session_key,
                prefix_key: facts.prefix_key,
                attempt,
            };
            self.receipts.push(RawReceipt { route, facts });
        }
        let policy = core.router.policy_name();
        let is_auditable = facts.is_auditable;
        let prediction = Prediction { request, source, is_expected, is_auditable };
        let booking = Booking { routed, policy, arrived, sent, work_tokens, prediction };
        Some(Flight::new(Arc::clone(self), instance, metrics, booking))
    }

    fn earn_retries(&self, config: &GatewayConfig) {
        let max = i64::from(config.retry.budget_max) * BUDGET_UNIT;
        if self.retry_budget.load(Ordering::Relaxed) < max {
            #[expect(clippy::cast_possible_truncation, reason = "the ratio is at most 1e6")]
            let earned = (config.retry.budget_ratio * BUDGET_UNIT as f64) as i64;
            let earn = |budget: i64| Some((budget + earned).min(max));
            let _ = self.retry_budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earn);
        }
    }

    /// The instances as they are now.
    pub(crate) fn instances(&self) -> Vec<Arc<Instance>> {
        self.core().members().map(|member| Arc::clone(&member.instance)).collect()
    }

    /// Those that are in use.
    pub(crate) fn instances_in_use(&self) -> Vec<Arc<Instance>> {
        let core = self.core();
        let in_use = core.members().filter(|member| member.is_in_use());
        in_use.map(|member| Arc::clone(&member.instance)).collect()
    }

    /// Whether an instance that has answered can be chosen.
    pub(crate) fn is_ready(&self) -> bool {
        let is_ready = |m: &Member| m.health.is_up() && m.health.has_answered && !m.is_draining;
        self.core().members().any(is_ready)
    }

    /// Requests in flight, by our own count.
    pub(crate) fn in_flight(&self) -> usize {
        self.core().router.in_flight()
    }

    /// A probe's outcome.
    pub(crate) fn on_probe(&self, instance: &Instance, is_ok: bool) {
        let now = self.now();
        self.change_health(instance, |health, config| health.on_probe(now, is_ok, &config.health));
        let config = self.config();
        let core = self.core();
        // Requests may still wait there: it was the last resort, say, or its answers failed before it froze.
        let is_left =
            |member: &Member| member.health.is_unreachable(&config.health) && !member.is_in_use();
        if core.member(instance.id).is_some_and(is_left) {
            instance.given_up.notify_waiters();
        }
    }

    /// What a reading of `/metrics` that was asked for at `asked` said; `None` if it failed.
    pub(crate) fn on_page(&self, instance: &Instance, asked: Timestamp, page: Option<Page>) {
        let mut core = self.core();
        // Under the lock: the router hears of things in the order of time.
        let now = self.now();
        let core = &mut *core;
        let Some(member) = core.members[instance.id.index()].as_mut() else { return };
        let Some(page) = page else {
            member.last_page = None;
            self.metrics.scraped(&instance.name, None);
            return;
        };
        let missing = page.missing();
        self.metrics.scraped(&instance.name, Some(missing.len()));
        if missing != member.missing && !missing.is_empty() {
            let name = &instance.name;
            tracing::warn!(
                instance = name,
                ?missing,
                "expected figures are not on its /metrics page"
            );
        }
        member.missing = missing;
        let has_moved =
            |last: Page| page.progress().is_some_and(|now| last.progress() != Some(now));
        if member.last_page.replace(page).is_some_and(has_moved) {
            instance.activity.heard(now);
        }
        let progress = page.progress().unwrap_or(member.progress);
        if std::mem::replace(&mut member.progress, progress) > progress {
            tracing::info!(instance = instance.name, "its counters began anew: it has restarted");
            // One that is listened to tells so itself, in the order of what it tells.
            if !member.caches.as_ref().is_some_and(CacheWatch::is_listened_to) {
                core.router.instance_restarted(instance.id);
            }
        }
        core.hits_counted(now, instance.id, page.prefix_cache_hits);
        if let Some(load) = page.load(asked) {
            core.router.observe_load(now, instance.id, load);
        }
    }

    /// Ejects instances that have been silent for longer than their work explains.
    pub(crate) fn judge_silence(&self) {
        let config = self.config();
        let Some(silence_s) = config.health.silence_s else { return };
        let now = self.now();
        for instance in self.instances() {
            let allowed_s = {
                let core = self.core();
                let (Some(member), Some(candidate)) =
                    (core.member(instance.id), core.candidate(instance.id))
                else {
                    continue;
                };
                // Token counters tell only if they are read often enough.
                let is_read = config.load.refresh_s.is_some_and(|s| 2.0 * s <= silence_s);
                let page = member.last_page.filter(|_| is_read);
                if !may_judge(&instance.activity, candidate, page) {
                    continue;
                }
                silence_s + member.prefill_s_max(candidate.in_flight_uncached_tokens, &config)
            };
            let silent = now.since(instance.activity.last_sign());
            if silent > seconds(allowed_s) {
                let name = &instance.name;
                tracing::warn!(instance = name, ?silent, allowed_s, "instance is silent: hung?");
                self.change_health(&instance, |health, config| {
                    health.eject(now, EjectionCause::Silence, &config.health)
                });
            }
        }
    }

    /// Applies a change of health, and what follows from it.
    fn change_health(
        &self,
        instance: &Instance,
        change: impl FnOnce(&mut Health, &GatewayConfig) -> bool,
    ) {
        let config = self.config();
        let mut core = self.core();
        let Some(member) = core.member_mut(instance.id) else { return };
        if !change(&mut member.health, &config) {
            if !core.is_any_up() {
                // It may look well now, or not any more.
                core.refresh_all(&config);
                self.place_freed();
            }
            return;
        }
        let cause = member.health.cause();
        core.refresh_all(&config);
        let is_in_use = core.member(instance.id).is_some_and(Member::is_in_use);
        drop(core);
        let name = &instance.name;
        match cause {
            None => {
                instance.activity.rests(Duration::ZERO);
                tracing::info!(instance = name, "instance is back in use");
            }
            Some(cause) if is_in_use => {
                let cause = cause.name();
                tracing::warn!(instance = name, cause, "instance fails, but it is the last one");
            }
            Some(cause) => {
                tracing::warn!(instance = name, cause = cause.name(), "instance is ejected");
                self.metrics.ejected(name, cause);
                if cause != EjectionCause::Requests {
                    instance.given_up.notify_waiters();
                }
            }
        }
        self.place_freed();
    }

    /// Changes the configuration and everything that follows from it, between two decisions: no request is dropped.
    ///
    /// # Errors
    /// If the edit refuses, or what it leaves is not valid; nothing has changed then.
    pub(crate) fn change<E: From<InvalidConfig>>(
        &self,
        edit: impl FnOnce(&mut GatewayConfig) -> Result<(), E>,
    ) -> Result<(), E> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut config = GatewayConfig::clone(&self.config());
        edit(&mut config)?;
        config.validate()?;
        let rule = config.policy.build(config.seed).map_err(InvalidConfig::Policy)?;
        let is_new_policy = config.policy != self.config().policy;
        let mut core = self.core();
        if is_new_policy {
            core.set_policy(rule, config.policy, &self.metrics);
        }
        core.set_instances(&config, &self.metrics)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        drop(core);
        self.place_freed();
        Ok(())
    }

    /// Adds an instance.
    pub(crate) fn add(&self, instance: InstanceConfig) -> Result<(), ChangeError> {
        self.change(|config| {
            config.instances.push(instance);
            Ok(())
        })
    }

    /// Takes an instance out. Its requests in flight go on.
    pub(crate) fn remove(&self, name: &str) -> Result<(), ChangeError> {
        self.change(|config| {
            let known = config.instances.len();
            config.instances.retain(|it| !matches!(it.parse(), Ok((other, _)) if other == name));
            let is_gone = config.instances.len() < known;
            is_gone.then_some(()).ok_or(ChangeError::UnknownInstance { name: name.to_owned() })
        })
    }

    /// Exchanges the policy. The table and the cache directory stay.
    pub(crate) fn set_policy(&self, policy: PolicyConfig) -> Result<(), ChangeError> {
        self.change(|config| {
            config.policy = policy;
            Ok(())
        })
    }

    /// Whether an instance gets no new requests.
    pub(crate) fn set_draining(&self, name: &str, is_draining: bool) -> Result<(), ChangeError> {
        let mut core = self.core();
        let member = core.members.iter_mut().flatten().find(|it| it.instance.name == name);
        let Some(member) = member else {
            return Err(ChangeError::UnknownInstance { name: name.to_owned() });
        };
        member.is_draining = is_draining;
        core.refresh_all(&self.config());
        drop(core);
        self.place_freed();
        Ok(())
    }

    /// Every instance, for the admin API.
    pub(crate) fn status(&self) -> Vec<InstanceStatus> {
        let now = self.now();
        let core = self.core();
        let status = |member: &Member| {
            let candidate = core.candidate(member.instance.id)?;
            let load = candidate.load;
            let hit_rate = member.last_page.and_then(|page| {
                Some(page.prefix_cache_hits? / page.prefix_cache_queries.filter(|&n| n > 0.0)?)
            });
            Some(InstanceStatus {
                name: member.instance.name.clone(),
                url: format!("http://{}", member.instance.target.authority),
                up: member.health.is_up(),
                draining: member.is_draining,
                ejected_for: member.health.cause().map(EjectionCause::name),
                in_flight: candidate.in_flight,
                in_flight_uncached_tokens: candidate.in_flight_uncached_tokens,
                waiting: load.map(|load| load.waiting),
                running: load.map(|load| load.running),
                kv_cache_usage: load.map(|load| load.kv_cache_usage),
                load_age_s: load.map(|load| now.since(load.as_of).as_secs_f64()),
                prefix_cache_hit_rate: hit_rate,
                prefill_tokens_per_s: member.prefill_rate,
                missing_figures: member.missing.clone(),
                kv_events: core.index_status(now, member.instance.id),
            })
        };
        core.members().filter_map(status).collect()
    }

    /// The latest receipts, newest first.
    pub(crate) fn receipts(&self, count: usize) -> Vec<Receipt> {
        let core = self.core();
        self.receipts.latest(count, |id| core.name(id))
    }

    /// The metrics page.
    pub(crate) fn write_metrics(&self) -> String {
        let now = self.now();
        let core = self.core();
        for member in core.members() {
            let Some(candidate) = core.candidate(member.instance.id) else { continue };
            let age = candidate.load.map(|load| now.since(load.as_of));
            let is_in_use = member.is_in_use();
            self.metrics.instance(&member.instance.name, candidate.in_flight, is_in_use, age);
            if let Some(figures) = core.index_figures(member.instance.id) {
                self.metrics.index(&member.instance.name, &figures);
            }
        }
        if let Some(told) = core.router.told() {
            let (blocks, refused) = (told.distinct_blocks(), told.refused_blocks());
            let age_s = Self::snapshot_age_s(&core);
            self.metrics.told(blocks, refused, told.memory_bytes(), age_s);
        }
        self.metrics.queued.set(i64::try_from(core.queued).unwrap_or(i64::MAX));
        let index_bytes = core.router.index_memory_bytes();
        self.metrics.index_bytes.set(i64::try_from(index_bytes).unwrap_or(i64::MAX));
        drop(core);
        self.metrics.write()
    }

    /// Ends the decision log and the export of spans, and waits until all of both is written.
    pub(crate) fn close_logs(&self) {
        let log = self.core().router.take_log();
        drop(log);
        if let Some(tracer) = &self.tracer {
            tracer.shutdown();
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().flatten()
    }

    fn member(&self, id: InstanceId) -> Option<&Member> {
        self.members.get(id.index())?.as_ref()
    }

    fn member_mut(&mut self, id: InstanceId) -> Option<&mut Member> {
        self.members.get_mut(id.index())?.as_mut()
    }

    fn candidate(&self, id: InstanceId) -> Option<&Candidate> {
        let candidates = self.router.candidates();
        candidates
            .binary_search_by_key(&id, |candidate| candidate.id)
            .ok()
            .map(|at| &candidates[at])
    }

    fn name(&self, id: InstanceId) -> Cow<'_, str> {
        match self.member(id) {
            Some(member) => Cow::Borrowed(&member.instance.name),
            None => Cow::Owned(format!("removed-{id}")),
        }
    }

    fn set_policy(&mut self, rule: Box<dyn Policy>, config: PolicyConfig, metrics: &Metrics) {
        self.router.set_policy(rule, config);
        let name = self.router.policy_name();
        for member in self.members.iter_mut().flatten() {
            member.metrics = metrics.route(&member.instance.name, name);
        }
        tracing::info!(policy = name, "policy set");
    }

    /// Takes out the instances that are not listed, and adds those that are new.
    fn set_instances(
        &mut self,
        config: &GatewayConfig,
        metrics: &Metrics,
    ) -> Result<(), InvalidConfig> {
        let parsed = config.instances.iter().map(|instance| {
            let (name, target) = instance.parse()?;
            Ok((name, target, instance.events()?))
        });
        let mut listed = parsed.collect::<Result<Vec<_>, InvalidConfig>>()?;
        for at in 0..self.members.len() {
            let Some(member) = &self.members[at] else { continue };
            let Instance { id, name, target, events, .. } = &*member.instance;
            let known = listed
                .iter()
                .position(|listed| (&listed.0, &listed.1, &listed.2) == (name, target, events));
            if let Some(known) = known {
                listed.remove(known);
                continue;
            }
            tracing::info!(instance = name, "instance removed");
            metrics.forget(name);
            self.router.remove_instance(*id);
            self.members[at] = None;
        }
        for (name, target, events) in listed {
            self.enter(name, target, events, config, metrics);
        }
        self.refresh_all(config);
        Ok(())
    }

    fn enter(
        &mut self,
        name: String,
        target: Target,
        events: Option<SourceConfig>,
        config: &GatewayConfig,
        metrics: &Metrics,
    ) {
        tracing::info!(instance = name, address = target.authority, "instance added");
        let new_id =
            InstanceId(u32::try_from(self.members.len()).expect("fewer than 2^32 instances"));
        let kept = self.kept.get(&name).copied();
        let Kept { id, position } = kept.unwrap_or(Kept { id: new_id, position: None });
        let caches = config
            .kv_events
            .enabled
            .then(|| CacheWatch::new(&config.kv_events, position, metrics.doubts(&name)));
        let header = HeaderValue::from_str(&name).expect("the name was checked to be ASCII");
        let metrics = metrics.route(&name, self.router.policy_name());
        let given_up = Notify::new();
        let activity = Activity::default();
        self.router.add_instance(id, &name);
        if caches.is_some() {
            self.router.set_believed(id, false);
        }
        if id == new_id {
            self.members.push(None);
        }
        self.members[id.index()] = Some(Member {
            instance: Arc::new(Instance { id, name, target, events, header, given_up, activity }),
            metrics,
            health: Health::default(),
            is_last_resort: false,
            is_draining: false,
            prefill_rate: None,
            last_page: None,
            progress: 0.0,
            missing: Vec::new(),
            caches,
        });
    }

    /// Brings one instance's eligibility in line with its state.
    fn refresh(&mut self, id: InstanceId, config: &GatewayConfig) {
        let (Some(member), Some(candidate)) = (self.member(id), self.candidate(id)) else { return };
        let caps = [config.limits.instance_in_flight, member.health.allowance()];
        let has_room = caps.into_iter().flatten().all(|cap| candidate.in_flight < cap);
        let (was, is) = (candidate.eligible, has_room && member.is_in_use());
        self.router.set_eligible(id, was, is);
    }

    /// Lets requests go to ejected instances too, unless they hang or fail their probes, until the next `refresh_all`.
    fn open_all_that_may_do(&mut self, config: &GatewayConfig) {
        for member in self.members.iter().flatten() {
            let is_hopeless = member.health.cause() == Some(EjectionCause::Silence)
                || member.health.is_unreachable(&config.health);
            if !member.is_draining && !is_hopeless {
                let id = member.instance.id;
                let was = self.candidate(id).is_some_and(|candidate| candidate.eligible);
                self.router.set_eligible(id, was, true);
            }
        }
    }

    fn is_any_up(&self) -> bool {
        self.members().any(|member| !member.is_draining && member.health.is_up())
    }

    /// Brings all in line. If none is up, those that look well stay in use, or else the one that was up last.
    fn refresh_all(&mut self, config: &GatewayConfig) {
        let is_any_up = self.is_any_up();
        let usable = || self.members().filter(|member| !member.is_draining);
        let latest = usable().max_by_key(|m| (m.health.ejected_at, m.instance.id));
        let latest = latest.map(|member| member.instance.id);
        let does_any_look_well = usable().any(|member| member.health.looks_well);
        for member in self.members.iter_mut().flatten() {
            let is_best = if does_any_look_well {
                member.health.looks_well
            } else {
                latest == Some(member.instance.id)
            };
            member.is_last_resort = !is_any_up && is_best;
        }
        let ids: Vec<InstanceId> = self.members().map(|member| member.instance.id).collect();
        for id in ids {
            self.refresh(id, config);
        }
    }
}

/// Whether silence of this instance would say anything: it has work, and would be heard if it did it.
///
/// It would be heard if an answer is streaming, or if all its requests are streams that wait for their prefill, or if
/// its token counters can be read. (A generation that comes whole is silent by nature.)
fn may_judge(activity: &Activity, candidate: &Candidate, page: Option<Page>) -> bool {
    let has_progress = page.is_some_and(|page| page.progress().is_some());
    candidate.in_flight > 0
        && (activity.speaking.load(Ordering::Relaxed) > 0
            || activity.whole.load(Ordering::Relaxed) == 0
            || has_progress)
}

/// Leaves the queue, however the wait ends.
struct Queued<'a>(&'a Fleet);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.core().queued -= 1;
        // If it was woken and left, the next one must not miss the place.
        self.0.freed.notify_one();
    }
}
