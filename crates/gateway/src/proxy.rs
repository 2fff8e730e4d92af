//! One request: read, route, send, relay; and what becomes of it when something fails.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::request::Parts;
use http::response::Parts as AnswerHead;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use kvroute_prompt_tokens::Endpoint;
use opentelemetry::KeyValue;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};

use crate::client::Outbox;
use crate::config::{GatewayConfig, seconds};
use crate::error::Failure;
use crate::fleet::Flight;
use crate::prompt::RoutingFacts;
use crate::relay::{AnswerBody, Relay};
use crate::server::Worker;
use crate::trace::RequestSpan;
use crate::upstream::{self, Connection, Outgoing};

const INSTANCE: HeaderName = HeaderName::from_static("x-kvroute-instance");
const REASON: HeaderName = HeaderName::from_static("x-kvroute-reason");
const PREDICTED: HeaderName = HeaderName::from_static("x-kvroute-predicted-cached-tokens");

/// Fields that belong to one connection (RFC 9110, 7.6.1), beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// What a client announces is not believed beyond this.
const FIRST_ALLOCATION_BYTES_MAX: usize = 256 << 10;

/// Most bytes of a refused body that are read so that the client hears the refusal; whoever sends more does not.
const DISCARDED_BYTES_MAX: u64 = 64 << 20;

/// Most bytes of an instance's list of models.
const MODELS_BYTES_MAX: usize = 4 << 20;

/// Answers one client request.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    outbox: Rc<Outbox>,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    let result = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/health") => Ok(status(StatusCode::OK)),
        (&Method::GET | &Method::HEAD, "/ready") if worker.fleet.is_ready() => {
            Ok(status(StatusCode::OK))
        }
        (&Method::GET | &Method::HEAD, "/ready") => Err(Failure::NoInstance),
        (_, "/health" | "/ready") => Err(Failure::MethodNotAllowed { allowed: "GET" }),
        (&Method::GET, "/v1/models") => models(&worker, request).await,
        (&Method::POST, "/v1/chat/completions") => {
            relay(&worker, outbox, request, Some(Endpoint::Chat)).await
        }
        (&Method::POST, "/v1/completions") => {
            relay(&worker, outbox, request, Some(Endpoint::Completions)).await
        }
        // Other methods too: an instance says 405 itself, and answers a browser's preflight.
        (_, path) if path.starts_with("/v1/") => relay(&worker, outbox, request, None).await,
        (_, path) => Err(Failure::NotFound { path: path.to_owned() }),
    };
    let mut response = result.unwrap_or_else(|failure| {
        worker.fleet.metrics.error(&failure);
        tracing::debug!(%failure, kind = failure.kind(), "request refused");
        failure.response().map(|body| AnswerBody::Own(Some(body)))
    });
    if worker.is_stopping() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn status(status: StatusCode) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Own(None));
    *response.status_mut() = status;
    response
}

/// An answer of which the first bytes are there.
struct Answer {
    head: AnswerHead,
    connection: Connection,
    /// `None` if the body is empty.
    first: Option<Bytes>,
}

async fn relay(
    worker: &Rc<Worker>,
    outbox: Rc<Outbox>,
    request: Request<Incoming>,
    prompt_of: Option<Endpoint>,
) -> Result<Response<AnswerBody>, Failure> {
    let arrived = Instant::now();
    let config = worker.fleet.config();
    let (Parts { method, uri, mut headers, .. }, body) = request.into_parts();
    let body = read_body(body, &headers, &config).await?;
    let facts = if let Some(endpoint) = prompt_of {
        match RoutingFacts::parse(&headers, &body, &config.prompt, config.seed) {
            Ok(mut facts) => {
                worker.fleet.name(endpoint, &body, &mut facts).await;
                facts
            }
            // JSON that is no request here may be one to the instance, which reads it more laxly; if not, the client is
            // to hear it in the instance's words.
            Err(error) if error.is_data() => {
                tracing::debug!(%error, "routed without knowledge of the prompt");
                RoutingFacts::opaque(&headers)
            }
            Err(error) => return Err(Failure::BadRequest { detail: error.to_string() }),
        }
    } else {
        RoutingFacts::opaque(&headers)
    };
    remove_hop_by_hop(&mut headers);
    let tracer = worker.fleet.tracer.as_ref();
    let mut span = RequestSpan::begin(tracer, arrived, &method, uri.path(), &mut headers);
    span.note(|| [KeyValue::new("kvroute.prompt_tokens", i64::from(facts.prompt_tokens.0))]);
    // The instance gets the path alone, also if the client named the gateway as a proxy would be.
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    // The same bytes at every try.
    let outgoing = Outgoing { method: &method, path, headers: &headers, body: &body };

    let admitted = worker.fleet.admit(arrived, &facts).await;
    let mut flight = admitted.inspect_err(|failure| span.failed(failure))?;
    let mut tried = Vec::new();
    loop {
        if !facts.is_stream {
            flight.is_whole();
        }
        let result = attempt(worker, &config, &outgoing, &flight).await;
        if result.as_ref().is_ok_and(|answer| !answer.head.status.is_server_error()) {
            span.note(|| flight.attributes(tried.len()));
            flight.span = span;
            return result.map(|answer| respond(worker, outbox, &config, answer, flight));
        }
        // Not a 500: it may be the request's doing, and would then fail wherever it goes.
        let is_retryable =
            result.as_ref().map_or(true, |answer| matches!(answer.head.status.as_u16(), 502..=504));
        tried.push(flight.instance.id);
        flight.failed();
        let about = flight.attributes(tried.len() - 1);
        // What it answered is kept in case nobody does better; a request without any answer ends here.
        let answered = result.map(|answer| (answer, flight));
        if is_retryable
            && tried.len() <= config.retry.tries_max as usize
            && let Some(next) = worker.fleet.admit_retry(arrived, &facts, &tried).await
        {
            flight = next;
            continue;
        }
        span.note(|| about);
        return match answered {
            Ok((answer, mut flight)) => {
                flight.span = span;
                Ok(respond(worker, outbox, &config, answer, flight))
            }
            Err(failure) => {
                span.failed(&failure);
                Err(failure)
            }
        };
    }
}

/// Reads the whole body, once.
async fn read_body(
    mut body: Incoming,
    headers: &HeaderMap,
    config: &GatewayConfig,
) -> Result<Bytes, Failure> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let limit = seconds(config.timeouts.request_body_s);
    let reading = collect(&mut body, config.limits.body_bytes);
    let read = timeout(limit, reading).await.unwrap_or(Err(Failure::BodyTimeout));
    if matches!(read, Err(Failure::BodyTooLarge { .. })) && !headers.contains_key(header::EXPECT) {
        let _ = timeout(limit, discard(&mut body)).await;
    }
    read
}

/// Reads and forgets the rest of a body that is refused. Most clients write everything before they listen: a
/// connection that closes on them costs them the answer. (Those that announce `Expect` listen first.)
async fn discard(body: &mut Incoming) {
    let mut left = DISCARDED_BYTES_MAX;
    while left > 0 && body.size_hint().lower() <= left {
        let Some(Ok(frame)) = body.frame().await else { return };
        left = left.saturating_sub(frame.data_ref().map_or(0, |bytes| bytes.len() as u64));
    }
}

/// Copies each piece as it comes, so that the connection can read the next one into the same memory.
async fn collect(body: &mut Incoming, limit_bytes: usize) -> Result<Bytes, Failure> {
    let too_large = || Failure::BodyTooLarge { limit_bytes };
    let announced = usize::try_from(body.size_hint().lower()).map_err(|_| too_large())?;
    if announced > limit_bytes {
        return Err(too_large());
    }
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame.map_err(|_| Failure::BodyCut)?.into_data() else { continue };
        if all.is_empty() && body.is_end_stream() {
            return Ok(bytes);
        }
        if all.len() + bytes.len() > limit_bytes {
            return Err(too_large());
        }
        if all.is_empty() {
            all.reserve(announced.min(FIRST_ALLOCATION_BYTES_MAX));
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all.freeze())
}

/// Sends the request to the chosen instance and waits for the first bytes of the answer's body.
///
/// For the body and not only for the head: vLLM sends the head of a stream at once and the first event with the first
/// token, and as long as the client has nothing, the request can go elsewhere.
async fn attempt(
    worker: &Worker,
    config: &GatewayConfig,
    outgoing: &Outgoing<'_>,
    flight: &Flight,
) -> Result<Answer, Failure> {
    let instance = &flight.instance;
    let name = || instance.name.clone();
    tokio::select! {
        biased;
        answer = exchange(worker, config, outgoing, flight) => answer,
        () = instance.given_up.notified() => Err(Failure::GivenUp { instance: name() }),
        () = sleep(seconds(config.timeouts.first_byte_s)) => {
            Err(Failure::FirstByteTimeout { instance: name() })
        }
    }
}

async fn exchange(
    worker: &Worker,
    config: &GatewayConfig,
    outgoing: &Outgoing<'_>,
    flight: &Flight,
) -> Result<Answer, Failure> {
    let instance = &flight.instance;
    let closed = |error: io::Error| {
        tracing::debug!(%error, instance = instance.name, "no answer");
        Failure::Closed { instance: instance.name.clone() }
    };
    let mut connection = match worker.pool.take(instance.id, seconds(config.timeouts.idle_s)) {
        Some(connection) => connection,
        None => connect(config, flight).await?,
    };
    let head = match connection.send(outgoing, &instance.target).await {
        Err(error) if connection.may_be_stale() => {
            tracing::debug!(%error, instance = instance.name, "stale connection");
            connection = connect(config, flight).await?;
            connection.send(outgoing, &instance.target).await.map_err(closed)?
        }
        head => head.map_err(closed)?,
    };
    let first = std::future::poll_fn(|cx| connection.poll_data(cx)).await;
    let first = first.transpose().map_err(closed)?;
    Ok(Answer { head, connection, first })
}

async fn connect(config: &GatewayConfig, flight: &Flight) -> Result<Connection, Failure> {
    let instance = &flight.instance;
    let open = Connection::open(&instance.target);
    let error = match timeout(seconds(config.timeouts.connect_s), open).await {
        Ok(Ok(connection)) => return Ok(connection),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "timed out".to_owned(),
    };
    tracing::debug!(error, instance = instance.name, "no connection");
    Err(Failure::Unreachable { instance: instance.name.clone() })
}

/// Turns an answer into the client's: the same but for hop-by-hop fields and the receipt.
fn respond(
    worker: &Rc<Worker>,
    outbox: Rc<Outbox>,
    config: &GatewayConfig,
    answer: Answer,
    mut flight: Flight,
) -> Response<AnswerBody> {
    let Answer { mut head, connection, first } = answer;
    let headers = &mut head.headers;
    remove_hop_by_hop(headers);
    let is_event_stream = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    headers.insert(INSTANCE, flight.instance.header.clone());
    headers.insert(REASON, HeaderValue::from_static(flight.reason.name()));
    if let Some(tokens) = flight.predicted_cached_tokens {
        headers.insert(PREDICTED, tokens.0.into());
    }
    flight.answers(head.status);
    let stall = seconds(config.timeouts.stall_s);
    let worker = Rc::clone(worker);
    let relay = Relay::new(worker, outbox, flight, connection, first, is_event_stream, stall);
    Response::from_parts(head, AnswerBody::Relay(Box::new(relay)))
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The models of all instances in use, each once.
async fn models(
    worker: &Rc<Worker>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Failure> {
    #[derive(Serialize, Deserialize)]
    struct List {
        object: String,
        data: Vec<Box<RawValue>>,
    }
    #[derive(Deserialize)]
    struct Model {
        id: String,
    }

    let mut headers = request.into_parts().0.headers;
    remove_hop_by_hop(&mut headers);
    headers.remove(header::CONTENT_LENGTH);
    let limit = seconds(worker.fleet.config().health.probe_timeout_s);
    let answers: Vec<_> = worker
        .fleet
        .instances_in_use()
        .into_iter()
        .map(|instance| {
            let headers = headers.clone();
            let ask = async move {
                upstream::get(&instance.target, "/v1/models", headers, MODELS_BYTES_MAX).await
            };
            tokio::task::spawn_local(timeout(limit, ask))
        })
        .collect();
    let mut refusal = None;
    let mut merged: Option<(List, Vec<String>)> = None;
    for answer in answers {
        let Ok(Ok(Ok((status, body)))) = answer.await else { continue };
        let Ok(list) = serde_json::from_slice::<List>(&body) else {
            refusal = Some((status, body));
            continue;
        };
        let (merged, known) = merged
            .get_or_insert_with(|| (List { object: list.object, data: Vec::new() }, Vec::new()));
        for model in list.data {
            let Ok(Model { id }) = serde_json::from_str(model.get()) else { continue };
            if !known.contains(&id) {
                known.push(id);
                merged.data.push(model);
            }
        }
    }
    let (status, body) = match (merged, refusal) {
        (Some((list, _)), _) => {
            (StatusCode::OK, serde_json::to_vec(&list).unwrap_or_default().into())
        }
        // A wrong key, say: the instance's word on it is better than ours.
        (None, Some(refusal)) => refusal,
        (None, None) => return Err(Failure::NoInstance),
    };
    let mut response = Response::new(AnswerBody::Own(Some(body)));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_end_to_end_fields_pass() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("authorization", "Bearer k"),
            ("x-anything", "2"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["authorization", "x-anything"]);
    }
}
