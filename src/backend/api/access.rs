//! Who is asking, and whether they may.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use super::error::ApiError;
use super::{Shared, admitted};
use crate::backend::auth::{
    Attempts, Expiry, Refusal, Subject, claimed_collector, key_id, verify_collector,
};
use crate::backend::network::Network;
use crate::backend::store::{Audit, Credentials, RefusalReason, Role, StoreError, User};
use crate::clock;

/// 401s in a minute to one peer, and to all that one address says it is; then 429.
const REFUSALS_PER_MINUTE: u32 = 30;
const REFUSALS_OF_ADDRESS_PER_MINUTE: u32 = 600;

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

/// How often requests without a good token were refused. One with a good token is never counted,
/// and never held back.
pub(super) struct Refusals {
    peers: Attempts<(Network, Option<Uuid>)>,
    addresses: Attempts<Network>,
}

/// Why nobody is let in.
enum Denial {
    /// 401, with what the log says.
    Unauthorized(&'static str),
    /// The same for a token whose signature proves whose it is.
    Signed(Refusal),
    Other(ApiError),
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
enum Shown<'a> {
    Registered,
    /// This one, of a renewal or of a registration over the old one, for the first time.
    New(&'a str),
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            peers: Attempts::new(REFUSALS_PER_MINUTE),
            addresses: Attempts::new(REFUSALS_OF_ADDRESS_PER_MINUTE),
        }
    }
}

impl From<ApiError> for Denial {
    fn from(error: ApiError) -> Self {
        Self::Other(error)
    }
}

impl From<StoreError> for Denial {
    fn from(error: StoreError) -> Self {
        Self::Other(error.into())
    }
}

impl From<Refusal> for Denial {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Forged => Self::Unauthorized(refusal.name()),
            // The signature is looked at first.
            Refusal::Early | Refusal::Expired | Refusal::TooLong | Refusal::Claims => {
                Self::Signed(refusal)
            }
        }
    }
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
    peer: &Peer,
    least: Role,
) -> Result<User, ApiError> {
    let (user, _) = session(shared, headers, peer).await?;
    check_role(user, least)
}

/// An active user and its session.
pub(in crate::backend) async fn session(
    shared: &Shared,
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<(User, Uuid), ApiError> {
    let found = find_session(shared, headers).await;
    found.map_err(|denial| refused(shared, headers, peer, denial))
}

async fn find_session(shared: &Shared, headers: &HeaderMap) -> Result<(User, Uuid), Denial> {
    let now = clock::now();
    let token = bearer(headers).ok_or(NO_TOKEN)?;
    let Subject::UserAccess(session) = shared.keys.tokens.verify(token, now, Expiry::Checked)?
    else {
        return Err(Denial::Unauthorized("the token is not a user's access token"));
    };
    let user = shared.store.session_user(session, now).await?;
    Ok((user.ok_or(Denial::Unauthorized("the session has ended"))?, session))
}

/// Lets a collector or a user in.
pub(in crate::backend) async fn reader(
    shared: &Shared,
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<Reader, ApiError> {
    let own = bearer(headers)
        .map(|token| shared.keys.tokens.verify(token, clock::now(), Expiry::Checked));
    if matches!(own, Some(Ok(Subject::UserAccess(_)))) {
        return user(shared, headers, peer, Role::Viewer).await.map(|_| Reader::User);
    }
    collector(shared, headers, peer).await.map(Reader::Collector)
}

async fn collector_with(
    shared: &Shared,
    headers: &HeaderMap,
    peer: &Peer,
    expiry: Expiry,
) -> Result<Caller, ApiError> {
    let (id, credentials) = match find_collector(shared, headers, peer, expiry).await {
        Ok(found) => found,
        Err(denial) => return Err(refused_collector(shared, headers, peer, denial).await),
    };
    let shown = check_certificate(peer, &credentials).map_err(|(slug, message)| {
        note_refusal(shared, id, peer, message);
        shared.count_refusal(id, RefusalReason::Certificate, message);
        ApiError::forbidden(slug, message)
    })?;
    if let Shown::New(thumbprint) = shown {
        replace_certificate(shared, id, peer, thumbprint).await?;
    }
    Ok(Caller { id, hostname: credentials.hostname })
}

async fn find_collector(
    shared: &Shared,
    headers: &HeaderMap,
    peer: &Peer,
    expiry: Expiry,
) -> Result<(Uuid, Credentials), Denial> {
    let token = bearer(headers).ok_or(NO_TOKEN)?;
    let now = clock::now();
    let Some(key_id) = key_id(token) else {
        let Subject::Collector(id) = shared.keys.tokens.verify(token, now, expiry)? else {
            return Err(Denial::Unauthorized("the token is not a collector's"));
        };
        return Ok((id, credentials(shared, id).await?));
    };
    let id: Uuid = key_id.parse().map_err(|_| Refusal::Forged)?;
    let credentials = credentials(shared, id).await?;
    let shown = match &peer.channel {
        Channel::Mutual(shown) => Some(&**shown),
        Channel::Plain | Channel::Tls => None,
    };
    let sealed = credentials.sealed_secret_with(shown);
    let Some(secret) = shared.keys.sealer.open(id, sealed) else {
        tracing::error!(collector = %id, "the collector's secret cannot be unsealed");
        return Err(ApiError::internal().into());
    };
    verify_collector(token, id, secret.expose_secret(), now, expiry)?;
    Ok((id, credentials))
}

async fn credentials(shared: &Shared, id: Uuid) -> Result<Credentials, Denial> {
    let found = shared.store.credentials(id).await;
    if found.is_err() {
        // A push that comes no further than here is not stored either.
        shared.note_store(id, found.as_ref().err());
    }
    found?.ok_or(Denial::Unauthorized("the collector is not registered, or not any more"))
}

const NO_TOKEN: Denial = Denial::Unauthorized("there is no token");

/// The same as [`refused`], and counted where it is known for sure which collector it is: nobody
/// else writes into what is counted of a host.
async fn refused_collector(
    shared: &Shared,
    headers: &HeaderMap,
    peer: &Peer,
    denial: Denial,
) -> ApiError {
    let (why, signer) = match &denial {
        Denial::Unauthorized(why) => (*why, None),
        Denial::Signed(refusal) => (refusal.name(), bearer(headers).and_then(claimed_collector)),
        Denial::Other(_) => return refused(shared, headers, peer, denial),
    };
    let error = refused(shared, headers, peer, denial);
    // Who is held back by 429 makes no reads of the store, either, and is not talked about.
    if !error.is_unauthorized() {
        return error;
    }
    if let Some(id) = bearer(headers).and_then(claimed_collector)
        && !shared.notices.was_said(id, why)
        && is_known(shared, id).await
    {
        note_refusal(shared, id, peer, why);
    }
    if let Some(id) = match signer {
        Some(id) => Some(id),
        None => shown_by(shared, peer).await,
    } {
        shared.count_refusal(id, RefusalReason::Unauthorized, why);
    }
    error
}

/// The collector whose present certificate a connection has shown.
async fn shown_by(shared: &Shared, peer: &Peer) -> Option<Uuid> {
    let Channel::Mutual(shown) = &peer.channel else { return None };
    if peer.certificate_ends.is_some_and(|end| end <= clock::now()) {
        return None;
    }
    let known = shared.store.collector_shown(shown).await.ok()??;
    known.is_live.then_some(known.id)
}

/// 401; 429 to a peer that goes on all the same, as a client does that tries again at once.
fn refused(shared: &Shared, headers: &HeaderMap, peer: &Peer, denial: Denial) -> ApiError {
    if let Denial::Other(error) = denial {
        return error;
    }
    let claimed = bearer(headers).and_then(claimed_collector);
    let (refusals, now) = (&shared.refusals, clock::monotonic());
    let network = Network::from(peer.address);
    let key = (network, claimed);
    let admitted = admitted(&refusals.peers, key).and(admitted(&refusals.addresses, network));
    if let Err(too_many) = admitted {
        return too_many;
    }
    refusals.peers.note(key, now);
    refusals.addresses.note(network, now);
    ApiError::unauthorized()
}

/// Whether there is, or was, such a collector: a stranger can name any id.
async fn is_known(shared: &Shared, id: Uuid) -> bool {
    matches!(shared.store.collector(id, clock::now()).await, Ok(Some(_)))
}

/// Once for a collector and a reason: a refused host comes again and again.
fn note_refusal(shared: &Shared, id: Uuid, peer: &Peer, why: &'static str) {
    if shared.notices.is_first(id, why) {
        tracing::warn!(collector = %id, from = %peer.address, why, "a collector was refused");
    }
}

/// The slug and the message of a 403 where the certificate is not the collector's.
fn check_certificate<'a>(
    peer: &'a Peer,
    registered: &Credentials,
) -> Result<Shown<'a>, (&'static str, &'static str)> {
    let shown = match &peer.channel {
        Channel::Plain => return Ok(Shown::Registered),
        Channel::Tls => {
            let message = "this endpoint needs the client certificate of the collector";
            return Err(("certificate_required", message));
        }
        Channel::Mutual(shown) => &**shown,
    };
    // The handshake has looked at its end, but that may be long ago.
    if peer.certificate_ends.is_some_and(|end| end <= clock::now()) {
        return Err(("certificate_expired", "the client certificate has expired"));
    }
    if registered.waits(shown) {
        return Ok(Shown::New(shown));
    }
    if registered.has(shown) {
        return Ok(Shown::Registered);
    }
    let message = "the client certificate is not the one this collector registered";
    Err(("certificate_mismatch", message))
}

/// The host has its new certificate and uses it: the old one is dead. Nothing happens when this one
/// does not wait for its first use.
pub(super) async fn replace_certificate(
    shared: &Shared,
    id: Uuid,
    peer: &Peer,
    thumbprint: &str,
) -> Result<(), ApiError> {
    let audit = Audit {
        at: clock::now(),
        actor: peer.address.to_string(),
        action: "collector.replace_certificate".to_owned(),
        subject: id.to_string(),
    };
    // Of two requests at once the second finds it done.
    if shared.store.replace_certificate(id, thumbprint, audit).await? {
        tracing::info!(collector = %id, "uses its new certificate");
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
