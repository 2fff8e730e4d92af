//! What the gateway knows of one instance outside the router's table: its address, and signs of life.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use kvroute_kv_events::SourceConfig;
use kvroute_types::{InstanceId, Timestamp};
use tokio::sync::Notify;

/// Where an instance listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// `HOST:PORT`.
    pub(crate) authority: String,
}

/// Not an address that can be routed to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give http://HOST:PORT, without a path (TLS is not supported)")]
pub struct InvalidUrl;

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, InvalidUrl> {
        let uri: http::Uri = url.parse().map_err(|_| InvalidUrl)?;
        let authority = uri.authority().ok_or(InvalidUrl)?;
        let has_user = authority.as_str().contains('@');
        if uri.scheme_str() != Some("http") || !matches!(uri.path(), "" | "/") || has_user {
            return Err(InvalidUrl);
        }
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self { authority: format!("{}:{port}", authority.host()) })
    }
}

/// One instance, shared by all threads.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) name: String,
    pub(crate) target: Target,
    /// Where it publishes what its cache holds; `None` if it must be asked.
    pub(crate) events: Option<SourceConfig>,
    /// `name`, as it stands in answers.
    pub(crate) header: HeaderValue,
    /// Rings when the instance is given up, so that requests still waiting for it try elsewhere.
    pub(crate) given_up: Notify,
    pub(crate) activity: Activity,
}

/// Requests under way by what can be heard of them, and when something was heard last.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Streams whose first bytes have come: each should be heard at every step.
    pub(crate) speaking: AtomicU32,
    /// Answers that come whole: silent until they are done.
    pub(crate) whole: AtomicU32,
    /// Latest sign of life, ns: bytes of any answer, token counters that moved, or the end of an idle time.
    last_sign_ns: AtomicU64,
    /// Silence before the idle time that is not over or was the last, ns.
    silence_before_ns: AtomicU64,
}

impl Activity {
    /// Something was heard.
    pub(crate) fn heard(&self, now: Timestamp) {
        self.last_sign_ns.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// An idle time begins after `silence`, which goes on after it: clients that leave soon must not hide a hang.
    pub(crate) fn rests(&self, silence: Duration) {
        let ns = u64::try_from(silence.as_nanos()).unwrap_or(u64::MAX);
        self.silence_before_ns.store(ns, Ordering::Relaxed);
    }

    /// An idle time ends, which is no silence.
    pub(crate) fn has_work_again(&self, now: Timestamp) {
        let before = self.silence_before_ns.load(Ordering::Relaxed);
        self.last_sign_ns.store(now.as_nanos().saturating_sub(before), Ordering::Relaxed);
    }

    pub(crate) fn last_sign(&self) -> Timestamp {
        Timestamp::from_nanos(self.last_sign_ns.load(Ordering::Relaxed))
    }
}
