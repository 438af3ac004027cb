//! Collector tokens: minted from the secret of registration, renewed by the backend, or read from a
//! file that another program fills. Pure but for that file: the time is an argument, and it is the
//! server's.

mod file; // a token that another program provides

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

pub use self::file::TokenFile;
use super::{Identity, LinkError};
use crate::answer::{Answer, Meaning};

/// A token is used only while it is valid for longer than this, so that it does not expire on its
/// way or in a slow backend.
pub const MARGIN: SignedDuration = SignedDuration::from_secs(60);

/// How long a minted token is valid.
pub const LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// What a collector token says (contract section 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The collector, as registered.
    pub collector_id: String,
    /// Its host.
    pub hostname: String,
    /// `access`; a token of another type is not for pushes.
    #[serde(rename = "type")]
    pub kind: String,
    /// `collector:<id>`.
    pub sub: String,
    /// Issued at, seconds since 1970.
    pub iat: i64,
    /// Not before, seconds since 1970.
    pub nbf: i64,
    /// Expires, seconds since 1970.
    pub exp: i64,
    /// Different in every token.
    pub jti: String,
}

/// There is no usable token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what}; hint: {hint}")]
pub struct TokenError {
    pub(super) what: String,
    pub(super) hint: &'static str,
}

impl TokenError {
    fn new(what: impl Into<String>, hint: &'static str) -> Self {
        Self { what: what.into(), hint }
    }

    /// An external token's file cannot be read; the error names it.
    pub(super) fn unreadable(error: &std::io::Error) -> Self {
        Self::new(
            format!("token_file: {error}"),
            "let the program that provides the token write it there, readable by the agent's user",
        )
    }
}

/// A token and when it ends, in the server's time.
#[derive(Debug, Clone)]
pub struct Token {
    value: SecretString,
    expires_at: Timestamp,
}

impl Token {
    /// A token whose end is known.
    pub fn new(value: SecretString, expires_at: Timestamp) -> Self {
        Self { value, expires_at }
    }

    /// Reads a token from elsewhere, without its key: three parts, not expired, meant for access.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, TokenError> {
        #[derive(Deserialize)]
        struct Outside {
            exp: i64,
            #[serde(rename = "type")]
            kind: Option<String>,
        }
        let hint = "it must hold one collector token (a JWT) and nothing else";
        let text = text.trim();
        let parts: Vec<&str> = text.split('.').collect();
        let [header, claims, signature] = parts[..] else {
            return Err(TokenError::new("a token has three parts, separated by dots", hint));
        };
        let (Ok(_), Ok(claims), Ok(_)) = (
            URL_SAFE_NO_PAD.decode(header),
            URL_SAFE_NO_PAD.decode(claims),
            URL_SAFE_NO_PAD.decode(signature),
        ) else {
            return Err(TokenError::new("the token's parts are no base64url", hint));
        };
        let outside: Outside = serde_json::from_slice(&claims)
            .map_err(|error| TokenError::new(format!("the token's claims: {error}"), hint))?;
        if let Some(kind) = outside.kind.filter(|kind| kind != "access") {
            let what = format!("the token is of type {kind:?}, not \"access\"");
            return Err(TokenError::new(what, "provide the access token"));
        }
        let token = Self::new(
            SecretString::from(text),
            Timestamp::from_second(outside.exp).unwrap_or(Timestamp::MIN),
        );
        if token.expires_at <= now {
            let what = format!("the token expired at {}", token.expires_at);
            return Err(TokenError::new(what, "provide a new one"));
        }
        Ok(token)
    }

    /// Reads the answer of `refresh-token`.
    pub(super) fn from_refresh(answer: &Answer) -> Result<Self, TokenError> {
        #[derive(Deserialize)]
        struct Refreshed {
            token: String,
            expires_at: Timestamp,
        }
        let hint = "if it does not pass, register again with `agent register --force`";
        if answer.meaning() != Meaning::Success {
            return Err(TokenError::new(format!("no new token: {}", answer.shown()), hint));
        }
        serde_json::from_slice(&answer.body)
            .map(|new: Refreshed| Self::new(SecretString::from(new.token), new.expires_at))
            .map_err(|_| TokenError::new("the answer to refresh-token holds no token", hint))
    }

    /// Still good for more than [`MARGIN`] at `now`, the server's time.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.expires_at.duration_since(now) > MARGIN
    }

    /// The end of its validity, in the server's time.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The token itself, for the `Authorization` header.
    pub fn expose(&self) -> &SecretString {
        &self.value
    }

    /// The same token, not just an equally long one.
    pub fn same_as(&self, other: &Self) -> bool {
        self.value.expose_secret() == other.value.expose_secret()
    }
}

/// Where tokens come from.
#[derive(Debug)]
pub enum TokenSource {
    /// From the collector's own secret, without asking anyone.
    Minted(Minter),
    /// From `refresh-token` of a backend that gave no secret.
    Renewed(Token),
    /// From a file that is read for every request, so that its writer may replace it at any time.
    File(TokenFile),
}

impl TokenSource {
    /// The configured file wins, then the secret, then the token of registration.
    pub fn choose(file: Option<&Path>, identity: &Identity) -> Result<Self, LinkError> {
        if let Some(path) = file {
            return Ok(Self::File(TokenFile::new(path)));
        }
        if let Some(secret) = &identity.secret {
            let minter = Minter::new(secret, &identity.collector_id, &identity.hostname);
            return minter.map(Self::Minted);
        }
        identity.token.clone().map(Self::Renewed).ok_or_else(|| {
            LinkError::new(
                format!("the identity of {} has neither secret nor token", identity.collector_id),
                "register again with `agent register --force`",
            )
        })
    }
}

/// Mints a collector's own tokens.
pub struct Minter {
    collector_id: String,
    hostname: String,
    key: SecretSlice<u8>,
    current: Option<Token>,
}

impl std::fmt::Debug for Minter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minter").field("collector_id", &self.collector_id).finish_non_exhaustive()
    }
}

impl Minter {
    /// Takes the secret of registration: base64url of the key's bytes.
    pub fn new(
        secret: &SecretString,
        collector_id: &str,
        hostname: &str,
    ) -> Result<Self, LinkError> {
        let key = URL_SAFE_NO_PAD.decode(secret.expose_secret()).map_err(|_| {
            LinkError::new(
                format!("the secret of {collector_id} is no base64url"),
                "register again with `agent register --force`",
            )
        })?;
        Ok(Self {
            collector_id: collector_id.to_owned(),
            hostname: hostname.to_owned(),
            key: SecretSlice::from(key),
            current: None,
        })
    }

    /// The current token while it is valid and not `refused`, else a new one.
    pub fn token(&mut self, now: Timestamp, refused: Option<&Token>) -> Result<Token, TokenError> {
        let refused = |token: &Token| refused.is_some_and(|refused| refused.same_as(token));
        match &self.current {
            Some(token) if token.is_valid(now) && !refused(token) => Ok(token.clone()),
            _ => self.mint(now),
        }
    }

    fn mint(&mut self, now: Timestamp) -> Result<Token, TokenError> {
        let exp = self.next_expiry(now.as_second());
        let claims = Claims {
            collector_id: self.collector_id.clone(),
            hostname: self.hostname.clone(),
            kind: "access".to_owned(),
            sub: format!("collector:{}", self.collector_id),
            iat: now.as_second(),
            nbf: now.as_second(),
            exp,
            jti: Uuid::new_v4().to_string(),
        };
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(self.collector_id.clone());
        let key = EncodingKey::from_secret(self.key.expose_secret());
        let expires_at = Timestamp::from_second(exp).unwrap_or(Timestamp::MAX);
        let value = jsonwebtoken::encode(&header, &claims, &key)
            .map_err(|error| TokenError::new(format!("no token: {error}"), "report this"))?;
        let token = Token::new(SecretString::from(value), expires_at);
        self.current = Some(token.clone());
        Ok(token)
    }

    /// A renewed token ends later than the one it replaces, even within the same second.
    fn next_expiry(&self, now: i64) -> i64 {
        let exp = now.saturating_add(LIFETIME.as_secs());
        let before = self.current.as_ref().map(|token| token.expires_at.as_second());
        match before {
            // A much later end comes from a clock that has been corrected: it says nothing.
            Some(before) if before >= exp && before - exp < MARGIN.as_secs() => before + 1,
            _ => exp,
        }
    }
}

#[cfg(test)]
mod tests;
