//! How rules of the field fail as published, on whole runs.

use std::collections::BTreeMap;

use kvroute_router::DirectorySource;

use super::*;

/// Requests as in the Mooncake traces: every prompt begins with the same block of 512 tokens and goes on with
/// its own, 2,500 tokens in all.
fn sharing_one_block(requests: u32, every_ms: u32) -> Workload {
    let line = |n: u32| {
        let own = [1, 2, 3, 4].map(|block| (n * 10 + block).to_string()).join(",");
        let at_ms = n * every_ms;
        format!(
            "{{\"timestamp\":{at_ms},\"input_length\":2500,\"output_length\":5,\"hash_ids\":[0,{own}]}}\n"
        )
    };
    let text: String = (0..requests).map(line).collect();
    TraceFormat::Mooncake.read(text.as_bytes(), &TraceOptions::default()).unwrap()
}

/// Requests on each instance that had any.
fn shares(outcome: &SimOutcome) -> BTreeMap<InstanceId, u32> {
    let mut shares = BTreeMap::new();
    for instance in instances(outcome) {
        *shares.entry(instance).or_insert(0) += 1;
    }
    shares
}

#[test]
fn a_block_that_all_share_is_a_match_at_theta_zero_and_one_instance_gets_all() {
    let workload = sharing_one_block(60, 20);
    let collapsed = run(&cluster(4, "threshold:match_threshold=0"), &workload);
    assert_eq!(shares(&collapsed).into_values().collect::<Vec<_>>(), [60]);
    // 32 of 156 blocks are no match at 0.3: the load is shared, and the block is computed four times.
    let spread = run(&cluster(4, "threshold"), &workload);
    assert_eq!(shares(&spread).len(), 4);
    assert!(mean(&spread, ttft_s) < 0.5 * mean(&collapsed, ttft_s));
    // The gate lets the shared block draw no more than a little above the mean, at theta 0 too.
    let gated = run(&cluster(4, "spill-gate:match_threshold=0"), &workload);
    assert!(shares(&gated).len() > 1);
    assert!(mean(&gated, ttft_s) < mean(&collapsed, ttft_s));
}

#[test]
fn the_guard_ends_the_collapse_at_65_in_flight_and_not_before() {
    let at_once = sharing_one_block(80, 0);
    let outcome = run(&cluster(4, "threshold:match_threshold=0"), &at_once);
    let shares = shares(&outcome);
    assert_eq!(shares.len(), 4);
    // 65 - 0 > 64 opens the three others; from then on they hold the block as well, and less load.
    assert_eq!(shares.values().max(), Some(&65), "{shares:?}");
}

/// A prefix that one instance holds, and a burst of requests for it, half a second later. If the directory
/// knows by then, they all follow the one copy. If its news comes a second late, they are misses: spread by
/// load, and each instance computes the prefix anew.
#[test]
fn behind_late_events_a_burst_of_one_new_prefix_spreads_and_in_time_it_herds() {
    let burst = |at_ms: u32| (0..12).map(move |_| (at_ms, 1_100, 5, 1));
    let requests: Vec<_> =
        std::iter::once((0, 1_100, 5, 1)).chain(burst(500)).chain(burst(4_000)).collect();
    let workload = by_hand(&requests);
    let with_delay = |delay_s: f64| {
        let mut config = cluster(4, "threshold");
        config.router.directory = DirectorySource::Events;
        config.router.index.delay_s = delay_s;
        let outcome = run(&config, &workload);
        assert_eq!(outcome.decision_log_hash, run(&config, &workload).decision_log_hash);
        outcome
    };
    let computed_anew = |outcome: &SimOutcome| {
        let uncached = outcome.records.iter().filter(|it| it.cached_tokens.unwrap().0 == 0);
        uncached.map(|it| it.instance.unwrap()).collect::<std::collections::BTreeSet<_>>().len()
    };
    let reasons = |outcome: &SimOutcome, of: std::ops::Range<usize>| {
        outcome.records[of].iter().map(|it| it.reason).collect::<std::collections::BTreeSet<_>>()
    };

    let in_time = with_delay(0.0);
    assert_eq!(shares(&in_time).into_values().collect::<Vec<_>>(), [25], "a herd of 12, twice");
    assert_eq!(computed_anew(&in_time), 1);
    assert_eq!(reasons(&in_time, 1..25), ["longest-match"].into());

    let late = with_delay(1.0);
    let first = &instances(&late)[1..13];
    for id in (0..4).map(InstanceId) {
        assert_eq!(first.iter().filter(|it| **it == id).count(), 3, "spread by load: {first:?}");
    }
    assert_eq!(computed_anew(&late), 4);
    assert_eq!(reasons(&late, 1..13), ["least-loaded"].into());
    // By the second burst the news has come: every instance holds the prefix, and equals are told apart by load.
    assert_eq!(reasons(&late, 13..25), ["longest-match"].into());
    assert_eq!(shares(&late).len(), 4);
    assert!(late.records[13..].iter().all(|it| it.cached_tokens.unwrap().0 == 1_088));
}
