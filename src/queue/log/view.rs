//! What a person or the backend is told about the queue. Serialises for `--json`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BatchKey, Counts, Log, backlog::Attempt, batch_id, ring::Home};
use crate::queue::{
    format::segment::{BatchPlan, Origin, SegmentRow},
    store::{StoreError, disk::ReadDisk},
};

/// The queue in one screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// The queue's identity.
    pub queue_id: Uuid,
    /// Segments, the one that takes records included.
    pub segments: u64,
    /// Batches to deliver, those of the open segment included.
    pub batches: u64,
    /// Records to deliver.
    pub records: u64,
    /// Their bytes before compression.
    pub raw_bytes: u64,
    /// Bytes on disk of all segments that wait.
    pub disk_bytes: u64,
    /// Bytes on disk of everything that the budget counts: delivered segments that are kept, too.
    pub usage_bytes: u64,
    /// `queue.bytes_max`.
    pub bytes_max: u64,
    /// Delivered segments that are kept.
    pub kept_segments: u64,
    /// The start of the oldest window that waits.
    pub oldest_at: Option<Timestamp>,
    /// The next sequence number.
    pub next_seq: u64,
    /// Bytes of memory that records occupy.
    pub ring_bytes: u64,
    /// `queue.ring_bytes_max`.
    #[serde(default)]
    pub ring_bytes_max: u64,
    /// Records in memory.
    #[serde(default)]
    pub ring_records: u64,
    /// Why the disk takes no records at present.
    pub disk_error: Option<String>,
    /// Why the queue's state cannot be read yet: what it holds is not known, and all other numbers
    /// are of what has come since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_error: Option<String>,
    /// Counters since the queue was opened.
    pub counts: Counts,
}

/// A segment as `inspect segments` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// The segment's number.
    pub id: u64,
    /// Whether it takes records, waits, or is damaged.
    pub state: SegmentState,
    /// The start of its window.
    pub opened_at: Option<Timestamp>,
    /// The end of its window; of the open segment, its last record.
    pub sealed_at: Option<Timestamp>,
    /// The sequence number of its first record.
    pub first_seq: u64,
    /// The sequence number of its last record.
    pub last_seq: u64,
    /// Windows that were merged into it; 0 in a segment as it was written.
    pub windows: u32,
    /// How often it was thinned.
    pub thinned: u8,
    /// Records of it that are damaged.
    pub corrupt: u64,
    /// Its records.
    pub records: u64,
    /// Their bytes before compression.
    pub raw_bytes: u64,
    /// Bytes of its frames.
    pub stored_bytes: u64,
    /// Bytes that it occupies on disk.
    pub disk_bytes: u64,
    /// Its batches.
    pub batches: u32,
    /// How many of them are delivered.
    pub delivered: u32,
    /// Whether it is only in memory, for want of a disk.
    pub memory_only: bool,
    /// Tries to deliver it so far, the most of its batches.
    pub attempts: u32,
    /// The last answer to one of its batches.
    pub last_answer: Option<String>,
    /// When the next try is due.
    pub next_try_at: Option<Timestamp>,
}

/// The life of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentState {
    /// It takes records.
    Open,
    /// It is closed and waits.
    Sealed,
    /// One of its batches is being sent.
    Sending,
    /// It is closed, and some of it, or all, cannot be read.
    Damaged,
    /// It is delivered, and kept for a while.
    Kept,
}

/// A batch as `inspect batches` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchInfo {
    /// The batch's name for ever.
    pub id: Uuid,
    /// Its segment.
    pub segment: u64,
    /// Its number in the segment.
    pub number: u32,
    /// Where it was written first; merging moves a batch, and its id stays.
    pub origin: Origin,
    /// The time that its records are about, both ends.
    pub window: (Option<Timestamp>, Option<Timestamp>),
    /// Where it stands.
    pub state: BatchState,
    /// The sequence number of its first record.
    pub first_seq: u64,
    /// Its records.
    pub records: u64,
    /// Their bytes before compression.
    pub raw_bytes: u64,
    /// Tries so far.
    pub attempts: u32,
    /// The last answer.
    pub last_answer: Option<String>,
    /// When the next try is due.
    pub next_try_at: Option<Timestamp>,
}

/// The life of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    /// Its segment still takes records.
    Open,
    /// It waits.
    Pending,
    /// It is being sent.
    Sending,
    /// The backend has it.
    Delivered,
    /// The backend has it, and its segment is kept for a while.
    Kept,
}

impl BatchInfo {
    /// How the queue is asked for it.
    pub fn key(&self) -> BatchKey {
        BatchKey { segment: self.segment, number: self.number }
    }
}

impl<D: ReadDisk> Log<D> {
    /// The queue in one screen.
    pub fn status(&self) -> QueueStatus {
        let open = self.writer.active.as_ref().map(|active| &active.row);
        let waiting = || self.backlog.sealed().filter(|sealed| !sealed.row.is_done());
        let rows = || waiting().map(|sealed| &sealed.row).chain(open);
        let pending = |row: &SegmentRow| row.pending().count() as u64;
        QueueStatus {
            queue_id: self.queue_id(),
            segments: rows().count() as u64,
            batches: rows().map(pending).sum(),
            records: rows().map(SegmentRow::waiting_records).sum(),
            raw_bytes: rows().map(|row| row.raw_bytes).sum(),
            disk_bytes: self.backlog.sealed_bytes(&self.store)
                + open.map_or(0, |row| self.store.disk_bytes(row.id)),
            usage_bytes: self.usage(),
            bytes_max: self.limits.budget.bytes_max,
            kept_segments: self.backlog.kept().count() as u64,
            oldest_at: rows().next().and_then(|row| time(row.window_ms.0)),
            next_seq: self.journal.next_seq(),
            ring_bytes: self.writer.ring.bytes() as u64,
            ring_bytes_max: self.limits.ring_bytes_max as u64,
            ring_records: self.writer.ring.records() as u64,
            disk_error: self.disk_error().map(str::to_owned),
            state_error: None,
            counts: self.counts(),
        }
    }

    /// All segments, oldest first, the open one last.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let waiting = self.backlog.sealed().filter(|sealed| !sealed.row.is_done());
        let sealed = waiting.map(|sealed| {
            let damaged = sealed.damaged || sealed.unreadable.is_some();
            let state = match (damaged, sealed.in_flight.is_empty()) {
                (true, _) => SegmentState::Damaged,
                (false, true) => SegmentState::Sealed,
                (false, false) => SegmentState::Sending,
            };
            let last = sealed.attempts.values().max_by_key(|attempt| attempt.attempts);
            let bytes = sealed.disk_bytes(&self.store);
            let mut info = segment_info(&sealed.row, state, sealed.home, bytes, last);
            if let Some(known) = &sealed.unreadable {
                info.last_answer = Some(known.error.clone());
                info.next_try_at = time(known.retry_at_ms);
            }
            info
        });
        let open = self.writer.active.as_ref().map(|active| {
            let bytes = self.store.disk_bytes(active.row.id);
            segment_info(&active.row, SegmentState::Open, active.home(), bytes, None)
        });
        let kept = self.backlog.kept().map(|kept| {
            let bytes = kept.disk_bytes(&self.store);
            segment_info(&kept.row.row, SegmentState::Kept, Home::Disk, bytes, None)
        });
        let mut all: Vec<SegmentInfo> = kept.chain(sealed).collect();
        all.sort_by_key(|segment| segment.id);
        all.extend(open);
        all
    }

    /// The batches of all segments, oldest first. Reads segments that an earlier process wrote.
    pub fn batches(&mut self) -> Result<Vec<BatchInfo>, StoreError> {
        let kept = self.backlog.kept().map(|kept| kept.row.row.id);
        let waiting = self.backlog.sealed().filter(|sealed| !sealed.row.is_done());
        let mut ids: Vec<u64> = kept.chain(waiting.map(|sealed| sealed.row.id)).collect();
        ids.sort_unstable();
        ids.extend(self.writer.active.as_ref().map(|active| active.row.id));
        let mut batches = Vec::new();
        for id in ids {
            batches.extend(self.batches_of(id)?);
        }
        Ok(batches)
    }

    /// The batches of one segment, in order; none when there is no such segment.
    pub fn batches_of(&mut self, id: u64) -> Result<Vec<BatchInfo>, StoreError> {
        if let Some(active) = self.writer.active.as_ref().filter(|active| active.row.id == id) {
            let info = |plan| self.batch_info(id, plan, BatchState::Open, None);
            return Ok(active.plans.iter().map(info).collect());
        }
        let plans = self.plans(id)?;
        let Some(sealed) = self.backlog.get(id) else {
            let kept = plans.iter().filter(|_| self.backlog.get_kept(id).is_some());
            return Ok(kept
                .map(|plan| self.batch_info(id, plan, BatchState::Kept, None))
                .collect());
        };
        let info = |plan: &BatchPlan| {
            let state = if sealed.row.is_delivered(plan.number) {
                BatchState::Delivered
            } else if sealed.in_flight.contains(&plan.number) {
                BatchState::Sending
            } else {
                BatchState::Pending
            };
            self.batch_info(id, plan, state, sealed.attempts.get(&plan.number))
        };
        Ok(plans.iter().map(info).collect())
    }

    fn batch_info(
        &self,
        segment: u64,
        plan: &BatchPlan,
        state: BatchState,
        last: Option<&Attempt>,
    ) -> BatchInfo {
        BatchInfo {
            id: batch_id::planned(self.queue_id(), plan),
            segment,
            number: plan.number,
            origin: plan.origin,
            window: (time(plan.window_ms.0), time(plan.window_ms.1)),
            state,
            first_seq: plan.first_seq,
            records: plan.records,
            raw_bytes: plan.raw_bytes,
            attempts: last.map_or(0, |attempt| attempt.attempts),
            last_answer: last.map(|attempt| attempt.answer.clone()),
            next_try_at: last.and_then(|attempt| time(attempt.next_at_ms)),
        }
    }
}

fn segment_info(
    row: &SegmentRow,
    state: SegmentState,
    home: Home,
    disk_bytes: u64,
    last: Option<&Attempt>,
) -> SegmentInfo {
    let pending = u32::try_from(row.pending().count()).unwrap_or(u32::MAX);
    SegmentInfo {
        id: row.id,
        state,
        opened_at: time(row.window_ms.0),
        sealed_at: time(row.window_ms.1),
        first_seq: row.first_seq,
        last_seq: row.end_seq.saturating_sub(1),
        windows: row.windows,
        thinned: row.thinned,
        corrupt: row.corrupt,
        records: row.records,
        raw_bytes: row.raw_bytes,
        stored_bytes: row.stored_bytes,
        disk_bytes,
        batches: row.batches,
        delivered: row.batches - pending,
        memory_only: home == Home::MemoryOnly,
        attempts: last.map_or(0, |attempt| attempt.attempts),
        last_answer: last.map(|attempt| attempt.answer.clone()),
        next_try_at: last.and_then(|attempt| time(attempt.next_at_ms)),
    }
}

fn time(ms: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(ms).ok()
}
