//! `experiment`: files, run directories, resuming, reports.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{kvroute, stdout};

fn experiments() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments")
}

const SMALL: &str = r#"
title = "Two policies"
question = "Is it written?"
policies = ["round-robin", "load-cache"]
seeds = 2
requests = 120
load = { requests_per_s = [6.0, 12.0] }
cluster = { profile = "a100-llama3.1-8b", load_refresh = "100ms" }
keep = { requests = true, samples_every = "1s", distributions = true }
[[workloads]]
name = "chat"
spec = "chat"
set = { "think_time_s.mean" = 2 }
"#;

/// An experiment file in a directory of its own.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("small.toml");
    fs::write(&path, text).unwrap();
    (directory, path.display().to_string())
}

fn run(file: &str, out: &str, more: &[&str]) -> String {
    stdout(&[&["experiment", "run", file, "--out", out], more].concat())
}

/// The results without what the clock and the command line say.
fn results(directory: &Path) -> Value {
    let text = fs::read_to_string(directory.join("results.json")).unwrap();
    let mut found: Value = serde_json::from_str(&text).unwrap();
    for key in ["started_at", "command"] {
        found["manifest"].as_object_mut().unwrap().remove(key);
    }
    for run in found["runs"].as_array_mut().unwrap() {
        assert!(run["result"]["wall_s"].as_f64().unwrap() >= 0.0);
        run["result"].as_object_mut().unwrap().remove("wall_s");
    }
    found
}

fn complaint(args: &[&str]) -> String {
    let output = kvroute(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn every_committed_experiment_can_be_run() {
    let mut seen = 0;
    for entry in fs::read_dir(experiments()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        seen += 1;
        let path = path.display().to_string();
        for quick in [&[][..], &["--quick"]] {
            let args = [&["experiment", "run", path.as_str(), "--dry-run"], quick].concat();
            assert!(stdout(&args).contains("runs: workloads"), "{path}");
        }
    }
    assert_eq!(seen, 20, "exp0 to exp9, three crossovers, seven of the arena");
}

#[test]
fn the_committed_schema_is_the_present_one() {
    let committed = fs::read_to_string(experiments().join("schema.json")).unwrap();
    let present = stdout(&["experiment", "schema"]);
    assert_eq!(
        committed, present,
        "write it again: kvroute experiment schema > experiments/schema.json"
    );
}

#[test]
fn a_run_directory_has_all_that_its_reader_needs() {
    let (directory, file) = file(SMALL);
    let out = directory.path().join("out");
    let printed = run(&file, &out.display().to_string(), &[]);
    assert!(printed.contains("report: "), "{printed}");
    let found = results(&out);
    assert_eq!(found["runs"].as_array().unwrap().len(), 2 * 2 * 2);
    assert_eq!(found["about"]["name"], "small");
    assert_eq!(found["manifest"]["config"]["experiment"]["requests"], 120);
    for path in
        ["manifest.json", "report.html", "tables/cells.md", "tables/cells.csv", "tables/cells.tex"]
    {
        assert!(fs::metadata(out.join(path)).unwrap().len() > 100, "{path}");
    }
    let count = |folder: &str, extension: &str| {
        let entries = fs::read_dir(out.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|found| found == extension)).count()
    };
    let figures = count("figures", "svg");
    assert!(figures > 3, "{figures}");
    assert_eq!([count("figures", "png"), count("figures", "csv")], [figures; 2]);
    assert_eq!([count("requests.parquet", "parquet"), count("samples.parquet", "parquet")], [8; 2]);
    let html = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(!html.contains("http://") || !html.contains("src=\"http"), "it needs no network");
}

#[test]
fn the_same_file_gives_the_same_results_and_is_not_run_twice() {
    let (directory, file) = file(SMALL);
    let [one, two] = ["one", "two"].map(|name| directory.path().join(name));
    run(&file, &one.display().to_string(), &["--threads", "1"]);
    run(&file, &two.display().to_string(), &["--threads", "2"]);
    assert_eq!(results(&one), results(&two));

    let lines = fs::read(one.join("runs.jsonl")).unwrap();
    run(&file, &one.display().to_string(), &[]);
    assert_eq!(fs::read(one.join("runs.jsonl")).unwrap(), lines, "nothing was run again");
    fs::remove_dir_all(&one).unwrap();
    run(&file, &one.display().to_string(), &[]);
    assert_eq!(results(&one), results(&two));
}

#[test]
fn parts_are_merged() {
    let (directory, file) = file(SMALL);
    let path = |name: &str| directory.path().join(name).display().to_string();
    let printed = run(&file, &path("a"), &["--shard", "1/2"]);
    assert!(printed.contains("kvroute experiment merge"), "{printed}");
    let merge = |parts: &[&str]| {
        let args = ["experiment", "merge", file.as_str()];
        let out = path("merged");
        kvroute(&[&args, parts, &["--out", out.as_str()]].concat())
    };
    let (a, b) = (path("a"), path("b"));
    let early = merge(&[&a]);
    assert_eq!(early.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&early.stderr).contains("run the missing parts"));
    run(&file, &b, &["--shard", "2/2"]);
    assert!(merge(&[&a, &b]).status.success());
    run(&file, &path("whole"), &[]);
    assert_eq!(results(Path::new(&path("merged"))), results(Path::new(&path("whole"))));
}

#[test]
fn two_runs_are_compared() {
    let (directory, file) = file(SMALL);
    let path = |name: &str| directory.path().join(name).display().to_string();
    run(&file, &path("a"), &[]);
    run(&file, &path("b"), &["--set", "cluster.kv_blocks=3000"]);
    let html = path("compare.html");
    let printed = stdout(&["experiment", "compare", &path("a"), &path("b"), "--html", &html]);
    assert!(printed.contains("compare.html"), "{printed}");
    assert!(fs::metadata(&html).unwrap().len() > 1_000);
}

#[test]
fn a_mistake_is_named_before_anything_runs() {
    let (directory, file) = file(SMALL);
    let out = directory.path().join("out").display().to_string();
    let run = ["experiment", "run", file.as_str(), "--out", out.as_str()];
    let with = |more: &[&str]| complaint(&[&run[..], more].concat());
    let error = with(&["--set", "seed=3"]);
    assert!(error.contains("unknown field `seed`") && error.contains("`seeds`"), "{error}");
    assert!(with(&["--only", "policy=jsq"]).contains("--only leaves nothing to run"));
    assert!(with(&["--shard", "3/2"]).contains("K/N"));
    assert!(!Path::new(&out).exists(), "nothing was made");

    run_ok(&run);
    let error = with(&["--set", "seeds=3"]);
    assert!(error.contains("with other settings") && error.contains("--out"), "{error}");
    let error = complaint(&["experiment", "report", directory.path().to_str().unwrap()]);
    assert!(error.contains("is this a finished run directory?"), "{error}");
}

fn run_ok(args: &[&str]) {
    stdout(args);
}
