//! A queue's directory, or a part of it, that goes away under the running process, and comes back.

use std::{fs, path::Path};

use super::{
    attack::{KEEPING, Known, furnish},
    *,
};

/// The records that were delivered, by their numbers.
fn deliver_all<D: WriteDisk>(log: &mut Log<D>, backend: &mut Backend) -> BTreeSet<u64> {
    let mut sent = BTreeSet::new();
    while let Some(batch) = log.next_batch(i64::MAX) {
        sent.extend(batch.records.iter().map(|record| record.seq));
        backend.take(&batch);
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    sent
}

fn lost<D: ReadDisk>(log: &Log<D>) -> BTreeSet<u64> {
    log.losses().iter().flat_map(|loss| loss.from..=loss.to).collect()
}

fn append_each<D: WriteDisk>(log: &mut Log<D>, numbers: std::ops::Range<u64>) {
    for n in numbers {
        assert_eq!(log.append(vec![group(n..n + 1)], 10).first_seq, n);
    }
}

/// Q1, Q3: what is in a file that comes back is delivered, whatever was written in its place while
/// it was away; nothing is missing from both the backend and the ledger.
#[test]
fn a_directory_that_comes_back_is_delivered() {
    for ring_bytes_max in [8 << 10, 0] {
        for durability in [Durability::Sync, Durability::Interval] {
            let limits = LogLimits { durability, ring_bytes_max, ..LIMITS };
            for sealed in [true, false] {
                for more in [0, 4] {
                    for noticed in [[true, true], [true, false], [false, false]] {
                        comes_back(limits, (sealed, more), noticed, true);
                        comes_back(limits, (sealed, more), noticed, false);
                    }
                }
            }
        }
    }
}

fn comes_back(limits: LogLimits, (sealed, more): (bool, u64), noticed: [bool; 2], restart: bool) {
    let case = format!("{limits:?}, sealed {sealed}, {more} more, {noticed:?}, restart {restart}");
    let (disk, away) = (MemoryDisk::new(), MemoryDisk::new());
    let open = |disk: &MemoryDisk| Log::open(disk.open(), limits).unwrap();
    let mut log = open(&disk);
    append_each(&mut log, 0..3);
    if sealed {
        log.seal(20);
    }
    disk.exchange(&away);
    if noticed[0] {
        log.tend(1_000);
    }
    append_each(&mut log, 3..3 + more);
    disk.exchange(&away);
    if noticed[1] {
        log.tend(5_000);
    }
    append_each(&mut log, 3 + more..5 + more);
    log.seal(6_000);
    let mut end = 5 + more;
    if restart {
        drop(log);
        log = open(&disk);
    } else {
        for n in 0..40 {
            log.append(vec![group(end..end + 4)], 7_000 + n);
            log.seal(7_000 + n);
            end += 4;
        }
        log.tend(8_000);
    }
    let mut backend = Backend::default();
    let sent = deliver_all(&mut log, &mut backend);
    let known: BTreeSet<u64> = sent.union(&lost(&log)).copied().collect();
    assert_eq!(known, (0..end).collect(), "{case}");
    assert!((0..3).all(|seq| sent.contains(&seq)), "{case}: it is in the file, {sent:?}");
    assert_eq!(backend.distinct().len(), sent.len(), "{case}");
}

/// The same with merged segments, which memory does not have.
#[test]
fn merged_segments_that_come_back_are_delivered() {
    let (disk, away) = (MemoryDisk::new(), MemoryDisk::new());
    let mut log = open(&disk);
    for n in 0..30_u64 {
        append_each(&mut log, n * 3..n * 3 + 3);
        log.seal(20);
    }
    for n in 0..200 {
        log.tend(100_000 + n);
    }
    assert!(log.counts().merged_segments > 0);
    append_each(&mut log, 90..93);
    log.seal(200_000);
    disk.exchange(&away);
    log.tend(201_000);
    disk.exchange(&away);
    log.tend(205_000);
    drop(log);
    let mut log = open(&disk);
    let sent = deliver_all(&mut log, &mut Backend::default());
    assert_eq!(sent, (0..93).collect());
}

/// Q3, Q5: a row that counts more records than any generation of its segment has: what is missing
/// at its end is in the ledger.
#[test]
fn damage_to_another_generation_is_in_the_ledger() {
    for frame in 0..3 {
        let (disk, away) = (MemoryDisk::new(), MemoryDisk::new());
        let mut log = open(&disk);
        append_each(&mut log, 0..3);
        log.seal(20);
        let (id, queue) = (disk.segments()[0], log.queue_id());
        disk.exchange(&away);
        log.tend(1_000);
        disk.exchange(&away);
        log.tend(5_000);
        drop(log);
        disk.damage(id, |bytes| {
            let scan = crate::queue::format::salvage::scan(&bytes[..], queue, id).unwrap();
            let at = usize::try_from(scan.found[frame].offset).unwrap();
            bytes[at + 100] ^= 1;
        });
        let mut log = open(&disk);
        let sent = deliver_all(&mut log, &mut Backend::default());
        assert_eq!((sent.len(), lost(&log)), (2, BTreeSet::from([frame as u64])), "{frame}");
    }
}

/// Q1, Q7: a window whose segment cannot be read back when it ends is written again, if memory has
/// it, and else is in the ledger; at once, so that a kill changes nothing.
#[test]
fn a_segment_that_is_gone_when_its_window_ends_is_written_again() {
    for ring_bytes_max in [8 << 10, 0] {
        for whole in [true, false] {
            let disk = MemoryDisk::new();
            let limits = LogLimits { ring_bytes_max, ..LIMITS };
            let mut log = Log::open(disk.open(), limits).unwrap();
            append_each(&mut log, 0..3);
            let id = disk.segments()[0];
            if whole {
                disk.open()
                    .rename(Path::new(&format!("segments/{id:020}")), Path::new("x"))
                    .unwrap();
            } else {
                disk.damage(id, |bytes| *bytes.last_mut().unwrap() ^= 1);
            }
            log.seal(20);
            append_each(&mut log, 3..4);
            drop(log);
            let mut log = Log::open(disk.open(), limits).unwrap();
            log.seal(30);
            let sent = deliver_all(&mut log, &mut Backend::default());
            let expected: BTreeSet<u64> = match (ring_bytes_max, whole) {
                (0, true) => BTreeSet::from([3]),
                (0, false) => BTreeSet::from([0, 1, 3]),
                _ => (0..4).collect(),
            };
            assert_eq!(sent, expected, "ring {ring_bytes_max}, whole {whole}");
            let missing: BTreeSet<u64> = (0..4).filter(|seq| !expected.contains(seq)).collect();
            assert_eq!(lost(&log), missing, "ring {ring_bytes_max}, whole {whole}");
        }
    }
}

/// Q1: the power goes, or the disk fills up, at any step of writing such a segment again.
#[test]
fn a_crash_while_a_segment_is_written_again_costs_nothing_unsaid() {
    for whole in [true, false] {
        for full in [true, false] {
            for step in 0..40 {
                let disk = MemoryDisk::new();
                let mut log = open(&disk);
                append_each(&mut log, 0..3);
                log.sync(15);
                let id = disk.segments()[0];
                if whole {
                    disk.lose(&format!("segments/{id:020}"));
                } else {
                    disk.damage(id, |bytes| bytes[100] ^= 1);
                }
                if full {
                    disk.fill_after(step);
                } else {
                    disk.lose_power_at(step);
                }
                log.seal(20);
                let taken_anew = full && log.append(vec![group(3..4)], 30).records == 1;
                if full {
                    disk.heal();
                    log.tend(100_000);
                    log.seal(200_000);
                } else {
                    disk.crash(step);
                }
                drop(log);
                let mut log = open(&disk);
                let sent = deliver_all(&mut log, &mut Backend::default());
                let known: BTreeSet<u64> = sent.union(&lost(&log)).copied().collect();
                let end = if taken_anew { 4 } else { 3 };
                let case = format!("whole {whole}, full {full}, step {step}");
                // Of a file that has gone, nothing is known before the first write.
                let unknown = whole && !full && known.is_empty();
                assert!(unknown || known == (0..end).collect(), "{case}: {known:?}");
            }
        }
    }
}

/// Q7, Q12: the state is removed under the process: it is written anew, by itself and with the next
/// note, and has what it had.
#[test]
fn a_state_that_is_removed_is_written_anew() {
    for gone in ["state", "state/a", "state/b"] {
        for tended in [true, false] {
            let disk = MemoryDisk::new();
            let mut log = open(&disk);
            log.append(vec![Group { rejected: 2, ..group(0..3) }], 10);
            log.seal(20);
            disk.lose(gone);
            if tended {
                log.tend(1_000);
            } else {
                log.append(vec![Group { rejected: 1, ..Group::default() }], 30);
            }
            assert_eq!(log.disk_error(), None);
            let (before, next) = (log.losses(), log.status().next_seq);
            drop(log);
            assert_eq!(disk.files("state").len(), 2, "{gone}, tended {tended}");
            let log = open(&disk);
            assert_eq!((log.losses(), log.status().next_seq), (before, next), "{gone}");
        }
    }
}

/// What a person does to the directory `q`, whose place meanwhile is `away`.
type Hand = fn(&Path, &Path);

const HANDS: [(&str, Hand, Hand); 4] = [
    (
        "moved away and back",
        |q, away| fs::rename(q, away).unwrap(),
        |q, away| {
            fs::remove_dir_all(q).ok();
            fs::rename(away, q).unwrap();
        },
    ),
    (
        "moved away and back, the other kept",
        |q, away| fs::rename(q, away).unwrap(),
        |q, away| {
            fs::rename(q, away.with_file_name("other")).ok();
            fs::rename(away, q).unwrap();
        },
    ),
    (
        "its segments replaced by an empty folder",
        |q, _| {
            fs::remove_dir_all(q.join("segments")).unwrap();
            fs::create_dir(q.join("segments")).unwrap();
        },
        |_, _| {},
    ),
    (
        "replaced by a copy of links",
        |q, away| {
            fs::rename(q, away).unwrap();
            link_all(away, q);
        },
        |_, _| {},
    ),
];

/// A folder like another, with links to the same files. Not made by another program: a process that
/// begins has for a moment what this one has open, the locks of other tests among it.
fn link_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            link_all(&from, &to);
        } else {
            fs::hard_link(from, to).unwrap();
        }
    }
}

/// Q1, Q3, Q7, on a real directory: whenever it goes and comes back, and whenever that is noticed.
#[test]
fn a_real_directory_that_comes_back_is_delivered() {
    for (name, go, come) in HANDS {
        for sealed in [true, false] {
            for noticed in [[true, true], [true, false], [false, false]] {
                let top = tempfile::tempdir().unwrap();
                let (q, away) = (top.path().join("q"), top.path().join("away"));
                let reopen = || Log::open(RealDisk::open(&q).unwrap(), LIMITS).unwrap();
                let mut log = reopen();
                append_each(&mut log, 0..3);
                if sealed {
                    log.seal(20);
                }
                go(&q, &away);
                if noticed[0] {
                    log.tend(1_000);
                }
                append_each(&mut log, 3..5);
                come(&q, &away);
                if noticed[1] {
                    log.tend(5_000);
                }
                append_each(&mut log, 5..6);
                log.tend(70_000);
                log.seal(70_001);
                drop(log);
                let mut log = reopen();
                let mut backend = Backend::default();
                let sent = deliver_all(&mut log, &mut backend);
                assert_eq!(backend.distinct().len(), sent.len(), "none is stored twice");
                let known: BTreeSet<u64> = sent.union(&lost(&log)).copied().collect();
                let case = format!("{name}, sealed {sealed}, noticed {noticed:?}");
                assert_eq!(known, (0..6).collect(), "{case}: {sent:?}");
                assert!((0..3).all(|seq| sent.contains(&seq)), "{case}: {sent:?}");
            }
        }
    }
}

/// Q3: what was delivered of a segment before its file went is not lost.
#[test]
fn what_was_delivered_of_a_vanished_segment_is_not_lost() {
    let disk = MemoryDisk::new();
    let limits = LogLimits { ring_bytes_max: 0, ..LIMITS };
    let open = || Log::open(disk.open(), limits).unwrap();
    for restart in [false, true] {
        disk.exchange(&MemoryDisk::new());
        let mut log = open();
        log.append(vec![group(0..10)], 10);
        log.append(vec![group(10..25)], 20);
        log.seal(30);
        log.append(vec![group(25..30)], 40);
        log.seal(50);
        let first = log.next_batch(1_000).unwrap();
        let sent = first.records.len() as u64;
        assert!(sent < 25, "a part of the segment");
        log.delivered(first.key, sent, &[]).unwrap();
        log.sync(1_000);
        if restart {
            drop(log);
            let mut hand = disk.open();
            let folder = format!("segments/{:020}", first.key.segment);
            hand.remove(Path::new(&folder)).unwrap();
            log = open();
            assert_eq!(log.losses().iter().map(|loss| loss.records).sum::<u64>(), 25 - sent);
        } else {
            disk.exchange(&MemoryDisk::new());
            log.tend(2_000);
            let told = log.losses().iter().map(|loss| loss.records).sum::<u64>();
            let kept = log.status().records;
            assert_eq!(told + kept, 30 - sent, "{:?}", log.losses());
        }
    }
}

/// Q3, Q7: another queue comes in the place of this one under the process, as a disk does that is
/// mounted late: nothing is written there, whatever comes first, and what the process has is sent
/// from memory. With the own directory back, all of it is written.
#[test]
fn another_queue_that_comes_in_the_place_of_this_one_stays_as_it_is() {
    for first in 0..4 {
        let (disk, other) = (MemoryDisk::new(), MemoryDisk::new());
        let mut log = Log::open(other.open(), KEEPING).unwrap();
        furnish(&mut log);
        log.close(3_000);
        let expected = Known::of(&Log::look(other.open(), KEEPING).unwrap());
        let content = |disk: &MemoryDisk| {
            let folders = ["", "state", "segments", "delivered", "quarantine"];
            (folders.map(|folder| disk.files(folder)), disk.segments(), disk.kept())
        };
        let before = content(&other);
        let mut log = open(&disk);
        log.append(vec![Group { rejected: 1, ..group(0..3) }], 10);
        log.seal(20);
        log.append(vec![group(3..5)], 30);
        disk.exchange(&other);
        let mut backend = Backend::default();
        match first {
            0 => _ = log.tend(1_000),
            1 => log.seal(1_000),
            2 => _ = log.append(vec![Group { rejected: 1, ..group(5..6) }], 1_000),
            _ => {
                let batch = log.next_batch(1_000).unwrap();
                backend.take(&batch);
                let seq = batch.records[0].seq;
                let letter = DeadLetter { seq, at_ms: 0, line: "{}".to_owned() };
                assert!(log.delivered(batch.key, 3, &[letter]).is_err());
            }
        }
        let taken = u64::from(first == 2);
        log.tend(5_000);
        assert!(log.disk_error().unwrap().contains("another queue"), "{:?}", log.disk_error());
        assert_eq!(log.append(vec![group(5 + taken..8)], 20_000).home, Home::MemoryOnly);
        log.seal(90_000);
        log.tend(91_000);
        assert_eq!(content(&disk), before, "first {first}");
        let seen = Log::look(disk.open(), KEEPING).unwrap();
        assert_eq!(Known::of(&seen), expected, "first {first}");
        if first % 2 == 0 {
            drain(&mut log, &mut backend);
            assert_all(&backend, 0..8);
        }
        disk.exchange(&other);
        log.tend(200_000);
        log.append(vec![group(8..9)], 300_000);
        assert_eq!(log.disk_error(), None);
        log.seal(300_001);
        drop(log);
        let mut log = open(&disk);
        drain(&mut log, &mut backend);
        assert_all(&backend, 0..9);
    }
}
