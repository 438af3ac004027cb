//! Q6: the queue keeps within its budget, and whatever goes is in the ledger first.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;

use crate::queue::{
    Appended, BatchLimits, Budget, DeadLetter, Durability, Group, Home, Log, LogLimits, LossReason,
    MemoryDisk, NewRecord, OnFull, Position, RealDisk, Retain,
};

const CAP: u64 = 60_000;

const LIMITS: LogLimits = LogLimits {
    durability: Durability::Sync,
    budget: Budget { bytes_max: CAP, ..Budget::UNBOUNDED },
    retain: Retain::Off,
    segment_bytes_max: 4_000,
    batch: BatchLimits { raw_bytes_max: 2_000, records_max: 10 },
    ring_bytes_max: 0,
    volatile_bytes_max: 1 << 20,
};

fn open(disk: &MemoryDisk, limits: LogLimits) -> Log<MemoryDisk> {
    let mut log = Log::open(disk.open(), limits).expect("a memory disk opens");
    log.writer.reserve_bytes = 4_000; // as much as a segment of these limits takes
    log
}

/// Three records of a window that do not compress.
fn window(n: u64) -> Group {
    let mut state = n + 1;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    let mut record = |_| NewRecord {
        kind: "sysstat".to_owned(),
        at_ms: i64::try_from(n).unwrap() * 1_000,
        payload: (0..300).map(|_| noise()).collect::<Bytes>(),
    };
    Group::of((0..3).map(&mut record).collect())
}

fn append(log: &mut Log<MemoryDisk>, n: u64) -> Appended {
    let now_ms = i64::try_from(n).unwrap() * 1_000;
    let appended = log.append(vec![window(n)], now_ms);
    log.seal(now_ms + 999);
    appended
}

fn drain(log: &mut Log<MemoryDisk>) -> BTreeSet<u64> {
    let mut sent = BTreeSet::new();
    while let Some(batch) = log.next_batch(i64::MAX) {
        sent.extend(batch.records.iter().map(|record| record.seq));
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    sent
}

/// Every number that the ledger holds.
fn lost(log: &Log<MemoryDisk>) -> BTreeSet<u64> {
    let losses = log.losses();
    assert!(losses.iter().all(|loss| loss.reason == LossReason::Evict));
    assert!(losses.iter().all(|loss| loss.records == loss.to - loss.from + 1));
    losses.iter().flat_map(|loss| loss.from..=loss.to).collect()
}

#[test]
fn the_oldest_go_and_the_ledger_has_them() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk, LIMITS);
    for n in 0..200 {
        append(&mut log, n);
        assert!(log.usage() <= CAP, "{} bytes", log.usage());
    }
    let lost = lost(&log);
    assert!(!lost.is_empty());
    assert_eq!(log.counts().evicted_records, lost.len() as u64);
    let first = &log.losses()[0];
    assert_eq!((first.from, first.time_ms.0), (0, 0));
    drop(log);
    let mut log = open(&disk, LIMITS);
    let kept = drain(&mut log);
    assert_eq!(kept, (lost.len() as u64..600).collect(), "the newest stay, over a restart too");
    assert_eq!(self::lost(&log), lost);
}

#[test]
fn the_newest_go_when_so_wanted_and_positions_move_on() {
    let disk = MemoryDisk::new();
    let budget = Budget { on_full: OnFull::EvictNewest, ..LIMITS.budget };
    let limits = LogLimits { budget, ..LIMITS };
    let mut log = open(&disk, limits);
    let homes: Vec<Home> = (0..200).map(|n| append(&mut log, n).home).collect();
    let taken = homes.iter().take_while(|home| **home == Home::Disk).count();
    assert!(taken > 10 && homes[taken..].iter().all(|home| *home == Home::Evicted));
    let position = Position {
        collector: "pg_log".to_owned(),
        bytes: Bytes::from_static(b"9"),
        keep_until_ms: None,
    };
    log.append(vec![Group { position: Some(position), ..window(200) }], 201_000);
    drop(log);
    let mut log = open(&disk, limits);
    assert_eq!(log.position("pg_log").as_deref(), Some(&b"9"[..]));
    let taken = taken as u64 * 3;
    assert_eq!((lost(&log), drain(&mut log)), ((taken..603).collect(), (0..taken).collect()));
    assert_eq!(append(&mut log, 201).home, Home::Disk, "there is room again");
}

#[test]
fn appends_wait_when_so_wanted() {
    let disk = MemoryDisk::new();
    let budget = Budget { on_full: OnFull::Block, ..LIMITS.budget };
    let mut log = open(&disk, LogLimits { budget, ..LIMITS });
    let mut n = 0;
    while log.takes_records(i64::try_from(n).unwrap() * 1_000) {
        append(&mut log, n);
        n += 1;
        assert!(n < 200, "it is full in the end");
    }
    assert!(log.losses().is_empty());
    let batch = log.next_batch(i64::MAX).unwrap();
    log.delivered(batch.key, 3, &[]).unwrap();
    assert!(log.takes_records(1_000_000), "a delivery makes room");
    assert_eq!(drain(&mut log), (3..n * 3).collect());
}

/// Whoever is told to come again is told so before anything of it has a number: the ledger has only
/// what was taken and given up.
#[test]
fn what_is_not_taken_is_not_lost() {
    for on_full in [OnFull::EvictNewest, OnFull::Block] {
        // Segments that end by their size, and not by a window.
        let budget = Budget { on_full, ..LIMITS.budget };
        let limits = LogLimits { budget, segment_bytes_max: 2 << 10, ..LIMITS };
        let disk = MemoryDisk::new();
        let mut log = open(&disk, limits);
        let mut n = 0;
        while !log.would_evict(1_000) && log.takes_records(1_000) {
            let home = log.append(vec![window(n)], 1_000).home;
            assert_eq!((home, log.losses()), (Home::Disk, vec![]), "{on_full:?}: window {n}");
            n += 1;
            assert!(n < 2_000, "it is full in the end");
        }
        assert!(n > 5, "{n} windows");
        assert!(log.usage() <= CAP, "{on_full:?}: {} bytes", log.usage());
    }
}

#[test]
fn what_is_too_old_goes() {
    let disk = MemoryDisk::new();
    let budget = Budget { age_max: Some(Duration::from_secs(10)), ..LIMITS.budget };
    let mut log = open(&disk, LogLimits { budget, ..LIMITS });
    (0..20).for_each(|n| {
        append(&mut log, n);
    });
    log.tend(20_500);
    assert_eq!(lost(&log), (0..30).collect());
    assert_eq!(drain(&mut log), (30..60).collect());
}

/// A low file system is no reason to give up what is queued: it only does not grow.
#[test]
fn a_low_file_system_keeps_the_queue_from_growing() {
    let disk = MemoryDisk::new();
    let budget = Budget { disk_free_min_percent: 5, ..LIMITS.budget };
    let mut log = open(&disk, LogLimits { budget, ..LIMITS });
    (0..100).for_each(|n| {
        append(&mut log, n);
    });
    let before = log.usage();
    disk.set_space(4_000, 100_000);
    let evicted = lost(&log).len();
    (100..110).for_each(|n| {
        append(&mut log, n);
    });
    assert!(log.usage() <= before && !log.losses().is_empty());
    assert!(lost(&log).len() > evicted);
    assert!(drain(&mut log).contains(&329), "the newest are taken");
}

/// Delivered segments that are kept go first, and are no loss.
#[test]
fn kept_segments_make_room() {
    let disk = MemoryDisk::new();
    let limits = LogLimits { retain: Retain::Bytes(CAP / 2), ..LIMITS };
    let mut log = open(&disk, limits);
    for n in 0..10 {
        append(&mut log, n);
    }
    drain(&mut log);
    assert_eq!((log.status().kept_segments, log.status().records), (10, 0));
    drop(log);
    let mut log = open(&disk, limits);
    let batches = log.batches().unwrap();
    assert_eq!(batches.len(), 10);
    assert_eq!(log.read(batches[0].key()).unwrap().unwrap().records.len(), 3);
    assert!(log.next_batch(i64::MAX).is_none(), "they are not sent by themselves");
    let full = (10..200).find(|n| {
        append(&mut log, *n);
        !log.losses().is_empty()
    });
    assert_eq!(log.status().kept_segments, 0, "they go before anything that waits");
    assert!(full.unwrap() > 40);
    let limits = LogLimits { retain: Retain::Age(Duration::from_secs(60)), ..LIMITS };
    let mut log = open(&MemoryDisk::new(), limits);
    append(&mut log, 0);
    drain(&mut log);
    log.tend(60_000);
    assert_eq!(log.status().kept_segments, 1);
    log.tend(61_000);
    assert_eq!(log.status().kept_segments, 0);
}

/// Q1: `interval` acknowledges before the sync; what a failed sync leaves in doubt is written
/// again, elsewhere, and sent once.
#[test]
fn a_failed_sync_is_written_again() {
    let disk = MemoryDisk::new();
    let limits = LogLimits { durability: Durability::Interval, ..LIMITS };
    let mut log = open(&disk, limits);
    log.append(vec![window(0)], 0);
    log.sync(10);
    log.append(vec![window(1)], 20);
    disk.fill_after(0);
    log.sync(30);
    disk.heal();
    log.append(vec![window(2)], 5_000);
    log.seal(6_000);
    drop(log);
    let mut log = open(&disk, limits);
    assert_eq!(drain(&mut log), (0..9).collect());
    assert_eq!(log.counts().delivered_records, 9);
}

/// Metrics that were refused at the door have numbers and an entry, and leave a hole that is no
/// damage.
#[test]
fn rejects_are_numbered() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk, LIMITS);
    log.append(vec![Group { rejected: 2, ..window(0) }], 0);
    log.append(vec![window(1)], 10);
    drop(log);
    let mut log = open(&disk, LIMITS);
    log.seal(20);
    assert_eq!(drain(&mut log), BTreeSet::from([0, 1, 2, 5, 6, 7]));
    let losses = log.losses();
    assert_eq!((losses[0].from, losses[0].to, losses[0].reason), (3, 4, LossReason::Reject));
    assert_eq!((losses.len(), log.counts().corrupt_records), (1, 0));
}

/// What the backend refuses is bounded too: the oldest letters go, and stay in the ledger.
#[test]
fn dead_letters_have_a_share_of_the_budget() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk, LIMITS);
    for n in 0..100 {
        append(&mut log, n);
        let batch = log.next_batch(i64::MAX).unwrap();
        let letter = |record: &crate::queue::Record| DeadLetter {
            seq: record.seq,
            at_ms: record.at_ms,
            line: "x".repeat(300),
        };
        let letters: Vec<DeadLetter> = batch.records.iter().map(letter).collect();
        log.delivered(batch.key, 3, &letters).unwrap();
        assert!(log.usage() <= CAP / 8 + 4_000, "{} bytes", log.usage());
    }
    let dead: BTreeSet<u64> = disk.dead().iter().map(|letter| letter.seq).collect();
    assert!(dead.len() >= 10, "{} letters", dead.len());
    assert_eq!(dead, (300 - dead.len() as u64..300).collect(), "the newest are kept");
    let losses = log.losses();
    assert!(losses.iter().all(|loss| loss.reason == LossReason::Refuse));
    assert_eq!(losses.iter().map(|loss| loss.records).sum::<u64>(), 300);
}

/// What was put aside for a person to look at gives way to what has not been delivered.
#[test]
fn quarantine_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let put_aside = |name: &str| {
        let path = dir.path().join("quarantine").join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("db"), vec![7; 40 << 10]).unwrap();
    };
    put_aside("00000000000000000007");
    put_aside("notes of somebody");
    let stranger = format!("stranger-{}-{:020}", uuid::Uuid::from_u128(9), 8);
    put_aside(&stranger);
    let fresh = RealDisk::open(dir.path()).unwrap();
    let budget = Budget { bytes_max: 16 << 20, ..LIMITS.budget };
    let mut log = Log::open(fresh, LogLimits { budget, ..LIMITS }).unwrap();
    log.writer.reserve_bytes = 4_000;
    let aside = log.usage();
    assert!((80 << 10..120 << 10).contains(&aside), "{aside} bytes: a stranger has no part");
    log.append(vec![window(0)], 0);
    let left = || std::fs::read_dir(dir.path().join("quarantine")).unwrap().count();
    assert_eq!(left(), 3, "there is room for it");
    log.seal(999);
    log.limits.budget.bytes_max = log.usage();
    log.append(vec![window(1)], 1_000);
    assert_eq!((left(), log.losses().len()), (2, 0));
    assert!(dir.path().join("quarantine/notes of somebody").exists(), "it is not ours");
    // Nobody has sent or counted the records of another queue: they go only by hand.
    log.seal(1_999);
    log.limits.budget.bytes_max = 1;
    log.append(vec![window(2)], 2_000);
    log.tend(3_000);
    assert!(dir.path().join("quarantine").join(stranger).exists());
}
