//! The other processes: how they start and end, and what the kernel says of them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{AnyError, Result};

/// A process that ends when this is dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) addrs: Vec<SocketAddr>,
    /// Files of its own, deleted at its end.
    pub(crate) dir: Option<PathBuf>,
}

impl Process {
    /// Starts this program again in the role of another, and waits until it listens.
    pub(crate) fn start(role: &str, argument: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([role, argument])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("no pipe")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let addrs = line.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>();
        Ok(Self { child, addrs: addrs?, dir: None })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of the process and its children so far, all threads.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut total_ns = 0;
        for id in with_children(self.id())? {
            for task in std::fs::read_dir(format!("/proc/{id}/task"))? {
                // A thread may end meanwhile.
                let Ok(stat) = std::fs::read_to_string(task?.path().join("schedstat")) else {
                    continue;
                };
                total_ns += stat.split(' ').next().ok_or("empty schedstat")?.parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(total_ns))
    }

    /// Resident memory of the process, MB (10^6 bytes).
    pub(crate) fn resident_mb(&self) -> Result<f64> {
        resident_mb(self.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // nginx stops its workers when it is told to by a signal that lets it; our own roles end with their input.
        drop(self.child.stdin.take());
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let id = self.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &id]).status();
        }
        let _ = self.child.wait();
        if let Some(dir) = &self.dir {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// Resident memory of a process, MB (10^6 bytes).
pub(crate) fn resident_mb(id: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1_024.0 / 1e6)
}

fn with_children(id: u32) -> Result<Vec<u32>> {
    let mut ids = vec![id];
    for entry in std::fs::read_dir("/proc")? {
        let Ok(other) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{other}/stat")) else { continue };
        // After the name, which may hold anything: state, then the parent.
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        if parent.and_then(|parent| parent.parse().ok()) == Some(id) {
            ids.push(other);
        }
    }
    Ok(ids)
}

/// Tells the process that started this one where to connect.
pub(crate) fn ready(addrs: &[SocketAddr]) -> Result<()> {
    let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", addrs.join(" "))?;
    out.flush().map_err(AnyError::from)
}

/// Returns when the process that started this one closes its end, or is gone.
pub(crate) fn wait_for_parent() {
    let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
}
