//! The log: seals segments and deletes what is delivered. Synchronous, owned by one thread, and
//! told the time. The promises are in [`crate::queue`]. Its other parts: opening is in `recover`,
//! appending in `writing`, taking batches in `reading`, and what happens without a disk in
//! `disk_health`.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    DeadLetter,
    disk_health::DiskHealth,
    record::Record,
    ring::{Home, Ring},
    salvage::Found,
    segment::{BatchLimits, BatchPlan, SegmentRow},
    state,
    store::{SegmentWriter, StateChange, Store, StoreError},
};

/// Bounds and boundaries of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Stored bytes after which a segment is closed before its window ends.
    pub segment_bytes_max: u64,
    /// Where batches end.
    pub batch: BatchLimits,
    /// Memory for records that are also on disk.
    pub ring_bytes_max: usize,
    /// Memory for records that the disk did not take; over it, the oldest of them are evicted.
    pub volatile_bytes_max: usize,
}

/// The log. See the module documentation.
#[derive(Debug)]
pub struct Log<S: Store> {
    pub(super) store: S,
    pub(super) limits: LogLimits,
    pub(super) queue_id: Uuid,
    pub(super) next_seq: u64,
    pub(super) last_segment: u64,
    /// Closed segments with something left to deliver, oldest first.
    pub(super) sealed: BTreeMap<u64, Sealed>,
    /// How far each collector had read, and the segment that says so.
    pub(super) positions: BTreeMap<String, (u64, Bytes)>,
    pub(super) counts: Counts,
    pub(super) active: Option<Active<S::Writer>>,
    pub(super) ring: Ring,
    /// The frames of the segment that was read from disk last.
    pub(super) index: Option<(u64, Vec<Found>)>,
    pub(super) disk: DiskHealth,
}

/// A closed segment.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) row: SegmentRow,
    pub(super) in_flight: BTreeSet<u32>,
    pub(super) attempts: BTreeMap<u32, Attempt>,
    /// Known for segments written by this process, read when needed for others.
    pub(super) plans: Option<Vec<BatchPlan>>,
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
    /// Its name for ever: a function of the queue, the segment and the number.
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
    /// Records evicted because neither the disk nor the memory had room for them.
    pub evicted_records: u64,
    /// Records that are damaged on disk.
    pub corrupt_records: u64,
}

impl<S: Store> Log<S> {
    pub(super) fn empty(store: S, limits: LogLimits) -> Self {
        Self {
            queue_id: store.queue_id(),
            store,
            limits,
            next_seq: 0,
            last_segment: 0,
            sealed: BTreeMap::new(),
            positions: BTreeMap::new(),
            counts: Counts::default(),
            active: None,
            ring: Ring::new(limits.ring_bytes_max),
            index: None,
            disk: DiskHealth::default(),
        }
    }

    /// The queue's identity.
    pub fn queue_id(&self) -> Uuid {
        self.queue_id
    }

    /// How far `collector` had read when its last durable records were appended.
    pub fn position(&self, collector: &str) -> Option<Bytes> {
        self.positions.get(collector).map(|(_, bytes)| bytes.clone())
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
        self.save_unsaved(now_ms);
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
        if !refused.is_empty() {
            self.store.put_dead(refused)?;
            self.counts.refused_records += refused.len() as u64;
        }
        let records = records.saturating_sub(refused.len() as u64);
        let Some(sealed) = self.sealed.get_mut(&key.segment) else { return Ok(()) };
        sealed.in_flight.remove(&key.number);
        sealed.attempts.remove(&key.number);
        if !sealed.row.is_delivered(key.number) {
            sealed.row.deliver(key.number);
            self.counts.delivered_records += records;
            self.counts.delivered_batches += 1;
        }
        let (done, row, home) = (sealed.row.is_done(), sealed.row.clone(), sealed.home);
        if home == Home::MemoryOnly {
            if done {
                self.forget(key.segment);
            }
            return Ok(());
        }
        let put = self.store.put_state(&[state::segment_row(&row)]);
        if done {
            self.remove_segment(key.segment)?;
        }
        put
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

    /// Ends the log: what is in the active segment is sealed.
    pub fn close(mut self, now_ms: i64) {
        self.seal(now_ms);
    }

    pub(super) fn insert_sealed(&mut self, row: SegmentRow) {
        let sealed = Sealed::new(row, None, Vec::new(), Home::Disk);
        self.sealed.insert(sealed.row.id, sealed);
    }

    fn seal_active(&mut self, active: Active<S::Writer>, now_ms: i64) {
        let Active { mut row, plans, writer, unsaved } = active;
        row.window_ms.1 = now_ms;
        let id = row.id;
        let home = if writer.is_some() { Home::Disk } else { Home::MemoryOnly };
        if let Some(writer) = writer {
            let closed = writer.close();
            let put = closed.and_then(|()| self.store.put_state(&self.seal_rows(&row)));
            if let Err(error) = put {
                // The frames are durable; a start finds them without the row.
                self.disk_failed(&error, now_ms);
            }
        }
        self.sealed.insert(id, Sealed::new(row, Some(plans), unsaved, home));
    }

    /// The rows that closing a segment writes: its own, and the positions that it covers.
    pub(super) fn seal_rows(&self, row: &SegmentRow) -> Vec<StateChange> {
        let mut rows = vec![state::segment_row(row), state::next_row(self.next_seq, row.id)];
        let covered = self.positions.iter().filter(|(_, (segment, _))| *segment <= row.id);
        rows.extend(covered.map(|(name, at)| state::position_row(name, at)));
        rows
    }

    fn remove_segment(&mut self, id: u64) -> Result<(), StoreError> {
        let damaged = self.sealed.get(&id).is_some_and(|sealed| sealed.damaged);
        self.forget(id);
        if damaged {
            self.store.quarantine(id)?;
        } else {
            self.store.remove(id)?;
        }
        self.store.put_state(&[state::drop_segment_row(id)])
    }

    fn forget(&mut self, id: u64) {
        self.sealed.remove(&id);
        self.ring.remove(id);
        if self.index.as_ref().is_some_and(|(indexed, _)| *indexed == id) {
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
            plans,
            unsaved,
            home,
            damaged: false,
            unreadable: None,
            disk_bytes: OnceCell::new(),
        }
    }
}

/// The id of a batch, for ever the same.
pub fn batch_id(queue_id: Uuid, key: BatchKey) -> Uuid {
    Uuid::new_v5(&queue_id, format!("{}/{}", key.segment, key.number).as_bytes())
}
