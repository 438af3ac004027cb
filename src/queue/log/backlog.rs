//! The backlog: which segments are closed, what of them is delivered, and which are kept after
//! that. Nothing here writes: the log does, and says so here.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{BatchKey, ring::Home};
use crate::queue::{
    format::{
        rows::KeptRow,
        segment::{BatchPlan, SegmentRow},
    },
    store::{Store, disk::ReadDisk},
};

/// Closed segments, oldest first.
#[derive(Debug, Default)]
pub(in crate::queue) struct Backlog {
    sealed: BTreeMap<u64, Sealed>,
    kept: BTreeMap<u64, Kept>,
    /// The newest segment that this process has closed.
    newest_closed: Option<u64>,
}

/// A closed segment.
#[derive(Debug)]
pub(in crate::queue) struct Sealed {
    pub(in crate::queue) row: SegmentRow,
    pub(in crate::queue) in_flight: BTreeSet<u32>,
    pub(in crate::queue) attempts: BTreeMap<u32, Attempt>,
    /// Known for segments written by this process, read when needed for others.
    pub(in crate::queue) plans: Option<Arc<[BatchPlan]>>,
    /// Frames that the disk did not take; empty when the segment is on disk.
    pub(in crate::queue) unsaved: Vec<Vec<u8>>,
    pub(in crate::queue) home: Home,
    pub(in crate::queue) damaged: bool,
    pub(in crate::queue) unreadable: Option<Unreadable>,
    /// Closed segments do not change, so this is asked once.
    disk_bytes: OnceCell<u64>,
}

/// A segment that is delivered and kept for a while.
#[derive(Debug)]
pub(in crate::queue) struct Kept {
    pub(in crate::queue) row: KeptRow,
    /// Whether it is where kept segments are.
    pub(in crate::queue) moved: bool,
    disk_bytes: OnceCell<u64>,
}

/// A segment that the disk did not give.
#[derive(Debug)]
pub(in crate::queue) struct Unreadable {
    pub(in crate::queue) error: String,
    pub(in crate::queue) retry_at_ms: i64,
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

impl Sealed {
    /// A segment that is on disk.
    pub(in crate::queue) fn on_disk(row: SegmentRow, plans: Option<Vec<BatchPlan>>) -> Self {
        Self::new(row, plans, Vec::new(), Home::Disk)
    }

    /// A segment whose frames are in memory, if `home` says so.
    pub(in crate::queue) fn new(
        row: SegmentRow,
        plans: Option<Vec<BatchPlan>>,
        unsaved: Vec<Vec<u8>>,
        home: Home,
    ) -> Self {
        Self {
            row,
            in_flight: BTreeSet::new(),
            attempts: BTreeMap::new(),
            plans: plans.map(Arc::from),
            unsaved,
            home,
            damaged: false,
            unreadable: None,
            disk_bytes: OnceCell::new(),
        }
    }

    /// Bytes that it occupies on disk.
    pub(in crate::queue) fn disk_bytes<D: ReadDisk>(&self, store: &Store<D>) -> u64 {
        match self.home {
            Home::Disk => *self.disk_bytes.get_or_init(|| store.disk_bytes(self.row.id)),
            Home::MemoryOnly | Home::Evicted => 0,
        }
    }

    /// Whether it can be written again with others: sound, on disk, not being sent, not done.
    pub(in crate::queue) fn is_idle(&self) -> bool {
        self.home == Home::Disk
            && self.in_flight.is_empty()
            && self.unreadable.is_none()
            && !self.row.is_done()
    }

    /// It is on disk now.
    pub(in crate::queue) fn saved(&mut self) {
        self.unsaved = Vec::new();
        self.home = Home::Disk;
        self.disk_bytes = OnceCell::new();
    }
}

impl Kept {
    /// Bytes that it occupies on disk.
    pub(in crate::queue) fn disk_bytes<D: ReadDisk>(&self, store: &Store<D>) -> u64 {
        *self.disk_bytes.get_or_init(|| store.disk_bytes(self.row.row.id))
    }
}

impl Backlog {
    /// Segments that wait, or are done and not removed yet, oldest first.
    pub(in crate::queue) fn sealed(&self) -> impl DoubleEndedIterator<Item = &Sealed> {
        self.sealed.values()
    }

    /// Segments that are delivered and kept, oldest first.
    pub(in crate::queue) fn kept(&self) -> impl DoubleEndedIterator<Item = &Kept> {
        self.kept.values()
    }

    pub(in crate::queue) fn get(&self, id: u64) -> Option<&Sealed> {
        self.sealed.get(&id)
    }

    pub(in crate::queue) fn get_mut(&mut self, id: u64) -> Option<&mut Sealed> {
        self.sealed.get_mut(&id)
    }

    pub(in crate::queue) fn get_kept(&self, id: u64) -> Option<&Kept> {
        self.kept.get(&id)
    }

    /// The row of a segment that waits or is kept.
    pub(in crate::queue) fn row(&self, id: u64) -> Option<&SegmentRow> {
        let kept = || self.kept.get(&id).map(|kept| &kept.row.row);
        self.sealed.get(&id).map(|sealed| &sealed.row).or_else(kept)
    }

    pub(in crate::queue) fn insert(&mut self, sealed: Sealed) {
        self.sealed.insert(sealed.row.id, sealed);
    }

    /// Adds a segment that this process has closed just now.
    pub(in crate::queue) fn close(&mut self, sealed: Sealed) {
        self.newest_closed = Some(sealed.row.id);
        self.insert(sealed);
    }

    pub(in crate::queue) fn remove(&mut self, id: u64) -> Option<Sealed> {
        self.sealed.remove(&id)
    }

    /// Adds a segment that is kept, and about to be moved to where those are.
    pub(in crate::queue) fn insert_kept(&mut self, row: KeptRow) {
        self.kept.insert(row.row.id, Kept { row, moved: false, disk_bytes: OnceCell::new() });
    }

    /// A kept segment is where it should be.
    pub(in crate::queue) fn moved(&mut self, id: u64) {
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.moved = true;
        }
    }

    pub(in crate::queue) fn remove_kept(&mut self, id: u64) {
        self.kept.remove(&id);
    }

    /// The newest segment that this process has closed.
    pub(in crate::queue) fn newest_closed(&self) -> Option<u64> {
        self.newest_closed
    }

    /// Whether a batch is still to be delivered.
    pub(in crate::queue) fn is_pending(&self, key: BatchKey) -> bool {
        self.get(key.segment).is_some_and(|sealed| !sealed.row.is_delivered(key.number))
    }

    /// A try to deliver a batch has failed; it stays.
    pub(in crate::queue) fn put_back(&mut self, key: BatchKey, answer: String, next_at_ms: i64) {
        if let Some(sealed) = self.get_mut(key.segment) {
            sealed.in_flight.remove(&key.number);
            let attempts = sealed.attempts.get(&key.number).map_or(0, |last| last.attempts) + 1;
            sealed.attempts.insert(key.number, Attempt { attempts, answer, next_at_ms });
        }
    }

    /// Marks a batch of `records` records as delivered.
    pub(in crate::queue) fn deliver(&mut self, key: BatchKey, records: u64) -> Option<&Sealed> {
        let sealed = self.get_mut(key.segment)?;
        sealed.in_flight.remove(&key.number);
        sealed.attempts.remove(&key.number);
        sealed.row.deliver(key.number);
        sealed.row.delivered_records += records;
        Some(sealed)
    }

    /// Lets every batch be tried now, whenever its next try was due.
    pub(in crate::queue) fn retry_now(&mut self) {
        for sealed in self.sealed.values_mut() {
            sealed.attempts.values_mut().for_each(|attempt| attempt.next_at_ms = 0);
            if let Some(known) = &mut sealed.unreadable {
                known.retry_at_ms = 0;
            }
        }
    }

    /// Segments of which nothing is left to deliver, and that are still on disk.
    pub(in crate::queue) fn done(&self) -> Vec<u64> {
        let done = |sealed: &&Sealed| sealed.row.is_done() && sealed.home == Home::Disk;
        self.sealed.values().filter(done).map(|sealed| sealed.row.id).collect()
    }

    /// Bytes on disk of the segments that wait.
    pub(in crate::queue) fn sealed_bytes<D: ReadDisk>(&self, store: &Store<D>) -> u64 {
        self.sealed.values().map(|sealed| sealed.disk_bytes(store)).sum()
    }

    /// Bytes on disk of the kept segments.
    pub(in crate::queue) fn kept_bytes<D: ReadDisk>(&self, store: &Store<D>) -> u64 {
        self.kept.values().map(|kept| kept.disk_bytes(store)).sum()
    }
}
