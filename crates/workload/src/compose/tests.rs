//! Put together and cut, by the keys of their blocks and by when they are sent.

use std::num::NonZeroU32;
use std::time::Duration;

use kvroute_types::{BlockKey, BlockSize, RequestId};
use proptest::prelude::*;

use super::*;
use crate::{ChatSpec, Distribution, Plan, TokenPrompt, TokenStream, WorkloadSpec};

fn second(s: u32) -> Timestamp {
    Timestamp::from_nanos(1_000_000_000 * u64::from(s))
}

/// Conversations behind one of two system prompts, closed-loop or paced.
fn chat(seed: u64, requests: u32, is_paced: bool) -> Workload {
    let spec = ChatSpec {
        system_prompts: 2,
        system_prompt_tokens: Distribution::Constant { value: 64.0 },
        message_interval_s: is_paced.then_some(Distribution::Exponential { mean: 5.0 }),
        ..ChatSpec::default()
    };
    WorkloadSpec::Chat(spec).generate(seed, requests).unwrap()
}

fn rag(seed: u64, requests: u32) -> Workload {
    WorkloadSpec::builtin("rag").unwrap().generate(seed, requests).unwrap()
}

/// The keys of the whole blocks of each request's prompt and output.
fn keys(workload: &Workload) -> Vec<Vec<BlockKey>> {
    let plan = Plan::new(workload, BlockSize::default()).unwrap();
    let of = |request: &WorkloadRequest| {
        let tokens = request.prompt_tokens.0 + request.output_tokens.0;
        plan.chain(request.id).keys().take(tokens as usize / 16).collect()
    };
    workload.requests().iter().map(of).collect()
}

/// How many leading blocks each two requests have in common, for comparing what content two workloads share inside.
fn common(keys: &[Vec<BlockKey>]) -> Vec<usize> {
    let pairs = keys.iter().flat_map(|a| keys.iter().map(move |b| (a, b)));
    pairs.map(|(a, b)| a.iter().zip(b).take_while(|(a, b)| a == b).count()).collect()
}

fn shares_nothing(one: &[Vec<BlockKey>], other: &[Vec<BlockKey>]) -> bool {
    let first = |keys: &[Vec<BlockKey>]| {
        keys.iter().filter_map(|keys| keys.first().copied()).collect::<Vec<_>>()
    };
    let (one, other) = (first(one), first(other));
    assert!(!one.is_empty() && !other.is_empty());
    one.iter().all(|key| !other.contains(key))
}

fn prompts(of: &[&[u32]]) -> Workload {
    let prompt = |tokens: &&[u32]| TokenPrompt {
        arrival: second(1),
        tokens: tokens.to_vec(),
        output_tokens: 1,
    };
    Workload::of_prompts("prompts", of.iter().map(prompt))
}

/// Order, numbers and links as every workload has them.
fn check(workload: &Workload) {
    let mut latest = Timestamp::ZERO;
    let mut sessions = 0;
    for (number, request) in (0..).zip(workload.requests()) {
        assert_eq!(request.id, RequestId(number));
        if let Arrival::At(at) = request.arrival {
            assert!(at >= latest, "absolute arrivals never decrease");
            latest = at;
        }
        if request.turn == 0 {
            assert!(matches!(request.arrival, Arrival::At(_)));
            assert_eq!(request.session.0, sessions, "sessions are numbered by appearance");
            sessions += 1;
        }
        if let Some(next) = workload.next_turn(request.id) {
            let next = &workload.requests()[next.index()];
            assert_eq!((next.session, next.turn), (request.session, request.turn + 1));
        }
    }
    assert_eq!(workload.sessions(), sessions);
    let links = workload.requests().iter().filter(|request| request.next.is_some()).count();
    assert_eq!(links, workload.requests().len() - sessions as usize);
}

#[test]
fn the_same_part_twice_asks_the_same_again() {
    let part = chat(3, 40, false);
    let twice =
        Workload::concat([(part.clone(), second(0)), (part.clone(), second(1_000))]).unwrap();
    check(&twice);
    assert_eq!(twice.name(), "chat");
    assert_eq!(twice.sessions(), 2 * part.sessions());
    let keys = keys(&twice);
    assert_eq!(keys[..40], keys[40..]);
    for (first, again) in part.requests().iter().zip(&twice.requests()[40..]) {
        let later = moved(first.arrival, |at| at + Duration::from_secs(1_000));
        assert_eq!(again.arrival, later);
        assert_eq!((again.turn, again.prompt_tokens), (first.turn, first.prompt_tokens));
        assert_eq!((again.session_key, again.prefix_key), (first.session_key, first.prefix_key));
        assert_eq!(again.session.0, first.session.0 + part.sessions());
    }
}

#[test]
fn one_part_at_its_time_is_that_part() {
    for part in [chat(3, 40, false), chat(3, 40, true), rag(3, 40)] {
        assert_eq!(Workload::concat([(part.clone(), second(0))]).unwrap(), part);
    }
    assert!(Workload::concat([]).unwrap().requests().is_empty());
}

#[test]
fn parts_of_other_seeds_share_content_unless_they_are_salted() {
    let parts = |salt: bool| {
        let other = chat(4, 40, false);
        let other = if salt { other.with_salt(4) } else { other };
        Workload::concat([(chat(3, 40, false), second(0)), (other, second(5_000))]).unwrap()
    };
    let by_accident = keys(&parts(false));
    assert!(!shares_nothing(&by_accident[..40], &by_accident[40..]), "numbers from the start");
    let workload = parts(true);
    check(&workload);
    let salted = keys(&workload);
    assert!(shares_nothing(&salted[..40], &salted[40..]));
    // Inside each part all is as it was.
    assert_eq!(common(&salted[..40]), common(&keys(&chat(3, 40, false))));
    assert_eq!(common(&salted[40..]), common(&keys(&chat(4, 40, false))));
    // Routing keys as well.
    let (first, second) = workload.requests().split_at(40);
    for (a, b) in first.iter().flat_map(|a| second.iter().map(move |b| (a, b))) {
        assert!(a.session_key != b.session_key && a.prefix_key != b.prefix_key);
    }
}

#[test]
fn a_salt_is_a_function() {
    let part = rag(1, 50);
    assert_eq!(part.clone().with_salt(7), part.clone().with_salt(7));
    let [one, other] = [7, 8].map(|salt| (part.clone().with_salt(salt), second(0)));
    let both = keys(&Workload::concat([one, other]).unwrap());
    let (even, odd): (Vec<_>, Vec<_>) = (0..100).partition(|number| number % 2 == 0);
    let [even, odd] = [even, odd].map(|of| of.into_iter().map(|at: usize| both[at].clone()));
    // They arrive at the same times, so they take turns.
    assert!(shares_nothing(&even.collect::<Vec<_>>(), &odd.collect::<Vec<_>>()));
}

#[test]
fn parts_that_overlap_are_merged_by_time() {
    for is_paced in [false, true] {
        let parts = [(chat(1, 60, is_paced), second(0)), (rag(2, 60).with_salt(2), second(3))];
        let workload = Workload::concat(parts).unwrap();
        check(&workload);
        assert_eq!(workload.name(), "chat+rag");
        assert_eq!(workload.requests().len(), 120);
        let turns = workload.requests().iter().filter(|request| request.turn > 0).count();
        assert!(turns > 20, "{turns} later turns");
        // A session's later turns, which have no time, stand behind its first.
        for pair in workload.requests().windows(2) {
            let is_relative = !matches!(pair[1].arrival, Arrival::At(_));
            assert!(!is_relative || pair[0].session == pair[1].session);
        }
    }
}

#[test]
fn token_ids_stay_unless_salted() {
    let stream = TokenStream::new(NonZeroU32::new(1_000).unwrap(), 0);
    let sent = |workload: &Workload| -> Vec<Vec<u32>> {
        let tokens = |request: &WorkloadRequest| {
            let prompt = request.prompt_tokens.0 as usize;
            workload.tokens(request, &stream).take(prompt).collect()
        };
        workload.requests().iter().map(tokens).collect()
    };
    let part = prompts(&[&[1, 2, 3], &[1, 2, 9]]);
    let twice = Workload::concat([(part.clone(), second(0)), (part.clone(), second(9))]).unwrap();
    assert_eq!(sent(&twice), [vec![1, 2, 3], vec![1, 2, 9], vec![1, 2, 3], vec![1, 2, 9]]);

    let other = prompts(&[&[1, 2, 4]]);
    let error = Workload::concat([(part.clone(), second(0)), (other.clone(), second(9))]);
    let error = error.unwrap_err();
    assert_eq!(error, ConcatError::OtherTokens { part: 1 });
    assert!(error.to_string().contains("with_salt"));

    let salted = Workload::concat([(part, second(0)), (other.with_salt(1), second(9))]).unwrap();
    let sent = sent(&salted);
    assert_eq!(sent[..2], [vec![1, 2, 3], vec![1, 2, 9]]);
    assert_eq!(sent[2].len(), 3);
    assert_ne!(sent[2][0], 1, "content of its own");
}

#[test]
fn a_window_is_a_workload_of_its_own() {
    let whole = rag(5, 100);
    let window = whole.clone().window(30, 40);
    check(&window);
    assert_eq!(window.requests().len(), 40);
    let at = |workload: &Workload, number: usize| match workload.requests()[number].arrival {
        Arrival::At(at) => at,
        other => panic!("{other:?}"),
    };
    // The gaps stay, that before its first request too.
    let origin = at(&whole, 29);
    for number in 0..40 {
        let expected = at(&whole, 30 + number).nanos_since(origin);
        assert_eq!(at(&window, number).as_nanos(), expected);
    }
    assert_eq!(common(&keys(&window)), common(&keys(&whole)[30..70]));
    assert_eq!(whole.clone().window(90, 40).requests().len(), 10, "there are no more");
    assert!(whole.clone().window(100, 40).requests().is_empty());
    assert!(whole.window(30, 0).requests().is_empty());
}

#[test]
fn turns_without_their_predecessor_are_left_out() {
    for is_paced in [false, true] {
        let whole = chat(7, 60, is_paced);
        let cut = whole.requests().iter().find(|request| request.turn == 2).unwrap();
        let rest = whole.requests()[cut.id.index()..]
            .iter()
            .take_while(|request| request.session == cut.session)
            .count();
        let window = whole.clone().window(cut.id.0, 30);
        check(&window);
        assert_eq!(window.requests().len(), 30 - rest);
        let first = &whole.requests()[cut.id.index() + rest];
        assert_eq!(window.requests()[0].session_key, first.session_key);
        assert_eq!(window.requests()[0].turn, 0);
    }
}

/// Requests of a trace come at their own times, whatever their session did before.
#[test]
fn turns_with_a_time_of_their_own_begin_a_session() {
    let mut whole = chat(7, 60, false);
    for (number, request) in (0..).zip(&mut whole.requests) {
        request.arrival = Arrival::At(second(number));
    }
    let cut = whole.requests().iter().find(|request| request.turn == 2).unwrap().clone();
    let window = whole.window(cut.id.0, 30);
    check(&window);
    assert_eq!(window.requests().len(), 30);
    let first = &window.requests()[0];
    assert_eq!((first.session_key, first.turn), (cut.session_key, 0));
    assert_eq!(first.arrival, Arrival::At(second(1)));
}

proptest! {
    #[test]
    fn a_window_from_the_start_is_a_take(
        seed in 0..20_u64, n in 0..70_u32, kind in 0..3_u32, start in 0..70_u32,
    ) {
        let whole = match kind {
            0 => rag(seed, 60),
            1 => chat(seed, 60, false),
            _ => chat(seed, 60, true),
        };
        prop_assert_eq!(whole.clone().window(0, n), whole.clone().take(n));
        check(&whole.window(start, n));
    }
}
