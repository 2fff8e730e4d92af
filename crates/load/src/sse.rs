//! Server-sent events, cut out of a byte stream as it comes.

use std::collections::VecDeque;

use thiserror::Error;

/// A line, or the data of one event, is longer than the parser was told to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a server-sent event is longer than {limit_bytes} bytes; the endpoint may not speak text/event-stream"
)]
pub struct LineTooLong {
    /// The limit.
    pub limit_bytes: usize,
}

/// An incremental parser of `text/event-stream` (WHATWG HTML, "Server-sent events", 9.2.6).
///
/// Bytes may be split anywhere. Lines end with LF, CRLF or CR; comments and all fields but `data` are passed over;
/// several `data` lines of one event are joined by line feeds; an event that no blank line ends is dropped.
#[derive(Debug)]
pub struct SseParser {
    limit_bytes: usize,
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The latest byte was a CR that ended a line: an LF next to it belongs to it.
    after_cr: bool,
    /// A byte-order mark may still come.
    at_start: bool,
    events: VecDeque<Vec<u8>>,
}

impl SseParser {
    /// A parser that holds no line and no event of more than `limit_bytes`.
    pub const fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            line: Vec::new(),
            data: Vec::new(),
            has_data: false,
            after_cr: false,
            at_start: true,
            events: VecDeque::new(),
        }
    }

    /// Takes more of the stream; [`Self::next_event`] gives what it completed.
    ///
    /// # Errors
    /// If a line or an event is too long. The parser is of no more use then.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), LineTooLong> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let text = &bytes[..end.unwrap_or(bytes.len())];
            self.check(self.line.len() + text.len())?;
            self.line.extend_from_slice(text);
            let Some(end) = end else { return Ok(()) };
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            self.end_line()?;
        }
        Ok(())
    }

    /// The data of the next complete event.
    pub fn next_event(&mut self) -> Option<Vec<u8>> {
        self.events.pop_front()
    }

    fn end_line(&mut self) -> Result<(), LineTooLong> {
        let mut line = std::mem::take(&mut self.line);
        let mut text = &line[..];
        if std::mem::take(&mut self.at_start) {
            text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        }
        if text.is_empty() {
            if std::mem::take(&mut self.has_data) {
                self.events.push_back(std::mem::take(&mut self.data));
            }
        } else if let Some(value) = data_value(text) {
            self.check(self.data.len() + 1 + value.len())?;
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
        }
        line.clear();
        self.line = line; // its memory is used again
        Ok(())
    }

    fn check(&self, len: usize) -> Result<(), LineTooLong> {
        let limit_bytes = self.limit_bytes;
        if len > limit_bytes { Err(LineTooLong { limit_bytes }) } else { Ok(()) }
    }
}

/// The value of a `data` line.
fn data_value(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"data")?;
    match rest.first() {
        None => Some(rest),
        Some(b':') => Some(rest[1..].strip_prefix(b" ").unwrap_or(&rest[1..])),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::new(1 << 16);
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece).unwrap();
            while let Some(event) = parser.next_event() {
                events.push(String::from_utf8(event).unwrap());
            }
        }
        events
    }

    #[test]
    fn events_are_told_apart_by_the_rules() {
        assert_eq!(parse(&[b"data: a\n\ndata:b\r\n\r\ndata:  c\r\r"]), ["a", "b", " c"]);
        assert_eq!(parse(&[b": keep-alive\n\nevent: x\nid: 7\ndata: a\ndata: b\n\n"]), ["a\nb"]);
        assert_eq!(parse(&[b"\xef\xbb\xbfdata: a\n\n"]), ["a"]);
        assert_eq!(parse(&[b"data\n\ndatum: x\n\n\n\n"]), [""]);
        assert_eq!(parse(&[b"data: never ended\n"]), Vec::<String>::new());
        assert_eq!(parse(&[b"data: a\r", b"\n\r", b"\ndata: b\n", b"\n"]), ["a", "b"]);
    }

    #[test]
    fn lines_and_events_are_bounded() {
        let mut parser = SseParser::new(10);
        assert_eq!(parser.push(b"data: 123456"), Err(LineTooLong { limit_bytes: 10 }));
        let mut parser = SseParser::new(10);
        parser.push(b"data: 1234\n").unwrap();
        parser.push(b"data: 1234\n").unwrap();
        assert_eq!(parser.push(b"data: 1234\n"), Err(LineTooLong { limit_bytes: 10 }));
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_split_makes_no_difference(
            lines in proptest::collection::vec(
                (prop_oneof![
                    "data: ?[a-z\u{e9}]{0,6}", Just(String::new()), ": [a-z]{0,3}", "event: [a-z]{1,3}",
                ], prop_oneof![Just("\n"), Just("\r\n"), Just("\r")]),
                0..12,
            ),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes: Vec<u8> =
                lines.iter().flat_map(|(line, end)| line.bytes().chain(end.bytes())).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(parse(&pieces), parse(&[&bytes]));
            prop_assert_eq!(parse(&single), parse(&[&bytes]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut parser = SseParser::new(64);
            let _ = parser.push(&bytes);
        }
    }
}
