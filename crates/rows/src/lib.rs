//! Rows of runs as Parquet files: every request, every sample.
//!
//! The crate is *not* told how a run is made or what is made of its rows, and opens no file. It is a crate of its own for what
//! the `parquet` crate takes to build.
//!
//! A file has the rows of any number of runs, one row group for each, in the order in which they were added. The columns:
//!
//! | requests | type | |
//! |---|---|---|
//! | `cell` | u32 | the run's cell, an index into the experiment's grid |
//! | `seed` | u64 | the run's seed |
//! | `id`, `session`, `turn` | u32 | of the request in its workload |
//! | `instance` | u32, null | where it went; null if no instance could be chosen |
//! | `reason` | string | why there |
//! | `outcome` | string | `completed`, `failed` |
//! | `arrival_ns` | u64 | when its client meant to send it, ns since the run began, as are the other times |
//! | `scheduled_ns` | u64, null | when the engine first scheduled it; null if it never ran |
//! | `first_token_ns` | u64, null | when the first output token reached the client |
//! | `end_ns` | u64 | when the last one did, or the failure was known |
//! | `prompt_tokens` | u32 | |
//! | `cached_tokens` | u32, null | found in the prefix cache at first admission; null if never admitted |
//! | `predicted_cached_tokens` | u32, null | believed to be cached there; null without a cache directory |
//! | `output_tokens` | u32 | |
//! | `preemptions` | u32 | how often it was preempted |
//!
//! | samples | type | |
//! |---|---|---|
//! | `cell`, `seed` | | as above |
//! | `at_ns` | u64 | when, ns since the run began |
//! | `instance` | u32 | of which instance |
//! | `waiting`, `running` | u32 | requests in its queue, and in its running list |
//! | `kv_cache_usage` | double | fraction of its KV blocks in use, `0.0..=1.0` |
//! | `in_flight` | u32 | requests sent there that the router has not seen end |
//!
//! A file has room for 32,768 runs. Its metadata say `kvroute_rows` (`requests`, `samples`) and `kvroute_version`. Pages are
//! compressed with zstd. Equal rows give equal bytes.

use std::io::Write;
use std::marker::PhantomData;
use std::sync::Arc;

use kvroute_types::{LoadSample, Outcome, RequestRecord};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use serde::{Deserialize, Serialize};

mod read;

pub use read::{ReadRowsError, RequestRow, read_requests};

/// Which run of an experiment rows are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RunKey {
    /// The cell, an index into the experiment's grid.
    pub cell: u32,
    /// The seed.
    pub seed: u64,
}

/// Rows that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write rows to a Parquet file")]
pub struct WriteRowsError(#[from] ParquetError);

/// Writes requests or samples of runs into one Parquet file.
#[derive(Debug)]
pub struct RowsWriter<W: Write + Send, R> {
    file: SerializedFileWriter<W>,
    rows: PhantomData<fn(R)>,
}

/// What there are files of: [`RequestRecord`] and [`LoadSample`].
pub trait Row: columns::Columns {}

impl<R: columns::Columns> Row for R {}

impl<W: Write + Send, R: Row> RowsWriter<W, R> {
    /// Begins a file.
    ///
    /// # Errors
    /// If writing fails.
    pub fn new(out: W) -> Result<Self, WriteRowsError> {
        let schema = parse_message_type(&schema::<R>())?;
        let file = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties::<R>()))?;
        Ok(Self { file, rows: PhantomData })
    }

    /// Adds the rows of a run.
    ///
    /// # Errors
    /// If writing fails.
    pub fn append(&mut self, run: RunKey, rows: &[R]) -> Result<(), WriteRowsError> {
        let of_the_run: [Values<R>; 2] =
            [Values::U32(Box::new(move |_| run.cell)), Values::U64(Box::new(move |_| run.seed))];
        let of_rows = R::columns().into_iter().map(|column| column.values);
        let mut columns = of_the_run.into_iter().chain(of_rows);
        let mut group = self.file.next_row_group()?;
        while let Some(mut column) = group.next_column()? {
            // The schema was made of the same list. If it were shorter, closing the group would fail.
            let Some(values) = columns.next() else { break };
            values.write(&mut column, rows)?;
            column.close()?;
        }
        group.close()?;
        Ok(())
    }

    /// Ends the file and gives back what it was written to.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(self) -> Result<W, WriteRowsError> {
        Ok(self.file.into_inner()?)
    }
}

/// Writes the requests of one run into a file of their own.
///
/// # Errors
/// If writing fails.
pub fn write_requests(
    run: RunKey,
    records: &[RequestRecord],
    out: impl Write + Send,
) -> Result<(), WriteRowsError> {
    write_run(run, records, out)
}

/// Writes the samples of one run into a file of their own.
///
/// # Errors
/// If writing fails.
pub fn write_samples(
    run: RunKey,
    samples: &[LoadSample],
    out: impl Write + Send,
) -> Result<(), WriteRowsError> {
    write_run(run, samples, out)
}

fn write_run<R: Row>(
    run: RunKey,
    rows: &[R],
    out: impl Write + Send,
) -> Result<(), WriteRowsError> {
    let mut writer = RowsWriter::new(out)?;
    writer.append(run, rows)?;
    writer.finish()?;
    Ok(())
}

/// How [`Outcome`] is written.
fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
    }
}

/// The values of a column, by row. Unsigned numbers are stored in the signed type of their width.
enum Values<R> {
    U32(Box<dyn Fn(&R) -> u32>),
    MaybeU32(fn(&R) -> Option<u32>),
    U64(Box<dyn Fn(&R) -> u64>),
    MaybeU64(fn(&R) -> Option<u64>),
    Double(fn(&R) -> f64),
    Text(fn(&R) -> &'static str),
}

impl<R> Values<R> {
    /// Type in the words of the schema.
    fn schema_type(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::U32(_) => ("required", "int32", " (INTEGER(32,false))"),
            Self::MaybeU32(_) => ("optional", "int32", " (INTEGER(32,false))"),
            Self::U64(_) => ("required", "int64", " (INTEGER(64,false))"),
            Self::MaybeU64(_) => ("optional", "int64", " (INTEGER(64,false))"),
            Self::Double(_) => ("required", "double", ""),
            Self::Text(_) => ("required", "binary", " (STRING)"),
        }
    }

    fn write(
        &self,
        column: &mut SerializedColumnWriter<'_>,
        rows: &[R],
    ) -> Result<(), ParquetError> {
        let rows = rows.iter();
        match self {
            Self::U32(of) => {
                let values: Vec<i32> = rows.map(|row| of(row).cast_signed()).collect();
                column.typed::<Int32Type>().write_batch(&values, None, None)
            }
            Self::MaybeU32(of) => {
                let (values, levels) = present(rows.map(|row| of(row).map(u32::cast_signed)));
                column.typed::<Int32Type>().write_batch(&values, Some(&levels), None)
            }
            Self::U64(of) => {
                let values: Vec<i64> = rows.map(|row| of(row).cast_signed()).collect();
                column.typed::<Int64Type>().write_batch(&values, None, None)
            }
            Self::MaybeU64(of) => {
                let (values, levels) = present(rows.map(|row| of(row).map(u64::cast_signed)));
                column.typed::<Int64Type>().write_batch(&values, Some(&levels), None)
            }
            Self::Double(of) => {
                let values: Vec<f64> = rows.map(of).collect();
                column.typed::<DoubleType>().write_batch(&values, None, None)
            }
            Self::Text(of) => {
                let values: Vec<ByteArray> = rows.map(|row| ByteArray::from(of(row))).collect();
                column.typed::<ByteArrayType>().write_batch(&values, None, None)
            }
        }?;
        Ok(())
    }
}

/// The values there are, and for each row whether there is one (1) or not (0).
fn present<T>(values: impl Iterator<Item = Option<T>>) -> (Vec<T>, Vec<i16>) {
    let mut levels = Vec::new();
    let there = values.inspect(|value| levels.push(i16::from(value.is_some()))).flatten().collect();
    (there, levels)
}

/// In Parquet's notation.
fn schema<R: Row>() -> String {
    let run = "required int32 cell (INTEGER(32,false)); required int64 seed (INTEGER(64,false));";
    let columns = R::columns().into_iter().map(|column| {
        let (repetition, physical, logical) = column.values.schema_type();
        format!("{repetition} {physical} {}{logical};", column.name)
    });
    format!("message {} {{ {run} {} }}", R::NAME, columns.collect::<Vec<_>>().join(" "))
}

fn properties<R: Row>() -> WriterProperties {
    let version = env!("CARGO_PKG_VERSION");
    let entry = |key: &str, value: &str| KeyValue::new(key.to_owned(), value.to_owned());
    let mut properties = WriterProperties::builder()
        .set_created_by(format!("kvroute {version}"))
        .set_key_value_metadata(Some(vec![
            entry("kvroute_rows", R::NAME),
            entry("kvroute_version", version),
        ]))
        .set_compression(Compression::ZSTD(ZstdLevel::default()));
    for column in R::columns() {
        // Nearly every value is another one, but not far from the one before: differences, and not a dictionary.
        if matches!(column.values, Values::U64(_) | Values::MaybeU64(_)) || column.name == "id" {
            let path = ColumnPath::from(column.name);
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
    }
    properties.build()
}

/// What the columns are; not for other crates.
mod columns {
    use kvroute_types::Timestamp;

    use super::{LoadSample, RequestRecord, Values, outcome_name};

    pub struct Column<R> {
        pub(super) name: &'static str,
        pub(super) values: Values<R>,
    }

    pub trait Columns: Sized + 'static {
        /// What the rows are called.
        const NAME: &str;

        fn columns() -> Vec<Column<Self>>;
    }

    fn column<R>(name: &'static str, values: Values<R>) -> Column<R> {
        Column { name, values }
    }

    fn u32s<R: 'static>(name: &'static str, of: fn(&R) -> u32) -> Column<R> {
        column(name, Values::U32(Box::new(of)))
    }

    fn u64s<R: 'static>(name: &'static str, of: fn(&R) -> u64) -> Column<R> {
        column(name, Values::U64(Box::new(of)))
    }

    impl Columns for RequestRecord {
        const NAME: &str = "requests";

        fn columns() -> Vec<Column<Self>> {
            vec![
                u32s("id", |row: &Self| row.id.0),
                u32s("session", |row: &Self| row.session.0),
                u32s("turn", |row: &Self| row.turn),
                column("instance", Values::MaybeU32(|row: &Self| row.instance.map(|id| id.0))),
                column("reason", Values::Text(|row: &Self| row.reason)),
                column("outcome", Values::Text(|row: &Self| outcome_name(row.outcome))),
                u64s("arrival_ns", |row: &Self| row.arrival.as_nanos()),
                column(
                    "scheduled_ns",
                    Values::MaybeU64(|row: &Self| row.scheduled.map(Timestamp::as_nanos)),
                ),
                column(
                    "first_token_ns",
                    Values::MaybeU64(|row: &Self| row.first_token.map(Timestamp::as_nanos)),
                ),
                u64s("end_ns", |row: &Self| row.end.as_nanos()),
                u32s("prompt_tokens", |row: &Self| row.prompt_tokens.0),
                column(
                    "cached_tokens",
                    Values::MaybeU32(|row: &Self| row.cached_tokens.map(|tokens| tokens.0)),
                ),
                column(
                    "predicted_cached_tokens",
                    Values::MaybeU32(|row: &Self| {
                        row.predicted_cached_tokens.map(|tokens| tokens.0)
                    }),
                ),
                u32s("output_tokens", |row: &Self| row.output_tokens.0),
                u32s("preemptions", |row: &Self| row.preemptions),
            ]
        }
    }

    impl Columns for LoadSample {
        const NAME: &str = "samples";

        fn columns() -> Vec<Column<Self>> {
            vec![
                u64s("at_ns", |row: &Self| row.at.as_nanos()),
                u32s("instance", |row: &Self| row.instance.0),
                u32s("waiting", |row: &Self| row.waiting),
                u32s("running", |row: &Self| row.running),
                column("kv_cache_usage", Values::Double(|row: &Self| row.kv_cache_usage)),
                u32s("in_flight", |row: &Self| row.in_flight),
            ]
        }
    }
}

#[cfg(test)]
mod tests;
