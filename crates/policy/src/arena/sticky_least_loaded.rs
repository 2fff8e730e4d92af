//! `sticky-least-loaded`: a session stays where it is; a new one goes where the fewest sessions are.
//!
//! ```text
//! known session, its instance eligible  -> there
//! else                                  -> argmin over eligible i of sessions_i;  ties: the greatest weight(k, i)
//! ```
//!
//! * `k`: [`RequestView::session_key`], else [`RequestView::prefix_key`]; `weight`: rendezvous hashing
//!   ([`crate::HashRule`]);
//! * `sessions_i`: sessions that are on the instance: last used less than [`StickyLeastLoadedConfig::ttl_s`]
//!   ago, and among the latest [`StickyLeastLoadedConfig::capacity_sessions`].
//!
//! Source: the policy `sticky_least_loaded` of vllm-project/router 0.1.17: TTL 7,200 s.
//!
//! Where ours differs: there is no call by which a client ends its session, so it ends by the TTL alone,
//! counted from its last request; the table has a bound. A session whose instance is out moves for good. A
//! request without any key goes to the fewest sessions, ties by load, and is not remembered.

use kvroute_types::{InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible, record};
use crate::config::Settings;
use crate::home::weight;
use crate::per_instance::PerInstance;
use crate::sessions::Sessions;
use crate::{
    Candidate, Decision, InvalidPolicy, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};

/// Expired sessions that one decision takes away at most. A decision adds one at most, so the table catches
/// up, and none takes long.
const EXPIRED_AT_ONCE: u32 = 16;

/// Parameters of `sticky-least-loaded`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StickyLeastLoadedConfig {
    /// Time after its last request for which a session is remembered, s; above 0. Default 7,200 (vLLM
    /// router).
    pub ttl_s: f64,
    /// Most sessions remembered, at least 1; the one not used for longest goes first. Default 65,536, about 3
    /// MB (ours).
    pub capacity_sessions: u32,
}

impl Default for StickyLeastLoadedConfig {
    fn default() -> Self {
        Self { ttl_s: 7_200.0, capacity_sessions: 65_536 }
    }
}

/// The `sticky-least-loaded` policy.
#[derive(Clone, Debug)]
pub struct StickyLeastLoaded {
    config: StickyLeastLoadedConfig,
    sessions: Sessions<InstanceId>,
    /// Sessions on each instance.
    counts: PerInstance<u32>,
}

impl StickyLeastLoaded {
    fn new(config: StickyLeastLoadedConfig) -> Self {
        let sessions = Sessions::new(config.capacity_sessions, config.ttl_s);
        Self { config, sessions, counts: PerInstance::default() }
    }

    fn left(&mut self, instance: InstanceId) {
        // Whoever is not in the table any more took its count along.
        if let Some(count) = self.counts.get_mut(instance) {
            *count = count.saturating_sub(1);
        }
    }

    fn expire(&mut self, now: Timestamp) {
        for _ in 0..EXPIRED_AT_ONCE {
            let Some(instance) = self.sessions.expire_one(now) else { return };
            self.left(instance);
        }
    }

    /// The fewest sessions, by the session's own order among equals.
    fn place(&self, key: u64, candidates: &[Candidate], scores: &mut Scores) -> Option<usize> {
        let mut best: Option<(u32, u64, usize)> = None;
        for (position, candidate) in eligible(candidates) {
            let count = self.counts[position];
            if best.is_none_or(|(fewest, ..)| count <= fewest) {
                let weight = weight(key, candidate.id);
                if best.is_none_or(|(fewest, greatest, _)| count < fewest || weight > greatest) {
                    best = Some((count, weight, position));
                }
            }
        }
        record(candidates, scores, |position, _| 0.0 - f64::from(self.counts[position]));
        best.map(|(.., position)| position)
    }
}

impl Policy for StickyLeastLoaded {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// O(N): a known session's instance is found at once, the rest is looking through the table. Scores, for
    /// a session that is placed, are negated numbers of sessions.
    fn choose(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        self.counts.follow(candidates);
        self.expire(now);
        let Some(key) = request.session_key.or(request.prefix_key) else {
            let mut best = Best::new(LoadSignal::InFlight);
            for (position, candidate) in eligible(candidates) {
                let score = 0.0 - f64::from(self.counts[position]);
                scores.record(candidate.id, score);
                best.offer(score, position, candidate);
            }
            let (_, position, _) = best.get()?;
            return Some(Decision { position, reason: Reason::Fallback });
        };
        let known = self.sessions.get(now, key).and_then(|id| {
            let position = candidates.binary_search_by_key(&id, |candidate| candidate.id).ok()?;
            candidates[position].eligible.then_some(position)
        });
        let (position, reason) = match known {
            Some(position) => (position, Reason::Sticky),
            None => (self.place(key, candidates, scores)?, Reason::LeastLoaded),
        };
        if let Some(instance) = self.sessions.put(now, key, candidates[position].id) {
            self.left(instance);
        }
        self.counts[position] += 1;
        Some(Decision { position, reason })
    }
}

impl Settings for StickyLeastLoadedConfig {
    fn name(&self) -> &'static str {
        "sticky-least-loaded"
    }

    fn summary(&self) -> &'static str {
        "a session stays where it is; a new one goes where the fewest sessions are (vLLM router)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("ttl_s", "time after its last request for which a session is remembered, s, above 0"),
            ("capacity_sessions", "most sessions remembered, at least 1"),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        vec!["session_key", "prefix_key"]
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        let capacity = f64::from(self.capacity_sessions);
        InvalidPolicy::unless_within(self.name(), "ttl_s", self.ttl_s, 1e-3..=1e9)?;
        InvalidPolicy::unless_within(self.name(), "capacity_sessions", capacity, 1.0..=1e8)
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(StickyLeastLoaded::new(*self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HashRule;
    use crate::fixtures::{choose, in_flight, ten_blocks};

    fn session(key: u64) -> RequestView<'static> {
        RequestView { session_key: Some(key), ..ten_blocks() }
    }

    fn policy() -> StickyLeastLoaded {
        StickyLeastLoaded::new(StickyLeastLoadedConfig::default())
    }

    fn at(
        policy: &mut StickyLeastLoaded,
        s: f64,
        key: u64,
        table: &[Candidate],
    ) -> (usize, Reason) {
        let now = Timestamp::from_secs_f64(s);
        let decision = policy.choose(now, &session(key), table, &mut Scores::new(false)).unwrap();
        (decision.position, decision.reason)
    }

    #[test]
    fn new_sessions_spread_evenly_and_stay() {
        let table = in_flight([90, 0, 0, 0], [10, 0, 0, 0]); // neither load nor cache counts
        let mut policy = policy();
        let first: Vec<_> =
            (0..40).map(|key| choose(&mut policy, &session(key), &table).unwrap()).collect();
        assert!(first.iter().all(|&(_, reason)| reason == Reason::LeastLoaded));
        for at in 0..4 {
            assert_eq!(first.iter().filter(|it| it.0 == at).count(), 10);
        }
        for (key, &(position, _)) in (0..).zip(&first) {
            let again = choose(&mut policy, &session(key), &table);
            assert_eq!(again, Some((position, Reason::Sticky)));
        }
        assert_eq!(policy.counts.values_mut(), [10; 4], "coming again is no new session");
    }

    #[test]
    fn among_equals_the_key_decides() {
        let table = in_flight([0; 5], [0; 5]);
        for key in 0..50 {
            let home = HashRule::Rendezvous.home(key, &table);
            assert_eq!(choose(&mut policy(), &session(key), &table).map(|it| it.0), home);
        }
    }

    #[test]
    fn a_session_is_forgotten_after_two_hours_of_rest() {
        let table = in_flight([0; 2], [0; 2]);
        let mut policy = policy();
        let (home, _) = at(&mut policy, 0.0, 1, &table);
        assert_eq!(at(&mut policy, 7_199.0, 1, &table), (home, Reason::Sticky));
        assert_eq!(at(&mut policy, 14_398.0, 1, &table), (home, Reason::Sticky), "counted anew");
        assert_eq!(at(&mut policy, 21_598.0, 1, &table).1, Reason::LeastLoaded);
        assert_eq!(policy.counts.values_mut().iter().sum::<u32>(), 1);
    }

    #[test]
    fn a_session_moves_for_good_when_its_instance_is_out() {
        let mut table = in_flight([0; 3], [0; 3]);
        let mut policy = policy();
        let (home, _) = at(&mut policy, 0.0, 1, &table);
        table[home].eligible = false;
        let (refuge, reason) = at(&mut policy, 1.0, 1, &table);
        assert_eq!((refuge == home, reason), (false, Reason::LeastLoaded));
        table[home].eligible = true;
        assert_eq!(at(&mut policy, 2.0, 1, &table), (refuge, Reason::Sticky));
        table.remove(refuge); // it leaves for good
        let (position, _) = at(&mut policy, 3.0, 1, &table);
        assert_eq!(policy.counts[position], 1);
        assert_eq!(policy.counts.values_mut().iter().sum::<u32>(), 1);
    }

    #[test]
    fn the_table_is_bounded_and_the_counts_follow() {
        let config = StickyLeastLoadedConfig { capacity_sessions: 10, ..Default::default() };
        let mut policy = StickyLeastLoaded::new(config);
        let table = in_flight([0; 5], [0; 5]);
        for key in 0..1_000 {
            choose(&mut policy, &session(key), &table);
            assert!(policy.counts.values_mut().iter().sum::<u32>() <= 10);
        }
        assert_eq!(policy.counts.values_mut().iter().sum::<u32>(), 10);
    }

    #[test]
    fn without_a_key_nothing_is_remembered() {
        let table = in_flight([3, 2], [0; 2]);
        let mut policy = policy();
        assert_eq!(choose(&mut policy, &ten_blocks(), &table), Some((1, Reason::Fallback)));
        assert_eq!(policy.counts.values_mut(), [0, 0]);
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["ttl_s=0", "ttl_s=nan", "capacity_sessions=0"] {
            let text = format!("sticky-least-loaded:{bad}");
            assert!(text.parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
