//! One instance as the tasks that serve its connections see it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use kvroute_engine::EngineConfig;
use kvroute_types::{RequestId, Timestamp, mix64};
use tokio::sync::{mpsc, oneshot};

use crate::answer::Answer;
use crate::body::Jobs;
use crate::call::{Api, Call};
use crate::clock::Clock;
use crate::config::MockConfig;
use crate::device::{Arrival, Command, Job, Snapshot};
use crate::faults::Faults;
use crate::kv_events::PublisherTasks;
use crate::metrics::{PageContext, render};
use crate::reply::ReplyHeader;
use crate::zero_delay::ZeroAnswers;

/// State shared by the connections of one instance.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) config: Arc<MockConfig>,
    pub(crate) zero: Option<ZeroAnswers>,
    /// Its number on the device.
    pub(crate) engine: usize,
    /// Its publisher of KV events.
    pub(crate) events: Option<PublisherTasks>,
    clock: Clock,
    commands: mpsc::UnboundedSender<Command>,
    /// Numbers for the jobs on the device.
    next_job: Arc<AtomicU32>,
    faults: Mutex<Faults>,
    seed: u64,
    calls: AtomicU64,
    in_flight: AtomicU32,
    is_dead: AtomicBool,
    created_s: f64,
    system_fingerprint: String,
}

/// A call being served, for `GET /load`.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Instance>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Instance {
    pub(crate) fn new(
        config: &Arc<MockConfig>,
        number: u32,
        engine: usize,
        clock: Clock,
        commands: mpsc::UnboundedSender<Command>,
        next_job: Arc<AtomicU32>,
        events: Option<PublisherTasks>,
    ) -> Self {
        let model_hash =
            config.models[0].bytes().fold(0, |hash, byte| mix64(hash ^ u64::from(byte)));
        let system_fingerprint = format!("vllm-0.32.0-{:08x}", model_hash >> 32);
        if let Some(events) = &events {
            events.losses.set(&config.faults);
        }
        Self {
            zero: config.zero_delay.map(|zero| ZeroAnswers::new(config, zero, &system_fingerprint)),
            config: Arc::clone(config),
            engine,
            events,
            clock,
            commands,
            next_job,
            faults: Mutex::new(config.faults.clone()),
            seed: mix64(config.seed ^ mix64(u64::from(number))),
            calls: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            is_dead: AtomicBool::new(false),
            created_s: unix_time_s(),
            system_fingerprint,
        }
    }

    pub(crate) fn faults(&self) -> Faults {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        if let Some(events) = &self.events {
            events.losses.set(&faults);
        }
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Seconds since the Unix epoch at which it started.
    pub(crate) fn created_s(&self) -> f64 {
        self.created_s
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    pub(crate) fn fail_engine(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
        self.command(Command::Fail { engine: self.engine });
        // The publisher is a thread of the engine's process.
        self.stop_events();
    }

    /// Closes the sockets of the publisher.
    pub(crate) fn stop_events(&self) {
        if let Some(events) = &self.events {
            events.stop();
        }
    }

    /// Calls being served.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a call in; its number says which fault and which id it gets.
    pub(crate) fn begin_call(self: &Arc<Self>) -> (u64, InFlight) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        (self.calls.fetch_add(1, Ordering::Relaxed), InFlight(Arc::clone(self)))
    }

    /// Status of the injected error of a call, if it is to have one.
    pub(crate) fn injected_error(&self, faults: &Faults, call: u64) -> Option<u16> {
        faults.error_of(self.seed, call)
    }

    /// 16 hex digits for a call.
    pub(crate) fn random_id(&self, call: u64) -> String {
        format!("{:016x}", mix64(self.seed.wrapping_add(call)))
    }

    /// Hands something to the device's task. It outlives the instance, unless it panicked.
    pub(crate) fn command(&self, command: Command) {
        if self.commands.send(command).is_err() {
            tracing::error!("the engine task is gone");
        }
    }

    /// The state of the engine now; `None` if its task is gone.
    pub(crate) async fn snapshot(&self) -> Option<Snapshot> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Snapshot { engine: self.engine, reply });
        answer.await.ok()
    }

    /// R13; false if blocks are in use.
    pub(crate) async fn reset_prefix_cache(&self, reset_running: bool) -> bool {
        let (done, answer) = oneshot::channel();
        self.command(Command::ResetPrefixCache { engine: self.engine, reset_running, done });
        answer.await.unwrap_or(false)
    }

    /// The metrics page.
    pub(crate) async fn metrics_page(&self) -> Option<String> {
        let context = PageContext {
            model: &self.config.models[0],
            engine: &self.config.engine,
            created_s: self.created_s,
        };
        Some(render(&context, &self.snapshot().await?))
    }

    /// The head of the reply to a call.
    pub(crate) fn reply_header(&self, call: &Call, number: u64) -> ReplyHeader {
        let prefix = match call.api {
            Api::Chat => "chatcmpl",
            Api::Completion => "cmpl",
        };
        let id = call.request_id.clone().unwrap_or_else(|| self.random_id(number));
        let EngineConfig { block_size, enable_prefix_caching, .. } = &self.config.engine;
        ReplyHeader {
            id: format!("{prefix}-{id}"),
            created: whole_seconds(unix_time_s()),
            system_fingerprint: self.system_fingerprint.clone(),
            prompt_tokens_details: self.config.enable_prompt_tokens_details,
            cache_block_size: if *enable_prefix_caching { block_size.get() } else { 0 },
        }
    }

    /// Starts the jobs of a call that arrived at `at`, one per answer (R52).
    pub(crate) fn submit(
        self: &Arc<Self>,
        at: Timestamp,
        call: &Call,
        answers: &[Answer],
        faults: &Faults,
    ) -> Jobs {
        let count = u32::try_from(answers.len()).expect("answers are counted in 32 bits");
        let first = self.next_job.fetch_add(count, Ordering::Relaxed);
        let jobs: Vec<Job> = (0..)
            .zip(answers)
            .map(|(choice, answer): (u32, &Answer)| {
                let prompt = &call.prompts[(choice / call.n) as usize];
                let mut tokens = Vec::with_capacity(prompt.tokens.len() + answer.tokens.len());
                tokens.extend_from_slice(&prompt.tokens);
                tokens.extend_from_slice(&answer.tokens);
                Job {
                    id: RequestId(first.wrapping_add(choice)),
                    choice,
                    group: RequestId(first.wrapping_add(choice / call.n * call.n)),
                    group_size: call.n,
                    tokens,
                    prompt_tokens: u32::try_from(prompt.tokens.len()).expect("bounded"),
                    max_tokens: prompt.rules.max_tokens,
                    stop_after: answer.stops.then(|| answer.len()),
                    priority: call.priority,
                    salt: call.salt.clone().or_else(|| faults.cache_salt.as_deref().map(Arc::from)),
                }
            })
            .collect();
        let ids = jobs.iter().map(|job| job.id).collect();
        let from = Arrival { at, extra_ns: self.clock.to_model_ns(faults.extra_delay()) };
        let (events, receiver) = mpsc::unbounded_channel();
        self.command(Command::Submit { engine: self.engine, jobs, from, events });
        Jobs::new(Arc::clone(self), ids, receiver)
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_time_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the time since 1970 is not negative, and a fraction is dropped on purpose"
)]
pub(crate) fn whole_seconds(seconds: f64) -> u64 {
    seconds as u64
}
