//! Requests back from a file.

use std::sync::Arc;

use kvroute_types::{
    InstanceId, Outcome, RequestId, RequestRecord, SessionId, Timestamp, TokenCount,
};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::SchemaDescriptor;

use super::{RunKey, outcome_name, schema};

/// A request as a file has it: [`RequestRecord`] with its run, and with a reason that may be of another version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRow {
    /// Its run.
    pub run: RunKey,
    /// Number of the request in its workload.
    pub id: RequestId,
    /// Session it belongs to.
    pub session: SessionId,
    /// Turn within the session, from 0.
    pub turn: u32,
    /// Instance that served it; `None` if none could be chosen.
    pub instance: Option<InstanceId>,
    /// Why the policy chose that instance.
    pub reason: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Intended arrival.
    pub arrival: Timestamp,
    /// When the engine first scheduled it; `None` if it never ran.
    pub scheduled: Option<Timestamp>,
    /// When the first output token reached the client; `None` if none did.
    pub first_token: Option<Timestamp>,
    /// When the last output token reached the client, or the failure was known.
    pub end: Timestamp,
    /// Prompt length.
    pub prompt_tokens: TokenCount,
    /// Prompt tokens found in the prefix cache at first admission; `None` if never admitted.
    pub cached_tokens: Option<TokenCount>,
    /// What the router believed would be cached; `None` without a cache directory.
    pub predicted_cached_tokens: Option<TokenCount>,
    /// Output tokens produced.
    pub output_tokens: TokenCount,
    /// Times it was preempted.
    pub preemptions: u32,
}

impl RequestRow {
    /// The row that a record is written as.
    pub fn new(run: RunKey, record: &RequestRecord) -> Self {
        let RequestRecord {
            id,
            session,
            turn,
            instance,
            reason,
            outcome,
            arrival,
            scheduled,
            first_token,
            end,
            prompt_tokens,
            cached_tokens,
            predicted_cached_tokens,
            output_tokens,
            preemptions,
        } = *record;
        Self {
            run,
            id,
            session,
            turn,
            instance,
            reason: reason.to_owned(),
            outcome,
            arrival,
            scheduled,
            first_token,
            end,
            prompt_tokens,
            cached_tokens,
            predicted_cached_tokens,
            output_tokens,
            preemptions,
        }
    }
}

/// Rows that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadRowsError {
    /// Not a Parquet file, or a damaged one.
    #[error("cannot read the file as Parquet")]
    Parquet(#[from] ParquetError),
    /// Other columns than ours.
    #[error(
        "the file's columns are not those of kvroute's requests, from {column:?} on; give a requests file of this version"
    )]
    Columns {
        /// The first one that differs or is missing; empty if there are more than ours.
        column: String,
    },
    /// A value that no version has written.
    #[error("column {column} has the value {value:?}; the file is damaged, or of a later version")]
    Value {
        /// The column.
        column: &'static str,
        /// What is there.
        value: String,
    },
}

/// Reads a requests file (a [`File`](std::fs::File), or `Bytes`): all rows, in the file's order.
///
/// # Errors
/// [`ReadRowsError`] if it is not a requests file of this version, or damaged.
pub fn read_requests(file: impl ChunkReader + 'static) -> Result<Vec<RequestRow>, ReadRowsError> {
    let reader = SerializedFileReader::new(file)?;
    check_columns(reader.metadata().file_metadata().schema_descr())?;
    let mut rows = Vec::new();
    for group in 0..reader.num_row_groups() {
        read_group(reader.get_row_group(group)?.as_ref(), &mut rows)?;
    }
    Ok(rows)
}

fn check_columns(found: &SchemaDescriptor) -> Result<(), ReadRowsError> {
    let ours = SchemaDescriptor::new(Arc::new(parse_message_type(&schema::<RequestRecord>())?));
    for (at, ours) in ours.columns().iter().enumerate() {
        let is_ours = found.columns().get(at).is_some_and(|found| {
            found.name() == ours.name()
                && found.physical_type() == ours.physical_type()
                && found.max_def_level() == ours.max_def_level()
                && found.max_rep_level() == ours.max_rep_level()
        });
        if !is_ours {
            return Err(ReadRowsError::Columns { column: ours.name().to_owned() });
        }
    }
    if found.num_columns() > ours.num_columns() {
        return Err(ReadRowsError::Columns { column: String::new() });
    }
    Ok(())
}

fn read_group(group: &dyn RowGroupReader, rows: &mut Vec<RequestRow>) -> Result<(), ReadRowsError> {
    let mut columns = Columns { group, next: 0 };
    let (cell, seed) = (columns.u32s()?, columns.u64s()?);
    let (id, session, turn) = (columns.u32s()?, columns.u32s()?, columns.u32s()?);
    let instance = columns.maybe_u32s()?;
    let (reason, outcome) = (columns.texts("reason")?, columns.texts("outcome")?);
    let arrival = columns.u64s()?;
    let (scheduled, first_token) = (columns.maybe_u64s()?, columns.maybe_u64s()?);
    let end = columns.u64s()?;
    let prompt_tokens = columns.u32s()?;
    let (cached, predicted) = (columns.maybe_u32s()?, columns.maybe_u32s()?);
    let (output_tokens, preemptions) = (columns.u32s()?, columns.u32s()?);
    for (at, reason) in reason.into_iter().enumerate() {
        rows.push(RequestRow {
            run: RunKey { cell: cell[at], seed: seed[at] },
            id: RequestId(id[at]),
            session: SessionId(session[at]),
            turn: turn[at],
            instance: instance[at].map(InstanceId),
            reason,
            outcome: read_outcome(&outcome[at])?,
            arrival: Timestamp::from_nanos(arrival[at]),
            scheduled: scheduled[at].map(Timestamp::from_nanos),
            first_token: first_token[at].map(Timestamp::from_nanos),
            end: Timestamp::from_nanos(end[at]),
            prompt_tokens: TokenCount(prompt_tokens[at]),
            cached_tokens: cached[at].map(TokenCount),
            predicted_cached_tokens: predicted[at].map(TokenCount),
            output_tokens: TokenCount(output_tokens[at]),
            preemptions: preemptions[at],
        });
    }
    Ok(())
}

fn read_outcome(name: &str) -> Result<Outcome, ReadRowsError> {
    let known = [Outcome::Completed, Outcome::Failed];
    known
        .into_iter()
        .find(|outcome| outcome_name(*outcome) == name)
        .ok_or_else(|| ReadRowsError::Value { column: "outcome", value: name.to_owned() })
}

/// A row group's columns, one after the other; each has a value, or none, for every row.
struct Columns<'a> {
    group: &'a dyn RowGroupReader,
    next: usize,
}

impl Columns<'_> {
    fn u32s(&mut self) -> Result<Vec<u32>, ReadRowsError> {
        Ok(self.maybe_u32s()?.into_iter().flatten().collect())
    }

    fn u64s(&mut self) -> Result<Vec<u64>, ReadRowsError> {
        Ok(self.maybe_u64s()?.into_iter().flatten().collect())
    }

    fn maybe_u32s(&mut self) -> Result<Vec<Option<u32>>, ReadRowsError> {
        let rows = self.rows();
        match self.next_column()? {
            ColumnReader::Int32ColumnReader(column) => read(column, rows, i32::cast_unsigned),
            _ => Err(other_type("int32")),
        }
    }

    fn maybe_u64s(&mut self) -> Result<Vec<Option<u64>>, ReadRowsError> {
        let rows = self.rows();
        match self.next_column()? {
            ColumnReader::Int64ColumnReader(column) => read(column, rows, i64::cast_unsigned),
            _ => Err(other_type("int64")),
        }
    }

    fn texts(&mut self, name: &'static str) -> Result<Vec<String>, ReadRowsError> {
        let rows = self.rows();
        let ColumnReader::ByteArrayColumnReader(column) = self.next_column()? else {
            return Err(other_type("binary"));
        };
        let texts = read(column, rows, |bytes| match bytes.as_utf8() {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(String::from_utf8_lossy(bytes.data()).into_owned()),
        })?;
        let texts = texts.into_iter().flatten();
        texts
            .collect::<Result<_, _>>()
            .map_err(|value| ReadRowsError::Value { column: name, value })
    }

    fn rows(&self) -> usize {
        usize::try_from(self.group.metadata().num_rows()).unwrap_or(0)
    }

    fn next_column(&mut self) -> Result<ColumnReader, ParquetError> {
        self.next += 1;
        self.group.get_column_reader(self.next - 1)
    }
}

fn other_type(expected: &str) -> ReadRowsError {
    ReadRowsError::Parquet(ParquetError::General(format!("a column is not of type {expected}")))
}

/// A column's values, or `None` where there is none, as `of` gives them.
fn read<T: DataType, V>(
    mut column: ColumnReaderImpl<T>,
    rows: usize,
    of: impl Fn(T::T) -> V,
) -> Result<Vec<Option<V>>, ReadRowsError> {
    let (mut values, mut levels, mut read) = (Vec::new(), Vec::new(), 0);
    while read < rows {
        let (records, ..) =
            column.read_records(rows - read, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::General(format!("{read} of {rows} rows are there")).into());
        }
        read += records;
    }
    let mut values = values.into_iter().map(of);
    if levels.is_empty() {
        return Ok(values.map(Some).collect());
    }
    Ok(levels.into_iter().map(|level| if level == 0 { None } else { values.next() }).collect())
}
