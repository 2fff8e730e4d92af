//! One request inside the engine.

use kvroute_types::{BlockChain, BlockKey, KeyRun, RequestId, Timestamp};

/// A request as it enters the engine.
#[derive(Clone, Debug)]
pub struct EngineRequest {
    /// The caller's number for it.
    pub id: RequestId,
    /// Keys of its full blocks, prompt and coming output; may be longer than needed. Tokens beyond its end are never
    /// found again in the cache.
    pub chain: BlockChain,
    /// Prompt length in tokens; at least 1 and below `max_model_len` (R79).
    pub prompt_tokens: u32,
    /// Most output tokens (`max_tokens`); at least 1.
    pub max_tokens: u32,
    /// Number of output tokens after which the model ends by itself (EOS); `None` to run to the limit.
    pub stop_after: Option<u32>,
    /// Lower goes first under priority scheduling (R39).
    pub priority: i32,
    /// Whether the prefix cache is not read for it, as for prompt logprobs (R25).
    pub skip_reading_prefix_cache: bool,
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended by itself.
    Stop,
    /// An output or length limit was reached.
    Length,
}

/// Where a request is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Waiting,
    Running,
    /// Ended or aborted; its slot is kept until its last batch in flight returns.
    Gone,
}

/// Engine-side state. Letters in the docs are the specification's.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) chain: BlockChain,
    /// P.
    pub(crate) prompt: u32,
    /// Outputs at which it ends by length, `max_model_len` included.
    pub(crate) max_outputs: u32,
    /// Outputs after which the model ends by itself.
    pub(crate) stop_after: Option<u32>,
    /// Outputs at which it ends at all.
    pub(crate) end_outputs: u32,
    pub(crate) priority: i32,
    pub(crate) skip_read: bool,
    pub(crate) arrival: Timestamp,

    pub(crate) status: Status,
    /// Whether its slot was given back.
    pub(crate) released: bool,
    /// Output tokens appended; T = P + outputs.
    pub(crate) outputs: u32,
    /// C.
    pub(crate) computed: u32,
    /// H, async only.
    pub(crate) placeholders: u32,
    /// Physical blocks, in order.
    pub(crate) table: Vec<u32>,
    /// Leading blocks of the table whose content is registered (or was, at a time when caching was on).
    pub(crate) registered: u32,
    /// Position of block `registered` in the chain.
    pub(crate) cursor: ChainCursor,
    /// Batches in flight that hold it.
    pub(crate) in_flight: u32,
    /// Of those, batches whose token must be dropped (reset with running requests, R58).
    pub(crate) discard: u32,
    /// Batches in flight that will bring a token.
    pub(crate) awaited_tokens: u32,

    pub(crate) preemptions: u32,
    /// Preemptions not yet counted (R48).
    pub(crate) unreported_preemptions: u32,
    /// Tokens found cached at first admission (R28).
    pub(crate) cached: u32,
    /// When the scheduler took it in (R64).
    pub(crate) queued: Timestamp,
    pub(crate) scheduled: Option<Timestamp>,
    pub(crate) first_token: Option<Timestamp>,
    pub(crate) last_token: Timestamp,
}

impl Request {
    pub(crate) fn new(arrival: Timestamp, request: EngineRequest, max_model_len: u32) -> Self {
        let max_outputs =
            request.max_tokens.min(max_model_len.saturating_sub(request.prompt_tokens));
        Self {
            id: request.id,
            chain: request.chain,
            prompt: request.prompt_tokens,
            max_outputs,
            stop_after: request.stop_after,
            end_outputs: request.stop_after.map_or(max_outputs, |stop| stop.min(max_outputs)),
            priority: request.priority,
            skip_read: request.skip_reading_prefix_cache,
            arrival,
            status: Status::Waiting,
            released: false,
            outputs: 0,
            computed: 0,
            placeholders: 0,
            table: Vec::new(),
            registered: 0,
            cursor: ChainCursor::default(),
            in_flight: 0,
            discard: 0,
            awaited_tokens: 0,
            preemptions: 0,
            unreported_preemptions: 0,
            cached: 0,
            queued: arrival,
            scheduled: None,
            first_token: None,
            last_token: Timestamp::ZERO,
        }
    }

    /// Becomes a copy of `other`, keeping the table's memory.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        let mut table = std::mem::take(&mut self.table);
        table.clone_from(&other.table);
        *self = Self { table, chain: other.chain.clone(), ..*other };
    }

    /// T: all known tokens.
    pub(crate) const fn known(&self) -> u32 {
        self.prompt + self.outputs
    }

    /// T + H - C: what a running request wants to compute next (R35).
    pub(crate) const fn wanted(&self) -> u32 {
        self.known() + self.placeholders - self.computed
    }

    /// R55: its last token is already in flight.
    pub(crate) const fn last_token_in_flight(&self) -> bool {
        self.placeholders > 0
            && self.computed + 2 - self.placeholders >= self.prompt + self.max_outputs
    }

    /// Physical blocks held.
    pub(crate) fn held(&self) -> u32 {
        u32::try_from(self.table.len()).expect("block ids are 32 bits")
    }
}

/// A position in a [`BlockChain`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChainCursor {
    run: u32,
    offset: u32,
}

impl ChainCursor {
    /// What is left of the run at the cursor; `None` at the end of the chain.
    pub(crate) fn rest_of_run(self, chain: &BlockChain) -> Option<KeyRun> {
        let run = chain.runs().get(self.run as usize)?;
        Some(KeyRun { start: BlockKey(run.start.0 + self.offset), len: run.len - self.offset })
    }

    /// Steps over `blocks` of the current run, at most what is left of it.
    pub(crate) fn advance(&mut self, chain: &BlockChain, blocks: u32) {
        self.offset += blocks;
        if chain.runs().get(self.run as usize).is_some_and(|run| run.len == self.offset) {
            self.run += 1;
            self.offset = 0;
        }
    }

    /// The key at the cursor.
    pub(crate) fn key(self, chain: &BlockChain) -> Option<BlockKey> {
        self.rest_of_run(chain).map(|run| run.start)
    }

    /// The key before the cursor; `None` at the start of the chain.
    pub(crate) fn previous_key(self, chain: &BlockChain) -> Option<BlockKey> {
        if self.offset > 0 {
            let run = chain.runs()[self.run as usize];
            return Some(BlockKey(run.start.0 + self.offset - 1));
        }
        let run = chain.runs()[self.run.checked_sub(1)? as usize];
        Some(BlockKey(run.start.0 + run.len - 1))
    }
}
