//! What the latest audited requests came to, added up.

use std::collections::VecDeque;
use std::ops::AddAssign;

use crate::explain::Suspects;

/// Whether the event of a request's last full prompt block came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Confirmation {
    /// None had to come: the block was cached, or its name is not known.
    #[default]
    NotDue,
    /// It came.
    Came,
    /// It did not.
    Missing,
}

/// Whether a prediction came true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Nothing was predicted.
    #[default]
    None,
    /// It was all there.
    Kept,
    /// It was not, and an event after the routing told of a removal: nobody could have known.
    Evicted,
    /// It was not, and no event told of a removal, as far as removals are told.
    Broken,
    /// The answer does not tell, and the latest scraped interval was imprecise.
    Unlikely,
}

/// Whether the server found more cached than was predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Surplus {
    /// No.
    #[default]
    None,
    /// Yes, and an event after the routing told of it: nobody could have predicted it.
    ToldLater,
    /// Yes, and no event told of it, which may be since the index is known to be incomplete.
    Unknowable,
    /// Yes, and no event told of it.
    Untold,
}

/// What became of one audited request. Tokens are prompt tokens in full blocks, zero where the server reported none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) tokens: Tokens,
    pub(crate) confirmation: Confirmation,
    pub(crate) promise: Promise,
    pub(crate) surplus: Surplus,
    /// The server counts other prompt tokens than we do.
    pub(crate) is_wrong_length: bool,
    /// Unknown removals were told since the outcome before this, and the index was complete.
    pub(crate) unknown_removals: bool,
    /// Its blocks have extra keys.
    pub(crate) has_extra_keys: bool,
    pub(crate) meanwhile: Meanwhile,
}

/// What else came in events while a request was under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meanwhile {
    /// Anything.
    pub(crate) any: bool,
    /// What the unexpected roots speak for.
    pub(crate) suspects: Suspects,
}

/// Sums of cached prompt tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) predicted: u64,
    pub(crate) reported: u64,
    /// Of both: the lesser for each request.
    pub(crate) correct: u64,
    /// Of `reported`: could not have been predicted.
    pub(crate) told_later: u64,
    /// Of `predicted`: were evicted after the routing.
    pub(crate) evicted: u64,
}

impl Tokens {
    /// Share of the predicted that was there.
    pub(crate) fn precision(&self) -> Option<f64> {
        share(self.correct, self.predicted)
    }

    /// Share of what was there that was predicted.
    pub(crate) fn recall(&self) -> Option<f64> {
        share(self.correct, self.reported)
    }

    /// Precision without what nobody could have known.
    pub(crate) fn fair_precision(&self) -> Option<f64> {
        share(self.correct, self.predicted - self.evicted)
    }

    /// Recall without what nobody could have known.
    pub(crate) fn fair_recall(&self) -> Option<f64> {
        share(self.correct, self.reported - self.told_later)
    }
}

impl AddAssign for Tokens {
    fn add_assign(&mut self, other: Self) {
        let Self { predicted, reported, correct, told_later, evicted } = other;
        self.predicted += predicted;
        self.reported += reported;
        self.correct += correct;
        self.told_later += told_later;
        self.evicted += evicted;
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Outcomes added up; numbers of requests unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) tokens: Tokens,
    pub(crate) with_promise: u64,
    /// Of these, promised more than there was, without an excuse.
    pub(crate) broken_promises: u64,
    /// Of these, likely to have been.
    pub(crate) unlikely_promises: u64,
    /// That found something cached.
    pub(crate) with_hit: u64,
    pub(crate) wrong_lengths: u64,
    pub(crate) confirmed: u64,
    pub(crate) unconfirmed: u64,
    pub(crate) untold: u64,
    /// That found what an incomplete index could not tell.
    pub(crate) unknowable: u64,
    pub(crate) unknown_removals: u64,
    /// Of the unconfirmed, those that saw any event.
    pub(crate) unconfirmed_with_events: u64,
    /// Of the unconfirmed, those with extra keys.
    pub(crate) unconfirmed_with_keys: u64,
    /// Of the unconfirmed, those during which each suspect showed.
    pub(crate) suspected_unconfirmed: [u64; Suspects::COUNT],
    /// The same of the confirmed.
    pub(crate) suspected_confirmed: [u64; Suspects::COUNT],
}

impl Tally {
    pub(crate) fn add(&mut self, outcome: &Outcome) {
        self.change(outcome, |sum, part| *sum += part);
        self.tokens += outcome.tokens;
    }

    fn subtract(&mut self, outcome: &Outcome) {
        self.change(outcome, |sum, part| *sum -= part);
        let Tokens { predicted, reported, correct, told_later, evicted } = outcome.tokens;
        self.tokens.predicted -= predicted;
        self.tokens.reported -= reported;
        self.tokens.correct -= correct;
        self.tokens.told_later -= told_later;
        self.tokens.evicted -= evicted;
    }

    /// Applies each count of one outcome, 0 or 1.
    fn change(&mut self, outcome: &Outcome, apply: impl Fn(&mut u64, u64)) {
        let Outcome {
            tokens,
            confirmation,
            promise,
            surplus,
            is_wrong_length,
            unknown_removals,
            has_extra_keys,
            meanwhile: Meanwhile { any, suspects },
        } = *outcome;
        let (came, missing) =
            (confirmation == Confirmation::Came, confirmation == Confirmation::Missing);
        for (sum, part) in [
            (&mut self.requests, true),
            (&mut self.with_promise, promise != Promise::None),
            (&mut self.broken_promises, promise == Promise::Broken),
            (&mut self.unlikely_promises, promise == Promise::Unlikely),
            (&mut self.with_hit, tokens.reported > 0),
            (&mut self.wrong_lengths, is_wrong_length),
            (&mut self.confirmed, came),
            (&mut self.unconfirmed, missing),
            (&mut self.untold, surplus == Surplus::Untold),
            (&mut self.unknowable, surplus == Surplus::Unknowable),
            (&mut self.unknown_removals, unknown_removals),
            (&mut self.unconfirmed_with_events, missing && any),
            (&mut self.unconfirmed_with_keys, missing && has_extra_keys),
        ] {
            apply(sum, part.into());
        }
        let suspected =
            if missing { &mut self.suspected_unconfirmed } else { &mut self.suspected_confirmed };
        for (sum, is_suspect) in suspected.iter_mut().zip(suspects.0) {
            apply(sum, (is_suspect && (missing || came)).into());
        }
    }
}

/// The latest outcomes and their sums.
#[derive(Debug)]
pub(crate) struct Window {
    outcomes: VecDeque<Outcome>,
    size: usize,
    tally: Tally,
    latest: Latest,
}

/// The latest requests for which an event was due, the last in the lowest bit; set if it did not come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Latest(u16);

impl Latest {
    /// How many are remembered; before there were as many, the others count as confirmed.
    pub(crate) const COUNT: u32 = u16::BITS;

    fn push(&mut self, confirmation: Confirmation) {
        match confirmation {
            Confirmation::NotDue => {}
            Confirmation::Came => self.0 <<= 1,
            Confirmation::Missing => self.0 = self.0 << 1 | 1,
        }
    }

    /// The unconfirmed ones.
    pub(crate) const fn unconfirmed(self) -> u32 {
        self.0.count_ones()
    }

    /// All since the first unconfirmed one, that included.
    pub(crate) const fn since_unconfirmed(self) -> u32 {
        Self::COUNT - self.0.leading_zeros()
    }
}

impl Window {
    /// An empty window of `size` outcomes, at least 1.
    pub(crate) fn new(size: u32) -> Self {
        let size = usize::try_from(size.max(1)).unwrap_or(usize::MAX);
        Self { outcomes: VecDeque::new(), size, tally: Tally::default(), latest: Latest::default() }
    }

    pub(crate) fn push(&mut self, outcome: Outcome) {
        if self.outcomes.len() == self.size
            && let Some(oldest) = self.outcomes.pop_front()
        {
            self.tally.subtract(&oldest);
        }
        self.tally.add(&outcome);
        self.latest.push(outcome.confirmation);
        self.outcomes.push_back(outcome);
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(crate) fn latest(&self) -> Latest {
        self.latest
    }

    pub(crate) fn clear(&mut self) {
        self.outcomes.clear();
        self.tally = Tally::default();
        self.latest = Latest::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_follow_the_window() {
        let outcome = |predicted, reported, confirmation| Outcome {
            tokens: Tokens {
                predicted,
                reported,
                correct: predicted.min(reported),
                ..Tokens::default()
            },
            confirmation,
            meanwhile: Meanwhile { any: true, suspects: Suspects([true, false, true, false]) },
            ..Outcome::default()
        };
        let outcomes = [
            outcome(32, 16, Confirmation::Missing),
            outcome(0, 48, Confirmation::Came),
            outcome(64, 64, Confirmation::NotDue),
        ];
        let mut window = Window::new(2);
        for outcome in outcomes {
            window.push(outcome);
        }
        let mut latest = Tally::default();
        for outcome in &outcomes[1..] {
            latest.add(outcome);
        }
        assert_eq!(window.tally(), &latest);
        assert_eq!(latest.tokens.precision(), Some(1.0));
        assert_eq!(latest.tokens.recall(), Some(64.0 / 112.0));
        assert_eq!((latest.confirmed, latest.unconfirmed), (1, 0));
        assert_eq!(latest.suspected_confirmed, [1, 0, 1, 0]);
    }

    #[test]
    fn of_nothing_there_is_no_share() {
        assert_eq!(Tokens::default().precision(), None);
        assert_eq!(Tokens::default().recall(), None);
    }
}
