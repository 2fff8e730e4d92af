//! Values on the command line that need parsing of their own.

use std::path::Path;
use std::time::Duration;

use kvroute_router::{DirectorySource, Refresh};

/// Whether a name on the command line means a TOML file: it has that extension or is a path.
pub(crate) fn is_file(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "toml")
        || name.contains(std::path::MAIN_SEPARATOR)
}

/// Parses a span of time: `0`, `250ms`, `1.5s`, `2min`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds)
            .map_err(|_| format!("`{text}` is no span of time; give 0 or more seconds"));
    }
    if let Some(seconds) = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok()) {
        return duration(&seconds.to_string());
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; give a span of time such as 0, 250ms, 1.5s or 2min"))
}

/// Parses a refresh interval: 0 is real time, `never` is never.
pub(crate) fn refresh(text: &str) -> Result<Refresh, String> {
    if text == "never" {
        return Ok(Refresh::Never);
    }
    let interval = duration(text).map_err(|error| format!("{error}, or never"))?;
    Ok(if interval.is_zero() { Refresh::RealTime } else { Refresh::EveryS(interval.as_secs_f64()) })
}

/// Parses the name of what the cache directory learns from.
pub(crate) fn directory(text: &str) -> Result<DirectorySource, String> {
    match text {
        "history" => Ok(DirectorySource::History),
        "events" => Ok(DirectorySource::Events),
        _ => Err("write history or events".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2min"), Ok(Duration::from_mins(2)));
        assert!(duration("-1").unwrap_err().contains("0 or more"));
        assert!(duration("soon").unwrap_err().contains("250ms"));
    }

    #[test]
    fn refreshes() {
        assert_eq!(refresh("0"), Ok(Refresh::RealTime));
        assert_eq!(refresh("500ms"), Ok(Refresh::EveryS(0.5)));
        assert_eq!(refresh("never"), Ok(Refresh::Never));
        assert!(refresh("often").unwrap_err().contains("never"));
    }
}
