//! Values on the command line that need parsing of their own.

use std::path::Path;

pub(crate) use kvroute_experiment::{parse_duration as duration, parse_refresh as refresh};
use kvroute_router::DirectorySource;

/// Whether a name on the command line means a TOML file: it has that extension or is a path.
pub(crate) fn is_file(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "toml")
        || name.contains(std::path::MAIN_SEPARATOR)
}

/// Parses the name of what the cache directory learns from.
pub(crate) fn directory(text: &str) -> Result<DirectorySource, String> {
    match text {
        "history" => Ok(DirectorySource::History),
        "events" => Ok(DirectorySource::Events),
        _ => Err("write history or events".into()),
    }
}
