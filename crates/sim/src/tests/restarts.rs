//! A router that is replaced by a new one.

use kvroute_router::{DirectorySource, Refresh};
use kvroute_types::TokenCount;

use super::invariants::{check_counters, check_records};
use super::*;

fn restarted(config: SimConfig, restarts: &[(f64, Option<&str>)]) -> SimConfig {
    let restart = |&(at_s, policy): &(f64, Option<&str>)| RouterRestart {
        at_s,
        policy: policy.map(|policy| policy.parse().unwrap()),
    };
    SimConfig { router_restarts: restarts.iter().map(restart).collect(), ..config }
}

fn reasons(outcome: &SimOutcome) -> Vec<&'static str> {
    outcome.records.iter().map(|record| record.reason).collect()
}

fn predicted(outcome: &SimOutcome) -> Vec<u32> {
    outcome.records.iter().map(|record| record.predicted_cached_tokens.unwrap().0).collect()
}

fn cached(outcome: &SimOutcome) -> Vec<u32> {
    outcome.records.iter().map(|record| record.cached_tokens.unwrap().0).collect()
}

/// One document five times, with time between.
fn document() -> Workload {
    by_hand(&[0, 1_000, 2_000, 3_000, 4_000].map(|at_ms| (at_ms, 1_100, 12, 1)))
}

#[test]
fn the_directory_is_forgotten_and_the_caches_are_kept() {
    for directory in [DirectorySource::History, DirectorySource::Events] {
        let mut config = cluster(1, "load-cache");
        config.router.directory = directory;
        let outcome = run(&restarted(config, &[(2.5, None)]), &document());
        assert_eq!(cached(&outcome), [0, 1_088, 1_088, 1_088, 1_088]);
        // The history learns of the document when it is asked for again; the instance has nothing new to tell of it.
        let known = if directory == DirectorySource::History { 1_088 } else { 0 };
        assert_eq!(predicted(&outcome), [0, 1_088, 1_088, 0, known]);
        let reason = if known > 0 { "cache-score" } else { "load-score" };
        let expected = ["load-score", "cache-score", "cache-score", "load-score", reason];
        assert_eq!(reasons(&outcome), expected);
    }
}

#[test]
fn news_of_caches_is_heard_if_a_later_router_listens() {
    let mut config = cluster(1, "round-robin");
    config.router.directory = DirectorySource::Events;
    let workload = by_hand(&[(0, 1_100, 12, 1), (1_000, 1_100, 12, 2), (2_000, 1_100, 12, 2)]);
    let outcome = run(&restarted(config, &[(0.5, Some("load-cache"))]), &workload);
    let predicted: Vec<_> = outcome.records.iter().map(|r| r.predicted_cached_tokens).collect();
    assert_eq!(predicted, [None, Some(TokenCount(0)), Some(TokenCount(1_088))]);
}

#[test]
fn news_on_its_way_is_lost() {
    let mut config = cluster(1, "load-cache");
    config.router.directory = DirectorySource::Events;
    config.network_delay_s = 0.5;
    let third = |restart_s| {
        let outcome = run(&restarted(config.clone(), &[(restart_s, None)]), &document());
        predicted(&outcome)[2]
    };
    // The document is in the cache some 50 ms after it arrives there.
    assert_eq!(third(0.4), 1_088, "told after the restart");
    assert_eq!(third(0.9), 0, "told before, heard after");
    assert_eq!(third(5.0), 1_088);
}

#[test]
fn what_is_in_flight_ends_all_the_same() {
    for workload in [chat(200, 60.0), uniform(200, 90.0, 1.0)] {
        for policy in policies() {
            let config = SimConfig { policy, network_delay_s: 0.01, ..cluster(3, "jsq") };
            let config = restarted(config, &[(0.4, None), (0.8, None), (1.5, Some("p2c"))]);
            let outcome = run(&config, &workload);
            let crosses = |record: &&RequestRecord| {
                let span = record.arrival.as_secs_f64()..record.end.as_secs_f64();
                config.router_restarts.iter().any(|restart| span.contains(&restart.at_s))
            };
            assert!(outcome.records.iter().filter(crosses).count() > 3);
            check_records(&config, &workload, &outcome);
            check_counters(&config, &outcome);
            assert_eq!(Seen::from(&outcome), Seen::from(&run(&config, &workload)));
        }
    }
}

#[test]
fn another_policy_decides_from_then_on() {
    let workload = uniform(100, 60.0, 1.0);
    let config =
        restarted(cluster(3, "round-robin"), &[(0.5, Some("session-affinity")), (1.0, None)]);
    let outcome = run(&config, &workload);
    for record in &outcome.records {
        let is_before = record.arrival < Timestamp::from_secs_f64(0.5);
        assert_eq!(record.reason, if is_before { "rotation" } else { "session-home" });
    }
    assert!(reasons(&outcome).contains(&"rotation"));
    let alone = run(&cluster(3, "session-affinity"), &workload);
    let after = reasons(&outcome).iter().filter(|reason| **reason == "rotation").count();
    assert_eq!(instances(&outcome)[after..], instances(&alone)[after..]);
}

/// One instance works on a long answer when the new router comes.
#[test]
fn loads_are_known_when_the_signal_brings_them() {
    let workload = by_hand(&[(0, 100, 2_000, 1), (1, 100, 5, 2), (1_100, 100, 5, 3)]);
    let third = |refresh, policy: &str| {
        let mut config = cluster(2, policy);
        config.router.load.refresh = refresh;
        let outcome = run(&restarted(config, &[(1.0, Some("jsq"))]), &workload);
        assert_eq!(instances(&outcome)[..2], [InstanceId(0), InstanceId(1)]);
        instances(&outcome)[2]
    };
    // Also if the one before had no use for them.
    for before in ["round-robin", "jsq"] {
        let (idle, unknown) = (InstanceId(1), InstanceId(0));
        assert_eq!(third(Refresh::RealTime, before), idle, "at once");
        assert_eq!(third(Refresh::EveryS(0.5), before), idle, "a reading is due at that time");
        assert_eq!(third(Refresh::EveryS(0.35), before), idle, "the next one is due at 1.05 s");
        assert_eq!(third(Refresh::EveryS(10.0), before), unknown, "none is due in time");
        assert_eq!(third(Refresh::Never, before), unknown);
    }
}

/// The way to an instance takes half a second.
#[test]
fn what_the_old_router_sent_counts_from_when_it_is_there() {
    let workload = by_hand(&[0, 200, 300, 600, 900].map(|at_ms| (at_ms, 100, 2_000, at_ms)));
    let mut config = cluster(2, "jsq");
    config.profile.request_overhead_s = 0.5;
    let outcome = run(&restarted(config, &[(0.1, None)]), &workload);
    let expected = [
        0, // By the old router.
        0, // Nothing is known of the first.
        1, // One on its way to the first instance.
        1, // There: one counted and one on its way. Here: one on its way.
        0, // There: two counted, the second as long ago as it was sent. Here: one counted, one on its way.
    ];
    assert_eq!(instances(&outcome), expected.map(InstanceId));
}

/// A long prompt takes long to arrive. What the new router sent meanwhile is counted all the same.
#[test]
fn what_the_old_router_sent_does_not_hold_up_the_count() {
    let workload = by_hand(&[
        (0, 100, 1, 1),
        (1, 100, 1, 2),
        (50, 1_500, 2_000, 3),
        (300, 100, 2_000, 4),
        (400, 100, 2_000, 5),
        (700, 100, 2_000, 6),
    ]);
    let mut config = cluster(2, "jsq");
    config.profile.request_overhead_s_per_prompt_token = 1e-3;
    let outcome = run(&restarted(config, &[(0.15, None)]), &workload);
    // Each of the new router's is counted once, so the last one finds both instances alike, and they take turns.
    assert_eq!(instances(&outcome), [0, 1, 0, 0, 1, 0].map(InstanceId));
}

#[test]
fn a_restart_at_the_start_is_none() {
    let workload = chat(60, 20.0);
    for policy in policies() {
        let config = SimConfig { policy, ..cluster(3, "jsq") };
        let plain = run(&config, &workload);
        let other = restarted(cluster(3, "jsq"), &[]);
        let first = RouterRestart { at_s: 0.0, policy: Some(config.policy) };
        let set = run(&SimConfig { router_restarts: vec![first], ..other }, &workload);
        let none = run(&restarted(config, &[(0.0, None)]), &workload);
        assert_eq!(Seen::from(&none), Seen::from(&plain));
        assert_eq!(Seen::from(&set), Seen::from(&plain));
    }
}

#[test]
fn the_fingerprint_is_of_all_decisions() {
    let workload = uniform(60, 60.0, 1.0);
    let arrivals = || {
        workload.requests().iter().map(|request| match request.arrival {
            kvroute_workload::Arrival::At(at) => at.as_secs_f64(),
            _ => unreachable!("the loop is open"),
        })
    };
    let last = arrivals().next_back().unwrap();
    let hash = |policy: &str, restarts: &[(f64, Option<&str>)]| {
        run(&restarted(cluster(3, policy), restarts), &workload).decision_log_hash
    };
    let plain = hash("jsq", &[]);
    assert_eq!(hash("jsq", &[(last + 1e-6, None)]), plain, "the second decides nothing");
    // The same decisions at the end, others at the beginning.
    let switch = [(0.5, Some("session-affinity"))];
    assert_ne!(hash("round-robin", &switch), hash("jsq", &switch));
    assert_ne!(hash("round-robin", &[(0.5, None)]), hash("round-robin", &[]));
    // A router that decides nothing between two others leaves no trace.
    let gap = arrivals().zip(arrivals().skip(1)).find(|(a, b)| *a > 0.3 && b - a > 1e-3).unwrap();
    let once = [(gap.0 + 1e-4, Some("session-affinity"))];
    let twice = [(gap.0 + 1e-4, None), (gap.0 + 2e-4, Some("session-affinity"))];
    assert_eq!(hash("jsq", &once), hash("jsq", &twice));
}

#[test]
fn every_so_often_means_all_the_time() {
    let workload = rag(200, 20.0);
    let every_s = |interval: f64| -> SimConfig {
        let restarts = (1..).map(|number| interval * f64::from(number));
        let restarts = restarts.take_while(|at_s| *at_s < 12.0).map(|at_s| (at_s, None));
        restarted(cluster(3, "load-cache"), &restarts.collect::<Vec<_>>())
    };
    let rates = [0.2, 2.0, 100.0].map(|interval| hit_rate(&run(&every_s(interval), &workload)));
    assert!(rates.is_sorted(), "the more often, the fewer hits: {rates:?}");
    assert!(rates[0] < rates[2] - 0.02, "{rates:?}");
}
