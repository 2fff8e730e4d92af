//! Connections to the target, and one exchange over one of them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use kvroute_policy::Reason;
use kvroute_types::TokenCount;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as NoSuchName;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::answer::{Answer, error_message};
use crate::clock::Clock;
use crate::config::{Settings, Target};
use crate::driver::{Call, Report, Transport};
use crate::failure::{Failure, FailureKind};
use crate::sse::SseParser;

const SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");
const INSTANCE: &str = "x-kvroute-instance";
const REASON: &str = "x-kvroute-reason";
const PREDICTED: &str = "x-kvroute-predicted-cached-tokens";

/// A kept connection is not used after this time: uvicorn, vLLM's server, closes one after 5 s, and a request sent just
/// then is lost.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// One event, or line, of a stream. Usage and log-probabilities of a token are some hundred bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;
/// An answer in one piece.
const BODY_BYTES_MAX: usize = 64 << 20;
/// An error answer, of which only the message is kept.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// What the gateway's header fields say of the way a request took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) instance: Option<String>,
    pub(crate) reason: Option<&'static str>,
    pub(crate) predicted_cached_tokens: Option<TokenCount>,
}

/// The real thing.
#[derive(Debug)]
pub(crate) struct HttpTransport {
    target: Target,
    path: String,
    stream: bool,
    request_timeout: Duration,
    headers: HeaderMap,
    pool: Pool,
}

impl HttpTransport {
    pub(crate) fn new(settings: &Settings, path: String) -> Result<Self, http::Error> {
        let Settings { target, stream, request_timeout, headers, .. } = settings;
        let mut headers = headers.clone();
        headers.insert(HOST, HeaderValue::try_from(&target.authority)?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (target, stream, request_timeout) = (target.clone(), *stream, *request_timeout);
        Ok(Self { target, path, stream, request_timeout, headers, pool: Pool::default() })
    }

    /// Connections opened so far.
    pub(crate) fn connections(&self) -> u64 {
        self.pool.opened.load(Ordering::Relaxed)
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = Method::POST;
        let malformed = |error| Failure::new(FailureKind::Malformed, error);
        *request.uri_mut() =
            self.path.parse().map_err(|e: http::uri::InvalidUri| malformed(e.to_string()))?;
        *request.headers_mut() = self.headers.clone();
        let session = HeaderValue::try_from(format!("{:016x}", call.session_key))
            .map_err(|error| malformed(error.to_string()))?;
        request.headers_mut().insert(SESSION_ID, session);
        Ok(request)
    }

    async fn exchange(
        &self,
        call: &Call,
        clock: Clock,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let (sender, answer) = self.pool.send(&self.target, self.request(call)?).await?;
        report.route = Route::of(answer.headers());
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::OK {
            let body = read_all(body, ERROR_BYTES_MAX).await.unwrap_or_default();
            self.pool.put(sender);
            return Err(Failure::new(
                FailureKind::Status(head.status.as_u16()),
                error_message(&body),
            ));
        }
        if self.stream {
            check_content_type(&head.headers)?;
            read_stream(body, clock, &mut report.answer).await?;
        } else {
            let body = read_all(body, BODY_BYTES_MAX).await?;
            report.answer.take_body(clock.now(), &body)?;
        }
        self.pool.put(sender);
        Ok(())
    }
}

impl Transport for HttpTransport {
    async fn exchange(&self, call: Call, clock: Clock) -> Report {
        let mut report = Report::new(call.id, clock.now());
        let exchange = self.exchange(&call, clock, &mut report);
        let result = match tokio::time::timeout(self.request_timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(Failure::new(
                FailureKind::TimedOut,
                format_args!("no complete answer after {:?}", self.request_timeout),
            )),
        };
        report.over = clock.now();
        report.result = result;
        report
    }
}

impl Route {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            instance: text(INSTANCE).map(str::to_owned),
            reason: text(REASON).map(reason_name),
            predicted_cached_tokens: text(PREDICTED).and_then(|n| n.parse().ok()).map(TokenCount),
        }
    }
}

/// The published name that this is; `"unknown"` for one that this version does not know.
fn reason_name(name: &str) -> &'static str {
    let known: Result<Reason, NoSuchName> = Reason::deserialize(name.into_deserializer());
    known.map_or("unknown", Reason::name)
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Failure> {
    let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if content_type.starts_with(b"text/event-stream") {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(content_type);
    let message = format_args!("a stream was asked for and {shown:?} came; set stream = false");
    Err(Failure::new(FailureKind::Malformed, message))
}

/// Reads to the end of the body, so that the connection can be kept, and leaves what comes after `[DONE]`.
async fn read_stream(mut body: Incoming, clock: Clock, answer: &mut Answer) -> Result<(), Failure> {
    let mut parser = SseParser::new(EVENT_BYTES_MAX);
    while let Some(frame) = body.frame().await {
        let now = clock.now();
        let frame = match frame {
            Ok(frame) => frame,
            // The answer is complete; that the connection then ends badly costs nothing but the connection.
            Err(_) if answer.is_done => break,
            Err(error) => return Err(broken(&error)),
        };
        let Ok(bytes) = frame.into_data() else { continue };
        if answer.is_done {
            continue;
        }
        parser.push(&bytes).map_err(|error| Failure::new(FailureKind::Malformed, error))?;
        while let Some(event) = parser.next_event() {
            answer.take_event(now, &event)?;
            if answer.is_done {
                break;
            }
        }
    }
    answer.ended()
}

async fn read_all(body: Incoming, bytes_max: usize) -> Result<Bytes, Failure> {
    match Limited::new(body, bytes_max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(Failure::new(FailureKind::Connection, error)),
    }
}

/// hyper says what went wrong one level down.
fn broken(error: &hyper::Error) -> Failure {
    let cause = std::error::Error::source(error);
    let message = cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    Failure::new(FailureKind::Connection, message)
}

type Sender = SendRequest<Full<Bytes>>;

/// Connections that carry no exchange at the moment; the latest used goes first.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: Mutex<Vec<(Instant, Sender)>>,
    opened: AtomicU64,
}

impl Pool {
    /// Sends a request and waits for the head of its answer.
    async fn send(
        &self,
        target: &Target,
        request: Request<Full<Bytes>>,
    ) -> Result<(Sender, Response<Incoming>), Failure> {
        let mut request = request;
        while let Some(mut sender) = self.take() {
            match sender.try_send_request(request).await {
                Ok(answer) => return Ok((sender, answer)),
                // The server had closed the connection, and nothing was written to it.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(broken(error.error())),
                },
            }
        }
        let mut sender = self.open(target).await?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        Ok((sender, answer))
    }

    async fn open(&self, target: &Target) -> Result<Sender, Failure> {
        let refused = |error| Failure::new(FailureKind::Connect, error);
        let stream =
            TcpStream::connect(&*target.authority).await.map_err(|e| refused(e.to_string()))?;
        stream.set_nodelay(true).map_err(|e| refused(e.to_string()))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        // It ends when its sender and the body it feeds are gone, or the server closes it; its errors come out there.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn take(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while let Some((since, sender)) = idle.pop() {
            if since.elapsed() >= IDLE_MAX {
                // What lies below is older still.
                idle.clear();
                return None;
            }
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end.
    fn put(&self, sender: Sender) {
        if !sender.is_closed() {
            let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            idle.push((Instant::now(), sender));
        }
    }
}

/// One GET, over a connection of its own.
pub(crate) async fn get(target: &Target, endpoint: &str) -> Result<(StatusCode, Bytes), String> {
    let pool = Pool::default();
    let mut request = Request::new(Full::default());
    *request.uri_mut() =
        target.path(endpoint).parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let host = HeaderValue::try_from(&target.authority).map_err(|error| error.to_string())?;
    request.headers_mut().insert(HOST, host);
    let (_sender, answer) = pool.send(target, request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = read_all(answer.into_body(), BODY_BYTES_MAX).await;
    Ok((status, body.map_err(|error| error.to_string())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_those_of_the_policies() {
        assert_eq!(reason_name("cache-score"), "cache-score");
        assert_eq!(reason_name("rotation"), "rotation");
        assert_eq!(reason_name("gut-feeling"), "unknown");
    }
}
