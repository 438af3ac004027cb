//! Keeping the queue within its budget: what goes when there is no room, and how the ledger knows
//! it first.

use super::{Log, LogLimits, backlog::Sealed, ledger::NewLoss, ring::Home};
use crate::queue::{
    LossReason,
    budget::OnFull,
    format::segment::{BatchPlan, SegmentRow},
    store::disk::{ReadDisk, WriteDisk},
};

/// What is freed at least when the file system is low, so that tiny segments do not evict one
/// another at every window.
const FREED_MIN_BYTES: u64 = 64 << 10;

impl<D: ReadDisk> Log<D> {
    /// Bytes on disk of everything that the budget counts.
    pub fn usage(&self) -> u64 {
        let active = self.writer.active.as_ref();
        let active = active.map_or(0, |active| self.store.disk_bytes(active.row.id));
        let closed = self.backlog.sealed_bytes(&self.store) + self.backlog.kept_bytes(&self.store);
        closed + active + self.store.aside_bytes()
    }

    /// The records of a segment that are not delivered, batch by batch.
    pub(super) fn pending_losses(&mut self, id: u64) -> Vec<NewLoss> {
        let plans = self.plans(id);
        let Some(sealed) = self.backlog.get(id) else { return Vec::new() };
        let Ok(plans) = plans else { return vec![whole(&sealed.row)] };
        let pending = plans.iter().filter(|plan| !sealed.row.is_delivered(plan.number));
        let loss = |plan: &BatchPlan| NewLoss {
            range: (plan.first_seq, plan.last_seq),
            records: plan.records,
            reason: LossReason::Evict,
            time_ms: plan.window_ms,
        };
        pending.map(loss).collect()
    }

    fn is_low(&self) -> bool {
        let budget = self.limits.budget;
        budget.disk_free_min_percent > 0
            && self.store.space().is_some_and(|space| budget.is_low(space))
    }

    /// Whether what is there, and `bytes` more, is more than the budget has.
    pub(super) fn is_over(&self, bytes: u64) -> bool {
        self.usage().saturating_add(bytes) > self.limits.budget.bytes_max
    }
}

impl<D: WriteDisk> Log<D> {
    /// Takes other limits. A budget that has become too small is met when the next segment begins;
    /// the segment that is being written ends by the old limits or the new, whichever come first.
    pub fn change_limits(&mut self, limits: LogLimits) {
        self.limits = limits;
        self.writer.reserve_bytes = limits.reserve_bytes();
        self.store.set_reserve(self.writer.reserve_bytes);
        self.writer.ring.set_bytes_max(limits.ring_bytes_max);
    }

    /// Whether an append is to be taken: not when the queue is full and `on_full` is `block`.
    pub fn takes_records(&mut self, now_ms: i64) -> bool {
        self.make_ready(now_ms);
        self.limits.budget.on_full != OnFull::Block || self.has_room()
    }

    /// Whether an append would be evicted at once: the queue is full, and the newest go.
    pub fn would_evict(&mut self, now_ms: i64) -> bool {
        self.make_ready(now_ms);
        self.limits.budget.on_full == OnFull::EvictNewest && !self.has_room()
    }

    /// Whether an append would be taken: always, unless the queue is full and `on_full` says that
    /// it is the new that goes or waits.
    pub(super) fn has_room(&mut self) -> bool {
        if self.writer.active.is_some() || self.disk_error().is_some() {
            return true;
        }
        let is_full = |log: &Self| log.is_over(log.writer.reserve_bytes) || log.is_low();
        while is_full(self) {
            if !self.drop_not_waiting() {
                return false;
            }
        }
        true
    }

    /// Thins, or evicts, until a new segment fits, as far as there is something to take.
    pub(super) fn make_room(&mut self) {
        let budget = self.limits.budget;
        if matches!(budget.on_full, OnFull::Block | OnFull::EvictNewest) {
            return; // whoever appends has asked `has_room`
        }
        while self.is_over(self.writer.reserve_bytes) {
            let thinned = budget.on_full == OnFull::Thin && self.thin_now();
            if !thinned && self.evict_oldest() == 0 {
                break;
            }
        }
        if self.is_low() {
            let last = self.backlog.sealed().next_back();
            let wanted = last.map_or(0, |sealed| sealed.disk_bytes(&self.store));
            let mut freed = 0;
            while freed < wanted.max(FREED_MIN_BYTES) {
                match self.evict_oldest() {
                    0 => break,
                    bytes => freed += bytes,
                }
            }
        }
    }

    /// Evicts what is older than `age_max`, by the queue's own clock.
    pub(super) fn evict_old(&mut self) {
        let Some(age_max) = self.limits.budget.age_max else { return };
        let age_max = i64::try_from(age_max.as_millis()).unwrap_or(i64::MAX);
        let limit = self.age_ms.saturating_sub(age_max);
        loop {
            let oldest = self.backlog.sealed().find(|sealed| !sealed.row.is_done());
            let old = oldest.filter(|s| s.row.window_ms.1 < limit && s.in_flight.is_empty());
            let Some(id) = old.map(|sealed| sealed.row.id) else { return };
            if !self.evict_segment(id) {
                return;
            }
        }
    }

    /// Evicts the oldest records that are only in memory, when there are more than it may hold.
    pub(super) fn evict_over_memory(&mut self) {
        while self.writer.ring.volatile_bytes() > self.limits.volatile_bytes_max {
            let oldest = self.backlog.sealed().find(|sealed| sealed.home == Home::MemoryOnly);
            if let Some(id) = oldest.map(|sealed| sealed.row.id) {
                let losses = self.pending_losses(id);
                self.note_evicted(id, &losses, "the disk does not take them, the memory is full");
                self.forget(id);
                self.journal.forget_passing_of(id);
            } else if let Some(active) = self.writer.active.take() {
                self.writer.ring.remove(active.row.id);
                self.journal.forget_passing_of(active.row.id);
                let losses = [whole(&active.row)];
                self.note_evicted(active.row.id, &losses, "the memory for them is full");
            } else {
                return;
            }
        }
    }

    /// Evicts one segment: what waits for nobody first, then the oldest of which nothing is being
    /// sent. Returns the bytes freed; 0 when there is none.
    fn evict_oldest(&mut self) -> u64 {
        let before = self.usage();
        if self.drop_not_waiting() {
            return before.saturating_sub(self.usage()).max(1);
        }
        let idle = |sealed: &&Sealed| {
            sealed.home == Home::Disk && sealed.in_flight.is_empty() && !sealed.row.is_done()
        };
        let Some(id) = self.backlog.sealed().find(idle).map(|sealed| sealed.row.id) else {
            return 0;
        };
        if !self.evict_segment(id) {
            return 0;
        }
        before.saturating_sub(self.usage()).max(1)
    }

    /// Drops the oldest of what is delivered and kept, else of the quarantine, whose losses have
    /// been counted and whose readable rest has been sent.
    fn drop_not_waiting(&mut self) -> bool {
        let oldest = self.backlog.kept().next().map(|kept| kept.row.row.id);
        oldest.is_some_and(|id| self.drop_kept(id))
            || self.store.drop_quarantined().unwrap_or_else(|error| {
                tracing::warn!(%error, "nothing can be removed from quarantine now");
                false
            })
    }

    /// The ledger's entries and the row that says "nothing left to deliver" become durable
    /// together, then the segment goes. `false` when the disk does not take them.
    fn evict_segment(&mut self, id: u64) -> bool {
        let losses = self.pending_losses(id);
        let Some(sealed) = self.backlog.get(id) else { return false };
        let mut row = sealed.row.clone();
        (0..row.batches).for_each(|batch| row.deliver(batch));
        let put = self.journal.put_sealed(&mut self.store, &row, (&losses, self.now_ms));
        if let Err(error) = put {
            tracing::warn!(segment = id, %error, "a segment cannot be evicted now");
            return false;
        }
        let records = losses.iter().map(|loss| loss.records).sum::<u64>();
        self.counts.evicted_records += records;
        tracing::error!(segment = id, records, "records lost: the queue is full or they are old");
        self.remove_segment(id);
        true
    }

    fn note_evicted(&mut self, id: u64, losses: &[NewLoss], why: &str) {
        for loss in losses {
            self.note_loss(*loss);
        }
        let records = losses.iter().map(|loss| loss.records).sum::<u64>();
        self.counts.evicted_records += records;
        tracing::error!(segment = id, records, why, "records lost");
    }
}

/// All records of a segment.
fn whole(row: &SegmentRow) -> NewLoss {
    NewLoss {
        range: (row.first_seq, row.end_seq.saturating_sub(1)),
        records: row.records,
        reason: LossReason::Evict,
        time_ms: row.window_ms,
    }
}

#[cfg(test)]
mod tests;
