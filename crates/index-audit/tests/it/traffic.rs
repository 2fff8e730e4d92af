//! Conversations over a modelled instance, an index fed by its events, and the audit of that index.

use std::collections::BTreeMap;

use kvroute_index_audit::{Audit, AuditConfig, Cause, Expectation, Naming, Reported, Verdict};
use kvroute_types::{BlockHash, BlockSize, RequestId, Timestamp, TokenCount};
use kvroute_vllm_wire::{ExtraKeys, HashAlgo, KvEvent, LoraKey};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::instance::{Chain, Instance, Job};

/// Our tokenizer against the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenizerFault {
    None,
    /// One more token at each turn.
    OtherLengths,
    /// Every token has another id.
    OtherIds,
    /// One id in 64 is another.
    SomeOtherIds,
    /// Another id at the start of each turn, but for the system prompt.
    OtherChatTemplate,
}

/// What is asked of the instance, and what is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) ours: Naming,
    pub(crate) theirs: Naming,
    /// Of all requests, known to the server.
    pub(crate) their_keys: ExtraKeys,
    /// Of all requests, known to us.
    pub(crate) our_keys: ExtraKeys,
    pub(crate) tokenizer: TokenizerFault,
    /// Share of event batches that vanish.
    pub(crate) batches_lost: f64,
    pub(crate) tells_cached: bool,
    /// Whether the audit is told which blocks were removed.
    pub(crate) tells_removals: bool,
    pub(crate) concurrency: usize,
    /// Conversations that live at a time.
    pub(crate) sessions: usize,
    pub(crate) system_prompts: usize,
    pub(crate) blocks: usize,
    /// Share of arrivals that come from elsewhere, past us.
    pub(crate) others: f64,
    /// Share of requests that come as a burst of copies.
    pub(crate) bursts: f64,
    pub(crate) aborts: f64,
    pub(crate) by_bytes: bool,
}

pub(crate) fn naming() -> Naming {
    Naming { algo: HashAlgo::Sha256, block_size: BlockSize::default(), pythonhashseed: None }
}

pub(crate) fn salted() -> ExtraKeys {
    ExtraKeys { cache_salt: Some("pepper".to_owned()), ..ExtraKeys::default() }
}

pub(crate) fn lora(path: &str) -> ExtraKeys {
    let lora = LoraKey { name: "adapter".to_owned(), path: path.to_owned() };
    ExtraKeys { lora: Some(lora), ..ExtraKeys::default() }
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            ours: naming(),
            theirs: naming(),
            their_keys: ExtraKeys::default(),
            our_keys: ExtraKeys::default(),
            tokenizer: TokenizerFault::None,
            batches_lost: 0.0,
            tells_cached: true,
            tells_removals: true,
            concurrency: 8,
            sessions: 40,
            system_prompts: 4,
            blocks: 600,
            others: 0.0,
            bursts: 0.02,
            aborts: 0.02,
            by_bytes: false,
        }
    }
}

/// A conversation.
#[derive(Debug)]
struct Session {
    theirs: Chain,
    ours: Chain,
    turn: u32,
    is_busy: bool,
    /// Another client's.
    is_other: bool,
}

#[derive(Debug)]
enum Event {
    Step,
    /// A batch of KV events arrives.
    Batch(Vec<KvEvent>),
    /// An answer arrives to its end.
    Ended(Box<Job>),
    Abort(u32),
}

/// Everything at once, driven by virtual time.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) audit: Audit,
    rng: ChaCha8Rng,
    instance: Instance,
    /// Copies by hash.
    index: BTreeMap<u64, u32>,
    sessions: Vec<Session>,
    systems: Vec<Vec<u32>>,
    /// Session of each request under way.
    under_way: BTreeMap<u32, usize>,
    events: BTreeMap<(Timestamp, u64), Event>,
    event_count: u64,
    pub(crate) now: Timestamp,
    last_batch: Timestamp,
    /// Requests routed, those of others not counted.
    pub(crate) routed: u32,
    /// All requests.
    ids: u32,
    /// Sum of predictions since the last scrape.
    predicted: u64,
}

const MS: u64 = 1_000_000;
const STEP_NS: u64 = 50 * MS;
const SCRAPE_NS: u64 = 2_000 * MS;
const VOCABULARY: u32 = 32_000;
const SESSION_TOKENS_MAX: usize = 1_200;

impl World {
    pub(crate) fn new(scenario: Scenario, seed: u64) -> Self {
        Self::with_config(scenario, seed, AuditConfig::default())
    }

    pub(crate) fn with_config(scenario: Scenario, seed: u64, config: AuditConfig) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let systems = (0..scenario.system_prompts)
            .map(|_| {
                let len = rng.random_range(20..200);
                tokens(&mut rng, len)
            })
            .collect();
        let mut world = Self {
            audit: Audit::new(config, &scenario.ours),
            instance: Self::instance(&scenario),
            scenario,
            rng,
            index: BTreeMap::new(),
            sessions: Vec::new(),
            systems,
            under_way: BTreeMap::new(),
            events: BTreeMap::new(),
            event_count: 0,
            now: Timestamp::ZERO,
            last_batch: Timestamp::ZERO,
            routed: 0,
            ids: 0,
            predicted: 0,
        };
        world.push(Timestamp::ZERO, Event::Step);
        world
    }

    fn instance(scenario: &Scenario) -> Instance {
        let block_size = scenario.theirs.block_size.get() as usize;
        Instance::new(block_size, scenario.blocks * 16 / block_size, scenario.by_bytes)
    }

    /// Runs until `requests` more were routed; `check` is asked after each, and ends the run with `true`.
    pub(crate) fn run(&mut self, requests: u32, mut check: impl FnMut(&mut Self, Verdict) -> bool) {
        let end = self.routed + requests;
        while self.routed < end {
            let before = self.routed;
            self.advance();
            if self.routed > before {
                let verdict = self.audit.verdict(self.now);
                if check(self, verdict) {
                    return;
                }
            }
        }
    }

    /// The verdict after `requests` more.
    pub(crate) fn verdict_after(&mut self, requests: u32) -> Verdict {
        self.run(requests, |_, _| false);
        self.audit.verdict(self.now)
    }

    /// Requests until the first doubt, at most `requests`, and the doubt.
    pub(crate) fn first_doubt(&mut self, requests: u32) -> (u32, Option<Cause>) {
        let start = self.routed;
        self.run(requests, |_, verdict| verdict.cause().is_some());
        (self.routed - start, self.audit.verdict(self.now).cause())
    }

    /// Waits until nothing is under way, then begins the instance's next life with other settings.
    pub(crate) fn restart(&mut self, change: impl FnOnce(&mut Scenario)) {
        let concurrency = std::mem::take(&mut self.scenario.concurrency);
        while !self.under_way.is_empty() || !self.instance.is_idle() || self.events.len() > 1 {
            self.advance();
        }
        self.scenario.concurrency = concurrency;
        change(&mut self.scenario);
        self.instance = Self::instance(&self.scenario);
        self.index.clear();
        self.audit.cleared(self.now);
        self.sessions.clear();
    }

    /// The subscription finds that events are missing for good.
    pub(crate) fn lose(&mut self) {
        self.index.clear();
        self.audit.lost(self.now);
    }

    fn push(&mut self, at: Timestamp, event: Event) {
        self.event_count += 1;
        self.events.insert((at, self.event_count), event);
    }

    fn advance(&mut self) {
        let ((now, _), event) = self.events.pop_first().expect("a step is always due");
        self.now = now;
        match event {
            Event::Step => self.step(),
            Event::Batch(batch) => self.heard(&batch),
            Event::Ended(job) => self.ended(*job),
            Event::Abort(id) => self.abort(id),
        }
    }

    fn step(&mut self) {
        while self.under_way.len() < self.scenario.concurrency && self.rng.random_bool(0.7) {
            self.arrive();
        }
        let (ended, batch) = self.instance.step();
        if !batch.is_empty() && !self.rng.random_bool(self.scenario.batches_lost) {
            let delay = self.rng.random_range(0..40 * MS);
            self.last_batch = self.last_batch.max(self.now.plus_nanos(delay));
            self.push(self.last_batch, Event::Batch(batch));
        }
        for job in ended {
            let delay = self.rng.random_range(0..40 * MS);
            self.push(self.now.plus_nanos(delay), Event::Ended(Box::new(job)));
        }
        if !self.scenario.tells_cached && self.now.as_nanos().is_multiple_of(SCRAPE_NS) {
            let predicted = std::mem::take(&mut self.predicted);
            let hits = std::mem::take(&mut self.instance.hit_tokens);
            self.audit.counted(self.now, predicted, hits);
        }
        self.push(self.now.plus_nanos(STEP_NS), Event::Step);
    }

    /// A turn of some session begins; a burst begins several sessions with one prompt.
    fn arrive(&mut self) {
        if self.rng.random_bool(self.scenario.bursts) {
            let prompt = tokens(&mut self.rng, 100);
            for _ in 0..4 {
                let session = self.session(&prompt, false);
                self.turn(session);
            }
            return;
        }
        let idle: Vec<usize> =
            (0..self.sessions.len()).filter(|at| !self.sessions[*at].is_busy).collect();
        let is_new = self.sessions.len() < self.scenario.sessions || self.rng.random_bool(0.1);
        let session = match idle.choose(&mut self.rng) {
            Some(session) if !is_new => *session,
            _ => {
                let is_other = self.rng.random_bool(self.scenario.others);
                let system = self.system_prompt(is_other);
                self.session(&system, is_other)
            }
        };
        self.turn(session);
    }

    fn system_prompt(&mut self, is_other: bool) -> Vec<u32> {
        if is_other {
            return tokens(&mut self.rng, 100);
        }
        self.systems.choose(&mut self.rng).cloned().unwrap_or_default()
    }

    /// A new session, in the place of an old one if there are many.
    fn session(&mut self, prompt: &[u32], is_other: bool) -> usize {
        let scenario = &self.scenario;
        let their_keys = if is_other { ExtraKeys::default() } else { scenario.their_keys.clone() };
        let mut theirs = Chain::new(&scenario.theirs, their_keys);
        let mut ours = Chain::new(&scenario.ours, scenario.our_keys.clone());
        theirs.extend(prompt);
        ours.extend(&our_tokens(scenario.tokenizer, 0, prompt));
        let session = Session { theirs, ours, turn: 0, is_busy: false, is_other };
        if self.sessions.len() >= scenario.sessions {
            let at = self.rng.random_range(0..self.sessions.len());
            if !self.sessions[at].is_busy {
                self.sessions[at] = session;
                return at;
            }
        }
        self.sessions.push(session);
        self.sessions.len() - 1
    }

    fn turn(&mut self, at: usize) {
        if self.sessions[at].theirs.tokens.len() > SESSION_TOKENS_MAX {
            let is_other = self.sessions[at].is_other;
            let system = self.system_prompt(is_other);
            let new = self.session(&system, is_other);
            self.sessions.swap(at, new);
            if self.sessions[at].is_busy {
                return;
            }
        }
        let new = self.rng.random_range(1..150);
        let new = tokens(&mut self.rng, new);
        let session = &mut self.sessions[at];
        session.is_busy = true;
        session.turn += 1;
        session.theirs.extend(&new);
        session.ours.extend(&our_tokens(self.scenario.tokenizer, session.turn, &new));
        self.ids += 1;
        let id = self.ids;
        self.under_way.insert(id, at);
        let output = self.rng.random_range(1..60);
        let output = tokens(&mut self.rng, output);
        let session = &self.sessions[at];
        let job = Job::new(id, !session.is_other, session.theirs.clone(), output.into());
        if !session.is_other {
            self.routed += 1;
            let blocks: Vec<BlockHash> = session.ours.hashes().map(BlockHash).collect();
            let prompt_tokens = session.ours.tokens.len();
            let matched = blocks.iter().take_while(|hash| self.index.contains_key(&hash.0)).count();
            let block_size = self.scenario.ours.block_size.get() as usize;
            let predicted =
                (matched * block_size).min((prompt_tokens - 1) / block_size * block_size);
            self.predicted += predicted as u64;
            let expected = Expectation {
                request: RequestId(id),
                prompt_tokens: count(prompt_tokens),
                blocks: &blocks,
                predicted_cached_tokens: count(predicted),
                has_extra_keys: self.scenario.our_keys != ExtraKeys::default(),
            };
            self.audit.routed(self.now, &expected);
            if self.rng.random_bool(self.scenario.aborts) {
                let delay = self.rng.random_range(0..400 * MS);
                self.push(self.now.plus_nanos(delay), Event::Abort(id));
            }
        }
        self.instance.waiting.push_back(job);
    }

    fn heard(&mut self, batch: &[KvEvent]) {
        for event in batch {
            match event {
                KvEvent::BlockStored(stored) => {
                    for hash in stored.hashes() {
                        *self.index.entry(hash).or_insert(0) += 1;
                    }
                    self.audit.stored(self.now, stored);
                }
                KvEvent::BlockRemoved(removed) => {
                    let mut unknown = 0;
                    for hash in removed.hashes() {
                        match self.index.get_mut(&hash) {
                            None => unknown += 1,
                            Some(1) => {
                                self.index.remove(&hash);
                            }
                            Some(copies) => *copies -= 1,
                        }
                    }
                    self.audit.removed(unknown);
                    if self.scenario.tells_removals {
                        self.audit.evicted(self.now, removed);
                    }
                }
                KvEvent::AllBlocksCleared => unreachable!("the model does not reset"),
            }
        }
    }

    fn ended(&mut self, job: Job) {
        let id = job.id;
        let Some(at) = self.under_way.remove(&id) else { return };
        let reported = Reported {
            prompt_tokens: count(job.prompt_tokens),
            cached_tokens: self.scenario.tells_cached.then(|| count(job.cached_tokens)),
        };
        self.audit.ended(self.now, RequestId(id), Some(reported));
        let output = job.chain.tokens[job.prompt_tokens..].to_vec();
        let session = &mut self.sessions[at];
        session.is_busy = false;
        session.theirs = job.chain;
        session.ours.extend(&our_tokens(self.scenario.tokenizer, session.turn, &output));
    }

    fn abort(&mut self, id: u32) {
        if let Some(at) = self.under_way.remove(&id) {
            self.instance.abort(id);
            self.audit.dropped(RequestId(id));
            self.sessions[at].is_busy = false;
        }
    }
}

fn count(tokens: usize) -> TokenCount {
    TokenCount(u32::try_from(tokens).expect("it fits"))
}

fn tokens(rng: &mut ChaCha8Rng, len: usize) -> Vec<u32> {
    (0..len).map(|_| rng.random_range(0..VOCABULARY)).collect()
}

/// What our tokenizer makes of a message of these tokens.
fn our_tokens(fault: TokenizerFault, turn: u32, tokens: &[u32]) -> Vec<u32> {
    let mut ours = tokens.to_vec();
    match fault {
        TokenizerFault::OtherLengths => ours.insert(0, VOCABULARY),
        TokenizerFault::OtherIds => ours.iter_mut().for_each(|token| *token += 1),
        TokenizerFault::SomeOtherIds => {
            ours.iter_mut().filter(|token| **token % 64 == 0).for_each(|token| *token += 1);
        }
        TokenizerFault::OtherChatTemplate if turn > 0 => {
            if let Some(first) = ours.first_mut() {
                *first += 1;
            }
        }
        TokenizerFault::None | TokenizerFault::OtherChatTemplate => {}
    }
    ours
}
