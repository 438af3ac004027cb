//! Reading batches: from the ring when it still has their segment, else from the frames on disk.

use uuid::Uuid;

use super::{
    block::{self, FrameHead},
    ledger::{LossReason, NewLoss},
    log::{Batch, BatchKey, Log, Sealed, Unreadable, batch_id},
    salvage::Found,
    segment::{self, BatchPlan, SegmentRow},
    state,
    store::{Store, StoreError},
};

/// What is known of a segment on disk after it was searched for frames.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) segment: u64,
    /// The frames of whole blocks.
    pub(super) found: Vec<Found>,
}

/// How long a segment that cannot be read is left alone.
const UNREADABLE_RETRY_MS: i64 = 60_000;

impl<S: Store> Log<S> {
    /// The oldest batch that waits: neither delivered nor being sent, and due to be tried. It
    /// counts as being sent until [`Log::delivered`] or [`Log::put_back`]. A segment that the disk
    /// does not give is passed over for a while; the others go on.
    pub fn next_batch(&mut self, now_ms: i64) -> Option<Batch> {
        while let Some(key) = self.next_key(now_ms) {
            match self.read_batch(key) {
                Ok(batch) if batch.records.is_empty() => {
                    // Nothing of it can be read; the loss has been counted.
                    if let Err(error) = self.delivered(key, 0, &[]) {
                        tracing::warn!(%error, "an empty batch could not be put away");
                    }
                }
                Ok(batch) => {
                    if let Some(sealed) = self.sealed.get_mut(&key.segment) {
                        sealed.in_flight.insert(key.number);
                        sealed.unreadable = None;
                    }
                    return Some(batch);
                }
                Err(error) => self.pass_over(key.segment, &error, now_ms),
            }
        }
        None
    }

    fn pass_over(&mut self, id: u64, error: &StoreError, now_ms: i64) {
        let Some(sealed) = self.sealed.get_mut(&id) else { return };
        let retry_at_ms = now_ms.saturating_add(UNREADABLE_RETRY_MS);
        let known = sealed.unreadable.replace(Unreadable { error: error.to_string(), retry_at_ms });
        if known.is_none() {
            tracing::error!(segment = id, %error, "a segment cannot be read; the others go on");
        }
    }

    /// A batch with what can be read of its records, whether it waits or is delivered and kept; it
    /// does not count as being sent.
    pub fn read(&mut self, key: BatchKey) -> Result<Option<Batch>, StoreError> {
        let batch = self.read_batch(key)?;
        Ok(Some(batch).filter(|batch| !batch.records.is_empty()))
    }

    /// The batches of a closed segment.
    pub(super) fn plans(&mut self, id: u64) -> Result<Vec<BatchPlan>, StoreError> {
        if let Some(plans) = self.sealed.get(&id).and_then(|sealed| sealed.plans.as_ref()) {
            return Ok(plans.clone());
        }
        self.load_index(id)?;
        let found = self.index.as_ref().map_or(&[][..], |index| index.found.as_slice());
        if let Some(kept) = self.kept.get(&id) {
            return Ok(segment::plans_of(found, &kept.row.row));
        }
        let Some(sealed) = self.sealed.get_mut(&id) else { return Ok(Vec::new()) };
        let plans = segment::plans_of(found, &sealed.row);
        sealed.plans = Some(plans.clone());
        Ok(plans)
    }

    fn next_key(&self, now_ms: i64) -> Option<BatchKey> {
        let readable = |sealed: &&Sealed| {
            sealed.unreadable.as_ref().is_none_or(|known| known.retry_at_ms <= now_ms)
        };
        self.sealed.values().filter(readable).find_map(|sealed| {
            let waits = |n: &u32| {
                let due = sealed.attempts.get(n).is_none_or(|last| last.next_at_ms <= now_ms);
                due && !sealed.in_flight.contains(n)
            };
            let number = sealed.row.pending().find(waits)?;
            Some(BatchKey { segment: sealed.row.id, number })
        })
    }

    fn read_batch(&mut self, key: BatchKey) -> Result<Batch, StoreError> {
        let plan = self.plans(key.segment)?.into_iter().find(|plan| plan.number == key.number);
        let Some(plan) = plan else {
            return Ok(Batch { key, id: Uuid::nil(), records: Vec::new() });
        };
        let id = batch_id(self.queue_id, plan.origin);
        if let Some(held) = self.ring.get(key.segment) {
            let range = plan.first_seq..=plan.last_seq;
            let records = held.iter().filter(|r| range.contains(&r.seq)).cloned().collect();
            return Ok(Batch { key, id, records });
        }
        self.load_index(key.segment)?;
        let found = self.index.as_ref().map_or(&[][..], |index| index.found.as_slice());
        let of_batch: Vec<Found> =
            found.iter().filter(|frame| frame.head.batch == key.number).copied().collect();
        let frames = self.store.read(key.segment, &of_batch)?;
        let mut records = Vec::new();
        for (block, frames) in of_batch.chunk_by(same_block).zip(chunks(&of_batch, &frames)) {
            match block::decode(frames) {
                Ok(body) => records.extend(body.records),
                Err(damage) => self.note_damage(key.segment, block, damage),
            }
        }
        Ok(Batch { key, id, records })
    }

    /// Finds the frames of a segment on disk, and counts once what is missing of it.
    pub(super) fn load_index(&mut self, id: u64) -> Result<(), StoreError> {
        if self.index.as_ref().is_some_and(|index| index.segment == id) {
            return Ok(());
        }
        let waiting = self.sealed.get(&id).map(|sealed| &sealed.row);
        let row = waiting.or_else(|| self.kept.get(&id).map(|kept| &kept.row.row));
        let Some(row) = row.cloned() else { return Ok(()) };
        let mut found = self.store.frames(id)?.found;
        found.retain(|frame| frame.head.number < row.frames);
        // A block that lacks a part is as good as absent.
        let whole = found
            .chunk_by(same_block)
            .filter(|block| block.len() == usize::from(block[0].head.parts));
        let found = whole.collect::<Vec<_>>().concat();
        let readable: u64 = heads(&found).map(|head| u64::from(head.records)).sum();
        let missing = row.records.saturating_sub(readable);
        if missing > row.corrupt && self.sealed.contains_key(&id) {
            self.note_missing(&row, &found, missing - row.corrupt);
        }
        self.index = Some(Index { segment: id, found });
        Ok(())
    }

    /// Counts the records of a segment that are missing between its blocks, and tells the ledger.
    fn note_missing(&mut self, row: &SegmentRow, found: &[Found], missing: u64) {
        let gaps = gaps(row, found);
        let (delivered, lost): (Vec<&Gap>, Vec<&Gap>) = gaps
            .iter()
            .partition(|gap| (gap.batches.0..=gap.batches.1).all(|b| row.is_delivered(b)));
        let records = |gap: &Gap| {
            (gap.to - gap.from + 1).saturating_sub(self.ledger.known_in(gap.from, gap.to))
        };
        let harmless: u64 = delivered.into_iter().map(records).sum();
        let missing = missing.saturating_sub(harmless);
        let mut losses: Vec<((u64, u64), u64)> =
            lost.iter().map(|gap| ((gap.from, gap.to), records(gap))).collect();
        if losses.iter().map(|(_, records)| records).sum::<u64>() != missing {
            // Thinning had taken some of them: the range is known, and how many, but not which.
            let from = lost.first().map_or(row.first_seq, |gap| gap.from);
            let to = lost.last().map_or(row.end_seq.saturating_sub(1), |gap| gap.to);
            losses = vec![((from, to), missing)];
        }
        if let Some(sealed) = self.sealed.get_mut(&row.id) {
            sealed.row.corrupt += harmless;
        }
        for (range, records) in losses.into_iter().filter(|(_, records)| *records > 0) {
            self.note_corrupt(row.id, range, records);
        }
    }

    fn note_damage(&mut self, id: u64, block: &[Found], damage: block::Damage) {
        let Some(head) = block.first().map(|frame| frame.head) else { return };
        tracing::error!(segment = id, %damage, "a block cannot be read");
        let (from, records) = (head.first_seq, u64::from(head.records));
        self.note_corrupt(id, (from, (from + records).saturating_sub(1)), records);
        if let Some(index) = self.index.as_mut().filter(|index| index.segment == id) {
            index.found.retain(|frame| frame.head.first_seq != from);
        }
    }

    /// Writes a loss by damage to the ledger, with the row that says that it is there.
    fn note_corrupt(&mut self, id: u64, range: (u64, u64), records: u64) {
        let Some(sealed) = self.sealed.get_mut(&id) else { return };
        sealed.damaged = true;
        sealed.row.corrupt += records;
        let (row, time_ms) = (sealed.row.clone(), sealed.row.window_ms);
        self.counts.corrupt_records += records;
        self.note_loss(NewLoss { range, records, reason: LossReason::Corrupt, time_ms });
        let (from, to) = range;
        tracing::error!(
            segment = id,
            records,
            from,
            to,
            "records lost: damaged on disk; the segment will be kept in quarantine/"
        );
        if let Err(error) = self.put(vec![state::segment_row(&row)]) {
            tracing::warn!(%error, "the ledger of lost records stays in memory for now");
        }
    }
}

/// The heads of whole blocks.
fn heads(found: &[Found]) -> impl Iterator<Item = &FrameHead> {
    found.iter().map(|frame| &frame.head).filter(|head| head.part == 0)
}

/// A place where frames are missing.
pub(super) struct Gap {
    /// The first sequence number.
    pub(super) from: u64,
    /// The last sequence number.
    pub(super) to: u64,
    /// The batches that the records may belong to, both ends included.
    pub(super) batches: (u32, u32),
}

/// Where frames are missing between the blocks that were found.
pub(super) fn gaps(row: &SegmentRow, found: &[Found]) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let (mut number, mut seq, mut batch) = (0, row.first_seq, 0);
    let mut gap = |from: u64, until: u64, batches| {
        if from < until {
            gaps.push(Gap { from, to: until - 1, batches });
        }
    };
    for head in heads(found) {
        if head.number > number {
            gap(seq, head.first_seq, (batch, head.batch));
        }
        number = head.number + u64::from(head.parts);
        seq = head.first_seq.saturating_add(u64::from(head.records));
        batch = head.batch;
    }
    if number < row.frames {
        gap(seq, row.end_seq, (batch, row.batches.saturating_sub(1)));
    }
    gaps
}

/// Whether two neighbouring frames are parts of one block.
pub(super) fn same_block(a: &Found, b: &Found) -> bool {
    b.head.part > 0 && b.head.part == a.head.part + 1 && b.head.first_seq == a.head.first_seq
}

/// `frames`, cut where the blocks of `found` end.
fn chunks<'a>(found: &[Found], frames: &'a [Vec<u8>]) -> impl Iterator<Item = &'a [Vec<u8>]> {
    let mut rest = frames;
    let lengths: Vec<usize> = found.chunk_by(same_block).map(<[Found]>::len).collect();
    lengths.into_iter().map(move |length| {
        let (chunk, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        chunk
    })
}
