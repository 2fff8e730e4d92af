//! What the instances have told, kept in a file over a restart of the gateway.
//!
//! The file begins with a line of JSON ([`Header`]); then follow the bytes of the index's own snapshot. It is written
//! whole beside its place and then put there, so that a reader finds the old one or the new one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kvroute_kv_events::Position;
use kvroute_router::ExactIndex;
use kvroute_types::{InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Core, Fleet};
use crate::config::KvEventsConfig;

/// Version of the header.
const FORMAT: u32 = 1;

/// What a snapshot is of.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    /// When it was taken, ns since the Unix epoch.
    taken_unix_ns: u64,
    /// How blocks were named.
    block_size: u32,
    hash_algo: String,
    pythonhashseed: Option<String>,
    /// By name.
    instances: BTreeMap<String, Kept>,
}

/// An instance in a snapshot.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Its number in the index.
    pub(super) id: InstanceId,
    /// Up to where its stream has been applied.
    pub(super) position: Option<Position>,
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is no snapshot that kvroute has written")]
    NotOurs,
    #[error("its form is {0}, this kvroute reads {FORMAT}")]
    Format(u32),
    #[error("it is of blocks that are named otherwise (block size, hash algorithm or seed)")]
    OtherNames,
    #[error(transparent)]
    Index(#[from] kvroute_router::SnapshotError),
}

impl Header {
    fn new(config: &KvEventsConfig, instances: BTreeMap<String, Kept>) -> Self {
        Self {
            format: FORMAT,
            taken_unix_ns: unix_ns(),
            block_size: config.block_size,
            hash_algo: config.hash_algo.name().to_owned(),
            pythonhashseed: config.pythonhashseed.clone(),
            instances,
        }
    }

    fn names_as(&self, config: &KvEventsConfig) -> bool {
        (self.block_size, self.hash_algo.as_str(), &self.pythonhashseed)
            == (config.block_size, config.hash_algo.name(), &config.pythonhashseed)
    }
}

impl Core {
    /// Takes up what an earlier gateway has kept, if it is there and of use, before any instance is entered. What is not
    /// costs a warning and nothing else.
    pub(super) fn restore(&mut self, config: &KvEventsConfig) {
        let Some(path) = config.snapshot.as_deref().filter(|_| config.enabled) else { return };
        match self.try_restore(path, config) {
            Ok(header) => {
                let blocks = self.router.told().map_or(0, ExactIndex::distinct_blocks);
                let age_s = unix_ns().saturating_sub(header.taken_unix_ns) as f64 * 1e-9;
                let instances = header.instances.len();
                tracing::info!(blocks, instances, age_s, "restored what instances have told");
                let ids = header.instances.values().map(|kept| kept.id.index() + 1);
                self.members.resize_with(ids.max().unwrap_or(0), || None);
                self.snapshot_unix_ns = Some(header.taken_unix_ns);
                self.kept = header.instances;
            }
            Err(Unusable::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "the snapshot is not used; instances tell anew");
            }
        }
    }

    fn try_restore(&mut self, path: &Path, config: &KvEventsConfig) -> Result<Header, Unusable> {
        let bytes = fs::read(path)?;
        let end = memchr::memchr(b'\n', &bytes).ok_or(Unusable::NotOurs)?;
        let header = serde_json::from_slice::<Header>(&bytes[..end]);
        let header = header.map_err(|_| Unusable::NotOurs)?;
        if header.format != FORMAT {
            return Err(Unusable::Format(header.format));
        }
        if !header.names_as(config) {
            return Err(Unusable::OtherNames);
        }
        self.router.restore(&bytes[end + 1..])?;
        Ok(header)
    }

    /// Forgets what was kept of instances that are not there any more.
    pub(super) fn forget_the_gone(&mut self) {
        for Kept { id, .. } in std::mem::take(&mut self.kept).into_values() {
            if self.member(id).is_none() {
                self.router.instance_restarted(id);
            }
        }
    }
}

impl Fleet {
    /// Writes what the instances have told, if that is to be kept.
    ///
    /// The fleet is locked while it is copied to memory, and not while the file is written.
    pub(crate) fn keep_snapshot(&self) {
        let config = self.config();
        let Some(path) = config.kv_events.snapshot.as_deref().filter(|_| config.kv_events.enabled)
        else {
            return;
        };
        let mut bytes = Vec::new();
        let header = {
            let core = self.core();
            let written = core.router.snapshot(Timestamp::ZERO, &mut bytes);
            written.expect("memory takes all");
            Header::new(&config.kv_events, core.positions())
        };
        let taken_unix_ns = header.taken_unix_ns;
        match write(path, &header, &bytes) {
            Ok(()) => self.core().snapshot_unix_ns = Some(taken_unix_ns),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the snapshot cannot be written");
            }
        }
    }

    /// Seconds since the latest snapshot was taken, be it by an earlier gateway.
    pub(super) fn snapshot_age_s(core: &Core) -> Option<f64> {
        let taken = core.snapshot_unix_ns?;
        Some(unix_ns().saturating_sub(taken) as f64 * 1e-9)
    }
}

fn write(path: &Path, header: &Header, bytes: &[u8]) -> io::Result<()> {
    let mut beside = PathBuf::from(path).into_os_string();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = File::create(&beside)?;
    serde_json::to_writer(&mut file, header)?;
    file.write_all(b"\n")?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
