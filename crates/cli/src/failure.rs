//! How a command can fail, and with which exit status.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// A failed command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was asked for cannot be done: bad flag, bad file, impossible setting. Exit status 2.
    Usage(anyhow::Error),
    /// It could be done but went wrong. Exit status 1.
    Run(anyhow::Error),
}

impl Failure {
    /// A usage failure with an error of its own.
    pub(crate) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(error.into())
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Run(_) => ExitCode::FAILURE,
        }
    }

    /// Whether standard output was closed by its reader.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        let Self::Run(error) = self else { return false };
        error.chain().any(|cause| {
            cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        })
    }
}

/// Failing to write results.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Run(anyhow::Error::new(error).context("cannot write the results"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) | Self::Run(error) => fmt::Display::fmt(error, f),
        }
    }
}
