//! A recording of what requests, one at a time, did to a real vLLM's prefix cache, and the engine model's run of the same.
//!
//! `scripts/real_vllm/record_differential.py` makes recordings and describes their form. The model is given prompt and
//! output ids, the settings and the limits of each request; everything else it must find out itself.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;

use kvroute_engine::{
    CacheEvent, Counters, Engine, EngineConfig, EngineOutput, EngineRequest, FinishReason,
    SchedulingPolicy,
};
use kvroute_profile::LatencyProfile;
use kvroute_types::{BlockChain, BlockKey, BlockSize, RequestId, Timestamp};
use kvroute_vllm_wire::{BlockDigest, BlockHasher, ExtraKeys, HashAlgo, none_hash};
use serde::Deserialize;

/// First bytes of a file compressed with Zstandard.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Requests to a real vLLM, and what came of them.
#[derive(Clone, Debug)]
pub(crate) struct Recording {
    pub(crate) settings: Settings,
    pub(crate) requests: Vec<Recorded>,
}

/// The recorded instance's settings, under vLLM's names.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "they mirror vLLM's switches")]
pub(crate) struct Settings {
    /// vLLM's version.
    vllm: String,
    block_size: u32,
    num_gpu_blocks: u32,
    max_model_len: u32,
    prefix_caching_hash_algo: String,
    int_block_hashes: bool,
    max_num_seqs: u32,
    max_num_batched_tokens: u32,
    enable_chunked_prefill: bool,
    long_prefill_token_threshold: u32,
    long_prefill_token_threshold_adaptive: bool,
    scheduler_reserve_full_isl: bool,
    watermark: f64,
    policy: SchedulingPolicy,
    pub(crate) async_scheduling: bool,
    /// Of the recorded requests.
    seed: u64,
    requests: usize,
}

/// One request, and what vLLM did.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    /// Prompt and output ids.
    tokens: Vec<u32>,
    prompt_tokens: u32,
    max_tokens: u32,
    salt: Option<String>,
    is_chat: bool,
    skip_read: bool,
    /// Whether the cache was emptied before it.
    reset: bool,
    pub(crate) outcome: Outcome,
}

/// What can be seen of one request from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    output_tokens: u32,
    finish: FinishReason,
    pub(crate) cached_tokens: u32,
    /// `None` where vLLM does not say.
    created_cache_tokens: Option<u64>,
    pub(crate) counters: Increments,
    /// In order; each with the events of one step.
    pub(crate) batches: Vec<Vec<Event>>,
}

/// By how much a request raised the instance's counters; the names are those of [`Counters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Increments {
    pub(crate) queries: u64,
    pub(crate) hits: u64,
    prompt_tokens: u64,
    prompt_tokens_cached: u64,
    prompt_tokens_computed: u64,
    generation_tokens: u64,
    finished_stop: u64,
    finished_length: u64,
    preemptions: u64,
    iterations: u64,
    iteration_tokens: u64,
}

/// A KV event; hashes in hex.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum Event {
    Stored { stored: Vec<String>, parent: Option<String> },
    Removed { removed: Vec<String> },
    Cleared { cleared: bool },
}

/// A request's line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: (Option<usize>, usize, Vec<u32>),
    output: Vec<u32>,
    api: String,
    max_tokens: u32,
    salt: Option<String>,
    stop: bool,
    skip_read: bool,
    reset: bool,
    finish: String,
    usage: Usage,
    counters: Increments,
    batches: Vec<Vec<Event>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Usage {
    cached_tokens: u32,
    created_cache_tokens: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstLine {
    settings: Settings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LastLine {
    end: usize,
}

impl Recording {
    /// Reads a file of JSON lines, plain or compressed with Zstandard.
    ///
    /// # Errors
    /// If it cannot be read, is no recording, or ends early.
    pub(crate) fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut bytes = std::fs::read(path)?;
        if bytes.starts_with(&ZSTD_MAGIC) {
            bytes = zstd::decode_all(&bytes[..])?;
        }
        let text = String::from_utf8(bytes)?;
        let mut lines = text.lines();
        let first = lines.next().ok_or("the recording is empty")?;
        let FirstLine { settings } = serde_json::from_str(first)?;
        let last = lines.next_back().ok_or("the recording has no end; was it cut off?")?;
        let LastLine { end } = serde_json::from_str(last)
            .map_err(|_| "the last line is not the recording's end; was it cut off?")?;
        let mut requests: Vec<Recorded> = Vec::new();
        for line in lines {
            let line: Line = serde_json::from_str(line)
                .map_err(|error| format!("request {}: {error}", requests.len()))?;
            let request = line.unfold(&requests)?;
            requests.push(request);
        }
        if requests.len() != end || settings.requests != end {
            return Err(format!("{} requests, not the {end} it was to have", requests.len()).into());
        }
        Ok(Self { settings, requests })
    }
}

impl Line {
    fn unfold(self, earlier: &[Recorded]) -> Result<Recorded, Box<dyn Error>> {
        let (base, shared, rest) = self.prompt;
        let shared = match base {
            None => &[],
            Some(base) => earlier
                .get(base)
                .and_then(|base| base.tokens.get(..shared))
                .ok_or_else(|| format!("request {base} has no {shared} tokens to share"))?,
        };
        let prompt_tokens = u32::try_from(shared.len() + rest.len())?;
        let finish = match self.finish.as_str() {
            "length" => FinishReason::Length,
            // vLLM ends a request by itself only where it was told how.
            "stop" if self.stop => FinishReason::Stop,
            other => return Err(format!("finish reason {other}").into()),
        };
        Ok(Recorded {
            tokens: [shared, &rest, &self.output].concat(),
            prompt_tokens,
            max_tokens: self.max_tokens,
            salt: self.salt,
            is_chat: self.api == "chat",
            skip_read: self.skip_read,
            reset: self.reset,
            outcome: Outcome {
                output_tokens: u32::try_from(self.output.len())?,
                finish,
                cached_tokens: self.usage.cached_tokens,
                created_cache_tokens: self.usage.created_cache_tokens,
                counters: self.counters,
                batches: self.batches,
            },
        })
    }
}

impl Settings {
    /// The engine model with the same settings.
    fn engine(&self) -> EngineConfig {
        EngineConfig {
            block_size: BlockSize::new(self.block_size).expect("a block has tokens"),
            kv_blocks: self.num_gpu_blocks,
            max_model_len: self.max_model_len,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_num_seqs: self.max_num_seqs,
            enable_prefix_caching: true,
            enable_chunked_prefill: self.enable_chunked_prefill,
            long_prefill_token_threshold: self.long_prefill_token_threshold,
            long_prefill_token_threshold_adaptive: self.long_prefill_token_threshold_adaptive,
            scheduler_reserve_full_isl: self.scheduler_reserve_full_isl,
            watermark: self.watermark,
            policy: self.policy,
            async_scheduling: self.async_scheduling,
            kv_events: true,
            report_tokens: false,
            leap: true,
        }
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = if self.int_block_hashes { "integers" } else { "bytes" };
        let scheduling = if self.async_scheduling { "async" } else { "sync" };
        write!(
            f,
            "vLLM {}: {} blocks of {} tokens, {} tokens a step, max_model_len {}, {} as {form}, {scheduling} scheduling, \
             seed {}",
            self.vllm,
            self.num_gpu_blocks,
            self.block_size,
            self.max_num_batched_tokens,
            self.max_model_len,
            self.prefix_caching_hash_algo,
            self.seed,
        )
    }
}

/// The engine model, asked what vLLM was asked.
struct Model {
    engine: Engine,
    now: Timestamp,
    hasher: BlockHasher,
    int_block_hashes: bool,
    /// Every block ever seen: its key by its digest, and back.
    keys: BTreeMap<BlockDigest, BlockKey>,
    digests: Vec<BlockDigest>,
}

impl Model {
    fn new(settings: &Settings, config: EngineConfig) -> Result<Self, Box<dyn Error>> {
        let algo: HashAlgo = settings.prefix_caching_hash_algo.parse()?;
        let block_size = NonZeroUsize::try_from(config.block_size.get() as usize)?;
        let root = none_hash(algo, None);
        // Which profile does not matter: nothing here depends on how long a step takes.
        let profile = LatencyProfile::builtin("cpu-tiny")?;
        Ok(Self {
            engine: Engine::new(config, profile.step)?,
            now: Timestamp::ZERO,
            hasher: BlockHasher::new(algo, root, block_size, ExtraKeys::default()),
            int_block_hashes: settings.int_block_hashes,
            keys: BTreeMap::new(),
            digests: Vec::new(),
        })
    }

    /// Keys of all full blocks of prompt and output.
    fn chain(&mut self, request: &Recorded) -> BlockChain {
        let keys = ExtraKeys { cache_salt: request.salt.clone(), ..ExtraKeys::default() };
        self.hasher.restart(keys);
        let mut digests = Vec::new();
        self.hasher.extend(&request.tokens, &mut digests);
        BlockChain::from_keys(digests.into_iter().map(|digest| {
            *self.keys.entry(digest).or_insert_with(|| {
                self.digests.push(digest);
                BlockKey(u32::try_from(self.digests.len() - 1).expect("fewer than 2^32 blocks"))
            })
        }))
    }

    fn hash(&self, key: BlockKey) -> String {
        let digest = self.digests[key.0 as usize];
        if self.int_block_hashes {
            format!("{:016x}", digest.external_u64())
        } else {
            digest.to_string()
        }
    }

    fn event(&self, event: &CacheEvent) -> Event {
        match event {
            CacheEvent::Stored { keys, parent } => Event::Stored {
                stored: keys.iter().map(|&key| self.hash(key)).collect(),
                parent: parent.map(|key| self.hash(key)),
            },
            CacheEvent::Removed { key } => Event::Removed { removed: vec![self.hash(*key)] },
            CacheEvent::Cleared => Event::Cleared { cleared: true },
        }
    }

    /// Lets time pass until nothing is left to do.
    fn run_dry(&mut self) -> Vec<EngineOutput> {
        let mut outputs = Vec::new();
        while let Some(at) = self.engine.next_event() {
            self.now = at;
            self.engine.advance(at, &mut outputs);
        }
        outputs
    }

    fn run(&mut self, number: u32, request: &Recorded) -> Outcome {
        if request.reset {
            self.engine.reset_prefix_cache(self.now, false);
            let outputs = self.run_dry();
            assert!(
                matches!(outputs[..], [EngineOutput::CacheReset { done: true, .. }]),
                "an idle engine's cache can be reset"
            );
        }
        let before = *self.engine.counters();
        let id = RequestId(number);
        let vllm = &request.outcome;
        let submitted = EngineRequest {
            id,
            chain: self.chain(request),
            prompt_tokens: request.prompt_tokens,
            max_tokens: request.max_tokens,
            stop_after: (vllm.finish == FinishReason::Stop).then_some(vllm.output_tokens),
            priority: 0,
            skip_reading_prefix_cache: request.skip_read,
        };
        self.engine.submit(self.now, submitted).expect("vLLM took it");
        let outputs = self.run_dry();
        let mut finished = None;
        let mut batches = Vec::new();
        for output in &outputs {
            match output {
                EngineOutput::Finished(end) => finished = Some(*end),
                EngineOutput::CacheEvents { events, .. } => {
                    batches.push(events.iter().map(|event| self.event(event)).collect());
                }
                EngineOutput::Token { .. } | EngineOutput::CacheReset { .. } => {}
            }
        }
        let finished = finished.expect("a request that was taken ends");
        let after = *self.engine.counters();
        Outcome {
            output_tokens: finished.output_tokens,
            finish: finished.reason,
            cached_tokens: finished.cached_tokens,
            created_cache_tokens: vllm
                .created_cache_tokens
                .map(|_| after.prompt_tokens_created - before.prompt_tokens_created),
            counters: Increments::between(&before, &after),
            batches,
        }
    }
}

impl Increments {
    fn between(before: &Counters, after: &Counters) -> Self {
        let by = |counter: fn(&Counters) -> u64| counter(after) - counter(before);
        Self {
            queries: by(|c| c.prefix_cache_queries),
            hits: by(|c| c.prefix_cache_hits),
            prompt_tokens: by(|c| c.prompt_tokens),
            prompt_tokens_cached: by(|c| c.prompt_tokens_cached),
            prompt_tokens_computed: by(|c| c.prompt_tokens_computed),
            generation_tokens: by(|c| c.generation_tokens),
            finished_stop: by(|c| c.finished_stop),
            finished_length: by(|c| c.finished_length),
            preemptions: by(|c| c.preemptions),
            iterations: by(|c| c.iterations),
            iteration_tokens: by(|c| c.iteration_tokens),
        }
    }
}

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) requests: usize,
    /// Requests in which nothing differs, batch boundaries included.
    pub(crate) identical: usize,
    /// What differs, in the order of the requests; the first of each request's batches only.
    pub(crate) differences: Vec<String>,
    /// Of vLLM, over all requests.
    pub(crate) queries: u64,
    pub(crate) hits: u64,
    output_tokens: u64,
    by_chat: usize,
    salted: usize,
    stopped: usize,
    skip_read: usize,
    resets: usize,
    chunked: usize,
    pub(crate) batches: usize,
    pub(crate) stored_events: usize,
    pub(crate) stored_blocks: usize,
    /// Of the stored blocks, those whose hash was cached already.
    pub(crate) copies: usize,
    /// Blocks evicted; each has an event of its own.
    pub(crate) removed: usize,
}

/// Runs the recorded requests through the engine model, as `change` alters it, and compares all that is recorded.
///
/// # Errors
/// If the model cannot be what was recorded: other hashes, or settings it would not start with.
pub(crate) fn compare(
    recording: &Recording,
    change: impl FnOnce(&mut EngineConfig),
) -> Result<Comparison, Box<dyn Error>> {
    let mut config = recording.settings.engine();
    change(&mut config);
    let mut model = Model::new(&recording.settings, config)?;
    let mut found = Comparison::default();
    let mut cached = BTreeMap::new();
    for (number, request) in recording.requests.iter().enumerate() {
        let ours = model.run(u32::try_from(number)?, request);
        found.count(request, &mut cached);
        let before = found.differences.len();
        found.differ(number, &request.outcome, &ours);
        found.identical += usize::from(found.differences.len() == before);
        found.count_settings(&recording.settings, request);
    }
    Ok(found)
}

impl Comparison {
    fn differ(&mut self, number: usize, vllm: &Outcome, ours: &Outcome) {
        let mut note = |what: &str, vllm: &dyn fmt::Debug, ours: &dyn fmt::Debug| {
            self.differences
                .push(format!("request {number}: {what}: vLLM {vllm:?}, the model {ours:?}"));
        };
        if vllm.output_tokens != ours.output_tokens {
            note("output tokens", &vllm.output_tokens, &ours.output_tokens);
        }
        if vllm.finish != ours.finish {
            note("finish reason", &vllm.finish, &ours.finish);
        }
        if vllm.cached_tokens != ours.cached_tokens {
            note("cached_tokens", &vllm.cached_tokens, &ours.cached_tokens);
        }
        if vllm.created_cache_tokens != ours.created_cache_tokens {
            note("created_cache_tokens", &vllm.created_cache_tokens, &ours.created_cache_tokens);
        }
        if vllm.counters != ours.counters {
            note("counters", &vllm.counters, &ours.counters);
        }
        let flat = |outcome: &Outcome| outcome.batches.concat();
        let (theirs, mine) = (flat(vllm), flat(ours));
        if let Some(at) = (0..theirs.len().max(mine.len())).find(|&i| theirs.get(i) != mine.get(i))
        {
            note(&format!("event {at}"), &theirs.get(at), &mine.get(at));
        } else if vllm.batches != ours.batches {
            let sizes = |outcome: &Outcome| -> Vec<usize> {
                outcome.batches.iter().map(Vec::len).collect()
            };
            note("events by batch", &sizes(vllm), &sizes(ours));
        }
    }

    /// Counts what vLLM did; `cached` has the copies of each hash.
    fn count(&mut self, request: &Recorded, cached: &mut BTreeMap<String, usize>) {
        let Outcome { output_tokens, finish, counters, batches, .. } = &request.outcome;
        self.requests += 1;
        self.queries += counters.queries;
        self.hits += counters.hits;
        self.output_tokens += u64::from(*output_tokens);
        self.stopped += usize::from(*finish == FinishReason::Stop);
        self.by_chat += usize::from(request.is_chat);
        self.salted += usize::from(request.salt.is_some());
        self.skip_read += usize::from(request.skip_read);
        self.resets += usize::from(request.reset);
        self.batches += batches.len();
        for event in batches.iter().flatten() {
            match event {
                Event::Stored { stored, .. } => {
                    self.stored_events += 1;
                    self.stored_blocks += stored.len();
                    for hash in stored {
                        let copies = cached.entry(hash.clone()).or_default();
                        self.copies += usize::from(*copies > 0);
                        *copies += 1;
                    }
                }
                Event::Removed { removed } => {
                    self.removed += removed.len();
                    for hash in removed {
                        if let Some(copies) = cached.get_mut(hash) {
                            *copies = copies.saturating_sub(1);
                        }
                    }
                }
                Event::Cleared { .. } => cached.clear(),
            }
        }
    }

    fn count_settings(&mut self, settings: &Settings, request: &Recorded) {
        let computed = request.outcome.counters.prompt_tokens_computed;
        self.chunked += usize::from(computed > u64::from(settings.max_num_batched_tokens));
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "requests   {}, of them identical {}", self.requests, self.identical)?;
        writeln!(
            f,
            "           {} by chat, {} salted, {} prefilled in chunks, {} ended by a stop token, {} not reading the \
             cache, {} resets",
            self.by_chat, self.salted, self.chunked, self.stopped, self.skip_read, self.resets,
        )?;
        writeln!(
            f,
            "tokens     {} queried, {} hit, {} generated",
            self.queries, self.hits, self.output_tokens
        )?;
        writeln!(
            f,
            "events     {} stored ({} blocks, {} of them copies), {} removed, in {} batches",
            self.stored_events, self.stored_blocks, self.copies, self.removed, self.batches,
        )?;
        write!(f, "different  {}", self.differences.len())
    }
}
