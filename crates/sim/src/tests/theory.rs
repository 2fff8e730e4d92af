//! What must come out whatever the numbers: directions and limits.

use super::*;

#[test]
fn where_nothing_is_shared_nothing_is_hit() {
    let workload = uniform(100, 40.0, 1.0);
    for policy in policies() {
        let config = SimConfig { policy, ..cluster(3, "jsq") };
        assert_eq!(hit_rate(&run(&config, &workload)), 0.0, "{}", policy.name());
    }
}

#[test]
fn policies_that_look_at_the_cache_hit_more_than_those_that_do_not() {
    let rate = |policy, workload: &Workload| hit_rate(&run(&cluster(4, policy), workload));
    let (rag, chat) = (rag(150, 20.0), chat(150, 20.0));
    for (policy, margin) in [
        ("load-cache", 0.05),
        ("load-cache:alpha=0.7,beta=0.3", 0.1),
        ("load-cache:affinity=paper,alpha=0.7,beta=0.3", 0.1),
        ("prefix-affinity", 0.1),
    ] {
        let (blind, aware) = (rate("round-robin", &rag), rate(policy, &rag));
        assert!(aware > blind + margin, "rag, {policy}: {aware} against {blind}");
    }
    for policy in ["load-cache", "load-cache:affinity=paper", "prefix-affinity", "session-affinity"]
    {
        let (blind, aware) = (rate("round-robin", &chat), rate(policy, &chat));
        assert!(aware > blind + 0.05, "chat, {policy}: {aware} against {blind}");
    }
}

#[test]
fn joining_the_shortest_queue_spreads_a_burst() {
    let workload = uniform(300, 60.0, 4.0);
    let spread = |policy| run(&cluster(6, policy), &workload).in_flight_cov.unwrap();
    let [round_robin, p2c, jsq] = ["round-robin", "p2c", "jsq"].map(spread);
    assert!(jsq < p2c && p2c < round_robin, "jsq {jsq}, p2c {p2c}, round-robin {round_robin}");
}

#[test]
fn affinity_alone_sends_one_prefix_to_one_instance() {
    let requests: Vec<_> = (0..40).map(|number| (number * 10, 1_100 + number, 20, 1)).collect();
    let workload = by_hand(&requests);
    for affinity in ["paper", "blocks"] {
        let policy = format!("load-cache:alpha=1,beta=0,affinity={affinity}");
        let outcome = run(&cluster(4, &policy), &workload);
        assert!(instances(&outcome).iter().all(|&id| id == InstanceId(0)), "{affinity}");
        let idle = &outcome.instances[3];
        assert_eq!((idle.counters, idle.inter_token_ns.len()), (Counters::default(), 0));
    }
}

#[test]
fn one_instance_leaves_nothing_to_choose() {
    let workload = chat(40, 10.0);
    let config = cluster(1, "round-robin");
    let without_choice = run(&config, &workload);
    for policy in policies() {
        let outcome = run(&SimConfig { policy, ..config.clone() }, &workload);
        let times = |outcome: &SimOutcome| {
            outcome
                .records
                .iter()
                .map(|r| (r.first_token, r.end, r.cached_tokens))
                .collect::<Vec<_>>()
        };
        assert_eq!(times(&outcome), times(&without_choice), "{}", policy.name());
    }
}

#[test]
fn a_larger_cache_hits_no_less_and_a_disabled_one_never() {
    let workload = rag(150, 20.0);
    let rate = |kv_blocks, caching| {
        let mut config = cluster(2, "round-robin").with_kv_blocks(kv_blocks);
        config.engine.max_model_len = 2_000;
        config.engine.max_num_seqs = 2;
        config.engine.enable_prefix_caching = caching;
        hit_rate(&run(&config, &workload))
    };
    let rates = [rate(1_000, false), rate(200, true), rate(400, true), rate(2_000, true)];
    assert_eq!(rates[0], 0.0);
    assert!(rates.is_sorted(), "{rates:?}");
    assert!(rates[3] > rates[1] + 0.2, "{rates:?}");
}

/// What the router expects to be cached is, if nothing is evicted, all there is, or not computed yet.
#[test]
fn with_room_for_all_predictions_are_never_exceeded() {
    let workload = rag(100, 5.0);
    let outcome = run(&cluster(2, "load-cache").with_kv_blocks(20_000), &workload);
    let tokens = |of: fn(&RequestRecord) -> u32| outcome.records.iter().map(of).sum::<u32>();
    let cached = tokens(|record| record.cached_tokens.unwrap().0);
    let predicted = tokens(|record| record.predicted_cached_tokens.unwrap().0);
    for record in &outcome.records {
        assert!(record.cached_tokens <= record.predicted_cached_tokens, "{record:?}");
    }
    assert!(f64::from(cached) > 0.95 * f64::from(predicted), "{cached} of {predicted}");
}
