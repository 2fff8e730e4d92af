//! vLLM's publisher (`ZmqEventPublisher`) on real libzmq sockets, in a thread, and short ways to batches and facts.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use kvroute_kv_events::{Counters, Fact, Position, SourceConfig, Subscription};
use kvroute_vllm_wire::{
    BlockRemoved, BlockStored, EventBatch, KvEvent, ReplayForm, parse_replay_request,
    publish_frames, replay_batch_frames, replay_end_frames,
};
use tokio::sync::oneshot;

pub(crate) const TOPIC: &str = "kv@0";

/// How a publisher is set up.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) events: String,
    pub(crate) replay: String,
    /// Batches kept for replay.
    pub(crate) buffer: usize,
    /// High-water marks, messages.
    pub(crate) hwm: i32,
    /// Replies as vLLM before 0.26 sends them.
    pub(crate) without_topic: bool,
}

impl Default for Options {
    fn default() -> Self {
        let any = || "tcp://127.0.0.1:*".to_owned();
        Self { events: any(), replay: any(), buffer: 10_000, hwm: 100_000, without_topic: false }
    }
}

enum Command {
    Publish(Vec<u8>),
    AwaitSubscriber(oneshot::Sender<()>),
    Answer(oneshot::Sender<()>),
    Stop,
}

/// A running publisher; sequence numbers begin at 0.
pub(crate) struct Publisher {
    pub(crate) options: Options,
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Starts one; free ports are named in `options` afterwards.
    #[expect(clippy::needless_pass_by_value, reason = "set-ups are made for one publisher")]
    pub(crate) fn start(options: Options) -> Self {
        let context = zmq::Context::new();
        // An XPUB is a PUB that shows who subscribes.
        let events = context.socket(zmq::XPUB).unwrap();
        let replay = context.socket(zmq::ROUTER).unwrap();
        for socket in [&events, &replay] {
            socket.set_linger(0).unwrap();
            socket.set_sndhwm(options.hwm).unwrap();
            socket.set_rcvtimeo(30_000).unwrap();
        }
        // A port that was just closed may take a moment.
        bind(&events, &options.events);
        bind(&replay, &options.replay);
        let bound = |socket: &zmq::Socket| socket.get_last_endpoint().unwrap().unwrap();
        let options = Options { events: bound(&events), replay: bound(&replay), ..options };
        let (commands, receiver) = mpsc::channel();
        let (buffer, without_topic) = (options.buffer, options.without_topic);
        let thread = std::thread::spawn(move || {
            serve(&events, &replay, buffer, without_topic, &receiver);
        });
        Self { options, commands, thread: Some(thread) }
    }

    pub(crate) fn publish(&self, payload: Vec<u8>) {
        self.commands.send(Command::Publish(payload)).unwrap();
    }

    /// Waits until everything so far is published.
    pub(crate) async fn await_published(&self) {
        let (done, is_done) = oneshot::channel();
        self.commands.send(Command::Answer(done)).unwrap();
        is_done.await.unwrap();
    }

    /// Waits until the next subscription is in force.
    pub(crate) async fn await_subscriber(&self) {
        let (done, is_done) = oneshot::channel();
        self.commands.send(Command::AwaitSubscriber(done)).unwrap();
        is_done.await.unwrap();
    }

    /// Dies; returns what it takes to start another at the same place.
    pub(crate) fn stop(mut self) -> Options {
        self.end();
        self.options.clone()
    }

    fn end(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// A subscription with replays.
    pub(crate) fn source(&self) -> SourceConfig {
        let mut source = self.source_without_replay();
        source.replay = Some(self.options.replay.parse().unwrap());
        source
    }

    pub(crate) fn source_without_replay(&self) -> SourceConfig {
        let mut source = SourceConfig::new(self.options.events.parse().unwrap());
        TOPIC.clone_into(&mut source.topic);
        source.retry_max = Duration::from_millis(200);
        source
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

fn bind(socket: &zmq::Socket, endpoint: &str) {
    for _ in 0..500 {
        match socket.bind(endpoint) {
            Ok(()) => return,
            Err(zmq::Error::EADDRINUSE) => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("{endpoint}: {error}"),
        }
    }
    panic!("{endpoint} stays in use");
}

fn serve(
    events: &zmq::Socket,
    replay: &zmq::Socket,
    buffer_len: usize,
    without_topic: bool,
    commands: &Receiver<Command>,
) {
    let mut buffer: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
    let mut next = 0;
    loop {
        match commands.recv_timeout(Duration::from_millis(1)) {
            Ok(Command::Publish(payload)) => {
                let frames = publish_frames(TOPIC, next, &payload);
                events.send_multipart(frames.iter().map(AsRef::as_ref), 0).unwrap();
                buffer.push_back((next, payload));
                if buffer.len() > buffer_len {
                    buffer.pop_front();
                }
                next += 1;
            }
            Ok(Command::AwaitSubscriber(done)) => {
                assert_eq!(events.recv_bytes(0).unwrap(), [b"\x01", TOPIC.as_bytes()].concat());
                done.send(()).unwrap();
            }
            Ok(Command::Answer(done)) => done.send(()).unwrap(),
            Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        while let Ok(request) = replay.recv_multipart(zmq::DONTWAIT) {
            let Ok(start) = parse_replay_request(&request[1..]) else { continue };
            let form =
                if without_topic { ReplayForm::WithoutTopic } else { ReplayForm::WithTopic(TOPIC) };
            let answer = |frames: Vec<std::borrow::Cow<'_, [u8]>>| {
                let all = std::iter::once(&request[0][..]).chain(frames.iter().map(AsRef::as_ref));
                replay.send_multipart(all.map(<[u8]>::to_vec), 0).unwrap();
            };
            for (seq, payload) in buffer.iter().filter(|(seq, _)| *seq >= start) {
                answer(replay_batch_frames(form, *seq, payload));
            }
            answer(replay_end_frames(form));
        }
    }
}

/// A batch that stores block `hash` and, every third time, removes it again.
pub(crate) fn batch(hash: u64) -> Vec<u8> {
    let stored = BlockStored {
        block_hashes: vec![hash.into()],
        token_ids: vec![1, 2, 3, 4],
        block_size: 4,
        medium: Some("GPU".to_owned()),
        ..BlockStored::default()
    };
    let removed = BlockRemoved { block_hashes: vec![hash.into()], ..BlockRemoved::default() };
    let mut events = vec![KvEvent::BlockStored(stored)];
    if hash.is_multiple_of(3) {
        events.push(KvEvent::BlockRemoved(removed));
    }
    encode(events)
}

pub(crate) fn encode(events: Vec<KvEvent>) -> Vec<u8> {
    let mut payload = Vec::new();
    EventBatch { ts: 1.0, events, data_parallel_rank: Some(0) }.encode(&mut payload);
    payload
}

/// Longest wait for anything in these tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A subscription, and its news fact by fact.
pub(crate) struct Reader {
    subscription: Subscription,
    ready: VecDeque<Fact>,
    /// Where the stream stands once all of `ready` is read.
    position: Option<Position>,
}

impl Reader {
    pub(crate) fn connect(source: SourceConfig) -> Self {
        Self::new(Subscription::connect(source))
    }

    pub(crate) fn resume(source: SourceConfig, position: Position) -> Self {
        Self::new(Subscription::resume(source, position))
    }

    fn new(subscription: Subscription) -> Self {
        Self { subscription, ready: VecDeque::new(), position: None }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.subscription.counters()
    }

    /// Where the stream stands; all facts before must have been read.
    pub(crate) fn position(&self) -> Option<Position> {
        assert!(self.ready.is_empty(), "{:?}", self.ready);
        self.position
    }

    pub(crate) async fn next_with_synced(&mut self) -> Fact {
        loop {
            if let Some(fact) = self.ready.pop_front() {
                return fact;
            }
            let news = tokio::time::timeout(DEADLINE, self.subscription.recv()).await;
            let news = news.unwrap_or_else(|_| panic!("no news; {:?}", self.counters())).unwrap();
            self.ready.extend(news.facts);
            self.position = news.position;
        }
    }
}

/// The next fact but [`Fact::Synced`], which comes at the publisher's pace: a test that is about something else cannot
/// say where.
pub(crate) async fn next(reader: &mut Reader) -> Fact {
    loop {
        match reader.next_with_synced().await {
            Fact::Synced => {}
            fact => return fact,
        }
    }
}

/// All facts up to the next [`Fact::Synced`].
pub(crate) async fn until_synced(reader: &mut Reader) -> Vec<Fact> {
    let mut before = Vec::new();
    loop {
        match reader.next_with_synced().await {
            Fact::Synced => return before,
            fact => before.push(fact),
        }
    }
}

/// The hash of the next block stored; the facts before it that are of another kind, removals aside.
pub(crate) async fn next_stored(reader: &mut Reader) -> (Vec<Fact>, u64) {
    let mut before = Vec::new();
    loop {
        match next(reader).await {
            Fact::Stored(stored) => return (before, stored.hashes().next().unwrap()),
            Fact::Removed(_) => {}
            other => before.push(other),
        }
    }
}

/// The next blocks stored are these, with nothing but removals in between.
pub(crate) async fn expect_stored(reader: &mut Reader, hashes: impl IntoIterator<Item = u64>) {
    for hash in hashes {
        assert_eq!(next_stored(reader).await, (vec![], hash));
    }
}
