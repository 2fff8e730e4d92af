//! A TCP proxy that understands ZMTP as far as to drop whole messages of the server, and that cuts connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    dropped: Arc<AtomicU64>,
    cut: broadcast::Sender<()>,
}

impl Proxy {
    /// In front of a `tcp://` endpoint; drops about `percent` of the messages, the same ones each time.
    pub(crate) async fn start(target: &str, percent: u64) -> Self {
        let target = target.strip_prefix("tcp://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let dropped = Arc::new(AtomicU64::new(0));
        let (cut, _) = broadcast::channel(1);
        let (counter, cuts) = (Arc::clone(&dropped), cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&target).await else { continue };
                let (mut cut, counter) = (cuts.subscribe(), Arc::clone(&counter));
                tokio::spawn(async move {
                    tokio::select! {
                        () = relay(client, server, percent, &counter) => {}
                        _ = cut.recv() => {}
                    }
                });
            }
        });
        Self { endpoint, dropped, cut }
    }

    /// Messages dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        let _ = self.cut.send(());
    }
}

async fn relay(client: TcpStream, server: TcpStream, percent: u64, dropped: &AtomicU64) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(|_| ()) };
    let down = async {
        let mut greeting = [0; 64];
        from_server.read_exact(&mut greeting).await?;
        to_client.write_all(&greeting).await?;
        let mut random = 1_u64;
        loop {
            let (message, is_command) = read_message(&mut from_server).await?;
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if !is_command && (random >> 33) % 100 < percent {
                dropped.fetch_add(1, Ordering::Relaxed);
            } else {
                to_client.write_all(&message).await?;
            }
        }
    };
    // Either side may end it.
    tokio::select! {
        _ = up => {}
        result = down => {
            let _: std::io::Result<()> = result;
        }
    }
}

/// All frames of a message, or of a command, as bytes.
async fn read_message(
    stream: &mut (impl AsyncReadExt + Unpin),
) -> std::io::Result<(Vec<u8>, bool)> {
    let mut message = Vec::new();
    loop {
        let flags = stream.read_u8().await?;
        message.push(flags);
        let len = if flags & 2 == 0 {
            u64::from(stream.read_u8().await?)
        } else {
            stream.read_u64().await?
        };
        if flags & 2 == 0 {
            message.push(u8::try_from(len).unwrap());
        } else {
            message.extend_from_slice(&len.to_be_bytes());
        }
        let start = message.len();
        message.resize(start + usize::try_from(len).unwrap(), 0);
        stream.read_exact(&mut message[start..]).await?;
        if flags & 1 == 0 {
            return Ok((message, flags & 4 != 0));
        }
    }
}
