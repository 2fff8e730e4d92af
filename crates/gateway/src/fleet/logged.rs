//! The one place where the gateway calls the router: what changes it passes here, and into the decision log if there
//! is one.

use std::ops::Deref;
use std::time::Instant;

use kvroute_decision_log::{Decision, Event, FORMAT, LoggedRequest, Route, Start};
use kvroute_policy::{Policy, PolicyConfig, RequestView};
use kvroute_router::{CacheNews, InvalidRouterConfig, Routed, Router, SnapshotError, Ticket};
use kvroute_types::{InstanceId, LoadSnapshot, Timestamp};

use crate::config::GatewayConfig;
use crate::receipts::DecisionLog;

/// A router whose every change is logged. What only looks goes to the router itself.
pub(super) struct LoggedRouter {
    router: Router,
    log: Option<DecisionLog>,
    started: Instant,
}

impl Deref for LoggedRouter {
    type Target = Router;

    fn deref(&self) -> &Router {
        &self.router
    }
}

impl LoggedRouter {
    /// A router under the configured policy, which is `policy`, without instances.
    pub(super) fn new(
        config: &GatewayConfig,
        policy: Box<dyn Policy>,
        log: Option<DecisionLog>,
        started: Instant,
    ) -> Result<Self, InvalidRouterConfig> {
        let router = Router::new(config.router(), policy, config.seed)?;
        let mut logged = Self { router, log, started };
        logged.note(|| {
            Event::Start(Box::new(Start {
                format: FORMAT,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                seed: config.seed,
                policy: config.policy,
                router: config.router(),
            }))
        });
        Ok(logged)
    }

    pub(super) fn add_instance(&mut self, id: InstanceId, name: &str) {
        self.router.add_instance(id);
        self.note(|| Event::InstanceAdded { id, name: name.to_owned() });
    }

    pub(super) fn remove_instance(&mut self, id: InstanceId) {
        self.router.remove_instance(id);
        self.note(|| Event::InstanceRemoved { id });
    }

    /// `was` is what the table says of it now.
    pub(super) fn set_eligible(&mut self, id: InstanceId, was: bool, eligible: bool) {
        if was != eligible {
            self.router.set_eligible(id, eligible);
            self.note(|| Event::Eligible { id, eligible });
        }
    }

    /// `policy` was built from `config` and the router's seed.
    pub(super) fn set_policy(&mut self, policy: Box<dyn Policy>, config: PolicyConfig) {
        self.router.set_policy(policy);
        self.note(|| Event::Policy(config));
    }

    pub(super) fn observe_load(&mut self, now: Timestamp, id: InstanceId, reading: LoadSnapshot) {
        self.router.observe_load(now, id, reading);
        if let Some(log) = &mut self.log {
            log.append(now, Event::Load { id, reading });
        }
    }

    pub(super) fn observe_cache(&mut self, now: Timestamp, id: InstanceId, news: CacheNews) {
        if let Some(log) = &mut self.log {
            log.append(now, Event::Cache { id, news: news.clone() });
        }
        self.router.observe_cache(now, id, news);
    }

    pub(super) fn set_believed(&mut self, id: InstanceId, believed: bool) {
        self.router.set_believed(id, believed);
        self.note(|| Event::Believed { id, believed });
    }

    pub(super) fn instance_restarted(&mut self, id: InstanceId) {
        self.router.instance_restarted(id);
        self.note(|| Event::InstanceRestarted { id });
    }

    pub(super) fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.router.restore(snapshot)?;
        self.note(|| Event::Restored { snapshot: snapshot.to_vec() });
        Ok(())
    }

    pub(super) fn route_except(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        excluded: &[InstanceId],
        attempt: u32,
    ) -> Option<Routed> {
        let routed = self.router.route_except(now, request, excluded);
        if let Some(log) = &mut self.log {
            let route = Route {
                request: LoggedRequest::from(request),
                attempt,
                excluded: excluded.to_vec(),
                decision: routed.as_ref().map(Decision::from),
                receipt: routed.as_ref().and_then(|routed| routed.receipt.clone()),
            };
            log.append(now, Event::Route(Box::new(route)));
        }
        routed
    }

    pub(super) fn first_token(&mut self, ticket: &Ticket) {
        let now = self.now();
        self.router.first_token(now, ticket);
        self.note_at(now, || Event::FirstToken { request: ticket.request() });
    }

    pub(super) fn end(&mut self, ticket: Ticket) {
        let request = ticket.request();
        let now = self.now();
        self.router.end(now, ticket);
        self.note_at(now, || Event::End { request });
    }

    /// Takes the log away: what happens from here on is not in it.
    pub(super) fn take_log(&mut self) -> Option<DecisionLog> {
        self.log.take()
    }

    fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.started.elapsed()
    }

    /// Logs what just happened.
    fn note(&mut self, event: impl FnOnce() -> Event) {
        self.note_at(self.now(), event);
    }

    /// Logs what the router was told at that time.
    fn note_at(&mut self, now: Timestamp, event: impl FnOnce() -> Event) {
        if let Some(log) = &mut self.log {
            log.append(now, event());
        }
    }
}
