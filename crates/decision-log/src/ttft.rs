//! The time to first token (TTFT) that other policies would have led to, estimated from what the recorded one led to.
//!
//! A request's observed TTFT is the time from its decision to the first bytes of its streamed answer. Over all requests that
//! have one, this is fitted by least squares, without negative coefficients:
//!
//! ```text
//! TTFT = base + busy [b > 0] + own w + queued W + beside b
//!   b   requests in flight at the instance when this one was decided
//!   w   its own prompt tokens not believed cached there (all of them without a cache directory)
//!   W   what is left to compute of such tokens of those b requests
//! ```
//!
//! `[b > 0]` is 1 at a busy instance, where a request waits for the step under way, else 0. For `W`, an instance computes one
//! prompt after the other, each evenly until its first token. So a token queued costs about as much as one of the
//! request's own, at any load. (The router's own counter takes a prompt for whole until its first token. Its
//! coefficient is half of that where requests rarely queue, and does not hold where they do.)
//!
//! The fit is judged by requests that it has not seen: the first half of the log predicts the second, and the second the first.
//!
//! # What a policy is charged
//! Its requests go through its own queues: `b`, `w` and `W` are of the requests that *it* sent there; each has its first token
//! when *estimated*, and ends after as long a decode as was recorded. So a policy that makes queues pays for them. (The
//! decisions are those of the replay, made as if every request took as long as recorded.) The recorded policy is estimated in
//! the same way: compare estimates with estimates. If its estimates are far from what was observed, nobody's are believed.
//!
//! # What is left out
//! * Whatever the formula does not explain: an estimate is the mean over requests of its kind. So estimates spread less than
//!   observations, and their p95 is too low where chance makes the tail. The errors of the recorded requests are not added to
//!   another policy's: they come from where and when each was computed, which that policy changes.
//! * Decodes that are slower or faster than recorded, preemption, and waiting for KV blocks or for a place in a full batch,
//!   except as far as `b` shows them. So near saturation estimates stay too close to what was recorded, and a policy
//!   that would have saturated instances is not seen to.
//! * Differences between instances: all count as equally fast.
//! * Wrong beliefs: a prompt is charged as it was believed to be cached.
//! * Clients that wait for an answer before they send: all send when they sent.
//!
//! An answer in one piece shows no first token: it is not estimated, and occupies its instance as long as recorded. An error
//! that answers a request for a stream counts as its first token.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use hashbrown::HashMap;
use kvroute_types::{InstanceId, RequestId, Timestamp};
use rustc_hash::FxBuildHasher;
use serde::Serialize;

use crate::event::{Decision, Event, Route};

/// Fewest requests with a first token that estimates are made from: 50 to fit 5 coefficients, and 50 to judge them by.
pub const REQUESTS_MIN: usize = 100;
/// Least share of the held-out requests' variance that the formula must explain.
pub const EXPLAINED_SHARE_MIN: f64 = 0.5;
/// Greatest share of a policy's requests that may lie outside of what was recorded.
pub const EXTRAPOLATED_SHARE_MAX: f64 = 0.5;
/// Greatest relative error of the recorded policy's mean estimate: where instances are saturated it is above.
pub const MEAN_ERROR_MAX: f64 = 0.1;
/// Coefficients of the formula.
const COEFFICIENTS: usize = 5;
/// Passes over the coefficients before the search gives up.
const PASSES_MAX: usize = 1_000_000;
/// Relative change of a coefficient that no longer counts.
const CHANGE_MIN: f64 = 1e-13;

/// Why there is no estimate.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum NoTtft {
    /// Too few to fit and to judge.
    #[error(
        "the log shows the first tokens of {observed} requests, and {REQUESTS_MIN} are needed (only streamed answers show one)"
    )]
    TooFewRequests {
        /// Requests with a first token.
        observed: usize,
    },
    /// The times do not follow from what the router knew.
    #[error(
        "requests in flight and tokens to compute explain {share:.2} of the variance of TTFTs, less than {EXPLAINED_SHARE_MIN}"
    )]
    Unexplained {
        /// The share, of requests not fitted to; below 0 if their mean predicts better, not a number if all took as long.
        share: f64,
    },
    /// Queues do not form as estimated.
    #[error(
        "the recorded policy's own mean TTFT is estimated at {estimated_s:.3} s and was {observed_s:.3} s; more than \
         {MEAN_ERROR_MAX} apart nothing can be said of others (are instances saturated?)"
    )]
    Misestimated {
        /// Mean estimate, s.
        estimated_s: f64,
        /// Mean observation, s.
        observed_s: f64,
    },
    /// One of the two knows what is cached, the other does not.
    #[error(
        "its router keeps a cache directory and the recorded one does not, or the other way round"
    )]
    OtherDirectory,
    /// The log says nothing of most of what the policy would have led to.
    #[error(
        "{share:.2} of its requests have more or less to compute, or in flight beside them, than any recorded one; more \
         than {EXTRAPOLATED_SHARE_MAX} would be a guess"
    )]
    Extrapolated {
        /// The share.
        share: f64,
    },
}

/// How TTFT follows from what an instance has to do; see the module's header.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TtftModel {
    /// Without any work, s.
    pub base_s: f64,
    /// If requests are in flight there, s.
    pub busy_s: f64,
    /// For each of the request's own prompt tokens not believed cached, s.
    pub own_s_per_token: f64,
    /// For each such token left to compute of the requests in flight there, s.
    pub queued_s_per_token: f64,
    /// For each request in flight there, s.
    pub beside_s_per_request: f64,
}

/// What an instance has to do for a request and before it: the factors of [`TtftModel`]'s coefficients, in their order.
type Work = [f64; COEFFICIENTS];

impl TtftModel {
    fn ttft_s(&self, work: &Work) -> f64 {
        let Self { base_s, busy_s, own_s_per_token, queued_s_per_token, beside_s_per_request } =
            *self;
        let coefficients =
            [base_s, busy_s, own_s_per_token, queued_s_per_token, beside_s_per_request];
        coefficients.iter().zip(work).map(|(coefficient, work)| coefficient * work).sum()
    }

    /// The model with the least squared error of those without negative coefficients, by coordinate descent: Franc, Hlaváč
    /// and Navara, "Sequential Coordinate-wise Algorithm for the Non-negative Least Squares Problem", CAIP 2005. Work that
    /// varies only together with other work is charged to whichever of them comes first.
    fn fit(observed: &[Observed]) -> Self {
        let mut gram = [[0.0; COEFFICIENTS]; COEFFICIENTS];
        let mut moments = [0.0; COEFFICIENTS];
        for Observed { work, ttft_s } in observed {
            for (row, left) in work.iter().enumerate() {
                moments[row] += left * ttft_s;
                for (column, right) in work.iter().enumerate() {
                    gram[row][column] += left * right;
                }
            }
        }
        let mut coefficients = [0.0; COEFFICIENTS];
        for _ in 0..PASSES_MAX {
            let mut is_settled = true;
            for at in 0..coefficients.len() {
                if gram[at][at] == 0.0 {
                    continue;
                }
                let fitted: f64 = gram[at].iter().zip(&coefficients).map(|(g, c)| g * c).sum();
                let before: f64 = coefficients[at];
                let after = (before + (moments[at] - fitted) / gram[at][at]).max(0.0);
                is_settled &= (after - before).abs() <= CHANGE_MIN * after;
                coefficients[at] = after;
            }
            if is_settled {
                break;
            }
        }
        let [base_s, busy_s, own_s_per_token, queued_s_per_token, beside_s_per_request] =
            coefficients;
        Self { base_s, busy_s, own_s_per_token, queued_s_per_token, beside_s_per_request }
    }
}

/// Observed TTFTs, and those that the policies of the log and others are estimated to lead to. Each list has the requests
/// whose first token the log shows, in the order of their decisions.
#[derive(Clone, Debug, PartialEq)]
pub struct TtftEstimates {
    /// Fitted to all of them.
    pub model: TtftModel,
    /// As the log has them, s.
    pub observed_s: Vec<f64>,
    /// As the half of the log predicts it that it is not in, s.
    pub held_out_s: Vec<f64>,
    /// Share of their variance that these predictions explain: 1 - mean squared error / variance.
    pub explained_share: f64,
    /// The log's own policies.
    pub recorded: PolicyTtft,
    /// The other policies, in the order in which they were given.
    pub others: Vec<Result<PolicyTtft, NoTtft>>,
}

/// What one policy is estimated to lead to.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyTtft {
    /// Estimated TTFTs, s.
    pub estimated_s: Vec<f64>,
    /// Share of them for which an instance had less or more to do, of any kind, than for any recorded request.
    pub extrapolated_share: f64,
}

/// When each decision of a log was made, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Times {
    requests: Vec<RequestTimes>,
    /// Places of the requests in flight. Looked up only.
    in_flight: HashMap<RequestId, usize, FxBuildHasher>,
    starts: u32,
}

/// Of one request.
#[derive(Clone, Copy, Debug)]
struct RequestTimes {
    /// Which start of the gateway it comes after.
    start: u32,
    decided: Timestamp,
    first_token: Option<Timestamp>,
    end: Option<Timestamp>,
}

/// Where a policy sent a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    instance: InstanceId,
    uncached_tokens: u32,
    has_directory: bool,
}

/// One request with a first token.
struct Observed {
    work: Work,
    ttft_s: f64,
}

/// When a request's work at its instance is over.
#[derive(Clone, Copy)]
struct Stay {
    prefilled: Timestamp,
    ended: Timestamp,
}

impl Times {
    /// A gateway starts: what was in flight is gone.
    pub(crate) fn start(&mut self) {
        self.starts += 1;
        self.in_flight.clear();
    }

    /// The next event of the log.
    pub(crate) fn add(&mut self, at: Timestamp, event: &Event) {
        match event {
            Event::Route(route) => {
                if route.decision.is_some() {
                    self.in_flight.insert(route.request.id, self.requests.len());
                }
                let start = self.starts;
                let times = RequestTimes { start, decided: at, first_token: None, end: None };
                self.requests.push(times);
            }
            Event::FirstToken { request } => {
                if let Some(&place) = self.in_flight.get(request) {
                    self.requests[place].first_token.get_or_insert(at);
                }
            }
            Event::End { request } => {
                if let Some(place) = self.in_flight.remove(request) {
                    self.requests[place].end = Some(at);
                }
            }
            _ => {}
        }
    }

    /// The estimates for the log's own policies and for others; the places are those of the requests, in order.
    ///
    /// # Errors
    /// [`NoTtft`] if the log gives none.
    pub(crate) fn estimate<'a>(
        &self,
        recorded: &[Option<Placed>],
        others: impl Iterator<Item = &'a [Option<Placed>]>,
    ) -> Result<TtftEstimates, NoTtft> {
        let observed = self.observed(recorded);
        if observed.len() < REQUESTS_MIN {
            return Err(NoTtft::TooFewRequests { observed: observed.len() });
        }
        let (earlier, later) = observed.split_at(observed.len() / 2);
        let predict = |from: &[Observed], these: &[Observed]| {
            let model = TtftModel::fit(from);
            these.iter().map(|it| model.ttft_s(&it.work)).collect::<Vec<_>>()
        };
        let held_out_s = [predict(later, earlier), predict(earlier, later)].concat();
        let observed_s: Vec<f64> = observed.iter().map(|it| it.ttft_s).collect();
        let explained_share = explained_share(&observed_s, &held_out_s);
        if explained_share.is_nan() || explained_share < EXPLAINED_SHARE_MIN {
            return Err(NoTtft::Unexplained { share: explained_share });
        }
        let model = TtftModel::fit(&observed);
        let range = Range::of(&observed);
        let estimate =
            |placed: &[Option<Placed>]| self.estimate_policy(&model, &range, recorded, placed);
        let own = estimate(recorded)?;
        let (is, said) = (mean(&observed_s), mean(&own.estimated_s));
        if (said - is).abs() > MEAN_ERROR_MAX * is {
            return Err(NoTtft::Misestimated { estimated_s: said, observed_s: is });
        }
        Ok(TtftEstimates {
            model,
            observed_s,
            held_out_s,
            explained_share,
            recorded: own,
            others: others.map(estimate).collect(),
        })
    }

    fn estimate_policy(
        &self,
        model: &TtftModel,
        range: &Range,
        recorded: &[Option<Placed>],
        placed: &[Option<Placed>],
    ) -> Result<PolicyTtft, NoTtft> {
        let has_directory = |placed: &Option<Placed>| placed.map(|placed| placed.has_directory);
        if !recorded.iter().map(has_directory).eq(placed.iter().map(has_directory)) {
            return Err(NoTtft::OtherDirectory);
        }
        let mut estimated_s = Vec::new();
        let mut extrapolated = 0_u64;
        self.pass(placed, |times, work| {
            let Some(first_token) = times.first_token else { return times.recorded_stay() };
            let ttft_s = model.ttft_s(work);
            estimated_s.push(ttft_s);
            extrapolated += u64::from(!range.contains(work));
            let prefilled = times.decided.plus_nanos(Timestamp::from_secs_f64(ttft_s).as_nanos());
            let decoded = |end: Timestamp| prefilled.plus_nanos(end.nanos_since(first_token));
            Stay { prefilled, ended: times.end.map_or(Timestamp::MAX, decoded) }
        });
        let extrapolated_share = extrapolated as f64 / estimated_s.len() as f64;
        if extrapolated_share > EXTRAPOLATED_SHARE_MAX {
            return Err(NoTtft::Extrapolated { share: extrapolated_share });
        }
        Ok(PolicyTtft { estimated_s, extrapolated_share })
    }

    /// The requests with a first token, in order.
    fn observed(&self, recorded: &[Option<Placed>]) -> Vec<Observed> {
        let mut observed = Vec::new();
        self.pass(recorded, |times, work| {
            if let Some(first_token) = times.first_token {
                let ttft_s = first_token.since(times.decided).as_secs_f64();
                observed.push(Observed { work: *work, ttft_s });
            }
            times.recorded_stay()
        });
        observed
    }

    /// Sends the requests through the queues where they were placed. `stay` is told what an instance has to do at each
    /// decision, and says how long the request will take there.
    fn pass(&self, placed: &[Option<Placed>], mut stay: impl FnMut(&RequestTimes, &Work) -> Stay) {
        let mut instances: BTreeMap<InstanceId, Queue> = BTreeMap::new();
        let mut start = 0;
        for (times, placed) in self.requests.iter().zip(placed) {
            if times.start != start {
                instances.clear();
                start = times.start;
            }
            let Some(Placed { instance, uncached_tokens, has_directory: _ }) = *placed else {
                continue;
            };
            let queue = instances.entry(instance).or_default();
            queue.pass_time(times.decided);
            let beside = queue.ends.len() as f64;
            let queued = queue.tokens_left(times.decided);
            let work = [1.0, beside.min(1.0), f64::from(uncached_tokens), queued, beside];
            queue.enter(times.decided, uncached_tokens, stay(times, &work));
        }
    }
}

impl RequestTimes {
    /// As the router sees it: without a first token, the prefill lasts until the end.
    fn recorded_stay(&self) -> Stay {
        let ended = self.end.unwrap_or(Timestamp::MAX);
        Stay { prefilled: self.first_token.unwrap_or(ended), ended }
    }
}

impl Placed {
    pub(crate) fn new(route: &Route, decision: &Decision) -> Self {
        let cached = decision.predicted_cached_tokens;
        let uncached_tokens = route.request.prompt_tokens.0 - cached.map_or(0, |tokens| tokens.0);
        Self { instance: decision.instance, uncached_tokens, has_directory: cached.is_some() }
    }
}

/// What an instance has to do.
#[derive(Default)]
struct Queue {
    /// When each prompt will have been computed, when it was sent there, and its uncached tokens.
    prefills: BinaryHeap<Reverse<(Timestamp, Timestamp, u32)>>,
    /// Sum of their tokens.
    uncached_tokens: u64,
    /// When the latest prompt had been computed.
    prefilled: Timestamp,
    /// When each request in flight will end.
    ends: BinaryHeap<Reverse<Timestamp>>,
}

impl Queue {
    fn pass_time(&mut self, now: Timestamp) {
        while let Some(Reverse((at, _, tokens))) =
            self.prefills.peek().copied().filter(|Reverse((at, ..))| *at <= now)
        {
            self.prefills.pop();
            self.uncached_tokens -= u64::from(tokens);
            self.prefilled = at;
        }
        while self.ends.peek().is_some_and(|&Reverse(at)| at <= now) {
            self.ends.pop();
        }
    }

    /// Uncached tokens less what has been computed of the first prompt: a part of it as large as the part of its time.
    fn tokens_left(&self, now: Timestamp) -> f64 {
        let all = self.uncached_tokens as f64;
        let Some(&Reverse((at, sent, tokens))) = self.prefills.peek() else { return all };
        let began = sent.max(self.prefilled);
        // Not zero: the prefill is over later than now, and began no later.
        let whole_ns = at.nanos_since(began) as f64;
        all - f64::from(tokens) * now.nanos_since(began) as f64 / whole_ns
    }

    fn enter(&mut self, now: Timestamp, tokens: u32, stay: Stay) {
        self.prefills.push(Reverse((stay.prefilled, now, tokens)));
        self.uncached_tokens += u64::from(tokens);
        self.ends.push(Reverse(stay.ended));
    }
}

/// Least and greatest of each kind of work that was recorded.
struct Range([(f64, f64); COEFFICIENTS]);

impl Range {
    fn of(observed: &[Observed]) -> Self {
        let mut range = [(f64::INFINITY, f64::NEG_INFINITY); COEFFICIENTS];
        for Observed { work, .. } in observed {
            for ((least, greatest), value) in range.iter_mut().zip(work) {
                (*least, *greatest) = (least.min(*value), greatest.max(*value));
            }
        }
        Self(range)
    }

    fn contains(&self, work: &Work) -> bool {
        self.0
            .iter()
            .zip(work)
            .all(|((least, greatest), value)| (least..=greatest).contains(&value))
    }
}

/// 1 - mean squared error / variance; not a number without variance.
fn explained_share(observed: &[f64], predicted: &[f64]) -> f64 {
    // From the first on, so that equal ones differ from their mean by nothing.
    let apart: Vec<f64> = observed.iter().map(|is| is - observed[0]).collect();
    let mean = mean(&apart);
    let squares: f64 = apart.iter().map(|it| (it - mean).powi(2)).sum();
    let errors: f64 = observed.iter().zip(predicted).map(|(is, said)| (said - is).powi(2)).sum();
    if squares > 0.0 { 1.0 - errors / squares } else { f64::NAN }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests;
