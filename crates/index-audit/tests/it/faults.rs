//! Every fault is named for what it is, within 200 requests.

use kvroute_index_audit::{Cause, Verdict};
use kvroute_types::BlockSize;
use kvroute_vllm_wire::HashAlgo;

use crate::traffic::{Scenario, TokenizerFault, World, lora, salted};

/// A fault: what it changes, and its cause.
type Fault = (&'static str, fn(&mut Scenario), Cause);

/// All of them.
fn faults() -> Vec<Fault> {
    fn block_size(tokens: u32) -> BlockSize {
        BlockSize::new(tokens).expect("not zero")
    }
    let sizes = |theirs| Cause::BlockSize { ours: 16, theirs };
    vec![
        ("greater blocks", |s| s.theirs.block_size = block_size(32), sizes(32)),
        ("smaller blocks", |s| s.theirs.block_size = block_size(8), sizes(8)),
        (
            "algorithm",
            |s| s.theirs.algo = HashAlgo::Sha256Cbor,
            Cause::HashAlgo { theirs: HashAlgo::Sha256Cbor },
        ),
        ("seed", |s| s.theirs.pythonhashseed = Some("0".to_owned()), Cause::HashSeed),
        ("unknown salt", |s| s.their_keys = salted(), Cause::Salt),
        ("salt not passed on", |s| s.our_keys = salted(), Cause::Salt),
        ("adapter unknown", |s| s.their_keys = lora("/a"), Cause::Lora),
        (
            "adapter elsewhere",
            |s| (s.our_keys, s.their_keys) = (lora("/a"), lora("/b")),
            Cause::Lora,
        ),
        ("lengths", |s| s.tokenizer = TokenizerFault::OtherLengths, Cause::Tokenizer),
        ("ids", |s| s.tokenizer = TokenizerFault::OtherIds, Cause::Tokenizer),
        ("template", |s| s.tokenizer = TokenizerFault::OtherChatTemplate, Cause::Tokenizer),
        ("1 in 20 lost", |s| s.batches_lost = 0.05, Cause::LostEvents),
        ("1 in 3 lost", |s| s.batches_lost = 0.33, Cause::LostEvents),
        ("all lost", |s| s.batches_lost = 1.0, Cause::LostEvents),
    ]
}

/// Every fault under these circumstances, from the start, and from a restart of a healthy instance on.
fn are_named(seeds: u64, change: fn(&mut Scenario)) {
    for (name, fault, cause) in faults() {
        for seed in 0..seeds {
            let mut scenario = Scenario::default();
            change(&mut scenario);
            let mut healthy = World::new(scenario.clone(), seed);
            fault(&mut scenario);
            let mut world = World::new(scenario, seed);
            let (after, found) = world.first_doubt(200);
            let figures = world.audit.figures();
            assert_eq!(found, Some(cause), "{name}, seed {seed}, after {after}: {figures:?}");
            // It stays so, however long the fault lasts.
            let later = world.verdict_after(500);
            assert_eq!(later, Verdict::Doubted(cause), "{name}, seed {seed}, later");

            assert_eq!(healthy.first_doubt(400).1, None, "{name}, seed {seed}, before");
            healthy.restart(fault);
            let (after, found) = healthy.first_doubt(200);
            let figures = healthy.audit.figures();
            assert_eq!(found, Some(cause), "{name}, seed {seed}, {after} on: {figures:?}");
        }
    }
}

#[test]
fn are_named_as_they_are() {
    are_named(12, |_| {});
}

#[test]
fn are_named_among_requests_of_others() {
    are_named(4, |scenario| scenario.others = 0.3);
}

#[test]
fn are_named_without_cached_tokens_in_answers() {
    are_named(4, |scenario| scenario.tells_cached = false);
}

#[test]
fn are_named_without_news_of_removals() {
    are_named(4, |scenario| scenario.tells_removals = false);
}

/// A tokenizer that differs in a few tokens, and not in their number, leaves some prompts as they are. That cannot be
/// told from lost events at once.
#[test]
fn a_few_other_ids_are_found() {
    for seed in 0..12 {
        let scenario = Scenario { tokenizer: TokenizerFault::SomeOtherIds, ..Scenario::default() };
        let mut world = World::new(scenario, seed);
        let (_, found) = world.first_doubt(200);
        assert!(matches!(found, Some(Cause::Tokenizer | Cause::LostEvents)), "{found:?}");
        assert_eq!(world.verdict_after(500), Verdict::Doubted(Cause::Tokenizer), "seed {seed}");
    }
}

/// Requests after which an index is believed again, at most `requests`.
fn believed_after(world: &mut World, requests: u32) -> Option<u32> {
    let start = world.routed;
    world.run(requests, |_, verdict| verdict == Verdict::Believed);
    (world.audit.verdict(world.now) == Verdict::Believed).then_some(world.routed - start)
}

/// All faults end with a restart that puts the settings right.
#[test]
fn a_doubt_ends_with_the_fault() {
    for (name, fault, cause) in faults() {
        for seed in 0..4 {
            let mut scenario = Scenario::default();
            fault(&mut scenario);
            let mut world = World::new(scenario, seed);
            assert_eq!(world.first_doubt(200).1, Some(cause), "{name}, seed {seed}");
            world.restart(|scenario| {
                // What is ours is as the audit knows it.
                let ours = scenario.ours.clone();
                *scenario = Scenario { theirs: ours, ..Scenario::default() };
            });
            let after = believed_after(&mut world, 200);
            assert!(after.is_some(), "{name}, seed {seed}: {:?}", world.audit.figures());
            assert_eq!(world.first_doubt(1_000).1, None, "{name}, seed {seed}, later");
        }
    }
}

/// Without a restart, an index that missed something is right again when the cache has turned over.
#[test]
fn a_doubt_ends_when_events_come_again() {
    for seed in 0..8 {
        let mut world = World::new(Scenario { batches_lost: 0.2, ..Scenario::default() }, seed);
        assert_eq!(world.first_doubt(200).1, Some(Cause::LostEvents), "seed {seed}");
        world.scenario.batches_lost = 0.0;
        let after = believed_after(&mut world, 5_000);
        assert!(after.is_some_and(|after| after > 64), "seed {seed}: {after:?}");
        let (_, again) = world.first_doubt(2_000);
        assert!(matches!(again, None | Some(Cause::LostEvents)), "seed {seed}: {again:?}");
    }
}
