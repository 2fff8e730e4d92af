//! The driver against a scripted server on loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod toy;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use kvroute_load::{
    Counter, FailureKind, InstanceTarget, LoadConfig, LoadOutcome, Mode, PromptForm, ScrapeError,
    Target, run, scrape,
};
use kvroute_types::{InstanceId, Outcome, TokenCount};
use kvroute_workload::{Workload, WorkloadSpec};
use toy::{Act, Toy};

fn uniform(requests: u32, rate: u32) -> Workload {
    let spec = format!(
        "kind = \"uniform\"\nrequests_per_s = {rate}.0\n\
         prompt_tokens = {{ kind = \"constant\", value = 5 }}\n\
         output_tokens = {{ kind = \"constant\", value = 3 }}"
    );
    toml::from_str::<WorkloadSpec>(&spec).unwrap().generate(3, requests).unwrap()
}

fn config(toy: &Toy) -> LoadConfig {
    LoadConfig {
        target: Target::local(toy.addr.port()),
        model: Some("tiny".into()),
        request_timeout_s: 5.0,
        ..LoadConfig::default()
    }
}

fn one_at_a_time(toy: &Toy) -> LoadConfig {
    LoadConfig { mode: Mode::ClosedLoop { concurrency: NonZeroU32::MIN }, ..config(toy) }
}

async fn play(config: LoadConfig, workload: &Workload) -> LoadOutcome {
    run(config, workload, |_| ()).await.unwrap()
}

fn only_failure(outcome: &LoadOutcome) -> (FailureKind, &str) {
    assert_eq!(outcome.failures.len(), 1, "{:?}", outcome.failures);
    let (kind, failure) = outcome.failures.first_key_value().unwrap();
    (*kind, &failure.example)
}

#[tokio::test]
async fn a_stream_fills_the_record() {
    let toy = Toy::start(Act::Stream { split: 7 }).await;
    let mut headers = BTreeMap::new();
    headers.insert("authorization".to_owned(), "Bearer x".to_owned());
    let config = LoadConfig {
        headers,
        prompt_form: PromptForm::TokenIds { vocabulary: NonZeroU32::new(50).unwrap() },
        instances: vec![
            InstanceTarget::new(Target::local(1)),
            InstanceTarget { url: Target::local(2), name: Some("toy".into()) },
        ],
        ..one_at_a_time(&toy)
    };
    let outcome = play(config, &uniform(3, 100)).await;
    let record = &outcome.records[1];
    assert_eq!(record.outcome, Outcome::Completed, "{:?}", outcome.failures);
    assert_eq!((record.instance, record.reason), (Some(InstanceId(1)), "cache-score"));
    assert_eq!(record.prompt_tokens, TokenCount(29));
    assert_eq!(record.output_tokens, TokenCount(2));
    assert_eq!(record.cached_tokens, Some(TokenCount(16)));
    assert_eq!(record.predicted_cached_tokens, Some(TokenCount(32)));
    assert!(
        record.arrival <= record.first_token.unwrap() && record.first_token <= Some(record.end)
    );
    assert_eq!(outcome.inter_token_ns.len(), 3);
    assert_eq!(outcome.finish_reasons["length"], 3);
    assert_eq!(outcome.connections, 1, "the connection is kept");

    let (head, body) = toy.latest();
    assert!(head.starts_with("POST /v1/completions HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("authorization: Bearer x\r\n"));
    let session = head.lines().find_map(|line| line.strip_prefix("x-session-id: ")).unwrap();
    assert_eq!(session.len(), 16);
    assert!(body.contains("\"model\":\"tiny\"") && body.contains("\"max_tokens\":3"), "{body}");
}

#[tokio::test]
async fn a_server_that_stalls_delays_no_send() {
    let toy = Toy::start(Act::Silent).await;
    let config = LoadConfig { request_timeout_s: 0.3, ..config(&toy) };
    let outcome = play(config, &uniform(20, 100)).await;
    assert_eq!(toy.received(), 20);
    let (kind, _) = only_failure(&outcome);
    assert_eq!((kind, outcome.failures[&kind].count), (FailureKind::TimedOut, 20));
    assert_eq!(outcome.connections, 20);
    for record in &outcome.records {
        assert_eq!((record.outcome, record.first_token), (Outcome::Failed, None));
        assert!(record.end.since(record.arrival) >= Duration::from_millis(300));
    }
    for _ in 0..500 {
        if toy.left() == 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(toy.left(), 20, "giving up closes the connection");
    // All were sent before the first of them was given up (a busy machine may need some of that time).
    assert!(outcome.late_sends.p50 < Duration::from_millis(100), "{:?}", outcome.late_sends);
}

#[tokio::test]
async fn every_failure_has_its_kind_and_its_record() {
    let cases = [
        (Act::Status(503), FailureKind::Status(503), "toy says no"),
        (Act::Close, FailureKind::Connection, ""),
        (Act::Cut, FailureKind::Connection, ""),
        (Act::NoDone, FailureKind::Truncated, "[DONE]"),
        (Act::ErrorFrame, FailureKind::InStream, "EngineCore"),
        (Act::Json, FailureKind::Malformed, "application/json"),
        (Act::Garbage, FailureKind::Malformed, "garbage"),
    ];
    for (act, expected, message) in cases {
        let toy = Toy::start(act).await;
        let outcome = play(one_at_a_time(&toy), &uniform(2, 100)).await;
        let (kind, example) = only_failure(&outcome);
        assert_eq!(kind, expected, "{act:?}: {example}");
        assert!(example.contains(message), "{act:?}: {example}");
        assert_eq!(outcome.records.len(), 2);
        assert!(outcome.records.iter().all(|record| record.outcome == Outcome::Failed));
        let has_token = matches!(act, Act::Cut | Act::NoDone | Act::ErrorFrame);
        assert_eq!(outcome.records[0].first_token.is_some(), has_token, "{act:?}");
    }
}

#[tokio::test]
async fn a_refused_connection_is_a_failure_too() {
    let toy = Toy::start(Act::Close).await;
    let config = one_at_a_time(&toy);
    drop(toy);
    tokio::task::yield_now().await;
    let outcome = play(config, &uniform(2, 100)).await;
    let (kind, _) = only_failure(&outcome);
    assert!(matches!(kind, FailureKind::Connect | FailureKind::Connection), "{kind}");
    assert_eq!(outcome.records.len(), 2);
}

#[tokio::test]
async fn answers_in_one_piece_are_read() {
    let toy = Toy::start(Act::Json).await;
    let outcome = play(LoadConfig { stream: false, ..one_at_a_time(&toy) }, &uniform(2, 100)).await;
    let record = &outcome.records[0];
    assert_eq!(record.outcome, Outcome::Completed, "{:?}", outcome.failures);
    assert_eq!(record.first_token, Some(record.end));
    assert_eq!(record.cached_tokens, None);
    assert_eq!((record.instance, record.reason), (None, "none"));
    assert!(toy.latest().0.starts_with("POST /v1/chat/completions "));
    assert!(!toy.latest().1.contains("stream_options"));
}

#[tokio::test]
async fn instances_that_nobody_named_are_counted() {
    let toy = Toy::start(Act::Stream { split: usize::MAX }).await;
    let outcome = play(one_at_a_time(&toy), &uniform(2, 100)).await;
    assert_eq!(outcome.unknown_instances["toy"], 2);
    assert_eq!(outcome.records[0].instance, None);
}

#[tokio::test]
async fn instances_are_watched() {
    let toy = Toy::start(Act::Stream { split: usize::MAX }).await;
    let gone = Target::local(1);
    let config = LoadConfig {
        instances: vec![
            InstanceTarget { url: Target::local(toy.addr.port()), name: Some("toy".into()) },
            InstanceTarget::new(gone),
        ],
        metrics_interval_s: 0.005,
        ..config(&toy)
    };
    let outcome = play(config.clone(), &uniform(20, 100)).await;
    let [watched, gone] = &outcome.instances[..] else { panic!("two instances") };
    assert_eq!((watched.name.as_str(), gone.name.as_str()), ("toy", "127.0.0.1:1"));
    assert_eq!(watched.delta().unwrap().unwrap().counter(Counter::PrefixCacheHits), Some(0.0));
    assert_eq!(watched.waiting.max(), Some(0.0));
    assert!(watched.kv_cache_usage.count() > 1);
    assert!(gone.after.is_err() && gone.delta().is_none() && gone.failed_scrapes > 0);
    assert_eq!(gone.waiting.mean(), None);

    // A run shorter than its warm-up has nothing to tell of the time after.
    let outcome = play(LoadConfig { warm_up_s: 60.0, ..config }, &uniform(2, 100)).await;
    assert_eq!(outcome.instances[0].before, None);
    assert_eq!(outcome.inter_token_ns.len(), 0);
}

#[tokio::test]
async fn metrics_are_scraped() {
    let toy = Toy::start(Act::Close).await;
    let target = Target::local(toy.addr.port());
    let metrics = scrape(&target, Duration::from_secs(5)).await.unwrap();
    assert_eq!(metrics.counter(Counter::PrefixCacheQueries), Some(32_563.0));
    let elsewhere: Target = format!("{target}/elsewhere").parse().unwrap();
    let error = scrape(&elsewhere, Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(
        error,
        ScrapeError::Status { status: 404, .. } | ScrapeError::Unreachable { .. }
    ));
}
