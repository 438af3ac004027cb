//! What is known of a segment on disk after it was searched for frames. Pure.

use std::{collections::BTreeMap, sync::Arc};

use crate::queue::format::{
    block::FrameHead,
    group::{GroupBatch, GroupEntry},
    salvage::{Found, Scan},
    segment::{self, BatchPlan, SegmentRow},
};

/// The blocks of a segment, and the batches that they make up.
#[derive(Debug)]
pub(in crate::queue) struct Index {
    pub(in crate::queue) segment: u64,
    /// The frames of whole blocks.
    found: Vec<Found>,
    groups: BTreeMap<u64, Vec<GroupEntry>>,
    pub(in crate::queue) plans: Arc<[BatchPlan]>,
    /// The group that was unpacked last, by the number of its first frame.
    pub(in crate::queue) unpacked: Option<(u64, Arc<[GroupBatch]>)>,
}

/// A place where frames are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::queue) struct Gap {
    /// The first sequence number.
    pub(in crate::queue) from: u64,
    /// The last sequence number.
    pub(in crate::queue) to: u64,
    /// The batches that the records may belong to, both ends included.
    pub(in crate::queue) batches: (u32, u32),
}

/// What a block covers.
struct Covered {
    head: FrameHead,
    end_seq: u64,
    batches: (u32, u32),
}

impl Index {
    /// The index of the segment with `row`. Frames that were never promised are left out; a block
    /// that lacks a part is as good as absent.
    pub(in crate::queue) fn of(scan: Scan, row: &SegmentRow) -> Self {
        let Scan { mut found, groups, .. } = scan;
        // A batch that the row does not know would never be sent.
        found.retain(|frame| row.promises(&frame.head) && frame.head.batch < row.batches);
        let whole = found
            .chunk_by(same_block)
            .filter(|block| block.len() == usize::from(block[0].head.parts));
        let found = whole.collect::<Vec<_>>().concat();
        let mut index =
            Self { segment: row.id, found, groups, plans: Arc::from([]), unpacked: None };
        index.plans = if index.groups.is_empty() {
            Arc::from(segment::plans_of(&index.found, row))
        } else {
            index.covered().flat_map(|block| index.group_plans(&block.head)).collect()
        };
        index
    }

    /// Records in the blocks that were found.
    pub(in crate::queue) fn records(&self) -> u64 {
        self.heads().map(|head| u64::from(head.records)).sum()
    }

    /// The blocks that hold records of a batch.
    pub(in crate::queue) fn blocks_of(&self, batch: u32) -> Vec<Vec<Found>> {
        let blocks = self.found.chunk_by(same_block);
        let holds = |block: &&[Found]| {
            let covered = block.first().map(|frame| self.cover(&frame.head));
            covered.is_some_and(|block| (block.batches.0..=block.batches.1).contains(&batch))
        };
        blocks.filter(holds).map(<[Found]>::to_vec).collect()
    }

    /// All blocks.
    pub(in crate::queue) fn blocks(&self) -> impl Iterator<Item = &[Found]> {
        self.found.chunk_by(same_block)
    }

    /// Where frames are missing.
    pub(in crate::queue) fn gaps(&self, row: &SegmentRow) -> Vec<Gap> {
        let mut gaps = Vec::new();
        let (mut number, mut seq, mut batch) = (0, row.first_seq, 0);
        let mut gap = |from: u64, until: u64, batches| {
            if from < until {
                gaps.push(Gap { from, to: until - 1, batches });
            }
        };
        for block in self.covered() {
            if block.head.number > number {
                gap(seq, block.head.first_seq, (batch, block.batches.0));
            }
            number = block.head.number + u64::from(block.head.parts);
            (seq, batch) = (block.end_seq, block.batches.1);
        }
        gap(seq, row.end_seq, (batch, row.batches.saturating_sub(1)));
        gaps
    }

    /// All sequence numbers of the segment that no block covers, those included that were left out
    /// when it was written.
    pub(in crate::queue) fn holes(&self, row: &SegmentRow) -> Vec<Gap> {
        let (mut holes, mut seq, mut batch) = (Vec::new(), row.first_seq, 0);
        let ends = self.covered().map(|block| (block.head.first_seq, block.end_seq, block.batches));
        let last = row.batches.saturating_sub(1);
        for (from, end_seq, batches) in ends.chain([(row.end_seq, row.end_seq, (last, last))]) {
            if seq < from {
                holes.push(Gap { from: seq, to: from - 1, batches: (batch, batches.0) });
            }
            (seq, batch) = (seq.max(end_seq), batches.1);
        }
        holes
    }

    /// Forgets a block that turned out to be damaged; returns what it held, ranges with both ends
    /// and the number of records.
    pub(in crate::queue) fn drop_block(&mut self, head: &FrameHead) -> Vec<((u64, u64), u64)> {
        let losses = if let Some(entries) = self.groups.get(&head.number) {
            entries.iter().map(|e| ((e.first_seq, e.last_seq), e.records)).collect()
        } else {
            let records = u64::from(head.records);
            let to = head.first_seq.saturating_add(records).saturating_sub(1);
            vec![((head.first_seq, to), records)]
        };
        let numbers = head.number..head.number + u64::from(head.parts);
        self.found.retain(|frame| !numbers.contains(&frame.head.number));
        self.unpacked = None;
        losses
    }

    fn heads(&self) -> impl Iterator<Item = &FrameHead> {
        self.found.iter().map(|frame| &frame.head).filter(|head| head.part == 0)
    }

    fn covered(&self) -> impl Iterator<Item = Covered> {
        self.heads().map(|head| self.cover(head))
    }

    fn cover(&self, head: &FrameHead) -> Covered {
        match self.groups.get(&head.number) {
            Some(entries) => {
                let last = u32::try_from(entries.len().saturating_sub(1)).unwrap_or(u32::MAX);
                let end_seq = entries.last().map_or(head.first_seq, |entry| entry.last_seq + 1);
                let batches = (head.batch, head.batch.saturating_add(last));
                Covered { head: *head, end_seq, batches }
            }
            None => Covered {
                head: *head,
                end_seq: head.first_seq.saturating_add(u64::from(head.records)),
                batches: (head.batch, head.batch),
            },
        }
    }

    fn group_plans(&self, head: &FrameHead) -> Vec<BatchPlan> {
        let entries = self.groups.get(&head.number).map_or(&[][..], Vec::as_slice);
        let plan = |(number, entry): (u32, &GroupEntry)| BatchPlan {
            number,
            first_seq: entry.first_seq,
            last_seq: entry.last_seq,
            records: entry.records,
            raw_bytes: entry.raw_bytes,
            window_ms: entry.window_ms,
            origin: entry.origin,
            content: entry.content,
        };
        (head.batch..).zip(entries).map(plan).collect()
    }
}

/// Whether two neighbouring frames are parts of one block.
pub(in crate::queue) fn same_block(a: &Found, b: &Found) -> bool {
    b.head.part > 0 && b.head.part == a.head.part + 1 && b.head.first_seq == a.head.first_seq
}
