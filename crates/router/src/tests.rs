//! The router core as its shells use it.

#![expect(clippy::float_cmp, reason = "results are exact")]

use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::Duration;

use kvroute_policy::{
    BlockNames, Candidate, Decision, Event, Needs, Policy, PolicyConfig, Reason, RequestView,
    Scores,
};
use kvroute_types::{
    BlockHash, BlockSize, InstanceId, LoadSnapshot, RequestId, Timestamp, TokenCount,
};
use proptest::prelude::*;

use crate::{CacheNews, DirectorySource, Refresh, Routed, Router, RouterConfig, SignalConfig};

const A: InstanceId = InstanceId(0);
const B: InstanceId = InstanceId(1);

/// Where the directory believes the prompt to be, whatever the load.
const TO_THE_HOLDER: &str = "load-cache:alpha=1,beta=0";

fn router(policy: &str, config: RouterConfig) -> Router {
    let policy: PolicyConfig = policy.parse().unwrap();
    let mut router = Router::new(config, policy.build(7).unwrap(), 7).unwrap();
    router.add_instance(A);
    router.add_instance(B);
    router
}

fn at(s: f64) -> Timestamp {
    Timestamp::from_secs_f64(s)
}

/// Hashes of a prompt of `blocks` blocks of family `family`.
fn prompt(family: u64, blocks: u64) -> Vec<BlockHash> {
    (0..blocks).map(|block| BlockHash(family * 1_000 + block)).collect()
}

fn view(id: u32, blocks: &[BlockHash]) -> RequestView<'_> {
    RequestView {
        id: RequestId(id),
        session_key: blocks.first().map(|hash| hash.0),
        prefix_key: blocks.first().map(|hash| hash.0),
        prompt_blocks: blocks,
        block_names: BlockNames::Engine,
        prompt_tokens: TokenCount(u32::try_from(blocks.len()).unwrap() * 16 + 5),
        max_output_tokens: None,
        priority: 0,
    }
}

fn load(waiting: u32, running: u32, as_of: Timestamp) -> LoadSnapshot {
    LoadSnapshot { waiting, running, kv_cache_usage: 0.0, as_of }
}

fn route(router: &mut Router, now: Timestamp, id: u32, blocks: &[BlockHash]) -> Routed {
    router.route(now, &view(id, blocks)).unwrap()
}

fn stored(blocks: &[BlockHash]) -> CacheNews {
    CacheNews::Stored { parent: None, blocks: blocks.into() }
}

#[test]
fn what_instances_tell_is_predicted_and_nothing_else() {
    let config = RouterConfig { directory: DirectorySource::Events, ..RouterConfig::default() };
    let mut router = router("load-cache", config);
    assert!(router.hears_cache_events());
    let blocks = prompt(1, 10);
    let predicted = |router: &mut Router, now| {
        let Routed { ticket, instance, predicted_cached_tokens, .. } =
            route(router, at(now), 0, &blocks);
        router.end(at(9.0), ticket);
        (instance, predicted_cached_tokens.unwrap().0)
    };
    assert_eq!(predicted(&mut router, 0.0).1, 0);
    assert_eq!(predicted(&mut router, 1.0).1, 0, "having routed it there says nothing");
    router.observe_cache(at(1.0), B, stored(&blocks[..6]));
    router.observe_cache(at(1.0), B, stored(&blocks[..6]));
    assert_eq!(predicted(&mut router, 2.0), (B, 96));
    router.observe_cache(at(2.0), B, CacheNews::Removed(blocks[4..6].into()));
    assert_eq!(predicted(&mut router, 3.0), (B, 96), "another copy is left");
    router.observe_cache(at(3.0), B, CacheNews::Removed(blocks[4..6].into()));
    assert_eq!(predicted(&mut router, 4.0), (B, 64));
    router.observe_cache(at(4.0), A, stored(&blocks));
    assert_eq!(predicted(&mut router, 5.0), (A, 160));
    router.observe_cache(at(5.0), A, CacheNews::Cleared);
    assert_eq!(predicted(&mut router, 6.0), (B, 64));
    router.instance_restarted(B);
    assert_eq!(predicted(&mut router, 7.0).1, 0);
}

#[test]
fn what_instances_tell_comes_late_through_a_stale_signal() {
    let index =
        SignalConfig { refresh: Refresh::EveryS(1.0), delay_s: 0.5, ..SignalConfig::default() };
    let directory = DirectorySource::Events;
    let mut router =
        router("load-cache", RouterConfig { directory, index, ..RouterConfig::default() });
    let blocks = prompt(1, 10);
    router.observe_cache(at(0.25), B, stored(&blocks));
    router.observe_cache(at(1.25), B, CacheNews::Cleared);
    let predicted = [1.25, 1.5, 2.25, 2.5]
        .map(|now| route(&mut router, at(now), 0, &blocks).predicted_cached_tokens.unwrap().0);
    assert_eq!(predicted, [0, 160, 160, 0]);
}

#[test]
fn an_instance_that_is_not_believed_is_judged_by_what_was_routed_there() {
    let config = RouterConfig { directory: DirectorySource::Events, ..RouterConfig::default() };
    let mut router = router("load-cache", config);
    let blocks = prompt(1, 10);
    let both = |router: &mut Router, s| {
        let Routed { ticket, instance, predicted_cached_tokens, told_cached_tokens, .. } =
            route(router, at(s), 0, &blocks);
        router.end(at(9.0), ticket);
        (instance, predicted_cached_tokens.unwrap().0, told_cached_tokens.unwrap().0)
    };
    router.observe_cache(at(0.0), B, stored(&blocks[..6]));
    assert_eq!(both(&mut router, 1.0), (B, 96, 96));
    router.set_believed(B, false);
    let (first, predicted, _) = both(&mut router, 2.0);
    assert_eq!(
        (first, predicted),
        (A, 0),
        "nothing is known of B now, and A was chosen least recently"
    );
    router.set_believed(A, false);
    assert_eq!(both(&mut router, 3.0).1, 0, "what was routed while it was believed was not kept");
    let (followed, predicted, told) = both(&mut router, 4.0);
    assert_eq!((predicted, told), (160, if followed == B { 96 } else { 0 }));
    router.set_believed(A, true);
    router.set_believed(B, true);
    assert_eq!(both(&mut router, 5.0), (B, 96, 96));
}

#[test]
fn text_is_not_looked_up_among_what_instances_tell() {
    let (directory, text_block_size) = (DirectorySource::Events, BlockSize::new(8).unwrap());
    let config = RouterConfig { text_block_size, directory, ..RouterConfig::default() };
    let mut router = router(TO_THE_HOLDER, config);
    let blocks = prompt(1, 10);
    router.observe_cache(at(0.0), B, stored(&blocks));
    let text = RequestView { block_names: BlockNames::Text, ..view(0, &blocks) };
    let first = router.route(at(1.0), &text).unwrap();
    assert_eq!((first.predicted_cached_tokens.unwrap().0, first.told_cached_tokens), (0, None));
    let second = router.route(at(2.0), &text).unwrap();
    assert_eq!(
        second.predicted_cached_tokens.unwrap().0,
        80,
        "by what was routed, in its own size"
    );
    for ticket in [first.ticket, second.ticket] {
        router.end(at(9.0), ticket);
    }
}

#[test]
fn a_loss_takes_what_was_told_and_a_reset_all() {
    let config = RouterConfig { directory: DirectorySource::Events, ..RouterConfig::default() };
    let mut router = router("load-cache", config);
    let (told, sent) = (prompt(1, 10), prompt(2, 10));
    let predicted = |router: &mut Router, now, blocks: &[BlockHash], block_names| {
        let view = RequestView { block_names, ..view(0, blocks) };
        let Routed { ticket, predicted_cached_tokens, .. } = router.route(at(now), &view).unwrap();
        router.end(at(9.0), ticket);
        predicted_cached_tokens.unwrap().0
    };
    router.observe_cache(at(0.0), A, stored(&told));
    let text = BlockNames::Text;
    assert_eq!(predicted(&mut router, 1.0, &sent, text), 0);
    for id in [A, B] {
        router.observe_cache(at(2.0), id, CacheNews::Lost);
    }
    assert_eq!(predicted(&mut router, 3.0, &told, BlockNames::Engine), 0);
    assert_eq!(predicted(&mut router, 4.0, &sent, text), 160, "it may well be there");
    for id in [A, B] {
        router.observe_cache(at(5.0), id, CacheNews::Cleared);
    }
    assert_eq!(predicted(&mut router, 6.0, &sent, text), 0);
}

#[test]
fn what_was_told_outlives_the_router() {
    let config = RouterConfig { directory: DirectorySource::Events, ..RouterConfig::default() };
    let mut first = router("load-cache", config.clone());
    let blocks = prompt(1, 10);
    first.observe_cache(at(0.0), B, stored(&blocks));
    let mut snapshot = Vec::new();
    first.snapshot(at(7.0), &mut snapshot).unwrap();
    let mut second = router("load-cache", config);
    let damaged = second.restore(&snapshot[..snapshot.len() - 1]).unwrap_err();
    assert!(damaged.to_string().contains("ends in the middle"), "{damaged}");
    assert_eq!(second.told().unwrap().len_blocks(B), 0);
    second.restore(&snapshot[..]).unwrap();
    assert_eq!(second.told().unwrap().len_blocks(B), 10);
    let routed = route(&mut second, at(1.0), 0, &blocks);
    assert_eq!((routed.instance, routed.predicted_cached_tokens.unwrap().0), (B, 160));
    second.end(at(9.0), routed.ticket);
}

#[test]
fn a_directory_of_history_ignores_what_instances_tell() {
    let mut router = router("load-cache", RouterConfig::default());
    assert!(!router.hears_cache_events());
    let blocks = prompt(1, 10);
    router.observe_cache(at(0.0), B, stored(&blocks));
    assert_eq!(route(&mut router, at(1.0), 0, &blocks).predicted_cached_tokens.unwrap().0, 0);
}

#[test]
fn what_was_routed_is_predicted_and_followed() {
    let mut router = router(TO_THE_HOLDER, RouterConfig::default());
    let blocks = prompt(1, 10);
    let first = route(&mut router, at(0.0), 0, &blocks);
    assert_eq!(first.predicted_cached_tokens, Some(TokenCount(0)));
    router.end(at(9.0), first.ticket);
    let second = route(&mut router, at(1.0), 1, &blocks);
    assert_eq!((second.instance, second.reason), (first.instance, Reason::CacheScore));
    assert_eq!(second.predicted_cached_tokens, Some(TokenCount(160)));
    let books = |router: &Router| {
        let there = &router.candidates()[second.instance.index()];
        [
            there.in_flight_uncached_tokens,
            there.in_flight_prompt_tokens,
            u64::from(there.in_flight_decoding),
            there.in_flight_decoding_tokens,
        ]
    };
    assert_eq!(router.candidates()[second.instance.index()].matched_tokens, 160);
    assert_eq!(books(&router), [5, 165, 0, 0]);
    for _ in 0..2 {
        router.first_token(at(1.5), &second.ticket);
        assert_eq!(books(&router), [0, 165, 1, 165], "a second first token is none");
    }
    let third = route(&mut router, at(2.0), 2, &blocks);
    assert_eq!((third.instance, books(&router)), (second.instance, [5, 330, 1, 165]));
    router.end(at(9.0), third.ticket);
    assert_eq!(books(&router), [0, 165, 1, 165]);
    router.end(at(9.0), second.ticket);
    assert_eq!(router.in_flight(), 0);
}

#[test]
fn what_is_left_to_prefill_is_told_to_policies_that_ask() {
    let left = |policy| {
        let mut router = router(policy, RouterConfig::default());
        router.set_eligible(B, false);
        let long = |id| RequestView { prompt_tokens: TokenCount(1000), ..view(id, &[]) };
        let first = router.route(at(0.0), &long(0)).unwrap();
        let second = router.route(at(0.0), &long(1)).unwrap();
        // 1,000 tokens and their attention are 1,015 of work.
        let mut seen = vec![router.candidates()[0].prefill_left];
        router.first_token(at(1.0), &first.ticket);
        let third = router.route(at(1.4), &long(2)).unwrap();
        seen.push(router.candidates()[0].prefill_left);
        router.end(at(1.5), second.ticket);
        let fourth = router.route(at(1.7), &long(3)).unwrap();
        seen.push(router.candidates()[0].prefill_left);
        for ticket in [first.ticket, third.ticket, fourth.ticket] {
            router.end(at(2.0), ticket);
        }
        let fifth = router.route(at(2.0), &long(4)).unwrap();
        seen.push(router.candidates()[0].prefill_left);
        router.end(at(3.0), fifth.ticket);
        let speed = router.candidates()[0].prefill_speed;
        assert!((speed - 1.0).abs() < 1e-9, "{speed}: it is the fleet");
        seen
    };
    // 1,015 a second: 406 of the second's are done at 1.4 s, and 203 of the third's at 1.7 s.
    assert_eq!(left("adaptive"), [1015, 609, 812, 0]);
    assert_eq!(left("jsq"), [0, 0, 0, 0]);
}

#[test]
fn what_instances_do_for_adaptive_is_told_and_in_the_receipt() {
    let mut router = router("adaptive", RouterConfig { receipts: true, ..RouterConfig::default() });
    router.observe_load(at(0.0), A, LoadSnapshot { kv_cache_usage: 0.25, ..load(0, 1, at(0.0)) });
    let long = |id| RequestView { prompt_tokens: TokenCount(1000), ..view(id, &[]) };
    let mut last = None;
    for (id, instance, taken_s) in [(0, A, 1.0), (1, B, 3.0), (2, A, 0.0)] {
        let other = if instance == A { B } else { A };
        let now = 10.0 * f64::from(id);
        let sent = router.route_except(at(now), &long(id), &[other]).unwrap();
        router.first_token(at(now + taken_s), &sent.ticket);
        router.end(at(now + 5.0), sent.ticket);
        last = sent.receipt;
    }
    // The fleet, of 0.99 * 1,015 + 1,015 in 0.99 + 3 s, does 506.2... in a second. A: (1,015 + 5 fleets) / (1 + 5); B: the same in 3 + 5 s.
    let fleet = 1.99 * 1015.0 / 3.99;
    let speeds = [(1015.0 + 5.0 * fleet) / 6.0 / fleet, (1015.0 + 5.0 * fleet) / 8.0 / fleet];
    let last = last.unwrap();
    let usages = last.candidates.iter().map(|candidate| candidate.kv_cache_usage);
    assert_eq!(usages.collect::<Vec<_>>(), [Some(0.25), None]);
    for (candidate, speed) in last.candidates.iter().zip(speeds) {
        assert_eq!(candidate.prefill_left, Some(0));
        let told = candidate.prefill_speed.unwrap();
        assert!((told - speed).abs() < 1e-9, "{told} for {speed}");
    }
}

#[test]
fn the_whole_prompt_is_never_predicted_cached() {
    let mut router = router(TO_THE_HOLDER, RouterConfig::default());
    let blocks = prompt(1, 4);
    let whole = RequestView { prompt_tokens: TokenCount(64), ..view(0, &blocks) };
    let first = router.route(at(0.0), &whole).unwrap();
    let second = router.route(at(0.0), &whole).unwrap();
    assert_eq!(second.predicted_cached_tokens, Some(TokenCount(48)));
    router.end(at(9.0), first.ticket);
    router.end(at(9.0), second.ticket);
}

#[test]
fn a_directory_behind_its_refresh_does_not_know_yet() {
    let stale = |refresh, delay_s, loss| {
        let index = SignalConfig { refresh, delay_s, loss, expiry_s: None };
        let mut router = router(TO_THE_HOLDER, RouterConfig { index, ..RouterConfig::default() });
        let blocks = prompt(1, 10);
        let first = route(&mut router, at(0.1), 0, &blocks);
        let known_at = (1..100).map(f64::from).find(|&s| {
            let again = route(&mut router, at(s), 1, &blocks);
            let tokens = again.predicted_cached_tokens;
            router.end(at(9.0), again.ticket);
            tokens == Some(TokenCount(160))
        });
        router.end(at(9.0), first.ticket);
        known_at
    };
    assert_eq!(stale(Refresh::RealTime, 0.0, 0.0), Some(1.0));
    assert_eq!(stale(Refresh::EveryS(5.0), 0.0, 0.0), Some(5.0));
    assert_eq!(stale(Refresh::EveryS(5.0), 2.5, 0.0), Some(8.0));
    assert_eq!(stale(Refresh::Never, 0.0, 0.0), None);
    assert_eq!(stale(Refresh::RealTime, 0.0, 1.0), None);
}

#[test]
fn an_expired_directory_entry_no_longer_counts() {
    let index = SignalConfig { expiry_s: Some(10.0), ..SignalConfig::default() };
    let mut router = router("load-cache", RouterConfig { index, ..RouterConfig::default() });
    let blocks = prompt(1, 10);
    let mut predicted = |s| {
        let Routed { ticket, predicted_cached_tokens, .. } = route(&mut router, at(s), 0, &blocks);
        router.end(at(9.0), ticket);
        predicted_cached_tokens.unwrap().0
    };
    assert_eq!(
        [predicted(0.0), predicted(9.0), predicted(18.9), predicted(29.0)],
        [0, 160, 160, 0]
    );
}

#[test]
fn a_reading_replaces_what_it_counts_and_keeps_what_it_cannot() {
    let mut router = router("jsq", RouterConfig::default());
    let early = route(&mut router, at(1.0), 0, &[]);
    let late = route(&mut router, at(3.0), 1, &[]);
    assert_eq!((early.instance, late.instance), (A, B));
    let later = route(&mut router, at(4.0), 2, &[]);
    assert_eq!(later.instance, A);
    // A reading of A as of 2 s counts the early request, not the later one.
    router.observe_load(at(5.0), A, load(0, 1, at(2.0)));
    let a = &router.candidates()[0];
    assert_eq!((a.in_flight, a.unseen_in_flight), (2, 1));
    // The early one ends, which the reading cannot know; the unseen one ends, which we do.
    router.end(at(9.0), early.ticket);
    assert_eq!(router.candidates()[0].unseen_in_flight, 1);
    router.end(at(9.0), later.ticket);
    assert_eq!(router.candidates()[0].unseen_in_flight, 0);
    router.end(at(9.0), late.ticket);
}

#[test]
fn an_expired_reading_loses_its_vote() {
    let load_signal = SignalConfig { expiry_s: Some(2.0), ..SignalConfig::default() };
    let config = RouterConfig { load: load_signal, ..RouterConfig::default() };
    let mut router = router("jsq", config);
    router.observe_load(at(0.0), A, load(9, 0, at(0.0)));
    router.observe_load(at(1.0), B, load(5, 0, at(1.0)));
    assert_eq!(route(&mut router, at(1.5), 0, &[]).instance, B);
    // A's reading is gone, so A counts as empty.
    assert_eq!(route(&mut router, at(2.5), 1, &[]).instance, A);
    assert_eq!(router.candidates()[0].load, None);
    assert_eq!(router.candidates()[0].unseen_in_flight, 1);
}

#[test]
fn what_is_foretold_holds_for_one_decision() {
    let mut router = router("oracle", RouterConfig::default());
    router.foretell_ttft(A, Duration::from_millis(20));
    router.foretell_ttft(B, Duration::from_millis(10));
    assert_eq!(route(&mut router, at(0.0), 0, &[]).instance, B);
    assert!(router.candidates().iter().all(|candidate| candidate.true_ttft.is_none()));
    router.foretell_ttft(B, Duration::from_secs(9));
    router.foretell_ttft(InstanceId(7), Duration::ZERO); // is not in the table
    assert_eq!(route(&mut router, at(0.0), 1, &[]).instance, B, "A's is not known");
}

#[test]
fn another_try_avoids_the_failed_instance_only_once() {
    let mut router = router("jsq", RouterConfig::default());
    let request = view(0, &[]);
    let retried = router.route_except(at(0.0), &request, &[A]).unwrap();
    assert_eq!(retried.instance, B);
    assert!(router.route_except(at(0.0), &request, &[A, B]).is_none());
    assert_eq!(router.route(at(0.0), &request).unwrap().instance, A);
    router.end(at(9.0), retried.ticket);
}

#[test]
fn membership_changes_keep_the_books_straight() {
    let mut router = router("load-cache", RouterConfig::default());
    let blocks = prompt(1, 10);
    let on_a = route(&mut router, at(0.0), 0, &blocks);
    let on_b = route(&mut router, at(0.0), 1, &prompt(2, 3));
    assert_eq!((on_a.instance, on_b.instance), (A, B));
    router.remove_instance(A);
    assert_eq!(router.candidates().len(), 1);
    assert!(router.in_flight_cov().is_some());
    router.end(at(9.0), on_a.ticket);
    router.add_instance(InstanceId(5));
    router.set_eligible(B, false);
    let moved = route(&mut router, at(1.0), 2, &blocks);
    assert_eq!(
        (moved.instance, moved.predicted_cached_tokens),
        (InstanceId(5), Some(TokenCount(0)))
    );
    router.end(at(9.0), moved.ticket);
    router.end(at(9.0), on_b.ticket);
    assert_eq!((router.in_flight(), router.in_flight_cov()), (0, None));
}

#[test]
fn a_restarted_instance_holds_nothing() {
    let mut router = router("load-cache", RouterConfig::default());
    let blocks = prompt(1, 10);
    let first = route(&mut router, at(0.0), 0, &blocks);
    router.instance_restarted(first.instance);
    router.end(at(9.0), first.ticket);
    let again = route(&mut router, at(1.0), 1, &blocks);
    assert_eq!(again.predicted_cached_tokens, Some(TokenCount(0)));
    router.end(at(9.0), again.ticket);
}

#[test]
fn the_receipt_shows_every_score_and_the_age_of_every_signal() {
    let mut router = router(
        "load-cache:alpha=0.5,beta=0.5",
        RouterConfig { receipts: true, ..RouterConfig::default() },
    );
    let blocks = prompt(1, 10);
    let first = route(&mut router, at(1.0), 0, &blocks);
    router.observe_load(at(2.0), first.instance, load(1, 3, at(1.5)));
    let receipt = route(&mut router, at(4.0), 1, &blocks).receipt.unwrap();
    let holder = &receipt.candidates[first.instance.index()];
    assert_eq!(receipt.candidates.len(), 2);
    assert_eq!(holder.matched_blocks, 10);
    assert_eq!((holder.waiting, holder.running, holder.in_flight), (Some(1), Some(3), 1));
    assert_eq!(holder.kv_cache_usage, None, "load-cache does not ask");
    assert_eq!(holder.load_age.unwrap().as_secs_f64(), 2.5);
    assert_eq!(receipt.index_age.unwrap().as_secs_f64(), 3.0);
    // 0.5 * 1 - 0.5 * 4/4 against nothing at all: level, so the less loaded one.
    assert_eq!(receipt.candidates.iter().map(|c| c.score).collect::<Vec<_>>(), [Some(0.0); 2]);
    assert_eq!((receipt.instance, receipt.reason), (B, Reason::LoadScore));
    router.end(at(9.0), first.ticket);
}

#[test]
fn settings_out_of_range_name_their_signal() {
    let bad = SignalConfig { loss: 2.0, ..SignalConfig::default() };
    let policy = || PolicyConfig::from_name("jsq").unwrap().build(0).unwrap();
    let index = RouterConfig { index: bad.clone(), ..RouterConfig::default() };
    let load = RouterConfig { load: bad, ..RouterConfig::default() };
    assert_eq!(Router::new(index, policy(), 0).unwrap_err().to_string(), "in the index signal");
    assert_eq!(Router::new(load, policy(), 0).unwrap_err().to_string(), "in the load signal");
}

/// Makes the choices of another router, and then those of the policy, which has heard of everything.
struct AfterScript {
    script: VecDeque<InstanceId>,
    policy: Box<dyn Policy>,
}

impl Policy for AfterScript {
    fn name(&self) -> &'static str {
        self.policy.name()
    }

    fn needs(&self) -> Needs {
        self.policy.needs()
    }

    fn choose(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let Some(id) = self.script.pop_front() else {
            return self.policy.choose(now, request, candidates, scores);
        };
        let position = candidates.iter().position(|candidate| candidate.id == id).unwrap();
        Some(Decision { position, reason: Reason::Rotation })
    }

    fn observe(&mut self, event: Event<'_>) {
        self.policy.observe(event);
    }
}

/// Traffic with overlap, readings, an instance that fails and one that comes; `switch` is called after 100 requests.
/// Where each request went, and what was predicted there.
fn traffic(
    router: &mut Router,
    mut switch: impl FnMut(&mut Router),
) -> Vec<(InstanceId, Option<TokenCount>)> {
    let mut tickets = VecDeque::new();
    let mut decisions = Vec::new();
    for number in 0..200_u32 {
        let now = at(f64::from(number) * 0.01);
        match number {
            40 => router.add_instance(InstanceId(7)),
            60 => router.set_eligible(A, false),
            100 => switch(router),
            130 => router.set_eligible(A, true),
            _ => {}
        }
        if number % 9 == 0 {
            router.observe_load(now, B, load(number % 5, number % 3, now));
        }
        let blocks = prompt(u64::from(number * number % 7), 10);
        let went = route(router, now, number, &blocks);
        decisions.push((went.instance, went.predicted_cached_tokens));
        tickets.push_back(went.ticket);
        if let Some(ticket) = tickets.get(3) {
            router.first_token(now, ticket);
        }
        if tickets.len() > 4 + number as usize % 5 {
            router.end(now, tickets.pop_front().unwrap());
        }
    }
    assert_eq!(router.in_flight(), tickets.len());
    for ticket in tickets {
        router.end(at(9.0), ticket);
    }
    assert_eq!((router.in_flight(), router.in_flight_cov()), (0, None));
    decisions
}

#[test]
fn a_policy_set_in_the_middle_decides_as_if_it_had_seen_everything() {
    let config = RouterConfig { always_index: true, ..RouterConfig::default() };
    let build = |name: &str| name.parse::<PolicyConfig>().unwrap().build(7).unwrap();
    let new = |policy| {
        let mut router = Router::new(config.clone(), policy, 7).unwrap();
        router.add_instance(A);
        router.add_instance(B);
        router
    };
    // Of round-robin and p2c the state is the past decisions and draws, which are not derivable.
    for name in
        ["jsq", "session-affinity", "prefix-affinity", "load-cache", "load-cache:affinity=paper"]
    {
        let mut switched = new(build("p2c"));
        let switched = traffic(&mut switched, |router| {
            router.set_policy(build(name));
            assert_eq!(router.policy_name(), build(name).name());
        });
        let script = switched[..100].iter().map(|&(id, _)| id).collect();
        let mut knowing = new(Box::new(AfterScript { script, policy: build(name) }));
        assert_eq!(traffic(&mut knowing, |_| {}), switched, "{name}");
    }
}

#[test]
fn the_directory_follows_the_policy() {
    let mut router = router("jsq", RouterConfig::default());
    let build = |name: &str| PolicyConfig::from_name(name).unwrap().build(7).unwrap();
    let blocks = prompt(1, 10);
    let predicted = |router: &mut Router, s| {
        let went = route(router, at(s), 0, &blocks);
        router.end(at(9.0), went.ticket);
        went.predicted_cached_tokens
    };
    assert_eq!((predicted(&mut router, 0.0), router.keeps_index()), (None, false));
    router.set_policy(build("load-cache"));
    assert_eq!(predicted(&mut router, 1.0), Some(TokenCount(0)), "the first was not recorded");
    assert_eq!(predicted(&mut router, 2.0), Some(TokenCount(160)));
    router.set_policy(build("jsq"));
    assert!(router.candidates().iter().all(|candidate| candidate.matched_blocks == 0));
    assert_eq!((predicted(&mut router, 3.0), router.keeps_index()), (None, false));
}

#[test]
fn a_new_policy_hears_of_the_table() {
    /// Chooses the first, and notes the loads of the table as it was told of it.
    struct Listener(mpsc::Sender<Vec<(InstanceId, u32)>>);

    impl Policy for Listener {
        fn name(&self) -> &'static str {
            "listener"
        }

        fn needs(&self) -> Needs {
            Needs::default()
        }

        fn choose(
            &mut self,
            _: Timestamp,
            _: &RequestView<'_>,
            _: &[Candidate],
            _: &mut Scores,
        ) -> Option<Decision> {
            Some(Decision { position: 0, reason: Reason::Rotation })
        }

        fn observe(&mut self, event: Event<'_>) {
            if let Event::MembershipChanged { candidates } = event {
                self.0.send(candidates.iter().map(|it| (it.id, it.in_flight)).collect()).unwrap();
            }
        }
    }

    let mut router = router("jsq", RouterConfig::default());
    let first = route(&mut router, at(0.0), 0, &[]);
    let (told, tables) = mpsc::channel();
    router.set_policy(Box::new(Listener(told)));
    assert_eq!(tables.try_iter().collect::<Vec<_>>(), [[(A, 1), (B, 0)]]);
    router.end(at(9.0), first.ticket);
}

proptest! {
    /// Whatever happens in between, work in flight is released to exactly zero.
    #[test]
    fn in_flight_work_is_released_exactly(
        policy in prop::sample::select(PolicyConfig::names()),
        ops in prop::collection::vec((0_u32..8, any::<u16>()), 1..300),
        load_refresh in prop::sample::select(vec![Refresh::RealTime, Refresh::EveryS(0.5), Refresh::Never]),
        expiry_s in prop::option::of(Just(0.7)),
    ) {
        let load_signal = SignalConfig { refresh: load_refresh, loss: 0.1, expiry_s, delay_s: 0.05 };
        let config = RouterConfig { load: load_signal.clone(), index: load_signal, ..RouterConfig::default() };
        let mut router = router(policy, config);
        let mut tickets = Vec::new();
        let mut now = Timestamp::ZERO;
        for (number, (op, pick)) in (0..).zip(ops) {
            now = now.plus_nanos(u64::from(pick) * 10_000);
            let id = InstanceId(u32::from(pick % 4));
            match op {
                0..=2 => {
                    let blocks = prompt(u64::from(pick % 5), u64::from(pick % 7));
                    let routed = router.route(now, &view(number, &blocks));
                    prop_assert_eq!(routed.is_none(), router.candidates().iter().all(|c| !c.eligible));
                    tickets.extend(routed.map(|routed| routed.ticket));
                }
                3 if !tickets.is_empty() => router.end(now, tickets.swap_remove(pick as usize % tickets.len())),
                4 if !tickets.is_empty() => router.first_token(now, &tickets[pick as usize % tickets.len()]),
                5 => router.observe_load(now, id, load(u32::from(pick % 3), 1, now)),
                6 => router.set_eligible(id, pick & 16 == 0),
                7 if pick & 8 == 0 => router.add_instance(InstanceId(2 + number)),
                7 => {
                    let ids: Vec<_> = router.candidates().iter().map(|c| c.id).collect();
                    router.remove_instance(ids[pick as usize % ids.len()]);
                    router.add_instance(InstanceId(1_000 + number));
                }
                _ => {}
            }
            prop_assert_eq!(router.in_flight(), tickets.len());
            for candidate in router.candidates() {
                prop_assert!(candidate.unseen_in_flight <= candidate.in_flight);
                prop_assert!(candidate.in_flight_decoding <= candidate.in_flight);
                prop_assert!(
                    candidate.in_flight_decoding_tokens + candidate.in_flight_uncached_tokens
                        <= candidate.in_flight_prompt_tokens
                );
            }
        }
        for ticket in tickets {
            router.end(at(9.0), ticket);
        }
        prop_assert_eq!(router.in_flight(), 0);
        prop_assert_eq!(router.in_flight_cov(), None);
        for candidate in router.candidates() {
            prop_assert_eq!(
                (candidate.in_flight, candidate.unseen_in_flight, candidate.in_flight_decoding),
                (0, 0, 0)
            );
            prop_assert_eq!(
                (
                    candidate.in_flight_uncached_tokens,
                    candidate.in_flight_prompt_tokens,
                    candidate.in_flight_decoding_tokens,
                ),
                (0, 0, 0)
            );
        }
    }
}
