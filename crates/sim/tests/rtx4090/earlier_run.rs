//! Another measured run: the same card, vLLM and requests three days earlier, with other sizes of the engine. Nothing of
//! it is in the profile. Its requests were not kept, only its log and the figures of its latencies.

use kvroute_lab::{Latencies, Summary};
use kvroute_profile::{LogSecond, read_engine_log};
use kvroute_sim::SimConfig;
use kvroute_workload::{Plan, Workload};

use super::{open, simulated_log};

/// What was measured, ms (TPOT to a tenth): mean, p50, p90, p95 and p99. TTFT and E2E are from when the engine queued a
/// request, which in the later run was 30 ms after its arrival.
pub(crate) const FIGURES: [(&str, [f64; 5]); 3] = [
    ("TTFT", [58_015.4, 58_321.9, 108_799.9, 111_854.0, 126_227.1]),
    ("TPOT", [34.6, 32.7, 42.0, 52.7, 63.9]),
    ("E2E", [80_550.9, 77_874.2, 131_240.7, 137_610.6, 141_660.1]),
];

/// The same of a simulated run.
pub(crate) fn figures(run: &Latencies) -> [[f64; 5]; 3] {
    [run.ttft_ms(), run.tpot_ms(), run.e2e_ms()].map(|values| {
        let Summary { mean, p50, p90, p95, p99, .. } = Summary::of(values);
        [mean, p50, p90, p95, p99].map(|figure| figure.expect("the run has requests"))
    })
}

/// Its once-a-second log, without KV usage.
pub(crate) fn log() -> Vec<LogSecond> {
    let log = open("earlier-run-timeseries.csv");
    read_engine_log(log).expect("the committed log is well-formed")
}

/// Its settings: those of the later run but for `max_num_seqs` and the number of KV blocks.
pub(crate) fn config(later: &SimConfig, kv_blocks: u32) -> SimConfig {
    let mut config = later.clone().with_kv_blocks(kv_blocks);
    config.engine.max_num_seqs = 128;
    config
}

/// Root mean square over the log's seconds of how far the numbers of running and waiting requests are from the
/// simulated ones.
pub(crate) fn queues_apart(later: &SimConfig, workload: &(Workload, Plan), kv_blocks: u32) -> f64 {
    let (measured, simulated) = (log(), simulated_log(&config(later, kv_blocks), workload, 0));
    let seconds = measured.len().max(simulated.len());
    let queues = |log: &[LogSecond], second: usize| {
        log.get(second).map_or([0.0; 2], |log| [log.running, log.waiting].map(f64::from))
    };
    let squares: f64 = (0..seconds)
        .map(|second| {
            let ([running, waiting], [is_running, is_waiting]) =
                (queues(&measured, second), queues(&simulated, second));
            (is_running - running).powi(2) + (is_waiting - waiting).powi(2)
        })
        .sum();
    (squares / seconds as f64).sqrt()
}

/// The number of KV blocks, to 20, that the log's queues show: it was not recorded.
pub(crate) fn kv_blocks(later: &SimConfig, workload: &(Workload, Plan)) -> u32 {
    (2_400..=3_600)
        .step_by(20)
        .map(|blocks| (blocks, queues_apart(later, workload, blocks)))
        .min_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(blocks, _)| blocks)
        .expect("there are numbers to try")
}
