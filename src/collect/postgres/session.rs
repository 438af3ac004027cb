//! One connection, kept, with every limit set before the first statement.
//!
//! The connection is driven by whoever waits for a statement, not by a task of its own: between
//! two collections nothing runs. Every statement is its own transaction.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use secrecy::SecretString;

use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Connection, Error, Row, Statement};

use super::connection::PgConnection;
use super::dial::{Duplex, Peer};
use super::failure::Failure;
use super::guard::{Allowance, Expected, Guarded, Refusal};
use super::line::{Attempt, Line, Route};
use super::tls::Wire;
use crate::metric::Status;
use crate::metric::pg_stats::Cost;

/// How long a cancel request may take; after that the socket is dropped.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the last words to a server may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a name of a server that answers is looked up.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

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
    /// The most rows that an honest server answers. A server that sends more is not read on.
    pub(in crate::collect) rows_max: u32,
}

/// What the driver reads and writes.
type Socket = Guarded<Box<dyn Duplex>>;

/// An open connection.
pub(in crate::collect) struct Session {
    client: Client,
    connection: Connection<Socket, Wire<Socket>>,
    /// How it was reached; a request to cancel goes the same way.
    reached: (Route, Peer, Attempt),
    allowance: Allowance,
    statements: HashMap<&'static str, Statement>,
    timeouts: Timeouts,
    /// Settings that are made before the first statement, and not at the login: who waits then
    /// has the session, and can cancel what it waits for.
    unsettled: Option<String>,
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
        // What runs a program and makes a handshake is large, and soon over: it is not a part of
        // what waits for the session.
        let password = Box::pin(place.password_for(database)).await?;
        let connecting = Box::pin(Self::connect(place, database, password, timeouts));
        timeout(place.connect_timeout, connecting).await.unwrap_or_else(|_| {
            let seconds = place.connect_timeout.as_secs_f32();
            Err(Failure::lost(Status::Timeout, format!("no answer within {seconds} s")))
        })
    }

    async fn connect(
        place: &PgConnection,
        database: &str,
        password: Option<SecretString>,
        timeouts: &Timeouts,
    ) -> Result<Self, Failure> {
        let mut config = place.driver_config(database, password.as_ref());
        let settings = settings(timeouts);
        let plain = config.clone();
        let options: Vec<String> = settings.iter().map(|(n, v)| format!("-c {n}={v}")).collect();
        config.options(options.join(" "));
        let route = Route::to(place).await?;
        let started = Self::start(place, &route, &config, timeouts).await;
        let (mut session, pooled) = match started {
            Ok(session) => (session, false),
            Err(failure) if failure.refuses_options() => {
                tracing::warn!(
                    "the server at {} refuses startup options; \
                     hint: connect directly, not through a transaction pooler",
                    place.place()
                );
                (Self::start(place, &route, &plain, timeouts).await?, true)
            }
            Err(failure) => return Err(failure),
        };
        let mut sql = String::new();
        if pooled {
            sql.extend(settings.iter().map(|(name, value)| format!("SET {name} = '{value}';")));
        }
        if session.connection.parameter("is_superuser") == Some("on") {
            // The extension counts the statements of others, and not what asks for that. As a
            // query this is not counted either.
            sql.push_str("SELECT set_config('pg_stat_statements.track', 'none', false);");
        }
        if session.server_version() >= 11 {
            // Compiling a statement of the agent costs more than it saves.
            sql.push_str("SET jit = off;");
        }
        if session.connection.parameter("server_encoding") == Some("SQL_ASCII") {
            // Names there are bytes. The server would refuse a whole answer for one that is not
            // UTF-8; as they are, they are shown as far as they can be.
            sql.push_str("SET client_encoding = SQL_ASCII;");
        }
        session.unsettled = Some(sql).filter(|sql| !sql.is_empty());
        Ok(session)
    }

    /// A session at the first of the place's addresses that gives one.
    async fn start(
        place: &PgConnection,
        route: &Route,
        config: &Config,
        timeouts: &Timeouts,
    ) -> Result<Self, Failure> {
        let unreached = |error: io::Error| Failure::unreached(&error);
        let mut failure = Failure::lost(Status::Error, "the host's name has no address");
        for peer in Peer::all_of(place).await.map_err(unreached)? {
            match Self::start_at(peer, route, config, timeouts).await {
                Ok(session) => return Ok(session),
                Err(last) => failure = last,
            }
        }
        Err(failure)
    }

    /// A session at one address, encrypted or not, as the mode's attempts go.
    async fn start_at(
        peer: Peer,
        route: &Route,
        config: &Config,
        timeouts: &Timeouts,
    ) -> Result<Self, Failure> {
        let mut earlier: Option<Failure> = None;
        for attempt in route.attempts() {
            let line = route.dial(&peer, *attempt).await;
            let was_encrypted = line.as_ref().ok().map(|line| line.is_encrypted);
            let started = match line {
                Ok(line) => {
                    let attempt = if line.is_encrypted { Attempt::Tls } else { Attempt::Plain };
                    let reached = (route.clone(), peer.clone(), attempt);
                    Self::log_in(reached, line, config, timeouts).await
                }
                Err(failure) => Err(failure),
            };
            let failure = match started {
                Ok(session) => return Ok(session),
                Err(failure) => failure.after(earlier.take()),
            };
            // Another attempt differs only in TLS. It is of use where that is what was wrong.
            let is_of_use = match (attempt, was_encrypted) {
                (Attempt::TlsIfOffered, None) => failure.is_tls(),
                (Attempt::TlsIfOffered, Some(true)) | (Attempt::Plain, Some(false)) => {
                    failure.is_tls() || failure.is_not_let_in()
                }
                _ => false,
            };
            if !is_of_use {
                return Err(failure);
            }
            earlier = Some(failure);
        }
        Err(earlier.unwrap_or_else(|| Failure::lost(Status::Error, "nothing was tried")))
    }

    async fn log_in(
        reached: (Route, Peer, Attempt),
        line: Line,
        config: &Config,
        timeouts: &Timeouts,
    ) -> Result<Self, Failure> {
        let allowance = Allowance::default();
        allowance.renew(Expected::Login);
        let guarded = Guarded::new(line.stream, line.clear_text, allowance.clone());
        let connected = config.connect_raw(guarded, line.established).await;
        let (client, connection) = connected.map_err(|error| Failure::to_log_in(&error, config))?;
        Ok(Self {
            client,
            connection,
            reached,
            allowance,
            statements: HashMap::new(),
            timeouts: timeouts.clone(),
            unsettled: None,
            busy: false,
            standby: false,
        })
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
        self.rows_in("", query, parameters, cost).await
    }

    /// The same of a statement about an extension's objects: `{schema}` in it stands for `schema`,
    /// which is quoted as SQL wants it.
    pub(in crate::collect) async fn rows_in(
        &mut self,
        schema: &str,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
        cost: &mut Cost,
    ) -> Result<Vec<Row>, Failure> {
        let begun = crate::clock::monotonic();
        let result = self.prepare_and_run(schema, query, parameters).await;
        cost.queries += 1;
        let elapsed = crate::clock::monotonic().saturating_duration_since(begun);
        cost.elapsed_ms += elapsed.as_secs_f64() * 1000.0;
        match &result {
            Ok(rows) => cost.rows += rows.len() as u64,
            Err(failure) => cost.timeouts += u64::from(failure.status == Status::Timeout),
        }
        result
    }

    /// Takes leave of the server, which need not find out by itself that nobody is there.
    pub(in crate::collect) async fn close(self) {
        let Self { client, connection, .. } = self;
        drop(client);
        drop(timeout(CLOSE_TIMEOUT, connection).await);
    }

    /// Whether the name of `place`, to which this session is, leads to other addresses now.
    pub(in crate::collect) fn is_elsewhere(
        &self,
        place: &PgConnection,
    ) -> impl Future<Output = bool> + Send + use<> {
        let (reached, place) = (self.reached.1.clone(), place.clone());
        async move {
            let found = timeout(LOOKUP_TIMEOUT, Peer::all_of(&place)).await;
            found.is_ok_and(|found| reached.is_left_by(found))
        }
    }

    /// Asks the server to stop what was left running, so that nothing of the agent's stays.
    pub(in crate::collect) fn cancel(&self) -> impl Future<Output = ()> + Send + use<> {
        let (token, reached) = (self.client.cancel_token(), self.reached.clone());
        let ask = async move {
            let (route, peer, attempt) = reached;
            // Nothing is read: a server does not answer this.
            if let Ok(line) = route.dial(&peer, attempt).await {
                token.cancel_query_raw(line.stream, line.established).await.ok();
            }
        };
        async move { drop(timeout(CANCEL_TIMEOUT, ask).await) }
    }

    async fn prepare_and_run(
        &mut self,
        schema: &str,
        query: Query,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        if let Some(sql) = self.unsettled.take() {
            self.batch(&sql).await?;
        }
        self.busy = true;
        let statement = if let Some(statement) = self.statements.get(query.name) {
            Ok(statement.clone())
        } else {
            let sql = query.sql.replace("{schema}", schema);
            let sql = format!("/* agent:{} */ {sql}", query.name);
            self.drive(Expected::Description, async |client| client.prepare(&sql).await).await
        };
        let result = match statement {
            Ok(statement) => {
                self.statements.insert(query.name, statement.clone());
                let expected = Expected::Rows(query.rows_max);
                let rows =
                    self.drive(expected, async |client| client.query(&statement, parameters).await);
                let rows = rows.await;
                if rows.is_err() {
                    // What it was about may have moved: the next use prepares it again.
                    self.statements.remove(query.name);
                }
                match rows {
                    Ok(rows) if rows.len() > query.rows_max as usize => {
                        Err(Failure::refused(Refusal::Answer))
                    }
                    rows => rows,
                }
            }
            Err(failure) => Err(failure),
        };
        self.busy = false;
        result
    }

    async fn batch(&mut self, sql: &str) -> Result<(), Failure> {
        self.busy = true;
        let expected = Expected::Rows(0);
        let result = self.drive(expected, async |client| client.batch_execute(sql).await).await;
        self.busy = false;
        result
    }

    /// Waits for `work` and for the connection it needs, within the client's deadline and what the
    /// server may send for it.
    async fn drive<T>(
        &mut self,
        expected: Expected,
        work: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, Failure> {
        let Self { client, connection, timeouts, allowance, .. } = self;
        allowance.renew(expected);
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::tls::Established;
    use super::*;

    /// `AuthenticationCleartextPassword`.
    const CLEAR_TEXT: &[u8] = b"R\0\0\0\x08\0\0\0\x03";

    /// What the agent says to a server at `address` that asks for the password in clear text, and
    /// why it has no session.
    async fn asked_in_clear_text(address: &str) -> (String, Failure) {
        let (mut server, client) = tokio::io::duplex(4_096);
        let answering = async move {
            let mut said = Vec::new();
            server.write_all(CLEAR_TEXT).await.expect("it is there");
            // The agent writes on until it has what it wants, or hangs up.
            while !said.ends_with(b"hush\0")
                && server.read_buf(&mut said).await.is_ok_and(|n| n > 0)
            {}
            drop(server);
            String::from_utf8_lossy(&said).into_owned()
        };
        let place =
            PgConnection { password: Some(SecretString::from("hush")), ..PgConnection::default() };
        let peer = Peer::Tcp(address.parse().expect("an address"));
        let timeouts = Timeouts::default();
        let config = place.driver_config("postgres", place.password.as_ref());
        let route = Route::to(&place).await.expect("no files");
        let line = Line {
            stream: Box::new(client),
            established: Established::default(),
            clear_text: peer.clear_text(),
            is_encrypted: false,
        };
        let session = Session::log_in((route, peer, Attempt::Plain), line, &config, &timeouts);
        let (said, session) = tokio::join!(answering, session);
        (said, session.map(drop).expect_err("the server has no session to give"))
    }

    /// The password is not sent as it is to whoever asks for it over a network.
    #[tokio::test]
    async fn the_password_is_not_sent_in_clear_text_over_a_network() {
        let (said, failure) = asked_in_clear_text("192.0.2.1:5432").await;
        assert!(said.contains("user\0postgres\0") && !said.contains("hush"), "{said:?}");
        assert_eq!((failure.status, failure.lost), (Status::Error, true));
        let message = failure.to_connect(&PgConnection::default());
        assert!(message.contains("asks for the password in clear text"), "{message}");
        assert!(message.contains("hint: let pg_hba.conf ask this role for scram"), "{message}");

        let (said, failure) = asked_in_clear_text("127.0.0.1:5432").await;
        assert!(said.ends_with("hush\0"), "{said:?}");
        assert_eq!(failure.refusal, None, "{failure:?}");
    }
}
