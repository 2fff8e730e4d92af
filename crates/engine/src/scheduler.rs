//! One scheduling step and the processing of its output (R21-R52, R55-R58).
//!
//! Pure state: no time passes here. [`crate::Engine`] decides when a step is formed and when its output is due.

use kvroute_profile::StepLoad;
use kvroute_types::{BlockKey, RequestId, Timestamp, TokenCount};

use crate::block_pool::BlockPool;
use crate::config::{EngineConfig, SchedulingPolicy};
use crate::request::{ChainCursor, EngineRequest, FinishReason, Request, Status};
use crate::stats::{Counters, EngineOutput, Finished, GaugeTotals, Gauges};
use crate::waiting::{PriorityKey, Slot, WaitingQueue};

/// One request's part in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchItem {
    pub(crate) slot: Slot,
    /// Tokens to compute.
    pub(crate) tokens: u32,
    /// Whether the step ends with a new token for it, i.e. it is no prefill chunk (R40).
    pub(crate) produces_token: bool,
}

/// One step's work, formed and not yet processed.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) items: Vec<BatchItem>,
    pub(crate) load: StepLoad,
    /// Time the step takes on an unshared device, ns.
    pub(crate) work_ns: u64,
    /// Whether it is one decode token for each running request, and the running list it was formed from.
    pub(crate) whole_decode_of: Option<ListVersion>,
}

impl Batch {
    /// Becomes a copy of `other`, keeping the memory of the items.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        let mut items = std::mem::take(&mut self.items);
        items.clone_from(&other.items);
        *self = Self { items, ..*other };
    }
}

/// Counts changes of the running list.
pub(crate) type ListVersion = u64;

/// Why the head of the waiting queue was not admitted in the latest step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// Nothing waits.
    NothingWaits,
    /// The running list is full.
    RunningFull,
    /// Too few free blocks for the whole sequence; its cache lookup ended at `missing`, if it missed at all.
    NoBlocks { missing: Option<BlockKey> },
    /// Anything else: the next step may decide otherwise.
    Transient,
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) config: EngineConfig,
    pub(crate) pool: BlockPool,
    pub(crate) requests: Vec<Request>,
    free_slots: Vec<Slot>,
    /// In order of admission.
    pub(crate) running: Vec<Slot>,
    pub(crate) running_version: ListVersion,
    waiting: WaitingQueue,
    pub(crate) blocked: Blocked,
    /// Requests that wait or run.
    unfinished: u32,
    /// Whether a request ended since the latest step was formed: one more step flushes its id (R41).
    finished_since_step: bool,
    deferred: u32,
    pub(crate) counters: Counters,
    pub(crate) gauges: Gauges,
    pub(crate) gauge_totals: GaugeTotals,
    /// Spare vectors, to keep their memory.
    spare_tables: Vec<Vec<u32>>,
    hits: Vec<u32>,
    /// Every step formed, as (request, tokens), for the conformance tests.
    #[cfg(test)]
    pub(crate) formed: Vec<Vec<(u32, u32)>>,
}

impl Scheduler {
    pub(crate) fn new(config: EngineConfig) -> Self {
        Self {
            pool: BlockPool::new(config.kv_blocks, config.kv_events),
            requests: Vec::new(),
            free_slots: Vec::new(),
            running: Vec::new(),
            running_version: 0,
            waiting: WaitingQueue::new(config.policy),
            blocked: Blocked::NothingWaits,
            unfinished: 0,
            finished_since_step: false,
            deferred: 0,
            counters: Counters::default(),
            gauges: Gauges::default(),
            gauge_totals: GaugeTotals::default(),
            spare_tables: Vec::new(),
            hits: Vec::new(),
            #[cfg(test)]
            formed: Vec::new(),
            config,
        }
    }

    /// Becomes a copy of `other` but for the block pool, keeping the memory it has.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        let Self {
            config,
            pool: _,
            requests,
            free_slots,
            running,
            running_version,
            waiting,
            blocked,
            unfinished,
            finished_since_step,
            deferred,
            counters,
            gauges,
            gauge_totals,
            spare_tables: _,
            hits: _,
            #[cfg(test)]
            formed,
        } = other;
        self.config.clone_from(config);
        let known = requests.len().min(self.requests.len());
        self.requests.truncate(known);
        for (copy, request) in self.requests.iter_mut().zip(requests) {
            copy.copy_from(request);
        }
        self.requests.extend_from_slice(&requests[known..]);
        self.free_slots.clone_from(free_slots);
        self.running.clone_from(running);
        self.running_version = *running_version;
        self.waiting.copy_from(waiting);
        self.blocked = *blocked;
        self.unfinished = *unfinished;
        self.finished_since_step = *finished_since_step;
        self.deferred = *deferred;
        self.counters = *counters;
        self.gauges = *gauges;
        self.gauge_totals = *gauge_totals;
        #[cfg(test)]
        self.formed.clone_from(formed);
    }

    /// Whether a step is due: requests exist, or ended ones must be flushed (R41).
    pub(crate) fn has_requests(&self) -> bool {
        self.unfinished > 0 || self.finished_since_step
    }

    /// Requests in the waiting queue.
    pub(crate) fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    /// Puts a request at the back of the waiting queue.
    pub(crate) fn add(&mut self, now: Timestamp, arrival: Timestamp, request: EngineRequest) {
        let mut request = Request::new(arrival, request, self.config.max_model_len);
        request.queued = now;
        request.table = self.spare_tables.pop().unwrap_or_default();
        let key = priority_key(&request);
        let slot = if let Some(slot) = self.free_slots.pop() {
            self.requests[slot as usize] = request;
            slot
        } else {
            self.requests.push(request);
            Slot::try_from(self.requests.len() - 1).expect("fewer than 2^32 live requests")
        };
        self.waiting.push(slot, key);
        self.unfinished += 1;
    }

    /// Drops a request wherever it is (R51). Unknown or ended ids are ignored, as vLLM does.
    pub(crate) fn abort(&mut self, id: RequestId) {
        let found = self.requests.iter().position(|r| r.id == id && r.status != Status::Gone);
        let Some(slot) = found else { return };
        let slot = Slot::try_from(slot).expect("slots are 32 bits");
        self.take_off_lists(slot);
        self.end(slot);
        self.release_if_unused(slot);
        self.counters.aborted += 1;
    }

    /// Forms the next step: running requests first, then admissions (R34-R40).
    pub(crate) fn schedule(&mut self, now: Timestamp, batch: &mut Batch) {
        self.finished_since_step = false;
        batch.items.clear();
        batch.load = StepLoad::default();
        let mut budget = self.config.max_num_batched_tokens;
        let any_preempted = self.schedule_running(&mut batch.items, &mut budget);
        self.deferred = 0;
        if any_preempted {
            self.blocked = Blocked::Transient;
        } else {
            self.schedule_waiting(now, &mut batch.items, &mut budget);
        }
        self.account(batch);
        #[cfg(test)]
        self.formed.push(
            batch.items.iter().map(|i| (self.requests[i.slot as usize].id.0, i.tokens)).collect(),
        );
    }

    /// Phase 1 (R35, R42-R46). Returns whether any request was preempted.
    fn schedule_running(&mut self, items: &mut Vec<BatchItem>, budget: &mut u32) -> bool {
        let mut any_preempted = false;
        let mut index = 0;
        'requests: while index < self.running.len() && *budget > 0 {
            let slot = self.running[index];
            let request = &self.requests[slot as usize];
            if request.last_token_in_flight() {
                index += 1;
                continue;
            }
            let (computed, known) = (request.computed, request.known());
            let room = (self.config.max_model_len - 1).saturating_sub(computed);
            let tokens = self.cap_long_prefill(request.wanted()).min(*budget).min(room);
            if tokens == 0 {
                index += 1;
                continue;
            }
            while !self.grow(slot, computed, known, tokens) {
                let victim = self.running.remove(self.victim_position());
                self.running_version += 1;
                any_preempted = true;
                if let Some(at) = items.iter().position(|item| item.slot == victim) {
                    *budget += items.remove(at).tokens;
                    index -= 1;
                }
                self.preempt(victim);
                if victim == slot {
                    break 'requests;
                }
            }
            items.push(BatchItem { slot, tokens, produces_token: false });
            *budget -= tokens;
            index += 1;
        }
        any_preempted
    }

    /// Phase 2 (R37, R38).
    fn schedule_waiting(&mut self, now: Timestamp, items: &mut Vec<BatchItem>, budget: &mut u32) {
        let mut passed_over = Vec::new();
        self.blocked = loop {
            let Some(slot) = self.waiting.peek() else { break Blocked::NothingWaits };
            if *budget == 0 {
                break Blocked::Transient;
            }
            if self.running.len() >= self.config.max_num_seqs as usize {
                break Blocked::RunningFull;
            }
            let request = &self.requests[slot as usize];
            if request.awaited_tokens > request.discard {
                self.waiting.pop();
                passed_over.push(slot);
                continue;
            }
            match self.admit(now, slot, *budget) {
                Ok(tokens) => {
                    self.waiting.pop();
                    items.push(BatchItem { slot, tokens, produces_token: false });
                    *budget -= tokens;
                }
                Err(blocked) => break blocked,
            }
        };
        if !passed_over.is_empty() {
            self.blocked = Blocked::Transient;
        }
        self.deferred = u32::try_from(passed_over.len()).expect("slots are 32 bits");
        for slot in passed_over.into_iter().rev() {
            let key = priority_key(&self.requests[slot as usize]);
            self.waiting.push_front(slot, key);
        }
    }

    /// Tries to move the waiting request at `slot` to the running list; returns the tokens it gets in this step.
    fn admit(&mut self, now: Timestamp, slot: Slot, budget: u32) -> Result<u32, Blocked> {
        let block_size = self.config.block_size;
        let mut hits = std::mem::take(&mut self.hits);
        let (cursor, missing) = self.look_up(slot, &mut hits);
        let known = self.requests[slot as usize].known();
        let hit_blocks = u32::try_from(hits.len()).expect("block ids are 32 bits");
        let hit_tokens = hit_blocks * block_size.get();
        let mut tokens = self.cap_long_prefill(known - hit_tokens);
        if !self.config.enable_chunked_prefill && tokens > budget {
            self.hits = hits;
            return Err(Blocked::Transient);
        }
        tokens = tokens.min(budget);

        let revived = self.pool.count_unreferenced(&hits);
        let needed = |tokens: u32| {
            let tokens = tokens.min(self.config.max_model_len);
            block_size.blocks_for(TokenCount(tokens)).0.saturating_sub(hit_blocks)
        };
        let new_blocks = needed(hit_tokens + tokens);
        let available = self.pool.free_blocks().saturating_sub(self.watermark_blocks());
        let whole = if self.config.scheduler_reserve_full_isl { needed(known) } else { 0 };
        if new_blocks.max(whole) + revived > available {
            self.hits = hits;
            return Err(if self.config.scheduler_reserve_full_isl {
                Blocked::NoBlocks { missing }
            } else {
                Blocked::Transient
            });
        }

        self.pool.touch(&hits);
        let request = &mut self.requests[slot as usize];
        request.table.clear();
        request.table.extend_from_slice(&hits);
        request.registered = hit_blocks;
        request.cursor = cursor;
        request.computed = hit_tokens;
        request.status = Status::Running;
        self.pool.allocate(new_blocks, &mut request.table);
        self.hits = hits;
        self.count_admission(now, slot, hit_tokens);
        self.register_up_to(slot, (hit_tokens + tokens).min(known) / block_size.get());
        self.running.push(slot);
        self.running_version += 1;
        Ok(tokens)
    }

    /// The cached blocks a waiting request could use (R23, R24), the place in its chain after them, and the key at
    /// which the walk missed.
    fn look_up(&self, slot: Slot, hits: &mut Vec<u32>) -> (ChainCursor, Option<BlockKey>) {
        hits.clear();
        let request = &self.requests[slot as usize];
        let mut cursor = ChainCursor::default();
        if !self.config.enable_prefix_caching || request.skip_read {
            return (cursor, None);
        }
        let mut left = (request.known() - 1) / self.config.block_size.get();
        while left > 0 {
            let Some(run) = cursor.rest_of_run(&request.chain) else { break };
            let len = run.len.min(left);
            let found = self.pool.leading_cached(run.start, len, hits);
            cursor.advance(&request.chain, found);
            if found < len {
                return (cursor, cursor.key(&request.chain));
            }
            left -= len;
        }
        (cursor, None)
    }

    /// R27, R28, R64.
    fn count_admission(&mut self, now: Timestamp, slot: Slot, hit_tokens: u32) {
        let request = &mut self.requests[slot as usize];
        if request.scheduled.is_none() {
            request.scheduled = Some(now);
            request.cached = hit_tokens;
        }
        if !self.config.enable_prefix_caching || request.skip_read {
            return;
        }
        let (queries, hits) = if request.preemptions == 0 {
            (&mut self.counters.prefix_cache_queries, &mut self.counters.prefix_cache_hits)
        } else {
            (&mut self.counters.preempted_queries, &mut self.counters.preempted_hits)
        };
        *queries += u64::from(request.known());
        *hits += u64::from(hit_tokens);
    }

    /// Gives a running request room for `tokens` more after `computed`, and registers blocks that become full
    /// (R29, R33, R21). False, and nothing changed, if blocks are short.
    pub(crate) fn grow(&mut self, slot: Slot, computed: u32, known: u32, tokens: u32) -> bool {
        let block_size = self.config.block_size;
        let request = &mut self.requests[slot as usize];
        let end = (computed + tokens).min(self.config.max_model_len);
        let needed = block_size.blocks_for(TokenCount(end)).0.saturating_sub(request.held());
        if needed > self.pool.free_blocks() {
            return false;
        }
        self.pool.allocate(needed, &mut request.table);
        self.register_up_to(slot, end.min(known) / block_size.get());
        true
    }

    /// Registers the request's blocks up to (not including) block number `full` (R21).
    fn register_up_to(&mut self, slot: Slot, full: u32) {
        let request = &mut self.requests[slot as usize];
        if full <= request.registered || !self.config.enable_prefix_caching {
            return;
        }
        let (first, parent) = (request.cursor, request.cursor.previous_key(&request.chain));
        let mut block = request.registered as usize;
        while block < full as usize {
            let Some(run) = request.cursor.rest_of_run(&request.chain) else { break };
            let len = (run.len as usize).min(full as usize - block);
            for (key, &id) in (run.start.0..).zip(&request.table[block..block + len]) {
                self.pool.register(id, BlockKey(key));
            }
            request.cursor.advance(&request.chain, u32::try_from(len).expect("blocks are 32 bits"));
            block += len;
        }
        if self.pool.reports_events() && block > request.registered as usize {
            let chain = request.chain.clone();
            let mut cursor = first;
            let keys = (request.registered as usize..block).map_while(|_| {
                let key = cursor.key(&chain);
                cursor.advance(&chain, 1);
                key
            });
            self.pool.report_stored(keys, parent);
        }
        request.registered = full;
    }

    /// R36.
    fn cap_long_prefill(&self, tokens: u32) -> u32 {
        let threshold = self.config.long_prefill_token_threshold;
        let requests = self.running.len() + self.waiting.len();
        if threshold == 0 || requests <= 1 {
            return tokens;
        }
        let share = if self.config.long_prefill_token_threshold_adaptive {
            let requests = u32::try_from(requests).unwrap_or(u32::MAX);
            self.config.max_num_batched_tokens / requests
        } else {
            0
        };
        tokens.min(threshold.max(share))
    }

    /// R31.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a fraction of a 32-bit count, checked to lie in 0..=1"
    )]
    fn watermark_blocks(&self) -> u32 {
        if self.running.is_empty() {
            return 0;
        }
        (self.config.watermark * f64::from(self.config.kv_blocks)).floor() as u32
    }

    /// R43: where in the running list the next victim stands.
    fn victim_position(&self) -> usize {
        let last = self.running.len() - 1;
        match self.config.policy {
            SchedulingPolicy::Fcfs => last,
            SchedulingPolicy::Priority => {
                let key = |position: usize| {
                    let request = &self.requests[self.running[position] as usize];
                    (request.priority, request.arrival)
                };
                // The first of equals: a later one must be strictly greater.
                (1..=last).fold(0, |victim, p| if key(p) > key(victim) { p } else { victim })
            }
        }
    }

    /// R44: back to the waiting queue with nothing computed.
    fn preempt(&mut self, slot: Slot) {
        let request = &mut self.requests[slot as usize];
        self.pool.free(&request.table);
        request.table.clear();
        request.computed = 0;
        request.placeholders = 0;
        request.registered = 0;
        request.cursor = ChainCursor::default();
        request.preemptions += 1;
        request.unreported_preemptions += 1;
        request.status = Status::Waiting;
        let key = priority_key(request);
        self.waiting.push_front(slot, key);
    }

    /// R40: the step is formed; its tokens count as computed at once.
    fn account(&mut self, batch: &mut Batch) {
        let mut whole_decode = batch.items.len() == self.running.len();
        let load = &mut batch.load;
        for item in &mut batch.items {
            let request = &mut self.requests[item.slot as usize];
            let before = request.computed;
            request.computed += item.tokens;
            request.in_flight += 1;
            item.produces_token = request.computed >= request.known() + request.placeholders;
            if item.produces_token {
                request.awaited_tokens += 1;
                request.placeholders += u32::from(self.config.async_scheduling);
                load.sampled += 1;
            }
            load.tokens += item.tokens;
            if item.tokens == 1 {
                load.decode_seqs += 1;
                let context = u64::from(before) + 1;
                load.decode_context += context;
                load.decode_context_max = load.decode_context_max.max(context);
            } else {
                let (tokens, before) = (u64::from(item.tokens), u64::from(before));
                load.prefill_tokens += item.tokens;
                load.prefill_pairs += tokens * before + tokens * (tokens + 1) / 2;
                load.prefill_context += before + tokens;
            }
            whole_decode &= item.tokens == 1 && item.produces_token;
        }
        batch.whole_decode_of = whole_decode.then_some(self.running_version);
        self.counters.steps += u64::from(load.tokens > 0);
    }

    /// Takes a step's output: tokens, ends, cache events, gauges (R48-R50, R56, R65).
    ///
    /// `counted_up_to` is the time up to which arrivals had been taken in when the latest step was formed;
    /// `gap` hears each time between two tokens of a request, in ns.
    pub(crate) fn process(
        &mut self,
        now: Timestamp,
        batch: &Batch,
        counted_up_to: Timestamp,
        outputs: &mut Vec<EngineOutput>,
        mut gap: impl FnMut(u64),
    ) {
        let mut new_tokens = 0;
        let (mut any_ended, mut any_running_ended) = (false, false);
        for item in &batch.items {
            let request = &mut self.requests[item.slot as usize];
            request.in_flight -= 1;
            if request.status == Status::Gone {
                self.release_if_unused(item.slot);
                continue;
            }
            if !item.produces_token {
                continue;
            }
            request.awaited_tokens -= 1;
            if request.discard > 0 {
                request.discard -= 1;
                continue;
            }
            new_tokens += 1;
            request.outputs += 1;
            let was_running = request.status == Status::Running;
            if was_running && self.config.async_scheduling {
                request.placeholders -= 1;
                let full = (request.computed - request.placeholders) / self.config.block_size.get();
                self.register_up_to(item.slot, full);
            }
            self.count_token(now, item.slot, outputs, &mut gap);
            let request = &self.requests[item.slot as usize];
            if request.outputs >= request.end_outputs {
                outputs.push(EngineOutput::Finished(self.finish(now, item.slot)));
                any_ended = true;
                any_running_ended |= was_running;
            }
        }
        if any_running_ended {
            self.running.retain(|&slot| self.requests[slot as usize].status == Status::Running);
            self.running_version += 1;
        }
        if any_ended {
            for item in &batch.items {
                self.release_if_unused(item.slot);
            }
        }
        self.counters.generation_tokens += new_tokens;
        self.counters.iteration_tokens += new_tokens;
        self.counters.iterations += u64::from(new_tokens > 0);
        self.publish(now, counted_up_to, outputs);
    }

    /// Publishes cache events and sets the gauges, as of a processed step (R57, R60, R68).
    pub(crate) fn publish(
        &mut self,
        now: Timestamp,
        counted_up_to: Timestamp,
        outputs: &mut Vec<EngineOutput>,
    ) {
        if self.pool.reports_events() {
            let events = self.pool.take_events();
            if !events.is_empty() {
                outputs.push(EngineOutput::CacheEvents { at: now, events });
            }
        }
        self.gauge_totals.add(&self.gauges, now);
        self.gauges = Gauges {
            running: u32::try_from(self.running.len()).expect("slots are 32 bits"),
            waiting: u32::try_from(self.waiting.len()).expect("slots are 32 bits"),
            deferred: self.deferred,
            kv_cache_usage: self.pool.usage(),
            as_of: counted_up_to,
        };
    }

    /// Counts one new token of a request and reports it where wanted.
    fn count_token(
        &mut self,
        now: Timestamp,
        slot: Slot,
        outputs: &mut Vec<EngineOutput>,
        gap: &mut impl FnMut(u64),
    ) {
        let request = &mut self.requests[slot as usize];
        let counters = &mut self.counters;
        counters.preemptions += u64::from(std::mem::take(&mut request.unreported_preemptions));
        let is_first = request.first_token.is_none();
        if is_first {
            request.first_token = Some(now);
            let (prompt, cached) = (u64::from(request.prompt), u64::from(request.cached));
            counters.prompt_tokens += prompt;
            counters.prompt_tokens_cached += cached;
            counters.prompt_tokens_computed += prompt - cached;
            counters.iteration_tokens += prompt - cached;
            let deepest = u64::from(request.registered * self.config.block_size.get());
            counters.prompt_tokens_created += deepest.min(prompt).saturating_sub(cached);
        } else {
            gap(now.nanos_since(request.last_token));
        }
        request.last_token = now;
        if is_first || self.config.report_tokens {
            outputs.push(EngineOutput::Token {
                id: request.id,
                at: now,
                index: request.outputs - 1,
                cached_tokens: request.cached,
            });
        }
    }

    /// Ends a request that has all its tokens. The caller takes it off the running list.
    fn finish(&mut self, now: Timestamp, slot: Slot) -> Finished {
        let request = &self.requests[slot as usize];
        // EOS is looked for first (R49).
        let reason = if request.stop_after == Some(request.outputs) {
            FinishReason::Stop
        } else {
            FinishReason::Length
        };
        match reason {
            FinishReason::Stop => self.counters.finished_stop += 1,
            FinishReason::Length => self.counters.finished_length += 1,
        }
        let finished = Finished {
            id: request.id,
            at: now,
            reason,
            queued: request.queued,
            scheduled: request.scheduled.expect("it ran, so it was scheduled"),
            first_token: request.first_token.expect("it has all its tokens"),
            cached_tokens: request.cached,
            output_tokens: request.outputs,
            preemptions: request.preemptions,
        };
        if request.status == Status::Waiting {
            // Preempted while its last token was in flight (R58).
            let key = priority_key(request);
            self.waiting.remove(slot, key);
        }
        self.end(slot);
        finished
    }

    /// Frees what a request holds; its slot follows once no batch refers to it.
    fn end(&mut self, slot: Slot) {
        let request = &mut self.requests[slot as usize];
        self.pool.free(&request.table);
        request.table.clear();
        request.status = Status::Gone;
        self.unfinished -= 1;
        self.finished_since_step = true;
    }

    fn take_off_lists(&mut self, slot: Slot) {
        let request = &self.requests[slot as usize];
        match request.status {
            Status::Running => {
                self.running.retain(|&other| other != slot);
                self.running_version += 1;
            }
            Status::Waiting => {
                let key = priority_key(request);
                self.waiting.remove(slot, key);
            }
            Status::Gone => {}
        }
    }

    fn release_if_unused(&mut self, slot: Slot) {
        let request = &mut self.requests[slot as usize];
        if request.status == Status::Gone && request.in_flight == 0 && !request.released {
            request.released = true;
            self.spare_tables.push(std::mem::take(&mut request.table));
            self.free_slots.push(slot);
        }
    }

    /// Empties the prefix cache (R13); with `reset_running`, preempts everyone first, dropping tokens in flight.
    pub(crate) fn reset_prefix_cache(&mut self, reset_running: bool) -> bool {
        if reset_running {
            while let Some(slot) = self.running.pop() {
                self.running_version += 1;
                self.preempt(slot);
                let request = &mut self.requests[slot as usize];
                request.discard = request.awaited_tokens;
            }
        }
        self.pool.reset()
    }
}

fn priority_key(request: &Request) -> PriorityKey {
    (request.priority, request.arrival, request.id)
}
