//! The bytes of HTTP/1.1 towards an instance (RFC 9112): a request's head out, an answer's head and body in.
//!
//! What an instance says is checked before it is believed: an answer whose length is in doubt fails, since the next
//! answer on the connection would begin in the wrong place.

use std::io;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

use super::Outgoing;
use crate::instance::Target;

/// Most bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most fields of an answer's head.
const FIELDS_MAX: usize = 128;
/// Most bytes between two chunks (a size with its extensions), and of all trailers.
const FRAMING_BYTES_MAX: usize = 16 << 10;

/// A request as it goes over the wire, up to its body.
pub(super) fn request_head(outgoing: &Outgoing<'_>, target: &Target) -> Vec<u8> {
    let Outgoing { method, path, headers, body } = outgoing;
    let mut out = Vec::with_capacity(512);
    for piece in [method.as_str(), " ", path, " HTTP/1.1\r\n"] {
        out.extend_from_slice(piece.as_bytes());
    }
    let mut field = |name: &str, value: &[u8]| {
        for piece in [name.as_bytes(), b": ", value, b"\r\n"] {
            out.extend_from_slice(piece);
        }
    };
    // HTTP/1.0 clients may leave it out; HTTP/1.1 servers refuse that.
    if !headers.contains_key(header::HOST) {
        field("host", target.authority.as_bytes());
    }
    for (name, value) in *headers {
        if *name != header::CONTENT_LENGTH {
            field(name.as_str(), value.as_bytes());
        }
    }
    let is_bodiless = matches!(**method, Method::GET | Method::HEAD | Method::DELETE);
    if !body.is_empty() || !is_bodiless || headers.contains_key(header::CONTENT_LENGTH) {
        field("content-length", body.len().to_string().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// An answer's head, and what came behind it.
pub(super) struct Head {
    pub(super) head: Parts,
    pub(super) rest: Bytes,
}

/// How an answer's body ends, and what becomes of its connection.
pub(super) struct Framing {
    pub(super) decoder: Decoder,
    pub(super) is_kept: bool,
}

impl Head {
    /// How the body of the answer to a request of this method ends (RFC 9112, 6.3).
    pub(super) fn framing(&self, method: &Method) -> io::Result<Framing> {
        let Parts { status, version, headers, .. } = &self.head;
        let says = |word: &str| has_token(headers, &header::CONNECTION, word);
        let is_persistent =
            if *version == Version::HTTP_11 { !says("close") } else { says("keep-alive") };
        let body = if *method == Method::HEAD
            || matches!(*status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        {
            Body::Over
        } else if let Some(coding) = headers.get(header::TRANSFER_ENCODING) {
            let is_only = headers.get_all(header::TRANSFER_ENCODING).iter().count() == 1;
            let is_chunked = coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
            if !is_only || !is_chunked || headers.contains_key(header::CONTENT_LENGTH) {
                return Err(invalid("the answer's length is in doubt"));
            }
            Body::Chunked(Chunks::default())
        } else {
            match content_length(headers)? {
                Some(0) => Body::Over,
                Some(length) => Body::Length(length),
                None => Body::UntilClose,
            }
        };
        let is_kept = is_persistent && !matches!(body, Body::UntilClose);
        Ok(Framing { decoder: Decoder { body, is_fit: true }, is_kept })
    }
}

fn content_length(headers: &HeaderMap) -> io::Result<Option<u64>> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let digits = value.to_str().unwrap_or_default();
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let value = digits.parse().ok().filter(|_| is_number);
        let value = value.ok_or_else(|| invalid("content-length is not a number"))?;
        if length.is_some_and(|length| length != value) {
            return Err(invalid("there are two content-lengths"));
        }
        length = Some(value);
    }
    Ok(length)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|it| it.trim().eq_ignore_ascii_case(token))
}

/// Reads an answer's head from pieces.
#[derive(Default)]
pub(super) struct HeadReader {
    /// What came before, if that was not all of it.
    held: Vec<u8>,
}

impl HeadReader {
    /// The head, if this completes it. Interim answers (1xx) are passed over.
    pub(super) fn read(&mut self, bytes: &[u8]) -> io::Result<Option<Head>> {
        if self.held.is_empty() {
            let (head, used) = parse(bytes)?;
            if head.is_none() {
                self.held.extend_from_slice(&bytes[used..]);
            }
            return Ok(head);
        }
        self.held.extend_from_slice(bytes);
        if self.held.len() > HEAD_BYTES_MAX {
            return Err(invalid("the answer's head is too long"));
        }
        let (head, used) = parse(&self.held)?;
        self.held.drain(..used);
        Ok(head)
    }
}

/// The first head that is no interim answer's, and how much was passed over before.
fn parse(bytes: &[u8]) -> io::Result<(Option<Head>, usize)> {
    let mut start = 0;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut answer = httparse::Response::new(&mut fields);
        let status = answer.parse(&bytes[start..]).map_err(|error| invalid(&error.to_string()))?;
        let httparse::Status::Complete(length) = status else { return Ok((None, start)) };
        let body = start + length;
        let code = answer.code.unwrap_or_default();
        match code {
            101 => return Err(invalid("the instance changed protocols unasked")),
            100..=199 => start = body,
            _ => {
                let mut head = Response::new(()).into_parts().0;
                head.status = StatusCode::from_u16(code).map_err(io::Error::other)?;
                let is_new = answer.version == Some(1);
                head.version = if is_new { Version::HTTP_11 } else { Version::HTTP_10 };
                head.headers = field_map(answer.headers)?;
                let rest = Bytes::copy_from_slice(&bytes[body..]);
                return Ok((Some(Head { head, rest }), body));
            }
        }
    }
}

fn field_map(fields: &[httparse::Header<'_>]) -> io::Result<HeaderMap> {
    // Room for the receipt's fields.
    let mut headers = HeaderMap::with_capacity(fields.len() + 4);
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(io::Error::other)?;
        let value = HeaderValue::from_bytes(field.value).map_err(io::Error::other)?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Takes the framing off an answer's body.
#[derive(Debug)]
pub(super) struct Decoder {
    body: Body,
    /// Whether nothing came behind the body.
    is_fit: bool,
}

#[derive(Debug)]
enum Body {
    Over,
    /// So many bytes are to come.
    Length(u64),
    UntilClose,
    Chunked(Chunks),
}

impl Decoder {
    /// Of a body that has ended.
    pub(super) const fn over() -> Self {
        Self { body: Body::Over, is_fit: true }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.body, Body::Over)
    }

    /// Whether the next answer would begin where one is expected.
    pub(super) fn is_fit(&self) -> bool {
        self.is_fit && self.is_over()
    }

    /// What is the body's of these bytes; none means that the connection has ended.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> io::Result<Bytes> {
        if bytes.is_empty() {
            return match std::mem::replace(&mut self.body, Body::Over) {
                Body::Over | Body::UntilClose => Ok(Bytes::new()),
                Body::Length(_) | Body::Chunked(_) => Err(super::closed()),
            };
        }
        match &mut self.body {
            Body::Over => {
                self.is_fit = false;
                Ok(Bytes::new())
            }
            Body::UntilClose => Ok(Bytes::copy_from_slice(bytes)),
            Body::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= count as u64;
                self.is_fit = count == bytes.len();
                if *left == 0 {
                    self.body = Body::Over;
                }
                Ok(Bytes::copy_from_slice(&bytes[..count]))
            }
            Body::Chunked(chunks) => {
                let mut data = Vec::with_capacity(bytes.len());
                let used = chunks.decode(bytes, &mut data)?;
                if chunks.at == At::End {
                    self.is_fit = used == bytes.len();
                    self.body = Body::Over;
                }
                Ok(data.into())
            }
        }
    }
}

/// Follows the chunked coding (RFC 9112, 7.1); extensions and trailers are passed over.
#[derive(Debug, Default)]
struct Chunks {
    at: At,
    /// Bytes of the present chunk that are to come, or its size as read so far.
    left: u64,
    /// Bytes of framing since the last data.
    framing: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before the first digit of a size.
    #[default]
    Size,
    /// Behind at least one digit.
    Digits,
    Extension,
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    /// At the start of a trailer line.
    Trailer,
    InTrailer,
    LastLineFeed,
    End,
}

impl Chunks {
    /// Appends the data; how many of the bytes were used, which is all unless the body has ended.
    fn decode(&mut self, bytes: &[u8], data: &mut Vec<u8>) -> io::Result<usize> {
        let mut used = 0;
        while self.at != At::End
            && let Some(&byte) = bytes.get(used)
        {
            if self.at == At::Data {
                let left = usize::try_from(self.left).unwrap_or(usize::MAX);
                let count = left.min(bytes.len() - used);
                data.extend_from_slice(&bytes[used..used + count]);
                used += count;
                self.left -= count as u64;
                if self.left == 0 {
                    self.at = At::DataReturn;
                }
                self.framing = 0;
                continue;
            }
            self.framing += 1;
            if self.framing > FRAMING_BYTES_MAX {
                return Err(invalid("a chunk's framing is too long"));
            }
            self.at = self.step(byte)?;
            used += 1;
        }
        Ok(used)
    }

    /// Where one byte of framing leads.
    fn step(&mut self, byte: u8) -> io::Result<At> {
        Ok(match (self.at, byte) {
            (At::Size | At::Digits, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                let size = if self.at == At::Size { Some(0) } else { self.left.checked_mul(16) };
                let size = size.and_then(|size| size.checked_add(u64::from(digit)));
                self.left = size.ok_or_else(|| invalid("a chunk's size is too large"))?;
                At::Digits
            }
            (At::Digits | At::Extension, b'\r') => At::SizeLineFeed,
            (At::Digits, b';' | b' ' | b'\t') => At::Extension,
            (At::Extension, byte) if byte != b'\n' => At::Extension,
            (At::SizeLineFeed, b'\n') if self.left == 0 => At::Trailer,
            (At::SizeLineFeed, b'\n') => At::Data,
            (At::DataReturn, b'\r') => At::DataLineFeed,
            (At::DataLineFeed, b'\n') => At::Size,
            (At::Trailer, b'\r') => At::LastLineFeed,
            (At::InTrailer, b'\n') => At::Trailer,
            (At::Trailer | At::InTrailer, byte) if byte != b'\n' => At::InTrailer,
            (At::LastLineFeed, b'\n') => At::End,
            _ => return Err(invalid("a chunk's framing is broken")),
        })
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
