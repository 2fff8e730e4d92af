//! Parts that rules share: who may be chosen, how unequal the load is, and the best by a score.

use crate::least_loaded::{load_score, scan};
use crate::{Candidate, Decision, LoadSignal, Reason, RequestView, Scores};

/// The eligible candidates, with their positions.
pub(crate) fn eligible(
    candidates: &[Candidate],
) -> impl Iterator<Item = (usize, &Candidate)> + Clone {
    candidates.iter().enumerate().filter(|(_, candidate)| candidate.eligible)
}

/// Share of the prompt's full blocks that the instance is believed to hold, `0.0..=1.0`; 0 if there is none.
pub(crate) fn match_share(request: &RequestView<'_>, candidate: &Candidate) -> f64 {
    match request.prompt_blocks.len() {
        0 => 0.0,
        blocks => f64::from(candidate.matched_blocks) / blocks as f64,
    }
}

/// Prompt tokens that the instance would have to compute.
pub(crate) fn uncached_tokens(request: &RequestView<'_>, candidate: &Candidate) -> u32 {
    request.prompt_tokens.0.saturating_sub(candidate.matched_tokens)
}

/// Prompt tokens that the instance would compute before this request's first token: those queued there, and its own.
pub(crate) fn prefill_tokens(request: &RequestView<'_>, candidate: &Candidate) -> u64 {
    candidate.in_flight_uncached_tokens + u64::from(uncached_tokens(request, candidate))
}

/// The least loaded instance, for this reason.
pub(crate) fn least_loaded(
    candidates: &[Candidate],
    load: LoadSignal,
    reason: Reason,
    scores: &mut Scores,
) -> Option<Decision> {
    record(candidates, scores, |_, candidate| load_score(candidate, load));
    scan(candidates, load).map(|position| Decision { position, reason })
}

/// Notes every eligible candidate's score, if anyone wants to know.
pub(crate) fn record(
    candidates: &[Candidate],
    scores: &mut Scores,
    score: impl Fn(usize, &Candidate) -> f64,
) {
    if scores.is_enabled() {
        for (position, candidate) in eligible(candidates) {
            scores.record(candidate.id, score(position, candidate));
        }
    }
}

/// The reason of a rule that goes by one score for cache and load.
pub(crate) const fn scored(candidate: &Candidate) -> Reason {
    if candidate.matched_blocks > 0 { Reason::CacheScore } else { Reason::LoadScore }
}

/// How loaded the eligible instances are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: u32,
    pub(crate) most: u32,
    pub(crate) mean: f64,
    /// Standard deviation over the instances: of all of them, so divided by their number.
    pub(crate) deviation: f64,
}

impl Spread {
    /// `None` if nobody is eligible.
    pub(crate) fn of(candidates: &[Candidate], load: LoadSignal) -> Option<Self> {
        let (mut least, mut most, mut n, mut sum, mut squares) =
            (u32::MAX, 0, 0_u64, 0_u64, 0_u128);
        for (_, candidate) in eligible(candidates) {
            let load = candidate.load(load);
            (least, most) = (least.min(load), most.max(load));
            n += 1;
            sum += u64::from(load);
            squares += u128::from(load) * u128::from(load);
        }
        if n == 0 {
            return None;
        }
        let mean = sum as f64 / n as f64;
        let variance = squares as f64 / n as f64 - mean * mean;
        Some(Self { least, most, mean, deviation: variance.max(0.0).sqrt() })
    }
}

/// The candidate with the greatest score so far. Equals are told apart as everywhere: the least load, then
/// the least recently chosen, then the least id.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Best<'a> {
    load: LoadSignal,
    best: Option<(f64, usize, &'a Candidate)>,
}

impl<'a> Best<'a> {
    /// None yet; `load` tells equals apart.
    pub(crate) const fn new(load: LoadSignal) -> Self {
        Self { load, best: None }
    }

    /// Takes a candidate into account. The score is a number, greater is better.
    pub(crate) fn offer(&mut self, score: f64, position: usize, candidate: &'a Candidate) {
        let tie = |it: &Candidate| (it.load(self.load), it.last_chosen, it.id);
        let wins = self.best.is_none_or(|(best, _, holder)| {
            score > best || (score >= best && tie(candidate) < tie(holder))
        });
        if wins {
            self.best = Some((score, position, candidate));
        }
    }

    /// Score, position and candidate; `None` if nobody was offered.
    pub(crate) const fn get(self) -> Option<(f64, usize, &'a Candidate)> {
        self.best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::running;

    #[test]
    fn the_spread_by_hand() {
        let mut table = running(&[2, 4, 4, 4, 5, 5, 7, 9, 100]);
        table[8].eligible = false;
        // The textbook example: mean 40 / 8, squared deviations 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32, over 8.
        let expected = Spread { least: 2, most: 9, mean: 5.0, deviation: 2.0 };
        assert_eq!(Spread::of(&table, LoadSignal::Total), Some(expected));
        for candidate in &mut table {
            candidate.eligible = false;
        }
        assert_eq!(Spread::of(&table, LoadSignal::Total), None);
    }

    #[test]
    fn equal_scores_end_by_load_then_turn_then_id() {
        let mut table = running(&[3, 1, 1, 1]);
        let best = |table: &[Candidate]| {
            let mut best = Best::new(LoadSignal::Total);
            for (position, candidate) in eligible(table) {
                best.offer(0.5, position, candidate);
            }
            best.get().unwrap().1
        };
        assert_eq!(best(&table), 1, "least load, then id");
        for (candidate, turn) in table.iter_mut().zip([0, 7, 5, 6]) {
            candidate.last_chosen = turn;
        }
        assert_eq!(best(&table), 2, "least recently chosen");
    }
}
