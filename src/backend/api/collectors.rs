//! Collectors: their tokens, what users see of them, and what admins do with them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::access::{self, Peer};
use super::error::{ApiError, ok};
use super::request::{Id, Params, paginated};
use super::{Shared, body};
use crate::backend::enrolment::{self, Released};
use crate::backend::names;
use crate::backend::pki::{Issued, PkiError};
use crate::backend::store::{Audit, Collector, Labels, RefusalCount, Renamed, Role};
use crate::clock;

/// Between two signs of life, unless the agent's own configuration says otherwise.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// A collector is called offline after so long without a push: five missed ones.
const OFFLINE_AFTER: SignedDuration = SignedDuration::from_mins(5);

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
    /// Another collector had the name first, but for case: ours, beside the contract.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    name_collides: bool,
    /// Ours, as `lost_forgotten` is.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    /// Entries of its losses that went for newer ones.
    #[serde(skip_serializing_if = "is_zero")]
    lost_forgotten: u64,
    /// What it sent and was not taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refusals: Vec<RefusalCount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchRequest {
    name: Option<String>,
    labels: Option<Labels>,
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

/// PATCH `/collectors/{id}`: another name, whose old one stays reserved, and other labels in place
/// of all that it has.
pub(super) async fn patch(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    id: Id,
    body: Body,
) -> Result<Response, ApiError> {
    let user = access::user(&shared, &headers, &peer, Role::Admin).await?;
    let id: Uuid = id.of("the collector")?;
    let PatchRequest { name, labels } = body::json(&shared.room, None, &headers, body).await?;
    let checked = |name: String| names::checked("name", &name);
    let name = name.map(checked).transpose().map_err(ApiError::bad_request)?;
    let labels = labels.map(names::checked_labels).transpose().map_err(ApiError::bad_request)?;
    let now = clock::now();
    let audit = |action: &str| Audit {
        at: now,
        actor: user.username.clone(),
        action: action.to_owned(),
        subject: id.to_string(),
    };
    if let Some(name) = name {
        match shared.store.rename(id, &name, audit("collector.rename")).await? {
            Renamed::Done => {}
            Renamed::NameTaken => return Err(super::register::name_taken(&name)),
            Renamed::Unknown => return Err(ApiError::not_found("the collector")),
        }
    }
    if let Some(labels) = labels
        && !shared.store.label(id, labels, audit("collector.label")).await?
    {
        return Err(ApiError::not_found("the collector"));
    }
    let found = shared.store.collector(id, now).await?;
    Ok(ok(&view(found.ok_or_else(|| ApiError::not_found("the collector"))?, now)))
}

/// POST `/collectors/{id}/release`: a secret with which a host comes back as this collector.
pub(super) async fn release(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    id: Id,
) -> Result<Response, ApiError> {
    let user = access::user(&shared, &headers, &peer, Role::Admin).await?;
    let (id, now): (Uuid, _) = (id.of("the collector")?, clock::now());
    let found = shared.store.collector(id, now).await?;
    let collector = found.ok_or_else(|| ApiError::not_found("the collector"))?;
    let (store, sealer) = (shared.store.as_ref(), &shared.keys.sealer);
    let Released { secret, expires_at } =
        enrolment::release(store, sealer, &collector, user.username).await?;
    Ok(ok(&json!({"secret": secret, "expires_at": clock::rfc3339(expires_at)})))
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn report_of(collector: &Collector) -> Option<Value> {
    serde_json::from_str(collector.report.as_deref()?).ok()
}

fn view(collector: Collector, now: Timestamp) -> CollectorView {
    CollectorView {
        status: status_of(&collector, now),
        agent: report_of(&collector),
        name_collides: collector.name_collides,
        labels: collector.labels,
        lost_forgotten: collector.lost_forgotten,
        refusals: collector.refusals,
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
