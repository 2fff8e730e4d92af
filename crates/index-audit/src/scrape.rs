//! Precision from scraped counters, for servers whose answers do not tell their cached tokens.

use crate::window::Tokens;

/// More tokens than any instance computes between two scrapes, so that sums cannot overflow.
const INTERVAL_MAX: u64 = 1 << 40;

/// Compares the predictions of each interval between scrapes with the hits of this interval and the next.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scrape {
    /// Predictions of the latest interval that have not come true yet, tokens.
    open: u64,
    /// Tokens since they were last taken.
    tokens: Tokens,
    /// Whether the latest interval with a prediction was below the least precision.
    pub(crate) is_imprecise: bool,
}

impl Scrape {
    pub(crate) fn counted(&mut self, predicted: u64, hits: u64, precision_min: f64) {
        let (predicted, hits) = (predicted.min(INTERVAL_MAX), hits.min(INTERVAL_MAX));
        let late = hits.min(self.open);
        let in_time = (hits - late).min(predicted);
        let correct = late + in_time;
        let tokens = Tokens {
            predicted: self.open + in_time,
            reported: hits,
            correct,
            told_later: hits - correct,
            evicted: 0,
        };
        if let Some(precision) = tokens.fair_precision() {
            self.is_imprecise = precision < precision_min;
        }
        self.tokens += tokens;
        self.open = predicted - in_time;
    }

    /// The tokens counted since the last time.
    pub(crate) fn take(&mut self) -> Tokens {
        std::mem::take(&mut self.tokens)
    }

    /// The predictions that are open will not be compared.
    pub(crate) fn forget_open(&mut self) {
        self.open = 0;
    }
}
