//! Tokens: JSON Web Tokens with HS256 and nothing else, section 4 of the contract.

use std::time::Duration;

use jiff::Timestamp;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backend::store::User;

/// How far the clocks of two hosts may differ, seconds.
const LEEWAY: i64 = 60;
/// The longest life of a collector's token, seconds: one that a host minted for years would
/// outlive whatever is done about the host.
const COLLECTOR_LIFE_MAX: i64 = 2 * 60 * 60;

/// The backend's own key.
pub(in crate::backend) struct TokenKey {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

/// A new token.
#[derive(Debug, Clone)]
pub(in crate::backend) struct Minted {
    /// For the `Authorization` header.
    pub(in crate::backend) token: String,
    /// Its end.
    pub(in crate::backend) expires_at: Timestamp,
}

/// Whom a good token stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) enum Subject {
    /// A collector.
    Collector(Uuid),
    /// A user, by its session.
    UserAccess(Uuid),
    /// A user that wants new tokens.
    UserRefresh {
        /// The session.
        session: Uuid,
        /// This token's own id.
        id: Uuid,
    },
}

/// Which of a user's tokens, and its id.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) enum UserToken {
    /// Opens endpoints.
    Access,
    /// Is exchanged for new tokens.
    Refresh(Uuid),
}

/// Whether a token's end counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) enum Expiry {
    /// As it should.
    Checked,
    /// Not: something else proves who is asking.
    Ignored,
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) enum Refusal {
    /// No token of the right form, or of another key.
    Forged,
    /// It has not begun.
    Early,
    /// It has ended.
    Expired,
    /// A collector's token that lives longer than one may.
    TooLong,
    /// Its claims do not agree with each other.
    Claims,
}

impl Refusal {
    /// The word in the log.
    pub(in crate::backend) fn name(self) -> &'static str {
        match self {
            Self::Forged => "the token is not signed by the backend or the collector",
            Self::Early => "the token has not begun",
            Self::Expired => "the token has expired",
            Self::TooLong => "the token lives longer than two hours",
            Self::Claims => "the token's claims do not agree",
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Claims {
    sub: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
    r#type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    collector_id: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user_id: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    /// The session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sid: Option<Uuid>,
}

impl TokenKey {
    /// The key in 32 bytes or more.
    pub(in crate::backend) fn new(secret: &[u8]) -> Self {
        Self {
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
        }
    }

    /// A collector's token.
    pub(in crate::backend) fn mint_collector(
        &self,
        id: Uuid,
        hostname: &str,
        now: Timestamp,
        life: Duration,
    ) -> Minted {
        self.mint(
            now,
            life,
            Claims {
                sub: format!("collector:{id}"),
                jti: Uuid::new_v4().to_string(),
                r#type: "access".to_owned(),
                collector_id: Some(id),
                hostname: Some(hostname.to_owned()),
                ..Claims::default()
            },
        )
    }

    /// A user's token.
    pub(in crate::backend) fn mint_user(
        &self,
        user: &User,
        session: Uuid,
        kind: UserToken,
        now: Timestamp,
        life: Duration,
    ) -> Minted {
        let (kind, id) = match kind {
            UserToken::Access => ("access", Uuid::new_v4()),
            UserToken::Refresh(id) => ("refresh", id),
        };
        self.mint(
            now,
            life,
            Claims {
                sub: format!("user:{}", user.id),
                jti: id.to_string(),
                r#type: kind.to_owned(),
                user_id: Some(user.id),
                username: Some(user.username.clone()),
                email: Some(user.email.clone()),
                role: Some(user.role.as_str().to_owned()),
                sid: Some(session),
                ..Claims::default()
            },
        )
    }

    /// Whom a token of this key stands for.
    pub(in crate::backend) fn verify(
        &self,
        token: &str,
        now: Timestamp,
        expiry: Expiry,
    ) -> Result<Subject, Refusal> {
        subject(&read(token, &self.decoding, now, expiry)?)
    }

    fn mint(&self, now: Timestamp, life: Duration, claims: Claims) -> Minted {
        let issued = now.as_second();
        let end = issued.saturating_add_unsigned(life.as_secs());
        let claims = Claims { iat: issued, nbf: issued, exp: end, ..claims };
        let token = encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
            .expect("claims of strings and numbers always encode");
        Minted { token, expires_at: Timestamp::from_second(end).unwrap_or(Timestamp::MAX) }
    }
}

/// The collector that says it minted this token itself.
pub(in crate::backend) fn key_id(token: &str) -> Option<String> {
    decode_header(token).ok()?.kid
}

/// The collector that a token says it is of, whether or not it is.
pub(in crate::backend) fn claimed_collector(token: &str) -> Option<Uuid> {
    #[derive(Deserialize)]
    struct Outside {
        collector_id: Option<Uuid>,
    }
    if let Some(id) = key_id(token) {
        return id.parse().ok();
    }
    let claims = super::decode(token.split('.').nth(1)?)?;
    serde_json::from_slice::<Outside>(&claims).ok()?.collector_id
}

/// Whether collector `id` minted this token with its own secret.
pub(in crate::backend) fn verify_collector(
    token: &str,
    id: Uuid,
    secret: &[u8],
    now: Timestamp,
    expiry: Expiry,
) -> Result<(), Refusal> {
    match subject(&read(token, &DecodingKey::from_secret(secret), now, expiry)?)? {
        Subject::Collector(found) if found == id => Ok(()),
        _ => Err(Refusal::Claims),
    }
}

fn read(token: &str, key: &DecodingKey, now: Timestamp, expiry: Expiry) -> Result<Claims, Refusal> {
    if !is_understood(token) {
        return Err(Refusal::Forged);
    }
    let mut validation = Validation::new(Algorithm::HS256);
    // Times are checked below, against `now`.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    let decoded = decode::<Claims>(token, key, &validation);
    let claims = decoded.map_err(|_| Refusal::Forged)?.claims;
    let now = now.as_second();
    if claims.nbf.max(claims.iat) > now.saturating_add(LEEWAY) {
        return Err(Refusal::Early);
    }
    if claims.exp.saturating_add(LEEWAY) <= now && expiry == Expiry::Checked {
        return Err(Refusal::Expired);
    }
    Ok(claims)
}

/// Whether the header asks for nothing that must be understood (`crit`) and is not: nothing is.
fn is_understood(token: &str) -> bool {
    let header = token.split('.').next().and_then(super::decode);
    let header: Option<serde_json::Map<String, serde_json::Value>> =
        header.and_then(|header| serde_json::from_slice(&header).ok());
    header.is_some_and(|header| !header.contains_key("crit"))
}

/// A subject needs all of its claims to agree.
fn subject(claims: &Claims) -> Result<Subject, Refusal> {
    if let Some(id) = claims.collector_id {
        let is_collector = claims.sub == format!("collector:{id}") && claims.r#type == "access";
        if !is_collector || claims.user_id.is_some() {
            return Err(Refusal::Claims);
        }
        if claims.exp.saturating_sub(claims.iat) > COLLECTOR_LIFE_MAX {
            return Err(Refusal::TooLong);
        }
        return Ok(Subject::Collector(id));
    }
    let (Some(session), Some(user)) = (claims.sid, claims.user_id) else {
        return Err(Refusal::Claims);
    };
    if claims.sub != format!("user:{user}") {
        return Err(Refusal::Claims);
    }
    match claims.r#type.as_str() {
        "access" => Ok(Subject::UserAccess(session)),
        "refresh" => {
            let id = claims.jti.parse().map_err(|_| Refusal::Claims)?;
            Ok(Subject::UserRefresh { session, id })
        }
        _ => Err(Refusal::Claims),
    }
}

#[cfg(test)]
mod tests;
