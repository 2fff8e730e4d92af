//! What holds for any cluster and any workload: conservation, order of times, and leaping equal to stepping.

use kvroute_router::{Refresh, SignalConfig};
use kvroute_types::{BlockSize, Outcome, RequestId, SessionId};
use kvroute_workload::Arrival;
use proptest::prelude::*;

use super::*;

fn signals() -> impl Strategy<Value = SignalConfig> {
    let refresh = prop_oneof![
        4 => Just(Refresh::RealTime),
        2 => (0.01..2.0).prop_map(Refresh::EveryS),
        1 => Just(Refresh::Never),
    ];
    let delay = prop_oneof![2 => Just(0.0), 1 => 0.0..0.5];
    let loss = prop_oneof![2 => Just(0.0), 1 => 0.0..1.0];
    let expiry = prop::option::weighted(0.3, 0.001..1.0);
    (refresh, delay, loss, expiry).prop_map(|(refresh, delay_s, loss, expiry_s)| SignalConfig {
        refresh,
        delay_s,
        loss,
        expiry_s,
    })
}

fn any_policy() -> impl Strategy<Value = PolicyConfig> {
    let variants = [
        "jsq:load=waiting",
        "jsq:load=in-flight",
        "p2c:load=waiting",
        "load-cache:affinity=paper",
        "load-cache:load=waiting,alpha=0.5,beta=0.5",
        "prefix-affinity:queue_threshold=1",
    ];
    let variants = variants.map(|text| text.parse().unwrap());
    prop::sample::select(PolicyConfig::every().into_iter().chain(variants).collect::<Vec<_>>())
}

/// Longest sequence, tokens: caches hold little more than one of them.
const LONGEST: u32 = 320;

pub(crate) fn configs() -> impl Strategy<Value = SimConfig> {
    let engine = (
        prop_oneof![Just(4_u32), Just(16)],
        0..30_u32,
        prop_oneof![Just(64_u32), Just(2_048)],
        prop_oneof![Just(1_u32), Just(3), Just(64)],
        any::<(bool, bool)>(),
    );
    let times = (
        prop_oneof![Just((0.0, 0.0, 0.0)), (0.0..0.1, 0.0..1e-4, 0.0..0.02)],
        prop_oneof![Just(0.0), 0.0..0.2],
        prop_oneof![2 => Just(0.0), 1 => 0.0..1.0],
    );
    let cluster = (any_policy(), 1..=6_u32, 1..=3_u32, any::<u64>());
    (cluster, engine, times, signals(), signals()).prop_map(
        |(
            (policy, instances, instances_per_device, seed),
            (block_size, spare_blocks, max_num_batched_tokens, max_num_seqs, (is_async, caching)),
            ((overhead_s, per_token_s, response_s), network_delay_s, measure_from_s),
            index,
            load,
        )| {
            let mut profile = profile();
            profile.request_overhead_s = overhead_s;
            profile.request_overhead_s_per_prompt_token = per_token_s;
            profile.response_overhead_s = response_s;
            let kv_blocks = LONGEST / block_size + 1 + spare_blocks * 16 / block_size;
            let mut config = SimConfig::new(instances, policy, profile, seed)
                .with_block_size(BlockSize::new(block_size).unwrap())
                .with_kv_blocks(kv_blocks);
            config.engine.max_model_len = LONGEST;
            config.engine.max_num_batched_tokens = max_num_batched_tokens;
            config.engine.max_num_seqs = max_num_seqs;
            config.engine.async_scheduling = is_async;
            config.engine.enable_prefix_caching = caching || is_async;
            config.router.index = index;
            config.router.load = load;
            SimConfig { instances_per_device, network_delay_s, measure_from_s, ..config }
        },
    )
}

/// Restarts of the router, now and then with another policy.
fn restarts() -> impl Strategy<Value = Vec<RouterRestart>> {
    let restart = (0.0..0.3, prop::option::of(any_policy()));
    prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(restart, 1..4)].prop_map(
        |restarts| {
            let mut at_s = 0.0;
            let restarts = restarts.into_iter().map(|(after_s, policy)| {
                at_s += after_s + 1e-6;
                RouterRestart { at_s, policy }
            });
            restarts.collect()
        },
    )
}

/// A workload by its recipe, which is shorter to print.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    spec: WorkloadSpec,
    seed: u64,
    requests: u32,
    rate_scale: f64,
}

impl Recipe {
    pub(crate) fn workload(&self) -> Workload {
        let workload = self.spec.generate(self.seed, self.requests).unwrap();
        workload.with_rate_scale(self.rate_scale).unwrap()
    }
}

pub(crate) fn recipes() -> impl Strategy<Value = Recipe> {
    let lengths = |mean| Distribution::LogNormal { mean, sigma: 0.7 };
    let spec = (0..4_u32, 5.0..300.0, 0.5..4.0).prop_map(move |(kind, requests_per_s, cv)| {
        let arrivals = GapShape::Gamma { cv };
        match kind {
            0 => WorkloadSpec::Uniform(UniformSpec {
                requests_per_s,
                arrivals,
                prompt_tokens: lengths(60.0),
                output_tokens: lengths(80.0),
            }),
            1 => WorkloadSpec::Rag(RagSpec {
                requests_per_s,
                arrivals,
                documents: 4,
                zipf_exponent: 1.0,
                document_tokens: constant(100.0),
                question_tokens: lengths(15.0),
                answer_tokens: lengths(60.0),
            }),
            _ => WorkloadSpec::Chat(ChatSpec {
                requests_per_s,
                arrivals,
                turns: Distribution::Geometric { mean: 3.0 },
                system_prompts: 2,
                system_prompt_tokens: constant(50.0),
                user_message_tokens: lengths(20.0),
                answer_tokens: lengths(60.0),
                think_time_s: Distribution::Exponential { mean: 0.1 },
                message_interval_s: (kind == 3).then_some(Distribution::Exponential { mean: 0.2 }),
                max_model_len_tokens: LONGEST - 10,
            }),
        }
    });
    // Now and then everything at once: many things are then due at the same moment.
    let rate_scale = prop_oneof![5 => Just(1.0), 1 => Just(1e12)];
    (spec, any::<u64>(), 1..40_u32, rate_scale)
        .prop_map(|(spec, seed, requests, rate_scale)| Recipe { spec, seed, requests, rate_scale })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn runs_conserve_requests_tokens_and_time(
        (config, restarts) in (configs(), restarts()),
        recipe in recipes(),
        sample_every_s in 0.001..0.2,
    ) {
        let config = SimConfig {
            router_restarts: restarts,
            sample_every_s: Some(sample_every_s),
            ..config
        };
        let workload = recipe.workload();
        prop_assume!(workload.requests().iter().all(|request| request.prompt_tokens.0 < LONGEST));
        let outcome = run(&config, &workload);
        check_records(&config, &workload, &outcome);
        check_counters(&config, &outcome);

        let mut stepping = config.clone();
        stepping.engine.leap = false;
        let stepped = run(&stepping, &workload);
        prop_assert_eq!(Seen::from(&outcome), Seen::from(&stepped), "leaping, stepping");
        prop_assert_eq!(&outcome.samples, &stepped.samples);

        let unseen = run(&SimConfig { sample_every_s: None, ..config }, &workload);
        prop_assert_eq!(Seen::from(&outcome), Seen::from(&unseen), "sampled, not sampled");
    }
}

/// One record per request, with times in order and sessions closed-loop.
pub(super) fn check_records(config: &SimConfig, workload: &Workload, outcome: &SimOutcome) {
    let requests = workload.requests();
    assert_eq!(outcome.records.len(), requests.len());
    let mut latest_end = Timestamp::ZERO;
    for (request, record) in requests.iter().zip(&outcome.records) {
        assert_eq!(
            (record.id, record.session, record.turn),
            (request.id, request.session, request.turn)
        );
        assert_eq!(record.outcome, Outcome::Completed);
        assert!(record.instance.is_some_and(|id| id.0 < config.instances));
        assert_eq!(record.prompt_tokens, request.prompt_tokens);
        let room = config.engine.max_model_len - request.prompt_tokens.0;
        assert_eq!(record.output_tokens.0, request.output_tokens.0.min(room));
        assert!(record.cached_tokens.unwrap() < record.prompt_tokens);
        assert!(record.predicted_cached_tokens.is_none_or(|tokens| tokens < record.prompt_tokens));
        let (scheduled, first) = (record.scheduled.unwrap(), record.first_token.unwrap());
        let times = [record.arrival, scheduled, first, record.end];
        assert!(times.is_sorted(), "{times:?}");
        assert_eq!(record.output_tokens.0 == 1, first == record.end);
        let intended = match request.arrival {
            Arrival::At(at) => at,
            relative => {
                let previous = previous(outcome, record);
                relative.after(previous.arrival, previous.end).unwrap()
            }
        };
        assert_eq!(record.arrival, intended);
        latest_end = latest_end.max(record.end);
    }
    assert_eq!(outcome.end, latest_end);
}

fn previous<'a>(outcome: &'a SimOutcome, record: &RequestRecord) -> &'a RequestRecord {
    let is_before = |other: &&RequestRecord| {
        let turn: (SessionId, u32) = (other.session, other.turn);
        turn == (record.session, record.turn - 1)
    };
    outcome.records.iter().find(is_before).unwrap()
}

/// What the engines counted is what the records say.
pub(super) fn check_counters(config: &SimConfig, outcome: &SimOutcome) {
    assert_eq!(outcome.instances.len(), config.instances as usize);
    for (number, instance) in (0..).zip(&outcome.instances) {
        assert_eq!(instance.id, InstanceId(number));
        let records =
            || outcome.records.iter().filter(|record| record.instance == Some(instance.id));
        let sum = |of: fn(&RequestRecord) -> u32| records().map(|r| u64::from(of(r))).sum::<u64>();
        let requests = records().count() as u64;
        let prompt = sum(|r| r.prompt_tokens.0);
        let cached = sum(|r| r.cached_tokens.unwrap().0);
        let output = sum(|r| r.output_tokens.0);

        let counters = instance.counters;
        let queries = if config.engine.enable_prefix_caching { prompt } else { 0 };
        assert_eq!((counters.prefix_cache_queries, counters.prefix_cache_hits), (queries, cached));
        assert_eq!((counters.prompt_tokens, counters.prompt_tokens_cached), (prompt, cached));
        assert_eq!(counters.prompt_tokens_computed, prompt - cached);
        assert_eq!(counters.generation_tokens, output);
        assert_eq!(counters.preemptions, sum(|r| r.preemptions));
        assert_eq!((counters.finished_length, counters.finished_stop), (requests, 0));
        assert_eq!(counters.aborted, 0);

        let totals = instance.gauge_totals;
        assert_eq!(totals.until, outcome.end);
        let measured_ns = u128::from(outcome.end.nanos_since(outcome.measured_from));
        assert!(totals.running_ns <= measured_ns * u128::from(config.engine.max_num_seqs));
        assert!((0.0..=measured_ns as f64).contains(&totals.kv_cache_usage_ns));
        if outcome.measured_from == Timestamp::ZERO {
            assert_eq!(instance.inter_token_ns.len(), output - requests);
        }
    }
}

#[test]
fn preemption_happens_and_is_counted() {
    let requests: Vec<_> = (0..12).map(|number| (0, 200, 400, number)).collect();
    let mut config = cluster(2, "round-robin").with_kv_blocks(100);
    config.engine.max_model_len = 640;
    let outcome = run(&config, &by_hand(&requests));
    assert!(outcome.records.iter().any(|record| record.preemptions > 0));
    check_counters(&config, &outcome);
}

#[test]
fn turns_follow_each_other_on_their_own_clock() {
    let workload = chat(60, 20.0);
    let follow_ups = workload.requests().iter().filter(|request| request.turn > 0).count();
    assert!(follow_ups > 20, "{follow_ups} follow-ups");
    let outcome = run(&cluster(2, "load-cache"), &workload);
    check_records(&cluster(2, "load-cache"), &workload, &outcome);
    assert_eq!(outcome.records[0].id, RequestId(0));
}
