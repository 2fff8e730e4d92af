//! Run results as rows: a text table to read, and CSV with every scalar.

use std::fmt::Display;
use std::io;

use crate::columns::{Column, Layout, fixed};
use crate::{CacheResult, IndexResult, LoadResult, RunResult, Slo, Summary};

/// Fits in 146 columns, unless its numbers are absurd; a policy's name keeps 12.
const LAYOUT: Layout = Layout { names: 1, width: 146, name_width_min: 12 };

/// Names of the CSV columns, in order: the JSON field names, the parts of a nested one joined by `_`.
///
/// The names are stable; new ones go to the end. Empty means unmeasured. `policy_config` and `reasons`
/// hold JSON; `per_instance` is left out, since it is not one row.
#[rustfmt::skip]
pub const CSV_COLUMNS: &[&str] = &[
    "policy", "policy_config", "workload", "instances", "seed", "mode",
    "requests", "completed", "failed",
    "duration_s", "offered_rps", "completed_rps", "output_tokens_per_s",
    "ttft_ms_mean", "ttft_ms_p50", "ttft_ms_p90", "ttft_ms_p95", "ttft_ms_p99", "ttft_ms_max",
    "tpot_ms_mean", "tpot_ms_p50", "tpot_ms_p90", "tpot_ms_p95", "tpot_ms_p99", "tpot_ms_max",
    "itl_ms_mean", "itl_ms_p50", "itl_ms_p90", "itl_ms_p95", "itl_ms_p99", "itl_ms_max",
    "e2e_ms_mean", "e2e_ms_p50", "e2e_ms_p90", "e2e_ms_p95", "e2e_ms_p99", "e2e_ms_max",
    "queue_time_ms_mean", "queue_time_ms_p50", "queue_time_ms_p90", "queue_time_ms_p95",
    "queue_time_ms_p99", "queue_time_ms_max",
    "slo_ttft_ms", "slo_tpot_ms", "goodput_rps",
    "cache_prompt_tokens", "cache_cached_tokens", "cache_hit_rate", "cache_kv_computed_tokens",
    "cache_hit_rate_infinite_cache",
    "load_imbalance_max_over_mean", "load_imbalance_max_over_min", "load_cov_in_flight",
    "load_queue_depth_mean", "load_queue_depth_max",
    "preemptions", "index_precision", "index_recall", "reasons", "decision_log_hash", "wall_s",
    "cache_hit_rate_pooled_lru", "cache_hit_rate_pooled_belady",
];

/// The results as a table to read, one row each, in the order given; `-` stands for unmeasured.
///
/// Runs of one workload, mode and SLO share a table, with a line above that names the three. The seed has
/// a column if there are several, and so have failed requests if there are any, and the hit rates of one cache for all
/// instances (LRU, Belady) where they are known.
pub fn text_table(runs: &[RunResult]) -> String {
    let mut groups: Vec<(String, Vec<&RunResult>)> = Vec::new();
    for run in runs {
        let title = title(run);
        match groups.iter_mut().find(|(known, _)| *known == title) {
            Some((_, members)) => members.push(run),
            None => groups.push((title, vec![run])),
        }
    }
    let tables: Vec<_> = groups
        .iter()
        .map(|(title, members)| format!("{title}\n\n{}", LAYOUT.table(columns(members))))
        .collect();
    tables.join("\n")
}

/// Writes the results as CSV (RFC 4180, but `\n` ends a line): the names of [`CSV_COLUMNS`], then one
/// record for each result. Numbers have as many digits as it takes to read the same number again.
///
/// # Errors
/// If writing to `out` fails.
pub fn write_csv(runs: &[RunResult], out: impl io::Write) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(CSV_COLUMNS)?;
    for run in runs {
        writer.write_record(csv_record(run)?)?;
    }
    writer.flush()
}

fn title(run: &RunResult) -> String {
    let Slo { ttft_ms, tpot_ms } = run.slo;
    format!(
        "workload {}, {}; goodput: requests/s with TTFT <= {ttft_ms} ms and TPOT <= {tpot_ms} ms",
        run.workload,
        run.mode.name()
    )
}

fn columns(runs: &[&RunResult]) -> Vec<Column<2>> {
    let column = |heading, cell: &dyn Fn(&RunResult) -> String| {
        Column::new(heading, runs.iter().map(|run| cell(run)))
    };
    let several_seeds = runs.iter().any(|run| run.seed != runs[0].seed);
    let any_failed = runs.iter().any(|run| run.failed > 0);
    let any_pooled = runs.iter().any(|run| run.cache.hit_rate_pooled_lru.is_some());

    let mut columns = vec![
        column(["policy", ""], &|run| run.policy.clone()),
        column(["N", ""], &|run| run.instances.to_string()),
    ];
    if several_seeds {
        columns.push(column(["seed", ""], &|run| run.seed.to_string()));
    }
    columns.extend([
        column(["TTFT ms", "mean"], &|run| fixed(run.ttft_ms.mean, 1)),
        column(["TTFT ms", "p50"], &|run| fixed(run.ttft_ms.p50, 1)),
        column(["TTFT ms", "p95"], &|run| fixed(run.ttft_ms.p95, 1)),
        column(["TTFT ms", "p99"], &|run| fixed(run.ttft_ms.p99, 1)),
        column(["TPOT ms", "p50"], &|run| fixed(run.tpot_ms.p50, 2)),
        column(["e2e ms", "p95"], &|run| fixed(run.e2e_ms.p95, 0)),
        column(["hits", "%"], &|run| percent(run.cache.hit_rate)),
    ]);
    if any_pooled {
        columns.extend([
            column(["LRU", "%"], &|run| percent(run.cache.hit_rate_pooled_lru)),
            column(["Belady", "%"], &|run| percent(run.cache.hit_rate_pooled_belady)),
        ]);
    }
    columns.extend([
        column(["infin.", "%"], &|run| percent(run.cache.hit_rate_infinite_cache)),
        column(["imbal-", "ance"], &|run| fixed(run.load.imbalance_max_over_mean, 2)),
        column(["queue", "mean"], &|run| fixed(run.load.queue_depth_mean, 1)),
        column(["preemp-", "tions"], &|run| text(run.preemptions)),
        column(["done", "req/s"], &|run| fixed(run.completed_rps, 2)),
        column(["goodput", "req/s"], &|run| fixed(run.goodput_rps, 2)),
    ]);
    if any_failed {
        columns.push(column(["failed", ""], &|run| run.failed.to_string()));
    }
    columns
}

fn percent(share: Option<f64>) -> String {
    fixed(share.map(|share| 100.0 * share), 1)
}

fn text(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// The fields under [`CSV_COLUMNS`]. Takes the result apart to its last field, so that a new one is not
/// forgotten here.
fn csv_record(run: &RunResult) -> io::Result<Vec<String>> {
    let RunResult {
        policy,
        policy_config,
        workload,
        instances,
        seed,
        mode,
        requests,
        completed,
        failed,
        duration_s,
        offered_rps,
        completed_rps,
        output_tokens_per_s,
        ttft_ms,
        tpot_ms,
        itl_ms,
        e2e_ms,
        queue_time_ms,
        slo,
        goodput_rps,
        cache,
        load,
        preemptions,
        per_instance: _,
        index,
        reasons,
        decision_log_hash,
        wall_s,
    } = run;
    let CacheResult {
        prompt_tokens,
        cached_tokens,
        hit_rate,
        kv_computed_tokens,
        hit_rate_infinite_cache,
        hit_rate_pooled_lru,
        hit_rate_pooled_belady,
    } = cache;
    let LoadResult {
        imbalance_max_over_mean,
        imbalance_max_over_min,
        cov_in_flight,
        queue_depth_mean,
        queue_depth_max,
    } = load;
    let IndexResult { precision, recall } = index;

    let mut record = vec![
        policy.clone(),
        serde_json::to_string(policy_config)?,
        workload.clone(),
        instances.to_string(),
        seed.to_string(),
        mode.name().to_owned(),
        requests.to_string(),
        completed.to_string(),
        failed.to_string(),
        csv_field(duration_s.as_ref()),
        csv_field(offered_rps.as_ref()),
        csv_field(completed_rps.as_ref()),
        csv_field(output_tokens_per_s.as_ref()),
    ];
    for summary in [ttft_ms, tpot_ms, itl_ms, e2e_ms, queue_time_ms] {
        let Summary { mean, p50, p90, p95, p99, max } = summary;
        record.extend([mean, p50, p90, p95, p99, max].map(|figure| csv_field(figure.as_ref())));
    }
    record.extend([
        slo.ttft_ms.to_string(),
        slo.tpot_ms.to_string(),
        csv_field(goodput_rps.as_ref()),
        prompt_tokens.to_string(),
        csv_field(cached_tokens.as_ref()),
        csv_field(hit_rate.as_ref()),
        csv_field(kv_computed_tokens.as_ref()),
        csv_field(hit_rate_infinite_cache.as_ref()),
        csv_field(imbalance_max_over_mean.as_ref()),
        csv_field(imbalance_max_over_min.as_ref()),
        csv_field(cov_in_flight.as_ref()),
        csv_field(queue_depth_mean.as_ref()),
        csv_field(queue_depth_max.as_ref()),
        csv_field(preemptions.as_ref()),
        csv_field(precision.as_ref()),
        csv_field(recall.as_ref()),
        serde_json::to_string(reasons)?,
        csv_field(decision_log_hash.as_ref()),
        wall_s.to_string(),
        csv_field(hit_rate_pooled_lru.as_ref()),
        csv_field(hit_rate_pooled_belady.as_ref()),
    ]);
    Ok(record)
}

/// Nothing at all for an unmeasured figure.
fn csv_field(value: Option<&impl Display>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests;
