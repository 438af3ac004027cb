//! Opening a log: rows and segments are brought together, whatever order a crash left them in.
//! First it is decided what there is, and what has to be done about it; a log that is only looked
//! at stops there.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Log, LogLimits,
    age::AgeClock,
    backlog::Sealed,
    index::{Gap, Index},
    journal::{Journal, SegmentRows},
    ledger::NewLoss,
};
use crate::queue::{
    LossReason,
    format::{
        block, group,
        rows::{self, KeptRow, StateChange},
        salvage::{Found, Scan, Stranger},
        segment::{self, SegmentRow},
    },
    store::{
        self, Store, StoreError,
        disk::{ReadDisk, WriteDisk},
        segment_folder,
    },
};

/// Numbers that are left out when nobody knows where those of a segment end: more than a segment
/// has. A later start, which may read it, must find its numbers given to no other.
const UNKNOWN_SEQS: u64 = 1 << 24;
/// How often a segment without a row that the disk does not give is asked for.
const UNREAD_RETRY_MS: i64 = 10_000;

/// What has to be done about a segment that was found.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// What it reserved goes back.
    Trim(u64),
    /// It is empty, or delivered.
    Remove(u64),
    /// A person has to look at it.
    Quarantine(u64),
    /// It is of another queue, or of another number.
    QuarantineStranger(u64, Stranger),
    /// Another process wrote it at the same time.
    QuarantineRival(u64),
    /// Its move to the kept ones was under way.
    Keep(u64),
}

/// A segment without a row that the disk has not given.
#[derive(Debug, Clone, Copy)]
pub(in crate::queue) struct Unread {
    around: Neighbours,
    retry_at_ms: i64,
}

/// What was found, as far as it is not in the log yet.
#[derive(Debug, Default)]
struct Findings {
    changes: Vec<StateChange>,
    actions: Vec<Action>,
    /// Numbers to leave out.
    unknown_seqs: u64,
}

/// What lies around a segment that has no row.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::queue) struct Neighbours {
    /// The numbers below were given before its first record.
    pub(super) from: u64,
    /// The first number of the next segment.
    pub(super) until: Option<u64>,
}

impl<D: WriteDisk> Log<D> {
    /// Opens the log on `disk`. Reads the state and the segments that were never sealed, not the
    /// backlog. Deletes nothing but segments whose delivery is recorded and empty ones.
    ///
    /// A lost state is rebuilt from the segments. A state that cannot be read now is an error:
    /// nothing has been changed then, and the same call may succeed later.
    pub fn open(disk: D, limits: LogLimits) -> Result<Self, StoreError> {
        let mut store = Store::open(disk, limits.reserve_bytes())?;
        let (journal, rows) = Journal::open(&mut store)?;
        rename_back(&mut store, &rows)?;
        let mut log = Self::new(store, journal, limits);
        let found = log.recover(rows)?;
        if log.journal.is_blank() {
            if !log.store.is_new {
                // The state is lost, and with it how far the numbers were.
                log.journal.take_seqs(UNKNOWN_SEQS);
            }
            log.journal.touch();
        } else if log.journal.is_behind() {
            log.journal.touch();
        }
        log.carry_out(found);
        Ok(log)
    }

    /// Asks again for the segments without a row that the disk has not given.
    pub(super) fn read_unread(&mut self) {
        let due = |(_, unread): &(&u64, &Unread)| unread.retry_at_ms <= self.now_ms;
        let due: Vec<u64> = self.unread.iter().filter(due).map(|(id, _)| *id).collect();
        for id in due {
            let Some(Unread { around, .. }) = self.unread.remove(&id) else { continue };
            let mut found = Findings::default();
            match self.recover_unread(id, around, &mut found) {
                Ok(Some(row)) => self.take_row(row, &mut found),
                Ok(None) => {}
                Err(_) => self.set_unread(id, around, self.now_ms.saturating_add(UNREAD_RETRY_MS)),
            }
            self.carry_out(found);
        }
    }

    fn carry_out(&mut self, Findings { mut changes, actions, .. }: Findings) {
        for action in actions {
            changes.extend(self.act(action));
        }
        if !changes.is_empty() {
            changes.extend(self.journal.position_rows());
        }
        if let Err(error) = self.put(changes.clone()) {
            tracing::warn!(%error, "the queue's state cannot be written yet");
            for change in changes {
                self.journal.later(change);
            }
        }
    }

    /// Does what has to be done about a segment, and says what that changes. A disk that cannot do
    /// it now does not keep the log from opening.
    fn act(&mut self, action: Action) -> Option<StateChange> {
        let store = &mut self.store;
        let (id, done) = match action {
            Action::Trim(id) => (id, store.trim(id)),
            Action::Remove(id) => (id, store.remove(id)),
            Action::Quarantine(id) => (id, store.quarantine(id)),
            Action::QuarantineStranger(id, owner) => {
                let moved = store.quarantine_stranger(id, owner);
                (id, moved.map(|path| told_of_stranger(id, owner, &path)))
            }
            Action::QuarantineRival(id) => {
                (id, store.quarantine_rival(id).map(|path| told_of_rival(id, &path)))
            }
            Action::Keep(id) => (id, store.keep(id).map(|()| self.backlog.moved(id))),
        };
        match done {
            // The row of one that cannot be removed stays, and so it is never sent again.
            Ok(()) => matches!(action, Action::Remove(_)).then(|| rows::drop_segment_row(id)),
            Err(error) => {
                tracing::warn!(segment = id, %error, "a segment stays as it is for now");
                None
            }
        }
    }
}

fn told_of_stranger(id: u64, owner: Stranger, path: &std::path::Path) {
    tracing::error!(
        segment = id, queue = %owner.queue, own = owner.segment, kept = %path.display(),
        "a segment of another queue, or of another number, is put aside; hint: `agent queue repair \
         --requeue` queues its records here"
    );
}

fn told_of_rival(id: u64, path: &std::path::Path) {
    tracing::error!(
        segment = id, kept = %path.display(),
        "records that no other segment holds, under numbers that others have: another process had \
         the queue open at the same time, and they are put aside; hint: `agent queue repair \
         --requeue` queues them with numbers of their own"
    );
}

/// Gives segments whose folders were renamed their names back, and takes those that wait, and that
/// somebody has moved to the delivered ones, back from there. One that was copied there waits where
/// it is, and the copy is put aside: it stands where the segment is to be kept.
fn rename_back<D: WriteDisk>(store: &mut Store<D>, rows: &SegmentRows) -> Result<(), StoreError> {
    for id in store.kept()? {
        let row = rows.sealed.get(&id);
        if rows.kept.contains_key(&id) || row.is_some_and(SegmentRow::is_done) {
            continue;
        }
        if store.has_segment(id) {
            store.quarantine_kept(id)?;
            tracing::error!(segment = id, "a copy of a segment that waits is put aside");
        } else if row.is_some() {
            store.keep_no_more(id)?;
            tracing::error!(segment = id, "a segment that waits was among the delivered ones");
        }
    }
    for id in store.segments()? {
        if rows.sealed.contains_key(&id) || rows.kept.contains_key(&id) {
            continue;
        }
        let owner = store::owner_in(&store.disk, &segment_folder(id));
        let own = owner.filter(|owner| owner.queue == store.queue_id() && owner.segment != id);
        if let Some(own) = own
            && store.rename_back(id, own.segment)?
        {
            tracing::error!(
                segment = own.segment,
                found = id,
                "a renamed segment has its name back"
            );
        }
    }
    Ok(())
}

impl<D: ReadDisk> Log<D> {
    /// Looks at the log on `disk`, and changes nothing.
    pub fn look(disk: D, limits: LogLimits) -> Result<Self, StoreError> {
        let store = Store::look(disk)?;
        let (journal, rows) = Journal::look(&store)?;
        let mut log = Self::new(store, journal, limits);
        log.recover(rows)?;
        Ok(log)
    }

    fn recover(&mut self, rows: SegmentRows) -> Result<Findings, StoreError> {
        let SegmentRows { sealed: mut rows, kept } = rows;
        // What is found wrong here is noticed after the newest thing that is known.
        let newest =
            |rows: &BTreeMap<u64, SegmentRow>| rows.values().map(|row| row.window_ms.1).max();
        let newest_kept = kept.values().map(|kept| kept.delivered_ms).max();
        self.now_ms = newest(&rows).max(newest_kept).unwrap_or(0);
        let mut found = Findings::default();
        let mut ids = self.store.segments()?;
        self.recover_kept(kept, &ids, &mut found)?;
        // What is kept, and only not moved yet, does not wait.
        ids.retain(|id| self.backlog.get_kept(*id).is_none());
        self.journal.has_segment(ids.last().copied().unwrap_or(0));
        let (written, merged): (Vec<u64>, Vec<u64>) =
            ids.iter().partition(|id| segment::generation(**id) == 0);
        self.recover_written(&written, &mut rows, &mut found);
        let mut found_merged = Vec::new();
        for id in merged {
            let row = match rows.remove(&id) {
                Some(row) => row,
                None => match self.recover_merged(id, &ids, &mut found) {
                    Ok(Some(row)) => {
                        found_merged.push(row.first_seq..row.end_seq);
                        row
                    }
                    Ok(None) => continue,
                    Err(error) => {
                        self.told_of_unread(id, &error, Neighbours::default(), &mut found);
                        continue;
                    }
                },
            };
            self.take_row(row, &mut found);
        }
        self.journal.take_seqs(found.unknown_seqs);
        for row in rows.into_values() {
            // What it held may be in a merged segment whose row was lost.
            if !found_merged.iter().any(|range| range.contains(&row.first_seq)) {
                self.note_vanished(&row);
            }
            found.changes.push(rows::drop_segment_row(row.id));
        }
        let newest = self.backlog.sealed().map(|sealed| sealed.row.window_ms.1).max();
        let newest = newest.max((self.now_ms > 0).then_some(self.now_ms));
        self.age = AgeClock::of_earlier(self.journal.age_ms().or(newest));
        Ok(found)
    }

    /// The segments as they were written. From the newest to the oldest: how far one without a row
    /// counts depends on the next.
    fn recover_written(
        &mut self,
        ids: &[u64],
        rows: &mut BTreeMap<u64, SegmentRow>,
        found: &mut Findings,
    ) {
        let (mut scans, mut failed) = (BTreeMap::new(), BTreeMap::new());
        for id in ids.iter().filter(|id| !rows.contains_key(id)) {
            match self.store.frames(*id) {
                Ok(scan) => _ = scans.insert(*id, scan),
                Err(error) => _ = failed.insert(*id, error),
            }
        }
        let mut until = None;
        for id in ids.iter().rev() {
            let around = Neighbours { from: self.given_before(*id, rows, &scans), until };
            let row = match (rows.get(id).cloned(), scans.get(id)) {
                (Some(row), _) => Some(row),
                (None, Some(scan)) => self.recover_segment(*id, scan, around, found),
                (None, None) => {
                    if let Some(error) = failed.get(id) {
                        self.told_of_unread(*id, error, around, found);
                    }
                    None
                }
            };
            let Some(row) = row else { continue };
            until = Some(row.first_seq);
            self.take_row(row, found);
        }
        rows.retain(|id, _| !ids.contains(id));
    }

    /// A segment without a row cannot be read now: its numbers are given to no other, and it is
    /// asked for again.
    fn told_of_unread(
        &mut self,
        id: u64,
        error: &StoreError,
        around: Neighbours,
        found: &mut Findings,
    ) {
        tracing::error!(segment = id, %error, "left alone until the disk gives it");
        found.unknown_seqs += UNKNOWN_SEQS;
        self.set_unread(id, around, self.now_ms.saturating_add(UNREAD_RETRY_MS));
    }

    /// Has a segment without a row read, not before `retry_at_ms`.
    pub(super) fn set_unread(&mut self, id: u64, around: Neighbours, retry_at_ms: i64) {
        self.unread.insert(id, Unread { around, retry_at_ms });
    }

    /// The row of a segment that could not be read at the start.
    fn recover_unread(
        &mut self,
        id: u64,
        around: Neighbours,
        found: &mut Findings,
    ) -> Result<Option<SegmentRow>, StoreError> {
        if segment::generation(id) > 0 {
            let ids = self.store.segments()?;
            return self.recover_merged(id, &ids, found);
        }
        let scan = self.store.frames(id)?;
        Ok(self.recover_segment(id, &scan, around, found))
    }

    /// The numbers below this one were given before segment `id` was begun.
    fn given_before(
        &self,
        id: u64,
        rows: &BTreeMap<u64, SegmentRow>,
        scans: &BTreeMap<u64, Scan>,
    ) -> u64 {
        let end = |found: &Found| found.head.first_seq + u64::from(found.head.records);
        let in_rows = rows.range(..id).next_back().map(|(_, row)| row.end_seq);
        let in_scans = scans.range(..id).filter_map(|(_, scan)| scan.found.last()).map(end).max();
        let kept = self.backlog.kept().map(|kept| &kept.row.row);
        let in_kept = kept.filter(|row| row.id < id).map(|row| row.end_seq).max();
        let in_state = self.journal.given_before(id);
        in_rows.max(in_scans).max(in_kept).max(in_state).unwrap_or(0)
    }

    /// Takes a closed segment in; one that is done goes.
    fn take_row(&mut self, row: SegmentRow, found: &mut Findings) {
        self.journal.has_given(row.end_seq);
        if row.is_done() {
            found.actions.push(Action::Remove(row.id));
        } else {
            self.backlog.insert(Sealed::on_disk(row, None));
        }
    }

    /// The row of a segment that a crash left unsealed, from its frames; positions are taken from
    /// them too. `None` when nothing in it was ever acknowledged.
    fn recover_segment(
        &mut self,
        id: u64,
        scan: &Scan,
        around: Neighbours,
        found: &mut Findings,
    ) -> Option<SegmentRow> {
        let finished = SegmentRow::finished(&scan.found, around.until);
        let unfinished = &scan.found[finished.len()..];
        if !unfinished.is_empty() {
            let first = unfinished.iter().filter(|frame| frame.head.part == 0);
            let records: u64 = first.map(|frame| u64::from(frame.head.records)).sum();
            tracing::warn!(
                segment = id,
                records,
                "the beginning of what was never written to its end, and never acknowledged, does \
                 not count"
            );
        }
        let mut row = SegmentRow::recovered(id, finished, around.until);
        if row.frames == 0 {
            if finished.is_empty() && !unfinished.is_empty() {
                found.actions.push(Action::Quarantine(id));
            } else {
                self.put_away(id, scan, around, found);
            }
            return None;
        }
        if scan.found.first().is_some_and(|first| first.head.number > 0) {
            // Its first frames are damaged: their numbers begin where those before it end.
            row.first_seq = row.first_seq.min(around.from);
        }
        // What is missing between the frames is found, and told, when the segment is read.
        let gaps = Index::of(scan.clone(), &row).gaps(&row);
        row.records += gaps.iter().map(|gap| self.unexplained(gap.from, gap.to)).sum::<u64>();
        self.recover_positions(scan, &row);
        tracing::info!(segment = id, records = row.records, "found an unsealed segment");
        found.actions.push(Action::Trim(id));
        found.changes.push(rows::segment_row(&row));
        Some(row)
    }

    /// How many of these numbers the ledger does not have.
    fn unexplained(&self, from: u64, to: u64) -> u64 {
        (to + 1).saturating_sub(from).saturating_sub(self.journal.ledger().known_in(from, to))
    }

    /// A segment without one block that counts: nothing, damage, or somebody else's. What has a
    /// sound checksum is never deleted.
    fn put_away(&mut self, id: u64, scan: &Scan, around: Neighbours, found: &mut Findings) {
        if let Some(owner) = scan.stranger.filter(|_| scan.found.is_empty()) {
            return found.actions.push(Action::QuarantineStranger(id, owner));
        }
        if scan.found.is_empty() && scan.broken == 0 {
            return found.actions.push(Action::Remove(id));
        }
        if !scan.found.is_empty() {
            let again = self.is_written_again(id, scan);
            let action = if again { Action::Quarantine } else { Action::QuarantineRival };
            return found.actions.push(action(id));
        }
        tracing::error!(segment = id, "no block of a segment counts: see quarantine/");
        found.actions.push(Action::Quarantine(id));
        let Some(until) = around.until else {
            found.unknown_seqs += UNKNOWN_SEQS; // nobody knows how many there were
            return;
        };
        let records =
            if around.from < until { self.unexplained(around.from, until - 1) } else { 0 };
        self.note_lost((around.from, until.saturating_sub(1)), records, (self.now_ms, self.now_ms));
    }

    /// Whether later segments hold every block of one that failed under its process. What they do
    /// not hold was written by another process at the same time, and has numbers of their records.
    fn is_written_again(&self, id: u64, scan: &Scan) -> bool {
        let later = self.store.segments().unwrap_or_default().into_iter().filter(|n| *n > id);
        let later = later.filter_map(|id| self.store.frames(id).ok()).flat_map(|scan| scan.found);
        let later: Vec<Found> = later.collect();
        let held = |own: &Found| later.iter().any(|other| own.head.holds_the_same(&other.head));
        scan.found.iter().all(held)
    }

    /// The row of a merged segment without one: the process ended before the merge counted, or the
    /// state is lost. Batches that a segment of a lower generation still has are left to it: a
    /// merge's sources are always lower. `None` when that is all of them.
    fn recover_merged(
        &mut self,
        id: u64,
        ids: &[u64],
        found: &mut Findings,
    ) -> Result<Option<SegmentRow>, StoreError> {
        let scan = self.store.frames(id)?;
        let Some(mut row) = SegmentRow::recovered_merged(id, &scan) else {
            self.put_away(id, &scan, Neighbours { from: 0, until: Some(0) }, found);
            return Ok(None);
        };
        let index = Index::of(scan, &row);
        let missing = |gap: &Gap| gap.to - gap.from + 1;
        row.records += index.gaps(&row).iter().map(missing).sum::<u64>();
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
                row.delivered_records += plan.records;
            }
        }
        if row.is_done() {
            found.actions.push(Action::Remove(id));
            return Ok(None);
        }
        for block in index.blocks() {
            let frames = self.store.read(id, block)?;
            let positions = group::decode(&frames).map(|(_, positions)| positions);
            self.journal.find_positions(id, positions.unwrap_or_default());
        }
        tracing::info!(segment = id, records = row.records, "found a merged segment");
        found.changes.push(rows::segment_row(&row));
        Ok(Some(row))
    }

    fn recover_positions(&mut self, scan: &Scan, row: &SegmentRow) {
        let promised: Vec<_> =
            scan.found.iter().filter(|frame| row.promises(&frame.head)).copied().collect();
        let mut at = 0;
        while let Some(first) = promised.get(at) {
            let parts = usize::from(first.head.parts).max(1);
            let block = promised.get(at..at + parts).unwrap_or_default();
            let frames = self.store.read(row.id, block).unwrap_or_default();
            let Ok(body) = block::decode(&frames) else {
                at += 1;
                continue;
            };
            at += parts;
            self.journal.find_positions(row.id, body.positions);
        }
    }

    /// The segments that are delivered and kept. One whose row is lost was delivered all the same,
    /// unless it is a copy of one that waits; one that is not there is forgotten.
    fn recover_kept(
        &mut self,
        rows: BTreeMap<u64, KeptRow>,
        waiting: &[u64],
        found: &mut Findings,
    ) -> Result<(), StoreError> {
        let there = self.store.kept()?;
        for (id, kept) in rows {
            let is_waiting = waiting.contains(&id);
            if !is_waiting && !there.contains(&id) {
                found.changes.push(rows::drop_kept_row(id));
                continue;
            }
            self.backlog.insert_kept(kept);
            if is_waiting {
                found.actions.push(Action::Keep(id));
            } else {
                self.backlog.moved(id);
            }
        }
        for id in there {
            if self.backlog.get_kept(id).is_none()
                && !waiting.contains(&id)
                && let Some(kept) = self.find_kept(id)
            {
                found.changes.push(rows::kept_row(&kept));
                self.journal.has_given(kept.row.end_seq);
                self.backlog.insert_kept(kept);
                self.backlog.moved(id);
            }
        }
        Ok(())
    }

    /// The row of a kept segment, from its frames.
    fn find_kept(&self, id: u64) -> Option<KeptRow> {
        let scan = self.store.frames(id).ok()?;
        let mut row = match segment::generation(id) {
            0 => SegmentRow::recovered(id, &scan.found, None),
            _ => SegmentRow::recovered_merged(id, &scan)?,
        };
        (0..row.batches).for_each(|batch| row.deliver(batch));
        let delivered_ms = row.window_ms.1;
        (row.frames > 0).then_some(KeptRow { row, delivered_ms })
    }

    /// A row whose segment is gone: either its removal was under way, or somebody deleted it.
    pub(super) fn note_vanished(&mut self, row: &SegmentRow) {
        if row.is_done() {
            return;
        }
        let range = (row.first_seq, row.end_seq.saturating_sub(1));
        // What was delivered of it is not lost.
        let records = row.waiting_records().saturating_sub(row.corrupt);
        self.note_lost(range, records, row.window_ms);
        tracing::error!(
            segment = row.id,
            records,
            first_seq = row.first_seq,
            "records lost: their segment has vanished from the queue directory"
        );
    }

    fn note_lost(&mut self, range: (u64, u64), records: u64, time_ms: (i64, i64)) {
        self.counts.corrupt_records += records;
        self.note_loss(NewLoss { range, records, reason: LossReason::Corrupt, time_ms });
    }
}
