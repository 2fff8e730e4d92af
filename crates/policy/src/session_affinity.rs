//! `session-affinity`: every request of a session goes to the session's home.
//!
//! ```text
//! key    = session key, else prefix key
//! choice = home(key);   without a key: argmin over eligible i of load_i
//! ```
//!
//! * session key, prefix key: stable hashes the router derives from the request ([`RequestView`]);
//! * `home`: by [`SessionAffinityConfig::hash`], see [`HashRule`] for the formulas;
//! * `load_i`: [`Candidate::load`] by [`SessionAffinityConfig::load`]; ties as in `jsq`.
//!
//! Load does not move a session. One of the six policies of the original study (design, section 3),
//! which used the hash modulo the number of instances.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::{
    Candidate, Decision, Event, HashRule, LeastLoaded, LoadSignal, Needs, Policy, Reason,
    RequestView, Scores,
};

/// Parameters of `session-affinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionAffinityConfig {
    /// How a key picks its home. Default [`HashRule::Rendezvous`] (design, section 3).
    pub hash: HashRule,
    /// What counts as load for requests without any key. Default [`LoadSignal::Total`], as in `jsq`.
    pub load: LoadSignal,
}

/// The `session-affinity` policy.
#[derive(Clone, Debug)]
pub struct SessionAffinity {
    config: SessionAffinityConfig,
    least_loaded: LeastLoaded,
}

impl SessionAffinity {
    /// The policy with these parameters.
    pub const fn new(config: SessionAffinityConfig) -> Self {
        Self { config, least_loaded: LeastLoaded::new(config.load) }
    }
}

impl Policy for SessionAffinity {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(N), with or without a home. Notes scores (negated loads) only for a request without a key.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let SessionAffinityConfig { hash, load: _ } = self.config;
        let (position, reason) = match (request.session_key, request.prefix_key) {
            (Some(session), _) => (hash.home(session, candidates)?, Reason::SessionHome),
            (None, Some(prefix)) => (hash.home(prefix, candidates)?, Reason::PrefixHome),
            (None, None) => {
                self.least_loaded.record_scores(candidates, scores);
                (self.least_loaded.choose(candidates)?, Reason::Fallback)
            }
        };
        Some(Decision { position, reason })
    }

    fn observe(&mut self, event: Event<'_>) {
        self.least_loaded.observe(event);
    }
}

impl Settings for SessionAffinityConfig {
    fn name(&self) -> &'static str {
        "session-affinity"
    }

    fn summary(&self) -> &'static str {
        "the session's home by hash; without a session the prefix's, without both the least loaded"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[("hash", HashRule::ABOUT), ("load", LoadSignal::ABOUT)]
    }

    fn signals(&self) -> Vec<&'static str> {
        [&["session_key", "prefix_key"], self.load.signals()].concat()
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(SessionAffinity::new(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{choose, choose_scored, request, running};

    const MODULO: SessionAffinityConfig =
        SessionAffinityConfig { hash: HashRule::Modulo, load: LoadSignal::Total };

    fn keyed(session: Option<u64>, prefix: Option<u64>) -> RequestView<'static> {
        RequestView { session_key: session, prefix_key: prefix, ..request() }
    }

    #[test]
    fn session_then_prefix_then_least_loaded() {
        let table = running(&[9, 9, 9, 1]);
        let mut policy = SessionAffinity::new(MODULO);
        let cases = [
            (Some(5), Some(6), 1, Reason::SessionHome), // 5 mod 4
            (None, Some(6), 2, Reason::PrefixHome),     // 6 mod 4
            (None, None, 3, Reason::Fallback),
        ];
        for (session, prefix, position, reason) in cases {
            let choice = choose(&mut policy, &keyed(session, prefix), &table);
            assert_eq!(choice, Some((position, reason)));
        }
    }

    #[test]
    fn only_the_fall_back_has_scores() {
        let table = running(&[4, 2]);
        let mut policy = SessionAffinity::new(MODULO);
        assert_eq!(choose_scored(&mut policy, &keyed(Some(1), None), &table).1, []);
        let (_, scores) = choose_scored(&mut policy, &keyed(None, None), &table);
        assert_eq!(scores, [(10, -4.0), (20, -2.0)]);
    }

    #[test]
    fn load_does_not_move_a_session() {
        let mut policy = SessionAffinity::new(SessionAffinityConfig::default());
        for session in 0..50 {
            let request = keyed(Some(session), None);
            let (home, _) = choose(&mut policy, &request, &running(&[0; 5])).unwrap();
            let mut table = running(&[0; 5]);
            table[home].unseen_in_flight = 1_000;
            assert_eq!(choose(&mut policy, &request, &table), Some((home, Reason::SessionHome)));
        }
    }

    #[test]
    fn a_session_leaves_its_home_while_that_is_out_and_then_returns() {
        let mut policy = SessionAffinity::new(SessionAffinityConfig::default());
        let request = keyed(Some(77), None);
        let mut table = running(&[0; 5]);
        let (home, _) = choose(&mut policy, &request, &table).unwrap();
        table[home].eligible = false;
        let (refuge, reason) = choose(&mut policy, &request, &table).unwrap();
        assert_ne!(refuge, home);
        assert_eq!(reason, Reason::SessionHome, "the home among those eligible");
        table[home].eligible = true;
        assert_eq!(choose(&mut policy, &request, &table), Some((home, Reason::SessionHome)));
    }
}
