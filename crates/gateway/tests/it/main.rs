//! The gateway on real sockets, before scripted instances.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod client;
mod faults;
mod operations;
mod parity;
mod proxying;
mod replay;
mod toy;
mod tracing;

use std::time::Duration;

use kvroute_gateway::{Gateway, GatewayConfig};
use toy::Toy;

/// A configuration for these instances, with free ports and short times.
fn config(toys: &[&Toy]) -> GatewayConfig {
    let mut config = GatewayConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: ([127, 0, 0, 1], 0).into(),
        threads: Some(2),
        instances: toys.iter().map(|toy| toy.config()).collect(),
        ..GatewayConfig::default()
    };
    config.health.probe_interval_s = 0.05;
    config.health.backoff_min_s = 0.1;
    config.load.refresh_s = Some(0.05);
    config.timeouts.lame_duck_s = 0.05;
    config
}

async fn start(toys: &[&Toy], change: impl FnOnce(&mut GatewayConfig)) -> Gateway {
    let mut config = config(toys);
    change(&mut config);
    let gateway = Gateway::start(config).unwrap();
    // The first probes and readings.
    let ready = || async { client::get(gateway.addr(), "/ready").await.status == 200 };
    for _ in 0..100 {
        if toys.is_empty() || ready().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gateway
}

/// Waits until it is so, for 5 s at most.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..500 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
