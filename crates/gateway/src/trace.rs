//! Spans of requests, exported as OTLP over HTTP; and the W3C trace context that ties them to those of others.
//!
//! A request whose `traceparent` says that it is sampled, or one without a trace that is drawn at
//! [`TracingConfig::sample_ratio`], gets a span, and the instance gets a `traceparent` that names it as the parent. All
//! others pass as they came, and so does every one if there is no endpoint.
//!
//! Formats: W3C Trace Context, <https://www.w3.org/TR/trace-context/>; OTLP 1, section "OTLP/HTTP".

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, IdGenerator, RandomIdGenerator, Sampler, SamplingDecision, ShouldSample,
    SpanData, SpanEvents, SpanLinks, SpanProcessor,
};
use tokio::runtime;
use tokio::time::timeout;

use crate::config::TracingConfig;
use crate::error::Failure;
use crate::instance::Target;
use crate::upstream::{self, Outgoing};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Where spans go, under the endpoint.
const SPANS_PATH: &str = "/v1/traces";
/// For one batch of spans.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of the collector's answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Draws, and exports what has ended from a thread of its own.
///
/// A bounded queue lies between: with the collector gone, spans are lost and requests are not held up.
#[derive(Debug)]
pub(crate) struct Tracer {
    processor: BatchSpanProcessor,
    sampler: Sampler,
    scope: InstrumentationScope,
}

impl Tracer {
    /// `None` if there is no endpoint.
    ///
    /// # Errors
    /// If the exporter cannot be built; the configuration was validated.
    pub(crate) fn new(config: &TracingConfig) -> Result<Option<Self>, ExporterBuildError> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector)
            .with_endpoint(format!("{}{SPANS_PATH}", endpoint.trim_end_matches('/')))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        processor.set_resource(&Resource::builder().with_service_name("kvroute").build());
        let scope =
            InstrumentationScope::builder("kvroute").with_version(env!("CARGO_PKG_VERSION"));
        Ok(Some(Self {
            processor,
            sampler: Sampler::TraceIdRatioBased(config.sample_ratio),
            scope: scope.build(),
        }))
    }

    /// Exports what is left. Waits for the collector.
    pub(crate) fn shutdown(&self) {
        if let Err(error) = self.processor.shutdown() {
            tracing::warn!(%error, "the last spans may not have been exported");
        }
    }

    fn is_drawn(&self, trace: TraceId) -> bool {
        let drawn = self.sampler.should_sample(None, trace, "", &SpanKind::Server, &[], &[]);
        drawn.decision == SamplingDecision::RecordAndSample
    }
}

/// The span of one request. Exported when it is dropped; nothing at all for a request that is not traced.
#[derive(Default)]
pub(crate) struct RequestSpan(Option<Box<Recording>>);

struct Recording {
    tracer: Arc<Tracer>,
    context: SpanContext,
    parent: SpanId,
    name: String,
    arrived: Instant,
    arrived_at: SystemTime,
    attributes: Vec<KeyValue>,
    status: Status,
}

impl RequestSpan {
    /// Begins the span of a request that arrived at `arrived`, and puts it in the fields that the instance gets.
    pub(crate) fn begin(
        tracer: Option<&Arc<Tracer>>,
        arrived: Instant,
        method: &http::Method,
        path: &str,
        headers: &mut HeaderMap,
    ) -> Self {
        let Some(tracer) = tracer else { return Self(None) };
        let ids = RandomIdGenerator::default();
        let parent = remote_parent(headers);
        let is_sampled = parent.as_ref().map(SpanContext::is_sampled);
        let trace = parent.as_ref().map_or_else(|| ids.new_trace_id(), SpanContext::trace_id);
        if !is_sampled.unwrap_or_else(|| tracer.is_drawn(trace)) {
            return Self(None);
        }
        if parent.is_none() {
            // It belongs to a trace that could not be read.
            headers.remove(TRACESTATE);
        }
        let state = parent.as_ref().map_or_else(TraceState::default, |it| it.trace_state().clone());
        let span = ids.new_span_id();
        let context = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, state);
        if let Ok(value) = HeaderValue::from_str(&format!("00-{trace}-{span}-01")) {
            headers.insert(TRACEPARENT, value);
        }
        Self(Some(Box::new(Recording {
            tracer: Arc::clone(tracer),
            context,
            parent: parent.map_or(SpanId::INVALID, |parent| parent.span_id()),
            name: format!("{method} {}", path.split('?').next().unwrap_or(path)),
            arrived,
            arrived_at: SystemTime::now() - arrived.elapsed(),
            attributes: vec![KeyValue::new("http.request.method", method.to_string())],
            status: Status::Unset,
        })))
    }

    /// Notes facts; `facts` is called only if there is a span.
    pub(crate) fn note<const N: usize>(&mut self, facts: impl FnOnce() -> [KeyValue; N]) {
        if let Some(recording) = &mut self.0 {
            recording.attributes.extend(facts());
        }
    }

    /// The first bytes of the answer's body were there at `now`.
    pub(crate) fn first_bytes(&mut self, now: Instant) {
        if let Some(recording) = &mut self.0 {
            let ttft = now.saturating_duration_since(recording.arrived);
            let ttft_ms = KeyValue::new("kvroute.ttft_ms", ttft.as_secs_f64() * 1e3);
            recording.attributes.push(ttft_ms);
        }
    }

    /// The answer's status, as the client gets it.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        if let Some(recording) = &mut self.0 {
            let code = KeyValue::new("http.response.status_code", i64::from(status.as_u16()));
            recording.attributes.push(code);
            if status.is_server_error() {
                recording.status = Status::error(status.to_string());
            }
        }
    }

    /// What went wrong, in the end.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        if let Some(recording) = &mut self.0 {
            recording.attributes.push(KeyValue::new("error.type", failure.kind()));
            recording.status = Status::error(failure.to_string());
        }
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        let Some(recording) = self.0.take() else { return };
        let Recording { tracer, context, parent, name, arrived, arrived_at, attributes, status } =
            *recording;
        tracer.processor.on_end(SpanData {
            span_context: context,
            parent_span_id: parent,
            parent_span_is_remote: parent != SpanId::INVALID,
            span_kind: SpanKind::Server,
            name: name.into(),
            start_time: arrived_at,
            end_time: arrived_at + arrived.elapsed(),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: tracer.scope.clone(),
        });
    }
}

/// The caller's span; `None` if there is none, or its fields cannot be read.
fn remote_parent(headers: &HeaderMap) -> Option<SpanContext> {
    let mut values = headers.get_all(TRACEPARENT).iter();
    let (value, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
    let is_lower_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let mut parts = value.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // Later versions may go on after the flags, version 00 may not; ff is none.
    let fits_version = version == "00" && parts.next().is_none() || !matches!(version, "00" | "ff");
    let is_whole = is_lower_hex(version, 2)
        && is_lower_hex(trace, 32)
        && is_lower_hex(span, 16)
        && is_lower_hex(flags, 2);
    if !(fits_version && is_whole) {
        return None;
    }
    let state: Vec<&str> =
        headers.get_all(TRACESTATE).iter().filter_map(|value| value.to_str().ok()).collect();
    let parent = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::from_str(&state.join(",")).unwrap_or_default(),
    );
    parent.is_valid().then_some(parent)
}

/// Sends batches to the collector. Called on the exporter's own thread, which may wait.
#[derive(Debug)]
struct Collector;

impl HttpClient for Collector {
    // What `async fn` becomes in a trait that is used as an object.
    fn send_bytes<'a, 'f>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        let result = post(request);
        match &result {
            Ok(response) if response.status().is_success() => {}
            Ok(response) => {
                let status = response.status().as_u16();
                tracing::warn!(status, "the collector refuses spans");
            }
            Err(error) => tracing::warn!(%error, "spans are lost: no answer from the collector"),
        }
        Box::pin(std::future::ready(result))
    }
}

fn post(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (head, body) = request.into_parts();
    let endpoint = head.uri.to_string();
    let path = head.uri.path().to_owned();
    let base = endpoint.strip_suffix(&path).unwrap_or(&endpoint);
    let target = Target::parse(base)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let outgoing =
        Outgoing { method: &head.method, path: &path, headers: &head.headers, body: &body };
    let call = upstream::call(&target, &outgoing, ANSWER_BYTES_MAX);
    let (status, body) = runtime.block_on(async { timeout(EXPORT_TIMEOUT, call).await })??;
    let mut response = Response::new(body);
    *response.status_mut() = status;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(value: &'static str) -> Option<SpanContext> {
        let value = HeaderValue::from_static(value);
        remote_parent(&HeaderMap::from_iter([(TRACEPARENT, value)]))
    }

    #[test]
    fn the_callers_span_is_read_as_the_standard_says() {
        let known = parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!(known.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(known.span_id().to_string(), "b7ad6b7169203331");
        assert!(known.is_sampled());
        let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert!(!parent(unsampled).unwrap().is_sampled());
        let later = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes";
        assert!(parent(later).is_some());
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parent(bad), None, "{bad}");
        }
    }
}
