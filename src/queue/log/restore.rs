//! The queue's directory has gone away under the running process: it is made anew, with what memory
//! has. What memory does not have is in the ledger.

use super::{Log, backlog::Sealed, ring::Home, writer::Active, writing::encode_again};
use crate::queue::{
    format::{
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
        self.restore_active();
        let gone =
            |sealed: &&Sealed| sealed.home == Home::Disk && !self.store.has_segment(sealed.row.id);
        let gone: Vec<u64> = self.backlog.sealed().filter(gone).map(|s| s.row.id).collect();
        for id in gone {
            self.restore_sealed(id);
        }
        if let Err(error) = self.journal.make_anew(&mut self.store) {
            self.disk_failed(&error, now_ms);
        }
        let volatile = self.backlog.sealed().filter(|sealed| sealed.home == Home::MemoryOnly);
        for id in volatile.map(|sealed| sealed.row.id).collect::<Vec<_>>() {
            if !self.save_sealed(id, now_ms) {
                break;
            }
        }
        if let Some(active) = self.writer.active.take_if(|active| !active.on_disk) {
            self.save_active(active, now_ms);
        }
        self.save_journal();
        let lost = self.counts.corrupt_records - lost;
        tracing::error!(
            records = lost,
            "the queue's directory had gone away, and is made anew with what was in memory; the \
             others are in the ledger"
        );
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

    /// The open segment goes on in memory, and is written anew; what memory has not kept of it is
    /// lost.
    fn restore_active(&mut self) {
        let Some(active) = self.writer.active.take() else { return };
        if !active.on_disk || self.store.has_segment(active.row.id) {
            self.writer.active = Some(active);
            return;
        }
        self.store.abandon(active.row.id);
        self.writer.active = self.again(&active.row, &active.plans);
        if self.writer.active.is_none() {
            self.note_vanished(&active.row);
            self.writer.ring.remove(active.row.id);
        }
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

    /// A segment whose file is gone, and that was just closed.
    pub(super) fn close_gone(&mut self, row: &SegmentRow, plans: &[BatchPlan]) {
        tracing::error!(segment = row.id, "the file of the open segment has been removed");
        if let Some(Active { row, plans, unsaved, .. }) = self.again(row, plans) {
            let id = row.id;
            self.backlog.insert(Sealed::new(row, Some(plans), unsaved, Home::MemoryOnly));
            self.save_sealed(id, self.now_ms);
        } else {
            self.note_vanished(row);
            self.writer.ring.remove(row.id);
            self.save_journal();
        }
    }

    fn again(&mut self, row: &SegmentRow, plans: &[BatchPlan]) -> Option<Active> {
        let records = self.writer.ring.get(row.id)?.to_vec();
        let positions = self.journal.positions_of(row.id);
        let again = encode_again(self.queue_id(), (row, plans), &records, &positions)?;
        self.writer.ring.only_in_memory(row.id);
        Some(again)
    }
}
