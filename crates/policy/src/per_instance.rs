//! What a rule remembers of each instance.

use std::ops::{Index, IndexMut};

use kvroute_types::InstanceId;

use crate::Candidate;

/// One value for each instance of the table, in its order; what belongs to an instance that left is dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct PerInstance<T> {
    ids: Vec<InstanceId>,
    values: Vec<T>,
}

impl<T: Default> PerInstance<T> {
    /// Brings it in line with the table: position for position afterwards. Returns whether anything moved.
    ///
    /// O(N); memory is asked for only when instances join.
    pub(crate) fn follow(&mut self, candidates: &[Candidate]) -> bool {
        if self.ids.iter().copied().eq(candidates.iter().map(|candidate| candidate.id)) {
            return false;
        }
        let ids = std::mem::take(&mut self.ids);
        let mut known = ids.into_iter().zip(std::mem::take(&mut self.values)).peekable();
        for candidate in candidates {
            while known.next_if(|(id, _)| *id < candidate.id).is_some() {}
            let value = known.next_if(|(id, _)| *id == candidate.id);
            self.ids.push(candidate.id);
            self.values.push(value.map(|(_, value)| value).unwrap_or_default());
        }
        true
    }

    /// The value of an instance; `None` if it is not in the table.
    pub(crate) fn get_mut(&mut self, id: InstanceId) -> Option<&mut T> {
        self.ids.binary_search(&id).ok().map(|at| &mut self.values[at])
    }

    pub(crate) fn values_mut(&mut self) -> &mut [T] {
        &mut self.values
    }
}

impl<T> Index<usize> for PerInstance<T> {
    type Output = T;

    fn index(&self, position: usize) -> &T {
        &self.values[position]
    }
}

impl<T> IndexMut<usize> for PerInstance<T> {
    fn index_mut(&mut self, position: usize) -> &mut T {
        &mut self.values[position]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_with_their_instances() {
        let table = |ids: &[u32]| -> Vec<Candidate> {
            ids.iter().map(|&id| Candidate::new(InstanceId(id))).collect()
        };
        let mut counts = PerInstance::<u32>::default();
        assert!(counts.follow(&table(&[3, 5, 8])));
        counts[0] = 30;
        counts[2] = 80;
        assert!(!counts.follow(&table(&[3, 5, 8])));
        assert!(counts.follow(&table(&[1, 5, 8, 9])));
        assert_eq!(counts.values_mut(), [0, 0, 80, 0]);
        assert_eq!(counts.get_mut(InstanceId(8)), Some(&mut 80));
        assert_eq!(counts.get_mut(InstanceId(3)), None, "it left");
        counts.follow(&table(&[3]));
        assert_eq!(counts.values_mut(), [0], "and is new when it returns");
    }
}
