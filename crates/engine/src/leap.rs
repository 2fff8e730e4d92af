//! Leaping over runs of equal decode steps.
//!
//! Between two changes of the running list every step is the same: one token for each running request. A leap takes
//! those steps with work proportional to the block boundaries they cross, not to the batch: per-request counts stand
//! still and are settled at the end. The result is the same, bit for bit, as stepping (a property test holds it to that).
//!
//! A leap is *planned* up to the last step before anything visible can happen (a first token, an end, an admission, a
//! preemption), so [`crate::Engine::next_event`] is known at once; it is *taken* lazily, as far as time has passed.

use kvroute_profile::StepLoad;
use kvroute_types::Timestamp;

use crate::engine::Engine;
use crate::scheduler::Blocked;
use crate::stats::EngineOutput;
use crate::waiting::Slot;

/// Shorter leaps cost more to plan than they save.
const MIN_STEPS: u32 = 3;

/// A planned run of equal decode steps, partly taken.
#[derive(Clone, Debug)]
pub(crate) struct Leap {
    /// When the first step after the leap is due.
    pub(crate) end: Timestamp,
    /// Steps planned.
    steps: u32,
    /// Steps taken.
    taken: u32,
    /// Requests in the batch.
    seqs: u32,
    /// Context of the next step to be formed, tokens.
    context: Context,
    /// When every request of the batch had its latest token.
    last_token: Timestamp,
    crossings: Crossings,
}

/// Contexts of a decode batch, tokens.
#[derive(Clone, Copy, Debug)]
struct Context {
    sum: u64,
    longest: u64,
}

impl Context {
    /// Work of `seqs` decodes with these contexts.
    fn load(self, seqs: u32) -> StepLoad {
        StepLoad {
            tokens: seqs,
            decode_seqs: seqs,
            decode_context: self.sum,
            decode_context_max: self.longest,
            sampled: seqs,
            ..StepLoad::default()
        }
    }

    /// One step later.
    fn next(self, seqs: u32) -> Self {
        Self { sum: self.sum + u64::from(seqs), longest: self.longest + 1 }
    }
}

/// Which requests touch a block boundary, by step modulo the block size, in running order.
#[derive(Clone, Debug, Default)]
struct Crossings {
    /// `slots[starts[phase]..starts[phase + 1]]` are those of one phase.
    starts: Vec<u32>,
    slots: Vec<Slot>,
    /// How many of each phase need a new block.
    new_blocks: Vec<u32>,
}

impl Crossings {
    fn phase(&self, step: u32) -> usize {
        step as usize % self.new_blocks.len()
    }

    fn at(&self, step: u32) -> std::ops::Range<usize> {
        let phase = self.phase(step);
        self.starts[phase] as usize..self.starts[phase + 1] as usize
    }
}

impl Engine {
    /// Plans a leap from here if the coming steps are all alike.
    pub(crate) fn plan_leap(&mut self) {
        if self.leap.is_some() || !self.config().leap || self.config().report_tokens {
            return;
        }
        if !self.gauges_are_up_to_date() {
            return;
        }
        let Some(last_token) = self.common_last_token() else { return };
        let steps = self.alike_steps();
        if steps < MIN_STEPS {
            return;
        }
        let crossings = self.crossings();
        let requests = &self.scheduler.requests;
        let seqs = u32::try_from(self.scheduler.running.len()).expect("slots are 32 bits");
        let computed = |&slot: &Slot| u64::from(requests[slot as usize].computed) + 1;
        let contexts = || self.scheduler.running.iter().map(computed);
        let context = Context { sum: contexts().sum(), longest: contexts().max().unwrap_or(0) };
        let (steps, end) = self.plan_steps(steps, seqs, context, &crossings);
        if steps < MIN_STEPS {
            return;
        }
        self.leap = Some(Leap { end, steps, taken: 0, seqs, context, last_token, crossings });
    }

    /// Takes the planned steps that are due by `until`; ends the leap when all are taken.
    pub(crate) fn advance_leap(&mut self, until: Timestamp, outputs: &mut Vec<EngineOutput>) {
        let Some(mut leap) = self.leap.take() else { return };
        while leap.taken < leap.steps && self.front_end <= until {
            self.take_step(&mut leap, outputs);
        }
        self.leap = Some(leap);
        if self.leap.as_ref().is_some_and(|leap| leap.taken == leap.steps) {
            self.end_leap();
        }
    }

    /// Settles the per-request counts; the engine goes on step by step.
    pub(crate) fn end_leap(&mut self) {
        let Some(leap) = self.leap.take() else { return };
        if leap.taken == 0 {
            return;
        }
        for &slot in &self.scheduler.running {
            let request = &mut self.scheduler.requests[slot as usize];
            request.computed += leap.taken;
            request.outputs += leap.taken;
            request.last_token = leap.last_token;
        }
    }

    /// Whether the gauges show all that came in, so that they stand still during a leap.
    fn gauges_are_up_to_date(&self) -> bool {
        let scheduler = &self.scheduler;
        let gauges = &scheduler.gauges;
        gauges.as_of >= self.taken_in
            && gauges.running as usize == scheduler.running.len()
            && gauges.waiting as usize == scheduler.waiting_len()
    }

    /// The end of the latest step, if every running request had a token in it and is in every batch in flight.
    fn common_last_token(&self) -> Option<Timestamp> {
        let scheduler = &self.scheduler;
        let version = Some(scheduler.running_version);
        let alike = self.pipeline.iter().all(|batch| batch.whole_decode_of == version);
        if !alike || self.pipeline.len() != self.depth() || !self.inputs.is_empty() {
            return None;
        }
        let mut running = scheduler.running.iter().map(|&slot| &scheduler.requests[slot as usize]);
        let first = running.next()?;
        (first.first_token.is_some()
            && running.all(|r| r.last_token == first.last_token && r.outputs > 0))
        .then_some(first.last_token)
    }

    /// For how many further steps every running request gets exactly one token and nothing else can happen, blocks
    /// aside.
    fn alike_steps(&self) -> u32 {
        let scheduler = &self.scheduler;
        let in_flight = u32::try_from(self.pipeline.len()).expect("at most two");
        let steps = scheduler
            .running
            .iter()
            .map(|&slot| {
                let request = &scheduler.requests[slot as usize];
                let until_end = request.end_outputs - request.outputs - 1;
                let until_last = request.max_outputs.saturating_sub(request.outputs + in_flight);
                until_end.min(until_last)
            })
            .min()
            .unwrap_or(0);
        match scheduler.blocked {
            Blocked::NothingWaits | Blocked::RunningFull | Blocked::NoBlocks { missing: None } => {
                steps
            }
            Blocked::NoBlocks { missing: Some(missing) } => {
                // Decoding takes blocks, which keeps the head waiting; only if a running request is about to register
                // the very block the head lacks could the head need fewer.
                let blocks = steps / self.config().block_size.get() + 2;
                let registers_it = scheduler.running.iter().any(|&slot| {
                    let request = &scheduler.requests[slot as usize];
                    let mut cursor = request.cursor;
                    (0..blocks).any(|_| {
                        let key = cursor.key(&request.chain);
                        cursor.advance(&request.chain, 1);
                        key == Some(missing)
                    })
                });
                if registers_it { 0 } else { steps }
            }
            Blocked::Transient => 0,
        }
    }

    fn crossings(&self) -> Crossings {
        let block_size = self.config().block_size.get();
        let is_async = self.config().async_scheduling;
        let running = &self.scheduler.running;
        // At step s (from 0) a request computes token number `computed + s`: it needs a block when that is the first
        // of a block. Async, the block before is registered then too, its last token being known only now; sync, a
        // block is registered one step earlier, with its last token.
        let phases = |slot: Slot| {
            let needs = (block_size - self.scheduler.requests[slot as usize].computed % block_size)
                % block_size;
            let registers = if is_async { needs } else { (needs + block_size - 1) % block_size };
            (needs, registers)
        };
        let mut starts = vec![0_u32; block_size as usize + 1];
        let mut new_blocks = vec![0_u32; block_size as usize];
        for &slot in running {
            let (needs, registers) = phases(slot);
            new_blocks[needs as usize] += 1;
            starts[needs as usize + 1] += 1;
            starts[registers as usize + 1] += u32::from(registers != needs);
        }
        for phase in 0..block_size as usize {
            starts[phase + 1] += starts[phase];
        }
        let mut ends = starts.clone();
        let mut slots = vec![0; starts[block_size as usize] as usize];
        for &slot in running {
            let (needs, registers) = phases(slot);
            let mut put = |phase: u32| {
                slots[ends[phase as usize] as usize] = slot;
                ends[phase as usize] += 1;
            };
            put(needs);
            if registers != needs {
                put(registers);
            }
        }
        Crossings { starts, slots, new_blocks }
    }

    /// How many of `steps` the free blocks allow, and when the step after them is due.
    fn plan_steps(
        &mut self,
        steps: u32,
        seqs: u32,
        mut context: Context,
        crossings: &Crossings,
    ) -> (u32, Timestamp) {
        let mut free = self.scheduler.pool.free_blocks();
        let mut end = self.front_end;
        // Work of the batch that runs after the oldest one; sync, that batch is yet to be formed.
        let mut following = self.pipeline.get(1).map(|batch| batch.work_ns);
        for step in 0..steps {
            let new_blocks = crossings.new_blocks[crossings.phase(step)];
            if new_blocks > free {
                return (step, end);
            }
            free -= new_blocks;
            let formed = self.work_ns(&context.load(seqs));
            let next = following.replace(formed).unwrap_or(formed);
            if self.pipeline.len() == 1 {
                following = None;
            }
            end = end.plus_nanos(self.stretched(next));
            context = context.next(seqs);
        }
        (steps, end)
    }

    /// One step of a leap: the oldest batch ends, the next is formed.
    fn take_step(&mut self, leap: &mut Leap, outputs: &mut Vec<EngineOutput>) {
        let now = self.front_end;
        let mut batch = self.pop_batch(now).expect("a leap keeps the pipeline full");
        let counters = &mut self.scheduler.counters;
        counters.generation_tokens += u64::from(leap.seqs);
        counters.iteration_tokens += u64::from(leap.seqs);
        counters.iterations += 1;
        counters.steps += 1;
        self.inter_token_ns
            .record_n(now.nanos_since(leap.last_token), u64::from(leap.seqs))
            .expect("the histogram grows as needed");
        leap.last_token = now;
        self.scheduler.publish(now, self.drained, outputs);
        self.drained = now;

        for at in leap.crossings.at(leap.taken) {
            let slot = leap.crossings.slots[at];
            let request = &self.scheduler.requests[slot as usize];
            let computed = request.computed + leap.taken;
            let known = request.known() + leap.taken + 1;
            let grown = self.scheduler.grow(slot, computed, known, 1);
            assert!(grown, "the plan counted the blocks");
        }
        batch.load = leap.context.load(leap.seqs);
        batch.work_ns = self.work_ns(&batch.load);
        self.push_batch(now, batch);
        leap.context = leap.context.next(leap.seqs);
        leap.taken += 1;
    }
}
