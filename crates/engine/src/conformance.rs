//! The worked examples of the rules, with the numbers observed on the real engine (`[run]` in `docs/engine-model.md`).
//!
//! Test names begin with the rule or the line of the conformance table (T1-T12; T13 is bytes, in `kvroute-vllm-wire`).

#![expect(clippy::float_cmp, reason = "results are exact")]

use std::collections::BTreeMap;

use kvroute_profile::StepModel;
use kvroute_types::{BlockChain, BlockKey, BlockSize, RequestId, Timestamp};

use crate::{
    CacheEvent, Counters, Engine, EngineConfig, EngineOutput, EngineRequest, Finished,
    InvalidEngineConfig, SchedulingPolicy,
};

/// Length of every step that computes anything.
const STEP_NS: u64 = 10_000_000;

/// An engine whose steps are equally long, fed with token ids; interns block contents as a hash chain would.
struct Bench {
    engine: Engine,
    names: BTreeMap<(Option<u32>, Vec<u32>, String), u32>,
    outputs: Vec<EngineOutput>,
}

/// A request by its tokens.
#[derive(Clone)]
struct Ask {
    id: u32,
    prompt: Vec<u32>,
    /// Tokens the model will say.
    outputs: Vec<u32>,
    stop_after: Option<u32>,
    salt: &'static str,
    priority: i32,
    skip_read: bool,
}

/// `count` tokens that no other `tag` shares.
fn tokens(tag: u32, count: u32) -> Vec<u32> {
    (0..count).map(|i| tag * 100_000 + i).collect()
}

/// A request with `prompt_len` tokens of its own tag and `max_tokens` outputs.
fn ask(id: u32, prompt_len: u32, max_tokens: u32) -> Ask {
    ask_tokens(id, tokens(id, prompt_len), max_tokens)
}

fn ask_tokens(id: u32, prompt: Vec<u32>, max_tokens: u32) -> Ask {
    let outputs = tokens(1_000 + id, max_tokens);
    Ask { id, prompt, outputs, stop_after: None, salt: "", priority: 0, skip_read: false }
}

fn sync(block_size: u32, kv_blocks: u32) -> EngineConfig {
    EngineConfig {
        block_size: BlockSize::new(block_size).unwrap(),
        kv_blocks,
        max_model_len: block_size * (kv_blocks - 1),
        max_num_batched_tokens: 8_192,
        max_num_seqs: 16,
        async_scheduling: false,
        kv_events: true,
        leap: false,
        ..EngineConfig::default()
    }
}

fn asynchronous(block_size: u32, kv_blocks: u32) -> EngineConfig {
    EngineConfig { async_scheduling: true, ..sync(block_size, kv_blocks) }
}

impl Bench {
    fn new(config: EngineConfig) -> Self {
        let model = StepModel { overhead_s: STEP_NS as f64 / 1e9, ..StepModel::zero() };
        let engine = Engine::new(config, model).unwrap();
        Self { engine, names: BTreeMap::new(), outputs: Vec::new() }
    }

    fn keys(&mut self, ask: &Ask) -> Vec<BlockKey> {
        let block_size = self.engine.config().block_size.get() as usize;
        let all: Vec<u32> = ask.prompt.iter().chain(&ask.outputs).copied().collect();
        let mut parent = None;
        all.chunks_exact(block_size)
            .map(|block| {
                let salt = if parent.is_none() { ask.salt } else { "" };
                let next = u32::try_from(self.names.len()).unwrap();
                let name = (parent, block.to_vec(), salt.to_owned());
                parent = Some(*self.names.entry(name).or_insert(next));
                BlockKey(parent.unwrap())
            })
            .collect()
    }

    fn request(&mut self, ask: &Ask) -> EngineRequest {
        EngineRequest {
            id: RequestId(ask.id),
            chain: BlockChain::from_keys(self.keys(ask)),
            prompt_tokens: u32::try_from(ask.prompt.len()).unwrap(),
            max_tokens: u32::try_from(ask.outputs.len()).unwrap(),
            stop_after: ask.stop_after,
            priority: ask.priority,
            skip_reading_prefix_cache: ask.skip_read,
        }
    }

    fn submit(&mut self, at: Timestamp, ask: &Ask) {
        let request = self.request(ask);
        self.engine.submit(at, request).unwrap();
    }

    /// Submits at the present and runs until idle; returns what the counters gained.
    fn run(&mut self, asks: &[Ask]) -> Counters {
        let before = *self.engine.counters();
        let now = self.now();
        for ask in asks {
            self.submit(now, ask);
        }
        self.settle();
        gained(&before, self.engine.counters())
    }

    fn now(&self) -> Timestamp {
        self.engine.drained
    }

    /// Lets `count` events of the engine loop pass.
    fn events(&mut self, count: usize) {
        for _ in 0..count {
            let at = self.engine.next_event().expect("the engine is busy");
            self.engine.advance(at, &mut self.outputs);
        }
    }

    fn settle(&mut self) {
        self.engine.advance(Timestamp::MAX, &mut self.outputs);
        assert!(!self.engine.is_busy());
    }

    /// Asks for a reset now, lets the engine take it in, and returns whether it was done.
    fn reset(&mut self, reset_running: bool) -> bool {
        self.engine.reset_prefix_cache(self.now(), reset_running);
        self.events(1);
        let done = self.outputs.iter().rev().find_map(|output| match output {
            EngineOutput::CacheReset { done, .. } => Some(*done),
            _ => None,
        });
        done.expect("the reset was taken in")
    }

    /// Steps formed since the last call, without the empty one that flushes finished ids (R41).
    fn steps(&mut self) -> Vec<Vec<(u32, u32)>> {
        let mut steps = std::mem::take(&mut self.engine.scheduler.formed);
        while steps.last().is_some_and(Vec::is_empty) {
            steps.pop();
        }
        steps
    }

    fn free_queue(&self) -> Vec<u32> {
        self.engine.scheduler.pool.free_queue()
    }

    fn finished(&self) -> Vec<Finished> {
        let finished = |output: &EngineOutput| match output {
            EngineOutput::Finished(finished) => Some(*finished),
            _ => None,
        };
        self.outputs.iter().filter_map(finished).collect()
    }

    fn finished_one(&self, id: u32) -> Finished {
        self.finished().into_iter().find(|f| f.id == RequestId(id)).expect("it finished")
    }

    /// Cache events since the last call, batch by batch.
    fn cache_events(&mut self) -> Vec<Vec<CacheEvent>> {
        let batches = self.outputs.iter().filter_map(|output| match output {
            EngineOutput::CacheEvents { events, .. } => Some(events.clone()),
            _ => None,
        });
        let batches = batches.collect();
        self.outputs.clear();
        batches
    }
}

fn gained(before: &Counters, after: &Counters) -> Counters {
    macro_rules! minus {
        ($($field:ident),*) => { Counters { $($field: after.$field - before.$field),* } };
    }
    minus!(
        prefix_cache_queries,
        prefix_cache_hits,
        preempted_queries,
        preempted_hits,
        prompt_tokens,
        prompt_tokens_cached,
        prompt_tokens_computed,
        prompt_tokens_created,
        generation_tokens,
        preemptions,
        finished_stop,
        finished_length,
        aborted,
        iterations,
        iteration_tokens,
        steps
    )
}

fn stored(events: &[Vec<CacheEvent>]) -> Vec<usize> {
    let count = |event: &CacheEvent| match event {
        CacheEvent::Stored { keys, .. } => Some(keys.len()),
        _ => None,
    };
    events.iter().flatten().filter_map(count).collect()
}

#[test]
fn r3_a_sequence_that_cannot_fit_stops_the_start() {
    let config = EngineConfig { max_model_len: 1_601, ..sync(16, 101) };
    let error = Engine::new(config, StepModel::zero()).unwrap_err();
    assert!(matches!(
        error,
        InvalidEngineConfig::SequenceCannotFit { needed: 101, usable: 100, .. }
    ));
    assert!(error.to_string().contains("raise kv_blocks to 102 or lower max_model_len to 1600"));
}

#[test]
fn t3_r9_free_queue_orders() {
    let mut bench = Bench::new(sync(4, 9));
    bench.run(&[ask(1, 12, 1)]);
    assert_eq!(bench.free_queue(), [4, 5, 6, 7, 8, 3, 2, 1]);
    bench.run(&[ask(2, 9, 1)]);
    assert_eq!(bench.free_queue(), [6, 7, 8, 3, 2, 1, 5, 4]);
    bench.run(&[ask(3, 12, 1)]);
    assert_eq!(bench.free_queue(), [3, 2, 1, 5, 4, 8, 7, 6]);
    let mut a2 = tokens(1, 12);
    a2.push(9);
    bench.run(&[ask_tokens(4, a2, 1)]);
    assert_eq!(bench.free_queue(), [5, 4, 8, 7, 6, 3, 2, 1]);
}

#[test]
fn t12_r13_reset_fails_while_running_and_clears_when_idle() {
    let mut bench = Bench::new(sync(16, 100));
    bench.submit(Timestamp::ZERO, &ask(1, 40, 3));
    bench.events(1);
    assert!(!bench.reset(false));
    bench.settle();
    bench.cache_events();
    assert!(bench.reset(false));
    let again = bench.run(&[ask(1, 40, 1)]);
    assert_eq!((again.prefix_cache_queries, again.prefix_cache_hits), (40, 0));
    // A reset while idle is published with the next step, ahead of its Stored (R68).
    let events = bench.cache_events();
    assert_eq!(events[0][0], CacheEvent::Cleared);
    assert!(matches!(&events[0][1], CacheEvent::Stored { keys, parent: None } if keys.len() == 2));
}

#[test]
fn r13_reset_of_running_requests_keeps_their_order_and_readmits_them() {
    // The reset comes during step 2 and is taken in when that is processed: sync, nothing is in flight then and T = 42
    // is computed anew; async, step 3 is, and its token is dropped (R58).
    for config in [sync(16, 100), asynchronous(16, 100)] {
        let mut bench = Bench::new(config);
        for id in 1..=3 {
            bench.submit(Timestamp::ZERO, &ask(id, 40, 9));
        }
        bench.events(2);
        bench.steps();
        assert!(bench.reset(true));
        assert_eq!(bench.steps()[0], [(1, 42), (2, 42), (3, 42)]);
        bench.settle();
        assert_eq!(bench.finished().len(), 3);
        assert!(bench.finished().iter().all(|f| f.output_tokens == 9 && f.preemptions == 1));
    }
}

#[test]
fn r21_every_chunk_registers_its_full_blocks() {
    let mut bench = Bench::new(EngineConfig { max_num_batched_tokens: 40, ..sync(16, 100) });
    bench.run(&[ask(1, 100, 1)]);
    assert_eq!(bench.steps(), [[(1, 40)], [(1, 40)], [(1, 20)]]);
    assert_eq!(stored(&bench.cache_events()), [2, 3, 1]);
}

#[test]
fn r21_equal_prompts_share_blocks_within_a_step() {
    let mut bench = Bench::new(sync(16, 100));
    let gained = bench.run(&[ask_tokens(1, tokens(7, 40), 1), ask_tokens(2, tokens(7, 40), 1)]);
    assert_eq!(bench.steps()[0], [(1, 40), (2, 8)]);
    assert_eq!((gained.prefix_cache_queries, gained.prefix_cache_hits), (80, 32));
}

#[test]
fn t6_r21_the_follower_of_a_chunked_leader_hits_what_the_leader_left() {
    let mut bench = Bench::new(EngineConfig { max_num_batched_tokens: 32, ..sync(16, 100) });
    let gained = bench.run(&[ask_tokens(1, tokens(7, 100), 1), ask_tokens(2, tokens(7, 100), 1)]);
    assert_eq!(bench.steps(), [vec![(1, 32)], vec![(1, 32)], vec![(1, 32)], vec![(1, 4), (2, 4)]]);
    assert_eq!((gained.prefix_cache_queries, gained.prefix_cache_hits), (200, 96));
}

#[test]
fn r22_the_last_sampled_token_is_never_cached() {
    for config in [sync(4, 50), asynchronous(4, 50)] {
        for (outputs, blocks) in [(7, 3), (6, 2)] {
            let mut bench = Bench::new(config.clone());
            bench.run(&[ask(1, 6, outputs)]);
            let stored: usize = stored(&bench.cache_events()).iter().sum();
            assert_eq!(stored, blocks, "{outputs} outputs, async {}", config.async_scheduling);
        }
    }
}

#[test]
fn t9_r22_the_next_turn_hits_what_the_answer_left() {
    let mut bench = Bench::new(sync(16, 100));
    let first = ask(1, 40, 30);
    let mut second = first.prompt.clone();
    second.extend(&first.outputs);
    second.extend(tokens(9, 20));
    bench.run(&[first]);
    let gained = bench.run(&[ask_tokens(2, second, 1)]);
    assert_eq!(gained.prefix_cache_hits, 64);
    assert_eq!(gained.prompt_tokens_created, 16);
}

/// R24's table, T1 and T2: the same prompt twice.
#[test]
fn t1_t2_r24_the_last_token_is_always_computed() {
    for (prompt, computed, hits) in
        [(1, 1, 0), (15, 15, 0), (16, 16, 0), (17, 1, 16), (32, 16, 16), (33, 1, 32), (40, 8, 32)]
    {
        for config in [sync(16, 100), asynchronous(16, 100)] {
            let mut bench = Bench::new(config);
            bench.run(&[ask_tokens(1, tokens(7, prompt), 1)]);
            let first = bench.cache_events();
            bench.steps();
            let gained = bench.run(&[ask_tokens(2, tokens(7, prompt), 1)]);
            assert_eq!(bench.steps()[0], [(2, computed)], "P={prompt}");
            assert_eq!(gained.prefix_cache_queries, u64::from(prompt));
            assert_eq!(gained.prefix_cache_hits, hits, "P={prompt}");
            assert_eq!(u64::from(bench.finished_one(2).cached_tokens), hits);
            let again = bench.cache_events();
            match prompt {
                33 => {
                    let keys = [BlockKey(0), BlockKey(1)].to_vec();
                    assert_eq!(first, [[CacheEvent::Stored { keys, parent: None }]]);
                    assert!(again.is_empty());
                }
                32 => {
                    let keys = [BlockKey(1)].to_vec();
                    assert_eq!(again, [[CacheEvent::Stored { keys, parent: Some(BlockKey(0)) }]]);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn t11_r25_skipping_reads_still_writes() {
    let mut bench = Bench::new(sync(16, 100));
    bench.run(&[ask_tokens(1, tokens(7, 40), 1)]);
    bench.cache_events();
    let skip = Ask { skip_read: true, ..ask_tokens(2, tokens(7, 40), 1) };
    let gained = bench.run(&[skip]);
    assert_eq!((gained.prefix_cache_queries, gained.prefix_cache_hits), (0, 0));
    assert_eq!(stored(&bench.cache_events()), [2]);
}

#[test]
fn r28_r66_counts_of_one_request_and_its_repeat() {
    for (prompt, first, repeat) in [(33, (33, 0, 32), (1, 32, 0)), (32, (32, 0, 32), (16, 16, 16))]
    {
        let mut bench = Bench::new(sync(16, 100));
        for (id, (computed, cached, created)) in [(1, first), (2, repeat)] {
            let gained = bench.run(&[ask_tokens(id, tokens(7, prompt), 2)]);
            assert_eq!(gained.prefix_cache_queries, u64::from(prompt));
            assert_eq!(gained.prefix_cache_hits, cached);
            assert_eq!(gained.prompt_tokens, u64::from(prompt));
            assert_eq!(gained.prompt_tokens_computed, computed);
            assert_eq!(gained.prompt_tokens_cached, cached);
            assert_eq!(gained.prompt_tokens_created, created);
            assert_eq!(gained.generation_tokens, 2);
            assert_eq!(gained.finished_length, 1);
            // The next output after the first is an inter-token time, so each request has one of either (R66).
            let first_tokens =
                bench.outputs.iter().filter(|o| matches!(o, EngineOutput::Token { .. }));
            assert_eq!(first_tokens.count(), id as usize);
        }
        assert_eq!(bench.engine.inter_token_ns().len(), 2);
    }
}

#[test]
fn r30_admission_asks_for_the_whole_prompt() {
    let config = EngineConfig { max_num_batched_tokens: 16, ..sync(4, 9) };
    let mut bench = Bench::new(config);
    for (id, prompt) in [(1, 20), (2, 20), (3, 4)] {
        bench.submit(Timestamp::ZERO, &ask(id, prompt, 1));
    }
    bench.events(1);
    assert_eq!(bench.steps(), [[(1, 16)]]);
    assert_eq!(bench.engine.scheduler.pool.free_blocks(), 4);
    // Step 2 completes a; b still finds 3 free blocks of the 5 it needs, and c waits behind it (R38).
    bench.events(1);
    assert_eq!(bench.steps(), [[(1, 4)]]);
    assert_eq!(bench.engine.gauges().waiting, 2);
}

#[test]
fn r31_the_watermark_counts_only_while_others_run() {
    let mut bench = Bench::new(EngineConfig { watermark: 0.5, ..sync(4, 9) });
    bench.submit(Timestamp::ZERO, &ask(1, 8, 1));
    bench.submit(Timestamp::ZERO, &ask(2, 8, 1));
    bench.submit(Timestamp::ZERO, &ask(3, 8, 1));
    bench.events(1);
    assert_eq!(bench.steps(), [[(1, 8), (2, 8)]]);
}

#[test]
fn r36_long_prefills_are_capped_while_others_exist() {
    let config = EngineConfig {
        max_num_batched_tokens: 64,
        long_prefill_token_threshold: 20,
        ..sync(16, 100)
    };
    let mut bench = Bench::new(config.clone());
    bench.run(&[ask(1, 50, 1), ask(2, 50, 1)]);
    assert_eq!(bench.steps(), [[(1, 20), (2, 20)], [(1, 20), (2, 20)], [(1, 10), (2, 10)]]);
    // Adaptive, the cap rises to an even share of the budget.
    let mut bench =
        Bench::new(EngineConfig { long_prefill_token_threshold_adaptive: true, ..config });
    bench.run(&[ask(1, 50, 1), ask(2, 50, 1)]);
    assert_eq!(bench.steps(), [[(1, 32), (2, 32)], [(1, 18), (2, 18)]]);
}

#[test]
fn r38_a_big_head_blocks_a_small_follower() {
    let mut bench = Bench::new(sync(4, 9));
    bench.submit(Timestamp::ZERO, &ask(1, 14, 3));
    bench.events(1);
    assert_eq!(bench.engine.scheduler.pool.free_blocks(), 4);
    bench.submit(bench.engine.front_end, &ask(2, 24, 1));
    bench.submit(bench.engine.front_end, &ask(3, 4, 1));
    bench.events(1);
    assert_eq!(bench.steps(), [[(1, 14)], [(1, 1)]]);
    bench.events(1);
    assert_eq!(bench.engine.gauges().waiting, 2);
}

#[test]
fn r40_r65_steps_mix_chunks_and_decodes() {
    let mut bench = Bench::new(EngineConfig { max_num_batched_tokens: 64, ..sync(16, 100) });
    let gained = bench.run(&[ask(1, 100, 2), ask(2, 50, 2)]);
    assert_eq!(
        bench.steps(),
        [vec![(1, 64)], vec![(1, 36), (2, 28)], vec![(1, 1), (2, 22)], vec![(2, 1)]]
    );
    assert_eq!((gained.iterations, gained.iteration_tokens), (3, 154));
    let at = |id| bench.finished_one(id).first_token.as_nanos() / STEP_NS;
    assert_eq!((at(1), at(2)), (2, 3));
}

#[test]
fn t4_r47_a_preempted_request_resumes_on_its_cached_blocks() {
    let mut bench = Bench::new(sync(4, 9));
    let gained = bench.run(&[ask(1, 14, 4), ask(2, 14, 4)]);
    assert_eq!(
        bench.steps(),
        [
            vec![(1, 14), (2, 14)],
            vec![(1, 1), (2, 1)],
            vec![(1, 1), (2, 1)],
            vec![(1, 1)],
            vec![(2, 5)]
        ]
    );
    assert_eq!((gained.preempted_queries, gained.preempted_hits), (17, 12));
    assert_eq!((gained.prefix_cache_queries, gained.prefix_cache_hits), (28, 0));
    assert_eq!(bench.finished_one(2).preemptions, 1);
}

#[test]
fn r47_the_victims_blocks_are_freed_last_first() {
    let mut bench = Bench::new(sync(4, 9));
    bench.submit(Timestamp::ZERO, &ask(1, 14, 4));
    bench.submit(Timestamp::ZERO, &ask(2, 14, 4));
    bench.events(3);
    bench.cache_events();
    bench.events(1);
    // b's blocks 5..8 came back as 8, 7, 6, 5 (all registered by then), and a took 8.
    assert_eq!(bench.free_queue(), [7, 6, 5]);
    bench.events(1);
    let removed = |event: &&CacheEvent| matches!(event, CacheEvent::Removed { .. });
    assert_eq!(bench.cache_events().iter().flatten().filter(removed).count(), 1);
}

#[test]
fn r39_priority_orders_the_waiting_queue_before_arrival() {
    let config =
        EngineConfig { policy: SchedulingPolicy::Priority, max_num_seqs: 1, ..sync(16, 100) };
    let mut bench = Bench::new(config);
    for (id, priority) in [(1, 0), (2, 7), (3, 5), (4, 5)] {
        bench.submit(Timestamp::ZERO, &Ask { priority, ..ask(id, 20, 1) });
    }
    bench.settle();
    assert_eq!(bench.steps(), [[(1, 20)], [(3, 20)], [(4, 20)], [(2, 20)]]);
}

/// The observed steps are those of `max_tokens` 5: with 4, `a` would end with its fourth step (R55).
#[test]
fn t5_r58_async_delivers_the_token_in_flight_of_a_preempted_request() {
    let mut bench = Bench::new(asynchronous(4, 9));
    let gained = bench.run(&[ask(1, 14, 5), ask(2, 14, 5)]);
    assert_eq!(
        bench.steps(),
        [
            vec![(1, 14), (2, 14)],
            vec![(1, 1), (2, 1)],
            vec![(1, 1), (2, 1)],
            vec![(1, 1)],
            vec![(1, 1)],
            vec![],
            vec![(2, 5)],
            vec![(2, 1)]
        ]
    );
    assert_eq!((gained.preempted_queries, gained.preempted_hits), (17, 12));
    assert_eq!((gained.prefix_cache_queries, gained.prefix_cache_hits), (28, 0));

    let mut bench = Bench::new(asynchronous(4, 9));
    bench.run(&[ask(1, 14, 4), ask(2, 14, 4)]);
    assert_eq!(bench.steps()[3..], [vec![(1, 1)], vec![], vec![(2, 5)]]);
}

#[test]
fn r43_r45_equal_priorities_preempt_the_first() {
    let config = EngineConfig { policy: SchedulingPolicy::Priority, ..sync(4, 10) };
    let mut bench = Bench::new(config);
    for id in 1..=3 {
        bench.submit(Timestamp::ZERO, &ask(id, 12, 2));
    }
    bench.events(2);
    // All 9 blocks are in use and the first needs a tenth: it is itself the victim, and the step is empty.
    assert_eq!(bench.steps()[..2], [vec![(1, 12), (2, 12), (3, 12)], vec![]]);
}

#[test]
fn r45_a_victim_scheduled_in_this_step_gives_its_tokens_back() {
    let config = EngineConfig { policy: SchedulingPolicy::Priority, ..sync(4, 8) };
    let mut bench = Bench::new(config);
    bench.submit(Timestamp::ZERO, &Ask { priority: 5, ..ask(1, 10, 6) });
    bench.events(1);
    let later = bench.engine.front_end;
    bench.submit(later, &Ask { priority: 0, ..ask(2, 16, 6) });
    bench.events(1);
    bench.steps();
    // a (3 blocks, room for 2 more tokens) is scheduled first, then b needs its fifth block and takes a's.
    bench.events(1);
    assert_eq!(bench.steps(), [[(2, 1)]]);
    bench.settle();
    assert_eq!(bench.finished_one(1).preemptions, 1);
    assert_eq!(bench.finished_one(2).preemptions, 0);
}

#[test]
fn r46_victims_return_in_their_order_of_admission() {
    let mut bench = Bench::new(sync(4, 10));
    for (id, prompt) in [(1, 16), (2, 10), (3, 4)] {
        bench.submit(Timestamp::ZERO, &ask(id, prompt, 12));
    }
    bench.settle();
    // c goes first, b later; when a has ended they come back in their old order, in one step.
    let resumed: Vec<Vec<u32>> =
        bench.steps().iter().map(|step| step.iter().map(|&(id, _)| id).collect()).collect();
    assert!(resumed.contains(&vec![1, 2]) && resumed.contains(&vec![1]), "{resumed:?}");
    assert_eq!(
        *resumed.iter().skip_while(|step| **step != [1]).find(|step| **step != [1]).unwrap(),
        [2, 3]
    );
    assert_eq!(bench.finished_one(3).preemptions, 1);
    assert_eq!(bench.finished_one(2).preemptions, 1);
}

#[test]
fn r48_a_preemption_counts_with_the_next_token_and_never_if_aborted() {
    let mut bench = Bench::new(sync(4, 9));
    bench.submit(Timestamp::ZERO, &ask(1, 14, 4));
    bench.submit(Timestamp::ZERO, &ask(2, 14, 4));
    bench.events(4);
    assert_eq!(bench.steps()[3], [(1, 1)]);
    assert_eq!(bench.engine.counters().preemptions, 0);
    bench.engine.abort(bench.now(), RequestId(2));
    bench.settle();
    assert_eq!(bench.engine.counters().preemptions, 0);
    assert_eq!(bench.engine.counters().aborted, 1);

    let mut bench = Bench::new(sync(4, 9));
    assert_eq!(bench.run(&[ask(1, 14, 4), ask(2, 14, 4)]).preemptions, 1);
}

#[test]
fn r50_the_record_of_the_last_token_shows_an_empty_engine() {
    let mut bench = Bench::new(sync(16, 100));
    bench.submit(Timestamp::ZERO, &ask(1, 40, 1));
    bench.events(2);
    let gauges = bench.engine.gauges();
    assert_eq!((gauges.running, gauges.waiting), (0, 0));
    assert_eq!(gauges.kv_cache_usage, 0.0);
}

#[test]
fn r51_an_abort_keeps_registered_blocks() {
    let mut bench = Bench::new(sync(16, 100));
    bench.submit(Timestamp::ZERO, &ask(1, 40, 9));
    bench.events(2);
    bench.engine.abort(bench.now(), RequestId(1));
    bench.settle();
    let queue = bench.free_queue();
    assert_eq!(queue[0], 3);
    assert_eq!(queue[queue.len() - 2..], [2, 1]);
    // The gauges fall with the empty step after it (R41).
    assert_eq!(bench.engine.gauges().running, 0);
    assert!(bench.finished().is_empty());
}

#[test]
fn r52_n_copies_share_their_prompt() {
    let mut bench = Bench::new(sync(16, 100));
    let copies = [1, 2, 3].map(|id| ask_tokens(id, tokens(7, 40), 1));
    let gained = bench.run(&copies);
    assert_eq!(bench.steps()[0], [(1, 40), (2, 8), (3, 8)]);
    assert_eq!((gained.prefix_cache_queries, gained.prefix_cache_hits), (120, 64));
}

#[test]
fn r54_async_costs_a_newcomer_one_more_step() {
    for (config, steps_to_first, queued) in
        [(sync(16, 100), 1, 0.5), (asynchronous(16, 100), 2, 0.5)]
    {
        let mut bench = Bench::new(config);
        bench.submit(Timestamp::ZERO, &ask(1, 40, 20));
        // Half-way through a step.
        let arrival = Timestamp::from_nanos(5 * STEP_NS + STEP_NS / 2);
        bench.engine.advance(arrival, &mut bench.outputs);
        bench.submit(arrival, &ask(2, 40, 2));
        bench.settle();
        let second = bench.finished_one(2);
        assert_eq!(second.scheduled.nanos_since(arrival) as f64 / STEP_NS as f64, queued);
        assert_eq!(second.first_token.nanos_since(second.scheduled), steps_to_first * STEP_NS);
    }
}

#[test]
fn r55_ending_by_max_tokens_wastes_no_slot_and_by_eos_wastes_one() {
    let mut bench = Bench::new(asynchronous(16, 100));
    bench.run(&[ask(1, 20, 3)]);
    assert_eq!(bench.steps(), [[(1, 20)], [(1, 1)], [(1, 1)]]);
    let gained = bench.run(&[Ask { stop_after: Some(3), ..ask(2, 20, 9) }]);
    assert_eq!(bench.steps(), [[(2, 20)], [(2, 1)], [(2, 1)], [(2, 1)]]);
    assert_eq!((gained.generation_tokens, gained.finished_stop), (3, 1));
}

#[test]
fn r49_eos_counts_before_the_length_limit() {
    for config in [sync(16, 100), asynchronous(16, 100)] {
        let mut bench = Bench::new(config);
        let gained = bench.run(&[Ask { stop_after: Some(3), ..ask(1, 20, 3) }]);
        assert_eq!((gained.finished_stop, gained.finished_length), (1, 0));
    }
}

#[test]
fn r37_without_chunked_prefill_a_prompt_waits_for_a_step_it_fits() {
    let whole = EngineConfig {
        enable_chunked_prefill: false,
        max_model_len: 64,
        max_num_batched_tokens: 64,
        max_num_seqs: 8,
        ..sync(16, 100)
    };
    let mut bench = Bench::new(whole.clone());
    bench.run(&[ask(1, 50, 1), ask(2, 50, 1)]);
    assert_eq!(bench.steps(), [[(1, 50)], [(2, 50)]]);
    let error = Engine::new(EngineConfig { max_model_len: 65, ..whole }, StepModel::zero());
    assert!(error.unwrap_err().to_string().contains("raise that to 65"));
}

#[test]
fn r58_slots_of_requests_that_end_while_preempted_are_reused() {
    let mut bench = Bench::new(asynchronous(4, 9));
    for round in 0..5 {
        bench.run(&[ask(2 * round, 14, 7), ask(2 * round + 1, 14, 3)]);
    }
    assert_eq!(bench.finished().len(), 10);
    assert!(bench.engine.scheduler.requests.len() <= 2);
}

#[test]
fn r69_a_duplicate_is_stored_twice_and_removed_twice() {
    let mut bench = Bench::new(sync(16, 4));
    bench.run(&[ask_tokens(1, tokens(7, 16), 1)]);
    bench.run(&[ask_tokens(2, tokens(7, 16), 1)]);
    // 48 tokens fill the pool and leave no room for an output: the front end would refuse it (R79), the scheduler not.
    let whole = bench.request(&ask(3, 48, 1));
    bench.engine.scheduler.add(bench.now(), bench.now(), whole);
    // An input wakes the idle engine.
    bench.engine.abort(bench.now(), RequestId(99));
    bench.settle();
    let events: Vec<CacheEvent> = bench.cache_events().into_iter().flatten().collect();
    let h = || vec![BlockKey(0)];
    assert_eq!(events[..2], [0, 1].map(|_| CacheEvent::Stored { keys: h(), parent: None }));
    assert_eq!(events[2..4], [0, 1].map(|_| CacheEvent::Removed { key: BlockKey(0) }));
    assert!(matches!(&events[4], CacheEvent::Stored { keys, parent: None } if keys.len() == 3));
}

#[test]
fn t7_a_chain_is_evicted_from_its_tail() {
    let mut bench = Bench::new(sync(16, 6));
    bench.run(&[ask_tokens(1, tokens(7, 64), 1)]);
    bench.run(&[ask(2, 30, 1)]);
    let mut third = tokens(7, 64);
    third.push(1);
    bench.steps();
    let gained = bench.run(&[ask_tokens(3, third, 1)]);
    assert_eq!(gained.prefix_cache_hits, 48);
    assert_eq!(bench.steps(), [[(3, 17)]]);
}

#[test]
fn t8_the_running_limit_holds_newcomers_back() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 1, ..sync(16, 100) });
    let gained = bench.run(&[ask_tokens(1, tokens(7, 20), 2), ask_tokens(2, tokens(7, 20), 2)]);
    assert_eq!(bench.steps(), [[(1, 20)], [(1, 1)], [(2, 4)], [(2, 1)]]);
    assert_eq!(gained.prefix_cache_hits, 16);
}

#[test]
fn t10_a_salt_shares_nothing() {
    let mut bench = Bench::new(sync(16, 100));
    bench.run(&[ask_tokens(1, tokens(7, 40), 1)]);
    let plain = bench.cache_events();
    let gained = bench.run(&[Ask { salt: "x", ..ask_tokens(2, tokens(7, 40), 1) }]);
    assert_eq!(gained.prefix_cache_hits, 0);
    let salted = bench.cache_events();
    assert_eq!(stored(&salted), [2]);
    assert_ne!(plain, salted);
}

#[test]
fn r79_limits_of_length() {
    let mut bench = Bench::new(sync(16, 9));
    // 128 tokens at most: the output is cut there.
    bench.run(&[ask(1, 120, 50)]);
    assert_eq!(bench.finished_one(1).output_tokens, 8);
    assert!(bench.engine.check(128, 1).unwrap_err().to_string().contains("max_model_len is 128"));
    assert!(bench.engine.check(0, 1).is_err());
}
