//! The built-in numbers are what the fits give, and the fits are as good as claimed.

use kvroute_profile::{
    DecodeSecond, LatencyProfile, Observation, Residuals, StepModel, StepOverhead,
};

use crate::fits;

/// Every coefficient of the built-in profile is within 0.1 % of the fitted one.
fn assert_same_step(name: &str, fitted: &StepModel) {
    let builtin = LatencyProfile::builtin(name).unwrap().step;
    let (builtin, fitted) =
        (serde_json::to_value(builtin).unwrap(), serde_json::to_value(fitted).unwrap());
    for (key, fitted) in fitted.as_object().unwrap() {
        let (is, should) = (builtin[key].as_f64().unwrap(), fitted.as_f64().unwrap());
        assert!((is - should).abs() <= 1e-3 * should.abs(), "{name} {key}: {is}, fitted {should}");
    }
}

fn assert_worst(name: &str, rows: &[Observation], percent: f64) {
    let model = LatencyProfile::builtin(name).unwrap().step;
    let residuals = Residuals::of(&model, rows).unwrap();
    assert!(residuals.max <= percent / 100.0, "{name}: {residuals:?}");
}

#[test]
fn rtx4090_is_the_fit_to_the_committed_kernel_times() {
    let fit = fits::rtx4090();
    assert_same_step("rtx4090-llama3.1-8b", &fit.step);

    let model = &fit.layers.step;
    let all = Residuals::of(model, &fit.layers.steps).unwrap();
    assert_eq!(all.count, 1903);
    assert!(all.median < 0.017 && all.p95 < 0.071 && all.max < 0.20, "{all:?}");
    let unmixed =
        |row: &&Observation| (row.steps[0].prefill_tokens == 0) != (row.steps[0].decode_seqs == 0);
    let pure = Residuals::of(model, fit.layers.steps.iter().filter(unmixed)).unwrap();
    assert!(pure.median < 0.012 && pure.max < 0.085, "{pure:?}");
    let linear = Residuals::of(model, &fit.layers.linear).unwrap();
    assert!(linear.median < 0.012 && linear.max < 0.085, "{linear:?}");
}

/// Batches of two lengths, in steps put together from kernels: a tail explains what they take beyond equal ones.
#[test]
fn rtx4090_tail_is_what_unequal_contexts_cost() {
    let fits::Rtx4090 { layers, tail, .. } = fits::rtx4090();
    assert!((3.0e6..3.1e6).contains(&tail.units_per_s), "{}", tail.units_per_s);
    for (mixed, count, without, with) in [(false, 62, 0.045, 0.01), (true, 1556, 0.06, 0.041)] {
        let of_kind =
            |row: &&Observation| row.weight > 0.0 && (row.steps[0].prefill_tokens > 0) == mixed;
        let rows = || tail.steps.iter().filter(of_kind);
        let [equal, unequal] =
            [&layers.step, &tail.step].map(|model| Residuals::of(model, rows()).unwrap());
        assert_eq!(unequal.count, count);
        assert!(equal.bias < -0.014 && equal.p95 > without, "{equal:?}");
        assert!(unequal.bias.abs() < 0.001 && unequal.p95 < with, "{unequal:?}");
    }
    // Where the kernel splits contexts among thread blocks, unequal ones cost next to nothing.
    let small = |row: &&Observation| row.weight <= 0.0 && row.steps[0].decode_seqs == 16;
    let split = Residuals::of(&layers.step, tail.steps.iter().filter(small)).unwrap();
    assert!(split.count > 20 && split.bias > -0.006 && split.median < 0.005, "{split:?}");
}

/// Steps of the measured run in its decode-only seconds, by the number of sequences, against kernels of equal contexts:
/// small batches are shorter than their kernels, and large ones longer by their tail.
#[test]
fn rtx4090_steps_of_the_measured_run_show_the_tail() {
    let overhead = fits::rtx4090().overhead;
    assert_eq!(overhead.seconds.len(), 28);
    assert!((1e3 * overhead.mean_s().unwrap() - 0.29).abs() < 0.01, "{overhead:?}");
    let mean_ms = |large: bool| {
        let of_size = |second: &&DecodeSecond| (second.running > 24.0) == large;
        let seconds = overhead.seconds.iter().filter(of_size).copied().collect();
        1e3 * StepOverhead { seconds }.mean_s().unwrap()
    };
    let (small, large) = (mean_ms(false), mean_ms(true));
    assert!((-0.5..-0.3).contains(&small) && (0.6..0.9).contains(&large), "{small} {large} ms");
}

#[test]
fn h100_reproduces_each_cell_of_its_table() {
    let fit = fits::H100.fit();
    assert_same_step(fits::H100.name, &fit.step);
    assert_worst(fits::H100.name, &fit.observations, 1.5);
}

#[test]
fn a100_reproduces_each_cell_of_its_table() {
    let fit = fits::A100.fit();
    assert_same_step(fits::A100.name, &fit.step);
    assert_worst(fits::A100.name, &fit.observations, 6.0);
}

#[test]
fn rtx5080_is_the_scaled_fit_to_the_l40s_table() {
    assert_same_step("rtx5080-half-qwen2.5-0.5b", &fits::rtx5080());
    let l40s = fits::L40S_QWEN.fit();
    let residuals = Residuals::of(&l40s.step, &l40s.observations).unwrap();
    assert!(residuals.max <= 0.10, "{residuals:?}");
    assert_eq!(fits::L40S_QWEN.name, "l40s-qwen2.5-0.5b");
}

#[test]
fn table_fits_stay_within_the_peak_rates_at_every_knee() {
    for table in [fits::H100, fits::A100, fits::L40S_QWEN] {
        let best = Residuals::of(&table.fit().step, &table.observations()).unwrap();
        for knee in [1, 2, 4, 8] {
            let other = Residuals::of(&table.fit_at_knee(knee), &table.observations()).unwrap();
            assert!(other.max >= best.max, "{} at knee {knee}", table.name);
        }
    }
}

#[test]
fn cpu_tiny_is_the_fit_to_the_measured_server() {
    let cpu = fits::cpu_tiny();
    assert_same_step("cpu-tiny", &cpu.fit.step);
    let profile = LatencyProfile::builtin("cpu-tiny").unwrap();
    let close = |is: f64, should: f64| (is - should).abs() <= 1e-3 * should;
    assert!(close(profile.request_overhead_s, cpu.request_overhead_s));
    assert!(close(
        profile.request_overhead_s_per_prompt_token,
        cpu.request_overhead_s_per_prompt_token
    ));
    let residuals = Residuals::of(&profile.step, &cpu.fit.observations).unwrap();
    assert_eq!(residuals.count, 27);
    assert!(residuals.median < 0.06 && residuals.max < 0.165, "{residuals:?}");
}
