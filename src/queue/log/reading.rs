//! Reading batches: from the ring when it still has their segment, else from the frames on disk.

use std::{collections::BTreeSet, sync::Arc};

use uuid::Uuid;

use super::{
    Batch, BatchKey, Log,
    backlog::{Sealed, Unreadable},
    batch_id,
    index::{Gap, Index},
    ledger::NewLoss,
    ring::Home,
};
use crate::queue::{
    LossReason,
    format::{
        block::{self, Codec, Damage},
        group::{self, GroupBatch},
        record::Record,
        rows,
        salvage::Found,
        segment::{BatchPlan, SegmentRow},
    },
    store::{
        StoreError,
        disk::{ReadDisk, WriteDisk},
    },
};

/// Nobody waits longer than this for another try: one that is due later was set before the clock
/// was put back.
const WAIT_MAX_MS: i64 = 2 * 3_600_000;

/// Whether a time has come, on a clock that may have been put back.
fn is_due(at_ms: i64, now_ms: i64) -> bool {
    at_ms <= now_ms || at_ms.saturating_sub(now_ms) > WAIT_MAX_MS
}

/// How long a segment that cannot be read is left alone.
const UNREADABLE_RETRY_MS: i64 = 60_000;

/// Which of the batches that wait comes next.
///
/// A *fresh* segment is one that this process has closed and that is still in the ring, or that is
/// the newest one, if the ring is too small for it. The others are the *backlog*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// The oldest one.
    Oldest,
    /// The first of the newest fresh segment; without one the oldest of the backlog.
    FreshFirst,
    /// The first of the newest fresh segment, if there is one.
    FreshOnly,
}

/// A batch that was picked, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picked {
    /// The queue that gave its records their numbers.
    pub queue_id: Uuid,
    /// The batch.
    pub batch: Batch,
    /// Whether it is fresh; see [`Pick`].
    pub lane: Lane,
}

/// Where a batch waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// In a fresh segment.
    Fresh,
    /// In another one.
    Backlog,
}

impl<D: WriteDisk> Log<D> {
    /// The oldest batch that waits; see [`Log::pick_batch`].
    pub fn next_batch(&mut self, now_ms: i64) -> Option<Batch> {
        self.pick_batch(Pick::Oldest, now_ms).map(|picked| picked.batch)
    }

    /// A batch that waits: neither delivered nor being sent, and due to be tried. It counts as
    /// being sent until [`Log::delivered`] or [`Log::put_back`]. A segment that the disk does not
    /// give is passed over for a while; the others go on.
    ///
    /// What it costs grows with the batches that are being sent or wait for another try, not with
    /// the backlog.
    pub fn pick_batch(&mut self, pick: Pick, now_ms: i64) -> Option<Picked> {
        // What is passed over is not asked twice in one call, whatever the clock says.
        let mut passed = BTreeSet::new();
        while let Some(key) = self.next_key(pick, now_ms, &passed) {
            let damaged = self.counts.corrupt_records;
            let read = self.read_batch(key);
            if self.counts.corrupt_records > damaged {
                self.save_journal(); // the ledger knows before what is left of the batch goes
            }
            match read {
                Ok(batch) if batch.records.is_empty() => {
                    // Nothing of it can be read; the loss has been counted.
                    if let Err(error) = self.delivered(key, 0, &[]) {
                        tracing::warn!(%error, "an empty batch could not be put away");
                    }
                }
                Ok(batch) => {
                    let is_fresh = self.is_fresh(key.segment);
                    if let Some(sealed) = self.backlog.get_mut(key.segment) {
                        sealed.in_flight.insert(key.number);
                        sealed.unreadable = None;
                    }
                    let lane = if is_fresh { Lane::Fresh } else { Lane::Backlog };
                    return Some(Picked { queue_id: self.queue_id(), batch, lane });
                }
                Err(error) => {
                    passed.insert(key.segment);
                    self.pass_over(key.segment, &error, now_ms);
                }
            }
        }
        None
    }

    /// Batches whose every block is damaged are in the ledger: they do not wait beside that, when
    /// nobody comes to send them any more.
    pub(super) fn put_away_lost(&mut self) {
        let damaged = self.backlog.sealed().filter(|sealed| sealed.damaged);
        for id in damaged.map(|sealed| sealed.row.id).collect::<Vec<_>>() {
            let Ok(plans) = self.plans(id) else { continue };
            let Some(sealed) = self.backlog.get(id) else { continue };
            let is_lost = |number: &u32| plans.iter().all(|plan| plan.number != *number);
            for number in sealed.row.pending().filter(is_lost).collect::<Vec<_>>() {
                if let Err(error) = self.delivered(BatchKey { segment: id, number }, 0, &[]) {
                    tracing::warn!(%error, "an empty batch could not be put away");
                }
            }
        }
    }

    fn pass_over(&mut self, id: u64, error: &StoreError, now_ms: i64) {
        let Some(sealed) = self.backlog.get_mut(id) else { return };
        let retry_at_ms = now_ms.saturating_add(UNREADABLE_RETRY_MS);
        let known = sealed.unreadable.replace(Unreadable { error: error.to_string(), retry_at_ms });
        if known.is_none() {
            tracing::error!(segment = id, %error, "a segment cannot be read; the others go on");
        }
    }
}

impl<D: ReadDisk> Log<D> {
    /// A batch with what can be read of its records, whether it waits or is delivered and kept; it
    /// does not count as being sent.
    pub fn read(&mut self, key: BatchKey) -> Result<Option<Batch>, StoreError> {
        let batch = self.read_batch(key)?;
        Ok(Some(batch).filter(|batch| !batch.records.is_empty()))
    }

    /// The batches of a closed segment.
    pub(super) fn plans(&mut self, id: u64) -> Result<Arc<[BatchPlan]>, StoreError> {
        if let Some(plans) = self.backlog.get(id).and_then(|sealed| sealed.plans.as_ref()) {
            return Ok(Arc::clone(plans));
        }
        self.load_index(id)?;
        Ok(self.index.as_ref().map_or_else(|| Arc::from([]), |index| Arc::clone(&index.plans)))
    }

    /// The next batch of what waits, but for the segments in `passed`.
    fn next_key(&self, pick: Pick, now_ms: i64, passed: &BTreeSet<u64>) -> Option<BatchKey> {
        let waiting = |sealed: &Sealed| {
            if passed.contains(&sealed.row.id) {
                return None;
            }
            if sealed.unreadable.as_ref().is_some_and(|known| !is_due(known.retry_at_ms, now_ms)) {
                return None;
            }
            // Delivered, and the process killed: the key of a request would be known to nobody, and
            // the request, sent again, would be stored twice.
            if sealed.home == Home::MemoryOnly && self.journal.has_passing_of(sealed.row.id) {
                return None;
            }
            let waits = |n: &u32| {
                let due = sealed.attempts.get(n).is_none_or(|last| is_due(last.next_at_ms, now_ms));
                due && !sealed.in_flight.contains(n)
            };
            let number = sealed.row.pending().find(waits)?;
            Some(BatchKey { segment: sealed.row.id, number })
        };
        let fresh = || self.fresh().find_map(waiting);
        let oldest = || self.backlog.sealed().find_map(waiting);
        match pick {
            Pick::Oldest => oldest(),
            Pick::FreshFirst => fresh().or_else(oldest),
            Pick::FreshOnly => fresh(),
        }
    }

    /// The fresh segments, the newest first.
    fn fresh(&self) -> impl Iterator<Item = &Sealed> {
        let ring = &self.writer.ring;
        let newest = self.backlog.newest_closed().filter(|id| ring.get(*id).is_none());
        newest.into_iter().chain(ring.newest_first()).filter_map(|id| self.backlog.get(id))
    }

    fn is_fresh(&self, segment: u64) -> bool {
        self.backlog.newest_closed() == Some(segment) || self.writer.ring.get(segment).is_some()
    }

    fn read_batch(&mut self, key: BatchKey) -> Result<Batch, StoreError> {
        let plans = self.plans(key.segment)?;
        let Some(plan) = plans.iter().find(|plan| plan.number == key.number) else {
            return Ok(Batch { key, id: Uuid::nil(), records: Vec::new() });
        };
        let batch = |queue_id, records: Vec<Record>| Batch {
            key,
            id: batch_id::of_read(queue_id, plan, &records),
            records,
        };
        if let Some(held) = self.writer.ring.get(key.segment) {
            let range = plan.first_seq..=plan.last_seq;
            let records = held.iter().filter(|r| range.contains(&r.seq)).cloned().collect();
            return Ok(batch(self.queue_id(), records));
        }
        self.load_index(key.segment)?;
        let blocks = self.index.as_ref().map_or_else(Vec::new, |index| index.blocks_of(key.number));
        let mut records = Vec::new();
        for block in blocks {
            match self.read_block(key.segment, &block)? {
                Ok(Unpacked::Records(own)) => records.extend(own),
                Ok(Unpacked::Group(batches)) => {
                    let own = batches.iter().filter(|batch| batch.origin == plan.origin);
                    records.extend(own.flat_map(|batch| &batch.records).cloned());
                }
                Err(damage) => self.note_damage(key.segment, &block, damage),
            }
        }
        Ok(batch(self.queue_id(), records))
    }

    /// Unpacks a block; of groups, the last one is kept, because its batches are read in turn.
    fn read_block(
        &mut self,
        id: u64,
        block: &[Found],
    ) -> Result<Result<Unpacked, Damage>, StoreError> {
        let Some(first) = block.first().map(|frame| frame.head) else {
            return Ok(Err(Damage::Body));
        };
        if let Some((number, group)) = self.index.as_ref().and_then(|index| index.unpacked.as_ref())
            && *number == first.number
        {
            return Ok(Ok(Unpacked::Group(Arc::clone(group))));
        }
        let frames = self.store.read(id, block)?;
        if first.codec == Codec::Records {
            return Ok(block::decode(&frames).map(|body| Unpacked::Records(body.records)));
        }
        let batches = match group::decode(&frames) {
            Ok((batches, _)) => Arc::<[GroupBatch]>::from(batches),
            Err(damage) => return Ok(Err(damage)),
        };
        if let Some(index) = self.index.as_mut().filter(|index| index.segment == id) {
            index.unpacked = Some((first.number, Arc::clone(&batches)));
        }
        Ok(Ok(Unpacked::Group(batches)))
    }

    /// Finds the frames of a segment on disk, and counts once what is missing of it.
    pub(super) fn load_index(&mut self, id: u64) -> Result<(), StoreError> {
        if self.index.as_ref().is_some_and(|index| index.segment == id) {
            return Ok(());
        }
        let Some(row) = self.backlog.row(id).cloned() else { return Ok(()) };
        let index = Index::of(self.store.frames_of_row(id)?, &row);
        let missing = row.records.saturating_sub(index.records());
        if missing > row.corrupt && self.backlog.get(id).is_some() {
            self.note_missing(&row, &index, missing - row.corrupt);
        }
        self.index = Some(index);
        Ok(())
    }

    /// Counts `missing` records that a segment has lost since it was read last, by the gaps between
    /// its blocks, and tells the ledger of those that were not delivered.
    fn note_missing(&mut self, row: &SegmentRow, index: &Index, missing: u64) {
        let is_lost = |gap: &Gap| !(gap.batches.0..=gap.batches.1).all(|b| row.is_delivered(b));
        let (gaps, all_missing) = (index.gaps(row), row.records.saturating_sub(index.records()));
        let in_gaps: u64 = gaps.iter().map(|gap| gap.to - gap.from + 1).sum();
        // The frames that are there may follow each other, and lack some all the same.
        let gaps = if in_gaps < all_missing { index.holes(row) } else { gaps };
        let gaps = gaps.into_iter().filter(is_lost);
        let unknown = |gap: Gap| {
            let known = self.journal.ledger().known_in(gap.from, gap.to);
            ((gap.from, gap.to), (gap.to - gap.from + 1).saturating_sub(known))
        };
        let mut losses: Vec<((u64, u64), u64)> = gaps.map(unknown).collect();
        let counted = losses.iter().map(|(_, records)| records).sum::<u64>();
        if (row.thinned > 0 || counted > missing)
            && let (Some(first), Some(last)) = (losses.first(), losses.last())
        {
            // The range is known, and how many, but not which: thinning had taken some of them.
            losses = vec![((first.0.0, last.0.1), missing)];
        }
        let lost: u64 = losses.iter().map(|(_, records)| records).sum();
        if let Some(sealed) = self.backlog.get_mut(row.id) {
            sealed.row.corrupt += missing.saturating_sub(lost);
        }
        for (range, records) in losses.into_iter().filter(|(_, records)| *records > 0) {
            self.note_corrupt(row.id, range, records);
        }
    }

    fn note_damage(&mut self, id: u64, block: &[Found], damage: Damage) {
        let Some(head) = block.first().map(|frame| frame.head) else { return };
        tracing::error!(segment = id, %damage, "a block cannot be read");
        let Some(index) = self.index.as_mut().filter(|index| index.segment == id) else { return };
        let losses = index.drop_block(&head);
        for (range, records) in losses {
            self.note_corrupt(id, range, records);
        }
    }

    /// Notes a loss by damage, and the row that says that it is there, for the next write.
    fn note_corrupt(&mut self, id: u64, range: (u64, u64), records: u64) {
        let Some(sealed) = self.backlog.get_mut(id) else { return };
        sealed.damaged = true;
        sealed.row.corrupt += records;
        let (row, time_ms) = (rows::segment_row(&sealed.row), sealed.row.window_ms);
        self.counts.corrupt_records += records;
        self.note_loss(NewLoss { range, records, reason: LossReason::Corrupt, time_ms });
        self.journal.later(row);
        let (from, to) = range;
        tracing::error!(
            segment = id,
            records,
            from,
            to,
            "records lost: damaged on disk; the segment will be kept in quarantine/"
        );
    }
}

/// What a block holds.
enum Unpacked {
    Records(Vec<Record>),
    Group(Arc<[GroupBatch]>),
}
