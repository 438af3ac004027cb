//! A segment as a run of blocks and of holes between them. Pure.

use super::Damage;
use crate::queue::{salvage::Found, segment::SegmentRow};

/// A whole block, or what is missing before the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry<'a> {
    /// The frames of a block, all of its parts.
    Block(&'a [Found]),
    /// Frames that were promised and are not there.
    Hole(Damage),
}

impl Entry<'_> {
    /// The number of its first frame.
    pub(super) fn first_frame(&self) -> u64 {
        match self {
            Entry::Block(block) => block.first().map_or(0, |frame| frame.head.number),
            Entry::Hole(hole) => hole.first_frame.unwrap_or(0),
        }
    }
}

/// Brings what was found of a segment together with what its row promises. `found` is in order of
/// the frames' numbers; a block that lacks a part is a hole.
pub(super) fn entries<'a>(row: &SegmentRow, found: &'a [Found]) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    let (mut frame, mut seq) = (0, row.first_seq);
    for block in found.chunk_by(same_block) {
        let (Some(first), Some(last)) = (block.first(), block.last()) else { continue };
        if block.len() != usize::from(first.head.parts) || first.head.part != 0 {
            continue;
        }
        if first.head.number > frame {
            let frames = (frame, first.head.number - 1);
            entries.push(Entry::Hole(hole(row.id, frames, seq..first.head.first_seq)));
        }
        entries.push(Entry::Block(block));
        frame = last.head.number + 1;
        seq = first.head.first_seq.saturating_add(u64::from(first.head.records));
    }
    if frame < row.frames {
        entries.push(Entry::Hole(hole(row.id, (frame, row.frames - 1), seq..row.end_seq)));
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

/// Whether two neighbouring frames are parts of one block.
fn same_block(a: &Found, b: &Found) -> bool {
    b.head.part > 0
        && b.head.part == a.head.part + 1
        && b.head.number == a.head.number + 1
        && b.head.first_seq == a.head.first_seq
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::queue::{
        block::{self, FrameHead, Place},
        record::Record,
    };

    /// Blocks of two records each; block 2 has several parts, block 4 only a position.
    fn segment() -> (SegmentRow, Vec<Found>) {
        let mut row = SegmentRow::empty(7, 100, 0);
        let mut found = Vec::new();
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
            };
            for frame in block::encode(place, &records, &[]) {
                let head = FrameHead::read(&Bytes::from(frame)).expect("a frame");
                found.push(Found { head, offset: 0 });
                row.frames += 1;
            }
            row.records += count;
            row.end_seq += count;
        }
        (row, found)
    }

    fn holes(row: &SegmentRow, found: &[Found]) -> Vec<(u64, u64, Option<(u64, u64)>, u64)> {
        let holes = entries(row, found).into_iter().filter_map(|entry| match entry {
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
        let (row, found) = segment();
        assert_eq!(row.frames, 9, "block 2 has four parts");
        assert_eq!(entries(&row, &found).len(), 6);
        assert_eq!(holes(&row, &found), []);
    }

    #[test]
    fn a_hole_names_its_frames_and_records() {
        let (row, found) = segment();
        let without = |gone: &[u64]| {
            let left = found.iter().filter(|frame| !gone.contains(&frame.head.number));
            holes(&row, &left.copied().collect::<Vec<_>>())
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
}
