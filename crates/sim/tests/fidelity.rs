//! The simulator against measured runs. What the figures mean: `docs/fidelity.md`.

mod rtx4090;

use kvroute_lab::{Compared, Latencies, LatencyComparison};
use rtx4090::{Estimator, earlier_run};

/// Largest relative error of the duration and of each figure of each latency: what was reached, rounded up.
const TOLERANCE: f64 = 0.015;
/// The same of the earlier run.
const EARLIER_TOLERANCE: f64 = 0.02;

#[test]
fn rtx4090_run_is_reproduced() {
    let measured = rtx4090::measured();
    let (simulated, _) = rtx4090::simulated(&rtx4090::config(), &rtx4090::workload());
    assert_eq!(simulated.len(), measured.len());
    let duration_s = |run: &Latencies| run.duration_s().expect("it has requests");
    assert_close("duration, s", duration_s(&simulated), duration_s(&measured), TOLERANCE);
    let compared = LatencyComparison::new(&measured, &simulated);
    for (latency, figures) in compared.latencies() {
        for (figure, Compared { measured, simulated, .. }) in figures.figures() {
            let [is, should] = [simulated, measured].map(|value| value.expect("it was measured"));
            assert_close(&format!("{latency} {figure}"), is, should, TOLERANCE);
        }
    }
}

/// Nothing of this run is in the profile; the number of KV blocks is read off its queues. Its log shows the step overhead of
/// the later run's.
#[test]
fn an_earlier_rtx4090_run_is_predicted() {
    let (later, workload) = (rtx4090::config(), rtx4090::workload());
    let kv_blocks = earlier_run::kv_blocks(&later, &workload);
    assert_eq!(kv_blocks, 2_960);
    let config = earlier_run::config(&later, kv_blocks);
    let estimator = Estimator::without_usage(&config, &workload);
    let overhead_s = estimator.overhead_s(&earlier_run::log());
    assert!((overhead_s - rtx4090::OVERHEAD_S).abs() < 0.15e-3, "{overhead_s} s");
    let (simulated, _) = rtx4090::simulated(&config, &workload);
    let simulated = earlier_run::figures(&simulated);
    for ((latency, measured), simulated) in earlier_run::FIGURES.into_iter().zip(simulated) {
        for (is, should) in simulated.into_iter().zip(measured) {
            assert_close(latency, is, should, EARLIER_TOLERANCE);
        }
    }
}

/// The profile's step overhead is an estimate from the measured run's log; here from logs of runs whose overhead is
/// known, of the same requests with arrivals drawn anew.
#[test]
fn the_step_overhead_is_found_in_a_log() {
    let config = rtx4090::config();
    let mut errors_ms = Vec::new();
    for seed in 1..=3 {
        let workload = rtx4090::workload_drawn_anew(seed);
        let estimator = Estimator::new(&config, &workload, rtx4090::WHOLE_RUN);
        for overhead_ms in [0.0, 0.5, 1.0, 1.5] {
            let run = rtx4090::with_overhead(&config, 1e-3 * overhead_ms);
            let log = rtx4090::simulated_log(&run, &workload, 100);
            errors_ms.push(1e3 * estimator.overhead_s(&log) - overhead_ms);
        }
    }
    let mean_ms = errors_ms.iter().sum::<f64>() / errors_ms.len() as f64;
    assert!(mean_ms.abs() < 0.06, "{errors_ms:?}");
    assert!(errors_ms.iter().all(|error| error.abs() < 0.3), "{errors_ms:?}");
}

#[test]
fn the_profile_has_the_step_overhead_of_the_measured_log() {
    let (config, workload) = (rtx4090::config(), rtx4090::workload());
    let estimator = Estimator::new(&config, &workload, rtx4090::WHOLE_RUN);
    let found_s = estimator.overhead_s(&rtx4090::measured_log());
    // A coefficient's last digit changes which requests are preempted in a simulated run, and so the estimate by 1e-6 s.
    assert!((found_s - rtx4090::OVERHEAD_S).abs() < 5e-6, "{found_s} s");
}

fn assert_close(what: &str, simulated: f64, measured: f64, tolerance: f64) {
    let error = simulated / measured - 1.0;
    assert!(
        error.abs() <= tolerance,
        "{what}: simulated {simulated:.3}, measured {measured:.3} ({:+.2} %); if the model changed on \
         purpose, run the example fidelity_rtx4090 and update docs/fidelity.md",
        error * 100.0
    );
}
