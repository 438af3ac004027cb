//! One connection, kept, with every limit set before the first statement.
//!
//! The connection is driven by whoever waits for a statement, not by a task of its own: between
//! two collections nothing runs. Every statement is its own transaction.

use std::collections::HashMap;
use std::error::Error as _;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Connection, Error, NoTls, Row, Socket, Statement};

use super::connection::PgConnection;
use crate::metric::Status;
use crate::metric::pg_stats::Cost;

/// How long a cancel request may take; after that the socket is dropped.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
/// The most that is kept of what a server says, characters.
const MESSAGE_CHARACTERS_MAX: usize = 1_000;

/// The limits of a session. Each must be below the one after it, and all below the interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// `lock_timeout`: how long a statement may queue for a lock, and so make others queue.
    pub lock: Duration,
    /// `statement_timeout`.
    pub statement: Duration,
    /// The agent's own deadline for one statement: covers a network that swallows packets.
    pub client: Duration,
}

/// A statement of the collector.
#[derive(Debug, Clone, Copy)]
pub(in crate::collect) struct Query {
    /// The name in messages, in `problems` and in the statement's comment.
    pub(in crate::collect) name: &'static str,
    pub(in crate::collect) sql: &'static str,
}

/// Why a statement gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::collect) struct Failure {
    pub(in crate::collect) status: Status,
    pub(in crate::collect) sqlstate: Option<String>,
    pub(in crate::collect) message: String,
    /// The connection is of no use any more.
    pub(in crate::collect) lost: bool,
}

/// An open connection.
pub(in crate::collect) struct Session {
    client: Client,
    connection: Connection<Socket, NoTlsStream>,
    statements: HashMap<&'static str, Statement>,
    timeouts: Timeouts,
    /// A statement was begun and its end not seen: its future was dropped.
    busy: bool,
    standby: bool,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            lock: Duration::from_millis(250),
            statement: Duration::from_secs(5),
            client: Duration::from_secs(7),
        }
    }
}

impl Timeouts {
    /// What a standby gets: its replay can hold locks, and a statement can hold up its replay.
    fn on_standby(&self) -> (Duration, Duration) {
        (self.lock.min(Duration::from_millis(100)), self.statement.min(Duration::from_secs(2)))
    }
}

impl Session {
    /// Connects to `database`. The limits travel in the connection packet where the server (or a
    /// pooler before it) takes them there, else they are set first thing.
    pub(in crate::collect) async fn open(
        place: &PgConnection,
        database: &str,
        timeouts: &Timeouts,
    ) -> Result<Self, Failure> {
        let opened = timeout(place.connect_timeout, Self::connect(place, database, timeouts)).await;
        opened.unwrap_or_else(|_| {
            let seconds = place.connect_timeout.as_secs_f32();
            Err(Failure::lost(Status::Timeout, format!("no answer within {seconds} s")))
        })
    }

    async fn connect(
        place: &PgConnection,
        database: &str,
        timeouts: &Timeouts,
    ) -> Result<Self, Failure> {
        let mut config = place.driver_config(database);
        let settings = settings(timeouts);
        let plain = config.clone();
        let options: Vec<String> = settings.iter().map(|(n, v)| format!("-c {n}={v}")).collect();
        config.options(options.join(" "));
        let (mut session, pooled) = match Self::start(&config, timeouts).await {
            Ok(session) => (session, false),
            Err(failure) if failure.refuses_options() => {
                tracing::warn!(
                    "the server at {} refuses startup options; \
                     hint: connect directly, not through a transaction pooler",
                    place.place()
                );
                (Self::start(&plain, timeouts).await?, true)
            }
            Err(failure) => return Err(failure),
        };
        let mut sql = String::new();
        if pooled {
            sql.extend(settings.iter().map(|(name, value)| format!("SET {name} = '{value}';")));
        }
        if session.server_version() >= 11 {
            // Compiling a statement of the agent costs more than it saves.
            sql.push_str("SET jit = off;");
        }
        if !sql.is_empty() {
            session.batch(&sql).await?;
        }
        Ok(session)
    }

    async fn start(config: &Config, timeouts: &Timeouts) -> Result<Self, Failure> {
        let (client, connection) =
            config.connect(NoTls).await.map_err(|error| Failure::of(&error))?;
        let timeouts = timeouts.clone();
        let statements = HashMap::new();
        Ok(Self { client, connection, statements, timeouts, busy: false, standby: false })
    }

    /// Whether a statement was left behind unfinished.
    pub(in crate::collect) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Sets the shorter limits of a standby, or the usual ones again after a promotion.
    pub(in crate::collect) async fn set_standby(
        &mut self,
        in_recovery: Recovery,
    ) -> Result<(), Failure> {
        let standby = in_recovery == Recovery::Standby;
        if standby == self.standby {
            return Ok(());
        }
        let (lock, statement) = match in_recovery {
            Recovery::Standby => self.timeouts.on_standby(),
            Recovery::Primary => (self.timeouts.lock, self.timeouts.statement),
        };
        let (lock, statement) = (lock.as_millis(), statement.as_millis());
        self.batch(&format!("SET lock_timeout = {lock}; SET statement_timeout = {statement};"))
            .await?;
        self.standby = standby;
        Ok(())
    }

    /// Runs `query`, prepared on its first use here, and adds to `cost`.
    pub(in crate::collect) async fn rows(
        &mut self,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
        cost: &mut Cost,
    ) -> Result<Vec<Row>, Failure> {
        let begun = crate::clock::monotonic();
        let result = self.prepare_and_run(query, parameters).await;
        cost.queries += 1;
        let elapsed = crate::clock::monotonic().saturating_duration_since(begun);
        cost.elapsed_ms += elapsed.as_secs_f64() * 1000.0;
        match &result {
            Ok(rows) => cost.rows += rows.len() as u64,
            Err(failure) => cost.timeouts += u64::from(failure.status == Status::Timeout),
        }
        result
    }

    /// Asks the server to stop what was left running, so that nothing of the agent's stays.
    pub(in crate::collect) fn cancel(&self) -> impl Future<Output = ()> + Send + use<> {
        let token = self.client.cancel_token();
        async move { drop(timeout(CANCEL_TIMEOUT, token.cancel_query(NoTls)).await) }
    }

    async fn prepare_and_run(
        &mut self,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        self.busy = true;
        let statement = if let Some(statement) = self.statements.get(query.name) {
            Ok(statement.clone())
        } else {
            let sql = format!("/* agent:{} */ {}", query.name, query.sql);
            self.drive(async |client| client.prepare(&sql).await).await
        };
        let result = match statement {
            Ok(statement) => {
                self.statements.insert(query.name, statement.clone());
                self.drive(async |client| client.query(&statement, parameters).await).await
            }
            Err(failure) => Err(failure),
        };
        self.busy = false;
        result
    }

    async fn batch(&mut self, sql: &str) -> Result<(), Failure> {
        self.busy = true;
        let result = self.drive(async |client| client.batch_execute(sql).await).await;
        self.busy = false;
        result
    }

    /// Waits for `work` and for the connection it needs, within the client's deadline.
    async fn drive<T>(
        &mut self,
        work: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, Failure> {
        let Self { client, connection, timeouts, .. } = self;
        let driven = async {
            tokio::select! {
                biased;
                // First, because it alone has the server's last words.
                ended = connection => Err(ended.err()),
                result = work(client) => result.map_err(Some),
            }
        };
        match timeout(timeouts.client, driven).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Some(error))) => Err(Failure::of(&error)),
            Ok(Err(None)) => Err(Failure::lost(Status::Error, "the server closed the connection")),
            Err(_) => {
                self.cancel().await;
                let seconds = self.timeouts.client.as_secs_f32();
                Err(Failure::lost(Status::Timeout, format!("no answer within {seconds} s")))
            }
        }
    }

    /// The major version that the server announced.
    fn server_version(&self) -> u32 {
        let version = self.connection.parameter("server_version").unwrap_or_default();
        let major: String = version.chars().take_while(char::is_ascii_digit).collect();
        major.parse().unwrap_or(0)
    }
}

/// Whether a server replays another's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::collect) enum Recovery {
    Primary,
    Standby,
}

impl Failure {
    /// Why there is no connection to `place`, with what to look at.
    pub(in crate::collect) fn to_connect(&self, place: &PgConnection) -> String {
        let hint = match self.sqlstate.as_deref() {
            Some("28P01") => "check postgres.user and postgres.password",
            Some("28000") => {
                "pg_hba.conf must let this role in; TLS is not spoken, so prefer the Unix socket"
            }
            Some("3D000") => "postgres.database names a database that is not there",
            Some("53300") => "the server has no connection left; raise max_connections",
            Some("57P03") => "the server is starting up or shutting down; it is tried again",
            Some(_) => "the server's log says more",
            None => "is PostgreSQL running there? check postgres.host and postgres.port",
        };
        let message = &self.message;
        format!("cannot connect to PostgreSQL at {}: {message}; hint: {hint}", place.place())
    }

    fn lost(status: Status, message: impl Into<String>) -> Self {
        Self { status, sqlstate: None, message: message.into(), lost: true }
    }

    fn of(error: &Error) -> Self {
        let Some(state) = error.code() else {
            let message = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            let message = cut(&message);
            return Self { status: Status::Error, sqlstate: None, message, lost: true };
        };
        let message = error.as_db_error().map_or_else(|| error.to_string(), |e| e.message().into());
        let (code, message) = (state.code(), cut(&message));
        Self {
            status: status_of(state),
            sqlstate: Some(code.to_owned()),
            message,
            lost: code.starts_with("08") || code.starts_with("57P"),
        }
    }

    /// A pooler that knows only some startup parameters.
    fn refuses_options(&self) -> bool {
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

/// The server's side of every limit. `lock_timeout` is below `statement_timeout`, so that a lock
/// is reported as one; no parallel workers, for the agent must not cost more than it measures.
fn settings(timeouts: &Timeouts) -> [(&'static str, String); 7] {
    [
        ("lock_timeout", timeouts.lock.as_millis().to_string()),
        ("statement_timeout", timeouts.statement.as_millis().to_string()),
        ("idle_in_transaction_session_timeout", "10000".to_owned()),
        ("default_transaction_read_only", "on".to_owned()),
        ("search_path", "pg_catalog".to_owned()),
        ("max_parallel_workers_per_gather", "0".to_owned()),
        ("tcp_keepalives_idle", "30".to_owned()),
    ]
}
