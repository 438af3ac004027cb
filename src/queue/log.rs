//! The log: joins the backlog, the journal and the writer. Synchronous, owned by one thread, and
//! told the time. The promises are in [`crate::queue`].
//!
//! On a disk that is only read it can be looked at ([`Log::look`]); what changes something needs a
//! disk that is written.

pub mod age;
pub mod backlog;
pub mod batch_id;
pub mod disk_health;
pub mod evict;
pub mod index;
pub mod journal;
pub mod ledger;
pub mod look;
pub mod merge;
pub mod reading;
pub mod recover;
pub mod restore;
pub mod retain;
pub mod ring;
pub mod view;
pub mod writer;
pub mod writing;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use uuid::Uuid;

use self::{
    age::{AgeClock, Moment},
    backlog::{Backlog, Sealed},
    index::Index,
    journal::Journal,
    ledger::NewLoss,
    merge::Merge,
    recover::Unread,
    ring::Home,
    writer::{Active, Writer},
};
use super::{
    DeadLetter, Loss, LossReason, Settled,
    budget::{Budget, Durability, Retain},
    dead::DeadChanges,
    format::{
        record::Record,
        rows::{self, StateChange},
        segment::{BatchLimits, SegmentRow},
    },
    store::{
        Store, StoreError,
        disk::{ReadDisk, WriteDisk},
    },
};

/// When a batch comes again whose dead letters could not be written.
const NOTE_RETRY_MS: i64 = 5_000;

/// Bounds and boundaries of a log, and when it syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// When the disk is synced.
    pub durability: Durability,
    /// How much is kept, and what happens when it is full.
    pub budget: Budget,
    /// Delivered segments that are kept.
    pub retain: Retain,
    /// Stored bytes after which a segment is closed before its window ends.
    pub segment_bytes_max: u64,
    /// Where batches end.
    pub batch: BatchLimits,
    /// Memory for records that are also on disk.
    pub ring_bytes_max: usize,
    /// Memory for records that the disk did not take; over it, the oldest of them are evicted.
    pub volatile_bytes_max: usize,
}

impl LogLimits {
    /// The disk that a segment being written sets aside. Frames do not fill sled's segments to the
    /// last byte: 1/8 more, and the head of the file.
    pub fn reserve_bytes(&self) -> u64 {
        self.segment_bytes_max / 8 * 9 + (1 << 20)
    }
}

/// The log. See the module documentation.
#[derive(Debug)]
pub struct Log<D> {
    pub(super) store: Store<D>,
    limits: LogLimits,
    journal: Journal,
    backlog: Backlog,
    writer: Writer,
    counts: Counts,
    /// The time that was told last.
    now_ms: i64,
    age: AgeClock,
    /// What the age clock said last.
    age_ms: i64,
    /// Segments that do not count any more, and that the disk would not remove.
    left_over: BTreeSet<u64>,
    /// Segments that a start found without a row, and that the disk has not given yet.
    unread: BTreeMap<u64, Unread>,
    /// The frames of the segment that was read from disk last.
    index: Option<Index>,
    looked_at: Option<look::Index>,
    /// When a batch was delivered last.
    delivered_at_ms: i64,
    merge: Option<Merge>,
    /// No merge is begun before.
    merge_at_ms: i64,
}

/// What an append has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The sequence number of the first record.
    pub first_seq: u64,
    /// How many records have been taken.
    pub records: u64,
    /// Whether they are on disk.
    pub home: Home,
}

/// One batch of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchKey {
    /// The segment.
    pub segment: u64,
    /// The batch in it, from 0.
    pub number: u32,
}

/// A batch to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Which one.
    pub key: BatchKey,
    /// Its name for ever: a function of the queue and of where it was written first.
    pub id: Uuid,
    /// Its records; those that are damaged on disk are missing.
    pub records: Vec<Record>,
}

/// Counters since the log was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Records taken.
    pub appended_records: u64,
    /// Their bytes before compression.
    #[serde(default)]
    pub appended_bytes: u64,
    /// Records delivered.
    pub delivered_records: u64,
    /// Batches delivered.
    pub delivered_batches: u64,
    /// Records that the backend refused; they are in the dead letters.
    pub refused_records: u64,
    /// Records that this backend does not know and that are not kept for another.
    #[serde(default)]
    pub unknown_records: u64,
    /// Records evicted because the budget, or the memory without a disk, had no room for them.
    pub evicted_records: u64,
    /// Records that are damaged on disk.
    pub corrupt_records: u64,
    /// Metrics that were refused at the door.
    pub rejected_records: u64,
    /// Records that thinning took; they count as evicted, too.
    pub thinned_records: u64,
    /// Segments that were merged into larger ones.
    pub merged_segments: u64,
}

impl<D: ReadDisk> Log<D> {
    fn new(store: Store<D>, journal: Journal, limits: LogLimits) -> Self {
        Self {
            store,
            limits,
            journal,
            backlog: Backlog::default(),
            writer: Writer::new(&limits),
            counts: Counts::default(),
            now_ms: 0,
            age: AgeClock::default(),
            age_ms: i64::MIN,
            left_over: BTreeSet::new(),
            unread: BTreeMap::new(),
            index: None,
            looked_at: None,
            delivered_at_ms: 0,
            merge: None,
            merge_at_ms: 0,
        }
    }

    /// The queue's identity.
    pub fn queue_id(&self) -> Uuid {
        self.store.queue_id()
    }

    /// How far `collector` had read when its last durable records were appended.
    pub fn position(&self, collector: &str) -> Option<Bytes> {
        self.journal.position(collector)
    }

    /// The ledger: what is not acknowledged by the backend, and the newest entries that are.
    pub fn losses(&self) -> Vec<Loss> {
        self.journal.ledger().all().cloned().collect()
    }

    /// Counters since the log was opened.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Why the disk takes no records at present.
    pub fn disk_error(&self) -> Option<&str> {
        self.writer.health.error()
    }

    /// Adds to the ledger, in memory: the next write of the journal has it.
    fn note_loss(&mut self, loss: NewLoss) {
        self.journal.note_loss(loss, self.now_ms);
    }
}

impl<D: WriteDisk> Log<D> {
    /// Entries of the ledger that the backend does not know yet, at most 100. They do not change
    /// any more.
    pub fn losses_to_send(&mut self) -> Vec<Loss> {
        self.journal.offer_losses()
    }

    /// The backend knows these entries of the ledger.
    pub fn losses_acknowledged(&mut self, ids: &[u64]) {
        self.journal.acknowledge_losses(ids);
        self.save_journal();
    }

    /// The backend's time agrees with the wall clock: what is too old by it may go.
    pub fn confirm_clock(&mut self, now: Moment) {
        let jump_ms = self.age.confirm(now);
        self.journal.postpone(jump_ms);
    }

    /// Ends the window: closes the active segment, so that its batches can be sent.
    pub fn seal(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
        self.save_unsaved(now_ms);
        self.sync(now_ms);
        if let Some(active) = self.writer.active.take() {
            self.seal_active(active, now_ms);
        }
    }

    /// [`Log::settle`] for a batch whose records are taken, or in these letters.
    pub fn delivered(
        &mut self,
        key: BatchKey,
        records: u64,
        refused: &[DeadLetter],
    ) -> Result<(), StoreError> {
        let refused = refused.to_vec();
        self.settle(key, &Settled { records, refused, ..Settled::default() })
    }

    /// The backend has taken a batch: it is never sent again, and its segment goes when all of its
    /// batches are delivered and the state says so. What the backend refused of it is kept in the
    /// dead letters first, and what it is not worth keeping of that is in the ledger alone.
    pub fn settle(&mut self, key: BatchKey, settled: &Settled) -> Result<(), StoreError> {
        if !self.backlog.is_pending(key) {
            return Ok(());
        }
        let records = settled.records;
        let refused = settled.refused.len() + settled.not_kept.len();
        if refused > 0
            && let Err(error) = self.bury(settled)
        {
            // It comes again, under the same id; by then the letters may be written.
            let next_at_ms = self.now_ms.saturating_add(NOTE_RETRY_MS);
            self.put_back(key, error.to_string(), next_at_ms);
            return Err(error);
        }
        let Some(sealed) = self.backlog.deliver(key, records) else { return Ok(()) };
        self.counts.delivered_records += records.saturating_sub(refused as u64);
        self.counts.delivered_batches += 1;
        self.delivered_at_ms = self.now_ms;
        let (done, row, home) = (sealed.row.is_done(), sealed.row.clone(), sealed.home);
        let is_kept = done && !sealed.damaged && self.limits.retain != Retain::Off;
        if home != Home::Disk {
            if done {
                self.forget(key.segment);
            }
            self.save_journal();
            return Ok(());
        }
        // Noted later, but for what must not be lost: a segment that goes, what was refused, and
        // the numbers and positions that nothing but this segment has.
        let only_here = self.journal.lacks_positions_of(key.segment);
        if is_kept {
            // That it is delivered and that it is kept is one note: between two, a start would find
            // a segment that may go.
            self.finish_done();
            return Ok(());
        }
        self.journal.later(rows::segment_row(&row));
        if done || only_here || refused > 0 {
            self.note_delivery(&row, only_here);
        }
        if done {
            self.finish_done();
        }
        Ok(())
    }

    /// Writes what a segment's delivery changes. When that fails the segment stays, and it is tried
    /// again: what is told to be delivered must not be found missing by the next start.
    fn note_delivery(&mut self, row: &SegmentRow, only_here: bool) {
        let none = (&[][..], self.now_ms);
        let put = if only_here {
            self.journal.put_sealed(&mut self.store, row, none)
        } else {
            self.journal.put(&mut self.store, Vec::new())
        };
        if let Err(error) = put {
            tracing::warn!(%error, "deliveries are not noted yet; a crash would repeat them");
        }
    }

    /// Puts refused records into the dead letters, where they are to be kept, and into the ledger.
    fn bury(&mut self, Settled { refused, not_kept, .. }: &Settled) -> Result<(), StoreError> {
        if !refused.is_empty() {
            self.store.check_own()?;
            self.store.disk.put_dead(refused)?;
            let dead_bytes_max = self.limits.budget.dead_bytes_max();
            if let Err(error) = self.store.disk.shorten_dead(dead_bytes_max) {
                tracing::warn!(%error, "the dead letters cannot be shortened now");
            }
        }
        self.counts.refused_records += refused.len() as u64;
        self.counts.unknown_records += not_kept.len() as u64;
        let letters = refused.iter().map(|letter| (letter.seq, letter.at_ms));
        for (seq, at_ms) in letters.chain(not_kept.iter().copied()) {
            self.note_loss(NewLoss {
                range: (seq, seq),
                records: 1,
                reason: LossReason::Refuse,
                time_ms: (at_ms, at_ms),
            });
        }
        Ok(())
    }

    /// Writes rows, and what was to be written with them.
    fn put(&mut self, rows: Vec<StateChange>) -> Result<(), StoreError> {
        self.journal.put(&mut self.store, rows)
    }

    /// Writes what has not been written yet; a disk that does not take it is asked again with the
    /// next state.
    pub(super) fn save_journal(&mut self) {
        if let Err(error) = self.put(Vec::new()) {
            tracing::warn!(%error, "deliveries and losses stay in memory for now");
        }
    }

    /// Forgets how far `collector` had read.
    pub fn forget_position(&mut self, collector: &str) {
        let Some(change) = self.journal.forget_position(collector) else { return };
        if let Err(error) = self.put(vec![change]) {
            tracing::warn!(%error, "a position that is not needed any more stays for now");
        }
    }

    /// Changes lines of the dead letters: what has been delivered since goes.
    pub fn change_dead(&mut self, changes: &DeadChanges) -> Result<(), StoreError> {
        self.store.disk.change_dead(changes)
    }

    /// Lets every batch be tried now, whenever its next try was due.
    pub fn retry_now(&mut self) {
        self.backlog.retry_now();
    }

    /// A try to deliver a batch has failed; it stays.
    pub fn put_back(&mut self, key: BatchKey, answer: String, next_at_ms: i64) {
        self.backlog.put_back(key, answer, next_at_ms);
    }

    /// Ends the log: what is in the active segment is sealed, and a disk that has failed is asked
    /// once more, for what is only in memory goes with this process.
    pub fn close(mut self, now_ms: i64) {
        self.writer.health.ask_now();
        self.seal(now_ms);
        self.abandon_merge();
        self.put_away_lost();
        let left = self.backlog.sealed().filter(|sealed| sealed.home == Home::MemoryOnly);
        let records: u64 = left.map(|sealed| sealed.row.waiting_records()).sum();
        if records > 0 {
            let error = self.disk_error().unwrap_or_default();
            tracing::error!(records, error, "records lost: the disk did not take them to the end");
        }
    }

    fn seal_active(&mut self, active: Active, now_ms: i64) {
        let Active { mut row, plans, on_disk, unsaved, .. } = active;
        row.window_ms.1 = now_ms;
        if !on_disk {
            return self.backlog.close(Sealed::new(row, Some(plans), unsaved, Home::MemoryOnly));
        }
        let closed = self.store.close(row.id, row.frames);
        if let Err(error) = closed {
            self.store.abandon(row.id);
            if self.lacks_records(&row) {
                tracing::error!(%error, "a segment is not what was written");
                self.close_gone(&row, plans);
                return self.restore_recent(now_ms);
            }
            self.disk_failed(&error, now_ms);
        }
        let none = (&[][..], now_ms);
        if let Err(error) = self.journal.put_sealed(&mut self.store, &row, none) {
            // The frames are durable; a start finds them without the row.
            self.disk_failed(&error, now_ms);
        }
        self.backlog.close(Sealed::on_disk(row, Some(plans)));
    }

    /// Removes, or keeps for a while, the segments of which nothing is left to deliver, once the
    /// state says so.
    fn finish_done(&mut self) {
        let done = self.backlog.done();
        if done.is_empty() || self.journal.is_unsaved() && self.put(Vec::new()).is_err() {
            return;
        }
        for id in done {
            if let Err(error) = self.finish_segment(id) {
                tracing::warn!(segment = id, %error, "a delivered segment cannot be removed now");
            }
        }
    }

    fn finish_segment(&mut self, id: u64) -> Result<(), StoreError> {
        let damaged = self.backlog.get(id).is_some_and(|sealed| sealed.damaged);
        if damaged {
            self.store.quarantine(id)?;
            self.forget(id);
            self.journal.later(rows::drop_segment_row(id));
        } else if self.limits.retain != Retain::Off {
            return self.keep_segment(id);
        } else {
            self.remove_segment(id);
        }
        Ok(())
    }

    /// Removes a segment whose row says, durably, that nothing of it is left to deliver.
    fn remove_segment(&mut self, id: u64) {
        self.forget(id);
        self.left_over.insert(id);
        self.remove_left_over();
    }

    /// Removes what is left of segments that do not count any more.
    fn remove_left_over(&mut self) {
        for id in std::mem::take(&mut self.left_over) {
            match self.store.remove(id) {
                Ok(()) => self.journal.later(rows::drop_segment_row(id)),
                Err(error) => {
                    tracing::warn!(segment = id, %error, "a segment cannot be removed now");
                    self.left_over.insert(id);
                }
            }
        }
    }

    fn forget(&mut self, id: u64) {
        self.backlog.remove(id);
        self.journal.forget_segment(id);
        self.writer.ring.remove(id);
        if self.index.as_ref().is_some_and(|index| index.segment == id) {
            self.index = None;
        }
    }
}
