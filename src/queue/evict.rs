//! Keeping the queue within its budget: what goes when there is no room, and how the ledger knows
//! it first.

use super::{
    budget::OnFull,
    ledger::{LossReason, NewLoss},
    log::{Log, LogLimits},
    ring::Home,
    segment::SegmentRow,
    store::Store,
};

/// What is freed at least when the file system is low, so that tiny segments do not evict one
/// another at every window.
const FREED_MIN_BYTES: u64 = 64 << 10;

impl<S: Store> Log<S> {
    /// Takes other limits. A budget that has become too small is met when the next segment begins;
    /// the segment that is being written ends by the old limits or the new, whichever come first.
    pub fn change_limits(&mut self, limits: LogLimits) {
        self.limits = limits;
        self.reserve_bytes = limits.reserve_bytes();
        self.store.set_reserve(self.reserve_bytes);
        self.ring.set_bytes_max(limits.ring_bytes_max);
    }

    /// Whether an append is to be taken: not when the queue is full and `on_full` is `block`.
    pub fn takes_records(&mut self, now_ms: i64) -> bool {
        self.now_ms = now_ms;
        self.limits.budget.on_full != OnFull::Block || self.has_room()
    }

    /// Whether an append would be taken: always, unless the queue is full and `on_full` says that
    /// it is the new that goes or waits.
    pub(super) fn has_room(&mut self) -> bool {
        if self.active.is_some() || self.disk.error.is_some() {
            return true;
        }
        let wanted = self.usage().saturating_add(self.reserve_bytes);
        let mut over = wanted > self.limits.budget.bytes_max || self.is_low();
        while over && self.drop_not_waiting() {
            let wanted = self.usage().saturating_add(self.reserve_bytes);
            over = wanted > self.limits.budget.bytes_max || self.is_low();
        }
        !over
    }

    /// Bytes on disk of everything that the budget counts.
    pub fn usage(&self) -> u64 {
        let sealed: u64 = self.sealed.values().map(|sealed| self.sealed_disk_bytes(sealed)).sum();
        let active = self.active.as_ref().map_or(0, |active| self.store.disk_bytes(active.row.id));
        sealed + active + self.kept_bytes() + self.store.aside_bytes()
    }

    /// Evicts until a new segment fits, as far as there is something to evict.
    pub(super) fn make_room(&mut self) {
        let budget = self.limits.budget;
        if matches!(budget.on_full, OnFull::Block | OnFull::EvictNewest) {
            return; // whoever appends has asked `has_room`
        }
        while self.usage().saturating_add(self.reserve_bytes) > budget.bytes_max {
            if self.evict_oldest() == 0 {
                break;
            }
        }
        if self.is_low() {
            let last = self.sealed.values().next_back();
            let wanted = last.map_or(0, |sealed| self.sealed_disk_bytes(sealed));
            let mut freed = 0;
            while freed < wanted.max(FREED_MIN_BYTES) {
                match self.evict_oldest() {
                    0 => break,
                    bytes => freed += bytes,
                }
            }
        }
    }

    /// Evicts what is older than `age_max`.
    pub(super) fn evict_old(&mut self) {
        let Some(age_max) = self.limits.budget.age_max else { return };
        let age_max = i64::try_from(age_max.as_millis()).unwrap_or(i64::MAX);
        let limit = self.now_ms.saturating_sub(age_max);
        while let Some(sealed) = self.sealed.values().next() {
            let (id, idle) = (sealed.row.id, sealed.in_flight.is_empty());
            if sealed.row.window_ms.1 >= limit || !idle || !self.evict_segment(id) {
                return;
            }
        }
    }

    /// Evicts the oldest records that are only in memory, when there are more than it may hold.
    pub(super) fn evict_over_memory(&mut self) {
        while self.ring.volatile_bytes() > self.limits.volatile_bytes_max {
            let oldest = self.sealed.values().find(|sealed| sealed.home == Home::MemoryOnly);
            if let Some(id) = oldest.map(|sealed| sealed.row.id) {
                let losses = self.pending_losses(id);
                self.note_evicted(id, &losses, "the disk does not take them, the memory is full");
                self.forget(id);
            } else if let Some(active) = self.active.take() {
                self.ring.remove(active.row.id);
                let losses = [whole(&active.row)];
                self.note_evicted(active.row.id, &losses, "the memory for them is full");
            } else {
                return;
            }
        }
    }

    /// The records of a segment that are not delivered, batch by batch.
    pub(super) fn pending_losses(&mut self, id: u64) -> Vec<NewLoss> {
        let plans = self.plans(id);
        let Some(sealed) = self.sealed.get(&id) else { return Vec::new() };
        let Ok(plans) = plans else { return vec![whole(&sealed.row)] };
        let pending = plans.iter().filter(|plan| !sealed.row.is_delivered(plan.number));
        let loss = |plan: &super::segment::BatchPlan| NewLoss {
            range: (plan.first_seq, plan.last_seq),
            records: plan.records,
            reason: LossReason::Evict,
            time_ms: plan.window_ms,
        };
        pending.map(loss).collect()
    }

    /// Evicts one segment: what waits for nobody first, then the oldest of which nothing is being
    /// sent. Returns the bytes freed; 0 when there is none.
    fn evict_oldest(&mut self) -> u64 {
        let before = self.usage();
        if self.drop_not_waiting() {
            return before.saturating_sub(self.usage()).max(1);
        }
        let idle =
            |sealed: &&super::log::Sealed| sealed.home == Home::Disk && sealed.in_flight.is_empty();
        let Some(id) = self.sealed.values().find(idle).map(|sealed| sealed.row.id) else {
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
        self.kept.keys().next().copied().is_some_and(|id| self.drop_kept(id))
            || self.store.drop_quarantined().unwrap_or_else(|error| {
                tracing::warn!(%error, "nothing can be removed from quarantine now");
                false
            })
    }

    /// The ledger's entries and the row that says "nothing left to deliver" become durable
    /// together, then the segment goes. `false` when the disk does not take them.
    fn evict_segment(&mut self, id: u64) -> bool {
        let losses = self.pending_losses(id);
        let Some(sealed) = self.sealed.get(&id) else { return false };
        let mut row = sealed.row.clone();
        (0..row.batches).for_each(|batch| row.deliver(batch));
        let before = self.ledger.clone();
        for loss in &losses {
            self.ledger.note(*loss, self.now_ms);
        }
        if let Err(error) = self.put_sealed(&row) {
            self.ledger = before;
            tracing::warn!(segment = id, %error, "a segment cannot be evicted now");
            return false;
        }
        let records = losses.iter().map(|loss| loss.records).sum::<u64>();
        self.counts.evicted_records += records;
        tracing::error!(segment = id, records, "records lost: the queue is full or they are old");
        if let Err(error) = self.remove_segment(id) {
            tracing::warn!(segment = id, %error, "an evicted segment is removed at the next start");
        }
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

    fn is_low(&self) -> bool {
        let budget = self.limits.budget;
        budget.disk_free_min_percent > 0
            && self.store.space().is_some_and(|space| budget.is_low(space))
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
