//! KV events on the wire: against messages recorded from vLLM 0.32.0, read by libzmq and by kvroute's own subscriber.

use std::net::SocketAddr;

use kvroute_kv_events::{Cleared, Fact, SourceConfig, Subscription, read_sources};
use kvroute_mock_server::{KvEventsConfig, MockCluster, MockConfig, StartError};
use kvroute_vllm_wire::{
    EventBatch, HashAlgo, KvEvent, ReplayReply, parse_publish, parse_replay_reply,
    replay_request_frames,
};
use serde_json::{Value, json};

use crate::client::{Answer, config, get, post, start};

const TOPIC: &str = "kv@0";

fn publishing(kv_events: KvEventsConfig) -> MockConfig {
    MockConfig { kv_events: Some(kv_events), ..config() }
}

fn with_topic() -> KvEventsConfig {
    KvEventsConfig { topic: TOPIC.to_owned(), ..KvEventsConfig::default() }
}

/// The prompts of the recording: ids that depend on `seed`.
fn tokens(seed: u64, count: u64) -> Vec<u64> {
    (0..count).map(|i| 100 + (seed * 7_919 + i * 31 + (i * i) % 97) % 16_000).collect()
}

async fn complete(address: SocketAddr, prompt: Vec<u64>, more: Value) {
    let mut body = json!({"prompt": prompt, "max_tokens": 1, "ignore_eos": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    assert_eq!(post(address, "/v1/completions", &body).await.status, 200);
}

/// Everything the recording did, step by step, but for what the mock does not know (`kv_cache_report_mode`).
async fn recorded_scenario(address: SocketAddr) {
    const B: u64 = 32;
    let first = tokens(1, 2 * B + 6);
    complete(address, first.clone(), json!({})).await;
    complete(address, first.clone(), json!({})).await;
    complete(address, [first.clone(), tokens(2, 2 * B)].concat(), json!({})).await;
    complete(address, tokens(3, B + 4), json!({"max_tokens": B})).await;
    complete(address, tokens(4, B - 4), json!({})).await;
    complete(address, tokens(5, 2 * B), json!({})).await;
    complete(address, tokens(5, 2 * B), json!({})).await;
    complete(address, first.clone(), json!({"cache_salt": "tenant-a"})).await;
    complete(address, tokens(6, B + 1), json!({})).await;
    complete(address, first, json!({})).await;
    complete(address, tokens(7, 3_000), json!({})).await;
    for seed in 20..20 + 512 * B / 2_000 + 2 {
        complete(address, tokens(seed, 2_000), json!({})).await;
    }
    post(address, "/reset_prefix_cache", &json!({})).await;
    complete(address, tokens(8, B + 1), json!({})).await;
}

/// All batches, by a libzmq DEALER: number and payload.
fn replay(endpoint: &str, start_seq: u64) -> Vec<(u64, Vec<u8>)> {
    let context = zmq::Context::new();
    let socket = context.socket(zmq::DEALER).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_rcvtimeo(30_000).unwrap();
    socket.connect(endpoint).unwrap();
    let request = replay_request_frames(start_seq);
    socket.send_multipart(request.iter().map(AsRef::as_ref), 0).unwrap();
    let mut batches = Vec::new();
    loop {
        let frames = socket.recv_multipart(0).unwrap();
        match parse_replay_reply(&frames).unwrap() {
            ReplayReply::Batch(batch) => {
                assert_eq!(batch.topic, Some(TOPIC.as_bytes()));
                batches.push((batch.seq, batch.payload.to_vec()));
            }
            ReplayReply::End => return batches,
        }
    }
}

async fn replay_of(cluster: &MockCluster, start_seq: u64) -> Vec<(u64, Vec<u8>)> {
    let endpoint = format!("tcp://{}", cluster.instances()[0].kv_events().unwrap().replay);
    tokio::task::spawn_blocking(move || replay(&endpoint, start_seq)).await.unwrap()
}

fn from_hex(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// Kinds of events in order, runs of one kind with their length; blocks of each stored event.
fn outline(payload: &[u8]) -> (Vec<(&'static str, usize)>, Vec<usize>) {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    let mut stored = Vec::new();
    for event in EventBatch::decode(payload).unwrap().events {
        let kind = match event {
            KvEvent::BlockStored(event) => {
                stored.push(event.block_hashes.len());
                "BlockStored"
            }
            KvEvent::BlockRemoved(_) => "BlockRemoved",
            KvEvent::AllBlocksCleared => "AllBlocksCleared",
        };
        match kinds.last_mut() {
            Some((last, count)) if *last == kind => *count += 1,
            _ => kinds.push((kind, 1)),
        }
    }
    (kinds, stored)
}

#[tokio::test]
async fn the_recorded_scenario_gives_the_recorded_messages() {
    let recordings = [
        (include_str!("../../../vllm-wire/tests/fixtures/events.json"), HashAlgo::Sha256, true),
        (
            include_str!("../../../vllm-wire/tests/fixtures/events-sha256_cbor-bytes.json"),
            HashAlgo::Sha256Cbor,
            false,
        ),
    ];
    for (recording, hash_algo, int_block_hashes) in recordings {
        let recording: Value = serde_json::from_str(recording).unwrap();
        let settings = KvEventsConfig { hash_algo, int_block_hashes, ..with_topic() };
        let mut config = publishing(settings);
        // The recorded server's: it published each chunk of a prompt in a message of its own.
        config.engine.max_num_batched_tokens = 2_048;
        config.engine.async_scheduling = false;
        let cluster = start(config).await;
        recorded_scenario(cluster.addresses()[0]).await;
        let batches = replay_of(&cluster, 0).await;
        let numbers: Vec<u64> = batches.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(numbers, (0..batches.len() as u64).collect::<Vec<_>>());
        let mut batches = batches.into_iter().map(|(_, payload)| payload);

        let mut equal = 0;
        for step in recording["steps"].as_array().unwrap() {
            let name = step["step"].as_str().unwrap();
            if name == "report_mode_full" {
                continue;
            }
            let mut counts = json!({});
            for (index, message) in step["messages"].as_array().unwrap().iter().enumerate() {
                let mut mine = batches.next().unwrap_or_else(|| panic!("{name}: no message"));
                let (kinds, blocks) = outline(&mine);
                for (kind, count) in &kinds {
                    counts[kind] = json!(counts[kind].as_u64().unwrap_or(0) + *count as u64);
                }
                let Some(frames) = message["frames_hex"].as_array() else {
                    // Too long to be there whole: the number of bytes, and with the counts below of events.
                    let size = message["payload_bytes"].as_u64().unwrap();
                    assert_eq!(mine.len() as u64, size, "{name} {index}");
                    continue;
                };
                let recorded = from_hex(frames[2].as_str().unwrap());
                if name == "session_id_header" || (name == "decode_crosses_block" && index == 1) {
                    // The session is not in the mock's, and its model says other words.
                    assert_eq!((kinds, blocks), outline(&recorded), "{name}");
                    continue;
                }
                // The time of the day is the server's own.
                mine[2..10].copy_from_slice(&recorded[2..10]);
                assert_eq!(mine, recorded, "{name} {index}");
                equal += 1;
            }
            assert_eq!(counts, step["event_counts"], "{name}");
        }
        assert_eq!(batches.next(), None);
        assert!(equal >= 7, "{equal}");
    }
}

#[tokio::test]
async fn a_libzmq_subscriber_hears_what_a_replay_repeats() {
    let cluster = start(publishing(with_topic())).await;
    let address = cluster.addresses()[0];
    let endpoint = format!("tcp://{}", cluster.instances()[0].kv_events().unwrap().events);
    let (heard, first_heard) = tokio::sync::oneshot::channel();
    let subscriber = tokio::task::spawn_blocking(move || {
        let context = zmq::Context::new();
        let socket = context.socket(zmq::SUB).unwrap();
        socket.set_rcvtimeo(30_000).unwrap();
        socket.set_subscribe(TOPIC.as_bytes()).unwrap();
        socket.connect(&endpoint).unwrap();
        let mut messages = vec![socket.recv_multipart(0).unwrap()];
        heard.send(()).unwrap();
        messages.push(socket.recv_multipart(0).unwrap());
        messages
    });
    // Until the subscription is there, batches go nowhere.
    let mut seed = 0;
    let mut first_heard = std::pin::pin!(first_heard);
    loop {
        complete(address, tokens(seed, 64), json!({})).await;
        seed += 1;
        let wait = std::time::Duration::from_millis(20);
        if tokio::time::timeout(wait, first_heard.as_mut()).await.is_ok() {
            break;
        }
    }
    complete(address, tokens(seed, 64), json!({})).await;
    let messages = subscriber.await.unwrap();
    let replayed = replay_of(&cluster, 0).await;
    for message in messages {
        let batch = parse_publish(&message).unwrap();
        assert_eq!(batch.topic, Some(TOPIC.as_bytes()));
        let seq = usize::try_from(batch.seq).unwrap();
        assert_eq!((batch.seq, batch.payload), (replayed[seq].0, &replayed[seq].1[..]));
    }
}

#[tokio::test]
async fn only_the_last_batches_are_replayed() {
    let cluster = start(publishing(KvEventsConfig { buffer_steps: 3, ..with_topic() })).await;
    for seed in 0..10 {
        complete(cluster.addresses()[0], tokens(seed, 64), json!({})).await;
    }
    let numbers = |batches: Vec<(u64, Vec<u8>)>| batches.iter().map(|b| b.0).collect::<Vec<_>>();
    assert_eq!(numbers(replay_of(&cluster, 0).await), [7, 8, 9]);
    assert_eq!(numbers(replay_of(&cluster, 9).await), [9]);
    assert!(replay_of(&cluster, 100).await.is_empty());
}

#[tokio::test]
async fn the_sources_have_the_recorded_form() {
    let cluster = start(publishing(with_topic())).await;
    let answer = get(cluster.addresses()[0], "/kv_event_sources").await;
    let at = cluster.instances()[0].kv_events().unwrap();
    let recorded = Answer::parse(include_str!("../fixtures/kv_event_sources.txt"));
    let ported = recorded.body.trim_end().replace("8120", &at.events.port().to_string());
    let ported = ported.replace("8140", &at.replay.port().to_string());
    assert_eq!((answer.status, answer.body), (200, ported));
    let type_of = |answer: &Answer| answer.header("content-type").map(ToOwned::to_owned);
    assert_eq!(
        type_of(&get(cluster.addresses()[0], "/kv_event_sources").await),
        type_of(&recorded)
    );

    let silent = start(config()).await;
    assert_eq!(get(silent.addresses()[0], "/kv_event_sources").await.status, 404);
    assert_eq!(silent.instances()[0].kv_events(), None);
}

/// A subscription, and its news fact by fact.
struct Reader {
    subscription: Subscription,
    ready: std::vec::IntoIter<Fact>,
}

impl Reader {
    async fn next(&mut self) -> Fact {
        loop {
            if let Some(fact) = self.ready.next() {
                return fact;
            }
            let deadline = std::time::Duration::from_secs(30);
            let news = tokio::time::timeout(deadline, self.subscription.recv()).await;
            let counters = self.subscription.counters();
            let news = news.unwrap_or_else(|_| panic!("no news; {counters:?}")).unwrap();
            self.ready = news.facts.into_iter();
        }
    }
}

async fn source(cluster: &MockCluster) -> SourceConfig {
    let answer = get(cluster.addresses()[0], "/kv_event_sources").await;
    let mut sources = read_sources(&answer.body, "127.0.0.1").unwrap();
    sources.remove("0").unwrap()
}

/// A cluster of one that publishes at ports of our choice, as the same server started again does.
async fn start_at(port: Option<u16>) -> MockCluster {
    for _ in 0..500 {
        let port = port.unwrap_or_else(|| {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port().min(u16::MAX - 1)
        });
        let settings = KvEventsConfig { port, ..with_topic() };
        match MockCluster::start(publishing(settings)).await {
            Ok(cluster) => return cluster,
            // Another test has taken one of the two, or the life before is still closing them.
            Err(StartError::Listen { .. }) => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the ports stay in use");
}

#[tokio::test]
async fn the_subscriber_follows_an_instance_through_its_death() {
    let cluster = start_at(None).await;
    let source = source(&cluster).await;
    complete(cluster.addresses()[0], tokens(1, 64), json!({})).await;
    let subscription = Subscription::connect(source);
    let mut reader = Reader { subscription, ready: Vec::new().into_iter() };
    assert_eq!(reader.next().await, Fact::Connected);
    let Fact::Stored(first) = reader.next().await else { panic!("the replay") };
    assert_eq!(reader.next().await, Fact::Synced);
    complete(cluster.addresses()[0], tokens(2, 64), json!({})).await;
    let Fact::Stored(second) = reader.next().await else { panic!("live, or by a check") };
    assert_eq!((first.parent(), first.hashes().len(), second.hashes().len()), (None, 2, 2));
    assert!(first.hashes().all(|hash| !second.hashes().any(|other| other == hash)));
    // Nothing comes any more, so that the next replay is a quiet check.
    assert_eq!(reader.next().await, Fact::Synced);
    assert!(reader.subscription.counters().quiet_checks > 0);

    let port = cluster.instances()[0].kv_events().unwrap().events.port();
    cluster.instances()[0].kill();
    assert_eq!(reader.next().await, Fact::Disconnected);
    let cluster = start_at(Some(port)).await;
    for fact in [Fact::Connected, Fact::Cleared(Cleared::Restarted), Fact::Synced] {
        assert_eq!(reader.next().await, fact);
    }
    complete(cluster.addresses()[0], tokens(3, 64), json!({})).await;
    assert!(matches!(reader.next().await, Fact::Stored(_)));

    cluster.instances()[0].fail_engine();
    // A check may have come first.
    while reader.next().await != Fact::Disconnected {}
}
