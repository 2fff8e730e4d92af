//! The exact index against the indexes of dynamo-kv-router 1.6.1, in one process, taking turns.
//!
//! `cargo run --release`: all of it, or one part by name (`main`, `branching`, `threads`). Numbers
//! are printed as they are measured; every answer is compared between the indexes first.

mod indexes;
mod measure;
mod threads;
mod workload;

use indexes::{Concurrent, Index, Ours, Radix};
use measure::{
    Cold, live_bytes, load_average, percentiles, print_costs, print_header, print_rates,
    processor_s,
};
use workload::{Event, Query, Workload};

/// Ingests and removals to take the median of.
const ROUNDS: usize = 7;
const WARM_CALLS: usize = 4_096;
const COLD_CALLS: usize = 512;

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
    println!("Load average {}.\n", load_average());
    print_header();
    // Half of the removals, so that what is left to compare is not nothing.
    let removals = &workload.removals[..workload.removals.len() / 2];
    let (mut ingests, mut removed): ([Vec<f64>; 3], [Vec<f64>; 3]) = Default::default();
    for _ in 0..ROUNDS {
        let rates = [
            event_rates::<Ours>(workload, removals),
            event_rates::<Radix>(workload, removals),
            event_rates::<Concurrent>(workload, removals),
        ];
        for (index, (ingest, removal)) in rates.into_iter().enumerate() {
            ingests[index].push(ingest);
            removed[index].push(removal);
        }
    }
    print_rates("ingest, M blocks per processor second", &ingests);
    if !removals.is_empty() {
        print_rates("removal, one block an event, M blocks per processor second", &removed);
    }

    let (ours, our_bytes) = filled::<Ours>(workload);
    let (radix, radix_bytes) = filled::<Radix>(workload);
    let (concurrent, _) = filled::<Concurrent>(workload);
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

    if removals.is_empty() {
        return;
    }
    for index in &mut indexes {
        let events = index.prepare(removals);
        index.apply(events);
    }
    compare(&indexes, workload);
}

/// M blocks/s at which an empty index takes in the workload, and then these removals.
fn event_rates<I: Index + Default>(workload: &Workload, removals: &[Event]) -> (f64, f64) {
    let mut index = I::default();
    let mut rate = |events: &[Event], blocks: usize| {
        let events = index.prepare(events);
        let start = processor_s();
        index.apply(events);
        blocks as f64 / (processor_s() - start) / 1e6
    };
    (rate(&workload.events, workload.entries), rate(removals, removals.len()))
}

/// An index with the workload in it, and malloc's live bytes for it.
fn filled<I: Index + Default>(workload: &Workload) -> (I, f64) {
    let before = live_bytes();
    let mut index = I::default();
    // Each event built just before it is applied.
    for event in &workload.events {
        let event = index.prepare(std::slice::from_ref(event));
        index.apply(event);
    }
    let bytes = live_bytes() - before;
    (index, bytes)
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
