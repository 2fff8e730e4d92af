//! `kvroute trace`.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use kvroute_types::BlockSize;
use kvroute_workload::TraceStats;

use crate::failure::Failure;
use crate::output::{Format, write_json, write_rows};
use crate::workload_args::{ConversationArgs, read_trace};

/// Block size for traces that have none of their own, tokens.
const DEFAULT_BLOCK_SIZE: u32 = 16;

#[derive(Debug, Subcommand)]
pub(crate) enum TraceCommand {
    /// Lengths, sessions, and how much of a trace any cache could serve.
    Stats(StatsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Trace file, plain, .gz or .zst.
    file: PathBuf,

    #[command(flatten)]
    conversations: ConversationArgs,

    /// Granularity of the hit rates, tokens [default: the trace's own, else 16].
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..))]
    block_size: Option<u32>,

    /// Sizes of a single LRU cache shared by all requests, tokens.
    #[arg(long, value_name = "TOKENS", num_args = 1.., default_values_t = [1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000, 32_000_000])]
    capacity_tokens: Vec<u64>,

    /// Form of the results.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn run(command: &TraceCommand) -> Result<(), Failure> {
    match command {
        TraceCommand::Stats(args) => stats(args),
    }
}

fn stats(args: &StatsArgs) -> Result<(), Failure> {
    let format = args.conversations.format();
    let format = format.ok_or_else(|| Failure::Usage(anyhow!("--trace-format is missing")))?;
    let workload = read_trace(&args.file, format, &args.conversations.options(0))?;
    let block_size = args
        .block_size
        .or_else(|| workload.trace_block_size().map(BlockSize::get))
        .unwrap_or(DEFAULT_BLOCK_SIZE);
    let block_size = BlockSize::new(block_size).expect("at least 1 by the parser");
    let stats =
        TraceStats::new(&workload, block_size, &args.capacity_tokens).map_err(Failure::usage)?;
    if workload.dropped() > 0 {
        eprintln!(
            "note: {} requests of the file are left out (empty, or by a filter)",
            workload.dropped()
        );
    }
    if args.format == Format::Json {
        return Ok(write_json(&stats)?);
    }
    let percent = |rate: f64| format!("{:.1} %", 100.0 * rate);
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("requests", stats.requests.to_string()),
        row("sessions", stats.sessions.to_string()),
        row("duration_s", format!("{:.0}", stats.duration_s)),
    ];
    for (name, tokens) in
        [("input_tokens", &stats.input_tokens), ("output_tokens", &stats.output_tokens)]
    {
        rows.push(row(&format!("{name} mean"), format!("{:.0}", tokens.mean)));
        rows.push(row(&format!("{name} p50"), format!("{:.0}", tokens.p50)));
        rows.push(row(&format!("{name} p95"), format!("{:.0}", tokens.p95)));
        rows.push(row(&format!("{name} max"), format!("{:.0}", tokens.max)));
    }
    rows.push(row("hit rate, infinite cache", percent(stats.hit_rate_infinite_cache)));
    for point in &stats.pooled_lru {
        let name = format!("hit rate, LRU of {} tokens", point.capacity_tokens);
        rows.push(row(&name, percent(point.hit_rate)));
    }
    Ok(write_rows(args.format, &["figure", "value"], &rows)?)
}
