//! Lost messages, cut connections and restarts.

use kvroute_kv_events::{Cleared, Fact, Loss, Position};

use crate::proxy::Proxy;
use crate::publisher::{
    Options, Publisher, Reader, batch, expect_stored, next, next_stored, until_synced,
};

/// What the publisher of the slow reader sends.
const BATCHES: u64 = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lossy_network_drops_is_replayed() {
    let publisher = Publisher::start(Options::default());
    let proxy = Proxy::start(&publisher.options.events, 5).await;
    let mut source = publisher.source();
    source.events = proxy.endpoint.parse().unwrap();
    let mut reader = Reader::connect(source);
    assert_eq!(next(&mut reader).await, Fact::Connected);
    publisher.await_subscriber().await;
    for start in (0..2_000).step_by(20) {
        // In turns, so that not one replay brings all.
        for hash in start..start + 20 {
            publisher.publish(batch(hash));
        }
        // The last ones may be missing without a sign for a while.
        if start > 0 {
            expect_stored(&mut reader, start - 20..start).await;
        }
    }
    expect_stored(&mut reader, 1_980..2_000).await;
    let counters = reader.counters();
    assert!(proxy.dropped() > 20, "{}", proxy.dropped());
    assert!(counters.gaps > 20 && counters.replayed >= counters.gaps, "{counters:?}");
    assert_eq!((counters.losses, counters.lost_batches, counters.restarts), (0, 0, 0));
    assert_eq!(counters.batches, 2_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_replays_each_gap_is_a_loss() {
    let publisher = Publisher::start(Options::default());
    let proxy = Proxy::start(&publisher.options.events, 5).await;
    let mut source = publisher.source_without_replay();
    source.events = proxy.endpoint.parse().unwrap();
    let mut reader = Reader::connect(source);
    assert_eq!(next(&mut reader).await, Fact::Connected);
    publisher.await_subscriber().await;
    for hash in 0..1_000 {
        publisher.publish(batch(hash));
    }
    let mut expected = 0;
    let mut lost = 0;
    while expected < 990 {
        let (before, hash) = next_stored(&mut reader).await;
        let missing = hash - expected;
        match before[..] {
            [] => assert_eq!(missing, 0),
            [Fact::Lost(Loss::Gap { batches } | Loss::Beginning { batches })] => {
                assert_eq!(batches, missing);
            }
            _ => panic!("{before:?} before {hash}"),
        }
        lost += missing;
        expected = hash + 1;
    }
    let counters = reader.counters();
    assert!(lost > 10 && counters.lost_batches >= lost, "{counters:?}");
    assert_eq!((counters.replays, counters.replayed), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_everything_all_the_same() {
    // libzmq's ROUTER drops at its high-water mark too, so that replays have holes.
    let publisher = Publisher::start(Options { hwm: 20, ..Options::default() });
    let mut reader = Reader::connect(publisher.source());
    assert_eq!(next(&mut reader).await, Fact::Connected);
    // Large enough to fill what the kernel holds.
    let large = |hash: u64| {
        let stored = kvroute_vllm_wire::BlockStored {
            block_hashes: vec![hash.into()],
            token_ids: vec![u32::MAX; 10_000],
            ..Default::default()
        };
        crate::publisher::encode(vec![kvroute_vllm_wire::KvEvent::BlockStored(stored)])
    };
    for hash in 0..BATCHES {
        publisher.publish(large(hash));
    }
    // Nothing is read until all is published, which is more than the queues on the way hold.
    publisher.await_published().await;
    expect_stored(&mut reader, 0..BATCHES).await;
    let counters = reader.counters();
    assert!(counters.replayed > 0, "{counters:?}");
    assert_eq!(counters.losses, 0, "{counters:?}");
}

#[tokio::test]
async fn a_restart_empties_the_cache() {
    // The new life has come less far, as far, and further than the old one; or has published nothing yet.
    for batches in [0, 3, 10, 17] {
        let publisher = Publisher::start(Options::default());
        for hash in 0..10 {
            publisher.publish(batch(hash));
        }
        let mut reader = Reader::connect(publisher.source());
        assert_eq!(next(&mut reader).await, Fact::Connected);
        expect_stored(&mut reader, 0..10).await;

        let publisher = Publisher::start(publisher.stop());
        for hash in 100..100 + batches {
            publisher.publish(batch(hash));
        }
        // A life that is seen while it has published nothing is known by that.
        let restarted = [Fact::Disconnected, Fact::Connected, Fact::Cleared(Cleared::Restarted)];
        if batches == 0 {
            let mut news = Vec::new();
            while news.last() != restarted.last() {
                news.extend(
                    [next(&mut reader).await]
                        .into_iter()
                        .filter(|fact| !matches!(fact, Fact::Stored(_) | Fact::Removed(_))),
                );
            }
            assert_eq!(news, restarted);
        } else {
            assert_eq!(next_stored(&mut reader).await, (restarted.to_vec(), 100));
            expect_stored(&mut reader, 101..100 + batches).await;
        }
        publisher.publish(batch(500));
        expect_stored(&mut reader, [500]).await;
        let counters = reader.counters();
        assert_eq!((counters.restarts, counters.losses), (1, 0), "{counters:?}");
    }
}

#[tokio::test]
async fn a_restart_shows_without_replays_too() {
    let publisher = Publisher::start(Options::default());
    let mut reader = Reader::connect(publisher.source_without_replay());
    assert_eq!(next(&mut reader).await, Fact::Connected);
    publisher.await_subscriber().await;
    publisher.publish(batch(0));
    publisher.publish(batch(1));
    expect_stored(&mut reader, [0, 1]).await;
    let publisher = Publisher::start(publisher.stop());
    publisher.await_subscriber().await;
    publisher.publish(batch(7));
    let restarted = [Fact::Disconnected, Fact::Connected, Fact::Cleared(Cleared::Restarted)];
    assert_eq!(next_stored(&mut reader).await, (restarted.to_vec(), 7));
}

#[tokio::test]
async fn a_cut_connection_goes_on_where_it_was() {
    let publisher = Publisher::start(Options::default());
    let proxy = Proxy::start(&publisher.options.events, 0).await;
    let mut source = publisher.source();
    source.events = proxy.endpoint.parse().unwrap();
    let mut reader = Reader::connect(source.clone());
    publisher.await_subscriber().await;
    publisher.publish(batch(1));
    assert_eq!(next_stored(&mut reader).await, (vec![Fact::Connected], 1));
    proxy.cut();
    assert_eq!(next(&mut reader).await, Fact::Disconnected);
    for hash in 2..7 {
        publisher.publish(batch(hash));
    }
    assert_eq!(next_stored(&mut reader).await, (vec![Fact::Connected], 2));
    expect_stored(&mut reader, 3..7).await;
    assert_eq!(reader.counters().losses, 0);
}

#[tokio::test]
async fn a_cut_connection_is_a_loss_without_replays() {
    let publisher = Publisher::start(Options::default());
    let proxy = Proxy::start(&publisher.options.events, 0).await;
    let mut source = publisher.source_without_replay();
    source.events = proxy.endpoint.parse().unwrap();
    let mut reader = Reader::connect(source);
    publisher.await_subscriber().await;
    publisher.publish(batch(1));
    assert_eq!(next_stored(&mut reader).await, (vec![Fact::Connected], 1));
    proxy.cut();
    assert_eq!(next(&mut reader).await, Fact::Disconnected);
    assert_eq!(next(&mut reader).await, Fact::Connected);
    // Until libzmq has taken in the new subscription, batches go nowhere.
    let (before, _) = loop {
        publisher.publish(batch(1));
        let told =
            tokio::time::timeout(std::time::Duration::from_millis(50), next_stored(&mut reader));
        if let Ok(told) = told.await {
            break told;
        }
    };
    assert_eq!(before, [Fact::Lost(Loss::Unverified)]);
}

#[tokio::test]
async fn a_replay_endpoint_that_is_dead_costs_a_loss_and_no_more() {
    let publisher = Publisher::start(Options::default());
    let proxy = Proxy::start(&publisher.options.events, 0).await;
    let mut source = publisher.source();
    source.replay = Some("tcp://127.0.0.1:1".parse().unwrap());
    source.events = proxy.endpoint.parse().unwrap();
    publisher.publish(batch(0));
    publisher.await_published().await;
    let mut reader = Reader::connect(source);
    publisher.await_subscriber().await;
    publisher.publish(batch(1));
    publisher.publish(batch(2));
    let (before, hash) = next_stored(&mut reader).await;
    let lost = Fact::Lost(Loss::Beginning { batches: hash });
    assert_eq!(before, [Fact::Connected, lost]);
    expect_stored(&mut reader, hash + 1..3).await;
    let counters = reader.counters();
    assert!((1..=2).contains(&counters.replay_failures), "{counters:?}");
}

/// Reads to the end of what was published, as before a snapshot.
async fn read_all(reader: &mut Reader, batches: u64) -> Position {
    expect_stored(reader, 0..batches).await;
    until_synced(reader).await;
    reader.position().unwrap()
}

#[tokio::test]
async fn a_resumed_subscription_is_told_what_followed_and_nothing_twice() {
    let publisher = Publisher::start(Options::default());
    (0..10).for_each(|hash| publisher.publish(batch(hash)));
    publisher.await_published().await;
    let mut reader = Reader::connect(publisher.source());
    assert_eq!(reader.next_with_synced().await, Fact::Connected);
    let position = read_all(&mut reader, 10).await;
    drop(reader);

    let position = serde_json::from_str(&serde_json::to_string(&position).unwrap()).unwrap();
    let mut unchanged = Reader::resume(publisher.source(), position);
    assert_eq!(until_synced(&mut unchanged).await, [Fact::Connected]);
    assert_eq!(unchanged.position(), Some(position));

    (10..15).for_each(|hash| publisher.publish(batch(hash)));
    publisher.await_published().await;
    let mut resumed = Reader::resume(publisher.source(), position);
    assert_eq!(next_stored(&mut resumed).await, (vec![Fact::Connected], 10));
    expect_stored(&mut resumed, 11..15).await;
    publisher.publish(batch(15));
    expect_stored(&mut resumed, [15]).await;
    let counters = resumed.counters();
    assert_eq!((counters.batches, counters.losses, counters.restarts), (6, 0, 0));
}

#[tokio::test]
async fn a_resumed_subscription_finds_a_restart() {
    for batches in [3, 10, 17] {
        let publisher = Publisher::start(Options::default());
        (0..10).for_each(|hash| publisher.publish(batch(hash)));
        let mut reader = Reader::connect(publisher.source());
        assert_eq!(next(&mut reader).await, Fact::Connected);
        let position = read_all(&mut reader, 10).await;
        drop(reader);

        let publisher = Publisher::start(publisher.stop());
        (100..100 + batches).for_each(|hash| publisher.publish(batch(hash)));
        publisher.await_published().await;
        let mut resumed = Reader::resume(publisher.source(), position);
        let restarted = [Fact::Connected, Fact::Cleared(Cleared::Restarted)];
        assert_eq!(next_stored(&mut resumed).await, (restarted.to_vec(), 100));
        expect_stored(&mut resumed, 101..100 + batches).await;
        assert_eq!(resumed.counters().losses, 0);
    }
}

#[tokio::test]
async fn a_resumed_subscription_tells_that_the_buffer_has_moved_on() {
    let publisher = Publisher::start(Options { buffer: 5, ..Options::default() });
    publisher.publish(batch(0));
    let mut reader = Reader::connect(publisher.source());
    assert_eq!(next(&mut reader).await, Fact::Connected);
    let position = read_all(&mut reader, 1).await;
    drop(reader);

    (1..20).for_each(|hash| publisher.publish(batch(hash)));
    publisher.await_published().await;
    let mut resumed = Reader::resume(publisher.source(), position);
    let lost = [Fact::Connected, Fact::Lost(Loss::Unverified)];
    assert_eq!(next_stored(&mut resumed).await, (lost.to_vec(), 15));
    let facts = until_synced(&mut resumed).await;
    let stored = facts.iter().filter(|fact| matches!(fact, Fact::Stored(_))).count();
    assert_eq!(stored, 4, "{facts:?}");
    assert_eq!(resumed.counters().batches, 5);
}

#[tokio::test]
async fn the_last_batch_is_found_though_the_way_dropped_everything() {
    let publisher = Publisher::start(Options::default());
    let proxy = Proxy::start(&publisher.options.events, 100).await;
    let mut source = publisher.source();
    source.events = proxy.endpoint.parse().unwrap();
    source.quiet_check = std::time::Duration::from_millis(50);
    let mut reader = Reader::connect(source);
    assert_eq!(until_synced(&mut reader).await, [Fact::Connected]);
    publisher.await_subscriber().await;
    (0..10).for_each(|hash| publisher.publish(batch(hash)));
    expect_stored(&mut reader, 0..10).await;
    until_synced(&mut reader).await;
    let counters = reader.counters();
    assert_eq!((counters.messages, counters.found_by_checks, counters.losses), (0, 10, 0));
}
