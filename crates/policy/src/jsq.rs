//! `jsq`: join the shortest queue.
//!
//! ```text
//! choice  = argmin over eligible i of load_i;   ties: least recently chosen, then least id
//! score_i = -load_i
//! ```
//!
//! * `load_i`: [`Candidate::load`] by [`JsqConfig::load`], in requests.
//!
//! Optimal for like servers with exponential service times and exact queue lengths: Winston, "Optimality
//! of the shortest line discipline", Journal of Applied Probability 14(1), 1977. Neither holds here: load
//! readings are late and service times differ, which is why the default load adds our own requests that
//! the reading cannot have counted.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::{
    Candidate, Decision, Event, LeastLoaded, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};

/// Parameters of `jsq`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsqConfig {
    /// What counts as load. Default [`LoadSignal::Total`] (design, section 3).
    pub load: LoadSignal,
}

/// The `jsq` policy.
#[derive(Clone, Debug)]
pub struct Jsq {
    config: JsqConfig,
    least_loaded: LeastLoaded,
}

impl Jsq {
    /// The policy with these parameters.
    pub const fn new(config: JsqConfig) -> Self {
        let JsqConfig { load } = config;
        Self { config, least_loaded: LeastLoaded::new(load) }
    }
}

impl Policy for Jsq {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { load: self.config.load.needs_reading(), ..Needs::default() }
    }

    /// O(1) for the table last observed, else O(N); O(N) with scores.
    fn choose(
        &mut self,
        _now: Timestamp,
        _request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        self.least_loaded.record_scores(candidates, scores);
        let position = self.least_loaded.choose(candidates)?;
        Some(Decision { position, reason: Reason::LeastLoaded })
    }

    fn observe(&mut self, event: Event<'_>) {
        self.least_loaded.observe(event);
    }
}

impl Settings for JsqConfig {
    fn name(&self) -> &'static str {
        "jsq"
    }

    fn summary(&self) -> &'static str {
        "join the shortest queue: the least loaded instance"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[("load", LoadSignal::ABOUT)]
    }

    fn signals(&self) -> Vec<&'static str> {
        self.load.signals().to_vec()
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Jsq::new(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{choose, choose_scored, request, running};

    #[test]
    fn the_shortest_queue_wins_and_every_eligible_load_is_a_score() {
        let mut table = running(&[4, 0, 3, 1]);
        table[1].eligible = false;
        let (decision, scores) =
            choose_scored(&mut Jsq::new(JsqConfig::default()), &request(), &table);
        assert_eq!(decision, Some((3, Reason::LeastLoaded)));
        assert_eq!(scores, [(10, -4.0), (30, -3.0), (40, -1.0)]);
    }

    #[test]
    fn each_signal_counts_what_it_says() {
        let mut table = running(&[5, 6, 7]);
        // waiting, running, in flight, of which unseen:
        //   3, 5, 0, 0   -> total  8
        //   1, 6, 4, 0   -> total  7
        //   0, 7, 9, 9   -> total 16
        for (candidate, (waiting, in_flight, unseen)) in
            table.iter_mut().zip([(3, 0, 0), (1, 4, 0), (0, 9, 9)])
        {
            candidate.load.as_mut().unwrap().waiting = waiting;
            candidate.in_flight = in_flight;
            candidate.unseen_in_flight = unseen;
        }
        for (load, position) in
            [(LoadSignal::Total, 1), (LoadSignal::Waiting, 2), (LoadSignal::InFlight, 0)]
        {
            let mut policy = Jsq::new(JsqConfig { load });
            let choice = choose(&mut policy, &request(), &table);
            assert_eq!(choice, Some((position, Reason::LeastLoaded)), "{load:?}");
        }
    }

    #[test]
    fn without_a_reading_our_own_requests_are_the_load() {
        let mut table = running(&[2, 1]);
        table[1].load = None;
        table[1].unseen_in_flight = 3;
        let mut policy = Jsq::new(JsqConfig::default());
        assert_eq!(choose(&mut policy, &request(), &table), Some((0, Reason::LeastLoaded)));
    }

    #[test]
    fn an_idle_instance_scores_plain_zero() {
        let table = running(&[0]);
        let (_, scores) = choose_scored(&mut Jsq::new(JsqConfig::default()), &request(), &table);
        assert!(scores[0].1.is_sign_positive());
    }
}
