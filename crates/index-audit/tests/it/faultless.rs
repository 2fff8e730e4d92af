//! An index that is told everything is never doubted, and the audit finds nothing at all missing.

use kvroute_index_audit::{Cause, Verdict};
use kvroute_types::BlockSize;
use kvroute_vllm_wire::HashAlgo;

use crate::traffic::{Scenario, World, lora, salted};

/// Never doubted, and believed in the end.
#[track_caller]
fn is_never_doubted(scenario: &Scenario, seeds: u64, requests: u32) {
    for seed in 0..seeds {
        let mut world = World::new(scenario.clone(), seed);
        world.run(requests, |world, verdict| {
            let figures = world.audit.figures();
            assert_eq!(verdict.cause(), None, "seed {seed}, request {}: {figures:?}", world.routed);
            false
        });
        let figures = world.audit.figures();
        assert_eq!(world.audit.verdict(world.now), Verdict::Believed, "seed {seed}");
        assert!(figures.audited > u64::from(requests) / 2, "seed {seed}: {figures:?}");
        let missing = (figures.unconfirmed, figures.untold, figures.unknown_removals);
        assert_eq!(missing, (0, 0, 0), "seed {seed}: {figures:?}");
        if scenario.tells_cached {
            assert!(figures.told_later_tokens > 0, "seed {seed}: no news was late");
            assert!(figures.fair_recall.is_some_and(|recall| recall >= 1.0), "{figures:?}");
        }
        if scenario.tells_cached && scenario.tells_removals {
            assert!(figures.evicted_tokens > 0, "seed {seed}: nothing was evicted on the way");
            assert!(
                figures.fair_precision.is_some_and(|precision| precision >= 1.0),
                "{figures:?}"
            );
        }
    }
}

#[test]
fn with_eviction_and_concurrency() {
    is_never_doubted(&Scenario::default(), 8, 20_000);
}

#[test]
fn without_news_of_removals() {
    is_never_doubted(&Scenario { tells_removals: false, ..Scenario::default() }, 4, 20_000);
}

#[test]
fn without_cached_tokens_in_answers() {
    is_never_doubted(&Scenario { tells_cached: false, ..Scenario::default() }, 4, 20_000);
}

/// A cache that holds little more than what runs.
#[test]
fn with_a_cache_that_is_too_small() {
    let scenario = Scenario { blocks: 250, concurrency: 16, bursts: 0.1, ..Scenario::default() };
    is_never_doubted(&scenario, 4, 5_000);
}

#[test]
fn among_requests_of_others() {
    is_never_doubted(&Scenario { others: 0.5, aborts: 0.2, ..Scenario::default() }, 4, 5_000);
}

#[test]
fn with_other_settings_that_both_sides_know() {
    let mut scenario = Scenario { by_bytes: true, ..Scenario::default() };
    scenario.ours.algo = HashAlgo::Sha256Cbor;
    scenario.ours.block_size = BlockSize::new(32).unwrap();
    scenario.ours.pythonhashseed = Some("0".to_owned());
    scenario.theirs = scenario.ours.clone();
    for keys in [salted(), lora("/a")] {
        (scenario.our_keys, scenario.their_keys) = (keys.clone(), keys);
        is_never_doubted(&scenario, 2, 5_000);
    }
}

/// After a loss that is noticed, the index knows little of what is cached. It may be doubted for that, and for nothing
/// else, until the cache has turned over. Prompts that begin alike keep their first blocks cached, and so untold of, for
/// a long time.
#[test]
fn after_a_noticed_loss() {
    for system_prompts in [0, 4] {
        for seed in 0..8 {
            let mut world = World::new(Scenario { system_prompts, ..Scenario::default() }, seed);
            assert_eq!(world.verdict_after(500), Verdict::Believed);
            world.lose();
            world.run(3_000, |_, verdict| {
                assert!(matches!(verdict.cause(), None | Some(Cause::LostEvents)), "{verdict:?}");
                false
            });
            let verdict = world.audit.verdict(world.now);
            assert!(verdict == Verdict::Believed || system_prompts > 0, "seed {seed}: {verdict:?}");
        }
    }
}
