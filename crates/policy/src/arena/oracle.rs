//! `oracle`: the least true time to first token. For the simulator only.
//!
//! ```text
//! choice = argmin over eligible i of  ttft_i;   ties: least in flight, least recently chosen, least id
//! ```
//!
//! * `ttft_i`: [`Candidate::true_ttft`]: when this request's first token would be at the client if it went to `i`, found by
//!   letting the engine model run on from its true state: the step that runs, the queue, what is on its way there, what
//!   its cache holds now. Unknown counts as never, so without the simulator the rule is `jsq` by requests in flight.
//!
//! Source: none publishes it; it is what the estimates of the others (`mooncake`, `lmetric`, `load-cache`) are
//! estimates of, without their delay and without their error.
//!
//! What it bounds: for one request at one moment, no choice gives it an earlier first token, unless later requests get
//! in its way. It bounds no figure of a whole run, P95 TTFT included: it is greedy. What a choice does to others
//! (delaying those that decode there, evicting a prefix, copying one that a later request would have found elsewhere) is
//! no concern of it, and it does not know what will arrive. A policy can be better over all requests.

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible};
use crate::config::Settings;
use crate::{Candidate, Decision, LoadSignal, Needs, Policy, Reason, RequestView, Scores};

/// Parameters of `oracle`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OracleConfig {}

/// The `oracle` policy.
#[derive(Clone, Debug)]
pub struct Oracle {
    config: OracleConfig,
}

impl Policy for Oracle {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { true_ttft: true, ..Needs::default() }
    }

    /// O(N). Scores are negated times, s.
    fn choose(
        &mut self,
        _now: Timestamp,
        _request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let mut best = Best::new(LoadSignal::InFlight);
        for (position, candidate) in eligible(candidates) {
            let ttft_s = candidate.true_ttft.map_or(f64::INFINITY, |ttft| ttft.as_secs_f64());
            scores.record(candidate.id, -ttft_s);
            best.offer(-ttft_s, position, candidate);
        }
        let (_, position, _) = best.get()?;
        Some(Decision { position, reason: Reason::LeastTtft })
    }
}

impl Settings for OracleConfig {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn summary(&self) -> &'static str {
        "the least true time to first token, by the engine model; in simulations only"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn signals(&self) -> Vec<&'static str> {
        vec!["true_ttft", "in_flight"]
    }

    fn is_simulation_only(&self) -> bool {
        true
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Oracle { config: *self })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fixtures::{assert_scores, choose, choose_scored, in_flight, request};

    fn oracle() -> Oracle {
        Oracle { config: OracleConfig {} }
    }

    fn table<const N: usize>(loads: [u32; N], ttft_ms: [u64; N]) -> Vec<Candidate> {
        let mut table = in_flight(loads, [0; N]);
        for (candidate, ms) in table.iter_mut().zip(ttft_ms) {
            candidate.true_ttft = Some(Duration::from_millis(ms));
        }
        table
    }

    #[test]
    fn the_earliest_first_token_wins_whatever_the_load() {
        let table = table([0, 9, 3], [250, 30, 40]);
        let (choice, scores) = choose_scored(&mut oracle(), &request(), &table);
        assert_scores(&scores, &[(10, -0.25), (20, -0.03), (30, -0.04)]);
        assert_eq!(choice, Some((1, Reason::LeastTtft)));
    }

    #[test]
    fn equals_go_by_load_then_turn() {
        let mut table = table([2, 1, 1], [30, 30, 30]);
        table[1].last_chosen = 2;
        table[2].last_chosen = 1;
        assert_eq!(choose(&mut oracle(), &request(), &table), Some((2, Reason::LeastTtft)));
        table[2].eligible = false;
        assert_eq!(choose(&mut oracle(), &request(), &table), Some((1, Reason::LeastTtft)));
    }

    #[test]
    fn the_unknown_comes_last() {
        let mut table = table([5, 0, 1], [9_000, 1, 1]);
        table[1].true_ttft = None;
        table[2].true_ttft = None;
        assert_eq!(choose(&mut oracle(), &request(), &table), Some((0, Reason::LeastTtft)));
        table[0].true_ttft = None;
        assert_eq!(choose(&mut oracle(), &request(), &table), Some((1, Reason::LeastTtft)));
    }
}
