//! Speed and memory of [`History`] on prompts of the shape that multi-turn chat services send.
//!
//! 200 system prompts of 128 blocks, drawn by Zipf's law (exponent 1); a session is a system prompt
//! and 64 to 8,064 blocks of its own (uniform; the first 32 sessions have 8,064, so that there are
//! prompts of 8,192 blocks to look for), on a random instance; sessions until the instances
//! hold 2 million blocks ("entries"). The generator is seeded, so every run sees the same prompts.
//!
//! ```text
//! cargo bench -p kvroute-cache-index
//! ```

use std::collections::BTreeSet;
use std::hint::black_box;

use divan::Bencher;
use divan::counter::ItemsCount;
use kvroute_cache_index::{History, HistoryConfig};
use kvroute_types::{BlockHash, InstanceId, Timestamp, mix64};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: divan::AllocProfiler = divan::AllocProfiler::system();

const SYSTEM_PROMPTS: u32 = 200;
const SYSTEM_BLOCKS: u32 = 128;
const OWN_BLOCKS_MAX: u32 = 8_064;
const LONG_SESSIONS: usize = 32;
const ENTRIES: u64 = 2_000_000;
const INSTANCES: [u32; 2] = [64, 1_000];

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measures")]
fn main() {
    // Kept to the end, so that no directory is put where another was and seems to take no memory.
    let mut kept = Vec::new();
    for instances in INSTANCES {
        let sessions = sessions(instances);
        let before = resident_bytes();
        let history = filled(&sessions);
        let after = resident_bytes();
        let entries = entries(&history, instances) as f64;
        print!(
            "{instances} instances: {} sessions, {entries} entries, {} distinct blocks; \
             bytes per entry: {:.2} counted",
            sessions.len(),
            history.distinct_blocks(),
            history.memory_bytes() as f64 / entries,
        );
        match before.zip(after) {
            Some((before, after)) => {
                println!(", {:.2} resident", after.saturating_sub(before) as f64 / entries);
            }
            None => println!(),
        }
        kept.push((sessions, history));
    }
    drop(kept);
    divan::main();
}

/// Whole prompts, one insert each. Items are entries: blocks that are new to the instance.
#[divan::bench(args = INSTANCES, sample_count = 30, sample_size = 1)]
fn ingest_prompts(bencher: Bencher, instances: u32) {
    let sessions = sessions(instances);
    let entries = entries(&filled(&sessions), instances);
    bencher.counter(ItemsCount::new(entries)).with_inputs(empty).bench_local_refs(|history| {
        fill(history, &sessions);
    });
}

/// The same in steps of 128 blocks, each an insert of the whole prompt so far.
#[divan::bench(args = INSTANCES, sample_count = 30, sample_size = 1)]
fn ingest_steps_of_128(bencher: Bencher, instances: u32) {
    let sessions = sessions(instances);
    let entries = entries(&filled(&sessions), instances);
    bencher.counter(ItemsCount::new(entries)).with_inputs(empty).bench_local_refs(|history| {
        for (instance, prompt) in &sessions {
            for end in (128..prompt.len() + 128).step_by(128) {
                history.insert(NOW, *instance, &prompt[..end.min(prompt.len())]);
            }
        }
    });
}

/// At a steady state: each prompt is unique and evicts as many blocks of its instance.
#[divan::bench(args = [1, 64, 4_096], sample_count = 100)]
fn insert_and_evict(bencher: Bencher, blocks: u64) {
    let config = HistoryConfig { capacity_blocks: Some(10_000), ..Default::default() };
    let mut history = History::new(config).expect("the bounds are valid");
    let mut name = 0_u64;
    let mut next = move |history: &mut History, blocks: u64| {
        let prompt: Vec<_> = (name..name + blocks).map(|id| BlockHash(mix64(id))).collect();
        history.insert(NOW, InstanceId((name / blocks % 64) as u32), &prompt);
        name += blocks;
    };
    while history.distinct_blocks() < 64 * 10_000 {
        next(&mut history, blocks);
    }
    bencher.counter(ItemsCount::new(blocks)).bench_local(|| next(&mut history, blocks));
}

/// All 8,192 blocks of a prompt that one instance holds whole.
#[divan::bench(args = INSTANCES)]
fn match_full_8192(bencher: Bencher, instances: u32) {
    let sessions = sessions(instances);
    let history = filled(&sessions);
    let mut prompts = sessions[..LONG_SESSIONS].iter().cycle();
    bencher
        .with_inputs(|| prompts.next().expect("the cycle is endless").1.as_slice())
        .bench_local_values(|prompt| count_matches(&history, prompt));
}

/// The same with cold caches: 128 MiB of other data are read before each.
#[divan::bench(args = INSTANCES, sample_count = 200, sample_size = 1)]
fn match_full_8192_cold(bencher: Bencher, instances: u32) {
    let sessions = sessions(instances);
    let history = filled(&sessions);
    let other_data = vec![1_u64; 16 << 20];
    let mut prompts = sessions[..LONG_SESSIONS].iter().cycle();
    bencher
        .with_inputs(|| {
            black_box(other_data.iter().sum::<u64>());
            prompts.next().expect("the cycle is endless").1.as_slice()
        })
        .bench_local_values(|prompt| count_matches(&history, prompt));
}

/// A prompt of 8,192 blocks on whose path another prompt branches off every 128 blocks, each from
/// another instance: 64 edges, and an instance drops out after each.
#[divan::bench]
fn match_branching(bencher: Bencher) {
    let mut history = empty();
    let trunk = prompt(0, 1, 8_064);
    for instance in 0..64_u32 {
        let shared = (instance as usize + 1) * 128;
        let mut branch = trunk[..shared].to_vec();
        branch
            .extend((0..64).map(|block| BlockHash(mix64(u64::from(instance * 64 + block) << 32))));
        history.insert(NOW, InstanceId(instance), &branch);
    }
    history.insert(NOW, InstanceId(63), &trunk);
    assert_eq!(count_matches(&history, &trunk), 64);
    bencher.bench_local(|| count_matches(&history, black_box(&trunk)));
}

/// Prompts of 8,192 blocks that share no more than one of the 16 most popular system prompts.
#[divan::bench(args = INSTANCES)]
fn match_prefix_128(bencher: Bencher, instances: u32) {
    let history = filled(&sessions(instances));
    let prompts: Vec<_> =
        (0..64).map(|id| prompt(id % 16, 1 << 40 | u64::from(id), 8_064)).collect();
    let mut prompts = prompts.iter().cycle();
    bencher
        .with_inputs(|| prompts.next().expect("the cycle is endless").as_slice())
        .bench_local_values(|prompt| count_matches(&history, prompt));
}

/// Prompts of 8,192 blocks of which nobody holds the first.
#[divan::bench(args = INSTANCES)]
fn match_miss(bencher: Bencher, instances: u32) {
    let history = filled(&sessions(instances));
    let prompts: Vec<_> = (0..64).map(|id| prompt(1_000 + id, 0, 8_064)).collect();
    let mut prompts = prompts.iter().cycle();
    bencher
        .with_inputs(|| prompts.next().expect("the cycle is endless").as_slice())
        .bench_local_values(|prompt| count_matches(&history, prompt));
}

/// A system prompt that every instance holds, so that each of them is reported.
#[divan::bench(args = INSTANCES)]
fn match_held_by_all(bencher: Bencher, instances: u32) {
    let mut history = filled(&sessions(instances));
    let prompt = prompt(0, 1 << 40, 8_064);
    for instance in 0..instances {
        history.insert(NOW, InstanceId(instance), &prompt[..SYSTEM_BLOCKS as usize]);
    }
    assert_eq!(count_matches(&history, &prompt), instances);
    bencher.bench_local(|| count_matches(&history, black_box(&prompt)));
}

const NOW: Timestamp = Timestamp::ZERO;

fn count_matches(history: &History, prompt: &[BlockHash]) -> u32 {
    let mut count = 0;
    history.matches(NOW, prompt, |instance, matched| {
        black_box((instance, matched));
        count += 1;
    });
    count
}

fn empty() -> History {
    History::new(HistoryConfig::default()).expect("the defaults are valid")
}

fn fill(history: &mut History, sessions: &[(InstanceId, Vec<BlockHash>)]) {
    for (instance, prompt) in sessions {
        history.insert(NOW, *instance, prompt);
    }
}

fn filled(sessions: &[(InstanceId, Vec<BlockHash>)]) -> History {
    let mut history = empty();
    fill(&mut history, sessions);
    history
}

fn entries(history: &History, instances: u32) -> u64 {
    (0..instances).map(|instance| history.len_blocks(InstanceId(instance))).sum()
}

/// Sessions with the instance of each, in random order.
fn sessions(instances: u32) -> Vec<(InstanceId, Vec<BlockHash>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut holds_system = BTreeSet::new();
    let (mut sessions, mut entries) = (Vec::new(), 0);
    while entries < ENTRIES {
        let own_blocks = if sessions.len() < LONG_SESSIONS {
            OWN_BLOCKS_MAX
        } else {
            rng.random_range(64..=OWN_BLOCKS_MAX)
        };
        let (system, instance) = (zipf(&mut rng), rng.random_range(0..instances));
        entries += u64::from(own_blocks);
        if holds_system.insert((system, instance)) {
            entries += u64::from(SYSTEM_BLOCKS);
        }
        let name = sessions.len() as u64 + 1;
        sessions.push((InstanceId(instance), prompt(system, name, own_blocks)));
    }
    sessions
}

/// A system prompt, the rank `r` (from 0) with a probability in proportion to `1 / (r + 1)`.
fn zipf(rng: &mut ChaCha8Rng) -> u32 {
    let weight = |rank: u32| 1.0 / f64::from(rank + 1);
    let mut left = rng.random::<f64>() * (0..SYSTEM_PROMPTS).map(weight).sum::<f64>();
    for rank in 0..SYSTEM_PROMPTS {
        left -= weight(rank);
        if left < 0.0 {
            return rank;
        }
    }
    SYSTEM_PROMPTS - 1
}

/// The chain of a system prompt and of the session's own blocks.
fn prompt(system: u32, name: u64, own_blocks: u32) -> Vec<BlockHash> {
    let mut last = mix64(u64::from(system));
    (0..SYSTEM_BLOCKS + own_blocks)
        .map(|depth| {
            last = mix64(if depth == SYSTEM_BLOCKS { last ^ name } else { last });
            BlockHash(last)
        })
        .collect()
}

/// Resident memory of this process, bytes (`VmRSS` in Linux's `/proc/self/status`).
fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<usize>().ok().map(|kib| kib * 1024)
}
