//! Merging: segments that wait are written again, together, while nobody needs the disk.
//!
//! A quiet window is a few records and takes a file system's smallest units; its neighbours are
//! almost equal to it. So neighbouring segments become one, their batches compressed together. The
//! new segment is durable and was read back before the state says, in one step, that it holds what
//! its sources held; only then do they go. Batches keep their origin, and so their ids. Thinning
//! and setting damage aside are the same work, with fewer records at its end.

use std::collections::{BTreeMap, VecDeque};

use super::{BatchKey, Log, age::Moment, backlog::Sealed, index::Index, ledger::NewLoss};
use crate::queue::{
    LossReason,
    budget::OnFull,
    format::{
        block::{Chain, Place},
        group::{self, GROUP_BATCHES_MAX, GROUP_RAW_BYTES_MAX, GroupBatch, GroupEntry},
        record::{self, Record},
        rows,
        salvage::Found,
        segment::{self, SegmentRow},
    },
    store::{
        StoreError,
        disk::{ReadDisk, WriteDisk},
    },
};

/// Segments that become one, and the growth from one size to the next.
const FAN: usize = 16;
/// A segment that was thinned so often has few records left: it is evicted instead.
const THINNED_MAX: u8 = 12;
/// No merging so soon after a delivery: a drain wants the disk.
const QUIET_MS: i64 = 5_000;
/// After a failure.
const RETRY_MS: i64 = 60_000;

/// Why segments are written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Merge,
    Thin,
    /// What can be read of a damaged segment goes to a sound one.
    Salvage,
}

/// A merge under way.
#[derive(Debug)]
pub(in crate::queue) struct Merge {
    purpose: Purpose,
    sources: Vec<u64>,
    /// Batches still to read.
    waiting: VecDeque<BatchKey>,
    /// Whether its segment still takes groups.
    open: bool,
    row: SegmentRow,
    /// Where each batch of the new segment comes from.
    from: Vec<BatchKey>,
    /// What is in the new segment, to compare with what is read back.
    written: Vec<GroupEntry>,
    checksums: Vec<u64>,
    group: Vec<GroupBatch>,
    group_bytes: u64,
    thinning: Thinning,
    /// Blocks still to check, once everything is written.
    checking: Option<VecDeque<Vec<Found>>>,
    checked: usize,
}

/// Which samples stay: every second one of each type.
#[derive(Debug, Default)]
struct Thinning {
    /// By type: the time of the last sample, and how many there were.
    samples: BTreeMap<String, (i64, u64)>,
    lost: Option<NewLoss>,
}

impl<D: WriteDisk> Log<D> {
    /// What the log does by itself, from time to time: it writes and removes what could not be
    /// before, what is too old goes, and segments that wait are merged, a little at each call.
    /// Returns whether there is more to do at once.
    pub fn tend(&mut self, now: impl Into<Moment>) -> bool {
        let now = now.into();
        self.now_ms = now.wall_ms;
        self.age_ms = self.age.tell(now);
        self.journal.set_age_ms(self.age_ms);
        self.restore_if_gone(now.wall_ms);
        self.finish_done();
        self.keep_again();
        self.remove_left_over();
        self.read_unread();
        self.expire_kept();
        self.evict_old();
        if self.disk_error().is_some() || self.is_draining() || self.is_pausing() {
            return false;
        }
        self.merge_a_little().unwrap_or_else(|error| {
            tracing::warn!(%error, "segments cannot be merged now");
            self.merge_at_ms = self.now_ms.saturating_add(RETRY_MS);
            false
        })
    }

    /// One step of a merge; whether there is more to do at once.
    fn merge_a_little(&mut self) -> Result<bool, StoreError> {
        self.merge = match self.merge.take() {
            Some(merge) => self.step(merge)?,
            None => match self.choose() {
                Some((purpose, sources)) => self.begin(purpose, sources)?,
                None => return Ok(false),
            },
        };
        Ok(true)
    }

    /// Thins some segments at once, for want of room; `false` when there are none to be thinned.
    pub(super) fn thin_now(&mut self) -> bool {
        if self.is_pausing() {
            return false;
        }
        self.abandon_merge();
        let Some(sources) = self.choose_thin() else { return false };
        let before = self.counts.thinned_records;
        let begun = self.begin(Purpose::Thin, sources);
        let done = begun.and_then(|mut merge| {
            while let Some(begun) = merge.take() {
                merge = self.step(begun)?;
            }
            Ok(())
        });
        if let Err(error) = done {
            tracing::warn!(%error, "segments cannot be thinned now");
            self.merge_at_ms = self.now_ms.saturating_add(RETRY_MS);
        }
        self.counts.thinned_records > before
    }

    /// Gives up a merge that is not finished: its sources have everything.
    pub(super) fn abandon_merge(&mut self) {
        if let Some(merge) = self.merge.take() {
            self.store.abandon(merge.row.id);
            self.left_over.insert(merge.row.id);
            self.remove_left_over();
        }
    }
}

impl<D: ReadDisk> Log<D> {
    /// Whether a failure was a short while ago, on a clock that may have been put back since.
    fn is_pausing(&self) -> bool {
        (1..=RETRY_MS).contains(&self.merge_at_ms.saturating_sub(self.now_ms))
    }

    fn is_draining(&self) -> bool {
        let sending = self.backlog.sealed().any(|sealed| !sealed.in_flight.is_empty());
        let since = self.now_ms.saturating_sub(self.delivered_at_ms);
        sending || (self.delivered_at_ms > 0 && (0..QUIET_MS).contains(&since))
    }

    fn choose(&self) -> Option<(Purpose, Vec<u64>)> {
        let mut idle = self.backlog.sealed().filter(|sealed| sealed.is_idle());
        if let Some(damaged) = idle.find(|sealed| sealed.damaged) {
            return Some((Purpose::Salvage, vec![damaged.row.id]));
        }
        let bytes_max = self.limits.budget.bytes_max;
        let full = self.is_over(self.writer.reserve_bytes.saturating_add(bytes_max / 8));
        if self.limits.budget.on_full == OnFull::Thin
            && full
            && let Some(sources) = self.choose_thin()
        {
            return Some((Purpose::Thin, sources));
        }
        let small = self.limits.segment_bytes_max / 2;
        self.runs(|sealed| {
            let row = &sealed.row;
            (row.stored_bytes <= small).then(|| (tier(row.windows), row.thinned))
        })
        .into_iter()
        .map(|run| self.fitting(&run))
        .find(|run| run.len() == FAN)
        .map(|run| (Purpose::Merge, run))
    }

    /// The oldest segments of those that were thinned least, but for the newest quarter.
    fn choose_thin(&self) -> Option<Vec<u64>> {
        let waiting: Vec<&Sealed> = self.backlog.sealed().filter(|s| !s.row.is_done()).collect();
        let newest = waiting.len() - waiting.len() / 4;
        let candidates = &waiting[..newest.max(1).min(waiting.len())];
        let least = candidates.iter().map(|sealed| sealed.row.thinned).min()?;
        let newest_id = candidates.last().map(|sealed| sealed.row.id)?;
        if least >= THINNED_MAX {
            return None;
        }
        let runs = self.runs(|sealed| {
            (sealed.row.thinned == least && sealed.row.id <= newest_id).then_some((0, least))
        });
        // One quiet window has one sample of each type, which stays.
        let has_samples = |run: &Vec<u64>| {
            let rows = run.iter().filter_map(|id| self.backlog.get(*id)).map(|sealed| &sealed.row);
            rows.map(|row| row.windows.max(row.batches).max(1)).sum::<u32>() > 1
        };
        runs.into_iter().map(|run| self.fitting(&run)).find(has_samples)
    }

    /// Neighbouring segments with the same `class`, oldest first.
    fn runs(&self, class: impl Fn(&Sealed) -> Option<(u32, u8)>) -> Vec<Vec<u64>> {
        let mut runs: Vec<((u32, u8), Vec<u64>)> = Vec::new();
        let mut open = false;
        for sealed in self.backlog.sealed() {
            let sound = sealed.is_idle() && !sealed.damaged;
            let Some(own) = class(sealed).filter(|_| sound) else {
                open = false;
                continue;
            };
            match runs.last_mut() {
                Some((class, run)) if open && *class == own => run.push(sealed.row.id),
                _ => runs.push((own, vec![sealed.row.id])),
            }
            open = true;
        }
        runs.into_iter().map(|(_, run)| run).collect()
    }

    /// The first segments of a run that fit into one.
    fn fitting(&self, run: &[u64]) -> Vec<u64> {
        let mut bytes = 0;
        let fits = |id: &&u64| {
            bytes += self.backlog.get(**id).map_or(0, |sealed| sealed.row.stored_bytes);
            bytes <= self.limits.segment_bytes_max
        };
        let count = run.iter().take(FAN).take_while(fits).count().max(1);
        run.iter().take(count).copied().collect()
    }
}

impl<D: WriteDisk> Log<D> {
    fn begin(&mut self, purpose: Purpose, sources: Vec<u64>) -> Result<Option<Merge>, StoreError> {
        let rows: Vec<&SegmentRow> =
            sources.iter().filter_map(|id| self.backlog.get(*id)).map(|s| &s.row).collect();
        let newest = sources.iter().map(|id| segment::generation(*id)).max().unwrap_or(0);
        let Some(id) = sources.first().and_then(|first| segment::merged_id(*first, newest)) else {
            return Ok(None);
        };
        let mut row = SegmentRow::empty(id, 0, 0);
        row.window_ms = (
            rows.iter().map(|row| row.window_ms.0).min().unwrap_or(0),
            rows.iter().map(|row| row.window_ms.1).max().unwrap_or(0),
        );
        row.windows = rows.iter().map(|row| row.windows.max(1)).sum();
        row.thinned = rows.iter().map(|row| row.thinned).max().unwrap_or(0);
        row.thinned += u8::from(purpose == Purpose::Thin);
        let mut waiting = VecDeque::new();
        for row in rows {
            waiting.extend(row.pending().map(|number| BatchKey { segment: row.id, number }));
        }
        self.store.create(id)?;
        Ok(Some(Merge {
            purpose,
            sources,
            waiting,
            open: true,
            row,
            from: Vec::new(),
            written: Vec::new(),
            checksums: Vec::new(),
            group: Vec::new(),
            group_bytes: 0,
            thinning: Thinning::default(),
            checking: None,
            checked: 0,
        }))
    }

    /// One step: reads a batch, writes a group, checks a group, or finishes. A merge that fails
    /// leaves its sources as they were.
    fn step(&mut self, mut merge: Merge) -> Result<Option<Merge>, StoreError> {
        let stepped = self.advance(&mut merge);
        match stepped {
            Ok(Progress::More) => Ok(Some(merge)),
            Ok(Progress::Done) => Ok(None),
            Err(error) => {
                self.merge = Some(merge);
                self.abandon_merge();
                Err(error)
            }
        }
    }

    fn advance(&mut self, merge: &mut Merge) -> Result<Progress, StoreError> {
        let full =
            merge.group_bytes >= GROUP_RAW_BYTES_MAX || merge.group.len() >= GROUP_BATCHES_MAX;
        if full || (merge.waiting.is_empty() && !merge.group.is_empty()) {
            return self.write_group(merge).map(|()| Progress::More);
        }
        if let Some(key) = merge.waiting.pop_front() {
            return self.read_into(merge, key).map(|()| Progress::More);
        }
        if std::mem::take(&mut merge.open) {
            self.store.close(merge.row.id, merge.row.frames)?;
            let index = Index::of(self.store.frames(merge.row.id)?, &merge.row);
            merge.checking = Some(index.blocks().map(<[_]>::to_vec).collect());
            return Ok(Progress::More);
        }
        match merge.checking.as_mut().and_then(VecDeque::pop_front) {
            Some(block) => self.check_group(merge, &block).map(|()| Progress::More),
            None => self.finish(merge),
        }
    }

    fn read_into(&mut self, merge: &mut Merge, key: BatchKey) -> Result<(), StoreError> {
        if !self.backlog.is_pending(key) {
            return Ok(()); // delivered or evicted meanwhile
        }
        let plans = self.plans(key.segment)?;
        let Some(plan) = plans.iter().find(|plan| plan.number == key.number) else {
            return Ok(());
        };
        let Some(batch) = self.read(key)? else { return Ok(()) };
        let (mut origin, mut records) = (plan.origin, batch.records);
        if merge.purpose == Purpose::Thin {
            origin.thinned = origin.thinned.saturating_add(1);
            records = merge.thinning.thin(records);
        }
        if records.is_empty() {
            return Ok(());
        }
        merge.group_bytes += records.iter().map(|record| record.memory_bytes() as u64).sum::<u64>();
        let complete = records.len() as u64 == plan.records;
        let sum = |own| if complete { own } else { record::content(&records) };
        let content = plan.content.map(sum);
        merge.group.push(GroupBatch { origin, content, records });
        merge.from.push(key);
        Ok(())
    }

    fn write_group(&mut self, merge: &mut Merge) -> Result<(), StoreError> {
        let batches = std::mem::take(&mut merge.group);
        merge.group_bytes = 0;
        let entries: Vec<GroupEntry> = batches.iter().map(GroupEntry::of).collect();
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        let row = &mut merge.row;
        if row.frames == 0 {
            row.first_seq = first.first_seq;
        }
        let place = Place {
            queue: self.queue_id(),
            segment: row.id,
            number: row.frames,
            batch: row.batches,
            first_seq: first.first_seq,
            chain: Chain::default(), // it counts when its row does
        };
        let newest = merge.sources.iter().max().copied().unwrap_or(0);
        let positions =
            if row.frames == 0 { self.journal.lasting_positions(newest) } else { Vec::new() };
        let frames = group::encode(place, &batches, &positions);
        self.store.append(row.id, row.frames, &frames)?;
        row.end_seq = last.last_seq + 1;
        row.frames += frames.len() as u64;
        row.stored_bytes += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        row.batches += u32::try_from(entries.len()).unwrap_or(u32::MAX);
        row.records += entries.iter().map(|entry| entry.records).sum::<u64>();
        row.raw_bytes += entries.iter().map(|entry| entry.raw_bytes).sum::<u64>();
        merge.checksums.extend(batches.iter().map(|batch| record::content(&batch.records)));
        merge.written.extend(entries);
        Ok(())
    }

    /// Compares a group as it is on disk with what was to be written.
    fn check_group(&mut self, merge: &mut Merge, block: &[Found]) -> Result<(), StoreError> {
        let frames = self.store.read(merge.row.id, block)?;
        let read = group::decode(&frames).map(|(batches, _)| batches).unwrap_or_default();
        let expected = merge.written.iter().zip(&merge.checksums).skip(merge.checked);
        let same = read.iter().zip(expected).filter(|(batch, (entry, sum))| {
            GroupEntry::of(batch) == **entry && record::content(&batch.records) == **sum
        });
        let same = same.count();
        merge.checked += read.len();
        if same == read.len() && !read.is_empty() { Ok(()) } else { Err(unlike(merge.row.id)) }
    }

    /// Makes the new segment count instead of its sources, which go.
    fn finish(&mut self, merge: &mut Merge) -> Result<Progress, StoreError> {
        if merge.checked != merge.written.len() {
            return Err(unlike(merge.row.id));
        }
        let mut row = merge.row.clone();
        for ((number, from), entry) in (0..).zip(&merge.from).zip(&merge.written) {
            if !self.backlog.is_pending(*from) {
                row.deliver(number);
                row.delivered_records += entry.records;
            }
        }
        let mut changes = Vec::new();
        for id in &merge.sources {
            if let Some(sealed) = self.backlog.get(*id) {
                let mut source = sealed.row.clone();
                (0..source.batches).for_each(|batch| source.deliver(batch));
                changes.push(rows::segment_row(&source));
            }
        }
        let empty = row.is_done();
        if !empty {
            changes.push(rows::segment_row(&row));
        }
        let lost = merge.thinning.lost;
        let losses = (lost.as_slice(), self.now_ms);
        self.journal.put_with_losses(&mut self.store, changes, losses)?;
        self.counts.evicted_records += lost.map_or(0, |loss| loss.records);
        self.counts.thinned_records += lost.map_or(0, |loss| loss.records);
        self.counts.merged_segments += merge.sources.len() as u64;
        self.replace(merge, row);
        if empty {
            self.remove_segment(merge.row.id);
        }
        Ok(Progress::Done)
    }

    /// Puts the new segment in the place of its sources, in memory and on disk.
    fn replace(&mut self, merge: &Merge, row: SegmentRow) {
        let mut sealed = Sealed::on_disk(row, None);
        for (number, from) in (0..).zip(&merge.from) {
            let source = self.backlog.get(from.segment);
            if let Some(attempt) = source.and_then(|source| source.attempts.get(&from.number)) {
                sealed.attempts.insert(number, attempt.clone());
            }
        }
        if !sealed.row.is_done() {
            self.backlog.insert(sealed);
        }
        for id in &merge.sources {
            let damaged = self.backlog.get(*id).is_some_and(|sealed| sealed.damaged);
            if damaged && self.store.quarantine(*id).is_ok() {
                self.forget(*id);
                self.journal.later(rows::drop_segment_row(*id));
            } else {
                self.remove_segment(*id);
            }
        }
    }
}

/// Whether a merge goes on.
enum Progress {
    More,
    Done,
}

impl Thinning {
    /// Keeps every second sample of each type. Metrics of one type and time are one sample.
    fn thin(&mut self, records: Vec<Record>) -> Vec<Record> {
        let (kept, lost) = records.into_iter().partition::<Vec<_>, _>(|record| {
            let (last_ms, count) =
                self.samples.entry(record.kind.clone()).or_insert((record.at_ms, 0));
            if *last_ms != record.at_ms {
                (*last_ms, *count) = (record.at_ms, *count + 1);
            }
            *count % 2 == 0
        });
        for record in lost {
            let (seq, at_ms) = (record.seq, record.at_ms);
            let thinned = self.lost.get_or_insert(NewLoss {
                range: (seq, seq),
                records: 0,
                reason: LossReason::Evict,
                time_ms: (at_ms, at_ms),
            });
            thinned.range = (thinned.range.0.min(seq), thinned.range.1.max(seq));
            thinned.time_ms = (thinned.time_ms.0.min(at_ms), thinned.time_ms.1.max(at_ms));
            thinned.records += 1;
        }
        kept
    }
}

/// Segments of one tier are merged with each other.
fn tier(windows: u32) -> u32 {
    windows.max(1).ilog(u32::try_from(FAN).unwrap_or(u32::MAX))
}

fn unlike(id: u64) -> StoreError {
    let error = std::io::Error::new(
        std::io::ErrorKind::InvalidData,
        "what is read back is not what was written",
    );
    StoreError::new("verify", format!("segment {id:020}"), error)
}

#[cfg(test)]
mod tests;
