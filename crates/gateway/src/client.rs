//! A client's connection, and how much of an answer may lie in it.
//!
//! hyper asks for more of an answer as long as its write buffer has room, and that is as large as its read buffer. So that
//! a slow reader does not make the gateway hold as much as a long prompt, the answer asks the [`Outbox`] first.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes that may be unwritten when more of an answer is taken. With the most that one read of an answer brings, this
/// bounds what a slow reader makes the gateway hold.
const UNWRITTEN_BYTES_MAX: usize = 8 << 10;

/// Bytes that the kernel takes and cannot send yet, because the client does not read. By itself it would take megabytes.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 64 << 10;

/// What was handed to hyper of a connection's answers and is not in the kernel's hands yet.
#[derive(Default)]
pub(crate) struct Outbox {
    unwritten: Cell<usize>,
    waiting: Cell<Option<Waker>>,
}

impl Outbox {
    /// More was handed over.
    pub(crate) fn put(&self, bytes: usize) {
        self.unwritten.set(self.unwritten.get() + bytes);
    }

    /// Ready when there is room for more.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.unwritten.get() <= UNWRITTEN_BYTES_MAX {
            return Poll::Ready(());
        }
        self.waiting.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    fn emptied(&self) {
        self.unwritten.set(0);
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

/// The client's socket, which empties the outbox.
pub(crate) struct ClientStream {
    stream: TcpStream,
    outbox: Rc<Outbox>,
}

impl ClientStream {
    /// # Errors
    /// If the connection is gone already.
    pub(crate) fn new(stream: TcpStream) -> io::Result<(Self, Rc<Outbox>)> {
        stream.set_nodelay(true)?;
        #[cfg(target_os = "linux")]
        if let Err(error) = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
        {
            // A sandbox's kernel may not know it; only the kernel's share of a slow reader's answer is larger then.
            tracing::debug!(%error, "TCP_NOTSENT_LOWAT is not to be had");
        }
        let outbox = Rc::new(Outbox::default());
        Ok((Self { stream, outbox: Rc::clone(&outbox) }, outbox))
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper calls it when all that it had is written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbox.emptied();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_answer_waits_until_its_client_has_been_written_to() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let outbox = Outbox::default();
        outbox.put(UNWRITTEN_BYTES_MAX);
        assert!(outbox.poll_room(&mut cx).is_ready());
        outbox.put(1);
        assert!(outbox.poll_room(&mut cx).is_pending());
        assert!(!woken.0.load(Ordering::Relaxed));
        outbox.emptied();
        assert!(woken.0.load(Ordering::Relaxed));
        assert!(outbox.poll_room(&mut cx).is_ready());
    }
}
