//! Users come, stay and go: login, refresh, logout.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::access::{self, Peer};
use super::error::{ApiError, ok};
use super::{Shared, admitted, body, counted};
use crate::backend::auth::{Expiry, Subject, UserToken};
use crate::backend::network::Network;
use crate::backend::store::{Audit, Rotate, Rotation, Session, User};
use crate::clock;

/// Longest user name, characters.
const USERNAME_MAX: usize = 128;

#[derive(Deserialize)]
struct LoginRequest {
    username: String,
    password: String,
}

#[derive(Deserialize)]
struct RefreshRequest {
    refresh_token: String,
}

/// POST `/auth/login`.
pub(super) async fn login(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let network = Network::from(peer.address);
    counted(&shared.logins, network)?;
    let LoginRequest { username, password } = body::tiny_json(&headers, body).await?;
    let name: String = username.chars().take(USERNAME_MAX).collect();
    // Where the owner was before is not closed by those who guess from elsewhere.
    if !shared.familiar.knows(&name, network) {
        admitted(&shared.accounts, name.as_str())?;
    }
    shared.accounts.note(name.as_str(), clock::monotonic());
    let account = shared.store.account(&username).await?;
    let hash = account.as_ref().map(|account| account.password_hash.clone());
    let good = shared.passwords.verify(hash, SecretString::from(password)).await;
    let user = account.map(|account| account.user).filter(|user| good && user.is_active);
    let now = clock::now();
    let Some(user) = user else {
        shared.store.audit(failed_login(now, &peer, &username)).await?;
        let message = "the user name or the password is wrong";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "bad_credentials", message));
    };
    shared.logins.forgive(network);
    shared.accounts.forgive(name.as_str());
    shared.familiar.note(name, network, clock::monotonic());
    let (id, refresh_id) = (Uuid::new_v4(), Uuid::new_v4());
    let expires_at = refresh_end(&shared, now);
    let session = Session { id, user_id: user.id, refresh_id, at: now, expires_at };
    shared.store.open_session(session).await?;
    let user = User { last_login: Some(now), ..user };
    Ok(tokens(&shared, &user, id, refresh_id, now))
}

/// POST `/auth/refresh`.
pub(super) async fn refresh(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let network = Network::from(peer.address);
    counted(&shared.refreshes, network)?;
    let RefreshRequest { refresh_token } = body::tiny_json(&headers, body).await?;
    let now = clock::now();
    let Ok(Subject::UserRefresh { session, id }) =
        shared.keys.tokens.verify(&refresh_token, now, Expiry::Checked)
    else {
        return Err(ApiError::unauthorized());
    };
    let next = Uuid::new_v4();
    let expires_at = refresh_end(&shared, now);
    let rotate = Rotate { session, presented: id, next, at: now, expires_at };
    match shared.store.rotate_session(rotate).await? {
        Rotation::Done(user) => {
            shared.refreshes.forgive(network);
            Ok(tokens(&shared, &user, session, next, now))
        }
        Rotation::Reused => {
            tracing::warn!(%session, "a refresh token was used twice: the session is ended");
            Err(ApiError::unauthorized())
        }
        Rotation::Dead => Err(ApiError::unauthorized()),
    }
}

/// POST `/auth/logout`.
pub(super) async fn logout(
    State(shared): State<Arc<Shared>>,
    peer: Peer,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (_, session) = access::session(&shared, &headers, &peer).await?;
    shared.store.end_session(session, clock::now()).await?;
    Ok(ok(&json!({"message": "logged out"})))
}

fn refresh_end(shared: &Shared, now: Timestamp) -> Timestamp {
    now.saturating_add(shared.config.lifetimes.refresh_token).unwrap_or(Timestamp::MAX)
}

fn tokens(
    shared: &Shared,
    user: &User,
    session: Uuid,
    refresh_id: Uuid,
    now: Timestamp,
) -> Response {
    let (keys, lifetimes) = (&shared.keys.tokens, &shared.config.lifetimes);
    let access = keys.mint_user(user, session, UserToken::Access, now, lifetimes.access_token);
    let kind = UserToken::Refresh(refresh_id);
    let refresh = keys.mint_user(user, session, kind, now, lifetimes.refresh_token);
    ok(&json!({
        "token": access.token,
        "refresh_token": refresh.token,
        "expires_at": clock::rfc3339(access.expires_at),
        "user": user,
    }))
}

fn failed_login(at: Timestamp, peer: &Peer, username: &str) -> Audit {
    Audit {
        at,
        actor: peer.address.to_string(),
        action: "user.login_failed".to_owned(),
        subject: username.chars().filter(|c| !c.is_control()).take(USERNAME_MAX).collect(),
    }
}
