//! Every staleness setting changes the result, and in the direction that theory gives.

use kvroute_router::{Refresh, SignalConfig};

use super::*;

/// Signals that bring nothing that could still be of use.
fn useless() -> [(&'static str, SignalConfig); 5] {
    let fresh = SignalConfig::default();
    [
        ("never", SignalConfig { refresh: Refresh::Never, ..fresh.clone() }),
        ("rare refresh", SignalConfig { refresh: Refresh::EveryS(1e6), ..fresh.clone() }),
        ("delay", SignalConfig { delay_s: 1e6, ..fresh.clone() }),
        ("loss", SignalConfig { loss: 1.0, ..fresh.clone() }),
        ("expiry", SignalConfig { expiry_s: Some(1e-9), ..fresh }),
    ]
}

/// Signals that bring something, too late or too little.
fn stale() -> [(&'static str, SignalConfig); 4] {
    let fresh = SignalConfig::default();
    [
        ("refresh", SignalConfig { refresh: Refresh::EveryS(0.7), ..fresh.clone() }),
        ("delay", SignalConfig { delay_s: 0.7, ..fresh.clone() }),
        ("loss", SignalConfig { loss: 0.5, ..fresh.clone() }),
        ("expiry", SignalConfig { expiry_s: Some(0.02), ..fresh }),
    ]
}

fn with_index(config: &SimConfig, index: SignalConfig) -> SimConfig {
    let mut config = config.clone();
    config.router.index = index;
    config
}

fn with_load(config: &SimConfig, load: SignalConfig) -> SimConfig {
    let mut config = config.clone();
    config.router.load = load;
    config
}

#[test]
fn without_an_index_load_cache_routes_by_load_alone() {
    let workload = rag(150, 30.0);
    let by_load = run(&cluster(4, "jsq"), &workload);
    for affinity in ["blocks", "paper"] {
        let config = cluster(4, &format!("load-cache:affinity={affinity}"));
        let fresh = run(&config, &workload);
        for (what, index) in useless() {
            let blind = run(&with_index(&config, index), &workload);
            assert_ne!(blind.decision_log_hash, fresh.decision_log_hash, "{affinity} {what}");
            assert_eq!(instances(&blind), instances(&by_load), "{affinity} {what}");
            assert!(hit_rate(&blind) < hit_rate(&fresh) - 0.05, "{affinity} {what}");
        }
    }
}

#[test]
fn a_stale_index_lies_between_a_fresh_one_and_none() {
    let workload = rag(150, 30.0);
    let config = cluster(4, "load-cache:alpha=0.9,beta=0.1");
    let fresh = run(&config, &workload);
    let [(_, never), ..] = useless();
    let blind = run(&with_index(&config, never), &workload);
    for (what, index) in stale() {
        let stale = run(&with_index(&config, index), &workload);
        assert_ne!(stale.decision_log_hash, fresh.decision_log_hash, "{what}");
        assert_ne!(stale.decision_log_hash, blind.decision_log_hash, "{what}");
        let rates = [&blind, &stale, &fresh].map(hit_rate);
        assert!(rates.is_sorted(), "{what}: none, stale, fresh: {rates:?}");
    }
}

#[test]
fn without_readings_the_waiting_queue_says_nothing() {
    let workload = uniform(200, 60.0, 3.0);
    let in_turn = run(&cluster(4, "round-robin"), &workload);
    let config = cluster(4, "jsq:load=waiting");
    let fresh = run(&config, &workload);
    for (what, load) in useless() {
        let blind = run(&with_load(&config, load), &workload);
        assert_ne!(blind.decision_log_hash, fresh.decision_log_hash, "{what}");
        assert_eq!(instances(&blind), instances(&in_turn), "{what}: equals take turns");
        assert!(mean(&fresh, ttft_s) < mean(&blind, ttft_s), "{what}");
    }
    for (what, load) in stale() {
        let stale = run(&with_load(&config, load), &workload);
        assert_ne!(stale.decision_log_hash, fresh.decision_log_hash, "{what}");
        assert_ne!(instances(&stale), instances(&in_turn), "{what}");
    }
}

#[test]
fn without_readings_our_own_count_still_balances() {
    let workload = uniform(200, 60.0, 3.0);
    let far = |policy| SimConfig { network_delay_s: 0.05, ..cluster(4, policy) };
    let in_flight = run(&far("jsq:load=in-flight"), &workload);
    let in_turn = run(&far("round-robin"), &workload);
    let fresh = run(&far("jsq"), &workload);
    for (what, load) in useless() {
        let own = run(&with_load(&far("jsq"), load), &workload);
        assert_ne!(own.decision_log_hash, fresh.decision_log_hash, "{what}");
        assert_eq!(own.decision_log_hash, in_flight.decision_log_hash, "{what}");
        assert!(own.in_flight_cov < in_turn.in_flight_cov, "{what}");
    }
    for (what, load) in stale() {
        let stale = run(&with_load(&far("jsq"), load), &workload);
        assert_ne!(stale.decision_log_hash, fresh.decision_log_hash, "{what}");
    }
}

#[test]
fn every_policy_that_reads_load_feels_it_go() {
    let workload = rag(200, 60.0);
    for policy in ["jsq", "p2c", "load-cache", "prefix-affinity"] {
        let extra = if policy == "prefix-affinity" { ",queue_threshold=2" } else { "" };
        let mut config = cluster(4, &format!("{policy}:load=waiting{extra}"));
        config.engine.max_num_seqs = 2;
        let fresh = run(&config, &workload);
        for (what, load) in useless().into_iter().chain(stale()) {
            let stale = run(&with_load(&config, load), &workload);
            assert_ne!(stale.decision_log_hash, fresh.decision_log_hash, "{policy} {what}");
        }
    }
}

#[test]
fn policies_that_read_no_signal_do_not_feel_it_go() {
    let workload = rag(60, 60.0);
    for policy in ["round-robin", "session-affinity"] {
        let config = cluster(3, policy);
        let fresh = run(&config, &workload);
        for (what, signal) in useless().into_iter().chain(stale()) {
            let stale = run(&with_index(&with_load(&config, signal.clone()), signal), &workload);
            assert_eq!(Seen::from(&stale), Seen::from(&fresh), "{policy} {what}");
        }
    }
}

/// The perfect signal counts every request once: on its way from when it is sent, in the gauges from when it is there,
/// however long the way. If answers take no time to come back, that is our own count at all times.
#[test]
fn fresh_readings_count_every_request_once() {
    let at_once: Vec<_> = (0..20).map(|document| (0, 600, 20, document)).collect();
    for workload in [by_hand(&at_once), uniform(150, 60.0, 3.0)] {
        for (overhead_s, per_token_s) in [(0.0, 0.0), (0.03, 0.0), (0.02, 1e-5)] {
            for policy in ["jsq", "p2c"] {
                let hash = |load| {
                    let mut config = cluster(4, &format!("{policy}:load={load}"));
                    config.profile.request_overhead_s = overhead_s;
                    config.profile.request_overhead_s_per_prompt_token = per_token_s;
                    run(&config, &workload).decision_log_hash
                };
                assert_eq!(
                    hash("total"),
                    hash("in-flight"),
                    "{policy}, {overhead_s}, {per_token_s}"
                );
            }
        }
    }
}
