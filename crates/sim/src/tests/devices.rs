//! Instances that share a device, and the times around a step.

use kvroute_types::RequestId;

use super::*;

#[test]
fn two_busy_instances_on_one_device_run_at_half_speed() {
    // They begin and end at the same moments, so each moment has two things to tell.
    let workload = by_hand(&[(0, 600, 20, 1), (0, 600, 20, 2)]);
    let alone = run(&cluster(2, "round-robin"), &workload);
    let shared = SimConfig { instances_per_device: 2, ..cluster(2, "round-robin") };
    let shared = run(&shared, &workload);
    assert_eq!(instances(&shared), [InstanceId(0), InstanceId(1)]);
    for (alone, shared) in alone.records.iter().zip(&shared.records) {
        assert_eq!(shared.end.as_nanos(), 2 * alone.end.as_nanos());
        assert_eq!(ttft_s(shared), 2.0 * ttft_s(alone));
    }
}

#[test]
fn instances_are_as_fast_as_is_said_in_turn() {
    let workload = by_hand(&[(0, 600, 20, 1), (0, 600, 20, 2), (0, 600, 20, 3)]);
    let equal = run(&cluster(3, "round-robin"), &workload);
    let config = SimConfig { speeds: vec![1.0, 0.5], ..cluster(3, "round-robin") };
    let unequal = run(&config, &workload);
    assert_eq!(instances(&unequal), [InstanceId(0), InstanceId(1), InstanceId(2)]);
    for (number, times) in [(0, 1.0), (1, 2.0), (2, 1.0)] {
        let (unequal, equal) = (ttft_s(&unequal.records[number]), ttft_s(&equal.records[number]));
        // Each step is in whole nanoseconds.
        assert!((unequal - times * equal).abs() < 1e-8, "{unequal} {equal}");
    }
}

#[test]
fn a_shared_device_costs_time_only_while_shared() {
    let shared = |policy| SimConfig { instances_per_device: 2, ..cluster(4, policy) };

    let crowded = uniform(100, 60.0, 1.0);
    let apart = run(&cluster(4, "jsq"), &crowded);
    let together = run(&shared("jsq"), &crowded);
    assert!(mean(&together, e2e_s) > 1.3 * mean(&apart, e2e_s));

    // One request at a time: there is never a busy neighbour.
    let lonely: Vec<_> = (0..12).map(|number| (number * 60_000, 600, 20, number)).collect();
    let lonely = by_hand(&lonely);
    let (apart, together) =
        (run(&cluster(4, "round-robin"), &lonely), run(&shared("round-robin"), &lonely));
    assert_eq!(Seen::from(&apart), Seen::from(&together));
}

#[test]
fn the_last_device_may_hold_fewer_instances() {
    let config = SimConfig { instances_per_device: 4, ..cluster(5, "round-robin") };
    let outcome = run(&config, &uniform(50, 60.0, 1.0));
    let last = outcome.records.iter().filter(|record| record.instance == Some(InstanceId(4)));
    let others = outcome.records.iter().filter(|record| record.instance != Some(InstanceId(4)));
    let per_token = |records: Vec<&RequestRecord>| {
        let time: f64 = records.iter().map(|record| e2e_s(record)).sum();
        time / records.iter().map(|record| f64::from(record.output_tokens.0)).sum::<f64>()
    };
    assert!(per_token(last.collect()) < 0.7 * per_token(others.collect()));
}

#[test]
fn the_way_there_and_back_is_paid_once_each() {
    let workload = by_hand(&[(0, 600, 20, 1)]);
    let near = cluster(1, "round-robin");
    let mut far = SimConfig { network_delay_s: 0.25, ..near.clone() };
    far.profile.request_overhead_s = 0.01;
    far.profile.request_overhead_s_per_prompt_token = 1e-5;
    far.profile.response_overhead_s = 0.003;
    let (near, far) = (run(&near, &workload), run(&far, &workload));
    let (near, far) = (&near.records[0], &far.records[0]);
    let later = |far: Timestamp, near: Timestamp| far.nanos_since(near);
    assert_eq!(later(far.scheduled.unwrap(), near.scheduled.unwrap()), 266_000_000);
    assert_eq!(later(far.first_token.unwrap(), near.first_token.unwrap()), 519_000_000);
    assert_eq!(later(far.end, near.end), 519_000_000);
}

/// R53: while a step runs, async scheduling has already formed the next, so a newcomer joins the one after it.
#[test]
fn under_async_scheduling_a_newcomer_waits_one_step_more() {
    let workload = by_hand(&[(0, 100, 50, 1), (95, 100, 5, 2)]);
    let ttft_ms = |async_scheduling| {
        let mut config = cluster(1, "round-robin");
        config.profile = even_steps(0.01);
        config.engine.async_scheduling = async_scheduling;
        let outcome = run(&config, &workload);
        let [first, newcomer] = [0, 1].map(|id| outcome.records[id].clone());
        assert_eq!(first.id, RequestId(0));
        assert_eq!(first.first_token.unwrap().as_nanos(), 10_000_000);
        newcomer.first_token.unwrap().nanos_since(newcomer.arrival) / 1_000_000
    };
    assert_eq!(ttft_ms(false), 15, "5 ms to the next step, and that");
    assert_eq!(ttft_ms(true), 25, "and one step that was formed before it came");
}

#[test]
fn reporting_every_token_changes_nothing() {
    let workload = chat(30, 20.0);
    let config = cluster(2, "load-cache");
    let mut chatty = config.clone();
    chatty.engine.report_tokens = true;
    chatty.engine.kv_events = true;
    let (quiet, chatty) = (run(&config, &workload), run(&chatty, &workload));
    assert_eq!(Seen::from(&quiet), Seen::from(&chatty));
}

#[test]
fn measurement_begins_where_it_is_told_to() {
    let workload = uniform(100, 60.0, 1.0);
    let whole = run(&cluster(2, "jsq"), &workload);
    let config = SimConfig { measure_from_s: 0.9, ..cluster(2, "jsq") };
    let rest = run(&config, &workload);
    assert_eq!(whole.records, rest.records, "it does not touch the run");
    assert_eq!(rest.measured_from, Timestamp::from_secs_f64(0.9));
    let gaps = |outcome: &SimOutcome| {
        outcome.instances.iter().map(|i| i.inter_token_ns.len()).sum::<u64>()
    };
    assert!((1..gaps(&whole)).contains(&gaps(&rest)));
    for (whole, rest) in whole.instances.iter().zip(&rest.instances) {
        assert!(rest.gauge_totals.running_ns < whole.gauge_totals.running_ns);
        assert_eq!(rest.gauge_totals.until, whole.gauge_totals.until);
    }
}
