//! `calibrate` and `validate --live` against mock instances. How well a profile is recovered is tested without a clock, in
//! `kvroute-profile`; here the machine may be as slow as it likes.

use std::fs;
use std::path::Path;

use crate::bad_input::{complaint, says};
use crate::process::Running;
use crate::{json, kvroute};

#[test]
fn a_profile_comes_out_that_says_where_it_is_from() {
    let (_mock, urls) = Running::mock(&["--profile", "cpu-tiny"]);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (profile, figure, measured) = (path("p.toml"), path("p.svg"), path("m.jsonl"));
    let common = ["calibrate", "--instance", &urls[0], "--out", &profile];
    says(&complaint(&common), &["--max-num-seqs, --max-num-batched-tokens", "does not tell"]);
    let sizes = ["--max-num-seqs", "4", "--max-num-batched-tokens", "256"];
    let output = kvroute(&[&common[..], &sizes, &["--quick", "--figure", &figure]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("cold first token") && table.contains("decode step"), "{table}");

    let text = fs::read_to_string(&profile).unwrap();
    for part in [
        "name = \"p\"",
        "block_size = 32",
        "kv_blocks = 512",
        "max_model_len = 8192",
        "max_num_seqs = 4",
        "max_num_batched_tokens = 256",
        "vLLM 0.32.0 with model mock at http://127.0.0.1:",
        "gave: max_num_seqs, max_num_batched_tokens",
        "in the median",
    ] {
        assert!(text.contains(part), "`{part}` is missing from {text}");
    }
    assert!(fs::read_to_string(&figure).unwrap().contains("First token by prompt length"));

    // What it is for: a live run beside its simulation.
    let workload = ["--workload", "uniform", "--requests", "5", "--rate", "20"];
    let live =
        ["validate", "--profile", &profile, "--live", &urls[0], "--save-measured", &measured];
    let cheap = ["--format", "json", "--seed", "3"];
    let report = json(&[&live[..], &workload, &cheap].concat());
    assert_eq!(report["manifest"]["config"]["requests_compared"], 5);
    let ttft = report["ttft_ms"]["mean"]["measured"].as_f64().unwrap();
    // And again from what it wrote.
    let again = ["validate", "--profile", &profile, "--measured", &measured];
    let again = json(&[&again[..], &workload, &cheap].concat());
    assert!((again["ttft_ms"]["mean"]["measured"].as_f64().unwrap() - ttft).abs() < 1e-6);
    assert_eq!(again["tpot_ms"], report["tpot_ms"]);
}

#[test]
fn several_live_instances_go_through_a_gateway() {
    let (_mock, urls) = Running::mock(&["--profile", "cpu-tiny", "--instances", "2"]);
    let live = ["validate", "--profile", "cpu-tiny", "--live", &urls[0], &urls[1]];
    let workload = ["--workload", "uniform", "--requests", "6", "--rate", "20"];
    let report = json(&[&live[..], &workload, &["--policy", "jsq", "--format", "json"]].concat());
    assert_eq!(report["manifest"]["config"]["cluster"]["instances"], 2);
    assert_eq!(report["manifest"]["config"]["requests_compared"], 6);
    let wrong = [&live[..], &workload, &["--instances", "3"]].concat();
    says(&complaint(&wrong), &["--instances 3", "2 live"]);
}

#[test]
fn kernel_times_make_a_profile() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = folder.join("../profile/data/rtx4090-llama3.1-8b");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("rtx.toml");
    let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
    let common = ["calibrate", "--from-layer-profile", data, "--out", out, "--layers", "32"];
    says(&complaint(&common), &["meta.json does not tell", "--kv-blocks"]);
    let sizes = [
        "--block-size",
        "16",
        "--kv-blocks",
        "2588",
        "--max-model-len",
        "32768",
        "--max-num-seqs",
        "256",
        "--max-num-batched-tokens",
        "2048",
    ];
    let output = kvroute(&[&common[..], &sizes].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The built-in profile is made of the same data.
    let text = fs::read_to_string(out).unwrap();
    assert!(text.contains("linear_floor_s = 0.0153547\n"), "{text}");
    assert!(text.contains("\noverhead_s = 0.000289"), "{text}");
    let nowhere = dir.path().join("nowhere");
    let nowhere = ["calibrate", "--from-layer-profile", nowhere.to_str().unwrap()];
    let nowhere = [&nowhere[..], &["--out", out, "--layers", "32"], &sizes].concat();
    says(&complaint(&nowhere), &["profile_dense.csv", "No such file"]);
}

#[test]
fn an_instance_that_is_not_there_is_named() {
    let args = ["calibrate", "--instance", "http://127.0.0.1:1", "--out", "never.toml"];
    says(&complaint(&args), &["http://127.0.0.1:1 does not answer /metrics"]);
}
