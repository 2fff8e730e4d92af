//! The index as bytes.
//!
//! Little-endian, version 1:
//!
//! | field | form |
//! |---|---|
//! | magic | `KVRXIDX` and a zero |
//! | version | u32 |
//! | taken at, nanoseconds of the caller's clock | u64 |
//! | number of instances, then their ids, rising | u32, u32 each |
//! | number of runs, then for each: | u32 |
//! | - number of blocks, number of spans | u32, u32 |
//! | - block hashes | u64 each |
//! | - spans in order: instance, start, end | 3 u32 each |
//! | number of blocks with further copies, then for each: | u64 |
//! | - instance, hash, further copies | u32, u64, u32 |
//! | XXH3-64 of all before | u64 |

use std::io::{self, Read, Write};

use kvroute_types::{BlockHash, InstanceId, Timestamp};
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

use super::runs::Place;
use super::spans::{self, Span};
use super::{ExactIndex, ExactIndexConfig};
use crate::error::ConfigError;

const MAGIC: [u8; 8] = *b"KVRXIDX\0";
const VERSION: u32 = 1;

/// Why a snapshot was not restored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// It does not begin as snapshots do.
    #[error("this is no snapshot of an exact index; give a file that `snapshot` has written")]
    NotASnapshot,
    /// Another version of the format.
    #[error(
        "the snapshot has format version {found}, this program reads version {VERSION}; \
         start without it, or with the program that wrote it"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// It ends too early.
    #[error(
        "the snapshot ends in the middle; it was not written or copied whole, start without it"
    )]
    Truncated,
    /// Its content is not what was written.
    #[error("the snapshot is damaged ({what}); start without it")]
    Damaged {
        /// What is wrong with it.
        what: &'static str,
    },
    /// It holds more than the budget has room for.
    #[error(
        "the snapshot does not fit in budget_bytes = {budget_bytes}; raise it, or start without"
    )]
    OverBudget {
        /// The budget given, bytes.
        budget_bytes: usize,
    },
    /// The bounds of the new index are not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The bytes could not be read.
    #[error("the snapshot cannot be read")]
    Io(#[source] io::Error),
}

impl ExactIndex {
    /// Writes what the instances hold, copies included, and when that was: `taken_at` is any time
    /// the caller likes, and [`restore`](Self::restore) gives it back. Writes in small pieces, so
    /// best to a `BufWriter`.
    ///
    /// Not written: the counts of refused blocks and of unknown removals, which are of this process.
    /// Where each instance's event stream stood is the caller's to keep: without it the index is as
    /// stale as the snapshot is old.
    ///
    /// # Errors
    /// If writing fails.
    pub fn snapshot(&self, taken_at: Timestamp, out: impl Write) -> io::Result<()> {
        let mut out = Writer { out, sum: Xxh3::new() };
        out.bytes(&MAGIC)?;
        out.u32(VERSION)?;
        out.u64(taken_at.as_nanos())?;

        let mut instances: Vec<InstanceId> = self.instances.keys().copied().collect();
        instances.sort_unstable();
        out.count(instances.len())?;
        for &instance in &instances {
            out.u32(instance.0)?;
        }

        let ids = || (0..self.runs.ids_end()).filter(|&id| !self.runs.run(id).spans.is_empty());
        out.count(ids().count())?;
        for id in ids() {
            let run = self.runs.run(id);
            out.u32(run.len())?;
            out.count(run.spans.len())?;
            for at in 0..run.len() {
                out.u64(self.runs.hash(id, at).0)?;
            }
            for span in &run.spans {
                for field in [span.instance.0, span.start, span.end] {
                    out.u32(field)?;
                }
            }
        }

        out.u64(self.instances.values().map(|holdings| holdings.copies.len() as u64).sum())?;
        for &instance in &instances {
            let mut copies: Vec<(u64, u32)> = (self.instances[&instance].copies.iter())
                .map(|(&slot, &count)| (self.runs.hash_of(slot).0, count))
                .collect();
            copies.sort_unstable();
            for (hash, count) in copies {
                out.u32(instance.0)?;
                out.u64(hash)?;
                out.u32(count)?;
            }
        }
        let sum = out.sum.digest();
        out.u64(sum)
    }

    /// An index with these bounds that answers as the one did of which this is the snapshot, and
    /// when that was taken. Reads the snapshot and nothing behind it, in small pieces: best from a
    /// slice or a `BufReader`.
    ///
    /// # Errors
    /// If the bytes are not a whole, undamaged snapshot of this version, or do not fit the bounds.
    pub fn restore(
        config: ExactIndexConfig,
        input: impl Read,
    ) -> Result<(Self, Timestamp), SnapshotError> {
        let mut index = Self::new(config)?;
        let mut input = Reader { input, sum: Xxh3::new() };
        if input.array()? != MAGIC {
            return Err(SnapshotError::NotASnapshot);
        }
        let version = input.u32()?;
        if version != VERSION {
            return Err(SnapshotError::Version { found: version });
        }
        let taken_at = Timestamp::from_nanos(input.u64()?);
        for _ in 0..input.u32()? {
            let instance = InstanceId(input.u32()?);
            need(!index.instances.contains_key(&instance), "an instance twice")?;
            if !index.know(instance) {
                return Err(index.over_budget());
            }
        }
        for _ in 0..input.u32()? {
            index.restore_run(&mut input)?;
        }
        for _ in 0..input.u64()? {
            index.restore_copies(&mut input)?;
        }
        let sum = input.sum.digest();
        need(input.u64()? == sum, "its checksum does not match")?;
        Ok((index, taken_at))
    }

    fn restore_run(&mut self, input: &mut Reader<impl Read>) -> Result<(), SnapshotError> {
        let (len, spans) = (input.u32()?, input.u32()?);
        need(len > 0, "a run without blocks")?;
        let mut run = None;
        for _ in 0..len {
            let hash = BlockHash(input.u64()?);
            need(self.runs.find(hash).is_none(), "a block twice")?;
            if !self.runs.append_bytes(run, hash).is_some_and(|bytes| self.fits(bytes)) {
                return Err(self.over_budget());
            }
            run = Some(self.runs.append(run, hash).run);
        }
        let run = run.expect("the run has blocks");
        let mut reaches_end = false;
        for _ in 0..spans {
            let (instance, start, end) = (InstanceId(input.u32()?), input.u32()?, input.u32()?);
            let last = self.runs.run(run).spans.last();
            let is_behind = last.is_none_or(|last| {
                last.instance < instance || last.instance == instance && last.end < start
            });
            need(is_behind && start < end && end <= len, "spans out of order")?;
            need(self.instances.contains_key(&instance), "an instance not listed")?;
            if !self.restore_span(run, Span { instance, start, end }) {
                return Err(self.over_budget());
            }
            reaches_end |= end == len;
        }
        need(reaches_end, "a run that ends with blocks nobody holds")
    }

    fn restore_copies(&mut self, input: &mut Reader<impl Read>) -> Result<(), SnapshotError> {
        let (instance, hash) = (InstanceId(input.u32()?), BlockHash(input.u64()?));
        let count = input.u32()?;
        let slot = self.runs.find(hash).and_then(|Place { run, at }| {
            let run = self.runs.run(run);
            spans::containing(&run.spans, instance, at).map(|_| run.slot(at))
        });
        let Some(slot) = slot.filter(|_| count > 0) else {
            return Err(SnapshotError::Damaged { what: "copies of a block not held" });
        };
        if self.set_copies(instance, slot, count) { Ok(()) } else { Err(self.over_budget()) }
    }

    fn over_budget(&self) -> SnapshotError {
        SnapshotError::OverBudget { budget_bytes: self.budget_bytes }
    }
}

fn need(claim: bool, otherwise: &'static str) -> Result<(), SnapshotError> {
    if claim { Ok(()) } else { Err(SnapshotError::Damaged { what: otherwise }) }
}

struct Writer<W> {
    out: W,
    sum: Xxh3,
}

impl<W: Write> Writer<W> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.out.write_all(bytes)
    }

    fn u32(&mut self, value: u32) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    fn count(&mut self, count: usize) -> io::Result<()> {
        self.u32(u32::try_from(count).map_err(io::Error::other)?)
    }
}

struct Reader<R> {
    input: R,
    sum: Xxh3,
}

impl<R: Read> Reader<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => SnapshotError::Truncated,
            _ => SnapshotError::Io(error),
        })?;
        self.sum.update(&bytes);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, SnapshotError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, SnapshotError> {
        self.array().map(u64::from_le_bytes)
    }
}
