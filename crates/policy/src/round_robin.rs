//! `round-robin`: the next instance in the rotation.
//!
//! ```text
//! choice = the least eligible id above the last choice's id; if there is none, the least eligible id
//! ```
//!
//! The baseline of every load balancer: it reads neither load nor cache. The rotation is by id, not by
//! position, so it goes on where it was when instances join or leave.

use kvroute_types::{InstanceId, Timestamp};

use crate::config::Settings;
use crate::{Candidate, Decision, Needs, Policy, Reason, RequestView, Scores};

/// The `round-robin` policy. It has no parameters.
#[derive(Clone, Debug, Default)]
pub struct RoundRobin {
    last: Option<Turn>,
}

/// The latest choice.
#[derive(Clone, Copy, Debug)]
struct Turn {
    instance: InstanceId,
    /// Where it stood in the table then, and most likely still stands.
    position: usize,
}

impl RoundRobin {
    /// A rotation that starts at the least eligible id.
    pub const fn new() -> Self {
        Self { last: None }
    }
}

impl Policy for RoundRobin {
    fn name(&self) -> &'static str {
        RoundRobinSettings.name()
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// O(1) while the table stands still and all are eligible.
    fn choose(
        &mut self,
        _now: Timestamp,
        _request: &RequestView<'_>,
        candidates: &[Candidate],
        _scores: &mut Scores,
    ) -> Option<Decision> {
        let start = self.last.map_or(0, |last| position_after(last, candidates));
        let position =
            (start..candidates.len()).chain(0..start).find(|&i| candidates[i].eligible)?;
        self.last = Some(Turn { instance: candidates[position].id, position });
        Some(Decision { position, reason: Reason::Rotation })
    }
}

/// Position of the first id above the last choice's; the table's length if there is none.
fn position_after(last: Turn, candidates: &[Candidate]) -> usize {
    match candidates.get(last.position) {
        Some(candidate) if candidate.id == last.instance => last.position + 1,
        _ => candidates.partition_point(|candidate| candidate.id <= last.instance),
    }
}

/// What [`crate::PolicyConfig`] says of a policy without a config struct.
pub(crate) struct RoundRobinSettings;

impl Settings for RoundRobinSettings {
    fn name(&self) -> &'static str {
        "round-robin"
    }

    fn summary(&self) -> &'static str {
        "the next instance in the rotation"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    fn signals(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(RoundRobin::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{choose, request, running};

    /// The ids chosen in `n` turns.
    fn turns(policy: &mut RoundRobin, candidates: &[Candidate], n: usize) -> Vec<u32> {
        (0..n)
            .map(|_| {
                let (position, reason) = choose(policy, &request(), candidates).unwrap();
                assert_eq!(reason, Reason::Rotation);
                candidates[position].id.0
            })
            .collect()
    }

    #[test]
    fn everyone_has_a_turn_whatever_the_load() {
        let table = running(&[9, 0, 4]);
        assert_eq!(turns(&mut RoundRobin::new(), &table, 7), [10, 20, 30, 10, 20, 30, 10]);
    }

    #[test]
    fn the_ineligible_are_passed_over() {
        let mut table = running(&[0, 0, 0, 0]);
        table[1].eligible = false;
        table[3].eligible = false;
        let mut policy = RoundRobin::new();
        assert_eq!(turns(&mut policy, &table, 3), [10, 30, 10]);
        for candidate in &mut table {
            candidate.eligible = false;
        }
        assert_eq!(choose(&mut policy, &request(), &table), None);
        table[3].eligible = true;
        assert_eq!(turns(&mut policy, &table, 2), [40, 40]);
    }

    #[test]
    fn the_rotation_goes_on_when_membership_changes() {
        let mut policy = RoundRobin::new();
        let mut table = running(&[0, 0, 0, 0]);
        assert_eq!(turns(&mut policy, &table, 2), [10, 20]);
        table.insert(0, Candidate::new(InstanceId(5))); // all positions move
        assert_eq!(turns(&mut policy, &table, 1), [30]);
        table.remove(3); // 30 leaves: next is still 40
        assert_eq!(turns(&mut policy, &table, 2), [40, 5]);
        table.push(Candidate::new(InstanceId(50)));
        table.drain(..3); // 5, 10 and 20 leave
        assert_eq!(turns(&mut policy, &table, 3), [40, 50, 40]);
        assert_eq!(choose(&mut policy, &request(), &[]), None);
    }
}
