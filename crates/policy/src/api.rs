//! The door between router and policy.

use std::time::Duration;

use kvroute_types::{BlockHash, InstanceId, LoadSnapshot, RequestId, Timestamp, TokenCount};
use serde::{Deserialize, Serialize};

/// What a policy may know of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Number of the request, for logs; no policy decides by it.
    pub id: RequestId,
    /// Stable hash of the session key (session header or field, else the first user message).
    pub session_key: Option<u64>,
    /// Stable hash of the prefix key (system prompt, else first user message; first 200 characters).
    pub prefix_key: Option<u64>,
    /// Chained hashes of the prompt's full blocks, in order.
    pub prompt_blocks: &'a [BlockHash],
    /// What those hashes are of.
    pub block_names: BlockNames,
    /// Prompt length, exact or estimated.
    pub prompt_tokens: TokenCount,
    /// Output limit the client asked for; `None` if it set none.
    pub max_output_tokens: Option<TokenCount>,
    /// vLLM request priority: lower goes first (R39). 0 unless the client set one.
    pub priority: i32,
}

/// What the hashes of a prompt's blocks are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockNames {
    /// Of token ids, as the engine hashes them: what instances tell of their caches is in the same names.
    #[default]
    Engine,
    /// Of bytes of the request's text, where its token ids are not known: to be compared with one another only.
    Text,
}

/// What a policy may know of an instance at the moment of a decision.
///
/// The router keeps these up to date in place, sorted by `id`; nothing is built per decision.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The instance.
    pub id: InstanceId,
    /// Whether it may be chosen: healthy, not draining, not excluded by an earlier failed try.
    pub eligible: bool,
    /// The latest load reading that reached the router; `None` before the first and after expiry.
    pub load: Option<LoadSnapshot>,
    /// Requests this router sent there and has not seen end: exact, never stale.
    pub in_flight: u32,
    /// Those of `in_flight` that were sent too late to be counted in `load` (all of them if `load` is `None`).
    pub unseen_in_flight: u32,
    /// Prompt tokens of requests in flight there that have shown no first token yet, less those believed cached.
    pub in_flight_uncached_tokens: u64,
    /// Prompt tokens of all requests in flight there, cached or not: exact, never stale.
    pub in_flight_prompt_tokens: u64,
    /// Those of `in_flight` whose first output token this router has seen, so that they are decoding: exact, and
    /// late by no more than the token's way here.
    pub in_flight_decoding: u32,
    /// Prompt tokens of the requests in `in_flight_decoding`.
    pub in_flight_decoding_tokens: u64,
    /// Prefill work ([`prefill_work`]) of requests in flight there that have shown no first token yet, less what the first of
    /// them has presumably got through: by the time it has had and a rate learnt from earlier ones.
    /// Filled for a decision, and only for policies that ask ([`Needs::prefill_left`]), else 0.
    pub prefill_left: u64,
    /// Prefill work that it does in a second, over that of the fleet's mean: learnt from first tokens, so it wavers by some
    /// percent where all are equal. 1 while nothing is known, and for policies that do not ask ([`Needs::prefill_left`]).
    pub prefill_speed: f64,
    /// Leading blocks of this prompt that the cache directory believes the instance holds.
    /// Filled only for policies that ask ([`Needs::index`]), else 0.
    pub matched_blocks: u32,
    /// Prompt tokens that those blocks spare the instance ([`Needs::index`]): whole blocks, and never the whole prompt,
    /// as the engine computes the last token in any case (R24).
    pub matched_tokens: u32,
    /// Whether the directory's latest request with this prefix key went here ([`Needs::index`]).
    pub is_last_for_prefix: bool,
    /// Whether the directory's latest request with this session key went here ([`Needs::index`]).
    pub is_last_for_session: bool,
    /// Time from the decision to this request's first token at the client if it went here and nothing else were sent
    /// after it: from the engine's true state, so known to the simulator only ([`Needs::true_ttft`]), else `None`.
    pub true_ttft: Option<Duration>,
    /// Sequence number of the latest decision that chose it; 0 if none has. Unique but for 0.
    pub last_chosen: u64,
}

impl Candidate {
    /// A fresh, eligible instance that nothing is known of.
    pub fn new(id: InstanceId) -> Self {
        Self {
            id,
            eligible: true,
            load: None,
            in_flight: 0,
            unseen_in_flight: 0,
            in_flight_uncached_tokens: 0,
            in_flight_prompt_tokens: 0,
            in_flight_decoding: 0,
            in_flight_decoding_tokens: 0,
            prefill_left: 0,
            prefill_speed: 1.0,
            matched_blocks: 0,
            matched_tokens: 0,
            is_last_for_prefix: false,
            is_last_for_session: false,
            true_ttft: None,
            last_chosen: 0,
        }
    }

    /// Its load by the given signal, in requests.
    pub fn load(&self, signal: LoadSignal) -> u32 {
        let (waiting, running) = self.load.map_or((0, 0), |load| (load.waiting, load.running));
        match signal {
            LoadSignal::Total => {
                waiting.saturating_add(running).saturating_add(self.unseen_in_flight)
            }
            LoadSignal::Waiting => waiting,
            LoadSignal::InFlight => self.in_flight,
        }
    }
}

/// Position in a prompt at which a token's attention to what is before it costs as much as all else of the token.
///
/// `P / (2 L d)` for a model of `P` parameters, `L` layers and width `d`: 31,000 for Llama 3.1 8B, 35,000 for Qwen2.5 7B, 49,000
/// for Qwen2.5 32B, 53,000 for Llama 3.1 70B.
const ATTENTION_TOKENS: u64 = 32_768;

/// Work of computing a prompt's last `uncached_tokens` behind `cached_tokens` that need not be computed, in tokens at the
/// beginning of a prompt: a token at position `c` counts `1 + c / 32,768`, as it attends to all before it.
pub fn prefill_work(uncached_tokens: u32, cached_tokens: u32) -> u64 {
    let (uncached, cached) = (u64::from(uncached_tokens), u64::from(cached_tokens));
    uncached + uncached * (2 * cached + uncached) / (2 * ATTENTION_TOKENS)
}

/// Which figure "load" means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadSignal {
    /// Waiting + running of the last reading, plus our own requests it could not yet count.
    #[default]
    Total,
    /// The engine's waiting queue alone, as in the original paper; blind until a batch is full.
    Waiting,
    /// Our own exact count of unfinished requests; never stale, blind to other routers.
    InFlight,
}

/// Signals a policy reads; the router skips the work for the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each signal is asked for by itself")]
pub struct Needs {
    /// `matched_blocks`, `matched_tokens`, `is_last_for_prefix`, `is_last_for_session`.
    pub index: bool,
    /// `prefill_left`, `prefill_speed`.
    pub prefill_left: bool,
    /// `load`: waiting, running.
    pub load: bool,
    /// `load.kv_cache_usage` (costly to read in the simulator: it changes at every decode step).
    pub kv_cache_usage: bool,
    /// `true_ttft`, which no gateway can know: the policy is for the simulator only.
    pub true_ttft: bool,
}

/// A change that policies with a running order of instances must hear of.
///
/// `candidates` is the router's table, sorted by id, after the change.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Instances were added or removed: positions in the table moved.
    MembershipChanged {
        /// The table.
        candidates: &'a [Candidate],
    },
    /// The load, eligibility or `last_chosen` of one instance changed. A first token, which changes the tokens in flight
    /// and what is decoding, is not told of, nor what is filled in for one decision (matches, `true_ttft`).
    CandidateChanged {
        /// The table.
        candidates: &'a [Candidate],
        /// Index of the changed instance in it.
        position: usize,
    },
}

/// Where an instance was chosen, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The chosen instance's index in the candidate table.
    pub position: usize,
    /// Why.
    pub reason: Reason,
}

/// Why an instance was chosen. Names are part of the output contract ([`Reason::name`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Its turn in the rotation.
    Rotation,
    /// The least load of all.
    LeastLoaded,
    /// The lesser load of two, drawn at random or by hash.
    LesserOfTwo,
    /// The session's home by hash.
    SessionHome,
    /// The prefix's home by hash.
    PrefixHome,
    /// The home by hash was too loaded (or there was no key), so the least loaded was taken.
    Fallback,
    /// The best score, with some cache affinity in it.
    CacheScore,
    /// The best score, without any cache affinity.
    LoadScore,
    /// It is believed to hold the most of the prompt, of those that come into question.
    LongestMatch,
    /// Where the prompt's cache or home is was too loaded, so another was taken.
    Spilled,
    /// The fleet was out of balance, so load alone decided.
    Rebalanced,
    /// The session was there before.
    Sticky,
    /// Its first token comes first, by the engines' true state.
    LeastTtft,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 13] = [
        Self::Rotation,
        Self::LeastLoaded,
        Self::LesserOfTwo,
        Self::SessionHome,
        Self::PrefixHome,
        Self::Fallback,
        Self::CacheScore,
        Self::LoadScore,
        Self::LongestMatch,
        Self::Spilled,
        Self::Rebalanced,
        Self::Sticky,
        Self::LeastTtft,
    ];

    /// The name in receipts, records and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rotation => "rotation",
            Self::LeastLoaded => "least-loaded",
            Self::LesserOfTwo => "lesser-of-two",
            Self::SessionHome => "session-home",
            Self::PrefixHome => "prefix-home",
            Self::Fallback => "fallback",
            Self::CacheScore => "cache-score",
            Self::LoadScore => "load-score",
            Self::LongestMatch => "longest-match",
            Self::Spilled => "spilled",
            Self::Rebalanced => "rebalanced",
            Self::Sticky => "sticky",
            Self::LeastTtft => "least-ttft",
        }
    }
}

/// Collects every candidate's score for the route receipt; does nothing when no receipt is wanted.
#[derive(Debug, Default)]
pub struct Scores {
    enabled: bool,
    scores: Vec<(InstanceId, f64)>,
}

impl Scores {
    /// A collector that keeps scores if `enabled`.
    pub fn new(enabled: bool) -> Self {
        Self { enabled, scores: Vec::new() }
    }

    /// Whether scores are kept; lets a policy skip work that only a receipt needs.
    pub const fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Notes one candidate's score: higher is better.
    pub fn record(&mut self, instance: InstanceId, score: f64) {
        if self.enabled {
            self.scores.push((instance, score));
        }
    }

    /// The scores of the latest decision, in the order noted.
    pub fn as_slice(&self) -> &[(InstanceId, f64)] {
        &self.scores
    }

    /// Forgets them, keeping the memory.
    pub fn clear(&mut self) {
        self.scores.clear();
    }
}

/// A routing rule.
pub trait Policy: Send {
    /// Name on the command line.
    fn name(&self) -> &'static str;

    /// The signals it reads.
    fn needs(&self) -> Needs;

    /// Picks an instance among the eligible ones; `None` only if none is eligible.
    ///
    /// `candidates` is sorted by id. Equal candidates are told apart by rule (least load, then least
    /// recently chosen, then id) or by the policy's own seeded generator, never by position.
    fn choose(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision>;

    /// Hears of a change in the table. Policies that look at all candidates anyway ignore it.
    fn observe(&mut self, event: Event<'_>) {
        let _ = event;
    }
}
