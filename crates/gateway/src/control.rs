//! What happens on a clock: probes, readings of `/metrics`, and judging silence.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::{sleep, timeout};

use crate::config::seconds;
use crate::fleet::Fleet;
use crate::instance::Instance;
use crate::scrape::Page;
use crate::upstream;

/// Most bytes of a metrics page; a real one has 60 kB.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// Most bytes of a health answer.
const HEALTH_BYTES_MAX: usize = 64 << 10;
/// How often silence is judged, of the silence allowed.
const SILENCE_CHECKS: u32 = 8;

/// Runs until it is dropped.
pub(crate) async fn run(fleet: Arc<Fleet>) {
    tokio::join!(
        probe_all(&fleet),
        read_all(&fleet),
        listen_for_silence(&fleet),
        keep_snapshots(&fleet)
    );
}

async fn probe_all(fleet: &Arc<Fleet>) {
    loop {
        for instance in fleet.instances() {
            spawn_local(probe(Arc::clone(fleet), instance));
        }
        sleep(seconds(fleet.config().health.probe_interval_s)).await;
    }
}

async fn probe(fleet: Arc<Fleet>, instance: Arc<Instance>) {
    let limit = seconds(fleet.config().health.probe_timeout_s);
    let ask = upstream::get(&instance.target, "/health", HeaderMap::new(), HEALTH_BYTES_MAX);
    let is_ok = matches!(timeout(limit, ask).await, Ok(Ok((status, _))) if status.is_success());
    fleet.on_probe(&instance, is_ok);
}

async fn read_all(fleet: &Arc<Fleet>) {
    loop {
        let refresh_s = fleet.config().load.refresh_s;
        if refresh_s.is_some() {
            for instance in fleet.instances() {
                spawn_local(read(Arc::clone(fleet), instance));
            }
        }
        // Without readings, look now and then whether a reload has turned them on.
        sleep(refresh_s.map_or(Duration::from_secs(1), seconds)).await;
    }
}

async fn read(fleet: Arc<Fleet>, instance: Arc<Instance>) {
    let limit = seconds(fleet.config().health.probe_timeout_s);
    let asked = fleet.now();
    let ask = upstream::get(&instance.target, "/metrics", HeaderMap::new(), PAGE_BYTES_MAX);
    let page = match timeout(limit, ask).await {
        Ok(Ok((status, body))) if status.is_success() => {
            Some(Page::parse(&String::from_utf8_lossy(&body)))
        }
        _ => None,
    };
    fleet.on_page(&instance, asked, page);
}

async fn keep_snapshots(fleet: &Arc<Fleet>) {
    loop {
        sleep(seconds(fleet.config().kv_events.snapshot_interval_s)).await;
        let fleet = Arc::clone(fleet);
        if spawn_blocking(move || fleet.keep_snapshot()).await.is_err() {
            tracing::error!("no snapshot could be taken");
        }
    }
}

async fn listen_for_silence(fleet: &Arc<Fleet>) {
    loop {
        let silence_s = fleet.config().health.silence_s.unwrap_or(1.0);
        sleep(seconds(silence_s) / SILENCE_CHECKS).await;
        fleet.judge_silence();
    }
}
