//! What a request is answered with.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use serde_json::{Value, json};

use super::{PUSH_PATH, Taken, decode::Rejects};
use crate::encoding::InflateError;
use crate::metric::{
    Invalid,
    envelope::{ErrorBody, Rejected},
};

/// A whole answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// When a client should come again: a moment's crowd, and a lack of room or of a disk.
const RETRY_SOON_S: u32 = 1;
const RETRY_LATER_S: u32 = 10;

/// The body of a 200.
#[derive(Debug, Serialize)]
struct Success<'a> {
    status: &'static str,
    metrics_inserted: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    duplicate: Option<bool>,
    rejected: &'a [Rejected],
    /// Rejects in all, when not all are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_total: Option<u64>,
}

/// An answer that is no 200: nothing was taken, unless it says so.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    slug: &'static str,
    message: Cow<'static, str>,
    details: Option<Value>,
    retry_after_s: Option<u32>,
}

/// Whether a key was known already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Novelty {
    New,
    Duplicate,
}

/// The answer to a request whose metrics are durable.
pub(super) fn success(inserted: u64, rejects: &Rejects, novelty: Novelty) -> Answer {
    let named = rejects.named.len() as u64;
    let body = Success {
        status: "success",
        metrics_inserted: inserted,
        duplicate: (novelty == Novelty::Duplicate).then_some(true),
        rejected: &rejects.named,
        rejected_total: (rejects.total > named).then_some(rejects.total),
    };
    answer(StatusCode::OK, &body)
}

impl Refusal {
    fn new(status: StatusCode, slug: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, slug, message: message.into(), details: None, retry_after_s: None }
    }

    fn later(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// 400.
    pub(super) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 403: a page in a browser can reach loopback too.
    pub(super) fn browser() -> Self {
        let message = "requests of web pages (with an Origin) are not taken";
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 404.
    pub(super) fn not_found() -> Self {
        let message = format!("nothing is here; metrics go to POST {PUSH_PATH}");
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 405.
    pub(super) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "metrics come by POST")
    }

    /// 408.
    pub(super) fn timeout() -> Self {
        let message = "the body did not come in time; nothing was taken";
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    /// 413.
    pub(super) fn too_large(limit: u64) -> Self {
        let message = format!("the body is larger than {limit} bytes, as it came or inflated");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
    }

    /// 413 or 400 or 415.
    pub(super) fn inflate(error: InflateError, limit: u64) -> Self {
        match error {
            InflateError::TooLarge => Self::too_large(limit),
            InflateError::Damaged => Self::bad_request("the compressed body is damaged"),
            InflateError::UnknownLabel => Self::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_encoding",
                "the content encoding is not known: gzip, zstd, deflate or identity",
            ),
        }
    }

    /// 400: the body is no push.
    pub(super) fn envelope(invalid: &Invalid) -> Self {
        let mut refusal = Self::bad_request(invalid.to_string());
        refusal.details = Some(json!({"path": invalid.path}));
        refusal
    }

    /// 429: other bodies take all the room there is for them.
    pub(super) fn busy() -> Self {
        let message = "too many bodies at once; nothing was taken";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message).later(RETRY_SOON_S)
    }

    /// 503: no answer can be given for a key before the disk is back.
    pub(super) fn no_disk() -> Self {
        let message = "the queue's disk takes nothing at present; nothing was taken";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_disk", message).later(RETRY_LATER_S)
    }

    /// What became of metrics that are not durable; `None` when they are.
    pub(super) fn of(taken: Taken) -> Option<Self> {
        let full = |message| {
            let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message);
            Some(refusal.later(RETRY_LATER_S))
        };
        match taken {
            Taken::Durable => None,
            Taken::Full => full("the queue is full; nothing was taken"),
            Taken::Evicted => full("the queue is full and keeps what it has; nothing was kept"),
            Taken::NotReady => {
                let message = "the queue's state cannot be read yet; nothing was taken";
                let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message);
                Some(refusal.later(RETRY_LATER_S))
            }
            Taken::Closed => {
                let message = "the agent is stopping; nothing was taken";
                let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message);
                Some(refusal.later(RETRY_LATER_S))
            }
            Taken::InMemory => {
                let message = "the queue's disk has failed: the metrics are in memory and not \
                               durable; sent again with the same Idempotency-Key they are not \
                               taken twice";
                let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_durable", message);
                Some(refusal.later(RETRY_LATER_S))
            }
        }
    }

    /// As an answer.
    pub(super) fn into_answer(self) -> Answer {
        let body = ErrorBody {
            code: self.status.as_u16(),
            error: self.slug.to_owned(),
            message: self.message.into_owned(),
            details: self.details,
        };
        let mut answer = answer(self.status, &body);
        if let Some(seconds) = self.retry_after_s {
            answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        answer
    }
}

fn answer(status: StatusCode, body: &impl Serialize) -> Answer {
    // Strings and numbers always encode.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}
