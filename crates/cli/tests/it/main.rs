//! The `kvroute` binary as its users run it.

#![expect(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test may panic, and its figures are exact"
)]

mod bad_input;
mod calibrate;
mod chaos;
mod client;
mod experiment;
mod faults;
mod inspect;
mod kv_events;
mod process;
mod replay;
mod serve;
mod simulate;
mod validate;

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

/// The committed production trace.
fn mooncake() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/traces/mooncake-conversation.jsonl.zst")
}

fn kvroute(args: &[&str]) -> Output {
    Command::cargo_bin("kvroute").unwrap().args(args).output().unwrap()
}

/// Runs a command that must succeed and returns what it printed.
fn stdout(args: &[&str]) -> String {
    let output = kvroute(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&stdout(args)).unwrap()
}
