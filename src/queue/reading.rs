//! Reading batches: from the ring when it still has their segment, else from the frames on disk.

use super::{
    block,
    log::{Batch, BatchKey, Log, Sealed, Unreadable, batch_id},
    record::Record,
    salvage::Found,
    segment::{self, BatchPlan},
    store::{Store, StoreError},
};

/// How long a segment that cannot be read is left alone.
const UNREADABLE_RETRY_MS: i64 = 60_000;

impl<S: Store> Log<S> {
    /// The oldest batch that waits: neither delivered nor being sent, and due to be tried. It
    /// counts as being sent until [`Log::delivered`] or [`Log::put_back`]. A segment that the disk
    /// does not give is passed over for a while; the others go on.
    pub fn next_batch(&mut self, now_ms: i64) -> Option<Batch> {
        while let Some(key) = self.next_key(now_ms) {
            match self.read_batch(key) {
                Ok(records) if records.is_empty() => {
                    // Nothing of it can be read; the loss has been counted.
                    if let Err(error) = self.delivered(key, 0, &[]) {
                        tracing::warn!(%error, "an empty batch could not be put away");
                    }
                }
                Ok(records) => {
                    if let Some(sealed) = self.sealed.get_mut(&key.segment) {
                        sealed.in_flight.insert(key.number);
                        sealed.unreadable = None;
                    }
                    return Some(Batch { key, id: batch_id(self.queue_id, key), records });
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

    /// The batches of a closed segment.
    pub(super) fn plans(&mut self, id: u64) -> Result<Vec<BatchPlan>, StoreError> {
        let Some(sealed) = self.sealed.get(&id) else { return Ok(Vec::new()) };
        if let Some(plans) = &sealed.plans {
            return Ok(plans.clone());
        }
        self.load_index(id)?;
        let found = self.index.as_ref().map_or(&[][..], |(_, found)| found.as_slice());
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

    fn read_batch(&mut self, key: BatchKey) -> Result<Vec<Record>, StoreError> {
        let plan = self.plans(key.segment)?.into_iter().find(|plan| plan.number == key.number);
        let Some(plan) = plan else { return Ok(Vec::new()) };
        if let Some(held) = self.ring.get(key.segment) {
            let range = plan.first_seq..plan.first_seq + plan.records;
            return Ok(held.iter().filter(|r| range.contains(&r.seq)).cloned().collect());
        }
        self.load_index(key.segment)?;
        let found = self.index.as_ref().map_or(&[][..], |(_, found)| found.as_slice());
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
        Ok(records)
    }

    /// Finds the frames of a segment on disk, and counts once what is missing of it.
    fn load_index(&mut self, id: u64) -> Result<(), StoreError> {
        if self.index.as_ref().is_some_and(|(indexed, _)| *indexed == id) {
            return Ok(());
        }
        let mut found = self.store.frames(id)?.found;
        let Some(sealed) = self.sealed.get_mut(&id) else { return Ok(()) };
        found.retain(|frame| frame.head.number < sealed.row.frames);
        // A block that lacks a part is as good as absent.
        let whole: Vec<&[Found]> = found
            .chunk_by(same_block)
            .filter(|block| block.len() == usize::from(block[0].head.parts))
            .collect();
        let readable: u64 = whole.iter().map(|block| u64::from(block[0].head.records)).sum();
        let missing = sealed.row.records.saturating_sub(readable);
        if missing > 0 && !sealed.damaged {
            sealed.damaged = true;
            self.counts.corrupt_records += missing;
            tracing::error!(
                segment = id,
                missing,
                records = sealed.row.records,
                "records lost: damaged on disk; the segment will be kept in quarantine/"
            );
        }
        self.index = Some((id, whole.concat()));
        Ok(())
    }

    fn note_damage(&mut self, id: u64, block: &[Found], damage: block::Damage) {
        let records = block.first().map_or(0, |frame| u64::from(frame.head.records));
        if let Some(sealed) = self.sealed.get_mut(&id) {
            sealed.damaged = true;
        }
        self.counts.corrupt_records += records;
        tracing::error!(segment = id, records, %damage, "records lost: damaged on disk");
    }
}

/// Whether two neighbouring frames are parts of one block.
fn same_block(a: &Found, b: &Found) -> bool {
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
