//! The log: seals segments and deletes what is delivered. Synchronous, owned by one thread, and
//! told the time. The promises are in [`crate::queue`]. Its other parts: opening is in `recover`,
//! appending in `writing`, taking batches in `reading`, and what happens without a disk in
//! `disk_health`.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    DeadLetter,
    budget::{Budget, Durability, Retain},
    dead::DeadChanges,
    disk_health::DiskHealth,
    index::Index,
    ledger::{Ledger, Loss, LossReason, NewLoss},
    look,
    merge::Merge,
    record::{PASSING_POSITIONS_MAX, Position, Record},
    retain::Kept,
    ring::{Home, Ring},
    segment::{self, BatchLimits, BatchPlan, Origin, SegmentRow},
    state::{self, PositionAt},
    store::{SegmentWriter, StateChange, Store, StoreError},
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
pub struct Log<S: Store> {
    pub(super) store: S,
    pub(super) limits: LogLimits,
    pub(super) queue_id: Uuid,
    pub(super) next_seq: u64,
    pub(super) last_segment: u64,
    /// What the state has of the two: it must know of numbers before their segments go.
    pub(super) next_saved: (u64, u64),
    /// How far the next segment's number keeps from the last.
    pub(super) leap: u64,
    /// Closed segments with something left to deliver, oldest first.
    pub(super) sealed: BTreeMap<u64, Sealed>,
    /// Those of them whose latest deliveries are not in the state yet.
    pub(super) unnoted: BTreeSet<u64>,
    /// Delivered segments that are kept, oldest first.
    pub(super) kept: BTreeMap<u64, Kept>,
    pub(super) ledger: Ledger,
    /// How far each collector had read.
    pub(super) positions: BTreeMap<String, PositionAt>,
    /// The newest segment whose positions are in the state.
    pub(super) positions_saved: u64,
    pub(super) counts: Counts,
    /// The time that was told last.
    pub(super) now_ms: i64,
    /// What a segment being written reserves on disk.
    pub(super) reserve_bytes: u64,
    pub(super) active: Option<Active<S::Writer>>,
    /// The newest segment that this process has closed.
    pub(super) newest_closed: Option<u64>,
    pub(super) ring: Ring,
    /// The frames of the segment that was read from disk last.
    pub(super) index: Option<Index>,
    pub(super) look: Option<look::Index>,
    pub(super) disk: DiskHealth,
    /// When a batch was delivered last.
    pub(super) delivered_at_ms: i64,
    pub(super) merge: Option<Merge<S::Writer>>,
    /// No merge is begun before.
    pub(super) merge_at_ms: i64,
}

/// A closed segment.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) row: SegmentRow,
    pub(super) in_flight: BTreeSet<u32>,
    pub(super) attempts: BTreeMap<u32, Attempt>,
    /// Known for segments written by this process, read when needed for others.
    pub(super) plans: Option<Arc<[BatchPlan]>>,
    /// Frames that the disk did not take; empty when the segment is on disk.
    pub(super) unsaved: Vec<Vec<u8>>,
    pub(super) home: Home,
    pub(super) damaged: bool,
    pub(super) unreadable: Option<Unreadable>,
    /// Closed segments do not change, so this is asked once.
    pub(super) disk_bytes: OnceCell<u64>,
}

/// A segment that the disk did not give.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) error: String,
    pub(super) retry_at_ms: i64,
}

/// The segment that takes records.
#[derive(Debug)]
pub(super) struct Active<W> {
    pub(super) row: SegmentRow,
    pub(super) plans: Vec<BatchPlan>,
    /// `None` while the disk does not take records.
    pub(super) writer: Option<W>,
    pub(super) unsaved: Vec<Vec<u8>>,
    /// Acknowledged before it was synced, in the order of the appends.
    pub(super) unsynced: Vec<(Vec<Record>, Vec<Position>)>,
    /// What the segment was when it was synced last.
    pub(super) synced: (SegmentRow, Vec<BatchPlan>),
}

impl<W> Active<W> {
    pub(super) fn new(row: SegmentRow, writer: Option<W>) -> Self {
        let synced = (row.clone(), Vec::new());
        Self { row, plans: Vec::new(), writer, unsaved: Vec::new(), unsynced: Vec::new(), synced }
    }
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

/// How the last try to deliver a batch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Tries so far.
    pub attempts: u32,
    /// The last answer, for a person.
    pub answer: String,
    /// When the next try is due, milliseconds since 1970 UTC.
    pub next_at_ms: i64,
}

/// Counters since the log was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Records taken.
    pub appended_records: u64,
    /// Records delivered.
    pub delivered_records: u64,
    /// Batches delivered.
    pub delivered_batches: u64,
    /// Records that the backend refused; they are in the dead letters.
    pub refused_records: u64,
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

impl<S: Store> Log<S> {
    pub(super) fn empty(store: S, limits: LogLimits) -> Self {
        Self {
            queue_id: store.queue_id(),
            store,
            limits,
            next_seq: 0,
            last_segment: 0,
            next_saved: (0, 0),
            leap: segment::random_leap(),
            sealed: BTreeMap::new(),
            unnoted: BTreeSet::new(),
            kept: BTreeMap::new(),
            ledger: Ledger::default(),
            positions: BTreeMap::new(),
            positions_saved: 0,
            counts: Counts::default(),
            now_ms: 0,
            reserve_bytes: limits.reserve_bytes(),
            active: None,
            newest_closed: None,
            ring: Ring::new(limits.ring_bytes_max),
            index: None,
            look: None,
            disk: DiskHealth::default(),
            delivered_at_ms: 0,
            merge: None,
            merge_at_ms: 0,
        }
    }

    /// The queue's identity.
    pub fn queue_id(&self) -> Uuid {
        self.queue_id
    }

    /// How far `collector` had read when its last durable records were appended.
    pub fn position(&self, collector: &str) -> Option<Bytes> {
        self.positions.get(collector).map(|at| at.bytes.clone())
    }

    /// The ledger: what is not acknowledged by the backend, and the newest entries that are.
    pub fn losses(&self) -> Vec<Loss> {
        self.ledger.all().cloned().collect()
    }

    /// Entries of the ledger that the backend does not know yet, at most 100. They do not change
    /// any more.
    pub fn losses_to_send(&mut self) -> Vec<Loss> {
        self.ledger.offer()
    }

    /// The backend knows these entries of the ledger.
    pub fn losses_acknowledged(&mut self, ids: &[u64]) {
        self.ledger.acknowledge(ids);
        self.save_ledger();
    }

    /// Counters since the log was opened.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Why the disk takes no records at present.
    pub fn disk_error(&self) -> Option<&str> {
        self.disk.error.as_deref()
    }

    /// Bytes of memory that records occupy.
    pub fn ring_bytes(&self) -> usize {
        self.ring.bytes()
    }

    /// Ends the window: closes the active segment, so that its batches can be sent.
    pub fn seal(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
        self.save_unsaved(now_ms);
        self.sync(now_ms);
        if let Some(active) = self.active.take() {
            self.seal_active(active, now_ms);
        }
    }

    /// The backend has taken a batch: it is never sent again, and its segment goes when all of its
    /// batches are delivered. What the backend refused of it is kept in the dead letters first.
    pub fn delivered(
        &mut self,
        key: BatchKey,
        records: u64,
        refused: &[DeadLetter],
    ) -> Result<(), StoreError> {
        if self.sealed.get(&key.segment).is_none_or(|s| s.row.is_delivered(key.number)) {
            return Ok(());
        }
        if !refused.is_empty() {
            if let Err(error) = self.store.put_dead(refused) {
                // It comes again, under the same id; by then the letters may be written.
                let next_at_ms = self.now_ms.saturating_add(NOTE_RETRY_MS);
                self.put_back(key, error.to_string(), next_at_ms);
                return Err(error);
            }
            let dead_bytes_max = self.limits.budget.dead_bytes_max();
            if let Err(error) = self.store.shorten_dead(dead_bytes_max) {
                tracing::warn!(%error, "the dead letters cannot be shortened now");
            }
            self.counts.refused_records += refused.len() as u64;
            for letter in refused {
                self.note_loss(NewLoss {
                    range: (letter.seq, letter.seq),
                    records: 1,
                    reason: LossReason::Refuse,
                    time_ms: (letter.at_ms, letter.at_ms),
                });
            }
        }
        let Some(sealed) = self.sealed.get_mut(&key.segment) else { return Ok(()) };
        sealed.in_flight.remove(&key.number);
        sealed.attempts.remove(&key.number);
        sealed.row.deliver(key.number);
        self.counts.delivered_records += records.saturating_sub(refused.len() as u64);
        self.counts.delivered_batches += 1;
        self.delivered_at_ms = self.now_ms;
        let (done, row, home) = (sealed.row.is_done(), sealed.row.clone(), sealed.home);
        if home != Home::Disk {
            if done {
                self.forget(key.segment);
            }
            self.save_ledger();
            return Ok(());
        }
        // When closing the segment could not write its row, nothing but the segment says which
        // numbers were given and how far the collectors had read.
        let unsaved = key.segment > self.positions_saved;
        if !done && !unsaved && refused.is_empty() {
            self.unnoted.insert(key.segment);
            return Ok(());
        }
        let put =
            if unsaved { self.put_sealed(&row) } else { self.put(vec![state::segment_row(&row)]) };
        if done && put.is_err() && unsaved {
            self.forget(key.segment); // the next start finds it, and sends it under the same id
        } else if done {
            self.finish_segment(key.segment)?;
        }
        put
    }

    /// Adds to the ledger, in memory: the next [`Log::put`] writes it.
    pub(super) fn note_loss(&mut self, loss: NewLoss) {
        self.ledger.note(loss, self.now_ms);
    }

    /// Writes state rows, and with them what the ledger has not written yet.
    pub(super) fn put(&mut self, mut rows: Vec<StateChange>) -> Result<(), StoreError> {
        // First: `rows` may say that one of these segments is gone.
        let unnoted = self.unnoted.iter().filter_map(|id| self.sealed.get(id));
        let unnoted: Vec<_> = unnoted.map(|sealed| state::segment_row(&sealed.row)).collect();
        rows.splice(0..0, unnoted);
        rows.extend(self.ledger.unsaved());
        if rows.is_empty() {
            return Ok(());
        }
        let next = (self.next_seq, self.last_segment);
        if next != self.next_saved {
            rows.push(state::next_row(next.0, next.1));
        }
        self.store.put_state(&rows)?;
        self.next_saved = next;
        self.ledger.saved();
        self.unnoted.clear();
        Ok(())
    }

    /// Notes the deliveries that are not noted yet.
    pub(super) fn note_deliveries(&mut self) {
        if self.unnoted.is_empty() {
            return;
        }
        if let Err(error) = self.put(Vec::new()) {
            tracing::warn!(%error, "deliveries are not noted yet; a crash would repeat them");
        }
    }

    /// Writes what the ledger has not written yet; a disk that does not take it is asked again with
    /// the next state.
    pub(super) fn save_ledger(&mut self) {
        if let Err(error) = self.put(Vec::new()) {
            tracing::warn!(%error, "the ledger of lost records stays in memory for now");
        }
    }

    /// Changes lines of the dead letters: what has been delivered since goes.
    pub fn change_dead(&mut self, changes: &DeadChanges) -> Result<(), StoreError> {
        self.store.change_dead(changes)
    }

    /// Lets every batch be tried now, whenever its next try was due.
    pub fn retry_now(&mut self) {
        for sealed in self.sealed.values_mut() {
            sealed.attempts.values_mut().for_each(|attempt| attempt.next_at_ms = 0);
            if let Some(known) = &mut sealed.unreadable {
                known.retry_at_ms = 0;
            }
        }
    }

    /// A try to deliver a batch has failed; it stays.
    pub fn put_back(&mut self, key: BatchKey, answer: String, next_at_ms: i64) {
        if let Some(sealed) = self.sealed.get_mut(&key.segment) {
            sealed.in_flight.remove(&key.number);
            let attempts = sealed.attempts.get(&key.number).map_or(0, |last| last.attempts) + 1;
            sealed.attempts.insert(key.number, Attempt { attempts, answer, next_at_ms });
        }
    }

    /// Ends the log: what is in the active segment is sealed, and a disk that has failed is asked
    /// once more, for what is only in memory goes with this process.
    pub fn close(mut self, now_ms: i64) {
        self.disk.ask_now();
        self.seal(now_ms);
        self.abandon_merge();
        let left = self.sealed.values().filter(|sealed| sealed.home == Home::MemoryOnly);
        let records: u64 = left.map(|sealed| sealed.row.records).sum();
        if records > 0 {
            let error = self.disk.error.as_deref().unwrap_or_default();
            tracing::error!(records, error, "records lost: the disk did not take them to the end");
        }
    }

    pub(super) fn insert_sealed(&mut self, row: SegmentRow) {
        let sealed = Sealed::new(row, None, Vec::new(), Home::Disk);
        self.sealed.insert(sealed.row.id, sealed);
    }

    fn seal_active(&mut self, active: Active<S::Writer>, now_ms: i64) {
        let Active { mut row, plans, writer, unsaved, .. } = active;
        row.window_ms.1 = now_ms;
        let id = row.id;
        let home = if writer.is_some() { Home::Disk } else { Home::MemoryOnly };
        if let Some(writer) = writer {
            let closed = writer.close();
            let put = closed.and_then(|()| self.put_sealed(&row));
            if let Err(error) = put {
                // The frames are durable; a start finds them without the row.
                self.disk_failed(&error, now_ms);
            }
        }
        self.newest_closed = Some(id);
        self.sealed.insert(id, Sealed::new(row, Some(plans), unsaved, home));
    }

    /// Writes what closing a segment writes: its row, and the positions that it covers.
    pub(super) fn put_sealed(&mut self, row: &SegmentRow) -> Result<(), StoreError> {
        let mut rows = vec![state::segment_row(row)];
        rows.extend(self.forget_positions());
        let unsaved = self
            .positions
            .iter()
            .filter(|(_, at)| (self.positions_saved + 1..=row.id).contains(&at.segment));
        rows.extend(unsaved.map(|(name, at)| state::position_row(name, at)));
        self.put(rows)?;
        self.positions_saved = self.positions_saved.max(row.id);
        Ok(())
    }

    /// Drops positions that may be forgotten by now.
    fn forget_positions(&mut self) -> Vec<StateChange> {
        let mut passing: Vec<(i64, String)> = Vec::new();
        for (name, at) in &self.positions {
            passing.extend(at.keep_until_ms.map(|until| (until, name.clone())));
        }
        passing.sort_unstable_by_key(|(until, _)| std::cmp::Reverse(*until));
        let kept = passing.iter().take_while(|(until, _)| *until > self.now_ms).count();
        let gone = passing.split_off(kept.min(PASSING_POSITIONS_MAX));
        let drop_row = |(_, name): (i64, String)| {
            self.positions.remove(&name);
            state::drop_position_row(&name)
        };
        gone.into_iter().map(drop_row).collect()
    }

    /// A segment of which nothing is left to deliver goes, or is kept for a while.
    pub(super) fn finish_segment(&mut self, id: u64) -> Result<(), StoreError> {
        let damaged = self.sealed.get(&id).is_some_and(|sealed| sealed.damaged);
        if damaged {
            self.forget(id);
            self.store.quarantine(id)?;
            return self.put(vec![state::drop_segment_row(id)]);
        }
        if self.limits.retain != Retain::Off {
            return self.keep_segment(id);
        }
        self.remove_segment(id)
    }

    /// Removes a segment whose row says that nothing of it is left to deliver.
    pub(super) fn remove_segment(&mut self, id: u64) -> Result<(), StoreError> {
        self.forget(id);
        self.store.remove(id)?;
        self.put(vec![state::drop_segment_row(id)])
    }

    pub(super) fn forget(&mut self, id: u64) {
        self.sealed.remove(&id);
        self.unnoted.remove(&id);
        self.ring.remove(id);
        if self.index.as_ref().is_some_and(|index| index.segment == id) {
            self.index = None;
        }
    }
}

impl Sealed {
    pub(super) fn new(
        row: SegmentRow,
        plans: Option<Vec<BatchPlan>>,
        unsaved: Vec<Vec<u8>>,
        home: Home,
    ) -> Self {
        let (in_flight, attempts) = (BTreeSet::new(), BTreeMap::new());
        Self {
            row,
            in_flight,
            attempts,
            plans: plans.map(Arc::from),
            unsaved,
            home,
            damaged: false,
            unreadable: None,
            disk_bytes: OnceCell::new(),
        }
    }
}

/// The id of a batch, for ever the same. What is left of it after thinning has another id.
pub fn batch_id(queue_id: Uuid, origin: Origin) -> Uuid {
    let name = format!("{}/{}", origin.segment, origin.batch);
    let whole = Uuid::new_v5(&queue_id, name.as_bytes());
    (0..origin.thinned).fold(whole, |parent, _| Uuid::new_v5(&parent, b"thin"))
}
