//! Clock, memory, table.

use std::hint::black_box;
use std::time::Instant;

/// Data to read between look-ups, so that they find nothing in the processor's caches.
pub struct Cold(Vec<u64>);

impl Cold {
    pub fn new() -> Self {
        Self(vec![1; 16 << 20])
    }

    pub fn sweep(&self) {
        black_box(self.0.iter().sum::<u64>());
    }
}

/// Nanoseconds of a call, less what reading the clock takes.
pub fn time_ns<R>(call: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    black_box(call());
    let ns = start.elapsed().as_nanos() as f64;
    (ns - clock_ns()).max(0.0)
}

fn clock_ns() -> f64 {
    static CLOCK: std::sync::OnceLock<f64> = std::sync::OnceLock::new();
    *CLOCK.get_or_init(|| {
        let empty = || {
            let start = Instant::now();
            start.elapsed().as_nanos() as f64
        };
        percentiles((0..10_000).map(|_| empty()).collect()).0
    })
}

/// Bytes that glibc's malloc has handed out and not got back, its own headers included.
pub fn live_bytes() -> f64 {
    // SAFETY: mallinfo2 only reads malloc's own counters.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as f64
}

/// Processor time of all threads so far, seconds: what other processes do to the clock on the wall
/// does not count.
pub fn processor_s() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the struct that the reference is to.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// p50 and p99.
pub fn percentiles(mut samples: Vec<f64>) -> (f64, f64) {
    samples.sort_unstable_by(f64::total_cmp);
    (samples[samples.len() / 2], samples[samples.len() * 99 / 100])
}

pub fn print_header() {
    println!("| | kvroute | RadixTree | Concurrent | against RadixTree | against Concurrent |");
    println!("|---|---:|---:|---:|---:|---:|");
}

/// A row of times or bytes. The last two columns say how many times less it is.
pub fn print_costs(name: &str, [ours, radix, concurrent]: [f64; 3]) {
    print_row(name, [ours, radix, concurrent], [radix / ours, concurrent / ours]);
}

/// A row of medians of the rounds' rates. The last two columns say how many times more it is: the
/// median of the rounds, and the least and the most.
pub fn print_rates(name: &str, [ours, radix, concurrent]: &[Vec<f64>; 3]) {
    let cell = |rates: &Vec<f64>| format!("{:.2}", percentiles(rates.clone()).0);
    let ratio = |others: &Vec<f64>| {
        let mut ratios: Vec<f64> =
            ours.iter().zip(others).map(|(ours, other)| ours / other).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        format!("{:.2} ({least:.2} to {most:.2})", ratios[ratios.len() / 2])
    };
    let cells = [cell(ours), cell(radix), cell(concurrent), ratio(radix), ratio(concurrent)];
    println!("| {name} | {} |", cells.join(" | "));
}

/// The machine's load average over 1, 5 and 15 minutes, if it tells.
pub fn load_average() -> String {
    let loads = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    loads.split_whitespace().take(3).collect::<Vec<_>>().join(", ")
}

fn print_row(name: &str, values: [f64; 3], ratios: [f64; 2]) {
    let cell = |value: f64| if value.is_finite() { format!("{value:.2}") } else { String::new() };
    let cells = values.into_iter().chain(ratios).map(cell).collect::<Vec<_>>();
    println!("| {name} | {} |", cells.join(" | "));
}
