//! What is seen of a log: in memory, on disk, merged, damaged.

use bytes::Bytes;

use super::*;
use crate::queue::{
    LogLimits, MemoryDisk,
    format::{
        block::MAGIC,
        record::{Group, NewRecord},
        segment::BatchLimits,
    },
};

const LIMITS: BatchLimits = BatchLimits { raw_bytes_max: 4 << 10, records_max: 10 };

fn open(disk: &MemoryDisk) -> Log<MemoryDisk> {
    let limits = LogLimits { batch: LIMITS, ..LogLimits::default() };
    Log::open(disk.open(), limits).unwrap()
}

/// Appends `windows` windows of five records each and seals all but the last.
fn filled(disk: &MemoryDisk, windows: i64) -> Log<MemoryDisk> {
    let mut log = open(disk);
    for window in 0..windows {
        append(&mut log, window);
        if window + 1 < windows {
            log.seal(window * 1_000 + 999);
        }
    }
    log
}

fn append(log: &mut Log<MemoryDisk>, window: i64) {
    let record = |n: i64| NewRecord {
        kind: "custom.x".to_owned(),
        at_ms: n,
        payload: Bytes::from(format!("{{\"n\":{n}}}")),
    };
    let records = (window * 5..window * 5 + 5).map(record).collect();
    log.append(vec![Group::of(records)], window * 1_000);
}

/// All records, read in pages of `limit`.
fn paged(log: &mut Log<MemoryDisk>, mut filter: RecordFilter, limit: usize) -> Vec<SeenRecord> {
    let mut records = Vec::new();
    loop {
        let page = log.look_records(filter, limit);
        assert!(page.records.len() <= limit);
        assert_eq!(page.damage, []);
        records.extend(page.records);
        match page.next {
            Some(next) => filter.seq.0 = next,
            None => return records,
        }
    }
}

fn seqs(records: &[SeenRecord]) -> Vec<u64> {
    records.iter().map(|seen| seen.record.seq).collect()
}

#[test]
fn pages_together_are_everything() {
    let mut log = filled(&MemoryDisk::new(), 7);
    for limit in [1, 2, 3, 7, 1_000] {
        let records = paged(&mut log, RecordFilter::default(), limit);
        assert_eq!(seqs(&records), (0..35).collect::<Vec<_>>(), "pages of {limit}");
        for (n, seen) in (0_i64..).zip(&records) {
            assert_eq!(seen.record.at_ms, n);
            assert_eq!(seen.record.payload, format!("{{\"n\":{n}}}"));
        }
    }
}

#[test]
fn only_what_is_wanted_is_seen() {
    let mut log = filled(&MemoryDisk::new(), 7);
    let third = log.segments()[2].id;
    let mut check = |filter: RecordFilter, expected: std::ops::RangeInclusive<u64>| {
        assert_eq!(seqs(&paged(&mut log, filter, 4)), expected.collect::<Vec<_>>(), "{filter:?}");
    };
    let all = RecordFilter::default();
    check(RecordFilter { seq: (3, 11), ..all }, 3..=11);
    check(RecordFilter { time_ms: (8, 21), ..all }, 8..=21);
    check(RecordFilter { segment: Some(third), ..all }, 10..=14);
    check(RecordFilter { segment: Some(third), seq: (12, 99), ..all }, 12..=14);
    let nothing = RecordFilter { seq: (35, 99), ..all };
    assert_eq!(log.look_records(nothing, 10), RecordPage::default());
}

#[test]
fn a_record_says_where_its_batch_stands() {
    let mut log = filled(&MemoryDisk::new(), 4);
    let first = log.next_batch(i64::MAX).unwrap();
    let second = log.next_batch(i64::MAX).unwrap();
    assert_eq!(first.records.len(), 5);
    let records = paged(&mut log, RecordFilter::default(), 100);
    let states: Vec<BatchState> = records.iter().step_by(5).map(|seen| seen.state).collect();
    let (sending, pending) = (BatchState::Sending, BatchState::Pending);
    assert_eq!(states, [sending, sending, pending, BatchState::Open]);
    assert_eq!((records[0].batch, records[5].batch), (first.id, second.id));
    let ids: Vec<Uuid> = log.batches().unwrap().iter().map(|batch| batch.id).collect();
    assert_eq!(records.iter().step_by(5).map(|seen| seen.batch).collect::<Vec<_>>(), ids);
}

/// Without a disk the records are in memory only, and can be looked at all the same.
#[test]
fn records_without_a_disk_are_seen() {
    let disk = MemoryDisk::new();
    let mut log = filled(&disk, 2);
    disk.fill_after(0);
    log.seal(2_000);
    append(&mut log, 2);
    log.seal(3_000);
    append(&mut log, 3);
    assert!(log.disk_error().is_some());
    let records = paged(&mut log, RecordFilter::default(), 3);
    assert_eq!(seqs(&records), (0..20).collect::<Vec<_>>());
    for segment in log.segments() {
        let check = log.look_check(segment.id, 0);
        assert_eq!((check.records, check.damage.len(), check.next), (5, 0, None));
    }
}

/// Q4, merged: the same records, each with the id that its batch always had.
#[test]
fn a_merged_segment_shows_the_same_records() {
    let disk = MemoryDisk::new();
    let mut log = filled(&disk, 40);
    let before = paged(&mut log, RecordFilter::default(), 100);
    let mut now_ms = 1_000_000;
    while log.tend(now_ms) {
        now_ms += 1;
    }
    let segments = log.segments();
    assert!(segments.len() < 20, "{} segments: nothing was merged", segments.len());
    let merged = segments.iter().find(|segment| segment.windows > 1).unwrap().id;
    for limit in [1, 3, 100] {
        let after = paged(&mut log, RecordFilter::default(), limit);
        let same = |seen: &SeenRecord| (seen.record.clone(), seen.batch, seen.state);
        assert_eq!(
            after.iter().map(same).collect::<Vec<_>>(),
            before.iter().map(same).collect::<Vec<_>>(),
        );
    }
    let detail = log.look_segment(merged).unwrap().unwrap();
    assert_eq!(detail.damage, []);
    let batches: u32 = detail.blocks.iter().map(|block| block.batches).sum();
    assert_eq!((batches as usize, detail.batches.len()), (detail.batches.len(), 16));
    let check = log.look_check(merged, 0);
    assert_eq!((check.records, check.damage), (80, Vec::new()));

    // One block holds all of them: when it goes, exactly they are missing.
    disk.damage(merged, |bytes| {
        let start = memchr::memmem::find(bytes, &MAGIC).unwrap();
        bytes[start + 120] ^= 1;
    });
    let mut log = open(&disk);
    let check = log.look_check(merged, 0);
    let [damage] = &check.damage[..] else { panic!("{check:?}") };
    assert_eq!((damage.first_seq, damage.last_seq, damage.records), (Some(0), Some(79), 80));
}

/// A check goes on where it has stopped, and sees every block once.
#[test]
fn a_check_is_made_in_steps() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    let mut noise = 1_u64;
    for block in 0..100 {
        let mut byte = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            noise.to_be_bytes()[0]
        };
        let payload: Vec<u8> = (0..100_000).map(|_| byte()).collect();
        let record =
            NewRecord { kind: "custom.x".to_owned(), at_ms: block, payload: payload.into() };
        log.append(vec![Group::of(vec![record])], block);
    }
    let id = log.segments()[0].id;
    let (mut from, mut steps, mut records) = (Some(0), 0, 0);
    while let Some(frame) = from {
        let check = log.look_check(id, frame);
        assert!(check.stored_bytes < CHECK_BYTES_MAX + (200 << 10));
        (records, steps, from) = (records + check.records, steps + 1, check.next);
    }
    assert_eq!((records, steps), (100, 3));
    assert_eq!(log.look_check(7, 0), SegmentCheck { segment: 7, ..SegmentCheck::default() });
}
