use std::num::NonZeroUsize;

use kvroute_types::BlockSize;
use kvroute_vllm_wire::{BlockHasher, ExtraKeys, HashAlgo, none_hash};
use proptest::prelude::*;

use super::*;
use crate::watch::RECENT_ROOTS;

const NOW: Timestamp = Timestamp::ZERO;
const BLOCK: u32 = 16;

fn naming() -> Naming {
    Naming { algo: HashAlgo::Sha256, block_size: BlockSize::default(), pythonhashseed: None }
}

fn audit() -> Audit {
    Audit::new(AuditConfig::default(), &naming())
}

fn at(s: f64) -> Timestamp {
    Timestamp::from_secs_f64(s)
}

/// Blocks of a prompt of its own.
fn blocks(prompt: u32, count: u32) -> Vec<BlockHash> {
    (0..count)
        .map(|block| BlockHash(u64::from(prompt) << 32 | u64::from(block) | 1 << 63))
        .collect()
}

fn event(blocks: &[BlockHash], parent: Option<BlockHash>) -> BlockStored {
    BlockStored {
        block_hashes: blocks.iter().map(|hash| hash.0.into()).collect(),
        parent_block_hash: parent.map(|hash| hash.0.into()),
        block_size: BLOCK,
        ..BlockStored::default()
    }
}

fn route(audit: &mut Audit, now: Timestamp, id: u32, blocks: &[BlockHash], predicted: u32) {
    let tokens = u32::try_from(blocks.len()).unwrap() * BLOCK + 1;
    audit.routed(
        now,
        &Expectation {
            request: RequestId(id),
            prompt_tokens: TokenCount(tokens),
            blocks,
            predicted_cached_tokens: TokenCount(predicted),
            has_extra_keys: false,
        },
    );
}

fn usage(blocks: u32, cached: u32) -> Reported {
    Reported {
        prompt_tokens: TokenCount(blocks * BLOCK + 1),
        cached_tokens: Some(TokenCount(cached)),
    }
}

/// A request of 4 blocks that finds nothing cached, and whose blocks are told of.
fn good_request(audit: &mut Audit, id: u32) {
    let blocks = blocks(id, 4);
    route(audit, NOW, id, &blocks, 0);
    audit.stored(NOW, &event(&blocks, Some(BlockHash(5))));
    audit.ended(NOW, RequestId(id), Some(usage(4, 0)));
}

/// The same, untold of.
fn silent_request(audit: &mut Audit, now: Timestamp, id: u32) {
    route(audit, now, id, &blocks(id, 4), 0);
    audit.ended(now, RequestId(id), Some(usage(4, 0)));
}

/// Root event of a block of the tokens `0..16` as a server with these settings names it.
fn root_event(naming: &Naming, keys: ExtraKeys) -> BlockStored {
    let block_size = NonZeroUsize::new(naming.block_size.get() as usize).unwrap();
    let root = none_hash(naming.algo, naming.pythonhashseed.as_deref());
    let event_keys = keys.event_keys(0, block_size);
    let mut hasher = BlockHasher::new(naming.algo, root, block_size, keys);
    let (tokens, mut digests) = ((0..naming.block_size.get()).collect::<Vec<_>>(), Vec::new());
    hasher.extend(&tokens, &mut digests);
    BlockStored {
        block_hashes: vec![digests[0].external_u64().into()],
        token_ids: tokens,
        block_size: naming.block_size.get(),
        extra_keys: Some(vec![event_keys]),
        group_idx: Some(0),
        ..BlockStored::default()
    }
}

#[test]
fn an_event_may_come_before_the_end_or_after() {
    let mut audit = audit();
    let blocks = blocks(1, 4);
    route(&mut audit, at(0.0), 1, &blocks, 0);
    audit.ended(at(1.0), RequestId(1), Some(usage(4, 0)));
    assert_eq!(audit.figures().audited, 0, "awaited");
    audit.stored(at(2.9), &event(&blocks, None));
    audit.verdict(at(3.1));
    assert_eq!((audit.figures().audited, audit.figures().unconfirmed), (1, 0));

    silent_request(&mut audit, at(4.0), 2);
    audit.verdict(at(6.0));
    assert_eq!(audit.figures().audited, 1, "2 s are not over");
    audit.verdict(at(6.1));
    assert_eq!((audit.figures().audited, audit.figures().unconfirmed), (2, 1));
}

#[test]
fn only_what_is_computed_must_be_told() {
    let mut audit = audit();
    let blocks = blocks(1, 4);
    // All cached, known or not.
    route(&mut audit, NOW, 1, &blocks, 64);
    audit.ended(NOW, RequestId(1), Some(usage(4, 64)));
    route(&mut audit, NOW, 2, &blocks, 32);
    audit.stored(NOW, &event(&blocks[2..], Some(blocks[1])));
    audit.ended(NOW, RequestId(2), Some(usage(4, 64)));
    // A fully cached prompt of whole blocks computes its last one again (R24).
    audit.routed(
        NOW,
        &Expectation {
            request: RequestId(3),
            prompt_tokens: TokenCount(64),
            blocks: &blocks,
            predicted_cached_tokens: TokenCount(64),
            has_extra_keys: false,
        },
    );
    let reported = Reported { prompt_tokens: TokenCount(64), cached_tokens: Some(TokenCount(48)) };
    audit.ended(NOW, RequestId(3), Some(reported));
    assert_eq!(audit.figures().audited, 2);
    audit.verdict(at(3.0));
    let figures = audit.figures();
    assert_eq!((figures.audited, figures.unconfirmed), (3, 1));
    assert_eq!((figures.predicted_tokens, figures.reported_tokens), (64 + 32 + 48, 64 + 64 + 48));
    assert_eq!((figures.correct_tokens, figures.told_later_tokens), (64 + 32 + 48, 32));
    assert_eq!(figures.fair_recall, Some(1.0));
    assert_eq!(figures.recall, Some(144.0 / 176.0));
}

#[test]
fn what_was_evicted_on_the_way_is_no_broken_promise() {
    let mut audit = audit();
    let blocks = blocks(1, 4);
    for id in 1..=2 {
        route(&mut audit, NOW, id, &blocks, 64);
        if id == 1 {
            let removed =
                BlockRemoved { block_hashes: vec![blocks[3].0.into()], ..BlockRemoved::default() };
            audit.evicted(NOW, &removed);
        }
        audit.stored(NOW, &event(&blocks[3..], Some(blocks[2])));
        audit.ended(NOW, RequestId(id), Some(usage(4, 48)));
    }
    let figures = audit.figures();
    assert_eq!((figures.audited, figures.evicted_tokens), (2, 16));
    assert_eq!(figures.precision, Some(96.0 / 128.0));
    assert_eq!(figures.fair_precision, Some(96.0 / 112.0));
}

#[test]
fn requests_that_failed_or_were_under_way_at_a_loss_are_not_audited() {
    let mut audit = audit();
    route(&mut audit, NOW, 1, &blocks(1, 4), 0);
    audit.dropped(RequestId(1));
    audit.ended(NOW, RequestId(1), Some(usage(4, 0)));
    silent_request(&mut audit, NOW, 2);
    audit.lost(NOW);
    silent_request(&mut audit, NOW, 3);
    audit.dropped(RequestId(3));
    audit.cleared(NOW);
    audit.verdict(at(60.0));
    assert_eq!(audit.figures(), Figures { losses: 1, ..Figures::default() });
}

#[test]
fn roots_tell_settings_at_once_and_end_the_doubt() {
    let theirs = |change: fn(&mut Naming)| {
        let mut theirs = naming();
        change(&mut theirs);
        theirs
    };
    let faults = [
        (
            theirs(|naming| naming.block_size = BlockSize::new(32).unwrap()),
            Cause::BlockSize { ours: 16, theirs: 32 },
        ),
        (
            theirs(|naming| naming.algo = HashAlgo::Sha256Cbor),
            Cause::HashAlgo { theirs: HashAlgo::Sha256Cbor },
        ),
        (theirs(|naming| naming.pythonhashseed = Some("1".to_owned())), Cause::HashSeed),
    ];
    for (theirs, cause) in faults {
        let mut audit = audit();
        audit.stored(NOW, &root_event(&theirs, ExtraKeys::default()));
        assert_eq!(audit.verdict(NOW), Verdict::Doubted(cause));
        // Requests do not end it.
        (0..200).for_each(|id| good_request(&mut audit, id));
        assert_eq!(audit.verdict(NOW), Verdict::Doubted(cause));
        audit.cleared(NOW);
        assert_eq!(audit.verdict(NOW), Verdict::Doubted(cause));
        audit.stored(NOW, &root_event(&naming(), ExtraKeys::default()));
        assert_eq!(audit.verdict(NOW), Verdict::Learning);
    }
}

#[test]
fn roots_that_do_not_tell_all_prove_nothing() {
    let other = Naming { pythonhashseed: Some("1".to_owned()), ..naming() };
    let mut audit = audit();
    let salted = ExtraKeys { cache_salt: Some("a".to_owned()), ..ExtraKeys::default() };
    audit.stored(NOW, &root_event(&other, salted.clone()));
    let plain = root_event(&other, ExtraKeys::default());
    audit.stored(NOW, &BlockStored { extra_keys: None, ..plain.clone() });
    audit.stored(NOW, &BlockStored { lora_name: Some("a".to_owned()), ..plain.clone() });
    audit.stored(NOW, &BlockStored { group_idx: Some(1), ..plain.clone() });
    audit.stored(NOW, &BlockStored { token_ids: vec![1], ..plain });
    assert_eq!(audit.verdict(NOW), Verdict::Learning);
    assert_eq!((audit.figures().verified_roots, audit.figures().unexpected_roots), (0, 4));
    // A salted one that is named as we would does.
    audit.stored(NOW, &root_event(&naming(), salted));
    assert_eq!(audit.figures().verified_roots, 1);
}

/// What an index that lost something did not know is not held against the one that begins anew.
#[test]
fn a_known_loss_is_no_silent_one() {
    let mut audit = audit();
    (0..32).for_each(|id| good_request(&mut audit, id));
    audit.lost(NOW);
    for id in 100..110 {
        route(&mut audit, NOW, id, &blocks(id, 4), 0);
        audit.ended(NOW, RequestId(id), Some(usage(4, 64)));
        audit.removed(1);
    }
    audit.cleared(at(3.0));
    (200..232).for_each(|id| good_request(&mut audit, id));
    let figures = audit.figures();
    assert_eq!((figures.audited, figures.untold, figures.unknown_removals), (74, 0, 10));
    assert_eq!(audit.verdict(at(3.0)), Verdict::Believed);

    // A third of the hits unforeseen is too much all the same, and has its name.
    audit.refused();
    for id in 300..400 {
        route(&mut audit, at(3.0), id, &blocks(id, 4), 0);
        audit.ended(at(3.0), RequestId(id), Some(usage(4, 64)));
    }
    assert_eq!(audit.verdict(at(6.0)), Verdict::Doubted(Cause::LostEvents));
}

#[test]
fn lengths_tell_the_tokenizer() {
    let mut audit = audit();
    for id in 0..32 {
        route(&mut audit, NOW, id, &blocks(id, 4), 0);
        audit.ended(NOW, RequestId(id), Some(usage(5, 0)));
    }
    assert_eq!(audit.verdict(NOW), Verdict::Doubted(Cause::Tokenizer));
}

/// Requests with these predictions, found the half of it, each told of.
fn promise_too_much(audit: &mut Audit, ids: std::ops::Range<u32>) {
    for id in ids {
        let blocks = blocks(id, 4);
        route(audit, NOW, id, &blocks, 64);
        audit.stored(NOW, &event(&blocks, Some(BlockHash(5))));
        audit.ended(NOW, RequestId(id), Some(usage(4, 32)));
    }
}

#[test]
fn imprecision_without_any_other_sign_is_unexplained() {
    let mut audit = audit();
    promise_too_much(&mut audit, 0..31);
    assert_eq!(audit.verdict(NOW), Verdict::Learning);
    promise_too_much(&mut audit, 31..32);
    assert_eq!(audit.figures().precision, None, "the window begins anew");
    assert_eq!(audit.verdict(NOW), Verdict::Doubted(Cause::Unexplained));
}

#[test]
fn imprecision_with_unknown_removals_is_lost_events() {
    let mut audit = audit();
    audit.removed(3);
    promise_too_much(&mut audit, 0..32);
    assert_eq!(audit.verdict(NOW), Verdict::Doubted(Cause::LostEvents));
}

#[test]
fn each_recovery_takes_twice_the_good_requests() {
    let mut audit = audit();
    let mut ids = 0..;
    let mut next = || ids.next().unwrap();
    for needed in [64, 128, 256, 512, 1024, 1024] {
        (0..32).for_each(|_| good_request(&mut audit, next()));
        assert_eq!(audit.verdict(NOW), Verdict::Believed);
        while audit.verdict(NOW) == Verdict::Believed {
            let id = next();
            promise_too_much(&mut audit, id..id + 1);
        }
        assert_eq!(audit.verdict(NOW), Verdict::Doubted(Cause::Unexplained));
        for _ in 1..needed {
            good_request(&mut audit, next());
            assert_ne!(audit.verdict(NOW), Verdict::Believed);
        }
        good_request(&mut audit, next());
        assert_eq!(audit.verdict(NOW), Verdict::Believed);
    }
    assert_eq!(audit.figures().recoveries, 6);
}

#[test]
fn a_bad_request_breaks_the_row() {
    let mut audit = audit();
    promise_too_much(&mut audit, 1_000..1_032);
    (0..63).for_each(|id| good_request(&mut audit, id));
    route(&mut audit, NOW, 500, &blocks(500, 4), 0);
    audit.ended(NOW, RequestId(500), Some(usage(5, 0)));
    (100..163).for_each(|id| good_request(&mut audit, id));
    assert_eq!(audit.verdict(NOW).cause(), Some(Cause::Unexplained));
    good_request(&mut audit, 163);
    assert_eq!(audit.verdict(NOW), Verdict::Believed);
}

#[test]
fn scrapes_give_precision_where_answers_do_not_tell() {
    let run = |hits_of: fn(u64) -> u64| {
        let mut audit = audit();
        for id in 0..300 {
            let blocks = blocks(id, 4);
            route(&mut audit, NOW, id, &blocks, 48);
            audit.stored(NOW, &event(&blocks[3..], Some(blocks[2])));
            let reported = Reported { prompt_tokens: TokenCount(65), cached_tokens: None };
            audit.ended(NOW, RequestId(id), Some(reported));
            if id % 10 == 9 {
                audit.counted(NOW, 480, hits_of(u64::from(id / 10)));
            }
        }
        audit
    };
    // Admitted an interval later, and hits of others besides.
    let mut good = run(|interval| if interval % 2 == 0 { 100 } else { 1_500 });
    assert_eq!(good.verdict(NOW), Verdict::Believed);
    assert_eq!(good.figures().precision, Some(1.0));
    let mut bad = run(|_| 240);
    assert_eq!(bad.verdict(NOW), Verdict::Doubted(Cause::Unexplained));
}

#[test]
fn memory_is_bounded_whatever_does_not_end() {
    let mut audit = audit();
    let max = u32::try_from(REQUESTS_MAX).unwrap();
    for id in 0..3 * max {
        route(&mut audit, NOW, id, &blocks(id, 3), 16);
    }
    assert_eq!(audit.requests.len(), REQUESTS_MAX);
    assert_eq!(audit.watches.len(), 3 * REQUESTS_MAX);
    assert_eq!(audit.figures().unaudited, u64::from(2 * max));
    assert!(audit.recent_roots.len() <= RECENT_ROOTS);
    for id in 0..max {
        audit.ended(NOW, RequestId(id), Some(usage(3, 0)));
    }
    for id in max..3 * max {
        silent_request(&mut audit, NOW, id);
    }
    assert_eq!(audit.awaited.len(), REQUESTS_MAX);
    audit.verdict(at(10.0));
    assert_eq!((audit.requests.len(), audit.watches.len(), audit.awaited.len()), (0, 0, 0));
}

#[derive(Clone, Debug)]
enum Call {
    Routed { id: u32, prompt: u32, blocks: u32, tokens: u32, predicted: u32, keys: bool },
    Ended { id: u32, tokens: Option<(u32, Option<u32>)> },
    Dropped(u32),
    Stored { prompt: u32, from: u32, blocks: u32, size: u32, keyed: Option<bool>, lora: bool },
    Evicted { prompt: u32, block: u32 },
    Removed(u64),
    Lost,
    Refused,
    Cleared,
    Counted(u64, u64),
    Wait(u64),
}

fn call() -> impl Strategy<Value = Call> {
    let (id, prompt, count) = (0..12_u32, 0..6_u32, 0..5_u32);
    let tokens = prop_oneof![8 => 0..90_u32, 1 => any::<u32>()];
    let big = prop_oneof![4 => 0..1_000_u64, 1 => any::<u64>()];
    let size = prop_oneof![30 => Just(16_u32), 1 => any::<u32>()];
    prop_oneof![
        8 => (id.clone(), prompt.clone(), count.clone(), tokens.clone(), tokens.clone(), any::<bool>())
            .prop_map(|(id, prompt, blocks, tokens, predicted, keys)| Call::Routed { id, prompt, blocks, tokens, predicted, keys }),
        8 => (id.clone(), prop::option::of((tokens.clone(), prop::option::of(tokens))))
            .prop_map(|(id, tokens)| Call::Ended { id, tokens }),
        1 => id.prop_map(Call::Dropped),
        8 => (prompt.clone(), count.clone(), count.clone(), size, any::<Option<bool>>(), prop::bool::weighted(0.1))
            .prop_map(|(prompt, from, blocks, size, keyed, lora)| Call::Stored { prompt, from, blocks, size, keyed, lora }),
        2 => (prompt, count).prop_map(|(prompt, block)| Call::Evicted { prompt, block }),
        1 => big.clone().prop_map(Call::Removed),
        1 => Just(Call::Lost),
        1 => Just(Call::Refused),
        1 => Just(Call::Cleared),
        1 => (big.clone(), big.clone()).prop_map(|(predicted, hits)| Call::Counted(predicted, hits)),
        3 => big.prop_map(|ms| Call::Wait(ms.saturating_mul(1_000_000))),
    ]
}

fn apply(audit: &mut Audit, now: &mut Timestamp, call: &Call) {
    match *call {
        Call::Routed { id, prompt, blocks: count, tokens, predicted, keys } => audit.routed(
            *now,
            &Expectation {
                request: RequestId(id),
                prompt_tokens: TokenCount(tokens),
                blocks: &blocks(prompt, count),
                predicted_cached_tokens: TokenCount(predicted),
                has_extra_keys: keys,
            },
        ),
        Call::Ended { id, tokens } => {
            let reported = tokens.map(|(prompt, cached)| Reported {
                prompt_tokens: TokenCount(prompt),
                cached_tokens: cached.map(TokenCount),
            });
            audit.ended(*now, RequestId(id), reported);
        }
        Call::Dropped(id) => audit.dropped(RequestId(id)),
        Call::Stored { prompt, from, blocks: count, size, keyed, lora } => {
            let all = blocks(prompt, from + count);
            let parent = from.checked_sub(1).map(|at| all[at as usize]);
            let mut stored = event(&all[from as usize..], parent);
            stored.block_size = size;
            stored.token_ids = (0..16 * count).collect();
            let salt = kvroute_vllm_wire::EventExtraKey::Text("a".to_owned());
            stored.extra_keys = keyed.map(|keyed| vec![keyed.then(|| vec![salt])]);
            stored.lora_name = lora.then(|| "a".to_owned());
            audit.stored(*now, &stored);
        }
        Call::Evicted { prompt, block } => {
            let hash = blocks(prompt, block + 1)[block as usize].0;
            audit.evicted(
                *now,
                &BlockRemoved { block_hashes: vec![hash.into()], ..BlockRemoved::default() },
            );
        }
        Call::Removed(unknown) => audit.removed(unknown),
        Call::Lost => audit.lost(*now),
        Call::Refused => audit.refused(),
        Call::Cleared => audit.cleared(*now),
        Call::Counted(predicted, hits) => audit.counted(*now, predicted, hits),
        Call::Wait(ns) => *now = now.plus_nanos(ns),
    }
}

proptest! {
    #[test]
    fn any_calls_are_survived(
        calls in prop::collection::vec(call(), 0..600),
        requests_min in 0..4_u32,
        window_requests in 0..9_u32,
        recover_requests in 0..4_u32,
    ) {
        let config = AuditConfig { window_requests, requests_min, recover_requests, ..AuditConfig::default() };
        let mut audit = Audit::new(config, &naming());
        let mut now = NOW;
        for call in &calls {
            apply(&mut audit, &mut now, call);
            let figures = audit.figures();
            for share in [figures.precision, figures.recall, figures.fair_precision, figures.fair_recall] {
                prop_assert!(share.is_none_or(|share| (0.0..=1.0).contains(&share)), "{figures:?}");
            }
            let verdict = audit.verdict(now);
            prop_assert_eq!(audit.verdict(now), verdict, "asking changes nothing");
        }
        (0..12).for_each(|id| audit.dropped(RequestId(id)));
        audit.verdict(Timestamp::MAX);
        audit.verdict(Timestamp::MAX);
        // A request that ended and is routed again leaves its place in the queue.
        prop_assert!(audit.requests.len() <= audit.awaited.len(), "all else is dropped");
        prop_assert!(audit.watches.len() <= 3 * audit.requests.len());
    }
}
