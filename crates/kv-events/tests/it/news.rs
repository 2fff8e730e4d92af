//! What a subscription tells of a publisher that works.

use kvroute_kv_events::{Cleared, Fact, Loss};
use kvroute_vllm_wire::{BlockStored, EventBatch, KvEvent, medium};
use serde_json::Value;

use crate::publisher::{
    DEADLINE, Options, Publisher, Reader, batch, encode, expect_stored, next, next_stored,
};

#[tokio::test]
async fn all_batches_before_and_after_the_subscription_in_order() {
    for without_topic in [false, true] {
        let publisher = Publisher::start(Options { without_topic, ..Options::default() });
        for hash in 0..5 {
            publisher.publish(batch(hash));
        }
        let mut reader = Reader::connect(publisher.source());
        assert_eq!(next(&mut reader).await, Fact::Connected);
        expect_stored(&mut reader, 0..5).await;
        for hash in 5..50 {
            publisher.publish(batch(hash));
        }
        expect_stored(&mut reader, 5..50).await;
        let counters = reader.counters();
        assert_eq!((counters.connects, counters.batches, counters.losses), (1, 50, 0));
        assert_eq!(counters.events, 50 + 17, "every third is removed too");
        assert!(counters.errors().all(|(_, count)| count == 0));
    }
}

#[tokio::test]
async fn a_unix_socket_will_do() {
    let file = std::env::temp_dir().join(format!("kv-events-{}", std::process::id()));
    let endpoint = |name| format!("ipc://{}-{name}", file.display());
    let options =
        Options { events: endpoint("events"), replay: endpoint("replay"), ..Options::default() };
    let publisher = Publisher::start(options);
    publisher.publish(batch(1));
    let mut reader = Reader::connect(publisher.source());
    assert_eq!(next(&mut reader).await, Fact::Connected);
    expect_stored(&mut reader, [1]).await;
}

#[tokio::test]
async fn a_publisher_that_comes_later_is_found() {
    let options = Publisher::start(Options::default()).stop();
    let publisher = {
        let gone = Publisher::start(options.clone());
        let source = gone.source();
        drop(gone);
        let mut reader = Reader::connect(source);
        let refused = async {
            while reader.counters().connect_failures == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, refused).await.unwrap();
        let publisher = Publisher::start(options);
        publisher.publish(batch(8));
        assert_eq!(next(&mut reader).await, Fact::Connected);
        expect_stored(&mut reader, [8]).await;
        publisher
    };
    publisher.publish(batch(9));
}

#[tokio::test]
async fn other_topics_are_not_heard() {
    let publisher = Publisher::start(Options::default());
    publisher.publish(batch(1));
    let mut source = publisher.source_without_replay();
    source.topic = "kv@1".to_owned();
    let mut other = Reader::connect(source);
    assert_eq!(next(&mut other).await, Fact::Connected);
    let mut reader = Reader::connect(publisher.source());
    publisher.publish(batch(2));
    assert_eq!(next(&mut reader).await, Fact::Connected);
    expect_stored(&mut reader, [1, 2]).await;
    assert_eq!(other.counters().messages, 0);
}

/// Every recorded payload that is there whole, of both hash forms, and the old array form: the facts are its events.
#[tokio::test]
async fn recorded_payloads_come_through() {
    let recorded = [
        include_str!("../../../vllm-wire/tests/fixtures/events.json"),
        include_str!("../../../vllm-wire/tests/fixtures/events-sha256_cbor-bytes.json"),
    ];
    let mut payloads = Vec::new();
    for file in recorded {
        let file: Value = serde_json::from_str(file).unwrap();
        let steps = file["steps"].as_array().unwrap();
        for message in steps.iter().flat_map(|step| step["messages"].as_array().unwrap()) {
            let frames = message["frames_hex"].as_array();
            payloads.extend(frames.map(|frames| from_hex(frames[2].as_str().unwrap())));
        }
    }
    assert!(payloads.len() >= 18);
    // `["BlockRemoved", [7], "GPU"]` and `["AllBlocksCleared"]`, as vLLM up to 0.23 wrote them.
    payloads.push(b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x92\x93\xacBlockRemoved\x91\x07\xa3GPU\x91\xb0AllBlocksCleared\xc0".to_vec());

    let publisher = Publisher::start(Options::default());
    let mut reader = Reader::connect(publisher.source());
    assert_eq!(next(&mut reader).await, Fact::Connected);
    for payload in &payloads {
        publisher.publish(payload.clone());
    }
    for payload in &payloads {
        for event in EventBatch::decode(payload).unwrap().events {
            let fact = match event {
                KvEvent::BlockStored(stored) => Fact::Stored(stored),
                KvEvent::BlockRemoved(removed) => Fact::Removed(removed),
                KvEvent::AllBlocksCleared => Fact::Cleared(Cleared::Reset),
            };
            assert_eq!(next(&mut reader).await, fact);
        }
    }
}

#[tokio::test]
async fn blocks_of_other_media_are_left_out() {
    let publisher = Publisher::start(Options::default());
    let stored = |hash: u64, medium: &str| {
        KvEvent::BlockStored(BlockStored {
            block_hashes: vec![hash.into()],
            medium: Some(medium.to_owned()),
            ..BlockStored::default()
        })
    };
    publisher.publish(encode(vec![stored(1, medium::CPU), stored(2, medium::GPU)]));
    publisher.publish(encode(vec![stored(3, medium::STORAGE)]));
    publisher.publish(encode(vec![stored(4, medium::GPU)]));
    let mut reader = Reader::connect(publisher.source());
    assert_eq!(next(&mut reader).await, Fact::Connected);
    expect_stored(&mut reader, [2, 4]).await;
    assert_eq!(reader.counters().events_elsewhere, 2);
}

#[tokio::test]
async fn a_start_in_the_middle_is_a_loss() {
    let publisher = Publisher::start(Options { buffer: 10, ..Options::default() });
    for hash in 0..50 {
        publisher.publish(batch(hash));
    }
    publisher.await_published().await;
    let mut reader = Reader::connect(publisher.source());
    assert_eq!(next(&mut reader).await, Fact::Connected);
    let beginning = Fact::Lost(Loss::Beginning { batches: 40 });
    assert_eq!(next_stored(&mut reader).await, (vec![beginning.clone()], 40));
    expect_stored(&mut reader, 41..50).await;
    assert_eq!(reader.counters().lost_batches, 40);

    let publisher = Publisher::start(Options::default());
    for hash in 0..40 {
        publisher.publish(batch(hash));
    }
    publisher.await_published().await;
    let mut reader = Reader::connect(publisher.source_without_replay());
    assert_eq!(next(&mut reader).await, Fact::Connected);
    publisher.await_subscriber().await;
    publisher.publish(batch(40));
    publisher.publish(batch(41));
    assert_eq!(next_stored(&mut reader).await, (vec![beginning], 40));
    expect_stored(&mut reader, [41]).await;
}

pub(crate) fn from_hex(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}
