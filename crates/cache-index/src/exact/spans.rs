//! Who holds which part of a run.

use kvroute_types::InstanceId;
use smallvec::SmallVec;
use std::ops::Range;

/// Consecutive blocks of one run that an instance holds; not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) instance: InstanceId,
    /// Position in the run of the first block.
    pub(super) start: u32,
    /// Position after the last block.
    pub(super) end: u32,
}

/// The spans of one run, in order of instance and position. Spans of one instance neither overlap
/// nor touch. Most runs have one.
pub(super) type Spans = SmallVec<[Span; 1]>;

/// The spans of one instance.
pub(super) fn of(spans: &Spans, instance: InstanceId) -> Range<usize> {
    let first = spans.partition_point(|span| span.instance < instance);
    let len = spans[first..].partition_point(|span| span.instance == instance);
    first..first + len
}

/// The span of the instance that contains position `at`.
#[inline]
pub(super) fn containing(spans: &Spans, instance: InstanceId, at: u32) -> Option<usize> {
    let index = spans.partition_point(|span| (span.instance, span.end) <= (instance, at));
    let span = spans.get(index)?;
    (span.instance == instance && span.start <= at).then_some(index)
}

/// The spans of the instance that overlap or touch these positions.
#[inline]
pub(super) fn touching(
    spans: &Spans,
    instance: InstanceId,
    Range { start, end }: &Range<u32>,
) -> Range<usize> {
    let first = spans.partition_point(|span| (span.instance, span.end) < (instance, *start));
    let len = spans[first..]
        .iter()
        .take_while(|span| span.instance == instance && span.start <= *end)
        .count();
    first..first + len
}

/// Adds `part` to what the instance holds; `touching` are the spans it joins. The caller has made
/// room for one more span.
pub(super) fn cover(
    spans: &mut Spans,
    instance: InstanceId,
    part: &Range<u32>,
    touching: Range<usize>,
) {
    let Range { start: first, end: last } = touching;
    if first == last {
        spans.insert(first, Span { instance, start: part.start, end: part.end });
        return;
    }
    let end = spans[last - 1].end.max(part.end);
    let joined = &mut spans[first];
    joined.start = joined.start.min(part.start);
    joined.end = end;
    if last - first > 1 {
        spans.drain(first + 1..last);
    }
}

/// Takes `gone` away from the span at `index`, which contains it. If that leaves two parts, the caller
/// has made room for one more span.
pub(super) fn uncover(spans: &mut Spans, index: usize, gone: &Range<u32>) {
    let span = spans[index];
    match (span.start < gone.start, gone.end < span.end) {
        (false, false) => drop(spans.remove(index)),
        (true, false) => spans[index].end = gone.start,
        (false, true) => spans[index].start = gone.end,
        (true, true) => {
            spans[index].end = gone.start;
            spans.insert(index + 1, Span { start: gone.end, ..span });
        }
    }
}

/// How many of these positions a span covers.
pub(super) fn overlap(span: &Span, part: &Range<u32>) -> u32 {
    span.end.min(part.end).saturating_sub(span.start.max(part.start))
}

/// Capacity of a full list of spans once it has grown: by halves.
pub(super) fn grown_capacity(capacity: usize) -> usize {
    capacity + (capacity / 2).max(3)
}
