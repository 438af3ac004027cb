//! Appending: records get their numbers, become blocks, and are written to the active segment, or
//! to the next one when that fails.

use super::{
    block::{self, BLOCK_RAW_BYTES_MAX, Place, RECORD_BYTES_MAX},
    budget::{Durability, OnFull},
    ledger::{LossReason, NewLoss},
    log::{Active, Appended, Log, Sealed},
    record::{self, Group, Position, Record},
    ring::Home,
    segment::{self, BatchLimits, BatchPlan, BlockFacts, SegmentRow},
    state::{self, PositionAt},
    store::{SegmentWriter, Store},
};

/// Groups on their way to blocks.
#[derive(Default)]
struct Numbered {
    records: Vec<Record>,
    positions: Vec<Position>,
    rejected: u64,
}

impl<S: Store> Log<S> {
    /// Takes groups and makes them durable with one sync. When the disk does not take them they
    /// stay in memory, are delivered from there, and are written when the disk is back. With
    /// `on_full = "block"`, `has_room` is asked first.
    pub fn append(&mut self, groups: Vec<Group>, now_ms: i64) -> Appended {
        self.now_ms = now_ms;
        self.save_unsaved(now_ms);
        let Numbered { records, positions, rejected } = self.number(groups);
        let first_seq = records.first().map_or(self.next_seq, |record| record.seq);
        self.note_rejected(rejected);
        let home = if records.is_empty() && positions.is_empty() {
            Home::Disk
        } else {
            self.roll_if_full(now_ms);
            self.admit(&records, &positions)
        };
        let segment = self.active.as_ref().map_or(self.last_segment, |active| active.row.id);
        let mut rows = Vec::new();
        for position in positions {
            let Position { collector, bytes, keep_until_ms } = position;
            let at = PositionAt { segment, bytes, keep_until_ms };
            if home == Home::Evicted && keep_until_ms.is_some() {
                continue; // the key of a request that is refused now: sent again, it is a new one
            }
            if home == Home::Evicted {
                rows.push(state::position_row(&collector, &at)); // no block carries it
            }
            self.positions.insert(collector, at);
        }
        if (rejected > 0 || home == Home::Evicted)
            && let Err(error) = self.put(rows)
        {
            tracing::warn!(%error, "the ledger of lost records stays in memory for now");
        }
        self.counts.appended_records += records.len() as u64;
        self.evict_over_memory();
        Appended { first_seq, records: records.len() as u64, home }
    }

    /// Writes records, or evicts them when the queue is full and the new is what goes.
    fn admit(&mut self, records: &[Record], positions: &[Position]) -> Home {
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return self.write_blocks(records, positions);
        };
        if self.limits.budget.on_full != OnFull::EvictNewest || self.has_room() {
            return self.write_blocks(records, positions);
        }
        self.note_loss(NewLoss {
            range: (first.seq, last.seq),
            records: records.len() as u64,
            reason: LossReason::Evict,
            time_ms: record::time_span(records),
        });
        self.counts.evicted_records += records.len() as u64;
        Home::Evicted
    }

    /// Metrics that were refused at the door have numbers, too, and an entry in the ledger.
    fn note_rejected(&mut self, records: u64) {
        if records > 0 {
            let range = (self.next_seq, self.next_seq + records - 1);
            self.next_seq += records;
            self.counts.rejected_records += records;
            let time_ms = (self.now_ms, self.now_ms);
            self.note_loss(NewLoss { range, records, reason: LossReason::Reject, time_ms });
        }
    }

    /// Syncs what was acknowledged before it was synced (`durability = "interval"`), and notes what
    /// was delivered. What a failed sync leaves in doubt is written again, elsewhere.
    pub fn sync(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
        self.note_deliveries();
        let Some(active) = self.active.as_mut() else { return };
        if active.unsynced.is_empty() {
            return;
        }
        if let Some(Err(error)) = active.writer.as_mut().map(SegmentWriter::sync) {
            tracing::warn!(%error, "a segment failed and is closed");
            let Some(Active { unsynced, synced: (row, plans), .. }) = self.active.take() else {
                return;
            };
            self.close_broken(row, plans, now_ms);
            self.write_again(unsynced);
            self.sync(now_ms);
        } else {
            active.unsynced.clear();
            active.synced = (active.row.clone(), active.plans.clone());
        }
    }

    fn write_again(&mut self, unsynced: Vec<(Vec<Record>, Vec<Position>)>) {
        for (records, positions) in unsynced {
            self.write_blocks(&records, &positions);
        }
    }

    fn number(&mut self, groups: Vec<Group>) -> Numbered {
        let mut numbered = Numbered::default();
        for group in groups {
            for new in group.records {
                if new.payload.len() > RECORD_BYTES_MAX {
                    tracing::error!(kind = new.kind, bytes = new.payload.len(), "record too large");
                    numbered.rejected += 1;
                    continue;
                }
                let (kind, at_ms, payload) = (new.kind, new.at_ms, new.payload);
                numbered.records.push(Record { seq: self.next_seq, kind, at_ms, payload });
                self.next_seq += 1;
            }
            numbered.positions.extend(group.position);
            numbered.rejected += group.rejected;
        }
        numbered
    }

    fn roll_if_full(&mut self, now_ms: i64) {
        let full = |active: &Active<_>| active.row.stored_bytes >= self.limits.segment_bytes_max;
        if self.active.as_ref().is_some_and(full) {
            self.seal(now_ms);
        }
    }

    /// Makes sure that a segment is open; without a disk it is open in memory.
    fn ensure_active(&mut self, first_seq: u64) {
        if self.active.is_some() {
            return;
        }
        if self.disk.error.is_none() {
            self.make_room();
        }
        let now_ms = self.now_ms;
        let id = segment::next_id(self.last_segment, now_ms, std::mem::take(&mut self.leap));
        self.last_segment = id;
        let writer = self.try_disk(now_ms, |store| store.create(id));
        let row = SegmentRow::empty(id, first_seq, now_ms);
        self.ring.begin(id);
        self.active = Some(Active::new(row, writer));
    }

    /// Writes records to the active segment. A segment that fails is never written again: it is
    /// closed with what it had, and the records go to a new one, at last to one in memory.
    fn write_blocks(&mut self, records: &[Record], positions: &[Position]) -> Home {
        let first_seq = records.first().map_or(self.next_seq, |record| record.seq);
        let mut failures = 0;
        loop {
            self.ensure_active(first_seq);
            let Some(mut active) = self.active.take() else { continue };
            let before = (active.row.clone(), active.plans.clone());
            let frames = self.encode(&mut active, records, positions);
            let durability = self.limits.durability;
            let written = active.writer.as_mut().map(|writer| {
                writer.append(before.0.frames, &frames)?;
                if durability == Durability::Sync { writer.sync() } else { Ok(()) }
            });
            match written {
                Some(Err(error)) => {
                    failures += 1;
                    if failures > 1 {
                        self.disk_failed(&error, self.now_ms);
                    } else {
                        tracing::warn!(%error, "a segment failed and is closed");
                    }
                    let unsynced = std::mem::take(&mut active.unsynced);
                    let (row, plans) = if unsynced.is_empty() { before } else { active.synced };
                    drop(active.writer);
                    self.close_broken(row, plans, self.now_ms);
                    self.write_again(unsynced);
                }
                Some(Ok(())) => {
                    if durability == Durability::Interval {
                        active.unsynced.push((records.to_vec(), positions.to_vec()));
                    }
                    return self.written(active, records, Home::Disk);
                }
                None => {
                    active.unsaved.extend(frames);
                    return self.written(active, records, Home::MemoryOnly);
                }
            }
        }
    }

    fn written(&mut self, active: Active<S::Writer>, records: &[Record], home: Home) -> Home {
        self.ring.push(active.row.id, records, home);
        self.active = Some(active);
        home
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
            let first_seq = block.first().map_or(active.row.end_seq, |record| record.seq);
            let (queue, segment) = (self.queue_id, active.row.id);
            let facts = BlockFacts {
                first_seq,
                records: block.len() as u64,
                raw_bytes: raw_bytes as u64,
                time_ms: record::time_span(block),
            };
            let limits = self.limits.batch;
            let batch = segment::plan_block(&mut active.plans, limits, segment, facts);
            let place = Place { queue, segment, number: active.row.frames, batch, first_seq };
            let encoded = block::encode(place, block, if last { positions } else { &[] });
            active.row.records += block.len() as u64;
            active.row.end_seq = active.row.end_seq.max(first_seq + block.len() as u64);
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
        if let Err(error) = cut.and(self.put_sealed(&row)) {
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
