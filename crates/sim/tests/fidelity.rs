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

fn assert_close(what: &str, simulated: f64, measured: f64) {
    let error = simulated / measured - 1.0;
    assert!(
        error.abs() <= TOLERANCE,
        "{what}: simulated {simulated:.3}, measured {measured:.3} ({:+.2} %); if the model changed on \
         purpose, run the example fidelity_rtx4090 and update docs/fidelity.md",
        error * 100.0
    );
}
