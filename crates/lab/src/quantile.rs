//! Quantiles and the summary that every latency is reported as.
//!
//! Type 7 of Hyndman & Fan, "Sample Quantiles in Statistical Packages", The American Statistician
//! 50(4), 1996 (the default of R and `NumPy`): for `n` samples in ascending order `x[0], …, x[n-1]` and
//! a fraction `p`,
//!
//! ```text
//! h = (n - 1) p      Q(p) = x[⌊h⌋] + (h - ⌊h⌋) (x[⌊h⌋ + 1] - x[⌊h⌋])
//! ```

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Nanoseconds in a millisecond.
const NS_PER_MS: f64 = 1e6;

/// Mean, quantiles and maximum of a sample, in the unit of the sample (the field that holds the summary
/// names it). Every figure is `None` when there is no sample: unmeasured is null, never zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean: Option<f64>,
    /// Median: type 7 quantile at 0.50.
    pub p50: Option<f64>,
    /// Type 7 quantile at 0.90.
    pub p90: Option<f64>,
    /// Type 7 quantile at 0.95.
    pub p95: Option<f64>,
    /// Type 7 quantile at 0.99.
    pub p99: Option<f64>,
    /// Largest sample.
    pub max: Option<f64>,
}

impl Summary {
    /// The summary of `samples`, which may be in any order: they are sorted before they are summed, so
    /// that the mean does not depend on it either.
    ///
    /// # Panics
    /// If a sample is not finite.
    pub fn of(mut samples: Vec<f64>) -> Self {
        assert!(samples.iter().all(|x| x.is_finite()), "every sample is finite");
        samples.sort_unstable_by(f64::total_cmp);
        let n = samples.len();
        Self {
            mean: (n > 0).then(|| samples.iter().sum::<f64>() / n as f64),
            p50: quantile(&samples, 0.50),
            p90: quantile(&samples, 0.90),
            p95: quantile(&samples, 0.95),
            p99: quantile(&samples, 0.99),
            max: samples.last().copied(),
        }
    }

    /// The summary, in milliseconds, of a histogram of nanoseconds.
    ///
    /// A histogram keeps values to a resolution, not exactly: each sample counts as the middle of its
    /// bucket. With the 3 significant digits that kvroute records, a figure is off by at most 0.1 %
    /// (values below 2048 ns are exact). Quantiles are type 7 here too.
    pub fn of_nanos(histogram: &Histogram<u64>) -> Self {
        let n = histogram.len();
        let levels = Level::all(histogram);
        let at_rank = |rank| levels[levels.partition_point(|level| level.ranks_end <= rank)].ms;
        let at = |fraction| type_7(n, fraction, at_rank);
        Self {
            mean: (n > 0).then(|| histogram.mean() / NS_PER_MS),
            p50: at(0.50),
            p90: at(0.90),
            p95: at(0.95),
            p99: at(0.99),
            max: levels.last().map(|level| level.ms),
        }
    }
}

/// Type 7 quantile of samples in ascending order, in their unit; `None` if there are none.
///
/// `fraction` is in `0.0..=1.0`; a value outside counts as the nearer bound.
pub fn quantile(sorted: &[f64], fraction: f64) -> Option<f64> {
    debug_assert!(sorted.is_sorted(), "quantiles are taken of ascending samples");
    #[expect(clippy::cast_possible_truncation, reason = "a rank is below the slice's length")]
    type_7(sorted.len() as u64, fraction, |rank| sorted[rank as usize])
}

/// Type 7 quantile of `n` samples, of which `at_rank(k)` is the one with `k` others before it.
fn type_7(n: u64, fraction: f64, at_rank: impl Fn(u64) -> f64) -> Option<f64> {
    let last = n.checked_sub(1)?;
    let h = last as f64 * fraction.clamp(0.0, 1.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "h is neither negative nor above the last rank"
    )]
    let rank = (h.floor() as u64).min(last);
    let (below, above) = (at_rank(rank), at_rank((rank + 1).min(last)));
    // Rounding must not carry the quantile past the sample above it.
    Some((below + (h - h.floor()) * (above - below)).min(above))
}

/// One value that a histogram tells apart, and the ranks of the samples that have it.
struct Level {
    /// One past the last rank.
    ranks_end: u64,
    /// The value, as the middle of its bucket.
    ms: f64,
}

impl Level {
    /// The levels that have samples, in ascending order.
    fn all(histogram: &Histogram<u64>) -> Vec<Self> {
        let mut ranks_end = 0;
        histogram
            .iter_recorded()
            .map(|bucket| {
                ranks_end += bucket.count_at_value();
                let ns = histogram.median_equivalent(bucket.value_iterated_to());
                Self { ranks_end, ms: ns as f64 / NS_PER_MS }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The formula as Hyndman & Fan write it, by counting instead of sorting: the `k`-th smallest
    /// sample is the one with fewer than `k` samples below it and at least `k` not above it.
    fn naive_quantile(samples: &[f64], fraction: f64) -> f64 {
        let n = samples.len();
        let kth = |k: usize| {
            let holds = |x: f64| {
                samples.iter().filter(|y| **y < x).count() < k
                    && samples.iter().filter(|y| **y <= x).count() >= k
            };
            *samples.iter().find(|x| holds(**x)).unwrap()
        };
        // Their definition 7: m = 1 - p, j = floor(n p + m), g = n p + m - j, ranks from 1.
        let position = n as f64 * fraction + 1.0 - fraction;
        let j = (1..=n).rev().find(|j| *j as f64 <= position).unwrap_or(1);
        let g = position - j as f64;
        (1.0 - g) * kth(j) + g * kth((j + 1).min(n))
    }

    #[test]
    fn quantiles_of_known_answer() {
        // R: quantile(c(1, 2, 3, 4), c(0, .25, .5, .9, 1)) is 1.00 1.75 2.50 3.70 4.00.
        let four = [1.0, 2.0, 3.0, 4.0];
        let at = |p| quantile(&four, p);
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(at), [Some(1.0), Some(1.75), Some(2.5), Some(4.0)]);
        assert!((at(0.9).unwrap() - 3.7).abs() < 1e-12);
        assert_eq!([at(-1.0), at(2.0)], [Some(1.0), Some(4.0)]);
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_summary_of_zero_to_a_hundred_reads_off_its_fractions() {
        let summary = Summary::of((0..=100).rev().map(f64::from).collect());
        assert_eq!(
            summary,
            Summary {
                mean: Some(50.0),
                p50: Some(50.0),
                p90: Some(90.0),
                p95: Some(95.0),
                p99: Some(99.0),
                max: Some(100.0),
            }
        );
    }

    #[test]
    fn no_sample_is_null_and_not_zero() {
        assert_eq!(Summary::of(Vec::new()), Summary::default());
        assert_eq!(Summary::of_nanos(&Histogram::new(3).unwrap()), Summary::default());
        assert_eq!(
            serde_json::to_string(&Summary::default()).unwrap(),
            r#"{"mean":null,"p50":null,"p90":null,"p95":null,"p99":null,"max":null}"#
        );
    }

    #[test]
    #[should_panic(expected = "finite")]
    fn a_sample_that_is_no_number_is_refused() {
        Summary::of(vec![1.0, f64::NAN]);
    }

    #[test]
    fn a_histogram_of_small_values_is_exact() {
        let mut histogram = Histogram::new(3).unwrap();
        for ns in [1000, 400, 300, 200, 100] {
            histogram.record(ns).unwrap();
        }
        let summary = Summary::of_nanos(&histogram);
        assert_eq!(summary.p50, Some(0.0003));
        assert_eq!(summary.max, Some(0.001));
        assert!((summary.mean.unwrap() - 0.0004).abs() < 1e-15);
        // h = 4 * 0.9 = 3.6: six tenths of the way from 400 to 1000 ns.
        assert!((summary.p90.unwrap() - 0.00076).abs() < 1e-15);
    }

    #[test]
    fn histograms_add_up() {
        let mut halves = [Histogram::<u64>::new(3).unwrap(), Histogram::new(3).unwrap()];
        let mut whole = Histogram::<u64>::new(3).unwrap();
        for i in 0..1000_u64 {
            let ns = 5_000_000 + i * i * 31;
            halves[usize::from(i % 3 == 0)].record(ns).unwrap();
            whole.record(ns).unwrap();
        }
        let [mut merged, other] = halves;
        merged.add(&other).unwrap();
        assert_eq!(Summary::of_nanos(&merged), Summary::of_nanos(&whole));
    }

    fn figures(summary: &Summary) -> [f64; 6] {
        let Summary { mean, p50, p90, p95, p99, max } = *summary;
        [mean, p50, p90, p95, p99, max].map(Option::unwrap)
    }

    proptest! {
        #[test]
        fn quantiles_match_the_naive_formula(
            samples in prop::collection::vec(-1e6..1e6, 1..60),
            fraction in 0.0..=1.0,
        ) {
            let expected = naive_quantile(&samples, fraction);
            let mut sorted = samples;
            sorted.sort_by(f64::total_cmp);
            let got = quantile(&sorted, fraction).unwrap();
            // The two round h differently, by a few units in its last place.
            prop_assert!((got - expected).abs() <= 1e-7, "{got} {expected}");
        }

        #[test]
        fn a_summary_is_ordered_and_blind_to_order(
            samples in prop::collection::vec(0.0..1e9, 1..60),
            rotation in 0..60_usize,
        ) {
            let summary = Summary::of(samples.clone());
            let [mean, p50, p90, p95, p99, max] = figures(&summary);
            prop_assert!(p50 <= p90 && p90 <= p95 && p95 <= p99 && p99 <= max);
            prop_assert!(mean <= max * (1.0 + 1e-12));
            let mut rotated = samples;
            let by = rotation % rotated.len();
            rotated.rotate_left(by);
            prop_assert_eq!(Summary::of(rotated), summary);
        }

        #[test]
        fn a_histogram_is_within_its_resolution(
            samples in prop::collection::vec(0..100_000_000_000_u64, 1..60),
        ) {
            let mut histogram = Histogram::<u64>::new(3).unwrap();
            for ns in &samples {
                histogram.record(*ns).unwrap();
            }
            let exact = Summary::of(samples.iter().map(|ns| *ns as f64 / NS_PER_MS).collect());
            let rounded = Summary::of_nanos(&histogram);
            for (exact, rounded) in figures(&exact).into_iter().zip(figures(&rounded)) {
                prop_assert!((exact - rounded).abs() <= 1e-3 * exact + 1e-9, "{exact} {rounded}");
            }
        }
    }
}
