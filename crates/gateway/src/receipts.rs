//! Receipts of decisions: the latest in memory, all of them in an optional log file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use kvroute_router::RouteReceipt;
use serde::Serialize;

/// Lines that may wait for the disk before further ones are lost (and counted).
const LOG_BACKLOG_LINES: usize = 4_096;

/// A decision with everything it was made from, by names. Field names are part of the contract.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Receipt {
    /// Number of the request.
    request: u32,
    /// Seconds since the gateway started.
    at_s: f64,
    policy: &'static str,
    instance: String,
    reason: &'static str,
    predicted_cached_tokens: Option<u32>,
    prompt_tokens: u32,
    prompt_blocks: usize,
    session_key: Option<u64>,
    prefix_key: Option<u64>,
    /// Which try of the request this is, from 1.
    attempt: usize,
    index_age_s: Option<f64>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Debug, Serialize)]
struct Candidate {
    instance: String,
    eligible: bool,
    score: Option<f64>,
    matched_blocks: u32,
    in_flight: u32,
    waiting: Option<u32>,
    running: Option<u32>,
    load_age_s: Option<f64>,
}

/// A receipt as the router made it, with the facts of the request; names are looked up when it is read.
pub(crate) struct RawReceipt {
    pub(crate) route: RouteReceipt,
    pub(crate) predicted_cached_tokens: Option<u32>,
    pub(crate) prompt_tokens: u32,
    pub(crate) prompt_blocks: usize,
    pub(crate) session_key: Option<u64>,
    pub(crate) prefix_key: Option<u64>,
    pub(crate) attempt: usize,
}

impl RawReceipt {
    pub(crate) fn named(&self, name: impl Fn(kvroute_types::InstanceId) -> String) -> Receipt {
        let RouteReceipt { request, at, policy, instance, reason, index_age, candidates } =
            &self.route;
        let candidates = candidates.iter().map(|candidate| Candidate {
            instance: name(candidate.instance),
            eligible: candidate.eligible,
            score: candidate.score,
            matched_blocks: candidate.matched_blocks,
            in_flight: candidate.in_flight,
            waiting: candidate.waiting,
            running: candidate.running,
            load_age_s: candidate.load_age.map(|age| age.as_secs_f64()),
        });
        Receipt {
            request: request.0,
            at_s: at.as_secs_f64(),
            policy,
            instance: name(*instance),
            reason: reason.name(),
            predicted_cached_tokens: self.predicted_cached_tokens,
            prompt_tokens: self.prompt_tokens,
            prompt_blocks: self.prompt_blocks,
            session_key: self.session_key,
            prefix_key: self.prefix_key,
            attempt: self.attempt,
            index_age_s: index_age.map(|age| age.as_secs_f64()),
            candidates: candidates.collect(),
        }
    }
}

/// The latest receipts.
pub(crate) struct LatestReceipts {
    receipts: Mutex<VecDeque<RawReceipt>>,
    kept: usize,
}

impl LatestReceipts {
    pub(crate) fn new(kept: usize) -> Self {
        Self { receipts: Mutex::new(VecDeque::with_capacity(kept)), kept }
    }

    pub(crate) fn push(&self, receipt: RawReceipt) {
        if self.kept == 0 {
            return;
        }
        let mut receipts = self.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        if receipts.len() == self.kept {
            receipts.pop_front();
        }
        receipts.push_back(receipt);
    }

    /// At most `count`, the latest first.
    pub(crate) fn latest(
        &self,
        count: usize,
        name: impl Fn(kvroute_types::InstanceId) -> String,
    ) -> Vec<Receipt> {
        let receipts = self.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        receipts.iter().rev().take(count).map(|receipt| receipt.named(&name)).collect()
    }
}

/// Appends receipts to a file from a thread of its own, so that no request waits for the disk.
pub(crate) struct DecisionLog {
    lines: SyncSender<Receipt>,
}

impl DecisionLog {
    /// # Errors
    /// If the file cannot be opened, or the thread not be started.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let (lines, receiver) = mpsc::sync_channel(LOG_BACKLOG_LINES);
        let write = move || {
            if let Err(error) = write_lines(file, &receiver) {
                tracing::error!(%error, "the decision log is cut off");
            }
        };
        thread::Builder::new().name("kvroute-log".into()).spawn(write)?;
        Ok(Self { lines })
    }

    /// False if the line was lost.
    pub(crate) fn append(&self, receipt: Receipt) -> bool {
        self.lines.try_send(receipt).is_ok()
    }
}

fn write_lines(file: File, lines: &mpsc::Receiver<Receipt>) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(receipt) => {
                serde_json::to_writer(&mut file, &receipt)?;
                file.write_all(b"\n")?;
            }
            Err(RecvTimeoutError::Timeout) => file.flush()?,
            Err(RecvTimeoutError::Disconnected) => return file.flush(),
        }
    }
}
