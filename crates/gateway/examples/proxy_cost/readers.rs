//! Many slow readers of endless streams, and what others see meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

use crate::client::{Shape, request};
use crate::process::Process;
use crate::{Result, Settings, System, latency, percentile};

const RATE_OF_OTHERS: f64 = 50.0;
const CLIENTS_OF_OTHERS: usize = 8;
const DURATION: Duration = Duration::from_secs(12);
const READ_BYTES: usize = 4 << 10;
/// Little room in the readers' kernel; it is doubled.
const RECEIVE_BUFFER_BYTES: u32 = 32 << 10;
const READ_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    open: AtomicU64,
    read_bytes: AtomicU64,
    broken: AtomicU64,
}

pub(crate) fn run(settings: &Settings, gateway: &System, upstreams: &Process) -> Result<()> {
    let count = settings.readers;
    println!(
        "\n## readers: {count} endless streams read at 4 KB/s, {RATE_OF_OTHERS} other requests/s"
    );
    let others = || {
        let clients = CLIENTS_OF_OTHERS;
        latency::measure(gateway.addr, Shape::Small, RATE_OF_OTHERS, clients, DURATION / 2)
    };
    let alone_ms = others()?;
    let before_mb = gateway.process.resident_mb()?;
    let cpu_before = gateway.process.cpu()?;
    let shared = Arc::new(Shared::default());
    let readers = spawn_readers(gateway, count, &shared)?;
    while shared.open.load(Ordering::Relaxed) < count as u64 && !readers.is_finished() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let watch = {
        let (shared, id) = (Arc::clone(&shared), gateway.process.id());
        std::thread::spawn(move || {
            let mut peak_mb: f64 = 0.0;
            while !shared.is_over.load(Ordering::Relaxed) {
                peak_mb = peak_mb.max(crate::process::resident_mb(id).unwrap_or_default());
                std::thread::sleep(Duration::from_millis(50));
            }
            peak_mb
        })
    };
    let first_ms = others()?;
    let (middle_bytes, middle_read) =
        (taken_bytes(upstreams)?, shared.read_bytes.load(Ordering::Relaxed));
    let second_ms = others()?;
    let (taken, read) = (taken_bytes(upstreams)?, shared.read_bytes.load(Ordering::Relaxed));
    let cpu_s = gateway.process.cpu()?.saturating_sub(cpu_before).as_secs_f64();
    shared.is_over.store(true, Ordering::Relaxed);
    let peak_mb = watch.join().map_err(|_| "the watching thread panicked")?;
    readers.join().map_err(|_| "the reading thread panicked")??;

    let per_stream_kb = |bytes: u64| bytes as f64 / count as f64 / 1e3;
    println!("broken streams: {}", shared.broken.load(Ordering::Relaxed));
    println!(
        "gateway RSS, MB: {before_mb:.1} before, {peak_mb:.1} at most, {:.1} more",
        peak_mb - before_mb
    );
    println!("gateway CPU: {cpu_s:.1} s");
    println!(
        "taken from upstream, KB a stream: {:.0} in all, {:.0} of it in the second half; clients read {:.0} and {:.0}",
        per_stream_kb(taken),
        per_stream_kb(taken - middle_bytes),
        per_stream_kb(read),
        per_stream_kb(read - middle_read),
    );
    for (name, ms) in [("alone", alone_ms), ("first half", first_ms), ("second half", second_ms)] {
        let (p50, p99) = (percentile(&ms, 0.5), percentile(&ms, 0.99));
        println!("other clients, {name}: p50 {p50:.2} ms, p99 {p99:.2} ms, {} requests", ms.len());
    }
    Ok(())
}

/// Bytes that upstreams could write to endless streams so far.
fn taken_bytes(upstreams: &Process) -> Result<u64> {
    use std::io::{Read, Write};

    let mut stream = std::net::TcpStream::connect(upstreams.addrs[0])?;
    stream.write_all(b"GET /taken HTTP/1.1\r\nhost: u\r\n\r\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.rsplit("\r\n").next().unwrap_or_default().parse()?)
}

fn spawn_readers(
    gateway: &System,
    count: usize,
    shared: &Arc<Shared>,
) -> Result<std::thread::JoinHandle<Result<()>>> {
    let (addr, shared) = (gateway.addr, Arc::clone(shared));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = async move {
        let mut readers = Vec::new();
        for _ in 0..count {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
            let mut stream = socket.connect(addr).await?;
            let body =
                r#"{"endless":1,"stream":true,"messages":[{"role":"user","content":"go on"}]}"#;
            stream.write_all(request(body).as_bytes()).await?;
            shared.open.fetch_add(1, Ordering::Relaxed);
            let shared = Arc::clone(&shared);
            readers.push(tokio::task::spawn_local(async move {
                let mut buffer = [0; READ_BYTES];
                while !shared.is_over.load(Ordering::Relaxed) {
                    let Ok(1..) = stream.read_exact(&mut buffer).await else {
                        shared.broken.fetch_add(1, Ordering::Relaxed);
                        return;
                    };
                    shared.read_bytes.fetch_add(READ_BYTES as u64, Ordering::Relaxed);
                    tokio::time::sleep(READ_EVERY).await;
                }
            }));
        }
        for reader in readers {
            reader.await?;
        }
        Ok(())
    };
    Ok(std::thread::spawn(move || LocalSet::new().block_on(&runtime, run)))
}
