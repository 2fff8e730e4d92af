//! The HTTP surface of one instance: routes, handlers, connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kvroute_types::Timestamp;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::answer::Answer;
use crate::api_error::ApiError;
use crate::api_fields::{Fields, parse_object};
use crate::body::{Cut, Jobs, LiveStream, MockBody};
use crate::call::{Api, Call, messages, served_model, text_prompt};
use crate::chat_template;
use crate::device::JobEvent;
use crate::faults::{Faults, MetricsFault};
use crate::instance::{Instance, whole_seconds};
use crate::reply::{Reply, json};
use crate::tokenizer::{VOCABULARY, detokenize, token_str, tokenize};
use crate::wire::{Detokenized, Model, ModelList, ModelPermission, Tokenized};
use crate::zero_delay::ZeroAnswer;

/// What an instance's connections are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// Take no more requests, finish those under way.
    Draining,
    /// Drop everything.
    Killed,
}

type Answered = Result<Response<MockBody>, Cut>;

/// Accepts connections until the phase changes or its sender is gone.
pub(crate) async fn accept(
    listener: TcpListener,
    instance: Arc<Instance>,
    mut phase: watch::Receiver<Phase>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = phase.changed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(serve(stream, peer, Arc::clone(&instance), phase.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of file descriptors, most likely; others may free some.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    instance: Arc<Instance>,
    mut phase: watch::Receiver<Phase>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot turn Nagle's algorithm off");
    }
    let service = service_fn(|request| handle(Arc::clone(&instance), request));
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    loop {
        tokio::select! {
            served = connection.as_mut() => {
                if let Err(error) = served {
                    tracing::debug!(%peer, %error, "connection ended");
                }
                return;
            }
            changed = phase.changed() => {
                let now = *phase.borrow_and_update();
                if changed.is_err() || now == Phase::Killed {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Health,
    Ping,
    Version,
    Load,
    Models,
    Metrics,
    Generate(Api),
    Tokenize,
    Detokenize,
    ResetPrefixCache,
    KvEventSources,
    /// The mock's own, not vLLM's.
    MockFaults,
    MockState,
    MockFailEngine,
}

impl Route {
    fn of(path: &str, dev_mode: bool, publishes: bool) -> Option<Self> {
        Some(match path {
            "/health" => Self::Health,
            "/ping" => Self::Ping,
            "/version" => Self::Version,
            "/load" => Self::Load,
            "/v1/models" => Self::Models,
            "/metrics" => Self::Metrics,
            "/kv_event_sources" if publishes => Self::KvEventSources,
            "/v1/chat/completions" => Self::Generate(Api::Chat),
            "/v1/completions" => Self::Generate(Api::Completion),
            "/tokenize" => Self::Tokenize,
            "/detokenize" => Self::Detokenize,
            "/reset_prefix_cache" if dev_mode => Self::ResetPrefixCache,
            "/mock/faults" => Self::MockFaults,
            "/mock/state" => Self::MockState,
            "/mock/fail-engine" => Self::MockFailEngine,
            _ => return None,
        })
    }

    fn allows(self) -> &'static str {
        match self {
            Self::Health
            | Self::Version
            | Self::Load
            | Self::Models
            | Self::Metrics
            | Self::KvEventSources
            | Self::MockState => "GET",
            Self::Ping | Self::MockFaults => "GET, POST",
            Self::Generate(_)
            | Self::Tokenize
            | Self::Detokenize
            | Self::ResetPrefixCache
            | Self::MockFailEngine => "POST",
        }
    }
}

async fn handle(instance: Arc<Instance>, request: Request<Incoming>) -> Answered {
    // Everything counts from here, reading the body included (R64).
    let arrival = instance.now();
    let (parts, body) = request.into_parts();
    let Some(route) =
        Route::of(parts.uri.path(), instance.config.dev_mode, instance.events.is_some())
    else {
        return Ok(json_response(StatusCode::NOT_FOUND, r#"{"detail":"Not Found"}"#.to_owned()));
    };
    if !route.allows().split(", ").any(|allowed| parts.method == *allowed) {
        let detail = r#"{"detail":"Method Not Allowed"}"#.to_owned();
        let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, detail);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(route.allows()));
        return Ok(response);
    }
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let request = Received { arrival, headers: parts.headers, body };
    match route {
        Route::Health => Ok(health(&instance)),
        Route::Ping => Ok(empty(StatusCode::OK)),
        Route::Version => Ok(json_response(StatusCode::OK, r#"{"version":"0.32.0"}"#.to_owned())),
        Route::Load => {
            let load = format!(r#"{{"server_load":{}}}"#, instance.in_flight());
            Ok(json_response(StatusCode::OK, load))
        }
        Route::Models => Ok(json_response(StatusCode::OK, models(&instance))),
        Route::Metrics => metrics(&instance).await,
        Route::Generate(api) => generate(&instance, api, request).await,
        Route::Tokenize => Ok(respond(tokenize_text(&instance, &request))),
        Route::Detokenize => Ok(respond(detokenize_ids(&instance, &request))),
        Route::ResetPrefixCache => {
            let query = parts.uri.query().unwrap_or_default();
            let running = query.split('&').any(|pair| pair == "reset_running_requests=true");
            let success = instance.reset_prefix_cache(running).await;
            Ok(json_response(StatusCode::OK, format!(r#"{{"success":{success}}}"#)))
        }
        Route::KvEventSources => {
            let sources = instance.events.as_ref().map(|events| events.sources.clone());
            Ok(json_response(StatusCode::OK, sources.unwrap_or_default()))
        }
        Route::MockFaults if parts.method == Method::GET => {
            Ok(json_response(StatusCode::OK, json(&instance.faults())))
        }
        Route::MockFaults => Ok(set_faults(&instance, &request.body)),
        Route::MockState => Ok(state(&instance).await),
        Route::MockFailEngine => {
            instance.fail_engine();
            Ok(empty(StatusCode::OK))
        }
    }
}

/// A request whose body is here.
#[derive(Debug)]
struct Received {
    arrival: Timestamp,
    headers: HeaderMap,
    body: Bytes,
}

impl Received {
    fn check_media_type(&self) -> Result<(), ApiError> {
        let given = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = given.and_then(|given| given.split(';').next()).unwrap_or_default();
        if media_type.trim().eq_ignore_ascii_case("application/json") {
            Ok(())
        } else {
            Err(ApiError::MediaType)
        }
    }
}

fn json_response(status: StatusCode, body: String) -> Response<MockBody> {
    response(status, "application/json", MockBody::full(body))
}

fn response(status: StatusCode, content_type: &'static str, body: MockBody) -> Response<MockBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn empty(status: StatusCode) -> Response<MockBody> {
    let mut response = Response::new(MockBody::Full(None));
    *response.status_mut() = status;
    response
}

fn refuse(error: &ApiError) -> Response<MockBody> {
    json_response(error.status(), error.to_json())
}

fn respond<T: Serialize>(result: Result<T, ApiError>) -> Response<MockBody> {
    match result {
        Ok(value) => json_response(StatusCode::OK, json(&value)),
        Err(error) => refuse(&error),
    }
}

fn health(instance: &Instance) -> Response<MockBody> {
    let truth = if instance.is_dead() { 503 } else { 200 };
    let status = instance.faults().health_status.unwrap_or(truth);
    empty(StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE))
}

fn models(instance: &Instance) -> String {
    let created = whole_seconds(instance.created_s());
    let permission = |number: u64| ModelPermission {
        id: format!("modelperm-{}", instance.random_id(u64::MAX - number)),
        object: "model_permission",
        created,
        allow_create_engine: false,
        allow_sampling: true,
        allow_logprobs: true,
        allow_search_indices: false,
        allow_view: true,
        allow_fine_tuning: false,
        organization: "*",
        group: None,
        is_blocking: false,
    };
    let served = (0..).zip(&instance.config.models);
    json(&ModelList {
        object: "list",
        data: served
            .map(|(number, id)| Model {
                id,
                object: "model",
                created,
                owned_by: "vllm",
                root: &instance.config.models[0],
                parent: None,
                max_model_len: instance.config.engine.max_model_len,
                permission: [permission(number)],
            })
            .collect(),
    })
}

async fn metrics(instance: &Instance) -> Answered {
    const CONTENT: &str = "text/plain; version=1.0.0; charset=utf-8";
    let fault = instance.faults().metrics;
    let ok = |page: &str| response(StatusCode::OK, CONTENT, MockBody::full(page.to_owned()));
    match fault {
        MetricsFault::None | MetricsFault::Truncated => {}
        MetricsFault::Error => return Ok(refuse(&ApiError::Injected { status: 500 })),
        MetricsFault::Empty => return Ok(ok("")),
        MetricsFault::Garbage => return Ok(ok("<html>\u{fffd} vllm:num_requests_running{ NaN\n")),
        MetricsFault::Foreign => {
            return Ok(ok("# TYPE other_requests gauge\nother_requests 7.0\n"));
        }
        MetricsFault::Hang => std::future::pending().await,
    }
    let Some(page) = instance.metrics_page().await else { return Err(Cut) };
    if fault == MetricsFault::Truncated {
        let running = page.find("vllm:num_requests_running{").unwrap_or(page.len());
        return Ok(ok(&page[..(running + 40).min(page.len())]));
    }
    Ok(ok(&page))
}

fn tokenize_text(instance: &Instance, request: &Received) -> Result<Tokenized, ApiError> {
    request.check_media_type()?;
    let object = parse_object(&request.body)?;
    let fields = Fields::of_body(&object);
    let is_on = |name| if fields.get(name).is_none() { Ok(true) } else { fields.boolean(name) };
    let tokens = if fields.get("messages").is_some() {
        let messages = messages(&fields)?;
        served_model(&instance.config, &fields)?;
        chat_template::render(&messages, is_on("add_generation_prompt")?, usize::MAX)
    } else {
        fields.required("prompt")?;
        let prompt = fields.string("prompt")?.unwrap_or_default();
        served_model(&instance.config, &fields)?;
        if is_on("add_special_tokens")? {
            text_prompt(&instance.config, prompt)
        } else {
            let mut tokens = Vec::new();
            tokenize(prompt, usize::MAX, &mut tokens);
            tokens
        }
    };
    let strings = fields.boolean("return_token_strs")?;
    Ok(Tokenized {
        count: tokens.len(),
        max_model_len: instance.config.engine.max_model_len,
        token_strs: strings.then(|| tokens.iter().map(|&token| token_str(token)).collect()),
        tokens,
    })
}

fn detokenize_ids(instance: &Instance, request: &Received) -> Result<Detokenized, ApiError> {
    request.check_media_type()?;
    let object = parse_object(&request.body)?;
    let fields = Fields::of_body(&object);
    fields.required("tokens")?;
    let ids = fields.tokens("tokens")?;
    served_model(&instance.config, &fields)?;
    let id = |token: u64| {
        let known = u32::try_from(token).ok().filter(|&token| token < VOCABULARY);
        known.ok_or(ApiError::OutOfVocabulary { token })
    };
    let tokens: Vec<u32> = ids.into_iter().map(id).collect::<Result<_, _>>()?;
    Ok(Detokenized { prompt: detokenize(&tokens) })
}

async fn generate(instance: &Arc<Instance>, api: Api, request: Received) -> Answered {
    let (number, in_flight) = instance.begin_call();
    if let Some(zero) = &instance.zero {
        return Ok(match zero.answer(api, &request.body) {
            ZeroAnswer::Body(body) => {
                response(StatusCode::OK, "application/json", MockBody::full(body))
            }
            ZeroAnswer::Events(events) => event_stream(MockBody::Ready(events, 0)),
        });
    }
    let faults = instance.faults();
    if !faults.header_delay().is_zero() {
        tokio::time::sleep(faults.header_delay()).await;
    }
    if faults.hang {
        std::future::pending::<()>().await;
    }
    if let Some(status) = instance.injected_error(&faults, number) {
        return Ok(refuse(&ApiError::Injected { status }));
    }
    if instance.is_dead() {
        return Ok(refuse(&ApiError::EngineDead));
    }
    let call = request
        .check_media_type()
        .and_then(|()| Call::parse(api, &instance.config, &request.headers, &request.body));
    match call {
        Err(error) => Ok(refuse(&error)),
        Ok(call) => {
            let streams = call.stream;
            let (jobs, reply) = start(instance, number, request.arrival, call, &faults);
            if streams {
                let stream = LiveStream::new(jobs, reply, &faults, in_flight);
                Ok(event_stream(MockBody::Live(Box::new(stream))))
            } else {
                whole(jobs, reply, &faults).await
            }
        }
    }
}

fn event_stream(body: MockBody) -> Response<MockBody> {
    response(StatusCode::OK, "text/event-stream; charset=utf-8", body)
}

/// Draws the answers and sets the engine to work on them.
fn start(
    instance: &Arc<Instance>,
    number: u64,
    arrival: Timestamp,
    call: Call,
    faults: &Faults,
) -> (Jobs, Reply) {
    let choices = call.prompts.iter().flat_map(|prompt| (0..call.n).map(move |n| (prompt, n)));
    let answers: Vec<Answer> =
        choices.map(|(prompt, n)| Answer::draw(&prompt.rules, &prompt.tokens, n)).collect();
    let jobs = instance.submit(arrival, &call, &answers, faults);
    (jobs, Reply::new(instance.reply_header(&call, number), call, answers))
}

/// Waits for all tokens.
async fn whole(mut jobs: Jobs, mut reply: Reply, faults: &Faults) -> Answered {
    let mut tokens = 0;
    loop {
        if faults.silent_after_tokens.is_some_and(|after| tokens >= after) {
            std::future::pending::<()>().await;
        }
        if faults.cut_after_tokens.is_some_and(|after| tokens >= after) {
            return Err(Cut);
        }
        match jobs.next().await {
            Some(JobEvent::Token { choice, cached_tokens, finish }) => {
                reply.token(choice, cached_tokens, finish, &mut Vec::new());
                tokens += 1;
            }
            Some(JobEvent::EngineDead) => {
                jobs.over();
                return Ok(refuse(&ApiError::EngineDead));
            }
            None => return Err(Cut),
        }
        if reply.is_complete() {
            jobs.over();
            return Ok(json_response(StatusCode::OK, reply.body()));
        }
    }
}

/// `POST /mock/faults`: the body replaces all faults; what it leaves out is off.
fn set_faults(instance: &Instance, body: &[u8]) -> Response<MockBody> {
    let parsed = serde_json::from_slice::<Faults>(body).map_err(|error| error.to_string());
    let checked =
        parsed.and_then(|faults| faults.validate().map(|()| faults).map_err(|e| e.to_string()));
    match checked {
        Ok(faults) => {
            instance.set_faults(faults);
            json_response(StatusCode::OK, json(&instance.faults()))
        }
        Err(detail) => {
            let body = json(&serde_json::json!({ "detail": detail }));
            json_response(StatusCode::BAD_REQUEST, body)
        }
    }
}

/// `GET /mock/state`: what tests want to know and metrics do not say.
async fn state(instance: &Instance) -> Response<MockBody> {
    let Some(snapshot) = instance.snapshot().await else {
        return empty(StatusCode::SERVICE_UNAVAILABLE);
    };
    let state = serde_json::json!({
        "running": snapshot.gauges.running,
        "waiting": snapshot.gauges.waiting,
        "kv_cache_usage": snapshot.gauges.kv_cache_usage,
        "aborted": snapshot.counters.aborted,
        "block_keys": snapshot.block_keys,
        "cached_blocks": snapshot.cached_blocks,
    });
    json_response(StatusCode::OK, json(&state))
}
