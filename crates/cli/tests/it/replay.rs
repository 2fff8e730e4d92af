//! `kvroute replay` of logs whose figures are known by hand. Logs of real gateways are in `serve.rs`.

use std::fs;
use std::path::Path;

use kvroute_decision_log::{Event, FORMAT, LogWriter, LoggedRequest, Replay, Route, Start};
use kvroute_policy::{BlockNames, PolicyConfig};
use kvroute_router::RouterConfig;
use kvroute_types::{BlockHash, InstanceId, RequestId, Timestamp, TokenCount};

use crate::bad_input::says;
use crate::{json, kvroute};

/// Blocks that all prompts of a family begin with.
const SHARED_BLOCKS: u64 = 20;

/// Request `i` of three families in turn: 20 blocks in common, up to 10 of its own, and 8 tokens.
fn request(i: u32) -> LoggedRequest {
    let own = (0..u64::from(i * 7 % 11)).map(|block| 1_000 * (1 + u64::from(i)) + block);
    let family = u64::from(i % 3) * 100;
    let blocks: Vec<_> = (family..family + SHARED_BLOCKS).chain(own).map(BlockHash).collect();
    LoggedRequest {
        id: RequestId(i),
        session_key: None,
        prefix_key: None,
        prompt_tokens: TokenCount(u32::try_from(blocks.len()).unwrap() * 16 + 8),
        prompt_blocks: blocks,
        block_names: BlockNames::Engine,
        max_output_tokens: None,
        priority: 0,
    }
}

/// The log of two instances under round-robin. A first token takes 10 ms and 0.1 ms a token; each request comes long after
/// the one before it has ended.
fn write_log(path: &Path, requests: u32) {
    let policy: PolicyConfig = "round-robin".parse().unwrap();
    let router = RouterConfig { always_index: true, ..RouterConfig::default() };
    let start = Start { format: FORMAT, version: "0".to_owned(), seed: 1, policy, router };
    let mut replay = Replay::as_recorded(&start).unwrap();
    let mut log = LogWriter::new(fs::File::create(path).unwrap());
    log.write(Timestamp::ZERO, &Event::Start(Box::new(start))).unwrap();
    let mut tell = |at: Timestamp, mut event: Event| {
        let decision = replay.apply(at, &event).unwrap();
        if let Event::Route(route) = &mut event {
            route.decision = decision;
        }
        log.write(at, &event).unwrap();
        decision
    };
    for (id, name) in [(0, "a"), (1, "b")] {
        let added = Event::InstanceAdded { id: InstanceId(id), name: name.to_owned() };
        tell(Timestamp::ZERO, added);
    }
    for i in 0..requests {
        let request = request(i);
        let (id, tokens) = (request.id, request.prompt_tokens);
        let (attempt, excluded, decision, receipt) = (1, Vec::new(), None, None);
        let at = Timestamp::from_secs_f64(f64::from(1 + i));
        let route = Route { request, attempt, excluded, decision, receipt };
        let decision = tell(at, Event::Route(Box::new(route))).unwrap();
        let uncached = tokens.0 - decision.predicted_cached_tokens.unwrap().0;
        let first_token = at.plus_nanos(10_000_000 + 100_000 * u64::from(uncached));
        tell(first_token, Event::FirstToken { request: id });
        tell(first_token.plus_nanos(100_000_000), Event::End { request: id });
    }
}

#[test]
fn estimates_are_those_worked_out_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("decisions.jsonl");
    write_log(&log, 120);
    let log = log.to_str().unwrap();
    let sticky = "load-cache:alpha=1.0,beta=0.0";
    let replay = ["replay", log, "--policy", sticky, "round-robin", "--format"];

    let report = json(&[&replay[..], &["json"]].concat());
    let close = |is: &serde_json::Value, expected: f64| {
        let is = is.as_f64().unwrap();
        assert!((is - expected).abs() < 1e-6 * expected, "{is} for {expected}");
    };
    // 5 of every 11 requests' blocks on average, over whole rounds of 11; the last 10 of 120 have 0, 7, 3, 10, 6, 2, 9, 5, 1, 8.
    let own_tokens = f64::from(16 * (10 * 55 + 51) + 8 * 120);
    // Each instance computes each family's beginning once.
    let recorded_ms = 10.0 + 0.1 * (own_tokens + 6.0 * 320.0) / 120.0;
    let sticky_ms = 10.0 + 0.1 * (own_tokens + 3.0 * 320.0) / 120.0;
    assert_eq!(report["ttft"]["requests"], 120);
    close(&report["ttft"]["observed_ms"]["mean"], recorded_ms);
    close(&report["ttft"]["held_out_ms"]["mean"], recorded_ms);
    close(&report["ttft"]["explained_share"], 1.0);
    close(&report["ttft"]["model"]["own_s_per_token"], 1e-4);
    close(&report["recorded"]["estimated_ttft_ms"]["mean"], recorded_ms);
    close(&report["policies"][0]["estimated_ttft_ms"]["mean"], sticky_ms);
    // The median has 5 blocks of its own.
    close(&report["policies"][0]["estimated_ttft_ms"]["p50"], 10.0 + 0.1 * (16.0 * 5.0 + 8.0));
    assert_eq!(report["policies"][0]["extrapolated_share"], 0.0);
    assert_eq!(
        report["policies"][1]["estimated_ttft_ms"], report["recorded"]["estimated_ttft_ms"],
        "the policy of the log itself"
    );

    let output = kvroute(&[&replay[..], &["csv"]].concat());
    let csv = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    let cell = |row: usize, name: &str| {
        let column = rows[0].iter().position(|column| *column == name).unwrap();
        // The name of the second row's policy has a comma.
        rows[row][column + usize::from(row == 2)].to_owned()
    };
    assert_eq!(cell(1, "ttft_mean_ms"), format!("{recorded_ms:.1}"));
    assert_eq!(cell(1, "estimated_ttft_mean_ms"), format!("{recorded_ms:.1}"));
    assert_eq!(cell(2, "ttft_mean_ms"), "", "nobody has seen it");
    assert_eq!(cell(2, "estimated_ttft_mean_ms"), format!("{sticky_ms:.1}"));
    assert_eq!(cell(2, "extrapolated_share"), "0.0000");
    says(
        &String::from_utf8(output.stderr).unwrap(),
        &[
            "TTFT of 120 requests",
            "1.00 of the variance",
            "10.00 + 0.00 at a busy",
            "100.00 per 1000",
        ],
    );
}

#[test]
fn a_short_log_has_no_estimates() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("decisions.jsonl");
    write_log(&log, 99);
    let log = log.to_str().unwrap();
    let report = json(&["replay", log, "--policy", "jsq", "--format", "json"]);
    assert!(report["ttft"].is_null() && report["recorded"]["estimated_ttft_ms"].is_null());
    assert!(report["policies"][0]["estimated_ttft_ms"].is_null());
    assert!(report["policies"][0]["extrapolated_share"].is_null());
    let output = kvroute(&["replay", log, "--policy", "jsq"]);
    assert!(output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    says(&errors, &["no TTFT estimates", "first tokens of 99 requests", "100 are needed"]);
}
