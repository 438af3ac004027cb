//! Opening a log: rows and segments are brought together, whatever order a crash left them in.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    block, group,
    index::{Gap, Index},
    ledger::{LossReason, NewLoss},
    log::{Log, LogLimits},
    record::Position,
    retain::Kept,
    salvage::Scan,
    segment::{self, SegmentRow},
    state::{self, PositionAt, Row},
    store::{StateChange, Store, StoreError},
};

/// Numbers that are left out when the disk does not give a segment whose end nobody knows: more
/// than a segment has. A later start, which may read it, must find its numbers given to no other.
const UNREADABLE_SEQS: u64 = 1 << 24;

impl<S: Store> Log<S> {
    /// Opens the log on `store`. Reads the state and the segments that were never sealed, not the
    /// backlog. Deletes nothing but segments whose delivery is recorded and empty ones.
    pub fn open(store: S, limits: LogLimits) -> Result<Self, StoreError> {
        let mut log = Self::empty(store, limits);
        let mut rows = log.read_rows();
        // What is found wrong here is noticed after the newest thing that is known.
        log.now_ms = rows.values().map(|row| row.window_ms.1).max().unwrap_or(0);
        log.recover_kept()?;
        let ids = log.store.segments()?;
        log.last_segment = log.last_segment.max(ids.last().copied().unwrap_or(0));
        let mut changes = Vec::new();
        let (written, merged): (Vec<u64>, Vec<u64>) =
            ids.iter().partition(|id| segment::generation(**id) == 0);
        let (mut next_first_seq, mut skipped_seqs) = (None, 0);
        // From the newest to the oldest: how far an unsealed segment counts depends on the next.
        for id in written.iter().rev().copied() {
            let row = match rows.remove(&id) {
                Some(row) => row,
                None => match log.recover_segment(id, next_first_seq) {
                    Ok(Some(row)) => {
                        changes.push(state::segment_row(&row));
                        row
                    }
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::error!(segment = id, %error, "left alone until the next start");
                        skipped_seqs += UNREADABLE_SEQS;
                        continue;
                    }
                },
            };
            next_first_seq = Some(row.first_seq);
            changes.extend(log.take_row(row));
        }
        let mut found_merged = Vec::new();
        for id in merged {
            let row = match rows.remove(&id) {
                Some(row) => row,
                None => match log.recover_merged(id, &ids)? {
                    Some(row) => {
                        changes.push(state::segment_row(&row));
                        found_merged.push(row.first_seq..row.end_seq);
                        row
                    }
                    None => continue,
                },
            };
            changes.extend(log.take_row(row));
        }
        log.next_seq += skipped_seqs;
        for row in rows.into_values() {
            // What it held may be in a merged segment whose row was lost.
            if !found_merged.iter().any(|range| range.contains(&row.first_seq)) {
                log.note_vanished(&row);
            }
            changes.push(state::drop_segment_row(row.id));
        }
        log.record(changes);
        Ok(log)
    }

    /// Takes a closed segment in; one that is done goes.
    fn take_row(&mut self, row: SegmentRow) -> Option<StateChange> {
        self.next_seq = self.next_seq.max(row.end_seq);
        if !row.is_done() {
            self.insert_sealed(row);
            return None;
        }
        // Its row stays when it cannot be removed, and so it is never sent again.
        self.tidied(S::remove, row.id).then(|| state::drop_segment_row(row.id))
    }

    fn read_rows(&mut self) -> BTreeMap<u64, SegmentRow> {
        let mut segments = BTreeMap::new();
        let rows = self.store.state().unwrap_or_else(|error| {
            tracing::warn!(%error, "the queue's state cannot be read; segments are read instead");
            Vec::new()
        });
        for (key, value) in rows {
            match state::decode(&key, &value) {
                Some(Row::Segment(row)) => {
                    segments.insert(row.id, row);
                }
                Some(Row::Position(collector, at)) => {
                    self.positions_saved = self.positions_saved.max(at.segment);
                    self.positions.insert(collector, at);
                }
                Some(Row::Kept(kept)) => {
                    self.kept.insert(kept.row.id, Kept::new(kept));
                }
                Some(Row::Loss(loss)) => {
                    self.next_seq = self.next_seq.max(loss.to.saturating_add(1));
                    self.ledger.insert(loss);
                }
                Some(Row::Next(seq, segment)) => {
                    self.next_saved = (seq, segment);
                    self.next_seq = self.next_seq.max(seq);
                    self.last_segment = self.last_segment.max(segment);
                }
                None => tracing::warn!(?key, "an unknown row in the queue's state is left alone"),
            }
        }
        segments
    }

    /// The row of a segment that a crash left unsealed, from its frames; positions are taken from
    /// them too. `None` when nothing in it was ever acknowledged.
    fn recover_segment(
        &mut self,
        id: u64,
        next_first_seq: Option<u64>,
    ) -> Result<Option<SegmentRow>, StoreError> {
        let scan = self.store.frames(id)?;
        let mut row = SegmentRow::recovered(id, &scan.found, next_first_seq);
        // What is missing between the frames is found, and told, when the segment is read.
        let missing = |gap: &Gap| {
            (gap.to - gap.from + 1).saturating_sub(self.ledger.known_in(gap.from, gap.to))
        };
        let gaps = Index::of(scan.clone(), &row).gaps(&row);
        row.records += gaps.iter().map(missing).sum::<u64>();
        if row.frames > 0 {
            self.recover_positions(&scan, &row)?;
            self.tidied(S::trim, id);
            tracing::info!(segment = id, records = row.records, "found an unsealed segment");
            return Ok(Some(row));
        }
        self.put_away(id, &scan);
        Ok(None)
    }

    /// A segment without one readable block: nothing, or damage.
    fn put_away(&mut self, id: u64, scan: &Scan) {
        if scan.broken == 0 {
            self.tidied(S::remove, id);
        } else {
            tracing::error!(segment = id, "no block of a segment can be read: see quarantine/");
            self.tidied(S::quarantine, id);
        }
    }

    /// The row of a merged segment without one: the process ended before the merge counted, or the
    /// state is lost. Batches that a segment of a lower generation still has are left to it: a
    /// merge's sources are always lower. `None` when that is all of them.
    fn recover_merged(&mut self, id: u64, ids: &[u64]) -> Result<Option<SegmentRow>, StoreError> {
        let scan = self.store.frames(id)?;
        let Some(mut row) = SegmentRow::recovered_merged(id, &scan) else {
            self.put_away(id, &scan);
            return Ok(None);
        };
        let index = Index::of(scan.clone(), &row);
        let missing: u64 = index.gaps(&row).iter().map(|gap| gap.to - gap.from + 1).sum();
        row.records += missing;
        let mut elsewhere = BTreeSet::new();
        let lower = segment::generation(id);
        let lower = ids.iter().filter(|other| (1..lower).contains(&segment::generation(**other)));
        for other in lower {
            let groups = self.store.frames(*other)?.groups;
            elsewhere.extend(groups.into_values().flatten().map(|entry| entry.origin));
        }
        for plan in index.plans.iter() {
            if ids.contains(&plan.origin.segment) || elsewhere.contains(&plan.origin) {
                row.deliver(plan.number);
            }
        }
        if row.is_done() {
            self.tidied(S::remove, id);
            return Ok(None);
        }
        for block in index.blocks() {
            let frames = self.store.read(id, block)?;
            let positions = group::decode(&frames).map(|(_, positions)| positions);
            self.take_positions(id, positions.unwrap_or_default());
        }
        tracing::info!(segment = id, records = row.records, "found a merged segment");
        Ok(Some(row))
    }

    fn take_positions(&mut self, segment: u64, positions: Vec<Position>) {
        for position in positions {
            let held = self.positions.entry(position.collector).or_default();
            if held.segment <= segment {
                let (bytes, keep_until_ms) = (position.bytes, position.keep_until_ms);
                *held = PositionAt { segment, bytes, keep_until_ms };
            }
        }
    }

    /// Tidies a segment up. A disk that cannot do it now does not keep the log from opening.
    fn tidied(&mut self, tidy: fn(&mut S, u64) -> Result<(), StoreError>, id: u64) -> bool {
        tidy(&mut self.store, id)
            .inspect_err(|error| tracing::warn!(%error, "a segment stays as it is for now"))
            .is_ok()
    }

    fn recover_positions(&mut self, scan: &Scan, row: &SegmentRow) -> Result<(), StoreError> {
        let promised: Vec<_> =
            scan.found.iter().filter(|frame| frame.head.number < row.frames).copied().collect();
        let mut at = 0;
        while let Some(first) = promised.get(at) {
            let parts = usize::from(first.head.parts).max(1);
            let block = promised.get(at..at + parts).unwrap_or_default();
            let frames = self.store.read(row.id, block)?;
            let Ok(body) = block::decode(&frames) else {
                at += 1;
                continue;
            };
            at += parts;
            self.take_positions(row.id, body.positions);
        }
        Ok(())
    }

    /// Finishes the moves of segments that are delivered and kept. One whose row is lost, or that
    /// is not there, is forgotten: it was delivered.
    fn recover_kept(&mut self) -> Result<(), StoreError> {
        let waiting = self.store.segments()?;
        let there = self.store.kept()?;
        for id in self.kept.keys().copied().collect::<Vec<_>>() {
            if waiting.contains(&id) {
                self.tidied(S::keep, id);
            } else if !there.contains(&id) {
                self.kept.remove(&id);
            }
        }
        for id in there {
            if !self.kept.contains_key(&id) {
                self.tidied(S::drop_kept, id);
            }
        }
        Ok(())
    }

    /// A row whose segment is gone: either its removal was under way, or somebody deleted it.
    fn note_vanished(&mut self, row: &SegmentRow) {
        if row.is_done() {
            return;
        }
        let records = row.records - row.corrupt;
        self.counts.corrupt_records += records;
        self.note_loss(NewLoss {
            range: (row.first_seq, row.end_seq.saturating_sub(1)),
            records,
            reason: LossReason::Corrupt,
            time_ms: row.window_ms,
        });
        tracing::error!(
            segment = row.id,
            records,
            first_seq = row.first_seq,
            "records lost: their segment has vanished from the queue directory"
        );
    }

    fn record(&mut self, mut changes: Vec<StateChange>) {
        if changes.is_empty() {
            return;
        }
        changes.extend(self.positions.iter().map(|(name, at)| state::position_row(name, at)));
        if let Err(error) = self.put(changes) {
            tracing::warn!(%error, "the queue's state cannot be written yet");
        }
    }
}
