//! Stage 2: the queue. What a collector appends is durable before it is told so, and stays until a
//! backend has taken it.
//!
//! # What an `Ok` promises
//! When [`Queue::append`] answers with [`Home::Disk`], the records are in a file and the file and
//! its directory entries are synced: they survive kill -9 and power loss. (With `durability =
//! "interval"` or `"os"` they survive kill -9 at once, and power loss a little later: see
//! [`Durability`].) When the disk does not take them the answer is [`Home::MemoryOnly`]: they are
//! delivered from memory, are written when the disk is back, and are lost with the process until
//! then. [`Home::Evicted`] says that a full queue has not taken them, and the ledger has.
//!
//! # Invariants, cited by tests
//! - **Q1 Durable before acknowledged.** One sync covers the groups that arrive within
//!   `commit_interval` (default 100 ms), or those that wait already when one is in haste. Every
//!   acknowledged record is delivered, queued, in the dead letters or in the ledger, never missing.
//! - **Q2 Data before state, state before delete.** A crash between any two steps is harmless:
//!   the worst is a batch sent again under the same id: deliveries are noted together, within
//!   `commit_interval` or when their segment is done. Removing what is gone is no error.
//! - **Q3 A damaged byte costs at most its block.** Frames carry checksums of header and payload
//!   and are found by their magic number. Opening deletes nothing but empty segments and segments
//!   whose records are elsewhere or delivered. What can be read of a damaged segment is delivered,
//!   or moved to a sound one when there is time; the damaged one goes to `quarantine/`, and what is
//!   lost to the ledger, with its sequence numbers. A segment that the disk does not give at all is
//!   passed over and tried again each minute. Panics of the database are errors.
//! - **Q4 Identity.** The queue has a UUID. A batch's id is a function of (queue, segment, batch
//!   number) where it was written first; a block belongs to its batch since then. No process gives
//!   a segment a number that an earlier one may have used without leaving a trace. A retry, a
//!   restart, a merge or a replay sends the same records under the same id; what thinning leaves of
//!   a batch has an id derived from it.
//! - **Q5 Sequence numbers count records**, from 0, over restarts. The ledger holds every number
//!   that was not delivered, with the reason, until the backend knows it.
//! - **Q6 Bounded.** Segments, delivered ones that are kept included, take at most `bytes_max` and
//!   one segment more. What goes for want of room is in the ledger before it goes.
//! - **Q7 A disk that fails stops nothing.** Records stay in memory up to `memory_max`; the disk is
//!   asked again after 1 s, 2 s, 4 s, at most 60 s. Over the bound the oldest are evicted. A failed
//!   sync is never tried again: the segment is closed with what it had acknowledged, and the rest
//!   is written to another.
//! - **Q8 Positions travel with records.** How far a collector had read is in the block that holds
//!   what it read.
//! - **Q9 Opening reads state and unsealed segments**, not the backlog.
//! - **Q10 A long outage fits.** Windows that wait are merged and compressed together. The merged
//!   segment is durable and read back before its sources go; no merge begins while batches leave.
//! - **Q11 A segment is written by one process only**, and never again after an error or a restart.
//!
//! # Limits
//! A record is at most 64 MiB, a block about 256 KiB before compression (2 MiB in a merged
//! segment), a batch 1 MiB or 1,000 records, a segment 16 MiB of frames (1/8 of `bytes_max` if that
//! is less) or one push window. The ledger keeps 1,000 entries that no push has carried, and then
//! makes one of two neighbours; a push carries 100.

mod aside;
mod block;
mod budget;
mod dead;
mod disk_health;
mod evict;
mod files;
mod group;
mod index;
mod ledger;
mod log;
mod look;
mod merge;
mod reading;
mod record;
mod recover;
mod repair;
mod retain;
mod ring;
mod salvage;
mod segment;
mod state;
mod store;
mod store_memory;
mod store_sled;
mod store_view;
#[cfg(test)]
mod tests;
mod view;
mod writing;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use self::{
    aside::{Aside, Quarantined, QuarantinedKind, Readable},
    budget::{Budget, DiskSpace, Durability, OnFull, Retain},
    dead::{DeadChanges, DeadCount, DeadLine, DeadPage, DeadText, dead_letters, each_dead_line},
    ledger::{Loss, LossReason},
    log::{Appended, Batch, BatchKey, Counts, Log, LogLimits},
    look::{BlockInfo, Damage, RecordFilter, RecordPage, SeenRecord, SegmentCheck, SegmentDetail},
    reading::{Lane, Pick, Picked},
    record::{Group, Haste, NewRecord, PASSING_POSITIONS_MAX, Position, Record},
    repair::{Plan, Repair, Repaired, Requeue, Step, StepKind},
    ring::Home,
    segment::{BatchLimits, Origin},
    store::{SegmentWriter, Store, StoreError},
    store_memory::{MemoryDisk, MemoryStore},
    store_sled::SledStore,
    store_view::SledView,
    view::{BatchInfo, BatchState, QueueStatus, SegmentInfo, SegmentState},
};
use crate::clock;

/// `[queue]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueConfig {
    /// The queue's directory; one agent at a time.
    pub dir: PathBuf,
    /// How long an append waits for others to share its sync.
    pub commit_interval: Duration,
    /// See [`LogLimits`].
    pub limits: LogLimits,
}

/// The queue, reached from any task. Clones share it.
#[derive(Debug, Clone)]
pub struct Queue {
    commands: mpsc::Sender<Command>,
    dir: Option<Arc<Path>>,
    /// The latest status that anybody has asked for, and when.
    seen: Arc<Mutex<Option<(tokio::time::Instant, QueueStatus)>>>,
}

/// The thread that owns the log.
#[derive(Debug)]
pub struct QueueThread(std::thread::JoinHandle<()>);

/// A refused record on its way to the dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its sequence number.
    pub seq: u64,
    /// The time that it is about, milliseconds since 1970 UTC.
    pub at_ms: i64,
    /// One line of text, with the record and the reason.
    pub line: String,
}

/// The queue has been closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is closed")]
pub struct QueueClosed;

/// Why an append was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// See [`QueueClosed`].
    #[error(transparent)]
    Closed(#[from] QueueClosed),
    /// The queue is full and `on_full` is `block`: nothing was taken.
    #[error("the queue is full; hint: see queue.bytes_max and queue.on_full")]
    Full,
}

/// Why a batch could not be had.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// See [`QueueClosed`].
    #[error(transparent)]
    Closed(#[from] QueueClosed),
    /// The disk did not do what it was asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

enum Command {
    Append(Group, Waiting),
    Seal(oneshot::Sender<()>),
    PickBatch(Pick, oneshot::Sender<Option<Picked>>),
    Delivered(BatchKey, u64, Vec<DeadLetter>, oneshot::Sender<Result<(), StoreError>>),
    ChangeDead(DeadChanges, oneshot::Sender<Result<(), StoreError>>),
    PutBack(BatchKey, String, i64),
    RetryNow,
    Status(oneshot::Sender<QueueStatus>),
    Segments(oneshot::Sender<Vec<SegmentInfo>>),
    Batches(oneshot::Sender<Result<Vec<BatchInfo>, StoreError>>),
    BatchesOf(u64, oneshot::Sender<Result<Vec<BatchInfo>, StoreError>>),
    Read(BatchKey, oneshot::Sender<Result<Option<Batch>, StoreError>>),
    Losses(oneshot::Sender<Vec<Loss>>),
    LossesToSend(oneshot::Sender<Vec<Loss>>),
    LossesAcknowledged(Vec<u64>),
    Position(String, oneshot::Sender<Option<Bytes>>),
    Look(look::Look),
    Change(Box<(Duration, LogLimits)>),
    Close(oneshot::Sender<()>),
}

/// Commands that may wait for the log's thread before a sender has to wait.
const COMMANDS_MAX: usize = 64;
/// Groups that share one sync at most.
const GROUPS_MAX: usize = 256;

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            budget: Budget::default(),
            retain: Retain::default(),
            segment_bytes_max: 16 << 20,
            batch: BatchLimits { raw_bytes_max: 1 << 20, records_max: 1_000 },
            ring_bytes_max: 4 << 20,
            volatile_bytes_max: 16 << 20,
        }
    }
}

impl QueueConfig {
    /// Opens the log that this configuration describes, in the caller's thread.
    pub fn open_log(&self) -> Result<Log<SledStore>, StoreError> {
        Log::open(SledStore::open(&self.dir, self.limits.reserve_bytes())?, self.limits)
    }

    /// Opens the queue on disk and starts the thread that owns it.
    pub fn start(&self) -> Result<(Queue, QueueThread), StoreError> {
        Queue::start(self.open_log()?, self.commit_interval)
    }
}

impl Queue {
    /// Gives `log` to a thread of its own.
    pub fn start<S: Store + 'static>(
        log: Log<S>,
        commit_interval: Duration,
    ) -> Result<(Self, QueueThread), StoreError>
    where
        S::Writer: 'static,
    {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let dir = log.store.dir().map(Arc::from);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| StoreError::new("start the thread of", "the queue", error))?;
        let thread = std::thread::Builder::new()
            .name("queue".to_owned())
            .spawn(move || runtime.block_on(serve(log, receiver, commit_interval)))
            .map_err(|error| StoreError::new("start the thread of", "the queue", error))?;
        Ok((Self { commands, dir, seen: Arc::default() }, QueueThread(thread)))
    }

    /// The directory that the queue is in, if it has one.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Takes a group; see the module documentation for what the answer promises.
    pub async fn append(&self, group: Group) -> Result<Appended, AppendError> {
        self.ask(|reply| Command::Append(group, reply)).await?
    }

    /// Ends the window: what has been appended can be sent.
    pub async fn seal(&self) -> Result<(), QueueClosed> {
        self.ask(Command::Seal).await
    }

    /// The oldest batch that waits; see [`Log::pick_batch`].
    pub async fn next_batch(&self) -> Result<Option<Batch>, QueueClosed> {
        Ok(self.pick_batch(Pick::Oldest).await?.map(|picked| picked.batch))
    }

    /// A batch that waits; see [`Log::pick_batch`].
    pub async fn pick_batch(&self, pick: Pick) -> Result<Option<Picked>, QueueClosed> {
        self.ask(|reply| Command::PickBatch(pick, reply)).await
    }

    /// A batch of `records` records is delivered, apart from the refused ones, which become dead
    /// letters before the batch goes.
    pub async fn delivered(
        &self,
        key: BatchKey,
        records: u64,
        refused: Vec<DeadLetter>,
    ) -> Result<(), QueueError> {
        Ok(self.ask(|reply| Command::Delivered(key, records, refused, reply)).await??)
    }

    /// Changes lines of the dead letters, all or none; durable when this returns.
    pub async fn change_dead(&self, changes: DeadChanges) -> Result<(), QueueError> {
        Ok(self.ask(|reply| Command::ChangeDead(changes, reply)).await??)
    }

    /// A try to deliver a batch has failed with `answer`; the next is due at `next_at_ms`.
    pub async fn put_back(
        &self,
        key: BatchKey,
        answer: String,
        next_at_ms: i64,
    ) -> Result<(), QueueClosed> {
        let command = Command::PutBack(key, answer, next_at_ms);
        self.commands.send(command).await.map_err(|_| QueueClosed)
    }

    /// Lets every batch be tried now, whenever its next try was due.
    pub async fn retry_now(&self) -> Result<(), QueueClosed> {
        self.commands.send(Command::RetryNow).await.map_err(|_| QueueClosed)
    }

    /// The queue in one screen. What that costs grows with the segments that wait.
    pub async fn status(&self) -> Result<QueueStatus, QueueClosed> {
        let status = self.ask(Command::Status).await?;
        let seen = Some((tokio::time::Instant::now(), status.clone()));
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        Ok(status)
    }

    /// The same, at most `age` old.
    pub async fn recent_status(&self, age: Duration) -> Result<QueueStatus, QueueClosed> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match seen.filter(|(at, _)| at.elapsed() <= age) {
            Some((_, status)) => Ok(status),
            None => self.status().await,
        }
    }

    /// All segments, oldest first.
    pub async fn segments(&self) -> Result<Vec<SegmentInfo>, QueueClosed> {
        self.ask(Command::Segments).await
    }

    /// All batches, oldest first.
    pub async fn batches(&self) -> Result<Vec<BatchInfo>, QueueError> {
        Ok(self.ask(Command::Batches).await??)
    }

    /// The batches of one segment; see [`Log::batches_of`].
    pub async fn batches_of(&self, segment: u64) -> Result<Vec<BatchInfo>, QueueError> {
        Ok(self.ask(|reply| Command::BatchesOf(segment, reply)).await??)
    }

    /// A batch that waits, or is delivered and kept; it does not count as being sent.
    pub async fn read(&self, key: BatchKey) -> Result<Option<Batch>, QueueError> {
        Ok(self.ask(|reply| Command::Read(key, reply)).await??)
    }

    /// The ledger of records that are not delivered; see [`Log::losses`].
    pub async fn losses(&self) -> Result<Vec<Loss>, QueueClosed> {
        self.ask(Command::Losses).await
    }

    /// Entries of the ledger that the backend does not know yet; see [`Log::losses_to_send`].
    pub async fn losses_to_send(&self) -> Result<Vec<Loss>, QueueClosed> {
        self.ask(Command::LossesToSend).await
    }

    /// The backend knows these entries of the ledger.
    pub async fn losses_acknowledged(&self, ids: Vec<u64>) -> Result<(), QueueClosed> {
        self.commands.send(Command::LossesAcknowledged(ids)).await.map_err(|_| QueueClosed)
    }

    /// How far `collector` had read when its last durable records were appended.
    pub async fn position(&self, collector: &str) -> Result<Option<Bytes>, QueueClosed> {
        self.ask(|reply| Command::Position(collector.to_owned(), reply)).await
    }

    /// Gives the running queue another commit interval and other limits. What is queued stays, as
    /// far as the new budget has room for it.
    pub async fn change_limits(
        &self,
        commit_interval: Duration,
        limits: LogLimits,
    ) -> Result<(), QueueClosed> {
        let command = Command::Change(Box::new((commit_interval, limits)));
        self.commands.send(command).await.map_err(|_| QueueClosed)
    }

    /// Seals what is open and ends the thread.
    pub async fn close(&self) -> Result<(), QueueClosed> {
        self.ask(Command::Close).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, QueueClosed> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| QueueClosed)?;
        answer.await.map_err(|_| QueueClosed)
    }
}

impl QueueThread {
    /// Waits until the queue is closed.
    pub fn join(self) {
        if self.0.join().is_err() {
            tracing::error!("the queue's thread panicked");
        }
    }
}

/// How often the log is asked whether it has something to do by itself.
const TEND_INTERVAL: Duration = Duration::from_secs(1);

/// The life of the queue's thread.
async fn serve<S: Store>(
    mut log: Log<S>,
    mut commands: mpsc::Receiver<Command>,
    mut commit_interval: Duration,
) {
    let mut held: Option<Command> = None;
    let mut sync_at = None;
    let mut busy = false;
    loop {
        let next = if held.is_some() {
            held.take()
        } else {
            tokio::select! {
                biased;
                next = commands.recv() => next,
                () = due(sync_at) => {
                    log.sync(now_ms());
                    sync_at = None;
                    continue;
                }
                () = tend_due(busy) => {
                    busy = log.tend(now_ms());
                    continue;
                }
            }
        };
        match next {
            Some(Command::Append(group, reply)) => {
                let linger = match group.haste {
                    Haste::Linger => commit_interval,
                    Haste::Now => Duration::ZERO,
                };
                let (groups, replies, other) = gather(&mut commands, (group, reply), linger).await;
                held = other;
                commit(&mut log, groups, replies);
                sync_at = sync_at.or_else(|| Some(tokio::time::Instant::now() + commit_interval));
            }
            Some(command @ Command::Delivered(..)) => {
                execute(&mut log, command);
                sync_at = sync_at.or_else(|| Some(tokio::time::Instant::now() + commit_interval));
            }
            Some(Command::Change(changed)) => {
                commit_interval = changed.0;
                log.change_limits(changed.1);
            }
            Some(Command::Close(reply)) => {
                log.close(now_ms());
                reply.send(()).ok();
                return;
            }
            Some(command) => execute(&mut log, command),
            None => return log.close(now_ms()),
        }
    }
}

/// At once when the log has more to do, as long as no command waits.
async fn tend_due(busy: bool) {
    if !busy {
        tokio::time::sleep(TEND_INTERVAL).await;
    }
}

/// Waits until `at`; for ever without it.
async fn due(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

type Waiting = oneshot::Sender<Result<Appended, AppendError>>;

/// Collects the groups that arrive within `interval`; another command ends the wait, and so does a
/// group in haste.
async fn gather(
    commands: &mut mpsc::Receiver<Command>,
    first: (Group, Waiting),
    interval: Duration,
) -> (Vec<Group>, Vec<Waiting>, Option<Command>) {
    let (mut groups, mut replies) = (vec![first.0], vec![first.1]);
    let mut deadline = std::pin::pin!(tokio::time::sleep(interval));
    let mut hurry = interval.is_zero();
    while groups.len() < GROUPS_MAX {
        let next = if hurry {
            commands.try_recv().ok()
        } else {
            tokio::select! {
                biased;
                next = commands.recv() => next,
                () = &mut deadline => None,
            }
        };
        match next {
            Some(Command::Append(group, reply)) => {
                hurry |= group.haste == Haste::Now;
                groups.push(group);
                replies.push(reply);
            }
            other => return (groups, replies, other),
        }
    }
    (groups, replies, None)
}

fn commit<S: Store>(log: &mut Log<S>, groups: Vec<Group>, replies: Vec<Waiting>) {
    if !log.takes_records(now_ms()) {
        for reply in replies {
            reply.send(Err(AppendError::Full)).ok();
        }
        return;
    }
    let counts: Vec<u64> = groups.iter().map(|group| group.records.len() as u64).collect();
    let all = log.append(groups, now_ms());
    let mut first_seq = all.first_seq;
    for (records, reply) in counts.into_iter().zip(replies) {
        // Who asked may have gone; the records stay.
        reply.send(Ok(Appended { first_seq, records, home: all.home })).ok();
        first_seq += records;
    }
}

fn execute<S: Store>(log: &mut Log<S>, command: Command) {
    // Whoever asked may have gone; what was asked for is done all the same.
    match command {
        Command::Seal(reply) => {
            log.seal(now_ms());
            reply.send(()).ok();
        }
        Command::PickBatch(pick, reply) => {
            reply.send(log.pick_batch(pick, now_ms())).ok();
        }
        Command::Delivered(key, records, refused, reply) => {
            reply.send(log.delivered(key, records, &refused)).ok();
        }
        Command::ChangeDead(changes, reply) => {
            reply.send(log.change_dead(&changes)).ok();
        }
        Command::PutBack(key, answer, next_at_ms) => log.put_back(key, answer, next_at_ms),
        Command::RetryNow => log.retry_now(),
        Command::Status(reply) => {
            reply.send(log.status()).ok();
        }
        Command::Segments(reply) => {
            reply.send(log.segments()).ok();
        }
        Command::Batches(reply) => {
            reply.send(log.batches()).ok();
        }
        Command::BatchesOf(segment, reply) => {
            reply.send(log.batches_of(segment)).ok();
        }
        Command::Read(key, reply) => {
            reply.send(log.read(key)).ok();
        }
        Command::Losses(reply) => {
            reply.send(log.losses()).ok();
        }
        Command::LossesToSend(reply) => {
            reply.send(log.losses_to_send()).ok();
        }
        Command::LossesAcknowledged(ids) => log.losses_acknowledged(&ids),
        Command::Position(collector, reply) => {
            reply.send(log.position(&collector)).ok();
        }
        Command::Look(look) => look::execute(log, look),
        Command::Append(..) | Command::Change(_) | Command::Close(_) => {} // handled by `serve`
    }
}

fn now_ms() -> i64 {
    clock::now().as_millisecond()
}
