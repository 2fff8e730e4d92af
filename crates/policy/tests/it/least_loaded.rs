//! The tournament tree against a plain scan.

use kvroute_policy::{Event, LeastLoaded, LoadSignal};
use proptest::prelude::*;

use crate::common::{Happening, Router, any_life, any_table, least_loaded};

proptest! {
    #[test]
    fn the_tree_is_the_scan_through_a_whole_life(
        table in any_table(0..70),
        life in any_life(0..200),
        signal in prop::sample::select(vec![
            LoadSignal::Total,
            LoadSignal::Waiting,
            LoadSignal::InFlight,
        ]),
    ) {
        let mut router = Router::new(table);
        let mut tree = LeastLoaded::new(signal);
        tree.observe(Event::MembershipChanged { candidates: &router.candidates });
        for happening in &life {
            if let Happening::Arrives(_) = happening {
                if let Some(winner) = tree.winner() {
                    tree.observe(router.send(winner));
                }
            } else if let Some(event) = router.apply(happening) {
                tree.observe(event);
            }
            let expected = least_loaded(&router.candidates, signal);
            prop_assert_eq!(tree.winner(), expected);
            prop_assert_eq!(tree.choose(&router.candidates), expected);
        }
    }

    #[test]
    fn a_table_it_was_never_told_of_is_no_trap(
        known in any_table(0..10),
        asked in any_table(0..10),
    ) {
        let mut tree = LeastLoaded::new(LoadSignal::Total);
        tree.observe(Event::MembershipChanged { candidates: &known });
        prop_assert_eq!(tree.choose(&asked), least_loaded(&asked, LoadSignal::Total));
    }

    /// A retry rules out instances for one request, without an event.
    #[test]
    fn instances_may_be_ruled_out_without_notice(
        mut table in any_table(1..20),
        ruled_out in prop::collection::vec(any::<bool>(), 20),
    ) {
        let mut tree = LeastLoaded::new(LoadSignal::Total);
        tree.observe(Event::MembershipChanged { candidates: &table });
        for (candidate, ruled_out) in table.iter_mut().zip(ruled_out) {
            candidate.eligible &= !ruled_out;
        }
        prop_assert_eq!(tree.choose(&table), least_loaded(&table, LoadSignal::Total));
    }
}
