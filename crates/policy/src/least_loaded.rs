//! The least loaded instance, kept current by a tournament (winner) tree.
//!
//! ```text
//! winner = argmin over eligible i of (load_i, last_chosen_i, id_i), in lexicographic order
//! ```
//!
//! * `load_i`: [`Candidate::load`] by the configured [`LoadSignal`], in requests;
//! * `last_chosen_i`: [`Candidate::last_chosen`], so that equals take turns;
//! * `id_i`: [`Candidate::id`], which is left only between instances that were never chosen.
//!
//! The tree has one leaf per candidate; each inner node holds the lesser key of its two children, so
//! the root is the winner's key. A change replays the matches on one path: O(log N) (Knuth, *The Art
//! of Computer Programming* vol. 3, 5.4.1, "tree of losers" and its winner variant).
//!
//! A key is one `u128`: load in the top 32 bits, `last_chosen` in the next 64, position in the low 32.
//! The table is sorted by id, so comparing positions is comparing ids. A candidate that is not eligible
//! has [`NEVER`], the greatest key; a real key can equal it only at position 2³² - 1.

use crate::{Candidate, Event, LoadSignal, Scores};

/// Key of a candidate that may not be chosen.
const NEVER: u128 = u128::MAX;

/// Index of the least loaded candidate under changing load.
///
/// **When the tree is trusted.** The tree answers only for the table it was told of: same place in
/// memory, same length, and the winner still has the key the tree knows. Otherwise
/// [`LeastLoaded::choose`] scans the table it was given, which costs O(N) and is always right. So these
/// are all answered rightly: a caller that never reports events, a copy of the table, a table that grew,
/// and candidates that became worse or ineligible without notice (a retry that rules out an instance
/// for one request). A check of every id would cost as much as the scan it saves.
///
/// What it cannot see is a candidate of the reported table that became *better* without an
/// [`Event::CandidateChanged`] (or a new table that took over the freed memory of the reported one
/// without an [`Event::MembershipChanged`]). That breaks the contract of [`Event`]; debug builds assert
/// that it does not happen, at the cost of a scan per choice.
#[derive(Clone, Debug)]
pub struct LeastLoaded {
    signal: LoadSignal,
    /// Node 1 is the root, the children of node i are 2i and 2i + 1, the leaf of position p is
    /// `len + p`; node 0 is unused. Empty for an empty table.
    tree: Vec<u128>,
    /// The table the tree mirrors; `None` before the first event.
    table: Option<TableIdentity>,
}

/// Which slice of memory a table is. Affects the cost of an answer, never the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TableIdentity {
    address: usize,
    len: usize,
}

impl TableIdentity {
    fn of(candidates: &[Candidate]) -> Self {
        Self { address: candidates.as_ptr().addr(), len: candidates.len() }
    }
}

impl LeastLoaded {
    /// An index by the given load, which has seen no table yet.
    pub const fn new(signal: LoadSignal) -> Self {
        Self { signal, tree: Vec::new(), table: None }
    }

    /// The load it compares.
    pub const fn signal(&self) -> LoadSignal {
        self.signal
    }

    /// Takes in a change: O(log N) for one candidate, O(N) for a new membership or a table not seen before.
    ///
    /// # Panics
    ///
    /// If the event's position is outside its table.
    pub fn observe(&mut self, event: Event<'_>) {
        match event {
            Event::CandidateChanged { candidates, position }
                if self.table == Some(TableIdentity::of(candidates)) =>
            {
                self.update(candidates, position);
            }
            Event::CandidateChanged { candidates, .. }
            | Event::MembershipChanged { candidates } => {
                self.rebuild(candidates);
            }
        }
    }

    /// Position of the least loaded eligible candidate as of the latest event; `None` if there was none.
    pub fn winner(&self) -> Option<usize> {
        self.tree.get(1).and_then(|&root| position_in(root))
    }

    /// Position of the least loaded eligible candidate of this table; `None` only if none is eligible.
    ///
    /// O(1) if `candidates` is the table last observed, else O(N): see [`LeastLoaded`].
    pub fn choose(&self, candidates: &[Candidate]) -> Option<usize> {
        let Some(winner) = self.winner().filter(|&winner| self.is_current(candidates, winner))
        else {
            return scan(candidates, self.signal);
        };
        debug_assert_eq!(
            Some(winner),
            scan(candidates, self.signal),
            "a candidate became better without an Event::CandidateChanged"
        );
        Some(winner)
    }

    /// Notes the load of every eligible candidate as its score, negated since higher is better.
    pub(crate) fn record_scores(&self, candidates: &[Candidate], scores: &mut Scores) {
        if scores.is_enabled() {
            for candidate in candidates.iter().filter(|candidate| candidate.eligible) {
                scores.record(candidate.id, load_score(candidate, self.signal));
            }
        }
    }

    /// Whether the tree's winner may be trusted for this table.
    fn is_current(&self, candidates: &[Candidate], winner: usize) -> bool {
        self.table == Some(TableIdentity::of(candidates))
            && self.tree[1] == key(&candidates[winner], winner, self.signal)
    }

    fn update(&mut self, candidates: &[Candidate], position: usize) {
        let mut node = candidates.len() + position;
        self.tree[node] = key(&candidates[position], position, self.signal);
        while node > 1 {
            node /= 2;
            let lesser = self.tree[2 * node].min(self.tree[2 * node + 1]);
            if self.tree[node] == lesser {
                break;
            }
            self.tree[node] = lesser;
        }
    }

    fn rebuild(&mut self, candidates: &[Candidate]) {
        let len = candidates.len();
        self.tree.clear();
        self.tree.resize(len, NEVER);
        self.tree.extend(keys(candidates, self.signal));
        for node in (1..len).rev() {
            self.tree[node] = self.tree[2 * node].min(self.tree[2 * node + 1]);
        }
        self.table = Some(TableIdentity::of(candidates));
    }
}

/// The score of a policy that goes by load alone: the load negated, since a higher score is better.
pub(crate) fn load_score(candidate: &Candidate, signal: LoadSignal) -> f64 {
    0.0 - f64::from(candidate.load(signal)) // not `-load`: an idle instance scores 0, not -0
}

/// Position of the least loaded eligible candidate, by looking at all of them.
pub(crate) fn scan(candidates: &[Candidate], signal: LoadSignal) -> Option<usize> {
    keys(candidates, signal).min().and_then(position_in)
}

fn keys(candidates: &[Candidate], signal: LoadSignal) -> impl Iterator<Item = u128> + '_ {
    candidates.iter().enumerate().map(move |(position, candidate)| key(candidate, position, signal))
}

fn key(candidate: &Candidate, position: usize, signal: LoadSignal) -> u128 {
    if !candidate.eligible {
        return NEVER;
    }
    u128::from(candidate.load(signal)) << 96
        | u128::from(candidate.last_chosen) << 32
        | position as u128
}

fn position_in(key: u128) -> Option<usize> {
    (key != NEVER).then_some((key & 0xffff_ffff) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::running;

    fn observed(candidates: &[Candidate]) -> LeastLoaded {
        let mut tree = LeastLoaded::new(LoadSignal::Total);
        tree.observe(Event::MembershipChanged { candidates });
        tree
    }

    #[test]
    fn the_least_load_wins_then_the_least_recently_chosen_then_the_least_id() {
        let mut table = running(&[5, 2, 2, 2]);
        assert_eq!(observed(&table).winner(), Some(1), "never chosen: by id");
        for (candidate, last_chosen) in table.iter_mut().zip([1, 9, 4, 6]) {
            candidate.last_chosen = last_chosen;
        }
        assert_eq!(observed(&table).winner(), Some(2), "chosen least recently");
        table[2].eligible = false;
        assert_eq!(observed(&table).winner(), Some(3));
    }

    #[test]
    fn a_key_compares_load_before_all_of_last_chosen() {
        let mut table = running(&[1, 0]);
        table[1].last_chosen = u64::MAX;
        assert_eq!(observed(&table).winner(), Some(1));
    }

    #[test]
    fn small_tables() {
        assert_eq!(observed(&[]).winner(), None);
        assert_eq!(observed(&[]).choose(&[]), None);
        let mut one = running(&[3]);
        assert_eq!(observed(&one).winner(), Some(0));
        one[0].eligible = false;
        assert_eq!(observed(&one).choose(&one), None);
    }

    #[test]
    fn a_reported_change_moves_the_winner() {
        let mut table = running(&[1, 2, 3, 4, 5]);
        let mut tree = observed(&table);
        for (position, load, winner) in [(4, 0, 4), (4, 9, 0), (0, 9, 1), (2, 1, 2)] {
            table[position].load.as_mut().unwrap().running = load;
            tree.observe(Event::CandidateChanged { candidates: &table, position });
            assert_eq!(tree.winner(), Some(winner));
            assert_eq!(tree.choose(&table), Some(winner));
        }
    }

    #[test]
    fn a_table_that_was_never_reported_is_scanned() {
        let known = running(&[1, 2, 3]);
        let tree = observed(&known);
        assert_eq!(tree.choose(&running(&[3, 2, 1])), Some(2), "same length, other table");
        assert_eq!(tree.choose(&running(&[3, 1])), Some(1), "other length");
        assert_eq!(tree.choose(&known[..0]), None);
        assert_eq!(LeastLoaded::new(LoadSignal::Total).choose(&known), Some(0));
    }

    #[test]
    fn a_change_in_an_unknown_table_rebuilds() {
        let mut tree = observed(&running(&[1, 2, 3]));
        let other = running(&[9, 8, 7, 6]);
        tree.observe(Event::CandidateChanged { candidates: &other, position: 0 });
        assert_eq!(tree.winner(), Some(3));
    }

    #[test]
    fn ruling_out_an_instance_for_one_request_needs_no_event() {
        let mut table = running(&[1, 2, 3]);
        let tree = observed(&table);
        table[0].eligible = false;
        assert_eq!(tree.choose(&table), Some(1));
        table[0].eligible = true;
        assert_eq!(tree.choose(&table), Some(0));
    }

    #[test]
    fn coming_back_from_none_eligible_is_seen_without_notice() {
        let mut table = running(&[1, 2]);
        for candidate in &mut table {
            candidate.eligible = false;
        }
        let tree = observed(&table);
        table[1].eligible = true;
        assert_eq!(tree.choose(&table), Some(1));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "without an Event::CandidateChanged")]
    fn an_unreported_improvement_is_a_bug_of_the_caller() {
        let mut table = running(&[1, 2, 3]);
        let tree = observed(&table);
        table[2].load.as_mut().unwrap().running = 0;
        tree.choose(&table);
    }
}
