//! Resident memory after many distinct prompts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::client::{Progress, Shape};
use crate::cost::spawn_load;
use crate::{Result, Settings, System};

pub(crate) fn run(settings: &Settings, gateway: &System) -> Result<()> {
    println!("\n## memory: distinct 4 KB prompts");
    println!("\n| prompts | gateway RSS, MB | s |");
    println!("|---:|---:|---:|");
    println!("| 0 | {:.1} | 0 |", gateway.process.resident_mb()?);
    let (progress, started) = (Arc::new(Progress::default()), Instant::now());
    let load = spawn_load(gateway, Shape::Distinct, &progress, settings.prompts)?;
    let mut peak_mb: f64 = 0.0;
    let step = (settings.prompts / 5).max(1);
    let mut next = step;
    while !load.is_finished() {
        std::thread::sleep(Duration::from_millis(20));
        let mb = gateway.process.resident_mb()?;
        peak_mb = peak_mb.max(mb);
        let done = progress.done.load(Ordering::Relaxed);
        if done >= next {
            println!("| {done} | {mb:.1} | {:.0} |", started.elapsed().as_secs_f64());
            next += step;
        }
    }
    load.join().map_err(|_| "the load thread panicked")??;
    println!("\nhighest of all readings: {peak_mb:.1} MB");
    Ok(())
}
