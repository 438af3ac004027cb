//! What the queue remembers of a segment: counts, batches, and which of them are delivered.

use serde::{Deserialize, Serialize};

use super::{block::FrameHead, salvage::Found};

/// A closed segment as the state database keeps it. Small on purpose: a state row above 1 KiB or so
/// would make the database leave its log for blob files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRow {
    /// The segment's number; grows for ever.
    pub id: u64,
    /// The window: first append and sealing, milliseconds since 1970 UTC.
    pub window_ms: (i64, i64),
    /// The sequence number of the first record.
    pub first_seq: u64,
    /// Records that were acknowledged in it.
    pub records: u64,
    /// Bytes of the blocks before compression.
    pub raw_bytes: u64,
    /// Bytes of the frames.
    pub stored_bytes: u64,
    /// Frames that were acknowledged; frames with a higher number were never promised.
    pub frames: u64,
    /// Batches, numbered from 0.
    pub batches: u32,
    /// The delivered batches as ranges, both ends included.
    pub delivered: Vec<(u32, u32)>,
}

/// One batch of a segment: a run of whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    /// Its number in the segment.
    pub number: u32,
    /// The sequence number of its first record.
    pub first_seq: u64,
    /// Its records.
    pub records: u64,
    /// Its blocks' bytes before compression.
    pub raw_bytes: u64,
}

/// Where batches end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Bytes of records before compression; a single larger block is a batch of its own.
    pub raw_bytes_max: u64,
    /// Records.
    pub records_max: u64,
}

impl SegmentRow {
    /// A segment without records.
    pub fn empty(id: u64, first_seq: u64, now_ms: i64) -> Self {
        Self {
            id,
            window_ms: (now_ms, now_ms),
            first_seq,
            records: 0,
            raw_bytes: 0,
            stored_bytes: 0,
            frames: 0,
            batches: 0,
            delivered: Vec::new(),
        }
    }

    /// The row of a segment that was never sealed, from the frames found in it. Stops before the
    /// first frame that a later segment holds again (`next_first_seq`): it was never acknowledged.
    pub fn recovered(id: u64, found: &[Found], next_first_seq: Option<u64>) -> Self {
        let mut row = Self::empty(id, 0, 0);
        let promised = |head: &FrameHead| next_first_seq.is_none_or(|next| head.first_seq < next);
        for (n, Found { head, .. }) in
            found.iter().filter(|frame| promised(&frame.head)).enumerate()
        {
            if n == 0 {
                row.first_seq = head.first_seq;
                row.window_ms = head.time_ms;
            }
            row.frames = head.number + 1;
            row.stored_bytes += head.frame_bytes() as u64;
            if head.part == 0 {
                let end_seq = head.first_seq.saturating_add(u64::from(head.records));
                row.records = end_seq.saturating_sub(row.first_seq);
                row.raw_bytes += u64::from(head.raw_bytes);
                row.batches = head.batch + 1;
                row.window_ms.0 = row.window_ms.0.min(head.time_ms.0);
                row.window_ms.1 = row.window_ms.1.max(head.time_ms.1);
            }
        }
        row
    }

    /// The sequence number after the last record.
    pub fn end_seq(&self) -> u64 {
        self.first_seq + self.records
    }

    /// Whether `batch` is delivered.
    pub fn is_delivered(&self, batch: u32) -> bool {
        self.delivered.iter().any(|(from, to)| (*from..=*to).contains(&batch))
    }

    /// Whether nothing of the segment is left to send.
    pub fn is_done(&self) -> bool {
        (0..self.batches).all(|batch| self.is_delivered(batch))
    }

    /// The batches still to deliver.
    pub fn pending(&self) -> impl Iterator<Item = u32> {
        (0..self.batches).filter(|batch| !self.is_delivered(*batch))
    }

    /// Marks `batch` as delivered. Marking it again changes nothing.
    pub fn deliver(&mut self, batch: u32) {
        if self.is_delivered(batch) {
            return;
        }
        self.delivered.push((batch, batch));
        self.delivered.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(self.delivered.len());
        for (from, to) in self.delivered.drain(..) {
            match merged.last_mut() {
                Some(last) if last.1 + 1 >= from => last.1 = to.max(last.1),
                _ => merged.push((from, to)),
            }
        }
        self.delivered = merged;
    }
}

/// Adds a block to the last batch of `plans`, or starts the next one when that would be too large.
/// Returns the number of the batch that the block belongs to.
pub fn plan_block(
    plans: &mut Vec<BatchPlan>,
    limits: BatchLimits,
    first_seq: u64,
    records: u64,
    raw_bytes: u64,
) -> u32 {
    if let Some(last) = plans.last_mut()
        && last.raw_bytes + raw_bytes <= limits.raw_bytes_max
        && last.records + records <= limits.records_max
    {
        last.records += records;
        last.raw_bytes += raw_bytes;
        return last.number;
    }
    let number = u32::try_from(plans.len()).unwrap_or(u32::MAX);
    plans.push(BatchPlan { number, first_seq, records, raw_bytes });
    number
}

/// The batches of a segment, from the frames found in it.
pub fn plans_of(found: &[Found], row: &SegmentRow) -> Vec<BatchPlan> {
    let mut plans: Vec<BatchPlan> = Vec::new();
    let blocks = found.iter().map(|frame| frame.head).filter(|h| h.part == 0);
    for head in blocks.filter(|head| head.number < row.frames) {
        match plans.last_mut() {
            Some(last) if last.number == head.batch => {
                last.records += u64::from(head.records);
                last.raw_bytes += u64::from(head.raw_bytes);
            }
            _ => plans.push(BatchPlan {
                number: head.batch,
                first_seq: head.first_seq,
                records: u64::from(head.records),
                raw_bytes: u64::from(head.raw_bytes),
            }),
        }
    }
    plans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(batches: u32) -> SegmentRow {
        SegmentRow { batches, records: 10, ..SegmentRow::empty(1, 0, 0) }
    }

    #[test]
    fn delivered_batches_merge_into_ranges_in_any_order() {
        let mut row = row(6);
        for batch in [3, 0, 1, 5, 3, 4] {
            row.deliver(batch);
        }
        assert_eq!(row.delivered, [(0, 1), (3, 5)]);
        assert_eq!(row.pending().collect::<Vec<_>>(), [2]);
        assert!(!row.is_done());
        row.deliver(2);
        assert_eq!(row.delivered, [(0, 5)]);
        assert!(row.is_done());
    }

    #[test]
    fn a_batch_ends_at_its_limits() {
        let limits = BatchLimits { raw_bytes_max: 100, records_max: 5 };
        let mut plans = Vec::new();
        let mut add = |seq, records, bytes| plan_block(&mut plans, limits, seq, records, bytes);
        assert_eq!(add(0, 2, 60), 0);
        assert_eq!(add(2, 1, 40), 0);
        assert_eq!(add(3, 1, 1), 1);
        assert_eq!(add(4, 5, 1), 2);
        assert_eq!(add(9, 1, 500), 3);
        assert_eq!(add(10, 1, 1), 4);
        assert_eq!(plans[0], BatchPlan { number: 0, first_seq: 0, records: 3, raw_bytes: 100 });
    }

    #[test]
    fn a_row_is_small() {
        let mut row = row(u32::MAX);
        row.deliver(1_000_000);
        assert!(rmp_serde::to_vec(&row).unwrap().len() < 120);
    }
}
