//! A log beside itself, and beside what other policies would have decided.
//!
//! ```text
//! hit rate, predicted = predicted cached tokens / prompt tokens, over all decisions
//! mean in flight_i    = integral of i's requests in flight over the log's time, / that time
//! imbalance           = max_i mean in flight_i / mean_i mean in flight_i
//! ```
//!
//! A counterfactual changes where requests go and nothing else: when they came, which instances could be chosen, what
//! the instances said of their load, and how long each request took are as recorded. So these figures tell how the policies
//! differ in their decisions. What times to first token the decisions would have led to is estimated from them
//! ([`Comparison::ttft`]); the header of `ttft.rs` says how, and what that leaves out.

use std::collections::BTreeMap;

use kvroute_policy::PolicyConfig;
use kvroute_types::{InstanceId, RequestId, Timestamp};
use serde::Serialize;

use crate::event::{Decision, Event, Route, Start};
use crate::reader::Entry;
use crate::replay::{Replay, ReplayError};
use crate::ttft::{NoTtft, Placed, Times, TtftEstimates};

/// What was found of a log.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LogSummary {
    /// Starts of the gateway.
    pub starts: u64,
    /// Decisions that were made again.
    pub decisions: u64,
    /// Those of them that came out as recorded.
    pub reproduced: u64,
    /// The first that did not.
    pub first_difference: Option<Difference>,
    /// Events that the log itself says are missing.
    pub lost_events: u64,
    /// Decisions that could not be made again, since they come after a gap.
    pub decisions_after_gaps: u64,
}

/// A decision that was not reproduced.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Its line.
    pub line: u64,
    /// The request.
    pub request: RequestId,
    /// What the log says.
    pub recorded: Option<Decision>,
    /// What the router says now.
    pub replayed: Option<Decision>,
}

/// What one policy makes of a log.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyFigures {
    /// Decisions.
    pub decisions: u64,
    /// Those that chose another instance than the recorded one.
    pub differing: u64,
    /// `differing` over `decisions`; `None` without decisions.
    pub differing_share: Option<f64>,
    /// Prompt tokens of all decisions.
    pub prompt_tokens: u64,
    /// Those believed cached at the chosen instances; `None` without a cache directory.
    pub predicted_cached_tokens: Option<u64>,
    /// `predicted_cached_tokens` over `prompt_tokens`.
    pub predicted_hit_rate: Option<f64>,
    /// Greatest over mean of the instances' mean requests in flight; `None` if nothing was in flight for any time.
    pub in_flight_imbalance: Option<f64>,
    /// By instance, in the order of their names.
    pub per_instance: Vec<InstanceShare>,
}

/// One instance under one policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InstanceShare {
    /// Its name.
    pub instance: String,
    /// Decisions for it.
    pub decisions: u64,
    /// Mean requests in flight, over the log's time; `None` if that is none.
    pub in_flight_mean: Option<f64>,
}

/// Replays a log under its own policies and, side by side, under others. Feed it every entry in order.
#[derive(Debug)]
pub struct Comparison {
    summary: LogSummary,
    recorded: Column,
    others: Vec<Column>,
    names: BTreeMap<InstanceId, String>,
    /// When the latest event was; `None` where the log cannot be followed.
    latest: Option<Timestamp>,
    followed_ns: u64,
    times: Times,
}

impl Comparison {
    /// A comparison of what a log holds with what these policies would have decided.
    pub fn new(policies: &[PolicyConfig]) -> Self {
        let column =
            |policy| Column { policy, replay: None, tally: Tally::default(), placed: Vec::new() };
        Self {
            summary: LogSummary::default(),
            recorded: column(None),
            others: policies.iter().map(|&policy| column(Some(policy))).collect(),
            names: BTreeMap::new(),
            latest: None,
            followed_ns: 0,
            times: Times::default(),
        }
    }

    /// Takes in the next entry.
    ///
    /// # Errors
    /// [`ReplayError`]: the entry does not follow those before.
    pub fn add(&mut self, entry: &Entry) -> Result<(), ReplayError> {
        match &entry.event {
            Event::Start(start) => return self.start(entry.at, start),
            Event::Gap { lost } => {
                self.summary.lost_events += lost;
                self.latest = None;
            }
            _ if self.latest.is_none() => {
                let is_decision = matches!(&entry.event, Event::Route(it) if it.decision.is_some());
                self.summary.decisions_after_gaps += u64::from(is_decision);
            }
            event => {
                self.pass_time(entry.at);
                if let Event::InstanceAdded { id, name } = event {
                    self.names.insert(*id, name.clone());
                }
                self.apply(entry, event)?;
            }
        }
        Ok(())
    }

    /// What was found of the log.
    pub const fn summary(&self) -> &LogSummary {
        &self.summary
    }

    /// The log's own decisions.
    pub fn recorded(&self) -> PolicyFigures {
        self.recorded.tally.figures(self.followed_ns)
    }

    /// Those of the other policies, in the order in which they were given.
    pub fn others(&self) -> Vec<PolicyFigures> {
        self.others.iter().map(|column| column.tally.figures(self.followed_ns)).collect()
    }

    /// What the policies would have led to, as far as the log can tell.
    ///
    /// # Errors
    /// [`NoTtft`] if it cannot.
    pub fn ttft(&self) -> Result<TtftEstimates, NoTtft> {
        let others = self.others.iter().map(|column| column.placed.as_slice());
        self.times.estimate(&self.recorded.placed, others)
    }

    fn start(&mut self, at: Timestamp, start: &Start) -> Result<(), ReplayError> {
        self.summary.starts += 1;
        self.times.start();
        self.latest = Some(at);
        self.names.clear();
        for column in std::iter::once(&mut self.recorded).chain(&mut self.others) {
            column.replay = Some(match column.policy {
                None => Replay::as_recorded(start)?,
                Some(policy) => Replay::counterfactual(start, policy)?,
            });
        }
        Ok(())
    }

    fn pass_time(&mut self, now: Timestamp) {
        let Some(latest) = self.latest.filter(|latest| *latest < now) else { return };
        let ns = now.nanos_since(latest);
        self.followed_ns += ns;
        self.latest = Some(now);
        for column in std::iter::once(&mut self.recorded).chain(&mut self.others) {
            column.pass_time(ns, &self.names);
        }
    }

    fn apply(&mut self, entry: &Entry, event: &Event) -> Result<(), ReplayError> {
        let replayed = self.recorded.apply(entry.at, event, &self.names)?;
        for column in &mut self.others {
            column.apply(entry.at, event, &self.names)?;
        }
        self.times.add(entry.at, event);
        if let Event::Route(route) = event {
            let Route { request, decision, .. } = &**route;
            if *decision != replayed && self.summary.first_difference.is_none() {
                self.summary.first_difference = Some(Difference {
                    line: entry.line,
                    request: request.id,
                    recorded: *decision,
                    replayed,
                });
            }
            if decision.is_some() {
                self.summary.decisions += 1;
                self.summary.reproduced += u64::from(*decision == replayed);
            }
        }
        Ok(())
    }
}

/// One policy.
#[derive(Debug)]
struct Column {
    /// `None` for those of the log.
    policy: Option<PolicyConfig>,
    /// `None` before the first start.
    replay: Option<Replay>,
    tally: Tally,
    /// Where each request went; `None` where no instance could be chosen.
    placed: Vec<Option<Placed>>,
}

impl Column {
    fn apply(
        &mut self,
        at: Timestamp,
        event: &Event,
        names: &BTreeMap<InstanceId, String>,
    ) -> Result<Option<Decision>, ReplayError> {
        let Some(replay) = &mut self.replay else { return Err(ReplayError::NoInput) };
        let decision = replay.apply(at, event)?;
        if let Event::Route(route) = event {
            self.placed.push(decision.map(|decision| Placed::new(route, &decision)));
            if let Some(decision) = decision {
                self.tally.decided(route, decision, names);
            }
        }
        Ok(decision)
    }

    fn pass_time(&mut self, ns: u64, names: &BTreeMap<InstanceId, String>) {
        let Some(replay) = &self.replay else { return };
        for candidate in replay.router().candidates() {
            let share = self.tally.share(candidate.id, names);
            share.in_flight_ns += u128::from(ns) * u128::from(candidate.in_flight);
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    decisions: u64,
    differing: u64,
    prompt_tokens: u64,
    predicted_cached_tokens: Option<u64>,
    /// By name: an instance that left and came back, or a gateway that started again, counts on.
    shares: BTreeMap<String, Share>,
}

#[derive(Debug, Default)]
struct Share {
    decisions: u64,
    in_flight_ns: u128,
}

impl Tally {
    fn share(&mut self, id: InstanceId, names: &BTreeMap<InstanceId, String>) -> &mut Share {
        let name = names.get(&id).map_or("", String::as_str);
        if !self.shares.contains_key(name) {
            self.shares.insert(name.to_owned(), Share::default());
        }
        self.shares.get_mut(name).expect("it was entered above")
    }

    fn decided(&mut self, route: &Route, decision: Decision, names: &BTreeMap<InstanceId, String>) {
        self.decisions += 1;
        let recorded = route.decision.map(|recorded| recorded.instance);
        self.differing += u64::from(recorded != Some(decision.instance));
        self.prompt_tokens += u64::from(route.request.prompt_tokens.0);
        if let Some(tokens) = decision.predicted_cached_tokens {
            *self.predicted_cached_tokens.get_or_insert(0) += u64::from(tokens.0);
        }
        self.share(decision.instance, names).decisions += 1;
    }

    fn figures(&self, ns: u64) -> PolicyFigures {
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let mean = |share: &Share| (ns > 0).then(|| share.in_flight_ns as f64 / ns as f64);
        let in_flight = || self.shares.values().filter_map(mean);
        let total: f64 = in_flight().sum();
        let greatest = in_flight().fold(0.0, f64::max);
        PolicyFigures {
            decisions: self.decisions,
            differing: self.differing,
            differing_share: ratio(self.differing, self.decisions),
            prompt_tokens: self.prompt_tokens,
            predicted_cached_tokens: self.predicted_cached_tokens,
            predicted_hit_rate: self
                .predicted_cached_tokens
                .and_then(|tokens| ratio(tokens, self.prompt_tokens)),
            in_flight_imbalance: (total > 0.0).then(|| greatest * self.shares.len() as f64 / total),
            per_instance: self
                .shares
                .iter()
                .map(|(name, share)| InstanceShare {
                    instance: name.clone(),
                    decisions: share.decisions,
                    in_flight_mean: mean(share),
                })
                .collect(),
        }
    }
}
