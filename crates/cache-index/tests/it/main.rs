//! What the directory says of its memory, held against what the operating system says.
//!
//! One test, so that nothing else allocates in this process meanwhile.
#![cfg(target_os = "linux")]

use kvroute_cache_index::{History, HistoryConfig};
use kvroute_types::{BlockHash, InstanceId, Timestamp, mix64};

/// Resident memory of this process, bytes (`VmRSS` in `/proc/self/status`).
fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<usize>().ok().map(|kib| kib * 1024)
}

/// Prompts that no two share a block of: short ones first, then long, then short again.
#[test]
fn unique_prompts_do_not_take_more_memory_than_the_budget() {
    let budget_bytes = 32 << 20;
    let config = HistoryConfig { budget_bytes, ..Default::default() };
    let before = resident_bytes().unwrap();
    let mut history = History::new(config).unwrap();
    let mut prompt = Vec::with_capacity(4_096);
    let mut name = 0_u64;
    for (prompts, blocks) in [(400_000, 2), (2_000, 4_096), (100_000, 40), (400_000, 1)] {
        for index in 0..prompts {
            prompt.clear();
            prompt.extend((0..blocks).map(|_| {
                name += 1;
                BlockHash(mix64(name))
            }));
            let instance = InstanceId(index % 64);
            history.insert(Timestamp::from_nanos(name), instance, &prompt);
        }
        assert!(history.memory_bytes() <= budget_bytes);
        // The tolerance is for what `memory_bytes` leaves out: fragmentation, and freed memory that
        // the allocator keeps. With glibc it is largest (a quarter) where long prompts take the
        // place of short ones, whose freed pieces are too small for them; else near zero.
        let grown = resident_bytes().unwrap().saturating_sub(before);
        assert!(
            grown <= budget_bytes + budget_bytes / 2,
            "{prompts} prompts of {blocks} blocks: {grown} bytes resident, \
             {} bytes by our count, budget {budget_bytes}",
            history.memory_bytes(),
        );
    }
    assert!(history.budget_lost_blocks() > 0);
}
