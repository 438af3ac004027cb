//! What the queue remembers of a segment: counts, batches, and which of them are delivered.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    block::FrameHead,
    record::{self, Record},
    salvage::{Found, Scan},
};

/// The number after `last`, further by `leap`: it follows the clock, and leaves room for the
/// numbers of the segments that this one is merged into.
pub fn next_id(last: u64, now_ms: i64, leap: u64) -> u64 {
    let after = (last >> GENERATION_BITS) + 1;
    let clock = u64::try_from(now_ms).unwrap_or(0).saturating_mul(NUMBERS_PER_MS);
    (after.max(clock).saturating_add(leap) & (u64::MAX >> (GENERATION_BITS + 1))) << GENERATION_BITS
}

/// How far a process's first segment keeps from the last that it knows of. What an earlier process
/// sent from memory, and what a power cut took back, left no trace; on a host whose clock starts
/// again, its numbers would otherwise be given again, and with them its batch ids.
pub fn first_leap() -> u64 {
    random_below(FIRST_LEAP_MAX)
}

/// How far the number of the window that begins now keeps from the last. Two hosts that go on from
/// one memory (a clone, a snapshot that was resumed twice) begin windows at the same moments, and
/// must not give them the same numbers; what they do not share is the system's randomness, which a
/// kernel begins anew when it finds itself cloned.
pub fn window_leap(last: u64, now_ms: i64) -> u64 {
    let clock = u64::try_from(now_ms).unwrap_or(0).saturating_mul(NUMBERS_PER_MS);
    let ahead = (last >> GENERATION_BITS).saturating_sub(clock);
    match ahead {
        0 => random_below(WINDOW_LEAP_MAX),
        // Less while the numbers are ahead of the clock, so that they do not run away from it.
        ahead if ahead < AHEAD_MAX => random_below(WINDOW_LEAP_MAX / 8),
        _ => random_below(NUMBERS_PER_MS),
    }
}

fn random_below(bound: u64) -> u64 {
    // Version 4 ids are drawn from the system each time.
    Uuid::new_v4().as_u64_pair().1 % bound
}

/// The number of the segment that begins with `first` and is merged from segments of which
/// `newest_generation` is the highest; `None` when there is no such number left.
pub fn merged_id(first: u64, newest_generation: u64) -> Option<u64> {
    let generation = newest_generation + 1;
    (generation <= GENERATION_MAX).then_some((first & !GENERATION_MAX) | generation)
}

/// How often a segment's records were merged: 0 in a segment as it was written.
pub fn generation(id: u64) -> u64 {
    id & GENERATION_MAX
}

/// The low bits of a segment's number, which count how often it was merged.
const GENERATION_BITS: u32 = 8;
const GENERATION_MAX: u64 = (1 << GENERATION_BITS) - 1;
/// How much finer than milliseconds the numbers of segments are.
const NUMBERS_PER_MS: u64 = 16;
/// 4.7 hours: long enough for no number to be met twice, and short enough to follow the clock.
const FIRST_LEAP_MAX: u64 = (1 << 24) * NUMBERS_PER_MS;
/// Half a minute: half of an ordinary window.
const WINDOW_LEAP_MAX: u64 = 30_000 * NUMBERS_PER_MS;
/// A day.
const AHEAD_MAX: u64 = 86_400_000 * NUMBERS_PER_MS;

/// A closed segment as the state keeps it. Small on purpose: it is written with every delivery.
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
    /// Frames that were acknowledged; see [`SegmentRow::promises`].
    pub frames: u64,
    /// Batches, numbered from 0.
    pub batches: u32,
    /// The delivered batches as ranges, both ends included.
    pub delivered: Vec<(u32, u32)>,
    /// The sequence number after the last record. Between two blocks numbers may be missing: those
    /// of metrics that were refused at the door, and of records that thinning took.
    pub end_seq: u64,
    /// Records that were found damaged and are in the ledger.
    pub corrupt: u64,
    /// Windows that were merged into it; 0 in a segment as it was written.
    pub windows: u32,
    /// How often it was thinned.
    pub thinned: u8,
    /// Records in the delivered batches. Earlier versions had no such field.
    #[serde(default)]
    pub delivered_records: u64,
}

/// One batch of a segment: a run of whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    /// Its number in the segment.
    pub number: u32,
    /// The sequence number of its first record.
    pub first_seq: u64,
    /// The sequence number of its last record.
    pub last_seq: u64,
    /// Its records: fewer than the range holds after thinning.
    pub records: u64,
    /// Its blocks' bytes before compression.
    pub raw_bytes: u64,
    /// The window that its records come from, milliseconds since 1970 UTC.
    pub window_ms: (i64, i64),
    /// Where it comes from.
    pub origin: Origin,
    /// Its content sum: a number that other records do not have. `None` when an earlier version has
    /// written it.
    pub content: Option<u64>,
}

/// Where a batch comes from: merging moves it to another segment, and its id stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The segment that it was written in first.
    pub segment: u64,
    /// Its number there.
    pub batch: u32,
    /// How often it was thinned.
    pub thinned: u8,
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
            end_seq: first_seq,
            corrupt: 0,
            windows: 0,
            thinned: 0,
            delivered_records: 0,
        }
    }

    /// The row of a segment that was never sealed, from the frames found in it; what is missing
    /// between them is not counted. Stops before the first frame that a later segment holds again
    /// (`next_first_seq`): it was never acknowledged.
    pub fn recovered(id: u64, found: &[Found], next_first_seq: Option<u64>) -> Self {
        let mut row = Self::empty(id, 0, 0);
        let promised = |head: &FrameHead| next_first_seq.is_none_or(|next| head.first_seq < next);
        for (n, Found { head, .. }) in
            found.iter().filter(|frame| promised(&frame.head)).enumerate()
        {
            if n == 0 {
                row.first_seq = head.first_seq;
                row.end_seq = head.first_seq;
                row.window_ms = head.time_ms;
            }
            row.frames = head.number + 1;
            row.stored_bytes += head.frame_bytes() as u64;
            if head.part == 0 {
                let end_seq = head.first_seq.saturating_add(u64::from(head.records));
                row.end_seq = row.end_seq.max(end_seq);
                row.records += u64::from(head.records);
                row.raw_bytes += u64::from(head.raw_bytes);
                row.batches = head.batch + 1;
                row.window_ms.0 = row.window_ms.0.min(head.time_ms.0);
                row.window_ms.1 = row.window_ms.1.max(head.time_ms.1);
            }
        }
        row
    }

    /// The frames of a segment without a row that were written to their end. At its end may lie the
    /// beginning of what counts only as a whole: nothing of it was acknowledged, and whoever
    /// brought it brings all of it again. With numbers after it (`next_first_seq`) it was, and is
    /// damaged.
    pub fn finished(found: &[Found], next_first_seq: Option<u64>) -> &[Found] {
        let Some(last) = found.last().map(|frame| frame.head) else { return found };
        let end_seq = last.first_seq.saturating_add(u64::from(last.records));
        if next_first_seq.is_some_and(|next| next >= end_seq) {
            return found;
        }
        let (mut from, mut whole) = (found.len() - 1, !last.goes_on());
        while found[from].head.is_begun() {
            let before = from.checked_sub(1).map(|before| found[before].head);
            let follows = before.is_some_and(|b| b.number + 1 == found[from].head.number);
            whole &= follows;
            if !follows && !before.is_some_and(|before| before.goes_on()) {
                break; // its beginning is not there, and that before it is something else
            }
            from -= 1;
        }
        if whole { found } else { &found[..from] }
    }

    /// The row of a merged segment, from the groups found in it; `None` without any.
    pub fn recovered_merged(id: u64, scan: &Scan) -> Option<Self> {
        let mut row = Self::empty(id, 0, 0);
        let mut windows = BTreeSet::new();
        for Found { head, .. } in &scan.found {
            row.frames = row.frames.max(head.number + 1);
            row.stored_bytes += head.frame_bytes() as u64;
            let Some(entries) = scan.groups.get(&head.number) else { continue };
            for (number, entry) in (head.batch..).zip(entries) {
                if windows.is_empty() {
                    row.first_seq = entry.first_seq;
                    row.window_ms = entry.window_ms;
                }
                windows.insert(entry.origin.segment);
                row.window_ms.0 = row.window_ms.0.min(entry.window_ms.0);
                row.window_ms.1 = row.window_ms.1.max(entry.window_ms.1);
                row.end_seq = row.end_seq.max(entry.last_seq + 1);
                row.records += entry.records;
                row.raw_bytes += entry.raw_bytes;
                row.batches = row.batches.max(number + 1);
                row.thinned = row.thinned.max(entry.origin.thinned);
            }
        }
        row.windows = u32::try_from(windows.len()).unwrap_or(u32::MAX);
        (!windows.is_empty()).then_some(row)
    }

    /// Whether a frame holds what was acknowledged in the segment. Its file may be another
    /// generation of it than the row counts the frames of: one that went away and came back. What
    /// was never acknowledged has later sequence numbers.
    pub fn promises(&self, head: &FrameHead) -> bool {
        head.number < self.frames || head.first_seq < self.end_seq
    }

    /// Whether `batch` is delivered.
    pub fn is_delivered(&self, batch: u32) -> bool {
        self.delivered.iter().any(|(from, to)| (*from..=*to).contains(&batch))
    }

    /// Records that are left to deliver, those that are damaged included.
    pub fn waiting_records(&self) -> u64 {
        self.records.saturating_sub(self.delivered_records)
    }

    /// Whether nothing of the segment is left to send.
    pub fn is_done(&self) -> bool {
        self.pending().next().is_none()
    }

    /// The batches still to deliver, in order. What is delivered is stepped over as a whole.
    pub fn pending(&self) -> impl Iterator<Item = u32> {
        let after = self.delivered.iter().map(|(_, to)| to.saturating_add(1));
        let until = self.delivered.iter().map(|(from, _)| *from);
        let gaps = std::iter::once(0).chain(after).zip(until.chain([self.batches]));
        gaps.flat_map(|(from, until)| from..until.min(self.batches))
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

/// What a batch needs to know of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockFacts {
    /// The sequence number of its first record.
    pub first_seq: u64,
    /// Its records.
    pub records: u64,
    /// Their bytes before compression.
    pub raw_bytes: u64,
    /// The time span of its records, milliseconds since 1970 UTC.
    pub time_ms: (i64, i64),
    /// Its content sum, as far as it is known: 0 before it is encoded. See [`BatchPlan::content`].
    pub content: Option<u64>,
}

impl BlockFacts {
    /// What there is to know of a block of these records.
    pub fn of(first_seq: u64, block: &[Record]) -> Self {
        let raw_bytes: usize = block.iter().map(Record::memory_bytes).sum();
        Self {
            first_seq,
            records: block.len() as u64,
            raw_bytes: raw_bytes as u64,
            time_ms: record::time_span(block),
            content: Some(0),
        }
    }
}

impl BatchPlan {
    fn new(segment: u64, number: u32, block: BlockFacts) -> Self {
        Self {
            number,
            first_seq: block.first_seq,
            last_seq: (block.first_seq + block.records).saturating_sub(1),
            records: block.records,
            raw_bytes: block.raw_bytes,
            window_ms: block.time_ms,
            origin: Origin { segment, batch: number, thinned: 0 },
            content: block.content,
        }
    }

    fn add(&mut self, block: BlockFacts) {
        if block.records > 0 {
            self.window_ms = match self.records {
                0 => block.time_ms,
                _ => (self.window_ms.0.min(block.time_ms.0), self.window_ms.1.max(block.time_ms.1)),
            };
            self.last_seq = (block.first_seq + block.records).saturating_sub(1);
        }
        self.records += block.records;
        self.raw_bytes += block.raw_bytes;
        self.content = self.content.zip(block.content).map(|(a, b)| a.wrapping_add(b));
    }

    /// Adds the content sum of a block that is encoded now.
    pub fn add_content(&mut self, content: u64) {
        self.content = self.content.map(|own| own.wrapping_add(content));
    }
}

/// Adds a block of `segment` to the last batch of `plans`, or starts the next one when that would
/// be too large. Returns the number of the batch that the block belongs to.
pub fn plan_block(
    plans: &mut Vec<BatchPlan>,
    limits: BatchLimits,
    segment: u64,
    block: BlockFacts,
) -> u32 {
    if let Some(last) = plans.last_mut()
        && last.raw_bytes + block.raw_bytes <= limits.raw_bytes_max
        && last.records + block.records <= limits.records_max
    {
        last.add(block);
        return last.number;
    }
    let number = u32::try_from(plans.len()).unwrap_or(u32::MAX);
    plans.push(BatchPlan::new(segment, number, block));
    number
}

/// The batches of a segment that was never merged, from the frames found in it.
pub fn plans_of(found: &[Found], row: &SegmentRow) -> Vec<BatchPlan> {
    let mut plans: Vec<BatchPlan> = Vec::new();
    let blocks = found.iter().filter(|frame| frame.head.part == 0);
    for Found { head, content, .. } in blocks.filter(|frame| row.promises(&frame.head)) {
        let block = BlockFacts {
            first_seq: head.first_seq,
            records: u64::from(head.records),
            raw_bytes: u64::from(head.raw_bytes),
            time_ms: head.time_ms,
            content: *content,
        };
        match plans.last_mut() {
            Some(last) if last.number == head.batch => last.add(block),
            _ => plans.push(BatchPlan::new(row.id, head.batch, block)),
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
        let mut add = |first_seq, records, raw_bytes| {
            let time_ms = (0, i64::try_from(first_seq).unwrap());
            let content = Some(first_seq);
            let facts = BlockFacts { first_seq, records, raw_bytes, time_ms, content };
            plan_block(&mut plans, limits, 7, facts)
        };
        assert_eq!(add(0, 2, 60), 0);
        assert_eq!(add(2, 1, 40), 0);
        assert_eq!(add(3, 1, 1), 1);
        assert_eq!(add(4, 5, 1), 2);
        assert_eq!(add(9, 1, 500), 3);
        assert_eq!(add(10, 1, 1), 4);
        let first = plans[0];
        assert_eq!((first.records, first.raw_bytes, first.window_ms), (3, 100, (0, 2)));
        assert_eq!((first.first_seq, first.last_seq), (0, 2));
        assert_eq!(plans[3].origin, Origin { segment: 7, batch: 3, thinned: 0 });
    }

    /// Q4: two processes that go on from one memory give their windows numbers of their own.
    #[test]
    fn windows_that_begin_at_one_moment_have_numbers_of_their_own() {
        let (now_ms, last) = (1_800_000_000_000, next_id(0, 1_799_999_940_000, 0));
        let own = || next_id(last, now_ms, window_leap(last, now_ms));
        let numbers: BTreeSet<u64> = (0..100).map(|_| own()).collect();
        assert!(numbers.len() > 95, "{} of 100 differ", numbers.len());
        let (clock, later) = (next_id(0, now_ms, 0), next_id(0, now_ms + 30_000, 0));
        assert!(numbers.iter().all(|id| (clock..later).contains(id) && generation(*id) == 0));
        // A thousand windows a second, for ten seconds: the numbers grow, and stay within a day.
        let mut id = last;
        for n in 0..10_000 {
            let next = next_id(id, now_ms + n, window_leap(id, now_ms + n));
            assert!(next > id);
            id = next;
        }
        assert!(id < next_id(0, now_ms + 2 * 86_400_000, 0));
    }

    #[test]
    fn a_row_is_small() {
        let mut row = row(u32::MAX);
        row.deliver(1_000_000);
        assert!(rmp_serde::to_vec(&row).unwrap().len() < 140);
    }
}
