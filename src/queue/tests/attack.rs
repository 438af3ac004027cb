//! What a directed attack does to a queue: its state is damaged, kept back or lost, its segments
//! are a stranger's, its clock jumps, its directory goes away.

use std::{io, path::Path};

use super::*;
use crate::queue::format::{block, salvage};

/// What must survive: the ledger, the kept segments, positions, and the next number.
#[derive(Debug, PartialEq)]
pub(super) struct Known {
    losses: Vec<Loss>,
    kept: Vec<u64>,
    positions: Vec<Option<Bytes>>,
    next_seq: u64,
    waiting: u64,
}

const COLLECTORS: [&str; 3] = ["pg_log", "intake/one", "intake/two"];

impl Known {
    pub(super) fn of<D: ReadDisk>(log: &Log<D>) -> Self {
        let status = log.status();
        let segments = log.segments().into_iter();
        let kept = segments.filter(|segment| segment.state == SegmentState::Kept);
        Self {
            losses: log.losses(),
            kept: kept.map(|segment| segment.id).collect(),
            positions: COLLECTORS.map(|name| log.position(name)).to_vec(),
            next_seq: status.next_seq,
            waiting: status.records,
        }
    }
}

pub(super) const KEEPING: LogLimits = LogLimits { retain: Retain::Bytes(u64::MAX), ..LIMITS };

/// A queue with something of everything: windows that wait, delivered ones that are kept, entries
/// of the ledger, positions. Written with many notes.
pub(super) fn furnish<D: WriteDisk>(log: &mut Log<D>) {
    for n in 0..12_u64 {
        let collector = COLLECTORS[usize::try_from(n).unwrap() % 3];
        let keep_until_ms = collector.starts_with("intake").then_some(i64::MAX);
        let bytes = Bytes::from(n.to_string());
        let position = Some(Position { collector: collector.to_owned(), bytes, keep_until_ms });
        let now_ms = i64::try_from(n).unwrap() * 100;
        log.append(vec![Group { position, rejected: n % 2, ..group(n * 5..n * 5 + 5) }], now_ms);
        log.seal(now_ms + 50);
    }
    for n in 0..6 {
        let batch = log.next_batch(10_000).unwrap();
        let refused: Vec<DeadLetter> = batch
            .records
            .iter()
            .take(n % 2)
            .map(|record| DeadLetter { seq: record.seq, at_ms: 0, line: "{}".to_owned() })
            .collect();
        log.delivered(batch.key, batch.records.len() as u64, &refused).unwrap();
    }
    log.sync(2_000);
}

/// Q12: one damaged byte, one file that is cut short, one that is gone: nothing is lost. And the
/// next fault finds both files sound again.
#[test]
fn one_fault_of_the_state_takes_nothing() {
    let cases = std::env::var("PGANALYTICS_STATE_FAULTS").ok().and_then(|text| text.parse().ok());
    let cases: u64 = cases.unwrap_or(150);
    let disk = MemoryDisk::new();
    let mut log = Log::open(disk.open(), KEEPING).unwrap();
    furnish(&mut log);
    let expected = Known::of(&log);
    drop(log);
    assert!(expected.losses.len() >= 6 && expected.kept.len() == 6 && expected.waiting > 0);
    let mut kinds = BTreeSet::new();
    for seed in 0..cases {
        let mut random = fastrand::Rng::with_seed(seed);
        let file = ["state/a", "state/b"][random.usize(..2)];
        let kind = random.u8(..4);
        kinds.insert((file, kind));
        let gone = kind == 3 && random.bool();
        let spoil = |bytes: &mut Vec<u8>| match kind {
            0 => {
                let at = random.usize(..bytes.len());
                bytes[at] ^= 1 << random.u8(..8);
            }
            1 => bytes.truncate(random.usize(..bytes.len())),
            2 => bytes.fill_with(|| random.u8(..)),
            _ => bytes.clear(),
        };
        if gone {
            disk.lose(file);
        } else {
            disk.damage_file(Path::new(file), spoil);
        }
        let seen = Log::look(disk.open(), KEEPING).unwrap();
        assert_eq!(Known::of(&seen), expected, "looked at, seed {seed}: {file}, {kind}");
        let log = Log::open(disk.open(), KEEPING).unwrap();
        assert_eq!(Known::of(&log), expected, "seed {seed}: {file}, {kind}");
        assert_eq!(log.counts().corrupt_records, 0);
    }
    assert_eq!(kinds.len(), 8, "{kinds:?}");
}

/// Q12: a state that cannot be read is not a lost one: nothing is opened, and nothing is
/// changed; when it can be read, everything is as it was.
#[test]
fn a_state_that_cannot_be_read_is_waited_for() {
    let disk = MemoryDisk::new();
    let mut log = Log::open(disk.open(), KEEPING).unwrap();
    furnish(&mut log);
    let expected = Known::of(&log);
    drop(log);
    let kinds = [
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::StorageFull,
        io::ErrorKind::Other,
        io::ErrorKind::OutOfMemory,
    ];
    for kind in kinds {
        for path in ["state", "state/a", "state/b", "QUEUE"] {
            let before = (disk.files("state"), disk.segments(), disk.kept());
            disk.make_unreadable(path, kind);
            let error = Log::open(disk.open(), KEEPING).unwrap_err();
            assert_eq!(error.source.kind(), kind, "{path}");
            disk.heal();
            assert_eq!((disk.files("state"), disk.segments(), disk.kept()), before, "{path}");
        }
    }
    assert_eq!(Known::of(&Log::open(disk.open(), KEEPING).unwrap()), expected);
}

/// Q12: when all of the state is lost, kept segments stay what they are, and nothing that waits is
/// missing.
#[test]
fn kept_segments_survive_the_loss_of_the_state() {
    let disk = MemoryDisk::new();
    let mut log = Log::open(disk.open(), KEEPING).unwrap();
    furnish(&mut log);
    let before = Known::of(&log);
    drop(log);
    disk.lose_state();
    let mut log = Log::open(disk.open(), KEEPING).unwrap();
    let after = Known::of(&log);
    assert_eq!(after.kept, before.kept);
    // The last number was given at the door, and only the ledger had it: none is given again.
    assert!(after.next_seq > before.next_seq);
    assert_eq!(after.positions[0], before.positions[0]);
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    assert_eq!(backend.payloads().len() as u64, before.waiting);
}

/// Q12: what a later version wrote is neither read nor touched.
#[test]
fn a_state_of_a_later_version_is_left_alone() {
    let disk = MemoryDisk::new();
    let mut log = Log::open(disk.open(), KEEPING).unwrap();
    furnish(&mut log);
    drop(log);
    disk.damage_file(Path::new("state/a"), |bytes| {
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..52]);
        bytes[52..56].copy_from_slice(&crc.to_le_bytes());
    });
    let before = disk.files("state");
    let error = Log::open(disk.open(), KEEPING).unwrap_err();
    assert!(error.to_string().contains("layout 2, which a later version"), "{error}");
    assert_eq!(disk.files("state"), before);
}

/// Q3: segments that a later version wrote stay, and are named; the others are delivered.
#[test]
fn a_segment_of_a_later_version_stays() {
    for sealed in [true, false] {
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        log.append(vec![group(0..5)], 10);
        log.seal(20);
        log.append(vec![group(5..9)], 30);
        if sealed {
            log.seal(40);
        }
        drop(log);
        let later = disk.segments()[1];
        disk.damage(later, |bytes| {
            bytes[8] = 3;
            let crc = crc32c::crc32c(&bytes[..92]);
            bytes[92..96].copy_from_slice(&crc.to_le_bytes());
        });
        let mut log = open(&disk);
        let mut backend = Backend::default();
        while let Some(batch) = log.next_batch(1_000) {
            backend.take(&batch);
            log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
        }
        assert_all(&backend, 0..5);
        assert_eq!((disk.segments(), log.counts().corrupt_records), (vec![later], 0));
        assert!(log.append(vec![group(9..10)], 2_000).first_seq >= 9);
        let known = log.segments().into_iter().find(|segment| segment.id == later);
        let answer = known.and_then(|segment| segment.last_answer);
        assert!(!sealed || answer.unwrap().contains("a later version"));
    }
}

/// Q5: a block of a batch that its segment does not know is damage, and not left out in silence.
#[test]
fn a_block_of_no_batch_is_in_the_ledger() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![group(0..5)], 10);
    log.append(vec![group(5..9)], 20);
    log.seal(30);
    drop(log);
    disk.damage(disk.segments()[0], |bytes| {
        let at = memchr::memmem::rfind(bytes, &block::MAGIC).unwrap();
        bytes[at + 60] = 7;
        let crc = crc32c::crc32c(&bytes[at..at + 92]);
        bytes[at + 92..at + 96].copy_from_slice(&crc.to_le_bytes());
    });
    let mut log = open(&disk);
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    let lost: u64 = log.losses().iter().map(|loss| loss.records).sum();
    assert_eq!((backend.payloads().len() as u64, lost), (5, 4), "{:?}", log.losses());
}

/// The frames of every segment in `from` become a segment of the queue in `to`.
fn copy_segments(from: &MemoryDisk, to: &MemoryDisk) {
    for id in from.segments() {
        let folder = format!("segments/{id:020}");
        let mut to = to.open();
        to.create_segment(Path::new(&folder), 0).unwrap();
        let bytes = from.files(&folder).remove("db").unwrap();
        to.write(&Path::new(&folder).join("db"), 0, &bytes).unwrap();
    }
}

/// Q3: sound segments of another queue are put aside, not deleted; where nothing says otherwise,
/// the queue is the one that its frames name.
#[test]
fn segments_of_another_queue_are_put_aside() {
    let other = MemoryDisk::new();
    let mut log = open(&other);
    for n in 0..5 {
        log.append(vec![group(n * 3..n * 3 + 3)], 10);
        log.seal(20);
    }
    let other_id = log.queue_id();
    drop(log);
    // A queue that has a state of its own.
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![Group { rejected: 1, ..Group::default() }], 10);
    let own_id = log.queue_id();
    drop(log);
    copy_segments(&other, &disk);
    let mut log = open(&disk);
    assert_eq!(log.queue_id(), own_id);
    assert!(log.next_batch(i64::MAX).is_none());
    assert_eq!((disk.segments(), disk.strangers().len()), (vec![], 5));
    assert!(disk.strangers()[0].contains(&other_id.to_string()), "{:?}", disk.strangers());
    // One that has only a name: the frames say whose it is.
    let disk = MemoryDisk::new();
    drop(open(&disk));
    disk.lose_state();
    copy_segments(&other, &disk);
    let mut log = open(&disk);
    assert_eq!(log.queue_id(), other_id);
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    assert_all(&backend, 0..15);
}

/// Q3, Q4: a `QUEUE` with which nothing agrees counts as missing.
#[test]
fn a_name_that_nothing_agrees_with_is_written_anew() {
    for state_lost in [false, true] {
        let disk = MemoryDisk::new();
        let mut log = Log::open(disk.open(), KEEPING).unwrap();
        furnish(&mut log);
        let (id, known) = (log.queue_id(), Known::of(&log));
        drop(log);
        if state_lost {
            disk.lose_state();
        }
        disk.damage_file(Path::new("QUEUE"), |text| {
            let digit = &mut text[25];
            *digit = if *digit == b'0' { b'1' } else { b'0' };
        });
        assert_eq!(Log::look(disk.open(), KEEPING).unwrap().queue_id(), id);
        let mut log = Log::open(disk.open(), KEEPING).unwrap();
        assert_eq!(log.queue_id(), id);
        if !state_lost {
            assert_eq!(Known::of(&log), known);
        }
        let mut backend = Backend::default();
        drain(&mut log, &mut backend);
        assert_eq!(
            (backend.payloads().len() as u64, log.counts().corrupt_records),
            (known.waiting, 0)
        );
    }
}

/// Q3: a segment whose folder was renamed gets its name back, sealed or not.
#[test]
fn a_renamed_segment_gets_its_name_back() {
    for sealed in [true, false] {
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        log.append(vec![group(0..5)], 10);
        if sealed {
            log.seal(20);
        }
        drop(log);
        let id = disk.segments()[0];
        let to = format!("segments/{:020}", id + (1 << 20));
        let mut hand = disk.open();
        hand.rename(Path::new(&format!("segments/{id:020}")), Path::new(&to)).unwrap();
        let mut log = open(&disk);
        assert_eq!(disk.segments(), [id]);
        let mut backend = Backend::default();
        drain(&mut log, &mut backend);
        assert_all(&backend, 0..5);
        assert_eq!(log.counts().corrupt_records, 0);
    }
}

/// Q3, Q5: damage to any frame of a window that was open when the process was killed, but the last,
/// is in the ledger, number for number, the first included.
#[test]
fn damage_to_an_open_window_is_counted() {
    for before in [false, true] {
        for frame in 0..4 {
            let disk = MemoryDisk::new();
            let mut log = open(&disk);
            let mut first = 0;
            if before {
                log.append(vec![Group { rejected: 2, ..group(0..3) }], 10);
                log.seal(20);
                first = 5;
            }
            for n in 0..5 {
                log.append(vec![group(first + n * 3..first + n * 3 + 3)], 30);
            }
            drop(log);
            let (id, queue) = (*disk.segments().last().unwrap(), open(&disk).queue_id());
            let disk = disk.copy();
            disk.damage(id, |bytes| {
                let scan = salvage::scan(&bytes[..], queue, id).unwrap();
                let at = usize::try_from(scan.found[frame].offset).unwrap();
                bytes[at + 100] ^= 1;
            });
            let mut log = open(&disk);
            let mut backend = Backend::default();
            drain(&mut log, &mut backend);
            let lost: Vec<(u64, u64)> = log
                .losses()
                .iter()
                .filter(|loss| loss.reason == LossReason::Corrupt)
                .map(|loss| (loss.from, loss.to))
                .collect();
            let from = first + frame as u64 * 3;
            assert_eq!(lost, [(from, from + 2)], "frame {frame}, another before: {before}");
        }
    }
}

/// Q13: a clock that jumps ahead evicts nothing, by age or by what is kept, at a start or while the
/// process runs; when the backend's time agrees with it, it counts.
#[test]
fn a_clock_that_jumps_ahead_takes_nothing() {
    const DAY_MS: i64 = 86_400_000;
    const JUMP_MS: i64 = 30 * 365 * DAY_MS;
    let week = Duration::from_secs(7 * 86_400);
    let budget = Budget { age_max: Some(week), ..Budget::UNBOUNDED };
    let limits = LogLimits { budget, retain: Retain::Age(week), ..LIMITS };
    let at = |wall_ms, running_ms| Moment { wall_ms, running_ms };
    let disk = MemoryDisk::new();
    let mut log = Log::open(disk.open(), limits).unwrap();
    log.tend(at(DAY_MS, 0));
    for n in 0..4 {
        log.append(vec![group(n * 5..n * 5 + 5)], DAY_MS);
        log.seal(DAY_MS + 10);
    }
    for _ in 0..2 {
        let batch = log.next_batch(DAY_MS).unwrap();
        log.delivered(batch.key, 5, &[]).unwrap();
    }
    let counted = |log: &Log<MemoryDisk>| (log.status().records, log.status().kept_segments);
    assert_eq!(counted(&log), (10, 2));
    log.tend(at(DAY_MS + JUMP_MS, 1_000));
    assert_eq!(counted(&log), (10, 2), "it jumped while the process ran");
    log.tend(at(DAY_MS + JUMP_MS + 100_000, 101_000));
    drop(log);
    for start in 0..3 {
        let mut log = Log::open(disk.open(), limits).unwrap();
        log.tend(at(DAY_MS + JUMP_MS, 0));
        log.append(vec![group(20 + start..21 + start)], DAY_MS + JUMP_MS);
        log.seal(DAY_MS + JUMP_MS + 10);
        log.tend(at(DAY_MS + JUMP_MS + DAY_MS, DAY_MS));
        assert_eq!(counted(&log), (11 + start, 2), "start {start} with the wrong clock");
    }
    let mut log = Log::open(disk.open(), limits).unwrap();
    log.tend(at(DAY_MS + JUMP_MS, 0));
    assert_eq!(counted(&log), (13, 2));
    log.confirm_clock(at(DAY_MS + JUMP_MS, 10));
    log.tend(at(DAY_MS + JUMP_MS, 20));
    assert_eq!(counted(&log), (3, 0), "the backend says that it is right");
}

/// Q13: without a jump, age takes what it should while the backend is away.
#[test]
fn age_counts_without_a_backend() {
    let budget = Budget { age_max: Some(Duration::from_secs(10)), ..Budget::UNBOUNDED };
    let disk = MemoryDisk::new();
    let mut log = Log::open(disk.open(), LogLimits { budget, ..LIMITS }).unwrap();
    for n in 0..30 {
        log.append(vec![group(n..n + 1)], i64::try_from(n).unwrap() * 1_000);
        log.seal(i64::try_from(n).unwrap() * 1_000 + 1);
        log.tend(i64::try_from(n).unwrap() * 1_000 + 2);
    }
    assert!((18..22).contains(&log.counts().evicted_records), "{:?}", log.counts());
}

/// Q7: the directory, or a part of it, goes away under the running process. It is made anew, what
/// memory has is kept under the ids that it had, the rest is in the ledger, and it goes on.
#[test]
fn a_directory_that_goes_away_is_made_anew() {
    for gone in [&["segments"][..], &["segments", "state"], &["", "QUEUE", "state", "segments"]] {
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        let mut acknowledged = 0;
        for _ in 0..8 {
            log.append(vec![group(acknowledged..acknowledged + 9)], 10);
            log.seal(20);
            acknowledged += 9;
        }
        log.append(vec![group(acknowledged..acknowledged + 4)], 30);
        acknowledged += 4;
        let batches = log.batches().unwrap();
        let ids: BTreeMap<(u64, u64), Uuid> =
            batches.iter().map(|batch| ((batch.first_seq, batch.records), batch.id)).collect();
        let queue = log.queue_id();
        for path in gone {
            disk.lose(path);
        }
        log.tend(1_000);
        assert_eq!(
            log.append(vec![group(acknowledged..acknowledged + 5)], 70_000).home,
            Home::Disk
        );
        acknowledged += 5;
        drop(log);
        let mut log = open(&disk);
        assert_eq!(log.queue_id(), queue);
        log.seal(80_000);
        let mut backend = Backend::default();
        let mut sent = BTreeSet::new();
        while let Some(batch) = log.next_batch(i64::MAX) {
            // The whole of one has its id; a part of one has none of those.
            let is = (batch.records[0].seq, batch.records.len() as u64);
            match ids.get(&is) {
                Some(id) => assert_eq!(&batch.id, id),
                None => assert!(ids.values().all(|id| *id != batch.id)),
            }
            sent.extend(batch.records.iter().map(|record| record.seq));
            backend.take(&batch);
            log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
        }
        let lost: BTreeSet<u64> =
            log.losses().iter().flat_map(|loss| loss.from..=loss.to).collect();
        let expected: BTreeSet<u64> = (0..acknowledged).filter(|seq| !sent.contains(seq)).collect();
        assert_eq!(lost, expected, "{gone:?}");
        assert!(sent.len() >= 18, "memory had some: {sent:?}");
        assert!(log.append(vec![group(0..1)], 90_000).first_seq >= acknowledged);
    }
}

/// Q2: a delivery that the state does not take keeps its segment; a kill repeats it under its id,
/// and nothing is told to be lost.
#[test]
fn what_is_delivered_is_never_told_to_be_lost() {
    for retain in [Retain::Off, Retain::Bytes(1 << 20)] {
        for full_after in 0..8 {
            let disk = MemoryDisk::new();
            let limits = LogLimits { retain, ..LIMITS };
            let mut log = Log::open(disk.open(), limits).unwrap();
            log.append(vec![group(0..5)], 10);
            log.seal(20);
            disk.fill_after(full_after);
            let batch = log.next_batch(30).unwrap();
            log.delivered(batch.key, 5, &[]).ok();
            assert!(log.next_batch(i64::MAX).is_none(), "it is not sent again by this process");
            let killed = disk.copy();
            killed.heal();
            let mut next = Log::open(killed.open(), limits).unwrap();
            assert_eq!(next.counts().corrupt_records, 0, "full after {full_after}");
            let again = next.next_batch(i64::MAX);
            assert!(again.is_none_or(|again| again == batch), "full after {full_after}");
            // And with the disk back, it goes by itself.
            disk.heal();
            log.tend(100_000);
            assert_eq!((disk.segments(), log.status().records), (vec![], 0));
        }
    }
}
