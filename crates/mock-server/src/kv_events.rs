//! vLLM's KV-event publisher (R67-R73): an engine's cache events on a PUB socket, the last of them again on a ROUTER.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kvroute_engine::CacheEvent;
use kvroute_types::{BlockKey, BlockSize, mix64};
use kvroute_vllm_wire::{
    BlockDigest, BlockHasher, BlockRemoved, BlockStored, EventBatch, EventExtraKey, ExternalHash,
    ExtraKeys, HashAlgo, KvEvent, ReplayForm, medium, none_hash, parse_replay_request,
    publish_frames, replay_batch_frames, replay_end_frames,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use crate::answer::unit;
use crate::block_keys::BlockKeys;
use crate::faults::Faults;
use crate::instance::unix_time_s;

/// vLLM's default, and the capacity of the PUB socket's queues here.
const HWM: u32 = 100_000;
/// Batches that may wait for the publisher, vLLM's default.
const MAX_QUEUE_SIZE: u32 = 100_000;
/// Longest wait for a replay's reader to take one more batch.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of the publishers, one per instance (vLLM's `--kv-events-config`, R67).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvEventsConfig {
    /// Port of the first instance's PUB socket; the other instances' follow, then the ROUTER sockets in the same
    /// order. 0: each gets a free one.
    pub port: u16,
    /// First frame of each message.
    pub topic: String,
    /// vLLM's `--prefix-caching-hash-algo`: which hashes name the blocks.
    pub hash_algo: HashAlgo,
    /// The servers' `PYTHONHASHSEED`, from which hashes begin; `None` if it is not set.
    pub pythonhashseed: Option<String>,
    /// vLLM's `VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES`: hashes as numbers of 64 bits, not as all their bytes.
    pub int_block_hashes: bool,
    /// Batches kept for replay.
    pub buffer_steps: usize,
}

impl Default for KvEventsConfig {
    /// vLLM's, at free ports.
    fn default() -> Self {
        Self {
            port: 0,
            topic: String::new(),
            hash_algo: HashAlgo::default(),
            pythonhashseed: None,
            int_block_hashes: true,
            buffer_steps: 10_000,
        }
    }
}

impl KvEventsConfig {
    /// A hasher for the engine's blocks.
    pub(crate) fn hasher(&self, block_size: BlockSize) -> BlockHasher {
        let block_size = NonZeroUsize::try_from(block_size.get() as usize).ok();
        let block_size = block_size.expect("a block size is at least 1");
        let root = none_hash(self.hash_algo, self.pythonhashseed.as_deref());
        BlockHasher::new(self.hash_algo, root, block_size, ExtraKeys::default())
    }
}

/// Where an instance publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvEventsAddress {
    /// The PUB socket.
    pub events: SocketAddr,
    /// The ROUTER socket for replays.
    pub replay: SocketAddr,
}

/// The answer of `GET /kv_event_sources` for one data-parallel rank, in vLLM's order.
#[derive(Debug, Serialize)]
struct Source<'a> {
    enable_kv_cache_events: bool,
    publisher: &'static str,
    endpoint: String,
    replay_endpoint: String,
    buffer_steps: usize,
    hwm: u32,
    max_queue_size: u32,
    topic: &'a str,
}

/// A batch by its number.
type Numbered = (u64, Bytes);
type Buffer = Arc<Mutex<VecDeque<Numbered>>>;

/// Which batches get lost, and how.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// Fractions, as bits.
    untold: AtomicU64,
    dropped: AtomicU64,
}

impl Losses {
    pub(crate) fn set(&self, faults: &Faults) {
        self.untold.store(faults.kv_events_untold.to_bits(), Ordering::Relaxed);
        self.dropped.store(faults.kv_events_dropped.to_bits(), Ordering::Relaxed);
    }

    fn draw(fraction: &AtomicU64, order: u64) -> bool {
        unit(mix64(order)) < f64::from_bits(fraction.load(Ordering::Relaxed))
    }
}

/// A batch on its way out.
#[derive(Debug)]
struct Outgoing {
    seq: u64,
    payload: Bytes,
    is_dropped: bool,
}

/// The sockets of one instance, served by two tasks until this is dropped.
#[derive(Debug)]
pub(crate) struct PublisherTasks {
    pub(crate) address: KvEventsAddress,
    /// The body of `GET /kv_event_sources`.
    pub(crate) sources: String,
    pub(crate) losses: Arc<Losses>,
    tasks: [JoinHandle<()>; 2],
}

impl PublisherTasks {
    /// Closes the sockets, as when the engine's process dies.
    pub(crate) fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for PublisherTasks {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An engine's end of its publisher.
#[derive(Debug)]
pub(crate) struct Publisher {
    batches: mpsc::Sender<Outgoing>,
    /// Number of the next batch.
    next: u64,
    /// Batches so far, with a number or without.
    made: u64,
    losses: Arc<Losses>,
    int_block_hashes: bool,
}

/// Binds the sockets of an instance and begins to serve them.
///
/// # Errors
/// The address that cannot be bound, and why.
pub(crate) async fn start(
    config: &KvEventsConfig,
    events: SocketAddr,
    replay: SocketAddr,
) -> Result<(Publisher, PublisherTasks), (SocketAddr, io::Error)> {
    let (mut publisher, mut router) = (PubSocket::new(), RouterSocket::new());
    let events = bind(&mut publisher, events).await.map_err(|error| (events, error))?;
    let replay = bind(&mut router, replay).await.map_err(|error| (replay, error))?;
    let buffer = Buffer::default();
    let (batches, queue) = mpsc::channel(MAX_QUEUE_SIZE as usize);
    let tasks = [
        tokio::spawn(publish(publisher, queue, Arc::clone(&buffer), config.clone())),
        tokio::spawn(serve_replays(router, buffer, config.topic.clone())),
    ];
    let source = Source {
        enable_kv_cache_events: true,
        publisher: "zmq",
        endpoint: format!("tcp://*:{}", events.port()),
        replay_endpoint: format!("tcp://*:{}", replay.port()),
        buffer_steps: config.buffer_steps,
        hwm: HWM,
        max_queue_size: MAX_QUEUE_SIZE,
        topic: &config.topic,
    };
    let sources = format!(r#"{{"0":{}}}"#, crate::reply::json(&source));
    let losses = Arc::<Losses>::default();
    let publisher = Publisher {
        batches,
        next: 0,
        made: 0,
        losses: Arc::clone(&losses),
        int_block_hashes: config.int_block_hashes,
    };
    let address = KvEventsAddress { events, replay };
    Ok((publisher, PublisherTasks { address, sources, losses, tasks }))
}

async fn bind(socket: &mut impl Socket, address: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    socket.bind_listener(listener).await.map_err(io::Error::other)?;
    Ok(address)
}

impl Publisher {
    /// Publishes what one step changed; `keys` must not have taken the changes in yet.
    pub(crate) fn publish(&mut self, events: &[CacheEvent], keys: &BlockKeys) {
        self.made += 1;
        if Losses::draw(&self.losses.untold, 2 * self.made) {
            return;
        }
        let wire = events.iter().map(|event| match event {
            CacheEvent::Stored { keys: stored, parent } => {
                KvEvent::BlockStored(self.stored(stored, *parent, keys))
            }
            CacheEvent::Removed { key } => KvEvent::BlockRemoved(BlockRemoved {
                block_hashes: vec![self.hash(*key, keys)],
                medium: Some(medium::GPU.to_owned()),
                group_idx: Some(0),
                ..BlockRemoved::default()
            }),
            CacheEvent::Cleared => KvEvent::AllBlocksCleared,
        });
        let events = wire.collect();
        let batch = EventBatch { ts: unix_time_s(), events, data_parallel_rank: Some(0) };
        let mut payload = Vec::new();
        batch.encode(&mut payload);
        // A batch that finds the queue full is a gap in the numbers, as on a PUB socket.
        let is_dropped = Losses::draw(&self.losses.dropped, 2 * self.made + 1);
        let batch = Outgoing { seq: self.next, payload: payload.into(), is_dropped };
        match self.batches.try_send(batch) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => tracing::warn!("a KV-event batch is lost"),
            // The engine is dead.
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
        self.next += 1;
    }

    fn stored(
        &self,
        stored: &[BlockKey],
        parent: Option<BlockKey>,
        keys: &BlockKeys,
    ) -> BlockStored {
        let blocks = || stored.iter().map(|&key| keys.block(key));
        let salt = |salt: &str| vec![EventExtraKey::Text(salt.to_owned())];
        let token_ids: Vec<u32> = blocks().flat_map(|block| block.tokens).copied().collect();
        BlockStored {
            block_hashes: stored.iter().map(|&key| self.hash(key, keys)).collect(),
            parent_block_hash: parent.map(|key| self.hash(key, keys)),
            block_size: u32::try_from(token_ids.len() / stored.len().max(1)).unwrap_or(u32::MAX),
            token_ids,
            medium: Some(medium::GPU.to_owned()),
            extra_keys: Some(blocks().map(|block| block.salt.map(salt)).collect()),
            group_idx: Some(0),
            kv_cache_spec_kind: Some("full_attention".to_owned()),
            ..BlockStored::default()
        }
    }

    fn hash(&self, key: BlockKey, keys: &BlockKeys) -> ExternalHash {
        let digest: BlockDigest =
            keys.block(key).digest.expect("a publishing engine hashes its blocks");
        if self.int_block_hashes { digest.external_u64().into() } else { digest.into() }
    }
}

/// Sends each batch to whoever listens, and keeps it.
async fn publish(
    mut socket: PubSocket,
    mut queue: mpsc::Receiver<Outgoing>,
    buffer: Buffer,
    config: KvEventsConfig,
) {
    while let Some(Outgoing { seq, payload, is_dropped }) = queue.recv().await {
        let message = message(publish_frames(&config.topic, seq, &payload));
        {
            let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
            buffer.push_back((seq, payload));
            if buffer.len() > config.buffer_steps {
                buffer.pop_front();
            }
        }
        if is_dropped {
            continue;
        }
        if let Err(error) = socket.send(message).await {
            tracing::warn!(%error, "cannot publish a KV-event batch");
        }
    }
}

/// Answers each request with the batches that are still there, one request after the other.
async fn serve_replays(mut socket: RouterSocket, buffer: Buffer, topic: String) {
    loop {
        let request = match socket.recv().await {
            Ok(request) => request.into_vec(),
            Err(error) => {
                tracing::debug!(%error, "no replay request");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Some((client, frames)) = request.split_first() else { continue };
        // R72: vLLM ignores anything else too.
        let Ok(start) = parse_replay_request(frames) else { continue };
        let batches: Vec<Numbered> = {
            let buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
            buffer.iter().filter(|(seq, _)| *seq >= start).cloned().collect()
        };
        let form = ReplayForm::WithTopic(&topic);
        let replies = batches.iter().map(|(seq, payload)| replay_batch_frames(form, *seq, payload));
        for reply in replies.chain([replay_end_frames(form)]) {
            let mut reply = message(reply);
            reply.push_front(client.clone());
            let sent = tokio::time::timeout(REPLAY_TIMEOUT, socket.send(reply)).await;
            if !matches!(sent, Ok(Ok(()))) {
                tracing::debug!("a replay's reader went away");
                break;
            }
        }
    }
}

fn message<F: AsRef<[u8]>>(frames: impl IntoIterator<Item = F>) -> ZmqMessage {
    let frames = frames.into_iter().map(|frame| Bytes::copy_from_slice(frame.as_ref()));
    let frames: Vec<Bytes> = frames.collect();
    ZmqMessage::try_from(frames).expect("a message has frames")
}
