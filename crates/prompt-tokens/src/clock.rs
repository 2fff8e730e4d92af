//! The time that a chat template may ask for.

use jiff::Timestamp;
use jiff::tz::Offset;

/// A moment and the server's offset from UTC: what `strftime_now` of a chat template tells.
///
/// A server tells its own local time, so the caller says which that is. Templates mostly ask for the date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub unix_s: i64,
    /// Seconds that the servers' local time is ahead of UTC, `-93_599..=93_599`; containers mostly run at 0.
    pub utc_offset_s: i32,
}

/// Python's `datetime.now().strftime(format)`; `None` where the format or the time is not supported.
pub(crate) fn strftime(format: &str, now: Now) -> Option<String> {
    // The directives on which Python and the library here agree.
    const KNOWN: &str = "aAbBdHIjmMpSyYeFT%D";
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        let directive = rest[at + 1..].trim_start_matches('-').chars().next()?;
        if !KNOWN.contains(directive) {
            return None;
        }
        rest = rest[at + 1..].trim_start_matches('-').strip_prefix(directive)?;
    }
    let offset = Offset::from_seconds(now.utc_offset_s).ok()?;
    let local = offset.to_datetime(Timestamp::from_second(now.unix_s).ok()?);
    jiff::fmt::strtime::format(format, local).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from `CPython` 3.11 on Linux.
    #[test]
    fn dates_are_told_as_python_tells_them() {
        let at = |utc_offset_s| Now { unix_s: 1_767_225_599, utc_offset_s };
        assert_eq!(strftime("%d %b %Y", at(0)).unwrap(), "31 Dec 2025");
        assert_eq!(strftime("%d %b %Y", at(3600)).unwrap(), "01 Jan 2026");
        assert_eq!(
            strftime("%A, %B %-d %Y %H:%M:%S %j %%", at(1)).unwrap(),
            "Thursday, January 1 2026 00:00:00 001 %"
        );
        assert_eq!(strftime("%Q", at(0)), None);
        assert_eq!(strftime("%", at(0)), None);
    }
}
