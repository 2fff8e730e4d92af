//! The task that follows one publisher.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvroute_vllm_wire::{
    EventBatch, ReplayReply, parse_publish, parse_replay_reply, replay_request_frames,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::counters::{Counters, ErrorKind};
use crate::endpoint::Endpoint;
use crate::fact::{Cleared, Fact, facts_of};
use crate::tracker::{Admission, Loss, Tracker};
use crate::zmtp::{Connection, SocketType, ZmtpError};

/// Batches that may wait for a slow reader; then the publisher's own queue fills, and the rest is replayed.
const QUEUE_BATCHES: usize = 64;
/// Wait before the first attempt to connect again; it doubles up to [`SourceConfig::retry_max`].
const RETRY_MIN: Duration = Duration::from_millis(100);

/// Longest wait between two messages of a replay: the publisher sends them in one go.
const REPLAY_IDLE: Duration = Duration::from_millis(500);

/// What to subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// The PUB socket of one engine (one data-parallel rank).
    pub events: Endpoint,
    /// Its ROUTER socket for replays; without one every gap and every reconnect is a loss.
    pub replay: Option<Endpoint>,
    /// Beginning of the topics wanted; empty for all.
    pub topic: String,
    /// Longest wait for a connection, its handshake included.
    pub connect_timeout: Duration,
    /// Longest wait for a replay to begin. vLLM answers between two batches.
    pub replay_timeout: Duration,
    /// Longest wait between two attempts to connect.
    pub retry_max: Duration,
    /// Wait after a replay that failed, before another is tried; gaps are losses meanwhile.
    pub replay_pause: Duration,
}

impl SourceConfig {
    /// All topics of a publisher, without replays: 2 s to connect, 5 s for a replay to begin, at most 5 s
    /// between attempts and 10 s after a replay that failed.
    pub fn new(events: Endpoint) -> Self {
        Self {
            events,
            replay: None,
            topic: String::new(),
            connect_timeout: Duration::from_secs(2),
            replay_timeout: Duration::from_secs(5),
            retry_max: Duration::from_secs(5),
            replay_pause: Duration::from_secs(10),
        }
    }
}

/// The news of one publisher. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    queue: mpsc::Receiver<Vec<Fact>>,
    ready: std::vec::IntoIter<Fact>,
    counters: Arc<Mutex<Counters>>,
    task: JoinHandle<()>,
}

impl Subscription {
    /// Begins to follow a publisher, reachable or not, on the current tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(config: SourceConfig) -> Self {
        let (facts, queue) = mpsc::channel(QUEUE_BATCHES);
        let counters = Arc::default();
        let follower = Follower {
            config,
            tracker: Tracker::new(),
            facts,
            counters: Arc::clone(&counters),
            no_replay_before: None,
        };
        let task = tokio::spawn(async move {
            // It ends when nobody listens any more.
            let _ = follower.run().await;
        });
        Self { queue, ready: Vec::new().into_iter(), counters, task }
    }

    /// The next fact; `None` only when the runtime shuts down. May be dropped and called again.
    pub async fn recv(&mut self) -> Option<Fact> {
        loop {
            if let Some(fact) = self.ready.next() {
                return Some(fact);
            }
            self.ready = self.queue.recv().await?.into_iter();
        }
    }

    /// What it has counted so far.
    pub fn counters(&self) -> Counters {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Nobody listens any more.
#[derive(Debug)]
struct Unheard;

struct Follower {
    config: SourceConfig,
    tracker: Tracker,
    facts: mpsc::Sender<Vec<Fact>>,
    counters: Arc<Mutex<Counters>>,
    /// Replays have failed; they are not tried before this.
    no_replay_before: Option<Instant>,
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error(transparent)]
    Connection(#[from] ZmtpError),
    #[error("no answer in time")]
    Timeout,
    #[error(transparent)]
    Frames(#[from] kvroute_vllm_wire::FrameError),
}

/// How a replay ended.
enum Replayed {
    /// With its end.
    Whole,
    /// It takes another one.
    Again,
}

impl Follower {
    async fn run(mut self) -> Result<(), Unheard> {
        let mut wait = RETRY_MIN;
        loop {
            match self.dial(&self.config.events, SocketType::Sub).await {
                Ok(connection) => {
                    self.count(|counters| counters.connects += 1);
                    self.tell(Fact::Connected).await?;
                    let (error, was_useful) = self.follow(connection).await?;
                    self.note_failure(&error, "lost");
                    self.tell(Fact::Disconnected).await?;
                    if was_useful {
                        wait = RETRY_MIN;
                    }
                }
                Err(error) => {
                    self.count(|counters| counters.connect_failures += 1);
                    self.note_failure(&error, "cannot reach");
                }
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.facts.closed() => return Err(Unheard),
            }
            wait = (wait * 2).min(self.config.retry_max);
        }
    }

    /// Follows one connection to its end; tells whether a message came.
    async fn follow(&mut self, mut connection: Connection) -> Result<(ZmtpError, bool), Unheard> {
        self.tracker.connected();
        if self.config.replay.is_some() {
            self.no_replay_before = None;
            self.catch_up().await?;
        }
        let mut was_useful = false;
        loop {
            let received = tokio::select! {
                received = connection.recv() => received,
                () = self.facts.closed() => return Err(Unheard),
            };
            match received {
                Ok(frames) => self.live(&frames).await?,
                Err(error) => return Ok((error, was_useful)),
            }
            was_useful = true;
        }
    }

    /// Takes in a live message.
    async fn live(&mut self, frames: &[bytes::Bytes]) -> Result<(), Unheard> {
        self.count(|counters| counters.messages += 1);
        let batch = match parse_publish(frames) {
            Ok(batch) => batch,
            Err(error) => {
                // Its number is unknown; if it was a batch, the next one shows the gap.
                self.count(|counters| counters.count_error(ErrorKind::from(&error)));
                tracing::debug!(source = %self.config.events, %error, "not a KV-event message");
                return Ok(());
            }
        };
        let mut may_replay = self.may_replay();
        let mut is_gap = false;
        loop {
            match self.tracker.live(batch.seq, batch.payload, may_replay) {
                Admission::Take(loss) => {
                    let gaps = u64::from(is_gap || matches!(loss, Some(Loss::Gap { .. })));
                    self.count(|counters| counters.gaps += gaps);
                    return self.take(loss, batch.payload).await;
                }
                Admission::Drop => {
                    self.count(|counters| {
                        counters.gaps += u64::from(is_gap);
                        counters.duplicates += 1;
                    });
                    return Ok(());
                }
                Admission::Replay => {
                    is_gap = true;
                    may_replay = false;
                    self.catch_up().await?;
                }
                Admission::Restarted => {
                    self.forget().await?;
                    may_replay = self.may_replay();
                }
            }
        }
    }

    /// Replays what is missing, in as many replays as bring something.
    async fn catch_up(&mut self) -> Result<(), Unheard> {
        let Some(endpoint) = self.config.replay.clone() else { return Ok(()) };
        loop {
            let start = self.tracker.replay_start();
            self.count(|counters| counters.replays += 1);
            match self.replay(&endpoint, start).await? {
                Ok(Replayed::Whole) => return Ok(()),
                Ok(Replayed::Again) if self.tracker.replay_start() != start => {}
                Ok(Replayed::Again) => {
                    tracing::warn!(source = %endpoint, start, "the replay has a hole at its start");
                    return Ok(());
                }
                Err(error) => {
                    if let ReplayError::Connection(error) = &error {
                        self.note_failure(error, "cannot replay from");
                    }
                    self.count(|counters| {
                        counters.replay_failures += 1;
                        if let ReplayError::Frames(error) = &error {
                            counters.count_error(ErrorKind::from(error));
                        }
                    });
                    tracing::warn!(source = %endpoint, %error, "the replay failed");
                    self.no_replay_before = Some(Instant::now() + self.config.replay_pause);
                    return Ok(());
                }
            }
        }
    }

    /// One replay. Live messages wait in the publisher's queue meanwhile.
    async fn replay(
        &mut self,
        endpoint: &Endpoint,
        start: u64,
    ) -> Result<Result<Replayed, ReplayError>, Unheard> {
        let mut connection = match self.dial(endpoint, SocketType::Dealer).await {
            Ok(connection) => connection,
            Err(error) => return Ok(Err(error.into())),
        };
        let request = replay_request_frames(start);
        let asked = timeout(self.config.replay_timeout, connection.send(&request)).await;
        match asked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Ok(Err(error.into())),
            Err(_) => return Ok(Err(ReplayError::Timeout)),
        }
        let mut patience = self.config.replay_timeout;
        loop {
            let frames = match timeout(patience, connection.recv()).await {
                Ok(Ok(frames)) => frames,
                Ok(Err(error)) => return Ok(Err(error.into())),
                // Its end was dropped, as what a ROUTER's queue does not hold is.
                Err(_) if self.tracker.replay_start() != start => return Ok(Ok(Replayed::Again)),
                Err(_) => return Ok(Err(ReplayError::Timeout)),
            };
            patience = REPLAY_IDLE.min(patience);
            let batch = match parse_replay_reply(&frames) {
                Ok(ReplayReply::Batch(batch)) => batch,
                Ok(ReplayReply::End) => {
                    if self.tracker.replay_ended() {
                        self.forget().await?;
                        return Ok(Ok(Replayed::Again));
                    }
                    return Ok(Ok(Replayed::Whole));
                }
                Err(error) => return Ok(Err(error.into())),
            };
            match self.tracker.replayed(batch.seq, batch.payload) {
                Admission::Take(loss) => {
                    self.count(|counters| counters.replayed += 1);
                    self.take(loss, batch.payload).await?;
                }
                Admission::Drop => {}
                Admission::Replay => return Ok(Ok(Replayed::Again)),
                Admission::Restarted => {
                    self.forget().await?;
                    return Ok(Ok(Replayed::Again));
                }
            }
        }
    }

    /// Passes on what a batch says, and before it what is missing.
    async fn take(&mut self, loss: Option<Loss>, payload: &[u8]) -> Result<(), Unheard> {
        if let Some(loss) = loss {
            self.lose(loss).await?;
        }
        match EventBatch::decode(payload) {
            Ok(batch) => {
                let events = batch.events.len() as u64;
                let (facts, elsewhere) = facts_of(batch);
                self.count(|counters| {
                    counters.batches += 1;
                    counters.events += events;
                    counters.events_elsewhere += elsewhere;
                });
                if facts.is_empty() { Ok(()) } else { self.tell_all(facts).await }
            }
            Err(error) => {
                self.count(|counters| counters.count_error(ErrorKind::from(&error)));
                tracing::warn!(source = %self.config.events, %error, "cannot read a KV-event batch");
                self.lose(Loss::Unreadable).await
            }
        }
    }

    async fn lose(&mut self, loss: Loss) -> Result<(), Unheard> {
        self.count(|counters| {
            counters.losses += 1;
            counters.lost_batches += match loss {
                Loss::Beginning { batches } | Loss::Gap { batches } => batches,
                Loss::Unreadable => 1,
                Loss::Unverified => 0,
            };
        });
        self.tell(Fact::Lost(loss)).await
    }

    async fn forget(&mut self) -> Result<(), Unheard> {
        self.count(|counters| counters.restarts += 1);
        self.tell(Fact::Cleared(Cleared::Restarted)).await
    }

    async fn dial(&self, endpoint: &Endpoint, socket: SocketType) -> Result<Connection, ZmtpError> {
        let dial = async {
            let mut connection = Connection::open(endpoint.connect().await?, socket).await?;
            if socket == SocketType::Sub {
                connection.subscribe(&self.config.topic).await?;
            }
            Ok(connection)
        };
        let late = |_| ZmtpError::Io(std::io::ErrorKind::TimedOut.into());
        timeout(self.config.connect_timeout, dial).await.map_err(late)?
    }

    fn may_replay(&self) -> bool {
        self.config.replay.is_some()
            && self.no_replay_before.is_none_or(|before| Instant::now() >= before)
    }

    fn note_failure(&self, error: &ZmtpError, what: &str) {
        if !matches!(error, ZmtpError::Io(_) | ZmtpError::Closed) {
            self.count(|counters| counters.count_error(ErrorKind::Protocol));
        }
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::debug!(source = %self.config.events, %error, cause, "{what} the publisher");
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.counters.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn tell(&self, fact: Fact) -> Result<(), Unheard> {
        self.tell_all(vec![fact]).await
    }

    async fn tell_all(&self, facts: Vec<Fact>) -> Result<(), Unheard> {
        self.facts.send(facts).await.map_err(|_| Unheard)
    }
}
