//! Random tables and requests, and a small router that reports every change.

use std::ops::Range;
use std::time::Duration;

use kvroute_policy::{
    BlockNames, Candidate, Decision, Event, LoadSignal, Policy, PolicyConfig, RequestView, Scores,
};
use kvroute_types::{BlockHash, InstanceId, LoadSnapshot, RequestId, Timestamp, TokenCount};
use proptest::prelude::*;

pub(crate) static BLOCKS: [BlockHash; 8] = [BlockHash(1); 8];

/// Every rule at its defaults, and configurations that between them take every branch.
pub(crate) fn specs() -> Vec<&'static str> {
    PolicyConfig::names().into_iter().chain(VARIANTS).collect()
}

const VARIANTS: [&str; 26] = [
    "jsq:load=waiting",
    "jsq:load=in-flight",
    "p2c:load=in-flight",
    "session-affinity:hash=modulo",
    "prefix-affinity:hash=modulo,load=waiting,queue_threshold=2",
    "prefix-affinity:queue_threshold=0",
    "load-cache:affinity=paper",
    "load-cache:alpha=1,beta=0",
    "load-cache:alpha=0,beta=1",
    "load-cache:alpha=0,beta=0,load=waiting",
    "threshold:balance_abs=1,load=total",
    "threshold:match_threshold=0,load=waiting",
    "spill-gate:margin_least=0,sigmas=0,balance_rel=1",
    "dynamo:overlap_decay=1,active_weight=3,prefill_scale=2",
    "llm-d-blend:lru_weight=2",
    "llm-d-blend:prefix_weight=0,kv_weight=0,lru_weight=9",
    "llm-d-sticky:saturation_tokens=100,match_share=0.3",
    "lmetric:queued_prefill=false,load=total",
    "dualmap:slo_ttft_s=0.01",
    "chwbl:load_factor=1",
    "preble:rebalance_ratio=1,window_s=0.001",
    "aibrix:balance_abs=2,deviations=0",
    "ray:balance_abs=1",
    "ray:match_share=0.9",
    "sticky-least-loaded:capacity_sessions=1",
    "sticky-least-loaded:ttl_s=0.001",
];

pub(crate) fn build(spec: &str, seed: u64) -> Box<dyn Policy> {
    spec.parse::<PolicyConfig>()
        .expect("the spec parses")
        .build(seed)
        .expect("the parameters are in range")
}

pub(crate) fn choose(
    policy: &mut dyn Policy,
    request: &RequestView<'_>,
    candidates: &[Candidate],
) -> Option<Decision> {
    policy.choose(Timestamp::ZERO, request, candidates, &mut Scores::new(false))
}

/// The least loaded by the published rule, written as plainly as can be.
pub(crate) fn least_loaded(candidates: &[Candidate], signal: LoadSignal) -> Option<usize> {
    (0..candidates.len())
        .filter(|&i| candidates[i].eligible)
        .min_by_key(|&i| (candidates[i].load(signal), candidates[i].last_chosen, candidates[i].id))
}

/// A request with or without keys, with a prompt of eight full blocks or none.
pub(crate) fn any_request() -> impl Strategy<Value = RequestView<'static>> {
    let key = || prop::option::of(any::<u64>());
    (key(), key(), any::<bool>()).prop_map(|(session_key, prefix_key, long)| RequestView {
        id: RequestId(0),
        session_key,
        prefix_key,
        prompt_blocks: if long { &BLOCKS } else { &[] },
        block_names: BlockNames::Engine,
        prompt_tokens: TokenCount(128),
        max_output_tokens: None,
        priority: 0,
    })
}

/// An instance with little load, so that ties are common. `last_chosen` is left at 0.
pub(crate) fn any_candidate() -> impl Strategy<Value = Candidate> {
    let reading = prop::option::weighted(
        0.9,
        (0_u32..3, 0_u32..12).prop_map(|(waiting, running)| LoadSnapshot {
            waiting,
            running,
            kv_cache_usage: 0.5,
            as_of: Timestamp::ZERO,
        }),
    );
    let tokens = (0_u64..3, 0_u64..3).prop_map(|(uncached, rest)| (64 * uncached, 64 * rest));
    let matched = prop_oneof![Just(0_u32), 0_u32..=8];
    (
        prop::bool::weighted(0.7),
        reading,
        (0_u32..4, 0_u32..4),
        tokens,
        matched,
        any::<(bool, bool)>(),
        prop::option::weighted(0.8, (0_u64..3).prop_map(Duration::from_millis)),
    )
        .prop_map(
            |(eligible, load, in_flight, tokens, matched_blocks, last_for, true_ttft)| {
                let (in_flight, unseen_in_flight) = in_flight;
                let (uncached, rest) = tokens;
                Candidate {
                    eligible,
                    load,
                    in_flight,
                    unseen_in_flight,
                    in_flight_uncached_tokens: uncached,
                    in_flight_prompt_tokens: uncached + rest,
                    prefill_left: uncached,
                    in_flight_decoding: in_flight / 2,
                    in_flight_decoding_tokens: rest,
                    matched_blocks,
                    matched_tokens: 16 * matched_blocks.min(7),
                    is_last_for_prefix: last_for.0,
                    is_last_for_session: last_for.1,
                    true_ttft,
                    ..Candidate::new(InstanceId(0))
                }
            },
        )
}

/// A table: ids ascend with gaps, `last_chosen` is unique but for 0.
pub(crate) fn any_table(len: Range<usize>) -> impl Strategy<Value = Vec<Candidate>> {
    prop::collection::vec((any_candidate(), 1_u32..4, any::<bool>()), len)
        .prop_flat_map(|rows| {
            let order: Vec<u64> = (1..=rows.len() as u64).collect();
            (Just(rows), Just(order).prop_shuffle())
        })
        .prop_map(|(rows, order)| {
            let mut id = 0;
            rows.into_iter()
                .zip(order)
                .map(|((candidate, gap, was_chosen), turn)| {
                    id += gap;
                    let last_chosen = if was_chosen { turn } else { 0 };
                    Candidate { id: InstanceId(id), last_chosen, ..candidate }
                })
                .collect()
        })
}

/// Something that happens to a router's table. Positions are taken modulo its length.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// An instance reports, finishes requests, fails or recovers.
    Changes(usize, Candidate),
    /// An instance joins with an id in the middle of the others.
    Joins(u32, Candidate),
    /// An instance leaves.
    Leaves(usize),
    /// A request arrives.
    Arrives(RequestView<'static>),
}

pub(crate) fn any_life(len: Range<usize>) -> impl Strategy<Value = Vec<Happening>> {
    let happening = prop_oneof![
        6 => (any::<usize>(), any_candidate()).prop_map(|(i, c)| Happening::Changes(i, c)),
        1 => (0_u32..200, any_candidate()).prop_map(|(id, c)| Happening::Joins(id, c)),
        1 => any::<usize>().prop_map(Happening::Leaves),
        6 => any_request().prop_map(Happening::Arrives),
    ];
    prop::collection::vec(happening, len)
}

/// A table in use: applies happenings and tells what changed.
pub(crate) struct Router {
    pub(crate) candidates: Vec<Candidate>,
    /// Sequence number of the latest decision, above any in a random table.
    decisions: u64,
}

impl Router {
    pub(crate) fn new(candidates: Vec<Candidate>) -> Self {
        Self { candidates, decisions: 1_000 }
    }

    /// Applies a change of the table; the event to report, if anything changed.
    pub(crate) fn apply(&mut self, happening: &Happening) -> Option<Event<'_>> {
        let len = self.candidates.len();
        match happening {
            Happening::Changes(i, change) if len > 0 => {
                let position = i % len;
                let old = &self.candidates[position];
                self.candidates[position] =
                    Candidate { id: old.id, last_chosen: old.last_chosen, ..change.clone() };
                Some(Event::CandidateChanged { candidates: &self.candidates, position })
            }
            Happening::Joins(id, fresh) => {
                let id = InstanceId(*id);
                let position = self.candidates.binary_search_by_key(&id, |c| c.id).err()?;
                self.candidates.insert(position, Candidate { id, ..fresh.clone() });
                Some(Event::MembershipChanged { candidates: &self.candidates })
            }
            Happening::Leaves(i) if len > 0 => {
                self.candidates.remove(i % len);
                Some(Event::MembershipChanged { candidates: &self.candidates })
            }
            Happening::Changes(..) | Happening::Leaves(_) | Happening::Arrives(_) => None,
        }
    }

    /// Books a decision.
    pub(crate) fn send(&mut self, position: usize) -> Event<'_> {
        self.decisions += 1;
        let chosen = &mut self.candidates[position];
        chosen.last_chosen = self.decisions;
        chosen.in_flight += 1;
        chosen.unseen_in_flight += 1;
        Event::CandidateChanged { candidates: &self.candidates, position }
    }
}

/// The decisions of a policy over a life, with or without events.
pub(crate) fn live(
    policy: &mut dyn Policy,
    life: &[Happening],
    reports: bool,
) -> Vec<Option<(InstanceId, &'static str)>> {
    let mut router = Router::new(Vec::new());
    let mut decisions = Vec::new();
    for (happening, step) in life.iter().zip(0..) {
        if let Happening::Arrives(request) = happening {
            let now = Timestamp::from_nanos(100_000 * step);
            let scores = &mut Scores::new(false);
            let decision = policy.choose(now, request, &router.candidates, scores);
            decisions.push(decision.map(|d| (router.candidates[d.position].id, d.reason.name())));
            if let Some(decision) = decision {
                let event = router.send(decision.position);
                if reports {
                    policy.observe(event);
                }
            }
        } else if let Some(event) = router.apply(happening)
            && reports
        {
            policy.observe(event);
        }
    }
    decisions
}
