//! `prefix-affinity`: requests that start alike go to one home, unless it is too loaded.
//!
//! ```text
//! h      = home(prefix key)
//! choice = h                                  if load_h <  T
//!          argmin over eligible i of load_i   if load_h >= T, or without a prefix key
//! ```
//!
//! * prefix key: stable hash of the prompt's start ([`RequestView::prefix_key`]);
//! * `home`: by [`PrefixAffinityConfig::hash`], see [`HashRule`] for the formulas;
//! * `load_i`: [`Candidate::load`] by [`PrefixAffinityConfig::load`], in requests; ties as in `jsq`;
//! * `T`: [`PrefixAffinityConfig::queue_threshold`]. 0 makes it `jsq`, a great one a pure hash.
//!
//! One of the six policies of the original study, as is the threshold of 10 (design, section 3).

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::{
    Candidate, Decision, Event, HashRule, LeastLoaded, LoadSignal, Needs, Policy, Reason,
    RequestView, Scores,
};

/// Parameters of `prefix-affinity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixAffinityConfig {
    /// How a key picks its home. Default [`HashRule::Rendezvous`], as in `session-affinity`.
    pub hash: HashRule,
    /// Load of the home, in requests, from which on the least loaded instance is taken instead.
    /// Default 10 (design, section 3).
    pub queue_threshold: u32,
    /// What counts as load, for the threshold and for the fall-back. Default [`LoadSignal::Total`],
    /// as in `jsq`.
    pub load: LoadSignal,
}

impl Default for PrefixAffinityConfig {
    fn default() -> Self {
        Self { hash: HashRule::default(), queue_threshold: 10, load: LoadSignal::default() }
    }
}

/// The `prefix-affinity` policy.
#[derive(Clone, Debug)]
pub struct PrefixAffinity {
    config: PrefixAffinityConfig,
    least_loaded: LeastLoaded,
}

impl PrefixAffinity {
    /// The policy with these parameters.
    pub const fn new(config: PrefixAffinityConfig) -> Self {
        Self { config, least_loaded: LeastLoaded::new(config.load) }
    }

    /// Position of the prefix's home, if the request has a prefix and its home has room.
    fn home_with_room(&self, request: &RequestView<'_>, candidates: &[Candidate]) -> Option<usize> {
        let PrefixAffinityConfig { hash, queue_threshold, load } = self.config;
        hash.home(request.prefix_key?, candidates)
            .filter(|&home| candidates[home].load(load) < queue_threshold)
    }
}

impl Policy for PrefixAffinity {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(N). Notes scores (negated loads) only when it falls back.
    fn choose(
        &mut self,
        _now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        if let Some(position) = self.home_with_room(request, candidates) {
            return Some(Decision { position, reason: Reason::PrefixHome });
        }
        self.least_loaded.record_scores(candidates, scores);
        let position = self.least_loaded.choose(candidates)?;
        Some(Decision { position, reason: Reason::Fallback })
    }

    fn observe(&mut self, event: Event<'_>) {
        self.least_loaded.observe(event);
    }
}

impl Settings for PrefixAffinityConfig {
    fn name(&self) -> &'static str {
        "prefix-affinity"
    }

    fn summary(&self) -> &'static str {
        "the prefix's home by hash; the least loaded if the home is too loaded or there is no prefix"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("hash", HashRule::ABOUT),
            ("queue_threshold", "load of the home, in requests, that sends a request elsewhere"),
            ("load", LoadSignal::ABOUT),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        [&["prefix_key"], self.load.signals()].concat()
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(PrefixAffinity::new(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{choose, choose_scored, request, running};

    fn modulo(queue_threshold: u32, load: LoadSignal) -> PrefixAffinity {
        PrefixAffinity::new(PrefixAffinityConfig { hash: HashRule::Modulo, queue_threshold, load })
    }

    fn prefixed(key: u64) -> RequestView<'static> {
        RequestView { prefix_key: Some(key), session_key: Some(1), ..request() }
    }

    #[test]
    fn the_home_is_left_at_the_threshold_not_below() {
        let mut policy = modulo(10, LoadSignal::Total);
        for (load, expected) in
            [(9, (2, Reason::PrefixHome)), (10, (0, Reason::Fallback)), (11, (0, Reason::Fallback))]
        {
            let table = running(&[3, 8, load]);
            assert_eq!(choose(&mut policy, &prefixed(5), &table), Some(expected), "load {load}");
        }
        assert_eq!(PrefixAffinityConfig::default().queue_threshold, 10);
    }

    #[test]
    fn the_fall_back_may_be_the_home_itself() {
        let table = running(&[12, 11, 13]);
        let choice = choose(&mut modulo(10, LoadSignal::Total), &prefixed(1), &table);
        assert_eq!(choice, Some((1, Reason::Fallback)));
    }

    #[test]
    fn the_threshold_goes_by_the_chosen_signal() {
        let mut table = running(&[0, 50]);
        table[1].in_flight = 2;
        let choice = |load| choose(&mut modulo(3, load), &prefixed(1), &table).unwrap();
        assert_eq!(choice(LoadSignal::Total), (0, Reason::Fallback));
        assert_eq!(choice(LoadSignal::Waiting), (1, Reason::PrefixHome));
        assert_eq!(choice(LoadSignal::InFlight), (1, Reason::PrefixHome));
    }

    #[test]
    fn without_a_prefix_the_least_loaded_is_taken_even_with_a_session() {
        let table = running(&[4, 2]);
        let keyless = RequestView { session_key: Some(0), ..request() };
        let (decision, scores) =
            choose_scored(&mut modulo(10, LoadSignal::Total), &keyless, &table);
        assert_eq!(decision, Some((1, Reason::Fallback)));
        assert_eq!(scores, [(10, -4.0), (20, -2.0)]);
    }
}
