//! `trace stats`, `policies`, `profiles`, `completions`.

use crate::{json, mooncake, stdout};

#[test]
fn trace_stats_reproduces_the_published_figures_of_mooncake() {
    let trace = mooncake();
    let stats = json(&[
        "trace",
        "stats",
        trace.to_str().unwrap(),
        "--trace-format",
        "mooncake",
        "--format",
        "json",
    ]);
    assert_eq!(stats["requests"], 12_031);
    assert_eq!(stats["duration_s"].as_f64().unwrap().round(), 3_537.0);
    let input = &stats["input_tokens"];
    assert_eq!(input["mean"].as_f64().unwrap().round(), 12_035.0);
    assert_eq!(input["p50"].as_f64().unwrap(), 6_909.0);
    assert!((input["p95"].as_f64().unwrap() - 39_551.0).abs() <= 1.0);
    assert_eq!(input["max"], 126_195.0);
    let near = |rate: &serde_json::Value, percent: f64| {
        let rate = 100.0 * rate.as_f64().unwrap();
        assert!((rate - percent).abs() < 0.3, "{rate} is not {percent}");
    };
    near(&stats["hit_rate_infinite_cache"], 37.3);
    let points = stats["pooled_lru"].as_array().unwrap();
    let expected = [(1, 5.4), (2, 8.6), (4, 17.8), (8, 26.6), (16, 33.6), (32, 36.6)];
    assert_eq!(points.len(), expected.len());
    for (point, (millions, percent)) in points.iter().zip(expected) {
        assert_eq!(point["capacity_tokens"], millions * 1_000_000);
        near(&point["hit_rate"], percent);
    }
}

#[test]
fn lists_name_everything_in_every_form() {
    let policies = ["round-robin", "jsq", "load-cache", "threshold", "llm-d-sticky", "chwbl"];
    for format in ["table", "csv", "json"] {
        let listed = stdout(&["policies", "--format", format]);
        assert!(policies.iter().all(|name| listed.contains(name)), "{listed}");
        let listed = stdout(&["profiles", "--format", format]);
        assert!(listed.contains("h100-llama3.1-8b") && listed.contains("cpu-tiny"), "{listed}");
    }
    let sources = stdout(&["profiles", "rtx4090-llama3.1-8b"]);
    assert!(sources.contains("step.linear_floor_s") && sources.contains("measured"), "{sources}");
    assert!(stdout(&["completions", "bash"]).contains("kvroute"));
}
