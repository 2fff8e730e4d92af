//! Azure LLM inference traces (2023 and 2024): arrivals and lengths, no identity of content or
//! session.
//!
//! Every request is a session of its own with content of its own: use it for load, not for caching.

use std::io::BufRead;

use kvroute_types::Timestamp;

use super::input::{CsvRows, TraceClock, bad_value, check_lengths};
use super::{TraceError, TraceFormat, block_ids};
use crate::workload::{Draft, WorkloadBuilder};
use crate::{Arrival, Workload};

pub(super) fn read(reader: impl BufRead) -> Result<Workload, TraceError> {
    let mut rows = CsvRows::new(reader, TraceFormat::Azure)?;
    let time = rows.column("TIMESTAMP")?;
    let prompt = rows.column("ContextTokens")?;
    let output = rows.column("GeneratedTokens")?;
    let mut builder = WorkloadBuilder::default();
    let mut clock = TraceClock::default();
    let mut session = 0;
    while let Some(row) = rows.next()? {
        let prompt_tokens = row.count(prompt, "ContextTokens")?;
        let output_tokens = row.count(output, "GeneratedTokens")?;
        check_lengths(
            row.line,
            ("ContextTokens", prompt_tokens),
            ("GeneratedTokens", output_tokens),
        )?;
        let at = since_2000(row.text(time)).ok_or_else(|| {
            bad_value(row.line, "TIMESTAMP", row.text(time), "like 2023-11-16 18:17:03.9799600")
        })?;
        let arrival = Arrival::At(clock.arrival(row.line, at)?);
        let private = block_ids::private(builder.drafts.len(), prompt_tokens + output_tokens);
        let content = builder.content([private]);
        builder.push(Draft {
            session,
            arrival,
            prompt_tokens,
            output_tokens,
            content,
            session_key: block_ids::session_key(session),
            prefix_key: private.id.0,
        });
        session += 1;
    }
    Ok(builder.finish(TraceFormat::Azure.name()))
}

/// Parses `YYYY-MM-DD hh:mm:ss[.fraction][+00:00]` of this century, in UTC.
fn since_2000(text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix("+00:00").unwrap_or(text);
    let (date, time) = text.split_once([' ', 'T'])?;
    let [year, month, day] = numbers(date, '-')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let [hour, minute, second] = numbers(time, ':')?;
    let valid = (2000..2100).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !valid {
        return None;
    }
    let seconds = ((days_since_2000(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(Timestamp::from_nanos(seconds * 1_000_000_000 + nanos(fraction)?))
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator).map(|part| part.parse().ok());
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

/// A decimal fraction of a second, to the nanosecond.
fn nanos(fraction: &str) -> Option<u64> {
    let digits = fraction.len() <= 9 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| format!("{fraction:0<9}").parse().ok()).flatten()
}

/// Days from 1 January 2000 to a valid date of this century (2000 is a leap year, 2100 is not
/// reached).
fn days_since_2000(year: u64, month: u64, day: u64) -> u64 {
    const BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let years = year - 2000;
    let leap_day = u64::from(month > 2 && years.is_multiple_of(4));
    let index = usize::try_from(month - 1).unwrap_or(0);
    years * 365 + years.div_ceil(4) + BEFORE_MONTH[index] + leap_day + day - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_days_of_the_calendar() {
        assert_eq!(days_since_2000(2000, 1, 1), 0);
        assert_eq!(days_since_2000(2000, 3, 1), 60);
        assert_eq!(days_since_2000(2001, 1, 1), 366);
        // 2024-05-10 is day 19,853 of the Unix epoch, 2000-01-01 day 10,957.
        assert_eq!(days_since_2000(2024, 5, 10), 19_853 - 10_957);
    }

    #[test]
    fn both_releases_of_the_time_format_are_read() {
        let ns = |text| since_2000(text).map(Timestamp::as_nanos);
        let midnight = ns("2024-05-10 00:00:00").unwrap();
        assert_eq!(ns("2024-05-10 00:00:00.009930+00:00"), Some(midnight + 9_930_000));
        assert_eq!(ns("2024-05-10 01:00:00.0000001"), Some(midnight + 3_600_000_000_100));
        for bad in [
            "",
            "2024-05-10",
            "2024-13-10 00:00:00",
            "2024-05-10 24:00:00",
            "2024-05-10 00:00:00.x",
        ] {
            assert_eq!(ns(bad), None, "{bad:?}");
        }
    }
}
