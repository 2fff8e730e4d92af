//! Rows written and read again.

use bytes::Bytes;
use kvroute_types::{InstanceId, RequestId, SessionId, Timestamp, TokenCount};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, RowAccessor};
use proptest::prelude::*;

use super::*;

const RUN: RunKey = RunKey { cell: 3, seed: u64::MAX - 1 };

fn maybe<T: std::fmt::Debug>(
    values: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Option<T>> {
    prop::option::of(values)
}

/// Any record, whether it makes sense or not.
fn records() -> impl Strategy<Value = Vec<RequestRecord>> {
    let who = (any::<u32>(), any::<u32>(), 0..5_u32, maybe(any::<u32>()));
    let why = (
        prop::sample::select(vec!["rotation", "least-loaded", "cache-score", ""]),
        prop::sample::select(vec![Outcome::Completed, Outcome::Failed]),
    );
    let when = (any::<u64>(), maybe(any::<u64>()), maybe(0..1_000_u64), any::<u64>());
    let what = (any::<u32>(), maybe(any::<u32>()), maybe(0..9_u32), any::<u32>(), 0..3_u32);
    let record = (who, why, when, what).prop_map(
        |(
            (id, session, turn, instance),
            (reason, outcome),
            (arrival, scheduled, first_token, end),
            (prompt_tokens, cached_tokens, predicted, output_tokens, preemptions),
        )| RequestRecord {
            id: RequestId(id),
            session: SessionId(session),
            turn,
            instance: instance.map(InstanceId),
            reason,
            outcome,
            arrival: Timestamp::from_nanos(arrival),
            scheduled: scheduled.map(Timestamp::from_nanos),
            first_token: first_token.map(Timestamp::from_nanos),
            end: Timestamp::from_nanos(end),
            prompt_tokens: TokenCount(prompt_tokens),
            cached_tokens: cached_tokens.map(TokenCount),
            predicted_cached_tokens: predicted.map(TokenCount),
            output_tokens: TokenCount(output_tokens),
            preemptions,
        },
    );
    prop::collection::vec(record, 0..40)
}

fn file(runs: &[(RunKey, Vec<RequestRecord>)]) -> Bytes {
    let mut writer = RowsWriter::new(Vec::new()).unwrap();
    for (run, records) in runs {
        writer.append(*run, records).unwrap();
    }
    writer.finish().unwrap().into()
}

fn samples() -> Vec<LoadSample> {
    let sample = |number: u32| LoadSample {
        at: Timestamp::from_nanos(u64::from(number / 2) * 250_000_000),
        instance: InstanceId(number % 2),
        waiting: number,
        running: 3 * number,
        kv_cache_usage: f64::from(number) / 7.0,
        in_flight: 4 * number + 1,
    };
    (0..8).map(sample).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(
        runs in prop::collection::vec((any::<(u32, u64)>(), records()), 0..4),
    ) {
        let run = |(cell, seed)| RunKey { cell, seed };
        let runs: Vec<_> = runs.into_iter().map(|(key, records)| (run(key), records)).collect();
        let bytes = file(&runs);
        prop_assert_eq!(&bytes, &file(&runs), "equal rows, equal bytes");
        let rows = runs
            .iter()
            .flat_map(|(run, records)| records.iter().map(|record| RequestRow::new(*run, record)));
        prop_assert_eq!(read_requests(bytes).unwrap(), rows.collect::<Vec<_>>());
    }
}

#[test]
fn more_rows_than_a_page_holds() {
    let record = |number: u32| RequestRecord {
        id: RequestId(number),
        session: SessionId(number / 3),
        turn: number % 3,
        instance: (!number.is_multiple_of(7)).then_some(InstanceId(number % 7)),
        reason: if number.is_multiple_of(2) { "cache-score" } else { "load-score" },
        outcome: Outcome::Completed,
        arrival: Timestamp::from_nanos(u64::from(number) * 1_000_003),
        scheduled: Some(Timestamp::from_nanos(u64::from(number) * 1_000_003 + 17)),
        first_token: None,
        end: Timestamp::from_nanos(u64::from(number) * 1_000_003 + 5_000),
        prompt_tokens: TokenCount(number % 4_096),
        cached_tokens: Some(TokenCount(number % 4_096 / 16 * 16)),
        predicted_cached_tokens: None,
        output_tokens: TokenCount(1 + number % 500),
        preemptions: 0,
    };
    let records: Vec<_> = (0..100_000).map(record).collect();
    let mut bytes = Vec::new();
    write_requests(RUN, &records, &mut bytes).unwrap();
    // 16 columns that would take 84 bytes as plain numbers.
    assert!(bytes.len() < 100_000 * 20, "{} bytes", bytes.len());
    let read = read_requests(Bytes::from(bytes)).unwrap();
    assert_eq!(read.len(), records.len());
    assert!(read.iter().zip(&records).all(|(row, record)| *row == RequestRow::new(RUN, record)));
}

#[test]
fn samples_are_rows_of_their_own() {
    let mut bytes = Vec::new();
    write_samples(RUN, &samples(), &mut bytes).unwrap();
    let reader = SerializedFileReader::new(Bytes::from(bytes.clone())).unwrap();
    let read: Vec<_> = reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| {
            let row = row.unwrap();
            assert_eq!(row.get_uint(0).unwrap(), RUN.cell);
            assert_eq!(row.get_ulong(1).unwrap(), RUN.seed);
            LoadSample {
                at: Timestamp::from_nanos(row.get_ulong(2).unwrap()),
                instance: InstanceId(row.get_uint(3).unwrap()),
                waiting: row.get_uint(4).unwrap(),
                running: row.get_uint(5).unwrap(),
                kv_cache_usage: row.get_double(6).unwrap(),
                in_flight: row.get_uint(7).unwrap(),
            }
        })
        .collect();
    assert_eq!(read, samples());

    let error = read_requests(Bytes::from(bytes)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the file's columns are not those of kvroute's requests, from \"id\" on; give a requests file of this version"
    );
}

#[test]
fn the_file_says_what_it_is() {
    let reader = SerializedFileReader::new(file(&[(RUN, Vec::new())])).unwrap();
    let metadata = reader.metadata().file_metadata();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(metadata.created_by(), Some(format!("kvroute {version}").as_str()));
    let entries = metadata.key_value_metadata().unwrap();
    let entries: Vec<_> =
        entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_deref())).collect();
    assert_eq!(entries, [("kvroute_rows", Some("requests")), ("kvroute_version", Some(version))]);
    assert!(reader.get_row_iter(None).unwrap().next().is_none());
}

#[test]
fn numbers_are_unsigned_and_names_are_text() {
    let record = RequestRow::new(RUN, &any_record());
    let bytes = file(&[(RUN, vec![any_record()])]);
    let reader = SerializedFileReader::new(bytes).unwrap();
    let row = reader.get_row_iter(None).unwrap().next().unwrap().unwrap();
    let field = |name: &str| row.get_column_iter().find(|(found, _)| *found == name).unwrap().1;
    assert_eq!(*field("seed"), Field::ULong(RUN.seed));
    assert_eq!(*field("id"), Field::UInt(record.id.0));
    assert_eq!(*field("reason"), Field::Str(record.reason));
    assert_eq!(*field("outcome"), Field::Str("failed".to_owned()));
    assert_eq!(*field("instance"), Field::Null);
    assert_eq!(*field("end_ns"), Field::ULong(u64::MAX));
}

/// With the greatest numbers there are, and nothing known.
fn any_record() -> RequestRecord {
    RequestRecord {
        id: RequestId(u32::MAX),
        session: SessionId(0),
        turn: 0,
        instance: None,
        reason: "no-instance",
        outcome: Outcome::Failed,
        arrival: Timestamp::ZERO,
        scheduled: None,
        first_token: None,
        end: Timestamp::MAX,
        prompt_tokens: TokenCount(u32::MAX),
        cached_tokens: None,
        predicted_cached_tokens: None,
        output_tokens: TokenCount(0),
        preemptions: 0,
    }
}

#[test]
fn damaged_files_are_refused() {
    let bytes = file(&[(RUN, vec![any_record(); 50])]);
    for len in [0, 3, 20, bytes.len() / 2, bytes.len() - 1] {
        let error = read_requests(bytes.slice(..len)).unwrap_err();
        assert!(matches!(error, ReadRowsError::Parquet(_)), "{len}: {error:?}");
    }
}
