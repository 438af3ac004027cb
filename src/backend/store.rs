//! Where the backend keeps what it was told: the seam between its API and a database.
//!
//! Two implementations, `sqlite` for one machine and `postgres` for everything else, pass the
//! same suite (`tests/backend_store.rs`). What both promise:
//!
//! - S1: an `Ok` of [`Store::push`] means that the metrics, the batch id and the agent's report
//!   are committed and synced to disk, all together or not at all.
//! - S2: one collector's batch id is accepted once, for ever; the second time no metric is written
//!   and the first answer's refusals are returned again. What the agent says of itself with a
//!   batch, its known holes among it, is kept each time.
//! - S3: a name, without regard to case and to how Unicode writes its letters, belongs to the
//!   collector that bore it first, for ever; the host of a live collector is that collector's, by
//!   whatever right another one registers. A registration and the use of its secret are one
//!   transaction. The secret of a release ends with the next one and with the collector's removal.
//! - S4: a refresh token is good once; presenting a used one ends the whole session.
//! - S5: a metric that comes in two batches of one server is one row: the row's key is its server,
//!   its time and a digest of its type, database and JSON text. A push without a batch id, and
//!   rows of a store from before there were digests, have no such key.
//! - S6: a renewed certificate counts beside the old one until it is used for the first time; from
//!   then on it alone does. Another renewal before that replaces it.
//! - S7: where a push says which record a metric is, the digest is of queue, number and what S5
//!   names: equal metrics of two records are two rows. A row whose digest is of the text alone is
//!   the row of the first record with that text: claimed, not doubled, and claimed once.
//! - S8: the metrics of a push that are refused are counted with it, once for a batch.
//!
//! Times are kept to the microsecond.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

mod postgres;
mod refusals;
mod registration;
mod rows;
mod sqlite;

pub use refusals::{RefusalCount, RefusalReason};
pub use registration::{
    Enrolled, Enrolment, KeptSecret, Known, NewSecret, Renamed, Right, name_key,
};
pub use rows::{
    Account, Audit, Collector, ConfigOutcome, Credentials, Found, KeptConfig, LOST_KEPT_MAX,
    Labels, Listing, LostRows, MetricQuery, MetricRow, NewConfig, NewUser, Page, Push, Pushed,
    Renewal, Role, Rotate, Rotation, Server, Session, StoredMetric, User,
};

/// Holes of one answer at most.
pub const HOLES_MAX: u32 = 1_000;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached or cannot write now: the caller may come again.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The name is taken, or the row it refers to is not there.
    #[error("conflict in the store: {0}")]
    Conflict(String),
    /// A bound is reached: there are as many of these as there may be.
    #[error("too many in the store: {0}")]
    TooMany(String),
    /// The database cannot hold this value, now or later.
    #[error("the store cannot hold this: {0}")]
    Refused(String),
    /// What the store holds is damaged or of another make: a human is needed.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

/// What the backend needs of a database. Every call is one transaction.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes, durably: what can only be read is not ready. Leaves nothing behind.
    async fn ready(&self) -> Result<(), StoreError>;
    /// The keys that the store's secrets are sealed with; `None` before [`Store::bind_keys`].
    async fn bound_keys(&self) -> Result<Option<String>, StoreError>;
    /// Ties the store to the keys its secrets are sealed with, for ever;
    /// [`StoreError::Conflict`] when it is tied to others.
    async fn bind_keys(&self, fingerprint: &str) -> Result<(), StoreError>;
    /// Lets go of the database; the last call.
    async fn close(&self);

    /// Writes a registration, new or again (a known `id`), and its audit row (S3). A collector that
    /// comes back keeps its name; its server row goes with its host name.
    async fn enrol(&self, enrolment: Enrolment) -> Result<Enrolled, StoreError>;
    /// One collector, deregistered or not.
    async fn collector(&self, id: Uuid, now: Timestamp) -> Result<Option<Collector>, StoreError>;
    /// The collector that bears or bore this name, without regard to case.
    async fn collector_named(&self, name: &str) -> Result<Option<Known>, StoreError>;
    /// The collector that this certificate is of: the registered one, or the renewed one.
    async fn collector_shown(&self, thumbprint: &str) -> Result<Option<Known>, StoreError>;
    /// Gives a collector another name; the old one stays reserved.
    async fn rename(&self, id: Uuid, name: &str, audit: Audit) -> Result<Renamed, StoreError>;
    /// Replaces all labels of a collector; `false` when there is no such collector.
    async fn label(&self, id: Uuid, labels: Labels, audit: Audit) -> Result<bool, StoreError>;
    /// All collectors, by name.
    async fn collectors(
        &self,
        page: Page,
        now: Timestamp,
    ) -> Result<Listing<Collector>, StoreError>;
    /// What a collector's requests are checked against; `None` for an unknown or deregistered one.
    async fn credentials(&self, id: Uuid) -> Result<Option<Credentials>, StoreError>;
    /// Keeps a renewed certificate and its audit row (S6); `false` when there is no such collector.
    async fn renew_certificate(&self, renewal: Renewal) -> Result<bool, StoreError>;
    /// Notes the first use of the certificate `thumbprint`, of a renewal or of a registration. It
    /// replaces the old one, and with a registration the old secret (S6); `false`, and no audit
    /// row, when it is not one that waits.
    async fn replace_certificate(
        &self,
        id: Uuid,
        thumbprint: &str,
        audit: Audit,
    ) -> Result<bool, StoreError>;
    /// Takes a collector's rights away; `false` when there is none.
    async fn deregister(&self, id: Uuid, audit: Audit) -> Result<bool, StoreError>;

    /// Keeps a registration secret, and its audit row; [`StoreError::Conflict`] when there is one
    /// of that name.
    async fn add_secret(&self, secret: NewSecret) -> Result<(), StoreError>;
    /// Keeps the secret that stands in the backend's file, in place of the one before. One that was
    /// revoked stays so, under a name with the time until which it stood there, and has its name
    /// again when it is back in the file.
    async fn keep_file_secret(&self, secret: NewSecret) -> Result<(), StoreError>;
    /// All secrets, by name.
    async fn secrets(&self) -> Result<Vec<KeptSecret>, StoreError>;
    /// The secret with this mark.
    async fn secret_marked(&self, mark: &[u8]) -> Result<Option<KeptSecret>, StoreError>;
    /// Ends a secret; `false` when there is none of that name.
    async fn revoke_secret(&self, name: &str, audit: Audit) -> Result<bool, StoreError>;

    /// Stores one push (S1, S2, S5, S7). [`StoreError::TooMany`] when it would bring one host more
    /// than a collector may bring.
    async fn push(&self, push: Push) -> Result<Pushed, StoreError>;

    /// Adds to what is counted of collectors whose requests were refused as a whole.
    async fn note_refusals(&self, refusals: Vec<(Uuid, RefusalCount)>) -> Result<(), StoreError>;

    /// The newest configuration of a collector.
    async fn config(&self, id: Uuid) -> Result<Option<KeptConfig>, StoreError>;
    /// Every version of a collector's configuration, newest first, without its text.
    async fn config_versions(
        &self,
        id: Uuid,
        page: Page,
    ) -> Result<Listing<KeptConfig>, StoreError>;
    /// Keeps the first version of a configuration; returns the one that was there when there was.
    async fn first_config(&self, config: NewConfig) -> Result<KeptConfig, StoreError>;
    /// Keeps the next version of a configuration and returns its number.
    async fn next_config(&self, config: NewConfig) -> Result<i64, StoreError>;

    /// Servers, by name.
    async fn servers(&self, page: Page) -> Result<Listing<Server>, StoreError>;
    /// One server.
    async fn server(&self, id: i64) -> Result<Option<Server>, StoreError>;
    /// Stored metrics of one server, oldest first.
    async fn metrics(&self, query: MetricQuery) -> Result<Found, StoreError>;
    /// The known holes in what a collector delivered, newest first.
    async fn lost(&self, id: Uuid, page: Page) -> Result<Listing<LostRows>, StoreError>;
    /// The known holes that a time range shows, oldest first: the newest [`HOLES_MAX`]. A hole
    /// without the times of its records is where it was noticed.
    async fn holes(
        &self,
        id: Uuid,
        start: Timestamp,
        end: Timestamp,
    ) -> Result<Vec<LostRows>, StoreError>;

    /// Adds a user and its audit row and returns its id.
    async fn add_user(&self, user: NewUser) -> Result<i64, StoreError>;
    /// Shuts a user out; `false` when there is none.
    async fn disable_user(&self, username: &str, audit: Audit) -> Result<bool, StoreError>;
    /// A user with its password hash.
    async fn account(&self, username: &str) -> Result<Option<Account>, StoreError>;
    /// Opens a session and notes the login.
    async fn open_session(&self, session: Session) -> Result<(), StoreError>;
    /// The active user of a live session.
    async fn session_user(&self, id: Uuid, now: Timestamp) -> Result<Option<User>, StoreError>;
    /// Exchanges a session's refresh token (S4).
    async fn rotate_session(&self, rotate: Rotate) -> Result<Rotation, StoreError>;
    /// Ends a session.
    async fn end_session(&self, id: Uuid, now: Timestamp) -> Result<(), StoreError>;

    /// Notes who did what.
    async fn audit(&self, entry: Audit) -> Result<(), StoreError>;
    /// Who did what, newest first.
    async fn audits(&self, page: Page) -> Result<Listing<Audit>, StoreError>;
}

/// Refuses one host more than a collector may bring.
fn check_brought(hosts: u64, push: &Push) -> Result<(), StoreError> {
    if hosts < u64::from(push.brought_max) {
        return Ok(());
    }
    Err(StoreError::TooMany(format!("the collector has brought {hosts} other hosts already")))
}

/// Opens the store that `url` names, `sqlite:/path` or `postgres://...`, and brings its tables up
/// to date.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    if let Some(path) = url.strip_prefix("sqlite:") {
        return Ok(Arc::new(sqlite::SqliteStore::open(path.into()).await?));
    }
    Ok(Arc::new(postgres::PostgresStore::open(url).await?))
}
