use hdrhistogram::Histogram;
use kvroute_types::{RequestId, SessionId, TokenCount};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::mean_in_flight;

fn ms(ms: u64) -> Timestamp {
    Timestamp::from_nanos(ms * 1_000_000)
}

/// A completed request on `instance`: times in ms, prompt 100 tokens of which 40 were cached and 50
/// were believed to be.
fn request(id: u32, instance: u32, arrival: u64, first_token: u64, end: u64) -> RequestRecord {
    RequestRecord {
        id: RequestId(id),
        session: SessionId(id),
        turn: 0,
        instance: Some(InstanceId(instance)),
        reason: "prefix-hit",
        outcome: Outcome::Completed,
        arrival: ms(arrival),
        scheduled: Some(ms(arrival + 10)),
        first_token: Some(ms(first_token)),
        end: ms(end),
        prompt_tokens: TokenCount(100),
        cached_tokens: Some(TokenCount(40)),
        predicted_cached_tokens: Some(TokenCount(50)),
        output_tokens: TokenCount(11),
        preemptions: 0,
    }
}

/// A request that no instance took; the failure was known at `end` ms.
fn failure(id: u32, arrival: u64, end: u64) -> RequestRecord {
    RequestRecord {
        instance: None,
        reason: "",
        outcome: Outcome::Failed,
        scheduled: None,
        first_token: None,
        cached_tokens: None,
        predicted_cached_tokens: None,
        output_tokens: TokenCount(0),
        ..request(id, 0, arrival, 0, end)
    }
}

fn gauges(instance: u32, in_flight: f64, queue: f64, queue_max: u32) -> InstanceMeasurements {
    InstanceMeasurements {
        instance: InstanceId(instance),
        queue_depth_mean: Some(queue),
        queue_depth_max: Some(queue_max),
        kv_cache_usage_mean: Some(0.25),
        in_flight_mean: Some(in_flight),
    }
}

fn measurements(records: &[RequestRecord]) -> Measurements<'_> {
    Measurements {
        policy: "load-cache".to_owned(),
        policy_config: json!({ "kind": "load-cache", "alpha": 0.7 }),
        workload: "chat".to_owned(),
        instances: 2,
        seed: 42,
        mode: Mode::Sim,
        records,
        window: MeasurementWindow::ALL,
        slo: Slo { ttft_ms: 100.0, tpot_ms: 20.0 },
        inter_token_ns: None,
        hit_rate_bounds: HitRateBounds {
            pooled_lru: Some(0.25),
            pooled_belady: Some(0.375),
            infinite_cache: Some(0.5),
        },
        instances_measured: vec![gauges(1, 1.0, 0.5, 2), gauges(0, 3.0, 1.5, 7)],
        cov_in_flight: Some(0.5),
        preemptions: Preemptions::InRecords,
        decision_log_hash: Some(0xdead_beef),
        wall_s: 0.125,
    }
}

/// Three requests that complete and one that fails, worked out by hand below.
///
/// | id | instance | arrival | first | end  | ttft | e2e | tokens | tpot | meets 100 / 20 |
/// |----|----------|---------|-------|------|------|-----|--------|------|----------------|
/// | 0  | 0        | 1000    | 1100  | 1300 | 100  | 300 | 11     | 20   | yes, at bounds |
/// | 1  | 1        | 1500    | 1550  | 1560 | 50   | 60  | 1      | -    | yes            |
/// | 2  | 0        | 2000    | 2300  | 2400 | 300  | 400 | 11     | 10   | no, TTFT       |
/// | 3  | none     | 2600    | -     | 3000 | -    | -   | 0      | -    | no, failed     |
fn four_requests() -> Vec<RequestRecord> {
    let one_token = RequestRecord {
        output_tokens: TokenCount(1),
        reason: "least-loaded",
        prompt_tokens: TokenCount(300),
        cached_tokens: Some(TokenCount(0)),
        predicted_cached_tokens: None,
        preemptions: 2,
        ..request(1, 1, 1500, 1550, 1560)
    };
    vec![
        request(0, 0, 1000, 1100, 1300),
        one_token,
        request(2, 0, 2000, 2300, 2400),
        failure(3, 2600, 3000),
    ]
}

#[test]
fn a_small_run_worked_out_by_hand() {
    let result = RunResult::from_measurements(&measurements(&four_requests()));
    assert_eq!((result.requests, result.completed, result.failed), (4, 3, 1));
    // From 1.0 s to the end of the failed request at 3.0 s.
    assert_eq!(result.duration_s, Some(2.0));
    // Four arrivals within 1.6 s.
    assert_eq!(result.offered_rps, Some(2.5));
    assert_eq!(result.completed_rps, Some(1.5));
    assert_eq!(result.output_tokens_per_s, Some(11.5));

    assert_eq!((result.ttft_ms.mean, result.ttft_ms.p50), (Some(150.0), Some(100.0)));
    assert_eq!((result.ttft_ms.p90, result.ttft_ms.max), (Some(260.0), Some(300.0)));
    // The request of one token has no TPOT.
    assert_eq!((result.tpot_ms.p50, result.tpot_ms.max), (Some(15.0), Some(20.0)));
    assert_eq!((result.e2e_ms.p50, result.e2e_ms.max), (Some(300.0), Some(400.0)));
    assert_eq!((result.queue_time_ms.mean, result.queue_time_ms.max), (Some(10.0), Some(10.0)));
    assert_eq!(result.itl_ms, Summary::default());
    // Two of four in 2 s.
    assert_eq!(result.goodput_rps, Some(1.0));

    // 40 + 0 + 40 of 100 + 300 + 100 prompt tokens.
    assert_eq!(
        result.cache,
        CacheResult {
            prompt_tokens: 500,
            cached_tokens: Some(80),
            hit_rate: Some(0.16),
            kv_computed_tokens: Some(420),
            hit_rate_infinite_cache: Some(0.5),
            hit_rate_pooled_lru: Some(0.25),
            hit_rate_pooled_belady: Some(0.375),
        }
    );
    assert_eq!(
        result.load,
        LoadResult {
            imbalance_max_over_mean: Some(1.5),
            imbalance_max_over_min: Some(3.0),
            cov_in_flight: Some(0.5),
            queue_depth_mean: Some(1.0),
            queue_depth_max: Some(7),
        }
    );
    assert_eq!(result.preemptions, Some(2));
    // Two predictions of 50 where 40 were cached.
    assert_eq!(result.index, IndexResult { precision: Some(0.8), recall: Some(1.0) });
    let reasons: Vec<_> = result.reasons.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    assert_eq!(reasons, [("least-loaded", 1), ("prefix-hit", 2)]);
}

#[test]
fn instances_come_in_id_order_with_their_own_figures() {
    let result = RunResult::from_measurements(&measurements(&four_requests()));
    let [zero, one] = result.per_instance[..] else { panic!("two instances") };
    assert_eq!((zero.instance, one.instance), (InstanceId(0), InstanceId(1)));
    assert_eq!((zero.requests, one.requests), (2, 1));
    assert_eq!((zero.prompt_tokens, zero.cached_tokens), (200, Some(80)));
    assert_eq!((zero.hit_rate, one.hit_rate), (Some(0.4), Some(0.0)));
    assert_eq!((zero.queue_depth_mean, zero.queue_depth_max), (Some(1.5), Some(7)));
    assert_eq!(zero.kv_cache_usage_mean, Some(0.25));
    assert_eq!((zero.ttft_ms.mean, one.ttft_ms.mean), (Some(200.0), Some(50.0)));
}

#[test]
fn the_warm_up_keeps_its_place_in_the_counts_only() {
    let records = four_requests();
    let mut measured = measurements(&records);
    measured.window = MeasurementWindow::from_time(ms(2000));
    let result = RunResult::from_measurements(&measured);
    assert_eq!((result.requests, result.completed, result.failed), (4, 3, 1));
    assert_eq!(result.reasons.values().sum::<u64>(), 3);
    assert_eq!(result.per_instance.iter().map(|i| i.requests).sum::<u64>(), 3);
    // Requests 2 and 3 are left: an arrival at the bound counts.
    assert_eq!(result.duration_s, Some(1.0));
    assert_eq!(result.completed_rps, Some(1.0));
    assert_eq!(result.goodput_rps, Some(0.0));
    assert_eq!((result.ttft_ms.p50, result.ttft_ms.max), (Some(300.0), Some(300.0)));
    assert_eq!((result.cache.prompt_tokens, result.cache.cached_tokens), (100, Some(40)));
    assert_eq!(result.preemptions, Some(0));
    assert_eq!((result.per_instance[1].prompt_tokens, result.per_instance[1].hit_rate), (0, None));
    assert_eq!(result.per_instance[1].ttft_ms, Summary::default());
}

#[test]
fn nothing_after_the_warm_up_is_null_throughout() {
    let records = four_requests();
    let mut measured = measurements(&records);
    measured.window = MeasurementWindow::from_time(ms(5000));
    let result = RunResult::from_measurements(&measured);
    assert_eq!((result.requests, result.completed, result.failed), (4, 3, 1));
    assert_eq!((result.duration_s, result.offered_rps), (None, None));
    assert_eq!((result.completed_rps, result.output_tokens_per_s), (None, None));
    assert_eq!((result.goodput_rps, result.cache.hit_rate), (None, None));
    assert_eq!((result.ttft_ms, result.e2e_ms), (Summary::default(), Summary::default()));
    assert_eq!(result.index, IndexResult { precision: None, recall: None });
}

#[test]
fn a_run_without_requests_or_instances_is_null_throughout() {
    let mut measured = measurements(&[]);
    measured.instances_measured.clear();
    let result = RunResult::from_measurements(&measured);
    assert_eq!((result.requests, result.duration_s), (0, None));
    assert_eq!((result.load.queue_depth_mean, result.load.queue_depth_max), (None, None));
    assert_eq!(result.load.imbalance_max_over_mean, None);
    assert!(result.per_instance.is_empty() && result.reasons.is_empty());
}

#[test]
fn one_request_has_a_rate_of_completion_but_none_of_arrival() {
    let records = [request(0, 0, 1000, 1100, 1500)];
    let result = RunResult::from_measurements(&measurements(&records));
    assert_eq!((result.offered_rps, result.completed_rps), (None, Some(2.0)));
}

#[test]
fn a_run_of_failures_has_no_latency_and_no_goodput() {
    let records = [failure(0, 0, 500), failure(1, 1000, 2000)];
    let result = RunResult::from_measurements(&measurements(&records));
    assert_eq!((result.completed, result.failed), (0, 2));
    assert_eq!((result.duration_s, result.goodput_rps), (Some(2.0), Some(0.0)));
    assert_eq!((result.ttft_ms, result.cache.hit_rate), (Summary::default(), None));
}

#[test]
fn a_failure_in_mid_stream_misses_the_slo_and_counts_with_its_instance() {
    // Fast to its first token, then lost: its tokens and cache hits are in no figure.
    let lost = RequestRecord { outcome: Outcome::Failed, ..request(1, 1, 0, 10, 1000) };
    let records = [request(0, 0, 0, 50, 100), lost];
    let result = RunResult::from_measurements(&measurements(&records));
    assert_eq!(result.goodput_rps, Some(1.0));
    assert_eq!(result.ttft_ms.max, Some(50.0));
    assert_eq!((result.output_tokens_per_s, result.cache.prompt_tokens), (Some(11.0), 100));
    assert_eq!((result.per_instance[1].requests, result.per_instance[1].prompt_tokens), (1, 0));
}

#[test]
fn a_completion_without_a_token_misses_the_slo() {
    let empty = RequestRecord {
        first_token: None,
        output_tokens: TokenCount(0),
        ..request(0, 0, 0, 0, 1000)
    };
    let result = RunResult::from_measurements(&measurements(&[empty]));
    assert_eq!((result.completed, result.goodput_rps), (1, Some(0.0)));
    assert_eq!((result.ttft_ms, result.tpot_ms), (Summary::default(), Summary::default()));
    assert_eq!(result.e2e_ms.max, Some(1000.0));
}

#[test]
fn one_silent_request_leaves_the_hit_rate_unmeasured() {
    let mut records = four_requests();
    records[0].cached_tokens = None;
    let result = RunResult::from_measurements(&measurements(&records));
    assert_eq!((result.cache.prompt_tokens, result.cache.cached_tokens), (500, None));
    assert_eq!((result.cache.hit_rate, result.cache.kv_computed_tokens), (None, None));
    assert_eq!(
        (result.per_instance[0].hit_rate, result.per_instance[1].hit_rate),
        (None, Some(0.0))
    );
    // The prediction that can still be judged is.
    assert_eq!(result.index.precision, Some(0.8));
}

#[test]
fn an_index_that_predicts_nothing_has_recall_only() {
    let mut record = request(0, 0, 0, 50, 100);
    record.predicted_cached_tokens = Some(TokenCount(0));
    let result = RunResult::from_measurements(&measurements(&[record]));
    assert_eq!(result.index, IndexResult { precision: None, recall: Some(0.0) });
}

#[test]
fn an_unmeasured_instance_leaves_the_load_unmeasured() {
    let records = [request(0, 2, 0, 50, 100)];
    let result = RunResult::from_measurements(&measurements(&records));
    let ids: Vec<_> = result.per_instance.iter().map(|i| i.instance.0).collect();
    assert_eq!(ids, [0, 1, 2]);
    assert_eq!(result.per_instance[2].queue_depth_mean, None);
    assert_eq!((result.load.imbalance_max_over_mean, result.load.queue_depth_max), (None, None));
}

#[test]
fn an_idle_instance_makes_max_over_min_undefined() {
    let mut measured = measurements(&[]);
    measured.instances_measured = vec![gauges(0, 0.0, 0.0, 0), gauges(1, 4.0, 0.0, 0)];
    let load = RunResult::from_measurements(&measured).load;
    assert_eq!((load.imbalance_max_over_mean, load.imbalance_max_over_min), (Some(2.0), None));
    assert_eq!((load.queue_depth_mean, load.queue_depth_max), (Some(0.0), Some(0)));
}

#[test]
fn in_flight_counts_the_part_of_each_request_within_the_window() {
    // Instance 0 has requests over 1000..1300 and 2000..2400 ms.
    let records = four_requests();
    let mean = |from, until| {
        mean_in_flight(&records, InstanceId(0), ms(from), ms(until)).map(|mean| mean * 1000.0)
    };
    assert_eq!(mean(1000, 2400), Some(500.0));
    assert_eq!(mean(1200, 2200), Some(300.0));
    assert_eq!((mean(1300, 2000), mean(2400, 3000)), (Some(0.0), Some(0.0)));
    assert_eq!((mean(1000, 1000), mean(2000, 1000)), (None, None));
}

#[test]
fn preemptions_come_from_where_they_are_known() {
    let records = four_requests();
    let mut measured = measurements(&records);
    measured.preemptions = Preemptions::Counter(9);
    assert_eq!(RunResult::from_measurements(&measured).preemptions, Some(9));
    measured.preemptions = Preemptions::Unmeasured;
    assert_eq!(RunResult::from_measurements(&measured).preemptions, None);
}

#[test]
#[should_panic(expected = "instance 1 is measured once")]
fn an_instance_measured_twice_is_refused() {
    let mut measured = measurements(&[]);
    measured.instances_measured.push(gauges(1, 1.0, 1.0, 1));
    RunResult::from_measurements(&measured);
}

#[test]
fn the_json_has_the_fields_of_the_contract() {
    let records = four_requests();
    let mut measured = measurements(&records);
    let mut gaps = Histogram::new(3).unwrap();
    gaps.record(2000).unwrap();
    measured.inter_token_ns = Some(gaps);
    insta::assert_snapshot!(
        serde_json::to_string_pretty(&RunResult::from_measurements(&measured)).unwrap()
    );
}

#[test]
fn decision_log_hashes_are_sixteen_digits() {
    let hash = DecisionLogHash(0xdead_beef);
    assert_eq!(hash.to_string(), "00000000deadbeef");
    assert_eq!("00000000deadbeef".parse(), Ok(hash));
    assert_eq!("ffffffffffffffff".parse(), Ok(DecisionLogHash(u64::MAX)));
    for wrong in ["", "deadbeef", "+0000000deadbeef", "00000000deadbeeg", "000000000deadbeef"] {
        let error = wrong.parse::<DecisionLogHash>().unwrap_err();
        assert_eq!(error.to_string(), format!("decision log hash {wrong:?} is not 16 hex digits"));
    }
}

/// Requests of any shape, with times in order.
fn any_request() -> impl Strategy<Value = RequestRecord> {
    (
        (0..10_000_u64, 0..1000_u64, 0..5000_u64, 0..3_u32, 0..20_u32),
        (prop::option::of(0..=100_u32), prop::option::of(0..=100_u32), 0..3_u32),
    )
        .prop_map(
            |((arrival, ttft, rest, instance, tokens), (cached, predicted, preemptions))| {
                let first_token = arrival + ttft;
                let record = RequestRecord {
                    cached_tokens: cached.map(TokenCount),
                    predicted_cached_tokens: predicted.map(TokenCount),
                    output_tokens: TokenCount(tokens),
                    preemptions,
                    ..request(0, instance, arrival, first_token, first_token + rest)
                };
                // One in four fails.
                if rest % 4 == 0 { failure(0, arrival, first_token) } else { record }
            },
        )
}

proptest! {
    #[test]
    fn figures_hold_together_and_ignore_the_order_of_records(
        records in prop::collection::vec(any_request(), 0..40),
        shuffled_by in any::<prop::sample::Index>(),
        warm_up in 0..12_000_u64,
    ) {
        let mut measured = measurements(&records);
        measured.window = MeasurementWindow::from_time(ms(warm_up));
        let result = RunResult::from_measurements(&measured);

        prop_assert_eq!(result.completed + result.failed, result.requests);
        let of_instances: u64 = result.per_instance.iter().map(|i| i.prompt_tokens).sum();
        prop_assert_eq!(of_instances, result.cache.prompt_tokens);
        prop_assert!(result.goodput_rps <= result.completed_rps);
        if let (Some(rps), Some(duration_s)) = (result.completed_rps, result.duration_s) {
            prop_assert!(rps * duration_s <= result.completed as f64 + 1e-6);
        }
        for share in [result.cache.hit_rate, result.index.precision, result.index.recall] {
            prop_assert!(share.is_none_or(|share| (0.0..=1.0).contains(&share)));
        }

        let mut shuffled = records.clone();
        shuffled.rotate_left(if records.is_empty() { 0 } else { shuffled_by.index(records.len()) });
        shuffled.sort_by_key(|r| r.output_tokens);
        measured.records = &shuffled;
        let again = RunResult::from_measurements(&measured);
        let json = serde_json::to_string(&result).unwrap();
        prop_assert_eq!(serde_json::to_string(&again).unwrap(), json.clone());

        // A results file read and written again is byte-identical.
        let read: RunResult = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(serde_json::to_string(&read).unwrap(), json);
    }
}

#[test]
fn results_from_before_there_were_pooled_bounds_are_read() {
    let result = RunResult::from_measurements(&measurements(&four_requests()));
    let mut old = serde_json::to_value(&result).unwrap();
    let cache = old["cache"].as_object_mut().unwrap();
    for new in ["hit_rate_pooled_lru", "hit_rate_pooled_belady"] {
        assert!(cache.remove(new).is_some());
    }
    let read: RunResult = serde_json::from_value(old).unwrap();
    let cache =
        CacheResult { hit_rate_pooled_lru: None, hit_rate_pooled_belady: None, ..result.cache };
    assert_eq!(read, RunResult { cache, ..result });
}
