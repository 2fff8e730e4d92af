//! Simulates the measured vLLM run of Llama-3.1-8B on an RTX 4090 and prints how far the simulation is off, as the
//! Markdown tables of `docs/fidelity.md`:
//!
//! ```text
//! cargo run --release -p kvroute-sim --example fidelity_rtx4090
//! ```
#![expect(clippy::print_stdout, reason = "an example that prints its result")]

#[path = "../tests/rtx4090/mod.rs"]
mod rtx4090;

use kvroute_lab::{Compared, Latencies, LatencyComparison};
use kvroute_profile::{DecodeSecond, LogSecond, StepOverhead};
use kvroute_sim::{SimConfig, SimOutcome};
use kvroute_workload::{Plan, Workload};
use rtx4090::{Estimator, earlier_run};

fn main() {
    let measured = rtx4090::measured();
    let workload = rtx4090::workload();
    let config = rtx4090::config();
    let (simulated, outcome) = rtx4090::simulated(&config, &workload);
    print_latencies(&measured, &simulated);
    println!();
    print_engine(&measured, &simulated, &outcome);
    println!();
    print_sensitivity(&measured, &config, &workload);
    println!();
    print_decode_steps(&config, &workload);
    println!();
    print_known_overheads(&config);
    println!();
    print_measured_overhead(&measured, &config, &workload);
    println!();
    print_earlier_run(&config, &workload);
}

/// The five figures of each latency.
fn print_latencies(measured: &Latencies, simulated: &Latencies) {
    println!("| latency | | measured | simulated | error |\n|---|---|---:|---:|---:|");
    let compared = LatencyComparison::new(measured, simulated);
    for ((_, figures), name) in compared.latencies().iter().zip(["TTFT", "TPOT", "E2E"]) {
        let (unit, per_ms) = if name == "TPOT" { ("ms", 1.0) } else { ("s", 1e-3) };
        for (figure, Compared { measured, simulated, relative_error }) in figures.figures() {
            let [should, is] = [measured, simulated].map(|ms| ms.unwrap_or(f64::NAN) * per_ms);
            let error = percent(relative_error);
            println!("| {name} | {figure} | {should:.2} {unit} | {is:.2} {unit} | {error} |");
        }
    }
}

/// The run as a whole.
fn print_engine(measured: &Latencies, simulated: &Latencies, outcome: &SimOutcome) {
    let instance = &outcome.instances[0];
    let counters = &instance.counters;
    let [is, should] = [simulated, measured].map(|run| run.duration_s().unwrap_or(f64::NAN));
    let running = instance.gauge_totals.running_ns as f64 / 1e9 / is;
    let measured_running = measured_mean_running();
    let recomputed = counters.preempted_queries - counters.preempted_hits;
    let hit_rate = counters.prefix_cache_hits as f64 / counters.prefix_cache_queries as f64 * 100.0;
    let first_tokens = simulated.ttft_ms().into_iter().zip(measured.ttft_ms());
    let mut apart: Vec<f64> = first_tokens.map(|(is, should)| (is - should).abs() / 1e3).collect();
    apart.sort_by(f64::total_cmp);

    println!("| run | measured | simulated | error |\n|---|---:|---:|---:|");
    println!("| duration | {should:.1} s | {is:.1} s | {} |", error(is, should));
    let error = error(running, measured_running);
    println!("| mean running requests | {measured_running:.1} | {running:.1} | {error} |");
    println!("| prefix cache hit rate of prompts | not recorded | {hit_rate:.1} % | |");
    println!("| preemptions | not recorded | {} | |", counters.preemptions);
    println!("| tokens recomputed after preemption | not recorded | {recomputed} | |");
    println!("| engine steps | not recorded | {} | |", counters.steps);
    let (median, largest) = (apart[apart.len() / 2], apart[apart.len() - 1]);
    println!(
        "| TTFT of the same request, apart: median, largest | | {median:.2} s, {largest:.2} s | |"
    );
}

/// One other setting at a time.
fn print_sensitivity(measured: &Latencies, right: &SimConfig, workload: &(Workload, Plan)) {
    let changed = |change: fn(&mut SimConfig)| {
        let mut config = right.clone();
        change(&mut config);
        config
    };
    let rows = [
        ("as measured", right.clone()),
        ("3,400 blocks instead of 2,588", right.clone().with_kv_blocks(3_400)),
        ("synchronous scheduling", changed(|config| config.engine.async_scheduling = false)),
        (
            "no admission gate (`scheduler_reserve_full_isl` off)",
            changed(|config| config.engine.scheduler_reserve_full_isl = false),
        ),
        ("kernels as profiled, no step overhead", rtx4090::with_overhead(right, 0.0)),
        (
            "contexts taken as equal (no tail)",
            changed(|config| config.profile.step.decode_tail_s_per_token = 0.0),
        ),
    ];
    let header = "| settings | TTFT mean | p99 | TPOT mean | p99 | E2E mean | p99 | duration | preemptions |";
    println!("{header}\n|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (name, config) in rows {
        let (run, outcome) = rtx4090::simulated(&config, workload);
        let mut row = format!("| {name} |");
        for (_, figures) in LatencyComparison::new(measured, &run).latencies() {
            for error in [figures.mean, figures.p99].map(|figure| figure.relative_error) {
                row = format!("{row} {} |", percent(error));
            }
        }
        let [is, should] = [&run, measured].map(|run| run.duration_s().unwrap_or(f64::NAN));
        let duration = error(is, should);
        println!("{row} {duration} | {} |", outcome.instances[0].counters.preemptions);
    }
}

/// What the step overhead is estimated to be where it is known: in simulated runs.
fn print_known_overheads(config: &SimConfig) {
    let mut workloads = vec![rtx4090::workload()];
    workloads.extend((1..=5).map(rtx4090::workload_drawn_anew));
    let estimators: Vec<Estimator> = workloads
        .iter()
        .map(|workload| Estimator::new(config, workload, rtx4090::WHOLE_RUN))
        .collect();
    println!("| step overhead of the run | estimates | mean | standard deviation | furthest off |");
    println!("|---:|---:|---:|---:|---:|");
    for overhead_ms in [-0.5, 0.0, 0.5, 1.0, 1.5] {
        let run = rtx4090::with_overhead(config, 1e-3 * overhead_ms);
        let estimate_ms = |(estimator, workload): (&Estimator, _), seed| {
            1e3 * estimator.overhead_s(&rtx4090::simulated_log(&run, workload, seed))
        };
        let of_workload = |pair| (100..108).map(move |seed| estimate_ms(pair, seed));
        let found: Vec<f64> = estimators.iter().zip(&workloads).flat_map(of_workload).collect();
        let count = found.len() as f64;
        let mean = found.iter().sum::<f64>() / count;
        let squares: f64 = found.iter().map(|ms| (ms - mean) * (ms - mean)).sum();
        let deviation = (squares / (count - 1.0)).sqrt();
        let furthest = found.iter().map(|ms| (ms - overhead_ms).abs()).fold(0.0, f64::max);
        println!(
            "| {overhead_ms:+.2} ms | {count} | {mean:+.2} ms | {deviation:.2} ms | {furthest:.2} ms |"
        );
    }
}

/// A time that a log tells, s.
type TimeOf<'a> = &'a dyn Fn(&[LogSecond]) -> f64;

/// The step overhead that several logs show, and the run simulated with each: how long the half of it takes that the log
/// is not of, and the error of a latency that is furthest off.
fn print_measured_overhead(measured: &Latencies, config: &SimConfig, workload: &(Workload, Plan)) {
    let (log, whole) = (rtx4090::measured_log(), rtx4090::WHOLE_RUN);
    let middle = log[log.len() / 2 - 1].t;
    // The second that ends in the middle is of the first half.
    let (first, second) = (whole.start..middle + 0.5, middle + 0.5..whole.end);
    let at_middle = tokens_until(&log, middle);
    let time_of_first = |log: &[LogSecond]| time_of(log, at_middle);
    let time_of_second = |log: &[LogSecond]| time_of(log, f64::INFINITY) - time_of(log, at_middle);
    let of_half = |half| Estimator::new(config, workload, half).overhead_s(&log);

    let blocks = earlier_run::kv_blocks(config, workload);
    let earlier = earlier_run::config(config, blocks);
    let of_earlier = Estimator::without_usage(&earlier, workload).overhead_s(&earlier_run::log());
    let rows: [(&str, f64, Option<TimeOf>); 5] = [
        ("the run's log", of_half(whole), None),
        ("its first half", of_half(first), Some(&time_of_second)),
        ("its second half", of_half(second), Some(&time_of_first)),
        ("the earlier run's log", of_earlier, None),
        ("nothing: kernels as profiled", 0.0, None),
    ];
    let columns = "| estimated from | step overhead | the other half takes | simulated | error | largest of the 15 errors |";
    println!("{columns}\n|---|---:|---:|---:|---:|---:|");
    for (name, overhead_s, other_half) in rows {
        let run = rtx4090::with_overhead(config, overhead_s);
        let other_half = other_half.map_or_else(
            || "| | | ".to_owned(),
            |time| {
                let simulated = rtx4090::simulated_log(&run, workload, 0);
                let [should, is] = [&log, &simulated].map(|log| time(log));
                format!("| {should:.1} s | {is:.1} s | {} ", error(is, should))
            },
        );
        let compared = LatencyComparison::new(measured, &rtx4090::simulated(&run, workload).0);
        let errors = compared.latencies().map(|(_, figures)| figures.figures());
        let errors = errors.iter().flatten().filter_map(|(_, figure)| figure.relative_error);
        let largest = percent(errors.max_by(|a, b| a.abs().total_cmp(&b.abs())));
        println!("| {name} | {:+.2} ms {other_half}| {largest} |", 1e3 * overhead_s);
    }
}

/// Output tokens made by a time of the log.
fn tokens_until(log: &[LogSecond], t: f64) -> f64 {
    log.iter().filter(|second| second.t <= t).map(|second| second.gen_throughput).sum()
}

/// When the log's run had made so many output tokens, between its seconds in proportion, or all of them.
fn time_of(log: &[LogSecond], tokens: f64) -> f64 {
    let mut made = 0.0;
    for second in log {
        if made + second.gen_throughput >= tokens {
            return second.t - 1.0 + (tokens - made) / second.gen_throughput;
        }
        made += second.gen_throughput;
    }
    log.last().map_or(f64::NAN, |second| second.t)
}

/// Decode-only steps beyond kernels of equal contexts, by batch: measured, and simulated with the profile.
fn print_decode_steps(config: &SimConfig, workload: &(Workload, Plan)) {
    let measured = rtx4090::decode_seconds(config, &rtx4090::measured_log()).seconds;
    let simulated: Vec<DecodeSecond> = (1..9)
        .map(|seed| rtx4090::simulated_log(config, workload, seed))
        .flat_map(|log| rtx4090::decode_seconds(config, &log).seconds)
        .collect();
    println!("| sequences running | measured | seconds | simulated |\n|---|---:|---:|---:|");
    for (name, least, most) in [
        ("8 to 16", 8.0, 16.0),
        ("17 to 24", 16.5, 24.0),
        ("25 to 32", 24.5, 32.0),
        ("more", 32.5, f64::INFINITY),
    ] {
        let of_size = |seconds: &[DecodeSecond]| {
            let within = |second: &&DecodeSecond| (least..=most).contains(&second.running);
            StepOverhead { seconds: seconds.iter().filter(within).copied().collect() }
        };
        let (measured, simulated) = (of_size(&measured), of_size(&simulated));
        let [should, is] = [&measured, &simulated].map(|o| 1e3 * o.mean_s().unwrap_or(f64::NAN));
        println!("| {name} | {should:+.2} ms | {} | {is:+.2} ms |", measured.seconds.len());
    }
}

/// The earlier run: the number of KV blocks that its queues show, and its latencies with it.
fn print_earlier_run(later: &SimConfig, workload: &(Workload, Plan)) {
    println!("| KV blocks | running and waiting requests, apart |\n|---:|---:|");
    let found = earlier_run::kv_blocks(later, workload);
    for blocks in [found - 100, found - 20, found, found + 20, found + 100] {
        println!("| {blocks} | {:.1} |", earlier_run::queues_apart(later, workload, blocks));
    }
    let (run, _) = rtx4090::simulated(&earlier_run::config(later, found), workload);
    println!("\n| latency | | measured | simulated | error |\n|---|---|---:|---:|---:|");
    for ((name, measured), simulated) in
        earlier_run::FIGURES.into_iter().zip(earlier_run::figures(&run))
    {
        let (unit, per_ms) = if name == "TPOT" { ("ms", 1.0) } else { ("s", 1e-3) };
        for (figure, (is, should)) in ["mean", "p50", "p90", "p95", "p99"]
            .into_iter()
            .zip(simulated.into_iter().zip(measured))
        {
            let error = error(is, should);
            let [should, is] = [should, is].map(|ms| ms * per_ms);
            println!("| {name} | {figure} | {should:.2} {unit} | {is:.2} {unit} | {error} |");
        }
    }
}

/// Mean of the run's once-a-second samples.
fn measured_mean_running() -> f64 {
    let seconds = rtx4090::measured_log();
    seconds.iter().map(|second| f64::from(second.running)).sum::<f64>() / seconds.len() as f64
}

fn error(simulated: f64, measured: f64) -> String {
    percent(Some(simulated / measured - 1.0))
}

fn percent(error: Option<f64>) -> String {
    format!("{:+.1} %", error.unwrap_or(f64::NAN) * 100.0)
}
