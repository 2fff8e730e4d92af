//! Response bodies.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use kvroute_types::RequestId;
use tokio::sync::mpsc;

use crate::api_error::ApiError;
use crate::device::{Command, JobEvent};
use crate::faults::Faults;
use crate::instance::{InFlight, Instance};
use crate::reply::{DONE, Reply};

/// The connection is cut because a fault says so, or because the instance is gone.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("connection cut")]
pub(crate) struct Cut;

/// A response body.
#[derive(Debug)]
pub(crate) enum MockBody {
    /// All there.
    Full(Option<Bytes>),
    /// A stream whose frames are all there, and how many are out.
    Ready(Arc<[Bytes]>, usize),
    /// A stream as tokens come.
    Live(Box<LiveStream>),
}

impl MockBody {
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }
}

impl Body for MockBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Ready(frames, next) => {
                let frame = frames.get(*next).cloned();
                *next += 1;
                Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Live(stream) => {
                stream.poll(context).map(|next| next.map(|next| next.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Ready(frames, next) => *next >= frames.len(),
            Self::Live(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Ready(..) | Self::Live(_) => SizeHint::default(),
        }
    }
}

/// The jobs of one call. Dropping it before they have ended, as when the client goes, aborts them (R83).
#[derive(Debug)]
pub(crate) struct Jobs {
    instance: Arc<Instance>,
    ids: Vec<RequestId>,
    events: mpsc::UnboundedReceiver<JobEvent>,
    is_over: bool,
}

impl Jobs {
    pub(crate) fn new(
        instance: Arc<Instance>,
        ids: Vec<RequestId>,
        events: mpsc::UnboundedReceiver<JobEvent>,
    ) -> Self {
        Self { instance, ids, events, is_over: false }
    }

    /// The jobs have ended; nothing is left to abort.
    pub(crate) fn over(&mut self) {
        self.is_over = true;
    }

    pub(crate) async fn next(&mut self) -> Option<JobEvent> {
        self.events.recv().await
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        if !self.is_over {
            let ids = std::mem::take(&mut self.ids);
            self.instance.command(Command::Abort { engine: self.instance.engine, ids });
        }
    }
}

/// A stream of events, made as the engine's tokens come.
#[derive(Debug)]
pub(crate) struct LiveStream {
    jobs: Jobs,
    reply: Reply,
    frames: VecDeque<Bytes>,
    tokens: u32,
    silent_after: Option<u32>,
    cut_after: Option<u32>,
    state: State,
    _in_flight: InFlight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    Ended,
    /// To be cut once what was sent is on its way: a connection that ends in an error is not flushed.
    CutNext,
    Cut,
    Silent,
}

impl LiveStream {
    pub(crate) fn new(jobs: Jobs, reply: Reply, faults: &Faults, in_flight: InFlight) -> Self {
        let Faults { cut_after_tokens, silent_after_tokens, .. } = faults;
        let mut stream = Self {
            jobs,
            reply,
            frames: VecDeque::new(),
            tokens: 0,
            silent_after: *silent_after_tokens,
            cut_after: *cut_after_tokens,
            state: State::Live,
            _in_flight: in_flight,
        };
        stream.apply_faults();
        stream
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            match self.state {
                State::Live => {}
                State::Ended => return Poll::Ready(None),
                State::CutNext => {
                    self.state = State::Cut;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Cut => return Poll::Ready(Some(Err(Cut))),
                // Whoever waits here is woken by nothing but the end of the connection.
                State::Silent => return Poll::Pending,
            }
            match std::task::ready!(self.jobs.events.poll_recv(context)) {
                Some(event) => self.take(event),
                None => self.state = State::CutNext,
            }
        }
    }

    fn take(&mut self, event: JobEvent) {
        match event {
            JobEvent::Token { choice, cached_tokens, finish } => {
                self.reply.token(choice, cached_tokens, finish, &mut self.frames);
                self.tokens += 1;
                if self.reply.is_complete() {
                    self.jobs.over();
                    self.state = State::Ended;
                }
                self.apply_faults();
            }
            JobEvent::EngineDead => {
                self.frames.push_back(ApiError::EngineDead.to_event().into());
                self.frames.push_back(Bytes::from_static(DONE.as_bytes()));
                self.jobs.over();
                self.state = State::Ended;
            }
        }
    }

    fn apply_faults(&mut self) {
        if self.silent_after.is_some_and(|after| self.tokens >= after) {
            self.state = State::Silent;
        } else if self.cut_after.is_some_and(|after| self.tokens >= after) {
            self.state = State::CutNext;
        }
    }
}
