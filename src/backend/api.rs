//! The HTTP API of section 2 of the contract.
//!
//! Every handler takes the whole request and asks for what it needs in the order of the contract's
//! refusals: who is asking, then whether they may, then whether the body is right.

mod access;
mod alerts;
mod answers;
mod bodies;
mod body;
mod collectors;
mod configs;
mod divided;
mod drain;
mod error;
mod health;
mod notices;
mod push;
mod refused;
mod register;
mod renewals;
mod request;
mod servers;
mod sessions;

use std::any::Any;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use tower_http::catch_panic::CatchPanicLayer;
use uuid::Uuid;

use super::auth::{Attempts, Familiar, PasswordError, Passwords};
use super::config::BackendConfig;
use super::keys::Keys;
use super::network::Network;
use super::store::{RefusalReason, Store, StoreError};
use crate::clock;

use access::Refusals;
use answers::Answers;
use bodies::Room;
use divided::Divided;
use health::Health;
use notices::Notices;
use refused::Refused;

pub(super) use access::{Channel, Peer};
pub(super) use answers::Asker;
pub(super) use collectors::{Status, status_of};
pub(super) use error::{ApiError, ok};
pub(super) use request::{Id, Params};

/// The version of the contract.
const API_VERSION: &str = "1.0.0";
/// What a browser is told with every answer: nothing of it runs, is framed, or is guessed at.
const SHIELDS: [(HeaderName, &str); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// What all requests share.
pub(super) struct Shared {
    pub(super) config: BackendConfig,
    pub(super) keys: Keys,
    pub(super) store: Arc<dyn Store>,
    passwords: Passwords,
    logins: Attempts<Network>,
    refreshes: Attempts<Network>,
    accounts: Attempts<String>,
    familiar: Familiar,
    registrations: Attempts<Network>,
    /// Certificates that collectors were given.
    certificates: Attempts<Uuid>,
    refusals: Refusals,
    notices: Notices,
    refused: Refused,
    health: Health,
    room: Room,
    /// The turns of pushes, half of them for one collector.
    pushes: Divided,
    /// The turn of large pushes: one at a time.
    large_pushes: Divided,
    /// The room of answers.
    pub(super) answers: Answers,
    store_failed: AtomicBool,
    started: Instant,
}

impl Shared {
    pub(super) fn new(
        config: BackendConfig,
        keys: Keys,
        store: Arc<dyn Store>,
    ) -> Result<Self, PasswordError> {
        let pushes = config.limits.pushes_at_once_max;
        Ok(Self {
            passwords: Passwords::new()?,
            logins: Attempts::new(config.limits.attempts_per_minute),
            refreshes: Attempts::new(config.limits.attempts_per_minute),
            accounts: Attempts::new(config.limits.attempts_per_minute),
            familiar: Familiar::default(),
            registrations: Attempts::new(config.limits.attempts_per_minute),
            certificates: renewals::attempts(config.lifetimes.client_certificate),
            refusals: Refusals::default(),
            notices: Notices::default(),
            refused: Refused::default(),
            health: Health::default(),
            room: Room::new(&config.limits),
            pushes: Divided::new(pushes, (pushes / 2).max(1)),
            large_pushes: Divided::new(1, 1),
            answers: Answers::new(&config.limits),
            store_failed: AtomicBool::new(false),
            started: clock::monotonic(),
            config,
            keys,
            store,
        })
    }

    /// Counts a refusal of all that a request has brought.
    fn count_refusal(&self, collector: Uuid, reason: RefusalReason, message: &str) {
        self.refused.note(collector, reason, message, clock::now());
    }

    /// Writes what is counted of refusals; what cannot be written is kept for the next time.
    pub(super) async fn write_refusals(&self) {
        let counts = self.refused.take();
        if counts.is_empty() {
            return;
        }
        if let Err(error) = self.store.note_refusals(counts.clone()).await {
            tracing::debug!(%error, "refusals are not written yet");
            self.refused.put_back(counts);
        }
    }

    /// Logs when pushes begin or cease to fail, not each of them. What is refused for itself, once
    /// an hour for a collector: it says nothing of the store.
    fn note_store(&self, collector: Uuid, failure: Option<&StoreError>) {
        self.health.note(failure);
        let hint = match failure {
            Some(StoreError::Unavailable(_) | StoreError::Damaged(_)) | None => None,
            Some(StoreError::Refused(_)) => Some("its agent puts aside what cannot be stored"),
            Some(StoreError::TooMany(_) | StoreError::Conflict(_)) => {
                Some("the same push is refused until what stands in its way is gone")
            }
        };
        if let (Some(error), Some(hint)) = (failure, hint) {
            if self.notices.is_first(collector, "refused by the store") {
                tracing::warn!(%collector, %error, hint, "a push was refused");
            }
            return;
        }
        let failed_before = self.store_failed.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(error) if !failed_before => {
                let hint = "agents keep what is not stored and come again";
                tracing::warn!(%error, hint, "pushes are not stored");
            }
            None if failed_before => tracing::info!("pushes are stored again"),
            _ => {}
        }
    }
}

/// All endpoints.
pub(super) fn router(shared: &Arc<Shared>) -> Router {
    let v1 = Router::new()
        .route("/health", get(health::health))
        .route("/auth/login", post(sessions::login))
        .route("/auth/refresh", post(sessions::refresh))
        .route("/auth/logout", post(sessions::logout))
        .route("/collectors/register", post(register::register))
        .route("/collectors/refresh-token", post(collectors::refresh_token))
        .route("/collectors/renew-certificate", post(renewals::renew_certificate))
        .route("/collectors", get(collectors::list))
        .route(
            "/collectors/{id}",
            get(collectors::one).patch(collectors::patch).delete(collectors::delete),
        )
        .route("/collectors/{id}/release", post(collectors::release))
        .route("/metrics/push", post(push::push))
        .route("/config/{id}", get(configs::get).put(configs::put))
        .route("/config/{id}/versions", get(configs::versions))
        .route("/servers", get(servers::list))
        .route("/servers/{id}", get(servers::one))
        .route("/servers/{id}/metrics", get(servers::metrics))
        .route("/alerts", get(alerts::list))
        .route("/alerts/{id}", get(alerts::one))
        .route("/alerts/{id}/acknowledge", post(alerts::one));
    let router = Router::new().route("/version", get(version)).nest("/api/v1", v1);
    finish(router, shared).with_state(Arc::clone(shared))
}

/// What every router of the backend has: answers in JSON for what it does not know, a limit of
/// time, and 500 for a panic.
pub(super) fn finish(router: Router<Arc<Shared>>, shared: &Arc<Shared>) -> Router<Arc<Shared>> {
    router
        .fallback(async || ApiError::not_found("the path"))
        .method_not_allowed_fallback(async || {
            let message = "the path does not know this method";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(from_fn_with_state(Arc::clone(shared), answers::bound))
        .layer(from_fn_with_state(Arc::clone(shared), in_time))
        .layer(from_fn_with_state(Arc::clone(shared), drain::drain))
        .layer(middleware::from_fn(note))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::map_response(shielded))
}

/// Adds what every answer says to a browser, unless the answer says it itself.
pub(super) async fn shielded(mut response: Response) -> Response {
    for (name, value) in &SHIELDS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

async fn version() -> Response {
    error::ok(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "api": API_VERSION,
        "encodings": ["gzip", "zstd"],
    }))
}

async fn in_time(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let limit = shared.config.limits.request_timeout;
    let late = ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request took too long");
    let response = tokio::time::timeout(limit, next.run(request)).await;
    response.unwrap_or_else(|_| late.into_response())
}

async fn note(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = clock::monotonic();
    let response = next.run(request).await;
    let took = clock::monotonic().saturating_duration_since(began);
    tracing::debug!(%method, path, status = response.status().as_u16(), ?took, "answered");
    response
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that tower-http asks for")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
    tracing::error!(panic = text, "a request handler panicked; hint: please report this");
    ApiError::internal().into_response()
}

/// Counts an attempt; 429 with the time to wait when `key` has none left.
fn counted<K>(attempts: &Attempts<K>, key: impl Into<K>) -> Result<(), ApiError>
where
    K: Clone + Eq + Hash,
{
    attempts.take(key, clock::monotonic()).map_err(ApiError::too_many)
}

/// 429 with the time to wait when `key` has no attempts left.
fn admitted<K>(attempts: &Attempts<K>, key: impl Into<K>) -> Result<(), ApiError>
where
    K: Clone + Eq + Hash,
{
    match attempts.blocked(key, clock::monotonic()) {
        Some(wait) => Err(ApiError::too_many(wait)),
        None => Ok(()),
    }
}
