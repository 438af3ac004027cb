//! The rows of the state database: what is not in the segments themselves.

use bytes::Bytes;

use super::{segment::SegmentRow, store::StateChange};

const SEGMENT: &[u8] = b"segment/";
const POSITION: &[u8] = b"position/";
const NEXT: &[u8] = b"next";

/// A row read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A closed segment.
    Segment(SegmentRow),
    /// A collector's position, and the segment that holds the records up to it.
    Position(String, (u64, Bytes)),
    /// The next sequence number and the last segment's number.
    Next(u64, u64),
}

/// The row of a closed segment.
pub fn segment_row(row: &SegmentRow) -> StateChange {
    (segment_key(row.id), Some(encode(row)))
}

/// Deletes the row of a segment.
pub fn drop_segment_row(id: u64) -> StateChange {
    (segment_key(id), None)
}

/// The row of a collector's position.
pub fn position_row(collector: &str, (segment, bytes): &(u64, Bytes)) -> StateChange {
    let value = [&segment.to_be_bytes()[..], bytes].concat();
    ([POSITION, collector.as_bytes()].concat(), Some(value))
}

/// The row of the next sequence number and the last segment's number.
pub fn next_row(next_seq: u64, last_segment: u64) -> StateChange {
    (NEXT.to_vec(), Some(encode(&(next_seq, last_segment))))
}

/// Reads a row; `None` when it is not one of ours.
pub fn decode(key: &[u8], value: &[u8]) -> Option<Row> {
    if key.starts_with(SEGMENT) {
        rmp_serde::from_slice(value).ok().map(Row::Segment)
    } else if let Some(collector) = key.strip_prefix(POSITION) {
        let collector = String::from_utf8(collector.to_vec()).ok()?;
        let (segment, bytes) = value.split_first_chunk()?;
        let at = (u64::from_be_bytes(*segment), Bytes::copy_from_slice(bytes));
        Some(Row::Position(collector, at))
    } else if key == NEXT {
        rmp_serde::from_slice(value).ok().map(|(seq, segment)| Row::Next(seq, segment))
    } else {
        None
    }
}

fn segment_key(id: u64) -> Vec<u8> {
    [SEGMENT, &id.to_be_bytes()].concat()
}

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    // Writing plain data into memory cannot fail: the types have no custom serialisers.
    rmp_serde::to_vec(value).expect("plain data encodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_encoding() {
        let check = |(key, value): StateChange, row: Row| {
            assert_eq!(decode(&key, &value.unwrap()), Some(row));
        };
        let segment = SegmentRow { delivered: vec![(0, 3)], ..SegmentRow::empty(9, 7, -1) };
        check(segment_row(&segment), Row::Segment(segment));
        let at = (4, Bytes::from_static(b"\0\xff"));
        check(position_row("pg_log", &at), Row::Position("pg_log".to_owned(), at));
        check(next_row(5, 6), Row::Next(5, 6));
        assert_eq!(decode(b"other", b""), None);
        assert_eq!(decode(b"segment/12345678", b"\xff"), None);
    }
}
