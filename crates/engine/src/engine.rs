//! The engine loop in virtual time (R53, R54): when steps are formed, run and processed.

use std::collections::VecDeque;

use hdrhistogram::Histogram;
use kvroute_profile::{StepLoad, StepModel};
use kvroute_types::{RequestId, Timestamp};

use crate::config::{EngineConfig, InvalidEngineConfig};
use crate::leap::Leap;
use crate::request::EngineRequest;
use crate::scheduler::{Batch, Scheduler};
use crate::stats::{Counters, EngineOutput, GaugeTotals, Gauges};

/// One engine.
///
/// Its owner submits requests at their arrival and calls [`Engine::advance`] as time passes. Between two calls nothing
/// happens; [`Engine::next_event`] says until when nothing visible can.
#[derive(Debug)]
pub struct Engine {
    pub(crate) scheduler: Scheduler,
    pub(crate) step_model: StepModel,
    /// Arrivals and aborts not yet taken in, in time order.
    pub(crate) inputs: VecDeque<(Timestamp, Input)>,
    /// Batches formed and not yet processed, oldest first: it runs, the others follow.
    pub(crate) pipeline: VecDeque<Batch>,
    /// When the oldest batch ends; meaningless while the pipeline is empty.
    pub(crate) front_end: Timestamp,
    /// Latest time the inputs were drained.
    pub(crate) drained: Timestamp,
    /// Latest time that anything came in with them.
    pub(crate) taken_in: Timestamp,
    /// Number of engines that share the device and are busy now, this one included: steps take that many times longer.
    pub(crate) slowdown: u32,
    pub(crate) leap: Option<Leap>,
    /// Times between two tokens of one request, ns.
    pub(crate) inter_token_ns: Histogram<u64>,
    pub(crate) spare_batches: Vec<Batch>,
    /// `fixed_s` of the latest `(tokens, sampled)`: it rarely changes from one step to the next.
    pub(crate) fixed_s: (u32, u32, f64),
}

#[derive(Clone, Debug)]
pub(crate) enum Input {
    Submit(EngineRequest),
    Abort(RequestId),
    ResetPrefixCache { reset_running: bool },
}

/// A request that the engine would answer with an error instead of running it (R79).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestRejected {
    /// A prompt without tokens, or no output asked for.
    #[error("a request needs at least 1 prompt token and 1 output token")]
    Empty,
    /// The prompt leaves no room for an output token.
    #[error(
        "the prompt has {prompt_tokens} tokens and max_model_len is {max_model_len}: no room for an output token; \
         raise max_model_len (and kv_blocks with it) or shorten the prompt"
    )]
    PromptTooLong {
        /// Prompt length, tokens.
        prompt_tokens: u32,
        /// Longest sequence, tokens.
        max_model_len: u32,
    },
}

impl Engine {
    /// An idle engine with an empty cache.
    ///
    /// # Errors
    /// [`InvalidEngineConfig`] if vLLM would not start with these settings.
    pub fn new(config: EngineConfig, step_model: StepModel) -> Result<Self, InvalidEngineConfig> {
        config.validate()?;
        Ok(Self::unchecked(config, step_model))
    }

    /// [`Engine::new`] with settings that are taken as they are.
    pub(crate) fn unchecked(config: EngineConfig, step_model: StepModel) -> Self {
        Self {
            scheduler: Scheduler::new(config),
            step_model,
            inputs: VecDeque::new(),
            pipeline: VecDeque::new(),
            front_end: Timestamp::ZERO,
            drained: Timestamp::ZERO,
            taken_in: Timestamp::ZERO,
            slowdown: 1,
            leap: None,
            inter_token_ns: Histogram::new(3).expect("3 significant digits are allowed"),
            spare_batches: Vec::new(),
            fixed_s: (0, 0, 0.0),
        }
    }

    /// Its settings.
    pub const fn config(&self) -> &EngineConfig {
        &self.scheduler.config
    }

    /// Counters since the start, as of the last processed step.
    pub const fn counters(&self) -> &Counters {
        &self.scheduler.counters
    }

    /// Gauges as of the last processed step.
    pub const fn gauges(&self) -> &Gauges {
        &self.scheduler.gauges
    }

    /// The gauges integrated from the start up to `now`, to which the engine must have been advanced.
    pub fn gauge_totals(&self, now: Timestamp) -> GaugeTotals {
        let mut totals = self.scheduler.gauge_totals;
        totals.add(&self.scheduler.gauges, now);
        totals
    }

    /// Times between two tokens of one request since the start (or the last [`Engine::measure_from`]), ns, to three
    /// significant digits.
    pub const fn inter_token_ns(&self) -> &Histogram<u64> {
        &self.inter_token_ns
    }

    /// Forgets the inter-token times and gauge totals so far, as at the end of a warm-up. The engine must have been
    /// advanced to `now`; its counters go on.
    pub fn measure_from(&mut self, now: Timestamp) {
        self.inter_token_ns.reset();
        self.scheduler.gauge_totals = GaugeTotals { until: now, ..GaugeTotals::default() };
    }

    /// Whether a step is running or a request waits to be taken in.
    pub fn is_busy(&self) -> bool {
        !self.pipeline.is_empty() || !self.inputs.is_empty()
    }

    /// Hands a request in at `at`, the engine having been advanced to that time.
    ///
    /// # Errors
    /// [`RequestRejected`] if the request could never run; nothing changes.
    pub fn submit(&mut self, at: Timestamp, request: EngineRequest) -> Result<(), RequestRejected> {
        self.check(request.prompt_tokens, request.max_tokens)?;
        self.input(at, Input::Submit(request));
        Ok(())
    }

    /// Whether a request of this size could run at all (R79).
    ///
    /// # Errors
    /// [`RequestRejected`] says what is wrong with it.
    pub fn check(&self, prompt_tokens: u32, max_tokens: u32) -> Result<(), RequestRejected> {
        let max_model_len = self.config().max_model_len;
        if prompt_tokens == 0 || max_tokens == 0 {
            return Err(RequestRejected::Empty);
        }
        if prompt_tokens >= max_model_len {
            return Err(RequestRejected::PromptTooLong { prompt_tokens, max_model_len });
        }
        Ok(())
    }

    /// Drops a request at `at`, as when its client disconnects (R51). Unknown ids are ignored.
    pub fn abort(&mut self, at: Timestamp, id: RequestId) {
        self.input(at, Input::Abort(id));
    }

    /// Asks at `at` for the prefix cache to be emptied; with `reset_running` running requests start over (R13). Taken
    /// in with the other inputs, between two steps; [`EngineOutput::CacheReset`] tells the result.
    pub fn reset_prefix_cache(&mut self, at: Timestamp, reset_running: bool) {
        self.input(at, Input::ResetPrefixCache { reset_running });
    }

    /// Tells how many engines on its device are busy from `now` on, itself included; the step that runs is stretched
    /// or shrunk from here. The engine must have been advanced to `now`.
    pub fn set_slowdown(&mut self, now: Timestamp, busy_engines: u32) {
        let busy_engines = busy_engines.max(1);
        if busy_engines == self.slowdown {
            return;
        }
        self.end_leap();
        if !self.pipeline.is_empty() {
            let left = self.front_end.nanos_since(now);
            let left = left * u64::from(busy_engines) / u64::from(self.slowdown);
            self.front_end = now.plus_nanos(left);
        }
        self.slowdown = busy_engines;
        self.plan_leap();
    }

    /// When it next needs attention, if nothing comes in before; `None` while idle. No token, end, cache event or change
    /// of `waiting` and `running` becomes visible earlier (KV usage may).
    pub fn next_event(&self) -> Option<Timestamp> {
        match &self.leap {
            // Any step may publish cache events.
            Some(leap) if !self.config().kv_events => Some(leap.end),
            _ => self.next_step(),
        }
    }

    /// Lets time pass up to and including `until`, appending what happens to `outputs` in time order.
    pub fn advance(&mut self, until: Timestamp, outputs: &mut Vec<EngineOutput>) {
        loop {
            self.advance_leap(until, outputs);
            if self.leap.is_some() {
                return;
            }
            match self.next_step() {
                Some(at) if at <= until => self.step(at, outputs),
                _ => return,
            }
        }
    }

    /// The oldest batch's end, or the first arrival on an idle engine.
    fn next_step(&self) -> Option<Timestamp> {
        if self.pipeline.is_empty() {
            self.inputs.front().map(|&(at, _)| at)
        } else {
            Some(self.front_end)
        }
    }

    fn input(&mut self, at: Timestamp, input: Input) {
        self.end_leap();
        debug_assert!(
            self.inputs.back().is_none_or(|&(last, _)| last <= at),
            "inputs in time order"
        );
        self.inputs.push_back((at, input));
    }

    /// One turn of the loop at `now`: process what is due, then form steps until the engine must wait (R54).
    fn step(&mut self, now: Timestamp, outputs: &mut Vec<EngineOutput>) {
        if let Some(batch) = self.pop_batch(now) {
            self.drain_aborts(now);
            self.process(now, batch, outputs);
        }
        loop {
            self.drain_inputs(now, outputs);
            let mut computes = false;
            if self.scheduler.has_requests() {
                let batch = self.form_batch(now);
                computes = batch.load.tokens > 0;
                self.push_batch(now, batch);
            } else if self.pipeline.is_empty() {
                return;
            }
            let waits = self.front_end > now;
            if computes && self.pipeline.len() < self.depth() && waits {
                continue;
            }
            if waits {
                break;
            }
            let batch = self.pop_batch(now).expect("the pipeline holds a batch");
            self.process(now, batch, outputs);
        }
        self.plan_leap();
    }

    /// Batches in flight at most (R53).
    pub(crate) fn depth(&self) -> usize {
        if self.config().async_scheduling { 2 } else { 1 }
    }

    fn form_batch(&mut self, now: Timestamp) -> Batch {
        let mut batch = self.spare_batches.pop().unwrap_or_default();
        self.scheduler.schedule(now, &mut batch);
        batch.work_ns = self.work_ns(&batch.load);
        batch
    }

    fn process(&mut self, now: Timestamp, batch: Batch, outputs: &mut Vec<EngineOutput>) {
        let gaps = &mut self.inter_token_ns;
        self.scheduler.process(now, &batch, self.drained, outputs, |ns| {
            gaps.record(ns).expect("the histogram grows as needed");
        });
        self.spare_batches.push(batch);
    }

    pub(crate) fn push_batch(&mut self, now: Timestamp, batch: Batch) {
        if self.pipeline.is_empty() {
            self.front_end = now.plus_nanos(self.stretched(batch.work_ns));
        }
        self.pipeline.push_back(batch);
    }

    /// Takes out the oldest batch, which ends `now`; the next one begins.
    pub(crate) fn pop_batch(&mut self, now: Timestamp) -> Option<Batch> {
        let batch = self.pipeline.pop_front()?;
        if let Some(next) = self.pipeline.front() {
            self.front_end = now.plus_nanos(self.stretched(next.work_ns));
        }
        Some(batch)
    }

    /// Time for work on a device shared with the engines that are busy now.
    pub(crate) fn stretched(&self, work_ns: u64) -> u64 {
        work_ns * u64::from(self.slowdown)
    }

    /// Length of a step, ns.
    pub(crate) fn work_ns(&mut self, load: &StepLoad) -> u64 {
        if load.tokens == 0 {
            return 0;
        }
        let (tokens, sampled, _) = self.fixed_s;
        if (tokens, sampled) != (load.tokens, load.sampled) {
            let fixed = self.step_model.fixed_s(load.tokens, load.sampled);
            self.fixed_s = (load.tokens, load.sampled, fixed);
        }
        self.step_model.step_ns_with_fixed(self.fixed_s.2, load)
    }

    /// R51: aborts that came during a step count before its output.
    fn drain_aborts(&mut self, now: Timestamp) {
        let is_due =
            |(at, input): &(Timestamp, Input)| *at <= now && matches!(input, Input::Abort(_));
        if !self.inputs.iter().any(is_due) {
            return;
        }
        let (due, rest): (VecDeque<_>, VecDeque<_>) = self.inputs.drain(..).partition(is_due);
        self.inputs = rest;
        for (_, input) in due {
            let Input::Abort(id) = input else { continue };
            // A request that was aborted before it was taken in never enters.
            self.inputs.retain(|(_, input)| !matches!(input, Input::Submit(r) if r.id == id));
            self.scheduler.abort(id);
        }
    }

    fn drain_inputs(&mut self, now: Timestamp, outputs: &mut Vec<EngineOutput>) {
        self.drained = now;
        while let Some((at, input)) = self.inputs.pop_front_if(|(at, _)| *at <= now) {
            self.taken_in = now;
            match input {
                Input::Submit(request) => self.scheduler.add(now, at, request),
                Input::Abort(id) => self.scheduler.abort(id),
                Input::ResetPrefixCache { reset_running } => {
                    let done = self.scheduler.reset_prefix_cache(reset_running);
                    outputs.push(EngineOutput::CacheReset { at: now, done });
                }
            }
        }
    }
}
