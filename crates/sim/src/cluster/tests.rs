//! What the simulator foretells of a request is what becomes of it.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::tests::{by_hand, cluster, configs, even_steps, mean, rag, recipes, run, ttft_s};

/// A cluster in which all that is due by `now` has happened.
fn at<'a>(
    config: &SimConfig,
    workload: &'a Workload,
    plan: &'a Plan,
    now: Timestamp,
) -> Cluster<'a> {
    let mut cluster = Cluster::new(config, workload, plan).unwrap();
    while cluster.due().now <= now && cluster.advance() {}
    cluster
}

/// What is foretold of a request that arrives now, by instance.
fn foretold(cluster: &mut Cluster<'_>, now: Timestamp, id: RequestId) -> Vec<Duration> {
    let request = &cluster.workload.requests()[id.index()];
    let at = now.plus_nanos(cluster.request_delay_ns(request));
    cluster.foretell_ttfts(now, id, at);
    cluster.routers.current.candidates().iter().map(|it| it.true_ttft.unwrap()).collect()
}

/// What becomes of it on this instance if nothing else arrives.
fn observed(cluster: &mut Cluster<'_>, now: Timestamp, id: RequestId, chosen: usize) -> Duration {
    for number in 0..cluster.fleet.engines.len() {
        cluster.routers.current.set_eligible(instance_id(number), number == chosen);
    }
    cluster.arrive(now, id);
    cluster.next_arrival = cluster.workload.requests().len();
    loop {
        cluster.scheduled.retain(|Reverse((.., event))| matches!(event, Scheduled::AtEngine(_)));
        let live = cluster.live[id.index()].as_ref();
        let record = cluster.records.iter().find(|record| record.id == id);
        let seen = live.and_then(|it| it.first_token).or(record.and_then(|it| it.first_token));
        if let Some(first_token) = seen {
            assert!(live.is_none_or(|it| it.instance.index() == chosen));
            return first_token.since(now);
        }
        assert!(cluster.advance(), "the request is served");
    }
}

proptest! {
    /// On every instance, in any state: queues, prefill in chunks, full caches, requests on their way, shared devices.
    #[test]
    fn what_is_foretold_is_what_happens(
        config in configs(),
        recipe in recipes(),
        share in 0.0..1.0,
    ) {
        let workload = recipe.workload();
        let longest = config.engine.max_model_len;
        prop_assume!(workload.requests().iter().all(|it| it.prompt_tokens.0 < longest));
        let plan = Plan::new(&workload, config.engine.block_size).unwrap();
        let last = workload.requests().iter().rev().find_map(|request| match request.arrival {
            Arrival::At(at) => Some((at, request.id)),
            _ => None,
        });
        let (last, id) = last.expect("a first request has a time of its own");
        prop_assume!(last > Timestamp::ZERO);
        let now = Timestamp::from_secs_f64((last.as_nanos() - 1) as f64 * 1e-9 * share);
        let mut cluster = at(&config, &workload, &plan, now);
        let foretold = foretold(&mut cluster, now, id);
        for (number, &ttft) in foretold.iter().enumerate() {
            let mut cluster = at(&config, &workload, &plan, now);
            prop_assert_eq!(observed(&mut cluster, now, id, number), ttft, "on instance {}", number);
        }
    }
}

/// Steps of 10 ms, and nothing around them.
fn ten_ms_steps(instances: u32) -> SimConfig {
    let mut config = cluster(instances, "oracle");
    config.profile = even_steps(0.01);
    config.profile.request_overhead_s = 0.0;
    config.profile.request_overhead_s_per_prompt_token = 0.0;
    config.profile.response_overhead_s = 0.0;
    config
}

#[test]
fn it_foretells_what_is_worked_out_by_hand() {
    // 2,048 tokens fit a step. The first prompt takes 2 steps, to 20 ms.
    let workload = by_hand(&[(0, 3_000, 1, 1), (6, 100, 1, 2), (100, 3_000, 1, 1)]);
    let plan = Plan::new(&workload, ten_ms_steps(2).engine.block_size).unwrap();
    let ms = |at: u64| Timestamp::from_nanos(at * 1_000_000);
    let ttfts = |config: &SimConfig, now, id| -> Vec<u64> {
        let mut cluster = at(config, &workload, &plan, ms(now));
        let ttfts = foretold(&mut cluster, ms(now), RequestId(id));
        ttfts.into_iter().map(|ttft| u64::try_from(ttft.as_micros()).unwrap()).collect()
    };
    // At 5 ms instance 0 is in its first step and has formed the second, with the rest of the prompt: the request is in
    // the third, from 20 to 30 ms. Instance 1 is idle.
    assert_eq!(ttfts(&ten_ms_steps(2), 5, 1), [25_000, 10_000]);
    // One step at a time, it shares the second: 10 to 20 ms.
    let mut sync = ten_ms_steps(2);
    sync.engine.async_scheduling = false;
    assert_eq!(ttfts(&sync, 5, 1), [15_000, 10_000]);
    // At 100 ms both are idle; instance 0 holds all of the prompt but its last block, instance 1 needs two steps.
    assert_eq!(ttfts(&ten_ms_steps(2), 99, 2), [10_000, 20_000]);
    // 3 ms there and back.
    let far = SimConfig { network_delay_s: 0.003, ..ten_ms_steps(2) };
    assert_eq!(ttfts(&far, 99, 2), [16_000, 26_000]);
    // At 1 ms the first request is on its way still, and gets there first: its steps end at 13 and 23 ms, the next at 33 ms.
    assert_eq!(ttfts(&far, 1, 1), [35_000, 16_000]);

    let outcome = run(&ten_ms_steps(2), &workload);
    let chosen: Vec<u32> = outcome.records.iter().map(|it| it.instance.unwrap().0).collect();
    assert_eq!(chosen, [0, 1, 0]);
    assert!(outcome.records.iter().all(|it| it.reason == "least-ttft"));
}

#[test]
fn the_oracle_has_earlier_first_tokens_than_jsq() {
    let workload = rag(300, 40.0);
    let of = |policy| mean(&run(&cluster(3, policy), &workload), ttft_s);
    let (oracle, jsq) = (of("oracle"), of("jsq"));
    assert!(oracle < jsq, "oracle {oracle} s, jsq {jsq} s");
}

#[test]
fn foretelling_changes_nothing() {
    let workload = rag(60, 40.0);
    let plan = Plan::new(&workload, cluster(2, "jsq").engine.block_size).unwrap();
    let mut foretelling = Cluster::new(&cluster(2, "jsq"), &workload, &plan).unwrap();
    loop {
        let now = foretelling.due().now;
        if !foretelling.advance() {
            break;
        }
        if foretelling.due().now > now && foretelling.next_arrival < 60 {
            foretold(&mut foretelling, now, RequestId(59));
        }
    }
    let (seen, undisturbed) = (foretelling.into_outcome(), run(&cluster(2, "jsq"), &workload));
    assert_eq!(crate::tests::Seen::from(&seen), crate::tests::Seen::from(&undisturbed));
}
