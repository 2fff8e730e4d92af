//! Spans at a toy collector, and the trace context on its way to the instance.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::client::{CHAT, STREAM, request, send};
use crate::start;
use crate::toy::{Act, Toy, header};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// Takes in spans; its address and what it got.
async fn collector() -> (String, Arc<Mutex<Vec<Span>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let spans = Arc::new(Mutex::new(Vec::new()));
    let got = Arc::clone(&spans);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut all = Vec::new();
            let body = loop {
                let head_end = all.windows(4).position(|four| four == b"\r\n\r\n");
                if let Some(end) = head_end {
                    let head = String::from_utf8(all[..end].to_vec()).unwrap();
                    assert!(head.starts_with("POST /v1/traces HTTP/1.1"), "{head}");
                    assert_eq!(header(&head, "content-type"), Some("application/x-protobuf"));
                    let length: usize = header(&head, "content-length").unwrap().parse().unwrap();
                    if all.len() >= end + 4 + length {
                        break all.split_off(end + 4);
                    }
                }
                assert!(stream.read_buf(&mut all).await.unwrap() > 0, "cut off");
            };
            let batch = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
            for resource in batch.resource_spans {
                let service = &resource.resource.as_ref().unwrap().attributes;
                assert!(service.iter().any(|it| it.key == "service.name"));
                let scopes = resource.scope_spans.into_iter();
                got.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
            }
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, spans)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.clone()?.value
}

fn traced(body: &str, traceparent: &str) -> String {
    let fields = format!("host: gateway\r\ntraceparent: {traceparent}\r\ntracestate: a=1,b=2\r\n");
    request("POST", "/v1/chat/completions", body).replace("host: gateway\r\n", &fields)
}

fn received(toy: &Toy, name: &str) -> Option<String> {
    header(&toy.state.latest.lock().unwrap().0, name).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_are_exported_and_traces_continue() {
    let (url, spans) = collector().await;
    let toys = [
        Toy::start(Act::Status(503)).await,
        Toy::start(Act::Stream(2, Duration::from_millis(1))).await,
    ];
    let gateway = start(&[&toys[0], &toys[1]], |config| {
        config.policy = kvroute_policy::PolicyConfig::RoundRobin {};
        config.tracing.otlp_endpoint = Some(url);
        config.tracing.sample_ratio = 0.0;
    })
    .await;
    let addr = gateway.addr();
    // The first try fails, the second is answered.
    let sampled = format!("00-{TRACE}-{CALLER}-01");
    let reply = send(addr, traced(STREAM, &sampled)).await;
    assert_eq!(reply.status, 200);
    let to_instance = received(&toys[1], "traceparent").unwrap();
    assert_eq!(received(&toys[1], "tracestate").as_deref(), Some("a=1,b=2"));
    // Not sampled by the caller; not drawn; not readable and not drawn: as they came.
    for parent in [format!("00-{TRACE}-{CALLER}-00"), "nonsense".to_owned()] {
        assert_eq!(send(addr, traced(STREAM, &parent)).await.status, 200);
        assert_eq!(received(&toys[1], "traceparent"), Some(parent));
    }
    assert_eq!(send(addr, request("POST", "/v1/chat/completions", STREAM)).await.status, 200);
    assert_eq!(received(&toys[1], "traceparent"), None);
    // Everybody fails.
    for toy in &toys {
        toy.set(Act::Close);
    }
    assert_eq!(send(addr, traced(CHAT, &sampled)).await.status, 502);
    gateway.shutdown().await;

    let spans = spans.lock().unwrap();
    assert_eq!(spans.len(), 2, "{spans:?}");
    let span = &spans[0];
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), CALLER.into()));
    assert_eq!(to_instance, format!("00-{TRACE}-{}-01", hex(&span.span_id)));
    assert_eq!(
        (span.name.as_str(), span.kind),
        ("POST /v1/chat/completions", SpanKind::Server as i32)
    );
    assert_eq!(span.trace_state, "a=1,b=2");
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    let text = |value: &str| Some(Value::StringValue(value.to_owned()));
    assert_eq!(attribute(span, "kvroute.policy"), text("round-robin"));
    assert_eq!(attribute(span, "kvroute.reason"), text("rotation"));
    assert_eq!(attribute(span, "kvroute.instance"), text(&toys[1].name()));
    assert_eq!(attribute(span, "kvroute.retries"), Some(Value::IntValue(1)));
    assert_eq!(attribute(span, "kvroute.predicted_cached_tokens"), Some(Value::IntValue(0)));
    assert!(matches!(attribute(span, "kvroute.prompt_tokens"), Some(Value::IntValue(1..))));
    assert_eq!(attribute(span, "http.response.status_code"), Some(Value::IntValue(200)));
    assert!(matches!(attribute(span, "kvroute.ttft_ms"), Some(Value::DoubleValue(ms)) if ms > 0.0));
    let failed = &spans[1];
    assert_eq!(attribute(failed, "error.type"), text("instance_closed"));
    assert_eq!(failed.status.as_ref().unwrap().code, 2, "an error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_trace_begins_one_if_it_is_drawn() {
    let (url, spans) = collector().await;
    let toy = Toy::start(Act::Json(Duration::ZERO)).await;
    let gateway = start(&[&toy], |config| config.tracing.otlp_endpoint = Some(url)).await;
    let raw = traced(CHAT, "nonsense");
    assert_eq!(send(gateway.addr(), raw).await.status, 200);
    let to_instance = received(&toy, "traceparent").unwrap();
    assert_eq!(received(&toy, "tracestate"), None, "it belonged to the trace that is unreadable");
    gateway.shutdown().await;
    let spans = spans.lock().unwrap();
    assert_eq!(spans.len(), 1);
    let (trace, span) = (hex(&spans[0].trace_id), hex(&spans[0].span_id));
    assert_eq!(to_instance, format!("00-{trace}-{span}-01"));
    assert!(spans[0].parent_span_id.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_requests_are_served_all_the_same() {
    let toy = Toy::start(Act::Json(Duration::ZERO)).await;
    let gateway = start(&[&toy], |config| {
        // Nobody listens on the discard port of loopback.
        config.tracing.otlp_endpoint = Some("http://127.0.0.1:9".into());
    })
    .await;
    assert_eq!(send(gateway.addr(), traced(CHAT, "nonsense")).await.status, 200);
    gateway.shutdown().await;

    // Off, the fields pass as they came.
    let gateway = start(&[&toy], |_| {}).await;
    let sampled = format!("00-{TRACE}-{CALLER}-01");
    assert_eq!(send(gateway.addr(), traced(CHAT, &sampled)).await.status, 200);
    assert_eq!(received(&toy, "traceparent"), Some(sampled));
    gateway.shutdown().await;
}
