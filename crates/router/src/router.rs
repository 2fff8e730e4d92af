//! The router core itself.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::Duration;

use kvroute_cache_index::{ConfigError, ExactIndex, SnapshotError};
use kvroute_policy::{
    BlockNames, Candidate, Decision, Event, Needs, Policy, RequestView, Scores, prefill_work,
};
use kvroute_types::{InstanceId, LoadSnapshot, Timestamp, TokenCount, mix64};

use crate::channel::{Channel, Refresh};
use crate::config::{DirectorySource, InvalidRouterConfig, RouterConfig};
use crate::directory::{CacheNews, Directory};
use crate::in_flight::{Flight, Flights, Ticket};
use crate::prefill::{PrefillLine, PrefillRate};
use crate::receipt::{RouteReceipt, ScoredInstance};

/// Marks an id that is not in the table.
const ABSENT: u32 = u32::MAX;

/// Instances, signals, work in flight and one policy: events in, decisions out.
pub struct Router {
    config: RouterConfig,
    policy: Box<dyn Policy>,
    needs: Needs,
    seed: u64,
    /// Sorted by id; what the policy sees.
    candidates: Vec<Candidate>,
    /// Beside each candidate.
    instances: Vec<Instance>,
    /// Position of each instance id in the table, or [`ABSENT`].
    positions: Vec<u32>,
    flights: Flights,
    directory: Option<Directory>,
    load_channel: Channel<(InstanceId, LoadSnapshot)>,
    load_expiry: Option<Duration>,
    /// When load readings took effect, oldest first; kept only if they expire.
    readings: VecDeque<(Timestamp, InstanceId)>,
    /// Positions whose match fields were set by the latest decision.
    matched: Vec<usize>,
    scores: Scores,
    decisions: u64,
    decision_log_hash: u64,
    /// Sum of the in-flight counts and of their squares.
    in_flight_sums: (u64, u64),
    prefill_rate: PrefillRate,
}

/// What the router keeps of an instance beside what the policy sees.
#[derive(Debug, Default)]
struct Instance {
    /// Flights sent after the latest reading, oldest first, as (slot, generation); ended ones are dropped lazily.
    unseen: VecDeque<(u32, u32)>,
    /// Live flights among them.
    unseen_count: u32,
    /// Prompts sent there whose first token was not seen.
    prefills: PrefillLine,
    /// How fast it prefills.
    prefill_rate: PrefillRate,
    /// When the latest reading took effect.
    read: Timestamp,
}

/// A decision, booked.
#[derive(Debug)]
pub struct Routed {
    /// Give it back with [`Router::end`].
    pub ticket: Ticket,
    /// Where the request goes.
    pub instance: InstanceId,
    /// Why.
    pub reason: kvroute_policy::Reason,
    /// Prompt tokens believed cached there; `None` if no directory is kept.
    pub predicted_cached_tokens: Option<TokenCount>,
    /// Prompt tokens cached there by the instance's own account, whether it is believed or not; `None` if the directory
    /// does not listen, or the request's blocks are not named as the engine names them.
    pub told_cached_tokens: Option<TokenCount>,
    /// The receipt, if receipts are on.
    pub receipt: Option<RouteReceipt>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router")
            .field("policy", &self.policy.name())
            .field("candidates", &self.candidates)
            .finish_non_exhaustive()
    }
}

impl Router {
    /// A router without instances. `seed` feeds the signal losses; the policy has its own.
    ///
    /// # Errors
    /// [`InvalidRouterConfig`] names the part and the remedy.
    pub fn new(
        config: RouterConfig,
        policy: Box<dyn Policy>,
        seed: u64,
    ) -> Result<Self, InvalidRouterConfig> {
        config.index.validate().map_err(InvalidRouterConfig::Index)?;
        config.load.validate().map_err(InvalidRouterConfig::Load)?;
        let needs = policy.needs();
        // Checked even if this policy does without it: the next one may not.
        let directory = new_directory(&config, seed).map_err(InvalidRouterConfig::Directory)?;
        Ok(Self {
            needs,
            seed,
            candidates: Vec::new(),
            instances: Vec::new(),
            positions: Vec::new(),
            flights: Flights::default(),
            directory: Some(directory).filter(|_| needs.index || config.always_index),
            load_channel: Channel::new(&config.load, mix64(seed ^ 1)),
            load_expiry: config.load.expiry(),
            readings: VecDeque::new(),
            matched: Vec::new(),
            scores: Scores::new(config.receipts),
            decisions: 0,
            decision_log_hash: 0,
            in_flight_sums: (0, 0),
            prefill_rate: PrefillRate::default(),
            policy,
            config,
        })
    }

    /// Name of the policy.
    pub fn policy_name(&self) -> &'static str {
        self.policy.name()
    }

    /// Exchanges the policy between two decisions. The instances, the work in flight and the signals stay.
    ///
    /// The cache directory stays too if it is kept under both policies. Otherwise it is dropped, or begins empty: what
    /// was routed while there was none is not known.
    ///
    /// # Panics
    /// Never: [`Router::new`] has checked what a directory is built from.
    pub fn set_policy(&mut self, policy: Box<dyn Policy>) {
        self.policy = policy;
        self.needs = self.policy.needs();
        if !(self.needs.index || self.config.always_index) {
            self.directory = None;
            self.forget_matches();
        } else if self.directory.is_none() {
            let directory = new_directory(&self.config, self.seed);
            self.directory = Some(directory.expect("checked by Router::new"));
        }
        self.policy.observe(Event::MembershipChanged { candidates: &self.candidates });
    }

    /// Signals the policy reads; no one needs to bring the others.
    pub const fn needs(&self) -> Needs {
        self.needs
    }

    /// How often the driver should read the instances' load: at every change, on an interval, or never.
    pub const fn load_refresh(&self) -> Refresh {
        self.config.load.refresh
    }

    /// The table, sorted by instance id, as of the latest call.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Requests in flight on all instances.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Decisions made.
    pub const fn decisions(&self) -> u64 {
        self.decisions
    }

    /// Fingerprint of all decisions so far: which request went where, and why, in order.
    pub const fn decision_log_hash(&self) -> u64 {
        self.decision_log_hash
    }

    /// Whether a cache directory is kept, so that requests need their block hashes.
    pub const fn keeps_index(&self) -> bool {
        self.directory.is_some()
    }

    /// Whether the directory learns from [`Router::observe_cache`], so that somebody must bring what instances tell of
    /// their caches.
    pub fn hears_cache_events(&self) -> bool {
        self.told().is_some()
    }

    /// What the instances have told of their caches; `None` if nobody listens.
    pub fn told(&self) -> Option<&ExactIndex> {
        self.directory.as_ref().and_then(Directory::told)
    }

    /// Says whether what an instance tells of its cache counts; until then it does. If not, it is judged by what was
    /// routed there, from now on. It is listened to all the same.
    pub fn set_believed(&mut self, id: InstanceId, believed: bool) {
        if let Some(directory) = &mut self.directory {
            directory.set_believed(id, believed);
        }
    }

    /// Writes what the instances have told of their caches, so that another router can [`restore`](Self::restore) it:
    /// as of `taken_at`, a time that means something to that one too. Nothing if nobody listens.
    ///
    /// # Errors
    /// If writing fails.
    pub fn snapshot(&self, taken_at: Timestamp, out: impl Write) -> io::Result<()> {
        self.directory.as_ref().map_or(Ok(()), |directory| directory.snapshot(taken_at, out))
    }

    /// Takes a snapshot as told by the instances, in place of all they have told; ids are those of the router that wrote
    /// it. Does nothing if nobody listens.
    ///
    /// # Errors
    /// If it is damaged, of another version, or larger than the budget; nothing has changed then.
    pub fn restore(&mut self, snapshot: impl Read) -> Result<(), SnapshotError> {
        let config = &self.config;
        self.directory.as_mut().map_or(Ok(()), |directory| directory.restore(config, snapshot))
    }

    /// Bytes the cache directory takes; 0 without one.
    pub fn index_memory_bytes(&self) -> usize {
        self.directory.as_ref().map_or(0, Directory::memory_bytes)
    }

    /// Momentary spread of the in-flight counts: their standard deviation over their mean. `None` if nothing is in
    /// flight.
    pub fn in_flight_cov(&self) -> Option<f64> {
        let (sum, squares) = self.in_flight_sums;
        if sum == 0 {
            return None;
        }
        let n = self.candidates.len() as f64;
        let mean = sum as f64 / n;
        Some((squares as f64 / n - mean * mean).max(0.0).sqrt() / mean)
    }

    /// Adds an instance that nothing is known of. Adding one twice changes nothing.
    pub fn add_instance(&mut self, id: InstanceId) {
        if self.position(id).is_some() {
            return;
        }
        let at = self.candidates.partition_point(|candidate| candidate.id < id);
        self.candidates.insert(at, Candidate::new(id));
        self.instances.insert(at, Instance::default());
        self.membership_changed();
    }

    /// Takes an instance out and forgets what it held. Its requests in flight may still end; their tickets stay good.
    pub fn remove_instance(&mut self, id: InstanceId) {
        let Some(at) = self.position(id) else { return };
        let gone = self.candidates.remove(at);
        self.instances.remove(at);
        let count = u64::from(gone.in_flight);
        self.in_flight_sums.0 -= count;
        self.in_flight_sums.1 -= count * count;
        if let Some(directory) = &mut self.directory {
            directory.forget(id);
            // A doubt about one that is gone would have the history looked up for every request.
            directory.set_believed(id, true);
        }
        self.membership_changed();
    }

    /// Says whether an instance may be chosen. Unknown ids are ignored.
    pub fn set_eligible(&mut self, id: InstanceId, eligible: bool) {
        let Some(at) = self.position(id) else { return };
        if self.candidates[at].eligible != eligible {
            self.candidates[at].eligible = eligible;
            self.changed(at);
        }
    }

    /// The instance lost its cache (it restarted): forgets what it held.
    pub fn instance_restarted(&mut self, id: InstanceId) {
        if let Some(directory) = &mut self.directory {
            directory.forget(id);
        }
    }

    /// A load reading was taken at `now`; the policy sees it after the signal's delay, or never if it is lost.
    ///
    /// The signal's refresh is the driver's: it reads at every change or on the interval of
    /// [`Router::load_refresh`].
    pub fn observe_load(&mut self, now: Timestamp, id: InstanceId, reading: LoadSnapshot) {
        let Some(at) = self.load_channel.effective_at(now) else { return };
        if at <= now && self.load_channel.is_empty() {
            self.apply_load(at, id, reading);
        } else {
            self.load_channel.send(at, (id, reading));
        }
    }

    /// An instance's cache changed, as it told at `now`; what one instance tells comes in order. The policy sees it in due
    /// time, or never if it is lost; a directory that does not learn from such news ignores it.
    pub fn observe_cache(&mut self, now: Timestamp, id: InstanceId, news: CacheNews) {
        if let Some(directory) = &mut self.directory {
            directory.observe_cache(now, id, news);
        }
    }

    /// Tells the true time to first token that the next request would have on an instance
    /// ([`Candidate::true_ttft`]). It is forgotten with the next decision.
    pub fn foretell_ttft(&mut self, id: InstanceId, ttft: Duration) {
        if let Some(at) = self.position(id) {
            self.candidates[at].true_ttft = Some(ttft);
        }
    }

    /// Decides where the request goes, and books it there. `None` if no instance may be chosen.
    pub fn route(&mut self, now: Timestamp, request: &RequestView<'_>) -> Option<Routed> {
        self.route_except(now, request, &[])
    }

    /// [`Router::route`] without the instances in `excluded`, for another try after a failure.
    pub fn route_except(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        excluded: &[InstanceId],
    ) -> Option<Routed> {
        self.catch_up(now);
        self.fill_matches(now, request);
        let restored: Vec<InstanceId> = excluded
            .iter()
            .copied()
            .filter(|&id| self.position(id).is_some_and(|at| self.candidates[at].eligible))
            .collect();
        for &id in &restored {
            self.set_eligible(id, false);
        }
        self.fill_prefills(now);
        self.scores.clear();
        let decision = self.policy.choose(now, request, &self.candidates, &mut self.scores);
        for &id in &restored {
            self.set_eligible(id, true);
        }
        if self.needs.true_ttft {
            for candidate in &mut self.candidates {
                candidate.true_ttft = None;
            }
        }
        decision.map(|decision| self.book(now, request, decision))
    }

    /// The request's first output token was seen: its prefill is done. Saying so again changes nothing.
    pub fn first_token(&mut self, now: Timestamp, ticket: &Ticket) {
        let flight = self.flights.get_mut(ticket.slot);
        if std::mem::replace(&mut flight.is_decoding, true) {
            return;
        }
        let Flight { instance, prompt_tokens, uncached_tokens, generation, .. } = *flight;
        let Some(at) = self.position(instance) else { return };
        let prefilled = self.instances[at].prefills.first_token(now, (ticket.slot, generation));
        if let Some((work, taken_s)) = prefilled {
            self.prefill_rate.learn(work, taken_s);
            self.instances[at].prefill_rate.learn(work, taken_s);
        }
        let candidate = &mut self.candidates[at];
        candidate.in_flight_uncached_tokens -= u64::from(uncached_tokens);
        candidate.in_flight_decoding += 1;
        candidate.in_flight_decoding_tokens += u64::from(prompt_tokens);
    }

    /// The request ended, however it ended.
    pub fn end(&mut self, now: Timestamp, ticket: Ticket) {
        let slot = ticket.slot;
        let flight = self.flights.remove(ticket);
        let Some(at) = self.position(flight.instance) else { return };
        let candidate = &mut self.candidates[at];
        let count = u64::from(candidate.in_flight);
        self.in_flight_sums.0 -= 1;
        self.in_flight_sums.1 -= 2 * count - 1;
        candidate.in_flight -= 1;
        let prompt_tokens = u64::from(flight.prompt_tokens);
        candidate.in_flight_prompt_tokens -= prompt_tokens;
        if flight.is_decoding {
            candidate.in_flight_decoding -= 1;
            candidate.in_flight_decoding_tokens -= prompt_tokens;
        } else {
            candidate.in_flight_uncached_tokens -= u64::from(flight.uncached_tokens);
            self.instances[at].prefills.remove(now, (slot, flight.generation));
        }
        self.instances[at].unseen_count -= u32::from(flight.is_unseen);
        self.unseen_changed(at);
    }

    /// Lets signals take effect, and expire, by `now`.
    fn catch_up(&mut self, now: Timestamp) {
        if let Some(directory) = &mut self.directory {
            directory.catch_up(now);
        }
        while let Some((at, (id, reading))) = self.load_channel.receive(now) {
            self.apply_load(at, id, reading);
        }
        let Some(expiry) = self.load_expiry else { return };
        while let Some((read, id)) = self.readings.pop_front_if(|(read, _)| *read + expiry <= now) {
            let Some(at) = self.position(id) else { continue };
            if self.instances[at].read == read {
                self.candidates[at].load = None;
                self.unseen_changed(at);
            }
        }
    }

    fn apply_load(&mut self, at: Timestamp, id: InstanceId, reading: LoadSnapshot) {
        let Some(position) = self.position(id) else { return };
        let instance = &mut self.instances[position];
        while let Some(&flight) = instance.unseen.front() {
            if let Some(flight) = self.flights.unseen(flight) {
                if flight.sent > reading.as_of {
                    break;
                }
                flight.is_unseen = false;
                instance.unseen_count -= 1;
            }
            instance.unseen.pop_front();
        }
        instance.read = at;
        if self.load_expiry.is_some() {
            self.readings.push_back((at, id));
        }
        self.candidates[position].load = Some(reading);
        self.unseen_changed(position);
    }

    /// Says of each instance what it has presumably left to prefill, and how fast it does.
    fn fill_prefills(&mut self, now: Timestamp) {
        if self.needs.prefill_left {
            let fleet = self.prefill_rate.get();
            for (candidate, beside) in self.candidates.iter_mut().zip(&self.instances) {
                let (rate, speed) = beside.prefill_rate.against(fleet);
                candidate.prefill_left = beside.prefills.left(now, rate);
                candidate.prefill_speed = speed;
            }
        }
    }

    fn fill_matches(&mut self, now: Timestamp, request: &RequestView<'_>) {
        self.forget_matches();
        let block_tokens = self.block_tokens(request);
        let reusable_blocks = reusable_blocks(request, block_tokens);
        let Some(directory) = &mut self.directory else { return };
        let (positions, candidates, matched) =
            (&self.positions, &mut self.candidates, &mut self.matched);
        let position = |id: InstanceId| {
            positions.get(id.index()).copied().filter(|&at| at != ABSENT).map(|at| at as usize)
        };
        directory.matches(now, request, |id, blocks| {
            if let Some(at) = position(id) {
                candidates[at].matched_blocks = blocks;
                candidates[at].matched_tokens = blocks.min(reusable_blocks) * block_tokens;
                matched.push(at);
            }
        });
        let (prefix, session) = directory.last_routes(now, request);
        if let Some(at) = prefix.and_then(position) {
            candidates[at].is_last_for_prefix = true;
            matched.push(at);
        }
        if let Some(at) = session.and_then(position) {
            candidates[at].is_last_for_session = true;
            matched.push(at);
        }
    }

    /// Takes back what the latest decision filled in.
    fn forget_matches(&mut self) {
        for at in self.matched.drain(..) {
            let candidate = &mut self.candidates[at];
            candidate.matched_blocks = 0;
            candidate.matched_tokens = 0;
            candidate.is_last_for_prefix = false;
            candidate.is_last_for_session = false;
        }
    }

    fn book(&mut self, now: Timestamp, request: &RequestView<'_>, decision: Decision) -> Routed {
        let Decision { position, reason } = decision;
        let candidate = &self.candidates[position];
        let instance = candidate.id;
        let predicted = candidate.matched_tokens;
        let told_blocks = self.directory.as_ref().and_then(|it| it.told_blocks(request, instance));
        let block_tokens = self.block_tokens(request);
        let told = told_blocks.map(|blocks| {
            TokenCount(blocks.min(reusable_blocks(request, block_tokens)) * block_tokens)
        });
        let receipt = self.config.receipts.then(|| self.receipt(now, request, decision));

        self.decisions += 1;
        let what = u64::from(request.id.0) << 32 | u64::from(instance.0);
        self.decision_log_hash = mix64(self.decision_log_hash ^ what) ^ mix64(reason as u64);
        if let Some(directory) = &mut self.directory {
            directory.record(now, instance, request);
        }
        let prompt_tokens = request.prompt_tokens.0;
        let uncached_tokens = prompt_tokens - predicted;
        let flight = Flight {
            instance,
            sent: now,
            prompt_tokens,
            uncached_tokens,
            is_decoding: false,
            is_unseen: true,
            generation: 0,
        };
        let slot = self.flights.insert(flight);
        let beside = &mut self.instances[position];
        // Ended flights leave the front at once, so a signal that never comes costs no memory.
        while beside.unseen.front().is_some_and(|&front| self.flights.unseen(front).is_none()) {
            beside.unseen.pop_front();
        }
        let flight = (slot, self.flights.generation(slot));
        beside.unseen.push_back(flight);
        beside.unseen_count += 1;
        beside.prefills.push(now, flight, prefill_work(uncached_tokens, predicted));
        let candidate = &mut self.candidates[position];
        self.in_flight_sums.0 += 1;
        self.in_flight_sums.1 += 2 * u64::from(candidate.in_flight) + 1;
        candidate.in_flight += 1;
        candidate.in_flight_uncached_tokens += u64::from(uncached_tokens);
        candidate.in_flight_prompt_tokens += u64::from(prompt_tokens);
        candidate.last_chosen = self.decisions;
        self.unseen_changed(position);
        Routed {
            ticket: Ticket { slot, request: request.id },
            instance,
            reason,
            predicted_cached_tokens: self.directory.is_some().then_some(TokenCount(predicted)),
            told_cached_tokens: told,
            receipt,
        }
    }

    /// Tokens that a block of the request stands for.
    fn block_tokens(&self, request: &RequestView<'_>) -> u32 {
        match request.block_names {
            BlockNames::Engine => self.config.block_size.get(),
            BlockNames::Text => self.config.text_block_size.get(),
        }
    }

    fn receipt(
        &self,
        now: Timestamp,
        request: &RequestView<'_>,
        decision: Decision,
    ) -> RouteReceipt {
        let scores = self.scores.as_slice();
        let candidates = self.candidates.iter().map(|candidate| ScoredInstance {
            instance: candidate.id,
            eligible: candidate.eligible,
            score: scores.iter().find(|(id, _)| *id == candidate.id).map(|&(_, score)| score),
            matched_blocks: candidate.matched_blocks,
            matched_by: self.matched_by(request, candidate.id),
            prefill_left: self.needs.prefill_left.then_some(candidate.prefill_left),
            prefill_speed: self.needs.prefill_left.then_some(candidate.prefill_speed),
            in_flight: candidate.in_flight,
            waiting: candidate.load.map(|load| load.waiting),
            running: candidate.load.map(|load| load.running),
            kv_cache_usage: candidate
                .load
                .filter(|_| self.needs.kv_cache_usage)
                .map(|load| load.kv_cache_usage),
            load_age: candidate.load.map(|load| now.since(load.as_of)),
        });
        let updated = self.directory.as_ref().and_then(Directory::updated);
        RouteReceipt {
            request: request.id,
            at: now,
            policy: self.policy.name(),
            instance: self.candidates[decision.position].id,
            reason: decision.reason,
            index_age: updated.map(|updated| now.since(updated)),
            candidates: candidates.collect(),
        }
    }

    /// From what is known which of a request's blocks an instance holds; `None` without a directory.
    pub fn matched_by(&self, request: &RequestView<'_>, id: InstanceId) -> Option<DirectorySource> {
        self.directory.as_ref().map(|directory| directory.source_for(request, id))
    }

    /// Brings `unseen_in_flight` up to date and tells the policy.
    fn unseen_changed(&mut self, position: usize) {
        let candidate = &mut self.candidates[position];
        candidate.unseen_in_flight = match candidate.load {
            Some(_) => self.instances[position].unseen_count,
            None => candidate.in_flight,
        };
        self.changed(position);
    }

    fn changed(&mut self, position: usize) {
        self.policy.observe(Event::CandidateChanged { candidates: &self.candidates, position });
    }

    fn membership_changed(&mut self) {
        // Positions have moved, so all of them.
        self.matched.clear();
        for candidate in &mut self.candidates {
            candidate.matched_blocks = 0;
            candidate.matched_tokens = 0;
            candidate.is_last_for_prefix = false;
            candidate.is_last_for_session = false;
        }
        self.positions.fill(ABSENT);
        let ids = self.candidates.last().map_or(0, |last| last.id.index() + 1);
        self.positions.resize(ids.max(self.positions.len()), ABSENT);
        for (at, candidate) in (0..).zip(&self.candidates) {
            self.positions[candidate.id.index()] = at;
        }
        self.policy.observe(Event::MembershipChanged { candidates: &self.candidates });
    }

    fn position(&self, id: InstanceId) -> Option<usize> {
        let at = *self.positions.get(id.index())?;
        (at != ABSENT).then_some(at as usize)
    }
}

/// Most leading blocks of the prompt that spare the engine work if cached: it computes the last token at least (R24), and
/// so never finds the whole prompt cached.
const fn reusable_blocks(request: &RequestView<'_>, block_tokens: u32) -> u32 {
    request.prompt_tokens.0.saturating_sub(1) / block_tokens
}

fn new_directory(config: &RouterConfig, seed: u64) -> Result<Directory, ConfigError> {
    Directory::new(config, mix64(seed))
}
