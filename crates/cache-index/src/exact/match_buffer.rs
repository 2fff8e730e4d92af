//! The look-up.

use kvroute_types::{BlockHash, InstanceId};

use super::runs::{Place, Runs};
use super::spans::Span;

/// Memory for look-ups, so that they do not allocate; one for each thread that makes them.
#[derive(Clone, Debug, Default)]
pub struct MatchBuffer {
    /// The instances that hold all blocks so far, in order.
    pub(super) alive: Vec<InstanceId>,
}

/// See [`ExactIndex::matches`](super::ExactIndex::matches).
#[inline]
pub(super) fn matches(
    runs: &Runs,
    alive: &mut Vec<InstanceId>,
    prompt: &[BlockHash],
    mut found: impl FnMut(InstanceId, u32),
) {
    let Some(place) = prompt.first().and_then(|&first| runs.find(first)) else {
        return;
    };
    let shared = runs.shared_len(place, prompt);
    let spans = &runs.run(place.run).spans;
    let mut prompt = &prompt[shared as usize..];
    let mut next = prompt.first().and_then(|&first| runs.find(first));
    if next.is_none() {
        for span in spans {
            if let Some(reach) = reach(span, place.at, shared) {
                found(span.instance, reach);
            }
        }
        return;
    }
    alive.clear();
    for span in spans {
        match reach(span, place.at, shared) {
            Some(reach) if reach == shared => alive.push(span.instance),
            Some(reach) => found(span.instance, reach),
            None => {}
        }
    }
    let mut depth = shared;
    while let Some(place) = next
        && !alive.is_empty()
    {
        let shared = runs.shared_len(place, prompt);
        stay(alive, &runs.run(place.run).spans, place, shared, |instance, reach| {
            found(instance, depth + reach);
        });
        depth += shared;
        prompt = &prompt[shared as usize..];
        next = prompt.first().and_then(|&first| runs.find(first));
    }
    for &instance in alive.iter() {
        found(instance, depth);
    }
}

/// How many of `shared` blocks from position `at` on a span covers from the first on, if it does
/// that one.
#[inline]
fn reach(span: &Span, at: u32, shared: u32) -> Option<u32> {
    (span.start <= at && at < span.end).then(|| shared.min(span.end - at))
}

/// Keeps the instances that hold all of `shared` blocks from `place` on, and calls `left` for each
/// other with how many of them it holds.
#[inline]
fn stay(
    alive: &mut Vec<InstanceId>,
    spans: &[Span],
    place: Place,
    shared: u32,
    mut left: impl FnMut(InstanceId, u32),
) {
    let mut rest = spans;
    alive.retain(|&instance| {
        rest = &rest[before(rest, instance, place.at)..];
        let covered = match rest.first() {
            Some(span) if span.instance == instance => reach(span, place.at, shared).unwrap_or(0),
            _ => 0,
        };
        if covered < shared {
            left(instance, covered);
        }
        covered == shared
    });
}

/// The number of spans before the first that can cover position `at` for this instance.
#[inline]
fn before(spans: &[Span], instance: InstanceId, at: u32) -> usize {
    // Most often the next is the one, or near; if not, there are few instances and many spans.
    const NEAR: usize = 8;
    let is_before = |span: &Span| (span.instance, span.end) <= (instance, at);
    if spans.first().is_some_and(|span| !is_before(span)) {
        return 0;
    }
    match spans.iter().take(NEAR).position(|span| !is_before(span)) {
        Some(near) => near,
        None if spans.len() <= NEAR => spans.len(),
        None => NEAR + spans[NEAR..].partition_point(is_before),
    }
}
