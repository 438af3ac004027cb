//! Looking into segments, for a person: their blocks, their records, and what of them is damaged.
//! Nothing here changes the log. Each call reads one segment's frames at most and decodes a bounded
//! part of them, so that the log's thread is never held for long.

mod entries;

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::entries::{Block, Entry, Frames, entries};
use super::{
    Log, batch_id,
    view::{BatchInfo, BatchState, SegmentInfo},
};
use crate::queue::{
    LossReason,
    format::{
        block::{self, Codec, FrameHead},
        group,
        record::Record,
        salvage::Found,
        segment::{BatchPlan, SegmentRow},
    },
    store::{StoreError, disk::ReadDisk},
};

/// Stored bytes that one step of a check decodes, unless one block alone is larger.
const CHECK_BYTES_MAX: u64 = 4 << 20;
/// Bytes of payload after which a page ends, unless one block alone is larger.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// A segment from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentDetail {
    /// As in the list of segments.
    pub segment: SegmentInfo,
    /// Its batches, in order.
    pub batches: Vec<BatchInfo>,
    /// Its blocks that can be read, in order.
    pub blocks: Vec<BlockInfo>,
    /// What is missing between them; blocks are not decoded for this.
    pub damage: Vec<Damage>,
}

/// Records that were made durable together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockInfo {
    /// The number of its first frame in the segment.
    pub frame: u64,
    /// Its frames.
    pub frames: u16,
    /// The number of its batch in the segment, of its first one when it was merged.
    pub batch: u32,
    /// How many batches it has records of.
    pub batches: u32,
    /// The sequence number of its first record.
    pub first_seq: u64,
    /// Its records.
    pub records: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// Bytes of its frames.
    pub stored_bytes: u64,
    /// The time of its oldest record.
    pub oldest_at: Option<Timestamp>,
    /// The time of its newest record.
    pub newest_at: Option<Timestamp>,
}

/// A part of a segment that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The segment.
    pub segment: u64,
    /// The number of the first frame concerned; `None` when the whole segment cannot be read.
    pub first_frame: Option<u64>,
    /// The number of the last one.
    pub last_frame: Option<u64>,
    /// The sequence number of the first record concerned; `None` when no record is.
    pub first_seq: Option<u64>,
    /// The sequence number of the last one.
    pub last_seq: Option<u64>,
    /// How many records, at most.
    pub records: u64,
    /// What is wrong.
    pub what: String,
}

/// What a check of a segment, or of a part of it, has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentCheck {
    /// The segment.
    pub segment: u64,
    /// Blocks that are sound.
    pub blocks: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of their frames.
    pub stored_bytes: u64,
    /// What cannot be read.
    pub damage: Vec<Damage>,
    /// The frame at which the next step goes on; `None` at the end of the segment.
    pub next: Option<u64>,
}

/// Which records are wanted. Ranges include both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordFilter {
    /// Sequence numbers.
    pub seq: (u64, u64),
    /// Times, milliseconds since 1970 UTC.
    pub time_ms: (i64, i64),
    /// Only of this segment.
    pub segment: Option<u64>,
}

/// Records in the order of their sequence numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecordPage {
    /// The records.
    pub records: Vec<SeenRecord>,
    /// What cannot be read between them.
    pub damage: Vec<Damage>,
    /// The sequence number at which the next page goes on; `None` when there is no more.
    pub next: Option<u64>,
}

/// A record and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRecord {
    /// The record.
    pub record: Record,
    /// Its segment.
    pub segment: u64,
    /// The number of its block's first frame.
    pub frame: u64,
    /// The id of its batch.
    pub batch: Uuid,
    /// Where its batch stands.
    pub state: BatchState,
}

/// The frames of the segment that was looked into last.
#[derive(Debug)]
pub(in crate::queue) struct Index {
    segment: u64,
    /// How many the segment had, because the open one grows.
    frames: u64,
    found: Arc<Frames>,
    plans: Option<Arc<[BatchPlan]>>,
}

/// What a page is filled from.
struct Filling<'a> {
    row: &'a SegmentRow,
    found: &'a Frames,
    plans: &'a [BatchPlan],
    filter: &'a RecordFilter,
    limit: usize,
}

impl Default for RecordFilter {
    fn default() -> Self {
        Self { seq: (0, u64::MAX), time_ms: (i64::MIN, i64::MAX), segment: None }
    }
}

impl RecordFilter {
    fn may_hold(&self, Block { head, end_seq, .. }: &Block<'_>) -> bool {
        *end_seq > self.seq.0
            && head.first_seq <= self.seq.1
            && head.time_ms.1 >= self.time_ms.0
            && head.time_ms.0 <= self.time_ms.1
    }

    fn wants(&self, record: &Record) -> bool {
        (self.seq.0..=self.seq.1).contains(&record.seq)
            && (self.time_ms.0..=self.time_ms.1).contains(&record.at_ms)
    }
}

impl Damage {
    fn unreadable(row: &SegmentRow, error: &StoreError) -> Self {
        let last = row.end_seq.checked_sub(1).filter(|_| row.records > 0);
        Self {
            segment: row.id,
            first_frame: None,
            last_frame: None,
            first_seq: last.map(|_| row.first_seq),
            last_seq: last,
            records: row.records,
            what: error.to_string(),
        }
    }

    fn of_block(segment: u64, block: &Block<'_>, damage: block::Damage) -> Self {
        let last_seq = block.end_seq.checked_sub(1).filter(|last| *last >= block.head.first_seq);
        Self {
            segment,
            first_frame: Some(block.head.number),
            last_frame: block.frames.last().map(|frame| frame.head.number),
            first_seq: last_seq.map(|_| block.head.first_seq),
            last_seq,
            records: u64::from(block.head.records),
            what: damage.to_string(),
        }
    }
}

impl<D: ReadDisk> Log<D> {
    /// A segment from inside; `None` when there is none of this number.
    pub fn look_segment(&mut self, id: u64) -> Result<Option<SegmentDetail>, StoreError> {
        let Some(row) = self.look_row(id).cloned() else { return Ok(None) };
        let Some(segment) = self.segments().into_iter().find(|segment| segment.id == id) else {
            return Ok(None);
        };
        let found = self.look_index(&row)?;
        let batches = self.batches_of(id)?;
        let (mut blocks, mut damage) = (Vec::new(), Vec::new());
        for entry in self.look_entries(&row, &found) {
            match entry {
                Entry::Block(block) => blocks.push(block_info(&block)),
                Entry::Hole(hole) => damage.push(hole),
            }
        }
        Ok(Some(SegmentDetail { segment, batches, blocks, damage }))
    }

    /// The first `limit` records that `filter` wants, fewer when they are large.
    pub fn look_records(&mut self, filter: RecordFilter, limit: usize) -> RecordPage {
        let mut page = RecordPage::default();
        let mut rows: Vec<SegmentRow> = self.look_rows().cloned().collect();
        rows.retain(|row| {
            filter.segment.is_none_or(|wanted| wanted == row.id)
                && row.end_seq > filter.seq.0
                && row.first_seq <= filter.seq.1
        });
        rows.sort_by_key(|row| row.first_seq);
        let mut bytes = 0;
        for row in &rows {
            match self.look_index(row) {
                Ok(found) => {
                    let plans = self.look_plans(row);
                    let what =
                        Filling { row, found: &found, plans: &plans, filter: &filter, limit };
                    self.fill(&mut page, &what, &mut bytes);
                }
                Err(error) => page.damage.push(Damage::unreadable(row, &error)),
            }
            if page.next.is_some() {
                break;
            }
        }
        page
    }

    /// Reads and checks the blocks of a segment from frame `from` on, a few MiB of them. A segment
    /// that does not exist, because it has been delivered meanwhile, is sound.
    pub fn look_check(&mut self, id: u64, from: u64) -> SegmentCheck {
        let mut check = SegmentCheck { segment: id, ..SegmentCheck::default() };
        let Some(row) = self.look_row(id).cloned() else { return check };
        let found = match self.look_index(&row) {
            Ok(found) => found,
            Err(error) => {
                check.damage.push(Damage::unreadable(&row, &error));
                return check;
            }
        };
        for entry in self.look_entries(&row, &found) {
            if entry.first_frame() < from {
                continue;
            }
            if check.stored_bytes >= CHECK_BYTES_MAX {
                check.next = Some(entry.first_frame());
                break;
            }
            match entry {
                Entry::Hole(hole) => check.damage.push(hole),
                Entry::Block(block) => match self.look_block(id, &block) {
                    Ok(Ok(records)) => {
                        check.blocks += 1;
                        check.records += records.len() as u64;
                        check.stored_bytes += block.stored_bytes();
                    }
                    Ok(Err(damage)) => check.damage.push(Damage::of_block(id, &block, damage)),
                    Err(error) => {
                        check.damage.push(Damage::unreadable(&row, &error));
                        break;
                    }
                },
            }
        }
        check
    }

    fn fill(
        &self,
        page: &mut RecordPage,
        Filling { row, found, plans, filter, limit }: &Filling<'_>,
        bytes: &mut usize,
    ) {
        for entry in self.look_entries(row, found) {
            let block = match entry {
                Entry::Hole(hole) => {
                    let behind = |seq: u64| seq < filter.seq.0;
                    if !hole.last_seq.is_none_or(behind) && hole.first_seq <= Some(filter.seq.1) {
                        page.damage.push(hole);
                    }
                    continue;
                }
                Entry::Block(block) if filter.may_hold(&block) => block,
                Entry::Block(_) => continue,
            };
            let head = block.head;
            if page.records.len() >= *limit || *bytes >= PAGE_BYTES_MAX {
                page.next = Some(head.first_seq.max(filter.seq.0));
                return;
            }
            let records = match self.look_block(row.id, &block) {
                Ok(Ok(records)) => records,
                Ok(Err(damage)) => {
                    page.damage.push(Damage::of_block(row.id, &block, damage));
                    continue;
                }
                Err(error) => {
                    page.damage.push(Damage::unreadable(row, &error));
                    return;
                }
            };
            for (number, record) in records {
                if !filter.wants(&record) {
                    continue;
                }
                if page.records.len() >= *limit {
                    page.next = Some(record.seq);
                    return;
                }
                *bytes += record.payload.len();
                let (batch, state) = self.look_batch(row, plans, number);
                let (segment, frame) = (row.id, head.number);
                page.records.push(SeenRecord { record, segment, frame, batch, state });
            }
        }
    }

    fn look_rows(&self) -> impl Iterator<Item = &SegmentRow> {
        let open = self.writer.active.as_ref().map(|active| &active.row);
        let kept = self.backlog.kept().map(|kept| &kept.row.row);
        let waiting = self.backlog.sealed().map(|sealed| &sealed.row);
        kept.chain(waiting.filter(|row| !row.is_done())).chain(open)
    }

    fn look_row(&self, id: u64) -> Option<&SegmentRow> {
        self.look_rows().find(|row| row.id == id)
    }

    /// The blocks and holes of a segment. Numbers that were never records, or were lost on purpose,
    /// do not count as records of a hole.
    fn look_entries<'a>(&self, row: &SegmentRow, found: &'a Frames) -> Vec<Entry<'a>> {
        let mut entries = entries(row, found);
        for entry in &mut entries {
            let Entry::Hole(Damage {
                first_seq: Some(first), last_seq: Some(last), records, ..
            }) = entry
            else {
                continue;
            };
            let elsewhere = self.journal.ledger().all().filter(|loss| {
                loss.reason != LossReason::Corrupt && loss.from >= *first && loss.to <= *last
            });
            let elsewhere: u64 = elsewhere.map(|loss| loss.records).sum();
            *records = records.saturating_sub(elsewhere);
        }
        entries
    }

    /// The frames that are in memory for want of a disk.
    fn look_unsaved(&self, id: u64) -> &[Vec<u8>] {
        match (self.backlog.get(id), &self.writer.active) {
            (Some(sealed), _) => &sealed.unsaved,
            (None, Some(active)) if active.row.id == id => &active.unsaved,
            _ => &[],
        }
    }

    /// The sound frames of a segment. Of one in memory, the offsets count frames.
    fn look_index(&mut self, row: &SegmentRow) -> Result<Arc<Frames>, StoreError> {
        let unsaved = self.look_unsaved(row.id);
        if !unsaved.is_empty() {
            let found = (0..).zip(unsaved).filter_map(|(offset, frame)| {
                FrameHead::read(frame).ok().map(|head| Found { head, offset, content: None })
            });
            return Ok(Arc::new(Frames { found: found.collect(), ..Frames::default() }));
        }
        if let Some(index) = &self.looked_at
            && (index.segment, index.frames) == (row.id, row.frames)
        {
            return Ok(Arc::clone(&index.found));
        }
        let scan = self.store.frames_of_row(row.id)?;
        let mut frames = Frames { found: scan.found, groups: scan.groups };
        frames.found.retain(|frame| row.promises(&frame.head));
        let found = Arc::new(frames);
        let (segment, frames) = (row.id, row.frames);
        self.looked_at = Some(Index { segment, frames, found: Arc::clone(&found), plans: None });
        Ok(found)
    }

    /// The records of a block, each with the number of its batch.
    fn look_block(
        &self,
        id: u64,
        block: &Block<'_>,
    ) -> Result<Result<Vec<(u32, Record)>, block::Damage>, StoreError> {
        let unsaved = self.look_unsaved(id);
        let frames = if unsaved.is_empty() {
            self.store.read(id, block.frames)?
        } else {
            let at = |frame: &Found| unsaved.get(usize::try_from(frame.offset).ok()?).cloned();
            block.frames.iter().filter_map(at).collect()
        };
        let batch = block.head.batch;
        Ok(match block.head.codec {
            Codec::Records => block::decode(&frames)
                .map(|body| body.records.into_iter().map(|record| (batch, record)).collect()),
            Codec::Group => group::decode(&frames).map(|(batches, _)| {
                let numbered = (batch..).zip(batches);
                numbered
                    .flat_map(|(number, own)| own.records.into_iter().map(move |r| (number, r)))
                    .collect()
            }),
        })
    }

    /// The batches of a segment; none when they cannot be known.
    fn look_plans(&mut self, row: &SegmentRow) -> Arc<[BatchPlan]> {
        if let Some(active) = self.writer.active.as_ref().filter(|active| active.row.id == row.id) {
            return active.plans.as_slice().into();
        }
        let index = self.looked_at.as_ref().filter(|index| index.segment == row.id);
        if let Some(plans) = index.and_then(|index| index.plans.as_ref()) {
            return Arc::clone(plans);
        }
        let plans = self.plans(row.id).unwrap_or_default();
        if let Some(index) = self.looked_at.as_mut().filter(|index| index.segment == row.id) {
            index.plans = Some(Arc::clone(&plans));
        }
        plans
    }

    fn look_batch(&self, row: &SegmentRow, plans: &[BatchPlan], batch: u32) -> (Uuid, BatchState) {
        let plan = plans.iter().find(|plan| plan.number == batch);
        let id = plan.map_or(Uuid::nil(), |plan| batch_id::planned(self.queue_id(), plan));
        let state = match self.backlog.get(row.id) {
            None if self.backlog.get_kept(row.id).is_some() => BatchState::Kept,
            None => BatchState::Open,
            Some(_) if row.is_delivered(batch) => BatchState::Delivered,
            Some(sealed) if sealed.in_flight.contains(&batch) => BatchState::Sending,
            Some(_) => BatchState::Pending,
        };
        (id, state)
    }
}

fn block_info(block: &Block<'_>) -> BlockInfo {
    let head = &block.head;
    let time = |ms| (head.records > 0).then(|| Timestamp::from_millisecond(ms).ok()).flatten();
    BlockInfo {
        frame: head.number,
        frames: head.parts,
        batch: head.batch,
        batches: block.batches,
        first_seq: head.first_seq,
        records: u64::from(head.records),
        raw_bytes: u64::from(head.raw_bytes),
        stored_bytes: block.stored_bytes(),
        oldest_at: time(head.time_ms.0),
        newest_at: time(head.time_ms.1),
    }
}

#[cfg(test)]
mod tests;
