//! A small HTTP client that sees the bytes, and short ways to start clusters.

use std::net::SocketAddr;

use kvroute_engine::EngineConfig;
use kvroute_mock_server::{MockCluster, MockConfig};
use kvroute_profile::LatencyProfile;
use kvroute_types::BlockSize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The configuration of the recorded server, 1000 times as fast.
pub(crate) fn config() -> MockConfig {
    let config = MockConfig::new(LatencyProfile::builtin("cpu-tiny").unwrap());
    MockConfig { models: vec!["tiny".to_owned()], time_scale: 1_000.0, ..config }
}

/// The same with another block size.
pub(crate) fn config_with_blocks(block_size: u32) -> MockConfig {
    let config = config();
    let block_size = BlockSize::new(block_size).unwrap();
    let engine = EngineConfig { block_size, kv_blocks: 4_096, ..config.engine.clone() };
    MockConfig { engine, ..config }
}

pub(crate) async fn start(config: MockConfig) -> MockCluster {
    MockCluster::start(config).await.unwrap()
}

/// An answer, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    /// Without chunk framing.
    pub(crate) body: String,
    /// Whether it ended as HTTP says it should.
    pub(crate) is_complete: bool,
}

impl Answer {
    pub(crate) fn parse(raw: &str) -> Self {
        let (head, body) = raw.split_once("\r\n\r\n").unwrap_or_else(|| {
            // Recorded files have plain line feeds.
            raw.split_once("\n\n").unwrap_or((raw, ""))
        });
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or("0");
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let mut answer = Self {
            status: status.parse().unwrap(),
            headers,
            body: body.to_owned(),
            is_complete: true,
        };
        if answer.header("transfer-encoding") == Some("chunked") {
            // No chunk of the API holds a line that is a chunk's length, so events need no counting.
            answer.is_complete = body.lines().map(str::trim).any(|line| line == "0");
            let events = body.lines().map(str::trim_end).filter(|line| line.starts_with("data: "));
            answer.body = events
                .flat_map(|event| {
                    [
                        event, "

",
                    ]
                })
                .collect();
        } else if let Some(length) = answer.header("content-length") {
            answer.is_complete = length.parse::<usize>().unwrap() == body.len();
        }
        answer
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Data of the events of a stream.
    pub(crate) fn events(&self) -> Vec<&str> {
        self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
    }

    pub(crate) fn json_events(&self) -> Vec<Value> {
        let events = self.events();
        assert_eq!(events.last(), Some(&"[DONE]"), "{}", self.body);
        events[..events.len() - 1]
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect()
    }
}

/// Sends a request whole; the connection is left open.
pub(crate) async fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: mock\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    request.extend(["Content-Length: ", &body.len().to_string(), "\r\n\r\n", body]);
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut stream = open(address, method, path, headers, body).await;
    let mut raw = Vec::new();
    let read = stream.read_to_end(&mut raw).await;
    if raw.is_empty() {
        // Cut before the headers.
        return Answer { status: 0, headers: vec![], body: String::new(), is_complete: false };
    }
    let mut answer = Answer::parse(&String::from_utf8(raw).unwrap());
    answer.is_complete &= read.is_ok();
    answer
}

pub(crate) const JSON: (&str, &str) = ("Content-Type", "application/json");

pub(crate) async fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    send(address, "POST", path, &[JSON], &body.to_string()).await
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, "GET", path, &[], "").await
}

/// Value of the one series of the metrics page that begins so.
pub(crate) async fn metric(address: SocketAddr, series: &str) -> f64 {
    let page = get(address, "/metrics").await.body;
    let name_and_labels =
        |line: &&str| line.strip_prefix("vllm:").is_some_and(|line| line.starts_with(series));
    let line = page.lines().find(name_and_labels).unwrap_or_else(|| panic!("no {series}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits until `holds` does, yielding; the engine runs on another task.
pub(crate) async fn until<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    for _ in 0..2_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("it never came true");
}
