//! The queue's invariants, on the store in memory with its faults and on the real one.

mod attack; // the state, the names, the clock, the directory
mod damage; // damaged directories
mod gone; // a directory, or a part of it, that goes away and comes back
mod hand; // files and folders moved about by a person
mod keys; // keys of requests, with and without a disk
mod life; // the thread that owns the log
mod lanes; // fresh batches and the oldest
mod model; // what is promised, and what has arrived
mod power; // the power goes at any operation
mod property; // random histories

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const LIMITS: LogLimits = LogLimits {
    durability: Durability::Sync,
    budget: Budget::UNBOUNDED,
    retain: Retain::Off,
    segment_bytes_max: 64 << 10,
    batch: BatchLimits { raw_bytes_max: 4 << 10, records_max: 10 },
    ring_bytes_max: 8 << 10,
    volatile_bytes_max: 1 << 20,
};

/// A backend that remembers batches by their id, as the contract wants it.
#[derive(Debug, Default)]
struct Backend {
    batches: BTreeMap<Uuid, Vec<Bytes>>,
}

impl Backend {
    /// Takes a batch; a known id must bring what it brought before, or less after damage.
    fn take(&mut self, batch: &Batch) {
        let payloads: Vec<Bytes> = batch.records.iter().map(|r| r.payload.clone()).collect();
        let known = self.batches.entry(batch.id).or_insert_with(|| payloads.clone());
        assert_eq!(*known, payloads, "batch {} changed its content", batch.id);
    }

    fn payloads(&self) -> Vec<&Bytes> {
        self.batches.values().flatten().collect()
    }

    /// Every payload that was stored, each of them once.
    fn distinct(&self) -> BTreeSet<&Bytes> {
        let distinct: BTreeSet<&Bytes> = self.payloads().into_iter().collect();
        assert_eq!(distinct.len(), self.payloads().len(), "a record was stored twice");
        distinct
    }
}

fn payload(n: u64) -> Bytes {
    Bytes::from(format!("{{\"n\":{n},\"filler\":\"{}\"}}", "x".repeat((n % 700) as usize)))
}

fn group(numbers: std::ops::Range<u64>) -> Group {
    let record = |n| NewRecord { kind: "sysstat".to_owned(), at_ms: 1_000, payload: payload(n) };
    Group::of(numbers.map(record).collect())
}

fn drain<D: WriteDisk>(log: &mut Log<D>, backend: &mut Backend) {
    while let Some(batch) = log.next_batch(i64::MAX) {
        backend.take(&batch);
        // A disk that cannot note the delivery means that the batch may come again.
        log.delivered(batch.key, batch.records.len() as u64, &[]).ok();
    }
}

fn open(disk: &MemoryDisk) -> Log<MemoryDisk> {
    Log::open(disk.open(), LIMITS).expect("a memory disk opens")
}

fn assert_all(backend: &Backend, numbers: std::ops::Range<u64>) {
    let expected: Vec<Bytes> = numbers.map(payload).collect();
    assert_eq!(backend.distinct(), expected.iter().collect());
}

/// C15, C18, C19: counted while it waits, gone after it is delivered.
fn delivers_and_forgets<D: WriteDisk>(mut log: Log<D>) {
    assert_eq!((log.status().records, log.status().segments), (0, 0));
    let appended = log.append(vec![group(0..25), group(25..30)], 10);
    assert_eq!(appended, Appended { first_seq: 0, records: 30, home: Home::Disk });
    assert!(log.next_batch(i64::MAX).is_none(), "an open window is not sent");
    log.seal(20);
    assert_eq!((log.status().records, log.status().segments), (30, 1));
    assert!(log.status().batches > 1 && log.status().raw_bytes > 0);
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    assert_all(&backend, 0..30);
    assert_eq!((log.status().records, log.status().segments), (0, 0));
    assert_eq!((log.counts().delivered_records, log.counts().appended_records), (30, 30));
}

#[test]
fn delivers_and_forgets_in_memory() {
    delivers_and_forgets(open(&MemoryDisk::new()));
}

#[test]
fn delivers_and_forgets_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = RealDisk::open(dir.path()).unwrap();
    delivers_and_forgets(Log::open(store, LIMITS).unwrap());
    let left = std::fs::read_dir(dir.path().join("segments")).unwrap().count();
    assert_eq!(left, 0, "segments are removed");
}

/// Q1, Q4, Q5, C20: what was acknowledged before a restart is sent after it, under the same ids.
#[test]
fn restarts_keep_records_ids_and_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let reopen = || Log::open(RealDisk::open(dir.path()).unwrap(), LIMITS).unwrap();
    let mut log = reopen();
    log.append(vec![group(0..40)], 10);
    log.seal(20);
    log.append(vec![group(40..50)], 30);
    let before: Vec<_> = log.batches().unwrap().iter().map(|b| (b.id, b.records)).collect();
    drop(log);
    let mut log = reopen();
    let after: Vec<_> = log.batches().unwrap().iter().map(|b| (b.id, b.records)).collect();
    assert_eq!(before, after);
    assert_eq!(log.append(vec![group(50..55)], 40).first_seq, 50);
    log.seal(50);
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    assert_all(&backend, 0..55);
    drop(log);
    let mut log = reopen();
    assert!(log.next_batch(i64::MAX).is_none(), "nothing is sent again");
    assert_eq!(log.append(vec![group(55..56)], 60).first_seq, 55);
}

/// Q2: deliveries are noted with the next sync, and at an end in good order; before that, a kill
/// repeats them under the same id.
#[test]
fn deliveries_are_noted_with_the_next_sync() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![group(0..60)], 10);
    log.seal(20);
    let ids: Vec<Uuid> = log.batches().unwrap().iter().map(|batch| batch.id).collect();
    let deliver = |log: &mut Log<MemoryDisk>| {
        let batch = log.next_batch(i64::MAX).unwrap();
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
        batch.id
    };
    assert_eq!(deliver(&mut log), ids[0]);
    let mut log = open(&disk);
    assert_eq!(deliver(&mut log), ids[0], "killed before it was noted");
    assert_eq!(deliver(&mut log), ids[1]);
    log.sync(30);
    let mut log = open(&disk);
    assert_eq!(deliver(&mut log), ids[2]);
    assert_eq!(deliver(&mut log), ids[3]);
    log.close(40);
    assert_eq!(deliver(&mut open(&disk)), ids[4]);
}

/// A process that was killed leaves a segment with its reservation; the next one gives it back.
#[test]
fn the_reservation_of_a_killed_process_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let limits = LogLimits { segment_bytes_max: 8 << 20, ..LIMITS };
    let open = || Log::open(RealDisk::open(dir.path()).unwrap(), limits).unwrap();
    let mut log = open();
    log.append(vec![group(0..5)], 10);
    assert!(log.status().disk_bytes >= 8 << 20);
    drop(log); // closes the files and seals nothing, as a kill does
    assert!(open().status().disk_bytes < 1 << 20);
}

#[test]
fn a_batch_that_was_put_back_comes_again() {
    let mut log = open(&MemoryDisk::new());
    log.append(vec![group(0..1)], 10);
    log.seal(20);
    let first = log.next_batch(i64::MAX).unwrap();
    assert!(log.next_batch(i64::MAX).is_none(), "it is being sent");
    log.put_back(first.key, "503".to_owned(), 1_000);
    let info = &log.batches().unwrap()[0];
    assert_eq!((info.attempts, info.last_answer.as_deref()), (1, Some("503")));
    assert!(log.next_batch(999).is_none(), "it is not due");
    log.retry_now();
    assert_eq!(log.next_batch(999).as_ref(), Some(&first));
    log.put_back(first.key, "503".to_owned(), 1_000);
    assert_eq!(log.next_batch(i64::MAX), Some(first));
}

/// Q7: without a disk, records are delivered from memory; with the disk back they are written.
#[test]
fn a_full_disk_stops_nothing() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![group(0..5)], 1_000);
    disk.fill_after(0);
    assert_eq!(log.append(vec![group(5..10)], 2_000).home, Home::MemoryOnly);
    assert!(log.disk_error().is_some_and(|error| error.contains("df -i")));
    log.seal(3_000);
    log.append(vec![group(10..15)], 4_000);
    let mut backend = Backend::default();
    let batch = log.next_batch(i64::MAX).unwrap();
    backend.take(&batch);
    disk.heal();
    assert_eq!(log.append(vec![group(15..20)], 90_000).home, Home::Disk);
    assert_eq!((log.disk_error(), log.status().records), (None, 20));
    drop(log);
    let mut log = open(&disk);
    log.seal(91_000);
    drain(&mut log, &mut backend);
    assert_all(&backend, 0..20);
}

/// Q7: a log that ends asks the disk once more, however short ago it was asked.
#[test]
fn an_end_writes_what_is_in_memory() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    disk.fill_after(0);
    for n in 0..3 {
        assert_eq!(log.append(vec![group(n * 5..n * 5 + 5)], 1_000).home, Home::MemoryOnly);
        log.seal(1_000);
    }
    log.append(vec![group(15..18)], 1_000);
    disk.heal();
    log.close(1_001);
    let mut backend = Backend::default();
    drain(&mut open(&disk), &mut backend);
    assert_all(&backend, 0..18);
}

/// A clock that is put back (a host without a battery, before NTP) delays neither the next try nor
/// the next question to the disk by as much.
#[test]
fn a_clock_that_is_put_back_delays_nothing() {
    let (day_ms, disk) = (86_400_000, MemoryDisk::new());
    let mut log = open(&disk);
    log.append(vec![group(0..1)], 10 * day_ms);
    log.seal(10 * day_ms);
    let batch = log.next_batch(10 * day_ms).unwrap();
    log.put_back(batch.key, "503".to_owned(), 10 * day_ms + 1_000);
    assert!(log.next_batch(10 * day_ms).is_none(), "it is not due");
    assert!(log.next_batch(day_ms).is_some(), "the clock was put back");
    disk.fill_after(0);
    assert_eq!(log.append(vec![group(1..2)], 10 * day_ms).home, Home::MemoryOnly);
    disk.heal();
    assert_eq!(log.append(vec![group(2..3)], 10 * day_ms + 1).home, Home::MemoryOnly);
    assert_eq!(log.append(vec![group(3..4)], day_ms).home, Home::Disk);
}

/// Q7: a batch whose dead letters cannot be written comes again.
#[test]
fn a_delivery_that_cannot_be_noted_is_tried_again() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![group(0..3)], 10);
    log.seal(20);
    let batch = log.next_batch(20).unwrap();
    disk.fill_after(0);
    let letter = DeadLetter { seq: 1, at_ms: 1_000, line: "{}".to_owned() };
    assert!(log.delivered(batch.key, 3, std::slice::from_ref(&letter)).is_err());
    disk.heal();
    assert!(log.next_batch(30).is_none(), "not at once");
    assert_eq!(log.next_batch(20_000).as_ref(), Some(&batch));
    log.delivered(batch.key, 3, std::slice::from_ref(&letter)).unwrap();
    assert_eq!((disk.dead(), log.status().records), (vec![letter], 0));
}

/// Q7: what a failed try has left behind does not stand in the way of the next.
#[test]
fn a_segment_is_created_over_what_is_left_of_a_failed_try() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store::Store::open(RealDisk::open(dir.path()).unwrap(), 1 << 20).unwrap();
    store.create(7).unwrap();
    store.abandon(7);
    store.create(7).expect("the second try");
    assert_eq!(store.segments().unwrap(), [7]);
}

/// Q7: the memory for records without a disk is bounded, and what goes is counted.
#[test]
fn memory_without_a_disk_is_bounded() {
    let disk = MemoryDisk::new();
    let limits = LogLimits { volatile_bytes_max: 20 << 10, ..LIMITS };
    let mut log = Log::open(disk.open(), limits).unwrap();
    disk.fill_after(0);
    for n in 0..100 {
        log.append(vec![group(n * 10..n * 10 + 10)], 10);
        log.seal(20);
    }
    let (status, counts) = (log.status(), log.counts());
    assert!(status.ring_bytes <= 20 << 10, "{} bytes", status.ring_bytes);
    assert_eq!(counts.evicted_records + status.records, 1_000);
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    assert!(backend.payloads().contains(&&payload(999)), "the newest stay");
}

/// Q8: a position is as durable as the records before it, and never ahead of them.
#[test]
fn positions_travel_with_records() {
    let disk = MemoryDisk::new();
    let at = |text: &'static str| {
        let bytes = Bytes::from_static(text.as_bytes());
        Some(Position { collector: "pg_log".to_owned(), bytes, keep_until_ms: None })
    };
    let mut log = open(&disk);
    log.append(vec![Group { position: at("1"), ..group(0..1) }], 10);
    log.seal(20);
    log.append(vec![Group { position: at("2"), ..group(1..2) }], 30);
    log.append(vec![Group { position: at("3"), ..Group::default() }], 40);
    drop(log);
    let mut log = open(&disk);
    assert_eq!(log.position("pg_log").as_deref(), Some(&b"3"[..]));
    disk.fill_after(0);
    log.append(vec![Group { position: at("4"), ..group(2..3) }], 50);
    assert_eq!(log.position("pg_log").as_deref(), Some(&b"4"[..]));
    drop(log);
    disk.heal();
    let log = open(&disk);
    assert_eq!(log.position("pg_log").as_deref(), Some(&b"3"[..]), "4 was never on disk");
}

/// Q3: one damaged byte costs one block, is counted exactly, and the segment is kept aside.
#[test]
fn damage_costs_a_block_and_is_counted() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    for n in 0..10 {
        log.append(vec![group(n * 3..n * 3 + 3)], 10);
    }
    log.seal(20);
    drop(log);
    let segment = disk.segments()[0];
    disk.damage(segment, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x40;
    });
    let mut log = open(&disk);
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    assert_eq!((log.counts().corrupt_records, backend.distinct().len()), (3, 27));
    assert_eq!((disk.segments(), disk.quarantined()), (vec![], vec![segment]));
}

/// Q3: a segment of which nothing can be read is kept aside, and the next is delivered.
#[test]
fn a_destroyed_segment_does_not_block_the_queue() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![group(0..5)], 10);
    log.seal(20);
    log.append(vec![group(5..8)], 30);
    log.seal(40);
    drop(log);
    let segment = disk.segments()[0];
    disk.damage(segment, |bytes| bytes.fill(0));
    let mut log = open(&disk);
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    assert_eq!(log.counts().corrupt_records, 5);
    assert_all(&backend, 5..8);
    assert_eq!(disk.quarantined(), [segment]);
}

/// Q3: a segment that the disk does not give is passed over, tried again later, and never dropped.
#[test]
fn an_unreadable_segment_does_not_hold_up_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Log::open(RealDisk::open(dir.path()).unwrap(), LIMITS).unwrap();
    let mut log = open();
    for n in 0..3 {
        log.append(vec![group(n * 5..n * 5 + 5)], 10);
        log.seal(20);
    }
    let first = log.segments()[0].id;
    drop(log);
    let file = dir.path().join(format!("segments/{first:020}/db"));
    let aside = dir.path().join("aside");
    std::fs::rename(&file, &aside).unwrap();
    std::fs::create_dir(&file).unwrap();
    let mut log = open();
    let mut backend = Backend::default();
    while let Some(batch) = log.next_batch(1_000) {
        backend.take(&batch);
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    assert_all(&backend, 5..15);
    let info = &log.segments()[0];
    assert_eq!((info.id, info.state, info.records), (first, SegmentState::Damaged, 5));
    assert!(info.last_answer.is_some());
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    assert!(log.next_batch(2_000).is_none(), "it is left alone for a minute");
    while let Some(batch) = log.next_batch(70_000) {
        backend.take(&batch);
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    assert_all(&backend, 0..15);
}

/// Refused records are in the dead letters before their batch goes.
#[test]
fn refused_records_become_dead_letters() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![group(0..3)], 10);
    log.seal(20);
    let batch = log.next_batch(i64::MAX).unwrap();
    let letter = DeadLetter { seq: 1, at_ms: 1_000, line: "{}".to_owned() };
    log.delivered(batch.key, 3, std::slice::from_ref(&letter)).unwrap();
    assert_eq!(disk.dead(), [letter]);
    assert_eq!((log.counts().refused_records, log.counts().delivered_records), (1, 2));
}

/// What is refused and not kept is in the ledger, after a crash too, and in no letter; nobody is
/// alarmed by its count.
#[test]
fn refused_records_that_are_not_kept_are_in_the_ledger_alone() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![group(0..3)], 10);
    log.seal(20);
    let batch = log.next_batch(i64::MAX).unwrap();
    let not_kept = vec![(0, 1_000), (2, 3_000)];
    log.settle(batch.key, &Settled { records: 3, not_kept, ..Settled::default() }).unwrap();
    assert!(disk.dead().is_empty());
    let counts = log.counts();
    assert_eq!((counts.unknown_records, counts.refused_records), (2, 0));
    assert_eq!(counts.delivered_records, 1);
    drop(log);
    let log = open(&disk);
    let losses = log.losses();
    let refused = losses.iter().map(|loss| (loss.from, loss.to, loss.reason));
    let expected = [(0, 0, LossReason::Refuse), (2, 2, LossReason::Refuse)];
    assert_eq!(refused.collect::<Vec<_>>(), expected);
}

/// Q1, Q2: the disk fails at every writing operation of a workload in turn, the process dies, and
/// the next one delivers everything that was acknowledged as being on disk.
#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged() {
    let workload = |disk: &MemoryDisk, backend: &mut Backend| {
        let mut acknowledged = Vec::new();
        let Ok(mut log) = Log::open(disk.open(), LIMITS) else { return acknowledged };
        for n in 0..12_u64 {
            let numbers = n * 4..n * 4 + 4;
            let now_ms = i64::try_from(n).unwrap() * 10;
            if log.append(vec![group(numbers.clone())], now_ms).home == Home::Disk {
                acknowledged.extend(numbers);
            }
            if n % 3 == 2 {
                log.seal(now_ms + 5);
            }
            if n == 7 {
                drain(&mut log, backend);
            }
        }
        acknowledged
    };
    let counting = MemoryDisk::new();
    workload(&counting, &mut Backend::default());
    let operations = counting.writes();
    assert!(operations > 20);
    for fail_at in 0..=operations {
        let disk = MemoryDisk::new();
        disk.fill_after(fail_at);
        let mut backend = Backend::default();
        let acknowledged = workload(&disk, &mut backend);
        disk.heal();
        let mut log = open(&disk);
        log.seal(1_000);
        drain(&mut log, &mut backend);
        let stored = backend.distinct();
        for n in acknowledged {
            assert!(stored.contains(&payload(n)), "record {n}, failing from operation {fail_at}");
        }
        assert_eq!(log.counts().corrupt_records, 0, "failing from operation {fail_at}");
    }
}

/// C16, Q1: many tasks append at once; every answer is right and every record is delivered.
#[tokio::test]
async fn tasks_share_syncs() {
    let disk = MemoryDisk::new();
    let (queue, thread) = Queue::start(open(&disk), Duration::from_millis(5)).unwrap();
    let appends = (0..50_u64).map(|n| {
        let queue = queue.clone();
        tokio::spawn(async move { queue.append(group(n * 2..n * 2 + 2)).await.unwrap() })
    });
    let mut seqs = BTreeSet::new();
    for append in appends.collect::<Vec<_>>() {
        let appended = append.await.unwrap();
        assert_eq!((appended.records, appended.home), (2, Home::Disk));
        seqs.extend([appended.first_seq, appended.first_seq + 1]);
    }
    assert_eq!(seqs, (0..100).collect());
    assert!(disk.writes() < 50, "{} writes for 50 appends", disk.writes());
    queue.close().await.unwrap();
    assert!(queue.append(group(0..1)).await.is_err());
    thread.join();
    let mut backend = Backend::default();
    drain(&mut open(&disk), &mut backend);
    assert_all(&backend, 0..100);
}
