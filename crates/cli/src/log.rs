//! Logs of the servers, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Turns logging on: what `KVROUTE_LOG` selects (default `info`), as lines on a terminal, else as JSON.
pub(crate) fn init() {
    let filter = EnvFilter::try_from_env("KVROUTE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        log.compact().init();
    } else {
        log.json().init();
    }
}
