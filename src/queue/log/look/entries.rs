//! A segment as a run of blocks and of holes between them. Pure.

use std::collections::BTreeMap;

use super::Damage;
use crate::queue::{
    format::{block::FrameHead, group::GroupEntry, salvage::Found, segment::SegmentRow},
    log::index::same_block,
};

/// What was found of a segment: its frames in the order of their numbers, and what the blocks of a
/// merged segment say of their batches, by the number of their first frame.
#[derive(Debug, Clone, Default)]
pub(super) struct Frames {
    pub(super) found: Vec<Found>,
    pub(super) groups: BTreeMap<u64, Vec<GroupEntry>>,
}

/// A block, all of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block<'a> {
    /// The head of its first frame.
    pub(super) head: FrameHead,
    /// All of its frames.
    pub(super) frames: &'a [Found],
    /// The sequence number after its last record.
    pub(super) end_seq: u64,
    /// How many batches it has records of.
    pub(super) batches: u32,
}

/// A whole block, or what is missing before the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry<'a> {
    /// A block that can be read, as far as its frames are concerned.
    Block(Block<'a>),
    /// Frames that were promised and are not there.
    Hole(Damage),
}

impl Entry<'_> {
    /// The number of its first frame.
    pub(super) fn first_frame(&self) -> u64 {
        match self {
            Entry::Block(block) => block.head.number,
            Entry::Hole(hole) => hole.first_frame.unwrap_or(0),
        }
    }
}

impl Block<'_> {
    /// Bytes of its frames.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.frames.iter().map(|frame| frame.head.frame_bytes() as u64).sum()
    }
}

impl Frames {
    fn block<'a>(&self, frames: &'a [Found]) -> Option<Block<'a>> {
        let head = frames.first()?.head;
        let whole = frames.len() == usize::from(head.parts) && head.part == 0;
        let (end_seq, batches) = match self.groups.get(&head.number) {
            Some(entries) => (
                entries.last().map_or(head.first_seq, |entry| entry.last_seq.saturating_add(1)),
                u32::try_from(entries.len()).unwrap_or(u32::MAX),
            ),
            None => (head.first_seq.saturating_add(u64::from(head.records)), 1),
        };
        whole.then_some(Block { head, frames, end_seq, batches })
    }
}

/// Brings what was found of a segment together with what its row promises. A block that lacks a
/// part is a hole.
pub(super) fn entries<'a>(row: &SegmentRow, frames: &'a Frames) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    let (mut frame, mut seq) = (0, row.first_seq);
    for block in frames.found.chunk_by(same_block).filter_map(|block| frames.block(block)) {
        if block.head.number > frame {
            let missing = (frame, block.head.number - 1);
            entries.push(Entry::Hole(hole(row.id, missing, seq..block.head.first_seq)));
        }
        frame = block.head.number + u64::from(block.head.parts);
        seq = block.end_seq;
        entries.push(Entry::Block(block));
    }
    if frame < row.frames || seq < row.end_seq {
        let last = row.frames.max(frame + 1) - 1;
        entries.push(Entry::Hole(hole(row.id, (frame, last), seq..row.end_seq)));
    }
    entries
}

fn hole(segment: u64, frames: (u64, u64), seqs: std::ops::Range<u64>) -> Damage {
    let some = !seqs.is_empty();
    Damage {
        segment,
        first_frame: Some(frames.0),
        last_frame: Some(frames.1),
        first_seq: some.then_some(seqs.start),
        last_seq: some.then(|| seqs.end - 1),
        records: seqs.end.saturating_sub(seqs.start),
        what: "no sound frame with this number".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::queue::format::{
        block::{self, Chain, FrameHead, Place},
        record::Record,
    };

    /// Blocks of two records each; block 2 has several parts, block 4 only a position.
    fn segment() -> (SegmentRow, Frames) {
        let mut row = SegmentRow::empty(7, 100, 0);
        let mut frames = Frames::default();
        for block in 0..6_u64 {
            let count = if block == 4 { 0 } else { 2 };
            let bytes = if block == 2 { 200_000 } else { 10 };
            let mut noise = block + 1;
            let mut payload = || -> Vec<u8> {
                let mut byte = || {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    noise.to_be_bytes()[0]
                };
                (0..bytes).map(|_| byte()).collect()
            };
            let records: Vec<Record> = (0..count)
                .map(|n| Record {
                    seq: row.end_seq + n,
                    kind: "custom.x".to_owned(),
                    at_ms: 5,
                    payload: payload().into(),
                })
                .collect();
            let place = Place {
                queue: Uuid::nil(),
                segment: 7,
                number: row.frames,
                batch: 0,
                first_seq: row.end_seq,
                chain: Chain::default(),
            };
            for frame in block::encode(place, &records, &[]).frames {
                let head = FrameHead::read(&Bytes::from(frame)).expect("a frame");
                frames.found.push(Found { head, offset: 0, content: None });
                row.frames += 1;
            }
            row.records += count;
            row.end_seq += count;
        }
        (row, frames)
    }

    /// First and last frame, first and last sequence number, records.
    type Hole = (u64, u64, Option<(u64, u64)>, u64);

    fn holes(row: &SegmentRow, frames: &Frames) -> Vec<Hole> {
        let holes = entries(row, frames).into_iter().filter_map(|entry| match entry {
            Entry::Hole(hole) => Some(hole),
            Entry::Block(_) => None,
        });
        holes
            .map(|hole| {
                let seqs = hole.first_seq.zip(hole.last_seq);
                (hole.first_frame.unwrap(), hole.last_frame.unwrap(), seqs, hole.records)
            })
            .collect()
    }

    #[test]
    fn a_whole_segment_has_no_hole() {
        let (row, frames) = segment();
        assert_eq!(row.frames, 9, "block 2 has four parts");
        assert_eq!(entries(&row, &frames).len(), 6);
        assert_eq!(holes(&row, &frames), []);
    }

    #[test]
    fn a_hole_names_its_frames_and_records() {
        let (row, frames) = segment();
        let without = |gone: &[u64]| {
            let mut left = frames.clone();
            left.found.retain(|frame| !gone.contains(&frame.head.number));
            holes(&row, &left)
        };
        assert_eq!(without(&[0]), [(0, 0, Some((100, 101)), 2)]);
        // One part of four costs the block.
        assert_eq!(without(&[4]), [(2, 5, Some((104, 105)), 2)]);
        // A block of positions alone: no record is missing.
        assert_eq!(without(&[7]), [(7, 7, None, 0)]);
        assert_eq!(without(&[1, 2, 6]), [(1, 6, Some((102, 107)), 6)]);
        assert_eq!(without(&[8]), [(8, 8, Some((108, 109)), 2)]);
        assert_eq!(without(&(0..9).collect::<Vec<_>>()), [(0, 8, Some((100, 109)), 10)]);
    }

    /// A block of a merged segment ends where its last batch ends: thinning has left holes in it.
    #[test]
    fn holes_between_merged_blocks_begin_after_their_batches() {
        use crate::queue::format::{group::GroupEntry, segment::Origin};
        let (row, mut frames) = segment();
        let entry = |first_seq, last_seq| GroupEntry {
            origin: Origin { segment: 1, batch: 0, thinned: 0 },
            first_seq,
            last_seq,
            records: 1,
            raw_bytes: 1,
            window_ms: (0, 0),
            content: None,
        };
        frames.groups.insert(0, vec![entry(100, 100), entry(101, 102)]);
        frames.found.retain(|frame| frame.head.number != 1);
        let [Entry::Block(block), ..] = &entries(&row, &frames)[..] else { panic!("a block") };
        assert_eq!((block.end_seq, block.batches), (103, 2));
        assert_eq!(holes(&row, &frames), [(1, 1, Some((103, 103)), 1)]);
    }
}
