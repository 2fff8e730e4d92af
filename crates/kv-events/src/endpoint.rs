//! Where a socket is: ZMQ's endpoint names, and the way there.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A connection silent for this long is probed; it is given up after three unanswered probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// An endpoint to connect to, `tcp://host:port` or `ipc:///path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `tcp://host:port`
    Tcp {
        /// A name or an address; an IPv6 address without its brackets.
        host: String,
        /// 1 or more.
        port: u16,
    },
    /// `ipc:///path`, a Unix socket on this machine.
    Ipc {
        /// The socket's file.
        path: PathBuf,
    },
}

/// The text is no endpoint to connect to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// Neither of the two forms.
    #[error("`{endpoint}` is no endpoint; write tcp://HOST:PORT or ipc:///PATH")]
    Form {
        /// As given.
        endpoint: String,
    },
    /// What the server binds, not where it can be reached.
    #[error("`{endpoint}` is what a server binds; write the instance's host in place of `*`")]
    Wildcard {
        /// As given.
        endpoint: String,
    },
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(endpoint: &str) -> Result<Self, InvalidEndpoint> {
        let form = || InvalidEndpoint::Form { endpoint: endpoint.to_owned() };
        if let Some(path) = endpoint.strip_prefix("ipc://") {
            let is_usable = path.starts_with('/') && path.len() > 1;
            return if is_usable { Ok(Self::Ipc { path: path.into() }) } else { Err(form()) };
        }
        let address = endpoint.strip_prefix("tcp://").ok_or_else(form)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(form)?;
        if matches!(host, "*" | "0.0.0.0" | "[::]" | "::") {
            return Err(InvalidEndpoint::Wildcard { endpoint: endpoint.to_owned() });
        }
        let port = port.parse().ok().filter(|&port: &u16| port > 0).ok_or_else(form)?;
        let host = match host.strip_prefix('[') {
            Some(address) => address.strip_suffix(']').ok_or_else(form)?,
            None if host.contains(':') => return Err(form()),
            None => host,
        };
        if host.is_empty() || host.contains(['/', ' ', '@']) {
            return Err(form());
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Ipc { path } => write!(f, "ipc://{}", path.display()),
        }
    }
}

/// A byte stream to an endpoint.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// The way to endpoints. The tests of this crate have one of their own, in memory.
pub(crate) trait Network: Send + Sync + 'static {
    /// Connects.
    fn connect(
        &self,
        endpoint: &Endpoint,
    ) -> impl Future<Output = io::Result<Box<dyn ByteStream>>> + Send;
}

/// The system's own sockets.
pub(crate) struct Sockets;

impl Network for Sockets {
    async fn connect(&self, endpoint: &Endpoint) -> io::Result<Box<dyn ByteStream>> {
        endpoint.connect().await
    }
}

impl Endpoint {
    /// Connects. A peer whose machine is gone is found out by TCP's keep-alive, in 25 s.
    async fn connect(&self) -> io::Result<Box<dyn ByteStream>> {
        match self {
            Self::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_RETRIES);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                Ok(Box::new(stream))
            }
            Self::Ipc { path } => Ok(Box::new(UnixStream::connect(path).await?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_written() {
        for text in ["tcp://localhost:5557", "tcp://10.0.0.3:1", "tcp://[::1]:80", "ipc:///run/kv"]
        {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        let v6 = Endpoint::Tcp { host: "::1".to_owned(), port: 80 };
        assert_eq!("tcp://[::1]:80".parse(), Ok(v6));
    }

    #[test]
    fn other_texts_are_refused_with_a_remedy() {
        for text in [
            "",
            "tcp://",
            "tcp://host",
            "tcp://host:0",
            "tcp://host:99999",
            "tcp://:80",
            "ipc://",
            "tcp://::1:80",
            "tcp://[::1:80",
            "http://host:80",
            "ipc://x",
            "tcp://a/b:80",
        ] {
            let refused = text.parse::<Endpoint>().unwrap_err();
            assert!(refused.to_string().contains("tcp://HOST:PORT"), "{refused}");
        }
        for text in ["tcp://*:5557", "tcp://0.0.0.0:5557", "tcp://[::]:5557"] {
            let refused = text.parse::<Endpoint>().unwrap_err();
            assert!(refused.to_string().contains("in place of `*`"), "{refused}");
        }
    }
}
