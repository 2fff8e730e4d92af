//! A small model of an instance: a block pool with a prefix cache, chunked prefill, decoding, and KV events, after rules
//! R6-R10, R21-R24, R27, R30 and R68 of the engine model. All blocks of a request are taken at its admission.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;

use kvroute_index_audit::Naming;
use kvroute_vllm_wire::{
    BlockDigest, BlockHasher, BlockRemoved, BlockStored, EventExtraKey, ExtraKeys, KvEvent,
    none_hash,
};

/// Tokens and the hashes of their full blocks; grows at the end.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    hasher: BlockHasher,
    pub(crate) tokens: Vec<u32>,
    digests: Vec<BlockDigest>,
}

impl Chain {
    pub(crate) fn new(naming: &Naming, keys: ExtraKeys) -> Self {
        let block_size = NonZeroUsize::new(naming.block_size.get() as usize).expect("not zero");
        let none_hash = none_hash(naming.algo, naming.pythonhashseed.as_deref());
        let hasher = BlockHasher::new(naming.algo, none_hash, block_size, keys);
        Self { hasher, tokens: Vec::new(), digests: Vec::new() }
    }

    pub(crate) fn extend(&mut self, tokens: &[u32]) {
        self.hasher.extend(tokens, &mut self.digests);
        self.tokens.extend_from_slice(tokens);
    }

    pub(crate) fn hashes(&self) -> impl Iterator<Item = u64> + '_ {
        self.digests.iter().map(BlockDigest::external_u64)
    }
}

/// A request in the instance.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: u32,
    /// Not another client's.
    is_ours: bool,
    /// Prompt and output, named as the instance does.
    pub(crate) chain: Chain,
    pub(crate) prompt_tokens: usize,
    /// Prompt tokens found cached at admission.
    pub(crate) cached_tokens: usize,
    pub(crate) output: VecDeque<u32>,
    computed: usize,
    blocks: Vec<usize>,
    registered: usize,
}

impl Job {
    pub(crate) fn new(id: u32, is_ours: bool, chain: Chain, output: VecDeque<u32>) -> Self {
        let prompt_tokens = chain.tokens.len();
        Self {
            id,
            is_ours,
            chain,
            prompt_tokens,
            cached_tokens: 0,
            output,
            computed: 0,
            blocks: Vec::new(),
            registered: 0,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Block {
    users: u32,
    hash: Option<u64>,
    /// Its place in the free queue.
    place: i64,
}

#[derive(Debug)]
pub(crate) struct Instance {
    block_size: usize,
    by_bytes: bool,
    blocks: Vec<Block>,
    /// Places in the free queue, the next to be handed out first.
    free: BTreeMap<i64, usize>,
    cached: BTreeMap<u64, Vec<usize>>,
    pub(crate) waiting: VecDeque<Job>,
    pub(crate) running: Vec<Job>,
    events: Vec<KvEvent>,
    /// Of requests that are ours, counted at admission.
    pub(crate) hit_tokens: u64,
}

const CHUNK_TOKENS: usize = 512;
const RUNNING_MAX: usize = 16;
/// Tokens per step and decoding request: several, for speed.
const DECODED: usize = 4;

impl Instance {
    pub(crate) fn new(block_size: usize, blocks: usize, by_bytes: bool) -> Self {
        let free =
            (0..blocks).map(|block| (i64::try_from(block).expect("it fits"), block)).collect();
        let block =
            |place| Block { place: i64::try_from(place).expect("it fits"), ..Block::default() };
        Self {
            block_size,
            by_bytes,
            blocks: (0..blocks).map(block).collect(),
            free,
            cached: BTreeMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            events: Vec::new(),
            hit_tokens: 0,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// One step; gives the requests that ended and the events.
    pub(crate) fn step(&mut self) -> (Vec<Job>, Vec<KvEvent>) {
        let mut budget = CHUNK_TOKENS;
        let mut running = std::mem::take(&mut self.running);
        for job in &mut running {
            self.advance(job, &mut budget);
        }
        while running.len() < RUNNING_MAX
            && budget > 0
            && let Some(mut job) = self.waiting.pop_front()
        {
            if !self.admit(&mut job) {
                self.waiting.push_front(job);
                break;
            }
            self.advance(&mut job, &mut budget);
            running.push(job);
        }
        let (ended, running) = running
            .into_iter()
            .partition(|job| job.output.is_empty() && job.computed + 1 >= job.chain.tokens.len());
        self.running = running;
        for job in &ended {
            self.release(job);
        }
        (ended, std::mem::take(&mut self.events))
    }

    pub(crate) fn abort(&mut self, id: u32) {
        self.waiting.retain(|job| job.id != id);
        if let Some(at) = self.running.iter().position(|job| job.id == id) {
            let job = self.running.remove(at);
            self.release(&job);
        }
    }

    fn admit(&mut self, job: &mut Job) -> bool {
        let whole = (job.prompt_tokens + job.output.len()).div_ceil(self.block_size);
        let readable = (job.prompt_tokens - 1) / self.block_size;
        let hits: Vec<usize> = job
            .chain
            .hashes()
            .take(readable)
            .map_while(|hash| self.cached.get(&hash).map(|blocks| blocks[0]))
            .collect();
        let idle_hits = hits.iter().filter(|block| self.blocks[**block].users == 0).count();
        if whole - hits.len() + idle_hits > self.free.len() {
            return false;
        }
        for &block in &hits {
            if self.blocks[block].users == 0 {
                self.free.remove(&self.blocks[block].place);
            }
            self.blocks[block].users += 1;
        }
        job.cached_tokens = hits.len() * self.block_size;
        self.hit_tokens += if job.is_ours { job.cached_tokens as u64 } else { 0 };
        job.computed = job.cached_tokens;
        job.registered = hits.len();
        job.blocks = hits;
        while job.blocks.len() < whole {
            let (_, block) = self.free.pop_first().expect("enough are free");
            if let Some(hash) = self.blocks[block].hash.take() {
                let copies = self.cached.get_mut(&hash).expect("it is cached");
                copies.retain(|copy| *copy != block);
                if copies.is_empty() {
                    self.cached.remove(&hash);
                }
                let gone = BlockRemoved { block_hashes: vec![hash.into()], ..Default::default() };
                self.events.push(KvEvent::BlockRemoved(gone));
            }
            self.blocks[block].users = 1;
            job.blocks.push(block);
        }
        true
    }

    /// Computes what the budget allows, or decodes, and registers the full blocks.
    fn advance(&mut self, job: &mut Job, budget: &mut usize) {
        let left = job.chain.tokens.len() - job.computed;
        let chunk = left.min(*budget);
        *budget -= chunk;
        job.computed += chunk;
        if job.computed == job.chain.tokens.len() {
            let decoded: Vec<u32> = job.output.drain(..job.output.len().min(DECODED)).collect();
            job.chain.extend(&decoded);
            // The last token has no KV yet (R22).
            job.computed += decoded.len().saturating_sub(1);
        }
        let full = job.computed / self.block_size;
        if full <= job.registered {
            return;
        }
        let new = job.registered..full;
        for at in new.clone() {
            let (hash, block) = (job.chain.digests[at].external_u64(), job.blocks[at]);
            self.blocks[block].hash = Some(hash);
            self.cached.entry(hash).or_default().push(block);
        }
        job.registered = full;
        self.events.push(KvEvent::BlockStored(self.stored(job, new)));
    }

    fn stored(&self, job: &Job, blocks: std::ops::Range<usize>) -> BlockStored {
        let block_size = NonZeroUsize::new(self.block_size).expect("not zero");
        let external = |digest: BlockDigest| {
            if self.by_bytes { digest.into() } else { digest.external_u64().into() }
        };
        let keys = job.chain.hasher.extra_keys();
        let event_keys = |at: usize| keys.event_keys((at * self.block_size) as u64, block_size);
        let extra_keys: Vec<Option<Vec<EventExtraKey>>> = blocks.clone().map(event_keys).collect();
        BlockStored {
            block_hashes: job.chain.digests[blocks.clone()].iter().copied().map(external).collect(),
            parent_block_hash: blocks
                .start
                .checked_sub(1)
                .map(|at| external(job.chain.digests[at])),
            token_ids: job.chain.tokens
                [blocks.start * self.block_size..blocks.end * self.block_size]
                .to_vec(),
            block_size: u32::try_from(self.block_size).expect("it fits"),
            lora_name: keys.lora.as_ref().map(|lora| lora.name.clone()),
            extra_keys: Some(extra_keys),
            group_idx: Some(0),
            ..BlockStored::default()
        }
    }

    fn release(&mut self, job: &Job) {
        let last = self.free.last_key_value().map_or(0, |(place, _)| *place);
        let first = self.free.first_key_value().map_or(0, |(place, _)| *place);
        let count = i64::try_from(job.blocks.len()).expect("it fits");
        for (at, &block) in (1..=count).zip(job.blocks.iter().rev()) {
            let state = &mut self.blocks[block];
            state.users -= 1;
            if state.users == 0 {
                state.place = if state.hash.is_some() { last + at } else { first - at };
                self.free.insert(state.place, block);
            }
        }
    }
}
