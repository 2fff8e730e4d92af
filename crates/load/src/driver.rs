//! The run: a schedule that is data, and one loop that sends what is due.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use kvroute_types::{InstanceId, Outcome, RequestId, RequestRecord, Timestamp, TokenCount};
use kvroute_workload::{Arrival, Workload, WorkloadRequest};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::answer::Answer;
use crate::clock::Clock;
use crate::config::{InvalidConfig, LoadConfig, Mode, Settings};
use crate::failure::{Failure, FailureKind};
use crate::http::{HttpTransport, Route};
use crate::outcome::{FailureCount, LateSends, LoadOutcome, histogram};
use crate::prompt::{AnswerContent, Prompt, Prompts};
use crate::watch::Watch;

/// Why there was no run. What happens to single requests never stops one.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum LoadError {
    /// The configuration cannot be used.
    #[error("the load configuration cannot be used")]
    Config(#[from] InvalidConfig),
    /// The base URL makes no request.
    #[error("requests to {target} cannot be made: {problem}; write http://HOST:PORT")]
    Target {
        /// The base URL.
        target: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing to send.
    #[error("the workload has no requests; ask for at least 1")]
    NoRequests,
}

/// How far a run is. Told after each send and each end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Requests in all.
    pub total: u64,
    /// Requests sent.
    pub sent: u64,
    /// Of those, requests that ended well.
    pub completed: u64,
    /// Of those, requests that failed.
    pub failed: u64,
    /// Workload time.
    pub now: Timestamp,
}

/// Plays a workload against the target and waits for every answer.
///
/// Requests with [`Arrival::At`] are sent then, others as [`Arrival::after`] says; [`Mode::ClosedLoop`] has its own rule. Where a request waits for the answer before and its content
/// begins with that turn's, its prompt holds the answer that really came. A failed turn does not end its session: the
/// planned answer stands in for it, and the next turn waits from the failure on.
///
/// In a record, `arrival` is the intended time, `prompt_tokens` and `output_tokens` are the server's count where it tells
/// one (else the plan, and the frames with content), and `scheduled` is `None` and `preemptions` 0: a client sees neither.
/// `reason` is the gateway's, or `"none"` without a gateway. A failed request's `end` is when its failure was known.
///
/// Needs a tokio runtime with IO and time, of either flavour. Dropping the future drops all connections.
///
/// # Errors
/// If the configuration or the workload is unusable; nothing was sent then.
///
/// # Panics
/// If `progress` does, or in case of a bug.
pub async fn run(
    config: LoadConfig,
    workload: &Workload,
    progress: impl FnMut(Progress),
) -> Result<LoadOutcome, LoadError> {
    let target = config.target.to_string();
    let settings = Settings::try_from(config)?;
    let prompts = Prompts::new(workload, &settings);
    let transport = HttpTransport::new(&settings, prompts.path());
    let transport =
        Arc::new(transport.map_err(|e| LoadError::Target { target, problem: e.to_string() })?);
    if workload.requests().is_empty() {
        return Err(LoadError::NoRequests);
    }
    let warm_up =
        Clock::start(settings.time_scale).wall(settings.measured_from.since(Timestamp::ZERO));
    let watch = Watch::start(&settings, warm_up).await;
    let mut outcome = play(&settings, &prompts, workload, Arc::clone(&transport), progress).await;
    outcome.instances = watch.finish().await;
    outcome.connections = transport.connections();
    Ok(outcome)
}

/// Carries a request to a server. The tests have one without sockets.
pub(crate) trait Transport: Send + Sync + 'static {
    fn exchange(&self, call: Call, clock: Clock) -> impl Future<Output = Report> + Send;
}

/// One request to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) id: RequestId,
    pub(crate) session_key: u64,
    pub(crate) body: Bytes,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) id: RequestId,
    /// When its task began, before it had a connection.
    pub(crate) sent: Timestamp,
    pub(crate) route: Route,
    pub(crate) answer: Answer,
    /// When the exchange was over.
    pub(crate) over: Timestamp,
    pub(crate) result: Result<(), Failure>,
}

impl Report {
    pub(crate) fn new(id: RequestId, sent: Timestamp) -> Self {
        let (route, answer) = (Route::default(), Answer::default());
        Self { id, sent, route, answer, over: sent, result: Ok(()) }
    }

    /// When the last token came, or the failure was known.
    fn end(&self) -> Timestamp {
        let last_token = self.answer.last_token.filter(|_| self.result.is_ok());
        last_token.unwrap_or(self.over)
    }
}

/// The loop: sends what is due, else waits for the first of the next send and the next end.
async fn play<T: Transport>(
    settings: &Settings,
    prompts: &Prompts<'_>,
    workload: &Workload,
    transport: Arc<T>,
    mut progress: impl FnMut(Progress),
) -> LoadOutcome {
    let mut plan = Plan::new(settings, prompts, workload);
    plan.prepare_next();
    let begin = Instant::now();
    let clock = Clock::start(settings.time_scale);
    let mut tally = Tally::new(settings, workload, clock);
    let mut tasks: JoinSet<Report> = JoinSet::new();
    loop {
        plan.prepare_next();
        let due = plan.next_due();
        if due.is_none() && tasks.is_empty() {
            break;
        }
        tokio::select! {
            // Sends go first: whatever ends can wait, what is due cannot.
            biased;
            () = sleep_until(&clock, due) => {
                let (intended, call) = plan.take_next();
                tally.sent(call.id, intended);
                let transport = Arc::clone(&transport);
                tasks.spawn(async move { transport.exchange(call, clock).await });
                // It begins now, also where many are due at once and there is but one thread.
                tokio::task::yield_now().await;
            }
            Some(report) = tasks.join_next() => {
                let report = report.unwrap_or_else(|error| match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => unreachable!("no task is aborted while the run lasts: {error}"),
                });
                plan.ended(tally.intended[report.id.index()], &report);
                tally.ended(report);
            }
        }
        progress(tally.progress(clock.now()));
    }
    tally.into_outcome(plan.planned_answers, begin.elapsed())
}

/// Waits for a time; forever if there is none.
async fn sleep_until(clock: &Clock, due: Option<Timestamp>) {
    match due.and_then(|due| clock.instant(due)) {
        Some(instant) if instant <= Instant::now() => {}
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// A request that is not due yet.
enum Pending {
    /// Its prompt will be as the workload plans it.
    Planned,
    /// Its prompt grew out of the turn before.
    Grown(Prompt),
    /// Its body is made.
    Ready(Bytes),
}

/// What is still to be sent.
struct Plan<'a> {
    prompts: &'a Prompts<'a>,
    workload: &'a Workload,
    mode: Mode,
    /// By intended time, then number. The next one is made ready before it is due.
    queue: BTreeMap<(Timestamp, RequestId), Pending>,
    /// First turns that wait for a client (closed loop).
    waiting: VecDeque<RequestId>,
    /// Prompts of requests under way whose next turn will grow out of them.
    growing: BTreeMap<RequestId, Prompt>,
    /// Grown prompts that hold a planned answer instead of the real one.
    planned_answers: u64,
}

impl<'a> Plan<'a> {
    fn new(settings: &Settings, prompts: &'a Prompts<'a>, workload: &'a Workload) -> Self {
        let mut plan = Self {
            prompts,
            workload,
            mode: settings.mode,
            queue: BTreeMap::new(),
            waiting: VecDeque::new(),
            growing: BTreeMap::new(),
            planned_answers: 0,
        };
        match settings.mode {
            Mode::OpenLoop {} => {
                for request in workload.requests() {
                    if let Arrival::At(at) = request.arrival {
                        plan.queue.insert((at, request.id), Pending::Planned);
                    }
                }
            }
            Mode::ClosedLoop { concurrency } => {
                let first_turns = workload.requests().iter().filter(|request| request.turn == 0);
                plan.waiting = first_turns.map(|request| request.id).collect();
                let clients = plan.waiting.len().min(concurrency.get() as usize);
                for _ in 0..clients {
                    plan.admit(Timestamp::ZERO);
                }
            }
        }
        plan
    }

    /// A client takes the next session.
    fn admit(&mut self, now: Timestamp) {
        if let Some(id) = self.waiting.pop_front() {
            self.queue.insert((now, id), Pending::Planned);
        }
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Makes the body of the next request, so that sending it takes no time.
    fn prepare_next(&mut self) {
        let Some(mut entry) = self.queue.first_entry() else { return };
        let id = entry.key().1;
        let request = &self.workload.requests()[id.index()];
        let prompt = match entry.get_mut() {
            Pending::Ready(_) => return,
            Pending::Planned => self.prompts.planned(request),
            Pending::Grown(prompt) => std::mem::take(prompt),
        };
        let keeps_answer = next_waiting_turn(self.workload, self.mode, request)
            .is_some_and(|next| self.prompts.extends(request, next));
        entry.insert(Pending::Ready(self.prompts.body(request, &prompt, keeps_answer)));
        if keeps_answer {
            self.growing.insert(id, prompt);
        }
    }

    fn take_next(&mut self) -> (Timestamp, Call) {
        let Some(((intended, id), Pending::Ready(body))) = self.queue.pop_first() else {
            unreachable!("the next one is made ready before it is due");
        };
        let session_key = self.workload.requests()[id.index()].session_key;
        (intended, Call { id, session_key, body })
    }

    /// Plans what an end makes possible.
    fn ended(&mut self, intended: Timestamp, report: &Report) {
        let request = &self.workload.requests()[report.id.index()];
        let Some(next) = next_waiting_turn(self.workload, self.mode, request) else {
            if matches!(self.mode, Mode::ClosedLoop { .. }) {
                self.admit(report.over);
            }
            return;
        };
        let pending = match self.growing.remove(&request.id) {
            Some(prompt) => {
                let answer = report.result.is_ok().then(|| AnswerContent {
                    text: report.answer.text.clone(),
                    token_ids: report.answer.token_ids.clone(),
                });
                let (grown, is_real) = self.prompts.extended(prompt, request, answer, next);
                self.planned_answers += u64::from(!is_real);
                Pending::Grown(grown)
            }
            None => Pending::Planned,
        };
        let due = next.arrival.after(intended, report.end()).unwrap_or(report.over);
        // Nobody can mean to send before the answer is over, which is a frame or two after its last token.
        self.queue.insert((due.max(report.over), next.id), pending);
    }
}

/// Whether a request is sent only after the turn before has ended.
fn waits_for_previous(mode: Mode, request: &WorkloadRequest) -> bool {
    match (mode, request.arrival) {
        (Mode::ClosedLoop { .. }, _) => request.turn > 0,
        (Mode::OpenLoop {}, Arrival::AfterPrevious { .. } | Arrival::Paced { .. }) => true,
        (Mode::OpenLoop {}, Arrival::At(_)) => false,
    }
}

/// The next turn of the session, if it waits for this one to end.
fn next_waiting_turn<'a>(
    workload: &'a Workload,
    mode: Mode,
    request: &WorkloadRequest,
) -> Option<&'a WorkloadRequest> {
    let next = &workload.requests()[workload.next_turn(request.id)?.index()];
    waits_for_previous(mode, next).then_some(next)
}

/// What has come of the requests so far.
struct Tally<'a> {
    settings: &'a Settings,
    workload: &'a Workload,
    clock: Clock,
    intended: Vec<Timestamp>,
    records: Vec<Option<RequestRecord>>,
    inter_token_ns: Histogram<u64>,
    behind_ns: Histogram<u64>,
    failures: BTreeMap<FailureKind, FailureCount>,
    finish_reasons: BTreeMap<String, u64>,
    unknown_instances: BTreeMap<String, u64>,
    sent: u64,
    completed: u64,
    failed: u64,
    end: Timestamp,
}

impl<'a> Tally<'a> {
    fn new(settings: &'a Settings, workload: &'a Workload, clock: Clock) -> Self {
        let requests = workload.requests().len();
        Self {
            settings,
            workload,
            clock,
            intended: vec![Timestamp::ZERO; requests],
            records: vec![None; requests],
            inter_token_ns: histogram(),
            behind_ns: histogram(),
            failures: BTreeMap::new(),
            finish_reasons: BTreeMap::new(),
            unknown_instances: BTreeMap::new(),
            sent: 0,
            completed: 0,
            failed: 0,
            end: Timestamp::ZERO,
        }
    }

    fn sent(&mut self, id: RequestId, intended: Timestamp) {
        self.sent += 1;
        self.intended[id.index()] = intended;
    }

    fn ended(&mut self, report: Report) {
        let arrival = self.intended[report.id.index()];
        let behind = self.clock.wall(report.sent.since(arrival));
        let behind_ns = u64::try_from(behind.as_nanos()).unwrap_or(u64::MAX);
        record_ns(&mut self.behind_ns, behind_ns);
        if arrival >= self.settings.measured_from {
            for gap_ns in &report.answer.gaps_ns {
                record_ns(&mut self.inter_token_ns, *gap_ns);
            }
        }
        self.end = self.end.max(report.end());
        let instance = report.route.instance.as_deref().and_then(|name| self.instance(name));
        let index = report.id.index();
        let record = record(&self.workload.requests()[index], arrival, instance, &report);
        self.records[index] = Some(record);
        match report.result {
            Ok(()) => {
                self.completed += 1;
                let reason = report.answer.finish_reason.unwrap_or_else(|| "none".to_owned());
                *self.finish_reasons.entry(reason).or_default() += 1;
            }
            Err(Failure { kind, message }) => {
                self.failed += 1;
                let none_yet = FailureCount { count: 0, example: message };
                self.failures.entry(kind).or_insert(none_yet).count += 1;
            }
        }
    }

    /// The instance of a name: a configured one, else a number.
    fn instance(&mut self, name: &str) -> Option<InstanceId> {
        let position = self.settings.instance_names.iter().position(|known| known == name);
        let number = position.and_then(|n| u32::try_from(n).ok()).or_else(|| name.parse().ok());
        if number.is_none() {
            *self.unknown_instances.entry(name.to_owned()).or_default() += 1;
        }
        number.map(InstanceId)
    }

    fn progress(&self, now: Timestamp) -> Progress {
        let Self { sent, completed, failed, .. } = *self;
        Progress { total: self.records.len() as u64, sent, completed, failed, now }
    }

    fn into_outcome(self, planned_answers: u64, wall: Duration) -> LoadOutcome {
        let records: Vec<RequestRecord> = self.records.into_iter().flatten().collect();
        assert_eq!(records.len(), self.intended.len(), "every request has a record");
        LoadOutcome {
            records,
            inter_token_ns: self.inter_token_ns,
            late_sends: LateSends::of(&self.behind_ns),
            failures: self.failures,
            finish_reasons: self.finish_reasons,
            planned_answers,
            unknown_instances: self.unknown_instances,
            instances: Vec::new(),
            connections: 0,
            end: self.end,
            wall,
        }
    }
}

/// Records a value; the histogram grows to hold it (`saturating_record` would not let it).
fn record_ns(histogram: &mut Histogram<u64>, ns: u64) {
    histogram.record(ns).expect("64 bits of usize hold every histogram");
}

fn record(
    request: &WorkloadRequest,
    arrival: Timestamp,
    instance: Option<InstanceId>,
    report: &Report,
) -> RequestRecord {
    let Answer { first_token, usage, content_frames, .. } = &report.answer;
    let prompt_tokens = usage.and_then(|usage| usage.prompt_tokens).map(TokenCount);
    let output_tokens = usage.and_then(|usage| usage.completion_tokens);
    let is_completed = report.result.is_ok();
    RequestRecord {
        id: request.id,
        session: request.session,
        turn: request.turn,
        instance,
        reason: report.route.reason.unwrap_or("none"),
        outcome: if is_completed { Outcome::Completed } else { Outcome::Failed },
        arrival,
        scheduled: None,
        first_token: *first_token,
        end: report.end(),
        prompt_tokens: prompt_tokens.unwrap_or(request.prompt_tokens),
        cached_tokens: usage.and_then(|usage| usage.cached_tokens()).map(TokenCount),
        predicted_cached_tokens: report.route.predicted_cached_tokens,
        output_tokens: TokenCount(output_tokens.unwrap_or(*content_frames)),
        preemptions: 0,
    }
}

#[cfg(test)]
mod tests;
