//! Connections to instances, read and written by the task of the request that uses them.
//!
//! hyper's client hands over an answer chunk by chunk through a channel, and each would be framed and written by itself.
//! Here one read of the socket is one piece of the answer. Nothing is kept of it: the bytes are read into memory that the
//! thread's connections share, so a connection that waits, or whose client reads slowly, holds none. Dropping a connection
//! in mid-answer closes it, which is how an engine learns that the client has gone.

mod answer;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::response::Parts as AnswerHead;
use http::{HeaderMap, Method, StatusCode};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};

use kvroute_types::InstanceId;

use crate::instance::Target;
use answer::{Decoder, HeadReader};

/// Most bytes of an answer that are taken at once, and so most that a slow reader makes the gateway hold: fifty to a
/// hundred events of a stream.
const READ_BYTES: usize = 16 << 10;

/// What the kernel may take of an answer ahead of the gateway, so that a slow reader slows the engine's stream down. The
/// kernel doubles it for its own book-keeping; by itself it would let it grow to many megabytes.
const RECEIVE_BUFFER_BYTES: u32 = 128 << 10;

thread_local! {
    /// Where all connections of a thread read.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// What is sent to an instance.
pub(crate) struct Outgoing<'a> {
    pub(crate) method: &'a Method,
    /// Path and query.
    pub(crate) path: &'a str,
    /// End-to-end fields.
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a Bytes,
}

/// One connection to an instance, carrying at most one exchange at a time.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Since when it is unused; `None` if it never carried an exchange.
    idle_since: Option<Instant>,
    decoder: Decoder,
    /// Bytes of the body that came with the head.
    ahead: Bytes,
    /// Whether the instance keeps the connection open after the answer.
    is_kept: bool,
    /// Whether anything of an answer to the latest request has come.
    has_begun: bool,
}

impl Connection {
    pub(crate) async fn open(target: &Target) -> io::Result<Self> {
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for addr in lookup_host(&*target.authority).await? {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
            match socket.connect(addr).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Self {
                        stream,
                        idle_since: None,
                        decoder: Decoder::over(),
                        ahead: Bytes::new(),
                        is_kept: true,
                        has_begun: false,
                    });
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Whether a failure can be that of a connection which the instance closed while it lay unused, so that the instance
    /// has not seen the request.
    pub(crate) fn may_be_stale(&self) -> bool {
        self.idle_since.is_some() && !self.has_begun
    }

    /// Whether the answer's body is complete.
    pub(crate) fn is_over(&self) -> bool {
        self.decoder.is_over()
    }

    /// Sends the request and waits for the answer's head.
    pub(crate) async fn send(
        &mut self,
        outgoing: &Outgoing<'_>,
        target: &Target,
    ) -> io::Result<AnswerHead> {
        self.has_begun = false;
        self.is_kept = false;
        let head = answer::request_head(outgoing, target);
        let mut unsent = Unsent { head: &head, body: outgoing.body };
        let mut reader = HeadReader::default();
        // An instance may answer before it has read everything; that answer counts.
        let answer = poll_fn(|cx| {
            let sent = self.poll_write(cx, &mut unsent);
            match self.poll_head(cx, &mut reader) {
                Poll::Pending => match sent {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Pending,
                },
                ready @ Poll::Ready(_) => ready,
            }
        })
        .await?;
        let framing = answer.framing(outgoing.method)?;
        self.decoder = framing.decoder;
        self.is_kept = framing.is_kept && unsent.is_empty();
        self.ahead = answer.rest;
        Ok(answer.head)
    }

    fn poll_write(&self, cx: &mut Context<'_>, unsent: &mut Unsent<'_>) -> Poll<io::Result<()>> {
        while !unsent.is_empty() {
            // `TcpStream` can be written through a shared reference, and read meanwhile.
            ready!(self.stream.poll_write_ready(cx))?;
            let slices = [IoSlice::new(unsent.head), IoSlice::new(unsent.body)];
            match self.stream.try_write_vectored(&slices) {
                Ok(count) => unsent.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut HeadReader,
    ) -> Poll<io::Result<answer::Head>> {
        loop {
            let read = self.poll_read(cx, |bytes| {
                let head = if bytes.is_empty() { Err(closed()) } else { reader.read(bytes) };
                (head, !bytes.is_empty())
            });
            let (answer, has_begun) = ready!(read)?;
            self.has_begun |= has_begun;
            let answer = answer?;
            if let Some(answer) = answer {
                return Poll::Ready(Ok(answer));
            }
        }
    }

    /// The next bytes of the answer's body; `None` at its end.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if self.decoder.is_over() {
                return Poll::Ready(None);
            }
            let decoded = if self.ahead.is_empty() {
                let mut decoder = std::mem::replace(&mut self.decoder, Decoder::over());
                let read = self.poll_read(cx, |bytes| decoder.decode(bytes));
                self.decoder = decoder;
                ready!(read).flatten()
            } else {
                let ahead = std::mem::take(&mut self.ahead);
                self.decoder.decode(&ahead)
            };
            match decoded {
                Ok(bytes) if bytes.is_empty() => {}
                decoded => return Poll::Ready(Some(decoded)),
            }
        }
    }

    /// Reads once and hands over what came: nothing at the end.
    fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(take(buffer.filled())))
        })
    }

    /// Whether it can carry an exchange, as far as can be told without waiting.
    fn is_ready(&mut self) -> bool {
        // Neither the end of the connection nor unasked bytes may have come.
        let mut cx = Context::from_waker(Waker::noop());
        self.is_kept && self.decoder.is_fit() && self.poll_read(&mut cx, |_| ()).is_pending()
    }
}

/// What is left to be sent.
struct Unsent<'a> {
    head: &'a [u8],
    body: &'a [u8],
}

impl Unsent<'_> {
    fn is_empty(&self) -> bool {
        self.head.is_empty() && self.body.is_empty()
    }

    fn advance(&mut self, count: usize) {
        let of_head = count.min(self.head.len());
        self.head = &self.head[of_head..];
        self.body = &self.body[count - of_head..];
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the instance closed the connection")
}

/// Unused connections of one thread, per instance; the latest used goes first.
#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<BTreeMap<InstanceId, Vec<Connection>>>,
}

impl Pool {
    /// An unused connection that has not been closed and is younger than `idle_max`.
    pub(crate) fn take(&self, instance: InstanceId, idle_max: Duration) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&instance)?;
        while let Some(mut connection) = connections.pop() {
            let is_young = connection.idle_since.is_some_and(|since| since.elapsed() < idle_max);
            if is_young && connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose exchange is over, if it can be used again.
    pub(crate) fn put(&self, instance: InstanceId, mut connection: Connection, count_max: usize) {
        if !connection.is_ready() {
            return;
        }
        connection.idle_since = Some(Instant::now());
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(instance).or_default();
        if connections.len() < count_max {
            connections.push(connection);
        }
    }

    /// Closes what has been unused for too long.
    pub(crate) fn sweep(&self, idle_max: Duration) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|connection| {
                connection.idle_since.is_some_and(|since| since.elapsed() < idle_max)
            });
            !connections.is_empty()
        });
    }
}

/// Asks an instance on a connection of its own, for probes and metrics.
///
/// # Errors
/// If there is no connection, or no whole answer of at most `body_max` bytes.
pub(crate) async fn get(
    target: &Target,
    path: &str,
    mut headers: HeaderMap,
    body_max: usize,
) -> io::Result<(StatusCode, Bytes)> {
    let host = target.authority.parse().map_err(io::Error::other)?;
    headers.insert(http::header::HOST, host);
    let outgoing = Outgoing { method: &Method::GET, path, headers: &headers, body: &Bytes::new() };
    call(target, &outgoing, body_max).await
}

/// Sends one request on a connection of its own.
///
/// # Errors
/// If there is no connection, or no whole answer of at most `body_max` bytes.
pub(crate) async fn call(
    target: &Target,
    outgoing: &Outgoing<'_>,
    body_max: usize,
) -> io::Result<(StatusCode, Bytes)> {
    let mut connection = Connection::open(target).await?;
    let head = connection.send(outgoing, target).await?;
    let mut body = Vec::new();
    while let Some(bytes) = poll_fn(|cx| connection.poll_data(cx)).await {
        let bytes = bytes?;
        if body.len() + bytes.len() > body_max {
            return Err(io::Error::other(format!("the answer is over {body_max} bytes")));
        }
        body.extend_from_slice(&bytes);
    }
    Ok((head.status, body.into()))
}
