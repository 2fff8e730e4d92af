//! The task that follows one publisher.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kvroute_vllm_wire::{
    EventBatch, ReplayReply, parse_publish, parse_replay_reply, replay_request_frames,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::counters::{Counters, ErrorKind};
use crate::endpoint::{Endpoint, Network, Sockets};
use crate::fact::{Cleared, Fact, News, facts_of};
use crate::tracker::{Admission, Loss, Position, Recognition, Tracker};
use crate::zmtp::{Connection, SocketType, ZmtpError};

/// Batches that may wait for a slow reader; then the publisher's own queue fills, and the rest is replayed.
const QUEUE_BATCHES: usize = 64;
/// Wait before the first attempt to connect again; it doubles up to [`SourceConfig::retry_max`].
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest quiet before a check, unless [`SourceConfig::quiet_check`] is longer.
const QUIET_MAX: Duration = Duration::from_secs(30);
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
    /// Longest wait for a replay to begin, its connection included, and then for a batch that is new. vLLM answers
    /// between two batches.
    pub replay_timeout: Duration,
    /// Longest wait between two attempts to connect.
    pub retry_max: Duration,
    /// Wait after a replay that failed, before another is tried; gaps are losses meanwhile.
    pub replay_pause: Duration,
    /// How long no message may come before a replay is asked for, which shows whether the last ones were dropped on
    /// the way. Doubles up to 30 s while nothing new is found, or no answer comes before the next message. Zero for no
    /// such checks; without a replay endpoint there are none.
    pub quiet_check: Duration,
}

impl SourceConfig {
    /// All topics of a publisher, without replays: 2 s to connect, 5 s for a replay to begin, at most 5 s
    /// between attempts, 10 s after a replay that failed, and a check after 1 s of quiet.
    pub fn new(events: Endpoint) -> Self {
        Self {
            events,
            replay: None,
            topic: String::new(),
            connect_timeout: Duration::from_secs(2),
            replay_timeout: Duration::from_secs(5),
            retry_max: Duration::from_secs(5),
            replay_pause: Duration::from_secs(10),
            quiet_check: Duration::from_secs(1),
        }
    }
}

/// The news of one publisher. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    queue: mpsc::Receiver<News>,
    counters: Arc<Mutex<Counters>>,
    task: JoinHandle<()>,
}

impl Subscription {
    /// Begins to follow a publisher, reachable or not, on the current tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(config: SourceConfig) -> Self {
        Self::start(config, Tracker::new(), Sockets)
    }

    /// Goes on behind `position`, whose batches the caller has already applied: it restored a snapshot. If the publisher
    /// is another life of the server, or no longer has what followed, that is told as after a reconnect:
    /// [`Cleared::Restarted`], or [`Fact::Lost`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn resume(config: SourceConfig, position: Position) -> Self {
        Self::start(config, Tracker::at(position), Sockets)
    }

    fn start(config: SourceConfig, tracker: Tracker, network: impl Network) -> Self {
        let (news, queue) = mpsc::channel(QUEUE_BATCHES);
        let counters = Arc::default();
        let follower = Follower {
            config,
            network,
            tracker,
            news,
            counters: Arc::clone(&counters),
            no_replay_before: None,
            is_synced: false,
        };
        let task = tokio::spawn(async move {
            // It ends when nobody listens any more.
            let _ = follower.run().await;
        });
        Self { queue, counters, task }
    }

    /// What the next step of the stream brought; `None` only when the runtime shuts down. May be dropped and called
    /// again.
    pub async fn recv(&mut self) -> Option<News> {
        self.queue.recv().await
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

struct Follower<N> {
    config: SourceConfig,
    network: N,
    tracker: Tracker,
    news: mpsc::Sender<News>,
    counters: Arc<Mutex<Counters>>,
    /// Replays have failed; they are not tried before this.
    no_replay_before: Option<Instant>,
    /// [`Fact::Synced`] was the last thing told.
    is_synced: bool,
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error("there is no replay endpoint")]
    NoEndpoint,
    #[error(transparent)]
    Connection(#[from] ZmtpError),
    #[error("no answer in time")]
    Timeout,
    #[error(transparent)]
    Frames(#[from] kvroute_vllm_wire::FrameError),
}

/// What a replay is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To fill what is known to be missing.
    CatchUp,
    /// To see whether anything is, and whether the peer still is who it was.
    Check,
    /// To fill what a check has shown to be missing.
    Found,
}

/// How a replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replayed {
    /// With its end.
    Whole,
    /// It takes another one.
    Again,
    /// It came from another publisher than the one connected to.
    Stranger,
    /// With an error, which has been noted.
    Failed,
}

/// The connection of a replay, and the first message on it.
type Answered = (Connection, Vec<Bytes>);

/// How a quiet check ended.
enum Checked {
    /// By itself; whether it brought anything.
    Done { is_news: bool },
    /// A live message came before its answer, or the end of the connection.
    Interrupted(Result<Vec<Bytes>, ZmtpError>),
    /// The one who answers is not the one connected to: the connection leads nowhere.
    Stranger,
}

impl<N: Network> Follower<N> {
    async fn run(mut self) -> Result<(), Unheard> {
        let mut wait = RETRY_MIN;
        loop {
            match self.dial(&self.config.events, SocketType::Sub).await {
                Ok(connection) => {
                    self.count(|counters| counters.connects += 1);
                    self.tell(Fact::Connected).await?;
                    let (error, was_useful) = self.follow(connection).await?;
                    if let Some(error) = error {
                        self.note_failure(&error, "lost");
                    }
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
                () = self.news.closed() => return Err(Unheard),
            }
            wait = (wait * 2).min(self.config.retry_max);
        }
    }

    /// Follows one connection to its end, which is an error unless it was given up; tells whether a message came.
    async fn follow(
        &mut self,
        mut connection: Connection,
    ) -> Result<(Option<ZmtpError>, bool), Unheard> {
        self.tracker.connected();
        self.no_replay_before = None;
        self.catch_up(Purpose::CatchUp).await?;
        let mut was_useful = false;
        let mut quiet = self.config.quiet_check;
        // A peer whose answers never come in time is not to be asked in every pause between two batches.
        let mut is_answered = true;
        let mut quiet_since = Instant::now();
        loop {
            let check_at = self.check_at(quiet_since, quiet);
            let received = tokio::select! {
                // What came is looked at before anything is asked.
                biased;
                () = self.news.closed() => return Err(Unheard),
                received = connection.recv() => received,
                () = sleep_until(check_at.unwrap_or(quiet_since)), if check_at.is_some() => {
                    match self.check(&mut connection).await? {
                        Checked::Interrupted(received) => {
                            is_answered = false;
                            quiet = self.next_quiet(quiet, false);
                            received
                        }
                        Checked::Stranger => return Ok((None, was_useful)),
                        Checked::Done { is_news } => {
                            is_answered = true;
                            quiet = self.next_quiet(quiet, is_news);
                            quiet_since = Instant::now();
                            continue;
                        }
                    }
                }
            };
            match received {
                Ok(frames) => self.live(&frames).await?,
                Err(error) => return Ok((Some(error), was_useful)),
            }
            was_useful = true;
            if is_answered {
                quiet = self.config.quiet_check;
            }
            quiet_since = Instant::now();
        }
    }

    /// When the next quiet check is due, if ever.
    fn check_at(&self, quiet_since: Instant, quiet: Duration) -> Option<Instant> {
        let is_on = self.config.replay.is_some() && !quiet.is_zero();
        let due = quiet_since.checked_add(quiet).filter(|_| is_on)?;
        Some(self.no_replay_before.map_or(due, |before| due.max(before)))
    }

    /// How long it has to be quiet after a check.
    fn next_quiet(&self, quiet: Duration, is_news: bool) -> Duration {
        let first = self.config.quiet_check;
        if is_news { first } else { quiet.saturating_mul(2).min(QUIET_MAX.max(first)) }
    }

    /// Asks whether anything was published that did not come. As long as there is no answer, `live` is heard.
    async fn check(&mut self, live: &mut Connection) -> Result<Checked, Unheard> {
        let start = self.tracker.check_start();
        self.count(|counters| counters.quiet_checks += 1);
        let asked = tokio::select! {
            biased;
            () = self.news.closed() => return Err(Unheard),
            received = live.recv() => return Ok(Checked::Interrupted(received)),
            asked = self.ask(start) => asked,
        };
        let before = self.tracker.position();
        match self.replay(asked, Purpose::Check, true).await? {
            Replayed::Whole => self.synced().await?,
            Replayed::Again => self.catch_up(Purpose::Found).await?,
            Replayed::Stranger => {
                tracing::warn!(source = %self.config.events, "replays come from another publisher");
                return Ok(Checked::Stranger);
            }
            Replayed::Failed => {}
        }
        Ok(Checked::Done { is_news: self.tracker.position() != before })
    }

    /// Takes in a live message.
    async fn live(&mut self, frames: &[Bytes]) -> Result<(), Unheard> {
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
                    self.catch_up(Purpose::CatchUp).await?;
                }
                Admission::Restarted => {
                    self.forget().await?;
                    may_replay = self.may_replay();
                }
            }
        }
    }

    /// Replays what is missing, in as many replays as bring something.
    async fn catch_up(&mut self, purpose: Purpose) -> Result<(), Unheard> {
        if self.config.replay.is_none() {
            return Ok(());
        }
        // A hole that is there twice is one of the publisher's own, not of the way.
        let mut can_replay = true;
        loop {
            let before = self.tracker.clone();
            let asked = self.ask(before.replay_start()).await;
            match self.replay(asked, purpose, can_replay).await? {
                Replayed::Whole => return self.synced().await,
                Replayed::Again => can_replay = self.tracker != before,
                Replayed::Stranger | Replayed::Failed => return Ok(()),
            }
        }
    }

    /// Asks for a replay, and waits for the first answer. Changes nothing, so that it may be given up.
    async fn ask(&self, start: u64) -> Result<Answered, ReplayError> {
        let endpoint = self.config.replay.as_ref().ok_or(ReplayError::NoEndpoint)?;
        self.count(|counters| counters.replays += 1);
        let answered = async {
            let mut connection = self.dial(endpoint, SocketType::Dealer).await?;
            connection.send(&replay_request_frames(start)).await?;
            let first = connection.recv().await?;
            Ok((connection, first))
        };
        timeout(self.config.replay_timeout, answered).await.map_err(|_| ReplayError::Timeout)?
    }

    /// Takes in one replay. Live messages wait in the publisher's queue meanwhile.
    async fn replay(
        &mut self,
        asked: Result<Answered, ReplayError>,
        purpose: Purpose,
        can_replay: bool,
    ) -> Result<Replayed, Unheard> {
        let ended = match asked {
            Ok(answered) => self.take_replay(answered, purpose, can_replay).await?,
            Err(error) => Err(error),
        };
        ended.or_else(|error| {
            if let ReplayError::Connection(error) = &error {
                self.note_failure(error, "cannot replay from");
            }
            self.count(|counters| {
                counters.replay_failures += 1;
                if let ReplayError::Frames(error) = &error {
                    counters.count_error(ErrorKind::from(error));
                }
            });
            tracing::warn!(source = %self.config.events, %error, "the replay failed");
            self.no_replay_before = Some(Instant::now() + self.config.replay_pause);
            Ok(Replayed::Failed)
        })
    }

    async fn take_replay(
        &mut self,
        (mut connection, first): Answered,
        purpose: Purpose,
        can_replay: bool,
    ) -> Result<Result<Replayed, ReplayError>, Unheard> {
        let mut is_stranger = purpose == Purpose::Check && self.tracker.must_recognise();
        let start = self.tracker.replay_start();
        let mut give_up = Instant::now() + self.config.replay_timeout;
        let mut first = Some(first);
        loop {
            let frames = match first.take() {
                Some(frames) => frames,
                None => match self.next_reply(&mut connection, give_up).await {
                    Ok(frames) => frames,
                    // Its end was dropped, as what a ROUTER's queue does not hold is.
                    Err(ReplayError::Timeout) if self.tracker.replay_start() != start => {
                        return Ok(Ok(Replayed::Again));
                    }
                    Err(error) => return Ok(Err(error)),
                },
            };
            let batch = match parse_replay_reply(&frames) {
                Ok(ReplayReply::Batch(batch)) => batch,
                Ok(ReplayReply::End) if is_stranger => return Ok(Ok(Replayed::Stranger)),
                Ok(ReplayReply::End) => {
                    if self.tracker.replay_ended() {
                        self.forget().await?;
                        return Ok(Ok(Replayed::Again));
                    }
                    return Ok(Ok(Replayed::Whole));
                }
                Err(error) => return Ok(Err(error.into())),
            };
            if is_stranger {
                match self.tracker.recognise(batch.seq, batch.payload) {
                    Recognition::Same => is_stranger = false,
                    Recognition::Other => return Ok(Ok(Replayed::Stranger)),
                    Recognition::Open => {}
                }
                continue;
            }
            match self.tracker.replayed(batch.seq, batch.payload, can_replay) {
                Admission::Take(loss) => {
                    self.count(|counters| {
                        counters.replayed += 1;
                        counters.found_by_checks += u64::from(purpose != Purpose::CatchUp);
                    });
                    self.take(loss, batch.payload).await?;
                    give_up = Instant::now() + self.config.replay_timeout;
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

    /// The next message of a replay that has begun.
    async fn next_reply(
        &self,
        connection: &mut Connection,
        give_up: Instant,
    ) -> Result<Vec<Bytes>, ReplayError> {
        let patience = REPLAY_IDLE.min(give_up.saturating_duration_since(Instant::now()));
        match timeout(patience, connection.recv()).await {
            Ok(received) => Ok(received?),
            Err(_) => Err(ReplayError::Timeout),
        }
    }

    /// Passes on what a batch says, and before it what is missing.
    async fn take(&mut self, loss: Option<Loss>, payload: &[u8]) -> Result<(), Unheard> {
        let mut facts: Vec<Fact> = loss.map(|loss| self.lost(loss)).into_iter().collect();
        match EventBatch::decode(payload) {
            Ok(batch) => {
                let events = batch.events.len() as u64;
                let (told, elsewhere) = facts_of(batch);
                self.count(|counters| {
                    counters.batches += 1;
                    counters.events += events;
                    counters.events_elsewhere += elsewhere;
                });
                facts.extend(told);
            }
            Err(error) => {
                self.count(|counters| counters.count_error(ErrorKind::from(&error)));
                tracing::warn!(source = %self.config.events, %error, "cannot read a KV-event batch");
                facts.push(self.lost(Loss::Unreadable));
            }
        }
        self.tell_all(facts).await
    }

    /// Counts a loss.
    fn lost(&self, loss: Loss) -> Fact {
        self.count(|counters| {
            counters.losses += 1;
            counters.lost_batches += match loss {
                Loss::Beginning { batches } | Loss::Gap { batches } => batches,
                Loss::Unreadable => 1,
                Loss::Unverified => 0,
            };
        });
        Fact::Lost(loss)
    }

    async fn forget(&mut self) -> Result<(), Unheard> {
        self.count(|counters| counters.restarts += 1);
        self.tell(Fact::Cleared(Cleared::Restarted)).await
    }

    /// A replay of the publisher followed has ended whole.
    async fn synced(&mut self) -> Result<(), Unheard> {
        if !self.is_synced {
            self.tell(Fact::Synced).await?;
            self.is_synced = true;
        }
        Ok(())
    }

    async fn dial(&self, endpoint: &Endpoint, socket: SocketType) -> Result<Connection, ZmtpError> {
        let dial = async {
            let mut connection =
                Connection::open(self.network.connect(endpoint).await?, socket).await?;
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

    async fn tell(&mut self, fact: Fact) -> Result<(), Unheard> {
        self.tell_all(vec![fact]).await
    }

    async fn tell_all(&mut self, facts: Vec<Fact>) -> Result<(), Unheard> {
        self.is_synced = false;
        let news = News { facts, position: self.tracker.position() };
        self.news.send(news).await.map_err(|_| Unheard)
    }
}

#[cfg(test)]
mod tests;
