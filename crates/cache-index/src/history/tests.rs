use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use kvroute_types::mix64;
use proptest::prelude::*;

use super::*;

fn at(s: u32) -> Timestamp {
    Timestamp::from_secs_f64(f64::from(s))
}

fn a() -> InstanceId {
    InstanceId(1)
}

fn b() -> InstanceId {
    InstanceId(2)
}

fn history(config: HistoryConfig) -> History {
    History::new(config).unwrap()
}

/// `own` blocks that follow on `shared` blocks common to all prompts.
fn prompt(shared: u32, own: u32, name: u32) -> Vec<BlockHash> {
    chain([(0, shared), (u64::from(name), own)])
}

/// A chain of block hashes: each run starts with the content named and goes on with content 0.
fn chain(runs: impl IntoIterator<Item = (u64, u32)>) -> Vec<BlockHash> {
    let mut last = 0;
    let mut blocks = Vec::new();
    for (content, len) in runs {
        for index in 0..len {
            last = mix64(last ^ if index == 0 { content } else { 0 });
            blocks.push(BlockHash(last));
        }
    }
    blocks
}

fn matches(history: &History, now: Timestamp, blocks: &[BlockHash]) -> BTreeMap<InstanceId, u32> {
    let mut found = BTreeMap::new();
    history.matches(now, blocks, |instance, matched| {
        assert!(matched > 0);
        assert_eq!(found.insert(instance, matched), None, "an instance is reported once");
    });
    found
}

impl History {
    /// Checks what must hold of the directory at any time.
    fn check(&self) {
        let mut blocks = BTreeMap::<u32, u64>::new();
        let mut of_instance = BTreeMap::<u32, Vec<u32>>::new();
        let mut nodes = BTreeSet::new();
        let mut residents = 0;
        let (mut id, mut last_touched) = (self.recency.oldest(), Timestamp::ZERO);
        while id != NIL {
            let Residency { node, slot, of_all, .. } = self.residencies[id];
            let resident = *self.tree.node(node).resident(self.instances[slot].id).unwrap();
            assert_eq!(resident.residency, id);
            assert!(resident.touched >= last_touched, "the order is one of time");
            last_touched = resident.touched;
            residents += 1;
            nodes.insert(node);
            *blocks.entry(slot).or_default() += u64::from(resident.blocks);
            of_instance.entry(slot).or_default().push(id);
            id = of_all.newer;
        }
        assert_eq!(residents, self.residencies.len());
        let in_nodes = nodes.iter().map(|&node| self.tree.node(node).residents().len());
        assert_eq!(residents, in_nodes.sum::<usize>());
        self.tree.check(&nodes);

        assert_eq!(blocks.len(), self.instances.len());
        assert_eq!(blocks.len(), self.instance_ids.len());
        for (slot, order) in of_instance {
            let instance = &self.instances[slot];
            assert_eq!(self.instance_ids[&instance.id], slot);
            assert_eq!(instance.blocks, blocks[&slot]);
            assert!(instance.blocks <= self.capacity_blocks);
            let mut id = instance.recency.oldest();
            for expected in order {
                assert_eq!(id, expected, "an instance's order is the part of the order of all");
                id = self.residencies[id].of_instance.newer;
            }
            assert_eq!(id, NIL);
        }
        assert_eq!(self.oldest_touched, self.find_oldest_touched());
        assert!(self.memory_bytes() <= self.budget_bytes);
    }
}

/// What `History` promises, said plainly: per instance a map from block to its last use.
#[derive(Default)]
struct Model {
    capacity_blocks: Option<u32>,
    expiry_s: Option<u32>,
    held: BTreeMap<InstanceId, BTreeMap<BlockHash, Use>>,
    inserts: u64,
}

/// In order of recency: of one insert, the deepest block is the least recent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    insert: u64,
    depth: Reverse<usize>,
    at_s: u32,
}

impl Model {
    fn insert(&mut self, at_s: u32, instance: InstanceId, blocks: &[BlockHash]) {
        self.inserts += 1;
        let held = self.held.entry(instance).or_default();
        for (depth, block) in blocks.iter().enumerate() {
            held.insert(*block, Use { insert: self.inserts, depth: Reverse(depth), at_s });
        }
        while self.capacity_blocks.is_some_and(|capacity| held.len() > capacity as usize) {
            let oldest = *held.iter().min_by_key(|(_, last)| **last).unwrap().0;
            held.remove(&oldest);
        }
    }

    fn matches(&self, now_s: u32, blocks: &[BlockHash]) -> BTreeMap<InstanceId, u32> {
        let is_live =
            |last: &Use| self.expiry_s.is_none_or(|expiry_s| now_s - last.at_s < expiry_s);
        self.held
            .iter()
            .map(|(instance, held)| {
                let live = blocks.iter().take_while(|block| held.get(block).is_some_and(is_live));
                (*instance, u32::try_from(live.count()).unwrap())
            })
            .filter(|(_, matched)| *matched > 0)
            .collect()
    }

    fn len_blocks(&self, instance: InstanceId) -> u64 {
        self.held.get(&instance).map_or(0, |held| held.len() as u64)
    }

    fn distinct_blocks(&self) -> u64 {
        let distinct: BTreeSet<_> = self.held.values().flat_map(BTreeMap::keys).collect();
        distinct.len() as u64
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert { instance: InstanceId, runs: Vec<(u64, u32)> },
    Look { runs: Vec<(u64, u32)> },
    Wait { s: u32 },
    Remove { instance: InstanceId },
}

/// Prompts from a small random tree: few contents and few run lengths, so that they share, part
/// within runs, and end within each other.
fn runs() -> impl Strategy<Value = Vec<(u64, u32)>> {
    prop::collection::vec((0..3_u64, prop_oneof![Just(1_u32), 1..4_u32, Just(7)]), 0..5)
}

fn op(instances: u32) -> impl Strategy<Value = Op> {
    let instance = (0..instances).prop_map(|id| InstanceId(id * 1000));
    prop_oneof![
        12 => (instance.clone(), runs()).prop_map(|(instance, runs)| Op::Insert { instance, runs }),
        4 => runs().prop_map(|runs| Op::Look { runs }),
        3 => (1..5_u32).prop_map(|s| Op::Wait { s }),
        1 => instance.prop_map(|instance| Op::Remove { instance }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn agrees_with_a_naive_model(
        ops in prop_oneof![
            prop::collection::vec(op(3), 1..80),
            prop::collection::vec(op(12), 1..120),
        ],
        capacity_blocks in prop::option::of(1..30_u32),
        expiry_s in prop::option::of(1..12_u32),
    ) {
        let mut history = history(HistoryConfig {
            capacity_blocks,
            expiry_s: expiry_s.map(f64::from),
            ..Default::default()
        });
        let mut model = Model { capacity_blocks, expiry_s, ..Default::default() };
        let mut now_s = 0;
        let mut prompts = vec![Vec::new()];
        for op in ops {
            match op {
                Op::Insert { instance, runs } => {
                    let blocks = chain(runs);
                    history.insert(at(now_s), instance, &blocks);
                    model.insert(now_s, instance, &blocks);
                    prompts.push(blocks);
                }
                Op::Look { runs } => prompts.push(chain(runs)),
                Op::Wait { s } => now_s += s,
                Op::Remove { instance } => {
                    history.remove_instance(instance);
                    model.held.remove(&instance);
                    prop_assert_eq!(history.len_blocks(instance), 0);
                }
            }
            history.check();
            for prompt in prompts.iter().rev().take(8) {
                prop_assert_eq!(
                    matches(&history, at(now_s), prompt),
                    model.matches(now_s, prompt)
                );
            }
            if expiry_s.is_none() {
                for instance in model.held.keys() {
                    prop_assert_eq!(history.len_blocks(*instance), model.len_blocks(*instance));
                }
                prop_assert_eq!(history.distinct_blocks(), model.distinct_blocks());
            }
        }
        for prompt in &prompts {
            prop_assert_eq!(matches(&history, at(now_s), prompt), model.matches(now_s, prompt));
        }
        prop_assert_eq!(history.budget_lost_blocks(), 0);
        for instance in model.held.keys() {
            history.remove_instance(*instance);
        }
        history.check();
        prop_assert_eq!(history.distinct_blocks(), 0);
    }

    /// Hashes that do not name their prefix make no sense, but must not break the tree.
    #[test]
    fn hashes_that_are_no_chain_do_no_harm(
        prompts in prop::collection::vec(
            (0..4_u32, prop::collection::vec(0..6_u64, 0..12)), 1..80),
    ) {
        let config = HistoryConfig { capacity_blocks: Some(20), ..Default::default() };
        let mut history = history(config);
        for (instance, prompt) in prompts {
            let prompt: Vec<_> = prompt.into_iter().map(BlockHash).collect();
            history.insert(Timestamp::ZERO, InstanceId(instance), &prompt);
            let held = matches(&history, Timestamp::ZERO, &prompt);
            prop_assert!(held.values().all(|&matched| matched as usize <= prompt.len()));
            history.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Within the budget the directory forgets by recency over all instances: whatever it forgot
    /// was last used no later than whatever it kept.
    #[test]
    fn budget_evicts_the_globally_oldest(
        seeds in prop::collection::vec((0..6_u32, 0..40_u64, 1..60_u32, 0..3_u64, 1..200_u32), 100..400),
    ) {
        let mut history = history(HistoryConfig {
            budget_bytes: History::BUDGET_BYTES_MIN,
            ..Default::default()
        });
        let mut model = Model::default();
        let mut prompts = Vec::new();
        for (now_s, (instance, content, len, next, next_len)) in (0..).zip(seeds) {
            let instance = InstanceId(instance);
            let blocks = chain([(content, len), (next, next_len)]);
            history.insert(at(now_s), instance, &blocks);
            model.insert(now_s, instance, &blocks);
            prop_assert!(history.memory_bytes() <= History::BUDGET_BYTES_MIN);
            prop_assert!(history.len_blocks(instance) >= blocks.len() as u64);
            prompts.push(blocks);
        }
        history.check();
        let (mut kept_oldest, mut lost_newest) = (u64::MAX, 0);
        for prompt in &prompts {
            let found = matches(&history, Timestamp::MAX, prompt);
            for (instance, held) in &model.held {
                let kept = found.get(instance).copied().unwrap_or(0) as usize;
                for (depth, block) in prompt.iter().enumerate() {
                    match held.get(block) {
                        Some(last) if depth < kept => kept_oldest = kept_oldest.min(last.insert),
                        Some(last) => lost_newest = lost_newest.max(last.insert),
                        None => prop_assert!(depth >= kept, "it made up a block"),
                    }
                }
            }
        }
        prop_assert!(lost_newest <= kept_oldest);
        prop_assert!(history.budget_lost_blocks() > 0);
    }
}

#[test]
fn an_instance_matches_as_far_as_its_prompts_went() {
    let mut history = history(HistoryConfig::default());
    history.insert(at(0), a(), &prompt(10, 20, 1));
    history.insert(at(1), b(), &prompt(10, 5, 2));
    let now = at(2);
    assert_eq!(matches(&history, now, &prompt(10, 30, 1)), [(a(), 30), (b(), 10)].into());
    assert_eq!(matches(&history, now, &prompt(10, 3, 2)), [(a(), 10), (b(), 13)].into());
    assert_eq!(matches(&history, now, &prompt(4, 9, 3)), [(a(), 4), (b(), 4)].into());
    assert_eq!(matches(&history, now, &prompt(0, 9, 3)), [].into());
    assert_eq!(matches(&history, now, &[]), [].into());
    assert_eq!(history.len_blocks(a()), 30);
    assert_eq!(history.len_blocks(b()), 15);
    assert_eq!(history.distinct_blocks(), 35);
}

#[test]
fn over_capacity_the_oldest_tail_goes_block_by_block() {
    let config = HistoryConfig { capacity_blocks: Some(30), ..Default::default() };
    let mut history = history(config);
    let [old, new] = [prompt(10, 10, 1), prompt(10, 10, 2)];
    history.insert(at(0), a(), &old);
    history.insert(at(1), a(), &new);
    assert_eq!(history.len_blocks(a()), 30);
    // Three more blocks: three fewer of the older tail, none of what both share.
    history.insert(at(2), a(), &prompt(10, 13, 2));
    assert_eq!(matches(&history, at(2), &old), [(a(), 17)].into());
    assert_eq!(matches(&history, at(2), &prompt(10, 13, 2)), [(a(), 23)].into());
    assert_eq!(history.len_blocks(a()), 30);
    assert_eq!(history.distinct_blocks(), 30);
}

#[test]
fn a_prompt_over_capacity_keeps_its_head() {
    let config = HistoryConfig { capacity_blocks: Some(8), ..Default::default() };
    let mut history = history(config);
    let blocks = prompt(0, 100, 1);
    history.insert(at(0), a(), &blocks);
    assert_eq!(matches(&history, at(0), &blocks), [(a(), 8)].into());
    assert_eq!(history.budget_lost_blocks(), 0);
}

#[test]
fn expired_blocks_do_not_match_and_are_reclaimed() {
    let config = HistoryConfig { expiry_s: Some(10.0), ..Default::default() };
    let mut history = history(config);
    let blocks = prompt(10, 10, 1);
    history.insert(at(0), a(), &blocks);
    history.insert(at(5), a(), &blocks[..10]);
    assert_eq!(matches(&history, at(9), &blocks), [(a(), 20)].into());
    assert_eq!(matches(&history, at(10), &blocks), [(a(), 10)].into());
    assert_eq!(matches(&history, at(15), &blocks), [].into());
    assert_eq!(history.len_blocks(a()), 20);
    history.insert(at(15), b(), &prompt(0, 1, 2));
    assert_eq!(history.len_blocks(a()), 0);
    assert_eq!(history.distinct_blocks(), 1);
    history.check();
}

#[test]
fn time_that_runs_backwards_counts_as_standing_still() {
    let config = HistoryConfig { expiry_s: Some(10.0), ..Default::default() };
    let mut history = history(config);
    history.insert(at(20), a(), &prompt(0, 4, 1));
    history.insert(at(3), b(), &prompt(0, 4, 2));
    assert_eq!(matches(&history, at(29), &prompt(0, 4, 2)), [(b(), 4)].into());
    history.check();
}

#[test]
fn a_growing_session_is_one_edge() {
    let mut history = history(HistoryConfig::default());
    let blocks = prompt(0, 8_000, 1);
    for turn in 1..=80 {
        history.insert(at(turn), a(), &blocks[..turn as usize * 100]);
    }
    assert_eq!(history.residencies.len(), 1);
    assert_eq!(matches(&history, at(80), &blocks), [(a(), 8_000)].into());
    // Another instance takes the session over half way back: still no split.
    history.insert(at(81), b(), &blocks[..4_000]);
    assert_eq!(history.residencies.len(), 2);
    history.remove_instance(a());
    assert_eq!(history.distinct_blocks(), 4_000);
    assert_eq!(matches(&history, at(81), &blocks), [(b(), 4_000)].into());
    history.check();
}

#[test]
fn long_edges_cost_little_more_than_their_hashes() {
    let mut history = history(HistoryConfig::default());
    for name in 0..200 {
        history.insert(at(0), InstanceId(0), &prompt(100, 4_000, name));
    }
    let bytes_per_block = history.memory_bytes() as f64 / history.distinct_blocks() as f64;
    assert!(bytes_per_block < 8.2, "{bytes_per_block}");
}

/// Budget sizes against prompts made to hurt: one block, two nodes per prompt, huge ones, many
/// instances, and one kind after the other.
#[test]
fn the_budget_holds_whatever_comes() {
    for budget_bytes in [History::BUDGET_BYTES_MIN, 64 * 1_500, 1 << 20] {
        let mut history = history(HistoryConfig { budget_bytes, ..Default::default() });
        let mut peak = 0;
        let mut insert = |instance: u32, blocks: &[BlockHash]| {
            history.insert(Timestamp::ZERO, InstanceId(instance), blocks);
            assert!(history.memory_bytes() <= budget_bytes);
            peak = peak.max(history.memory_bytes());
        };
        let count = u32::try_from(budget_bytes / 64).unwrap();
        for name in 0..count {
            insert(0, &prompt(0, 1, name));
        }
        for name in 0..count {
            insert(name % 7, &prompt(3, 2, name));
        }
        for name in 0..count {
            insert(name, &prompt(3, 2, name % 5));
        }
        for len in (1..300).rev() {
            insert(len, &prompt(200, 200, 1)[..len as usize]);
        }
        for name in 0..50 {
            insert(3, &prompt(0, 3_000, name));
        }
        let huge = prompt(0, count * 64, 9);
        insert(4, &huge);
        assert!(peak > budget_bytes / 4 * 3, "the budget is used: {peak} of {budget_bytes}");

        // After all of these the prompt that came last is held, to the length promised.
        let held = matches(&history, Timestamp::ZERO, &huge);
        assert_eq!(held, [(InstanceId(4), count * 2)].into());
        assert!(history.budget_lost_blocks() > 0);
        history.check();
    }
}

#[test]
fn bad_bounds_are_refused() {
    let refused = |config| History::new(config).err().map(|error| error.to_string());
    let default = HistoryConfig::default();
    let zero = HistoryConfig { capacity_blocks: Some(0), ..default };
    assert_eq!(History::new(zero).err(), Some(ConfigError::ZeroCapacityBlocks));
    for expiry_s in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let config = HistoryConfig { expiry_s: Some(expiry_s), ..default };
        assert!(matches!(History::new(config), Err(ConfigError::BadExpiry { .. })));
    }
    assert_eq!(
        refused(HistoryConfig { budget_bytes: 1000, ..default }).as_deref(),
        Some("budget_bytes is 1000; give at least 65536 bytes")
    );
    assert_eq!(refused(default), None);
}
