//! What the API answers when it does not do what it was asked.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;
use std::time::Duration;

use crate::backend::store::{RefusalReason, StoreError};
use crate::metric::envelope::ErrorBody;

/// When a client should come again while the store is down, seconds.
const STORE_RETRY: u64 = 5;

/// When a client should come again for whose body there is no room, seconds.
const BUSY_RETRY: u64 = 5;

/// When a client should come again that wants more than a bound allows.
const TOO_MANY_RETRY: Duration = Duration::from_secs(300);

/// An answer that is no 2xx.
#[derive(Debug, Clone)]
pub(in crate::backend) struct ApiError {
    status: StatusCode,
    slug: &'static str,
    message: String,
    details: Option<Value>,
    retry_after: Option<u64>,
    /// As what it is counted for the collector that gets it.
    refusal: Option<RefusalReason>,
}

impl ApiError {
    pub(in crate::backend) fn new(
        status: StatusCode,
        slug: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        Self { status, slug, message, details: None, retry_after: None, refusal: None }
    }

    /// 400.
    pub(in crate::backend) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
            .counted_as(RefusalReason::BadPush)
    }

    /// 401; the same words whatever is wrong.
    pub(in crate::backend) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "a valid token is needed")
    }

    /// 403.
    pub(in crate::backend) fn forbidden(slug: &'static str, message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, slug, message)
    }

    /// 404.
    pub(in crate::backend) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("{what} is unknown"))
    }

    /// 413.
    pub(in crate::backend) fn too_large(limit: u64) -> Self {
        let message = format!("the body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
            .counted_as(RefusalReason::TooLarge)
    }

    /// 429.
    pub(in crate::backend) fn too_many(retry_after: Duration) -> Self {
        let error =
            Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "come again later");
        Self { retry_after: Some(retry_after.as_secs().max(1)), ..error }
    }

    /// 503: others take all the room that there is for bodies or for answers.
    pub(in crate::backend) fn busy() -> Self {
        let message = "too much at once, come again later";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message);
        Self { retry_after: Some(BUSY_RETRY), ..error }
    }

    /// Counts for its collector as a refusal of this kind.
    pub(in crate::backend) fn counted_as(mut self, reason: RefusalReason) -> Self {
        self.refusal = Some(reason);
        self
    }

    /// As what it is counted for a collector, and what it says; `None` for what may be taken at
    /// another time.
    pub(in crate::backend) fn refusal(&self) -> Option<(RefusalReason, &str)> {
        Some((self.refusal?, &self.message))
    }

    /// Whether it is a 401.
    pub(in crate::backend) fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// Whether it is a 413.
    pub(in crate::backend) fn is_too_large(&self) -> bool {
        self.status == StatusCode::PAYLOAD_TOO_LARGE
    }

    /// 500.
    pub(in crate::backend) fn internal() -> Self {
        let message = "the backend failed; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// Adds what programs may want to know.
    pub(in crate::backend) fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }
}

impl From<StoreError> for ApiError {
    fn from(err: StoreError) -> Self {
        match err {
            StoreError::Unavailable(_) => Self {
                retry_after: Some(STORE_RETRY),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "store_unavailable",
                    "the store is not available, come again later",
                )
            },
            StoreError::Conflict(_) => {
                Self::new(StatusCode::CONFLICT, "conflict", "this is taken already")
                    .counted_as(RefusalReason::Store)
            }
            StoreError::TooMany(what) => {
                let error = Self::too_many(TOO_MANY_RETRY);
                Self { message: what, ..error }.counted_as(RefusalReason::Store)
            }
            StoreError::Refused(_) => Self::bad_request("the store cannot hold a value of this")
                .counted_as(RefusalReason::Store),
            StoreError::Damaged(text) => {
                tracing::error!(error = text, "the store is damaged; hint: look at its own log");
                Self::internal()
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            code: self.status.as_u16(),
            error: self.slug.to_owned(),
            message: self.message,
            details: self.details,
        };
        let mut response = json(self.status, &body);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON answer.
pub(in crate::backend) fn json(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let mut response = (status, Json(body)).into_response();
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, json);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// 200 with a JSON answer.
pub(in crate::backend) fn ok(body: &impl serde::Serialize) -> Response {
    json(StatusCode::OK, body)
}
