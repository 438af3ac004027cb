//! The store in PostgreSQL 10 or later.
//!
//! Documents are kept as `jsonb`. A commit is on the server's disk before it is answered (S1):
//! sessions turn `synchronous_commit` on where the server has it off. The connection has no TLS of
//! its own: use a Unix socket, loopback, or a private network.

use std::time::Duration;

use async_trait::async_trait;
use deadpool_postgres::{
    Client, Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime,
};
use jiff::Timestamp;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::error::SqlState;
use tokio_postgres::{NoTls, Row};
use uuid::Uuid;

use super::refusals::RefusalCount;
use super::registration::{Enrolled, Enrolment, KeptSecret, Known, NewSecret, Renamed};
use super::rows::{
    Account, Audit, Collector, Credentials, Found, KeptConfig, Labels, Listing, LostRows,
    MetricQuery, NewConfig, NewUser, Page, Push, Pushed, Renewal, Rotate, Rotation, Server,
    Session, User,
};
use super::{Store, StoreError};

mod claims;
mod collectors;
mod configs;
mod metrics;
mod refusals;
mod secrets;
mod users;

refinery::embed_migrations!("src/backend/store/postgres/migrations");

/// Connections at most.
const CONNECTIONS: usize = 16;
/// How many of them reads that may be long have at a time: pushes have the others.
const LONG_READERS: usize = 8;
/// For a free connection, a new one, and a check of an old one.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the server does to a session of this store: no statement hangs for ever, and a commit is
/// durable.
const SESSION: &str = "SET statement_timeout = '20s';
    SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '60s';
    SELECT set_config('synchronous_commit', 'on', false)
     WHERE current_setting('synchronous_commit') = 'off'";
/// Held while tables are brought up to date, so that two backends do not do it at once.
const MIGRATION_LOCK: i64 = 0x7067_616e_616c_7974;

/// The store in a PostgreSQL database.
pub(super) struct PostgresStore {
    pool: Pool,
    long_reads: Semaphore,
}

/// A connection for a read that may be long.
struct LongReader<'a> {
    client: Client,
    _turn: SemaphorePermit<'a>,
}

impl PostgresStore {
    /// Connects and migrates.
    pub(super) async fn open(url: &str) -> Result<Self, StoreError> {
        let mut config: tokio_postgres::Config = url.parse().map_err(|err| {
            // The text of the URL holds a password: it is not repeated.
            StoreError::Unavailable(format!("its URL cannot be read: {err}"))
        })?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(PATIENCE);
        }
        if config.get_application_name().is_none() {
            config.application_name("pganalytics-backend");
        }
        let recycling_method = RecyclingMethod::Fast;
        let manager = Manager::from_config(config, NoTls, ManagerConfig { recycling_method });
        let prepare = Hook::async_fn(|client: &mut deadpool_postgres::ClientWrapper, _| {
            Box::pin(async move { client.batch_execute(SESSION).await.map_err(HookError::Backend) })
        });
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .timeouts(deadpool_postgres::Timeouts {
                wait: Some(PATIENCE),
                create: Some(PATIENCE),
                recycle: Some(PATIENCE),
            })
            .post_create(prepare)
            .build()
            .map_err(|err| StoreError::Unavailable(err.to_string()))?;
        let store = Self { pool, long_reads: Semaphore::new(LONG_READERS) };
        store.migrate().await?;
        Ok(store)
    }

    async fn client(&self) -> Result<Client, StoreError> {
        Ok(self.pool.get().await?)
    }

    /// For what people ask for: there are fewer of these at a time than connections, so that no
    /// host waits for them.
    async fn long_reader(&self) -> Result<LongReader<'_>, StoreError> {
        match tokio::time::timeout(PATIENCE, self.long_reads.acquire()).await {
            Ok(Ok(turn)) => Ok(LongReader { client: self.client().await?, _turn: turn }),
            _ => Err(StoreError::Unavailable("others read for too long".to_owned())),
        }
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let encoding: String = client.query_one("SHOW server_encoding", &[]).await?.try_get(0)?;
        if encoding != "UTF8" {
            return Err(StoreError::Damaged(format!(
                "the database has the encoding {encoding}; hint: make one with ENCODING 'UTF8'"
            )));
        }
        // Waiting for another backend may take longer than a statement should.
        client.batch_execute("SET statement_timeout = 0; SET lock_timeout = 0").await?;
        client.execute("SELECT pg_advisory_lock($1)", &[&MIGRATION_LOCK]).await?;
        let migrated = migrations::runner().run_async(&mut **client).await;
        client.execute("SELECT pg_advisory_unlock($1)", &[&MIGRATION_LOCK]).await?;
        client.batch_execute(SESSION).await?;
        migrated.map_err(|err| {
            let text = anyhow::Error::from(err);
            StoreError::Damaged(format!("its tables cannot be brought up to date: {text:#}"))
        })?;
        collectors::reserve_names(&mut client).await
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn ready(&self) -> Result<(), StoreError> {
        let write = "UPDATE keys SET fingerprint = fingerprint";
        self.client().await?.execute(write, &[]).await?;
        Ok(())
    }

    async fn bound_keys(&self) -> Result<Option<String>, StoreError> {
        collectors::bound_keys(&self.client().await?).await
    }

    async fn bind_keys(&self, fingerprint: &str) -> Result<(), StoreError> {
        collectors::bind_keys(&self.client().await?, fingerprint).await
    }

    async fn close(&self) {
        self.pool.close();
    }

    async fn enrol(&self, enrolment: Enrolment) -> Result<Enrolled, StoreError> {
        collectors::enrol(&mut self.client().await?, &enrolment).await
    }

    async fn collector(&self, id: Uuid, now: Timestamp) -> Result<Option<Collector>, StoreError> {
        collectors::one(&self.long_reader().await?.client, id, now).await
    }

    async fn collector_named(&self, name: &str) -> Result<Option<Known>, StoreError> {
        collectors::named(&self.client().await?, name).await
    }

    async fn collector_shown(&self, thumbprint: &str) -> Result<Option<Known>, StoreError> {
        collectors::shown(&self.client().await?, thumbprint).await
    }

    async fn rename(&self, id: Uuid, name: &str, audit: Audit) -> Result<Renamed, StoreError> {
        collectors::rename(&mut self.client().await?, id, name, &audit).await
    }

    async fn label(&self, id: Uuid, labels: Labels, audit: Audit) -> Result<bool, StoreError> {
        collectors::label(&mut self.client().await?, id, &labels, &audit).await
    }

    async fn collectors(
        &self,
        page: Page,
        now: Timestamp,
    ) -> Result<Listing<Collector>, StoreError> {
        collectors::all(&self.long_reader().await?.client, page, now).await
    }

    async fn credentials(&self, id: Uuid) -> Result<Option<Credentials>, StoreError> {
        collectors::credentials(&self.client().await?, id).await
    }

    async fn renew_certificate(&self, renewal: Renewal) -> Result<bool, StoreError> {
        collectors::renew_certificate(&mut self.client().await?, &renewal).await
    }

    async fn replace_certificate(
        &self,
        id: Uuid,
        thumbprint: &str,
        audit: Audit,
    ) -> Result<bool, StoreError> {
        collectors::replace_certificate(&mut self.client().await?, id, thumbprint, &audit).await
    }

    async fn deregister(&self, id: Uuid, audit: Audit) -> Result<bool, StoreError> {
        collectors::deregister(&mut self.client().await?, id, &audit).await
    }

    async fn add_secret(&self, secret: NewSecret) -> Result<(), StoreError> {
        secrets::add(&mut self.client().await?, &secret).await
    }

    async fn keep_file_secret(&self, secret: NewSecret) -> Result<(), StoreError> {
        secrets::keep_of_file(&mut self.client().await?, &secret).await
    }

    async fn secrets(&self) -> Result<Vec<KeptSecret>, StoreError> {
        secrets::all(&self.long_reader().await?.client).await
    }

    async fn secret_marked(&self, mark: &[u8]) -> Result<Option<KeptSecret>, StoreError> {
        secrets::marked(&self.client().await?, mark).await
    }

    async fn revoke_secret(&self, name: &str, audit: Audit) -> Result<bool, StoreError> {
        secrets::revoke(&mut self.client().await?, name, &audit).await
    }

    async fn push(&self, push: Push) -> Result<Pushed, StoreError> {
        metrics::push(&mut self.client().await?, &push).await
    }

    async fn note_refusals(&self, refusals: Vec<(Uuid, RefusalCount)>) -> Result<(), StoreError> {
        refusals::note(&mut self.client().await?, &refusals).await
    }

    async fn config(&self, id: Uuid) -> Result<Option<KeptConfig>, StoreError> {
        configs::newest(&self.client().await?, id).await
    }

    async fn config_versions(
        &self,
        id: Uuid,
        page: Page,
    ) -> Result<Listing<KeptConfig>, StoreError> {
        configs::versions(&self.long_reader().await?.client, id, page).await
    }

    async fn first_config(&self, config: NewConfig) -> Result<KeptConfig, StoreError> {
        configs::first(&mut self.client().await?, &config).await
    }

    async fn next_config(&self, config: NewConfig) -> Result<i64, StoreError> {
        configs::next(&mut self.client().await?, &config).await
    }

    async fn servers(&self, page: Page) -> Result<Listing<Server>, StoreError> {
        metrics::servers(&self.long_reader().await?.client, page).await
    }

    async fn server(&self, id: i64) -> Result<Option<Server>, StoreError> {
        metrics::server(&self.long_reader().await?.client, id).await
    }

    async fn metrics(&self, query: MetricQuery) -> Result<Found, StoreError> {
        metrics::select(&self.long_reader().await?.client, &query).await
    }

    async fn lost(&self, id: Uuid, page: Page) -> Result<Listing<LostRows>, StoreError> {
        metrics::lost(&self.long_reader().await?.client, id, page).await
    }

    async fn holes(
        &self,
        id: Uuid,
        start: Timestamp,
        end: Timestamp,
    ) -> Result<Vec<LostRows>, StoreError> {
        metrics::holes(&self.long_reader().await?.client, id, start, end).await
    }

    async fn add_user(&self, user: NewUser) -> Result<i64, StoreError> {
        users::add(&mut self.client().await?, &user).await
    }

    async fn disable_user(&self, username: &str, audit: Audit) -> Result<bool, StoreError> {
        users::disable(&mut self.client().await?, username, &audit).await
    }

    async fn account(&self, username: &str) -> Result<Option<Account>, StoreError> {
        users::account(&self.client().await?, username).await
    }

    async fn open_session(&self, session: Session) -> Result<(), StoreError> {
        users::open_session(&mut self.client().await?, &session).await
    }

    async fn session_user(&self, id: Uuid, now: Timestamp) -> Result<Option<User>, StoreError> {
        users::session_user(&self.client().await?, id, now).await
    }

    async fn rotate_session(&self, rotate: Rotate) -> Result<Rotation, StoreError> {
        users::rotate(&mut self.client().await?, &rotate).await
    }

    async fn end_session(&self, id: Uuid, now: Timestamp) -> Result<(), StoreError> {
        users::end_session(&self.client().await?, id, now).await
    }

    async fn audit(&self, entry: Audit) -> Result<(), StoreError> {
        users::audit(&self.client().await?, &entry).await
    }

    async fn audits(&self, page: Page) -> Result<Listing<Audit>, StoreError> {
        users::audits(&self.long_reader().await?.client, page).await
    }
}

impl From<PoolError> for StoreError {
    fn from(err: PoolError) -> Self {
        match err {
            PoolError::Backend(err) | PoolError::PostCreateHook(HookError::Backend(err)) => {
                err.into()
            }
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(err: tokio_postgres::Error) -> Self {
        let code = err.code().cloned();
        // An error says "db error": what happened stands in its source.
        let text = format!("{:#}", anyhow::Error::from(err));
        let Some(code) = code else { return Self::Unavailable(text) };
        // A read-only server is a standby that has not been promoted yet.
        if code == SqlState::READ_ONLY_SQL_TRANSACTION {
            return Self::Unavailable(text);
        }
        match code.code().get(..2).unwrap_or_default() {
            "23" => Self::Conflict(text),
            "22" | "54" => Self::Refused(text),
            "42" | "XX" | "0A" => Self::Damaged(text),
            // Connections, authorisation, resources, locks, shutdown: all pass.
            _ => Self::Unavailable(text),
        }
    }
}

/// Reads a count.
fn counted(row: &Row, column: &str) -> Result<u64, StoreError> {
    Ok(row.try_get::<_, i64>(column)?.try_into().unwrap_or(0))
}

/// A count for a bigint column.
fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// PostgreSQL's text has no character 0.
fn text(value: &str) -> std::borrow::Cow<'_, str> {
    if value.contains('\0') { value.replace('\0', "\u{fffd}").into() } else { value.into() }
}
