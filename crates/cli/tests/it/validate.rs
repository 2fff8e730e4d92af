//! `validate`: a measured run reproduced, the contract of its JSON, and what it says of runs that do not fit.

use std::fs;
use std::path::{Path, PathBuf};

use crate::bad_input::{complaint, says};
use crate::{json, stdout};

fn rtx4090(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path: PathBuf = folder.join("../../data/measured/vllm-rtx4090-llama3.1-8b").join(file);
    path.to_str().unwrap().to_owned()
}

/// `validate` of the committed run, with more flags.
fn args<'a>(workload: &'a str, measured: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let common =
        ["validate", "--profile", "rtx4090-llama3.1-8b", "--workload", workload, "--measured"];
    [&common[..], &[measured], more].concat()
}

#[test]
fn the_measured_run_is_reproduced() {
    let dir = tempfile::tempdir().unwrap();
    let figure = dir.path().join("figures/fidelity.svg");
    let (workload, measured) = (rtx4090("workload.jsonl.zst"), rtx4090("requests.jsonl"));
    let sizes =
        ["--kv-blocks", "2588", "--max-num-seqs", "256", "--max-num-batched-tokens", "2048"];
    let out = ["--format", "json", "--figure", figure.to_str().unwrap()];
    let report = json(&args(&workload, &measured, &[&sizes[..], &out].concat()));
    let keys = |value: &serde_json::Value| {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys.join(" ")
    };
    assert_eq!(keys(&report), "e2e_ms hit_rate manifest tpot_ms ttft_ms");
    assert!(report["hit_rate"]["measured"].is_null(), "the stamps do not tell of the cache");
    assert!(report["hit_rate"]["simulated"].as_f64().is_some());
    assert_eq!(report["manifest"]["inputs"].as_array().unwrap().len(), 2);
    for latency in ["ttft_ms", "tpot_ms", "e2e_ms"] {
        assert_eq!(keys(&report[latency]), "mean p50 p95 p99");
        for figure in ["mean", "p50", "p95", "p99"] {
            let figure = &report[latency][figure];
            assert_eq!(keys(figure), "measured relative_error simulated");
            let of = |key: &str| figure[key].as_f64().unwrap();
            let error = of("simulated") / of("measured") - 1.0;
            assert!((error - of("relative_error")).abs() < 1e-12);
            // The one kept to in `docs/fidelity.md` is tighter; this is against a broken command.
            assert!(error.abs() < 0.03, "{latency} {figure}");
        }
    }
    let figure = fs::read_to_string(figure).unwrap();
    assert!(figure.starts_with("<svg") && figure.contains("measured"), "{figure}");
    let table = stdout(&args(&workload, &measured, &[]));
    let words: Vec<&str> = table.split_whitespace().collect();
    assert!(words.windows(3).any(|row| row == ["ttft_ms", "mean", "65486.34"]), "{table}");
}

#[test]
fn a_run_of_another_workload_is_refused() {
    let measured = rtx4090("requests.jsonl");
    let chat = args("chat", &measured, &["--requests", "100"]);
    says(&complaint(&chat), &["not in the workload", "100 requests", "--seed"]);
    let workload = rtx4090("workload.jsonl.zst");
    says(&complaint(&args(&workload, &workload, &[])), &["workload.jsonl.zst", "line 1"]);
    says(&complaint(&args("no-such.jsonl", &measured, &[])), &["no-such.jsonl", "No such file"]);
    says(&complaint(&["validate", "--workload", "chat"]), &["--measured", "--live"]);
}
