//! Receipts of decisions: the latest in memory, all of them and what they were made from in an optional log file.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use kvroute_decision_log::{Event, LogWriter, Receipt, RequestFacts};
use kvroute_router::{CacheNews, RouteReceipt};
use kvroute_types::{BlockHash, InstanceId, Timestamp};
use prometheus_client::metrics::counter::Counter;

/// Events that may wait for the disk before further ones are lost (and counted).
const BACKLOG_EVENTS_MAX: usize = 32_768;
/// Bytes of blocks' hashes that may wait for the disk.
const BACKLOG_BYTES_MAX: usize = 64 << 20;

/// A receipt as the router made it, with the facts of the request; names are looked up when it is read.
pub(crate) struct RawReceipt {
    pub(crate) route: RouteReceipt,
    pub(crate) facts: RequestFacts,
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
    pub(crate) fn latest<'a>(
        &self,
        count: usize,
        name: impl Fn(InstanceId) -> Cow<'a, str>,
    ) -> Vec<Receipt> {
        let receipts = self.receipts.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = receipts.iter().rev().take(count);
        latest.map(|RawReceipt { route, facts }| Receipt::new(route, facts, &name)).collect()
    }
}

/// Appends events to a file from a thread of its own, so that no request waits for the disk.
///
/// What the disk cannot keep up with is lost, and a `gap` line says how much, in its place.
///
/// Dropping it waits until everything is with the operating system.
pub(crate) struct DecisionLog {
    /// `None` only while dropping.
    events: Option<SyncSender<(Timestamp, Event)>>,
    writer: Option<thread::JoinHandle<()>>,
    backlog_bytes: Arc<AtomicUsize>,
    /// Events lost since the latest that was not.
    lost: u64,
    lost_total: Counter,
}

impl DecisionLog {
    /// # Errors
    /// If the file cannot be opened, or the thread not be started.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Self::to(file, BACKLOG_EVENTS_MAX)
    }

    fn to(out: impl io::Write + Send + 'static, backlog_events_max: usize) -> io::Result<Self> {
        let (events, receiver) = mpsc::sync_channel(backlog_events_max);
        let backlog_bytes = Arc::new(AtomicUsize::new(0));
        let backlog = Arc::clone(&backlog_bytes);
        let write = move || {
            if let Err(error) = write_lines(out, &receiver, &backlog) {
                tracing::error!(%error, "the decision log is cut off");
            }
        };
        let writer = thread::Builder::new().name("kvroute-log".into()).spawn(write)?;
        Ok(Self {
            events: Some(events),
            writer: Some(writer),
            backlog_bytes,
            lost: 0,
            lost_total: Counter::default(),
        })
    }

    /// Counts all events that get lost.
    pub(crate) fn lost_total(&self) -> Counter {
        self.lost_total.clone()
    }

    /// Appends an event, or a gap if there is no room.
    pub(crate) fn append(&mut self, at: Timestamp, event: Event) {
        let Some(events) = &self.events else { return };
        if self.lost > 0 {
            let gap = Event::Gap { lost: self.lost };
            if events.try_send((at, gap)).is_ok() {
                self.lost = 0;
            }
        }
        let bytes = block_bytes(&event);
        let has_room = self.lost == 0
            && self.backlog_bytes.load(Ordering::Relaxed) + bytes <= BACKLOG_BYTES_MAX;
        // Counted first, so that the writer never takes off what is not there.
        self.backlog_bytes.fetch_add(bytes, Ordering::Relaxed);
        if !has_room || events.try_send((at, event)).is_err() {
            self.backlog_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.lost += 1;
            self.lost_total.inc();
        }
    }
}

impl Drop for DecisionLog {
    fn drop(&mut self) {
        let Some(events) = self.events.take() else { return };
        if self.lost > 0 {
            // The last line tells too. An error means that the writer is gone, and has said why.
            let _ = events.send((Timestamp::ZERO, Event::Gap { lost: self.lost }));
        }
        drop(events);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn block_bytes(event: &Event) -> usize {
    match event {
        Event::Route(route) => size_of::<BlockHash>() * route.request.prompt_blocks.len(),
        Event::Cache {
            news: CacheNews::Stored { blocks, .. } | CacheNews::Removed(blocks),
            ..
        } => size_of::<BlockHash>() * blocks.len(),
        Event::Restored { snapshot } => snapshot.len(),
        _ => 0,
    }
}

fn write_lines(
    out: impl io::Write,
    events: &mpsc::Receiver<(Timestamp, Event)>,
    backlog_bytes: &AtomicUsize,
) -> io::Result<()> {
    let mut log = LogWriter::new(BufWriter::new(out));
    loop {
        match events.recv_timeout(Duration::from_millis(200)) {
            Ok((at, event)) => {
                backlog_bytes.fetch_sub(block_bytes(&event), Ordering::Relaxed);
                log.write(at, &event)?;
            }
            Err(RecvTimeoutError::Timeout) => log.flush()?,
            Err(RecvTimeoutError::Disconnected) => return log.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use kvroute_types::RequestId;

    use super::*;

    /// Lets the writer through only after it was opened; then sends everything on.
    struct Gate {
        open: mpsc::Receiver<()>,
        out: mpsc::Sender<Vec<u8>>,
    }

    impl io::Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.open.recv();
            self.out.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_disk_cannot_take_is_a_gap_that_says_how_much() {
        let (open, opened) = mpsc::channel();
        let (out, written) = mpsc::channel();
        let mut log = DecisionLog::to(Gate { open: opened, out }, 4).unwrap();
        let total = log.lost_total();
        // More than buffer and backlog hold, with the disk stuck.
        for number in 0..2_000 {
            log.append(Timestamp::ZERO, Event::End { request: RequestId(number) });
        }
        assert!(total.get() > 0);
        drop(open);
        drop(log);
        let text: Vec<u8> = written.iter().flatten().collect();
        let lines: Vec<serde_json::Value> = text
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let mut next = 0;
        let mut lost = 0;
        for line in &lines {
            if line["event"] == "gap" {
                lost += line["lost"].as_u64().unwrap();
                next += line["lost"].as_u64().unwrap();
            } else {
                assert_eq!(line["request"], next, "in order, and each gap in its place");
                next += 1;
            }
        }
        assert_eq!((next, lost), (2_000, total.get()));
    }
}
