//! Which engine needs attention next.

use kvroute_types::Timestamp;

/// The next event time of each engine, with the earliest at hand: a winner tree, O(log n) per change.
///
/// Of engines due at the same time the one with the lowest number comes first.
#[derive(Debug)]
pub(crate) struct EngineClock {
    /// Leaves from `leaves` on hold the engines' times; each inner node holds the earlier of its children.
    times: Vec<Timestamp>,
    leaves: usize,
}

impl EngineClock {
    pub(crate) fn new(engines: usize) -> Self {
        let leaves = engines.next_power_of_two();
        Self { times: vec![Timestamp::MAX; 2 * leaves], leaves }
    }

    /// Sets an engine's next event; `None` while it is idle.
    pub(crate) fn set(&mut self, engine: usize, next: Option<Timestamp>) {
        let mut node = self.leaves + engine;
        self.times[node] = next.unwrap_or(Timestamp::MAX);
        while node > 1 {
            node /= 2;
            let earlier = self.times[2 * node].min(self.times[2 * node + 1]);
            if self.times[node] == earlier {
                return;
            }
            self.times[node] = earlier;
        }
    }

    /// The earliest event.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        Some(self.times[1]).filter(|&at| at < Timestamp::MAX)
    }

    /// The engine it belongs to.
    pub(crate) fn next_engine(&self) -> usize {
        let mut node = 1;
        while node < self.leaves {
            let left = 2 * node;
            node = if self.times[left] == self.times[node] { left } else { left + 1 };
        }
        node - self.leaves
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_earliest_engine_is_at_hand(
            engines in 1_usize..20,
            changes in prop::collection::vec((0_usize..20, prop::option::of(0_u64..50)), 1..60),
        ) {
            let mut clock = EngineClock::new(engines);
            let mut naive = vec![None; engines];
            for (engine, at) in changes {
                let at = at.map(Timestamp::from_nanos);
                clock.set(engine % engines, at);
                naive[engine % engines] = at;
                let earliest = naive.iter().flatten().min().copied();
                prop_assert_eq!(clock.next(), earliest);
                if earliest.is_some() {
                    let first = naive.iter().position(|&t| t == earliest).unwrap();
                    prop_assert_eq!(clock.next_engine(), first);
                }
            }
        }
    }
}
