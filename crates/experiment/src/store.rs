//! The run directory while an experiment is under way.
//!
//! A finished run is one line of `runs.jsonl` (`runs-K-of-N.jsonl` for a shard), written at once. A line counts if it ends in a
//! line break, so a run is there or it is not: what a killed process left of a line is cut off when the directory is
//! opened again. Capacities are kept in the same way. `manifest.json` says what the directory is of; another experiment, or
//! another build of kvroute, is refused.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use kvroute_lab::{Capacity, ExperimentRun, Manifest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::plan::{Plan, RunId};

/// One part of an experiment, for one of several machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Number of this part, `1..=of`.
    pub number: u32,
    /// Number of parts.
    pub of: u32,
}

impl Shard {
    /// The whole experiment.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// Whether this part has the unit with that number.
    pub(crate) fn has(self, unit: usize) -> bool {
        unit as u64 % u64::from(self.of) == u64::from(self.number) - 1
    }

    fn file(self, kind: &str) -> String {
        match self {
            Self::WHOLE => format!("{kind}.jsonl"),
            Self { number, of } => format!("{kind}-{number}-of-{of}.jsonl"),
        }
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (number, of) = text.split_once('/')?;
            let shard = Self { number: number.parse().ok()?, of: of.parse().ok()? };
            (1..=shard.of).contains(&shard.number).then_some(shard)
        };
        parse().ok_or_else(|| format!("`{text}` is not K/N with K from 1 to N, 2/3 for instance"))
    }
}

/// A run directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    /// The system said no.
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The directory is of something else.
    #[error(
        "{path} holds runs of {other}; give another --out, or remove the directory to begin anew",
        path = path.display()
    )]
    OtherExperiment {
        /// The directory.
        path: PathBuf,
        /// What it is of.
        other: String,
    },
    /// Another process writes there.
    #[error(
        "another kvroute is running this experiment in {path}; wait for it, or give each its own --shard",
        path = path.display()
    )]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// A line that nobody wrote.
    #[error("{path} line {line} is damaged ({what}); remove the line, and its run is made again", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
}

/// One finished run as a line.
#[derive(Serialize, Deserialize)]
struct RunLine {
    cell: usize,
    seed: u64,
    run: ExperimentRun,
}

/// A run directory, open for writing. Others are kept out until it is dropped.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    runs: LineFile,
    capacities: LineFile,
    /// Held for its lock.
    _lock: File,
    done: BTreeMap<RunId, ExperimentRun>,
    known_capacities: Vec<Capacity>,
}

impl Store {
    /// Opens the directory, making it if need be, and reads what is there of all shards.
    ///
    /// # Errors
    /// If it is of another experiment, another process writes there, or a file cannot be read or written.
    pub fn open(directory: &Path, shard: Shard, manifest: &Manifest) -> Result<Self, StoreFault> {
        let make = fs::create_dir_all(directory);
        make.map_err(io_fault("make the directory", directory))?;
        let lock = lock(directory, shard)?;
        check_manifest(directory, manifest)?;
        let runs = directory.join(shard.file("runs"));
        let capacities = directory.join(shard.file("capacities"));
        let (runs, capacities) = (LineFile::open(&runs)?, LineFile::open(&capacities)?);
        let mut store = Self {
            directory: directory.to_owned(),
            runs,
            capacities,
            _lock: lock,
            done: BTreeMap::new(),
            known_capacities: Vec::new(),
        };
        store.read_all(directory)?;
        Ok(store)
    }

    /// Takes over the finished runs of another directory of the same experiment; those that are here already stay.
    ///
    /// # Errors
    /// If it is of another experiment, or a file cannot be read or written.
    pub fn take_over(&mut self, other: &Path, manifest: &Manifest) -> Result<(), StoreFault> {
        let path = other.join("manifest.json");
        let bytes = fs::read(&path).map_err(io_fault("read", &path))?;
        is_same(other, &bytes, manifest)?;
        let mut theirs = Vec::new();
        let mut capacities = Vec::new();
        for path in line_files(other, "runs")? {
            theirs.extend(read_lines::<RunLine>(&path)?);
        }
        for path in line_files(other, "capacities")? {
            capacities.extend(read_lines::<Capacity>(&path)?);
        }
        for RunLine { cell, seed, run } in theirs {
            let id = RunId { cell, seed };
            if !self.done.contains_key(&id) {
                self.add(id, run)?;
            }
        }
        for capacity in capacities {
            if !self.known_capacities.contains(&capacity) {
                self.add_capacity(capacity)?;
            }
        }
        Ok(())
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The finished runs.
    pub fn done(&self) -> &BTreeMap<RunId, ExperimentRun> {
        &self.done
    }

    /// Capacities found so far.
    pub fn capacities(&self) -> &[Capacity] {
        &self.known_capacities
    }

    /// Whether every run of the plan is there.
    pub fn is_complete(&self, plan: &Plan) -> bool {
        self.done.len() == plan.runs()
    }

    /// Keeps a finished run.
    ///
    /// # Errors
    /// If it cannot be written (a full disk, say): the run is then not there, and the others are.
    pub fn add(&mut self, id: RunId, run: ExperimentRun) -> Result<(), StoreFault> {
        let line = RunLine { cell: id.cell, seed: id.seed, run };
        self.runs.append(&line)?;
        self.done.insert(id, line.run);
        Ok(())
    }

    /// Keeps a capacity.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add_capacity(&mut self, capacity: Capacity) -> Result<(), StoreFault> {
        self.capacities.append(&capacity)?;
        self.known_capacities.push(capacity);
        Ok(())
    }

    fn read_all(&mut self, directory: &Path) -> Result<(), StoreFault> {
        for path in line_files(directory, "runs")? {
            for RunLine { cell, seed, run } in read_lines(&path)? {
                self.done.insert(RunId { cell, seed }, run);
            }
        }
        for path in line_files(directory, "capacities")? {
            for capacity in read_lines(&path)? {
                if !self.known_capacities.contains(&capacity) {
                    self.known_capacities.push(capacity);
                }
            }
        }
        Ok(())
    }
}

/// A file of JSON lines that is only ever added to.
#[derive(Debug)]
struct LineFile {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    length: u64,
}

impl LineFile {
    /// Opens it and cuts off what is left of a line that was not written to its end.
    fn open(path: &Path) -> Result<Self, StoreFault> {
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(io_fault("open", path))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io_fault("read", path))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let length = whole as u64;
        file.set_len(length).map_err(io_fault("write", path))?;
        file.seek(SeekFrom::Start(length)).map_err(io_fault("write", path))?;
        Ok(Self { path: path.to_owned(), file, length })
    }

    fn append(&mut self, value: &impl Serialize) -> Result<(), StoreFault> {
        let mut line = serde_json::to_vec(value).expect("results are plain data");
        line.push(b'\n');
        let written = self.file.write_all(&line).and_then(|()| self.file.flush());
        if let Err(source) = written {
            // As if it had not been tried. Should that fail too, opening the file again does it.
            let _ = self.file.set_len(self.length);
            let _ = self.file.seek(SeekFrom::Start(self.length));
            return Err(StoreFault::Io { what: "write", path: self.path.clone(), source });
        }
        self.length += line.len() as u64;
        Ok(())
    }
}

fn io_fault<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreFault + 'a {
    move |source| StoreFault::Io { what, path: path.to_owned(), source }
}

/// Keeps other processes out of this shard.
fn lock(directory: &Path, shard: Shard) -> Result<File, StoreFault> {
    let path = directory.join(format!(".{}.lock", shard.file("runs")));
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(io_fault("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreFault::Busy { path: directory.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_fault("lock", &path)(source)),
    }
}

fn check_manifest(directory: &Path, manifest: &Manifest) -> Result<(), StoreFault> {
    let path = directory.join("manifest.json");
    match fs::read(&path) {
        Ok(bytes) => is_same(directory, &bytes, manifest),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let json = serde_json::to_vec_pretty(manifest).expect("a manifest is plain data");
            write_atomically(&path, &json).map_err(io_fault("write", &path))
        }
        Err(error) => Err(io_fault("read", &path)(error)),
    }
}

/// Whether the manifest in a directory is of the same experiment and the same kvroute.
fn is_same(directory: &Path, bytes: &[u8], manifest: &Manifest) -> Result<(), StoreFault> {
    let other = |other: String| StoreFault::OtherExperiment { path: directory.to_owned(), other };
    let there: Manifest = serde_json::from_slice(bytes)
        .map_err(|error| other(format!("something without a readable manifest ({error})")))?;
    if there.config != manifest.config || there.seeds != manifest.seeds {
        return Err(other("another experiment, or of this one with other settings".into()));
    }
    if there.inputs.iter().map(|input| &input.sha256).ne(manifest.inputs.iter().map(|i| &i.sha256))
    {
        return Err(other("this experiment with other trace files".into()));
    }
    if (&there.kvroute_version, &there.git_commit)
        != (&manifest.kvroute_version, &manifest.git_commit)
    {
        let commit = there.git_commit.as_deref().unwrap_or("unknown");
        return Err(other(format!("kvroute {} (commit {commit})", there.kvroute_version)));
    }
    Ok(())
}

/// The line files of a kind, of all shards, in the order of their names.
fn line_files(directory: &Path, kind: &str) -> Result<Vec<PathBuf>, StoreFault> {
    let entries = fs::read_dir(directory).map_err(io_fault("read", directory))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_fault("read", directory))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let is_ours = name.is_some_and(|name| {
            let rest = name.strip_prefix(kind);
            let rest = rest.and_then(|rest| rest.strip_suffix(".jsonl"));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        });
        if is_ours {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The whole lines of a file. Another process may be writing the last one.
fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, StoreFault> {
    let bytes = fs::read(path).map_err(io_fault("read", path))?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let lines = bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .enumerate()
        .map(|(at, line)| {
            serde_json::from_slice(line).map_err(|error| StoreFault::Damaged {
                path: path.to_owned(),
                line: at + 1,
                what: error.to_string(),
            })
        })
        .collect()
}

/// Writes a file whole or not at all, so that a killed run leaves no half of it.
///
/// # Errors
/// If it cannot be written; what was there before stays.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, content)?;
    fs::rename(part, path)
}
