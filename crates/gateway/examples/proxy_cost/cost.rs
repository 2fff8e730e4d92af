//! CPU time per request.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::task::LocalSet;

use crate::client::{Progress, Shape, closed_loop};
use crate::{Result, Settings, System, median, spread};

pub(crate) const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_millis(300);
const SHAPES: [Shape; 3] = [Shape::Small, Shape::Stream, Shape::Long];

pub(crate) fn run(settings: &Settings, gateway: &System, nginx: Option<&System>) -> Result<()> {
    let systems: Vec<&System> = std::iter::once(gateway).chain(nginx).collect();
    let duration = Duration::from_secs_f64(settings.seconds);
    println!("\n## cost: CPU us per request, {CONNECTIONS} closed-loop connections");
    // By shape, then system, then round.
    let mut cpu_us = vec![vec![Vec::new(); systems.len()]; SHAPES.len()];
    let mut per_s = cpu_us.clone();
    for round in 0..settings.rounds {
        for (shape_at, &shape) in SHAPES.iter().enumerate() {
            for turn in 0..systems.len() {
                let at = (turn + round) % systems.len();
                let (cpu, rate) = measure(systems[at], shape, duration)?;
                println!("round {round}, {}, {}: {cpu:.1} us", shape.name(), systems[at].name);
                cpu_us[shape_at][at].push(cpu);
                per_s[shape_at][at].push(rate);
            }
        }
    }
    println!("\n| shape | system | CPU us per request, median | min..max | requests/s | x nginx |");
    println!("|---|---|---:|---:|---:|---:|");
    for (shape_at, shape) in SHAPES.iter().enumerate() {
        for (at, system) in systems.iter().enumerate() {
            let cpu = &cpu_us[shape_at][at];
            let of_nginx = cpu_us[shape_at].get(1).map(|nginx| {
                let ratios: Vec<f64> =
                    cpu.iter().zip(nginx).map(|(us, nginx)| us / nginx).collect();
                format!("{:.2}", median(&ratios))
            });
            println!(
                "| {} | {} | {:.1} | {} | {:.0} | {} |",
                shape.name(),
                system.name,
                median(cpu),
                spread(cpu),
                median(&per_s[shape_at][at]),
                of_nginx.as_deref().unwrap_or("-")
            );
        }
    }
    Ok(())
}

/// CPU microseconds per request, and requests per second.
fn measure(system: &System, shape: Shape, duration: Duration) -> Result<(f64, f64)> {
    let progress = Arc::new(Progress::default());
    let load = spawn_load(system, shape, &progress, u64::MAX)?;
    std::thread::sleep(WARM_UP);
    let done = || progress.done.load(Ordering::Relaxed);
    let (cpu, count, started) = (system.process.cpu()?, done(), Instant::now());
    std::thread::sleep(duration);
    let cpu = system.process.cpu()?.saturating_sub(cpu);
    let count = (done() - count) as f64;
    let per_s = count / started.elapsed().as_secs_f64();
    progress.stop.store(true, Ordering::Relaxed);
    load.join().map_err(|_| "the load thread panicked")??;
    Ok((cpu.as_secs_f64() * 1e6 / count, per_s))
}

/// Closed-loop clients on a thread of their own.
pub(crate) fn spawn_load(
    system: &System,
    shape: Shape,
    progress: &Arc<Progress>,
    count_max: u64,
) -> Result<std::thread::JoinHandle<Result<()>>> {
    let (addr, progress) = (system.addr, Arc::clone(progress));
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let run = async move {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|client| {
                let progress = Arc::clone(&progress);
                tokio::task::spawn_local(closed_loop(addr, shape, client, progress, count_max))
            })
            .collect();
        for client in clients {
            client.await??;
        }
        Ok(())
    };
    Ok(std::thread::spawn(move || LocalSet::new().block_on(&runtime, run)))
}
