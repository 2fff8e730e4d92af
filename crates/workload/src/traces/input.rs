//! What all readers share: unpacking, lines, checked values, the trace's clock.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use kvroute_types::Timestamp;
use serde::de::DeserializeOwned;

use super::{TraceError, TraceFormat};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Unpacks gzip and zstd, told by their magic bytes (RFC 1952, RFC 8878); passes anything else
/// through.
///
/// A stream that is cut off ends in an error of kind [`io::ErrorKind::UnexpectedEof`].
///
/// # Errors
/// If the first bytes cannot be read.
pub fn decompress<'a>(mut reader: impl BufRead + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
    let mut magic = Vec::with_capacity(ZSTD.len());
    reader.by_ref().take(ZSTD.len() as u64).read_to_end(&mut magic)?;
    let is_gzip = magic.starts_with(&GZIP);
    let is_zstd = magic == ZSTD;
    let whole = Cursor::new(magic).chain(reader);
    Ok(if is_gzip {
        Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(whole)))
    } else if is_zstd {
        Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(whole)?))
    } else {
        Box::new(whole)
    })
}

/// Calls `record` with the number and the content of each line that is not blank.
pub(super) fn for_each_json_line<T: DeserializeOwned>(
    mut reader: impl BufRead,
    format: TraceFormat,
    mut record: impl FnMut(usize, T) -> Result<(), TraceError>,
) -> Result<(), TraceError> {
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        if reader.read_until(b'\n', &mut text).map_err(|source| TraceError::io(line, source))? == 0
        {
            break;
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let parsed = serde_json::from_slice(&text).map_err(|source| TraceError::Json {
            line,
            format,
            source,
        })?;
        record(line, parsed)?;
    }
    Ok(())
}

/// A CSV file with a header, whose columns are found by name.
pub(super) struct CsvRows<R> {
    reader: csv::Reader<R>,
    header: csv::StringRecord,
    format: TraceFormat,
}

/// One row: its line and its fields.
pub(super) struct CsvRow {
    pub(super) line: usize,
    fields: csv::StringRecord,
}

impl<R: Read> CsvRows<R> {
    pub(super) fn new(reader: R, format: TraceFormat) -> Result<Self, TraceError> {
        let mut reader = csv::Reader::from_reader(reader);
        let header = reader.headers().map_err(|source| csv_error(1, format, source))?.clone();
        Ok(Self { reader, header, format })
    }

    /// The index of a column, if the file has it. Names differ in case and spaces between releases.
    pub(super) fn find_column(&self, column: &str) -> Option<usize> {
        let plain = |name: &str| name.trim().to_ascii_lowercase().replace(' ', "");
        self.header.iter().position(|name| plain(name) == plain(column))
    }

    pub(super) fn column(&self, column: &'static str) -> Result<usize, TraceError> {
        self.find_column(column).ok_or_else(|| TraceError::MissingColumn {
            column,
            found: self.header.iter().map(str::to_owned).collect(),
        })
    }

    pub(super) fn next(&mut self) -> Result<Option<CsvRow>, TraceError> {
        let mut fields = csv::StringRecord::new();
        let line = usize::try_from(self.reader.position().line()).unwrap_or(usize::MAX);
        let found = self
            .reader
            .read_record(&mut fields)
            .map_err(|source| csv_error(line, self.format, source))?;
        Ok(found.then_some(CsvRow { line, fields }))
    }
}

impl CsvRow {
    pub(super) fn text(&self, column: usize) -> &str {
        self.fields.get(column).unwrap_or_default().trim()
    }

    pub(super) fn count(&self, column: usize, field: &'static str) -> Result<u32, TraceError> {
        self.text(column)
            .parse()
            .map_err(|_| bad_value(self.line, field, self.text(column), "a whole number of tokens"))
    }
}

fn csv_error(line: usize, format: TraceFormat, source: csv::Error) -> TraceError {
    if !source.is_io_error() {
        return TraceError::Csv { line, format, source };
    }
    match source.into_kind() {
        csv::ErrorKind::Io(source) => TraceError::io(line, source),
        _ => TraceError::Truncated { line },
    }
}

pub(super) fn bad_value(
    line: usize,
    field: &'static str,
    found: impl Into<String>,
    expected: &'static str,
) -> TraceError {
    TraceError::BadValue { line, field, found: found.into(), expected }
}

/// Checks prompt and output length: neither is zero, and neither is beyond any context window.
pub(super) fn check_lengths(
    line: usize,
    prompt: (&'static str, u32),
    output: (&'static str, u32),
) -> Result<(), TraceError> {
    const LONGEST: u32 = 1 << 30;
    for (field, tokens) in [prompt, output] {
        if tokens == 0 {
            return Err(TraceError::NoTokens { line, field });
        }
        if tokens > LONGEST {
            return Err(bad_value(line, field, tokens.to_string(), "at most 2^30 tokens"));
        }
    }
    Ok(())
}

/// Turns a trace's own times into arrivals since its first request, and checks their order.
#[derive(Default)]
pub(super) struct TraceClock {
    first_and_latest: Option<(Timestamp, Timestamp)>,
}

impl TraceClock {
    pub(super) fn arrival(&mut self, line: usize, at: Timestamp) -> Result<Timestamp, TraceError> {
        let (first, latest) = self.first_and_latest.unwrap_or((at, at));
        if at < latest {
            return Err(TraceError::ArrivalOutOfOrder {
                line,
                at_s: at.as_secs_f64(),
                previous_s: latest.as_secs_f64(),
            });
        }
        self.first_and_latest = Some((first, at));
        Ok(Timestamp::from_nanos(at.nanos_since(first)))
    }

    /// As [`Self::arrival`], for a time in units of `unit_s` seconds.
    pub(super) fn arrival_in(
        &mut self,
        line: usize,
        field: &'static str,
        value: f64,
        unit_s: f64,
    ) -> Result<Timestamp, TraceError> {
        if !(value.is_finite() && value >= 0.0) {
            return Err(bad_value(line, field, value.to_string(), "a time, 0 or more"));
        }
        self.arrival(line, Timestamp::from_secs_f64(value * unit_s))
    }
}
