//! A client on raw sockets that sees exactly what is on the wire.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::toy::header;

pub(crate) const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
pub(crate) const STREAM: &str =
    r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    /// Chunks put together.
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its proper end.
    pub(crate) is_complete: bool,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        header(&self.head, name).unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn error_kind(&self) -> String {
        self.json()["error"]["type"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

pub(crate) async fn chat(addr: SocketAddr, body: &str) -> Reply {
    send(addr, &request("POST", "/v1/chat/completions", body)).await
}

pub(crate) async fn get(addr: SocketAddr, path: &str) -> Reply {
    send(addr, &request("GET", path, "")).await
}

/// Sends one request that asks to close the connection, and reads to the end.
pub(crate) async fn send(addr: SocketAddr, raw: impl AsRef<[u8]>) -> Reply {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // The answer may come, and the connection close, before everything is sent.
    let _ = stream.write_all(raw.as_ref()).await;
    let mut all = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut all)).await;
    let is_clean = read.expect("an answer within 20 s").is_ok();
    parse(&all, is_clean)
}

fn parse(all: &[u8], is_clean: bool) -> Reply {
    let end = all.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(all)));
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let rest = &all[end + 4..];
    let (body, is_complete) = if header(&head, "transfer-encoding") == Some("chunked") {
        unchunk(rest)
    } else {
        let length = header(&head, "content-length").map(|length| length.parse().unwrap());
        (rest.to_vec(), length.is_none_or(|length: usize| length == rest.len()))
    };
    Reply { status, head, body, is_complete: is_complete && is_clean }
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(line) = rest.windows(2).position(|two| two == b"\r\n") else {
            return (body, false);
        };
        let size = std::str::from_utf8(&rest[..line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        rest = &rest[line + 2..];
        if size == 0 {
            return (body, true);
        }
        if rest.len() < size + 2 {
            return (body, false);
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}
