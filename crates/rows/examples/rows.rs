//! Writes a requests file and a samples file (`requests.parquet`, `samples.parquet`) into the directory given, and prints their
//! rows as JSON, for `scripts/check_statistics.sh` to read the files with pyarrow.

#![expect(clippy::print_stdout, reason = "the rows are what it is for")]

use std::error::Error;
use std::fs::File;
use std::path::PathBuf;

use kvroute_rows::{RowsWriter, RunKey};
use kvroute_types::{
    InstanceId, LoadSample, Outcome, RequestId, RequestRecord, SessionId, Timestamp, TokenCount,
};
use serde_json::json;

/// Rows that differ in every column; every third was never answered.
fn record(number: u32) -> RequestRecord {
    let is_answered = number % 3 < 2;
    let at = |ns: u64| Timestamp::from_nanos(u64::from(number) * 1_000_003 + ns);
    RequestRecord {
        id: RequestId(number),
        session: SessionId(number / 2),
        turn: number % 2,
        instance: is_answered.then_some(InstanceId(number % 4)),
        reason: if number.is_multiple_of(2) { "cache-score" } else { "load-score" },
        outcome: if is_answered { Outcome::Completed } else { Outcome::Failed },
        arrival: at(0),
        scheduled: is_answered.then(|| at(500)),
        first_token: is_answered.then(|| at(20_000)),
        end: if number == 7 { Timestamp::MAX } else { at(90_000) },
        prompt_tokens: TokenCount(if number == 8 { u32::MAX } else { 100 + number }),
        cached_tokens: is_answered.then_some(TokenCount(16 * (number % 5))),
        predicted_cached_tokens: is_answered.then_some(TokenCount(16 * (number % 6))),
        output_tokens: TokenCount(number % 11),
        preemptions: number % 3,
    }
}

fn sample(number: u32) -> LoadSample {
    LoadSample {
        at: Timestamp::from_nanos(u64::from(number / 2) * 250_000_000),
        instance: InstanceId(number % 2),
        waiting: number % 5,
        running: number % 9,
        kv_cache_usage: f64::from(number) / 1_000.0 / 3.0,
        in_flight: number % 5 + number % 9 + 1,
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args_os().nth(1).ok_or("give a directory")?);
    let runs = [RunKey { cell: 0, seed: 1 }, RunKey { cell: 1, seed: u64::MAX }];
    let records: Vec<RequestRecord> = (0..1_000).map(record).collect();
    let samples: Vec<LoadSample> = (0..1_000).map(sample).collect();

    let mut requests_file = RowsWriter::new(File::create(directory.join("requests.parquet"))?)?;
    let mut samples_file = RowsWriter::new(File::create(directory.join("samples.parquet"))?)?;
    for run in runs {
        requests_file.append(run, &records)?;
        samples_file.append(run, &samples)?;
    }
    requests_file.finish()?;
    samples_file.finish()?;
    println!("{}", json!({ "runs": runs, "requests": records, "samples": samples }));
    Ok(())
}
