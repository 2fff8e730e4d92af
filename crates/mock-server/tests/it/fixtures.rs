//! Every recorded answer of vLLM against the mock's answer to the same request; see `fixtures/README.md`.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kvroute_mock_server::MockConfig;
use serde_json::{Value, json};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::client::{Answer, JSON, config, get, open, post, send, start, until};
use crate::shape::Shape;

fn fixture(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The bodies too long to keep.
fn long_body(name: &str) -> Value {
    let tokens = |count: usize| vec![1_000; count];
    let base = json!({"model": "tiny", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let with = |key: &str, value: Value| {
        let mut body = base.clone();
        body[key] = value;
        body
    };
    match name {
        "err_prompt_too_long" => with("prompt", json!(tokens(8_193))),
        "err_prompt_too_long_stream" => {
            let mut body = with("prompt", json!(tokens(8_193)));
            body["stream"] = json!(true);
            body["stream_options"] = json!({"include_usage": true});
            body
        }
        "err_prompt_equals_max_len" => with("prompt", json!(tokens(8_192))),
        "completion_max_tokens_clamped" => {
            let mut body = with("prompt", json!(tokens(8_189)));
            body["max_tokens"] = json!(100);
            body
        }
        "err_chat_too_long" => {
            with("messages", json!([{"role": "user", "content": "world ".repeat(9_000)}]))
        }
        _ => panic!("no body for {name}"),
    }
}

async fn replay(address: SocketAddr, name: &str, request: &Value) -> Answer {
    let body = match &request["body"] {
        _ if request["long_body"] == true => long_body(name).to_string(),
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        object => object.to_string(),
    };
    let mut headers = vec![JSON];
    for (key, value) in request["headers"].as_object().unwrap() {
        if key == "content-type" {
            headers.clear();
        }
        headers.push((key, value.as_str().unwrap()));
    }
    let (method, path) = (request["method"].as_str().unwrap(), request["path"].as_str().unwrap());
    if name == "stream_cut_by_client" {
        let mut stream = open(address, method, path, &headers, &body).await;
        return first_events(&mut stream, 5).await;
    }
    send(address, method, path, &headers, &body).await
}

/// Reads that many events and no more.
async fn first_events(stream: &mut TcpStream, count: usize) -> Answer {
    let mut raw = Vec::new();
    while String::from_utf8_lossy(&raw).matches("\n\n").count() < count {
        stream.read_buf(&mut raw).await.unwrap();
    }
    let raw = String::from_utf8(raw).unwrap();
    let end = raw.match_indices("\n\n").nth(count - 1).unwrap().0;
    Answer::parse(&raw[..end])
}

/// Shapes of the events in order; a run of equal ones counts once, as its length is the model's.
fn event_shapes(answer: &Answer) -> Vec<String> {
    let mut shapes: Vec<String> =
        answer
            .events()
            .into_iter()
            .map(|event| {
                if event == "[DONE]" { event.to_owned() } else { format!("{:?}", Shape::of(event)) }
            })
            .collect();
    shapes.dedup();
    shapes
}

/// What differs, if anything.
fn difference(name: &str, recorded: &Answer, ours: &Answer) -> Option<String> {
    if recorded.status != ours.status {
        return Some(format!("status {} is {}: {}", recorded.status, ours.status, ours.body));
    }
    for header in ["content-type", "allow"] {
        if recorded.header(header) != ours.header(header) {
            return Some(format!("{header} is {:?}", ours.header(header)));
        }
    }
    if recorded.is_complete != ours.is_complete {
        return Some(format!("complete: {}", ours.is_complete));
    }
    let is_exact =
        name.starts_with("err_") || ["version", "load", "health", "ping"].contains(&name);
    if is_exact {
        let (recorded, ours) = (recorded.body.trim_end(), &ours.body);
        return (recorded != ours).then(|| format!("{recorded}\n is {ours}"));
    }
    let is_stream = recorded.header("content-type") == Some("text/event-stream; charset=utf-8");
    let (recorded, ours) = if is_stream {
        (event_shapes(recorded).join("\n"), event_shapes(ours).join("\n"))
    } else {
        (format!("{:?}", Shape::of(&recorded.body)), format!("{:?}", Shape::of(&ours.body)))
    };
    (recorded != ours).then(|| format!("{recorded}\n is {ours}"))
}

#[tokio::test]
async fn answers_have_the_form_of_vllms() {
    let cluster = start(config()).await;
    let address = cluster.addresses()[0];
    let requests: BTreeMap<String, Value> =
        serde_json::from_str(&fixture("requests.json")).unwrap();
    assert_eq!(requests.len(), 47);
    let mut differences = Vec::new();
    for (name, request) in &requests {
        let recorded = Answer::parse(&fixture(&format!("{name}.txt")));
        let ours = replay(address, name, request).await;
        differences
            .extend(difference(name, &recorded, &ours).map(|what| format!("{name}: {what}")));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

#[tokio::test]
async fn usage_without_details() {
    let config = MockConfig { enable_prompt_tokens_details: false, ..config() };
    let cluster = start(config).await;
    let body =
        json!({"prompt": "def hello(): return the world", "max_tokens": 2, "ignore_eos": true});
    let ours = post(cluster.addresses()[0], "/v1/completions", &body).await;
    let recorded = Answer::parse(&fixture("completion_without_prompt_tokens_details.txt"));
    assert_eq!(difference("", &recorded, &ours), None);
}

#[tokio::test]
async fn a_stream_whose_engine_dies_ends_with_an_error_event() {
    let config = MockConfig { time_scale: 1.0, ..config() };
    let cluster = start(config).await;
    let address = cluster.addresses()[0];
    let body = json!({"prompt": "a", "max_tokens": 8000, "ignore_eos": true, "stream": true});
    let stream = post(address, "/v1/completions", &body);
    let death = async {
        until(|| async { cluster.instances()[0].gauges().await.unwrap().running == 1 }).await;
        cluster.instances()[0].fail_engine();
    };
    let (answer, ()) = tokio::join!(stream, death);
    assert!(answer.is_complete);
    let recorded = Answer::parse(&fixture("stream_engine_death_excerpt.txt"));
    let tail = |answer: &Answer| {
        let events = answer.events();
        events[events.len() - 2..].join("\n")
    };
    assert_eq!(tail(&answer), tail(&recorded));
    assert_eq!(get(address, "/health").await.status, 503);
    let refused = post(address, "/v1/completions", &body).await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (500, &json!(500)));
}

#[tokio::test]
async fn metrics_have_vllms_names_labels_and_buckets() {
    let cluster = start(config()).await;
    let address = cluster.addresses()[0];
    let page = get(address, "/metrics").await;
    assert_eq!(page.header("content-type"), Some("text/plain; version=1.0.0; charset=utf-8"));
    let series = |page: &str| -> Vec<String> {
        let without_value = |line: &str| match line.strip_prefix("vllm:cache_config_info{") {
            // Its label values are settings.
            Some(labels) => labels
                .split(',')
                .filter_map(|label| label.split('=').next())
                .collect::<Vec<_>>()
                .join(","),
            None if line.starts_with('#') => line.to_owned(),
            None => line.rsplit_once(' ').unwrap().0.to_owned(),
        };
        page.lines().map(without_value).collect()
    };
    let (ours, recorded) = (series(&page.body), series(&fixture("metrics.txt")));
    for (ours, recorded) in ours.iter().zip(&recorded) {
        assert_eq!(ours, recorded);
    }
    assert_eq!(ours.len(), recorded.len());
    // Settings that the mock shares with the recorded server.
    for label in [
        r#"block_size="32""#,
        r#"num_gpu_blocks="512""#,
        r#"kv_cache_size_tokens="16384""#,
        r#"kv_cache_max_concurrency="2.0""#,
    ] {
        assert!(page.body.contains(label), "{label}");
    }
}
