//! A scripted instance: raw sockets, so that every way of failing can be played.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvroute_gateway::InstanceConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// What the toy does with a generation request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Answers in one piece, after a while.
    Json(Duration),
    /// Streams so many events, with pauses between.
    Stream(usize, Duration),
    /// Streams so many events of 64 KiB.
    Flood(usize),
    /// Answers with this status.
    Status(u16),
    /// Closes the connection.
    Close,
    /// Says something that is no HTTP, and closes the connection.
    Garbage,
    /// Never says a word.
    Silent,
    /// Sends the head of a stream, and then nothing.
    HeadOnly,
    /// Streams so many events and half of one more, and resets the connection.
    Cut(usize),
    /// Streams so many events, and falls silent.
    Stall(usize),
    /// Tells that it is there, and streams one event and then the end, each when it is told to.
    Held { instance: u32, arrived: UnboundedSender<Held> },
}

/// A request that waits in an instance.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) instance: u32,
    pub(crate) go_on: UnboundedSender<()>,
}

pub(crate) struct Toy {
    pub(crate) addr: SocketAddr,
    pub(crate) state: Arc<State>,
    accepting: AbortHandle,
}

pub(crate) struct State {
    pub(crate) act: Mutex<Act>,
    pub(crate) is_healthy: Mutex<bool>,
    pub(crate) metrics: Mutex<String>,
    /// Generation requests received.
    pub(crate) received: AtomicUsize,
    /// Those whose client left before the answer was complete.
    pub(crate) cancelled: AtomicUsize,
    /// Those being answered.
    pub(crate) open: AtomicUsize,
    /// Head and body of the latest one.
    pub(crate) latest: Mutex<(String, Vec<u8>)>,
}

pub(crate) const METRICS: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 2\n\
    vllm:kv_cache_usage_perc 0.5\nvllm:prefix_cache_queries_total 10\nvllm:prefix_cache_hits_total 5\n";

impl Toy {
    pub(crate) async fn start(act: Act) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State {
            act: Mutex::new(act),
            is_healthy: Mutex::new(true),
            metrics: Mutex::new(METRICS.into()),
            received: AtomicUsize::new(0),
            cancelled: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            latest: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { addr, state, accepting: accepting.abort_handle() }
    }

    pub(crate) fn config(&self) -> InstanceConfig {
        InstanceConfig::new(format!("http://{}", self.addr))
    }

    pub(crate) fn name(&self) -> String {
        self.addr.to_string()
    }

    pub(crate) fn set(&self, act: Act) {
        *self.state.act.lock().unwrap() = act;
    }

    pub(crate) fn received(&self) -> usize {
        self.state.received.load(Ordering::SeqCst)
    }

    /// No new connections; the listener is gone.
    pub(crate) fn stop_listening(&self) {
        self.accepting.abort();
    }
}

pub(crate) fn event(number: usize) -> String {
    format!("data: {{\"id\":\"c\",\"choices\":[{{\"delta\":{{\"content\":\"t{number}\"}}}}]}}\n\n")
}

pub(crate) fn events(count: usize) -> String {
    (0..count).map(event).collect::<String>() + "data: [DONE]\n\n"
}

async fn serve(mut stream: TcpStream, state: Arc<State>) {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read_request(&mut stream, &mut buffer).await {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let answer = match path.as_str() {
            "/health" if *state.is_healthy.lock().unwrap() => plain(200, ""),
            "/health" => plain(503, ""),
            "/metrics" => plain(200, &state.metrics.lock().unwrap()),
            "/v1/models" => {
                plain(200, r#"{"object":"list","data":[{"id":"m","object":"model","x":1}]}"#)
            }
            _ => {
                state.received.fetch_add(1, Ordering::SeqCst);
                *state.latest.lock().unwrap() = (head, body);
                let act = state.act.lock().unwrap().clone();
                state.open.fetch_add(1, Ordering::SeqCst);
                let is_complete = tokio::select! {
                    is_complete = play(&mut stream, act) => is_complete,
                };
                state.open.fetch_sub(1, Ordering::SeqCst);
                if is_complete {
                    continue;
                }
                state.cancelled.fetch_add(1, Ordering::SeqCst);
                return;
            }
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// False if the client left, or the act ends with the connection.
async fn play(stream: &mut TcpStream, act: Act) -> bool {
    match act {
        Act::Json(after) => {
            let answer = plain(200, r#"{"id":"c","choices":[{"message":{"content":"hello"}}]}"#);
            unless_left(stream, after).await && stream.write_all(answer.as_bytes()).await.is_ok()
        }
        Act::Status(status) => {
            let body = r#"{"error":{"message":"toy","code":0}}"#;
            stream.write_all(plain(status, body).as_bytes()).await.is_ok()
        }
        Act::Close => false,
        Act::Garbage => {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await;
            false
        }
        Act::Silent => unless_left(stream, Duration::MAX).await,
        Act::HeadOnly => head(stream).await && unless_left(stream, Duration::MAX).await,
        Act::Stream(count, gap) => {
            if !head(stream).await {
                return false;
            }
            for number in 0..count {
                if !chunk(stream, &event(number)).await || !unless_left(stream, gap).await {
                    return false;
                }
            }
            chunk(stream, "data: [DONE]\n\n").await && stream.write_all(b"0\r\n\r\n").await.is_ok()
        }
        Act::Flood(count) => {
            let event = format!("data: {}\n\n", "x".repeat(64 << 10));
            head(stream).await;
            for _ in 0..count {
                if !chunk(stream, &event).await {
                    return false;
                }
            }
            stream.write_all(b"0\r\n\r\n").await.is_ok()
        }
        Act::Cut(count) => {
            head(stream).await;
            for number in 0..count {
                chunk(stream, &event(number)).await;
            }
            chunk(stream, "data: {\"half\":").await;
            sleep(Duration::from_millis(20)).await;
            stream.set_zero_linger().ok();
            false
        }
        Act::Held { instance, arrived } => {
            let (go_on, mut told) = mpsc::unbounded_channel();
            arrived.send(Held { instance, go_on }).unwrap();
            let first = told.recv().await.is_some() && head(stream).await;
            let first = first && chunk(stream, &event(0)).await;
            let ends = first && told.recv().await.is_some();
            ends && stream.write_all(b"0\r\n\r\n").await.is_ok()
        }
        Act::Stall(count) => {
            head(stream).await;
            for number in 0..count {
                chunk(stream, &event(number)).await;
            }
            unless_left(stream, Duration::MAX).await
        }
    }
}

async fn head(stream: &mut TcpStream) -> bool {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
                X-Toy: yes\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.is_ok()
}

async fn chunk(stream: &mut TcpStream, data: &str) -> bool {
    stream.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes()).await.is_ok()
}

/// Waits; false if the client closes its side meanwhile.
async fn unless_left(stream: &mut TcpStream, wait: Duration) -> bool {
    if wait.is_zero() {
        return true;
    }
    let mut byte = [0];
    tokio::select! {
        () = sleep(wait) => true,
        _ = stream.read(&mut byte) => false,
    }
}

fn plain(status: u16, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nX-Toy: yes\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let mut chunk = vec![0; 64 << 10];
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
            let length = header(&head, "content-length").map_or(0, |value| value.parse().unwrap());
            if buffer.len() >= end + 4 + length {
                let body = buffer[end + 4..end + 4 + length].to_vec();
                buffer.drain(..end + 4 + length);
                return Some((head, body));
            }
        }
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
        }
    }
}

pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
