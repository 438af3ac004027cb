//! Merging: segments that wait are written again, together, while nobody needs the disk.
//!
//! A quiet window is a few records and takes a file system's smallest units; its neighbours are
//! almost equal to it. So neighbouring segments become one, their batches compressed together. The
//! new segment is durable and was read back before the state says, in one step, that it holds what
//! its sources held; only then do they go. Batches keep their origin, and so their ids. Thinning
//! and setting damage aside are the same work, with fewer records at its end.

use std::collections::{BTreeMap, VecDeque};

use super::{
    block::Place,
    budget::OnFull,
    group::{self, GROUP_BATCHES_MAX, GROUP_RAW_BYTES_MAX, GroupBatch, GroupEntry},
    index::Index,
    ledger::{LossReason, NewLoss},
    log::{BatchKey, Log, Sealed},
    record::{Position, Record},
    ring::Home,
    segment::{self, SegmentRow},
    state::{self, PositionAt},
    store::{SegmentWriter, Store, StoreError},
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
pub(super) struct Merge<W> {
    purpose: Purpose,
    sources: Vec<u64>,
    /// Batches still to read.
    waiting: VecDeque<BatchKey>,
    writer: Option<W>,
    row: SegmentRow,
    /// Where each batch of the new segment comes from.
    from: Vec<BatchKey>,
    /// What is in the new segment, to compare with what is read back.
    written: Vec<GroupEntry>,
    checksums: Vec<u32>,
    group: Vec<GroupBatch>,
    group_bytes: u64,
    thinning: Thinning,
    /// Blocks still to check, once everything is written.
    checking: Option<VecDeque<Vec<super::salvage::Found>>>,
    checked: usize,
}

/// Which samples stay: every second one of each type.
#[derive(Debug, Default)]
struct Thinning {
    /// By type: the time of the last sample, and how many there were.
    samples: BTreeMap<String, (i64, u64)>,
    lost: Option<NewLoss>,
}

impl<S: Store> Log<S> {
    /// What the log does by itself, from time to time: what is too old goes, and segments that wait
    /// are merged, a little at each call. Returns whether there is more to do at once.
    pub fn tend(&mut self, now_ms: i64) -> bool {
        self.now_ms = now_ms;
        self.expire_kept();
        self.evict_old();
        if self.disk.error.is_some() || self.is_draining() || self.is_pausing() {
            return false;
        }
        let stepped = match self.merge.take() {
            Some(merge) => self.step(merge),
            None => match self.choose() {
                Some((purpose, sources)) => self.begin(purpose, sources),
                None => return false,
            },
        };
        match stepped {
            Ok(merge) => {
                self.merge = merge;
                true
            }
            Err(error) => {
                tracing::warn!(%error, "segments cannot be merged now");
                self.merge_at_ms = now_ms.saturating_add(RETRY_MS);
                false
            }
        }
    }

    /// Gives up a merge that is not finished: its sources have everything.
    pub(super) fn abandon_merge(&mut self) {
        if let Some(merge) = self.merge.take() {
            drop(merge.writer);
            if let Err(error) = self.store.remove(merge.row.id) {
                tracing::warn!(%error, "an unfinished segment is removed at the next start");
            }
        }
    }

    /// Whether a failure was a short while ago, on a clock that may have been put back since.
    fn is_pausing(&self) -> bool {
        (1..=RETRY_MS).contains(&self.merge_at_ms.saturating_sub(self.now_ms))
    }

    fn is_draining(&self) -> bool {
        let sending = self.sealed.values().any(|sealed| !sealed.in_flight.is_empty());
        let since = self.now_ms.saturating_sub(self.delivered_at_ms);
        sending || (self.delivered_at_ms > 0 && (0..QUIET_MS).contains(&since))
    }

    fn choose(&self) -> Option<(Purpose, Vec<u64>)> {
        let idle = |sealed: &&Sealed| {
            sealed.home == Home::Disk && sealed.in_flight.is_empty() && sealed.unreadable.is_none()
        };
        let damaged = self.sealed.values().filter(idle).find(|sealed| sealed.damaged);
        if let Some(damaged) = damaged {
            return Some((Purpose::Salvage, vec![damaged.row.id]));
        }
        let full =
            self.usage().saturating_add(self.reserve_bytes) > self.limits.budget.bytes_max / 8 * 7;
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
        let newest = self.sealed.len() - self.sealed.len() / 4;
        let candidates: Vec<&Sealed> = self.sealed.values().take(newest.max(1)).collect();
        let least = candidates.iter().map(|sealed| sealed.row.thinned).min()?;
        let newest_id = candidates.last().map(|sealed| sealed.row.id)?;
        if least >= THINNED_MAX {
            return None;
        }
        let runs = self.runs(|sealed| {
            (sealed.row.thinned == least && sealed.row.id <= newest_id).then_some((0, least))
        });
        let windows = |id: &u64| self.sealed.get(id).map_or(0, |s| s.row.windows.max(1));
        runs.into_iter()
            .map(|run| self.fitting(&run))
            .find(|run| run.iter().map(windows).sum::<u32>() > 1)
    }

    /// Neighbouring segments with the same `class`, oldest first.
    fn runs(&self, class: impl Fn(&Sealed) -> Option<(u32, u8)>) -> Vec<Vec<u64>> {
        let mut runs: Vec<((u32, u8), Vec<u64>)> = Vec::new();
        let mut open = false;
        for sealed in self.sealed.values() {
            let sound = sealed.home == Home::Disk
                && sealed.in_flight.is_empty()
                && sealed.unreadable.is_none()
                && !sealed.damaged;
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
            bytes += self.sealed.get(id).map_or(0, |sealed| sealed.row.stored_bytes);
            bytes <= self.limits.segment_bytes_max
        };
        let count = run.iter().take(FAN).take_while(fits).count().max(1);
        run.iter().take(count).copied().collect()
    }

    fn begin(
        &mut self,
        purpose: Purpose,
        sources: Vec<u64>,
    ) -> Result<Option<Merge<S::Writer>>, StoreError> {
        let rows: Vec<&SegmentRow> =
            sources.iter().filter_map(|id| self.sealed.get(id)).map(|sealed| &sealed.row).collect();
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
        let writer = Some(self.store.create(id)?);
        Ok(Some(Merge {
            purpose,
            sources,
            waiting,
            writer,
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
    fn step(
        &mut self,
        mut merge: Merge<S::Writer>,
    ) -> Result<Option<Merge<S::Writer>>, StoreError> {
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

    fn advance(&mut self, merge: &mut Merge<S::Writer>) -> Result<Progress, StoreError> {
        let full =
            merge.group_bytes >= GROUP_RAW_BYTES_MAX || merge.group.len() >= GROUP_BATCHES_MAX;
        if full || (merge.waiting.is_empty() && !merge.group.is_empty()) {
            return self.write_group(merge).map(|()| Progress::More);
        }
        if let Some(key) = merge.waiting.pop_front() {
            return self.read_into(merge, key).map(|()| Progress::More);
        }
        if let Some(writer) = merge.writer.take() {
            writer.close()?;
            let index = Index::of(self.store.frames(merge.row.id)?, &merge.row);
            merge.checking = Some(index.blocks().map(<[_]>::to_vec).collect());
            return Ok(Progress::More);
        }
        match merge.checking.as_mut().and_then(VecDeque::pop_front) {
            Some(block) => self.check_group(merge, &block).map(|()| Progress::More),
            None => self.finish(merge),
        }
    }

    fn read_into(&mut self, merge: &mut Merge<S::Writer>, key: BatchKey) -> Result<(), StoreError> {
        let pending = |sealed: &Sealed| !sealed.row.is_delivered(key.number);
        if !self.sealed.get(&key.segment).is_some_and(pending) {
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
        merge.group.push(GroupBatch { origin, records });
        merge.from.push(key);
        Ok(())
    }

    fn write_group(&mut self, merge: &mut Merge<S::Writer>) -> Result<(), StoreError> {
        let batches = std::mem::take(&mut merge.group);
        merge.group_bytes = 0;
        let entries: Vec<GroupEntry> = batches.iter().map(GroupEntry::of).collect();
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        let row = &mut merge.row;
        if row.frames == 0 {
            row.first_seq = first.first_seq;
        }
        let place = Place {
            queue: self.queue_id,
            segment: row.id,
            number: row.frames,
            batch: row.batches,
            first_seq: first.first_seq,
        };
        let newest = merge.sources.iter().max().copied().unwrap_or(0);
        let positions = if row.frames == 0 { self.positions_until(newest) } else { Vec::new() };
        let frames = group::encode(place, &batches, &positions);
        if let Some(writer) = merge.writer.as_mut() {
            writer.append(row.frames, &frames)?;
        }
        row.end_seq = last.last_seq + 1;
        row.frames += frames.len() as u64;
        row.stored_bytes += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
        row.batches += u32::try_from(entries.len()).unwrap_or(u32::MAX);
        row.records += entries.iter().map(|entry| entry.records).sum::<u64>();
        row.raw_bytes += entries.iter().map(|entry| entry.raw_bytes).sum::<u64>();
        merge.checksums.extend(batches.iter().map(checksum));
        merge.written.extend(entries);
        Ok(())
    }

    /// How far the collectors had read in segments up to `newest`: a start without state finds it.
    fn positions_until(&self, newest: u64) -> Vec<Position> {
        let lasting = self
            .positions
            .iter()
            .filter(|(_, at)| at.segment <= newest && at.keep_until_ms.is_none());
        let position = |(name, at): (&String, &PositionAt)| Position {
            collector: name.clone(),
            bytes: at.bytes.clone(),
            keep_until_ms: None,
        };
        lasting.map(position).collect()
    }

    /// Compares a group as it is on disk with what was to be written.
    fn check_group(
        &mut self,
        merge: &mut Merge<S::Writer>,
        block: &[super::salvage::Found],
    ) -> Result<(), StoreError> {
        let frames = self.store.read(merge.row.id, block)?;
        let read = group::decode(&frames).map(|(batches, _)| batches).unwrap_or_default();
        let expected = merge.written.iter().zip(&merge.checksums).skip(merge.checked);
        let same = read.iter().zip(expected).filter(|(batch, (entry, sum))| {
            GroupEntry::of(batch) == **entry && checksum(batch) == **sum
        });
        let same = same.count();
        merge.checked += read.len();
        if same == read.len() && !read.is_empty() { Ok(()) } else { Err(unlike(merge.row.id)) }
    }

    /// Makes the new segment count instead of its sources, which go.
    fn finish(&mut self, merge: &mut Merge<S::Writer>) -> Result<Progress, StoreError> {
        if merge.checked != merge.written.len() {
            return Err(unlike(merge.row.id));
        }
        let mut row = merge.row.clone();
        for (number, from) in (0..).zip(&merge.from) {
            let pending = |sealed: &Sealed| !sealed.row.is_delivered(from.number);
            if !self.sealed.get(&from.segment).is_some_and(pending) {
                row.deliver(number);
            }
        }
        let mut rows = Vec::new();
        for id in &merge.sources {
            if let Some(sealed) = self.sealed.get(id) {
                let mut source = sealed.row.clone();
                (0..source.batches).for_each(|batch| source.deliver(batch));
                rows.push(state::segment_row(&source));
            }
        }
        let empty = row.is_done();
        if !empty {
            rows.push(state::segment_row(&row));
        }
        let before = self.ledger.clone();
        let lost = merge.thinning.lost;
        if let Some(loss) = lost {
            self.note_loss(loss);
        }
        if let Err(error) = self.put(rows) {
            self.ledger = before;
            return Err(error);
        }
        self.counts.evicted_records += lost.map_or(0, |loss| loss.records);
        self.counts.thinned_records += lost.map_or(0, |loss| loss.records);
        self.counts.merged_segments += merge.sources.len() as u64;
        self.replace(merge, row);
        if empty && let Err(error) = self.store.remove(merge.row.id) {
            tracing::warn!(%error, "an empty segment is removed at the next start");
        }
        Ok(Progress::Done)
    }

    /// Puts the new segment in the place of its sources, in memory and on disk.
    fn replace(&mut self, merge: &Merge<S::Writer>, row: SegmentRow) {
        let mut sealed = Sealed::new(row, None, Vec::new(), Home::Disk);
        for (number, from) in (0..).zip(&merge.from) {
            let attempt = self.sealed.get(&from.segment).and_then(|s| s.attempts.get(&from.number));
            if let Some(attempt) = attempt {
                sealed.attempts.insert(number, attempt.clone());
            }
        }
        if !sealed.row.is_done() {
            self.sealed.insert(sealed.row.id, sealed);
        }
        for id in &merge.sources {
            let gone = if self.sealed.get(id).is_some_and(|sealed| sealed.damaged) {
                self.finish_segment(*id)
            } else {
                self.remove_segment(*id)
            };
            if let Err(error) = gone {
                tracing::warn!(segment = id, %error, "a merged segment goes at the next start");
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

/// Over everything that a batch's records hold.
fn checksum(batch: &GroupBatch) -> u32 {
    let add = |sum, record: &Record| {
        let sum = crc32c::crc32c_append(sum, record.kind.as_bytes());
        let sum = crc32c::crc32c_append(sum, &record.at_ms.to_le_bytes());
        crc32c::crc32c_append(sum, &record.payload)
    };
    batch.records.iter().fold(0, add)
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
