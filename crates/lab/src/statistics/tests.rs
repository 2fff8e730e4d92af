//! Figures known by hand, the bootstrap against brute force, and how often an interval covers.

use proptest::prelude::*;

use super::*;

/// Compared to within rounding.
#[track_caller]
fn assert_close(got: f64, expected: f64) {
    let scale = expected.abs().max(1.0);
    assert!((got - expected).abs() <= 1e-12 * scale, "{got}, expected {expected}");
}

#[test]
fn figures_known_by_hand() {
    let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
    assert_close(mean(&values).unwrap().value, 5.0);
    // Squares about the mean: 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32, over 7.
    assert_close(standard_deviation(&values).unwrap(), (32.0_f64 / 7.0).sqrt());

    assert_eq!(mean(&[]), None);
    assert_eq!(compare(&[], &[]), None);
    assert_eq!((standard_deviation(&[]), standard_deviation(&[3.0])), (None, None));
    assert_eq!(mean(&[3.0]), Some(Estimate { value: 3.0, interval: None, seeds: 1 }));
}

#[test]
fn too_few_seeds_have_no_interval() {
    for seeds in 1..SEEDS_MIN {
        let values: Vec<f64> = (0..seeds).map(|seed| seed as f64).collect();
        let estimate = mean(&values).unwrap();
        assert_eq!((estimate.interval, estimate.seeds), (None, seeds));
        assert!(!estimate.is_nonzero());
        assert_eq!(interval_tail(seeds), None);
    }
}

/// Of five values the least has the weight 5^-5 = 0.00032, and with the next mean 6 times that, more than the tail.
#[test]
fn the_interval_of_five_seeds_is_their_range() {
    let estimate = mean(&[3.0, 1.0, 8.0, 2.0, 4.0]).unwrap();
    assert_eq!(estimate.interval, Some((1.0, 8.0)));
    assert!(estimate.is_nonzero());
    assert!(!mean(&[3.0, -1.0, 8.0, 2.0, 4.0]).unwrap().is_nonzero());
    assert!(mean(&[-3.0, -1.0, -8.0, -2.0, -4.0]).unwrap().is_nonzero());
}

#[test]
fn equal_figures_have_an_interval_of_no_width() {
    for n in [5, 8, 12] {
        let value = 0.1 + 0.2;
        let estimate = mean(&vec![value; n]).unwrap();
        let (low, high) = estimate.interval.unwrap();
        for got in [estimate.value, low, high] {
            assert_close(got, value);
        }
    }
}

#[test]
fn policies_are_compared_seed_by_seed() {
    // Seeds differ by far more than the two do under each.
    let reference = [10.0, 20.0, 30.0, 40.0, 50.0];
    let values = [9.0, 18.0, 27.0, 36.0, 45.0];
    let Comparison { difference, relative, is_within_seed_spread } =
        compare(&values, &reference).unwrap();
    assert_close(difference.value, -3.0);
    assert_eq!(difference.interval, Some((-5.0, -1.0)));
    // A tenth less in each resample.
    let relative = relative.unwrap();
    let (low, high) = relative.interval.unwrap();
    for got in [relative.value, low, high] {
        assert_close(got, -0.1);
    }
    assert!(is_within_seed_spread, "3 against a standard deviation of 15.8");
    assert!(!compare(&[90.0; 5], &reference).unwrap().is_within_seed_spread);
}

#[test]
fn a_reference_that_is_zero_somewhere_has_no_relative_change() {
    let values = [1.0, 2.0, 3.0, 4.0, 5.0];
    for zero in [0.0, -1.0] {
        let comparison = compare(&values, &[1.0, 1.0, zero, 1.0, 1.0]).unwrap();
        assert_eq!(comparison.relative, None);
        assert!(comparison.difference.interval.is_some());
    }
}

#[test]
fn equal_data_do_not_differ() {
    for n in [5, 7, 13] {
        let values: Vec<f64> = (0..n).map(|i| 0.1 + f64::from(i).sqrt()).collect();
        let comparison = compare(&values, &values).unwrap();
        let nothing = Estimate { value: 0.0, interval: Some((0.0, 0.0)), seeds: values.len() };
        assert_eq!((comparison.difference, comparison.relative), (nothing, Some(nothing)));
        assert!(comparison.is_within_seed_spread);
    }
}

#[test]
fn the_tail_is_the_formulas() {
    // t(0.975; 4) = 2.7764451 in any table.
    let expected = Normal::standard().cdf(-1.25_f64.sqrt() * 2.776_445_1);
    assert!((interval_tail(5).unwrap() - expected).abs() < 1e-9);
    // Hesterberg: the level tends to the plain percentile's as seeds grow.
    assert!((interval_tail(100_000).unwrap() - 0.025).abs() < 1e-5);
    assert!((SEEDS_MIN..60).is_sorted_by_key(|seeds| interval_tail(seeds).unwrap()));
}

#[test]
fn weights_add_up() {
    for n in 2..=EXACT_SEEDS_MAX {
        let found = exact_distribution(n, &|_: &[u32]| 0.0);
        let sum: f64 = found.iter().map(|&(_, weight)| weight).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{n}: {sum}");
    }
    assert_eq!(exact_distribution(10, &|_: &[u32]| 0.0).len(), 92_378);
}

#[test]
fn bounds_lie_on_the_outer_side() {
    let thirds = [(1.0, 0.25), (2.0, 0.5), (3.0, 0.25)];
    assert_eq!(bounds(&thirds, 0.2), (1.0, 3.0), "no value has so little: the range");
    assert_eq!(bounds(&thirds, 0.25), (1.0, 3.0));
    assert_eq!(bounds(&thirds, 0.8), (2.0, 2.0));
    // A value rounded in two ways is one value, and has the weight of both.
    let split = [(0.0, 0.1), (1.0, 0.1), (1.0 + 1e-15, 0.1), (2.0, 0.4), (3.0, 0.3)];
    assert_close(bounds(&split, 0.25).0, 0.0);
    assert_close(bounds(&split, 0.31).0, 1.0);
}

/// All n^n ordered resamples, each as likely.
fn brute_force(n: usize, statistic: impl Fn(&[usize]) -> f64) -> Vec<(f64, f64)> {
    let all = n.pow(u32::try_from(n).unwrap());
    let resample = |number: usize| -> Vec<usize> {
        (0..n).map(|place| number / n.pow(u32::try_from(place).unwrap()) % n).collect()
    };
    sorted((0..all).map(|number| (statistic(&resample(number)), 1.0 / all as f64)).collect())
}

/// Small whole numbers now and then, so that values tie.
fn figures(n: usize) -> impl Strategy<Value = Vec<f64>> {
    let whole = prop::collection::vec((1..5_i32).prop_map(f64::from), n);
    let any = prop::collection::vec(0.1..1e4, n);
    prop_oneof![whole, any]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_enumeration_is_what_brute_force_gives(
        (values, reference) in (2..=5_usize).prop_flat_map(|n| (figures(n), figures(n))),
        tail in prop_oneof![Just(interval_tail(5).unwrap()), 0.0005..0.4],
    ) {
        let n = values.len();
        let of = |resample: &[usize], figures: &[f64]| {
            resample.iter().map(|&at| figures[at]).sum::<f64>() / n as f64
        };
        let mean_of = |weights: &[u32]| weighted_mean(values.iter().copied(), weights);
        let ratio_of = |weights: &[u32]| {
            mean_of(weights) / weighted_mean(reference.iter().copied(), weights) - 1.0
        };
        let close = |(low, high): (f64, f64), (expected_low, expected_high): (f64, f64)| {
            let is_close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs().max(1.0);
            is_close(low, expected_low) && is_close(high, expected_high)
        };
        // Weights are rounded: no tail between two of them.
        let tail = tail + 1e-7;

        let got = bounds(&exact_distribution(n, &mean_of), tail);
        let expected = bounds(&brute_force(n, |resample| of(resample, &values)), tail);
        prop_assert!(close(got, expected), "mean: {got:?}, expected {expected:?}");

        let got = bounds(&exact_distribution(n, &ratio_of), tail);
        let ratio = |resample: &[usize]| of(resample, &values) / of(resample, &reference) - 1.0;
        let expected = bounds(&brute_force(n, ratio), tail);
        prop_assert!(close(got, expected), "ratio: {got:?}, expected {expected:?}");
    }

    #[test]
    fn the_order_of_seeds_says_nothing(values in figures(7), by in 0..7_usize) {
        let mut rotated = values.clone();
        rotated.rotate_left(by);
        let (one, other) = (mean(&values).unwrap(), mean(&rotated).unwrap());
        let ((low, high), (other_low, other_high)) = (one.interval.unwrap(), other.interval.unwrap());
        for (one, other) in [(one.value, other.value), (low, other_low), (high, other_high)] {
            prop_assert!((one - other).abs() <= 1e-9 * one.abs());
        }
    }

    #[test]
    fn a_mirrored_sample_has_the_mirrored_interval(values in figures(6)) {
        let mirrored: Vec<f64> = values.iter().map(|value| -value).collect();
        let (low, high) = mean(&values).unwrap().interval.unwrap();
        let (mirrored_low, mirrored_high) = mean(&mirrored).unwrap().interval.unwrap();
        prop_assert!((low + mirrored_high).abs() <= 1e-9 * low.abs());
        prop_assert!((high + mirrored_low).abs() <= 1e-9 * high.abs());
    }
}

/// Standard normal numbers by Box and Muller.
fn normal_samples(rng: &mut ChaCha8Rng, n: usize) -> Vec<f64> {
    let mut uniform = || rng.random::<f64>();
    let mut normal = || {
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * uniform()).cos()
    };
    (0..n).map(|_| normal()).collect()
}

/// In how many of `samples` samples of `n` normal figures the interval has their population's mean.
fn coverage(n: usize, samples: u32) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let covers = (0..samples).filter(|_| {
        let (low, high) = mean(&normal_samples(&mut rng, n)).unwrap().interval.unwrap();
        low <= 0.0 && 0.0 <= high
    });
    covers.count() as f64 / f64::from(samples)
}

#[test]
fn a_95_percent_interval_covers_in_95_percent_of_samples() {
    for n in 5..=8 {
        let covered = coverage(n, 4_000);
        assert!((0.93..0.97).contains(&covered), "{n} seeds: {covered}");
    }
}

/// `level` plus noise that does not repeat, and at first `rise` on top of it, falling to none over `transient` samples.
fn series(len: usize, transient: usize, rise: f64) -> Vec<f64> {
    let noise = |at: usize| ((at * 7_919) % 101) as f64 / 101.0;
    let left = |at: usize| 1.0 - at.min(transient) as f64 / transient.max(1) as f64;
    (0..len).map(|at| 10.0 + noise(at) + rise * left(at)).collect()
}

#[test]
fn the_transient_is_cut_off() {
    for transient in [50, 100, 200] {
        let cut = steady_from(&series(1_000, transient, 20.0)).unwrap();
        // The end of the ramp is within the noise; no more than a sixth of it is taken for steady.
        assert!((transient * 5 / 6..=transient + 10).contains(&cut), "{transient}: {cut}");
    }
    // A step: everything before it, to the batch. The noise has the same mean in each.
    let step = (0_u32..600).map(|at| if at < 60 { 50.0 } else { f64::from(at % 5) });
    assert_eq!(steady_from(&step.collect::<Vec<_>>()), Some(60));
}

#[test]
fn what_is_steady_from_the_start_is_kept_whole() {
    for constant in [0.0, 0.1, 1e9 + 0.1] {
        assert_eq!(steady_from(&[constant; 200]), Some(0), "{constant}");
    }
    // Large against its noise: sums of squares would lose it.
    let mut far = series(1_000, 100, 20.0);
    for value in &mut far {
        *value += 1e9;
    }
    assert_eq!(steady_from(&far), steady_from(&series(1_000, 100, 20.0)));
}

#[test]
fn a_trend_is_never_steady() {
    let trend: Vec<f64> = (0..500).map(f64::from).collect();
    assert_eq!(steady_from(&trend), None);
    assert_eq!(steady_from(&series(300, 300, 20.0)), None);
    assert_eq!(steady_from(&[1.0; 49]), None, "fewer than 10 batches");
    assert_eq!(steady_from(&[1.0; 50]), Some(0));
}
