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
use kvroute_sim::{SimConfig, SimOutcome};
use kvroute_workload::{Plan, Workload};

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
    print_overhead_estimates(&config, &workload);
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
        ("no step overhead", changed(|config| config.profile.step.overhead_s = 0.0)),
        (
            "step overhead 0.76 ms instead of 1.12",
            changed(|config| config.profile.step.overhead_s = 0.76e-3),
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

/// What the estimator of the step overhead finds where the overhead is known: in simulated runs.
fn print_overhead_estimates(config: &SimConfig, workload: &(Workload, Plan)) {
    println!("| step overhead of the run | found in its log |\n|---|---:|");
    for ms in [0.0, 0.25, 0.5, 0.75, 1.0, 1.12, 1.25, 1.5] {
        let mut config = config.clone();
        config.profile.step.overhead_s = ms * 1e-3;
        let log = rtx4090::simulated_log(&config, workload);
        let found_ms = 1e3 * rtx4090::estimated_overhead_s(&config, &log);
        println!("| {ms} ms, simulated | {found_ms:.2} ms |");
    }
    let found_ms = 1e3 * rtx4090::estimated_overhead_s(config, &rtx4090::measured_log());
    println!("| measured | {found_ms:.2} ms |");
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
