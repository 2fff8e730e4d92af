//! Decisions that were made over sockets are made again from the decision log.

use std::fs::File;
use std::io::BufReader;
use std::time::Duration;

use kvroute_decision_log::{Comparison, Event, LogReader};
use kvroute_policy::PolicyConfig;

use crate::client::{chat, request, send};
use crate::toy::{Act, Toy};
use crate::{eventually, start};

/// A request of one of 20 conversations, a turn longer each time.
fn body(number: usize) -> String {
    let (session, turn) = (number % 20, number / 20);
    let long = format!("conversation {session} ").repeat(20 + 10 * turn);
    format!(
        r#"{{"model":"m","stream":{},"max_tokens":5,"messages":[{{"role":"user","content":"{long}"}}]}}"#,
        number.is_multiple_of(2)
    )
}

#[tokio::test]
async fn every_policys_decisions_are_reproduced() {
    for policy in PolicyConfig::core() {
        let name = policy.name();
        let toys = [
            Toy::start(Act::Stream(3, Duration::from_millis(2))).await,
            Toy::start(Act::Json(Duration::from_millis(3))).await,
            // Every request that it gets is tried again elsewhere, until it is ejected.
            Toy::start(Act::Status(503)).await,
        ];
        let log = std::env::temp_dir()
            .join(format!("kvroute-replay-{name}-{}.jsonl", std::process::id()));
        let gateway = start(&[&toys[0], &toys[1], &toys[2]], |config| {
            config.policy = policy;
            config.seed = 11;
            config.load.delay_s = 0.01;
            config.limits.instance_in_flight = Some(6);
            config.receipts.log = Some(log.clone());
        })
        .await;
        let (addr, admin) = (gateway.addr(), gateway.admin_addr());
        let clients: Vec<_> = (0..10)
            .map(|client| {
                tokio::spawn(async move {
                    for turn in 0..20 {
                        chat(addr, &body(client + 10 * turn)).await;
                    }
                })
            })
            .collect();
        eventually("under load", async || toys[1].received() > 20).await;
        // One is killed under load, one comes, and the policy changes and changes back.
        toys[0].set(Act::Close);
        toys[0].stop_listening();
        *toys[0].state.is_healthy.lock().unwrap() = false;
        toys[2].set(Act::Stream(2, Duration::from_millis(1)));
        let call = async |method: &str, path: &str, body: &str| {
            send(admin, request(method, path, body)).await.status
        };
        let named =
            format!(r#"{{"url":"http://localhost:{}","name":"late"}}"#, toys[1].addr.port());
        assert_eq!(call("POST", "/instances", &named).await, 201);
        assert_eq!(call("PUT", "/policy", r#"{"kind":"p2c"}"#).await, 204);
        for client in clients {
            client.await.unwrap();
        }
        assert_eq!(call("DELETE", "/instances/late", "").await, 204);
        let original = serde_json::to_string(&policy).unwrap();
        assert_eq!(call("PUT", "/policy", &original).await, 204);
        for number in 0..20 {
            chat(addr, &body(number)).await;
        }
        eventually("all ended", async || gateway.in_flight() == 0).await;
        gateway.shutdown().await;
        let text = std::fs::read_to_string(&log).unwrap();
        let count = |event: &str| text.matches(&format!("{{\"event\":\"{event}\"")).count();
        assert_eq!(count("end"), count("route"), "{name}: all that was routed has ended");

        let mut comparison = Comparison::new(&[policy]);
        let (mut retries, mut refused) = (0, 0);
        for entry in LogReader::new(BufReader::new(File::open(&log).unwrap())) {
            let entry = entry.unwrap();
            if let Event::Route(route) = &entry.event {
                retries += usize::from(!route.excluded.is_empty());
                refused += usize::from(route.decision.is_none());
            }
            comparison.add(&entry).unwrap();
        }
        let summary = comparison.summary();
        assert_eq!(summary.first_difference, None, "{name}");
        assert_eq!((summary.reproduced, summary.lost_events), (summary.decisions, 0), "{name}");
        assert!(summary.decisions >= 220 && retries > 0, "{name}: {summary:?} {retries} {refused}");
        let others = comparison.others();
        assert_eq!(others[0].decisions, summary.decisions);
        std::fs::remove_file(&log).unwrap();
    }
}
