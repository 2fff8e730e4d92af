//! The task that owns the engines of one device and paces them.
//!
//! Model time comes from the [`Clock`]; between commands the task sleeps until an engine's next event. Everything
//! happens at its model time, however late the task wakes up. Engines come before arrivals at equal times, as in the
//! simulator, and so does the rule for shared devices: while k of its engines are busy each runs k times slower.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use kvroute_engine::{
    CacheEvent, Counters, Engine, EngineConfig, EngineOutput, EngineRequest, FinishReason,
    Finished, Gauges, InvalidEngineConfig,
};
use kvroute_profile::LatencyProfile;
use kvroute_types::{BlockChain, BlockKey, RequestId, Timestamp};
use kvroute_vllm_wire::BlockHasher;
use tokio::sync::{mpsc, oneshot};

use crate::block_keys::BlockKeys;
use crate::clock::Clock;
use crate::config::MockConfig;
use crate::kv_events::Publisher;
use crate::metrics::{FinishedSample, Samples};

/// What a device's task is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run the requests of one API call on an engine.
    Submit { engine: usize, jobs: Vec<Job>, from: Arrival, events: mpsc::UnboundedSender<JobEvent> },
    /// Drop requests.
    Abort { engine: usize, ids: Vec<RequestId> },
    /// R13.
    ResetPrefixCache { engine: usize, reset_running: bool, done: oneshot::Sender<bool> },
    /// Everything the metrics page shows.
    Snapshot { engine: usize, reply: oneshot::Sender<Snapshot> },
    /// The engine process dies.
    Fail { engine: usize },
}

/// When an API call arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// At the server.
    pub(crate) at: Timestamp,
    /// Further delay before the engine has it, model ns.
    pub(crate) extra_ns: u64,
}

/// One request for the engine, prompt and answer known.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) id: RequestId,
    /// Which of the call's answers it makes.
    pub(crate) choice: u32,
    /// Requests of one group share a prompt; named after its first request.
    pub(crate) group: RequestId,
    /// Requests in the group (`n`).
    pub(crate) group_size: u32,
    /// Prompt and answer.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    pub(crate) stop_after: Option<u32>,
    pub(crate) priority: i32,
    pub(crate) salt: Option<Arc<str>>,
}

/// News of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobEvent {
    /// A token is out.
    Token {
        /// Of which answer; they come in order.
        choice: u32,
        /// Prompt tokens found cached.
        cached_tokens: u32,
        /// Set with the last token.
        finish: Option<FinishReason>,
    },
    /// The engine process died; nothing follows.
    EngineDead,
}

/// State of one engine at a moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) gauges: Gauges,
    pub(crate) counters: Counters,
    pub(crate) samples: Samples,
    /// Block identities remembered.
    pub(crate) block_keys: usize,
    /// Distinct blocks in the prefix cache.
    pub(crate) cached_blocks: usize,
}

/// All engines of one device.
#[derive(Debug)]
pub(crate) struct Device {
    clock: Clock,
    engines: Vec<Hosted>,
    is_busy: Vec<bool>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Requests on their way to an engine, by the time they reach it.
    arrivals: BinaryHeap<Reverse<(Timestamp, u64, ArrivalKey)>>,
    jobs: BTreeMap<RequestId, Job>,
    sequence: u64,
    /// Tokens on their way to the front-end.
    deliveries: VecDeque<Delivery>,
    profile: LatencyProfile,
    outputs: Vec<EngineOutput>,
}

type ArrivalKey = (usize, RequestId);

#[derive(Debug)]
struct Delivery {
    at: Timestamp,
    id: RequestId,
    event: JobEvent,
    events: mpsc::UnboundedSender<JobEvent>,
}

#[derive(Debug)]
struct Hosted {
    engine: Engine,
    keys: BlockKeys,
    /// Tells the world what the cache holds.
    publisher: Option<Publisher>,
    samples: Samples,
    live: BTreeMap<RequestId, Live>,
    groups: BTreeMap<RequestId, Group>,
    /// Last keys of aborted requests, with the time of the abort: cache events may still name their blocks.
    aborted: Vec<(Timestamp, BlockKey)>,
    /// Who asked for a reset that is not taken in yet, in order.
    resets: VecDeque<oneshot::Sender<bool>>,
    is_dead: bool,
}

/// A request under way.
#[derive(Debug)]
struct Live {
    events: mpsc::UnboundedSender<JobEvent>,
    choice: u32,
    group: RequestId,
    /// At the front-end (R64).
    arrival: Timestamp,
    prompt_tokens: u32,
    max_tokens: u32,
    last_token: Option<Timestamp>,
    last_key: Option<BlockKey>,
}

#[derive(Debug)]
struct Group {
    size: u32,
    left: u32,
    longest: u32,
}

impl Device {
    /// An engine for each of `publishers`, those without one included; the first is of instance number `first`.
    pub(crate) fn new(
        clock: Clock,
        first: u32,
        publishers: Vec<Option<(Publisher, BlockHasher)>>,
        config: &MockConfig,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<Self, InvalidEngineConfig> {
        let MockConfig { profile, speeds, engine, .. } = config;
        let config = EngineConfig { kv_events: true, report_tokens: true, ..engine.clone() };
        let hosted = publishers.into_iter().zip(first..).map(|(publisher, number)| {
            let (publisher, hasher) = publisher.unzip();
            Ok(Hosted {
                engine: Engine::new(config.clone(), profile.step_at(speeds, number))?,
                keys: hasher.map_or_else(BlockKeys::default, BlockKeys::with_hashes),
                publisher,
                samples: Samples::new(config.max_model_len),
                live: BTreeMap::new(),
                groups: BTreeMap::new(),
                aborted: Vec::new(),
                resets: VecDeque::new(),
                is_dead: false,
            })
        });
        let engines: Vec<Hosted> = hosted.collect::<Result<_, InvalidEngineConfig>>()?;
        Ok(Self {
            clock,
            is_busy: vec![false; engines.len()],
            engines,
            commands,
            arrivals: BinaryHeap::new(),
            jobs: BTreeMap::new(),
            sequence: 0,
            deliveries: VecDeque::new(),
            profile: profile.clone(),
            outputs: Vec::new(),
        })
    }

    /// Runs until nobody can send commands any more.
    pub(crate) async fn run(mut self) {
        loop {
            let wake = self.next_due().map(|at| self.clock.instant(at));
            let command = if let Some(wake) = wake {
                tokio::select! {
                    biased;
                    command = self.commands.recv() => Some(command),
                    () = tokio::time::sleep_until(wake) => None,
                }
            } else {
                Some(self.commands.recv().await)
            };
            let now = self.clock.now();
            self.advance(now);
            match command {
                Some(Some(command)) => {
                    self.obey(now, command);
                    while let Ok(command) = self.commands.try_recv() {
                        self.obey(now, command);
                    }
                }
                Some(None) => return,
                None => {}
            }
        }
    }

    fn next_due(&self) -> Option<Timestamp> {
        let delivery = self.deliveries.front().map(|delivery| delivery.at);
        [self.next_engine().map(|(at, _)| at), self.next_arrival(), delivery]
            .into_iter()
            .flatten()
            .min()
    }

    fn next_engine(&self) -> Option<(Timestamp, usize)> {
        let due = |(number, hosted): (usize, &Hosted)| Some((hosted.engine.next_event()?, number));
        self.engines.iter().enumerate().filter_map(due).min()
    }

    fn next_arrival(&self) -> Option<Timestamp> {
        self.arrivals.peek().map(|Reverse((at, ..))| *at)
    }

    /// Lets time pass up to and including `now`.
    fn advance(&mut self, now: Timestamp) {
        loop {
            let engine = self.next_engine().filter(|&(at, _)| at <= now);
            let arrival = self.next_arrival().filter(|&at| at <= now);
            match (engine, arrival) {
                (Some((at, number)), arrival) if arrival.is_none_or(|arrival| at <= arrival) => {
                    self.advance_engine(at, number);
                }
                (_, Some(_)) => self.reach_engine(),
                _ => break,
            }
        }
        while let Some(delivery) = self.deliveries.pop_front_if(|delivery| delivery.at <= now) {
            // Nobody listens if the client has gone; its abort is under way.
            let _ = delivery.events.send(delivery.event);
        }
    }

    fn obey(&mut self, now: Timestamp, command: Command) {
        match command {
            Command::Submit { engine, jobs, from, events } => {
                self.take_in(now, engine, jobs, from, &events);
            }
            Command::Abort { engine, ids } => {
                for id in ids {
                    self.jobs.remove(&id);
                    self.engines[engine].abort(now, id);
                }
            }
            Command::ResetPrefixCache { engine, reset_running, done } => {
                self.engines[engine].resets.push_back(done);
                self.engines[engine].engine.reset_prefix_cache(now, reset_running);
                self.advance(now);
            }
            Command::Snapshot { engine, reply } => {
                let _ = reply.send(self.engines[engine].snapshot());
            }
            Command::Fail { engine } => self.engines[engine].fail(now),
        }
    }

    /// Notes when the jobs of a call will be at the engine.
    fn take_in(
        &mut self,
        now: Timestamp,
        engine: usize,
        jobs: Vec<Job>,
        from: Arrival,
        events: &mpsc::UnboundedSender<JobEvent>,
    ) {
        let hosted = &mut self.engines[engine];
        if hosted.is_dead {
            let _ = events.send(JobEvent::EngineDead);
            return;
        }
        for job in jobs {
            let overhead_ns = self.profile.request_overhead_ns(job.prompt_tokens) + from.extra_ns;
            // The engine's time has passed up to `now`.
            let at = from.at.plus_nanos(overhead_ns).max(now);
            hosted.announce(&job, from.at, events.clone());
            self.sequence += 1;
            self.arrivals.push(Reverse((at, self.sequence, (engine, job.id))));
            self.jobs.insert(job.id, job);
        }
        self.advance(now);
    }

    fn reach_engine(&mut self) {
        let Some(Reverse((at, _, (number, id)))) = self.arrivals.pop() else { return };
        let Some(job) = self.jobs.remove(&id) else { return };
        self.advance_engine(at, number);
        self.engines[number].submit(at, &job);
        self.note_busy(at, number);
    }

    fn advance_engine(&mut self, until: Timestamp, number: usize) {
        let mut outputs = std::mem::take(&mut self.outputs);
        let hosted = &mut self.engines[number];
        hosted.engine.advance(until, &mut outputs);
        hosted.take_outputs(&outputs, &self.profile, &mut self.deliveries);
        outputs.clear();
        self.outputs = outputs;
        self.note_busy(until, number);
    }

    /// Tells the neighbours on the device if this changes the number of busy engines.
    fn note_busy(&mut self, now: Timestamp, number: usize) {
        let is_busy = self.engines[number].engine.is_busy();
        if self.engines.len() == 1
            || std::mem::replace(&mut self.is_busy[number], is_busy) == is_busy
        {
            return;
        }
        let busy = self.is_busy.iter().filter(|busy| **busy).count();
        let busy = u32::try_from(busy).expect("instances are counted in 32 bits");
        for hosted in &mut self.engines {
            // Nothing is due before `now`; what is due now has its own turn.
            hosted.engine.set_slowdown(now, busy);
        }
    }
}

impl Hosted {
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            gauges: *self.engine.gauges(),
            counters: *self.engine.counters(),
            samples: self.samples.clone(),
            block_keys: self.keys.len(),
            cached_blocks: self.keys.cached(),
        }
    }

    /// Makes room for a job that is on its way.
    fn announce(&mut self, job: &Job, arrival: Timestamp, events: mpsc::UnboundedSender<JobEvent>) {
        let group = Group { size: job.group_size, left: job.group_size, longest: 0 };
        self.groups.entry(job.group).or_insert(group);
        self.live.insert(
            job.id,
            Live {
                events,
                choice: job.choice,
                group: job.group,
                arrival,
                prompt_tokens: job.prompt_tokens,
                max_tokens: job.max_tokens,
                last_token: None,
                last_key: None,
            },
        );
    }

    fn submit(&mut self, at: Timestamp, job: &Job) {
        let Some(live) = self.live.get_mut(&job.id) else { return };
        let block_size = self.engine.config().block_size;
        let keys = self.keys.intern(&job.tokens, block_size, job.salt.as_deref());
        live.last_key = keys.last().copied();
        let request = EngineRequest {
            id: job.id,
            chain: BlockChain::from_keys(keys),
            prompt_tokens: job.prompt_tokens,
            max_tokens: job.max_tokens,
            stop_after: job.stop_after,
            priority: job.priority,
            skip_reading_prefix_cache: false,
        };
        self.engine.submit(at, request).expect("its lengths were checked with the call");
    }

    fn abort(&mut self, now: Timestamp, id: RequestId) {
        let Some(live) = self.live.remove(&id) else { return };
        self.groups.remove(&live.group);
        self.engine.abort(now, id);
        self.aborted.extend(live.last_key.map(|key| (now, key)));
        self.release_aborted(None);
    }

    fn fail(&mut self, now: Timestamp) {
        self.is_dead = true;
        let ids: Vec<RequestId> = self.live.keys().copied().collect();
        for id in ids {
            let _ = self.live[&id].events.send(JobEvent::EngineDead);
            self.abort(now, id);
        }
    }

    /// Counts and passes on what the engine said.
    fn take_outputs(
        &mut self,
        outputs: &[EngineOutput],
        profile: &LatencyProfile,
        deliveries: &mut VecDeque<Delivery>,
    ) {
        let response_ns = profile.response_overhead_ns();
        // One batch at a time: what came out of one step has one stamp.
        for batch in outputs.chunk_by(|a, b| output_time(a) == output_time(b)) {
            let at = output_time(&batch[0]);
            let delivered = at.plus_nanos(response_ns);
            let mut iteration_tokens = 0;
            let mut ended = Vec::new();
            for output in batch {
                match output {
                    EngineOutput::Token { id, cached_tokens, .. } => {
                        let (id, cached_tokens) = (*id, *cached_tokens);
                        let Some(live) = self.live.get_mut(&id) else { continue };
                        iteration_tokens += 1;
                        match live.last_token.replace(at) {
                            None => {
                                iteration_tokens += u64::from(live.prompt_tokens - cached_tokens);
                                self.samples.first_token(delivered.nanos_since(live.arrival));
                            }
                            Some(last) => self.samples.later_token(at.nanos_since(last)),
                        }
                        let choice = live.choice;
                        let event = JobEvent::Token { choice, cached_tokens, finish: None };
                        let events = live.events.clone();
                        deliveries.push_back(Delivery { at: delivered, id, event, events });
                    }
                    EngineOutput::Finished(finished) => {
                        if let Some(live) = self.live.remove(&finished.id) {
                            ended.extend(live.last_key);
                            self.finish(&live, finished, delivered);
                            mark_last(deliveries, finished);
                        }
                    }
                    EngineOutput::CacheEvents { events, .. } => self.follow_cache(events),
                    EngineOutput::CacheReset { done, .. } => {
                        if let Some(asker) = self.resets.pop_front() {
                            let _ = asker.send(*done);
                        }
                    }
                }
            }
            if iteration_tokens > 0 {
                self.samples.iteration(iteration_tokens);
            }
            // Only now: the step's cache events come after the ends and name their blocks.
            for key in ended {
                self.keys.release(key);
            }
            self.release_aborted(Some(at));
        }
        self.release_aborted(None);
    }

    fn finish(&mut self, live: &Live, finished: &Finished, delivered: Timestamp) {
        self.samples.finished(&FinishedSample {
            e2e_ns: delivered.nanos_since(live.arrival),
            queue_ns: finished.scheduled.nanos_since(finished.queued),
            prefill_ns: finished.first_token.nanos_since(finished.scheduled),
            decode_ns: finished.at.nanos_since(finished.first_token),
            prompt_tokens: live.prompt_tokens,
            cached_tokens: finished.cached_tokens,
            output_tokens: finished.output_tokens,
            max_tokens: live.max_tokens,
            preemptions: finished.preemptions,
        });
        if let Some(group) = self.groups.get_mut(&live.group) {
            group.left -= 1;
            group.longest = group.longest.max(finished.output_tokens);
            if group.left == 0 {
                self.samples.group(group.size, group.longest);
                self.groups.remove(&live.group);
            }
        }
    }

    fn follow_cache(&mut self, events: &[CacheEvent]) {
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(events, &self.keys);
        }
        for event in events {
            match event {
                CacheEvent::Stored { keys, .. } => {
                    for &key in keys {
                        self.keys.stored(key);
                    }
                }
                CacheEvent::Removed { key } => self.keys.removed(*key),
                CacheEvent::Cleared => self.keys.cleared(),
            }
        }
    }

    /// Lets go of aborted requests' blocks whose last cache events are in: a step processed at or after the abort has
    /// published them (R51, R57), and an idle engine has none to come.
    fn release_aborted(&mut self, processed: Option<Timestamp>) {
        let is_idle = !self.engine.is_busy();
        let Self { keys, aborted, .. } = self;
        aborted.retain(|&(at, key)| {
            let is_over = processed.map_or(is_idle, |processed| at <= processed);
            if is_over {
                keys.release(key);
            }
            !is_over
        });
    }
}

/// Marks the token that came with the end; the engine reports the two one after the other.
fn mark_last(deliveries: &mut VecDeque<Delivery>, finished: &Finished) {
    let last = deliveries.iter_mut().rev().find(|delivery| delivery.id == finished.id);
    if let Some(Delivery { event: JobEvent::Token { finish, .. }, .. }) = last {
        *finish = Some(finished.reason);
    }
}

fn output_time(output: &EngineOutput) -> Timestamp {
    match output {
        EngineOutput::Token { at, .. }
        | EngineOutput::CacheEvents { at, .. }
        | EngineOutput::CacheReset { at, .. } => *at,
        EngineOutput::Finished(finished) => finished.at,
    }
}
