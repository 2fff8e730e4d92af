//! The body of a relayed answer: bytes pass as they come, and a stream that breaks ends in a way clients understand.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::error::Failure;
use crate::fleet::Flight;
use crate::server::Worker;
use crate::upstream::Connection;

/// Bytes of one event that are held back until it is complete; a longer one passes in parts.
const HELD_BYTES_MAX: usize = 64 << 10;

/// A body that the gateway sends.
pub(crate) enum AnswerBody {
    /// Its own words.
    Own(Option<Bytes>),
    /// An instance's.
    Relay(Box<Relay>),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Relay(relay) => relay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Relay(relay) => relay.is_over(),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Own(bytes) => {
                http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            // The instance's Content-Length, if it gave one, passes in the head.
            Self::Relay(_) => http_body::SizeHint::default(),
        }
    }
}

/// An instance's answer on its way to the client.
///
/// Dropping it (the client left) closes the connection, which cancels the request at the instance, and ends its booking.
pub(crate) struct Relay {
    first: Option<Frame<Bytes>>,
    /// `None` when the answer is over.
    exchange: Option<Exchange>,
    events: Option<EventStream>,
}

struct Exchange {
    worker: Rc<Worker>,
    flight: Flight,
    connection: Connection,
    incoming: Incoming,
    stall: Duration,
    stall_check: Pin<Box<Sleep>>,
    heard: Instant,
    /// What came after the bytes that were handed on last.
    next: Option<Heard>,
}

/// What an exchange came to.
enum Heard {
    Bytes(Bytes),
    Trailers(Frame<Bytes>),
    End,
    Broken(Failure),
}

impl Relay {
    /// `first` is what has been read of the body; `None` if it is over.
    pub(crate) fn new(
        worker: Rc<Worker>,
        mut flight: Flight,
        connection: Connection,
        incoming: Incoming,
        first: Option<Frame<Bytes>>,
        is_event_stream: bool,
        stall: Duration,
    ) -> Self {
        let mut events = is_event_stream.then(EventStream::default);
        let heard = Instant::now();
        let is_over = first.is_none() || incoming.is_end_stream();
        let first = first.and_then(|first| {
            flight.first_bytes(heard);
            match (first.into_data(), &mut events) {
                (Ok(bytes), Some(events)) => events.pass(bytes).map(Frame::data),
                (Ok(bytes), None) => Some(Frame::data(bytes)),
                (Err(trailers), _) => Some(trailers),
            }
        });
        let stall_check = Box::pin(tokio::time::sleep(stall));
        let next = None;
        let exchange =
            Exchange { worker, flight, connection, incoming, stall, stall_check, heard, next };
        let mut relay = Self { first, exchange: Some(exchange), events };
        if is_over {
            relay.complete();
        }
        relay
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        while let Some(exchange) = &mut self.exchange {
            match ready!(exchange.poll(cx)) {
                Heard::Bytes(bytes) => {
                    let is_over = matches!(exchange.next, Some(Heard::End));
                    let ready = match &mut self.events {
                        Some(events) => events.pass(bytes),
                        None => Some(bytes),
                    };
                    if is_over {
                        self.complete();
                    }
                    if let Some(bytes) = ready {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
                Heard::Trailers(frame) => return Poll::Ready(Some(Ok(frame))),
                Heard::End => self.complete(),
                Heard::Broken(failure) => return Poll::Ready(self.break_off(failure)),
            }
        }
        Poll::Ready(
            self.events.take().and_then(EventStream::rest).map(|rest| Ok(Frame::data(rest))),
        )
    }

    fn is_over(&self) -> bool {
        let is_held = self.events.as_ref().is_some_and(|events| !events.held.is_empty());
        self.exchange.is_none() && self.first.is_none() && !is_held
    }

    /// The answer is all there. With a known length that is so at its last byte: nobody asks for more after that.
    fn complete(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            let Exchange { worker, mut flight, connection, .. } = exchange;
            flight.answered();
            worker.keep(flight.instance.id, connection);
        }
    }

    /// The answer cannot go on: a stream gets a last event that says so, another answer is cut.
    fn break_off(&mut self, failure: Failure) -> Option<Result<Frame<Bytes>, Failure>> {
        let mut exchange = self.exchange.take()?;
        let events = self.events.take();
        if events.as_ref().is_some_and(|events| events.is_done) {
            exchange.flight.answered();
            return None;
        }
        exchange.flight.failed();
        exchange.flight.span.failed(&failure);
        exchange.worker.fleet.metrics.error(&failure);
        tracing::warn!(%failure, kind = failure.kind(), "answer broken off");
        Some(match events {
            // What is held back is part of an event: the client never sees it.
            Some(_) => Ok(Frame::data(failure.sse_events())),
            None => Err(failure),
        })
    }
}

impl Exchange {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        if let Some(next) = self.next.take() {
            return Poll::Ready(next);
        }
        let mut batch = Batch::default();
        while !batch.is_full() && self.next.is_none() {
            let Poll::Ready(frame) = self.connection.poll_frame(cx, &mut self.incoming) else {
                break;
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(bytes))) => {
                    batch.push(bytes);
                    if self.incoming.is_end_stream() {
                        self.next = Some(Heard::End);
                    }
                }
                Some(Ok(Err(trailers))) => self.next = Some(Heard::Trailers(trailers)),
                None => self.next = Some(Heard::End),
                Some(Err(error)) => {
                    tracing::debug!(%error, "answer cut");
                    let instance = self.flight.instance.name.clone();
                    self.next = Some(Heard::Broken(Failure::AnswerCut { instance }));
                }
            }
        }
        if let Some(bytes) = batch.into_bytes() {
            let now = Instant::now();
            let gap = now.saturating_duration_since(self.heard);
            self.heard = now;
            self.flight.next_bytes(now, gap.as_secs_f64());
            return Poll::Ready(Heard::Bytes(bytes));
        }
        match self.next.take() {
            Some(next) => Poll::Ready(next),
            None => self.poll_stalled(cx).map(Heard::Broken),
        }
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        // One timer for many frames: it looks at the clock only when it fires.
        while self.stall_check.as_mut().poll(cx).is_ready() {
            let deadline = self.heard + self.stall;
            if deadline <= Instant::now() {
                let instance = self.flight.instance.name.clone();
                return Poll::Ready(Failure::AnswerStalled { instance });
            }
            self.stall_check.as_mut().reset(deadline.into());
        }
        Poll::Pending
    }
}

/// Data that came at once, put together: hyper hands over an instance's chunks one by one, and each would be framed
/// and written by itself.
#[derive(Default)]
struct Batch {
    first: Option<Bytes>,
    /// `first` and what came after it, if anything did.
    joined: BytesMut,
}

impl Batch {
    /// What is set aside for a batch.
    const CAPACITY_BYTES: usize = 8 << 10;
    /// A batch of this size is closed, with room left for a usual event; a chunk of this size passes without a copy.
    const FULL_BYTES: usize = 7 << 10;

    fn push(&mut self, bytes: Bytes) {
        match &self.first {
            None => self.first = Some(bytes),
            Some(first) => {
                if self.joined.is_empty() {
                    self.joined.reserve(Self::CAPACITY_BYTES);
                    self.joined.extend_from_slice(first);
                }
                self.joined.extend_from_slice(&bytes);
            }
        }
    }

    fn is_full(&self) -> bool {
        let len = self.joined.len().max(self.first.as_ref().map_or(0, Bytes::len));
        len >= Self::FULL_BYTES
    }

    fn into_bytes(self) -> Option<Bytes> {
        if self.joined.is_empty() { self.first } else { Some(self.joined.freeze()) }
    }
}

/// Follows a server-sent event stream just enough to end it between two events.
#[derive(Default)]
struct EventStream {
    /// The start of an event whose end has not come.
    held: BytesMut,
    /// Whether the last event was `[DONE]`.
    is_done: bool,
}

impl EventStream {
    /// The bytes that may pass: all up to the end of the last complete event.
    fn pass(&mut self, mut bytes: Bytes) -> Option<Bytes> {
        if !self.held.is_empty() {
            self.held.extend_from_slice(&bytes);
            bytes = self.held.split().freeze();
        }
        let end = match events_end(&bytes) {
            Some(end) => end,
            None if bytes.len() > HELD_BYTES_MAX => bytes.len(),
            None => 0,
        };
        self.held.extend_from_slice(&bytes[end..]);
        bytes.truncate(end);
        self.is_done |= bytes.trim_ascii_end().ends_with(b"data: [DONE]");
        (!bytes.is_empty()).then_some(bytes)
    }

    /// What is left when the instance ends the stream itself.
    fn rest(self) -> Option<Bytes> {
        (!self.held.is_empty()).then(|| self.held.freeze())
    }
}

/// Where the last complete event ends: after a blank line.
fn events_end(bytes: &[u8]) -> Option<usize> {
    (1..bytes.len()).rev().find_map(|at| {
        let is_blank = bytes[..at].ends_with(b"\n") || bytes[..at].ends_with(b"\n\r");
        (bytes[at] == b'\n' && is_blank).then_some(at + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_events_pass() {
        let mut events = EventStream::default();
        let mut pass = |bytes: &'static str| {
            events.pass(Bytes::from_static(bytes.as_bytes())).map(|b| b.to_vec())
        };
        assert_eq!(pass("data: 1\n\n"), Some(b"data: 1\n\n".to_vec()));
        assert_eq!(pass("data: 2\n\ndata: "), Some(b"data: 2\n\n".to_vec()));
        assert_eq!(pass("3\n"), None);
        assert_eq!(pass("\n"), Some(b"data: 3\n\n".to_vec()));
        assert_eq!(pass("data: 4\r\n\r\nda"), Some(b"data: 4\r\n\r\n".to_vec()));
        assert_eq!(pass("ta: [DONE]\n\n"), Some(b"data: [DONE]\n\n".to_vec()));
        assert!(events.is_done);
        assert_eq!(events.rest(), None);
    }

    #[test]
    fn an_endless_event_is_not_held_for_ever() {
        let mut events = EventStream::default();
        let long = Bytes::from(vec![b'x'; HELD_BYTES_MAX + 1]);
        assert_eq!(events.pass(long.clone()), Some(long));
    }
}
