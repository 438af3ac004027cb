//! Keys of requests, which must be known as long as their records are anywhere.

use super::*;
use crate::queue::format::salvage;

/// Records that come with the key of a request.
fn keyed(name: &str, numbers: std::ops::Range<u64>) -> Group {
    let position = Position {
        collector: format!("intake/{name}"),
        bytes: Bytes::from_static(b"receipt"),
        keep_until_ms: Some(i64::MAX),
    };
    Group { position: Some(position), ..group(numbers) }
}

/// A client with a key: it sends its records again as long as the queue does not know the key.
fn send(log: &mut Log<MemoryDisk>, name: &str, n: u64, now_ms: i64) {
    if log.position(&format!("intake/{name}")).is_none() {
        log.append(vec![keyed(name, n..n + 1)], now_ms);
    }
}

/// Q7: records that are only in memory are not delivered before their key is on disk. Delivered
/// earlier, a kill would leave a key that nobody knows, and the repeated request would be stored
/// a second time. Windows without keys are delivered meanwhile.
#[test]
fn a_key_that_only_memory_has_keeps_its_records_back() {
    for killed in [false, true] {
        let (disk, mut backend) = (MemoryDisk::new(), Backend::default());
        let mut log = open(&disk);
        log.append(vec![group(0..2)], 1_000);
        disk.fill_after(0);
        send(&mut log, "a", 2, 2_000);
        assert!(log.disk_error().is_some());
        log.seal(3_000);
        log.append(vec![group(3..5)], 4_000);
        log.seal(5_000);
        drain(&mut log, &mut backend);
        assert!(!backend.payloads().contains(&&payload(2)), "its key is not on disk");
        assert!(backend.payloads().contains(&&payload(4)), "no key waits with this one");
        if killed {
            drop(log);
            disk.heal();
            log = open(&disk);
        }
        disk.heal();
        send(&mut log, "a", 2, 90_000);
        log.append(vec![group(5..6)], 90_001);
        log.seal(90_002);
        assert_eq!(log.disk_error(), None);
        drain(&mut log, &mut backend);
        assert_all(&backend, 0..6);
    }
}

/// Q7: the key of records that memory had no room for is forgotten with them: the repeated request
/// is a new one, and not a duplicate of what is lost.
#[test]
fn a_key_goes_with_records_that_are_evicted_from_memory() {
    for sealed in [false, true] {
        let disk = MemoryDisk::new();
        let limits = LogLimits { volatile_bytes_max: 4 << 10, ..LIMITS };
        let mut log = Log::open(disk.open(), limits).unwrap();
        disk.fill_after(0);
        log.append(vec![keyed("a", 0..1)], 1_000);
        if sealed {
            log.seal(2_000);
        }
        log.append(vec![group(1..30)], 3_000);
        assert!(log.counts().evicted_records > 0);
        assert_eq!(log.position("intake/a"), None);
        disk.heal();
        log.seal(90_000);
        drop(log);
        assert_eq!(open(&disk).position("intake/a"), None);
    }
}

/// A request that was cut off while it was written, or of which the disk has kept a part only: none
/// of it counts, neither its key nor its records, and the repeated one is stored once. Whatever is
/// missing, and whether something was acknowledged in the same segment before.
#[test]
fn of_what_was_not_written_to_its_end_nothing_counts() {
    for before in [0, 3] {
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        if before > 0 {
            log.append(vec![group(0..before)], 10);
        }
        log.append(vec![keyed("a", before..before + 40), group(before + 40..before + 45)], 20);
        let (queue, id) = (log.queue_id(), disk.segments()[0]);
        drop(log);
        let frames = frames_of(&disk, queue, id);
        let first = usize::from(before > 0);
        assert!(frames.len() > first + 4, "several blocks");
        let cut = (first..frames.len()).map(|from| from..frames.len());
        let holes = (first..frames.len()).map(|at| at..at + 1);
        for missing in cut.chain(holes) {
            let disk = disk.copy();
            disk.damage(id, |bytes| {
                for (offset, length) in &frames[missing.clone()] {
                    bytes[*offset..offset + length].fill(0);
                }
            });
            let looked = Log::look(disk.open(), LIMITS).unwrap();
            assert_eq!(looked.position("intake/a"), None, "looked at, {missing:?}");
            let mut log = open(&disk);
            assert_eq!(log.position("intake/a"), None, "{missing:?} of {}", frames.len());
            assert_eq!((log.status().records, log.losses()), (before, vec![]), "{missing:?}");
            log.append(vec![keyed("a", before..before + 40), group(before + 40..before + 45)], 30);
            log.seal(40);
            let mut backend = Backend::default();
            drain(&mut log, &mut backend);
            assert_all(&backend, 0..before + 45);
            drop(log);
            assert!(open(&disk).position("intake/a").is_some());
        }
        let mut log = open(&disk);
        assert!(log.position("intake/a").is_some(), "all of it is there");
        log.seal(30);
        let mut backend = Backend::default();
        drain(&mut log, &mut backend);
        assert_all(&backend, 0..before + 45);
    }
}

/// Q3, Q5: numbers that were given after it say that a request was written to its end: what is
/// missing of it is damage, and in the ledger.
#[test]
fn what_is_missing_of_an_acknowledged_request_is_in_the_ledger() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![keyed("a", 0..40)], 10);
    log.seal(20);
    log.append(vec![group(40..45)], 30);
    let (queue, id) = (log.queue_id(), disk.segments()[0]);
    drop(log);
    let frames = frames_of(&disk, queue, id);
    let (offset, length) = frames[1];
    disk.damage(id, |bytes| bytes[offset..offset + length].fill(0));
    disk.lose_state();
    let mut log = open(&disk);
    log.seal(40);
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    let lost: u64 = log.losses().iter().map(|loss| loss.records).sum();
    assert!((1..40).contains(&lost), "{:?}", log.losses());
    assert_eq!(backend.distinct().len() as u64, 45 - lost);
}

/// Where the frames of a segment lie, and how long they are.
fn frames_of(disk: &MemoryDisk, queue: Uuid, id: u64) -> Vec<(usize, usize)> {
    let file = disk.files(&format!("segments/{id:020}")).remove("db").unwrap();
    let scan = salvage::scan(&file[..], queue, id).unwrap();
    let place =
        |frame: &salvage::Found| (usize::try_from(frame.offset).unwrap(), frame.head.frame_bytes());
    scan.found.iter().map(place).collect()
}

const HOUR_MS: i64 = 3_600_000;

/// A key that is good for a day.
fn daily(name: &str, n: u64, now_ms: i64) -> Group {
    let position = keyed(name, 0..0).position.unwrap();
    let keep_until_ms = Some(now_ms + 24 * HOUR_MS);
    Group { position: Some(Position { keep_until_ms, ..position }), ..group(n..n + 1) }
}

fn knows(log: &Log<MemoryDisk>, name: &str) -> bool {
    log.position(&format!("intake/{name}")).is_some()
}

/// Keys do not follow a wall clock that is ahead for a while: they stay for their day, and not
/// longer. Over restarts, too.
#[test]
fn a_clock_that_jumps_takes_no_key() {
    let at = |wall_ms, running_ms| Moment { wall_ms, running_ms };
    for restart in [false, true] {
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        log.tend(at(HOUR_MS, 0));
        log.append(vec![daily("a", 0, HOUR_MS)], HOUR_MS);
        log.seal(HOUR_MS);
        log.tend(at(26 * HOUR_MS, 10)); // ahead
        log.append(vec![daily("b", 1, 26 * HOUR_MS)], 26 * HOUR_MS);
        log.seal(26 * HOUR_MS);
        assert!(knows(&log, "a"));
        if restart {
            drop(log);
            log = open(&disk);
        }
        log.tend(at(HOUR_MS + 20, 20)); // and back
        log.append(vec![group(2..3)], HOUR_MS + 20);
        log.seal(HOUR_MS + 20);
        assert!(knows(&log, "a") && knows(&log, "b"), "restart {restart}");
        let day = 24 * HOUR_MS;
        log.tend(at(HOUR_MS + 40 + day, 40 + day));
        assert!(!knows(&log, "a") && knows(&log, "b"), "its day is over");
        log.append(vec![group(3..4)], 2 * day);
        log.seal(2 * day);
        drop(log);
        assert!(!knows(&open(&disk), "a"), "it is forgotten on disk, too");
    }
}

/// A clock that was behind, and is set ahead when the backend has confirmed the time: a key that
/// was taken before has its day after that.
#[test]
fn a_clock_that_is_put_right_takes_no_key() {
    for restart in [false, true] {
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        let right = Moment { wall_ms: 400_000 * HOUR_MS, running_ms: 20 };
        log.tend(Moment { wall_ms: 5, running_ms: 0 });
        log.append(vec![daily("a", 0, 5)], 5);
        log.seal(6);
        log.append(vec![daily("b", 1, 6)], 6);
        log.confirm_clock(right);
        log.tend(right);
        log.append(vec![group(2..3)], right.wall_ms);
        log.seal(right.wall_ms);
        assert!(knows(&log, "a") && knows(&log, "b"));
        if restart {
            drop(log);
            log = open(&disk);
            log.tend(Moment { running_ms: 0, ..right });
            log.append(vec![group(3..4)], right.wall_ms);
            log.seal(right.wall_ms);
            assert!(knows(&log, "a") && knows(&log, "b"), "after a restart");
        }
    }
}

/// Of more keys than are kept, the first that were taken go, whatever the clock said then.
#[test]
fn the_first_keys_go_first() {
    let most = u64::try_from(PASSING_POSITIONS_MAX).unwrap();
    let disk = MemoryDisk::new();
    let limits = LogLimits { segment_bytes_max: 64 << 20, ..LIMITS };
    let mut log = Log::open(disk.open(), limits).unwrap();
    let ahead = 500 * HOUR_MS;
    let keys = |range: std::ops::Range<u64>, now_ms| {
        range.map(|n| daily(&format!("{n}"), n, now_ms)).collect::<Vec<_>>()
    };
    log.append(keys(0..most, ahead), ahead);
    log.append(keys(most..most + 2, HOUR_MS), HOUR_MS); // in the same window, put right
    log.seal(HOUR_MS);
    assert!(knows(&log, &most.to_string()) && knows(&log, &(most + 1).to_string()));
    assert!(!knows(&log, "0") && !knows(&log, "1") && knows(&log, "2"));
    log.append(keys(most + 2..most + 3, HOUR_MS), HOUR_MS);
    drop(log);
    let mut log = Log::open(disk.open(), limits).unwrap();
    log.append(keys(most + 3..most + 4, HOUR_MS), HOUR_MS);
    log.seal(HOUR_MS);
    for n in [most + 2, most + 3] {
        assert!(knows(&log, &n.to_string()), "{n}");
    }
}
