//! Upstreams that answer at once.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::task::LocalSet;
use tokio::time::MissedTickBehavior;

use crate::{Result, process};

/// Events of a stream, without the last (`[DONE]`).
pub(crate) const EVENTS: usize = 128;

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
                           transfer-encoding: chunked\r\n\r\n";
const JSON: &str = r#"{"id":"c","object":"chat.completion","choices":[{"index":0,"text":"x"}]}"#;
const METRICS: &str = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n";

/// Events that an endless stream writes at once, and how often: some 150 KB/s, far more than its slow client reads.
const ENDLESS_EVENTS: usize = 64;
const ENDLESS_INTERVAL: Duration = Duration::from_millis(90);

/// For socket buffers that should not count; the kernel doubles it.
pub(crate) const SEND_BUFFER_BYTES: usize = 32 << 10;

/// Bytes written to endless streams, all upstreams.
static TAKEN_BYTES: AtomicU64 = AtomicU64::new(0);

/// Serves until the process that started this one is gone.
pub(crate) fn run(count: usize) -> Result<()> {
    let addrs = (0..count).map(|_| start()).collect::<Result<Vec<_>>>()?;
    process::ready(&addrs)?;
    process::wait_for_parent();
    Ok(())
}

fn start() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let serve = async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(answer_all(stream));
        }
    };
    std::thread::spawn(move || LocalSet::new().block_on(&runtime, serve));
    Ok(addr)
}

async fn answer_all(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let event = format!(
        "data: {{\"id\":\"chatcmpl-be5f0a44c2a86b93\",\"object\":\"chat.completion.chunk\",\"created\":1795367925,\
         \"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}},\"finish_reason\":null}}]}}\n\n",
        "token"
    );
    let event = format!("{:x}\r\n{event}\r\n", event.len());
    let whole = |body: &str| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
        format!("{head}: {}\r\n\r\n{body}", body.len())
    };
    let json = whole(JSON);
    let mut buffer = Vec::with_capacity(80 << 10);
    while let Some(asked) = read_request(&mut stream, &mut buffer).await? {
        match asked {
            Asked::Whole => stream.write_all(json.as_bytes()).await?,
            Asked::Metrics => stream.write_all(whole(METRICS).as_bytes()).await?,
            Asked::Taken => {
                let taken = TAKEN_BYTES.load(Ordering::Relaxed).to_string();
                stream.write_all(whole(&taken).as_bytes()).await?;
            }
            Asked::Stream => {
                stream.write_all(STREAM_HEAD.as_bytes()).await?;
                for _ in 0..EVENTS {
                    stream.write_all(event.as_bytes()).await?;
                }
                stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await?;
            }
            Asked::Endless => {
                drop(std::mem::take(&mut buffer));
                // Little room in this end's kernel, so that what could be written was taken by the other.
                socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_BYTES)?;
                stream.write_all(STREAM_HEAD.as_bytes()).await?;
                let events = event.repeat(ENDLESS_EVENTS);
                let mut ticks = tokio::time::interval(ENDLESS_INTERVAL);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    stream.write_all(events.as_bytes()).await?;
                    TAKEN_BYTES.fetch_add(events.len() as u64, Ordering::Relaxed);
                }
            }
        }
    }
    Ok(())
}

enum Asked {
    Whole,
    Stream,
    Endless,
    Metrics,
    Taken,
}

/// Takes one request from the connection; `None` at its end.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Asked>> {
    let mut needed = None;
    loop {
        if needed.is_none()
            && let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.map_or(0, |length| length.parse().unwrap_or(0));
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            needed = Some((path, end + 4, end + 4 + length));
        }
        if let Some((path, body, end)) = &needed
            && buffer.len() >= *end
        {
            let start = &buffer[*body..(*body + 48).min(*end)];
            let says = |word: &[u8]| start.windows(word.len()).any(|window| window == word);
            let asked = match path.as_str() {
                "/metrics" => Asked::Metrics,
                "/taken" => Asked::Taken,
                _ if says(b"\"endless\"") => Asked::Endless,
                _ if says(b"\"stream\"") => Asked::Stream,
                _ => Asked::Whole,
            };
            buffer.drain(..*end);
            return Ok(Some(asked));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
