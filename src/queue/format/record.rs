//! Records and the MessagePack body of a block. The queue never looks into a payload.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A metric as a collector hands it to the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// The metric's type, for `inspect`.
    pub kind: String,
    /// When the metric was taken, milliseconds since 1970 UTC.
    pub at_ms: i64,
    /// The metric's JSON as collected; sent as these bytes.
    pub payload: Bytes,
}

/// A metric in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number. Sequence numbers count records over the whole life of the queue.
    pub seq: u64,
    /// See [`NewRecord::kind`].
    pub kind: String,
    /// See [`NewRecord::at_ms`].
    pub at_ms: i64,
    /// See [`NewRecord::payload`].
    pub payload: Bytes,
}

/// What must become durable together: records, and how far their collector had read for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// In the order in which they get their sequence numbers.
    pub records: Vec<NewRecord>,
    /// The collector's position after these records.
    pub position: Option<Position>,
    /// Metrics that were refused at the door: they get numbers after the records' own, and an entry
    /// in the ledger.
    pub rejected: u64,
    /// How long the group may wait for others to share its sync.
    pub haste: Haste,
}

/// How long a group may wait for others to share its sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Haste {
    /// Up to `commit_interval`.
    #[default]
    Linger,
    /// Not at all: it shares the sync with what is waiting already.
    Now,
}

/// How far a collector has read its source, opaque to the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The collector.
    pub collector: String,
    /// Its own encoding of the position.
    pub bytes: Bytes,
    /// When it may be forgotten, milliseconds since 1970 UTC; `None` = never. Of those that may be,
    /// the newest [`PASSING_POSITIONS_MAX`] are kept.
    pub keep_until_ms: Option<i64>,
}

/// How many positions that may be forgotten are kept.
pub const PASSING_POSITIONS_MAX: usize = 10_000;

impl Group {
    /// A group of records only.
    pub fn of(records: Vec<NewRecord>) -> Self {
        Self { records, ..Self::default() }
    }
}

/// A block's body as it is decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Body {
    /// The block's records.
    pub records: Vec<Record>,
    /// The positions that became durable with them.
    pub positions: Vec<Position>,
}

#[derive(Serialize, Deserialize)]
struct WireBody<'a>(#[serde(borrow)] Vec<WireRecord<'a>>, #[serde(borrow)] Vec<WirePosition<'a>>);

#[derive(Serialize, Deserialize)]
struct WireRecord<'a>(&'a str, i64, #[serde(with = "serde_bytes")] &'a [u8]);

#[derive(Serialize, Deserialize)]
struct WirePosition<'a>(&'a str, #[serde(with = "serde_bytes")] &'a [u8], Option<i64>);

/// Memory that a record occupies beside its payload, for budgets.
const RECORD_OVERHEAD_BYTES: usize = 96;

impl Record {
    /// What the record occupies in memory.
    pub fn memory_bytes(&self) -> usize {
        self.payload.len() + self.kind.len() + RECORD_OVERHEAD_BYTES
    }
}

/// The earliest and the latest time of `records`, milliseconds since 1970 UTC; 0 without any.
pub fn time_span(records: &[Record]) -> (i64, i64) {
    let times = || records.iter().map(|record| record.at_ms);
    (times().min().unwrap_or(0), times().max().unwrap_or(0))
}

/// The content sum of records by themselves, without blocks: of each, a checksum over its number,
/// its time, its type and its payload, added up.
pub fn content(records: &[Record]) -> u64 {
    let checksum = |record: &Record| {
        let sum = crc32c::crc32c(&record.seq.to_le_bytes());
        let sum = crc32c::crc32c_append(sum, &record.at_ms.to_le_bytes());
        let sum = crc32c::crc32c_append(sum, record.kind.as_bytes());
        u64::from(crc32c::crc32c_append(sum, &record.payload))
    };
    records.iter().map(checksum).fold(0, u64::wrapping_add)
}

/// Encodes a block's body.
pub fn encode_body(records: &[Record], positions: &[Position]) -> Vec<u8> {
    let body = WireBody(
        records.iter().map(|r| WireRecord(&r.kind, r.at_ms, &r.payload)).collect(),
        positions.iter().map(|p| WirePosition(&p.collector, &p.bytes, p.keep_until_ms)).collect(),
    );
    let expected = records.iter().map(Record::memory_bytes).sum();
    let mut out = Vec::with_capacity(expected);
    // Writing plain data into memory cannot fail: the types have no custom serialisers.
    rmp_serde::encode::write(&mut out, &body).expect("plain data encodes");
    out
}

/// Decodes a body whose first record is `first_seq`; the payloads share `raw`'s memory.
pub fn decode_body(raw: &Bytes, first_seq: u64) -> Result<Body, rmp_serde::decode::Error> {
    let WireBody(records, positions) = rmp_serde::from_slice(raw)?;
    let records = records.into_iter().zip(first_seq..).map(|(record, seq)| Record {
        seq,
        kind: record.0.to_owned(),
        at_ms: record.1,
        payload: raw.slice_ref(record.2),
    });
    let positions = positions.into_iter().map(|position| Position {
        collector: position.0.to_owned(),
        bytes: Bytes::copy_from_slice(position.1),
        keep_until_ms: position.2,
    });
    Ok(Body { records: records.collect(), positions: positions.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_survives_encoding() {
        let record = |seq, text: &'static str| Record {
            seq,
            kind: "sysstat".to_owned(),
            at_ms: -5,
            payload: Bytes::from_static(text.as_bytes()),
        };
        let records = vec![record(7, "{}"), record(8, ""), record(9, "{\"a\":1}")];
        let positions = vec![Position {
            collector: "pg_log".to_owned(),
            bytes: Bytes::from_static(b"\0x"),
            keep_until_ms: Some(5),
        }];
        let raw = Bytes::from(encode_body(&records, &positions));
        assert_eq!(decode_body(&raw, 7).unwrap(), Body { records, positions });
    }

    #[test]
    fn garbage_is_an_error() {
        for garbage in [&b""[..], b"\xff", b"\x92\xdd\xff\xff\xff\xff", b"{}"] {
            assert!(decode_body(&Bytes::from_static(garbage), 0).is_err(), "{garbage:?}");
        }
    }
}
