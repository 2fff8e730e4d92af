//! The body of a relayed answer: bytes pass as they come, and a stream that breaks ends in a way clients understand.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::time::Sleep;

use crate::client::Outbox;
use crate::error::Failure;
use crate::fleet::Flight;
use crate::server::Worker;
use crate::upstream::Connection;
use crate::usage::UsageReader;

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
            Self::Relay(relay) => {
                relay.poll_data(cx).map(|data| data.map(|it| it.map(Frame::data)))
            }
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
    first: Option<Bytes>,
    /// `None` when the answer is over.
    exchange: Option<Exchange>,
    events: Option<EventStream>,
    usage: UsageReader,
}

struct Exchange {
    worker: Rc<Worker>,
    outbox: Rc<Outbox>,
    flight: Flight,
    connection: Connection,
    stall: Duration,
    stall_check: Pin<Box<Sleep>>,
    heard: Instant,
}

impl Relay {
    /// `first` is what has been read of the body; `None` if it is over.
    pub(crate) fn new(
        worker: Rc<Worker>,
        outbox: Rc<Outbox>,
        mut flight: Flight,
        connection: Connection,
        first: Option<Bytes>,
        is_event_stream: bool,
        stall: Duration,
    ) -> Self {
        let mut events = is_event_stream.then(EventStream::default);
        let heard = Instant::now();
        let is_over = first.is_none() || connection.is_over();
        let mut usage = UsageReader::default();
        let first = first.and_then(|first| {
            flight.first_bytes(heard);
            usage.read(&first);
            pass(&mut events, first)
        });
        let stall_check = Box::pin(tokio::time::sleep(stall));
        outbox.put(first.as_ref().map_or(0, Bytes::len));
        let exchange = Exchange { worker, outbox, flight, connection, stall, stall_check, heard };
        let mut relay = Self { first, exchange: Some(exchange), events, usage };
        if is_over {
            relay.complete();
        }
        relay
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        while let Some(exchange) = &mut self.exchange {
            match ready!(exchange.poll(cx)) {
                Some(Ok(bytes)) => {
                    self.usage.read(&bytes);
                    let is_over = exchange.connection.is_over();
                    let ready = pass(&mut self.events, bytes);
                    exchange.outbox.put(ready.as_ref().map_or(0, Bytes::len));
                    if is_over {
                        self.complete();
                    }
                    if let Some(bytes) = ready {
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                }
                Some(Err(failure)) => return Poll::Ready(self.break_off(failure)),
                None => self.complete(),
            }
        }
        Poll::Ready(self.events.take().and_then(EventStream::rest).map(Ok))
    }

    fn is_over(&self) -> bool {
        let is_held = self.events.as_ref().is_some_and(|events| !events.held.is_empty());
        self.exchange.is_none() && self.first.is_none() && !is_held
    }

    /// The answer is all there. With a known length that is so at its last byte: nobody asks for more after that.
    fn complete(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            let Exchange { worker, mut flight, connection, .. } = exchange;
            flight.reported(self.usage.reported());
            flight.answered();
            worker.keep(flight.instance.id, connection);
        }
    }

    /// The answer cannot go on: a stream gets a last event that says so, another answer is cut.
    fn break_off(&mut self, failure: Failure) -> Option<Result<Bytes, Failure>> {
        let mut exchange = self.exchange.take()?;
        let events = self.events.take();
        if events.as_ref().is_some_and(|events| events.is_done) {
            exchange.flight.reported(self.usage.reported());
            exchange.flight.answered();
            return None;
        }
        exchange.flight.failed();
        exchange.flight.span.failed(&failure);
        exchange.worker.fleet.metrics.error(&failure);
        tracing::warn!(%failure, kind = failure.kind(), "answer broken off");
        Some(match events {
            // What is held back is part of an event: the client never sees it.
            Some(_) => Ok(failure.sse_events()),
            None => Err(failure),
        })
    }
}

impl Exchange {
    /// The next bytes; `None` at the end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        if self.outbox.poll_room(cx).is_pending() {
            // The client is the one who is slow: the instance's silence starts when it is asked again.
            self.heard = Instant::now();
            return Poll::Pending;
        }
        let Poll::Ready(data) = self.connection.poll_data(cx) else {
            return self.poll_stalled(cx).map(|failure| Some(Err(failure)));
        };
        let data = data.map(|data| {
            data.map_err(|error| {
                tracing::debug!(%error, "answer cut");
                Failure::AnswerCut { instance: self.flight.instance.name.clone() }
            })
        });
        if let Some(Ok(_)) = data {
            let now = Instant::now();
            let gap = now.saturating_duration_since(self.heard);
            self.heard = now;
            self.flight.next_bytes(now, gap.as_secs_f64());
        }
        Poll::Ready(data)
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

/// The bytes that may pass now.
fn pass(events: &mut Option<EventStream>, bytes: Bytes) -> Option<Bytes> {
    match events {
        Some(events) => events.pass(bytes),
        None => Some(bytes),
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
