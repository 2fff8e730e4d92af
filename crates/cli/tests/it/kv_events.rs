//! The gateway routing by what instances tell of their caches: real processes, KV events over real sockets.

use std::path::Path;

use crate::process::{Gateway, Mock, eventually, exchange};

/// Blocks of 32 tokens, as the profile has them, and few enough of them that they are evicted.
const MOCK: [&str; 7] =
    ["--profile", "cpu-tiny", "--time-scale", "100", "--kv-events", "--kv-blocks", "300"];

/// Settings that fit [`MOCK`], and an audit that does not wait for long.
const EVENTS: &str =
    "[kv_events]\nenabled = true\nblock_size = 32\n[kv_events.audit]\nconfirm_s = 0.3\n";

/// What an answer said of its prompt.
#[derive(Debug)]
struct Answer {
    predicted: u64,
    cached: u64,
}

fn post(addr: &str, path: &str, body: &str) -> Answer {
    let raw = format!(
        "POST {path} HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = exchange(addr, raw.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    let header = |name: &str| {
        let line = head.lines().find(|line| line.starts_with(name));
        line.map_or("0", |line| line.split(": ").nth(1).unwrap()).to_owned()
    };
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let cached = &body["usage"]["prompt_tokens_details"]["cached_tokens"];
    Answer {
        predicted: header("x-kvroute-predicted-cached-tokens").parse().unwrap(),
        cached: cached.as_u64().unwrap(),
    }
}

fn complete(addr: &str, ids: &[u32]) -> Answer {
    post(addr, "/v1/completions", &format!(r#"{{"prompt":{ids:?},"max_tokens":2}}"#))
}

/// `length` token ids of a family, each prompt of which begins all longer ones.
fn prompt(family: u32, length: u32) -> Vec<u32> {
    (0..length).map(|at| 300 + (family * 7_919 + at * 31) % 90_000).collect()
}

/// So many turns of conversations that take turns, three of four requests on an older prefix.
fn turn(number: u32) -> Vec<u32> {
    let (conversation, turn) = (number % 6 + number / 60 * 6, number % 60 / 6);
    prompt(conversation, 100 + 90 * turn)
}

/// Distinct blocks that all instances hold by their own account.
fn held(gateway: &Gateway) -> f64 {
    gateway.metric("kvroute_index_held_blocks", &[])
}

fn is_believed(gateway: &Gateway, mock: &Mock) -> bool {
    gateway.instance(mock)["kv_events"]["believed"] == true
}

#[test]
fn every_prediction_comes_true() {
    let mocks = [Mock::start(&MOCK), Mock::start(&MOCK)];
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("decisions.jsonl");
    let log = log.to_str().unwrap();
    let settings = format!("{EVENTS}[receipts]\nlog = \"{log}\"\n");
    let gateway = Gateway::start(&[&mocks[0], &mocks[1]], &settings);
    for mock in &mocks {
        eventually("believed", || is_believed(&gateway, mock));
    }
    let mut hits = 0;
    for number in 0..90 {
        let ids = turn(number);
        let answer = complete(&gateway.addr, &ids);
        assert_eq!(answer.predicted, answer.cached, "request {number}: {answer:?}");
        hits += u32::from(answer.cached > 0);
        // The next one is asked when what this one stored is known.
        let told = |mock: &Mock| {
            let state = gateway.instance(mock);
            state["kv_events"]["blocks"].as_u64().unwrap()
                == mock.state()["cached_blocks"].as_u64().unwrap()
        };
        eventually("told", || mocks.iter().all(told));
    }
    assert!(hits > 60, "{hits} of 90 requests hit");
    assert_eq!(gateway.metric("kvroute_index_precision", &[]), 2.0, "of both instances");
    assert_eq!(gateway.metric("kvroute_index_recall", &[]), 2.0);
    assert!(gateway.metric("kvroute_index_bytes_per_block", &[]) > 8.0);
    assert_eq!(gateway.metric("kvroute_prompts_total", &["names=\"engine\""]), 90.0);
    assert_eq!(gateway.process.terminate(), Some(0));

    let replay = crate::json(&["replay", log, "--format", "json"]);
    assert_eq!(replay["log"]["decisions"], 90, "{replay}");
    assert_eq!(replay["log"]["reproduced"], 90, "every decision again, from the log alone");
}

#[test]
fn an_instance_is_followed_through_the_gateway_s_and_its_own_restarts() {
    let mut mock = Mock::start(&MOCK);
    let ids = prompt(1, 500);
    assert_eq!(complete(&mock.name(), &ids).cached, 0, "before the gateway is there");

    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("index");
    let settings = EVENTS
        .replace("[kv_events]\n", &format!("[kv_events]\nsnapshot = \"{}\"\n", snapshot.display()));
    let gateway = Gateway::start(&[&mock], &settings);
    eventually("told by replay", || held(&gateway) == 15.0);
    assert_eq!(complete(&gateway.addr, &ids).predicted, 480);
    assert_eq!(gateway.process.terminate(), Some(0));
    assert_eq!(complete(&mock.name(), &prompt(2, 320)).cached, 0, "while the gateway is away");

    let gateway = Gateway::start(&[&mock], &settings);
    eventually("restored and caught up", || held(&gateway) == 25.0);
    assert!(gateway.metric("kvroute_index_snapshot_age_seconds", &[]) < 30.0);
    assert_eq!(
        gateway.metric("kvroute_kv_events_total", &["event=\"replayed\""]),
        1.0,
        "the news alone"
    );
    assert_eq!(complete(&gateway.addr, &ids).predicted, 480);

    mock.kill();
    eventually("not believed when it is gone", || !is_believed(&gateway, &mock));
    mock.restart();
    eventually("believed again", || is_believed(&gateway, &mock));
    eventually("in use", || gateway.is_up(&mock));
    assert_eq!(held(&gateway), 0.0);
    let answer = complete(&gateway.addr, &ids);
    assert_eq!((answer.predicted, answer.cached), (0, 0));
    eventually("told anew", || held(&gateway) == 15.0);
    assert_eq!(complete(&gateway.addr, &ids).predicted, 480);
    assert_eq!(gateway.process.terminate(), Some(0));
}

#[test]
fn dropped_events_are_fetched() {
    let mock = Mock::start(&MOCK);
    mock.set_faults(r#"{"kv_events_dropped":0.2}"#);
    let gateway = Gateway::start(&[&mock], EVENTS);
    for number in 0..120 {
        complete(&gateway.addr, &turn(number));
    }
    let cached = || mock.state()["cached_blocks"].as_u64().unwrap() as f64;
    eventually("all is told, the last batch too", || held(&gateway) == cached());
    assert!(gateway.metric("kvroute_kv_events_total", &["event=\"replayed\""]) > 5.0);
    assert_eq!(gateway.metric("kvroute_kv_events_total", &["event=\"lost_batches\""]), 0.0);
    assert!(is_believed(&gateway, &mock));
    assert_eq!(gateway.process.terminate(), Some(0));
}

/// Sends requests until the instance is doubted for this cause. How many that takes hangs on how soon it is believed: on a
/// busy machine a good part of them goes by before, and tells nothing.
fn is_doubted_for(cause: &str, gateway: &Gateway, mock: &Mock, send: impl Fn(u32)) {
    let mut numbers = 0..;
    eventually(cause, || {
        numbers.by_ref().take(50).for_each(&send);
        gateway.instance(mock)["kv_events"]["doubt_cause"] == cause
    });
    assert!(!is_believed(gateway, mock));
    let counted = format!("cause=\"{cause}\"");
    assert!(gateway.metric("kvroute_index_doubts_total", &[&counted]) >= 1.0);
}

/// The gateway with these settings in front of a mock with these flags and faults finds this cause, and falls back.
fn finds(cause: &str, flags: &[&str], faults: &str, settings: &str) {
    let mock = Mock::start(&[&MOCK[..], flags].concat());
    mock.set_faults(faults);
    let gateway = Gateway::start(&[&mock], settings);
    is_doubted_for(cause, &gateway, &mock, |number| {
        complete(&gateway.addr, &turn(number));
    });
    // From now on by what was routed there.
    let ids = prompt(9_999, 640);
    complete(&gateway.addr, &ids);
    assert!(complete(&gateway.addr, &ids).predicted >= 608, "judged by history");
    assert_eq!(gateway.process.terminate(), Some(0));
}

#[test]
fn another_block_size_is_found() {
    finds("block-size", &[], "{}", &EVENTS.replace("32", "16"));
}

#[test]
fn another_hash_algorithm_or_seed_is_found() {
    let cbor = ["--prefix-caching-hash-algo", "sha256_cbor"];
    finds("hash-algo", &cbor, "{}", EVENTS);
    finds("hash-seed", &["--pythonhashseed", "7"], "{}", EVENTS);
}

#[test]
fn a_salt_that_the_gateway_does_not_see_is_found() {
    finds("salt", &[], r#"{"cache_salt":"tenant-a"}"#, EVENTS);
}

#[test]
fn events_that_nobody_can_miss_are_missed() {
    finds("lost-events", &[], r#"{"kv_events_untold":0.05}"#, EVENTS);
}

#[test]
fn another_tokenizer_is_found() {
    let model =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../prompt-tokens/tests/fixtures/chatml");
    let mock = Mock::start(&MOCK);
    let settings = format!("{EVENTS}[prompt]\ntokenizer = \"{}\"\n", model.display());
    let gateway = Gateway::start(&[&mock], &settings);
    is_doubted_for("tokenizer", &gateway, &mock, |number| {
        let story = format!("conversation {} went on and on ", number % 20).repeat(20);
        let body =
            format!(r#"{{"messages":[{{"role":"user","content":"{story}"}}],"max_tokens":2}}"#);
        post(&gateway.addr, "/v1/chat/completions", &body);
    });
    assert_eq!(gateway.metric("kvroute_prompts_total", &["names=\"text\""]), 0.0);
    assert_eq!(gateway.process.terminate(), Some(0));
}
