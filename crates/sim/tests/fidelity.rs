//! The simulator against measured runs. What the figures mean: `docs/fidelity.md`.

mod rtx4090;

use kvroute_lab::{Compared, Latencies, LatencyComparison};

/// Largest relative error of the duration and of mean and p99 of each latency: what was reached, rounded up.
const TOLERANCE: f64 = 0.02;

#[test]
fn rtx4090_run_is_reproduced() {
    let measured = rtx4090::measured();
    let (simulated, _) = rtx4090::simulated(&rtx4090::config(), &rtx4090::workload());
    assert_eq!(simulated.len(), measured.len());
    let duration_s = |run: &Latencies| run.duration_s().expect("it has requests");
    assert_close("duration, s", duration_s(&simulated), duration_s(&measured));
    let compared = LatencyComparison::new(&measured, &simulated);
    for (latency, figures) in compared.latencies() {
        for (figure, Compared { measured, simulated, .. }) in figures.figures() {
            if ["mean", "p99"].contains(&figure) {
                let [is, should] =
                    [simulated, measured].map(|value| value.expect("it was measured"));
                assert_close(&format!("{latency} {figure}"), is, should);
            }
        }
    }
}

/// The profile's step overhead is an estimate from the measured run's log; here from logs of runs whose overhead is known.
#[test]
fn the_step_overhead_is_found_in_a_log() {
    let workload = rtx4090::workload();
    for overhead_s in [0.0, 0.5e-3, 1.12e-3] {
        let mut config = rtx4090::config();
        config.profile.step.overhead_s = overhead_s;
        let log = rtx4090::simulated_log(&config, &workload);
        let found_s = rtx4090::estimated_overhead_s(&config, &log);
        let apart_ms = 1e3 * (found_s - overhead_s);
        assert!((0.0..0.2).contains(&apart_ms), "{overhead_s} s: {apart_ms} ms too high");
    }
    let config = rtx4090::config();
    let measured_s = rtx4090::estimated_overhead_s(&config, &rtx4090::measured_log());
    assert!((measured_s - config.profile.step.overhead_s).abs() < 1e-6, "{measured_s} s");
}

fn assert_close(what: &str, simulated: f64, measured: f64) {
    let error = simulated / measured - 1.0;
    assert!(
        error.abs() <= TOLERANCE,
        "{what}: simulated {simulated:.3}, measured {measured:.3} ({:+.2} %); if the model changed on \
         purpose, run the example fidelity_rtx4090 and update docs/fidelity.md",
        error * 100.0
    );
}
