//! The workload: requests in order of arrival, and the content they share.

use std::collections::BTreeMap;
use std::time::Duration;

use kvroute_types::{BlockSize, RequestId, SessionId, Timestamp, TokenCount};

use crate::{Segment, SegmentId, TokenStream};

/// When a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// At a fixed time, whatever the server does (open loop).
    At(Timestamp),
    /// `think` after the request before it ended: the previous turn of the same session, or in a closed loop of clients
    /// the last turn of the client's previous session.
    AfterPrevious {
        /// Time the client takes between the end of one answer and its next message.
        think: Duration,
    },
    /// `interval` after the previous turn of the same session arrived, but not before that turn ended: a client with a
    /// timetable, whose load does not depend on how fast it is served.
    Paced {
        /// Time from one message to the next.
        interval: Duration,
    },
}

impl Arrival {
    /// When a turn is sent whose previous turn arrived and ended at these times; `None` if that does not matter.
    pub fn after(self, arrived: Timestamp, ended: Timestamp) -> Option<Timestamp> {
        match self {
            Self::At(_) => None,
            Self::AfterPrevious { think } => Some(ended + think),
            Self::Paced { interval } => Some(ended.max(arrived + interval)),
        }
    }
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadRequest {
    /// Its index in the workload.
    pub id: RequestId,
    /// The session it belongs to.
    pub session: SessionId,
    /// Turn within the session, from 0.
    pub turn: u32,
    /// When it is sent. Turn 0 is [`Arrival::At`], but for a session that follows another of the same client
    /// ([`Workload::in_closed_loop`]).
    pub arrival: Arrival,
    /// Prompt length; at least 1.
    pub prompt_tokens: TokenCount,
    /// Output length; at least 1.
    pub output_tokens: TokenCount,
    /// Stable hash of the session's identity: what `X-Session-ID` would carry.
    pub session_key: u64,
    /// Stable hash of the prompt's beginning, as a router that reads only the first characters sees
    /// it: the system prompt (or leading document) where the workload has one, else the first
    /// message; the first two block ids or 64 tokens of a trace that has those; unique where a
    /// trace has no content identity.
    pub prefix_key: u64,
    /// Scheduling priority, lower first (vLLM `priority`); 0 unless a client sets it.
    pub priority: i32,
    pub(crate) content: Content,
    pub(crate) next: Option<RequestId>,
}

/// A list of segments in the workload's arena. Turns that extend one another share the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) start: usize,
    pub(crate) len: usize,
}

impl Content {
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// Requests ordered by arrival: absolute arrivals never decrease, ids count up from 0, and a
/// closed-loop session's later turns stand directly behind its first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    pub(crate) name: String,
    pub(crate) requests: Vec<WorkloadRequest>,
    pub(crate) sessions: u32,
    pub(crate) segments: Vec<Segment>,
    pub(crate) literals: BTreeMap<SegmentId, Vec<u32>>,
    pub(crate) trace_block_size: Option<BlockSize>,
    pub(crate) dropped: u32,
}

impl Workload {
    /// What the workload is called in results: the trace format or the spec's kind.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same workload under another name.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// All requests, indexed by [`RequestId`].
    pub fn requests(&self) -> &[WorkloadRequest] {
        &self.requests
    }

    /// Number of sessions; ids are `0..sessions`.
    pub fn sessions(&self) -> u32 {
        self.sessions
    }

    /// The granularity at which a trace tells content apart; `None` if it is exact or has no
    /// identity.
    pub fn trace_block_size(&self) -> Option<BlockSize> {
        self.trace_block_size
    }

    /// Records that the reader left out, by the rule its format documents.
    pub fn dropped(&self) -> u32 {
        self.dropped
    }

    /// The request that follows in the same session, or in a closed loop the first of the client's next session; if any.
    pub fn next_turn(&self, request: RequestId) -> Option<RequestId> {
        self.requests[request.index()].next
    }

    /// The request's content, prompt first: the tokens after `prompt_tokens` are its output.
    ///
    /// In sessions with known text the output is the segment that the next prompt repeats, so that
    /// blocks filled while decoding can be hit. Traces of block ids do not tell what an answer
    /// looks like in later prompts; there the output is a segment nobody else has, as if it were
    /// never re-tokenised to the same ids.
    pub fn segments(&self, request: &WorkloadRequest) -> &[Segment] {
        &self.segments[request.content.range()]
    }

    /// The token ids of a request, prompt first, then output. Real ids where the trace has them.
    pub fn tokens<'a>(
        &'a self,
        request: &WorkloadRequest,
        stream: &'a TokenStream,
    ) -> impl Iterator<Item = u32> + 'a {
        self.segments[request.content.range()].iter().flat_map(move |segment| {
            let literal = self.literals.get(&segment.id);
            (0..segment.tokens).map(move |index| match literal {
                Some(tokens) => tokens[index as usize],
                None => stream.token(segment.id, index),
            })
        })
    }

    /// The same requests under other routing keys: `keys` gives each its session key and prefix key. For comparing with a
    /// gateway, which hashes what it reads of a request.
    #[must_use]
    pub fn with_keys(
        mut self,
        mut keys: impl FnMut(&Self, &WorkloadRequest) -> (u64, u64),
    ) -> Self {
        let keys: Vec<_> = self.requests.iter().map(|request| keys(&self, request)).collect();
        for (request, (session_key, prefix_key)) in self.requests.iter_mut().zip(keys) {
            request.session_key = session_key;
            request.prefix_key = prefix_key;
        }
        self
    }

    /// The first `n` requests. Sessions cut short simply end there.
    #[must_use]
    pub fn take(mut self, n: u32) -> Self {
        let n = n as usize;
        if n >= self.requests.len() {
            return self;
        }
        self.requests.truncate(n);
        for request in &mut self.requests {
            request.next = request.next.filter(|next| next.index() < n);
        }
        // Sessions are numbered by first appearance, so those left are a prefix of the numbers.
        self.sessions = self.requests.iter().map(|r| r.session.0 + 1).max().unwrap_or(0);
        self
    }
}

/// A request before it has its place in the order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft {
    pub(crate) session: u32,
    pub(crate) arrival: Arrival,
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    pub(crate) content: Content,
    pub(crate) session_key: u64,
    pub(crate) prefix_key: u64,
}

/// Collects drafts in any order of sessions (turns of one session in order) and sorts them out.
#[derive(Debug, Default)]
pub(crate) struct WorkloadBuilder {
    pub(crate) drafts: Vec<Draft>,
    segments: Vec<Segment>,
    pub(crate) literals: BTreeMap<SegmentId, Vec<u32>>,
    trace_block_size: Option<BlockSize>,
    pub(crate) dropped: u32,
}

impl WorkloadBuilder {
    /// For a trace that tells content apart by blocks of `tokens` tokens.
    pub(crate) fn with_trace_blocks(tokens: u32) -> Self {
        Self { trace_block_size: BlockSize::new(tokens), ..Self::default() }
    }

    /// Stores new content.
    pub(crate) fn content(&mut self, segments: impl IntoIterator<Item = Segment>) -> Content {
        let start = self.segments.len();
        self.extend(Content { start, len: 0 }, segments)
    }

    /// Stores content that begins with all of `base`, which must be what was stored last.
    pub(crate) fn extend(
        &mut self,
        base: Content,
        segments: impl IntoIterator<Item = Segment>,
    ) -> Content {
        assert_eq!(base.range().end, self.segments.len(), "only the latest content can grow");
        self.segments.extend(segments.into_iter().filter(|segment| segment.tokens > 0));
        Content { start: base.start, len: self.segments.len() - base.start }
    }

    /// Adds a request.
    pub(crate) fn push(&mut self, draft: Draft) {
        let content = &self.segments[draft.content.range()];
        assert_eq!(
            content.iter().map(|segment| u64::from(segment.tokens)).sum::<u64>(),
            u64::from(draft.prompt_tokens) + u64::from(draft.output_tokens),
            "content covers prompt and output"
        );
        self.drafts.push(draft);
    }

    /// Tokens of stored content.
    #[cfg(test)]
    pub(crate) fn tokens(&self, content: Content) -> u32 {
        self.segments[content.range()].iter().map(|segment| segment.tokens).sum()
    }

    /// Orders the requests and numbers them, their sessions (by first appearance) and turns.
    pub(crate) fn finish(self, name: impl Into<String>) -> Workload {
        let requests = self.drafts.into_iter().map(|draft| WorkloadRequest {
            id: RequestId::default(),
            session: SessionId(draft.session),
            turn: 0,
            arrival: draft.arrival,
            prompt_tokens: TokenCount(draft.prompt_tokens),
            output_tokens: TokenCount(draft.output_tokens),
            session_key: draft.session_key,
            prefix_key: draft.prefix_key,
            priority: 0,
            content: draft.content,
            next: None,
        });
        let (requests, sessions) = in_order(requests.collect());
        Workload {
            name: name.into(),
            requests,
            sessions,
            segments: self.segments,
            literals: self.literals,
            trace_block_size: self.trace_block_size,
            dropped: self.dropped,
        }
    }
}

/// Puts requests in order and numbers them, their sessions (by first appearance) and turns; and the number of sessions.
/// They come in any order of sessions, under any numbers of these, turns of one session in order.
pub(crate) fn in_order(requests: Vec<WorkloadRequest>) -> (Vec<WorkloadRequest>, u32) {
    let slots = requests.iter().map(|request| request.session.index() + 1).max().unwrap_or(0);
    let mut requests = by_arrival(requests, slots);
    let mut latest: Vec<Option<usize>> = vec![None; slots];
    let mut sessions = 0;
    for at in 0..requests.len() {
        let id = RequestId(u32::try_from(at).expect("fewer than 2^32 requests"));
        let previous = latest[requests[at].session.index()].replace(at);
        let (session, turn) = if let Some(previous) = previous {
            let previous = &mut requests[previous];
            previous.next = Some(id);
            (previous.session, previous.turn + 1)
        } else {
            sessions += 1;
            (SessionId(sessions - 1), 0)
        };
        let request = &mut requests[at];
        (request.id, request.session, request.turn, request.next) = (id, session, turn, None);
    }
    (requests, sessions)
}

/// Sorts stably by absolute arrival; a relative one counts as its predecessor's. Sessions are numbered below `slots`.
fn by_arrival(requests: Vec<WorkloadRequest>, slots: usize) -> Vec<WorkloadRequest> {
    let mut latest = vec![Timestamp::ZERO; slots];
    let mut keyed: Vec<(Timestamp, WorkloadRequest)> = Vec::with_capacity(requests.len());
    for request in requests {
        let latest = &mut latest[request.session.index()];
        if let Arrival::At(at) = request.arrival {
            *latest = at;
        }
        keyed.push((*latest, request));
    }
    keyed.sort_by_key(|(at, _)| *at);
    keyed.into_iter().map(|(_, request)| request).collect()
}

/// A stable 64-bit hash of bytes (FNV-1a, then mixed), for keys made of names.
pub(crate) fn stable_hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    kvroute_types::mix64(fnv)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(builder: &mut WorkloadBuilder, session: u32, arrival: Arrival) {
        let content = builder.content([Segment { id: SegmentId(u64::from(session)), tokens: 3 }]);
        builder.push(Draft {
            session,
            arrival,
            prompt_tokens: 2,
            output_tokens: 1,
            content,
            session_key: 0,
            prefix_key: 0,
        });
    }

    fn two_sessions() -> Workload {
        let mut builder = WorkloadBuilder::default();
        let after = Arrival::AfterPrevious { think: Duration::from_secs(1) };
        draft(&mut builder, 5, Arrival::At(Timestamp::from_nanos(20)));
        draft(&mut builder, 5, after);
        draft(&mut builder, 2, Arrival::At(Timestamp::from_nanos(10)));
        draft(&mut builder, 2, after);
        builder.finish("test")
    }

    #[test]
    fn later_turns_wait_for_what_they_say() {
        let ms = |ms: u64| Timestamp::from_nanos(1_000_000 * ms);
        let pause = Duration::from_millis(50);
        assert_eq!(Arrival::At(ms(7)).after(ms(1), ms(2)), None);
        let thinking = Arrival::AfterPrevious { think: pause };
        assert_eq!(thinking.after(ms(10), ms(20)), Some(ms(70)));
        let paced = Arrival::Paced { interval: pause };
        assert_eq!(paced.after(ms(10), ms(20)), Some(ms(60)));
        assert_eq!(paced.after(ms(10), ms(90)), Some(ms(90)), "the answer came late");
    }

    #[test]
    fn sessions_are_ordered_by_start_and_linked_by_turn() {
        let workload = two_sessions();
        let turns: Vec<_> =
            workload.requests().iter().map(|r| (r.id.0, r.session.0, r.turn)).collect();
        assert_eq!(turns, [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)]);
        assert_eq!(workload.next_turn(RequestId(0)), Some(RequestId(1)));
        assert_eq!(workload.next_turn(RequestId(1)), None);
        assert_eq!(workload.segments(&workload.requests()[0])[0].id, SegmentId(2));
    }

    #[test]
    fn taking_a_part_cuts_links_and_sessions() {
        let workload = two_sessions().take(3);
        assert_eq!(workload.sessions(), 2);
        assert_eq!(workload.next_turn(RequestId(2)), None);
        assert_eq!(two_sessions().take(1).sessions(), 1);
    }
}
