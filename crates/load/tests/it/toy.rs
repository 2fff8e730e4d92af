//! A scripted server: raw sockets, so that every way of failing can be played.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// What the toy does with a generation request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// A good stream, written in pieces of so many bytes.
    Stream { split: usize },
    /// A good answer in one piece.
    Json,
    /// An error of this status.
    Status(u16),
    /// Closes the connection without a word.
    Close,
    /// Says nothing, ever.
    Silent,
    /// Half a stream, then the connection closes.
    Cut,
    /// A stream that ends in order without `[DONE]`.
    NoDone,
    /// A stream with an error in it, as vLLM's when its engine dies.
    ErrorFrame,
    /// A stream of something else.
    Garbage,
}

pub(crate) struct Toy {
    pub(crate) addr: SocketAddr,
    state: Arc<State>,
    accepting: AbortHandle,
}

#[derive(Default)]
struct State {
    received: AtomicUsize,
    left: AtomicUsize,
    latest: Mutex<(String, String)>,
}

impl Toy {
    pub(crate) async fn start(act: Act) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, act, Arc::clone(&shared)));
            }
        });
        Self { addr, state, accepting: accepting.abort_handle() }
    }

    /// Generation requests received.
    pub(crate) fn received(&self) -> usize {
        self.state.received.load(Ordering::SeqCst)
    }

    /// Requests that the client gave up.
    pub(crate) fn left(&self) -> usize {
        self.state.left.load(Ordering::SeqCst)
    }

    /// Head and body of the latest generation request.
    pub(crate) fn latest(&self) -> (String, String) {
        self.state.latest.lock().unwrap().clone()
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(mut stream: TcpStream, act: Act, state: Arc<State>) {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read_request(&mut stream, &mut buffer).await {
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path.ends_with("/metrics") {
            let known = path == "/metrics";
            let page = include_str!("../data/metrics.txt");
            let answer =
                if known { plain(200, "text/plain", page) } else { plain(404, "text/plain", "") };
            let _ = stream.write_all(answer.as_bytes()).await;
            continue;
        }
        state.received.fetch_add(1, Ordering::SeqCst);
        *state.latest.lock().unwrap() = (head, body);
        if !play(&mut stream, act).await {
            if matches!(act, Act::Silent) {
                state.left.fetch_add(1, Ordering::SeqCst);
            }
            return;
        }
    }
}

const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const TOKEN: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Caf\u{e9}\"},\"finish_reason\":null}]}\n\n";
const LAST: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" x\"},\"finish_reason\":\"length\"}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":29,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":16}}}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const ERROR: &str =
    "data: {\"error\": {\"message\": \"EngineCore encountered an issue.\", \"code\": 500}}\n\n";

/// Whether the connection can go on.
async fn play(stream: &mut TcpStream, act: Act) -> bool {
    match act {
        Act::Stream { split } => {
            let all = [ROLE, ": ping\n\n", TOKEN, LAST, USAGE, DONE].concat();
            write_stream(stream, &all, split).await && end_chunks(stream).await
        }
        Act::Json => {
            let body = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"a b"},"finish_reason":"length"}],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":null}}"#;
            stream.write_all(plain(200, "application/json", body).as_bytes()).await.is_ok()
        }
        Act::Status(status) => {
            let body = r#"{"error":{"message":"toy says no","type":"x","code":0}}"#;
            stream.write_all(plain(status, "application/json", body).as_bytes()).await.is_ok()
        }
        Act::Close => false,
        // Returns when the client closes the connection.
        Act::Silent => stream.read(&mut [0]).await.is_ok_and(|bytes| bytes > 0),
        Act::Cut => {
            write_stream(stream, &[ROLE, TOKEN].concat(), usize::MAX).await;
            false
        }
        Act::NoDone => {
            write_stream(stream, &[ROLE, TOKEN, LAST].concat(), usize::MAX).await
                && end_chunks(stream).await
        }
        Act::ErrorFrame => {
            write_stream(stream, &[ROLE, TOKEN, ERROR, DONE].concat(), usize::MAX).await
                && end_chunks(stream).await
        }
        Act::Garbage => {
            write_stream(stream, "data: garbage\n\n", usize::MAX).await && end_chunks(stream).await
        }
    }
}

async fn write_stream(stream: &mut TcpStream, text: &str, split: usize) -> bool {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
        x-kvroute-instance: toy\r\nx-kvroute-reason: cache-score\r\n\
        x-kvroute-predicted-cached-tokens: 32\r\ntransfer-encoding: chunked\r\n\r\n";
    let _ = stream.set_nodelay(true);
    let mut is_ok = stream.write_all(head.as_bytes()).await.is_ok();
    for piece in text.as_bytes().chunks(split) {
        let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
        chunk.extend_from_slice(piece);
        chunk.extend_from_slice(b"\r\n");
        is_ok &= stream.write_all(&chunk).await.is_ok();
    }
    is_ok
}

async fn end_chunks(stream: &mut TcpStream) -> bool {
    stream.write_all(b"0\r\n\r\n").await.is_ok()
}

fn plain(status: u16, content_type: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Head and body of the next request; `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, String)> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end + 4]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.map_or(0, |length| length.parse::<usize>().unwrap());
            if buffer.len() >= end + 4 + length {
                let rest = buffer.split_off(end + 4 + length);
                let body = String::from_utf8_lossy(&buffer[end + 4..]).into_owned();
                *buffer = rest;
                return Some((head, body));
            }
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
