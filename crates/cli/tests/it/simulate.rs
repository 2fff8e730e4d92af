//! `simulate`: the contract of its JSON, determinism, seeds, staleness.

use serde_json::Value;

use crate::{json, mooncake, stdout};

/// The results, without what the clock says.
fn runs(args: &[&str]) -> Vec<Value> {
    let mut report = json(&[&["simulate", "--format", "json"], args].concat());
    let runs = report["runs"].as_array_mut().unwrap();
    for run in runs.iter_mut() {
        assert!(run["wall_s"].as_f64().unwrap() >= 0.0);
        run.as_object_mut().unwrap().remove("wall_s");
    }
    std::mem::take(runs)
}

/// A small load that queues a little: quick, but no two policies agree.
const CHAT: &[&str] = &[
    "--workload",
    "chat",
    "--requests",
    "400",
    "--rate",
    "20",
    "--instances",
    "3",
    "--kv-blocks",
    "2000",
];

fn chat(flags: &[&str]) -> Vec<Value> {
    runs(&[CHAT, flags].concat())
}

#[test]
fn the_report_keeps_its_contract() {
    let report = json(&[&["simulate", "--format", "json"], CHAT].concat());
    let manifest = report["manifest"].as_object().unwrap();
    for key in ["kvroute_version", "git_commit", "command", "config", "seeds", "machine", "inputs"]
    {
        assert!(manifest.contains_key(key), "{key} is missing from the manifest");
    }
    let runs = report["runs"].as_array().unwrap();
    let policies: Vec<&str> = runs.iter().map(|run| run["policy"].as_str().unwrap()).collect();
    assert_eq!(
        policies,
        ["round-robin", "jsq", "p2c", "session-affinity", "prefix-affinity", "load-cache"]
    );
    let keys: Vec<&String> = runs[0].as_object().unwrap().keys().collect();
    let expected = "policy policy_config workload instances seed mode requests completed failed duration_s \
        offered_rps completed_rps output_tokens_per_s ttft_ms tpot_ms itl_ms e2e_ms queue_time_ms slo goodput_rps \
        cache load preemptions per_instance index reasons decision_log_hash wall_s";
    let mut expected: Vec<&str> = expected.split_whitespace().collect();
    let mut keys: Vec<&str> = keys.into_iter().map(String::as_str).collect();
    expected.sort_unstable();
    keys.sort_unstable();
    assert_eq!(keys, expected);
    for run in runs {
        assert_eq!(
            (&run["requests"], &run["completed"], &run["failed"]),
            (&400.into(), &400.into(), &0.into())
        );
        assert_eq!(run["mode"], "sim");
        assert_eq!(run["per_instance"].as_array().unwrap().len(), 3);
        let cached = run["cache"]["cached_tokens"].as_u64().unwrap();
        let computed = run["cache"]["kv_computed_tokens"].as_u64().unwrap();
        assert_eq!(cached + computed, run["cache"]["prompt_tokens"].as_u64().unwrap());
        let hit_rate = run["cache"]["hit_rate"].as_f64().unwrap();
        assert!(hit_rate <= run["cache"]["hit_rate_infinite_cache"].as_f64().unwrap());
        let reasons: u64 =
            run["reasons"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(reasons, 400);
    }
}

#[test]
fn the_same_command_gives_the_same_results_on_any_number_of_threads() {
    let one = chat(&["--threads", "1"]);
    assert_eq!(one, chat(&["--threads", "1"]));
    assert_eq!(one, chat(&["--threads", "2"]));
    let other = chat(&["--seed", "1"]);
    for (run, other) in one.iter().zip(&other) {
        assert_ne!(run["decision_log_hash"], other["decision_log_hash"]);
        assert_ne!(run["ttft_ms"], other["ttft_ms"]);
    }
}

#[test]
fn seeds_are_replicates_of_single_runs() {
    let flags = ["--policy", "jsq", "load-cache:alpha=1,beta=1"];
    let three = chat(&[&flags[..], &["--seeds", "3"]].concat());
    let seeds: Vec<u64> = three.iter().map(|run| run["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [0, 1, 2, 0, 1, 2]);
    let last = chat(&[&flags[..], &["--seed", "2"]].concat());
    assert_eq!([&three[2], &three[5]], [&last[0], &last[1]]);
    assert_eq!(three[3]["policy_config"]["alpha"], 1.0);
}

#[test]
fn the_arena_is_every_listed_policy() {
    let listed = json(&["policies", "--format", "json"]);
    let listed: Vec<&Value> = listed.as_array().unwrap().iter().map(|it| &it["name"]).collect();
    let runs = chat(&["--policy", "arena"]);
    assert_eq!(runs.iter().map(|run| &run["policy"]).collect::<Vec<_>>(), listed);
    assert_eq!(
        listed[..6],
        ["round-robin", "jsq", "p2c", "session-affinity", "prefix-affinity", "load-cache"]
    );
    assert!(listed.len() > 15, "{listed:?}");
}

#[test]
fn staleness_flags_reach_the_router() {
    let cached = |flags: &[&str]| {
        let run = &chat(&[&["--policy", "load-cache"], flags].concat())[0];
        (run["cache"]["hit_rate"].as_f64().unwrap(), run["decision_log_hash"].clone())
    };
    let (fresh, hash) = cached(&[]);
    for flags in [["--index-refresh", "never"], ["--index-loss", "1"], ["--index-delay", "1h"]] {
        let (stale, stale_hash) = cached(&flags);
        assert!(stale < fresh - 0.1, "{flags:?}: {stale} against {fresh}");
        assert_ne!(stale_hash, hash);
    }
    for flags in [["--load-refresh", "30s"], ["--load-delay", "30s"], ["--load-loss", "0.9"]] {
        assert_ne!(cached(&flags).1, hash, "{flags:?}");
    }
}

#[test]
fn the_warm_up_leaves_early_requests_out_of_the_statistics() {
    let whole = &chat(&["--policy", "jsq"])[0];
    let warm = &chat(&["--policy", "jsq", "--warm-up", "10s"])[0];
    assert_eq!(warm["requests"], 400);
    assert_eq!(warm["decision_log_hash"], whole["decision_log_hash"]);
    let prompts = |run: &Value| run["cache"]["prompt_tokens"].as_u64().unwrap();
    assert!(prompts(warm) < prompts(whole));
}

#[test]
fn a_trace_is_replayed_in_its_own_time_or_faster() {
    let trace = mooncake();
    let replay = |flags: &[&str]| {
        let trace =
            ["--trace", trace.to_str().unwrap(), "--trace-format", "mooncake", "--requests", "300"];
        runs(
            &[&trace[..], &["--policy", "jsq", "--instances", "4", "--kv-blocks", "62500"], flags]
                .concat(),
        )
    };
    let own = replay(&[]);
    let fast = replay(&["--rate-scale", "2"]);
    let ratio = fast[0]["offered_rps"].as_f64().unwrap() / own[0]["offered_rps"].as_f64().unwrap();
    assert!((ratio - 2.0).abs() < 1e-6, "{ratio}");
    let drawn = replay(&["--rate", "1", "--arrivals", "gamma", "--arrival-cv", "4"]);
    assert!(drawn[0]["offered_rps"].as_f64().unwrap() < 2.0);
}

#[test]
fn tables_and_csv_have_a_row_a_run() {
    let table = stdout(&[&["simulate"], CHAT].concat());
    assert!(table.contains("load-cache") && table.contains("TTFT"), "{table}");
    let csv = stdout(&[&["simulate", "--format", "csv"], CHAT].concat());
    assert_eq!(csv.lines().count(), 7);
    assert!(csv.lines().next().unwrap().contains("ttft_ms_p95"));
}
