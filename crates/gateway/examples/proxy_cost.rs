//! What a request costs the gateway in CPU time: `cargo run --release -p kvroute-gateway --example proxy_cost`.
//!
//! Four upstreams that answer at once, 64 closed-loop connections and the gateway run in one process on threads of
//! their own; the figure is the CPU time of the gateway's serving threads (Linux, `/proc/self/task`) per request.
//! Three scenarios: a 200 B chat; a 4 KB chat answered by 128 events, each written by itself; a 64 KB chat of one of 64
//! sessions, of which the last 2 KB are new. Rounds are interleaved and the median counts.
//!
//! With `--slow-readers N` it instead opens N endless streams that nobody reads, and prints by how much the process has
//! grown after three seconds (upstreams and clients included, so the gateway's share is less).
//!
//! Arguments: `[--policy NAME] [--seconds-per-round S] [--rounds N] [--buffer-bytes N]`.

#![expect(clippy::print_stdout, reason = "it is a command")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kvroute_gateway::{Gateway, GatewayConfig, InstanceConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::task::LocalSet;

const UPSTREAMS: usize = 4;
const CONNECTIONS: usize = 64;
const EVENTS: usize = 128;

type AnyError = Box<dyn std::error::Error>;

#[derive(Clone, Copy)]
enum Scenario {
    Small,
    Stream,
    Long,
}

fn main() -> Result<(), AnyError> {
    let mut config = GatewayConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: ([127, 0, 0, 1], 0).into(),
        ..GatewayConfig::default()
    };
    let (mut seconds, mut rounds, mut slow_readers) = (2.0, 3, 0);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--policy" => config.policy = value.parse()?,
            "--seconds-per-round" => seconds = value.parse()?,
            "--rounds" => rounds = value.parse()?,
            "--slow-readers" => slow_readers = value.parse()?,
            "--buffer-bytes" => config.limits.buffer_bytes = value.parse()?,
            _ => return Err(format!("unknown argument {arg}").into()),
        }
    }
    for _ in 0..UPSTREAMS {
        config.instances.push(InstanceConfig::new(format!("http://{}", upstream()?)));
    }
    let policy = config.policy.name();
    let gateway = Gateway::start(config)?;
    if slow_readers > 0 {
        return read_slowly(gateway.addr(), slow_readers);
    }
    let scenarios =
        [("small", Scenario::Small), ("stream", Scenario::Stream), ("64 KB", Scenario::Long)];
    let mut costs_us = vec![Vec::new(); scenarios.len()];
    for _ in 0..rounds {
        for (&(_, scenario), costs_us) in scenarios.iter().zip(&mut costs_us) {
            let round = Duration::from_secs_f64(seconds);
            costs_us.push(measure(gateway.addr(), scenario, round)?);
        }
    }
    println!("policy {policy}, {CONNECTIONS} connections, {UPSTREAMS} upstreams");
    for ((name, _), mut costs_us) in scenarios.into_iter().zip(costs_us) {
        costs_us.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (cpu_us, per_s) = costs_us[costs_us.len() / 2];
        println!("{name:>8}: {cpu_us:7.1} us of CPU per request, {per_s:8.0} requests/s");
    }
    Ok(())
}

/// Memory for streams that nobody reads.
fn read_slowly(gateway: SocketAddr, count: usize) -> Result<(), AnyError> {
    use std::io::Write;

    let before = resident_kb()?;
    let body = r#"{"flood":1,"stream":true,"messages":[]}"#;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-length";
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = std::net::TcpStream::connect(gateway)?;
        write!(client, "{head}: {}\r\n\r\n{body}", body.len())?;
        clients.push(client);
    }
    std::thread::sleep(Duration::from_secs(3));
    let grown = resident_kb()?.saturating_sub(before) as f64 / 1024.0;
    println!("{count} slow readers: {grown:.1} MiB more");
    Ok(())
}

fn resident_kb() -> Result<u64, AnyError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// CPU microseconds of the gateway per request, and requests per second.
fn measure(
    gateway: SocketAddr,
    scenario: Scenario,
    duration: Duration,
) -> Result<(f64, f64), AnyError> {
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let load = {
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let run = async move {
            let clients = (0..CONNECTIONS).map(|client| {
                let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
                tokio::task::spawn_local(client_loop(gateway, scenario, client, stop, done))
            });
            for client in clients.collect::<Vec<_>>() {
                client.await.expect("a client panicked").expect("a client failed");
            }
        };
        std::thread::Builder::new()
            .name("load".into())
            .spawn(move || LocalSet::new().block_on(&runtime, run))?
    };
    std::thread::sleep(Duration::from_millis(300));
    let (cpu, count, started) = (gateway_cpu()?, done.load(Ordering::Relaxed), Instant::now());
    std::thread::sleep(duration);
    let cpu = gateway_cpu()?.saturating_sub(cpu);
    let count = (done.load(Ordering::Relaxed) - count) as f64;
    let per_s = count / started.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    load.join().map_err(|_| "the load thread panicked")?;
    Ok((cpu.as_secs_f64() * 1e6 / count, per_s))
}

/// CPU time of the gateway's threads so far.
fn gateway_cpu() -> Result<Duration, AnyError> {
    let mut total_ns = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let Ok(name) = std::fs::read_to_string(task.join("comm")) else { continue };
        if name.starts_with("kvroute-") {
            let stat = std::fs::read_to_string(task.join("schedstat"))?;
            total_ns += stat.split(' ').next().ok_or("empty schedstat")?.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(total_ns))
}

async fn client_loop(
    gateway: SocketAddr,
    scenario: Scenario,
    client: usize,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(gateway).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 << 10];
    let mut tail = Vec::new();
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let body = body(scenario, client, turn);
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n\
             Authorization: Bearer none\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
        // Both kinds of answer end in a way that nothing before it does.
        let end: &[u8] =
            if matches!(scenario, Scenario::Stream) { b"\r\n0\r\n\r\n" } else { b"}]}" };
        tail.clear();
        while !tail.ends_with(end) {
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            tail.extend_from_slice(&buffer[..count]);
            tail.drain(..tail.len().saturating_sub(16));
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn body(scenario: Scenario, client: usize, turn: usize) -> String {
    let text = |seed: usize, bytes: usize| {
        let words =
            (0..).map(|at: usize| format!("word{} ", (seed * 7_919 + at * 104_729) % 9_973));
        let mut text = String::with_capacity(bytes + 16);
        words.take_while(|_| true).try_for_each(|word| {
            text.push_str(&word);
            (text.len() < bytes).then_some(())
        });
        text
    };
    match scenario {
        Scenario::Small => format!(
            r#"{{"model":"m","max_tokens":1,"messages":[{{"role":"user","content":"question {turn} of client {client}: {}"}}]}}"#,
            text(client, 100)
        ),
        Scenario::Stream => format!(
            r#"{{"model":"m","stream":true,"messages":[{{"role":"user","content":"{turn} {}"}}]}}"#,
            text(client, 4_000)
        ),
        Scenario::Long => {
            // The parts that do not change are made once per session.
            thread_local! {
                static SESSIONS: std::cell::RefCell<std::collections::BTreeMap<usize, String>> =
                    const { std::cell::RefCell::new(std::collections::BTreeMap::new()) };
            }
            let history = SESSIONS.with_borrow_mut(|sessions| {
                let make = || {
                    let system = text(client % 8, 16 << 10);
                    let turns = (0..26).map(|turn| {
                        let role = if turn % 2 == 0 { "user" } else { "assistant" };
                        format!(
                            r#",{{"role":"{role}","content":"{}"}}"#,
                            text(client * 100 + turn, 1_770)
                        )
                    });
                    let turns: String = turns.collect();
                    format!(r#"{{"role":"system","content":"{system}"}}{turns}"#)
                };
                sessions.entry(client).or_insert_with(make).clone()
            });
            let last = format!("{turn} {}", "new ".repeat(512));
            format!(
                r#"{{"model":"m","max_tokens":1,"messages":[{history},{{"role":"user","content":"{last}"}}]}}"#
            )
        }
    }
}

/// Starts an upstream that answers every request at once, on a thread of its own.
fn upstream() -> Result<SocketAddr, AnyError> {
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
    std::thread::Builder::new()
        .name("upstream".into())
        .spawn(move || LocalSet::new().block_on(&runtime, serve))?;
    Ok(addr)
}

async fn answer_all(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let json = r#"{"id":"c","object":"chat.completion","choices":[{"index":0,"text":"x"}]}"#;
    let whole = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
        json.len()
    );
    let event = format!(
        "data: {{\"id\":\"chatcmpl-be5f0a44c2a86b93\",\"object\":\"chat.completion.chunk\",\"created\":1795367925,\
         \"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}},\"finish_reason\":null}}]}}\n\n",
        "token"
    );
    let event = format!("{:x}\r\n{event}\r\n", event.len());
    let metrics = "vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n";
    let mut request = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (is_stream, is_flood, is_metrics) = loop {
            if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&request[..end]).into_owned();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let length = length.map_or(0, |length| length.parse().unwrap_or(0));
                if request.len() >= end + 4 + length {
                    let body = &request[end + 4..end + 4 + length];
                    let start = &body[..body.len().min(40)];
                    let is_stream = start.windows(8).any(|eight| eight == b"\"stream\"");
                    let is_flood = start.starts_with(b"{\"flood\"");
                    request.drain(..end + 4 + length);
                    break (is_stream, is_flood, head.starts_with("GET /metrics"));
                }
            }
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            request.extend_from_slice(&buffer[..count]);
        };
        if is_flood {
            drop(buffer);
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            loop {
                stream.write_all(event.as_bytes()).await?;
            }
        } else if is_stream {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            for _ in 0..EVENTS {
                stream.write_all(event.as_bytes()).await?;
            }
            stream.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await?;
        } else if is_metrics {
            let length = metrics.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{metrics}");
            stream.write_all(answer.as_bytes()).await?;
        } else {
            stream.write_all(whole.as_bytes()).await?;
        }
    }
}
