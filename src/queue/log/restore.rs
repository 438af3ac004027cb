//! The queue's directory has gone away under the running process: it is made anew, with what memory
//! has. What memory does not have is in the ledger.

use super::{
    Log, backlog::Sealed, index::Index, recover::Neighbours, ring::Home, writer::Active,
    writing::encode_again,
};
use crate::queue::{
    format::{
        record::{Position, Record},
        rows,
        segment::{BatchPlan, SegmentRow},
    },
    store::{Store, disk::WriteDisk},
};

impl<D: WriteDisk> Log<D> {
    /// Makes the directory, or the state in it, anew when it has gone away.
    pub(super) fn restore_if_gone(&mut self, now_ms: i64) {
        if self.disk_error().is_some() {
            return; // asked again in its time
        }
        if !self.store.disk.is_there() {
            self.restore(now_ms);
        } else if !self.journal.is_there(&self.store) {
            match self.journal.make_anew(&mut self.store) {
                Ok(()) => tracing::error!("the queue's state had been removed, and is made anew"),
                Err(error) => self.disk_failed(&error, now_ms),
            }
        }
    }

    /// See the module documentation. A disk that does not take the directory is asked again later.
    pub(super) fn restore(&mut self, now_ms: i64) {
        let made = self.try_disk(now_ms, Store::make_anew);
        if made.is_none() {
            return;
        }
        let lost = self.counts.corrupt_records;
        self.abandon_merge();
        self.index = None;
        self.looked_at = None;
        self.restore_kept();
        let unsynced = self.restore_active(now_ms);
        let gone = |sealed: &&Sealed| sealed.home == Home::Disk && self.is_gone(&sealed.row);
        let gone: Vec<u64> = self.backlog.sealed().filter(gone).map(|s| s.row.id).collect();
        for id in gone {
            self.restore_sealed(id);
        }
        if let Err(error) = self.journal.make_anew(&mut self.store) {
            self.disk_failed(&error, now_ms);
        }
        self.save_volatile(now_ms);
        if let Some(active) = self.writer.active.take_if(|active| !active.on_disk) {
            self.save_active(active, now_ms);
        }
        self.write_again(unsynced);
        self.take_back(now_ms);
        self.save_journal();
        let lost = self.counts.corrupt_records - lost;
        tracing::error!(
            records = lost,
            "the queue's directory had gone away, and is made anew with what was in memory; the \
             others are in the ledger"
        );
    }

    /// Somebody has taken a segment away under the process: those that memory has too are looked
    /// for, and written again if they are not there.
    pub(super) fn restore_recent(&mut self, now_ms: i64) {
        let gone = |id: &u64| {
            let sealed = self.backlog.get(*id).filter(|sealed| sealed.home == Home::Disk);
            sealed.is_some_and(|sealed| self.lacks_records(&sealed.row))
        };
        let gone: Vec<u64> = self.writer.ring.newest_first().filter(gone).collect();
        for id in gone {
            self.restore_sealed(id);
        }
        self.save_volatile(now_ms);
    }

    /// Whether the file of a segment is gone, or lacks something that memory has.
    fn is_gone(&self, row: &SegmentRow) -> bool {
        let in_memory = self.writer.ring.get(row.id).is_some();
        !self.store.has_segment(row.id) || in_memory && self.lacks_records(row)
    }

    /// Whether the file of a segment can be read, and some of what was acknowledged is not in it.
    pub(super) fn lacks_records(&self, row: &SegmentRow) -> bool {
        let there = self.store.frames(row.id).map(|scan| Index::of(scan, row).records());
        there.is_ok_and(|records| records + row.corrupt < row.records)
    }

    /// Writes what is only in memory, but for what has come back with the directory.
    fn save_volatile(&mut self, now_ms: i64) {
        let volatile = self.backlog.sealed().filter(|sealed| sealed.home == Home::MemoryOnly);
        for id in volatile.map(|sealed| sealed.row.id).collect::<Vec<_>>() {
            let Some(sealed) = self.backlog.get_mut(id) else { continue };
            let row = sealed.row.clone();
            if self.store.has_segment(id) && !self.lacks_records(&row) {
                if let Some(sealed) = self.backlog.get_mut(id) {
                    sealed.saved();
                }
                self.writer.ring.now_on_disk(id);
                self.journal.later(rows::segment_row(&row));
                continue;
            }
            if !self.clear_place(id, now_ms) || !self.save_sealed(id, now_ms) {
                break;
            }
        }
    }

    /// What stands in the place of a segment that is written again lacks a part of it, and may hold
    /// what nothing else on disk does: it is put aside.
    fn clear_place(&mut self, id: u64, now_ms: i64) -> bool {
        if !self.store.has_segment(id) {
            return true;
        }
        let aside = self.store.quarantine(id);
        if let Err(error) = &aside {
            self.disk_failed(error, now_ms);
        }
        aside.is_ok()
    }

    /// Segments that came back with the directory, and that memory has let go of, are read as a
    /// start would read them. What was delivered of them is sent again, under the same ids.
    fn take_back(&mut self, now_ms: i64) {
        let open = self.writer.active.as_ref().map(|active| (active.row.id, active.row.first_seq));
        for id in self.store.segments().unwrap_or_default() {
            let known = self.backlog.row(id).is_some() || open.is_some_and(|open| open.0 == id);
            if known || self.left_over.contains(&id) || self.unread.contains_key(&id) {
                continue;
            }
            let rows = || self.backlog.sealed().map(|sealed| &sealed.row);
            let before = rows().filter(|row| row.id < id).map(|row| row.end_seq).max();
            let after = rows().find(|row| row.id > id).map(|row| row.first_seq);
            let newest = open.map_or(self.journal.next_seq(), |open| open.1);
            let until = Some(after.unwrap_or(newest));
            let from = before.unwrap_or(u64::MAX);
            tracing::warn!(segment = id, "a segment has come back with the queue's directory");
            self.set_unread(id, Neighbours { from, until }, now_ms);
        }
    }

    fn restore_kept(&mut self) {
        let there = self.store.kept().unwrap_or_default();
        let waiting = self.store.segments().unwrap_or_default();
        let kept: Vec<u64> = self.backlog.kept().map(|kept| kept.row.row.id).collect();
        for id in kept.into_iter().filter(|id| !there.contains(id) && !waiting.contains(id)) {
            self.backlog.remove_kept(id);
            self.journal.later(rows::drop_kept_row(id));
        }
    }

    /// The open segment ends: what goes on under its number would make of it two with the same
    /// number and not the same records, if its file comes back. Returns what was never synced.
    fn restore_active(&mut self, now_ms: i64) -> Vec<(Vec<Record>, Vec<Position>)> {
        let Some(active) = self.writer.active.take_if(|active| active.on_disk) else {
            return Vec::new();
        };
        let Active { row, plans, unsynced, synced, .. } = active;
        let (row, plans) = if unsynced.is_empty() { (row, plans) } else { synced };
        self.close_broken(row, plans, now_ms);
        unsynced
    }

    fn restore_sealed(&mut self, id: u64) {
        let Some(sealed) = self.backlog.get(id) else { return };
        let (row, plans) = (sealed.row.clone(), sealed.plans.clone().unwrap_or_default());
        let (done, in_flight) = (row.is_done(), sealed.in_flight.clone());
        let attempts = sealed.attempts.clone();
        if done {
            return self.forget(id);
        }
        if let Some(Active { row, plans, unsaved, .. }) = self.again(&row, &plans) {
            let mut again = Sealed::new(row, Some(plans), unsaved, Home::MemoryOnly);
            (again.in_flight, again.attempts) = (in_flight, attempts);
            self.backlog.insert(again);
        } else {
            self.note_vanished(&row);
            self.forget(id);
            self.journal.later(rows::drop_segment_row(id));
        }
    }

    /// A segment that was just closed, and whose file is gone or lacks records: what memory has is
    /// written again, at once, and what it has not is in the ledger.
    pub(super) fn close_gone(&mut self, row: &SegmentRow, plans: Vec<BatchPlan>) {
        let (id, now_ms) = (row.id, self.now_ms);
        tracing::error!(segment = id, "records are missing from the file of the open segment");
        if let Some(Active { row, plans, unsaved, .. }) = self.again(row, &plans) {
            // Until it is written, a start finds by its row that it is missing.
            let none = (&[][..], now_ms);
            if let Err(error) = self.journal.put_sealed(&mut self.store, &row, none) {
                tracing::warn!(%error, "a start will not know of a segment in memory");
            }
            self.backlog.close(Sealed::new(row, Some(plans), unsaved, Home::MemoryOnly));
            if self.clear_place(id, now_ms) {
                self.save_sealed(id, now_ms);
            }
            return;
        }
        self.writer.ring.remove(id);
        if self.store.has_lost_frames(id) {
            self.note_vanished(row);
        } else {
            self.backlog.close(Sealed::on_disk(row.clone(), Some(plans)));
            self.journal.later(rows::segment_row(row));
            if let Err(error) = self.load_index(id) {
                tracing::warn!(%error, "what is missing is told when the segment can be read");
            }
        }
        self.save_journal();
    }

    fn again(&mut self, row: &SegmentRow, plans: &[BatchPlan]) -> Option<Active> {
        let records = self.writer.ring.get(row.id)?.to_vec();
        let positions = self.journal.positions_of(row.id);
        let again = encode_again(self.queue_id(), (row, plans), &records, &positions)?;
        self.writer.ring.only_in_memory(row.id);
        Some(again)
    }
}
