//! Taking blocks into an instance's set and out of it.

use std::hash::Hash;
use std::ops::Range;

use hashbrown::HashMap;
use kvroute_types::{BlockHash, InstanceId};
use rustc_hash::FxBuildHasher;

use super::ExactIndex;
use super::runs::{Place, Runs, SEGMENT_BLOCKS};
use super::spans::{self, Span};

/// What one instance holds, beside the spans.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// Number of distinct blocks.
    pub(super) blocks: u64,
    /// The runs it has spans in, and some that it had: with duplicates, in no order.
    runs: Vec<u32>,
    /// Number of runs it has spans in.
    resident_runs: usize,
    /// Further copies of blocks, by slot: 1 if there are two. Few blocks have any.
    pub(super) copies: HashMap<u32, u32, FxBuildHasher>,
}

impl Holdings {
    pub(super) fn allocated_bytes(&self) -> usize {
        self.runs.capacity() * size_of::<u32>() + self.copies.allocation_size()
    }

    /// One of the further copies of a block less; returns whether there was one.
    fn drop_copy(&mut self, slot: u32) -> bool {
        let Some(copies) = self.copies.get_mut(&slot) else {
            return false;
        };
        *copies -= 1;
        if *copies == 0 {
            self.copies.remove(&slot);
        }
        true
    }

    /// Bytes that [`join`](Self::join) will allocate at most.
    fn join_bytes(&self) -> usize {
        let is_full = self.runs.len() == self.runs.capacity();
        if is_full { (self.runs.capacity() * size_of::<u32>()).max(32) } else { 0 }
    }

    /// The instance, which has no span of this run listed yet, got one.
    fn join(&mut self, instance: InstanceId, run: u32, runs: &Runs) {
        if self.runs.len() == self.runs.capacity() && self.runs.len() >= 2 * self.resident_runs + 8
        {
            self.runs.sort_unstable();
            self.runs.dedup();
            self.runs.retain(|&run| !spans::of(&runs.run(run).spans, instance).is_empty());
        }
        self.runs.push(run);
        self.resident_runs += 1;
    }
}

impl ExactIndex {
    /// One copy more of each of these blocks of a run; returns whether there was room to say so. If
    /// not, the run is trimmed.
    pub(super) fn hold(&mut self, instance: InstanceId, run: u32, part: Range<u32>) -> bool {
        if part.is_empty() {
            return true;
        }
        let spans = &self.runs.run(run).spans;
        let touching = spans::touching(spans, instance, &part);
        let held: u32 =
            spans[touching.clone()].iter().map(|span| spans::overlap(span, &part)).sum();
        if held > 0 {
            for index in touching.clone() {
                let Span { start, end, .. } = self.runs.run(run).spans[index];
                self.add_copies(instance, run, start.max(part.start)..end.min(part.end));
            }
        }
        let added = u64::from(part.end - part.start - held);
        if added == 0 {
            return true;
        }
        if touching.is_empty() {
            let is_new = spans::of(&self.runs.run(run).spans, instance).is_empty();
            let join_bytes = if is_new { self.instances[&instance].join_bytes() } else { 0 };
            if !self.fits(self.runs.span_bytes(run) + join_bytes) {
                self.refused_blocks += added;
                self.runs.trim(run);
                return false;
            }
            if is_new {
                self.join(instance, run);
            }
            self.runs.reserve_span(run);
        }
        spans::cover(self.runs.spans_mut(run), instance, &part, touching);
        self.holdings(instance).blocks += added;
        true
    }

    /// One copy less of a block; returns whether there was one.
    pub(super) fn remove(&mut self, instance: InstanceId, hash: BlockHash) -> bool {
        let Some(place) = self.runs.find(hash) else {
            return false;
        };
        // Engines give up a prompt's last blocks first, each in an event of its own, so the block before
        // is most likely next: a removal takes 60 ns and not 210 (2 M blocks).
        self.runs.prefetch_before(place);
        let Place { run: id, at } = place;
        let run = self.runs.run(id);
        let Some(index) = spans::containing(&run.spans, instance, at) else {
            return false;
        };
        let holdings = self.instances.get_mut(&instance).expect("a holder is known");
        if !holdings.copies.is_empty() && holdings.drop_copy(run.slot(at)) {
            return true;
        }
        let Span { start, end, .. } = run.spans[index];
        let mut gone = at..at + 1;
        if start < at && gone.end < end {
            if self.fits(self.runs.span_bytes(id)) {
                self.runs.reserve_span(id);
            } else {
                // No room to say that there is a hole: forget what is behind it.
                gone.end = end;
                self.refused_blocks += u64::from(end - at - 1);
                self.drop_copies(instance, id, gone.clone());
            }
        }
        spans::uncover(self.runs.spans_mut(id), index, &gone);
        let run = self.runs.run(id);
        let has_left = gone == (start..end) && spans::of(&run.spans, instance).is_empty();
        let ends_run = gone.end == run.len();
        let holdings = self.instances.get_mut(&instance).expect("a holder is known");
        holdings.blocks -= u64::from(gone.end - gone.start);
        holdings.resident_runs -= usize::from(has_left);
        if ends_run {
            self.runs.trim(id);
        } else if gone.len() > 1 || self.runs.is_dead(id, at) {
            self.reclaim(id);
        }
        true
    }

    /// Empties an instance's set.
    pub(super) fn drop_all(&mut self, instance: InstanceId) {
        let Some(holdings) = self.instances.get_mut(&instance) else {
            return;
        };
        self.instance_bytes -= holdings.allocated_bytes();
        let Holdings { mut runs, .. } = std::mem::take(holdings);
        runs.sort_unstable();
        runs.dedup();
        for run in runs {
            let range = spans::of(&self.runs.run(run).spans, instance);
            if !range.is_empty() {
                self.runs.spans_mut(run).drain(range);
                self.runs.trim(run);
                self.reclaim(run);
            }
        }
    }

    /// Puts a span back as a snapshot has it, behind all others of the run; returns whether there
    /// was room.
    pub(super) fn restore_span(&mut self, run: u32, span: Span) -> bool {
        let is_new = spans::of(&self.runs.run(run).spans, span.instance).is_empty();
        if !self.fits(self.runs.span_bytes(run) + self.instances[&span.instance].join_bytes()) {
            return false;
        }
        if is_new {
            self.join(span.instance, run);
        }
        self.runs.reserve_span(run);
        self.runs.spans_mut(run).push(span);
        self.holdings(span.instance).blocks += u64::from(span.end - span.start);
        true
    }

    /// Sets the number of further copies of a block; returns whether there was room.
    pub(super) fn set_copies(&mut self, instance: InstanceId, slot: u32, count: u32) -> bool {
        let growth = map_growth_bytes(&self.instances[&instance].copies);
        let fits = self.fits(growth);
        if fits {
            self.change(instance, |holdings| holdings.copies.insert(slot, count));
        }
        fits
    }

    /// Gives up segments of which nobody holds a block, by cutting the run in two at each.
    fn reclaim(&mut self, run: u32) {
        while self.runs.run(run).len() > SEGMENT_BLOCKS
            && let Some(dead) = self.runs.last_dead(run)
        {
            let lists: usize = (self.runs.run(run).spans.iter())
                .map(|span| self.instances[&span.instance].join_bytes())
                .sum();
            if !self.fits(self.runs.split_bytes(run, dead + 1) + lists) {
                return;
            }
            let lower = self.runs.split(run, dead + 1);
            for index in 0..self.runs.run(lower).spans.len() {
                let spans = &self.runs.run(lower).spans;
                let instance = spans[index].instance;
                if index > 0 && spans[index - 1].instance == instance {
                    continue;
                }
                let has_left = spans::of(&self.runs.run(run).spans, instance).is_empty();
                self.holdings(instance).resident_runs -= usize::from(has_left);
                self.join(instance, lower);
            }
            self.runs.trim(run);
        }
    }

    fn add_copies(&mut self, instance: InstanceId, run: u32, part: Range<u32>) {
        for at in part {
            let slot = self.runs.run(run).slot(at);
            let copies = self.instances[&instance].copies.get(&slot).copied().unwrap_or(0);
            if !self.set_copies(instance, slot, copies.saturating_add(1)) {
                self.refused_blocks += 1;
            }
        }
    }

    fn drop_copies(&mut self, instance: InstanceId, run: u32, part: Range<u32>) {
        for at in part {
            let slot = self.runs.run(run).slot(at);
            self.holdings(instance).copies.remove(&slot);
        }
    }

    fn join(&mut self, instance: InstanceId, run: u32) {
        let holdings = self.instances.get_mut(&instance).expect("a holder is known");
        let before = holdings.allocated_bytes();
        holdings.join(instance, run, &self.runs);
        self.instance_bytes += holdings.allocated_bytes() - before;
    }

    /// Changes what an instance has allocated, and keeps account of it.
    fn change<R>(&mut self, instance: InstanceId, change: impl FnOnce(&mut Holdings) -> R) -> R {
        let holdings = self.instances.get_mut(&instance).expect("a holder is known");
        self.instance_bytes -= holdings.allocated_bytes();
        let result = change(holdings);
        self.instance_bytes += holdings.allocated_bytes();
        result
    }

    fn holdings(&mut self, instance: InstanceId) -> &mut Holdings {
        self.instances.get_mut(&instance).expect("a holder is known")
    }
}

/// Most bytes by which one more entry grows a map: a full one doubles.
pub(super) fn map_growth_bytes<K: Eq + Hash, V>(map: &HashMap<K, V, FxBuildHasher>) -> usize {
    if map.len() < map.capacity() {
        return 0;
    }
    // The smallest has 4 buckets and their tags, and a group of tags more.
    (map.allocation_size() + 32).max(4 * size_of::<(K, V)>() + 64)
}

#[cfg(test)]
impl ExactIndex {
    /// Checks what must hold of the index at any time.
    pub(super) fn check(&self) {
        self.runs.check();
        assert!(self.memory_bytes() <= self.budget_bytes);
        let bytes: usize = self.instances.values().map(Holdings::allocated_bytes).sum();
        assert_eq!(self.instance_bytes, bytes);
        for (&instance, holdings) in &self.instances {
            let (mut blocks, mut resident_runs) = (0, 0);
            for run in 0..self.runs.ids_end() {
                let spans = &self.runs.run(run).spans;
                let range = spans::of(spans, instance);
                if !range.is_empty() {
                    resident_runs += 1;
                    assert!(holdings.runs.contains(&run));
                }
                blocks +=
                    spans[range].iter().map(|span| u64::from(span.end - span.start)).sum::<u64>();
            }
            assert_eq!(holdings.blocks, blocks);
            assert_eq!(holdings.resident_runs, resident_runs);
            assert!(holdings.copies.values().all(|&copies| copies > 0));
        }
    }
}
