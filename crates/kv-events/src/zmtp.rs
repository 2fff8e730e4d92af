//! The connecting side of ZMTP 3 with the NULL mechanism (<https://rfc.zeromq.org/spec/23/>), as far as a SUB and a
//! DEALER socket of one connection need it.
//!
//! Written out here because a gateway must bear any peer: a frame's length is checked before a byte of memory is
//! spent on it, memory grows only with bytes that came, and the end of a connection is seen in its place between
//! messages. `zeromq` 0.7 (pure Rust) reserves whatever a frame's header asks for, which aborts the process, and
//! reconnects behind its user's back; libzmq has the limit, but brings a C++ library and threads of its own.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::endpoint::ByteStream;

/// Longest message taken, all its frames together. vLLM's own are far below: a step that stores a
/// million tokens is some 5 MB.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Most frames of one message; vLLM's have 3 or 4.
const FRAMES_MAX: usize = 16;
/// Room made for each read.
const READ_BYTES: usize = 64 << 10;

const GREETING_BYTES: usize = 64;
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Which kind of socket this side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketType {
    Sub,
    Dealer,
}

impl SocketType {
    const fn name(self) -> &'static str {
        match self {
            Self::Sub => "SUB",
            Self::Dealer => "DEALER",
        }
    }

    /// The kinds it can talk to here.
    const fn peers(self) -> &'static [&'static str] {
        match self {
            Self::Sub => &["PUB", "XPUB"],
            Self::Dealer => &["ROUTER", "REP"],
        }
    }
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ZmtpError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the peer closed the connection")]
    Closed,
    #[error(
        "the peer does not speak ZMTP; is this the port of vLLM's KV events and not of its HTTP API?"
    )]
    NotZmtp,
    #[error("the peer speaks ZMTP {major}; it needs libzmq 4 or later")]
    Version { major: u8 },
    #[error("the peer wants the security mechanism {mechanism}; only NULL, vLLM's, is known here")]
    Mechanism { mechanism: String },
    #[error(
        "the peer is a {found} socket where a {expected} was expected; are the events and replay endpoints swapped?"
    )]
    Peer { expected: &'static str, found: String },
    #[error("the peer refused the connection: {reason}")]
    Refused { reason: String },
    #[error(
        "a message of more than {MESSAGE_BYTES_MAX} bytes or {FRAMES_MAX} frames; is the peer vLLM?"
    )]
    TooLarge,
    #[error("the peer breaks the protocol: {0}")]
    Malformed(&'static str),
}

type Result<T> = std::result::Result<T, ZmtpError>;

/// One connection after its handshake.
pub(crate) struct Connection {
    stream: Box<dyn ByteStream>,
    /// Read and not yet taken apart.
    input: BytesMut,
    /// To be written.
    output: BytesMut,
    /// The frames so far of the message being read.
    frames: Vec<Bytes>,
    frames_bytes: usize,
}

#[derive(Debug)]
struct Frame {
    flags: u8,
    body: Bytes,
}

impl Connection {
    /// Greets the peer and waits until both are ready.
    pub(crate) async fn open(stream: Box<dyn ByteStream>, socket: SocketType) -> Result<Self> {
        let mut connection = Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            frames: Vec::new(),
            frames_bytes: 0,
        };
        connection.output.put_slice(&greeting());
        connection.flush().await?;
        connection.read_greeting().await?;
        put_frame(&mut connection.output, COMMAND, &ready(socket));
        connection.flush().await?;
        connection.read_ready(socket).await?;
        Ok(connection)
    }

    /// Asks a publisher for the messages whose first frame begins so.
    pub(crate) async fn subscribe(&mut self, topic: &str) -> Result<()> {
        let mut body = vec![1];
        body.extend_from_slice(topic.as_bytes());
        self.send(&[body]).await
    }

    /// Sends one message of at least one frame.
    pub(crate) async fn send<F: AsRef<[u8]>>(&mut self, frames: &[F]) -> Result<()> {
        for (index, frame) in frames.iter().enumerate() {
            let flags = if index + 1 < frames.len() { MORE } else { 0 };
            put_frame(&mut self.output, flags, frame.as_ref());
        }
        self.flush().await
    }

    /// The next message's frames. May be dropped and called again: nothing is lost.
    pub(crate) async fn recv(&mut self) -> Result<Vec<Bytes>> {
        loop {
            while let Some(frame) = take_frame(&mut self.input)? {
                if frame.flags & COMMAND != 0 {
                    self.obey(&frame.body)?;
                    continue;
                }
                self.frames_bytes += frame.body.len();
                if self.frames_bytes > MESSAGE_BYTES_MAX || self.frames.len() == FRAMES_MAX {
                    return Err(ZmtpError::TooLarge);
                }
                self.frames.push(frame.body);
                if frame.flags & MORE == 0 {
                    self.frames_bytes = 0;
                    return Ok(std::mem::take(&mut self.frames));
                }
            }
            self.flush().await?;
            self.fill().await?;
        }
    }

    /// A command after the handshake: a heartbeat is answered, others are ignored.
    fn obey(&mut self, body: &Bytes) -> Result<()> {
        let (name, data) = command(body)?;
        match name {
            // After its name a time to live, then what the answer is to repeat.
            b"PING" => {
                let context = data.get(2..).ok_or(ZmtpError::Malformed("a PING without a TTL"))?;
                if context.len() > 16 {
                    return Err(ZmtpError::Malformed("a PING of more than 16 bytes"));
                }
                put_frame(&mut self.output, COMMAND, &[b"\x04PONG", context].concat());
                Ok(())
            }
            b"ERROR" => Err(refusal(data)),
            _ => Ok(()),
        }
    }

    async fn read_greeting(&mut self) -> Result<()> {
        while self.input.len() < GREETING_BYTES {
            // Another protocol may never send this much.
            if self.input.first().is_some_and(|&first| first != 0xff) {
                return Err(ZmtpError::NotZmtp);
            }
            self.fill().await?;
        }
        let greeting = self.input.split_to(GREETING_BYTES);
        if greeting[0] != 0xff || greeting[9] & 1 == 0 {
            return Err(ZmtpError::NotZmtp);
        }
        if greeting[10] < 3 {
            return Err(ZmtpError::Version { major: greeting[10] });
        }
        let mechanism = greeting[12..32].split(|&byte| byte == 0).next().unwrap_or_default();
        if mechanism != b"NULL" {
            return Err(ZmtpError::Mechanism { mechanism: printable(mechanism) });
        }
        Ok(())
    }

    async fn read_ready(&mut self, socket: SocketType) -> Result<()> {
        let frame = loop {
            if let Some(frame) = take_frame(&mut self.input)? {
                break frame;
            }
            self.fill().await?;
        };
        if frame.flags & COMMAND == 0 {
            return Err(ZmtpError::Malformed("a message before READY"));
        }
        match command(&frame.body)? {
            (b"READY", properties) => {
                let peer = property(properties, b"socket-type")?.unwrap_or_default();
                if socket.peers().iter().any(|known| known.as_bytes() == peer) {
                    return Ok(());
                }
                Err(ZmtpError::Peer { expected: socket.peers()[0], found: printable(peer) })
            }
            (b"ERROR", data) => Err(refusal(data)),
            _ => Err(ZmtpError::Malformed("another command before READY")),
        }
    }

    async fn fill(&mut self) -> Result<()> {
        self.input.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(ZmtpError::Closed),
            _ => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        while !self.output.is_empty() {
            if self.stream.write_buf(&mut self.output).await? == 0 {
                return Err(ZmtpError::Closed);
            }
        }
        Ok(())
    }
}

/// Signature, version 3.0, mechanism NULL, not as a server.
fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn ready(socket: SocketType) -> Vec<u8> {
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket.name()), ("Identity", "")] {
        body.push(u8::try_from(name.len()).expect("the names above are short"));
        body.extend_from_slice(name.as_bytes());
        body.put_u32(u32::try_from(value.len()).expect("the values above are short"));
        body.extend_from_slice(value.as_bytes());
    }
    body
}

fn put_frame(out: &mut BytesMut, flags: u8, body: &[u8]) {
    if let Ok(len) = u8::try_from(body.len()) {
        out.put_slice(&[flags, len]);
    } else {
        out.put_u8(flags | LONG);
        out.put_u64(body.len() as u64);
    }
    out.put_slice(body);
}

/// Takes one frame off the front; `None` until all of it is there.
fn take_frame(input: &mut BytesMut) -> Result<Option<Frame>> {
    let Some(&flags) = input.first() else { return Ok(None) };
    if flags > (MORE | LONG | COMMAND) || flags & (MORE | COMMAND) == (MORE | COMMAND) {
        return Err(ZmtpError::Malformed("a frame with unknown flags"));
    }
    let (head, len) = if flags & LONG == 0 {
        let Some(&len) = input.get(1) else { return Ok(None) };
        (2, u64::from(len))
    } else {
        let Some(mut len) = input.get(1..9) else { return Ok(None) };
        (9, len.get_u64())
    };
    let len = usize::try_from(len).ok().filter(|&len| len <= MESSAGE_BYTES_MAX);
    let len = len.ok_or(ZmtpError::TooLarge)?;
    if input.len() < head + len {
        return Ok(None);
    }
    input.advance(head);
    Ok(Some(Frame { flags, body: input.split_to(len).freeze() }))
}

/// Name and data of a command.
fn command(body: &[u8]) -> Result<(&[u8], &[u8])> {
    let (&len, rest) = body.split_first().ok_or(ZmtpError::Malformed("an empty command"))?;
    rest.split_at_checked(len.into()).ok_or(ZmtpError::Malformed("a cut command name"))
}

/// The value of a property; `name` in lower case, as names have none.
fn property<'a>(mut properties: &'a [u8], name: &[u8]) -> Result<Option<&'a [u8]>> {
    const CUT: ZmtpError = ZmtpError::Malformed("a cut property");
    while let Some((&len, rest)) = properties.split_first() {
        let (key, rest) = rest.split_at_checked(len.into()).ok_or(CUT)?;
        let (mut len, rest) = rest.split_at_checked(4).ok_or(CUT)?;
        let len = usize::try_from(len.get_u32()).map_err(|_| CUT)?;
        let (value, rest) = rest.split_at_checked(len).ok_or(CUT)?;
        if key.eq_ignore_ascii_case(name) {
            return Ok(Some(value));
        }
        properties = rest;
    }
    Ok(None)
}

fn refusal(data: &[u8]) -> ZmtpError {
    ZmtpError::Refused { reason: printable(data.get(1..).unwrap_or_default()) }
}

/// A peer's text, fit for a log line.
fn printable(text: &[u8]) -> String {
    text.iter().take(64).map(|&byte| char::from(byte)).filter(char::is_ascii_graphic).collect()
}

#[cfg(test)]
pub(crate) mod tests;
