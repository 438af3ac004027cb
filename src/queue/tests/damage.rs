//! Every kind of damage to the directory of a real queue: what is intact is delivered, what is not
//! is counted exactly, nothing panics, nothing is deleted, and what comes next is taken.

use std::path::{Path, PathBuf};

use super::*;
use crate::queue::format::salvage;

const SEGMENTS: u64 = 4;
const GROUPS: u64 = 6;
const RECORDS: u64 = 20;
const ALL: u64 = SEGMENTS * GROUPS * RECORDS;

type Damage = fn(&Path, &mut fastrand::Rng);

/// Each kind, and how often it is tried.
const KINDS: &[(&str, u64, Damage)] = &[
    ("a flipped bit", 25, |db, random| {
        change(db, |bytes| {
            let at = random.usize(..bytes.len());
            bytes[at] ^= 1 << random.u8(..8);
        });
    }),
    ("twenty flipped bits", 10, |db, random| {
        change(db, |bytes| {
            for _ in 0..20 {
                let at = random.usize(..bytes.len());
                bytes[at] ^= 1 << random.u8(..8);
            }
        });
    }),
    ("a zeroed page", 15, |db, random| {
        change(db, |bytes| {
            let at = random.usize(..bytes.len()) / 4_096 * 4_096;
            let end = bytes.len().min(at + 4_096);
            bytes[at..end].fill(0);
        });
    }),
    ("64 KiB of zeros", 5, |db, random| {
        change(db, |bytes| {
            let at = random.usize(..bytes.len());
            let end = bytes.len().min(at + (64 << 10));
            bytes[at..end].fill(0);
        });
    }),
    ("sled's own header", 5, |db, _| change(db, |bytes| bytes[..32].fill(0xff))),
    ("a truncation", 15, |db, random| {
        change(db, |bytes| {
            bytes.truncate(random.usize(..bytes.len()));
        });
    }),
    ("an empty file", 1, |db, _| change(db, Vec::clear)),
    ("noise", 5, |db, random| change(db, |bytes| bytes.fill_with(|| random.u8(..)))),
    ("frames of another version", 1, |db, _| {
        change(db, |bytes| {
            for at in frames(bytes) {
                bytes[at + 8] = 2;
            }
        });
    }),
    ("a file of somebody else", 1, |db, _| {
        std::fs::write(db.with_file_name("notes.txt"), "not ours").unwrap();
    }),
    ("an unfinished snapshot", 1, |db, _| {
        std::fs::write(db.with_file_name("snap.0000.generating"), "x").unwrap();
    }),
    ("a damaged snapshot", 1, |db, _| {
        std::fs::write(db.with_file_name("snap.0000000000000001"), "x").unwrap();
    }),
];

fn change(db: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(db).unwrap();
    change(&mut bytes);
    std::fs::write(db, bytes).unwrap();
}

fn frames(bytes: &[u8]) -> Vec<usize> {
    let starts = bytes.windows(4).enumerate().filter(|(_, window)| *window == b"pgaB");
    starts.map(|(at, _)| at).collect()
}

fn open_dir(dir: &Path) -> Log<RealDisk> {
    let limits = LogLimits { ring_bytes_max: 0, ..LIMITS };
    Log::open(RealDisk::open(dir).unwrap(), limits).expect("the queue opens")
}

/// A queue of several sealed segments; returns its directory.
fn queue() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open_dir(dir.path());
    for n in 0..SEGMENTS * GROUPS {
        log.append(vec![group(n * RECORDS..(n + 1) * RECORDS)], 1_000);
        if n % GROUPS == GROUPS - 1 {
            log.seal(1_000);
        }
    }
    dir
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn second_segment(dir: &Path) -> (u64, PathBuf) {
    let mut names: Vec<_> = std::fs::read_dir(dir.join("segments")).unwrap().collect();
    names.sort_by_key(|entry| entry.as_ref().unwrap().file_name());
    let path = names.swap_remove(1).unwrap().path();
    (path.file_name().unwrap().to_str().unwrap().parse().unwrap(), path.join("db"))
}

/// Delivers everything; the records that arrived, by their number.
fn delivered(log: &mut Log<RealDisk>) -> BTreeSet<u64> {
    let mut seqs = BTreeSet::new();
    while let Some(batch) = log.next_batch(i64::MAX) {
        for record in &batch.records {
            assert!(seqs.insert(record.seq), "record {} came twice", record.seq);
            assert_eq!(record.payload, payload(record.seq));
        }
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    seqs
}

/// Q3, Q5: what has a sound frame is delivered, the rest is in the ledger, number for number.
#[test]
fn what_is_intact_is_delivered_and_the_rest_is_counted() {
    let whole = queue();
    let (mut files, mut intact_all, mut lost_all) = (0, 0, 0);
    for (name, times, damage) in KINDS {
        for seed in 0..*times {
            let context = format!("{name}, seed {seed}");
            let dir = tempfile::tempdir().unwrap();
            copy(whole.path(), dir.path());
            let (id, db) = second_segment(dir.path());
            damage(&db, &mut fastrand::Rng::with_seed(seed));
            let mut log = open_dir(dir.path());
            let scan = salvage::scan(&std::fs::read(&db).unwrap()[..], log.queue_id(), id).unwrap();
            let intact: u64 = scan.found.iter().map(|frame| u64::from(frame.head.records)).sum();
            let seqs = delivered(&mut log);
            let lost = GROUPS * RECORDS - intact;
            assert_eq!(seqs.len() as u64, ALL - lost, "{context}");
            let in_ledger: BTreeSet<u64> =
                log.losses().iter().flat_map(|loss| loss.from..=loss.to).collect();
            let missing: BTreeSet<u64> = (0..ALL).filter(|seq| !seqs.contains(seq)).collect();
            assert_eq!(in_ledger, missing, "{context}");
            assert!(
                log.losses().iter().all(|loss| loss.reason == LossReason::Corrupt),
                "{context}"
            );
            let kept = dir.path().join("quarantine").read_dir().unwrap().count();
            assert_eq!(kept, usize::from(lost > 0), "{context}: the damaged file is kept");
            assert_eq!(log.append(vec![group(ALL..ALL + 1)], 2_000).home, Home::Disk, "{context}");
            (files, intact_all, lost_all) = (files + 1, intact_all + intact, lost_all + lost);
        }
    }
    let text = format!(
        "{files} damaged files: {intact_all} records intact and delivered, {lost_all} in the ledger\n"
    );
    std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).unwrap();
}

/// Q3: what is no segment at all keeps nothing from opening, and is left alone.
#[test]
fn foreign_things_in_the_directory_are_left_alone() {
    let dir = queue();
    let segments = dir.path().join("segments");
    std::fs::write(segments.join("notes.txt"), "x").unwrap();
    std::fs::create_dir(segments.join("lost+found")).unwrap();
    std::fs::write(dir.path().join("core"), "x").unwrap();
    std::fs::write(segments.join(format!("{:020}", 77 << 8)), "a file, not a directory").unwrap();
    let (_, db) = second_segment(dir.path());
    let mut log = open_dir(dir.path());
    assert_eq!(delivered(&mut log).len() as u64, ALL);
    drop(log);
    assert!(segments.join("notes.txt").exists() && dir.path().join("core").exists());
    assert!(segments.join("lost+found").exists() && !db.exists());
}

/// Q3: a directory where an unsealed segment's file should be; the others are delivered.
#[test]
fn a_directory_in_place_of_a_file_keeps_nothing_from_opening() {
    let dir = queue();
    let mut log = open_dir(dir.path());
    log.append(vec![group(ALL..ALL + 5)], 1_000);
    let last = log.segments().last().unwrap().id;
    drop(log); // unsealed
    let db = dir.path().join(format!("segments/{last:020}/db"));
    std::fs::rename(&db, dir.path().join("aside")).unwrap();
    std::fs::create_dir(&db).unwrap();
    let mut log = open_dir(dir.path());
    assert_eq!(delivered(&mut log).len() as u64, ALL);
    let next = log.append(vec![group(ALL + 5..ALL + 6)], 3_000).first_seq;
    assert!(next >= ALL + 5, "number {next} is given again");
    log.close(3_000);
    std::fs::remove_dir(&db).unwrap();
    std::fs::rename(dir.path().join("aside"), &db).unwrap();
    let mut log = open_dir(dir.path());
    let mut count = 0;
    while let Some(batch) = log.next_batch(i64::MAX) {
        count += batch.records.len();
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    assert_eq!(count, 6, "what could not be read is delivered by the next start");
}
