//! The simulator against measured runs. What the figures mean: `docs/fidelity.md`.

mod rtx4090;

/// Largest relative error of the duration and of mean and p99 of each latency: what was reached, rounded up.
const TOLERANCE: f64 = 0.02;

#[test]
fn rtx4090_run_is_reproduced() {
    let measured = rtx4090::measured();
    let (simulated, _) = rtx4090::simulated(&rtx4090::config(), &rtx4090::workload());
    assert_eq!(simulated.latencies.ttft.len(), measured.latencies.ttft.len());
    assert_close("duration", simulated.duration_s, measured.duration_s);
    for ((latency, is), (_, should)) in
        simulated.latencies.figures().iter().zip(measured.latencies.figures())
    {
        for ((figure, is), (_, should)) in is.all.iter().zip(should.all) {
            if ["mean", "p99"].contains(figure) {
                assert_close(&format!("{latency} {figure}"), *is, should);
            }
        }
    }
}

fn assert_close(what: &str, simulated_s: f64, measured_s: f64) {
    let error = simulated_s / measured_s - 1.0;
    assert!(
        error.abs() <= TOLERANCE,
        "{what}: simulated {simulated_s:.3} s, measured {measured_s:.3} s ({:+.2} %); if the model changed on \
         purpose, run the example fidelity_rtx4090 and update docs/fidelity.md",
        error * 100.0
    );
}
