//! Bad input, and instances that fail in every way.

use std::time::{Duration, Instant};

use kvroute_policy::PolicyConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{CHAT, STREAM, chat, get, request, send};
use crate::toy::{Act, Toy, event, events};
use crate::{eventually, start};

const QUICK: Act = Act::Json(Duration::ZERO);

#[tokio::test]
async fn bad_input_is_the_clients_fault_and_costs_no_call() {
    let toy = Toy::start(QUICK).await;
    let gateway = start(&[&toy], |config| {
        config.limits.body_bytes = 10_000;
        config.timeouts.request_body_s = 0.1;
        config.timeouts.request_head_s = 0.2;
    })
    .await;
    let addr = gateway.addr();
    let post = |body: &str| request("POST", "/v1/chat/completions", body);
    let mut invalid_utf8 = post(CHAT).into_bytes();
    let hello = invalid_utf8.windows(5).position(|five| five == b"hello").unwrap();
    invalid_utf8[hello] = 0xff;
    let cases: [(u16, &str, Vec<u8>); 7] = [
        (400, "invalid_request_error", post("{\"model\": ").into()),
        (400, "invalid_request_error", post("").into()),
        (400, "invalid_request_error", invalid_utf8),
        (413, "body_too_large", post(&"x".repeat(20_000)).into()),
        (404, "not_found", request("GET", "/nothing", "").into()),
        (408, "body_timeout", post(CHAT).replace("content-length: ", "content-length: 1").into()),
        (405, "method_not_allowed", request("POST", "/health", "").into()),
    ];
    for (status, kind, raw) in cases {
        let reply = send(addr, raw).await;
        assert_eq!((reply.status, reply.error_kind().as_str()), (status, kind), "{reply:?}");
        assert_eq!(reply.json()["error"]["fault"], "client");
        assert_eq!(reply.json()["error"]["code"], status);
    }
    let chunked = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n4e20\r\n{}\r\n0\r\n\r\n",
        "x".repeat(20_000)
    );
    assert_eq!(send(addr, chunked).await.status, 413);
    let huge_head = format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    assert_eq!(send(addr, huge_head).await.status, 431);
    // Slow headers: the connection is closed.
    let mut slow = TcpStream::connect(addr).await.unwrap();
    slow.write_all(b"GET /health HT").await.unwrap();
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest).await;
    assert_eq!(toy.received(), 0);
    // What only the engine can judge passes.
    toy.set(Act::Status(400));
    let preflight = request("OPTIONS", "/v1/chat/completions", "");
    let cases = [
        post("{}").into_bytes(),
        post("{\"model\":\"m\"}").into_bytes(),
        post("[1]").into_bytes(),
        preflight.into_bytes(),
    ];
    for (before, raw) in cases.into_iter().enumerate() {
        let reply = send(addr, raw).await;
        assert_eq!((reply.status, reply.text().contains("toy")), (400, true), "{reply:?}");
        assert_eq!(toy.received(), before + 1);
    }
    eventually("all is released", async || gateway.in_flight() == 0).await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_failed_instance_is_hidden_from_clients() {
    for act in [Act::Close, Act::Status(504), Act::Status(503), Act::Status(502)] {
        let toys = [Toy::start(act.clone()).await, Toy::start(QUICK).await];
        let gateway = start(&[&toys[0], &toys[1]], |config| {
            config.policy = PolicyConfig::RoundRobin {};
            config.health.backoff_min_s = 60.0;
        })
        .await;
        for _ in 0..20 {
            assert_eq!(chat(gateway.addr(), CHAT).await.status, 200, "{act:?}");
        }
        assert_eq!(toys[0].received(), 3, "ejected after three failures in a row: {act:?}");
        assert_eq!(toys[1].received(), 20);
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn an_internal_error_is_not_tried_again_but_counts() {
    let toys = [Toy::start(Act::Status(500)).await, Toy::start(QUICK).await];
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.policy = PolicyConfig::RoundRobin {};
        config.health.backoff_min_s = 60.0;
    })
    .await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(chat(gateway.addr(), CHAT).await.status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 500).count(), 3, "{statuses:?}");
    assert_eq!((toys[0].received(), toys[1].received()), (3, 17), "ejected then");
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_instance_that_is_down_at_the_start_is_hidden_too() {
    let toys = [Toy::start(QUICK).await, Toy::start(QUICK).await];
    toys[0].stop_listening();
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.policy = PolicyConfig::RoundRobin {};
    })
    .await;
    for _ in 0..10 {
        assert_eq!(chat(gateway.addr(), CHAT).await.status, 200);
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn with_nobody_left_the_client_learns_why() {
    let gateway = start(&[], |_| {}).await;
    let reply = chat(gateway.addr(), CHAT).await;
    assert_eq!((reply.status, reply.error_kind().as_str()), (503, "no_instance"));
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(get(gateway.addr(), "/ready").await.status, 503);
    gateway.shutdown().await;

    let toy = Toy::start(Act::Close).await;
    let gateway = start(&[&toy], |_| {}).await;
    for _ in 0..10 {
        // The last instance is never ejected, so each request is tried.
        let reply = chat(gateway.addr(), CHAT).await;
        assert_eq!((reply.status, reply.error_kind().as_str()), (502, "instance_closed"));
        assert_eq!(reply.json()["error"]["fault"], "instance");
        assert_eq!(reply.json()["error"]["retryable"], true);
    }
    toy.set(QUICK);
    assert_eq!(chat(gateway.addr(), CHAT).await.status, 200);
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_answer_that_is_no_http_is_not_asked_for_again() {
    let toy = Toy::start(QUICK).await;
    let gateway = start(&[&toy], |config| config.threads = Some(1)).await;
    assert_eq!(chat(gateway.addr(), CHAT).await.status, 200);
    // The connection is an old one, but the instance has seen this request.
    toy.set(Act::Garbage);
    let reply = chat(gateway.addr(), CHAT).await;
    assert_eq!((reply.status, reply.error_kind().as_str()), (502, "instance_closed"));
    assert_eq!(toy.received(), 2);
    gateway.shutdown().await;
}

#[tokio::test]
async fn errors_of_clients_and_engines_pass_and_count_as_whose_they_are() {
    let toys = [Toy::start(Act::Status(400)).await, Toy::start(Act::Status(400)).await];
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.policy = PolicyConfig::RoundRobin {};
    })
    .await;
    for _ in 0..20 {
        assert_eq!(chat(gateway.addr(), CHAT).await.status, 400);
    }
    assert_eq!((toys[0].received(), toys[1].received()), (10, 10), "a 4xx never ejects");
    // What all instances say is said to the client.
    toys[0].set(Act::Status(503));
    toys[1].set(Act::Status(503));
    let reply = chat(gateway.addr(), CHAT).await;
    assert_eq!((reply.status, reply.text().contains("toy")), (503, true));
    assert_eq!((toys[0].received(), toys[1].received()), (11, 11), "each was tried once");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_retry_waits_for_a_place_like_any_request() {
    let slow = Act::Stream(20, Duration::from_millis(20));
    let toys = [Toy::start(Act::Silent).await, Toy::start(slow).await];
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.policy = PolicyConfig::RoundRobin {};
        config.limits.instance_in_flight = Some(1);
        config.timeouts.first_byte_s = 0.1;
    })
    .await;
    let addr = gateway.addr();
    let requests = [tokio::spawn(chat(addr, STREAM)), tokio::spawn(chat(addr, STREAM))];
    for reply in requests {
        assert_eq!(reply.await.unwrap().text(), events(20));
    }
    assert_eq!((toys[0].received(), toys[1].received()), (1, 2));
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_ejected_instance_that_is_well_again_is_better_than_an_error() {
    let toys = [Toy::start(Act::Status(503)).await, Toy::start(QUICK).await];
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.policy = PolicyConfig::RoundRobin {};
        config.health.backoff_min_s = 60.0;
    })
    .await;
    let addr = gateway.addr();
    for _ in 0..6 {
        assert_eq!(chat(addr, CHAT).await.status, 200);
    }
    assert_eq!(toys[0].received(), 3, "ejected");
    // Now the other one fails: at first it alone is up, then none is.
    toys[0].set(QUICK);
    toys[1].set(Act::Close);
    for _ in 0..12 {
        assert_eq!(chat(addr, CHAT).await.status, 200);
    }
    let before = toys[1].received();
    toys[1].stop_listening();
    *toys[1].state.is_healthy.lock().unwrap() = false;
    eventually("only one answers probes", async || {
        let page = get(gateway.admin_addr(), "/metrics").await;
        let up = format!("kvroute_instance_up{{instance=\"{}\"}} 0", toys[1].name());
        page.text().contains(&up)
    })
    .await;
    for _ in 0..5 {
        assert_eq!(chat(addr, CHAT).await.status, 200);
    }
    assert_eq!(toys[1].received(), before, "the one that answers is in use");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_dies_ends_with_an_error_event() {
    let toys = [Toy::start(Act::Cut(3)).await, Toy::start(Act::Cut(3)).await];
    let gateway = start(&[&toys[0], &toys[1]], |_| {}).await;
    let reply = chat(gateway.addr(), STREAM).await;
    assert_eq!(reply.status, 200);
    assert!(reply.is_complete);
    let expected = (0..3).map(event).collect::<String>();
    let rest = reply.text().strip_prefix(&expected).unwrap();
    assert!(rest.starts_with("data: {\"error\":{\"message\":\"the answer of instance "), "{rest}");
    assert!(rest.contains("\"type\":\"answer_cut\""), "{rest}");
    assert!(rest.ends_with("}\n\ndata: [DONE]\n\n"), "{rest}");
    assert_eq!(toys[0].received() + toys[1].received(), 1, "never retried once bytes were sent");
    eventually("released", async || gateway.in_flight() == 0).await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends_with_an_error_event() {
    let toy = Toy::start(Act::Stall(2)).await;
    let gateway = start(&[&toy], |config| config.timeouts.stall_s = 0.2).await;
    let reply = chat(gateway.addr(), STREAM).await;
    assert!(reply.text().contains("\"type\":\"answer_stalled\""), "{}", reply.text());
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_late_first_byte_goes_elsewhere() {
    for act in [Act::Silent, Act::HeadOnly] {
        let toys = [Toy::start(act).await, Toy::start(Act::Stream(2, Duration::ZERO)).await];
        let gateway = start(&[&toys[0], &toys[1]], |config| {
            config.policy = PolicyConfig::RoundRobin {};
            config.timeouts.first_byte_s = 0.1;
        })
        .await;
        for _ in 0..3 {
            let reply = chat(gateway.addr(), STREAM).await;
            assert_eq!(reply.text(), events(2));
            assert_eq!(reply.header("x-kvroute-instance"), toys[1].name());
        }
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn the_retry_budget_bounds_the_extra_load() {
    let toys = [Toy::start(Act::Status(503)).await, Toy::start(Act::Status(503)).await];
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.health.request_failures_max = 1_000;
        config.retry.budget_max = 3;
        config.retry.budget_ratio = 0.1;
    })
    .await;
    for _ in 0..20 {
        let reply = chat(gateway.addr(), CHAT).await;
        assert_eq!((reply.status, reply.text().contains("toy")), (503, true));
    }
    let calls = toys[0].received() + toys[1].received();
    assert!((23..=26).contains(&calls), "20 requests and at most 3 + 20 x 0.1 retries: {calls}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_engine_that_hangs_behind_a_healthy_probe_is_found_by_its_silence() {
    let toys = [Toy::start(Act::HeadOnly).await, Toy::start(Act::Stream(2, Duration::ZERO)).await];
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.policy = PolicyConfig::RoundRobin {};
        config.health.silence_s = Some(0.3);
        config.health.backoff_min_s = 60.0;
    })
    .await;
    let started = Instant::now();
    let addr = gateway.addr();
    let requests: Vec<_> = (0..10).map(|_| tokio::spawn(chat(addr, STREAM))).collect();
    for reply in requests {
        assert_eq!(reply.await.unwrap().text(), events(2), "nobody sees the hang");
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let before = toys[0].received();
    for _ in 0..5 {
        chat(addr, STREAM).await;
    }
    assert_eq!(toys[0].received(), before, "ejected");
    let page = get(gateway.admin_addr(), "/metrics").await;
    assert!(page.text().contains("cause=\"silence\"} 1"), "{}", page.text());
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_long_generation_that_comes_whole_is_not_taken_for_a_hang() {
    let toys = [Toy::start(Act::Json(Duration::from_millis(800))).await, Toy::start(QUICK).await];
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.policy = PolicyConfig::RoundRobin {};
        config.health.silence_s = Some(0.1);
    })
    .await;
    for _ in 0..2 {
        assert_eq!(chat(gateway.addr(), CHAT).await.status, 200);
    }
    assert_eq!((toys[0].received(), toys[1].received()), (1, 1));
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_frozen_instance_is_left_and_returns_gradually() {
    let toys = [Toy::start(QUICK).await, Toy::start(QUICK).await];
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.policy = PolicyConfig::RoundRobin {};
    })
    .await;
    *toys[0].state.is_healthy.lock().unwrap() = false;
    let up = async |count: usize| {
        let status = get(gateway.admin_addr(), "/instances").await.json();
        status.as_array().unwrap().iter().filter(|i| i["up"] == true).count() == count
    };
    eventually("ejected", async || up(1).await).await;
    let before = toys[0].received();
    for _ in 0..5 {
        assert_eq!(chat(gateway.addr(), CHAT).await.status, 200);
    }
    assert_eq!(toys[0].received(), before);
    *toys[0].state.is_healthy.lock().unwrap() = true;
    eventually("back", async || up(2).await).await;
    // It returns with one request at a time.
    toys[0].set(Act::Json(Duration::from_millis(200)));
    let requests: Vec<_> = (0..8).map(|_| tokio::spawn(chat(gateway.addr(), CHAT))).collect();
    for reply in requests {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!(toys[0].received() - before, 1);
    gateway.shutdown().await;
}

#[tokio::test]
async fn garbage_metrics_are_no_reading() {
    let toy = Toy::start(QUICK).await;
    *toy.state.metrics.lock().unwrap() = "<html>vllm:num_requests_running</html>\u{0}".into();
    let gateway = start(&[&toy], |_| {}).await;
    eventually("missed", async || {
        let status = get(gateway.admin_addr(), "/instances").await.json();
        status[0]["missing_figures"].as_array().unwrap().len() == 7
            && status[0]["waiting"].is_null()
    })
    .await;
    assert_eq!(chat(gateway.addr(), CHAT).await.status, 200);
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_instance_killed_under_load_costs_no_client_an_error() {
    let act = Act::Json(Duration::from_millis(5));
    let toys = [Toy::start(act.clone()).await, Toy::start(act).await];
    let gateway = start(&[&toys[0], &toys[1]], |_| {}).await;
    let addr = gateway.addr();
    let clients: Vec<_> = (0..32)
        .map(|_| {
            tokio::spawn(async move {
                for _ in 0..20 {
                    let reply = chat(addr, CHAT).await;
                    assert_eq!(reply.status, 200, "{}", reply.text());
                }
            })
        })
        .collect();
    eventually("under load", async || toys[0].received() > 20).await;
    toys[0].set(Act::Close);
    toys[0].stop_listening();
    *toys[0].state.is_healthy.lock().unwrap() = false;
    for client in clients {
        client.await.unwrap();
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_client_of_the_old_protocol_is_served() {
    let toy = Toy::start(Act::Stream(2, Duration::ZERO)).await;
    let gateway = start(&[&toy], |_| {}).await;
    let raw = format!(
        "POST /v1/completions HTTP/1.0\r\ncontent-length: {}\r\n\r\n{STREAM}",
        STREAM.len()
    );
    assert_eq!(send(gateway.addr(), raw).await.text(), events(2));
    let (head, _) = toy.state.latest.lock().unwrap().clone();
    assert_eq!(crate::toy::header(&head, "host"), Some(toy.name().as_str()));
    gateway.shutdown().await;
}
