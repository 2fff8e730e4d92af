//! The exact index against the indexes of dynamo-kv-router 1.6.1, in one process, taking turns.
//!
//! `cargo run --release`: all of it, or one part by name (`main`, `branching`, `threads`). Numbers
//! are printed as they are measured; every answer is compared between the indexes first.

mod indexes;
mod measure;
mod threads;
mod workload;

use indexes::{Concurrent, Index, Ours, Radix};
use measure::{Cold, live_bytes, percentiles, print_costs, print_header, print_rates, processor_s};
use workload::{Query, Workload};

/// Ingests to take the median of.
const ROUNDS: usize = 5;
const WARM_CALLS: usize = 4_096;
const COLD_CALLS: usize = 128;

fn main() {
    let part = std::env::args().nth(1);
    let wants = |name: &str| part.as_deref().is_none_or(|part| part == name);
    if wants("main") {
        for (instances, entries) in
            [(64, 2_000_000), (1_000, 2_000_000), (64, 10_000_000), (1_000, 10_000_000)]
        {
            let workload = Workload::sessions(instances, entries);
            run(&format!("sessions, {instances} instances"), &workload);
        }
    }
    if wants("branching") {
        for instances in [64, 1_000] {
            let workload = Workload::branching(instances, 2_000_000);
            run(&format!("branching, {instances} instances"), &workload);
        }
        let workload = Workload::trunk();
        run("one trunk of 8,192 with 64 branches", &workload);
    }
    if wants("threads") {
        threads::run();
    }
}

fn run(name: &str, workload: &Workload) {
    println!(
        "\n## {name}: {} entries, {} distinct blocks, {} events\n",
        workload.entries,
        workload.distinct,
        workload.events.len()
    );
    print_header();
    let mut rates: [Vec<f64>; 3] = Default::default();
    let rounds = if workload.entries > 5_000_000 { 3 } else { ROUNDS };
    for _ in 0..rounds {
        rates[0].push(ingest::<Ours>(workload).1);
        rates[1].push(ingest::<Radix>(workload).1);
        rates[2].push(ingest::<Concurrent>(workload).1);
    }
    print_rates(
        "ingest, M blocks per processor second (median)",
        rates.map(|rates| percentiles(rates).0),
    );

    let (ours, _, our_bytes) = ingest::<Ours>(workload);
    let (radix, _, radix_bytes) = ingest::<Radix>(workload);
    let (concurrent, _, _) = ingest::<Concurrent>(workload);
    let entries = workload.entries as f64;
    // What the concurrent tree's own thread allocates, mallinfo2 does not see.
    print_costs(
        "malloc's live bytes per entry",
        [our_bytes / entries, radix_bytes / entries, f64::NAN],
    );
    println!("| by our own count | {:.2} | | | | |", ours.memory_bytes() as f64 / entries);

    let mut indexes: [Box<dyn Index>; 3] = [Box::new(ours), Box::new(radix), Box::new(concurrent)];
    compare(&indexes, workload);
    let cold = Cold::new();
    for (kind, queries) in &workload.queries {
        let holders: usize = queries.iter().map(|query| indexes[0].answer(query).len()).sum();
        let kind = format!("{kind} [{:.0}]", holders as f64 / queries.len() as f64);
        let warm = lookups(&indexes, queries, None, WARM_CALLS);
        print_costs(&format!("{kind}, warm p50, ns"), warm.map(|(p50, _)| p50));
        print_costs(&format!("{kind}, warm p99, ns"), warm.map(|(_, p99)| p99));
        let cold = lookups(&indexes, queries, Some(&cold), COLD_CALLS);
        print_costs(&format!("{kind}, cold p50, ns"), cold.map(|(p50, _)| p50));
        print_costs(&format!("{kind}, cold p99, ns"), cold.map(|(_, p99)| p99));
    }

    // Half of the removals before any comparison, so that what is left is not nothing.
    let half = workload.removals.len() / 2;
    if half == 0 {
        return;
    }
    let rates = indexes.each_mut().map(|index| {
        let events = index.prepare(&workload.removals[..half]);
        let start = processor_s();
        index.apply(events);
        half as f64 / (processor_s() - start) / 1e6
    });
    compare(&indexes, workload);
    print_rates("removal, one block an event, M blocks per processor second", rates);
}

/// An index with the workload in it, M blocks/s, and malloc's live bytes for it.
fn ingest<I: Index + Default>(workload: &Workload) -> (I, f64, f64) {
    let mut index = I::default();
    let events = index.prepare(&workload.events);
    let start = processor_s();
    index.apply(events);
    let seconds = processor_s() - start;
    drop(index);

    // Memory: each event built just before it is applied.
    let before = live_bytes();
    let mut index = I::default();
    for event in &workload.events {
        let event = index.prepare(std::slice::from_ref(event));
        index.apply(event);
    }
    let bytes = live_bytes() - before;
    (index, workload.entries as f64 / seconds / 1e6, bytes)
}

fn compare(indexes: &[Box<dyn Index>; 3], workload: &Workload) {
    let mut compared = 0;
    for query in workload.queries.iter().flat_map(|(_, queries)| queries).chain(&workload.checks) {
        let answers = indexes.each_ref().map(|index| index.answer(query));
        assert_eq!(answers[0], answers[1], "ours and RadixTree differ");
        assert_eq!(answers[0], answers[2], "ours and ConcurrentRadixTreeCompressed differ");
        compared += 1;
    }
    println!("| {compared} answers equal | | | | | |");
}

/// p50 and p99 of one look-up, ns, the indexes taking turns.
fn lookups(
    indexes: &[Box<dyn Index>; 3],
    queries: &[Query],
    cold: Option<&Cold>,
    calls: usize,
) -> [(f64, f64); 3] {
    let mut samples: [Vec<f64>; 3] = Default::default();
    while samples[0].len() < calls {
        for (index, samples) in indexes.iter().zip(&mut samples) {
            if cold.is_none() {
                index.time(queries, None);
            }
            samples.extend(index.time(queries, cold));
        }
    }
    samples.map(percentiles)
}
