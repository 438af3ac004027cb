//! Collectors: registration, tokens, and what users see of them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::access::{self, Peer};
use super::error::{ApiError, ok};
use super::request::{Id, Params, paginated};
use super::{Shared, admitted, body};
use crate::backend::auth::{encode, random, same_secret};
use crate::backend::pki::{Issued, PkiError};
use crate::backend::store::{Audit, Collector, Enrolment, Role, StoreError};
use crate::clock;

/// Between two signs of life, unless the agent's own configuration says otherwise.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// A collector is called offline after so long without a push: five missed ones.
const OFFLINE_AFTER: SignedDuration = SignedDuration::from_mins(5);
/// Longest name, host name or address taken.
const TEXT_MAX: usize = 255;

/// What a user sees a collector do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::backend) enum Status {
    /// Never pushed.
    Registered,
    /// Pushes.
    Active,
    /// Did not push for a while.
    Offline,
    /// Pushes, and cannot use its configuration.
    Error,
    /// Its rights were taken away.
    Deregistered,
}

#[derive(Deserialize)]
struct RegisterRequest {
    #[serde(default)]
    name: String,
    #[serde(default)]
    hostname: String,
    address: Option<String>,
    version: Option<String>,
    csr: Option<String>,
}

#[derive(Serialize)]
struct RegisterResponse {
    collector_id: Uuid,
    token: String,
    certificate: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    ca_certificate: String,
    secret: String,
    expires_at: String,
    certificate_expires_at: String,
}

#[derive(Serialize)]
struct CollectorView {
    id: Uuid,
    name: String,
    hostname: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_thumbprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_expires_at: Option<String>,
    config_version: i64,
    metrics_count_total: u64,
    metrics_count_24h: u64,
    health_check_interval: u64,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<Value>,
}

/// POST `/collectors/register`.
///
/// A name belongs to the host that registered it first: another host gets 409, the same host
/// keeps its id and gets a new secret and certificate, and the old ones are dead.
pub(super) async fn register(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    check_registration_secret(&shared, &peer, &headers)?;
    let request: RegisterRequest = body::json(&headers, body).await?;
    check_names(&request)?;
    let now = clock::now();
    let id = match shared.store.collector_named(&request.name).await? {
        Some((_, host)) if host != request.hostname => return Err(name_taken()),
        Some((id, _)) => id,
        None => Uuid::new_v4(),
    };
    let issued = certify(&shared, request.csr.as_deref(), id, now)?;
    let secret = random::<32>();
    let enrolment = Enrolment {
        id,
        name: request.name,
        hostname: request.hostname,
        address: request.address,
        version: request.version,
        sealed_secret: shared.keys.sealer.seal(id, &secret),
        thumbprint: issued.thumbprint,
        certificate_expires_at: issued.expires_at,
        audit: Audit {
            at: now,
            actor: peer.address.to_string(),
            action: "collector.register".to_owned(),
            subject: id.to_string(),
        },
    };
    tracing::info!(collector = %id, name = enrolment.name, from = %peer.address, "registered");
    let hostname = enrolment.hostname.clone();
    shared.store.enrol(enrolment).await.map_err(|err| match err {
        StoreError::Conflict(_) => name_taken(),
        other => other.into(),
    })?;
    let life = shared.config.lifetimes.collector_token;
    let minted = shared.keys.tokens.mint_collector(id, &hostname, now, life);
    Ok(ok(&RegisterResponse {
        collector_id: id,
        token: minted.token,
        certificate: issued.certificate,
        private_key: issued.private_key,
        ca_certificate: shared.keys.authority.certificate_pem().to_owned(),
        secret: encode(&secret),
        expires_at: clock::rfc3339(minted.expires_at),
        certificate_expires_at: clock::rfc3339(issued.expires_at),
    }))
}

/// POST `/collectors/refresh-token`.
pub(super) async fn refresh_token(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let caller = access::collector_renewing(&shared, &headers, &peer).await?;
    let life = shared.config.lifetimes.collector_token;
    let minted = shared.keys.tokens.mint_collector(caller.id, &caller.hostname, clock::now(), life);
    let expires_at = clock::rfc3339(minted.expires_at);
    Ok(ok(&json!({"token": minted.token, "expires_at": expires_at})))
}

/// GET `/collectors`.
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    access::user(&shared, &headers, &peer, Role::Viewer).await?;
    let (page, now) = (params.page()?, clock::now());
    let listing = shared.store.collectors(page, now).await?;
    Ok(ok(&paginated(listing, page, |collector| view(collector, now))))
}

/// GET `/collectors/{id}`.
pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    id: Id,
) -> Result<Response, ApiError> {
    access::user(&shared, &headers, &peer, Role::Viewer).await?;
    let now = clock::now();
    let found = shared.store.collector(id.of("the collector")?, now).await?;
    let collector = found.ok_or_else(|| ApiError::not_found("the collector"))?;
    Ok(ok(&view(collector, now)))
}

/// DELETE `/collectors/{id}`: its tokens and its certificate are dead.
pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    id: Id,
) -> Result<Response, ApiError> {
    let user = access::user(&shared, &headers, &peer, Role::Admin).await?;
    let id: Uuid = id.of("the collector")?;
    let audit = Audit {
        at: clock::now(),
        actor: user.username,
        action: "collector.deregister".to_owned(),
        subject: id.to_string(),
    };
    if !shared.store.deregister(id, audit).await? {
        return Err(ApiError::not_found("the collector"));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What a collector does, as seen at `now`.
pub(in crate::backend) fn status_of(collector: &Collector, now: Timestamp) -> Status {
    let Some(seen) = collector.last_seen_at else {
        return match collector.deregistered_at {
            Some(_) => Status::Deregistered,
            None => Status::Registered,
        };
    };
    if collector.deregistered_at.is_some() {
        return Status::Deregistered;
    }
    if now.duration_since(seen) > OFFLINE_AFTER {
        return Status::Offline;
    }
    let report = report_of(collector);
    let error = report.as_ref().and_then(|report| report.get("config_error"));
    if error.is_some_and(|error| !error.is_null()) { Status::Error } else { Status::Active }
}

fn report_of(collector: &Collector) -> Option<Value> {
    serde_json::from_str(collector.report.as_deref()?).ok()
}

fn view(collector: Collector, now: Timestamp) -> CollectorView {
    CollectorView {
        status: status_of(&collector, now),
        agent: report_of(&collector),
        id: collector.id,
        name: collector.name,
        hostname: collector.hostname,
        address: collector.address,
        version: collector.version,
        last_seen: collector.last_seen_at.map(clock::rfc3339),
        certificate_thumbprint: collector.thumbprint,
        certificate_expires_at: collector.certificate_expires_at.map(clock::rfc3339),
        config_version: collector.config_version,
        metrics_count_total: collector.metrics_total,
        metrics_count_24h: collector.metrics_24h,
        health_check_interval: HEALTH_CHECK_INTERVAL.as_secs(),
        created_at: clock::rfc3339(collector.created_at),
        updated_at: clock::rfc3339(collector.updated_at),
    }
}

fn check_registration_secret(
    shared: &Shared,
    peer: &Peer,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    admitted(&shared.registrations, peer.address)?;
    let presented = headers.get("x-registration-secret").and_then(|value| value.to_str().ok());
    let held = shared.keys.registration_secret.expose_secret();
    if same_secret(held, presented.unwrap_or_default()) {
        return Ok(());
    }
    shared.registrations.note(peer.address, clock::monotonic());
    tracing::warn!(from = %peer.address, "a registration came without the right secret");
    let message = "the registration secret is missing or wrong";
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "bad_registration_secret", message))
}

fn check_names(request: &RegisterRequest) -> Result<(), ApiError> {
    for (field, text) in [("name", &request.name), ("hostname", &request.hostname)] {
        if text.trim().is_empty() {
            return Err(ApiError::bad_request(format!("{field} is missing or empty")));
        }
    }
    let optional = [("address", &request.address), ("version", &request.version)];
    let texts = [("name", &request.name), ("hostname", &request.hostname)]
        .into_iter()
        .chain(optional.into_iter().filter_map(|(field, text)| Some((field, text.as_ref()?))));
    for (field, text) in texts {
        if text.len() > TEXT_MAX || text.chars().any(char::is_control) {
            let message = format!("{field} is longer than {TEXT_MAX} bytes or not plain text");
            return Err(ApiError::bad_request(message));
        }
    }
    Ok(())
}

/// A certificate for the key of `csr`, or for a new key that travels with the answer.
pub(super) fn certify(
    shared: &Shared,
    csr: Option<&str>,
    id: Uuid,
    now: Timestamp,
) -> Result<Issued, ApiError> {
    let (authority, life) = (&shared.keys.authority, shared.config.lifetimes.client_certificate);
    let issued = match csr {
        Some(csr) => authority.certify_client(csr, &id.to_string(), now, life),
        None => authority.certify_client_with_key(&id.to_string(), now, life),
    };
    issued.map_err(|err| match err {
        PkiError::Request(_) => ApiError::bad_request("csr is no usable signing request in PEM"),
        other => {
            tracing::error!(error = %other, "cannot sign a client certificate");
            ApiError::internal()
        }
    })
}

fn name_taken() -> ApiError {
    let message = "the name is registered already by another host";
    ApiError::new(StatusCode::CONFLICT, "name_taken", message)
}
