//! Instances that are down, die, freeze and come back.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{IN_TURN, QUICK, mixed, mocks, whole};
use crate::client::{Done, Load, Outcome, all_complete, tally};
use crate::process::{Gateway, Mock, eventually};

#[test]
fn an_instance_that_is_down_at_the_start_gets_traffic_when_it_comes_up() {
    let up = Mock::start(&QUICK);
    let mut late = Mock::down(&QUICK);
    let gateway = Gateway::start(&[&up, &late], IN_TURN);
    let load = Load::start(&gateway.addr, 4, mixed);
    eventually("it is found to be down", || !gateway.is_up(&late));
    late.restart();
    eventually("it gets traffic", || load.answered_by(&late.name()) > 5);
    all_complete(&load.stop());
    gateway.comes_to_rest();
}

#[test]
fn a_killed_instance_costs_only_streams_that_had_begun() {
    let mut mocks = mocks::<3>();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1], &mocks[2]], "");
    let load = Load::start(&gateway.addr, 16, mixed);
    let victim = mocks[0].name();
    eventually("under load", || load.answered_by(&victim) > 20);
    mocks[0].kill();
    let at_kill = load.count();
    eventually("it is found out", || !gateway.is_up(&mocks[0]));
    eventually("the load goes on", || load.count() > at_kill + 100);
    mocks[0].restart();
    let before = load.answered_by(&victim);
    eventually("it gets traffic again", || load.answered_by(&victim) > before + 20);
    let done = load.stop();
    let failed: Vec<_> = done.iter().filter(|it| it.outcome != Outcome::Complete).collect();
    // Each had bytes from it: `Outcome::ErrorEvent` is an error after other events.
    let cut = Outcome::ErrorEvent("answer_cut".into());
    let permitted = |it: &&Done| it.outcome == cut && it.instance == victim;
    assert!(failed.iter().all(permitted), "{:?}", tally(&done));
    assert!(failed.len() <= 16, "no more than were under way: {:?}", tally(&done));
    gateway.comes_to_rest();
}

#[test]
fn a_frozen_instance_is_left_and_nothing_is_lost() {
    let mocks = mocks::<4>();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1], &mocks[2], &mocks[3]], "");
    let load = Load::start(&gateway.addr, 24, mixed);
    let frozen = mocks[0].name();
    eventually("under load", || load.answered_by(&frozen) > 20);
    let from = load.count();
    sleep(Duration::from_millis(500));
    let rate_before = load.count() - from;
    mocks[0].freeze();
    let at_freeze = Instant::now();
    eventually("throughput is back", || {
        let from = load.count();
        sleep(Duration::from_millis(500));
        load.count() - from > rate_before / 2
    });
    eventually("it is out of use", || !gateway.is_up(&mocks[0]));
    let from = load.answered_by(&frozen);
    sleep(Duration::from_millis(300));
    assert_eq!(load.answered_by(&frozen), from, "it is frozen");
    assert!(at_freeze.elapsed() < Duration::from_secs(10), "{:?}", at_freeze.elapsed());

    mocks[0].thaw();
    eventually("it gets traffic again", || load.answered_by(&frozen) > from + 20);
    // What had not begun went elsewhere; what had begun went on when it woke.
    all_complete(&load.stop());
    gateway.comes_to_rest();
}

#[test]
fn requests_in_the_last_resort_leave_it_when_another_comes_back() {
    let mut mocks = mocks::<2>();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1]], "[health]\nsilence_s = 60.0\n");
    mocks[1].kill();
    eventually("one is out", || !gateway.is_up(&mocks[1]));
    mocks[0].freeze();
    eventually("both are out", || !gateway.is_up(&mocks[0]));
    // There is nobody else, so these go to the frozen one and wait there.
    let load = Load::start(&gateway.addr, 4, whole);
    eventually("they wait", || gateway.metric("kvroute_in_flight", &[]) == 4.0);
    mocks[1].restart();
    eventually("they are answered", || load.count() > 4);
    all_complete(&load.stop());
    mocks[0].thaw();
}

#[test]
fn a_flapping_instance_is_tried_less_and_less() {
    let mut mocks = mocks::<3>();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1], &mocks[2]], IN_TURN);
    let load = Load::start(&gateway.addr, 8, whole);
    let begun = Instant::now();
    let mut ejected_at = Vec::new();
    // Back-offs of 1, 2 and 4 s: the fourth ejection comes 7 s after the first, or later.
    while ejected_at.len() < 4 && begun.elapsed() < Duration::from_secs(20) {
        mocks[0].kill();
        sleep(Duration::from_millis(200));
        mocks[0].restart();
        sleep(Duration::from_millis(200));
        if gateway.ejections(&mocks[0]) > ejected_at.len() as f64 {
            ejected_at.push(begun.elapsed());
        }
    }
    all_complete(&load.stop());
    let taken = ejected_at.last().unwrap().saturating_sub(ejected_at[0]);
    assert!(taken > Duration::from_secs(6), "ejected at {ejected_at:?}");
    assert_eq!(gateway.ejections(&mocks[1]) + gateway.ejections(&mocks[2]), 0.0);
    gateway.comes_to_rest();
}
