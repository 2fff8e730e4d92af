use super::*;

/// The body of an answer that comes in pieces of this size, and whether its connection may be used again; then the
/// connection ends.
fn read_in_pieces(answer: &[u8], method: &Method, size: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut reader = HeadReader::default();
    let mut pieces = answer.chunks(size);
    let head = loop {
        if let Some(head) = reader.read(pieces.next().ok_or_else(crate::upstream::closed)?)? {
            break head;
        }
    };
    let Framing { mut decoder, is_kept } = head.framing(method)?;
    let mut body = Vec::new();
    if !head.rest.is_empty() {
        body.extend_from_slice(&decoder.decode(&head.rest)?);
    }
    for piece in pieces {
        body.extend_from_slice(&decoder.decode(piece)?);
    }
    let is_fit = decoder.is_fit();
    body.extend_from_slice(&decoder.decode(b"")?);
    Ok((body, is_kept && is_fit))
}

/// The same in pieces of every size, which must make no difference.
fn read(answer: &str) -> Result<(String, bool), String> {
    read_as(answer, &Method::POST)
}

fn read_as(answer: &str, method: &Method) -> Result<(String, bool), String> {
    let read = |size| {
        let result = read_in_pieces(answer.as_bytes(), method, size);
        result
            .map(|(body, is_kept)| (String::from_utf8(body).unwrap(), is_kept))
            .map_err(|error| error.to_string())
    };
    let whole = read(answer.len());
    for size in 1..answer.len() {
        assert_eq!(read(size), whole, "in pieces of {size}");
    }
    whole
}

fn ok(body: &str, is_kept: bool) -> (String, bool) {
    (body.to_owned(), is_kept)
}

#[test]
fn each_kind_of_body_ends_where_it_should() {
    assert_eq!(
        read("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").unwrap(),
        ok("hello", true)
    );
    assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap(), ok("", true));
    assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nuntil the end").unwrap(), ok("until the end", false));
    assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n").unwrap(), ok("", true));
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
    assert_eq!(read_as(head, &Method::HEAD).unwrap(), ok("", true));
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n";
    assert_eq!(
        read(&format!("{chunked}3\r\nabc\r\n0A \r\n0123456789\r\n0\r\n\r\n")).unwrap(),
        ok("abc0123456789", true)
    );
    assert_eq!(
        read(&format!("{chunked}1;x=\"y\"\r\na\r\n0;z\r\nt: 1\r\nu: 2\r\n\r\n")).unwrap(),
        ok("a", true)
    );
}

#[test]
fn interim_answers_are_passed_over() {
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
                  HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx";
    assert_eq!(read(answer).unwrap(), ok("x", true));
}

#[test]
fn a_connection_is_used_again_only_if_that_is_safe() {
    let close = "HTTP/1.1 200 OK\r\nConnection: x, Close\r\ncontent-length: 1\r\n\r\nx";
    assert_eq!(read(close).unwrap(), ok("x", false));
    assert_eq!(read("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx").unwrap(), ok("x", false));
    let old = "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx";
    assert_eq!(read(old).unwrap(), ok("x", true));
    let more = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP/1.1 200";
    assert_eq!(read(more).unwrap(), ok("x", false));
}

#[test]
fn doubtful_answers_fail() {
    let fails = |answer: &str| read(answer).unwrap_err();
    let head = "HTTP/1.1 200 OK\r\n";
    assert!(
        fails(&format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\nxx")).contains("two")
    );
    assert!(fails(&format!("{head}content-length: +1\r\n\r\nx")).contains("not a number"));
    let both = format!("{head}content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n");
    assert!(fails(&both).contains("in doubt"));
    let gzip = format!("{head}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n");
    assert!(fails(&gzip).contains("in doubt"));
    assert!(fails("HTTP/1.1 101 Switching Protocols\r\n\r\n").contains("protocols"));
    assert!(fails("SSH-2.0-OpenSSH_9.2\r\n\r\n").contains("HTTP version"));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
    assert!(fails(&format!("{chunked}1\r\nab\r\n0\r\n\r\n")).contains("broken"));
    assert!(fails(&format!("{chunked}\r\n0\r\n\r\n")).contains("broken"));
    assert!(fails(&format!("{chunked}11111111111111111\r\n")).contains("too large"));
}

#[test]
fn what_breaks_off_is_no_answer() {
    for cut in [
        "HTTP/1.1 200 OK\r\ncontent-le",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        assert!(read(cut).unwrap_err().contains("closed the connection"));
    }
}

#[test]
fn framing_has_a_bound() {
    let chunks = |bytes: &[u8]| Chunks::default().decode(bytes, &mut Vec::new());
    let long = format!("1;{}", "x".repeat(FRAMING_BYTES_MAX));
    assert!(chunks(long.as_bytes()).unwrap_err().to_string().contains("too long"));
    let mut reader = HeadReader::default();
    let field = b"x: y\r\n".repeat(1_000);
    reader.read(b"HTTP/1.1 200 OK\r\n").map(|_| ()).unwrap();
    let results: Vec<_> = (0..20).map(|_| reader.read(&field).is_err()).collect();
    assert!(results[19]);
}
