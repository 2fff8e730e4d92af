//! Peers that are no publisher, or a broken one.

use kvroute_kv_events::{Counters, ErrorKind, Fact, Loss, SourceConfig, Subscription};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::publisher::{
    DEADLINE, Options, Publisher, Reader, batch, expect_stored, next, next_stored,
};

fn errors(counters: &Counters, kind: ErrorKind) -> u64 {
    counters.errors().find(|(known, _)| *known == kind).unwrap().1
}

#[tokio::test]
async fn payloads_that_cannot_be_read_are_losses() {
    let publisher = Publisher::start(Options::default());
    let mut reader = Reader::connect(publisher.source());
    assert_eq!(next(&mut reader).await, Fact::Connected);
    publisher.publish(batch(0));
    expect_stored(&mut reader, [0]).await;
    let truncated = batch(1);
    publisher.publish(truncated[..truncated.len() - 3].to_vec());
    publisher.publish(b"\x93\xcb\x3f\xf8\0\0\0\0\0\0\x91\x91\xa3Odd\xc0".to_vec());
    publisher.publish(batch(2));
    let unreadable = || Fact::Lost(Loss::Unreadable);
    assert_eq!(next_stored(&mut reader).await, (vec![unreadable(), unreadable()], 2));
    assert_eq!(errors(&reader.counters(), ErrorKind::Truncated), 1);
    assert_eq!(errors(&reader.counters(), ErrorKind::UnknownEvent), 1);
    assert_eq!(reader.counters().lost_batches, 2);
}

/// A server that answers every connection with these bytes; the subscription gives up and tries again.
async fn survives(answer: &'static [u8]) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 64];
            // The other side may be gone already.
            let _ = stream.read_exact(&mut hello).await;
            let _ = stream.write_all(answer).await;
            tokio::spawn(async move {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    let mut source = SourceConfig::new(endpoint.parse().unwrap());
    source.retry_max = std::time::Duration::from_millis(100);
    let subscription = Subscription::connect(source);
    let seen = tokio::time::timeout(DEADLINE, async {
        while errors(&subscription.counters(), ErrorKind::Protocol) < 3 {
            tokio::task::yield_now().await;
        }
    });
    seen.await.unwrap_or_else(|_| panic!("{answer:?}: {:?}", subscription.counters()));
    server.abort();
}

const HELLO: [u8; 64] = {
    let mut hello = [0; 64];
    (hello[0], hello[9], hello[10]) = (0xff, 0x7f, 3);
    (hello[12], hello[13], hello[14], hello[15]) = (b'N', b'U', b'L', b'L');
    hello
};

#[tokio::test]
async fn other_protocols_and_broken_frames_are_survived() {
    survives(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let leak = |bytes: Vec<u8>| -> &'static [u8] { bytes.leak() };
    let hello = |rest: &[u8]| leak([&HELLO[..], rest].concat());
    survives(hello(b"\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06ROUTER")).await;
    let ready = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB";
    // A length beyond all memory, flags that do not exist, a command that ends inside its name.
    survives(hello(&[&ready[..], b"\x02\xff\xff\xff\xff\xff\xff\xff\xf0"].concat())).await;
    survives(hello(&[&ready[..], b"\x80\x01x"].concat())).await;
    survives(hello(&[&ready[..], b"\x04\x02\x09x"].concat())).await;
}
