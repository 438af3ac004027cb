//! Appending: records get their numbers, become blocks, and are written to the active segment, or
//! to the next one when that fails.

use super::{
    block::{self, BLOCK_RAW_BYTES_MAX, Place, RECORD_BYTES_MAX},
    log::{Active, Appended, Log, Sealed},
    record::{Group, Position, Record},
    ring::Home,
    segment::{self, BatchLimits, BatchPlan, SegmentRow},
    store::{SegmentWriter, Store},
};

impl<S: Store> Log<S> {
    /// Takes groups and makes them durable with one sync. When the disk does not take them they
    /// stay in memory, are delivered from there, and are written when the disk is back.
    pub fn append(&mut self, groups: Vec<Group>, now_ms: i64) -> Appended {
        self.save_unsaved(now_ms);
        let (records, positions) = self.number(groups);
        let appended = records.len() as u64;
        let first_seq = records.first().map_or(self.next_seq, |record| record.seq);
        let home = if records.is_empty() && positions.is_empty() {
            Home::Disk
        } else {
            self.roll_if_full(now_ms);
            self.write_blocks(&records, &positions, now_ms)
        };
        let segment = self.active.as_ref().map_or(0, |active| active.row.id);
        for position in positions {
            self.positions.insert(position.collector, (segment, position.bytes));
        }
        self.counts.appended_records += appended;
        self.evict_over_bound();
        Appended { first_seq, records: appended, home }
    }

    fn number(&mut self, groups: Vec<Group>) -> (Vec<Record>, Vec<Position>) {
        let mut records = Vec::new();
        let mut positions = Vec::new();
        for group in groups {
            for new in group.records {
                if new.payload.len() > RECORD_BYTES_MAX {
                    tracing::error!(kind = new.kind, bytes = new.payload.len(), "record too large");
                    self.counts.evicted_records += 1;
                    continue;
                }
                let (kind, at_ms, payload) = (new.kind, new.at_ms, new.payload);
                records.push(Record { seq: self.next_seq, kind, at_ms, payload });
                self.next_seq += 1;
            }
            positions.extend(group.position);
        }
        (records, positions)
    }

    fn roll_if_full(&mut self, now_ms: i64) {
        let full = |active: &Active<_>| active.row.stored_bytes >= self.limits.segment_bytes_max;
        if self.active.as_ref().is_some_and(full) {
            self.seal(now_ms);
        }
    }

    /// Makes sure that a segment is open; without a disk it is open in memory.
    fn ensure_active(&mut self, first_seq: u64, now_ms: i64) {
        if self.active.is_some() {
            return;
        }
        let id = (self.last_segment + 1).max(u64::try_from(now_ms).unwrap_or(0));
        self.last_segment = id;
        let writer = self.try_disk(now_ms, |store| store.create(id));
        let row = SegmentRow::empty(id, first_seq, now_ms);
        self.ring.begin(id);
        self.active = Some(Active { row, plans: Vec::new(), writer, unsaved: Vec::new() });
    }

    /// Writes records to the active segment. A segment that fails is never written again: it is
    /// closed with what it had, and the records go to a new one, at last to one in memory.
    fn write_blocks(&mut self, records: &[Record], positions: &[Position], now_ms: i64) -> Home {
        let first_seq = records.first().map_or(self.next_seq, |record| record.seq);
        let mut failures = 0;
        loop {
            self.ensure_active(first_seq, now_ms);
            let Some(mut active) = self.active.take() else { continue };
            let before = (active.row.clone(), active.plans.clone());
            let frames = self.encode(&mut active, records, positions);
            match active.writer.as_mut().map(|writer| writer.append(before.0.frames, &frames)) {
                Some(Err(error)) => {
                    failures += 1;
                    if failures > 1 {
                        self.disk_failed(&error, now_ms);
                    } else {
                        tracing::warn!(%error, "a segment failed and is closed");
                    }
                    drop(active);
                    self.close_broken(before.0, before.1, now_ms);
                }
                written => {
                    let home = if written.is_some() { Home::Disk } else { Home::MemoryOnly };
                    if home == Home::MemoryOnly {
                        active.unsaved.extend(frames);
                    }
                    self.ring.push(active.row.id, records, home);
                    self.active = Some(active);
                    return home;
                }
            }
        }
    }

    /// Encodes records as blocks of the active segment and accounts for them.
    fn encode(
        &self,
        active: &mut Active<S::Writer>,
        records: &[Record],
        positions: &[Position],
    ) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut blocks = blocks_of(records, self.limits.batch).peekable();
        // A position without records still needs a block to travel in.
        let mut at_least_one = blocks.peek().is_none().then_some(&records[..0]).into_iter();
        while let Some(block) = blocks.next().or_else(|| at_least_one.next()) {
            let last = blocks.peek().is_none();
            let raw_bytes: usize = block.iter().map(Record::memory_bytes).sum();
            let first_seq = block.first().map_or(active.row.end_seq(), |record| record.seq);
            let batch = segment::plan_block(
                &mut active.plans,
                self.limits.batch,
                first_seq,
                block.len() as u64,
                raw_bytes as u64,
            );
            let (queue, segment) = (self.queue_id, active.row.id);
            let place = Place { queue, segment, number: active.row.frames, batch, first_seq };
            let encoded = block::encode(place, block, if last { positions } else { &[] });
            active.row.records += block.len() as u64;
            active.row.raw_bytes += raw_bytes as u64;
            active.row.stored_bytes += encoded.iter().map(|frame| frame.len() as u64).sum::<u64>();
            active.row.frames += encoded.len() as u64;
            active.row.batches = u32::try_from(active.plans.len()).unwrap_or(u32::MAX);
            frames.extend(encoded);
        }
        frames
    }

    /// Keeps what a failed segment had acknowledged.
    fn close_broken(&mut self, mut row: SegmentRow, plans: Vec<BatchPlan>, now_ms: i64) {
        if row.frames == 0 {
            self.ring.remove(row.id);
            return discard(&mut self.store, row.id);
        }
        row.window_ms.1 = now_ms;
        // The frames that were never acknowledged are written again elsewhere: a start must not
        // find them here too, even if the row cannot be written.
        let cut = self.store.cut(row.id, row.frames);
        self.store.trim(row.id).ok();
        if let Err(error) = cut.and(self.store.put_state(&self.seal_rows(&row))) {
            tracing::warn!(%error, "a start will find the segment without its row");
        }
        self.sealed.insert(row.id, Sealed::new(row, Some(plans), Vec::new(), Home::Disk));
    }
}

/// Forgets a segment of which nothing was acknowledged. Its frames are made unrecognisable first,
/// in case that it cannot be removed: what they hold is written elsewhere.
pub(super) fn discard<S: Store>(store: &mut S, id: u64) {
    if let Err(error) = store.cut(id, 0).and_then(|()| store.remove(id)) {
        tracing::warn!(segment = id, %error, "what is left of a failed segment stays for now");
    }
}

/// Splits records into runs of about [`BLOCK_RAW_BYTES_MAX`], none larger than a batch may be.
fn blocks_of(records: &[Record], batch: BatchLimits) -> impl Iterator<Item = &[Record]> {
    let bytes_max = usize::try_from(batch.raw_bytes_max)
        .map_or(BLOCK_RAW_BYTES_MAX, |max| max.min(BLOCK_RAW_BYTES_MAX));
    let records_max = usize::try_from(batch.records_max).unwrap_or(usize::MAX);
    let mut rest = records;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(records_max).take_while(|record| {
            bytes += record.memory_bytes();
            bytes <= bytes_max
        });
        let count = fits.count().max(1).min(rest.len());
        let (block, after) = rest.split_at(count);
        rest = after;
        (!block.is_empty()).then_some(block)
    })
}
