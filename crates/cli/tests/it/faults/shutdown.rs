//! Signals: the gateway drains, the demo stops.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{mixed, mocks};
use crate::client::{Load, Outcome, tally};
use crate::process::{Gateway, PATIENCE, Running, eventually};

#[test]
fn sigterm_under_load_loses_no_request() {
    let mocks = mocks::<2>();
    for signal in ["TERM", "INT"] {
        let mut gateway = Gateway::start(&[&mocks[0], &mocks[1]], "");
        let load = Load::start(&gateway.addr, 16, mixed);
        eventually("under load", || load.count() > 100);
        gateway.process.signal(signal);
        // Every client goes on until it is refused.
        let done = load.wait();
        assert_eq!(gateway.process.wait(), Some(0));
        let tally = tally(&done);
        let clean = [Outcome::Complete, Outcome::Refused, Outcome::Stale];
        assert!(tally.keys().all(|how| clean.contains(how)), "{tally:?}");
        assert_eq!(tally[&Outcome::Refused], 16, "{tally:?}");
        assert!(TcpStream::connect(&gateway.addr).is_err(), "the listener is gone");
        for mock in &mocks {
            eventually("the engine is idle", || mock.state()["running"] == 0);
        }
    }
}

#[test]
fn a_demo_that_is_interrupted_stops_at_once_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let mut demo = Running::start(&["demo", "--out", out.to_str().unwrap()]);
    // Its first line comes when instances and gateway have run once; then they are in the middle of it.
    let mut stderr = BufReader::new(demo.0.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("HTTP and timers"), "{line}");
    let begun = Instant::now();
    while listening(demo.pid()).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "it never listens");
        sleep(Duration::from_millis(5));
    }
    let ports = listening(demo.pid());
    let interrupted = Instant::now();
    demo.signal("INT");
    assert_eq!(demo.wait(), Some(1));
    assert!(interrupted.elapsed() < Duration::from_secs(5), "{:?}", interrupted.elapsed());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut rest).unwrap();
    assert!(rest.contains("stopped; nothing was written"), "{rest}");
    for port in ports {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "port {port} still listens");
    }
    let left: Vec<_> = walk(&out);
    assert!(left.is_empty(), "it left {left:?}");
}

/// Ports on which this process listens.
fn listening(pid: u32) -> Vec<u16> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().filter_map(Result::ok);
    let sockets: Vec<String> = fds
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_ours = fields[3] == "0A" && sockets.iter().any(|inode| inode == fields[9]);
        is_ours.then(|| u16::from_str_radix(fields[1].split(':').nth(1)?, 16).ok()).flatten()
    };
    table.lines().skip(1).filter_map(port).collect()
}

/// All files below a directory.
fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .flat_map(
            |entry| if entry.path().is_dir() { walk(&entry.path()) } else { vec![entry.path()] },
        )
        .collect()
}
