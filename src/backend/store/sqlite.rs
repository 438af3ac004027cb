//! The embedded store: one SQLite file with a write-ahead log.
//!
//! One connection writes, `synchronous = FULL`: a commit is on disk before it is answered (S1).
//! A few others read beside it, one of them only what requests of hosts wait for. A read that takes
//! too long is ended, as the server does it for the store in PostgreSQL. All of them work on the
//! blocking threads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use super::refusals::RefusalCount;
use super::registration::{Enrolled, Enrolment, KeptSecret, Known, NewSecret, Renamed};
use super::rows::{
    Account, Audit, Collector, Credentials, Found, KeptConfig, Labels, Listing, LostRows,
    MetricQuery, NewConfig, NewUser, Page, Push, Pushed, Renewal, Rotate, Rotation, Server,
    Session, User,
};
use super::{Store, StoreError};
use crate::clock;

mod claims;
mod collectors;
mod configs;
mod metrics;
mod refusals;
mod secrets;
mod users;

refinery::embed_migrations!("src/backend/store/sqlite/migrations");

/// Connections for reads that may be long, beside the one that writes and the one for short ones.
const LONG_READERS: usize = 3;
/// How long a read may take.
const READ_MAX: Duration = Duration::from_secs(20);
/// Steps of SQLite's machine between two looks at the clock: about a millisecond.
const STEPS_UNWATCHED: i32 = 10_000;
/// How long a connection waits for another process's lock, such as a backup's.
const BUSY_TIMEOUT_MS: u32 = 5_000;

/// The store in one SQLite file.
pub(super) struct SqliteStore {
    writer: Slot,
    long_readers: Vec<Slot>,
    short_reader: Slot,
    next_reader: AtomicUsize,
    read_max: Duration,
}

/// A connection, until the store is closed.
type Slot = Arc<Mutex<Option<Connection>>>;

impl SqliteStore {
    /// Opens or creates the file, readable by its owner only, and migrates it.
    pub(super) async fn open(path: PathBuf) -> Result<Self, StoreError> {
        Self::open_with(path, READ_MAX).await
    }

    async fn open_with(path: PathBuf, read_max: Duration) -> Result<Self, StoreError> {
        let opened = tokio::task::spawn_blocking(move || open_all(&path)).await;
        let (writer, short_reader, long_readers) = opened.map_err(panicked)??;
        let shared = |connection| Arc::new(Mutex::new(Some(connection)));
        Ok(Self {
            writer: shared(writer),
            long_readers: long_readers.into_iter().map(shared).collect(),
            short_reader: shared(short_reader),
            next_reader: AtomicUsize::new(0),
            read_max,
        })
    }

    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.write_if(|db| Ok((work(db)?, true))).await
    }

    /// Keeps what `work` has written when it says so.
    async fn write_if<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<(T, bool), StoreError> + Send + 'static,
    {
        on(Arc::clone(&self.writer).lock_owned().await, |connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let (value, keep) = work(&transaction)?;
            if keep {
                transaction.commit()?;
            }
            Ok(value)
        })
        .await
    }

    /// Looks up a few rows: what requests of hosts wait for.
    async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let free = free([&self.short_reader].into_iter().chain(&self.long_readers));
        let reader = match free {
            Some(reader) => reader,
            None => Arc::clone(&self.short_reader).lock_owned().await,
        };
        self.read_on(reader, work).await
    }

    /// Reads what may be much: what people ask for. There are fewer such reads at a time than
    /// connections, so that no host waits for them.
    async fn read_long<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let turn = self.next_reader.fetch_add(1, Ordering::Relaxed) % LONG_READERS;
        let reader = match (free(&self.long_readers), self.long_readers.get(turn)) {
            (Some(reader), _) => reader,
            (None, next) => Arc::clone(next.unwrap_or(&self.short_reader)).lock_owned().await,
        };
        self.read_on(reader, work).await
    }

    async fn read_on<T, F>(
        &self,
        reader: OwnedMutexGuard<Option<Connection>>,
        work: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let read_max = self.read_max;
        on(reader, move |connection| {
            let began = clock::monotonic();
            let is_late = move || clock::monotonic().saturating_duration_since(began) >= read_max;
            connection.progress_handler(STEPS_UNWATCHED, Some(is_late))?;
            let done = work(&connection.transaction()?);
            if done.is_err() && is_late() {
                let hint = "ask for a shorter range; if the store is on a slow disk, move it";
                tracing::warn!(?read_max, hint, "a read of the store took too long and was ended");
            }
            done
        })
        .await
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn ready(&self) -> Result<(), StoreError> {
        // A number in the file's head, which nothing reads: another each time, or SQLite would
        // find nothing to write.
        self.write(|db| {
            let count: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
            Ok(db.pragma_update(None, "user_version", count.wrapping_add(1) & i32::MAX)?)
        })
        .await
    }

    async fn bound_keys(&self) -> Result<Option<String>, StoreError> {
        self.read(collectors::bound_keys).await
    }

    async fn bind_keys(&self, fingerprint: &str) -> Result<(), StoreError> {
        let fingerprint = fingerprint.to_owned();
        self.write(move |db| collectors::bind_keys(db, &fingerprint)).await
    }

    async fn close(&self) {
        for reader in self.long_readers.iter().chain([&self.short_reader]) {
            reader.lock().await.take();
        }
        let last = self.writer.lock().await.take();
        // Closing the last connection copies the log into the file.
        let _ = tokio::task::spawn_blocking(move || drop(last)).await;
    }

    async fn enrol(&self, enrolment: Enrolment) -> Result<Enrolled, StoreError> {
        self.write_if(move |db| {
            let enrolled = collectors::enrol(db, &enrolment)?;
            Ok((enrolled, enrolled == Enrolled::Done))
        })
        .await
    }

    async fn collector(&self, id: Uuid, now: Timestamp) -> Result<Option<Collector>, StoreError> {
        self.read_long(move |db| collectors::one(db, id, now)).await
    }

    async fn collector_named(&self, name: &str) -> Result<Option<Known>, StoreError> {
        let name = name.to_owned();
        self.read(move |db| collectors::named(db, &name)).await
    }

    async fn collector_shown(&self, thumbprint: &str) -> Result<Option<Known>, StoreError> {
        let thumbprint = thumbprint.to_owned();
        self.read(move |db| collectors::shown(db, &thumbprint)).await
    }

    async fn rename(&self, id: Uuid, name: &str, audit: Audit) -> Result<Renamed, StoreError> {
        let name = name.to_owned();
        self.write(move |db| collectors::rename(db, id, &name, &audit)).await
    }

    async fn label(&self, id: Uuid, labels: Labels, audit: Audit) -> Result<bool, StoreError> {
        self.write(move |db| collectors::label(db, id, &labels, &audit)).await
    }

    async fn collectors(
        &self,
        page: Page,
        now: Timestamp,
    ) -> Result<Listing<Collector>, StoreError> {
        self.read_long(move |db| collectors::all(db, page, now)).await
    }

    async fn credentials(&self, id: Uuid) -> Result<Option<Credentials>, StoreError> {
        self.read(move |db| collectors::credentials(db, id)).await
    }

    async fn renew_certificate(&self, renewal: Renewal) -> Result<bool, StoreError> {
        self.write(move |db| collectors::renew_certificate(db, &renewal)).await
    }

    async fn replace_certificate(
        &self,
        id: Uuid,
        thumbprint: &str,
        audit: Audit,
    ) -> Result<bool, StoreError> {
        let thumbprint = thumbprint.to_owned();
        self.write(move |db| collectors::replace_certificate(db, id, &thumbprint, &audit)).await
    }

    async fn deregister(&self, id: Uuid, audit: Audit) -> Result<bool, StoreError> {
        self.write(move |db| collectors::deregister(db, id, &audit)).await
    }

    async fn add_secret(&self, secret: NewSecret) -> Result<(), StoreError> {
        self.write(move |db| secrets::add(db, &secret)).await
    }

    async fn keep_file_secret(&self, secret: NewSecret) -> Result<(), StoreError> {
        self.write(move |db| secrets::keep_of_file(db, &secret)).await
    }

    async fn secrets(&self) -> Result<Vec<KeptSecret>, StoreError> {
        self.read_long(secrets::all).await
    }

    async fn secret_marked(&self, mark: &[u8]) -> Result<Option<KeptSecret>, StoreError> {
        let mark = mark.to_owned();
        self.read(move |db| secrets::marked(db, &mark)).await
    }

    async fn revoke_secret(&self, name: &str, audit: Audit) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write(move |db| secrets::revoke(db, &name, &audit)).await
    }

    async fn push(&self, push: Push) -> Result<Pushed, StoreError> {
        self.write(move |db| metrics::push(db, &push)).await
    }

    async fn note_refusals(&self, refusals: Vec<(Uuid, RefusalCount)>) -> Result<(), StoreError> {
        self.write(move |db| refusals.iter().try_for_each(|(id, new)| refusals::add(db, *id, new)))
            .await
    }

    async fn config(&self, id: Uuid) -> Result<Option<KeptConfig>, StoreError> {
        self.read(move |db| configs::newest(db, id)).await
    }

    async fn config_versions(
        &self,
        id: Uuid,
        page: Page,
    ) -> Result<Listing<KeptConfig>, StoreError> {
        self.read_long(move |db| configs::versions(db, id, page)).await
    }

    async fn first_config(&self, config: NewConfig) -> Result<KeptConfig, StoreError> {
        self.write(move |db| configs::first(db, &config)).await
    }

    async fn next_config(&self, config: NewConfig) -> Result<i64, StoreError> {
        self.write(move |db| configs::next(db, &config)).await
    }

    async fn servers(&self, page: Page) -> Result<Listing<Server>, StoreError> {
        self.read_long(move |db| metrics::servers(db, page)).await
    }

    async fn server(&self, id: i64) -> Result<Option<Server>, StoreError> {
        self.read_long(move |db| metrics::server(db, id)).await
    }

    async fn metrics(&self, query: MetricQuery) -> Result<Found, StoreError> {
        self.read_long(move |db| metrics::select(db, &query)).await
    }

    async fn lost(&self, id: Uuid, page: Page) -> Result<Listing<LostRows>, StoreError> {
        self.read_long(move |db| metrics::lost(db, id, page)).await
    }

    async fn holes(
        &self,
        id: Uuid,
        start: Timestamp,
        end: Timestamp,
    ) -> Result<Vec<LostRows>, StoreError> {
        self.read_long(move |db| metrics::holes(db, id, start, end)).await
    }

    async fn add_user(&self, user: NewUser) -> Result<i64, StoreError> {
        self.write(move |db| users::add(db, &user)).await
    }

    async fn disable_user(&self, username: &str, audit: Audit) -> Result<bool, StoreError> {
        let username = username.to_owned();
        self.write(move |db| users::disable(db, &username, &audit)).await
    }

    async fn account(&self, username: &str) -> Result<Option<Account>, StoreError> {
        let username = username.to_owned();
        self.read(move |db| users::account(db, &username)).await
    }

    async fn open_session(&self, session: Session) -> Result<(), StoreError> {
        self.write(move |db| users::open_session(db, &session)).await
    }

    async fn session_user(&self, id: Uuid, now: Timestamp) -> Result<Option<User>, StoreError> {
        self.read(move |db| users::session_user(db, id, now)).await
    }

    async fn rotate_session(&self, rotate: Rotate) -> Result<Rotation, StoreError> {
        self.write(move |db| users::rotate(db, &rotate)).await
    }

    async fn end_session(&self, id: Uuid, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |db| users::end_session(db, id, now)).await
    }

    async fn audit(&self, entry: Audit) -> Result<(), StoreError> {
        self.write(move |db| users::audit(db, &entry)).await
    }

    async fn audits(&self, page: Page) -> Result<Listing<Audit>, StoreError> {
        self.read_long(move |db| users::audits(db, page)).await
    }
}

/// One of these that nobody uses.
fn free<'a>(
    slots: impl IntoIterator<Item = &'a Slot>,
) -> Option<OwnedMutexGuard<Option<Connection>>> {
    slots.into_iter().find_map(|slot| Arc::clone(slot).try_lock_owned().ok())
}

/// Runs `work` on a blocking thread: only waiting for the connection takes none.
async fn on<T, F>(mut held: OwnedMutexGuard<Option<Connection>>, work: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
{
    let task = tokio::task::spawn_blocking(move || match held.as_mut() {
        Some(connection) => work(connection),
        None => Err(StoreError::Unavailable("it is closed".to_owned())),
    });
    task.await.map_err(panicked)?
}

/// The writer, the reader of what is short, and those of what may be long.
fn open_all(path: &Path) -> Result<(Connection, Connection, Vec<Connection>), StoreError> {
    create_private(path)
        .map_err(|err| StoreError::Unavailable(format!("{err}; hint: check the store's path")))?;
    let mut writer = connect(path)?;
    writer.pragma_update(None, "journal_mode", "WAL")?;
    writer.pragma_update(None, "synchronous", "FULL")?;
    migrations::runner().run(&mut writer).map_err(|err| {
        StoreError::Damaged(format!(
            "{}: cannot bring its tables up to date: {err}",
            path.display()
        ))
    })?;
    let transaction = writer.transaction()?;
    collectors::reserve_names(&transaction)?;
    transaction.commit()?;
    let reader = || {
        let reader = connect(path)?;
        reader.pragma_update(None, "query_only", "ON")?;
        Ok(reader)
    };
    let long = (0..LONG_READERS).map(|_| reader()).collect::<Result<_, StoreError>>()?;
    Ok((writer, reader()?, long))
}

/// The write-ahead log takes the mode of the file.
fn create_private(path: &Path) -> std::io::Result<()> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    fs_err::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "busy_timeout", BUSY_TIMEOUT_MS)?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn panicked(err: tokio::task::JoinError) -> StoreError {
    StoreError::Damaged(format!("a store task died: {err}"))
}

impl From<rusqlite::Error> for StoreError {
    fn from(err: rusqlite::Error) -> Self {
        use ErrorCode as Code;
        let text = err.to_string();
        match err.sqlite_error_code() {
            Some(Code::ConstraintViolation) => Self::Conflict(text),
            Some(Code::TooBig | Code::TypeMismatch) => Self::Refused(text),
            Some(
                Code::DatabaseBusy
                | Code::DatabaseLocked
                | Code::DiskFull
                | Code::CannotOpen
                | Code::ReadOnly
                | Code::SystemIoFailure
                | Code::OutOfMemory
                | Code::OperationInterrupted
                | Code::PermissionDenied
                | Code::FileLockingProtocolFailed,
            ) => Self::Unavailable(text),
            _ => Self::Damaged(text),
        }
    }
}

/// Microseconds since 1970, as the tables keep times.
fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// Reads a time.
fn time(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<Timestamp> {
    time_option(row, column).map(Option::unwrap_or_default)
}

/// Reads a time that may be missing.
fn time_option(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<Option<Timestamp>> {
    row.get::<_, Option<i64>>(column)?.map(Timestamp::from_microsecond).transpose().map_err(wrong)
}

/// Reads a UUID.
fn uuid(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<Uuid> {
    row.get_ref(column)?.as_str()?.parse().map_err(wrong)
}

fn wrong(err: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Null, Box::new(err))
}

/// A count for an INTEGER column.
fn count(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Reads a count.
fn counted(row: &rusqlite::Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const MANY: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
                         WHERE i < 3000000) SELECT count(*) FROM n";

    fn count(db: &rusqlite::Transaction<'_>, sql: &str) -> Result<i64, StoreError> {
        Ok(db.query_row(sql, [], |row| row.get(0))?)
    }

    /// A read over its time ends as one of a store that is away; short ones on the same connection
    /// go on.
    #[tokio::test]
    async fn a_read_ends_in_time() {
        let directory = tempfile::tempdir().expect("a folder");
        let path = |name: &str| directory.path().join(name);
        let store = SqliteStore::open_with(path("a.db"), Duration::ZERO).await.expect("open");
        for _ in 0..2 * LONG_READERS {
            let ended = store.read_long(|db| count(db, MANY)).await;
            assert!(matches!(ended, Err(StoreError::Unavailable(_))), "{ended:?}");
            let ended = store.read(|db| count(db, MANY)).await;
            assert!(matches!(ended, Err(StoreError::Unavailable(_))), "{ended:?}");
            assert_eq!(store.read_long(|db| count(db, "SELECT 1")).await.expect("short"), 1);
        }
        // What is written is not cut off.
        store.write(|db| count(db, MANY)).await.expect("not a read");
        let store = SqliteStore::open(path("b.db")).await.expect("open");
        assert_eq!(store.read_long(|db| count(db, MANY)).await.expect("in time"), 3_000_000);
    }

    /// As many long reads as there may be: what a push needs is looked up and written beside them.
    #[tokio::test]
    async fn long_reads_keep_no_push_waiting() {
        let directory = tempfile::tempdir().expect("a folder");
        let store = SqliteStore::open(directory.path().join("a.db")).await.expect("open");
        let store = Arc::new(store);
        let (begin, mut started) = tokio::sync::mpsc::channel(LONG_READERS);
        let mut gates = Vec::new();
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..2 * LONG_READERS {
            let (gate, closed) = mpsc::channel::<()>();
            gates.push(gate);
            let (store, begin) = (Arc::clone(&store), begin.clone());
            reads.spawn(async move {
                let read = store.read_long(move |db| {
                    let _ = begin.blocking_send(());
                    let _ = closed.recv();
                    count(db, "SELECT 1")
                });
                read.await
            });
        }
        for _ in 0..LONG_READERS {
            started.recv().await.expect("a read has begun");
        }
        let limit = Duration::from_secs(10);
        for _ in 0..10 {
            let known = tokio::time::timeout(limit, store.credentials(Uuid::nil())).await;
            assert!(known.expect("beside long reads").expect("it reads").is_none());
            let written = tokio::time::timeout(limit, store.ready()).await;
            written.expect("beside long reads").expect("it writes");
        }
        drop((gates, started));
        assert!(reads.join_all().await.into_iter().all(|read| read.is_ok()));
    }
}
