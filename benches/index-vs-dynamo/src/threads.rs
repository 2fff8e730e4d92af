//! Look-ups by several threads, with and without one that writes.

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dynamo_kv_router::indexer::{SyncIndexer, WorkerTask};
use kvroute_cache_index::{ExactIndex, MatchBuffer, SharedExactIndex};

use crate::indexes::{Concurrent, Index, Ours, apply_ours, count_ours, dynamo_event, dynamo_query};
use crate::measure::{load_average, percentiles};
use crate::workload::{Query, Workload};

const SPAN: Duration = Duration::from_millis(1_500);
/// Enough that the tree's worker does not run out of them.
const CHURN_EVENTS: usize = 3_000_000;

pub fn run() {
    let workload = Workload::sessions(64, 2_000_000);
    println!("\n## threads: 64 instances, 2 M entries; look-ups of all kinds in turn\n");
    println!("Load average {}.\n", load_average());
    println!(
        "| readers | writer | index | M look-ups/s, all readers | p50, ns | p99, ns | p99.9, ns | events/s |"
    );
    println!("|---:|---|---|---:|---:|---:|---:|---:|");
    let queries: Vec<Query> =
        workload.queries.iter().flat_map(|(_, queries)| queries.clone()).collect();
    for (readers, writes) in [(1, false), (2, false), (1, true)] {
        plain(&workload, &queries, readers, writes);
        mutex(&workload, &queries, readers, writes);
        shared(&workload, &queries, readers, writes);
        concurrent(&workload, &queries, readers, writes);
    }
}

fn filled(workload: &Workload) -> ExactIndex {
    let mut ours = Ours::default();
    let events = ours.prepare(&workload.events);
    ours.apply(events);
    ours.index
}

fn plain(workload: &Workload, queries: &[Query], readers: usize, writes: bool) {
    if readers > 1 || writes {
        return;
    }
    let index = filled(workload);
    let look_up = |buffer: &mut MatchBuffer, query: &Query| count_ours(&index, buffer, query);
    measure("kvroute, no lock", queries, readers, false, look_up, || None);
}

fn mutex(workload: &Workload, queries: &[Query], readers: usize, writes: bool) {
    let index = Mutex::new(filled(workload));
    let look_up = |buffer: &mut MatchBuffer, query: &Query| {
        count_ours(&index.lock().expect("no reader fails"), buffer, query)
    };
    let mut events = workload.churn.iter().cycle();
    measure("kvroute, std Mutex", queries, readers, writes, look_up, || {
        let event = events.next().expect("the cycle is endless");
        apply_ours(&mut index.lock().expect("no reader fails"), event);
        Some(1)
    });
}

fn shared(workload: &Workload, queries: &[Query], readers: usize, writes: bool) {
    let index = SharedExactIndex::new(filled(workload));
    let look_up = |buffer: &mut MatchBuffer, query: &Query| {
        index.read(|index| count_ours(index, buffer, query))
    };
    let mut events = workload.churn.iter().cycle();
    measure("kvroute, SharedExactIndex", queries, readers, writes, look_up, || {
        let event = events.next().expect("the cycle is endless");
        index.update(|index| apply_ours(index, event));
        Some(1)
    });
}

fn concurrent(workload: &Workload, queries: &[Query], readers: usize, writes: bool) {
    let mut index = Concurrent::default();
    let events = index.prepare(&workload.events);
    index.apply(events);
    let tree = &index.tree;
    let local: Vec<_> = queries.iter().map(dynamo_query).collect();
    let look_up = |_: &mut MatchBuffer, query: &Query| {
        // The queries are in order of address, so this finds the copy in the tree's form.
        let at =
            (std::ptr::from_ref(query) as usize - queries.as_ptr() as usize) / size_of::<Query>();
        black_box(tree.find_matches(&local[at], false)).scores.len() as u64
    };
    // Its worker has the core that the writer has in the others, so this thread only looks on.
    if writes {
        for event in workload.churn.iter().cycle().take(CHURN_EVENTS) {
            index.tasks.send(WorkerTask::Event(dynamo_event(event))).expect("the worker is there");
        }
    }
    let mut left = index.tasks.len();
    measure("ConcurrentRadixTreeCompressed", queries, readers, writes, look_up, || {
        std::thread::sleep(Duration::from_millis(5));
        let before = std::mem::replace(&mut left, index.tasks.len());
        (left > 0).then(|| before - left)
    });
}

fn measure(
    name: &str,
    queries: &[Query],
    readers: usize,
    writes: bool,
    look_up: impl Fn(&mut MatchBuffer, &Query) -> u64 + Sync,
    mut write: impl FnMut() -> Option<usize>,
) {
    let stop = AtomicBool::new(false);
    let looked_up = AtomicUsize::new(0);
    let samples = Mutex::new(Vec::new());
    let mut events = 0;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for reader in 0..readers {
            let (stop, looked_up, samples, look_up) = (&stop, &looked_up, &samples, &look_up);
            scope.spawn(move || {
                let mut buffer = MatchBuffer::default();
                let (mut count, mut own) = (0, Vec::new());
                for query in queries.iter().cycle().skip(reader * 7) {
                    let start = Instant::now();
                    black_box(look_up(&mut buffer, query));
                    own.push(start.elapsed().as_nanos() as f64);
                    count += 1;
                    if count % 64 == 0 && stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                looked_up.fetch_add(count, Ordering::Relaxed);
                samples.lock().expect("no reader fails").append(&mut own);
            });
        }
        while start.elapsed() < SPAN {
            if writes {
                let Some(written) = write() else { break };
                events += written;
            } else {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut samples = samples.into_inner().expect("no reader fails");
    let (p50, p99) = percentiles(samples.clone());
    samples.sort_unstable_by(f64::total_cmp);
    let p999 = samples[samples.len() * 999 / 1_000];
    println!(
        "| {readers} | {} | {name} | {:.2} | {p50:.0} | {p99:.0} | {p999:.0} | {:.0} |",
        if writes { "yes" } else { "no" },
        looked_up.into_inner() as f64 / seconds / 1e6,
        events as f64 / seconds,
    );
}
