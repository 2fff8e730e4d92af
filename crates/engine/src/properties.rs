//! Properties that hold for any workload: conservation, counting once, and leaping equal to stepping.

#![expect(clippy::float_cmp, reason = "results are exact")]

use kvroute_profile::StepModel;
use kvroute_types::{BlockChain, BlockKey, BlockSize, KeyRun, RequestId, Timestamp};
use proptest::prelude::*;

use crate::request::Status;
use crate::{
    Counters, Engine, EngineConfig, EngineOutput, EngineRequest, GaugeTotals, Gauges, Mark,
    SchedulingPolicy,
};

/// A step's length depends on everything it may depend on.
fn step_model() -> StepModel {
    StepModel {
        overhead_s: 1e-3,
        linear_floor_s: 5e-3,
        linear_s_per_token: 37e-6,
        sample_s_per_seq: 11e-6,
        prefill_s_per_pair: 3.7e-9,
        decode_s_per_seq: 7e-6,
        decode_s_per_context_token: 151e-9,
        decode_tail_s_per_token: 710e-9,
        decode_tail_above_seqs: 2,
        ..StepModel::zero()
    }
}

#[derive(Clone, Debug)]
struct Arrival {
    gap_us: u32,
    family: u32,
    shared_blocks: u32,
    prompt: u32,
    max_tokens: u32,
    stop_after: Option<u32>,
    priority: i32,
    abort_after_us: Option<u32>,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (
        prop_oneof![Just(0_u32), 0..200_000_u32],
        0..4_u32,
        0..12_u32,
        1..180_u32,
        1..120_u32,
        prop::option::weighted(0.3, 1..100_u32),
        0..3_i32,
        prop::option::weighted(0.1, 0..400_000_u32),
    )
        .prop_map(
            |(
                gap_us,
                family,
                shared_blocks,
                prompt,
                max_tokens,
                stop_after,
                priority,
                abort_after_us,
            )| {
                Arrival {
                    gap_us,
                    family,
                    shared_blocks,
                    prompt,
                    max_tokens,
                    stop_after,
                    priority,
                    abort_after_us,
                }
            },
        );
    prop::collection::vec(arrival, 1..25)
}

fn configs() -> impl Strategy<Value = EngineConfig> {
    (
        prop_oneof![Just(1_u32), Just(4), Just(16)],
        20..120_u32,
        prop_oneof![Just(16_u32), Just(64), Just(2048)],
        prop_oneof![Just(1_u32), Just(3), Just(64)],
        any::<(bool, bool, bool, bool)>(),
        prop::bool::weighted(0.8),
        prop_oneof![3 => Just(0_u32), 1 => Just(20)],
        prop_oneof![3 => Just(0.0), 1 => Just(0.1)],
    )
        .prop_map(
            |(
                block_size,
                blocks,
                budget,
                seqs,
                (is_async, priority, caching, reserve),
                chunked,
                threshold,
                watermark,
            )| {
                // Room for one sequence of 320 tokens (R3), and a little more to compete for.
                let kv_blocks = 320_u32.div_ceil(block_size) + 1 + blocks * 4 / block_size;
                EngineConfig {
                    block_size: BlockSize::new(block_size).unwrap(),
                    kv_blocks,
                    max_model_len: 320,
                    max_num_batched_tokens: if chunked { budget } else { budget.max(320) },
                    max_num_seqs: seqs.min(budget),
                    enable_chunked_prefill: chunked,
                    enable_prefix_caching: caching,
                    long_prefill_token_threshold: threshold,
                    scheduler_reserve_full_isl: reserve,
                    watermark,
                    policy: if priority {
                        SchedulingPolicy::Priority
                    } else {
                        SchedulingPolicy::Fcfs
                    },
                    async_scheduling: is_async,
                    kv_events: true,
                    ..EngineConfig::default()
                }
            },
        )
}

/// The chain of a request that shares its first blocks with its family and owns the rest.
fn chain(number: u32, arrival: &Arrival, block_size: u32) -> BlockChain {
    let total = (arrival.prompt + arrival.max_tokens) / block_size;
    let shared = arrival.shared_blocks.min(total);
    let mut runs = Vec::new();
    if shared > 0 {
        runs.push(KeyRun { start: BlockKey(arrival.family * 1_000), len: shared });
    }
    if total > shared {
        runs.push(KeyRun { start: BlockKey(100_000 + number * 1_000), len: total - shared });
    }
    BlockChain::new(runs)
}

/// All that can be seen of a run.
#[derive(Debug, PartialEq)]
struct Seen {
    outputs: Vec<EngineOutput>,
    counters: Counters,
    gauges: Vec<Gauges>,
    totals: GaugeTotals,
    gaps: Vec<(u64, u64)>,
    free_queue: Vec<u32>,
}

/// Runs the arrivals through an engine, checking invariants at every stop.
fn run(config: &EngineConfig, arrivals: &[Arrival], slowdowns: bool) -> Seen {
    run_with(config, arrivals, slowdowns, |_, _, _| ())
}

/// [`run`], with `also` done to the engine before the input of the given number, at its time.
fn run_with(
    config: &EngineConfig,
    arrivals: &[Arrival],
    slowdowns: bool,
    mut also: impl FnMut(&mut Engine, Timestamp, u32),
) -> Seen {
    let mut engine = Engine::new(config.clone(), step_model()).unwrap();
    let mut outputs = Vec::new();
    let mut gauges = Vec::new();
    let mut inputs = Vec::new();
    let mut now = Timestamp::ZERO;
    for (number, arrival) in (0..).zip(arrivals) {
        now = now.plus_nanos(u64::from(arrival.gap_us) * 1_000);
        inputs.push((now, number, Some(arrival)));
        if let Some(after) = arrival.abort_after_us {
            inputs.push((now.plus_nanos(u64::from(after) * 1_000), number, None));
        }
    }
    inputs.sort_by_key(|&(at, number, submit)| (at, submit.is_none(), number));
    for (at, number, submit) in inputs {
        advance_checking_visibility(&mut engine, at, &mut outputs);
        check(&engine);
        gauges.push(*engine.gauges());
        if slowdowns {
            engine.set_slowdown(at, 1 + number % 3);
        }
        also(&mut engine, at, number);
        match submit {
            Some(arrival) => engine.submit(at, request(config, number, arrival)).unwrap(),
            None => engine.abort(at, RequestId(number)),
        }
    }
    engine.advance(Timestamp::MAX, &mut outputs);
    check(&engine);
    gauges.push(*engine.gauges());
    assert!(!engine.is_busy());
    let gaps = engine.inter_token_ns();
    Seen {
        outputs,
        counters: *engine.counters(),
        gauges,
        totals: engine.gauge_totals(now),
        gaps: gaps.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())).collect(),
        free_queue: engine.scheduler.pool.free_queue(),
    }
}

fn request(config: &EngineConfig, number: u32, arrival: &Arrival) -> EngineRequest {
    EngineRequest {
        id: RequestId(number),
        chain: chain(number, arrival, config.block_size.get()),
        prompt_tokens: arrival.prompt,
        max_tokens: arrival.max_tokens,
        stop_after: arrival.stop_after,
        priority: arrival.priority,
        skip_reading_prefix_cache: number % 11 == 10,
    }
}

/// Lets time pass, holding the engine to its word: before `next_event` no token, end or change of the queues shows.
fn advance_checking_visibility(
    engine: &mut Engine,
    until: Timestamp,
    outputs: &mut Vec<EngineOutput>,
) {
    while let Some(next) = engine.next_event().filter(|&next| next <= until) {
        let before = (engine.gauges().waiting, engine.gauges().running);
        let seen = outputs.len();
        engine.advance(Timestamp::from_nanos(next.as_nanos().saturating_sub(1)), outputs);
        if next > Timestamp::ZERO {
            assert_eq!((engine.gauges().waiting, engine.gauges().running), before);
            let is_quiet =
                |output: &EngineOutput| matches!(output, EngineOutput::CacheEvents { .. });
            assert!(outputs[seen..].iter().all(is_quiet), "something showed before {next}");
        }
        engine.advance(next, outputs);
    }
    engine.advance(until, outputs);
}

/// Blocks are conserved: every block is either free or held, and a running request has room for what it computed.
fn check(engine: &Engine) {
    let scheduler = &engine.scheduler;
    let free = scheduler.pool.free_queue();
    assert_eq!(free.len(), scheduler.pool.free_blocks() as usize);
    let live = || scheduler.requests.iter().filter(|r| r.status != Status::Gone);
    let mut held: Vec<u32> = live().flat_map(|r| r.table.iter().copied()).collect();
    held.sort_unstable();
    held.dedup();
    assert!(held.iter().all(|block| !free.contains(block)), "a held block lies in the free queue");
    assert_eq!(free.len() + held.len(), scheduler.config.usable_blocks() as usize);
    for request in live().filter(|r| r.status == Status::Running) {
        assert!(request.held() * scheduler.config.block_size.get() >= request.computed);
        assert!(request.computed <= request.known() + request.placeholders);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// A leap is the steps it leaps over, bit for bit: outputs with their times, counters, gauges wherever time
    /// stopped, inter-token times and the free queue.
    #[test]
    fn leaping_equals_stepping(config in configs(), arrivals in arrivals(), slowdowns in any::<bool>()) {
        let leaping = run(&config, &arrivals, slowdowns);
        let stepping = run(&EngineConfig { leap: false, ..config }, &arrivals, slowdowns);
        prop_assert_eq!(leaping, stepping);
    }

    /// An engine that was used for something else after a mark, and rewound, is as if it had not been.
    #[test]
    fn a_rewound_engine_is_as_it_was(
        config in configs(),
        arrivals in arrivals(),
        slowdowns in any::<bool>(),
        others in arrivals(),
    ) {
        let mut mark = Mark::new();
        let seen = run_with(&config, &arrivals, slowdowns, |engine, at, number| {
            engine.mark(&mut mark);
            let (mut now, mut outputs) = (at, Vec::new());
            let others = others.iter().cycle().skip(number as usize).take(3);
            for (other, arrival) in (50 * (number + 1)..).zip(others) {
                engine.submit(now, request(&config, other, arrival)).unwrap();
                now = now.plus_nanos(u64::from(arrival.gap_us) * 1_000);
                advance_checking_visibility(engine, now, &mut outputs);
                check(engine);
            }
            engine.reset_prefix_cache(now, number % 2 == 0);
            engine.abort(now, RequestId(number));
            engine.advance(now.plus_nanos(30_000_000), &mut outputs);
            check(engine);
            engine.rewind(&mut mark);
            engine.rewind(&mut mark);
            check(engine);
        });
        prop_assert_eq!(seen, run(&config, &arrivals, slowdowns));
    }

    /// Every request ends once, with all its tokens; hit + computed = prompt; never the last token; counted once.
    #[test]
    fn tokens_are_conserved(config in configs(), arrivals in arrivals()) {
        let arrivals: Vec<Arrival> =
            arrivals.into_iter().map(|a| Arrival { abort_after_us: None, ..a }).collect();
        let seen = run(&config, &arrivals, false);
        let finished: Vec<_> = seen.outputs.iter().filter_map(|output| match output {
            EngineOutput::Finished(finished) => Some(finished),
            _ => None,
        }).collect();
        prop_assert_eq!(finished.len(), arrivals.len());
        let mut generated = 0;
        for end in finished {
            let arrival = &arrivals[end.id.index()];
            let wanted = arrival.max_tokens.min(320 - arrival.prompt);
            let wanted = arrival.stop_after.map_or(wanted, |stop| stop.min(wanted));
            prop_assert_eq!(end.output_tokens, wanted);
            prop_assert!(end.cached_tokens < arrival.prompt);
            prop_assert_eq!(end.cached_tokens % config.block_size.get(), 0);
            prop_assert!(end.scheduled <= end.first_token && end.first_token <= end.at);
            generated += u64::from(wanted);
        }
        let counters = seen.counters;
        let prompts: u64 = arrivals.iter().map(|a| u64::from(a.prompt)).sum();
        prop_assert_eq!(counters.generation_tokens, generated);
        prop_assert_eq!(counters.prompt_tokens, prompts);
        prop_assert_eq!(counters.prompt_tokens_cached + counters.prompt_tokens_computed, prompts);
        if config.enable_prefix_caching {
            let read: u64 = (0_u32..).zip(&arrivals).filter(|(n, _)| n % 11 != 10)
                .map(|(_, a)| u64::from(a.prompt)).sum();
            prop_assert_eq!(counters.prefix_cache_queries, read);
            prop_assert_eq!(counters.prefix_cache_hits, counters.prompt_tokens_cached);
        } else {
            prop_assert_eq!(counters.prefix_cache_queries + counters.prompt_tokens_cached, 0);
        }
        prop_assert_eq!(seen.gauges.last().unwrap().kv_cache_usage, 0.0);
    }
}
