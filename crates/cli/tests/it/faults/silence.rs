//! Engines that take requests and say nothing, behind a server that answers `/health`.

use std::time::Duration;

use super::{IN_TURN, mixed, mocks, streamed, whole};
use crate::client::{Load, Outcome, Prompt, all_complete};
use crate::process::{Gateway, Mock, eventually};

#[test]
fn a_hung_engine_is_found_by_our_own_requests_silence() {
    let mocks = mocks::<3>();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1], &mocks[2]], "");
    for shape in [whole, streamed, mixed] {
        let load = Load::start(&gateway.addr, 16, shape);
        let hung = mocks[0].name();
        eventually("under load", || load.answered_by(&hung) > 20);
        let silence = || gateway.metric("kvroute_ejections_total", &[&hung, "silence"]);
        let before = silence();
        mocks[0].set_faults(r#"{"hang": true}"#);
        eventually("found out", || silence() > before);
        mocks[0].set_faults("{}");
        let answered = load.answered_by(&hung);
        eventually("it gets traffic again", || load.answered_by(&hung) > answered + 20);
        all_complete(&load.stop());
    }
    assert_eq!(gateway.ejections(&mocks[1]) + gateway.ejections(&mocks[2]), 0.0);
    gateway.comes_to_rest();
}

#[test]
fn a_hung_engine_is_found_though_no_client_waits_for_long() {
    let mocks = mocks::<2>();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1]], IN_TURN);
    mocks[0].set_faults(r#"{"hang": true}"#);
    // One client, one request at a time, and less patience than the gateway.
    eventually("found out", || {
        let patience = Duration::from_millis(900);
        for number in 0..2 {
            crate::client::ask_once(&gateway.addr, &streamed(number), patience);
        }
        gateway.metric("kvroute_ejections_total", &[&mocks[0].name(), "silence"]) > 0.0
    });
}

#[test]
fn a_long_prefill_is_no_hang() {
    // The profile's 8,000 prompt tokens a second and more, slowed down: over 4 s for these prompts.
    let slow = ["--time-scale", "0.2"];
    let mocks = [Mock::start(&slow), Mock::start(&slow)];
    let gateway = Gateway::start(&[&mocks[0], &mocks[1]], IN_TURN);
    let long =
        |number| Prompt { number, words: 6_000, max_tokens: 1, stream: number.is_multiple_of(2) };
    let load = Load::start(&gateway.addr, 2, long);
    let begun = std::time::Instant::now();
    eventually("both are at it", || gateway.metric("kvroute_in_flight", &[]) == 2.0);
    let done = load.stop();
    assert!(begun.elapsed() > Duration::from_secs(3), "no long prefill: {:?}", begun.elapsed());
    all_complete(&done);
    assert_eq!(gateway.metric("kvroute_ejections_total", &[]), 0.0);
    assert_eq!(gateway.metric("kvroute_retries_total", &[]), 0.0);
}

#[test]
fn a_stream_that_falls_silent_is_the_only_one_lost() {
    let mocks = mocks::<2>();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1]], "[timeouts]\nstall_s = 3.0\n");
    let load = Load::start(&gateway.addr, 8, streamed);
    let silent = mocks[0].name();
    eventually("under load", || load.answered_by(&silent) > 20);
    mocks[0].set_faults(r#"{"silent_after_tokens": 3}"#);
    eventually("found out", || !gateway.is_up(&mocks[0]));
    mocks[0].set_faults("{}");
    let done = load.stop();
    let stalled = Outcome::ErrorEvent("answer_stalled".into());
    let failed: Vec<_> = done.iter().filter(|it| it.outcome != Outcome::Complete).collect();
    assert!(failed.iter().all(|it| it.outcome == stalled && it.instance == silent), "{failed:?}");
    assert!((1..=16).contains(&failed.len()), "{failed:?}");
    gateway.comes_to_rest();
    // The engine was told that nobody listens any more.
    eventually("the engine is idle", || mocks[0].state()["running"] == 0);
}
