//! Connections to instances, polled by the task of the request that uses them.
//!
//! hyper's client half is driven from where the answer is read, not from a task of its own: no hand-over per chunk,
//! back-pressure without a queue, and dropping the answer closes the connection, which is how an engine learns that the
//! client has gone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kvroute_types::InstanceId;
use tokio::net::TcpStream;

use crate::instance::Target;

/// Most bytes of an answer that are read ahead of the client, and of its head. Held by every slow reader, so small: a
/// hundred events of a stream.
const READ_AHEAD_BYTES: usize = 16 << 10;

type Driver = http1::Connection<TokioIo<TcpStream>, Full<Bytes>>;

/// One connection to an instance, carrying at most one exchange at a time.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once the connection has closed.
    driver: Option<Driver>,
    /// Since when it is unused; `None` if it never carried an exchange.
    idle_since: Option<Instant>,
}

impl Connection {
    pub(crate) async fn open(target: &Target) -> io::Result<Self> {
        let stream = TcpStream::connect(&*target.authority).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(READ_AHEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        Ok(Self { sender, driver: Some(driver), idle_since: None })
    }

    /// Whether it was used before, so that the instance may have closed it in the meantime.
    pub(crate) fn is_reused(&self) -> bool {
        self.idle_since.is_some()
    }

    /// Sends the request and waits for the answer's head.
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        let mut answer = pin!(self.sender.send_request(request));
        std::future::poll_fn(|cx| {
            if let ready @ Poll::Ready(_) = answer.as_mut().poll(cx) {
                return ready;
            }
            drive(&mut self.driver, cx);
            answer.as_mut().poll(cx)
        })
        .await
    }

    /// The next frame of the answer.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Incoming,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        if let ready @ Poll::Ready(_) = Pin::new(&mut *body).poll_frame(cx) {
            return ready;
        }
        drive(&mut self.driver, cx);
        Pin::new(body).poll_frame(cx)
    }

    /// Whether it can carry an exchange, as far as can be told without waiting.
    fn is_ready(&mut self) -> bool {
        drive(&mut self.driver, &mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}

fn drive(driver: &mut Option<Driver>, cx: &mut Context<'_>) {
    if driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(cx).is_ready()) {
        *driver = None;
    }
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
    headers: HeaderMap,
    body_max: usize,
) -> io::Result<(StatusCode, Bytes)> {
    let mut request = Request::new(Full::default());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = path.parse().map_err(io::Error::other)?;
    *request.headers_mut() = headers;
    call(target, request, body_max).await
}

/// Sends one request on a connection of its own.
///
/// # Errors
/// If there is no connection, or no whole answer of at most `body_max` bytes.
pub(crate) async fn call(
    target: &Target,
    mut request: Request<Full<Bytes>>,
    body_max: usize,
) -> io::Result<(StatusCode, Bytes)> {
    let mut connection = Connection::open(target).await?;
    let host = target.authority.parse().map_err(io::Error::other)?;
    request.headers_mut().insert(http::header::HOST, host);
    let (head, body) = connection.send(request).await.map_err(io::Error::other)?.into_parts();
    let body = Inline { connection, body };
    let body = Limited::new(body, body_max).collect().await.map_err(io::Error::other)?;
    Ok((head.status, body.to_bytes()))
}

/// An answer's body with the connection that brings it.
struct Inline {
    connection: Connection,
    body: Incoming,
}

impl Body for Inline {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Self { connection, body } = self.get_mut();
        connection.poll_frame(cx, body)
    }
}
