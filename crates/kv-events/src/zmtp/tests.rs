use std::time::Duration;

use proptest::prelude::*;
use tokio::io::DuplexStream;
use tokio::time::timeout;

use super::*;

/// A peer's greeting of version 3.1, and its READY.
fn peer_hello(socket: &str) -> Vec<u8> {
    let mut hello = greeting().to_vec();
    hello[11] = 1;
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    body.put_u32(u32::try_from(socket.len()).unwrap());
    body.extend_from_slice(socket.as_bytes());
    let mut frame = BytesMut::new();
    put_frame(&mut frame, COMMAND, &body);
    hello.extend_from_slice(&frame);
    hello
}

/// A connection whose peer has said `said` and then closed its side.
async fn told(said: Vec<u8>) -> Result<Connection> {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        // It may be closed before all is said.
        if far.write_all(&said).await.is_ok() && far.shutdown().await.is_ok() {
            let _ = far.read_to_end(&mut Vec::new()).await;
        }
    });
    Connection::open(Box::new(near), SocketType::Sub).await
}

/// The other side of a connection whose near side does what [`Connection::open`] does.
pub(crate) async fn answer(stream: Box<dyn ByteStream>, socket: &str) -> Result<Connection> {
    let output = BytesMut::from(&peer_hello(socket)[..]);
    let (input, frames) = (BytesMut::new(), Vec::new());
    let mut connection = Connection { stream, input, output, frames, frames_bytes: 0 };
    connection.flush().await?;
    connection.read_greeting().await?;
    while take_frame(&mut connection.input)?.is_none() {
        connection.fill().await?;
    }
    Ok(connection)
}

async fn failure(said: &[u8]) -> String {
    told(said.to_vec()).await.err().unwrap().to_string()
}

#[tokio::test]
async fn peers_of_another_kind_are_told_apart() {
    assert!(failure(b"HTTP/1.1 400 Bad Request\r\n").await.contains("does not speak ZMTP"));
    assert!(failure(&peer_hello("ROUTER")).await.contains("ROUTER socket where a PUB"));
    let mut curve = peer_hello("PUB");
    curve[12..17].copy_from_slice(b"CURVE");
    assert!(failure(&curve).await.contains("CURVE"));
    let mut old = peer_hello("PUB");
    old[10] = 1;
    assert!(failure(&old).await.contains("ZMTP 1"));
    let refused = [&greeting()[..], b"\x04\x0a\x05ERROR\x03bad"].concat();
    assert!(failure(&refused).await.contains("refused the connection: bad"));
    assert!(failure(&peer_hello("PUB")[..70]).await.contains("closed"));
}

#[tokio::test]
async fn messages_of_several_frames_arrive_whole_and_pings_are_answered() {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    far.write_all(&peer_hello("XPUB")).await.unwrap();
    let mut connection = Connection::open(Box::new(near), SocketType::Sub).await.unwrap();
    connection.subscribe("kv@").await.unwrap();
    let long = vec![7; 300];
    let mut said = BytesMut::new();
    put_frame(&mut said, COMMAND, b"\x04PING\x00\x0actx");
    put_frame(&mut said, MORE, b"topic");
    put_frame(&mut said, COMMAND, b"\x07UNKNOWN");
    put_frame(&mut said, 0, &long);
    // Byte by byte: a cut may be anywhere.
    let writer = tokio::spawn(async move {
        for byte in said {
            far.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        far
    });
    assert_eq!(connection.recv().await.unwrap(), [Bytes::from("topic"), Bytes::from(long)]);
    let mut far: DuplexStream = writer.await.unwrap();
    drop(connection);
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    assert!(heard.starts_with(&greeting()));
    assert!(heard.ends_with(b"\x00\x04\x01kv@\x04\x08\x04PONGctx"), "{heard:?}");
}

#[tokio::test]
async fn a_length_is_not_believed() {
    for len in [MESSAGE_BYTES_MAX as u64 + 1, u64::MAX, 1 << 40] {
        let said = [peer_hello("PUB"), [&[LONG][..], &len.to_be_bytes()].concat()].concat();
        let mut connection = told(said).await.unwrap();
        assert!(matches!(connection.recv().await, Err(ZmtpError::TooLarge)));
    }
    // Allowed, but nothing comes: no room was made for it.
    let len = (MESSAGE_BYTES_MAX as u64).to_be_bytes();
    let mut connection =
        told([peer_hello("PUB"), [&[LONG][..], &len].concat()].concat()).await.unwrap();
    assert!(matches!(connection.recv().await, Err(ZmtpError::Closed)));
    assert!(connection.input.capacity() <= 4 * READ_BYTES);
}

#[tokio::test]
async fn a_message_without_end_is_cut_short() {
    let mut said = peer_hello("PUB");
    said.extend([[MORE, 0]; 40].concat());
    let mut connection = told(said).await.unwrap();
    assert!(matches!(connection.recv().await, Err(ZmtpError::TooLarge)));
}

proptest! {
    /// Whatever a peer sends, opening and reading end in messages or an error.
    #[test]
    fn garbage_is_survived(
        garbage in prop::collection::vec(any::<u8>(), 0..300),
        is_ready in any::<bool>(),
        cut in 0..100_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut said = if is_ready { peer_hello("PUB") } else { Vec::new() };
            said.truncate(if garbage.len() % 3 == 0 { cut } else { usize::MAX });
            said.extend(garbage);
            let ended = timeout(Duration::from_secs(10), async {
                if let Ok(mut connection) = told(said).await {
                    while connection.recv().await.is_ok() {}
                }
            });
            prop_assert!(ended.await.is_ok());
            Ok(())
        })?;
    }
}
