//! Processes of the binary under test. Each is stopped when the test ends, however it ends.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until it is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// A running `kvroute`.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("kvroute"));
        command.args(args).env("KVROUTE_LOG", "off").stdin(Stdio::null());
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Mock instances on free ports, and their URLs.
    pub(crate) fn mock(flags: &[&str]) -> (Self, Vec<String>) {
        let mut mock = Self::start(&[&["mock", "--port", "0"], flags].concat());
        let count = flags.iter().position(|flag| *flag == "--instances");
        let count = count.map_or(1, |at| flags[at + 1].parse().unwrap());
        let lines = BufReader::new(mock.0.stdout.take().unwrap()).lines();
        let urls = lines.take(count).map(Result::unwrap).collect();
        (mock, urls)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(sent.success(), "signal {name} to {pid}");
    }

    /// Its exit status, once it has ended by itself; `None` if a signal ended it.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < PATIENCE, "process {} does not end", self.pid());
            sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to stop, as a service manager does, and returns its exit status.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        self.signal("TERM");
        self.wait()
    }
}

/// One instance in a process of its own, on a port that it keeps over its deaths.
pub(crate) struct Mock {
    port: u16,
    args: Vec<String>,
    process: Option<Running>,
}

impl Mock {
    /// An instance that has been started. `args` are further arguments of `kvroute mock`.
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut mock = Self::down(args);
        mock.restart();
        mock
    }

    /// An instance that has a port, but has not been started.
    pub(crate) fn down(args: &[&str]) -> Self {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        Self { port: free_port(), args, process: None }
    }

    /// Starts it, and returns when it listens.
    pub(crate) fn restart(&mut self) {
        let port = self.port.to_string();
        let mut args = vec!["mock", "--instances", "1", "--port", &port];
        args.extend(self.args.iter().map(String::as_str));
        let mut process = Running::start(&args);
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        // Its event endpoints follow, if it has any.
        assert_eq!(line.split_whitespace().next(), Some(&*self.url()), "it listens");
        self.process = Some(process);
    }

    /// `HOST:PORT`, its name in the gateway.
    pub(crate) fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.name())
    }

    fn process(&self) -> &Running {
        self.process.as_ref().expect("it was started")
    }

    /// Ends it at once: SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) fn freeze(&self) {
        self.process().signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.process().signal("CONT");
    }

    /// Makes it misbehave from the next request on; `{}` for no more.
    pub(crate) fn set_faults(&self, faults: &str) {
        let (status, answer) = call(&self.name(), "POST", "/mock/faults", faults);
        assert_eq!(status, 200, "{answer}");
    }

    /// What `GET /mock/state` tells.
    pub(crate) fn state(&self) -> serde_json::Value {
        serde_json::from_str(&call(&self.name(), "GET", "/mock/state", "").1).unwrap()
    }
}

/// A port that is free, below those that the system gives to outgoing connections: those of a test under load would
/// take the place of an instance that is down.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 20_000).unwrap();
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The gateway as a process.
pub(crate) struct Gateway {
    pub(crate) addr: String,
    pub(crate) admin: String,
    pub(crate) process: Running,
    _stderr: BufReader<ChildStderr>,
    _config: tempfile::TempDir,
}

impl Gateway {
    /// Starts it before these instances, with `settings` (TOML tables) over the defaults, and waits until it can serve.
    pub(crate) fn start(instances: &[&Mock], settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.toml");
        let mut config = String::from("listen = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n");
        config.push_str(settings);
        for instance in instances {
            let _ = writeln!(config, "\n[[instances]]\nurl = \"{}\"", instance.url());
        }
        std::fs::write(&path, config).unwrap();
        let mut process = Running::start(&["serve", "--config", path.to_str().unwrap()]);
        let mut stderr = BufReader::new(process.0.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let mut addrs = line
            .split("http://")
            .skip(1)
            .map(|rest| rest.split([',', '\n']).next().unwrap().trim().to_owned());
        let (Some(addr), Some(admin)) = (addrs.next(), addrs.next()) else {
            panic!("no addresses in {line:?}");
        };
        let gateway = Self { addr, admin, process, _stderr: stderr, _config: dir };
        eventually("ready", || call(&gateway.addr, "GET", "/ready", "").0 == 200);
        gateway
    }

    /// The figures of that name on `/metrics` whose labels contain all of `labels`, added up.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, page) = call(&self.admin, "GET", "/metrics", "");
        let is_it = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        };
        let value = |line: &str| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        page.lines().filter(is_it).map(value).sum()
    }

    /// Times that this instance was ejected, for whatever cause.
    pub(crate) fn ejections(&self, instance: &Mock) -> f64 {
        self.metric("kvroute_ejections_total", &[&instance.name()])
    }

    /// What the admin API tells of this instance.
    pub(crate) fn instance(&self, instance: &Mock) -> serde_json::Value {
        let (_, list) = call(&self.admin, "GET", "/instances", "");
        let list: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
        list.into_iter().find(|it| it["name"] == instance.name().as_str()).expect("it is listed")
    }

    pub(crate) fn is_up(&self, instance: &Mock) -> bool {
        self.instance(instance)["up"] == true
    }

    /// Waits until its gauges of requests under way are zero.
    pub(crate) fn comes_to_rest(&self) {
        for gauge in ["kvroute_in_flight", "kvroute_queued"] {
            eventually(gauge, || self.metric(gauge, &[]) == 0.0);
        }
    }
}

/// One request on a connection of its own: status and body.
pub(crate) fn call(addr: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let raw = format!(
        "{method} {path} HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = exchange(addr, raw.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Sends bytes and reads until the other side closes.
pub(crate) fn exchange(addr: &str, raw: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(raw).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
