use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A chain of blocks, each known by all letters up to its own; and how many of them can be hits.
#[derive(Clone, Debug)]
struct Chain {
    blocks: String,
    hittable: usize,
    counts: bool,
}

/// All blocks but the last can be hits, as in prompts of whole blocks.
fn chain(blocks: &str) -> Chain {
    Chain { blocks: blocks.to_owned(), hittable: blocks.len() - 1, counts: true }
}

/// Keys of the blocks of each chain, and how many there are.
fn keys(chains: &[Chain]) -> (Vec<Vec<usize>>, usize) {
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    let mut all = Vec::new();
    for Chain { blocks, .. } in chains {
        let prefixes = (1..=blocks.len()).map(|end| &blocks[..end]);
        all.push(
            prefixes
                .map(|prefix| {
                    let next = known.len();
                    *known.entry(prefix).or_insert(next)
                })
                .collect(),
        );
    }
    (all, known.len())
}

/// Of blocks of one token, so that hits are blocks.
fn reuses(chains: &[Chain]) -> Reuses {
    let (keys, distinct) = keys(chains);
    let mut builder = Builder::new(BlockSize::new(1).unwrap(), distinct);
    for (Chain { blocks, hittable, counts }, keys) in chains.iter().zip(keys) {
        let length = |n: usize| u32::try_from(n).unwrap();
        let request = Use {
            hittable: length(*hittable),
            left: length(keys.len()),
            rows: (0, 0),
            counted_tokens: counts.then_some(length(blocks.len())),
        };
        builder.push(request, keys.into_iter());
    }
    builder.finish()
}

/// Hits of LRU, Belady and the infinite cache.
fn hits(chains: &[Chain], capacity: u64) -> [u64; 3] {
    let reuses = reuses(chains);
    let hopes = reuses.hopes.iter().map(|hope| u64::from(hope.blocks)).sum();
    [reuses.lru_hits(capacity), reuses.belady_hits(capacity), hopes]
}

#[test]
fn of_two_conversations_belady_keeps_the_one_that_goes_on() {
    // Each time the other one was used last, so an LRU with room for one of them hits nothing. Belady keeps `ab`, and `x` of
    // the other: 2, 1 and 2 hits.
    let chains: Vec<Chain> = ["abc", "xyz", "abc", "xyz", "abc"].map(chain).into();
    assert_eq!(hits(&chains, 3), [0, 5, 6]);
    // With four places both lie side by side without their last blocks, which are never hits; an LRU keeps those too, and of
    // the other conversation the first block alone.
    assert_eq!(hits(&chains, 4), [3, 6, 6]);
    assert_eq!(hits(&chains, 5), [6, 6, 6]);
}

#[test]
fn a_hit_is_a_row_from_the_first_block_on() {
    // Of `abcd` the tail goes first: three blocks are left beside `x`, then two are hit of `abce`, and of `xy` one.
    let chains: Vec<Chain> = ["abcd", "x", "abe"].map(chain).into();
    assert_eq!(hits(&chains, 4)[0], 2);
    assert_eq!(hits(&chains, 3)[0], 2);
    assert_eq!(hits(&chains, 2)[0], 1);
    assert_eq!(hits(&chains, 1)[0], 0);
    assert_eq!(hits(&chains, 2)[1], 2);
    assert_eq!(hits(&chains, 0), [0, 0, 2]);
}

#[test]
fn the_block_of_the_last_token_is_never_a_hit_and_never_kept_for_one() {
    // The second `ab` finds `a` alone. Belady needs one place.
    assert_eq!(hits(&[chain("ab"), chain("ab")], 1), [1, 1, 1]);
    // `b` is computed again by the second, so that it need not be kept before; but the third finds it.
    assert_eq!(hits(&[chain("ab"), chain("ab"), chain("abc")], 2), [3, 3, 3]);
}

#[test]
fn blocks_of_an_answer_are_hits_of_the_next_turn() {
    // A prompt of one block and two blocks of answer; then a prompt of four.
    let first = Chain { blocks: "abc".to_owned(), hittable: 0, counts: true };
    assert_eq!(hits(&[first, chain("abcd")], 3), [3, 3, 3]);
}

#[test]
fn what_does_not_count_is_not_kept_for() {
    let warm_up = Chain { counts: false, ..chain("abc") };
    let chains = [chain("abc"), chain("xyz"), warm_up, chain("xyz")];
    // One place too few: `x` and `y` are kept, as the second `abc` does not count.
    assert_eq!(hits(&chains, 2), [0, 2, 2]);
    assert!((reuses(&chains).hit_rates(2).belady - 2.0 / 9.0).abs() < 1e-12);
}

#[test]
fn a_workload_is_cut_where_vllm_cuts_it() {
    // Blocks of 2. P = 4 and O = 3: 6 of 7 tokens are computed, 3 blocks. The same prompt again finds 1 block (R24), and
    // leaves the same prompt blocks but another answer.
    let prompt = |at: u64| crate::TokenPrompt {
        arrival: Timestamp::from_nanos(at),
        tokens: vec![1, 2, 3, 4],
        output_tokens: 3,
    };
    let workload = Workload::of_prompts("p", [prompt(0), prompt(1)]);
    let plan = Plan::new(&workload, BlockSize::new(2).unwrap()).unwrap();
    let reuses = Reuses::new(&workload, &plan, Timestamp::ZERO..=Timestamp::MAX);
    assert_eq!(reuses.requests[0].left, 3);
    assert_eq!(reuses.rows, [Reuse { from: 0, blocks: 0..2 }]);
    assert_eq!(reuses.hopes, [Hope { from: 0, to: 1, blocks: 1 }]);
    let rates = reuses.hit_rates(1);
    assert!((rates.infinite - 2.0 / 8.0).abs() < 1e-12);
    assert!((rates.belady - rates.infinite).abs() < 1e-12);
    assert!((rates.lru - rates.infinite).abs() < 1e-12);
    assert!(reuses.hit_rates(0).belady.abs() < 1e-12);
}

/// Requests after one another, block by block: the keys used last, newest first.
fn naive_lru_hits(chains: &[Chain], capacity: usize) -> u64 {
    let mut held: Vec<usize> = Vec::new();
    let mut hits = 0;
    for (Chain { hittable, counts, .. }, keys) in chains.iter().zip(keys(chains).0) {
        let found = keys.iter().take(*hittable).take_while(|key| held.contains(key)).count();
        hits += if *counts { found as u64 } else { 0 };
        for key in keys.iter().rev() {
            held.retain(|other| other != key);
            held.insert(0, *key);
        }
        held.truncate(capacity);
    }
    hits
}

/// The most hits that any choice of blocks to keep gives, whether or not their ancestors are kept. Sets are bits by key.
fn most_hits(chains: &[Chain], capacity: u32) -> u64 {
    let mut best: BTreeMap<u32, u64> = BTreeMap::from([(0, 0)]);
    for (Chain { hittable, counts, .. }, keys) in chains.iter().zip(keys(chains).0) {
        let left = keys.iter().fold(0, |set, key| set | 1 << key);
        let mut next: BTreeMap<u32, u64> = BTreeMap::new();
        for (held, hits) in best {
            let found =
                keys.iter().take(*hittable).take_while(|key| held >> **key & 1 == 1).count();
            let hits = hits + if *counts { found as u64 } else { 0 };
            let all: u32 = held | left;
            // All subsets, by counting down within the bits. To keep fewer than one can is no use.
            let kept = capacity.min(all.count_ones());
            let subsets =
                std::iter::successors(Some(all), |set| set.checked_sub(1).map(|set| set & all));
            for set in subsets.filter(|set| set.count_ones() == kept) {
                let known = next.entry(set).or_default();
                *known = hits.max(*known);
            }
        }
        best = next;
    }
    best.into_values().max().unwrap_or_default()
}

/// Chains of up to `length` blocks over two letters, some of which do not count, hit up to any block.
fn chains(requests: usize, length: usize) -> impl Strategy<Value = Vec<Chain>> {
    let blocks = prop::string::string_regex(&format!("[ab]{{1,{length}}}")).unwrap();
    let one = (blocks, 0..=length, prop::bool::weighted(0.8));
    let one = one.prop_map(|(blocks, unhittable, counts)| Chain {
        hittable: blocks.len().saturating_sub(unhittable.max(1)),
        blocks,
        counts,
    });
    prop::collection::vec(one, 1..=requests)
}

proptest! {
    #[test]
    fn no_choice_beats_belady(chains in chains(7, 3), capacity in 0_u32..5) {
        prop_assert_eq!(hits(&chains, capacity.into())[1], most_hits(&chains, capacity));
    }

    #[test]
    fn rows_are_what_an_lru_of_blocks_holds(chains in chains(40, 8), capacity in 0_usize..40) {
        prop_assert_eq!(hits(&chains, capacity as u64)[0], naive_lru_hits(&chains, capacity));
    }

    #[test]
    fn bounds_are_in_order_and_meet_where_there_is_room(chains in chains(40, 8), capacity in 0_u64..40) {
        let [lru, belady, infinite] = hits(&chains, capacity);
        prop_assert!(lru <= belady && belady <= infinite);
        prop_assert!(belady <= hits(&chains, capacity + 1)[1]);
        let room = keys(&chains).1 as u64;
        prop_assert_eq!(hits(&chains, room), [infinite; 3]);
    }
}
