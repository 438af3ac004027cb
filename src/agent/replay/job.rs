//! A replay that outlives its process: what was asked for and how far it is, in a small file.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::dead::{Asked, RecordName};
use crate::{
    control::{Amount, Part, ReplayProgress, ReplayRequest, ReplayState, Selection},
    link::{
        LinkError,
        files::{self, Readers},
    },
    queue::{
        BatchInfo, BatchKey, BatchState, Queue, QueueClosed, QueueError, SegmentInfo, SegmentState,
    },
};

/// A replay as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What is told of it.
    #[serde(flatten)]
    pub progress: ReplayProgress,
    /// Records with a lower sequence number have been tried.
    pub next_seq: u64,
    /// Dead letters are tried queue by queue: those of queues with a lower id have been.
    #[serde(default)]
    pub next_queue: Uuid,
    /// Records from this sequence number on came after it was asked for; `None` before the queue
    /// has been looked through.
    pub end_seq: Option<u64>,
}

/// Where a job is kept.
#[derive(Debug, Clone)]
pub struct JobFile {
    path: PathBuf,
    /// One writer at a time: what is dropped with its task may still be writing.
    turn: Arc<Mutex<()>>,
}

/// A batch that a job sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// Where it is.
    pub key: BatchKey,
    /// The sequence number of its first record, which no other batch has.
    pub first_seq: u64,
    /// Its records.
    pub records: u64,
    /// Their bytes before compression.
    pub bytes: u64,
    /// Whether the backend had it when the queue was looked through.
    pub standing: Standing,
}

/// Whether the backend has a batch, as far as the queue knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It waits.
    Waits,
    /// It is delivered and was kept.
    Delivered,
}

impl Job {
    /// A job that has not begun.
    pub fn new(progress: ReplayProgress) -> Self {
        Self { progress, next_seq: 0, next_queue: Uuid::nil(), end_seq: None }
    }

    /// When it was asked for, as letters tell it.
    pub fn asked(&self) -> Asked {
        let next_seq = self.end_seq.unwrap_or(u64::MAX);
        Asked { next_seq, at: self.progress.started_at }
    }

    /// The batches that are left to send of `batches`, by their sequence numbers. What has been
    /// appended since the job began is not its own.
    pub fn select(&self, batches: &[BatchInfo]) -> Vec<Item> {
        let ReplayRequest { selection, limit, .. } = self.progress.request;
        let end = self.end_seq.unwrap_or(u64::MAX);
        let selected = batches.iter().filter(|batch| {
            let is_left = batch.first_seq >= self.next_seq && batch.first_seq < end;
            batch.records > 0 && is_left && selection.picks(batch)
        });
        let mut items: Vec<Item> = selected.map(item).collect();
        // A batch that is being merged may be seen in both its homes.
        items.sort_unstable_by_key(|item| item.first_seq);
        items.dedup_by_key(|item| item.first_seq);
        let mut room = limit.map(|limit| limit.saturating_sub(self.progress.done.records));
        items.retain(|item| match &mut room {
            None => true,
            Some(0) => false,
            Some(room) => {
                *room = room.saturating_sub(item.records);
                true
            }
        });
        items
    }

    /// Records that should be in the selected segments and are in none of their batches: the disk
    /// has lost them.
    pub fn missing(&self, segments: &[SegmentInfo], batches: &[BatchInfo]) -> u64 {
        let selection = self.progress.request.selection;
        let mut found: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
        for batch in batches {
            let (records, is_selected) = found.entry(batch.segment).or_default();
            *records += batch.records;
            *is_selected |= selection.picks(batch);
        }
        let missing = segments.iter().map(|segment| match found.get(&segment.id) {
            Some((records, true)) => segment.records.saturating_sub(*records),
            // One that waits may be on its way: only damage that has been seen counts.
            None if matches!(segment.state, SegmentState::Damaged | SegmentState::Kept)
                && selection.covers(segment) =>
            {
                segment.records
            }
            Some((_, false)) | None => 0,
        });
        missing.sum()
    }

    /// Everything before `next_seq` has been tried.
    pub fn pass(&mut self, next_seq: u64) {
        self.next_seq = self.next_seq.max(next_seq);
    }

    /// Every dead letter before `next` has been tried.
    pub fn pass_dead(&mut self, next: RecordName) {
        (self.next_queue, self.next_seq) = next.max((self.next_queue, self.next_seq));
    }

    /// Nothing of a batch can be read.
    pub fn note_corrupt(&mut self, item: Item) {
        self.progress.corrupt += item.records;
        self.pass(item.first_seq + 1);
    }

    /// A batch has left the queue since it was selected. One that waited is delivered by now, or in
    /// the ledger.
    pub fn note_gone(&mut self, item: &Item) {
        match item.standing {
            Standing::Waits => self.progress.done.add(item.records, item.bytes),
            Standing::Delivered => self.progress.gone += 1,
        }
    }

    /// Whether as much has been sent as was asked for.
    pub fn is_at_limit(&self) -> bool {
        self.progress.request.limit.is_some_and(|limit| self.progress.done.records >= limit)
    }

    /// Whether the job goes on when it is found after a restart.
    pub fn goes_on(&self) -> bool {
        self.progress.state == ReplayState::Running
    }

    /// Whether the dead letters are sent.
    pub fn is_of_dead(&self) -> bool {
        self.progress.request.selection.part == Part::Dead
    }
}

fn item(batch: &BatchInfo) -> Item {
    Item {
        key: BatchKey { segment: batch.segment, number: batch.number },
        first_seq: batch.first_seq,
        records: batch.records,
        bytes: batch.raw_bytes,
        standing: match batch.state {
            BatchState::Delivered | BatchState::Kept => Standing::Delivered,
            BatchState::Open | BatchState::Pending | BatchState::Sending => Standing::Waits,
        },
    }
}

/// What a queue holds, as far as a replay asks for it. Segment by segment: the queue's thread reads
/// a backlog for this, and does other things in between.
pub async fn look_through(
    queue: &Queue,
    selection: &Selection,
) -> Result<(Vec<SegmentInfo>, Vec<BatchInfo>), QueueClosed> {
    let listed = queue.segments().await?;
    let chosen = listed
        .iter()
        .filter(|segment| segment.state != SegmentState::Open && selection.covers(segment));
    let (mut batches, mut unreadable) = (Vec::new(), BTreeMap::new());
    for segment in chosen {
        let found = queue.batches_of(segment.id).await;
        unreadable.insert(segment.id, matches!(found, Err(QueueError::Store(_))));
        match found {
            Ok(found) => batches.extend(found),
            Err(QueueError::Closed(closed)) => return Err(closed),
            Err(QueueError::Store(error)) => {
                tracing::warn!(%error, "a replay passes over a segment that cannot be read");
            }
        }
    }
    // Damage shows when a segment is read.
    let mut segments = queue.segments().await?;
    segments.retain(|segment| unreadable.contains_key(&segment.id));
    for segment in segments.iter_mut().filter(|segment| unreadable[&segment.id]) {
        segment.state = SegmentState::Damaged;
    }
    Ok((segments, batches))
}

/// How much `items` are.
pub fn amount(items: &[Item]) -> Amount {
    let mut amount = Amount::default();
    for item in items {
        amount.add(item.records, item.bytes);
    }
    amount
}

impl JobFile {
    /// The file of this host's own queue.
    pub fn of_host(state_dir: &Path) -> Self {
        Self { path: state_dir.join("replay.json"), turn: Arc::default() }
    }

    /// The file of a queue that another host has left.
    pub fn of_other(state_dir: &Path, queue_id: uuid::Uuid) -> Self {
        let path = state_dir.join(format!("replay-{queue_id}.json"));
        Self { path, turn: Arc::default() }
    }

    /// The job that is kept; `None` when there is none, or nobody can make sense of it.
    pub fn load(&self) -> io::Result<Option<Job>> {
        let text = match fs_err::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let path = self.path.display();
        let job = serde_json::from_slice(&text).inspect_err(|error| {
            tracing::warn!(%error, %path, "a replay that was under way cannot be read");
        });
        Ok(job.ok())
    }

    /// Keeps `job`; durable when this returns. A job that has ended does not go on again.
    pub fn save(&self, job: &Job) -> Result<(), LinkError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let has_ended = |kept: Job| kept.progress.id == job.progress.id && !kept.goes_on();
        if job.goes_on() && self.load().ok().flatten().is_some_and(has_ended) {
            return Ok(());
        }
        let text = serde_json::to_vec(job).unwrap_or_default();
        files::replace(&self.path, &text, Readers::Owner)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::queue::Origin;

    fn batch(first_seq: u64, records: u64, state: BatchState) -> BatchInfo {
        let (segment, number) = (first_seq / 100, 0);
        BatchInfo {
            id: Uuid::nil(),
            segment,
            number,
            origin: Origin { segment, batch: number, thinned: 0 },
            window: (None, None),
            state,
            first_seq,
            records,
            raw_bytes: records * 10,
            attempts: 0,
            last_answer: None,
            next_try_at: None,
        }
    }

    fn job(part: Part, limit: Option<u64>) -> Job {
        let selection = Selection { part, ..Selection::default() };
        let request = ReplayRequest { selection, rate: None, limit };
        Job::new(ReplayProgress::new(request, Timestamp::UNIX_EPOCH))
    }

    fn seqs(job: &Job, batches: &[BatchInfo]) -> Vec<u64> {
        job.select(batches).iter().map(|item| item.first_seq).collect()
    }

    #[test]
    fn what_is_left_comes_in_order_and_once() {
        let pending = |seq| batch(seq, 5, BatchState::Pending);
        let mut batches = vec![pending(30), pending(10), pending(20), pending(40), pending(20)];
        batches.push(batch(50, 0, BatchState::Pending));
        batches.push(batch(60, 5, BatchState::Kept));
        let mut job = job(Part::Pending, None);
        assert_eq!(seqs(&job, &batches), [10, 20, 30, 40]);
        job.pass(11);
        job.end_seq = Some(40);
        assert_eq!(seqs(&job, &batches), [20, 30]);
        job.pass(5);
        assert_eq!(seqs(&job, &batches), [20, 30], "a place is never given up");
        assert_eq!(amount(&job.select(&batches)), Amount { batches: 2, records: 10, bytes: 100 });
    }

    #[test]
    fn a_limit_counts_what_has_been_sent_before() {
        let batches: Vec<_> = (0..5).map(|n| batch(n * 10, 5, BatchState::Kept)).collect();
        let mut job = job(Part::Delivered, Some(12));
        assert_eq!(seqs(&job, &batches), [0, 10, 20]);
        job.progress.done.records = 7;
        job.pass(1);
        assert_eq!(seqs(&job, &batches), [10]);
        job.progress.done.records = 12;
        assert!(job.is_at_limit() && job.select(&batches).is_empty());
    }

    #[test]
    fn what_a_selected_segment_lacks_is_missing() {
        let segment = |id, state, records| SegmentInfo {
            id,
            state,
            opened_at: None,
            sealed_at: None,
            first_seq: id * 100,
            last_seq: id * 100 + 99,
            windows: 1,
            thinned: 0,
            corrupt: 0,
            records,
            raw_bytes: 0,
            stored_bytes: 0,
            disk_bytes: 0,
            batches: 1,
            delivered: 0,
            memory_only: false,
            attempts: 0,
            last_answer: None,
            next_try_at: None,
        };
        let segments = [
            segment(1, SegmentState::Sealed, 10),
            segment(2, SegmentState::Damaged, 7),
            segment(3, SegmentState::Sealed, 9),
            segment(4, SegmentState::Kept, 9),
            segment(5, SegmentState::Kept, 6),
        ];
        let batches = [
            batch(100, 4, BatchState::Pending),
            batch(105, 3, BatchState::Delivered),
            batch(400, 1, BatchState::Kept),
        ];
        let check = |part, missing| {
            assert_eq!(job(part, None).missing(&segments, &batches), missing, "{part:?}");
        };
        check(Part::Pending, 3 + 7);
        check(Part::Segment(1), 3);
        check(Part::Segment(2), 7);
        check(Part::Segment(3), 0);
        check(Part::Segment(4), 8);
        check(Part::Segment(5), 6);
    }

    #[test]
    fn a_job_is_kept_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let file = JobFile::of_host(folder.path());
        assert_eq!(file.load().unwrap(), None);
        let mut kept = job(Part::Dead, Some(3));
        kept.pass(77);
        file.save(&kept).unwrap();
        assert_eq!(file.load().unwrap(), Some(kept.clone()));
        let mut stopped = kept.clone();
        stopped.progress.state = ReplayState::Stopped;
        file.save(&stopped).unwrap();
        file.save(&kept).unwrap();
        assert_eq!(file.load().unwrap(), Some(stopped), "an end is for ever");
        fs_err::write(folder.path().join("replay.json"), "{").unwrap();
        assert_eq!(file.load().unwrap(), None, "what nobody can read is no job");
    }
}
