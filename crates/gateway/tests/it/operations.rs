//! Limits, shutdown, reload, the admin API, and that nothing leaks.

use std::time::{Duration, Instant};

use kvroute_gateway::{Gateway, GatewayConfig, InstanceConfig, ReloadError, StartError};
use kvroute_policy::PolicyConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{CHAT, STREAM, chat, get, request, send};
use crate::toy::{Act, Toy};
use crate::{config, eventually, start};

const QUICK: Act = Act::Json(Duration::ZERO);

#[tokio::test]
async fn caps_hold_and_the_queue_is_bounded() {
    let toys = [
        Toy::start(Act::Json(Duration::from_millis(100))).await,
        Toy::start(Act::Json(Duration::from_millis(100))).await,
    ];
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.limits.instance_in_flight = Some(2);
        config.limits.queue = 4;
    })
    .await;
    let addr = gateway.addr();
    let requests: Vec<_> = (0..20).map(|_| tokio::spawn(chat(addr, CHAT))).collect();
    eventually("full", async || gateway.in_flight() == 4).await;
    let mut statuses = Vec::new();
    for reply in requests {
        let reply = reply.await.unwrap();
        if reply.status != 200 {
            assert_eq!((reply.status, reply.error_kind().as_str()), (429, "queue_full"));
            assert_eq!(reply.header("retry-after"), "1");
        }
        statuses.push(reply.status);
    }
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 8, "4 at once, 4 queued");
    eventually("all is released", async || gateway.in_flight() == 0).await;

    let mut patient = gateway.config();
    patient.timeouts.queue_s = 0.05;
    gateway.reload(patient).unwrap();
    for toy in &toys {
        toy.set(Act::Json(Duration::from_millis(500)));
    }
    let busy: Vec<_> = (0..4).map(|_| tokio::spawn(chat(addr, CHAT))).collect();
    eventually("full", async || gateway.in_flight() == 4).await;
    let late = chat(addr, CHAT).await;
    assert_eq!((late.status, late.error_kind().as_str()), (503, "queue_timeout"));
    for reply in busy {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn shutdown_loses_no_request() {
    let toy = Toy::start(Act::Stream(20, Duration::from_millis(20))).await;
    let gateway = start(&[&toy], |_| {}).await;
    let addr = gateway.addr();
    let requests: Vec<_> = (0..20).map(|_| tokio::spawn(chat(addr, STREAM))).collect();
    // An idle connection does not keep it from stopping.
    let mut idle = TcpStream::connect(addr).await.unwrap();
    eventually("under way", async || gateway.in_flight() == 20).await;
    let stopping = tokio::spawn(gateway.shutdown());
    // Meanwhile requests are still taken, and told to go elsewhere.
    let reply = send(addr, "GET /health HTTP/1.1\r\nhost: g\r\n\r\n").await;
    assert_eq!(reply.header("connection"), "close");
    for reply in requests {
        let reply = reply.await.unwrap();
        assert!(reply.is_complete && reply.text().ends_with("data: [DONE]\n\n"), "{reply:?}");
    }
    stopping.await.unwrap();
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    assert!(TcpStream::connect(addr).await.is_err(), "the listener is gone");
}

#[tokio::test]
async fn a_connection_made_before_the_end_has_its_request_answered() {
    let toy = Toy::start(QUICK).await;
    let gateway = start(&[&toy], |config| config.timeouts.lame_duck_s = 1.0).await;
    let addr = gateway.addr();
    let mut early = TcpStream::connect(addr).await.unwrap();
    let stopping = tokio::spawn(gateway.shutdown());
    eventually("the listener is gone", async || TcpStream::connect(addr).await.is_err()).await;
    let raw = request("POST", "/v1/chat/completions", CHAT).replace("connection: close\r\n", "");
    early.write_all(raw.as_bytes()).await.unwrap();
    let mut answer = String::new();
    early.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("connection: close"), "its first is its last: {answer}");
    stopping.await.unwrap();
}

#[tokio::test]
async fn requests_that_never_end_do_not_stop_a_shutdown() {
    let toy = Toy::start(Act::Silent).await;
    let gateway = start(&[&toy], |config| config.timeouts.drain_s = 0.1).await;
    let raw = request("POST", "/v1/chat/completions", CHAT);
    let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
    stream.write_all(raw.as_bytes()).await.unwrap();
    eventually("under way", async || gateway.in_flight() == 1).await;
    let started = Instant::now();
    gateway.shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn reload_changes_instances_and_policy_under_load() {
    let toys = [Toy::start(Act::Json(Duration::from_millis(5))).await, Toy::start(QUICK).await];
    let gateway = start(&[&toys[0]], |_| {}).await;
    let addr = gateway.addr();
    let load: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..30 {
                    assert_eq!(chat(addr, CHAT).await.status, 200);
                }
            })
        })
        .collect();
    for round in 0..10 {
        let mut next = gateway.config();
        next.instances = vec![toys[round % 2].config()];
        next.policy = if round % 2 == 0 {
            PolicyConfig::RoundRobin {}
        } else {
            PolicyConfig::from_name("load-cache").unwrap()
        };
        gateway.reload(next).unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for task in load {
        task.await.unwrap();
    }
    assert!(toys[1].received() > 0);
    eventually("all is released", async || gateway.in_flight() == 0).await;

    let mut moved = gateway.config();
    moved.prompt.block_bytes = 128;
    let error = gateway.reload(moved).unwrap_err();
    assert!(matches!(error, ReloadError::NeedsRestart { key: "prompt.block_bytes" }), "{error}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn the_admin_api_changes_what_runs() {
    let toys = [Toy::start(QUICK).await, Toy::start(QUICK).await];
    let gateway = start(&[&toys[0]], |_| {}).await;
    let (addr, admin) = (gateway.addr(), gateway.admin_addr());
    let call = async |method: &str, path: &str, body: &str| {
        let reply = send(admin, request(method, path, body)).await;
        (reply.status, String::from_utf8(reply.body).unwrap())
    };
    let second = format!(r#"{{"url":"http://{}","name":"second"}}"#, toys[1].addr);
    assert_eq!(call("POST", "/instances", &second).await.0, 201);
    assert_eq!(call("POST", "/instances", &second).await.0, 409);
    assert_eq!(call("POST", "/instances", r#"{"url":"ftp://x"}"#).await.0, 400);
    let (_, first) = (call("GET", "/instances", "").await, toys[0].name());
    assert_eq!(call("PUT", &format!("/instances/{first}/draining"), "true").await.0, 204);
    for _ in 0..3 {
        assert_eq!(chat(addr, CHAT).await.header("x-kvroute-instance"), "second");
    }
    assert_eq!(call("PUT", &format!("/instances/{first}/draining"), "false").await.0, 204);
    assert_eq!(call("DELETE", "/instances/second", "").await.0, 204);
    let (status, body) = call("DELETE", "/instances/second", "").await;
    assert_eq!((status, body.as_str()), (404, r#"{"error":"there is no instance \"second\""}"#));
    assert_eq!(chat(addr, CHAT).await.header("x-kvroute-instance"), first);

    let jsq = r#"{"kind":"jsq","load":"in-flight"}"#;
    assert_eq!(call("PUT", "/policy", jsq).await.0, 204);
    assert!(call("GET", "/policy", "").await.1.contains("in-flight"));
    assert_eq!(call("PUT", "/policy", r#"{"kind":"jsq","lod":"x"}"#).await.0, 422);
    let wrong = call("PUT", "/policy", r#"{"kind":"load-cache","alpha":-1.0}"#).await;
    assert!(wrong.0 == 400 && wrong.1.contains("in the policy: "), "{wrong:?}");
    assert_eq!(chat(addr, CHAT).await.header("x-kvroute-reason"), "least-loaded");
    assert!(call("GET", "/config", "").await.1.contains("\"kind\":\"jsq\""));

    let receipts: serde_json::Value =
        serde_json::from_str(&call("GET", "/receipts?count=2", "").await.1).unwrap();
    assert_eq!(receipts.as_array().unwrap().len(), 2);
    assert_eq!(receipts[0]["policy"], "jsq");
    assert_eq!(receipts[0]["candidates"][0]["waiting"], 2);
    gateway.shutdown().await;
}

#[tokio::test]
async fn the_api_description_names_every_path() {
    let gateway = start(&[], |_| {}).await;
    let description = get(gateway.admin_addr(), "/openapi.json").await.json();
    for (path, methods) in description["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "nobody");
        for method in methods.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let raw = request(&method.to_uppercase(), &path, "true");
            let reply = send(gateway.admin_addr(), raw).await;
            assert_ne!(reply.status, 405, "{method} {path}");
            assert!(reply.status != 404 || reply.text().contains("nobody"), "{method} {path}");
        }
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn metrics_and_the_decision_log_tell_what_happened() {
    let toy = Toy::start(Act::Stream(3, Duration::from_millis(2))).await;
    let log = std::env::temp_dir().join(format!("kvroute-log-{}.jsonl", std::process::id()));
    let gateway = start(&[&toy], |config| config.receipts.log = Some(log.clone())).await;
    for _ in 0..4 {
        chat(gateway.addr(), STREAM).await;
    }
    chat(gateway.addr(), "{").await;
    let name = toy.name();
    let route = format!("{{instance=\"{name}\",policy=\"load-cache\"");
    let page = get(gateway.admin_addr(), "/metrics").await;
    for line in [
        format!("kvroute_requests_total{route},outcome=\"answered\"}} 4"),
        format!("kvroute_ttft_seconds_count{route}}} 4"),
        format!("kvroute_e2e_seconds_count{route}}} 4"),
        format!("kvroute_in_flight{{instance=\"{name}\"}} 0"),
        format!("kvroute_instance_up{{instance=\"{name}\"}} 1"),
        "kvroute_errors_total{kind=\"invalid_request_error\"} 1".into(),
        "kvroute_decisions_total{policy=\"load-cache\",reason=\"load-score\"} 4".into(),
    ] {
        assert!(page.text().contains(&line), "no {line} in\n{}", page.text());
    }
    gateway.shutdown().await;
    let text = std::fs::read_to_string(&log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let events: Vec<_> = lines.collect();
    assert_eq!((&events[0]["event"], &events[0]["seed"]), (&"start".into(), &0.into()));
    assert_eq!(events.iter().filter(|line| line["event"] == "end").count(), 4);
    let line = events.iter().find(|line| line["event"] == "route").unwrap();
    assert_eq!(line["instance"], name);
    assert_eq!((&line["request"], &line["policy"]), (&0.into(), &"load-cache".into()));
    assert!(line["candidates"][0]["score"].is_number(), "{line}");
    assert!(line["candidates"][0]["load_age_s"].is_number(), "{line}");
    std::fs::remove_file(&log).unwrap();
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let twice =
        GatewayConfig { instances: vec![InstanceConfig::new("http://a:1"); 2], ..config(&[]) };
    assert!(matches!(Gateway::start(twice), Err(StartError::Config(_))));
    let gateway = start(&[], |_| {}).await;
    let taken = GatewayConfig { listen: gateway.addr(), ..config(&[]) };
    match Gateway::start(taken) {
        Err(error @ StartError::Listen { .. }) => {
            assert_eq!(error.to_string(), format!("cannot listen on {}", gateway.addr()));
        }
        _ => panic!("two gateways on one port"),
    }
    gateway.shutdown().await;
}

/// 20,000 requests, of which about half are broken off at some point.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_aborts_leave_nothing_behind() {
    let toys = [
        Toy::start(Act::Stream(3, Duration::ZERO)).await,
        Toy::start(QUICK).await,
        Toy::start(Act::Cut(1)).await,
    ];
    let gateway = start(&[&toys[0], &toys[1], &toys[2]], |config| {
        config.limits.instance_in_flight = Some(8);
        config.policy = PolicyConfig::from_name("p2c").unwrap();
    })
    .await;
    let addr = gateway.addr();
    let raw = request("POST", "/v1/chat/completions", STREAM);
    let clients: Vec<_> = (0..40_u64)
        .map(|client| {
            let raw = raw.clone();
            tokio::spawn(async move {
                let mut draw = client.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                for _ in 0..500 {
                    draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let how = draw >> 60;
                    let mut stream = TcpStream::connect(addr).await.unwrap();
                    let sent = if how == 0 { raw.len() / 2 } else { raw.len() };
                    let _ = stream.write_all(&raw.as_bytes()[..sent]).await;
                    let mut buffer = [0; 256];
                    match how {
                        0..4 => {}
                        4..8 => drop(stream.read(&mut buffer).await),
                        _ => {
                            let mut all = Vec::new();
                            let _ = stream.read_to_end(&mut all).await;
                            let text = String::from_utf8(all).unwrap();
                            assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
                            let ends = ["\r\n0\r\n\r\n", "}]}"];
                            assert!(ends.iter().any(|end| text.ends_with(end)), "{text}");
                        }
                    }
                    if how % 2 == 0 {
                        // A reset, not a polite end.
                        let _ = stream.set_zero_linger();
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    eventually("all bookings ended", async || gateway.in_flight() == 0).await;
    eventually("all gauges are zero", async || {
        let page = get(gateway.admin_addr(), "/metrics").await;
        let gauges = ["kvroute_in_flight{", "kvroute_queued ", "kvroute_connections "];
        let mut lines = page.text().lines().filter(|l| gauges.iter().any(|g| l.starts_with(g)));
        lines.all(|line| line.ends_with(" 0"))
    })
    .await;
    let status = get(gateway.admin_addr(), "/instances").await.json();
    for instance in status.as_array().unwrap() {
        assert_eq!(instance["in_flight"], 0);
        assert_eq!(instance["in_flight_uncached_tokens"], 0);
    }
    gateway.shutdown().await;
}
