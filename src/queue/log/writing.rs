//! Appending: records get their numbers, become blocks, and are written to the active segment, or
//! to the next one when that fails.

use uuid::Uuid;

use super::{Appended, Log, backlog::Sealed, ledger::NewLoss, ring::Home, writer::Active};
use crate::queue::{
    LossReason,
    budget::{Durability, OnFull},
    format::{
        block::{self, BLOCK_RAW_BYTES_MAX, Chain, Place, RECORD_BYTES_MAX},
        record::{self, Group, Position, Record},
        rows::{self, PositionAt},
        segment::{self, BatchLimits, BatchPlan, BlockFacts, SegmentRow},
    },
    store::{Store, disk::WriteDisk},
    waiting::Dropped,
};

/// Groups on their way to blocks.
#[derive(Default)]
struct Numbered {
    records: Vec<Record>,
    positions: Vec<Position>,
    rejected: u64,
}

impl<D: WriteDisk> Log<D> {
    /// Takes groups and makes them durable with one sync. When the disk does not take them they
    /// stay in memory, are delivered from there, and are written when the disk is back. With
    /// `on_full = "block"`, `has_room` is asked first.
    pub fn append(&mut self, groups: Vec<Group>, now_ms: i64) -> Appended {
        self.make_ready(now_ms);
        let Numbered { records, positions, rejected } = self.number(groups);
        let first_seq = records.first().map_or(self.journal.next_seq(), |record| record.seq);
        self.note_rejected(rejected);
        let home = if records.is_empty() && positions.is_empty() {
            Home::Disk
        } else {
            self.admit(&records, &positions)
        };
        let active = self.writer.active.as_ref();
        let segment = active.map_or(self.journal.last_segment(), |active| active.row.id);
        let mut changes = Vec::new();
        for position in positions {
            let Position { collector, bytes, keep_until_ms } = position;
            let at = PositionAt { segment, bytes, keep_until_ms };
            if home == Home::Evicted && keep_until_ms.is_some() {
                continue; // the key of a request that is refused now: sent again, it is a new one
            }
            if home == Home::Evicted {
                changes.push(rows::position_row(&collector, &at)); // no block carries it
            }
            self.journal.set_position(collector, at);
        }
        if (rejected > 0 || home == Home::Evicted)
            && let Err(error) = self.put(changes)
        {
            tracing::warn!(%error, "the ledger of lost records stays in memory for now");
        }
        self.counts.appended_records += records.len() as u64;
        self.counts.appended_bytes +=
            records.iter().map(|record| record.payload.len() as u64).sum::<u64>();
        self.evict_over_memory();
        Appended { first_seq, records: records.len() as u64, home }
    }

    /// Counts records that memory had no room for before they had numbers.
    pub(in crate::queue) fn note_dropped(&mut self, dropped: Dropped, now_ms: i64) {
        self.now_ms = now_ms;
        let Dropped { records, time_ms } = dropped;
        let first = self.journal.take_seqs(records);
        let range = (first, first + records - 1);
        self.counts.evicted_records += records;
        self.note_loss(NewLoss { range, records, reason: LossReason::Evict, time_ms });
        self.save_journal();
        tracing::error!(records, "records lost: the memory for them was full");
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
            let first = self.journal.take_seqs(records);
            let range = (first, first + records - 1);
            self.counts.rejected_records += records;
            let time_ms = (self.now_ms, self.now_ms);
            self.note_loss(NewLoss { range, records, reason: LossReason::Reject, time_ms });
        }
    }

    /// Syncs what was acknowledged before it was synced (`durability = "interval"`), and notes what
    /// was delivered. What a failed sync leaves in doubt is written again, elsewhere.
    pub fn sync(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
        if self.journal.is_unsaved() {
            self.save_journal();
        }
        let Some(active) = self.writer.active.as_mut() else { return };
        if active.unsynced.is_empty() {
            return;
        }
        let synced = if active.on_disk { self.store.sync(active.row.id) } else { Ok(()) };
        if let Err(error) = synced {
            tracing::warn!(%error, "a segment failed and is closed");
            let Some(Active { unsynced, synced: (row, plans), .. }) = self.writer.active.take()
            else {
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

    pub(super) fn write_again(&mut self, unsynced: Vec<(Vec<Record>, Vec<Position>)>) {
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
                let seq = self.journal.take_seqs(1);
                numbered.records.push(Record { seq, kind, at_ms, payload });
            }
            numbered.positions.extend(group.position);
            numbered.rejected += group.rejected;
        }
        numbered
    }

    /// Does what has to be done before it can be said whether there is room for more records: what
    /// is only in memory is written, and a segment that is full ends.
    pub(super) fn make_ready(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
        self.save_unsaved(now_ms);
        let full = |active: &Active| active.row.stored_bytes >= self.limits.segment_bytes_max;
        if self.writer.active.as_ref().is_some_and(full) {
            self.seal(now_ms);
        }
    }

    /// Makes sure that a segment is open; without a disk it is open in memory.
    fn ensure_active(&mut self, first_seq: u64) {
        if self.writer.active.is_some() {
            return;
        }
        if self.disk_error().is_none() {
            self.make_room();
        }
        let now_ms = self.now_ms;
        let id = self.writer.next_id(self.journal.last_segment(), now_ms);
        self.journal.has_segment(id);
        let on_disk = self.try_disk(now_ms, |store| store.create(id)).is_some();
        let row = SegmentRow::empty(id, first_seq, now_ms);
        self.writer.ring.begin(id);
        self.writer.active = Some(Active::new(row, on_disk));
    }

    /// Writes records to the active segment. A segment that fails is never written again: it is
    /// closed with what it had, and the records go to a new one, at last to one in memory.
    fn write_blocks(&mut self, records: &[Record], positions: &[Position]) -> Home {
        let first_seq = records.first().map_or(self.journal.next_seq(), |record| record.seq);
        let mut failures = 0;
        loop {
            self.ensure_active(first_seq);
            let Some(mut active) = self.writer.active.take() else { continue };
            let before = (active.row.clone(), active.plans.clone());
            let frames = self.encode(&mut active, records, positions);
            if !active.on_disk {
                active.unsaved.extend(frames);
                return self.written(active, records);
            }
            let durability = self.limits.durability;
            let id = active.row.id;
            let appended = self.store.append(id, before.0.frames, &frames);
            let written = match durability {
                Durability::Sync => appended.and_then(|()| self.store.sync(id)),
                Durability::Interval | Durability::Os => appended,
            };
            let Err(error) = written else {
                if durability == Durability::Interval {
                    active.unsynced.push((records.to_vec(), positions.to_vec()));
                }
                return self.written(active, records);
            };
            failures += 1;
            if failures > 1 {
                self.disk_failed(&error, self.now_ms);
            } else {
                tracing::warn!(%error, "a segment failed and is closed");
            }
            let unsynced = std::mem::take(&mut active.unsynced);
            let (row, plans) = if unsynced.is_empty() { before } else { active.synced };
            self.close_broken(row, plans, self.now_ms);
            self.write_again(unsynced);
        }
    }

    fn written(&mut self, active: Active, records: &[Record]) -> Home {
        let home = active.home();
        self.writer.ring.push(active.row.id, records, home);
        self.writer.active = Some(active);
        home
    }

    /// Encodes records as blocks of the active segment and accounts for them.
    fn encode(
        &self,
        active: &mut Active,
        records: &[Record],
        positions: &[Position],
    ) -> Vec<Vec<u8>> {
        let (queue, limits) = (self.queue_id(), self.limits.batch);
        encode(active, (queue, limits), records, positions)
    }

    /// Keeps what a failed segment had acknowledged.
    pub(super) fn close_broken(&mut self, mut row: SegmentRow, plans: Vec<BatchPlan>, now_ms: i64) {
        self.store.abandon(row.id);
        if row.frames == 0 {
            self.writer.ring.remove(row.id);
            return discard(&mut self.store, row.id);
        }
        row.window_ms.1 = now_ms;
        if self.lacks_records(&row) {
            return self.close_gone(&row, plans);
        }
        // The frames that were never acknowledged are written again elsewhere: a start must not
        // find them here too, even if the row cannot be written.
        let cut = self.store.cut(&row);
        self.store.trim(row.id).ok();
        let none = (&[][..], now_ms);
        let put = cut.and_then(|()| self.journal.put_sealed(&mut self.store, &row, none));
        if let Err(error) = put {
            tracing::warn!(%error, "a start will find the segment without its row");
        }
        self.backlog.close(Sealed::on_disk(row, Some(plans)));
    }
}

/// Forgets a segment of which nothing was acknowledged. Its frames are made unrecognisable first,
/// in case that it cannot be removed: what they hold is written elsewhere.
pub(super) fn discard<D: WriteDisk>(store: &mut Store<D>, id: u64) {
    let nothing = SegmentRow::empty(id, 0, 0);
    if let Err(error) = store.cut(&nothing).and_then(|()| store.remove(id)) {
        tracing::warn!(segment = id, %error, "what is left of a failed segment stays for now");
    }
}

/// Encodes records as blocks of a segment of `queue` and accounts for them.
fn encode(
    active: &mut Active,
    (queue, limits): (Uuid, BatchLimits),
    records: &[Record],
    positions: &[Position],
) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut blocks = blocks_of(records, limits).peekable();
    // A position without records still needs a block to travel in.
    let mut at_least_one = blocks.peek().is_none().then_some(&records[..0]).into_iter();
    let mut chain = Chain::default();
    while let Some(block) = blocks.next().or_else(|| at_least_one.next()) {
        let last = blocks.peek().is_none();
        // Without the last block nobody knows how far the others had come.
        chain.goes_on = !last && !positions.is_empty();
        let first_seq = block.first().map_or(active.row.end_seq, |record| record.seq);
        let facts = BlockFacts::of(first_seq, block);
        let batch = segment::plan_block(&mut active.plans, limits, active.row.id, facts);
        let positions = if last { positions } else { &[] };
        let place = place(&active.row, queue, batch, (facts.first_seq, chain));
        let encoded = block::encode(place, block, positions);
        if let Some(plan) = active.plans.last_mut() {
            plan.add_content(encoded.content);
        }
        account(&mut active.row, facts, &encoded.frames);
        active.row.batches = u32::try_from(active.plans.len()).unwrap_or(u32::MAX);
        frames.extend(encoded.frames);
        chain.begun = chain.goes_on;
    }
    frames
}

/// Where the next block of a segment stands.
fn place(row: &SegmentRow, queue: Uuid, batch: u32, (first_seq, chain): (u64, Chain)) -> Place {
    Place { queue, segment: row.id, number: row.frames, batch, first_seq, chain }
}

fn account(row: &mut SegmentRow, facts: BlockFacts, frames: &[Vec<u8>]) {
    row.records += facts.records;
    row.end_seq = row.end_seq.max(facts.first_seq + facts.records);
    row.raw_bytes += facts.raw_bytes;
    row.stored_bytes += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
    row.frames += frames.len() as u64;
}

/// A segment anew, from the records that memory has of it: the same batches, and so the same ids.
/// `None` when memory does not have them all.
pub(super) fn encode_again(
    queue: Uuid,
    (row, plans): (&SegmentRow, &[BatchPlan]),
    records: &[Record],
    positions: &[Position],
) -> Option<Active> {
    let mut again = Active::new(SegmentRow::empty(row.id, row.first_seq, row.window_ms.0), false);
    again.plans = plans.to_vec();
    let mut runs: Vec<Vec<Record>> = Vec::new();
    for plan in plans {
        let range = plan.first_seq..=plan.last_seq;
        let own = records.iter().filter(|record| range.contains(&record.seq)).cloned();
        runs.push(own.collect());
        if runs.last().is_none_or(|own| own.len() as u64 != plan.records) {
            return None;
        }
    }
    let limits = BatchLimits { raw_bytes_max: u64::MAX, records_max: u64::MAX };
    let mut blocks: Vec<(&BatchPlan, u64, &[Record])> = Vec::new();
    for (plan, own) in plans.iter().zip(&runs) {
        // The first block has the sum of the blocks that were, so that the batch keeps its id.
        let sums = plan.content.into_iter().chain(std::iter::repeat(0));
        let own = blocks_of(own, limits).chain(own.is_empty().then_some(&own[..]));
        blocks.extend(sums.zip(own).map(|(sum, block)| (plan, sum, block)));
    }
    let mut chain = Chain::default();
    for (n, (plan, sum, block)) in blocks.iter().enumerate() {
        let last = n + 1 == blocks.len();
        chain.goes_on = !last && !positions.is_empty();
        let first_seq = block.first().map_or(again.row.end_seq, |record| record.seq);
        let place = place(&again.row, queue, plan.number, (first_seq, chain));
        let positions = if last { positions } else { &[] };
        let frames = block::encode_again(place, *sum, block, positions).frames;
        account(&mut again.row, BlockFacts::of(first_seq, block), &frames);
        again.unsaved.extend(frames);
        chain.begun = chain.goes_on;
    }
    again.row.batches = u32::try_from(plans.len()).unwrap_or(u32::MAX);
    again.row.window_ms = row.window_ms;
    again.row.delivered.clone_from(&row.delivered);
    again.row.delivered_records = row.delivered_records;
    again.row.end_seq = again.row.end_seq.max(row.end_seq);
    Some(again)
}

/// Splits records into runs of about [`BLOCK_RAW_BYTES_MAX`], none larger than a batch may be.
pub(in crate::queue) fn blocks_of(
    records: &[Record],
    batch: BatchLimits,
) -> impl Iterator<Item = &[Record]> {
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
