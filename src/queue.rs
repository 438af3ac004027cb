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
//!   `commit_interval` or when their segment is done. A segment stays until the note is durable, so
//!   that what was delivered is never found missing. Removing what is gone is not an error.
//! - **Q3 A damaged byte costs at most its block.** Frames carry checksums of header and payload
//!   and are found by their magic number. What holds a record with a sound checksum is deleted only
//!   when it is delivered, or evicted by the rules: a segment of another queue, or of another
//!   process that has given the same numbers, goes to `quarantine/` and stays there, and one that
//!   a later version wrote stays where it is. What can be read of a damaged segment is delivered,
//!   or moved to a sound one when there is time; the damaged one goes to `quarantine/`, and what is
//!   lost to the ledger, with its sequence numbers. A segment that the disk does not give at all is
//!   passed over and tried again each minute. Panics of the database are errors.
//! - **Q4 Identity.** The queue has a UUID. A batch's id is a function of (queue, segment, batch
//!   number) where it was written first, and of the numbers of its records; a block belongs to its
//!   batch since then. No process gives a segment a number that an earlier one may have used
//!   without leaving a trace, nor one that a clone of it with the same memory gives. A retry, a
//!   restart, a merge or a replay sends the same records under the same id, and never fewer of
//!   them: what can be read of a damaged copy, or of a window that is still written, and what
//!   thinning leaves, has another id, and the backend knows its records by their numbers.
//! - **Q5 Sequence numbers count records**, from 0, over restarts. The ledger holds every number
//!   that was not delivered, with the reason, until the backend knows it.
//! - **Q6 Bounded.** Segments, delivered ones that are kept included, take at most `bytes_max` and
//!   one segment more. What goes for want of room is in the ledger before it goes.
//! - **Q7 A disk that fails stops nothing.** Records stay in memory up to `memory_max`; the disk is
//!   asked again after 1 s, 2 s, 4 s, at most 60 s. Over the bound the oldest are evicted. A failed
//!   sync is never tried again: the segment is closed with what it had acknowledged, and the rest
//!   is written to another. A directory that goes away, or its state, is made anew with what is
//!   in memory; when it comes back, what is in it is delivered. Where another queue has come in its
//!   place nothing is written. A segment that cannot be read back
//!   when its window ends is written again. A thread that ends takes the process with it, so that
//!   a supervisor starts another.
//! - **Q8 Positions travel with records.** How far a collector had read is in the last block of
//!   those that hold what it read, and none of them counts without the others.
//! - **Q9 Opening reads state and unsealed segments**, not the backlog.
//! - **Q10 A long outage fits.** Windows that wait are merged and compressed together. The merged
//!   segment is durable and read back before its sources go; no merge begins while batches leave.
//! - **Q11 A segment is written by one process only**, and never again after an error or a restart.
//! - **Q12 The state survives any one fault.** Its notes are in two files, each with a number and
//!   checksums: a damaged byte or a lost file takes no entry of the ledger, no position, no number
//!   and no kept segment. "Is not there" and "does not decode" are loss; a state that cannot be
//!   read for any other reason is waited for, with everything as it is: until then the collectors'
//!   records stay in memory, and the intake takes nothing.
//! - **Q13 Nothing goes for its age on the word of a clock that jumped.** Ages are told by a clock
//!   of the queue's own, which follows the wall clock when the backend's time agrees with it. The
//!   keys of requests are forgotten by it, too.
//!
//! # Limits
//! A record is at most 64 MiB, a block about 256 KiB before compression (2 MiB in a merged
//! segment), a batch 1 MiB or 1,000 records, a segment 16 MiB of frames (1/8 of `bytes_max` if that
//! is less) or one push window. The ledger keeps 1,000 entries that no push has carried, and then
//! makes one of two neighbours; a push carries 100.

mod aside;
mod budget;
mod dead;
mod files;
mod format;
mod log;
mod repair;
mod store;
#[cfg(test)]
mod tests;
mod thread;
mod waiting;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use self::thread::{Ask, Command};
pub use self::{
    aside::{Aside, Quarantined, QuarantinedKind, Readable},
    budget::{Budget, DiskSpace, Durability, OnFull, Retain},
    dead::{DeadChanges, DeadCount, DeadLine, DeadPage, DeadText, dead_letters, each_dead_line},
    format::{
        loss::{Loss, LossReason},
        record::{Group, Haste, NewRecord, PASSING_POSITIONS_MAX, Position, Record},
        segment::{BatchLimits, Origin},
    },
    log::{
        Appended, Batch, BatchKey, Counts, Log, LogLimits,
        age::Moment,
        look::{
            BlockInfo, Damage, RecordFilter, RecordPage, SeenRecord, SegmentCheck, SegmentDetail,
        },
        reading::{Lane, Pick, Picked},
        ring::Home,
        view::{BatchInfo, BatchState, QueueStatus, SegmentInfo, SegmentState},
    },
    repair::{Plan, Repair, Repaired, Requeue, Step, StepKind},
    store::{
        StoreError,
        disk::{ReadDisk, WriteDisk},
        memory::MemoryDisk,
        real::{LookedAt, RealDisk, space as disk_space},
    },
    thread::QueueThread,
};

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

/// What has become of a batch of which nothing is left to send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// Its records.
    pub records: u64,
    /// Those that the backend has refused: they become dead letters before the batch goes.
    pub refused: Vec<DeadLetter>,
    /// Numbers and times of those that this backend does not know and that are not worth keeping:
    /// the ledger has them, as refused, and the dead letters do not.
    pub not_kept: Vec<(u64, i64)>,
}

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
    /// The queue is full and `on_full` is `block`, or it is `evict_newest` and whoever asks is told
    /// at once: nothing was taken.
    #[error("the queue is full; hint: see queue.bytes_max and queue.on_full")]
    Full,
    /// The queue's state cannot be read yet, and the group is one that is not to be taken into
    /// memory meanwhile: nothing was taken.
    #[error("the queue's state cannot be read yet")]
    NotReady,
}

/// Why a position could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// See [`QueueClosed`].
    #[error(transparent)]
    Closed(#[from] QueueClosed),
    /// The queue's state cannot be read yet.
    #[error("the queue's state cannot be read yet")]
    NotReady,
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

/// The largest difference at which two clocks count as agreeing: ages are in hours and days.
const CLOCKS_AGREE_MS: i64 = 10 * 60_000;
/// Commands that may wait for the log's thread before a sender has to wait.
const COMMANDS_MAX: usize = 64;

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
    pub fn open_log(&self) -> Result<Log<RealDisk>, StoreError> {
        Log::open(RealDisk::open(&self.dir)?, self.limits)
    }

    /// Opens the queue on disk and starts the thread that owns it.
    pub fn start(&self) -> Result<(Queue, QueueThread), StoreError> {
        Queue::start(self.open_log()?, self.commit_interval)
    }

    /// The same; a queue whose state cannot be read yet is opened when it can be, and until then
    /// takes what the collectors bring into memory. Fails when the directory cannot be made, or is
    /// another process's.
    pub fn start_patiently(&self) -> Result<(Queue, QueueThread), StoreError> {
        let disk = RealDisk::open(&self.dir)?;
        let (again, limits) = (disk.hold_again(), self.limits);
        match Log::open(disk, limits) {
            Ok(log) => Queue::start(log, self.commit_interval),
            Err(error) => {
                let open = move || Log::open(again()?, limits);
                thread::start_waiting(&self.dir, (error, open), (self.commit_interval, limits))
            }
        }
    }
}

impl Queue {
    /// Gives `log` to a thread of its own.
    pub fn start<D: WriteDisk + 'static>(
        log: Log<D>,
        commit_interval: Duration,
    ) -> Result<(Self, QueueThread), StoreError> {
        thread::start(log, commit_interval)
    }

    /// Gives a log that is only looked at to a thread of its own: it answers what is asked, and
    /// does nothing else.
    pub fn look<D: ReadDisk + 'static>(log: Log<D>) -> Result<(Self, QueueThread), StoreError> {
        thread::start_looking(log)
    }

    fn new(commands: mpsc::Sender<Command>, dir: Option<&Path>) -> Self {
        Self { commands, dir: dir.map(Arc::from), seen: Arc::default() }
    }

    /// Waits until the queue's thread has ended, for whatever reason.
    pub async fn ended(&self) {
        self.commands.closed().await;
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
        self.settle(key, Settled { records, refused, ..Settled::default() }).await
    }

    /// Nothing is left to send of a batch; see [`Log::settle`].
    pub async fn settle(&self, key: BatchKey, settled: Settled) -> Result<(), QueueError> {
        Ok(self.ask(|reply| Command::Settle(key, settled, reply)).await??)
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
        let status = self.ask(|reply| Command::Ask(Ask::Status(reply))).await?;
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
        self.ask(|reply| Command::Ask(Ask::Segments(reply))).await
    }

    /// All batches, oldest first.
    pub async fn batches(&self) -> Result<Vec<BatchInfo>, QueueError> {
        Ok(self.ask(|reply| Command::Ask(Ask::Batches(reply))).await??)
    }

    /// The batches of one segment; see [`Log::batches_of`].
    pub async fn batches_of(&self, segment: u64) -> Result<Vec<BatchInfo>, QueueError> {
        Ok(self.ask(|reply| Command::Ask(Ask::BatchesOf(segment, reply))).await??)
    }

    /// A batch that waits, or is delivered and kept; it does not count as being sent.
    pub async fn read(&self, key: BatchKey) -> Result<Option<Batch>, QueueError> {
        Ok(self.ask(|reply| Command::Ask(Ask::Read(key, reply))).await??)
    }

    /// The ledger of records that are not delivered; see [`Log::losses`].
    pub async fn losses(&self) -> Result<Vec<Loss>, QueueClosed> {
        self.ask(|reply| Command::Ask(Ask::Losses(reply))).await
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
    pub async fn position(&self, collector: &str) -> Result<Option<Bytes>, PositionError> {
        self.ask(|reply| Command::Ask(Ask::Position(collector.to_owned(), reply))).await?
    }

    /// A segment from inside; see [`Log::look_segment`].
    pub async fn look_segment(&self, id: u64) -> Result<Option<SegmentDetail>, QueueError> {
        Ok(self.ask(|reply| Command::Ask(Ask::Segment(id, reply))).await??)
    }

    /// Records; see [`Log::look_records`].
    pub async fn look_records(
        &self,
        filter: RecordFilter,
        limit: usize,
    ) -> Result<RecordPage, QueueClosed> {
        self.ask(|reply| Command::Ask(Ask::Records(filter, limit, reply))).await
    }

    /// A check of a segment; see [`Log::look_check`].
    pub async fn look_check(&self, id: u64, from: u64) -> Result<SegmentCheck, QueueClosed> {
        self.ask(|reply| Command::Ask(Ask::Check(id, from, reply))).await
    }

    /// The backend's time less the wall clock, milliseconds, as an answer has just told it. When
    /// they agree, what is too old by the wall clock may go.
    pub async fn clock_is_off_by(&self, offset_ms: i64) {
        if offset_ms.abs() <= CLOCKS_AGREE_MS {
            self.commands.send(Command::ConfirmClock).await.ok();
        }
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
