//! The newest records in memory: the hot path from append to push.
//!
//! The ring holds whole segments. Segments that are also on disk leave it, oldest first, when it is
//! full; records that are not durable yet stay (their own bound is the log's business).

use std::collections::BTreeMap;

use crate::queue::format::record::Record;

/// Records of the newest segments, bounded in bytes.
#[derive(Debug)]
pub struct Ring {
    bytes_max: usize,
    bytes: usize,
    segments: BTreeMap<u64, Held>,
}

#[derive(Debug, Default)]
struct Held {
    records: Vec<Record>,
    bytes: usize,
    volatile: bool,
}

/// Whether a record is safe on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// On disk too: the ring may forget it.
    Disk,
    /// Only here: the disk does not take records at present.
    MemoryOnly,
    /// Nowhere: the queue is full and `on_full` is `evict_newest`. The ledger has it.
    Evicted,
}

impl Ring {
    /// An empty ring that keeps up to `bytes_max` bytes of records that are also on disk.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, segments: BTreeMap::new() }
    }

    /// Keeps up to `bytes_max` bytes from now on.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
        self.shrink();
    }

    /// Starts to hold `segment`; without this, its records are not kept.
    pub fn begin(&mut self, segment: u64) {
        self.segments.entry(segment).or_default();
    }

    /// Adds records to `segment`, which must have been begun and still be held in full.
    pub fn push(&mut self, segment: u64, records: &[Record], home: Home) {
        let Some(held) = self.segments.get_mut(&segment) else { return };
        let added: usize = records.iter().map(Record::memory_bytes).sum();
        held.records.extend_from_slice(records);
        held.bytes += added;
        held.volatile |= home == Home::MemoryOnly;
        self.bytes += added;
        self.shrink();
    }

    /// All records of `segment`, or `None` when the disk has to be asked.
    pub fn get(&self, segment: u64) -> Option<&[Record]> {
        self.segments.get(&segment).map(|held| held.records.as_slice())
    }

    /// The segments that are held, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = u64> {
        self.segments.keys().rev().copied()
    }

    /// Forgets `segment`.
    pub fn remove(&mut self, segment: u64) {
        if let Some(held) = self.segments.remove(&segment) {
            self.bytes -= held.bytes;
        }
    }

    /// Says that `segment` is on disk now.
    pub fn now_on_disk(&mut self, segment: u64) {
        if let Some(held) = self.segments.get_mut(&segment) {
            held.volatile = false;
        }
        self.shrink();
    }

    /// Says that `segment` is not on disk any more.
    pub fn only_in_memory(&mut self, segment: u64) {
        if let Some(held) = self.segments.get_mut(&segment) {
            held.volatile = true;
        }
    }

    /// Bytes that the records occupy.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.segments.values().map(|held| held.records.len()).sum()
    }

    /// Bytes of the records that are nowhere else.
    pub fn volatile_bytes(&self) -> usize {
        self.segments.values().filter(|held| held.volatile).map(|held| held.bytes).sum()
    }

    fn shrink(&mut self) {
        while self.bytes > self.bytes_max {
            let oldest = self.segments.iter().find(|(_, held)| !held.volatile && held.bytes > 0);
            let Some(id) = oldest.map(|(id, _)| *id) else { return };
            self.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn records(count: u64) -> Vec<Record> {
        let payload = Bytes::from(vec![0; 904]);
        let record = |seq| Record { seq, kind: String::new(), at_ms: 0, payload: payload.clone() };
        (0..count).map(record).collect()
    }

    /// C15
    #[test]
    fn counts_bytes_and_forgets() {
        let mut ring = Ring::new(10_000);
        assert_eq!((ring.bytes(), ring.get(1)), (0, None));
        ring.begin(1);
        ring.push(1, &records(3), Home::Disk);
        assert_eq!((ring.bytes(), ring.get(1).map(<[_]>::len)), (3_000, Some(3)));
        assert_eq!(ring.records(), 3);
        ring.remove(1);
        assert_eq!((ring.bytes(), ring.records(), ring.get(1)), (0, 0, None));
    }

    /// C16
    #[test]
    fn overflow_forgets_the_oldest_that_are_on_disk_and_nothing_else() {
        let mut ring = Ring::new(4_000);
        for (segment, home) in [(1, Home::MemoryOnly), (2, Home::Disk), (3, Home::Disk)] {
            ring.begin(segment);
            ring.push(segment, &records(2), home);
        }
        assert!(ring.get(1).is_some() && ring.get(2).is_none() && ring.get(3).is_some());
        assert_eq!((ring.bytes(), ring.volatile_bytes()), (4_000, 2_000));
        ring.push(1, &records(4), Home::MemoryOnly);
        assert!(ring.get(1).is_some() && ring.get(3).is_none(), "only what is on disk may go");
        ring.now_on_disk(1);
        assert_eq!((ring.bytes(), ring.volatile_bytes()), (0, 0));
    }

    #[test]
    fn a_forgotten_segment_does_not_come_back_in_part() {
        let mut ring = Ring::new(1_500);
        ring.begin(1);
        ring.push(1, &records(2), Home::Disk);
        ring.push(1, &records(1), Home::Disk);
        assert_eq!((ring.get(1), ring.bytes()), (None, 0));
    }
}
