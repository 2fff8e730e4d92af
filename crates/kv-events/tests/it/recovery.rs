//! Lost messages, cut connections and restarts.

use kvroute_kv_events::{Cleared, Fact, Loss, Subscription};

use crate::proxy::Proxy;
use crate::publisher::{Options, Publisher, batch, expect_stored, next, next_stored};

/// What the publisher of the slow reader sends.
const BATCHES: u64 = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lossy_network_drops_is_replayed() {
    let publisher = Publisher::start(Options::default());
    let proxy = Proxy::start(&publisher.options.events, 5).await;
    let mut source = publisher.source();
    source.events = proxy.endpoint.parse().unwrap();
    let mut subscription = Subscription::connect(source);
    assert_eq!(next(&mut subscription).await, Fact::Connected);
    publisher.await_subscriber().await;
    for start in (0..2_000).step_by(20) {
        // In turns, so that not one replay brings all.
        for hash in start..start + 20 {
            publisher.publish(batch(hash));
        }
        // The last ones may be missing without a sign.
        if start > 0 {
            expect_stored(&mut subscription, start - 20..start).await;
        }
    }
    let counters = subscription.counters();
    assert!(proxy.dropped() > 20, "{}", proxy.dropped());
    assert!(counters.gaps > 20 && counters.replayed >= counters.gaps, "{counters:?}");
    assert_eq!((counters.losses, counters.lost_batches, counters.restarts), (0, 0, 0));
    assert!(counters.batches >= 1_980, "{counters:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_replays_each_gap_is_a_loss() {
    let publisher = Publisher::start(Options::default());
    let proxy = Proxy::start(&publisher.options.events, 5).await;
    let mut source = publisher.source_without_replay();
    source.events = proxy.endpoint.parse().unwrap();
    let mut subscription = Subscription::connect(source);
    assert_eq!(next(&mut subscription).await, Fact::Connected);
    publisher.await_subscriber().await;
    for hash in 0..1_000 {
        publisher.publish(batch(hash));
    }
    let mut expected = 0;
    let mut lost = 0;
    while expected < 990 {
        let (before, hash) = next_stored(&mut subscription).await;
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
    let counters = subscription.counters();
    assert!(lost > 10 && counters.lost_batches >= lost, "{counters:?}");
    assert_eq!((counters.replays, counters.replayed), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_everything_all_the_same() {
    // libzmq's ROUTER drops at its high-water mark too, so that replays have holes.
    let publisher = Publisher::start(Options { hwm: 20, ..Options::default() });
    let mut subscription = Subscription::connect(publisher.source());
    assert_eq!(next(&mut subscription).await, Fact::Connected);
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
    // Nothing is read until the queue is full.
    while subscription.counters().batches < 64 {
        tokio::task::yield_now().await;
    }
    let (mut expected, mut total) = (0, BATCHES);
    while expected < BATCHES {
        let told = next_stored(&mut subscription);
        if let Ok(told) = tokio::time::timeout(std::time::Duration::from_secs(1), told).await {
            assert_eq!(told, (vec![], expected));
            expected += 1;
        } else {
            // The last ones were dropped: the next one shows it.
            publisher.publish(batch(total));
            total += 1;
        }
    }
    let counters = subscription.counters();
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
        let mut subscription = Subscription::connect(publisher.source());
        assert_eq!(next(&mut subscription).await, Fact::Connected);
        expect_stored(&mut subscription, 0..10).await;

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
                    [next(&mut subscription).await]
                        .into_iter()
                        .filter(|fact| !matches!(fact, Fact::Stored(_) | Fact::Removed(_))),
                );
            }
            assert_eq!(news, restarted);
        } else {
            assert_eq!(next_stored(&mut subscription).await, (restarted.to_vec(), 100));
            expect_stored(&mut subscription, 101..100 + batches).await;
        }
        publisher.publish(batch(500));
        expect_stored(&mut subscription, [500]).await;
        let counters = subscription.counters();
        assert_eq!((counters.restarts, counters.losses), (1, 0), "{counters:?}");
    }
}

#[tokio::test]
async fn a_restart_shows_without_replays_too() {
    let publisher = Publisher::start(Options::default());
    let mut subscription = Subscription::connect(publisher.source_without_replay());
    assert_eq!(next(&mut subscription).await, Fact::Connected);
    publisher.await_subscriber().await;
    publisher.publish(batch(0));
    publisher.publish(batch(1));
    expect_stored(&mut subscription, [0, 1]).await;
    let publisher = Publisher::start(publisher.stop());
    publisher.await_subscriber().await;
    publisher.publish(batch(7));
    let restarted = [Fact::Disconnected, Fact::Connected, Fact::Cleared(Cleared::Restarted)];
    assert_eq!(next_stored(&mut subscription).await, (restarted.to_vec(), 7));
}

#[tokio::test]
async fn a_cut_connection_goes_on_where_it_was() {
    let publisher = Publisher::start(Options::default());
    let proxy = Proxy::start(&publisher.options.events, 0).await;
    let mut source = publisher.source();
    source.events = proxy.endpoint.parse().unwrap();
    let mut subscription = Subscription::connect(source.clone());
    publisher.await_subscriber().await;
    publisher.publish(batch(1));
    assert_eq!(next_stored(&mut subscription).await, (vec![Fact::Connected], 1));
    proxy.cut();
    assert_eq!(next(&mut subscription).await, Fact::Disconnected);
    for hash in 2..7 {
        publisher.publish(batch(hash));
    }
    assert_eq!(next_stored(&mut subscription).await, (vec![Fact::Connected], 2));
    expect_stored(&mut subscription, 3..7).await;
    assert_eq!(subscription.counters().losses, 0);
}

#[tokio::test]
async fn a_cut_connection_is_a_loss_without_replays() {
    let publisher = Publisher::start(Options::default());
    let proxy = Proxy::start(&publisher.options.events, 0).await;
    let mut source = publisher.source_without_replay();
    source.events = proxy.endpoint.parse().unwrap();
    let mut subscription = Subscription::connect(source);
    publisher.await_subscriber().await;
    publisher.publish(batch(1));
    assert_eq!(next_stored(&mut subscription).await, (vec![Fact::Connected], 1));
    proxy.cut();
    assert_eq!(next(&mut subscription).await, Fact::Disconnected);
    assert_eq!(next(&mut subscription).await, Fact::Connected);
    // Until libzmq has taken in the new subscription, batches go nowhere.
    let (before, _) = loop {
        publisher.publish(batch(1));
        let told = tokio::time::timeout(
            std::time::Duration::from_millis(50),
            next_stored(&mut subscription),
        );
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
    let mut subscription = Subscription::connect(source);
    publisher.await_subscriber().await;
    publisher.publish(batch(1));
    publisher.publish(batch(2));
    let (before, hash) = next_stored(&mut subscription).await;
    let lost = Fact::Lost(Loss::Beginning { batches: hash });
    assert_eq!(before, [Fact::Connected, lost]);
    expect_stored(&mut subscription, hash + 1..3).await;
    let counters = subscription.counters();
    assert!((1..=2).contains(&counters.replay_failures), "{counters:?}");
}
