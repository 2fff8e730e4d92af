//! Against a publisher in memory, in paused time: what is asked when.

use std::sync::Weak;

use kvroute_vllm_wire::{
    BlockRemoved, KvEvent, ReplayForm, parse_replay_request, publish_frames, replay_batch_frames,
    replay_end_frames,
};

use super::*;
use crate::endpoint::ByteStream;
use crate::zmtp::tests::answer;

const EVENTS: &str = "tcp://engine:1";
const REPLAY: &str = "tcp://engine:2";
const NEVER: Duration = Duration::from_secs(1_000_000);

/// How replays are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Replays {
    #[default]
    Served,
    /// Connected, and no answer.
    Silent,
    /// No connection.
    Refused,
}

#[derive(Default)]
struct State {
    /// Batches for replay.
    buffer: Vec<(u64, Vec<u8>)>,
    next: u64,
    live: Option<mpsc::UnboundedSender<(u64, Vec<u8>)>>,
    replays: Replays,
    /// When a replay was asked for, and its start.
    asked: Vec<(Instant, u64)>,
}

/// A publisher, and the only network there is.
#[derive(Clone, Default)]
struct Publisher(Arc<Mutex<State>>);

impl Network for Publisher {
    async fn connect(&self, endpoint: &Endpoint) -> std::io::Result<Box<dyn ByteStream>> {
        let (near, far) = tokio::io::duplex(1 << 20);
        let state = Arc::downgrade(&self.0);
        if endpoint.to_string() == EVENTS {
            tokio::spawn(publish(Box::new(far), state));
        } else if self.state().replays == Replays::Refused {
            self.state().asked.push((Instant::now(), u64::MAX));
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        } else {
            tokio::spawn(serve_replay(Box::new(far), state));
        }
        Ok(Box::new(near))
    }
}

async fn publish(stream: Box<dyn ByteStream>, state: Weak<Mutex<State>>) {
    let mut connection = answer(stream, "PUB").await.unwrap();
    assert_eq!(connection.recv().await.unwrap(), [&b"\x01"[..]]);
    let (live, mut batches) = mpsc::unbounded_channel();
    state.upgrade().unwrap().lock().unwrap().live = Some(live);
    while let Some((seq, payload)) = batches.recv().await {
        if connection.send(&publish_frames("", seq, &payload)).await.is_err() {
            return;
        }
    }
}

async fn serve_replay(stream: Box<dyn ByteStream>, state: Weak<Mutex<State>>) {
    let mut connection = answer(stream, "ROUTER").await.unwrap();
    let Ok(request) = connection.recv().await else { return };
    let start = parse_replay_request(&request).unwrap();
    let (replays, batches) = {
        let state = state.upgrade().unwrap();
        let mut state = state.lock().unwrap();
        state.asked.push((Instant::now(), start));
        (state.replays, state.buffer.clone())
    };
    if replays == Replays::Silent {
        // Until the other side gives up.
        let _ = connection.recv().await;
        return;
    }
    let form = ReplayForm::WithTopic("");
    for (seq, payload) in batches.iter().filter(|(seq, _)| *seq >= start) {
        connection.send(&replay_batch_frames(form, *seq, payload)).await.unwrap();
    }
    connection.send(&replay_end_frames(form)).await.unwrap();
}

/// What a batch is called in these tests: the hash of the one block it removes.
fn removed(name: u64) -> Fact {
    Fact::Removed(BlockRemoved { block_hashes: vec![name.into()], ..BlockRemoved::default() })
}

fn payload(name: u64) -> Vec<u8> {
    let Fact::Removed(event) = removed(name) else { unreachable!() };
    let events = vec![KvEvent::BlockRemoved(event)];
    let mut payload = Vec::new();
    EventBatch { ts: 1.0, events, data_parallel_rank: None }.encode(&mut payload);
    payload
}

impl Publisher {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A batch that everybody hears.
    fn publish(&self, name: u64) {
        let seq = self.lose(name);
        self.send(seq, name);
    }

    /// A batch that is dropped on the way; its number.
    fn lose(&self, name: u64) -> u64 {
        let mut state = self.state();
        let seq = state.next;
        state.next += 1;
        state.buffer.push((seq, payload(name)));
        seq
    }

    /// Sends a live message.
    fn send(&self, seq: u64, name: u64) {
        self.state().live.as_ref().unwrap().send((seq, payload(name))).unwrap();
    }

    /// Another life at the same place; connections to the one before stay open, without anybody behind them.
    fn restart_unseen(&self) {
        let mut state = self.state();
        (state.buffer, state.next) = (Vec::new(), 0);
    }

    fn source() -> SourceConfig {
        let replay = Some(REPLAY.parse().unwrap());
        SourceConfig { replay, ..SourceConfig::new(EVENTS.parse().unwrap()) }
    }

    fn subscribe(&self, source: SourceConfig) -> Subscription {
        Subscription::start(source, Tracker::new(), self.clone())
    }

    /// Seconds after `start` at which replays were asked for since the last call.
    fn asked_s(&self, start: Instant) -> Vec<f64> {
        let asked = std::mem::take(&mut self.state().asked);
        asked.iter().map(|(at, _)| (*at - start).as_secs_f64().round()).collect()
    }
}

/// The next facts, all in this time.
async fn told<const N: usize>(subscription: &mut Subscription, within: Duration) -> [Fact; N] {
    let start = Instant::now();
    let mut facts = Vec::new();
    while facts.len() < N {
        let left = within.saturating_sub(start.elapsed());
        let news = timeout(left, subscription.recv()).await;
        let news = news.unwrap_or_else(|_| panic!("only {facts:?}; {:?}", subscription.counters()));
        facts.extend(news.unwrap().facts);
    }
    facts.try_into().unwrap()
}

/// Nothing is told for so long.
async fn quiet(subscription: &mut Subscription, time: Duration) {
    let news = timeout(time, subscription.recv()).await;
    assert!(news.is_err(), "{news:?}");
}

const AT_ONCE: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_batch_lost_at_the_end_of_a_burst_is_found_after_a_second() {
    let publisher = Publisher::default();
    let mut subscription = publisher.subscribe(Publisher::source());
    assert_eq!(told(&mut subscription, AT_ONCE).await, [Fact::Connected, Fact::Synced]);
    publisher.publish(0);
    publisher.publish(1);
    publisher.lose(2);
    publisher.lose(3);
    assert_eq!(told(&mut subscription, AT_ONCE).await, [removed(0), removed(1)]);
    quiet(&mut subscription, SECOND.saturating_sub(2 * AT_ONCE)).await;
    let found = [removed(2), removed(3), Fact::Synced];
    assert_eq!(told(&mut subscription, 3 * AT_ONCE).await, found);
    let counters = subscription.counters();
    assert_eq!((counters.quiet_checks, counters.found_by_checks, counters.replayed), (1, 2, 2));

    // What comes live after all, and what follows it.
    publisher.send(2, 2);
    publisher.send(3, 3);
    publisher.publish(4);
    assert_eq!(told(&mut subscription, AT_ONCE).await, [removed(4)]);
    let counters = subscription.counters();
    assert_eq!((counters.batches, counters.duplicates, counters.losses), (5, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn checks_of_a_silent_publisher_become_rare_and_tell_nothing() {
    let publisher = Publisher::default();
    publisher.lose(0);
    let start = Instant::now();
    let mut subscription = publisher.subscribe(Publisher::source());
    let begun = [Fact::Connected, removed(0), Fact::Synced];
    assert_eq!(told(&mut subscription, AT_ONCE).await, begun);
    quiet(&mut subscription, Duration::from_secs(130)).await;
    assert_eq!(publisher.asked_s(start), [0., 1., 3., 7., 15., 31., 61., 91., 121.]);
    assert_eq!(subscription.counters().quiet_checks, 8);

    // From the beginning with each batch; told once, since there was news.
    publisher.publish(1);
    assert_eq!(told(&mut subscription, AT_ONCE).await, [removed(1)]);
    assert_eq!(told(&mut subscription, SECOND + AT_ONCE).await, [Fact::Synced]);
    quiet(&mut subscription, Duration::from_secs(7)).await;
    assert_eq!(publisher.asked_s(start), [131., 133., 137.]);
    publisher.lose(2);
    assert_eq!(told(&mut subscription, Duration::from_secs(8)).await, [removed(2), Fact::Synced]);
    quiet(&mut subscription, SECOND + AT_ONCE).await;
    assert_eq!(publisher.asked_s(start), [145., 146.]);
}

#[tokio::test(start_paused = true)]
async fn traffic_leaves_no_time_for_checks() {
    let publisher = Publisher::default();
    let mut subscription = publisher.subscribe(Publisher::source());
    assert_eq!(told(&mut subscription, AT_ONCE).await, [Fact::Connected, Fact::Synced]);
    for name in 0..100 {
        publisher.publish(name);
        assert_eq!(told(&mut subscription, AT_ONCE).await, [removed(name)]);
        quiet(&mut subscription, SECOND / 2).await;
    }
    assert_eq!(subscription.counters().quiet_checks, 0);
}

#[tokio::test(start_paused = true)]
async fn a_gap_ends_synced() {
    let publisher = Publisher::default();
    let mut subscription = publisher.subscribe(Publisher::source());
    assert_eq!(told(&mut subscription, AT_ONCE).await, [Fact::Connected, Fact::Synced]);
    publisher.publish(0);
    publisher.lose(1);
    publisher.publish(2);
    let facts = [removed(0), removed(1), removed(2), Fact::Synced];
    assert_eq!(told(&mut subscription, AT_ONCE).await, facts);
    // It was the last thing told.
    quiet(&mut subscription, 100 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_replay_endpoint_nothing_is_checked_and_nothing_synced() {
    let source = Publisher::source();
    for source in [
        SourceConfig { replay: None, ..source.clone() },
        SourceConfig { quiet_check: Duration::ZERO, ..source },
    ] {
        let publisher = Publisher::default();
        let is_synced = source.replay.is_some();
        let mut subscription = publisher.subscribe(source);
        assert_eq!(told(&mut subscription, AT_ONCE).await, [Fact::Connected]);
        if is_synced {
            assert_eq!(told(&mut subscription, AT_ONCE).await, [Fact::Synced]);
        }
        tokio::task::yield_now().await;
        publisher.publish(0);
        assert_eq!(told(&mut subscription, AT_ONCE).await, [removed(0)]);
        publisher.lose(1);
        quiet(&mut subscription, NEVER).await;
        assert_eq!(subscription.counters().quiet_checks, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_replay_is_left_alone_and_delays_nothing_but_the_beginning() {
    for replays in [Replays::Silent, Replays::Refused] {
        let publisher = Publisher::default();
        publisher.state().replays = replays;
        let start = Instant::now();
        let mut subscription = publisher.subscribe(Publisher::source());
        assert_eq!(told(&mut subscription, AT_ONCE).await, [Fact::Connected]);
        // Once, before the first batch.
        publisher.publish(0);
        let wait = if replays == Replays::Silent { Duration::from_secs(5) } else { Duration::ZERO };
        quiet(&mut subscription, wait).await;
        assert_eq!(told(&mut subscription, AT_ONCE).await, [removed(0)]);

        quiet(&mut subscription, Duration::from_mins(5)).await;
        let asked = publisher.asked_s(start);
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= 10.), "{asked:?}");
        assert!((9..=15).contains(&asked.len()), "{asked:?}");

        // Also in the middle of a check that waits for its answer.
        for name in 1..50 {
            publisher.publish(name);
            assert_eq!(told(&mut subscription, AT_ONCE).await, [removed(name)]);
            quiet(&mut subscription, Duration::from_secs(11)).await;
        }
        let counters = subscription.counters();
        assert_eq!((counters.losses, counters.restarts, counters.connects), (0, 0, 1));

        publisher.state().replays = Replays::Served;
        assert_eq!(told(&mut subscription, Duration::from_mins(1)).await, [Fact::Synced]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_no_replay_is_not_asked_in_every_pause() {
    let publisher = Publisher::default();
    let mut subscription = publisher.subscribe(Publisher::source());
    assert_eq!(told(&mut subscription, AT_ONCE).await, [Fact::Connected, Fact::Synced]);
    publisher.state().replays = Replays::Silent;
    publisher.state().asked.clear();
    let start = Instant::now();
    for name in 0..100 {
        publisher.publish(name);
        assert_eq!(told(&mut subscription, AT_ONCE).await, [removed(name)]);
        quiet(&mut subscription, 3 * SECOND).await;
    }
    assert_eq!(publisher.asked_s(start), [1., 5.]);
    // The gap that the next one shows is filled all the same, and checks begin again.
    publisher.state().replays = Replays::Served;
    publisher.lose(100);
    publisher.publish(101);
    let facts = [removed(100), removed(101), Fact::Synced];
    assert_eq!(told(&mut subscription, AT_ONCE).await, facts);
    publisher.lose(102);
    assert_eq!(told(&mut subscription, 5 * SECOND).await, [removed(102), Fact::Synced]);
    publisher.publish(103);
    publisher.lose(104);
    let facts = [removed(103), removed(104), Fact::Synced];
    assert_eq!(told(&mut subscription, SECOND + AT_ONCE).await, facts);
    assert_eq!(subscription.counters().replay_failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_no_replay_brought_is_asked_for_again_before_a_batch_comes() {
    let publisher = Publisher::default();
    publisher.lose(0);
    publisher.state().replays = Replays::Refused;
    let mut subscription = publisher.subscribe(Publisher::source());
    assert_eq!(told(&mut subscription, AT_ONCE).await, [Fact::Connected]);
    publisher.state().replays = Replays::Served;
    quiet(&mut subscription, Duration::from_secs(9)).await;
    assert_eq!(told(&mut subscription, 2 * SECOND).await, [removed(0), Fact::Synced]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_to_a_life_that_is_gone_is_made_anew() {
    // The new life has come less far than the old one, as far, and further.
    for batches in [0, 2, 3, 5] {
        let publisher = Publisher::default();
        (0..3).for_each(|name| _ = publisher.lose(name));
        let mut subscription = publisher.subscribe(Publisher::source());
        let [.., synced]: [Fact; 5] = told(&mut subscription, AT_ONCE).await;
        assert_eq!(synced, Fact::Synced);
        publisher.restart_unseen();
        (10..10 + batches).for_each(|name| _ = publisher.lose(name));
        let restarted = [Fact::Disconnected, Fact::Connected, Fact::Cleared(Cleared::Restarted)];
        assert_eq!(told(&mut subscription, 2 * SECOND).await, restarted);
        for name in 10..10 + batches {
            assert_eq!(told(&mut subscription, AT_ONCE).await, [removed(name)]);
        }
        assert_eq!(told(&mut subscription, AT_ONCE).await, [Fact::Synced]);
        quiet(&mut subscription, 100 * SECOND).await;
        let counters = subscription.counters();
        assert_eq!((counters.connects, counters.restarts, counters.losses), (2, 1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_the_publisher_itself_lost_is_told_by_a_check() {
    let publisher = Publisher::default();
    let mut subscription = publisher.subscribe(Publisher::source());
    assert_eq!(told(&mut subscription, AT_ONCE).await, [Fact::Connected, Fact::Synced]);
    publisher.publish(0);
    assert_eq!(told(&mut subscription, AT_ONCE).await, [removed(0)]);
    publisher.lose(1);
    publisher.lose(2);
    publisher.state().buffer.remove(1);
    let lost = Fact::Lost(Loss::Gap { batches: 1 });
    assert_eq!(told(&mut subscription, 2 * SECOND).await, [lost, removed(2), Fact::Synced]);
    assert_eq!(subscription.counters().lost_batches, 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_one_piece_of_news_with_the_position_behind_it() {
    let publisher = Publisher::default();
    let seq = publisher.lose(0);
    publisher.lose(1);
    publisher.state().buffer.remove(usize::try_from(seq).unwrap());
    let mut subscription = publisher.subscribe(Publisher::source());
    let connected = subscription.recv().await.unwrap();
    assert_eq!(connected, News { facts: vec![Fact::Connected], position: None });
    let first = subscription.recv().await.unwrap();
    assert_eq!(first.facts, [Fact::Lost(Loss::Beginning { batches: 1 }), removed(1)]);
    let synced = subscription.recv().await.unwrap();
    assert_eq!(synced, News { facts: vec![Fact::Synced], position: first.position });

    // A batch about other media says nothing, but the stream has moved.
    let other = KvEvent::BlockRemoved(BlockRemoved {
        medium: Some(kvroute_vllm_wire::medium::CPU.to_owned()),
        ..BlockRemoved::default()
    });
    let mut payload = Vec::new();
    EventBatch { ts: 1.0, events: vec![other], data_parallel_rank: None }.encode(&mut payload);
    publisher.state().live.as_ref().unwrap().send((2, payload)).unwrap();
    let silent = subscription.recv().await.unwrap();
    assert!(silent.facts.is_empty() && silent.position != first.position, "{silent:?}");

    let position = silent.position.unwrap();
    publisher.state().next = 3;
    publisher.publish(3);
    let last = subscription.recv().await.unwrap();
    // Resumed behind the silent one: only what followed it.
    publisher.state().buffer.retain(|(seq, _)| *seq == 3);
    let mut resumed =
        Subscription::start(Publisher::source(), Tracker::at(position), publisher.clone());
    let facts = [Fact::Connected, Fact::Lost(Loss::Unverified), removed(3), Fact::Synced];
    assert_eq!(told(&mut resumed, AT_ONCE).await, facts);
    drop(resumed);
    let position = last.position.unwrap();
    let mut resumed =
        Subscription::start(Publisher::source(), Tracker::at(position), publisher.clone());
    assert_eq!(told(&mut resumed, AT_ONCE).await, [Fact::Connected, Fact::Synced]);
}
