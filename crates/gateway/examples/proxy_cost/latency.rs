//! What a proxy adds to the latency at a moderate rate.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Shape, Template, exchange};
use crate::{Result, Settings, System, median, percentile};

/// Requests a second, all clients together.
const RATE: f64 = 200.0;
const CLIENTS: usize = 16;

pub(crate) fn run(
    settings: &Settings,
    direct: SocketAddr,
    gateway: &System,
    nginx: Option<&System>,
) -> Result<()> {
    let duration = Duration::from_secs_f64(settings.seconds * 1.5);
    let mut systems = vec![("direct", direct), (gateway.name, gateway.addr)];
    systems.extend(nginx.map(|nginx| (nginx.name, nginx.addr)));
    println!("\n## latency: {RATE} requests/s, open loop, {CLIENTS} connections, ms");
    println!("\n| shape | system | p50 | p99 | added p50 | added p99 |");
    println!("|---|---|---:|---:|---:|---:|");
    for shape in [Shape::Small, Shape::Long] {
        let mut p50 = vec![Vec::new(); systems.len()];
        let mut p99 = p50.clone();
        for round in 0..settings.rounds {
            for turn in 0..systems.len() {
                let at = (turn + round) % systems.len();
                let latencies_ms = measure(systems[at].1, shape, RATE, CLIENTS, duration)?;
                p50[at].push(percentile(&latencies_ms, 0.5));
                p99[at].push(percentile(&latencies_ms, 0.99));
            }
        }
        for (at, (name, _)) in systems.iter().enumerate() {
            let added = |of: &[Vec<f64>]| {
                let added: Vec<f64> = of[at].iter().zip(&of[0]).map(|(it, it0)| it - it0).collect();
                median(&added)
            };
            println!(
                "| {} | {name} | {:.3} | {:.3} | {:.3} | {:.3} |",
                shape.name(),
                median(&p50[at]),
                median(&p99[at]),
                added(&p50),
                added(&p99)
            );
        }
    }
    Ok(())
}

/// Latencies, ms. They run from the intended sends wherever a client was still waiting for its last answer.
pub(crate) fn measure(
    addr: SocketAddr,
    shape: Shape,
    rate: f64,
    clients: usize,
    duration: Duration,
) -> Result<Vec<f64>> {
    let threads: Vec<_> = (0..clients)
        .map(|client| {
            thread::spawn(move || send(addr, shape, client, rate / clients as f64, duration))
        })
        .collect();
    let mut all = Vec::new();
    for thread in threads {
        all.extend(thread.join().map_err(|_| "a client panicked")??);
    }
    Ok(all)
}

fn send(
    addr: SocketAddr,
    shape: Shape,
    client: usize,
    rate: f64,
    duration: Duration,
) -> Result<Vec<f64>> {
    let mut stream = std::net::TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut template = Template::new(shape, client);
    let end = template.answer_end();
    // The first one opens connections and fills caches.
    exchange(&mut stream, template.numbered(client as u64), end)?;
    let started = Instant::now();
    let mut random = client as u64 + 1;
    let mut due = Duration::ZERO;
    let mut latencies_ms = Vec::new();
    for number in 1.. {
        // Exponential gaps from a linear congruential generator: arrivals as from many independent users.
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = ((random >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        due += Duration::from_secs_f64(-uniform.ln() / rate);
        if due > duration {
            break;
        }
        let request = template.numbered(number * 1_000 + client as u64);
        let wait = due.checked_sub(started.elapsed());
        let from = match wait {
            Some(wait) => {
                thread::sleep(wait);
                Instant::now()
            }
            None => started + due,
        };
        exchange(&mut stream, request, end)?;
        latencies_ms.push(from.elapsed().as_secs_f64() * 1e3);
    }
    Ok(latencies_ms)
}
