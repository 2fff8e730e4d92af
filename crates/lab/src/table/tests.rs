use std::collections::BTreeMap;

use kvroute_types::InstanceId;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{DecisionLogHash, InstanceResult, Mode};

fn summary(mean: f64) -> Summary {
    Summary {
        mean: Some(mean),
        p50: Some(mean * 0.75),
        p90: Some(mean * 2.0),
        p95: Some(mean * 2.5),
        p99: Some(mean * 4.125),
        max: Some(mean * 6.0),
    }
}

fn run(policy: &str, instances: u32, seed: u64, ttft_mean_ms: f64) -> RunResult {
    RunResult {
        policy: policy.to_owned(),
        policy_config: json!({ "kind": policy, "note": "quoted, \"so\"" }),
        workload: "chat".to_owned(),
        instances,
        seed,
        mode: Mode::Sim,
        requests: 2000,
        completed: 2000,
        failed: 0,
        duration_s: Some(250.5),
        offered_rps: Some(8.0),
        completed_rps: Some(7.984),
        output_tokens_per_s: Some(1596.8),
        ttft_ms: summary(ttft_mean_ms),
        tpot_ms: summary(25.0),
        itl_ms: Summary::default(),
        e2e_ms: summary(5000.0),
        queue_time_ms: summary(12.0),
        slo: Slo { ttft_ms: 2000.0, tpot_ms: 50.0 },
        goodput_rps: Some(6.5),
        cache: CacheResult {
            prompt_tokens: 1_000_000,
            cached_tokens: Some(412_300),
            hit_rate: Some(0.4123),
            kv_computed_tokens: Some(587_700),
            hit_rate_infinite_cache: Some(0.8),
            hit_rate_pooled_lru: Some(0.7),
            hit_rate_pooled_belady: Some(0.75),
        },
        load: LoadResult {
            imbalance_max_over_mean: Some(1.25),
            imbalance_max_over_min: None,
            cov_in_flight: Some(0.31),
            queue_depth_mean: Some(3.21),
            queue_depth_max: Some(41),
        },
        preemptions: Some(17),
        per_instance: vec![InstanceResult {
            instance: InstanceId(0),
            requests: 2000,
            prompt_tokens: 1_000_000,
            cached_tokens: Some(412_300),
            hit_rate: Some(0.4123),
            queue_depth_mean: Some(3.21),
            queue_depth_max: Some(41),
            kv_cache_usage_mean: Some(0.9),
            ttft_ms: summary(ttft_mean_ms),
        }],
        index: IndexResult { precision: Some(0.98), recall: None },
        reasons: BTreeMap::from([
            ("prefix-hit".to_owned(), 1500),
            ("least-loaded".to_owned(), 500),
        ]),
        decision_log_hash: Some(DecisionLogHash(0xabc)),
        wall_s: 0.75,
    }
}

/// A live run of which the engines told nothing.
fn unmeasured(policy: &str) -> RunResult {
    let nothing = Summary::default();
    RunResult {
        mode: Mode::Live,
        completed: 1988,
        failed: 12,
        completed_rps: None,
        goodput_rps: None,
        tpot_ms: nothing,
        cache: CacheResult { prompt_tokens: 1_000_000, ..CacheResult::default() },
        load: LoadResult::default(),
        preemptions: None,
        decision_log_hash: None,
        ..run(policy, 4, 1, 80.0)
    }
}

#[test]
fn one_row_for_each_run() {
    let runs = [
        run("round-robin", 4, 1, 1234.5),
        run("round-robin", 16, 1, 80.0),
        run("prefix-affinity", 4, 1, 99.96),
    ];
    insta::assert_snapshot!(text_table(&runs));
}

#[test]
fn seeds_and_failures_get_a_column_when_they_matter() {
    let runs = [run("jsq", 4, 1, 80.0), run("jsq", 4, 2, 81.0), unmeasured("p2c")];
    insta::assert_snapshot!(text_table(&runs));
}

#[test]
fn a_table_of_nothing_is_empty() {
    assert_eq!(text_table(&[]), "");
}

#[test]
fn numbers_lose_digits_rather_than_grow() {
    let cells = [0.0, 12.34, 99_999.4, 100_000.4, 1e12].map(|value| fixed(Some(value), 1));
    assert_eq!(cells, ["0.0", "12.3", "99999.4", "100000", "1.0e12"]);
    assert_eq!((fixed(None, 1), percent(Some(0.4567))), ("-".to_owned(), "45.7".to_owned()));
}

#[test]
fn a_long_policy_name_gives_way() {
    let mut long = run("a-policy-with-a-very-long-name-of-its-own-and-more-to-say", 4, 1, 80.0);
    long.failed = 3;
    let table = text_table(&[long, run("jsq", 4, 2, 99_999.0)]);
    assert!(table.lines().all(|line| line.chars().count() <= LAYOUT.width), "{table}");
    assert!(table.contains("a-policy-with"), "{table}");
    assert!(table.contains('…'), "{table}");
}

#[test]
fn csv_of_two_runs() {
    let mut out = Vec::new();
    write_csv(&[run("jsq", 4, 1, 80.0), unmeasured("p2c")], &mut out).unwrap();
    insta::assert_snapshot!(String::from_utf8(out).unwrap());
}

#[test]
fn csv_of_nothing_is_its_header() {
    let mut out = Vec::new();
    write_csv(&[], &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), CSV_COLUMNS.join(",") + "\n");
}

/// The scalars of a JSON value under their CSV names.
fn flattened(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !["policy_config", "reasons"].contains(&prefix) => {
            for (name, field) in fields {
                let joined =
                    if prefix.is_empty() { name.clone() } else { format!("{prefix}_{name}") };
                flattened(&joined, field, into);
            }
        }
        Value::Array(_) if prefix == "per_instance" => {}
        leaf => {
            into.insert(prefix.to_owned(), leaf.clone());
        }
    }
}

#[test]
fn every_field_of_the_json_has_its_column() {
    for run in [run("jsq", 4, 1, 80.1), unmeasured("p2c")] {
        let mut expected = BTreeMap::new();
        flattened("", &serde_json::to_value(&run).unwrap(), &mut expected);
        let record = csv_record(&run).unwrap();
        assert_eq!(record.len(), CSV_COLUMNS.len());
        assert_eq!(expected.len(), CSV_COLUMNS.len());
        for (name, field) in CSV_COLUMNS.iter().zip(record) {
            match &expected[*name] {
                Value::Null => assert_eq!(field, "", "{name}"),
                Value::String(text) => assert_eq!(field, *text, "{name}"),
                Value::Number(n) => {
                    assert_eq!(field.parse().ok(), n.as_f64(), "{name}");
                }
                json => assert_eq!(field, json.to_string(), "{name}"),
            }
        }
    }
}

proptest! {
    #[test]
    fn the_table_fits_its_width(
        policy in "[a-z-]{1,80}",
        instances in 1..10_000_u32,
        seed in 1..1_000_000_u64,
        ttft_ms in 0.0..1e9,
        tpot_ms in 0.0..1e6,
        failed in 0..1_000_000_u64,
        rps in 0.0..1e6,
    ) {
        let mut wide = run(&policy, instances, seed, ttft_ms);
        wide.tpot_ms = summary(tpot_ms);
        wide.failed = failed;
        wide.completed_rps = Some(rps);
        wide.goodput_rps = Some(rps);
        let table = text_table(&[wide, run("jsq", 1, 0, 1.0)]);
        prop_assert!(table.lines().all(|line| line.chars().count() <= LAYOUT.width), "{}", table);
    }
}
