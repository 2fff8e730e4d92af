//! Tells the binary which commit it was built from, for run manifests.

use std::process::Command;

fn main() {
    let commit = Command::new("git").args(["rev-parse", "HEAD"]).output();
    if let Some(commit) = commit.ok().filter(|output| output.status.success()) {
        let commit = String::from_utf8_lossy(&commit.stdout);
        println!("cargo::rustc-env=KVROUTE_GIT_COMMIT={}", commit.trim());
    }
    println!("cargo::rerun-if-changed=../../.git/logs/HEAD");
}
