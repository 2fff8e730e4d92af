//! Bad input: one clear message that names the remedy, exit status 2, and nothing on standard output.

use std::fs;
use std::path::Path;

use crate::{kvroute, mooncake};

/// A trace in a scratch directory and what `simulate` says of it.
fn complaint_about(file: &str, content: &[u8], flags: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(file);
    fs::write(&path, content).unwrap();
    let mut args =
        vec!["simulate", "--trace-format", "mooncake", "--trace", path.to_str().unwrap()];
    args.extend(flags);
    let complaint = complaint(&args);
    assert!(
        complaint.contains(file) || !complaint.contains("trace"),
        "names the file: {complaint}"
    );
    complaint
}

/// What a command that cannot work says.
pub(crate) fn complaint(args: &[&str]) -> String {
    let output = kvroute(args);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {complaint}");
    assert!(output.stdout.is_empty(), "{args:?} printed a result");
    complaint
}

#[track_caller]
pub(crate) fn says(complaint: &str, parts: &[&str]) {
    for part in parts {
        assert!(complaint.contains(part), "`{part}` is missing from: {complaint}");
    }
}

const LINE: &str =
    r#"{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}"#;

#[test]
fn a_malformed_line_is_named() {
    let trace = format!("{LINE}\n{LINE}\n{{\"timestamp\": 7,\n");
    says(&complaint_about("t.jsonl", trace.as_bytes(), &[]), &["t.jsonl", "line 3", "mooncake"]);
}

#[test]
fn unsorted_times_are_named() {
    let trace = format!("{}\n{LINE}\n", LINE.replacen('0', "9000", 1));
    says(&complaint_about("t.jsonl", trace.as_bytes(), &[]), &["line 2", "9 s", "sort the trace"]);
}

#[test]
fn a_wrong_number_of_block_ids_is_named() {
    let trace = LINE.replace("[0, 1]", "[0]");
    says(&complaint_about("t.jsonl", trace.as_bytes(), &[]), &["line 1", "600 tokens", "512"]);
}

#[test]
fn an_empty_trace_is_no_trace() {
    says(&complaint_about("t.jsonl", b"", &[]), &["no requests"]);
}

#[test]
fn a_truncated_archive_is_no_shorter_trace() {
    let whole = fs::read(mooncake()).unwrap();
    says(&complaint_about("t.zst", &whole[..whole.len() / 2], &[]), &["cut off"]);
}

#[test]
fn a_missing_file_is_named() {
    let missing = Path::new("no-such-trace.jsonl");
    let args = ["simulate", "--trace-format", "mooncake", "--trace", missing.to_str().unwrap()];
    says(&complaint(&args), &["no-such-trace.jsonl", "No such file"]);
}

#[test]
fn a_request_that_can_never_fit_is_named() {
    let complaint = complaint_about("t.jsonl", LINE.as_bytes(), &["--kv-blocks", "20"]);
    says(&complaint, &["request 0", "600 tokens", "304", "raise max_model_len"]);
    let settings =
        ["simulate", "--workload", "chat", "--kv-blocks", "20", "--max-model-len", "4096"];
    says(&self::complaint(&settings), &["257", "raise kv_blocks", "lower max_model_len to 304"]);
}

#[test]
fn unknown_names_list_the_known_ones() {
    let chat = |flag, value| complaint(&["simulate", "--workload", "chat", flag, value]);
    says(&chat("--policy", "jqs"), &["jqs", "round-robin", "jsq", "load-cache"]);
    says(&chat("--policy", "load-cache:gamma=1"), &["gamma", "alpha", "beta"]);
    says(&chat("--policy", "load-cache:alpha=-1"), &["alpha", "-1"]);
    says(&chat("--profile", "h200"), &["h200", "h100-llama3.1-8b", "cpu-tiny"]);
    says(
        &complaint(&["simulate", "--workload", "talk"]),
        &["talk", "chat", "rag", "mixed", "uniform"],
    );
    let format = ["simulate", "--trace", "x", "--trace-format", "moonshot"];
    says(&complaint(&format), &["moonshot", "mooncake", "bailian"]);
}

/// A gateway cannot know the engines' true state, nor can what replays its log.
#[test]
fn the_oracle_is_for_simulations_only() {
    let remedy = ["oracle", "only a simulation knows", "kvroute simulate", "another policy"];
    says(&complaint(&["serve", "--instance", "http://127.0.0.1:1", "--policy", "oracle"]), &remedy);
    says(&complaint(&["replay", "no-such-log.jsonl", "--policy", "jsq", "oracle"]), &remedy);
}

#[test]
fn unknown_fields_of_a_specification_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.toml");
    fs::write(&path, "kind = \"chat\"\nrequest_rate = 3\n").unwrap();
    let complaint = complaint(&["simulate", "--workload", path.to_str().unwrap()]);
    says(&complaint, &["w.toml", "request_rate", "requests_per_s"]);
}

#[test]
fn numbers_out_of_range_are_named() {
    let chat = |flags: &[&str]| complaint(&[&["simulate", "--workload", "chat"], flags].concat());
    says(&chat(&["--instances", "0"]), &["--instances", "0"]);
    says(&chat(&["--index-loss", "2"]), &["loss is 2", "0.0 to 1.0"]);
    says(&chat(&["--load-refresh", "often"]), &["often", "never"]);
    says(&chat(&["--rate", "-1"]), &["-1", "above 0"]);
    says(&chat(&["--slo-ttft-ms", "0"]), &["SLO", "positive"]);
    says(&chat(&["--policy", "jsq", "jsq"]), &["jsq", "twice"]);
    says(&complaint(&["simulate"]), &["--workload", "--trace"]);
    says(&complaint(&["trace", "stats", "x"]), &["--trace-format"]);
}
