//! What made a result: version, commit, command, configuration, machine.

use std::io;
use std::time::SystemTime;

use kvroute_lab::{InputFile, Machine, Manifest};
use serde::Serialize;

/// The manifest of a run that began at `started`.
pub(crate) fn manifest(
    started: SystemTime,
    config: &impl Serialize,
    seeds: Vec<u64>,
    inputs: Vec<InputFile>,
) -> io::Result<Manifest> {
    let cpus = std::thread::available_parallelism().ok();
    Ok(Manifest {
        kvroute_version: env!("CARGO_PKG_VERSION").to_owned(),
        git_commit: option_env!("KVROUTE_GIT_COMMIT").map(str::to_owned),
        command: std::env::args().collect(),
        config: serde_json::to_value(config)?,
        seeds,
        machine: Machine {
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cpus: cpus.and_then(|cpus| u32::try_from(cpus.get()).ok()),
        },
        inputs,
        started_at: Some(humantime::format_rfc3339_seconds(started).to_string()),
    })
}
