//! Where a result comes from: what is needed to make the run again.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Bytes read at a time when a file is hashed.
const READ_BYTES: usize = 64 * 1024;

/// What made a set of results: `manifest.json` of a run directory.
///
/// The caller reads the clock, the environment and the command line. No host or user name is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of kvroute.
    pub kvroute_version: String,
    /// Commit kvroute was built from, in hex; `None` if built outside a repository.
    pub git_commit: Option<String>,
    /// The command line, program name first.
    pub command: Vec<String>,
    /// The full effective configuration: defaults, file and flags put together.
    pub config: serde_json::Value,
    /// The seeds that were run.
    pub seeds: Vec<u64>,
    /// The machine it ran on.
    pub machine: Machine,
    /// The files that were read: traces, profiles.
    pub inputs: Vec<InputFile>,
    /// When it began, RFC 3339; `None` where results must not depend on the clock.
    pub started_at: Option<String>,
}

/// The kind of machine a run was made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Operating system, as `std::env::consts::OS` names it.
    pub os: String,
    /// Processor architecture, as `std::env::consts::ARCH` names it.
    pub arch: String,
    /// Logical processors the process may use; `None` if the system does not tell.
    pub cpus: Option<u32>,
}

/// A file that a run read, and its content's hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Path as the caller gave it; characters that are not Unicode are replaced.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 (FIPS 180-4) of the content, 64 lower-case hex digits.
    pub sha256: String,
}

impl InputFile {
    /// Reads the file at `path` to its end and hashes its bytes as they are stored (a compressed file is
    /// not unpacked).
    ///
    /// # Errors
    /// If the file cannot be opened or read.
    pub fn read(path: &Path) -> Result<Self, ReadInputError> {
        File::open(path)
            .and_then(|file| Self::of_reader(path.display().to_string(), file))
            .map_err(|source| ReadInputError { path: path.to_owned(), source })
    }

    /// Hashes all that `content` holds, under the name `path`.
    ///
    /// # Errors
    /// If reading fails.
    pub fn of_reader(path: impl Into<String>, mut content: impl Read) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; READ_BYTES];
        let mut bytes = 0;
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { path: path.into(), bytes, sha256: hex(&hasher.finalize()) })
    }
}

/// An input file that could not be hashed.
#[derive(Debug, Error)]
#[error("cannot read the input file {path}; check that it exists and may be read", path = path.display())]
pub struct ReadInputError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_published_ones() {
        // FIPS 180-4 examples (NIST): the empty message, and "abc".
        let empty = InputFile::of_reader("empty", io::empty()).unwrap();
        assert_eq!(empty.bytes, 0);
        assert_eq!(
            empty.sha256,
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let abc = InputFile::of_reader("abc", &b"abc"[..]).unwrap();
        assert_eq!(abc.bytes, 3);
        assert_eq!(abc.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_long_file_is_hashed_to_its_end() {
        // NIST's long message: a million times "a", several buffers full.
        let file = InputFile::of_reader("a", io::repeat(b'a').take(1_000_000)).unwrap();
        assert_eq!(file.bytes, 1_000_000);
        assert_eq!(file.sha256, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }

    #[test]
    fn a_file_on_disk_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let file = InputFile::read(&path).unwrap();
        assert_eq!(file.bytes, path.metadata().unwrap().len());
        assert_eq!(file.path, path.to_str().unwrap());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = InputFile::read(Path::new("no/such/trace.jsonl")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read the input file no/such/trace.jsonl; check that it exists and may be read"
        );
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_manifest_comes_back_from_json() {
        let manifest = Manifest {
            kvroute_version: "0.1.0".to_owned(),
            git_commit: None,
            command: ["kvroute", "simulate", "--seed", "7"].map(str::to_owned).to_vec(),
            config: serde_json::json!({ "rate_rps": 2.5 }),
            seeds: vec![7, u64::MAX],
            machine: Machine { os: "linux".to_owned(), arch: "x86_64".to_owned(), cpus: Some(2) },
            inputs: vec![InputFile::of_reader("abc", &b"abc"[..]).unwrap()],
            started_at: Some("2026-01-02T03:04:05Z".to_owned()),
        };
        let json = serde_json::to_string_pretty(&manifest).unwrap();
        insta::assert_snapshot!(json);
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }
}
