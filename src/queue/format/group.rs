//! Blocks of merged segments: several batches of neighbouring windows, compressed together.
//!
//! Neighbouring documents of one host are almost equal, so that together they take a fraction of
//! what each takes alone. A directory before the compressed body says which batches the block
//! holds, so that a segment is listed without unpacking it. `docs/FORMAT.md` describes both.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    block::{self, BodyFacts, Codec, Damage, Place},
    record::{Position, Record, time_span},
    segment::Origin,
};

/// A batch of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupBatch {
    /// Where it comes from.
    pub origin: Origin,
    /// See [`super::segment::BatchPlan::content`].
    pub content: Option<u64>,
    /// Its records; their sequence numbers grow, with holes where records were thinned.
    pub records: Vec<Record>,
}

/// What the directory says of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupEntry {
    /// Where it comes from.
    pub origin: Origin,
    /// The sequence number of its first record.
    pub first_seq: u64,
    /// The sequence number of its last record.
    pub last_seq: u64,
    /// Its records.
    pub records: u64,
    /// Their bytes before compression.
    pub raw_bytes: u64,
    /// The time span of its records, milliseconds since 1970 UTC.
    pub window_ms: (i64, i64),
    /// See [`GroupBatch::content`]. Earlier versions had no such field.
    #[serde(default)]
    pub content: Option<u64>,
}

/// Where a group ends: its records before compression. Memory for unpacking one batch of it.
pub const GROUP_RAW_BYTES_MAX: u64 = 2 << 20;
/// Batches in a group at most: the directory fits into the first frame.
pub const GROUP_BATCHES_MAX: usize = 512;

/// Merging is rare and in the background, and its result is what a long outage takes on disk.
const ZSTD_LEVEL: i32 = 9;

#[derive(Serialize, Deserialize)]
struct WireGroup<'a>(
    #[serde(borrow)] Vec<Vec<WireRecord<'a>>>,
    #[serde(borrow)] Vec<WirePosition<'a>>,
);

/// Sequence numbers skipped before the record, type, time, payload.
#[derive(Serialize, Deserialize)]
struct WireRecord<'a>(u64, &'a str, i64, #[serde(with = "serde_bytes")] &'a [u8]);

#[derive(Serialize, Deserialize)]
struct WirePosition<'a>(&'a str, #[serde(with = "serde_bytes")] &'a [u8], Option<i64>);

impl GroupEntry {
    /// What the directory says of `batch`.
    pub fn of(batch: &GroupBatch) -> Self {
        let seq = |record: Option<&Record>| record.map_or(0, |record| record.seq);
        Self {
            origin: batch.origin,
            first_seq: seq(batch.records.first()),
            last_seq: seq(batch.records.last()),
            records: batch.records.len() as u64,
            raw_bytes: batch.records.iter().map(|record| record.memory_bytes() as u64).sum(),
            window_ms: time_span(&batch.records),
            content: batch.content,
        }
    }
}

/// Encodes a group as one or more whole frames. `place` names the number of its first batch.
pub fn encode(place: Place, batches: &[GroupBatch], positions: &[Position]) -> Vec<Vec<u8>> {
    let directory: Vec<GroupEntry> = batches.iter().map(GroupEntry::of).collect();
    // Writing plain data into memory cannot fail, and compressing it neither.
    let directory = rmp_serde::to_vec(&directory).expect("plain data encodes");
    let body = encode_body(place.first_seq, batches, positions);
    let packed = zstd::bulk::compress(&body, ZSTD_LEVEL).expect("compression into memory");
    let length = u32::try_from(directory.len()).expect("GROUP_BATCHES_MAX bounds the directory");
    let begins = [&length.to_le_bytes()[..], &directory].concat();
    let records = || batches.iter().flat_map(|batch| &batch.records);
    let times = || records().map(|record| record.at_ms);
    let facts = BodyFacts {
        records: records().count(),
        raw_bytes: body.len(),
        time_ms: (times().min().unwrap_or(0), times().max().unwrap_or(0)),
    };
    block::frames(place, Codec::Group, facts, (&begins, &packed))
}

/// The directory of a group, from the payload of its first frame.
pub fn directory(payload: &[u8]) -> Result<Vec<GroupEntry>, Damage> {
    let (directory, _) = split(payload)?;
    let entries: Vec<GroupEntry> = rmp_serde::from_slice(directory).map_err(|_| Damage::Body)?;
    let sound = |entry: &GroupEntry| entry.first_seq <= entry.last_seq && entry.records > 0;
    let in_order = entries.is_sorted_by(|a, b| a.last_seq < b.first_seq);
    let sane = !entries.is_empty() && entries.len() <= GROUP_BATCHES_MAX;
    if sane && in_order && entries.iter().all(sound) { Ok(entries) } else { Err(Damage::Body) }
}

/// Decodes a group from its frames, in the order of their parts.
pub fn decode(frames: &[impl AsRef<[u8]>]) -> Result<(Vec<GroupBatch>, Vec<Position>), Damage> {
    let (first, payload) = block::join(frames)?;
    let entries = directory(&payload)?;
    let (_, packed) = split(&payload)?;
    let raw = zstd::bulk::decompress(packed, first.raw_bytes as usize);
    let raw = Bytes::from(raw.map_err(|_| Damage::Body)?);
    let WireGroup(batches, positions) = rmp_serde::from_slice(&raw).map_err(|_| Damage::Body)?;
    let mut seq = first.first_seq;
    let batches: Vec<GroupBatch> = batches
        .into_iter()
        .zip(&entries)
        .map(|(records, entry)| {
            let record = |WireRecord(skipped, kind, at_ms, payload): WireRecord<'_>| {
                let own = seq.saturating_add(skipped);
                seq = own.saturating_add(1);
                let payload = raw.slice_ref(payload);
                Record { seq: own, kind: kind.to_owned(), at_ms, payload }
            };
            let records = records.into_iter().map(record).collect();
            GroupBatch { origin: entry.origin, content: entry.content, records }
        })
        .collect();
    let sound = batches.len() == entries.len()
        && batches.iter().zip(&entries).all(|(batch, entry)| GroupEntry::of(batch) == *entry);
    let position = |WirePosition(collector, bytes, keep_until_ms): WirePosition<'_>| Position {
        collector: collector.to_owned(),
        bytes: Bytes::copy_from_slice(bytes),
        keep_until_ms,
    };
    let positions = positions.into_iter().map(position).collect();
    if sound { Ok((batches, positions)) } else { Err(Damage::Body) }
}

fn encode_body(first_seq: u64, batches: &[GroupBatch], positions: &[Position]) -> Vec<u8> {
    let mut seq = first_seq;
    let mut record = |r: &'_ Record| {
        let skipped = r.seq.saturating_sub(seq);
        seq = r.seq + 1;
        skipped
    };
    let batches = batches
        .iter()
        .map(|batch| {
            let wire = batch.records.iter();
            wire.map(|r| WireRecord(record(r), &r.kind, r.at_ms, &r.payload)).collect()
        })
        .collect();
    let positions =
        positions.iter().map(|p| WirePosition(&p.collector, &p.bytes, p.keep_until_ms)).collect();
    rmp_serde::to_vec(&WireGroup(batches, positions)).expect("plain data encodes")
}

/// The directory's bytes and the compressed body.
fn split(payload: &[u8]) -> Result<(&[u8], &[u8]), Damage> {
    let (length, rest) = payload.split_first_chunk::<4>().ok_or(Damage::Body)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| Damage::Body)?;
    rest.split_at_checked(length).ok_or(Damage::Body)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::queue::format::{
        block::{Chain, FrameHead},
        record,
    };

    fn place() -> Place {
        Place {
            queue: Uuid::from_u128(7),
            segment: 257,
            number: 3,
            batch: 4,
            first_seq: 100,
            chain: Chain::default(),
        }
    }

    fn batch(segment: u64, numbers: &[u64]) -> GroupBatch {
        let record = |seq: &u64| Record {
            seq: *seq,
            kind: "sysstat".to_owned(),
            at_ms: i64::try_from(*seq).unwrap() * 10,
            payload: Bytes::from(format!("{{\"cpu\":{seq}}}")),
        };
        let origin = Origin { segment, batch: 0, thinned: 1 };
        let records: Vec<Record> = numbers.iter().map(record).collect();
        GroupBatch { origin, content: Some(record::content(&records)), records }
    }

    #[test]
    fn a_group_survives_encoding_with_its_holes() {
        let batches = [batch(256, &[100, 101, 105]), batch(512, &[110]), batch(768, &[111, 200])];
        let position = Position {
            collector: "pg_log".to_owned(),
            bytes: Bytes::from_static(b"x"),
            keep_until_ms: None,
        };
        let frames = encode(place(), &batches, std::slice::from_ref(&position));
        assert_eq!(frames.len(), 1);
        let head = FrameHead::read(&frames[0]).unwrap();
        assert_eq!((head.codec, head.batch, head.records), (Codec::Group, 4, 6));
        assert_eq!(head.time_ms, (1_000, 2_000));
        let entries = directory(head.payload(&frames[0]).unwrap()).unwrap();
        assert_eq!(entries[2].window_ms, (1_110, 2_000));
        assert_eq!((entries[0].first_seq, entries[0].last_seq, entries[0].records), (100, 105, 3));
        let (decoded, positions) = decode(&frames).unwrap();
        assert_eq!((decoded.as_slice(), positions), (&batches[..], vec![position]));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let frame = encode(place(), &[batch(256, &[100])], &[]).remove(0);
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&[damaged]).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_directory_that_makes_no_sense_is_damage() {
        for garbage in
            [&b""[..], b"\0\0\0", b"\x05\0\0\0abc", b"\x01\0\0\0\x90", b"\xff\xff\xff\xff"]
        {
            assert_eq!(directory(garbage), Err(Damage::Body), "{garbage:?}");
        }
    }
}
