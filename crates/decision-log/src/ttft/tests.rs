//! Estimates beside what is worked out by hand, and beside what simulated clusters do under the other policy.

#![expect(clippy::float_cmp, reason = "what is compared is exact")]

use kvroute_policy::{BlockNames, PolicyConfig};
use kvroute_profile::LatencyProfile;
use kvroute_sim::{SimConfig, simulate};
use kvroute_types::{BlockKey, RequestRecord};
use kvroute_workload::{Plan, Workload, WorkloadSpec};

use super::*;
use crate::tests::{compared, policy};
use crate::{Entry, FORMAT, LoggedRequest, Replay, Start};

const A: InstanceId = InstanceId(0);
const B: InstanceId = InstanceId(1);

fn at_s(s: f64) -> Timestamp {
    Timestamp::from_secs_f64(s)
}

/// Times of requests: decision, first token, end, in s.
fn times(requests: &[(f64, f64, f64)]) -> Times {
    let of = |&(decided, first_token, end): &(f64, f64, f64)| RequestTimes {
        start: 0,
        decided: at_s(decided),
        first_token: Some(at_s(first_token)),
        end: Some(at_s(end)),
    };
    Times { requests: requests.iter().map(of).collect(), ..Times::default() }
}

#[expect(clippy::unnecessary_wraps, reason = "that is what a list of places holds")]
fn placed(instance: InstanceId, uncached_tokens: u32) -> Option<Placed> {
    Some(Placed { instance, uncached_tokens, has_directory: true })
}

fn work(times: &Times, placed: &[Option<Placed>]) -> Vec<Work> {
    let mut all = Vec::new();
    times.pass(placed, |times, work| {
        all.push(*work);
        times.recorded_stay()
    });
    all
}

fn close(is: f64, expected: f64) -> bool {
    (is - expected).abs() < 1e-9 * (1.0 + expected.abs())
}

#[test]
fn exact_data_give_their_own_coefficients() {
    let truth = TtftModel {
        base_s: 0.004,
        busy_s: 0.01,
        own_s_per_token: 2e-5,
        queued_s_per_token: 3e-5,
        beside_s_per_request: 5e-4,
    };
    let observed: Vec<_> = (0..60_u32)
        .map(|i| {
            let beside = f64::from(i % 4);
            let queued = beside * f64::from(i % 7) * 500.0;
            let work = [1.0, beside.min(1.0), f64::from(100 + i * 37 % 1_000), queued, beside];
            Observed { work, ttft_s: truth.ttft_s(&work) }
        })
        .collect();
    let TtftModel { base_s, busy_s, own_s_per_token, queued_s_per_token, beside_s_per_request } =
        TtftModel::fit(&observed);
    assert!(close(base_s, 0.004) && close(busy_s, 0.01), "{base_s} {busy_s}");
    assert!(close(own_s_per_token * 1e5, 2.0) && close(queued_s_per_token * 1e5, 3.0));
    assert!(close(beside_s_per_request * 1e4, 5.0), "{beside_s_per_request}");
}

#[test]
fn nothing_has_a_negative_cost() {
    // Longer prompts are faster here: what is left is the mean.
    let row = |tokens, ttft_s| Observed { work: [1.0, 0.0, tokens, 0.0, 0.0], ttft_s };
    let model = TtftModel::fit(&[row(10.0, 3.0), row(20.0, 2.0), row(30.0, 1.0)]);
    assert!(close(model.base_s, 2.0), "{model:?}");
    assert_eq!((model.own_s_per_token, model.busy_s), (0.0, 0.0));
}

#[test]
fn what_is_left_to_do_is_worked_out_by_hand() {
    let times =
        times(&[(0.0, 10.0, 20.0), (4.0, 15.0, 30.0), (12.0, 16.0, 17.0), (21.0, 22.0, 23.0)]);
    let placed = [placed(A, 1_000), placed(A, 500), placed(A, 80), placed(A, 7)];
    assert_eq!(
        work(&times, &placed),
        [
            [1.0, 0.0, 1_000.0, 0.0, 0.0],
            // Of the first, 4 s of 10 s are over.
            [1.0, 1.0, 500.0, 600.0, 1.0],
            // The second begins when the first is done: 2 s of 5 s are over.
            [1.0, 1.0, 80.0, 300.0, 2.0],
            // All are computed, and the second is decoding.
            [1.0, 1.0, 7.0, 0.0, 1.0],
        ]
    );
}

#[test]
fn instances_and_starts_have_their_own_queues() {
    let mut times = times(&[(0.0, 10.0, 20.0), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)]);
    times.requests[2].start = 1;
    let placed = [placed(A, 1_000), placed(B, 500), placed(A, 80)];
    for work in work(&times, &placed) {
        assert_eq!((work[1], work[3], work[4]), (0.0, 0.0, 0.0), "nothing is before it");
    }
}

#[test]
fn who_shows_no_first_token_occupies_its_instance_to_the_end() {
    let mut times = times(&[(0.0, 0.0, 8.0), (4.0, 5.0, 6.0), (9.0, 10.0, 11.0)]);
    times.requests[0].first_token = None;
    let placed = [placed(A, 1_000), placed(A, 100), placed(A, 10)];
    let work = work(&times, &placed);
    assert_eq!(work[1], [1.0, 1.0, 100.0, 500.0, 1.0]);
    assert_eq!(work[2], [1.0, 0.0, 10.0, 0.0, 0.0]);
    assert_eq!(times.observed(&placed).len(), 2, "and is not estimated");
}

#[test]
fn a_policy_pays_for_the_queue_that_it_makes() {
    // 1 ms a token. On instances of their own, nobody waits.
    let model = TtftModel {
        base_s: 0.0,
        busy_s: 0.0,
        own_s_per_token: 1e-3,
        queued_s_per_token: 1e-3,
        beside_s_per_request: 0.0,
    };
    let times = times(&[(0.0, 2.0, 12.0), (1.0, 3.0, 13.0), (2.0, 4.0, 14.0)]);
    let apart = [0, 1, 2].map(|id| placed(InstanceId(id), 2_000));
    let together = [0, 1, 2].map(|_| placed(A, 2_000));
    let range = Range([(0.0, 1e9); COEFFICIENTS]);
    let estimate = |placed: &[Option<Placed>]| {
        let estimate = times.estimate_policy(&model, &range, &apart, placed).unwrap();
        estimate.estimated_s.iter().map(|s| (s * 1e6).round() / 1e6).collect::<Vec<_>>()
    };
    assert_eq!(estimate(&apart), [2.0, 2.0, 2.0]);
    // First in, first out: they are done at 2 s, 4 s and 6 s.
    assert_eq!(estimate(&together), [2.0, 3.0, 4.0]);
}

/// Requests a second apart, each alone, that take 10 ms and 0.1 ms a token.
fn lonely(requests: u32) -> (Times, Vec<Option<Placed>>) {
    let tokens = |i: u32| 100 + i * 37 % 101;
    let one = |i: u32| {
        let decided = f64::from(i);
        let first_token = decided + 0.01 + 1e-4 * f64::from(tokens(i));
        (decided, first_token, decided + 0.5)
    };
    let all: Vec<_> = (0..requests).map(one).collect();
    (times(&all), (0..requests).map(|i| placed(A, tokens(i))).collect())
}

fn estimate(
    times: &Times,
    recorded: &[Option<Placed>],
    other: &[Option<Placed>],
) -> Result<PolicyTtft, NoTtft> {
    times.estimate(recorded, std::iter::once(other))?.others.remove(0)
}

#[test]
fn a_log_that_says_too_little_gives_no_estimate() {
    let (few, recorded) = lonely(99);
    let refused = few.estimate(&recorded, std::iter::empty()).unwrap_err();
    assert_eq!(refused, NoTtft::TooFewRequests { observed: 99 });

    let (enough, recorded) = lonely(100);
    let found = enough.estimate(&recorded, std::iter::empty()).unwrap();
    assert!(close(found.explained_share, 1.0), "{found:?}");
    assert!(close(found.model.base_s, 0.01), "{found:?}");

    let (mut flat, recorded) = lonely(100);
    for times in &mut flat.requests {
        times.first_token = Some(times.decided + std::time::Duration::from_millis(5));
    }
    let refused = flat.estimate(&recorded, std::iter::empty()).unwrap_err();
    assert!(matches!(refused, NoTtft::Unexplained { share } if share.is_nan()), "{refused:?}");

    let (mut random, recorded) = lonely(100);
    for (i, times) in (0_u64..).zip(&mut random.requests) {
        times.first_token = Some(times.decided.plus_nanos(1_000_000 * (1 + i * i % 7)));
    }
    let refused = random.estimate(&recorded, std::iter::empty()).unwrap_err();
    assert!(matches!(refused, NoTtft::Unexplained { share } if share < 0.5), "{refused:?}");
}

#[test]
fn a_policy_of_which_the_log_says_too_little_gets_no_estimate() {
    let (times, recorded) = lonely(100);
    let changed = |change: fn(&mut Placed)| {
        let mut other = recorded.clone();
        other.iter_mut().flatten().for_each(change);
        estimate(&times, &recorded, &other)
    };
    assert_eq!(changed(|it| it.instance = B).unwrap().extrapolated_share, 0.0);
    assert_eq!(changed(|it| it.has_directory = false), Err(NoTtft::OtherDirectory));
    let longer = changed(|it| it.uncached_tokens += 1_000);
    assert_eq!(longer, Err(NoTtft::Extrapolated { share: 1.0 }));
    // From 100 to 200 tokens were recorded, each number once but 164. So 39 numbers are in the last 40.
    let some = changed(|it| it.uncached_tokens += 40).unwrap();
    assert_eq!(some.extrapolated_share, 0.39);
}

/// A cluster whose router knows no more than what a log of it will tell.
fn cluster(policy: PolicyConfig, kv_blocks: u32) -> SimConfig {
    let profile = LatencyProfile::builtin("h100-llama3.1-8b").unwrap();
    let mut config = SimConfig::new(4, policy, profile, 7).with_kv_blocks(kv_blocks);
    config.router.always_index = true;
    config
}

fn run(config: &SimConfig, workload: &Workload) -> Vec<RequestRecord> {
    let plan = Plan::new(workload, config.engine.block_size).unwrap();
    simulate(config, workload, &plan, |_| ()).unwrap().records
}

/// What a gateway would have logged of a simulated run, but for load readings, which the policies here do not read.
fn logged(config: &SimConfig, workload: &Workload) -> Vec<Entry> {
    let start = Start {
        format: FORMAT,
        version: "0".to_owned(),
        seed: config.seed,
        policy: config.policy,
        router: config.router.clone(),
    };
    let plan = Plan::new(workload, config.engine.block_size).unwrap();
    let route = |record: &RequestRecord| {
        let planned = &workload.requests()[record.id.index()];
        let blocks = config.engine.block_size.full_blocks(planned.prompt_tokens).0 as usize;
        Event::Route(Box::new(Route {
            request: LoggedRequest {
                id: record.id,
                session_key: Some(planned.session_key),
                prefix_key: Some(planned.prefix_key),
                prompt_blocks: plan
                    .chain(record.id)
                    .keys()
                    .take(blocks)
                    .map(BlockKey::hash)
                    .collect(),
                block_names: BlockNames::Engine,
                prompt_tokens: planned.prompt_tokens,
                max_output_tokens: Some(planned.output_tokens),
                priority: planned.priority,
            },
            attempt: 1,
            excluded: Vec::new(),
            decision: None,
            receipt: None,
        }))
    };
    let records = run(config, workload);
    // At one time, answers come before arrivals.
    let mut events: Vec<(Timestamp, u8, Event)> = Vec::new();
    for record in &records {
        let request = record.id;
        events.push((record.arrival, 2, route(record)));
        events.extend(record.first_token.map(|at| (at, 0, Event::FirstToken { request })));
        events.push((record.end, 1, Event::End { request }));
    }
    events.sort_by_key(|&(at, order, _)| (at, order));
    let added = (0..config.instances).map(InstanceId);
    let added =
        added.map(|id| (Timestamp::ZERO, 0, Event::InstanceAdded { id, name: id.to_string() }));
    let mut replay = Replay::as_recorded(&start).unwrap();
    let decide = |(at, _, mut event): (Timestamp, u8, Event)| {
        let decision = replay.apply(at, &event).unwrap();
        if let Event::Route(route) = &mut event {
            let simulated = records[route.request.id.index()].instance;
            assert_eq!(decision.map(|it| it.instance), simulated, "decided as in the simulation");
            route.decision = decision;
        }
        (at, event)
    };
    let decided = added.chain(events).map(decide);
    let all =
        std::iter::once((Timestamp::ZERO, Event::Start(Box::new(start.clone())))).chain(decided);
    (1..).zip(all).map(|(line, (at, event))| Entry { line, at, event }).collect()
}

fn workload(name: &str, requests_per_s: f64) -> Workload {
    let spec = WorkloadSpec::builtin(name).unwrap().with_rate(requests_per_s);
    spec.generate(3, 2_000).unwrap()
}

/// Mean and 95th percentile, nearest rank.
fn mean_and_p95(times_s: &[f64]) -> (f64, f64) {
    let mut sorted = times_s.to_vec();
    sorted.sort_by(f64::total_cmp);
    (mean(times_s), sorted[sorted.len() * 95 / 100])
}

#[test]
fn estimates_are_near_what_the_other_policy_does_in_a_simulation() {
    let policies = ["round-robin", "session-affinity", "load-cache:load=in-flight"].map(policy);
    for (name, requests_per_s) in [("chat", 12.0), ("rag", 24.0), ("mixed", 20.0)] {
        let workload = workload(name, requests_per_s);
        let truth = policies.map(|policy| {
            let records = run(&cluster(policy, 62_500), &workload);
            let ttft = |it: &RequestRecord| it.first_token.unwrap().since(it.arrival);
            let ttft_s: Vec<_> = records.iter().map(|it| ttft(it).as_secs_f64()).collect();
            mean_and_p95(&ttft_s)
        });
        for recorded in policies {
            let entries = logged(&cluster(recorded, 62_500), &workload);
            let estimates = compared(&entries, &policies).ttft().unwrap();
            let estimates = estimates.others.iter().map(|estimate| {
                let estimate = estimate.as_ref().expect("the log says enough of each");
                mean_and_p95(&estimate.estimated_s)
            });
            let pairs: Vec<_> = estimates.zip(truth).collect();
            let what = || format!("{name}, {} recorded: {pairs:?}", recorded.name());
            for &(estimate, truth) in &pairs {
                assert!((estimate.0 / truth.0 - 1.0).abs() < 0.15, "mean: {}", what());
                assert!((estimate.1 / truth.1 - 1.0).abs() < 0.33, "p95: {}", what());
            }
            for (one, true_one) in &pairs {
                for (other, true_other) in &pairs {
                    let is_clearly_less = true_one.0 < 0.9 * true_other.0;
                    assert!(!is_clearly_less || one.0 < other.0, "order: {}", what());
                }
            }
        }
    }
}

#[test]
fn of_saturated_instances_nothing_is_estimated() {
    // Some 40 documents of the 200 in use fit into each cache.
    let entries = logged(&cluster(policy("round-robin"), 10_000), &workload("rag", 45.0));
    let refused = compared(&entries, &[]).ttft().unwrap_err();
    assert!(matches!(refused, NoTtft::Misestimated { .. }), "{refused:?}");
}
