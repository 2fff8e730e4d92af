//! A request that is booked at an instance.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::StatusCode;
use kvroute_index_audit::Reported;
use kvroute_policy::Reason;
use kvroute_router::{Routed, Ticket};
use kvroute_types::TokenCount;
use opentelemetry::KeyValue;

use super::caches::Prediction;
use super::{Core, Fleet};
use crate::config::{GatewayConfig, seconds};
use crate::instance::Instance;
use crate::metrics::{Outcome, RouteMetrics};
use crate::trace::RequestSpan;

/// Weight of the newest sample in an instance's prefill rate.
const RATE_WEIGHT: f64 = 0.2;
/// Shortest prefill, tokens, that says something about the rate.
const RATE_TOKENS_MIN: u64 = 256;

/// How an answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// As a stream, of which nothing has come yet.
    Waiting,
    /// As a stream that has begun.
    Speaking,
    /// In one piece.
    Whole,
}

/// What was decided of a request.
pub(super) struct Booking {
    pub(super) routed: Routed,
    pub(super) policy: &'static str,
    /// When the client's request came.
    pub(super) arrived: Instant,
    /// When it was booked.
    pub(super) sent: Instant,
    /// Prefill work at the instance, its own included, tokens.
    pub(super) work_tokens: u64,
    pub(super) prediction: Prediction,
}

/// A request booked at an instance. Dropping it ends the booking, on every path there is.
pub(crate) struct Flight {
    fleet: Arc<Fleet>,
    pub(crate) instance: Arc<Instance>,
    pub(crate) reason: Reason,
    policy: &'static str,
    pub(crate) predicted_cached_tokens: Option<TokenCount>,
    /// `None` only while dropping.
    ticket: Option<Ticket>,
    metrics: Arc<RouteMetrics>,
    arrived: Instant,
    sent: Instant,
    /// Prefill work at the instance when this was sent, its own included, tokens.
    work_tokens: u64,
    kind: Kind,
    outcome: Outcome,
    prediction: Prediction,
    /// Whether the answer is one to the request, and not an error.
    is_success: bool,
    /// What the answer said of the prompt.
    reported: Option<Reported>,
    /// Ends with the flight that answers.
    pub(crate) span: RequestSpan,
}

impl Flight {
    pub(super) fn new(
        fleet: Arc<Fleet>,
        instance: Arc<Instance>,
        metrics: Arc<RouteMetrics>,
        booking: Booking,
    ) -> Self {
        let Booking { routed, policy, arrived, sent, work_tokens, prediction } = booking;
        Self {
            fleet,
            instance,
            reason: routed.reason,
            policy,
            predicted_cached_tokens: routed.predicted_cached_tokens,
            ticket: Some(routed.ticket),
            metrics,
            arrived,
            sent,
            work_tokens,
            kind: Kind::Waiting,
            outcome: Outcome::Abandoned,
            prediction,
            is_success: false,
            reported: None,
            span: RequestSpan::default(),
        }
    }

    /// Where the request went, after so many other tries, for its span.
    pub(crate) fn attributes(&self, retries: usize) -> [KeyValue; 5] {
        let tokens = self.predicted_cached_tokens.map_or(0, |tokens| i64::from(tokens.0));
        [
            KeyValue::new("kvroute.policy", self.policy),
            KeyValue::new("kvroute.instance", self.instance.name.clone()),
            KeyValue::new("kvroute.reason", self.reason.name()),
            KeyValue::new("kvroute.predicted_cached_tokens", tokens),
            KeyValue::new("kvroute.retries", i64::try_from(retries).unwrap_or(i64::MAX)),
        ]
    }

    /// The answer will come in one piece, so nothing will be heard until it is there.
    pub(crate) fn is_whole(&mut self) {
        self.set_kind(Kind::Whole);
    }

    /// The first bytes of the answer's body are there.
    pub(crate) fn first_bytes(&mut self, now: Instant) {
        self.span.first_bytes(now);
        let is_stream = self.kind == Kind::Waiting;
        self.heard(now);
        if !is_stream {
            return;
        }
        self.set_kind(Kind::Speaking);
        self.metrics.ttft.observe(now.saturating_duration_since(self.arrived).as_secs_f64());
        let mut core = self.fleet.core();
        if let Some(ticket) = &self.ticket {
            core.router.first_token(ticket);
        }
        let taken_s = now.saturating_duration_since(self.sent).as_secs_f64();
        if self.work_tokens >= RATE_TOKENS_MIN
            && taken_s > 0.0
            && let Some(member) = core.member_mut(self.instance.id)
        {
            let rate = self.work_tokens as f64 / taken_s;
            let known = member.prefill_rate.unwrap_or(rate);
            member.prefill_rate = Some(known + RATE_WEIGHT * (rate - known));
        }
    }

    /// More bytes are there, `gap_s` after the last.
    pub(crate) fn next_bytes(&self, now: Instant, gap_s: f64) {
        self.heard(now);
        if self.kind == Kind::Speaking {
            self.metrics.itl.observe(gap_s);
        }
    }

    /// The answer's head is there.
    pub(crate) fn answers(&mut self, status: StatusCode) {
        self.is_success = status.is_success();
        self.span.answered(status);
    }

    /// The answer said this of its prompt.
    pub(crate) fn reported(&mut self, reported: Option<Reported>) {
        self.reported = reported;
    }

    /// Compares what was predicted with what was found, once the answer is there.
    fn compare(&self, core: &mut Core) {
        let Prediction { request, source, is_expected, is_auditable } = self.prediction;
        let is_answered = self.is_success && self.outcome == Outcome::Answered;
        if is_expected && is_answered {
            core.compare_cached(self.fleet.now(), self.instance.id, request, self.reported);
        } else if is_expected {
            core.forget_expected(self.instance.id, request);
        }
        let cached = self.reported.and_then(|reported| reported.cached_tokens);
        if is_answered
            && is_auditable
            && let (Some(source), Some(cached), Some(predicted)) =
                (source, cached, self.predicted_cached_tokens)
        {
            self.metrics.compared(source, predicted, cached);
        }
    }

    /// The answer is complete. What has failed (by its status, say) stays failed.
    pub(crate) fn answered(&mut self) {
        if self.outcome != Outcome::Failed {
            self.outcome = Outcome::Answered;
        }
    }

    /// The instance failed the request.
    pub(crate) fn failed(&mut self) {
        self.outcome = Outcome::Failed;
    }

    /// Silence that a client heard who left: one who left before the prefill can have been done has heard none.
    fn silence(&self, core: &Core, config: &GatewayConfig) -> Duration {
        if self.outcome != Outcome::Abandoned {
            return Duration::ZERO;
        }
        let prefill_s = core.member(self.instance.id);
        let prefill_s = prefill_s.map_or(0.0, |it| it.prefill_s_max(self.work_tokens, config));
        let silent = self.fleet.now().since(self.instance.activity.last_sign());
        silent.saturating_sub(seconds(prefill_s))
    }

    fn heard(&self, now: Instant) {
        self.instance.activity.heard(self.fleet.timestamp(now));
    }

    fn set_kind(&mut self, kind: Kind) {
        let count = |kind| match kind {
            Kind::Waiting => None,
            Kind::Speaking => Some(&self.instance.activity.speaking),
            Kind::Whole => Some(&self.instance.activity.whole),
        };
        if let Some(before) = count(self.kind) {
            before.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(after) = count(kind) {
            after.fetch_add(1, Ordering::Relaxed);
        }
        self.kind = kind;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.set_kind(Kind::Waiting);
        self.metrics.ended(self.outcome);
        self.metrics.e2e.observe(self.arrived.elapsed().as_secs_f64());
        let config = self.fleet.config();
        let mut core = self.fleet.core();
        if let Some(ticket) = self.ticket.take() {
            core.router.end(ticket);
        }
        self.compare(&mut core);
        if core.candidate(self.instance.id).is_some_and(|it| it.in_flight == 0) {
            self.instance.activity.rests(self.silence(&core, &config));
        }
        if self.outcome == Outcome::Answered
            && let Some(member) = core.member_mut(self.instance.id)
        {
            member.health.on_success(&config.health);
        }
        core.refresh(self.instance.id, &config);
        let is_awaited = core.queued > 0;
        drop(core);
        if is_awaited {
            self.fleet.place_freed();
        }
        if self.outcome == Outcome::Failed {
            let now = self.fleet.now();
            self.fleet.change_health(&self.instance, |health, config| {
                health.on_failure(now, &config.health)
            });
        }
    }
}
