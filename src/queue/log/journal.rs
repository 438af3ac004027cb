//! The journal: what the queue knows beside its records, in memory and, once [`Journal::put`] has
//! answered, on disk. It owns the rows of the state, the ledger of losses, the positions of the
//! collectors, and the numbers that are given next.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::ledger::{Ledger, NewLoss};
use crate::queue::{
    format::{
        record::{PASSING_POSITIONS_MAX, Position},
        rows::{self, KeptRow, Next, PositionAt, Row, StateChange},
        segment::SegmentRow,
    },
    store::{
        Store, StoreError,
        disk::{ReadDisk, WriteDisk},
        notes::Notes,
    },
};

/// The journal of one queue.
#[derive(Debug, Default)]
pub(in crate::queue) struct Journal {
    notes: Notes,
    ledger: Ledger,
    positions: BTreeMap<String, Held>,
    /// Positions that were taken so far: the order in which they were.
    taken: u64,
    /// What the age clock said last; nothing goes for its age before it has been told.
    told_age_ms: Option<i64>,
    /// The newest segment whose positions are in the state.
    positions_saved: u64,
    next: Next,
    /// What the state has of it: it must know of numbers before their segments go.
    next_saved: Next,
    /// Rows that go with the next write.
    pending: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

/// A position, and when it was taken, as an order: clocks are set.
#[derive(Debug, Default)]
struct Held {
    at: PositionAt,
    taken: u64,
}

/// The rows about segments, as they were found.
#[derive(Debug, Default)]
pub(in crate::queue) struct SegmentRows {
    pub(in crate::queue) sealed: BTreeMap<u64, SegmentRow>,
    pub(in crate::queue) kept: BTreeMap<u64, KeptRow>,
}

/// The age clock is written again when it has moved by so much.
const AGE_STEP_MS: i64 = 60_000;

impl Journal {
    /// Reads the journal, and changes nothing.
    pub(in crate::queue) fn look<D: ReadDisk>(
        store: &Store<D>,
    ) -> Result<(Self, SegmentRows), StoreError> {
        Notes::look(&store.disk, store.queue_id()).map(Self::of)
    }

    /// Reads the journal; see [`Notes::open`].
    pub(in crate::queue) fn open<D: WriteDisk>(
        store: &mut Store<D>,
    ) -> Result<(Self, SegmentRows), StoreError> {
        let queue = store.queue_id();
        Notes::open(&mut store.disk, queue).map(Self::of)
    }

    fn of(notes: Notes) -> (Self, SegmentRows) {
        let mut segments = SegmentRows::default();
        let mut journal = Self::default();
        let mut positions = Vec::new();
        for (key, value) in notes.rows() {
            match rows::decode(key, value) {
                Some(Row::Segment(row)) => {
                    segments.sealed.insert(row.id, row);
                }
                Some(Row::Kept(kept)) => {
                    journal.next.seq = journal.next.seq.max(kept.row.end_seq);
                    segments.kept.insert(kept.row.id, kept);
                }
                Some(Row::Position(collector, at)) => {
                    journal.positions_saved = journal.positions_saved.max(at.segment);
                    positions.push((at.segment, at.keep_until_ms, collector, at));
                }
                Some(Row::Loss(loss)) => {
                    journal.next.seq = journal.next.seq.max(loss.to.saturating_add(1));
                    journal.ledger.insert(loss);
                }
                Some(Row::Next(next)) => {
                    journal.next_saved = next;
                    journal.next.seq = journal.next.seq.max(next.seq);
                    journal.next.segment = journal.next.segment.max(next.segment);
                    journal.next.age_ms = next.age_ms;
                }
                None => tracing::warn!(?key, "an unknown row in the queue's state is left alone"),
            }
        }
        positions.sort_unstable_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
        for (_, _, collector, at) in positions {
            journal.set_position(collector, at);
        }
        journal.notes = notes;
        (journal, segments)
    }

    /// Whether there is no state: the queue is new, or it is lost.
    pub(in crate::queue) fn is_blank(&self) -> bool {
        self.notes.is_blank()
    }

    /// The ledger of losses.
    pub(in crate::queue) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Adds to the ledger, in memory: the next write has it.
    pub(in crate::queue) fn note_loss(&mut self, loss: NewLoss, now_ms: i64) {
        self.ledger.note(loss, now_ms);
    }

    /// Entries of the ledger that the backend does not know; see [`Ledger::offer`].
    pub(in crate::queue) fn offer_losses(&mut self) -> Vec<crate::queue::Loss> {
        self.ledger.offer()
    }

    /// The backend knows these entries of the ledger.
    pub(in crate::queue) fn acknowledge_losses(&mut self, ids: &[u64]) {
        self.ledger.acknowledge(ids);
    }

    /// The next sequence number.
    pub(in crate::queue) fn next_seq(&self) -> u64 {
        self.next.seq
    }

    /// Gives `count` sequence numbers; the first of them.
    pub(in crate::queue) fn take_seqs(&mut self, count: u64) -> u64 {
        let first = self.next.seq;
        self.next.seq = first.saturating_add(count);
        first
    }

    /// The numbers below `seq` were given.
    pub(in crate::queue) fn has_given(&mut self, seq: u64) {
        self.next.seq = self.next.seq.max(seq);
    }

    /// What the state says was given before segment `id` was begun, if it was written before that.
    pub(in crate::queue) fn given_before(&self, id: u64) -> Option<u64> {
        Some(self.next_saved).filter(|saved| saved.segment < id).map(|saved| saved.seq)
    }

    /// The number of the last segment.
    pub(in crate::queue) fn last_segment(&self) -> u64 {
        self.next.segment
    }

    /// A segment has this number.
    pub(in crate::queue) fn has_segment(&mut self, id: u64) {
        self.next.segment = self.next.segment.max(id);
    }

    /// The age clock as it was written last.
    pub(in crate::queue) fn age_ms(&self) -> Option<i64> {
        self.next.age_ms
    }

    /// The age clock has come to this.
    pub(in crate::queue) fn set_age_ms(&mut self, age_ms: i64) {
        self.told_age_ms = Some(age_ms);
        let known = self.next.age_ms;
        if known.is_none_or(|known| age_ms.saturating_sub(known).abs() >= AGE_STEP_MS) {
            self.next.age_ms = Some(age_ms);
        }
    }

    /// The age clock has been set ahead: what may be forgotten later is kept as long as it was to
    /// be.
    pub(in crate::queue) fn postpone(&mut self, jump_ms: i64) {
        if jump_ms < AGE_STEP_MS {
            return;
        }
        for (name, Held { at, .. }) in &mut self.positions {
            let Some(until) = &mut at.keep_until_ms else { continue };
            *until = until.saturating_add(jump_ms);
            if at.segment <= self.positions_saved {
                let (key, value) = rows::position_row(name, at);
                self.pending.insert(key, value);
            }
        }
    }

    /// How far a collector had read.
    pub(in crate::queue) fn position(&self, collector: &str) -> Option<Bytes> {
        let held = self.positions.get(collector).filter(|held| !self.is_void(&held.at));
        held.map(|held| held.at.bytes.clone())
    }

    /// Whether a position may be forgotten by now.
    fn is_void(&self, at: &PositionAt) -> bool {
        let until = at.keep_until_ms.zip(self.told_age_ms);
        until.is_some_and(|(until, age_ms)| until <= age_ms)
    }

    /// A collector has read so far, with records in `segment`.
    pub(in crate::queue) fn set_position(&mut self, collector: String, at: PositionAt) {
        self.taken += 1;
        self.positions.insert(collector, Held { at, taken: self.taken });
    }

    /// Drops a position; the change that says so, when there was one.
    pub(in crate::queue) fn forget_position(&mut self, collector: &str) -> Option<StateChange> {
        self.positions.remove(collector).map(|_| rows::drop_position_row(collector))
    }

    /// The same, from a segment that was found: an older one does not count.
    pub(in crate::queue) fn find_positions(&mut self, segment: u64, positions: Vec<Position>) {
        for position in positions {
            let Position { collector, bytes, keep_until_ms } = position;
            if self.positions.get(&collector).is_none_or(|held| held.at.segment <= segment) {
                self.set_position(collector, PositionAt { segment, bytes, keep_until_ms });
            }
        }
    }

    /// Whether the state lacks positions of a segment.
    pub(in crate::queue) fn lacks_positions_of(&self, segment: u64) -> bool {
        segment > self.positions_saved
    }

    /// How far the collectors had read in segments up to `newest`, but for what may be forgotten.
    pub(in crate::queue) fn lasting_positions(&self, newest: u64) -> Vec<Position> {
        let lasting = |at: &PositionAt| at.segment <= newest && at.keep_until_ms.is_none();
        self.positions_where(lasting)
    }

    /// How far the collectors had read in one segment.
    pub(in crate::queue) fn positions_of(&self, segment: u64) -> Vec<Position> {
        self.positions_where(|at| at.segment == segment)
    }

    /// Whether records of `segment` came with something that may be forgotten later: the key of a
    /// request.
    pub(in crate::queue) fn has_passing_of(&self, segment: u64) -> bool {
        self.positions
            .values()
            .any(|held| held.at.segment == segment && held.at.keep_until_ms.is_some())
    }

    /// The records of `segment` have gone before they were on disk, and so do their keys.
    pub(in crate::queue) fn forget_passing_of(&mut self, segment: u64) {
        self.positions
            .retain(|_, held| held.at.segment != segment || held.at.keep_until_ms.is_none());
    }

    fn positions_where(&self, wanted: impl Fn(&PositionAt) -> bool) -> Vec<Position> {
        let position = |(name, Held { at, .. }): (&String, &Held)| Position {
            collector: name.clone(),
            bytes: at.bytes.clone(),
            keep_until_ms: at.keep_until_ms,
        };
        self.positions.iter().filter(|(_, held)| wanted(&held.at)).map(position).collect()
    }

    /// The rows of all positions.
    pub(in crate::queue) fn position_rows(&self) -> Vec<StateChange> {
        self.positions.iter().map(|(name, held)| rows::position_row(name, &held.at)).collect()
    }

    /// Has a row written with the next ones: a crash before that is harmless.
    pub(in crate::queue) fn later(&mut self, (key, value): StateChange) {
        self.pending.insert(key, value);
    }

    /// A segment has gone: what was to be written of it goes too.
    pub(in crate::queue) fn forget_segment(&mut self, id: u64) {
        self.pending.remove(&rows::drop_segment_row(id).0);
    }

    /// Whether a file of the state is to be written anew.
    pub(in crate::queue) fn is_behind(&self) -> bool {
        self.notes.is_behind()
    }

    /// Has the next write write something, whether there is a need or not.
    pub(in crate::queue) fn touch(&mut self) {
        self.later(rows::next_row(self.next));
    }

    /// Whether there is something that [`Journal::put`] would write by itself.
    pub(in crate::queue) fn is_unsaved(&self) -> bool {
        !self.pending.is_empty() || self.ledger.is_unsaved()
    }

    /// Writes rows, what was to be written later, and what the ledger has not written yet; durable
    /// when this returns.
    pub(in crate::queue) fn put<D: WriteDisk>(
        &mut self,
        store: &mut Store<D>,
        rows: Vec<StateChange>,
    ) -> Result<(), StoreError> {
        // First: `rows` may say that one of these segments is gone.
        let pending = self.pending.iter().map(|(key, value)| (key.clone(), value.clone()));
        let mut all: Vec<StateChange> = pending.chain(rows).collect();
        all.extend(self.ledger.unsaved());
        if all.is_empty() {
            return Ok(());
        }
        if self.next != self.next_saved {
            all.push(rows::next_row(self.next));
        }
        self.notes.put(&mut store.disk, &all)?;
        self.next_saved = self.next;
        self.ledger.saved();
        self.pending.clear();
        Ok(())
    }

    /// The same with a loss, which is not noted when the disk does not take it.
    pub(in crate::queue) fn put_with_losses<D: WriteDisk>(
        &mut self,
        store: &mut Store<D>,
        rows: Vec<StateChange>,
        (losses, now_ms): (&[NewLoss], i64),
    ) -> Result<(), StoreError> {
        let before = self.ledger.clone();
        for loss in losses {
            self.ledger.note(*loss, now_ms);
        }
        self.put(store, rows).inspect_err(|_| self.ledger = before)
    }

    /// Writes what closing a segment writes: its row, and the positions that it covers.
    pub(in crate::queue) fn put_sealed<D: WriteDisk>(
        &mut self,
        store: &mut Store<D>,
        row: &SegmentRow,
        (losses, now_ms): (&[NewLoss], i64),
    ) -> Result<(), StoreError> {
        let changes = vec![rows::segment_row(row)];
        self.put_with_positions(store, (row.id, changes), (losses, now_ms))
    }

    /// Writes what is said of a segment, and the positions that it covers.
    pub(in crate::queue) fn put_with_positions<D: WriteDisk>(
        &mut self,
        store: &mut Store<D>,
        (segment, mut changes): (u64, Vec<StateChange>),
        (losses, now_ms): (&[NewLoss], i64),
    ) -> Result<(), StoreError> {
        changes.extend(self.forget_positions());
        let unsaved = self.positions_saved + 1..=segment;
        let unsaved = self.positions.iter().filter(|(_, held)| unsaved.contains(&held.at.segment));
        changes.extend(unsaved.map(|(name, held)| rows::position_row(name, &held.at)));
        self.put_with_losses(store, changes, (losses, now_ms))?;
        self.positions_saved = self.positions_saved.max(segment);
        Ok(())
    }

    /// Whether the files of the state are where they were written.
    pub(in crate::queue) fn is_there<D: ReadDisk>(&self, store: &Store<D>) -> bool {
        self.notes.are_there(&store.disk)
    }

    /// Writes everything anew, after the directory has gone away.
    pub(in crate::queue) fn make_anew<D: WriteDisk>(
        &mut self,
        store: &mut Store<D>,
    ) -> Result<(), StoreError> {
        self.notes.make_anew(&mut store.disk)
    }

    /// Drops positions that may be forgotten by now, and the oldest of those that may be later.
    fn forget_positions(&mut self) -> Vec<StateChange> {
        let passing = self.positions.iter().filter(|(_, held)| held.at.keep_until_ms.is_some());
        let mut passing: Vec<(u64, bool, String)> = passing
            .map(|(name, held)| (held.taken, self.is_void(&held.at), name.clone()))
            .collect();
        passing.sort_unstable_by_key(|(taken, ..)| std::cmp::Reverse(*taken));
        let mut kept = 0;
        passing.retain(|(_, is_void, _)| {
            kept += usize::from(!is_void);
            *is_void || kept > PASSING_POSITIONS_MAX
        });
        let drop_row = |(_, _, name): (u64, bool, String)| {
            self.positions.remove(&name);
            rows::drop_position_row(&name)
        };
        passing.into_iter().map(drop_row).collect()
    }
}
