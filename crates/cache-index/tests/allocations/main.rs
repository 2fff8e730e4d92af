//! The exact index's account of its memory, held against an allocator that counts.
//!
//! A binary of its own with one test, as the count is the whole process's.

use kvroute_cache_index::{ExactIndex, ExactIndexConfig, MatchBuffer};
use kvroute_types::{BlockHash, InstanceId, mix64};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// A prompt of which the first blocks are shared with others.
fn prompt(name: u64, blocks: u64) -> Vec<BlockHash> {
    let mut last = name % 40;
    let next = |depth| {
        last = mix64(if depth == 50 { last ^ name << 20 } else { last });
        BlockHash(last)
    };
    (0..blocks).map(next).collect()
}

fn assert_counted(index: &ExactIndex, before: usize) {
    let allocated = ALLOCATOR.current_usage() - before;
    let counted = index.memory_bytes() + size_of::<ExactIndex>();
    assert!(
        counted.abs_diff(allocated) <= allocated / 50 + 1024,
        "{counted} bytes by its own count, {allocated} by the allocator's"
    );
}

#[test]
fn memory_is_counted_exactly_and_looking_up_allocates_none() {
    let prompts: Vec<Vec<BlockHash>> =
        (0..4_000).map(|name| prompt(name, 30 + name % 500)).collect();
    let instance = |at: usize| InstanceId(u32::try_from(at % 300).unwrap());
    let before = ALLOCATOR.current_usage();
    let config = ExactIndexConfig { budget_bytes: 64 << 20 };
    let mut index = Box::new(ExactIndex::new(config).unwrap());
    for (at, prompt) in prompts.iter().enumerate() {
        index.stored(instance(at), None, prompt);
        // A second copy, a hole, and another holder.
        index.stored(instance(at), Some(prompt[9]), &prompt[10..12]);
        index.removed(instance(at), &prompt[20..21]);
        index.stored(instance(at * 7 + 1), None, &prompt[..25]);
        if at % 500 == 499 {
            assert_counted(&index, before);
        }
    }
    assert_eq!(index.refused_blocks(), 0);

    let mut buffer = MatchBuffer::default();
    let mut found = 0_u64;
    let mut look_up_all = |found: &mut u64| {
        for prompt in &prompts {
            index.matches(&mut buffer, prompt, |_, blocks| *found += u64::from(blocks));
        }
    };
    look_up_all(&mut found);
    ALLOCATOR.reset_peak_usage();
    let usage = ALLOCATOR.current_usage();
    look_up_all(&mut found);
    assert_eq!(ALLOCATOR.peak_usage(), usage);
    assert!(found > 0);

    drop(buffer);
    for at in 0..150 {
        index.forget(instance(at));
        assert_counted(&index, before);
    }
    for (at, prompt) in prompts.iter().enumerate() {
        index.removed(instance(at), prompt);
    }
    assert_counted(&index, before);
    drop(index);
    assert_eq!(ALLOCATOR.current_usage(), before);
}
