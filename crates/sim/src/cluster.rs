//! The event loop.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use hdrhistogram::Histogram;
use kvroute_engine::{
    CacheEvent, Counters, Engine, EngineConfig, EngineOutput, EngineRequest, Finished, GaugeTotals,
    Gauges,
};
use kvroute_policy::{BlockNames, RequestView};
use kvroute_router::{CacheNews, Ticket};
use kvroute_types::{
    BlockHash, BlockKey, InstanceId, LoadSample, LoadSnapshot, Outcome, RequestId, RequestRecord,
    Timestamp, TokenCount,
};
use kvroute_workload::{Arrival, Plan, Workload, WorkloadRequest};

use crate::config::{InvalidSim, SimConfig};
use crate::fleet::Fleet;
use crate::outcome::{InstanceOutcome, SimOutcome};
use crate::perfect_load::PerfectLoad;
use crate::routers::{Routers, hears_every_load, reads_load};

/// Runs the workload through the cluster, from cold caches to the last answer.
///
/// `plan` holds the workload's block chains for the engines' block size. `progress` is called now and then with the
/// number of requests that have ended.
///
/// # Errors
/// [`InvalidSim`] if the configuration is unusable or a request could never run; nothing is simulated then.
pub fn simulate(
    config: &SimConfig,
    workload: &Workload,
    plan: &Plan,
    mut progress: impl FnMut(u32),
) -> Result<SimOutcome, InvalidSim> {
    let mut cluster = Cluster::new(config, workload, plan)?;
    let mut reported = 0;
    while cluster.advance() {
        if cluster.ended >= reported + PROGRESS_REQUESTS {
            reported = cluster.ended;
            progress(reported);
        }
    }
    Ok(cluster.into_outcome())
}

/// Requests between two calls of `progress`.
const PROGRESS_REQUESTS: u32 = 1_000;

/// Something that happens at a time known in advance, other than an engine's step or a trace arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scheduled {
    /// A client sends the next turn of its session.
    Arrival(RequestId),
    /// A request reaches its instance.
    AtEngine(RequestId),
}

/// When the next event of each kind is due; [`Timestamp::MAX`] if there is none.
struct Due {
    engine: Timestamp,
    response: Timestamp,
    restart: Timestamp,
    scheduled: Timestamp,
    reading: Timestamp,
    sample: Timestamp,
    /// The earliest of them and the next arrival; none if nothing but readings, restarts and samples is left.
    now: Timestamp,
}

/// What passes from an instance to router and client, all with the same delay.
#[derive(Debug)]
enum Response {
    FirstToken { id: RequestId, cached_tokens: u32 },
    End(Finished),
    Cache(InstanceId, Vec<CacheEvent>),
}

/// A request under way.
#[derive(Debug)]
struct Live {
    ticket: Ticket,
    /// Number of the router that gave the ticket.
    router: usize,
    instance: InstanceId,
    reason: &'static str,
    predicted_cached_tokens: Option<TokenCount>,
    arrival: Timestamp,
    cached_tokens: u32,
    first_token: Option<Timestamp>,
}

/// What is not per request, by the end of the measurement.
#[derive(Debug)]
struct Measured {
    until: Timestamp,
    /// Of each engine, in id order: gauges over time, and times between tokens.
    engines: Vec<(GaugeTotals, Histogram<u64>)>,
    in_flight_cov: Option<f64>,
}

fn cache_news(event: &CacheEvent) -> CacheNews {
    match event {
        CacheEvent::Stored { keys, parent } => CacheNews::Stored {
            parent: parent.map(BlockKey::hash),
            blocks: keys.iter().map(|key| key.hash()).collect(),
        },
        CacheEvent::Removed { key } => CacheNews::Removed([key.hash()].into()),
        CacheEvent::Cleared => CacheNews::Cleared,
    }
}

fn instance_id(number: usize) -> InstanceId {
    InstanceId(u32::try_from(number).expect("instance ids are 32 bits"))
}

/// Requests that an engine has served to their end.
fn ended(engine: &Engine) -> u64 {
    let Counters { finished_stop, finished_length, .. } = engine.counters();
    finished_stop + finished_length
}

/// A request of the workload, as an engine gets it.
fn engine_request(workload: &Workload, plan: &Plan, id: RequestId) -> EngineRequest {
    let request = &workload.requests()[id.index()];
    EngineRequest {
        id,
        chain: plan.chain(id).clone(),
        prompt_tokens: request.prompt_tokens.0,
        max_tokens: request.output_tokens.0,
        stop_after: None,
        priority: request.priority,
        skip_reading_prefix_cache: false,
    }
}

struct Cluster<'a> {
    workload: &'a Workload,
    plan: &'a Plan,
    routers: Routers,
    fleet: Fleet,

    /// The next request with an absolute arrival that has not been sent.
    next_arrival: usize,
    scheduled: BinaryHeap<Reverse<(Timestamp, u64, Scheduled)>>,
    /// Breaks ties among scheduled events: first scheduled, first served.
    sequence: u64,
    responses: VecDeque<(Timestamp, Response)>,
    next_reading: Option<Timestamp>,
    /// Time between two readings, if they are taken on an interval.
    load_interval_ns: Option<u64>,
    next_sample: Option<Timestamp>,
    /// Time between two samples; meaningless if there are none.
    sample_interval_ns: u64,
    samples: Vec<LoadSample>,
    /// By instance, if a router hears of every change of load at once; else empty.
    perfect_loads: Vec<PerfectLoad>,

    live: Vec<Option<Live>>,
    records: Vec<RequestRecord>,
    ended: u32,
    end: Timestamp,
    /// From when to measure; `None` once that has begun.
    measure_from: Option<Timestamp>,
    measured_from: Timestamp,
    /// When to stop measuring; `None` once that was done, or if it is the end of the run.
    measure_until: Option<Timestamp>,
    measured: Option<Measured>,
    cov_sum: f64,
    cov_count: u64,

    /// From the decision to the engine: fixed, and per prompt token.
    request_delay_s: (f64, f64),
    response_ns: u64,

    /// Kept for their memory.
    outputs: Vec<EngineOutput>,
    hashes: Vec<BlockHash>,
    under_way: Vec<(Timestamp, u64, RequestId, usize)>,
}

impl<'a> Cluster<'a> {
    fn new(config: &SimConfig, workload: &'a Workload, plan: &'a Plan) -> Result<Self, InvalidSim> {
        let SimConfig {
            instances,
            policy: _,
            engine,
            profile,
            instances_per_device,
            speeds,
            router,
            network_delay_s,
            measure_from_s,
            measure_until_s,
            seed: _,
            router_restarts: _,
            sample_every_s,
        } = config;
        config.validate()?;
        if plan.block_size() != engine.block_size {
            return Err(InvalidSim::BlockSize {
                plan: plan.block_size(),
                engine: engine.block_size,
            });
        }
        if router.block_size != engine.block_size {
            return Err(InvalidSim::RouterBlockSize {
                router: router.block_size,
                engine: engine.block_size,
            });
        }
        let routers = Routers::new(config)?;
        let engine = EngineConfig { kv_events: routers.any_hears_cache_events(), ..engine.clone() };
        let engines = (0..*instances)
            .map(|number| Engine::new(engine.clone(), profile.step_at(speeds, number)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(InvalidSim::Engine)?;
        for request in workload.requests() {
            let fits = engines[0].check(request.prompt_tokens.0, request.output_tokens.0);
            fits.map_err(|source| InvalidSim::Request { id: request.id, source })?;
        }

        let perfect_loads = if routers.any_hears_every_load() { engines.len() } else { 0 };
        let load_interval_ns = routers.current.load_refresh().interval_ns();
        let sample_interval_ns =
            sample_every_s.map(|every_s| Timestamp::from_secs_f64(every_s).as_nanos().max(1));
        let network_ns = Timestamp::from_secs_f64(*network_delay_s).as_nanos();
        let response_ns = Timestamp::from_secs_f64(profile.response_overhead_s).as_nanos();
        Ok(Self {
            workload,
            plan,
            next_arrival: 0,
            scheduled: BinaryHeap::new(),
            sequence: 0,
            responses: VecDeque::new(),
            next_reading: load_interval_ns
                .filter(|_| reads_load(&routers.current))
                .map(|_| Timestamp::ZERO),
            load_interval_ns,
            next_sample: sample_interval_ns.map(|_| Timestamp::ZERO),
            sample_interval_ns: sample_interval_ns.unwrap_or(u64::MAX),
            samples: Vec::new(),
            perfect_loads: vec![PerfectLoad::default(); perfect_loads],
            live: workload.requests().iter().map(|_| None).collect(),
            records: Vec::with_capacity(workload.requests().len()),
            ended: 0,
            end: Timestamp::ZERO,
            measure_from: Some(Timestamp::from_secs_f64(*measure_from_s)),
            measured_from: Timestamp::ZERO,
            measure_until: measure_until_s.map(Timestamp::from_secs_f64),
            measured: None,
            cov_sum: 0.0,
            cov_count: 0,
            request_delay_s: (
                network_delay_s + profile.request_overhead_s,
                profile.request_overhead_s_per_prompt_token,
            ),
            response_ns: network_ns + response_ns,
            outputs: Vec::new(),
            hashes: Vec::new(),
            routers,
            fleet: Fleet::new(engines, *instances_per_device as usize),
            under_way: Vec::new(),
        })
    }

    /// Handles the earliest event; false when nothing is left. At one time, engines come first, then answers on their
    /// way back, then a router's restart, scheduled events, readings, samples and arrivals.
    fn advance(&mut self) -> bool {
        let Due { engine, response, restart, scheduled, reading, sample, now } = self.due();
        if now == Timestamp::MAX {
            return false;
        }
        if let Some(from) = self.measure_from.take_if(|from| *from <= now) {
            self.begin_measurement(from);
        }
        if let Some(until) = self.measure_until.take_if(|until| *until < now) {
            self.end_measurement(until);
        }
        if engine == now {
            let number = self.fleet.next_engine();
            self.advance_engine(now, number);
        } else if response == now {
            self.deliver_response();
        } else if restart == now {
            self.restart_router(now);
        } else if scheduled == now {
            self.run_scheduled();
        } else if reading == now {
            self.read_loads(now);
        } else if sample == now {
            self.sample(now);
        } else {
            let (at, id) = self.peek_arrival().expect("an arrival is due");
            self.next_arrival = id.index() + 1;
            self.arrive(at, id);
        }
        true
    }

    /// When the next event of each kind is due.
    fn due(&mut self) -> Due {
        let never = Timestamp::MAX;
        let engine = self.fleet.next_event().unwrap_or(never);
        let response = self.responses.front().map_or(never, |&(at, _)| at);
        let scheduled = self.scheduled.peek().map_or(never, |Reverse((at, ..))| *at);
        let arrival = self.peek_arrival().map_or(never, |(at, _)| at);
        let reading = self.next_reading.unwrap_or(never);
        let restart = self.routers.next_restart().unwrap_or(never);
        let sample = self.next_sample.unwrap_or(never);
        let work = engine.min(response).min(scheduled).min(arrival);
        let now = if work == never { never } else { work.min(reading).min(restart).min(sample) };
        Due { engine, response, restart, scheduled, reading, sample, now }
    }

    /// The warm-up is over. Nothing visible is due before `from`, or it would have been handled.
    fn begin_measurement(&mut self, from: Timestamp) {
        self.measured_from = from;
        if from > Timestamp::ZERO {
            for engine in &mut self.fleet.engines {
                engine.advance(Timestamp::from_nanos(from.as_nanos() - 1), &mut self.outputs);
                engine.measure_from(from);
            }
            (self.cov_sum, self.cov_count) = (0.0, 0);
        }
    }

    /// Measurement is over; the run goes on. All that was due by `until` has been handled.
    fn end_measurement(&mut self, until: Timestamp) {
        for engine in &mut self.fleet.engines {
            engine.advance(until, &mut self.outputs);
        }
        self.measured = Some(self.measured_by(until));
    }

    fn measured_by(&self, until: Timestamp) -> Measured {
        let of = |engine: &Engine| (engine.gauge_totals(until), engine.inter_token_ns().clone());
        let is_any = self.cov_count > 0;
        Measured {
            until,
            engines: self.fleet.engines.iter().map(of).collect(),
            in_flight_cov: is_any.then(|| self.cov_sum / self.cov_count as f64),
        }
    }

    /// The next request of the workload that is sent at a time of its own.
    fn peek_arrival(&mut self) -> Option<(Timestamp, RequestId)> {
        let requests = self.workload.requests();
        while let Some(request) = requests.get(self.next_arrival) {
            match request.arrival {
                Arrival::At(at) => return Some((at, request.id)),
                Arrival::AfterPrevious { .. } | Arrival::Paced { .. } => self.next_arrival += 1,
            }
        }
        None
    }

    fn schedule(&mut self, at: Timestamp, event: Scheduled) {
        self.sequence += 1;
        self.scheduled.push(Reverse((at, self.sequence, event)));
    }

    fn run_scheduled(&mut self) {
        let Some(Reverse((at, _, event))) = self.scheduled.pop() else { return };
        match event {
            Scheduled::Arrival(id) => self.arrive(at, id),
            Scheduled::AtEngine(id) => self.reach_engine(at, id),
        }
    }

    /// A request arrives at the router: decide, and send it on.
    fn arrive(&mut self, now: Timestamp, id: RequestId) {
        let request = &self.workload.requests()[id.index()];
        let at = now.plus_nanos(self.request_delay_ns(request));
        if self.routers.current.needs().true_ttft {
            self.foretell_ttfts(now, id, at);
        }
        let prompt_blocks = self.plan.block_size().full_blocks(request.prompt_tokens).0 as usize;
        self.hashes.clear();
        if self.routers.current.keeps_index() {
            let keys = self.plan.chain(id).keys().take(prompt_blocks);
            self.hashes.extend(keys.map(kvroute_types::BlockKey::hash));
        }
        let view = RequestView {
            id,
            session_key: Some(request.session_key),
            prefix_key: Some(request.prefix_key),
            prompt_blocks: &self.hashes,
            block_names: BlockNames::Engine,
            prompt_tokens: request.prompt_tokens,
            max_output_tokens: Some(request.output_tokens),
            priority: request.priority,
        };
        if let Some(cov) = self.routers.current.in_flight_cov() {
            self.cov_sum += cov;
            self.cov_count += 1;
        }
        let routed =
            self.routers.current.route(now, &view).expect("every simulated instance is eligible");
        if let Some(load) = self.perfect_loads.get_mut(routed.instance.index()) {
            load.sent(now, id);
        }
        self.live[id.index()] = Some(Live {
            ticket: routed.ticket,
            router: self.routers.number,
            instance: routed.instance,
            reason: routed.reason.name(),
            predicted_cached_tokens: routed.predicted_cached_tokens,
            arrival: now,
            cached_tokens: 0,
            first_token: None,
        });
        if at == now {
            self.reach_engine(now, id);
        } else {
            self.schedule(at, Scheduled::AtEngine(id));
        }
    }

    /// Tells the router when the request's first token would be back from each instance, if it reached it `at` this time.
    /// Requests that are on their way to an instance reach it too.
    fn foretell_ttfts(&mut self, now: Timestamp, id: RequestId, at: Timestamp) {
        let live = &self.live;
        let on_its_way = |Reverse((at, sequence, event)): &Reverse<(Timestamp, u64, Scheduled)>| {
            let Scheduled::AtEngine(id) = *event else { return None };
            let live = live[id.index()].as_ref().expect("it was routed and has not ended");
            Some((*at, *sequence, id, live.instance.index()))
        };
        let mut under_way = std::mem::take(&mut self.under_way);
        under_way.extend(self.scheduled.iter().filter_map(on_its_way));
        under_way.sort_unstable();
        let before = under_way.partition_point(|&(other_at, ..)| other_at <= at);
        for number in 0..self.fleet.engines.len() {
            let (before, after) = under_way.split_at(before);
            let others =
                |&(at, _, id, number): &(Timestamp, u64, RequestId, usize)| (at, number, id);
            let inputs = before.iter().map(others).chain([(at, number, id)]);
            let inputs = inputs.chain(after.iter().map(others));
            let request = |id| engine_request(self.workload, self.plan, id);
            let first_token = self.fleet.foresee_first_token(now, number, id, inputs, request);
            let ttft = first_token.plus_nanos(self.response_ns).since(now);
            self.routers.current.foretell_ttft(instance_id(number), ttft);
        }
        under_way.clear();
        self.under_way = under_way;
    }

    /// Time from the decision until the engine has the request: network, HTTP, tokenising.
    fn request_delay_ns(&self, request: &WorkloadRequest) -> u64 {
        let (fixed, per_token) = self.request_delay_s;
        Timestamp::from_secs_f64(fixed + per_token * f64::from(request.prompt_tokens.0)).as_nanos()
    }

    fn reach_engine(&mut self, now: Timestamp, id: RequestId) {
        let live = self.live[id.index()].as_ref().expect("it was routed and has not ended");
        let number = live.instance.index();
        self.advance_engine(now, number);
        if let Some(load) = self.perfect_loads.get_mut(number) {
            load.arrived(id);
        }
        let request = engine_request(self.workload, self.plan, id);
        self.fleet.submit(now, number, request);
    }

    /// Lets an engine's time pass and takes what it says.
    fn advance_engine(&mut self, now: Timestamp, number: usize) {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.fleet.advance(now, number, &mut outputs);
        for output in outputs.drain(..) {
            let (at, response) = match output {
                EngineOutput::Token { id, at, index: 0, cached_tokens } => {
                    (at, Response::FirstToken { id, cached_tokens })
                }
                EngineOutput::Finished(finished) => (finished.at, Response::End(finished)),
                EngineOutput::CacheEvents { at, events } => {
                    (at, Response::Cache(instance_id(number), events))
                }
                // Nobody here asks for later tokens, or resets a cache.
                EngineOutput::Token { .. } | EngineOutput::CacheReset { .. } => continue,
            };
            self.responses.push_back((at.plus_nanos(self.response_ns), response));
        }
        self.outputs = outputs;
        if let Some(load) = self.perfect_loads.get_mut(number)
            && let engine = &self.fleet.engines[number]
            && let Some(news) = load.news(engine.gauges(), ended(engine))
            && hears_every_load(&self.routers.current)
        {
            self.routers.current.observe_load(now, instance_id(number), news);
        }
        self.fleet.changed(now, number);
    }

    /// A scrape of all instances.
    fn read_loads(&mut self, now: Timestamp) {
        for number in 0..self.fleet.engines.len() {
            self.fleet.catch_up(now, number);
            let gauges = *self.fleet.engines[number].gauges();
            // A scraper cannot know which requests were counted, and takes the time it asked.
            let reading = LoadSnapshot { as_of: now, ..gauges.into() };
            self.routers.current.observe_load(now, instance_id(number), reading);
        }
        self.next_reading = self.load_interval_ns.map(|interval| now.plus_nanos(interval));
    }

    /// Notes the state of all instances.
    fn sample(&mut self, now: Timestamp) {
        for (number, candidate) in self.routers.current.candidates().iter().enumerate() {
            self.fleet.catch_up(now, number);
            let gauges = self.fleet.engines[number].gauges();
            let Gauges { waiting, running, kv_cache_usage, .. } = *gauges;
            let (instance, in_flight) = (candidate.id, candidate.in_flight);
            let sample =
                LoadSample { at: now, instance, waiting, running, kv_cache_usage, in_flight };
            self.samples.push(sample);
        }
        self.next_sample = Some(now.plus_nanos(self.sample_interval_ns));
    }

    /// The next router takes over.
    fn restart_router(&mut self, now: Timestamp) {
        self.routers.restart();
        // What was told to the one before does not reach this one.
        self.responses.retain(|(_, response)| !matches!(response, Response::Cache(..)));
        // The timetable stays: at whole multiples of the interval.
        self.next_reading =
            self.load_interval_ns.filter(|_| reads_load(&self.routers.current)).map(|interval| {
                Timestamp::from_nanos(now.as_nanos().div_ceil(interval).saturating_mul(interval))
            });
        for (number, load) in self.perfect_loads.iter_mut().enumerate() {
            self.fleet.catch_up(now, number);
            let engine = &self.fleet.engines[number];
            let present = load.told_anew(now, engine.gauges(), ended(engine));
            if let Some(present) = present
                && hears_every_load(&self.routers.current)
            {
                self.routers.current.observe_load(now, instance_id(number), present);
            }
        }
    }

    fn deliver_response(&mut self) {
        let Some((now, response)) = self.responses.pop_front() else { return };
        match response {
            Response::FirstToken { id, cached_tokens } => {
                let live = self.live[id.index()].as_mut().expect("it has not ended");
                live.first_token = Some(now);
                live.cached_tokens = cached_tokens;
                if live.router == self.routers.number {
                    self.routers.current.first_token(now, &live.ticket);
                }
            }
            Response::End(finished) => self.finish(now, &finished),
            Response::Cache(instance, events) => {
                for event in events {
                    self.routers.current.observe_cache(now, instance, cache_news(&event));
                }
            }
        }
    }

    fn finish(&mut self, now: Timestamp, finished: &Finished) {
        let request = &self.workload.requests()[finished.id.index()];
        let live = self.live[finished.id.index()].take().expect("it ends once");
        if live.router == self.routers.number {
            self.routers.current.end(now, live.ticket);
        }
        self.records.push(RequestRecord {
            id: request.id,
            session: request.session,
            turn: request.turn,
            instance: Some(live.instance),
            reason: live.reason,
            outcome: Outcome::Completed,
            arrival: live.arrival,
            scheduled: Some(finished.scheduled),
            first_token: live.first_token,
            end: now,
            prompt_tokens: request.prompt_tokens,
            cached_tokens: Some(TokenCount(live.cached_tokens)),
            predicted_cached_tokens: live.predicted_cached_tokens,
            output_tokens: TokenCount(finished.output_tokens),
            preemptions: finished.preemptions,
        });
        self.ended += 1;
        self.end = now;
        if let Some(next) = self.workload.next_turn(request.id)
            && let Some(due) =
                self.workload.requests()[next.index()].arrival.after(live.arrival, now)
        {
            self.schedule(due, Scheduled::Arrival(next));
        }
    }

    fn into_outcome(mut self) -> SimOutcome {
        assert_eq!(self.ended as usize, self.workload.requests().len(), "every request ends");
        assert_eq!(self.routers.current.in_flight(), 0, "nothing is left in flight");
        self.records.sort_unstable_by_key(|record| record.id);
        let end = self.end;
        // Engines may have had something to do still.
        self.samples.retain(|sample| sample.at < end);
        let measured = self.measured.take().unwrap_or_else(|| self.measured_by(end));
        let instances = (0..).zip(&self.fleet.engines).zip(measured.engines);
        let instances = instances.map(|((id, engine), (gauge_totals, inter_token_ns))| {
            let counters = *engine.counters();
            InstanceOutcome { id: InstanceId(id), counters, gauge_totals, inter_token_ns }
        });
        SimOutcome {
            instances: instances.collect(),
            measured_from: self.measured_from,
            measured_until: measured.until,
            end,
            in_flight_cov: measured.in_flight_cov,
            decision_log_hash: self.routers.decision_log_hash(),
            index_memory_bytes: self.routers.current.index_memory_bytes(),
            records: self.records,
            samples: self.samples,
        }
    }
}

#[cfg(test)]
mod tests;
