//! Merging and thinning keep ids, order and counts, whenever the process ends.

use std::collections::BTreeMap;

use bytes::Bytes;
use uuid::Uuid;

use crate::queue::{
    BatchLimits, Budget, Durability, Group, Log, LogLimits, MemoryDisk, NewRecord, OnFull,
    RealDisk, Retain, WriteDisk,
};

const LIMITS: LogLimits = LogLimits {
    durability: Durability::Sync,
    budget: Budget::UNBOUNDED,
    retain: Retain::Off,
    segment_bytes_max: 1 << 20,
    batch: BatchLimits { raw_bytes_max: 16 << 10, records_max: 100 },
    ring_bytes_max: 0,
    volatile_bytes_max: 1 << 20,
};

const WINDOW_MS: i64 = 60_000;

/// By batch id: sequence numbers and payloads.
type Sent = BTreeMap<Uuid, Vec<(u64, Bytes)>>;

/// A window of one `sysstat` and three `pg_stats`.
fn window(n: u64) -> Group {
    let at_ms = i64::try_from(n).unwrap() * WINDOW_MS;
    let record = |(kind, part): (&str, u64)| NewRecord {
        kind: kind.to_owned(),
        at_ms,
        payload: Bytes::from(format!("{{\"type\":\"{kind}\",\"n\":{n},\"part\":{part}}}")),
    };
    let kinds = [("sysstat", 0), ("pg_stats", 0), ("pg_stats", 1), ("pg_stats", 2)];
    Group::of(kinds.into_iter().map(record).collect())
}

/// Appends and seals one window each.
fn fill<D: WriteDisk>(log: &mut Log<D>, windows: std::ops::Range<u64>) {
    for n in windows {
        let now_ms = i64::try_from(n).unwrap() * WINDOW_MS;
        log.append(vec![window(n)], now_ms);
        log.seal(now_ms + WINDOW_MS - 1);
    }
}

fn open(disk: &MemoryDisk, limits: LogLimits) -> Log<MemoryDisk> {
    Log::open(disk.open(), limits).expect("a memory disk opens")
}

fn tend<D: WriteDisk>(log: &mut Log<D>) {
    while log.tend(1_000_000_000) {}
}

fn drain<D: WriteDisk>(log: &mut Log<D>) -> Sent {
    let mut sent = Sent::new();
    while let Some(batch) = log.next_batch(i64::MAX) {
        let records = batch.records.iter().map(|r| (r.seq, r.payload.clone())).collect();
        assert_eq!(sent.insert(batch.id, records), None, "{} is sent once", batch.id);
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    sent
}

fn sequence(sent: &Sent) -> Vec<u64> {
    let mut all: Vec<u64> = sent.values().flatten().map(|(seq, _)| *seq).collect();
    all.sort_unstable();
    all
}

/// Q4, Q10: whatever is merged into whatever, batches keep ids, records and order.
#[test]
fn ids_and_records_stay() {
    let disk = MemoryDisk::new();
    let mut plain = open(&disk, LIMITS);
    fill(&mut plain, 0..300);
    let mut merged = open(&disk.copy(), LIMITS);
    tend(&mut merged);
    let segments = merged.segments();
    assert!(segments.len() < 40, "{} segments", segments.len());
    assert_eq!(segments.iter().map(|s| s.windows.max(1)).sum::<u32>(), 300);
    assert!(segments.is_sorted_by(|a, b| a.last_seq < b.first_seq), "oldest first");
    assert_eq!(merged.status().records, 1_200);
    let batches = |log: &mut Log<MemoryDisk>| {
        let all = log.batches().unwrap();
        all.iter().map(|b| (b.id, b.origin, b.records, b.window)).collect::<Vec<_>>()
    };
    assert_eq!(batches(&mut plain), batches(&mut merged));
    assert_eq!(drain(&mut plain), drain(&mut merged), "the same ids, records and payloads");
}

#[test]
fn merged_segments_survive_a_restart_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let reopen = || Log::open(RealDisk::open(dir.path()).unwrap(), LIMITS).unwrap();
    let mut log = reopen();
    fill(&mut log, 0..40);
    let before: Vec<_> = log.batches().unwrap().iter().map(|b| (b.id, b.records)).collect();
    tend(&mut log);
    assert!(log.segments().len() < 12);
    drop(log);
    let mut log = reopen();
    let after: Vec<_> = log.batches().unwrap().iter().map(|b| (b.id, b.records)).collect();
    assert_eq!(before, after);
    assert_eq!(sequence(&drain(&mut log)), (0..160).collect::<Vec<_>>());
    drop(log);
    assert_eq!(std::fs::read_dir(dir.path().join("segments")).unwrap().count(), 0);
}

/// Q2: the disk fails at every operation of a merge in turn and the process dies; whether the state
/// survives or not, everything is sent once, under its own id.
#[test]
fn a_crash_at_any_operation_of_a_merge_is_harmless() {
    let full = MemoryDisk::new();
    let mut log = open(&full, LIMITS);
    fill(&mut log, 0..20);
    drop(log);
    let expected = drain(&mut open(&full.copy(), LIMITS));
    let counting = full.copy();
    let before = counting.writes();
    tend(&mut open(&counting, LIMITS));
    let operations = counting.writes() - before;
    assert!(operations > 20, "{operations}");
    for fail_at in 0..=operations {
        for state_lost in [false, true] {
            let disk = full.copy();
            let mut log = open(&disk, LIMITS);
            disk.fill_after(fail_at);
            tend(&mut log);
            drop(log);
            disk.heal();
            if state_lost {
                disk.lose_state();
            }
            let mut log = open(&disk, LIMITS);
            tend(&mut log);
            let sent = drain(&mut log);
            assert_eq!(sent, expected, "failing at {fail_at}, state lost: {state_lost}");
            assert_eq!(log.counts().corrupt_records, 0);
            assert_eq!(disk.segments(), Vec::<u64>::new());
        }
    }
}

/// What is delivered or evicted while a merge is under way stays so.
#[test]
fn a_delivery_during_a_merge_counts() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk, LIMITS);
    fill(&mut log, 0..16);
    for _ in 0..5 {
        assert!(log.tend(1_000_000_000));
    }
    let batch = log.next_batch(i64::MAX).unwrap();
    assert!(!log.tend(1_000_000_000), "a drain has the disk");
    log.delivered(batch.key, 4, &[]).unwrap();
    while log.tend(2_000_000_000) {}
    assert_eq!(log.segments().len(), 1);
    assert_eq!(sequence(&drain(&mut log)), (4..64).collect::<Vec<_>>());
}

/// Q6: thinning keeps every second sample of each type, all parts of a sample, and every record
/// that it takes is in the ledger.
#[test]
fn thinning_keeps_the_shape_of_an_outage() {
    let budget = Budget { bytes_max: 20_000, on_full: OnFull::Thin, ..Budget::UNBOUNDED };
    let disk = MemoryDisk::new();
    let mut log = open(&disk, LogLimits { budget, ..LIMITS });
    log.writer.reserve_bytes = 0; // the memory disk reserves nothing
    for n in 0..400 {
        fill(&mut log, n..n + 1);
        tend(&mut log);
        assert!(log.usage() <= 22_000, "{} bytes", log.usage());
    }
    let lost: u64 = log.losses().iter().map(|loss| loss.records).sum();
    assert!(log.counts().thinned_records > 0);
    assert_eq!(log.counts().evicted_records, lost);
    assert_eq!(log.status().records + lost, 1_600);
    let sent = drain(&mut log);
    let windows: Vec<u64> = sequence(&sent).iter().map(|seq| seq / 4).collect();
    let mut distinct = windows.clone();
    distinct.dedup();
    assert_eq!(windows.len(), distinct.len() * 4, "a sample stays whole");
    let widest = distinct.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(widest <= 64, "a hole of {widest} windows");
    assert!(distinct[0] < 32 && *distinct.last().unwrap() == 399);
}

/// Q3: what can be read of a damaged segment moves to a sound one, the rest is in the ledger with
/// its numbers, and the damaged one is put aside.
#[test]
fn a_damaged_segment_is_salvaged() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk, LIMITS);
    fill(&mut log, 0..32);
    tend(&mut log);
    let merged = disk.segments()[0];
    drop(log);
    disk.damage(merged, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    let mut log = open(&disk, LIMITS);
    let batches = log.batches().unwrap();
    assert!(batches.iter().all(|batch| batch.segment > merged), "its one group is not listed");
    tend(&mut log);
    assert_eq!(disk.quarantined(), [merged]);
    let losses = log.losses();
    assert_eq!((losses.len(), losses[0].from, losses[0].to, losses[0].records), (1, 0, 63, 64));
    assert_eq!(sequence(&drain(&mut log)), (64..128).collect::<Vec<_>>());
}
