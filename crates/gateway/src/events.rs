//! Listens to what instances publish of their caches: a task for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use kvroute_kv_events::{SourceConfig, Subscription, read_sources};
use kvroute_types::InstanceId;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::config::seconds;
use crate::fleet::Fleet;
use crate::instance::Instance;
use crate::upstream;

/// How often it is looked whether instances came or went, and counters are passed on.
const TICK: Duration = Duration::from_secs(1);
/// Wait before an instance that does not say where it publishes is asked again, at most.
const ASK_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Most bytes of the answer of `GET /kv_event_sources`.
const SOURCES_BYTES_MAX: usize = 1 << 20;

/// Runs until it is dropped.
pub(crate) async fn run(fleet: Arc<Fleet>) {
    let mut listeners: BTreeMap<InstanceId, Listener> = BTreeMap::new();
    loop {
        let instances =
            if fleet.config().kv_events.enabled { fleet.instances() } else { Vec::new() };
        listeners.retain(|id, _| instances.iter().any(|instance| instance.id == *id));
        for instance in instances {
            listeners.entry(instance.id).or_insert_with(|| {
                Listener(spawn_local(listen(Arc::clone(&fleet), Arc::clone(&instance))))
            });
        }
        sleep(TICK).await;
    }
}

/// A task that ends when this is dropped.
struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Follows one instance, wherever it publishes.
async fn listen(fleet: Arc<Fleet>, instance: Arc<Instance>) {
    loop {
        let source = source(&fleet, &instance).await;
        fleet.on_event_source(&instance, source.events.to_string(), source.replay.is_some());
        tracing::info!(instance = instance.name, endpoint = %source.events, "listening to KV events");
        let subscription = match fleet.event_position(&instance) {
            Some(position) => Subscription::resume(source.clone(), position),
            None => Subscription::connect(source.clone()),
        };
        if follow(&fleet, &instance, subscription, &source).await.is_none() {
            return;
        }
    }
}

/// Passes on what one subscription tells, until the instance publishes elsewhere. `None` if the runtime shuts down.
async fn follow(
    fleet: &Fleet,
    instance: &Instance,
    mut subscription: Subscription,
    source: &SourceConfig,
) -> Option<()> {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut connects, mut failures) = (0, 0);
    loop {
        tokio::select! {
            news = subscription.recv() => {
                fleet.on_cache_news(instance, news?, subscription.counters());
            }
            _ = ticks.tick() => {
                let counters = subscription.counters();
                // It cannot be reached there: it may have been started anew with other settings.
                let is_lost = counters.connects == connects && counters.connect_failures > failures;
                (connects, failures) = (counters.connects, counters.connect_failures);
                fleet.on_event_counters(instance, counters);
                if is_lost
                    && instance.events.is_none()
                    && ask(fleet, instance).await.is_ok_and(|other| other != *source)
                {
                    return Some(());
                }
            }
        }
    }
}

/// Where the instance publishes, by the configuration or by its own account, as soon as it says so.
async fn source(fleet: &Fleet, instance: &Instance) -> SourceConfig {
    if let Some(source) = &instance.events {
        return source.clone();
    }
    let mut pause = Duration::from_millis(250);
    let mut complaint = String::new();
    loop {
        match ask(fleet, instance).await {
            Ok(source) => return source,
            Err(NoSource::Silent) => {}
            Err(error) => {
                let error = chain(&error);
                if error != complaint {
                    tracing::warn!(
                        instance = instance.name,
                        error,
                        "its KV events cannot be listened to; it is judged by what was routed there"
                    );
                    complaint = error;
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(ASK_PAUSE_MAX);
    }
}

/// Why it is not known where an instance publishes.
#[derive(Debug, thiserror::Error)]
enum NoSource {
    #[error("it does not answer")]
    Silent,
    #[error(
        "it answers {0} to GET /kv_event_sources; name its endpoint in [[instances]] kv_events"
    )]
    Status(http::StatusCode),
    #[error("its answer to GET /kv_event_sources cannot be used")]
    Answer(#[from] kvroute_kv_events::InvalidSources),
    #[error("it publishes no KV events; start vLLM with --kv-events-config")]
    None,
    #[error(
        "it has {0} data-parallel ranks with a cache each, which requests cannot be routed to one by one; \
         start an instance per rank"
    )]
    Ranks(usize),
}

fn chain(error: &NoSource) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn ask(fleet: &Fleet, instance: &Instance) -> Result<SourceConfig, NoSource> {
    let limit = seconds(fleet.config().health.probe_timeout_s);
    let path = "/kv_event_sources";
    let answer = upstream::get(&instance.target, path, HeaderMap::new(), SOURCES_BYTES_MAX);
    let Ok(Ok((status, body))) = timeout(limit, answer).await else { return Err(NoSource::Silent) };
    if !status.is_success() {
        return Err(NoSource::Status(status));
    }
    let authority = &instance.target.authority;
    let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
    let mut sources = read_sources(&String::from_utf8_lossy(&body), host)?;
    match sources.len() {
        0 => Err(NoSource::None),
        1 => Ok(sources.pop_first().expect("it has one").1),
        ranks => Err(NoSource::Ranks(ranks)),
    }
}
