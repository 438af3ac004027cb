//! POST `/collectors/register`: a new host, or one that comes back and can show it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::access::{self, Channel, Peer};
use super::error::{ApiError, ok};
use super::{Shared, body, collectors, counted};
use crate::backend::auth::{encode, random};
use crate::backend::names;
use crate::backend::store::{Audit, Enrolled, Enrolment, KeptSecret, Known, Right};
use crate::clock;

/// Who has copied a host's certificate and key can register over them, and then is the host.
const IF_NOT_ASKED: &str = "what it had before ends with the first use of what it was given: if \
     nobody ran `agent register --force` on the host, its key was stolen: release it";

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
    /// The name that the collector has: ours, beside the contract.
    name: String,
    token: String,
    certificate: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    ca_certificate: String,
    secret: String,
    expires_at: String,
    certificate_expires_at: String,
}

/// What lets a host in.
enum Pass {
    /// A certificate that a live collector has.
    Certificate(Known),
    /// A registration secret.
    Secret(KeptSecret),
}

impl Pass {
    /// The collector that asks, when it is one.
    fn collector(&self) -> Option<Uuid> {
        match self {
            Self::Certificate(known) => Some(known.id),
            Self::Secret(_) => None,
        }
    }
}

/// Which collector a host becomes.
struct Standing {
    id: Uuid,
    name: String,
    right: Right,
}

/// The handler.
///
/// A registration secret is the right to be a new host, never to be an old one: an old one shows
/// its certificate, or has the secret that was made to bring it back.
pub(super) async fn register(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let pass = pass(&shared, &peer, &headers).await?;
    let request: RegisterRequest =
        body::json(&shared.room, pass.collector(), &headers, body).await?;
    let request = checked(request)?;
    let now = clock::now();
    let by = match &pass {
        Pass::Certificate(_) if peer.certificate_ends.is_some_and(|end| end <= now) => {
            "its certificate, past its end".to_owned()
        }
        Pass::Certificate(_) => "its certificate".to_owned(),
        Pass::Secret(secret) => format!("the secret {}", secret.name),
    };
    let Standing { id, name, right } = standing(&shared, pass, &request).await?;
    let issued = collectors::certify(&shared, request.csr.as_deref(), id, now)?;
    let secret = random::<32>();
    let enrolment = Enrolment {
        id,
        name: name.clone(),
        hostname: request.hostname.clone(),
        address: request.address,
        version: request.version,
        sealed_secret: shared.keys.sealer.seal(id, &secret),
        thumbprint: issued.thumbprint,
        certificate_expires_at: issued.expires_at,
        right,
        audit: Audit {
            at: now,
            actor: format!("{} with {by}", peer.address),
            action: "collector.register".to_owned(),
            subject: id.to_string(),
        },
    };
    match shared.store.enrol(enrolment).await? {
        Enrolled::Done => {}
        Enrolled::NameTaken => return Err(name_taken(&name)),
        Enrolled::HostTaken => return Err(host_taken(&request.hostname)),
        Enrolled::SecretUsedUp | Enrolled::Deregistered => return Err(bad_secret()),
    }
    let (from, hostname) = (peer.address, &request.hostname);
    match right {
        Right::Certificate => {
            let hint = IF_NOT_ASKED;
            let message = "registered over its certificate";
            tracing::warn!(collector = %id, name, hostname, %from, by, hint, message);
        }
        Right::New(_) | Right::Back(_) => {
            tracing::info!(collector = %id, name, hostname, %from, by, "registered");
        }
    }
    let life = shared.config.lifetimes.collector_token;
    let minted = shared.keys.tokens.mint_collector(id, &request.hostname, now, life);
    Ok(ok(&RegisterResponse {
        collector_id: id,
        name,
        token: minted.token,
        certificate: issued.certificate,
        private_key: issued.private_key,
        ca_certificate: shared.keys.authority.certificate_pem().to_owned(),
        secret: encode(&secret),
        expires_at: clock::rfc3339(minted.expires_at),
        certificate_expires_at: clock::rfc3339(issued.expires_at),
    }))
}

/// The certificate of the connection, when a live collector has it; else the secret.
async fn pass(shared: &Shared, peer: &Peer, headers: &HeaderMap) -> Result<Pass, ApiError> {
    if let Channel::Mutual(thumbprint) = &peer.channel
        && let Some(known) = shared.store.collector_shown(thumbprint).await?
        && known.is_live
    {
        // The next registration takes the place of what waits: this one has arrived.
        access::replace_certificate(shared, known.id, peer, thumbprint).await?;
        return Ok(Pass::Certificate(known));
    }
    // Counted before it is looked up: of many that come at once each would find the limit free.
    counted(&shared.registrations, peer.address)?;
    let presented = headers.get("x-registration-secret").and_then(|value| value.to_str().ok());
    let mark = shared.keys.sealer.mark(presented.unwrap_or_default().trim());
    let found = shared.store.secret_marked(&mark).await;
    let is_wrong = found
        .as_ref()
        .is_ok_and(|found| !found.as_ref().is_some_and(|secret| secret.is_good(clock::now())));
    if !is_wrong {
        shared.registrations.forgive(peer.address);
    }
    if let Some(secret) = found?.filter(|_| !is_wrong) {
        return Ok(Pass::Secret(secret));
    }
    tracing::warn!(from = %peer.address, "a registration came without a good secret");
    Err(bad_secret())
}

/// Counts the certificate that it is to be given, too.
async fn standing(
    shared: &Shared,
    pass: Pass,
    request: &RegisterRequest,
) -> Result<Standing, ApiError> {
    let secret = match pass {
        Pass::Certificate(known) => {
            let Known { id, name, .. } = known;
            counted(&shared.certificates, id)?;
            return Ok(Standing { id, name, right: Right::Certificate });
        }
        Pass::Secret(secret) => secret,
    };
    let known = shared.store.collector_named(&request.name).await?;
    match (known, secret.collector_id) {
        (Some(Known { id, name, .. }), Some(bound)) if id == bound => {
            // An admin has made the secret for this one use: who has copied the host's key and took
            // all its certificates does not keep the host from coming back.
            shared.certificates.note(id, clock::monotonic());
            Ok(Standing { id, name, right: Right::Back(secret.id) })
        }
        (_, Some(_)) => Err(ApiError::new(
            StatusCode::CONFLICT,
            "other_name",
            "this secret brings back a collector of another name",
        )),
        (Some(Known { id, name, .. }), None) if secret.reclaims => {
            counted(&shared.certificates, id)?;
            Ok(Standing { id, name, right: Right::Back(secret.id) })
        }
        (Some(_), None) => Err(name_taken(&request.name)),
        (None, None) => {
            let (id, name) = (Uuid::new_v4(), request.name.clone());
            counted(&shared.certificates, id)?;
            Ok(Standing { id, name, right: Right::New(secret.id) })
        }
    }
}

fn checked(request: RegisterRequest) -> Result<RegisterRequest, ApiError> {
    let text = |what, text: &str| names::checked(what, text).map_err(ApiError::bad_request);
    let option = |what, given: Option<String>| given.map(|given| text(what, &given)).transpose();
    Ok(RegisterRequest {
        name: text("name", &request.name)?,
        hostname: names::checked_host("hostname", &request.hostname)
            .map_err(ApiError::bad_request)?,
        address: option("address", request.address.filter(|text| !text.trim().is_empty()))?,
        version: option("version", request.version.filter(|text| !text.trim().is_empty()))?,
        csr: request.csr,
    })
}

fn bad_secret() -> ApiError {
    let message = "the registration secret is missing, wrong, used up or revoked";
    ApiError::new(StatusCode::UNAUTHORIZED, "bad_registration_secret", message)
}

/// 409, for whoever is not the collector of that name.
pub(super) fn name_taken(name: &str) -> ApiError {
    let message = format!("the name {name:?} is, or was, another collector's");
    ApiError::new(StatusCode::CONFLICT, "name_taken", message)
}

fn host_taken(hostname: &str) -> ApiError {
    let message = format!("a collector of the host {hostname:?} is registered already");
    ApiError::new(StatusCode::CONFLICT, "host_taken", message)
}
