//! Who is asking, and whether they may.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use super::Shared;
use super::error::ApiError;
use crate::backend::auth::{Expiry, Subject, key_id, verify_collector};
use crate::backend::store::{Audit, Credentials, Role, User};
use crate::clock;

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(in crate::backend) struct Peer {
    /// Its address.
    pub(in crate::backend) address: IpAddr,
    /// What the connection itself proves.
    pub(in crate::backend) channel: Channel,
    /// The end of its certificate, which a connection, and a resumed session, may outlive.
    pub(in crate::backend) certificate_ends: Option<Timestamp>,
}

/// What a connection proves about the other end.
#[derive(Debug, Clone)]
pub(in crate::backend) enum Channel {
    /// Loopback without TLS: nothing, and no certificate is asked for.
    Plain,
    /// TLS without a client certificate.
    Tls,
    /// TLS with a certificate of the backend's authority: its thumbprint.
    Mutual(Arc<str>),
}

/// A collector whose token and certificate are good.
#[derive(Debug, Clone)]
pub(in crate::backend) struct Caller {
    /// Its id.
    pub(in crate::backend) id: Uuid,
    /// Its registered host.
    pub(in crate::backend) hostname: String,
}

/// Which of a collector's certificates a connection shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Registered,
    /// A renewed one, for the first time.
    Next,
}

/// Either side of the configuration endpoint.
#[derive(Debug, Clone)]
pub(in crate::backend) enum Reader {
    /// A collector.
    Collector(Caller),
    /// A user of any role.
    User,
}

/// Lets a collector in: 401 without a good token, 403 without the registered certificate.
pub(in crate::backend) async fn collector(
    shared: &Shared,
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<Caller, ApiError> {
    collector_with(shared, headers, peer, Expiry::Checked).await
}

/// Lets a collector in that wants a new token. Its old one may be past its end when the
/// certificate proves who is asking: a host that was cut off for long gets in again.
pub(in crate::backend) async fn collector_renewing(
    shared: &Shared,
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<Caller, ApiError> {
    let expiry = match peer.channel {
        Channel::Mutual(_) => Expiry::Ignored,
        Channel::Plain | Channel::Tls => Expiry::Checked,
    };
    collector_with(shared, headers, peer, expiry).await
}

/// Lets an active user with at least this role in.
pub(in crate::backend) async fn user(
    shared: &Shared,
    headers: &HeaderMap,
    least: Role,
) -> Result<User, ApiError> {
    let (user, _) = session(shared, headers).await?;
    check_role(user, least)
}

/// An active user and its session.
pub(in crate::backend) async fn session(
    shared: &Shared,
    headers: &HeaderMap,
) -> Result<(User, Uuid), ApiError> {
    let now = clock::now();
    let token = bearer(headers).ok_or_else(ApiError::unauthorized)?;
    let Some(Subject::UserAccess(session)) = shared.keys.tokens.verify(token, now, Expiry::Checked)
    else {
        return Err(ApiError::unauthorized());
    };
    let user = shared.store.session_user(session, now).await?;
    Ok((user.ok_or_else(ApiError::unauthorized)?, session))
}

/// Lets a collector or a user in.
pub(in crate::backend) async fn reader(
    shared: &Shared,
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<Reader, ApiError> {
    let token = bearer(headers).ok_or_else(ApiError::unauthorized)?;
    let own = shared.keys.tokens.verify(token, clock::now(), Expiry::Checked);
    if matches!(own, Some(Subject::UserAccess(_))) {
        return user(shared, headers, Role::Viewer).await.map(|_| Reader::User);
    }
    collector(shared, headers, peer).await.map(Reader::Collector)
}

async fn collector_with(
    shared: &Shared,
    headers: &HeaderMap,
    peer: &Peer,
    expiry: Expiry,
) -> Result<Caller, ApiError> {
    let token = bearer(headers).ok_or_else(ApiError::unauthorized)?;
    let now = clock::now();
    let (id, credentials) = match key_id(token) {
        Some(key_id) => {
            let id: Uuid = key_id.parse().map_err(|_| ApiError::unauthorized())?;
            let credentials = credentials(shared, id).await?;
            let Some(secret) = shared.keys.sealer.open(id, &credentials.sealed_secret) else {
                tracing::error!(collector = %id, "the collector's secret cannot be unsealed");
                return Err(ApiError::internal());
            };
            if !verify_collector(token, id, secret.expose_secret(), now, expiry) {
                return Err(ApiError::unauthorized());
            }
            (id, credentials)
        }
        None => match shared.keys.tokens.verify(token, now, expiry) {
            Some(Subject::Collector(id)) => (id, credentials(shared, id).await?),
            _ => return Err(ApiError::unauthorized()),
        },
    };
    if check_certificate(peer, &credentials)? == Shown::Next {
        replace_certificate(shared, id, peer, &credentials).await?;
    }
    Ok(Caller { id, hostname: credentials.hostname })
}

async fn credentials(shared: &Shared, id: Uuid) -> Result<Credentials, ApiError> {
    shared.store.credentials(id).await?.ok_or_else(ApiError::unauthorized)
}

fn check_certificate(peer: &Peer, registered: &Credentials) -> Result<Shown, ApiError> {
    // The handshake has looked at its end, but that may be long ago.
    if peer.certificate_ends.is_some_and(|end| end <= clock::now()) {
        let message = "the client certificate has expired";
        return Err(ApiError::forbidden("certificate_expired", message));
    }
    match &peer.channel {
        Channel::Plain => Ok(Shown::Registered),
        Channel::Mutual(shown) if registered.thumbprint.as_deref() == Some(shown) => {
            Ok(Shown::Registered)
        }
        Channel::Mutual(shown) if registered.next_thumbprint.as_deref() == Some(shown) => {
            Ok(Shown::Next)
        }
        Channel::Mutual(_) => Err(ApiError::forbidden(
            "certificate_mismatch",
            "the client certificate is not the one this collector registered",
        )),
        Channel::Tls => Err(ApiError::forbidden(
            "certificate_required",
            "this endpoint needs the client certificate of the collector",
        )),
    }
}

/// The host has its renewed certificate and uses it: the old one is dead.
async fn replace_certificate(
    shared: &Shared,
    id: Uuid,
    peer: &Peer,
    registered: &Credentials,
) -> Result<(), ApiError> {
    let thumbprint = registered.next_thumbprint.as_deref().unwrap_or_default();
    let audit = Audit {
        at: clock::now(),
        actor: peer.address.to_string(),
        action: "collector.replace_certificate".to_owned(),
        subject: id.to_string(),
    };
    // Of two requests at once the second finds it done.
    if shared.store.replace_certificate(id, thumbprint, audit).await? {
        tracing::info!(collector = %id, "uses its renewed certificate");
    }
    Ok(())
}

fn check_role(user: User, least: Role) -> Result<User, ApiError> {
    if user.role >= least {
        return Ok(user);
    }
    let message = format!("this needs the role {}", least.as_str());
    Err(ApiError::forbidden("role_too_low", &message))
}

/// The token after the word `Bearer`, exactly.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    Some(value.strip_prefix("Bearer ")?.trim()).filter(|token| !token.is_empty())
}
