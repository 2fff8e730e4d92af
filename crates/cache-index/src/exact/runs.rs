//! Runs of blocks, and the table that finds a block in them.
//!
//! A *run* is a sequence of block hashes in which each block's parent is the one before. Each known
//! block stands in exactly one run, once. Runs are not linked: the block that follows a run's last, or
//! branches off in its middle, is the first of another run, and is found by its hash like any other.
//! So nothing has to be cut where prompts part, and a block whose parent is unknown needs no care.
//!
//! The hashes of a run lie in *segments* of [`SEGMENT_BLOCKS`], two cache lines each, which never
//! move; a block's *slot* names its place there and tells, via the segment, its run and position.
//!
//! # Invariants
//! * A run has at least one span, and ends with a block that somebody holds.
//! * The table has exactly the blocks of the runs.

use kvroute_types::BlockHash;
use smallvec::SmallVec;

use super::chunks::Chunks;
use super::spans::{Span, Spans};
use super::table::Table;
use crate::slab::NIL;

/// Blocks in a segment: as many as leave room for its owner in two cache lines.
pub(super) const SEGMENT_BLOCKS: u32 = 15;
/// Slots are numbered in sixteens, so that no division finds the segment.
const SLOT_BITS: u32 = 4;
/// How many blocks before the one that is removed memory is asked for: enough for the time it takes.
const BEFORE: u32 = 8;
/// Most segments: slots are `u32`, and the last is left out for [`NIL`].
const SEGMENTS_MAX: u32 = (1 << (32 - SLOT_BITS)) - 1;

#[derive(Debug, Default)]
#[repr(align(64))]
struct Segment {
    /// The run it belongs to; if it is free, the next free segment.
    run: u32,
    /// Its number in the run.
    number: u32,
    hashes: [BlockHash; SEGMENT_BLOCKS as usize],
}

type Segments = Chunks<Segment, 512>;

#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Run {
    segments: SmallVec<[u32; 4]>,
    pub(super) spans: Spans,
    /// Number of blocks; if the run is free, the next free run.
    len: u32,
    /// Where another run last branched off: a guess at where prompts part.
    fork: u32,
}

impl Run {
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    #[inline]
    pub(super) fn slot(&self, at: u32) -> u32 {
        (self.segments[(at / SEGMENT_BLOCKS) as usize] << SLOT_BITS) | (at % SEGMENT_BLOCKS)
    }

    fn heap_bytes(&self) -> usize {
        spilled_bytes(&self.segments) + spilled_bytes(&self.spans)
    }
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) run: u32,
    /// Position in the run.
    pub(super) at: u32,
}

/// All runs.
#[derive(Debug)]
pub(super) struct Runs {
    segments: Segments,
    free_segment: u32,
    heads: Chunks<Run, 256>,
    free_run: u32,
    table: Table,
    /// What the runs' lists have allocated.
    heap_bytes: usize,
}

impl Runs {
    pub(super) fn new() -> Self {
        Self {
            segments: Chunks::new(),
            free_segment: NIL,
            heads: Chunks::new(),
            free_run: NIL,
            table: Table::new(),
            heap_bytes: 0,
        }
    }

    /// Bytes allocated.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.segments.allocated_bytes()
            + self.heads.allocated_bytes()
            + self.table.allocated_bytes()
            + self.heap_bytes
    }

    /// Number of distinct blocks.
    pub(super) fn blocks(&self) -> usize {
        self.table.len()
    }

    /// Ids of runs are below this. A free one has no spans.
    pub(super) fn ids_end(&self) -> u32 {
        self.heads.len()
    }

    #[inline]
    pub(super) fn run(&self, run: u32) -> &Run {
        &self.heads[run]
    }

    #[inline]
    pub(super) fn hash(&self, run: u32, at: u32) -> BlockHash {
        self.hash_of(self.heads[run].slot(at))
    }

    #[inline]
    pub(super) fn hash_of(&self, slot: u32) -> BlockHash {
        hash_of(&self.segments, slot)
    }

    /// The place of a block.
    #[inline]
    pub(super) fn find(&self, hash: BlockHash) -> Option<Place> {
        let slot = self.table.find(hash, |slot| self.hash_of(slot) == hash)?;
        let Segment { run, number, .. } = self.segments[slot >> SLOT_BITS];
        Some(Place { run, at: number * SEGMENT_BLOCKS + (slot & 15) })
    }

    /// How many of `hashes` stand in the run from a position on, which may be its end.
    pub(super) fn common_len(&self, Place { run, at }: Place, hashes: &[BlockHash]) -> u32 {
        let run = &self.heads[run];
        let equal = |offset: u32| {
            at + offset < run.len
                && hashes.get(offset as usize) == Some(&self.hash_of(run.slot(at + offset)))
        };
        let mut common = 0;
        while equal(common) {
            common += 1;
        }
        common
    }

    /// Asks for what a search for this hash, soon after, will read first.
    #[inline]
    pub(super) fn prefetch(&self, hash: BlockHash) {
        self.table.prefetch(hash);
    }

    /// Asks for what the search will read next, once the first is at hand.
    #[inline]
    pub(super) fn prefetch_next(&self, hash: BlockHash) {
        self.table.prefetch_next(hash);
    }

    /// Asks for what a search for the block [`BEFORE`] this one will read first.
    #[inline]
    pub(super) fn prefetch_before(&self, Place { run, at }: Place) {
        if let Some(before) = at.checked_sub(BEFORE) {
            self.table.prefetch(self.hash(run, before));
        }
    }

    /// How many leading blocks of `prompt` (at least one, as it was found there) are the run's from
    /// position `at` on. Relies on hashes being chained: blocks that agree at one position agree
    /// before it.
    #[inline]
    pub(super) fn shared_len(&self, Place { run, at }: Place, prompt: &[BlockHash]) -> u32 {
        let run = &self.heads[run];
        let prompt_len = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let agree = |offset: u32| self.hash_of(run.slot(at + offset)) == prompt[offset as usize];
        let len = (run.len - at).min(prompt_len);
        if agree(len - 1) {
            return len;
        }
        let (mut shared, mut differing) = (1, len - 1);
        let guess = run.fork.saturating_sub(at);
        if guess > shared && guess < differing {
            if agree(guess - 1) {
                shared = guess;
                if !agree(guess) {
                    return shared;
                }
            } else {
                differing = guess - 1;
            }
        }
        while shared < differing {
            let middle = shared.midpoint(differing);
            if agree(middle) {
                shared = middle + 1;
            } else {
                differing = middle;
            }
        }
        shared
    }

    /// Bytes that [`append`](Self::append) with these arguments will allocate, or `None` if there
    /// can be no more segments.
    #[inline]
    pub(super) fn append_bytes(&self, run: Option<u32>, hash: BlockHash) -> Option<usize> {
        let mut bytes = self.table.growth_bytes(hash);
        if let Some(id) = run {
            let run = &self.heads[id];
            if !run.len.is_multiple_of(SEGMENT_BLOCKS) {
                return Some(bytes);
            }
            bytes += growth_bytes(&run.segments, grown_segments(run.segments.capacity()));
        } else if self.free_run == NIL {
            bytes += self.heads.growth_bytes();
        }
        if self.free_segment == NIL {
            if self.segments.len() == SEGMENTS_MAX {
                return None;
            }
            bytes += self.segments.growth_bytes();
        }
        Some(bytes)
    }

    /// Adds an unknown block to the end of a run, or as the first of a new one. The caller adds a
    /// span that covers it.
    pub(super) fn append(&mut self, run: Option<u32>, hash: BlockHash) -> Place {
        let id = run.unwrap_or_else(|| self.new_run());
        let at = self.heads[id].len;
        if at.is_multiple_of(SEGMENT_BLOCKS) {
            let segment = self.new_segment();
            self.segments[segment].run = id;
            self.segments[segment].number = at / SEGMENT_BLOCKS;
            let segments = &mut self.heads[id].segments;
            self.heap_bytes += reserve(segments, grown_segments(segments.capacity()));
            segments.push(segment);
        }
        let run = &mut self.heads[id];
        run.len += 1;
        let slot = run.slot(at);
        self.segments[slot >> SLOT_BITS].hashes[(slot & 15) as usize] = hash;
        self.table.insert(hash, slot);
        Place { run: id, at }
    }

    /// Appends unknown blocks to a run's last segment, up to the first of `hashes` that is known, or
    /// that has no room there or in the table; returns how many. Allocates nothing.
    ///
    /// What [`find`](Self::find) and [`append`](Self::append) do for most blocks, with two fifths
    /// fewer instructions: a block takes 44 ns and not 56 (10 M blocks).
    pub(super) fn fill(&mut self, id: u32, hashes: &[BlockHash]) -> u32 {
        let Self { segments, heads, table, .. } = self;
        let run = &mut heads[id];
        if run.len.is_multiple_of(SEGMENT_BLOCKS) {
            return 0;
        }
        let first = run.slot(run.len);
        let vacant = &mut segments[first >> SLOT_BITS].hashes[(first & 15) as usize..];
        let hashes = &hashes[..hashes.len().min(vacant.len())];
        // Before they are in the table, so that a hash that comes twice is known the second time.
        vacant[..hashes.len()].copy_from_slice(hashes);
        let is_it = |slot, hash| hash_of(segments, slot) == hash;
        let filled = table.insert_unknown(hashes, first, is_it);
        run.len += filled;
        filled
    }

    /// A new run branches off behind position `at - 1`.
    pub(super) fn set_fork(&mut self, run: u32, at: u32) {
        self.heads[run].fork = at;
    }

    /// Bytes that [`reserve_span`](Self::reserve_span) will allocate.
    pub(super) fn span_bytes(&self, run: u32) -> usize {
        let spans = &self.heads[run].spans;
        growth_bytes(spans, super::spans::grown_capacity(spans.capacity()))
    }

    /// Makes room for one more span.
    pub(super) fn reserve_span(&mut self, run: u32) {
        let spans = &mut self.heads[run].spans;
        self.heap_bytes += reserve(spans, super::spans::grown_capacity(spans.capacity()));
    }

    /// A run's spans, to be changed within their capacity. When none reaches the run's end any more,
    /// [`trim`](Self::trim).
    pub(super) fn spans_mut(&mut self, run: u32) -> &mut Spans {
        &mut self.heads[run].spans
    }

    /// Forgets the blocks of a run behind the last that somebody holds; with none left, the run.
    pub(super) fn trim(&mut self, id: u32) {
        let Self { segments, heads, table, .. } = self;
        let run = &mut heads[id];
        if run.spans.iter().any(|span| span.end == run.len) {
            return;
        }
        let end = run.spans.iter().map(|span| span.end).max().unwrap_or(0);
        while run.len > end {
            let at = run.len - 1;
            if at >= end + BEFORE {
                table.prefetch(hash_of(segments, run.slot(at - BEFORE)));
            }
            let slot = run.slot(at);
            table.remove(hash_of(segments, slot), slot);
            run.len = at;
            if at.is_multiple_of(SEGMENT_BLOCKS) {
                run.segments.pop();
                let segment = slot >> SLOT_BITS;
                segments[segment].run = self.free_segment;
                self.free_segment = segment;
            }
        }
        if end == 0 {
            self.heap_bytes -= run.heap_bytes();
            *run = Run { len: self.free_run, ..Run::default() };
            self.free_run = id;
        }
    }

    /// Whether nobody holds a block of the segment with position `at`.
    pub(super) fn is_dead(&self, run: u32, at: u32) -> bool {
        let start = at - at % SEGMENT_BLOCKS;
        let end = start + SEGMENT_BLOCKS;
        self.heads[run].spans.iter().all(|span| span.end <= start || end <= span.start)
    }

    /// The number of the last segment of which nobody holds a block.
    pub(super) fn last_dead(&self, run: u32) -> Option<u32> {
        let run = &self.heads[run];
        let mut live = vec![false; run.segments.len()];
        for span in &run.spans {
            let first = span.start / SEGMENT_BLOCKS;
            let last = (span.end - 1) / SEGMENT_BLOCKS;
            live[first as usize..=last as usize].fill(true);
        }
        live.iter().rposition(|&live| !live).and_then(|number| u32::try_from(number).ok())
    }

    /// Bytes that [`split`](Self::split) at this segment will allocate at most.
    pub(super) fn split_bytes(&self, run: u32, number: u32) -> usize {
        let run = &self.heads[run];
        let segments = run.segments.len() - number as usize;
        let new_run = if self.free_run == NIL { self.heads.growth_bytes() } else { 0 };
        new_run + segments * size_of::<u32>() + run.spans.len() * size_of::<Span>()
    }

    /// Moves the segments from `number` on, and the spans there, to a new run. No span may cross the
    /// cut. The caller trims the rest.
    pub(super) fn split(&mut self, id: u32, number: u32) -> u32 {
        let cut = number * SEGMENT_BLOCKS;
        let lower_id = self.new_run();
        let upper = &mut self.heads[id];
        let lower = Run {
            segments: SmallVec::from_slice(&upper.segments[number as usize..]),
            spans: (upper.spans.iter().filter(|span| span.start >= cut))
                .map(|span| Span { start: span.start - cut, end: span.end - cut, ..*span })
                .collect(),
            len: upper.len - cut,
            fork: upper.fork.saturating_sub(cut),
        };
        upper.segments.truncate(number as usize);
        upper.spans.retain(|span| span.start < cut);
        upper.len = cut;
        for (&segment, number) in lower.segments.iter().zip(0..) {
            self.segments[segment].run = lower_id;
            self.segments[segment].number = number;
        }
        self.heap_bytes += lower.heap_bytes();
        self.heads[lower_id] = lower;
        lower_id
    }

    fn new_run(&mut self) -> u32 {
        if self.free_run == NIL {
            return self.heads.push();
        }
        let id = self.free_run;
        self.free_run = std::mem::take(&mut self.heads[id].len);
        id
    }

    fn new_segment(&mut self) -> u32 {
        if self.free_segment == NIL {
            return self.segments.push();
        }
        let id = self.free_segment;
        self.free_segment = self.segments[id].run;
        id
    }
}

#[inline]
fn hash_of(segments: &Segments, slot: u32) -> BlockHash {
    segments[slot >> SLOT_BITS].hashes[(slot & 15) as usize]
}

/// Capacity of a full list of segments once it has grown: by halves.
fn grown_segments(capacity: usize) -> usize {
    capacity + (capacity / 2).max(4)
}

/// Bytes that a list has allocated.
fn spilled_bytes<A: smallvec::Array>(list: &SmallVec<A>) -> usize {
    if list.spilled() { list.capacity() * size_of::<A::Item>() } else { 0 }
}

/// Bytes by which one more item will grow a list whose next capacity is `grown`.
fn growth_bytes<A: smallvec::Array>(list: &SmallVec<A>, grown: usize) -> usize {
    if list.len() < list.capacity() {
        0
    } else {
        grown * size_of::<A::Item>() - spilled_bytes(list)
    }
}

/// Makes room for one more item; returns by how many bytes the list grew.
fn reserve<A: smallvec::Array>(list: &mut SmallVec<A>, grown: usize) -> usize {
    if list.len() < list.capacity() {
        return 0;
    }
    let before = spilled_bytes(list);
    list.reserve_exact(grown - list.len());
    spilled_bytes(list) - before
}

#[cfg(test)]
impl Runs {
    /// Checks what must hold of the runs at any time.
    pub(super) fn check(&self) {
        let (mut blocks, mut heap_bytes) = (0, 0);
        for id in 0..self.ids_end() {
            let run = &self.heads[id];
            heap_bytes += run.heap_bytes();
            if run.spans.is_empty() {
                assert!(run.segments.is_empty());
                continue;
            }
            blocks += run.len as usize;
            assert_eq!(run.segments.len(), run.len.div_ceil(SEGMENT_BLOCKS) as usize);
            assert_eq!(run.spans.iter().map(|span| span.end).max(), Some(run.len));
            assert!(run.spans.iter().all(|span| span.start < span.end));
            assert!(run.spans.is_sorted_by(|a, b| {
                a.instance < b.instance || a.instance == b.instance && a.end < b.start
            }));
            for at in 0..run.len {
                assert_eq!(self.find(self.hash(id, at)), Some(Place { run: id, at }));
                assert!(!self.is_dead(id, at));
            }
        }
        assert_eq!(blocks, self.blocks());
        assert_eq!(heap_bytes, self.heap_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_cache_lines() {
        assert_eq!(size_of::<Segment>(), 128);
        assert_eq!(size_of::<Run>(), 64);
        assert_eq!(size_of::<Span>(), 12);
    }
}
