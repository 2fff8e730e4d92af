//! The routers of a run, one after the other.

use std::collections::VecDeque;

use kvroute_policy::PolicyConfig;
use kvroute_router::{Refresh, Router};
use kvroute_types::{InstanceId, Timestamp, mix64};

use crate::config::{InvalidSim, RouterRestart, SimConfig};

/// The router at work, and those that will take its place.
///
/// All are made before the run, so that a setting that cannot be used is found before anything is simulated.
#[derive(Debug)]
pub(crate) struct Routers {
    pub(crate) current: Router,
    /// Number of the current one, from 0.
    pub(crate) number: usize,
    due: VecDeque<(Timestamp, Router)>,
    /// Fingerprint of the decisions of earlier routers; `None` if there were none.
    earlier_decisions: Option<u64>,
}

impl Routers {
    pub(crate) fn new(config: &SimConfig) -> Result<Self, InvalidSim> {
        let mut policy = &config.policy;
        let mut current = router(config, policy, config.seed)?;
        let mut due = VecDeque::new();
        let mut previous_s = None;
        for (number, RouterRestart { at_s, policy: next }) in (1..).zip(&config.router_restarts) {
            let at_s = *at_s;
            if !(at_s.is_finite() && at_s >= 0.0) {
                return Err(InvalidSim::Seconds { key: "at_s of a router restart", value: at_s });
            }
            if let Some(previous_s) = previous_s.replace(at_s).filter(|previous| *previous >= at_s)
            {
                return Err(InvalidSim::RestartOrder { at_s, previous_s });
            }
            policy = next.as_ref().unwrap_or(policy);
            let at = Timestamp::from_secs_f64(at_s);
            if at == Timestamp::ZERO {
                current = router(config, policy, config.seed)?;
            } else {
                // A process that starts draws numbers of its own.
                due.push_back((at, router(config, policy, mix64(config.seed ^ mix64(number)))?));
            }
        }
        Ok(Self { current, number: 0, due, earlier_decisions: None })
    }

    /// When the next one takes over.
    pub(crate) fn next_restart(&self) -> Option<Timestamp> {
        self.due.front().map(|&(at, _)| at)
    }

    /// The next one takes over; what the current one knows is gone.
    pub(crate) fn restart(&mut self) {
        let Some((_, next)) = self.due.pop_front() else { return };
        self.earlier_decisions = self.decisions();
        self.current = next;
        self.number += 1;
    }

    /// Fingerprint of all decisions so far, in order.
    pub(crate) fn decision_log_hash(&self) -> u64 {
        self.decisions().unwrap_or(0)
    }

    /// Whether any of them learns from what instances tell of their caches.
    pub(crate) fn any_hears_cache_events(&self) -> bool {
        self.all().any(Router::hears_cache_events)
    }

    /// Whether any of them hears of every change of load.
    pub(crate) fn any_hears_every_load(&self) -> bool {
        self.all().any(hears_every_load)
    }

    /// Fingerprint of the decisions so far; `None` if there are none. One router's is its own, whatever comes before or
    /// after it without deciding.
    fn decisions(&self) -> Option<u64> {
        if self.current.decisions() == 0 {
            return self.earlier_decisions;
        }
        let hash = self.current.decision_log_hash();
        Some(self.earlier_decisions.map_or(hash, |earlier| mix64(mix64(earlier) ^ hash)))
    }

    fn all(&self) -> impl Iterator<Item = &Router> {
        std::iter::once(&self.current).chain(self.due.iter().map(|(_, router)| router))
    }
}

/// Whether the router's policy reads any of the instances' gauges.
pub(crate) fn reads_load(router: &Router) -> bool {
    router.needs().load || router.needs().kv_cache_usage
}

/// Whether the router is to be told of every change of load.
pub(crate) fn hears_every_load(router: &Router) -> bool {
    reads_load(router) && router.load_refresh() == Refresh::RealTime
}

fn router(config: &SimConfig, policy: &PolicyConfig, seed: u64) -> Result<Router, InvalidSim> {
    let policy = policy.build(seed).map_err(InvalidSim::Policy)?;
    let mut router =
        Router::new(config.router.clone(), policy, seed).map_err(InvalidSim::Router)?;
    for id in 0..config.instances {
        router.add_instance(InstanceId(id));
    }
    Ok(router)
}
