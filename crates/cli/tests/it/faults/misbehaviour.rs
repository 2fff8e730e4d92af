//! Instances that answer, but wrongly.

use super::{IN_TURN, QUICK, mixed, mocks, streamed, whole};
use crate::client::{Load, Outcome, Prompt, all_complete, tally};
use crate::process::{Gateway, Mock, call, eventually};

#[test]
fn what_an_instance_answers_wrongly_is_hidden() {
    let mocks = mocks::<3>();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1], &mocks[2]], IN_TURN);
    for faults in [
        r#"{"error_rate": 1.0, "error_status": 503}"#,
        r#"{"cut_after_tokens": 0}"#,
        r#"{"health_status": 500}"#,
    ] {
        let before = gateway.ejections(&mocks[0]);
        mocks[0].set_faults(faults);
        let load = Load::start(&gateway.addr, 8, mixed);
        eventually(faults, || gateway.ejections(&mocks[0]) > before);
        mocks[0].set_faults("{}");
        eventually("it is back", || gateway.is_up(&mocks[0]));
        let tally = tally(&load.stop());
        assert!(tally.keys().all(|how| *how == Outcome::Complete), "{faults}: {tally:?}");
    }
    gateway.comes_to_rest();
}

#[test]
fn internal_errors_cost_only_the_requests_that_found_them_out() {
    let error = Outcome::Status(500, "InternalServerError".into());
    costs_only_what_found_it_out(r#"{"error_rate": 1.0}"#, mixed, &error);
}

#[test]
fn an_instance_that_dies_in_mid_stream_costs_only_those_streams() {
    let cut = Outcome::ErrorEvent("answer_cut".into());
    costs_only_what_found_it_out(r#"{"cut_after_tokens": 3}"#, streamed, &cut);
}

fn costs_only_what_found_it_out(faults: &str, prompt: fn(u64) -> Prompt, failure: &Outcome) {
    let mocks = mocks::<3>();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1], &mocks[2]], IN_TURN);
    let load = Load::start(&gateway.addr, 6, prompt);
    mocks[0].set_faults(faults);
    eventually("found out", || gateway.ejections(&mocks[0]) > 0.0);
    mocks[0].set_faults("{}");
    let from = load.count();
    eventually("the load goes on", || load.count() > from + 50);
    let done = load.stop();
    let failed: Vec<_> = done.iter().filter(|it| it.outcome != Outcome::Complete).collect();
    assert!(failed.iter().all(|it| it.outcome == *failure && it.instance == mocks[0].name()));
    assert!((3..=8).contains(&failed.len()), "three in a row eject: {:?}", tally(&done));
    gateway.comes_to_rest();
}

#[test]
fn slow_headers_and_garbage_metrics_eject_nobody() {
    let mocks = mocks::<2>();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1]], "[load]\nrefresh_s = 0.1\n");
    for faults in [
        r#"{"header_delay_ms": 300}"#,
        r#"{"extra_delay_ms": 300}"#,
        r#"{"metrics": "garbage"}"#,
        r#"{"metrics": "truncated"}"#,
        r#"{"metrics": "empty"}"#,
        r#"{"metrics": "foreign"}"#,
        r#"{"metrics": "error"}"#,
        r#"{"metrics": "hang"}"#,
    ] {
        mocks[0].set_faults(faults);
        let load = Load::start(&gateway.addr, 4, mixed);
        let name = mocks[0].name();
        eventually(faults, || load.answered_by(&name) > 3 && load.count() > 50);
        all_complete(&load.stop());
    }
    assert_eq!(gateway.metric("kvroute_ejections_total", &[]), 0.0);
    gateway.comes_to_rest();
}

#[test]
fn one_that_accepts_and_never_answers_is_left() {
    let mocks = mocks::<2>();
    mocks[0].freeze();
    let gateway = Gateway::start(&[&mocks[0], &mocks[1]], IN_TURN);
    let load = Load::start(&gateway.addr, 4, mixed);
    eventually("found out", || !gateway.is_up(&mocks[0]));
    let from = load.count();
    eventually("the load goes on", || load.count() > from + 50);
    all_complete(&load.stop());
    gateway.comes_to_rest();
    mocks[0].thaw();
}

#[test]
fn the_last_instance_is_never_ejected() {
    let mock = Mock::start(&QUICK);
    let gateway = Gateway::start(&[&mock], "");
    mock.set_faults(r#"{"error_rate": 1.0, "health_status": 500}"#);
    let load = Load::start(&gateway.addr, 2, whole);
    eventually("it fails", || load.count() > 20 && !gateway.is_up(&mock));
    let failed = Outcome::Status(500, "InternalServerError".into());
    let done = load.stop();
    assert!(done.iter().all(|it| it.outcome == failed), "its own words: {:?}", tally(&done));
    assert_eq!(gateway.metric("kvroute_instance_up", &[&mock.name()]), 1.0, "in use all the same");
    mock.set_faults("{}");
    let body = r#"{"messages":[{"role":"user","content":"hello"}],"max_tokens":1}"#;
    let (status, answer) = call(&gateway.addr, "POST", "/v1/chat/completions", body);
    assert_eq!(status, 200, "at once: {answer}");
}
