//! Why there is no session, or no answer to a statement.

use std::error::Error as _;
use std::io;

use tokio_postgres::config::ChannelBinding;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, Error};

use super::connection::PgConnection;
use super::guard::Refusal;
use super::tls::{self, TlsFailure};
use crate::metric::Status;

/// The most that is kept of what a server says, characters.
const MESSAGE_CHARACTERS_MAX: usize = 1_000;

/// Why a statement gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::collect) struct Failure {
    pub(in crate::collect) status: Status,
    pub(in crate::collect) sqlstate: Option<String>,
    pub(in crate::collect) message: String,
    /// The connection is of no use any more.
    pub(in crate::collect) lost: bool,
    /// It was given up because of what the server sent.
    pub(in crate::collect) refusal: Option<Refusal>,
    /// What to do, where the agent itself knows.
    pub(super) hint: Option<String>,
    /// It is about TLS, and nothing was said on the line.
    tls: bool,
}

impl Failure {
    /// Why there is no connection to `place`, with what to look at.
    pub(in crate::collect) fn to_connect(&self, place: &PgConnection) -> String {
        let hint = match self.sqlstate.as_deref() {
            _ if self.hint.is_some() => self.hint.as_deref().unwrap_or_default(),
            Some("28P01") => {
                "check postgres.user and postgres.password, or what the password comes from"
            }
            Some("28000") => {
                "pg_hba.conf must let this role in; it may want TLS (postgres.sslmode), a \
                 certificate (postgres.sslcert), or neither"
            }
            Some("3D000") => "postgres.database names a database that is not there",
            Some("53300") => "the server has no connection left; raise max_connections",
            Some("57P03") => "the server is starting up or shutting down; it is tried again",
            Some(_) => "the server's log says more",
            None => self.refusal.map_or(
                "is PostgreSQL running there? check postgres.host and postgres.port",
                Refusal::hint,
            ),
        };
        let message = &self.message;
        format!("cannot connect to PostgreSQL at {}: {message}; hint: {hint}", place.place())
    }

    pub(super) fn lost(status: Status, message: impl Into<String>) -> Self {
        let (message, sqlstate) = (message.into(), None);
        Self { status, sqlstate, message, lost: true, refusal: None, hint: None, tls: false }
    }

    pub(super) fn unreached(error: &io::Error) -> Self {
        Self::lost(Status::Error, error.to_string())
    }

    /// TLS failed, or the server does not offer what `sslmode` asks for.
    pub(super) fn tls(failure: TlsFailure) -> Self {
        let hint = Some(failure.hint);
        Self { hint, tls: true, ..Self::lost(Status::Error, failure.message) }
    }

    /// The agent's own side is not as it must be.
    pub(super) fn own(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..Self::lost(Status::Error, message) }
    }

    /// The same with other words.
    pub(super) fn with_message(self, status: Status, message: String) -> Self {
        Self { status, message, ..self }
    }

    /// Why a login with `config` has failed.
    pub(super) fn to_log_in(error: &Error, config: &Config) -> Self {
        let failure = Self::of(error);
        let is_drivers =
            error.code().is_none() && error.source().is_none_or(|source| !source.is::<io::Error>());
        if failure.hint.is_some() || !is_drivers {
            return failure;
        }
        // The driver has ended it: for want of what it was told to have.
        let hint = if config.get_channel_binding() == ChannelBinding::Require {
            "postgres.channel_binding = \"require\" takes TLS and scram-sha-256 in pg_hba.conf"
        } else if config.get_password().is_none() {
            "the server asks for a password: set postgres.password, password_file, \
             password_command or passfile"
        } else {
            return failure;
        };
        Self { hint: Some(hint.to_owned()), ..failure }
    }

    /// Whether TLS is what has failed, so that it may do without, or with.
    pub(super) fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether `pg_hba.conf` has nothing for a line such as this one.
    pub(super) fn is_not_let_in(&self) -> bool {
        self.sqlstate.as_deref() == Some(SqlState::INVALID_AUTHORIZATION_SPECIFICATION.code())
    }

    /// The same, where another attempt has failed before.
    pub(super) fn after(self, earlier: Option<Self>) -> Self {
        let Some(earlier) = earlier else { return self };
        let message = format!("{} (before that: {})", self.message, earlier.message);
        Self { message, hint: self.hint.or(earlier.hint), ..self }
    }

    pub(super) fn refused(refusal: Refusal) -> Self {
        let refused = Self::lost(Status::Error, refusal.to_string());
        Self { refusal: Some(refusal), ..refused }
    }

    pub(super) fn of(error: &Error) -> Self {
        if let Some(refusal) = error.source().and_then(Refusal::of) {
            return Self::refused(refusal);
        }
        let io_error = error.source().and_then(|source| source.downcast_ref::<io::Error>());
        if let Some(error) = io_error.filter(|error| tls::tls_error(error).is_some()) {
            return Self::tls(tls::explain(error));
        }
        let Some(state) = error.code() else {
            let message = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            return Self::lost(Status::Error, cut(&message));
        };
        let message = error.as_db_error().map_or_else(|| error.to_string(), |e| e.message().into());
        let (code, message) = (state.code(), cut(&message));
        Self {
            status: status_of(state),
            sqlstate: Some(code.to_owned()),
            message,
            lost: code.starts_with("08") || code.starts_with("57P"),
            refusal: None,
            hint: None,
            tls: false,
        }
    }

    /// A pooler that knows only some startup parameters.
    pub(super) fn refuses_options(&self) -> bool {
        self.sqlstate.as_deref() == Some(SqlState::PROTOCOL_VIOLATION.code())
            || self.message.contains("unsupported startup parameter")
    }
}

/// A server's words go to the log and the status: their beginning says enough.
fn cut(message: &str) -> String {
    message.chars().take(MESSAGE_CHARACTERS_MAX).collect()
}

fn status_of(state: &SqlState) -> Status {
    match state.code() {
        "42501" => Status::Permission,
        "42P01" | "42883" | "42703" => Status::UnsupportedVersion,
        "55P03" => Status::Locked,
        "57014" => Status::Timeout,
        "55000" => Status::Recovery,
        _ => Status::Error,
    }
}
