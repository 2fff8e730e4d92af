//! Values that are written as text: spans of time, refresh intervals.

use std::time::Duration;

use kvroute_router::Refresh;

/// Parses a span of time: `0`, `250ms`, `1.5s`, `2min`; a bare number is seconds.
///
/// # Errors
/// If it is none; says which forms there are.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds)
            .map_err(|_| format!("`{text}` is no span of time; give 0 or more seconds"));
    }
    if let Some(seconds) = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok()) {
        return parse_duration(&seconds.to_string());
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; give a span of time such as 0, 250ms, 1.5s or 2min"))
}

/// Parses a refresh interval: 0 is real time, `never` is never.
///
/// # Errors
/// If it is neither that nor a span of time.
pub fn parse_refresh(text: &str) -> Result<Refresh, String> {
    if text == "never" {
        return Ok(Refresh::Never);
    }
    let interval = parse_duration(text).map_err(|error| format!("{error}, or never"))?;
    Ok(if interval.is_zero() { Refresh::RealTime } else { Refresh::EveryS(interval.as_secs_f64()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2min"), Ok(Duration::from_mins(2)));
        assert!(parse_duration("-1").unwrap_err().contains("0 or more"));
        assert!(parse_duration("soon").unwrap_err().contains("250ms"));
    }

    #[test]
    fn refreshes() {
        assert_eq!(parse_refresh("0"), Ok(Refresh::RealTime));
        assert_eq!(parse_refresh("500ms"), Ok(Refresh::EveryS(0.5)));
        assert_eq!(parse_refresh("never"), Ok(Refresh::Never));
        assert!(parse_refresh("often").unwrap_err().contains("never"));
    }
}
