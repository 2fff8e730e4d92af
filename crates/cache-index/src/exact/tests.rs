//! The index against a naive model, and its bounds and snapshots.

use std::collections::BTreeMap;

use kvroute_types::{BlockHash, InstanceId, Timestamp, mix64};
use proptest::prelude::*;

use super::{ExactIndex, ExactIndexConfig, MatchBuffer, SharedExactIndex, SnapshotError};
use crate::error::ConfigError;

/// For each instance, each block and its copies.
#[derive(Clone, Debug, Default)]
struct Model {
    held: BTreeMap<InstanceId, BTreeMap<BlockHash, u32>>,
}

impl Model {
    fn stored(&mut self, instance: InstanceId, blocks: &[BlockHash]) {
        for &block in blocks {
            *self.held.entry(instance).or_default().entry(block).or_default() += 1;
        }
    }

    /// Returns how many were not there.
    fn removed(&mut self, instance: InstanceId, blocks: &[BlockHash]) -> u64 {
        let held = self.held.entry(instance).or_default();
        let mut unknown = 0;
        for block in blocks {
            match held.get_mut(block) {
                Some(1) => drop(held.remove(block)),
                Some(copies) => *copies -= 1,
                None => unknown += 1,
            }
        }
        unknown
    }

    fn matches(&self, prompt: &[BlockHash]) -> BTreeMap<InstanceId, u32> {
        self.held
            .iter()
            .map(|(&instance, held)| {
                let blocks = prompt.iter().take_while(|block| held.contains_key(block)).count();
                (instance, u32::try_from(blocks).unwrap())
            })
            .filter(|&(_, blocks)| blocks > 0)
            .collect()
    }
}

fn matches(
    index: &ExactIndex,
    buffer: &mut MatchBuffer,
    prompt: &[BlockHash],
) -> BTreeMap<InstanceId, u32> {
    let mut found = BTreeMap::new();
    index.matches(buffer, prompt, |instance, blocks| {
        assert_eq!(found.insert(instance, blocks), None, "an instance was reported twice");
    });
    found
}

fn index(budget_bytes: usize) -> ExactIndex {
    ExactIndex::new(ExactIndexConfig { budget_bytes }).unwrap()
}

/// An honest chain: each hash is a function of all blocks so far.
fn chain(names: impl IntoIterator<Item = u64>) -> Vec<BlockHash> {
    let mut last = 1;
    let next = |name| {
        last = mix64(last ^ mix64(name));
        BlockHash(last)
    };
    names.into_iter().map(next).collect()
}

const CHAIN_BLOCKS: u64 = 70;

/// Chains that part at and around the ends of segments, some of them twice.
fn chains() -> Vec<Vec<BlockHash>> {
    let parting = |name: u64, at: u64, then: u64| {
        chain((0..CHAIN_BLOCKS).map(|depth| match depth {
            depth if depth < at => depth,
            depth if depth < then => 1_000 * (at + 1) + depth,
            depth => 100_000 * name + depth,
        }))
    };
    let ends = [(70, 70), (0, 70), (1, 40), (15, 30), (15, 45), (16, 17), (44, 70), (44, 50)];
    ends.iter().zip(1..).map(|(&(at, then), name)| parting(name, at, then)).collect()
}

#[derive(Clone, Debug)]
enum Call {
    /// Blocks of a chain, with their true parent or with none.
    Stored {
        instance: u32,
        chain: usize,
        start: usize,
        len: usize,
        tells_parent: bool,
    },
    /// Blocks of a chain, first to last or last to first.
    Removed {
        instance: u32,
        chain: usize,
        start: usize,
        len: usize,
        backwards: bool,
    },
    Cleared {
        instance: u32,
    },
    Forget {
        instance: u32,
    },
    /// Goes on with the restored copy.
    Restored,
}

fn calls(len: usize) -> impl Strategy<Value = Vec<Call>> {
    let instance = 0..5_u32;
    let part = || (0..8_usize, 0..70_usize, prop_oneof![3 => 1..4_usize, 2 => 1..70_usize]);
    let call = prop_oneof![
        12 => (instance.clone(), part(), any::<bool>()).prop_map(
            |(instance, (chain, start, len), tells_parent)| Call::Stored {
                instance, chain, start, len, tells_parent
            }
        ),
        // Prompts that are stored from the start make matches that are worth comparing.
        12 => (instance.clone(), 0..8_usize, 1..71_usize).prop_map(|(instance, chain, len)| {
            Call::Stored { instance, chain, start: 0, len, tells_parent: true }
        }),
        16 => (instance.clone(), part(), any::<bool>()).prop_map(
            |(instance, (chain, start, len), backwards)| Call::Removed {
                instance, chain, start, len, backwards
            }
        ),
        1 => instance.clone().prop_map(|instance| Call::Cleared { instance }),
        1 => instance.prop_map(|instance| Call::Forget { instance }),
        1 => Just(Call::Restored),
    ];
    proptest::collection::vec(call, 0..len)
}

fn part(blocks: &[BlockHash], start: usize, len: usize) -> &[BlockHash] {
    &blocks[start..(start + len).min(blocks.len())]
}

fn restored(index: &ExactIndex) -> ExactIndex {
    let mut bytes = Vec::new();
    let taken_at = Timestamp::from_nanos(77);
    index.snapshot(taken_at, &mut bytes).unwrap();
    let config = ExactIndexConfig { budget_bytes: index.budget_bytes };
    let (copy, time) = ExactIndex::restore(config, bytes.as_slice()).unwrap();
    assert_eq!(time, taken_at);
    assert_eq!(copy.distinct_blocks(), index.distinct_blocks());
    copy
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn it_answers_as_the_model(calls in calls(60)) {
        let chains = chains();
        let (mut index, mut model) = (index(2 << 20), Model::default());
        let mut buffer = MatchBuffer::default();
        for call in calls {
            match call {
                Call::Stored { instance, chain, start, len, tells_parent } => {
                    let blocks = part(&chains[chain], start, len);
                    let parent = start.checked_sub(1).filter(|_| tells_parent);
                    index.stored(
                        InstanceId(instance), parent.map(|at| chains[chain][at]), blocks
                    );
                    model.stored(InstanceId(instance), blocks);
                }
                Call::Removed { instance, chain, start, len, backwards } => {
                    let mut blocks = part(&chains[chain], start, len).to_vec();
                    if backwards {
                        blocks.reverse();
                    }
                    let before = index.unknown_removals();
                    index.removed(InstanceId(instance), &blocks);
                    let unknown = model.removed(InstanceId(instance), &blocks);
                    prop_assert_eq!(index.unknown_removals() - before, unknown);
                }
                Call::Cleared { instance } => {
                    index.cleared(InstanceId(instance));
                    model.held.remove(&InstanceId(instance));
                }
                Call::Forget { instance } => {
                    index.forget(InstanceId(instance));
                    model.held.remove(&InstanceId(instance));
                }
                Call::Restored => index = restored(&index),
            }
            index.check();
            for chain in &chains {
                prop_assert_eq!(matches(&index, &mut buffer, chain), model.matches(chain));
                prop_assert_eq!(
                    matches(&index, &mut buffer, &chain[..20]), model.matches(&chain[..20])
                );
                prop_assert_eq!(
                    matches(&index, &mut buffer, &chain[17..]), model.matches(&chain[17..])
                );
            }
            for (&instance, held) in &model.held {
                prop_assert_eq!(index.len_blocks(instance), held.len() as u64);
            }
        }
        prop_assert_eq!(index.refused_blocks(), 0);
        for instance in 0..5 {
            index.cleared(InstanceId(instance));
        }
        index.check();
        prop_assert_eq!(index.distinct_blocks(), 0);
    }

    /// With parents and orders that no engine would send nothing breaks, and the sets stay exact.
    #[test]
    fn hashes_that_are_not_chained_make_no_wrong_set(
        calls in proptest::collection::vec(
            (0..3_u32, proptest::option::of(0..60_u64), proptest::collection::vec(0..60_u64, 1..20),
             any::<bool>()),
            0..60,
        )
    ) {
        let (mut index, mut model) = (index(2 << 20), Model::default());
        for (instance, parent, blocks, stores) in calls {
            let blocks: Vec<BlockHash> = blocks.into_iter().map(BlockHash).collect();
            if stores {
                index.stored(InstanceId(instance), parent.map(BlockHash), &blocks);
                model.stored(InstanceId(instance), &blocks);
            } else {
                index.removed(InstanceId(instance), &blocks);
                model.removed(InstanceId(instance), &blocks);
            }
            index.check();
            for instance in 0..3 {
                let held = model.held.get(&InstanceId(instance));
                for block in (0..60).map(BlockHash) {
                    let holds = held.is_some_and(|held| held.contains_key(&block));
                    prop_assert_eq!(index.holds(InstanceId(instance), block), holds);
                }
            }
        }
    }

    /// Whatever bytes a snapshot has, it is restored whole or refused.
    #[test]
    fn a_damaged_snapshot_is_refused(
        calls in calls(12), cut in any::<prop::sample::Index>(), bit in 0..8_u8
    ) {
        let chains = chains();
        let mut index = index(2 << 20);
        for call in calls {
            if let Call::Stored { instance, chain, start, len, .. } = call {
                index.stored(InstanceId(instance), None, part(&chains[chain], start, len));
            }
        }
        let mut bytes = Vec::new();
        index.snapshot(Timestamp::ZERO, &mut bytes).unwrap();
        let config = ExactIndexConfig { budget_bytes: 2 << 20 };
        let cut = cut.index(bytes.len());
        let truncated = ExactIndex::restore(config, &bytes[..cut]);
        prop_assert!(matches!(truncated, Err(SnapshotError::Truncated)));
        bytes[cut] ^= 1 << bit;
        prop_assert!(ExactIndex::restore(config, bytes.as_slice()).is_err());
    }
}

#[test]
fn a_block_stored_twice_and_removed_once_is_there() {
    let (mut index, a, prompt) = (index(1 << 20), InstanceId(1), chain(0..3));
    index.stored(a, None, &prompt);
    index.stored(a, Some(prompt[1]), &prompt[2..]);
    index.removed(a, &prompt[2..]);
    let mut buffer = MatchBuffer::default();
    assert_eq!(matches(&index, &mut buffer, &prompt), BTreeMap::from([(a, 3)]));
    index.removed(a, &prompt[2..]);
    assert_eq!(matches(&index, &mut buffer, &prompt), BTreeMap::from([(a, 2)]));
    assert_eq!(index.unknown_removals(), 0);
}

#[test]
fn what_nobody_holds_any_more_is_given_back_whichever_end_goes_first() {
    let prompt = chain(0..10_000);
    for backwards in [false, true] {
        let mut index = index(4 << 20);
        index.stored(InstanceId(1), None, &prompt);
        index.stored(InstanceId(2), None, &prompt[9_990..]);
        let mut order = prompt.clone();
        if backwards {
            order.reverse();
        }
        for (removed, block) in order.iter().enumerate() {
            index.removed(InstanceId(1), &[*block]);
            let held = (10_000 - removed as u64 - 1).max(10);
            assert!(index.distinct_blocks() <= held + 3 * 15, "{removed} removed");
        }
        index.check();
        assert_eq!(index.len_blocks(InstanceId(2)), 10);
    }
}

#[test]
fn at_the_budget_blocks_are_refused_and_room_comes_back() {
    let budget_bytes = 2 << 20;
    let (mut index, mut model) = (index(budget_bytes), Model::default());
    let mut buffer = MatchBuffer::default();
    let prompts: Vec<Vec<BlockHash>> = (0..3_000_u64)
        .map(|name| {
            chain(
                (0..40 + name % 100)
                    .map(|depth| if depth < 20 { depth } else { name << 32 | depth }),
            )
        })
        .collect();
    let instance = |at: usize| InstanceId(u32::try_from(at % 50).unwrap());
    for round in 0..3 {
        for (at, prompt) in prompts.iter().enumerate() {
            index.stored(instance(at), None, prompt);
            model.stored(instance(at), prompt);
            assert!(index.memory_bytes() <= budget_bytes);
            // Holes, which take room too.
            let holes: Vec<BlockHash> = prompt.iter().copied().skip(round).step_by(3).collect();
            index.removed(instance(at), &holes);
            model.removed(instance(at), &holes);
            assert!(index.memory_bytes() <= budget_bytes);
        }
        index.check();
        assert!(index.refused_blocks() > 0);
        for prompt in &prompts {
            let truth = model.matches(prompt);
            for (instance, blocks) in matches(&index, &mut buffer, prompt) {
                assert!(blocks <= truth[&instance], "it says more than is true");
            }
        }
        for at in 0..50 {
            index.cleared(instance(at));
            model.held.remove(&instance(at));
        }
        let before = index.refused_blocks();
        index.stored(InstanceId(0), None, &prompts[0]);
        assert_eq!(index.refused_blocks(), before);
        index.cleared(InstanceId(0));
    }
}

#[test]
fn at_the_budget_hashes_in_any_order_break_nothing() {
    let mut index = index(1 << 20);
    let mut state = 1;
    let mut draw = |below: u64| {
        state = mix64(state);
        state % below
    };
    for event in 0..12_000 {
        let instance = InstanceId(u32::try_from(draw(40)).unwrap());
        let first = draw(2_000) * 100;
        // In order, with jumps back to blocks of the same event.
        let mut at = first;
        let blocks: Vec<BlockHash> = (0..=draw(30))
            .map(|_| {
                at = if draw(4) == 0 { first + draw(30) } else { at + 1 };
                BlockHash(mix64(at))
            })
            .collect();
        if draw(4) == 0 {
            index.removed(instance, &blocks);
        } else {
            index.stored(instance, Some(BlockHash(mix64(first + draw(30)))), &blocks);
        }
        assert!(index.memory_bytes() <= 1 << 20);
        if event % 500 == 0 {
            index.check();
        }
    }
    index.check();
    assert!(index.refused_blocks() > 0);
}

#[test]
fn a_prompt_parts_from_a_run_anywhere() {
    let long = chain(0..200);
    let (a, mut buffer) = (InstanceId(1), MatchBuffer::default());
    // Another run branches off at `fork`, which is where a look-up guesses first.
    for fork in [1, 2, 15, 99, 198] {
        let mut index = index(1 << 20);
        index.stored(a, None, &long);
        index.stored(a, Some(long[fork - 1]), &chain([7_777]));
        for parting in 1..200 {
            let prompt = chain((0..200).map(|depth| depth + u64::from(depth >= parting) * 1_000));
            let found = matches(&index, &mut buffer, &prompt);
            assert_eq!(found, BTreeMap::from([(a, u32::try_from(parting).unwrap())]));
        }
    }
}

#[test]
fn a_budget_too_small_is_refused_with_the_smallest() {
    let error = ExactIndex::new(ExactIndexConfig { budget_bytes: 1000 }).unwrap_err();
    assert_eq!(error, ConfigError::BudgetTooSmall { budget_bytes: 1000, min_bytes: 1 << 20 });
}

#[test]
fn snapshots_of_another_kind_or_size_are_refused() {
    let config = ExactIndexConfig { budget_bytes: 1 << 20 };
    let mut bytes = Vec::new();
    index(1 << 20).snapshot(Timestamp::ZERO, &mut bytes).unwrap();
    bytes[8] = 9;
    let error = ExactIndex::restore(config, bytes.as_slice()).unwrap_err();
    assert!(error.to_string().contains("version 9"), "{error}");
    let error = ExactIndex::restore(config, b"{\"a\": 1}".as_slice()).unwrap_err();
    assert!(matches!(error, SnapshotError::NotASnapshot));

    let mut large = index(8 << 20);
    large.stored(InstanceId(1), None, &chain(0..200_000));
    assert_eq!(large.refused_blocks(), 0);
    bytes.clear();
    large.snapshot(Timestamp::ZERO, &mut bytes).unwrap();
    let error = ExactIndex::restore(config, bytes.as_slice()).unwrap_err();
    assert!(matches!(error, SnapshotError::OverBudget { budget_bytes: 1_048_576 }));
}

#[test]
fn readers_see_whole_events_while_another_thread_writes() {
    let prompt = chain(0..128);
    let shared = SharedExactIndex::new(index(1 << 20));
    let a = InstanceId(3);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..2_000 {
                shared.update(|index| index.stored(a, None, &prompt));
                shared.update(|index| index.removed(a, &prompt));
            }
        });
        let mut buffer = MatchBuffer::default();
        while !writer.is_finished() {
            let found = shared.read(|index| matches(index, &mut buffer, &prompt));
            assert!(found.is_empty() || found == BTreeMap::from([(a, 128)]));
        }
    });
    assert_eq!(shared.into_inner().distinct_blocks(), 0);
}
