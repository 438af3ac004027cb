//! The rows of the state: what is not in the segments themselves.

use bytes::Bytes;

use super::{loss::Loss, segment::SegmentRow};

/// State rows, key and value.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// A key and its new value; `None` deletes.
pub type StateChange = (Vec<u8>, Option<Vec<u8>>);

const SEGMENT: &[u8] = b"segment/";
const KEPT: &[u8] = b"kept/";
const LOSS: &[u8] = b"loss/";
const POSITION: &[u8] = b"position/";
const NEXT: &[u8] = b"next";

/// A row read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A closed segment.
    Segment(SegmentRow),
    /// A segment that is delivered and kept.
    Kept(KeptRow),
    /// An entry of the ledger.
    Loss(Loss),
    /// A collector's position.
    Position(String, PositionAt),
    /// How far the numbers are.
    Next(Next),
}

/// How far the queue's numbers are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Next {
    /// The next sequence number.
    pub seq: u64,
    /// The last segment's number.
    pub segment: u64,
    /// The time by which ages are told, milliseconds since 1970 UTC; see `log/age.rs`.
    pub age_ms: Option<i64>,
}

/// How far a collector had read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PositionAt {
    /// The segment that holds the records up to it.
    pub segment: u64,
    /// The collector's own encoding.
    pub bytes: Bytes,
    /// See [`super::record::Position::keep_until_ms`].
    pub keep_until_ms: Option<i64>,
}

/// A segment that is delivered and kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeptRow {
    /// The segment.
    pub row: SegmentRow,
    /// When its last batch was delivered.
    pub delivered_ms: i64,
}

/// The row of a closed segment.
pub fn segment_row(row: &SegmentRow) -> StateChange {
    (numbered(SEGMENT, row.id), Some(encode(row)))
}

/// Deletes the row of a segment.
pub fn drop_segment_row(id: u64) -> StateChange {
    (numbered(SEGMENT, id), None)
}

/// The row of a segment that is delivered and kept.
pub fn kept_row(kept: &KeptRow) -> StateChange {
    (numbered(KEPT, kept.row.id), Some(encode(kept)))
}

/// Deletes the row of a segment that was kept.
pub fn drop_kept_row(id: u64) -> StateChange {
    (numbered(KEPT, id), None)
}

/// The row of an entry of the ledger.
pub fn loss_row(loss: &Loss) -> StateChange {
    (numbered(LOSS, loss.id), Some(encode(loss)))
}

/// Deletes the row of an entry of the ledger.
pub fn drop_loss_row(id: u64) -> StateChange {
    (numbered(LOSS, id), None)
}

/// The row of a collector's position.
pub fn position_row(collector: &str, at: &PositionAt) -> StateChange {
    let value = encode(&(at.segment, serde_bytes::Bytes::new(&at.bytes), at.keep_until_ms));
    ([POSITION, collector.as_bytes()].concat(), Some(value))
}

/// Deletes the row of a collector's position.
pub fn drop_position_row(collector: &str) -> StateChange {
    ([POSITION, collector.as_bytes()].concat(), None)
}

/// The row that says how far the numbers are.
pub fn next_row(next: Next) -> StateChange {
    (NEXT.to_vec(), Some(encode(&(next.seq, next.segment, next.age_ms))))
}

fn decode_next(value: &[u8]) -> Option<Next> {
    let now = rmp_serde::from_slice(value);
    // Earlier versions had no third field.
    let (seq, segment, age_ms) =
        now.or_else(|_| rmp_serde::from_slice(value).map(|(seq, id)| (seq, id, None))).ok()?;
    Some(Next { seq, segment, age_ms })
}

/// Reads a row; `None` when it is not one of ours.
pub fn decode(key: &[u8], value: &[u8]) -> Option<Row> {
    if key.starts_with(SEGMENT) {
        rmp_serde::from_slice(value).ok().map(Row::Segment)
    } else if let Some(collector) = key.strip_prefix(POSITION) {
        let collector = String::from_utf8(collector.to_vec()).ok()?;
        let (segment, bytes, keep_until_ms): (u64, serde_bytes::ByteBuf, _) =
            rmp_serde::from_slice(value).ok()?;
        let bytes = Bytes::from(bytes.into_vec());
        Some(Row::Position(collector, PositionAt { segment, bytes, keep_until_ms }))
    } else if key.starts_with(KEPT) {
        rmp_serde::from_slice(value).ok().map(Row::Kept)
    } else if key.starts_with(LOSS) {
        rmp_serde::from_slice(value).ok().map(Row::Loss)
    } else if key == NEXT {
        decode_next(value).map(Row::Next)
    } else {
        None
    }
}

fn numbered(table: &[u8], id: u64) -> Vec<u8> {
    [table, &id.to_be_bytes()].concat()
}

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    // Writing plain data into memory cannot fail: the types have no custom serialisers.
    rmp_serde::to_vec(value).expect("plain data encodes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::format::loss::LossReason;

    #[test]
    fn rows_survive_encoding() {
        let check = |(key, value): StateChange, row: Row| {
            assert_eq!(decode(&key, &value.unwrap()), Some(row));
        };
        let segment = SegmentRow { delivered: vec![(0, 3)], ..SegmentRow::empty(9, 7, -1) };
        check(segment_row(&segment), Row::Segment(segment));
        let bytes = Bytes::from_static(b"\0\xff");
        let at = PositionAt { segment: 4, bytes, keep_until_ms: Some(9) };
        check(position_row("pg_log", &at), Row::Position("pg_log".to_owned(), at));
        for age_ms in [None, Some(7)] {
            let next = Next { seq: 5, segment: 6, age_ms };
            check(next_row(next), Row::Next(next));
        }
        let earlier = Next { seq: 5, segment: 6, age_ms: None };
        assert_eq!(decode(b"next", &encode(&(5, 6))), Some(Row::Next(earlier)));
        let kept = KeptRow { row: SegmentRow::empty(2, 3, 4), delivered_ms: 5 };
        check(kept_row(&kept), Row::Kept(kept));
        let loss = Loss {
            id: 1,
            from: 2,
            to: 3,
            records: 1,
            reason: LossReason::Evict,
            time_ms: (4, 5),
            at_ms: 6,
            acknowledged: true,
        };
        check(loss_row(&loss), Row::Loss(loss));
        assert_eq!(decode(b"other", b""), None);
        assert_eq!(decode(b"segment/12345678", b"\xff"), None);
    }
}
