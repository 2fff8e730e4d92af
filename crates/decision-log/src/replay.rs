//! A router that is told again what a log holds.

use hashbrown::HashMap;
use kvroute_policy::{InvalidPolicy, PolicyConfig};
use kvroute_router::{InvalidRouterConfig, Router, RouterConfig, SnapshotError, Ticket};
use kvroute_types::{RequestId, Timestamp};
use rustc_hash::FxBuildHasher;

use crate::event::{Decision, Event, Route, Start};

/// Why an event cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The policy cannot be built.
    #[error("in the policy")]
    Policy(#[from] InvalidPolicy),
    /// The router cannot be built.
    #[error("in the router's settings")]
    Router(#[from] InvalidRouterConfig),
    /// An event of a request that is not in flight.
    #[error("request {request} is not in flight here; is a line missing or changed?")]
    NotInFlight {
        /// The request.
        request: RequestId,
    },
    /// What a router was restored from is not usable.
    #[error("in what the instances told before the gateway started")]
    Snapshot(#[from] SnapshotError),
    /// A start or a gap: the router's state before says nothing of that after.
    #[error("a start or a gap cannot be replayed; begin a new replay there")]
    NoInput,
}

/// A router that is told again what a log holds, under the log's policies or under one of choice.
#[derive(Debug)]
pub struct Replay {
    router: Router,
    /// Looked up only.
    tickets: HashMap<RequestId, Ticket, FxBuildHasher>,
    seed: u64,
    /// Whether exchanges of the policy are replayed too.
    follows_policy: bool,
}

impl Replay {
    /// A replay under the policies of the log.
    ///
    /// # Errors
    /// If the start's settings are out of range.
    pub fn as_recorded(start: &Start) -> Result<Self, ReplayError> {
        Self::new(start, start.policy, true)
    }

    /// A replay under this policy from beginning to end.
    ///
    /// # Errors
    /// If its parameters, or the start's settings, are out of range, or the policy is one for simulations.
    pub fn counterfactual(start: &Start, policy: PolicyConfig) -> Result<Self, ReplayError> {
        Self::new(start, policy, false)
    }

    fn new(start: &Start, policy: PolicyConfig, follows_policy: bool) -> Result<Self, ReplayError> {
        let Start { seed, router, policy: _, format: _, version: _ } = start;
        // Receipts decide nothing.
        let config = RouterConfig { receipts: false, ..router.clone() };
        policy.validate_live()?;
        let router = Router::new(config, policy.build(*seed)?, *seed)?;
        Ok(Self { router, tickets: HashMap::default(), seed: *seed, follows_policy })
    }

    /// The router as it is now.
    pub const fn router(&self) -> &Router {
        &self.router
    }

    /// Tells the router of the next event. The decision, if the event asks for one and an instance could be chosen.
    ///
    /// # Errors
    /// [`ReplayError`]: the event does not follow those before.
    pub fn apply(&mut self, at: Timestamp, event: &Event) -> Result<Option<Decision>, ReplayError> {
        match event {
            Event::Start(_) | Event::Gap { .. } => return Err(ReplayError::NoInput),
            Event::InstanceAdded { id, name: _ } => self.router.add_instance(*id),
            Event::InstanceRemoved { id } => self.router.remove_instance(*id),
            Event::Eligible { id, eligible } => self.router.set_eligible(*id, *eligible),
            Event::Policy(policy) if self.follows_policy => {
                self.router.set_policy(policy.build(self.seed)?);
            }
            Event::Policy(_) => {}
            Event::Load { id, reading } => self.router.observe_load(at, *id, *reading),
            Event::Cache { id, news } => self.router.observe_cache(at, *id, news.clone()),
            Event::Believed { id, believed } => self.router.set_believed(*id, *believed),
            Event::InstanceRestarted { id } => self.router.instance_restarted(*id),
            Event::Restored { snapshot } => self.router.restore(snapshot.as_slice())?,
            Event::Route(route) => {
                let Route { request, excluded, .. } = &**route;
                let routed = self.router.route_except(at, &request.view(), excluded);
                return Ok(routed.map(|routed| {
                    let decision = Decision::from(&routed);
                    self.tickets.insert(request.id, routed.ticket);
                    decision
                }));
            }
            Event::FirstToken { request } => {
                let ticket = self.tickets.get(request);
                let ticket = ticket.ok_or(ReplayError::NotInFlight { request: *request })?;
                self.router.first_token(at, ticket);
            }
            Event::End { request } => {
                let ticket = self.tickets.remove(request);
                let ticket = ticket.ok_or(ReplayError::NotInFlight { request: *request })?;
                self.router.end(at, ticket);
            }
        }
        Ok(None)
    }
}
