//! Requests of each shape, and a blocking and an asynchronous client for them.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::upstream::EVENTS;

/// Digits of the number that makes each prompt its own.
const DIGITS: usize = 10;

/// What a request and its answer look like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A 300 B chat with a short answer.
    Small,
    /// A 4 KB chat answered by 128 events.
    Stream,
    /// A 64 KB chat of a session, of which the last 2 KB are new.
    Long,
    /// A 4 KB chat, different from its first character on, with a short answer.
    Distinct,
}

impl Shape {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Small => "small 300 B",
            Self::Stream => "stream 128 events",
            Self::Long => "64 KB chat",
            Self::Distinct => "distinct 4 KB",
        }
    }
}

/// A request whose number can be changed in place.
pub(crate) struct Template {
    bytes: Vec<u8>,
    number_at: usize,
    shape: Shape,
}

impl Template {
    pub(crate) fn new(shape: Shape, client: usize) -> Self {
        let number = "#".repeat(DIGITS);
        let user = |text: String| format!(r#"{{"role":"user","content":"{text}"}}"#);
        let (fields, messages) = match shape {
            Shape::Small => (
                r#""max_tokens":1"#,
                user(format!("question {number} of client {client}: {}", text(client, 120))),
            ),
            Shape::Stream => {
                (r#""stream":true"#, user(format!("{number} {}", text(client, 4_000))))
            }
            Shape::Distinct => {
                (r#""max_tokens":1"#, user(format!("{number} {}", text(client, 4_000))))
            }
            Shape::Long => {
                let system = text(client % 8, 16 << 10);
                let turns = (0..26).map(|turn| {
                    let role = if turn % 2 == 0 { "user" } else { "assistant" };
                    let text = text(client * 100 + turn, 1_770);
                    format!(r#",{{"role":"{role}","content":"{text}"}}"#)
                });
                let turns: String = turns.collect();
                let last = user(format!("{number} {}", "new ".repeat(512)));
                let system = format!(r#"{{"role":"system","content":"{system}"}}"#);
                (r#""max_tokens":1"#, format!("{system}{turns},{last}"))
            }
        };
        let body = format!(r#"{{"model":"m",{fields},"messages":[{messages}]}}"#);
        let bytes = request(&body).into_bytes();
        let number_at = bytes
            .windows(DIGITS)
            .position(|window| window == number.as_bytes())
            .expect("it was put there");
        Self { bytes, number_at, shape }
    }

    /// The request with this number.
    pub(crate) fn numbered(&mut self, number: u64) -> &[u8] {
        let digits = format!("{number:0DIGITS$}");
        self.bytes[self.number_at..self.number_at + DIGITS].copy_from_slice(digits.as_bytes());
        &self.bytes
    }

    /// What an answer ends with, and nothing before its end does.
    pub(crate) fn answer_end(&self) -> &'static [u8] {
        if self.shape == Shape::Stream { b"\r\n0\r\n\r\n" } else { b"}]}" }
    }
}

/// A chat request with this body.
pub(crate) fn request(body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n\
         Authorization: Bearer none\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Words that differ by the seed.
fn text(seed: usize, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    let mut words = (0..).map(|at| (seed * 7_919 + at * 104_729) % 9_973);
    while text.len() < bytes
        && let Some(word) = words.next()
    {
        text.push_str("word");
        text.push_str(&word.to_string());
        text.push(' ');
    }
    text
}

/// One request and its answer on a blocking connection.
pub(crate) fn exchange(
    stream: &mut std::net::TcpStream,
    request: &[u8],
    answer_end: &[u8],
) -> io::Result<()> {
    stream.write_all(request)?;
    let mut answer = Vec::with_capacity(1 << 10);
    let mut buffer = [0; 16 << 10];
    while !answer.ends_with(answer_end) {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..count]);
    }
    check(&answer)
}

fn check(answer: &[u8]) -> io::Result<()> {
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(answer).into_owned()))
}

/// What the clients of a closed loop share.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) stop: AtomicBool,
    pub(crate) done: AtomicU64,
    /// The next request's number.
    pub(crate) next: AtomicU64,
}

/// Sends requests one after the other until it is told to stop, or numbers up to `count_max` are used up.
pub(crate) async fn closed_loop(
    addr: SocketAddr,
    shape: Shape,
    client: usize,
    progress: Arc<Progress>,
    count_max: u64,
) -> io::Result<()> {
    let mut template = Template::new(shape, client);
    let end = template.answer_end();
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut answer = Vec::with_capacity(64 << 10);
    let mut is_first = true;
    while !progress.stop.load(Ordering::Relaxed) {
        let number = progress.next.fetch_add(1, Ordering::Relaxed);
        if number >= count_max {
            break;
        }
        stream.write_all(template.numbered(number)).await?;
        answer.clear();
        while !answer.ends_with(end) {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        check(&answer)?;
        if is_first && shape == Shape::Stream {
            let events = answer.windows(6).filter(|window| window == b"data: ").count();
            if events != EVENTS + 1 {
                return Err(io::Error::other(format!("{events} events came")));
            }
        }
        is_first = false;
        progress.done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
