//! What can go wrong with a request: whose fault it is, whether to try again, and what the client is told.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// The request: sending it again cannot help.
    Client,
    /// The instance it was sent to.
    Instance,
    /// The gateway: its limits, or it has nowhere to send to.
    Gateway,
}

/// A request that the gateway could not have answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The body is no JSON at all.
    #[error("the body is not JSON: {detail}")]
    BadRequest {
        /// What was found.
        detail: String,
    },
    /// The body ended before it was complete.
    #[error("the request's body broke off")]
    BodyCut,
    /// The body did not arrive in time.
    #[error("the request's body did not arrive in time")]
    BodyTimeout,
    /// The body is over the limit.
    #[error("the request's body is larger than {limit_bytes} bytes")]
    BodyTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// Not a path that is served.
    #[error("there is no {path}; the API is under /v1/")]
    NotFound {
        /// The path.
        path: String,
    },
    /// Not the method of this path.
    #[error("use {allowed} on this path")]
    MethodNotAllowed {
        /// The method to use.
        allowed: &'static str,
    },
    /// Every instance is at its cap and the queue is full.
    #[error("all instances are busy and the queue is full")]
    QueueFull,
    /// Waited in the queue for too long.
    #[error("all instances stayed busy for as long as a request may wait")]
    QueueTimeout,
    /// No instance may be chosen at all.
    #[error("no instance can take requests")]
    NoInstance,
    /// No connection to the instance.
    #[error("no connection to instance {instance}")]
    Unreachable {
        /// Its name.
        instance: String,
    },
    /// The instance closed the connection before it answered.
    #[error("instance {instance} closed the connection before it answered")]
    Closed {
        /// Its name.
        instance: String,
    },
    /// No answer in time.
    #[error("instance {instance} did not start to answer in time")]
    FirstByteTimeout {
        /// Its name.
        instance: String,
    },
    /// It was given up (unhealthy or hung) before it answered.
    #[error("instance {instance} stopped working before it answered")]
    GivenUp {
        /// Its name.
        instance: String,
    },
    /// The answer broke off.
    #[error("the answer of instance {instance} broke off")]
    AnswerCut {
        /// Its name.
        instance: String,
    },
    /// The answer fell silent.
    #[error("the answer of instance {instance} fell silent")]
    AnswerStalled {
        /// Its name.
        instance: String,
    },
}

/// What the kinds of failure mean to clients.
struct Meaning {
    status: StatusCode,
    /// `error.type`, part of the contract.
    kind: &'static str,
    fault: Fault,
    is_retryable: bool,
}

impl Failure {
    /// The one place where failures become HTTP.
    fn meaning(&self) -> Meaning {
        use Fault::{Client, Gateway, Instance};
        let (status, kind, fault, is_retryable) = match self {
            Self::BadRequest { .. } => (400, "invalid_request_error", Client, false),
            Self::BodyCut => (400, "body_incomplete", Client, false),
            Self::BodyTimeout => (408, "body_timeout", Client, true),
            Self::BodyTooLarge { .. } => (413, "body_too_large", Client, false),
            Self::NotFound { .. } => (404, "not_found", Client, false),
            Self::MethodNotAllowed { .. } => (405, "method_not_allowed", Client, false),
            Self::QueueFull => (429, "queue_full", Gateway, true),
            Self::QueueTimeout => (503, "queue_timeout", Gateway, true),
            Self::NoInstance => (503, "no_instance", Gateway, true),
            Self::Unreachable { .. } => (502, "instance_unreachable", Instance, true),
            Self::Closed { .. } => (502, "instance_closed", Instance, true),
            Self::FirstByteTimeout { .. } => (504, "instance_timeout", Instance, true),
            Self::GivenUp { .. } => (504, "instance_given_up", Instance, true),
            Self::AnswerCut { .. } => (502, "answer_cut", Instance, true),
            Self::AnswerStalled { .. } => (504, "answer_stalled", Instance, true),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Meaning { status, kind, fault, is_retryable }
    }

    /// Its name in metrics, and `error.type` in answers.
    pub(crate) fn kind(&self) -> &'static str {
        self.meaning().kind
    }

    /// The error object of the `OpenAI` API, with `fault` and `retryable` beside the usual fields.
    pub(crate) fn json(&self) -> Bytes {
        #[derive(Serialize)]
        struct Outer {
            error: Inner,
        }
        #[derive(Serialize)]
        struct Inner {
            message: String,
            r#type: &'static str,
            param: Option<&'static str>,
            code: u16,
            fault: Fault,
            retryable: bool,
        }
        let Meaning { status, kind, fault, is_retryable } = self.meaning();
        let error = Inner {
            message: self.to_string(),
            r#type: kind,
            param: None,
            code: status.as_u16(),
            fault,
            retryable: is_retryable,
        };
        serde_json::to_vec(&Outer { error }).unwrap_or_default().into()
    }

    /// The last events of a stream that cannot go on, as vLLM ends one whose engine died.
    pub(crate) fn sse_events(&self) -> Bytes {
        let json = self.json();
        [b"data: ".as_slice(), &json, b"\n\ndata: [DONE]\n\n"].concat().into()
    }

    /// The answer, if nothing was sent yet.
    pub(crate) fn response(&self) -> Response<Bytes> {
        let Meaning { status, .. } = self.meaning();
        let mut response = Response::new(self.json());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Self::MethodNotAllowed { allowed } = self {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        // What is left of the body will not be read.
        if matches!(self, Self::BodyCut | Self::BodyTimeout | Self::BodyTooLarge { .. }) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_learns_whose_fault_it_was() {
        let failure = Failure::Unreachable { instance: "a".into() };
        assert_eq!(
            failure.json(),
            r#"{"error":{"message":"no connection to instance a","type":"instance_unreachable","param":null,"code":502,"fault":"instance","retryable":true}}"#
        );
        let busy = Failure::QueueFull.response();
        assert_eq!(busy.status(), 429);
        assert_eq!(busy.headers()[header::RETRY_AFTER], "1");
    }
}
