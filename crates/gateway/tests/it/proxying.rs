//! What passes, and how.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{CHAT, STREAM, chat, get, request, send};
use crate::toy::{Act, Toy, event, events, header};
use crate::{eventually, start};

#[tokio::test]
async fn an_answer_passes_unchanged_and_carries_its_receipt() {
    let toy = Toy::start(Act::Json(Duration::ZERO)).await;
    let gateway = start(&[&toy], |_| {}).await;
    let reply = chat(gateway.addr(), CHAT).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.text(), r#"{"id":"c","choices":[{"message":{"content":"hello"}}]}"#);
    assert_eq!(reply.header("x-toy"), "yes");
    assert_eq!(reply.header("x-kvroute-instance"), toy.name());
    assert_eq!(reply.header("x-kvroute-reason"), "load-score");
    assert_eq!(reply.header("x-kvroute-predicted-cached-tokens"), "0");
    assert_eq!(toy.received(), 1, "exactly one call");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_request_passes_byte_for_byte() {
    let toy = Toy::start(Act::Json(Duration::ZERO)).await;
    let gateway = start(&[&toy], |_| {}).await;
    let body = "{ \"zzz\": [1.0e3, \"\\u00e9\"],\n\t\"messages\":[{\"role\":\"user\",\"content\":\"é\",\"x\":null}], \"top_k\":1 }";
    let raw = format!(
        "POST /v1/chat/completions?a=b%20c HTTP/1.1\r\nHost: Me:1\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\
         Authorization: Bearer key\r\nX-Custom: a\r\nX-Custom: b\r\ntraceparent: 00-ab-cd-01\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(send(gateway.addr(), raw).await.status, 200);
    let (head, received) = toy.state.latest.lock().unwrap().clone();
    assert_eq!(String::from_utf8(received).unwrap(), body);
    assert!(head.starts_with("POST /v1/chat/completions?a=b%20c HTTP/1.1\r\n"), "{head}");
    let names = ["host", "authorization", "traceparent", "content-length"];
    let values = names.map(|name| header(&head, name).unwrap());
    assert_eq!(values, ["Me:1", "Bearer key", "00-ab-cd-01", &body.len().to_string()]);
    assert!(head.contains("x-custom: a\r\nx-custom: b"), "{head}");
    assert!(header(&head, "x-hop").is_none() && header(&head, "connection").is_none(), "{head}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_chunked_request_is_taken() {
    let toy = Toy::start(Act::Json(Duration::ZERO)).await;
    let gateway = start(&[&toy], |_| {}).await;
    let raw = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
         5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        &CHAT[..5],
        CHAT.len() - 5,
        &CHAT[5..]
    );
    assert_eq!(send(gateway.addr(), raw).await.status, 200);
    assert_eq!(toy.state.latest.lock().unwrap().1, CHAT.as_bytes());
    gateway.shutdown().await;
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let toy = Toy::start(Act::Stream(5, Duration::from_millis(50))).await;
    let gateway = start(&[&toy], |_| {}).await;
    let reply = chat(gateway.addr(), STREAM).await;
    assert_eq!(reply.text(), events(5));
    assert!(reply.is_complete);

    let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
    let raw = request("POST", "/v1/chat/completions", STREAM);
    let started = Instant::now();
    stream.write_all(raw.as_bytes()).await.unwrap();
    let mut buffer = [0; 4096];
    let mut seen = String::new();
    while !seen.contains(&event(0)) {
        let count = stream.read(&mut buffer).await.unwrap();
        seen.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    assert!(started.elapsed() < Duration::from_millis(150), "{:?}", started.elapsed());
    assert!(!seen.contains("t4"), "{seen}");
    gateway.shutdown().await;
}

#[tokio::test]
async fn other_paths_pass_and_models_are_merged() {
    let toys = [Toy::start(Act::Json(Duration::ZERO)).await, Toy::start(Act::Close).await];
    let gateway = start(&[&toys[0], &toys[1]], |_| {}).await;
    let models = get(gateway.addr(), "/v1/models").await;
    assert_eq!(models.text(), r#"{"object":"list","data":[{"id":"m","object":"model","x":1}]}"#);
    toys[1].set(Act::Json(Duration::ZERO));
    let raw = request("POST", "/v1/embeddings", "not even json");
    assert_eq!(send(gateway.addr(), raw).await.status, 200);
    assert_eq!(get(gateway.addr(), "/health").await.status, 200);
    assert_eq!(get(gateway.addr(), "/ready").await.status, 200);
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_repeated_prompt_goes_where_it_was() {
    let toys =
        [Toy::start(Act::Json(Duration::ZERO)).await, Toy::start(Act::Json(Duration::ZERO)).await];
    let gateway = start(&[&toys[0], &toys[1]], |_| {}).await;
    let body = CHAT.replace("hello", &"long prompt ".repeat(100));
    let first = chat(gateway.addr(), &body).await;
    for _ in 0..5 {
        let again = chat(gateway.addr(), &body).await;
        assert_eq!(again.header("x-kvroute-instance"), first.header("x-kvroute-instance"));
        assert_eq!(again.header("x-kvroute-reason"), "cache-score");
        assert_eq!(again.header("x-kvroute-predicted-cached-tokens"), "288");
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn connections_are_used_again() {
    let toy = Toy::start(Act::Json(Duration::ZERO)).await;
    let gateway = start(&[&toy], |config| config.threads = Some(1)).await;
    assert_eq!(chat(gateway.addr(), CHAT).await.status, 200);
    // Were a new connection needed, it would be refused.
    toy.stop_listening();
    for _ in 0..10 {
        assert_eq!(chat(gateway.addr(), CHAT).await.status, 200);
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_cancelled_at_once() {
    let toy = Toy::start(Act::Stream(1_000, Duration::from_millis(20))).await;
    let gateway = start(&[&toy], |_| {}).await;
    for act in [Act::Stream(1_000, Duration::from_millis(20)), Act::Silent, Act::HeadOnly] {
        toy.set(act);
        let before = toy.state.cancelled.load(std::sync::atomic::Ordering::SeqCst);
        let received = toy.received();
        let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
        let raw = request("POST", "/v1/chat/completions", STREAM);
        stream.write_all(raw.as_bytes()).await.unwrap();
        eventually("the instance has it", async || toy.received() > received).await;
        assert_eq!(gateway.in_flight(), 1);
        let left = Instant::now();
        drop(stream);
        eventually("cancelled", async || {
            toy.state.cancelled.load(std::sync::atomic::Ordering::SeqCst) > before
        })
        .await;
        assert!(left.elapsed() < Duration::from_millis(200), "{:?}", left.elapsed());
        eventually("not booked any more", async || gateway.in_flight() == 0).await;
    }
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_slow_reader_slows_its_instance_down() {
    // 64 MiB: far more than all the buffers on the way.
    let toy = Toy::start(Act::Flood(1_024)).await;
    let gateway = start(&[&toy], |_| {}).await;
    let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
    let raw = request("POST", "/v1/chat/completions", STREAM);
    stream.write_all(raw.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(toy.state.open.load(std::sync::atomic::Ordering::SeqCst), 1, "still writing");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert!(all.len() > 64 << 20 && all.ends_with(b"0\r\n\r\n"), "{}", all.len());
    gateway.shutdown().await;
}
