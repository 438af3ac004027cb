//! Damaged directories, planned and repaired.

use std::{collections::BTreeMap, fs, time::SystemTime};

use bytes::Bytes;

use super::*;
use crate::queue::{
    Counts, LossReason,
    format::record::{Group, NewRecord},
    format::rows,
    log::journal::Journal,
    store::Store,
};

fn open(dir: &Path) -> Log<RealDisk> {
    let limits = LogLimits::default();
    Log::open(RealDisk::open(dir).unwrap(), limits).unwrap()
}

/// Two segments of fifty records each, in blocks of ten.
fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    for block in 0..10_i64 {
        let record = |n: i64| NewRecord {
            kind: "custom.x".to_owned(),
            at_ms: n,
            payload: Bytes::from(format!("{{\"n\":{n}}}")),
        };
        log.append(vec![Group::of((block * 10..block * 10 + 10).map(record).collect())], block);
        if block % 5 == 4 {
            log.seal(block);
        }
    }
    log.close(100);
    dir
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("segments")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    paths
}

/// Changes a byte of each of these frames.
fn damage(segment: &Path, frames: &[u64]) {
    let file = segment.join("db");
    let mut bytes = fs::read(&file).unwrap();
    let starts: Vec<usize> =
        memchr::memmem::find_iter(&bytes, &crate::queue::format::block::MAGIC).collect();
    for start in starts {
        let number = u64::from_le_bytes(bytes[start + 40..start + 48].try_into().unwrap());
        if frames.contains(&number) {
            bytes[start + 100] ^= 0x40;
        }
    }
    fs::write(&file, bytes).unwrap();
}

fn listing(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let content = if path.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
            files.insert(path.clone(), (path.metadata().unwrap().modified().unwrap(), content));
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    files
}

fn plan(dir: &Path) -> Repair {
    plan_with(dir, Requeue::No)
}

fn plan_with(dir: &Path, requeue: Requeue) -> Repair {
    let before = listing(dir);
    let repair = Repair::plan(dir, LogLimits::default(), requeue).unwrap();
    assert!(listing(dir) == before, "a plan changes nothing");
    repair
}

fn kinds(repair: &Repair) -> Vec<StepKind> {
    repair.steps().steps.iter().map(|step| step.kind).collect()
}

fn apply(repair: Repair) -> Repaired {
    repair.apply(Timestamp::from_second(1_000_000).unwrap()).unwrap()
}

/// Sequence numbers that a delivery takes from the queue.
fn deliverable(dir: &Path) -> Vec<u64> {
    let mut log = open(dir);
    let mut seqs = Vec::new();
    while let Some(batch) = log.next_batch(i64::MAX) {
        seqs.extend(batch.records.iter().map(|record| record.seq));
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    seqs
}

#[test]
fn a_sound_queue_needs_nothing() {
    let dir = filled();
    let repair = plan(dir.path());
    assert_eq!(*repair.steps(), Plan::default());
}

#[test]
fn a_queue_in_use_is_left_alone() {
    let dir = filled();
    let log = open(dir.path());
    let error = Repair::plan(dir.path(), LogLimits::default(), Requeue::No).unwrap_err();
    assert!(error.to_string().contains("another process has the queue open"), "{error}");
    drop(log);
    drop(plan(dir.path()));
    // What plans keeps agents out.
    let repair = plan(dir.path());
    assert!(RealDisk::open(dir.path()).is_err());
    drop(repair);
    assert_eq!(deliverable(dir.path()).len(), 100);
}

/// Q3: what can be read is delivered, the rest is in the ledger, the damaged file is kept twice.
#[test]
fn a_damaged_segment_is_salvaged() {
    let dir = filled();
    let damaged = segments(dir.path())[1].clone();
    damage(&damaged, &[1, 2]);
    let bytes = fs::read(damaged.join("db")).unwrap();
    let repair = plan(dir.path());
    let [step] = &repair.steps().steps[..] else { panic!("{:?}", repair.steps()) };
    assert_eq!((step.kind, step.records), (StepKind::Damaged, 20));
    assert!(step.what.contains("20 of 50 records cannot be read: 60-79"), "{}", step.what);
    let repaired = apply(repair);
    let name = damaged.file_name().unwrap();
    let backup = repaired.backup.join("segments").join(name).join("db");
    assert_eq!(fs::read(backup).unwrap(), bytes, "the backup is what was there");
    assert_eq!(repaired.records, 80);
    assert!(dir.path().join("quarantine").join(name).exists());
    let log = open(dir.path());
    let losses = log.losses();
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!((losses[0].from, losses[0].to, losses[0].reason), (60, 79, LossReason::Corrupt));
    drop(log);
    let again = plan(dir.path());
    assert_eq!(again.steps().steps, []);
    assert!(again.steps().remarks[0].contains("--requeue"), "{:?}", again.steps().remarks);
    drop(again);
    let expected: Vec<u64> = (0..60).chain(80..100).collect();
    assert_eq!(deliverable(dir.path()), expected);
    assert_eq!(open(dir.path()).counts(), Counts::default(), "it is counted once");
}

#[test]
fn what_is_in_the_way_moves_to_the_backup() {
    let dir = filled();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("segments/notes.txt"), "mine").unwrap();
    fs::create_dir(at("segments/7")).unwrap();
    fs::write(segments(dir.path())[0].join("snap.1.generating"), "x").unwrap();
    fs::create_dir(at("trash/00000000000000000001")).unwrap();
    let repair = plan(dir.path());
    let mut expected = kinds(&repair);
    expected.sort_by_key(|kind| *kind as u8);
    let kinds = [StepKind::LeftOver, StepKind::Trash, StepKind::Foreign, StepKind::Foreign];
    assert_eq!(expected, kinds);
    assert!(kinds.iter().all(|kind| !kind.is_damage()));
    let repaired = apply(repair);
    assert_eq!(fs::read(repaired.backup.join("segments/notes.txt")).unwrap(), b"mine");
    assert!(repaired.backup.join("segments/7").is_dir());
    assert!(repaired.backup.join("trash/00000000000000000001").is_dir());
    assert_eq!(plan(dir.path()).steps().steps, []);
    assert_eq!(deliverable(dir.path()).len(), 100);
}

/// Q12: of two files one may be damaged, and nothing is lost; of both, segments are read instead.
#[test]
fn a_damaged_state_is_repaired() {
    let dir = filled();
    let damage = |name: &str| {
        let file = dir.path().join("state").join(name);
        let mut bytes = fs::read(&file).unwrap();
        bytes.iter_mut().step_by(7).for_each(|byte| *byte ^= 0x55);
        fs::write(&file, &bytes).unwrap();
        bytes
    };
    let a = damage("a");
    let repair = plan(dir.path());
    let [step] = &repair.steps().steps[..] else { panic!("{:?}", repair.steps()) };
    assert_eq!((step.kind, &*step.path), (StepKind::State, Path::new("state/a")));
    let repaired = apply(repair);
    assert_eq!(fs::read(repaired.backup.join("state/a")).unwrap(), a);
    assert_eq!((repaired.records, kinds(&plan(dir.path())).len()), (100, 0));
    let (a, b) = (damage("a"), damage("b"));
    let repair = plan(dir.path());
    let [step] = &repair.steps().steps[..] else { panic!("{:?}", repair.steps()) };
    assert_eq!((step.kind, &*step.path), (StepKind::State, Path::new("state")));
    let repaired = repair.apply(Timestamp::from_second(1_000_001).unwrap()).unwrap();
    for (name, bytes) in [("a", a), ("b", b)] {
        assert_eq!(fs::read(repaired.backup.join("state").join(name)).unwrap(), bytes);
    }
    assert_eq!((repaired.records, kinds(&plan(dir.path())).len()), (100, 0));
    assert_eq!(deliverable(dir.path()), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_lost_name_is_found_in_the_segments() {
    let dir = filled();
    let file = dir.path().join("QUEUE");
    let name = fs::read_to_string(&file).unwrap();
    for text in [None, Some("rubbish")] {
        fs::remove_file(&file).unwrap();
        if let Some(text) = text {
            fs::write(&file, text).unwrap();
        }
        let repair = plan(dir.path());
        assert_eq!(kinds(&repair), [StepKind::Identity]);
        let at = Timestamp::from_second(2_000_000 + i64::from(text.is_some())).unwrap();
        repair.apply(at).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), name);
    }
    assert_eq!(deliverable(dir.path()).len(), 100);
}

/// Q4: a start without the queue's name sends what it finds under the ids that it always had.
#[test]
fn a_start_finds_the_name_that_was_lost() {
    let dir = filled();
    let file = dir.path().join("QUEUE");
    let name = fs::read_to_string(&file).unwrap();
    for text in [None, Some("rubbish")] {
        fs::remove_file(&file).unwrap();
        if let Some(text) = text {
            fs::write(&file, text).unwrap();
        }
        assert_eq!(open(dir.path()).status().records, 100);
        assert_eq!(fs::read_to_string(&file).unwrap(), name);
    }
    let empty = tempfile::tempdir().unwrap();
    open(empty.path());
    fs::write(empty.path().join("QUEUE"), "rubbish").unwrap();
    assert_eq!(open(empty.path()).status().records, 0, "a queue that is empty gets another name");
}

#[test]
fn vanished_segments_are_counted() {
    let dir = filled();
    fs::remove_dir_all(&segments(dir.path())[0]).unwrap();
    let repair = plan(dir.path());
    assert_eq!(kinds(&repair), [StepKind::Vanished]);
    assert_eq!(repair.steps().steps[0].records, 50);
    apply(repair);
    let losses = open(dir.path()).losses();
    assert_eq!((losses.len(), losses[0].records), (1, 50));
    assert_eq!(plan(dir.path()).steps().steps, []);
}

#[test]
fn a_segment_in_quarantine_is_queued_again_when_that_is_asked_for() {
    let dir = filled();
    let mut store = Store::open(RealDisk::open(dir.path()).unwrap(), 0).unwrap();
    let id = store.segments().unwrap()[0];
    store.quarantine(id).unwrap();
    let (mut journal, _) = Journal::open(&mut store).unwrap();
    journal.put(&mut store, vec![rows::drop_segment_row(id)]).unwrap();
    drop(store);
    assert_eq!(kinds(&plan(dir.path())), []);
    let repair = plan_with(dir.path(), Requeue::Yes);
    assert_eq!(kinds(&repair), [StepKind::Quarantined]);
    let repaired = apply(repair);
    assert_eq!(repaired.records, 100);
    let kept = repaired.backup.join("quarantine").join(format!("{id:020}"));
    assert!(kept.join("db").exists());
    assert_eq!(deliverable(dir.path()), (0..100).collect::<Vec<_>>());
}

/// Q3: copies of a segment, under other numbers or beside it in quarantine, are queued once, and
/// under the number that the segment had: the backend recognises what it has.
#[test]
fn copies_of_a_segment_are_queued_again_once() {
    let dir = filled();
    let original = segments(dir.path())[0].clone();
    for number in [7, 8] {
        let copy = dir.path().join(format!("segments/{number:020}"));
        copy_files(&original, &copy).unwrap();
    }
    drop(open(dir.path()));
    let aside = fs::read_dir(dir.path().join("quarantine")).unwrap().count();
    assert_eq!((aside, segments(dir.path()).len()), (2, 2), "the copies are put aside");
    assert_eq!(kinds(&plan_with(dir.path(), Requeue::Yes)), [], "the segment waits itself");
    assert_eq!(deliverable(dir.path()), (0..100).collect::<Vec<_>>());
    let repair = plan_with(dir.path(), Requeue::Yes);
    assert_eq!(kinds(&repair), [StepKind::Quarantined], "one of them");
    assert_eq!(apply(repair).records, 50);
    assert_eq!(segments(dir.path()), [original]);
    assert_eq!(deliverable(dir.path()), (0..50).collect::<Vec<_>>());
}

/// Q3, Q4: the process that queues a stranger's records is killed after any number of blocks, or
/// before it has put the copy away: the next try gives no record a second number.
#[test]
fn a_stranger_is_queued_once_over_kills() {
    let (dir, other) = (tempfile::tempdir().unwrap(), filled());
    drop(open(dir.path()));
    let stranger = segments(other.path())[0].clone();
    let queue = fs::read_to_string(other.path().join("QUEUE")).unwrap();
    let queue = queue.split_whitespace().last().unwrap();
    let number = stranger.file_name().unwrap().to_str().unwrap();
    let name = format!("stranger-{queue}-{number}");
    let aside = Path::new("quarantine").join(&name);
    copy_files(&stranger, &dir.path().join(&aside)).unwrap();
    let mut log = open(dir.path());
    adopt(&mut log, (dir.path(), &name), LogLimits::default().batch, 1_000).unwrap();
    drop(log); // killed
    let written = segments(dir.path()).pop().unwrap();
    let written = written.strip_prefix(dir.path()).unwrap();
    for frames in 0..=5 {
        let killed = tempfile::tempdir().unwrap();
        let (from, to) =
            (|name: &str| dir.path().join(name), |name: &str| killed.path().join(name));
        fs::copy(from("QUEUE"), to("QUEUE")).unwrap();
        copy_files(&from("state"), &to("state")).unwrap();
        fs::create_dir(to("segments")).unwrap();
        copy_files(&dir.path().join(written), &killed.path().join(written)).unwrap();
        // The stranger itself, and not a copy of it.
        fs::create_dir_all(killed.path().join(&aside)).unwrap();
        let db = aside.join("db");
        fs::hard_link(dir.path().join(&db), killed.path().join(&db)).unwrap();
        let unwritten: Vec<u64> = (frames..5).collect();
        damage(&killed.path().join(written), &unwritten);
        let repair = Repair::plan(killed.path(), LogLimits::default(), Requeue::Yes).unwrap();
        assert!(kinds(&repair).contains(&StepKind::Stranger), "{frames} frames");
        apply(repair);
        assert!(!killed.path().join(&aside).exists());
        let mut log = open(killed.path());
        let mut numbers = Vec::new();
        while let Some(batch) = log.next_batch(i64::MAX) {
            let own = batch.records.iter().map(|record| record.at_ms);
            numbers.extend(own);
            log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..50).collect::<Vec<_>>(), "{frames} frames");
        assert_eq!(log.position(&format!("adopted/{name}")), None, "it is done");
    }
}

/// Q3: two processes write at once, because somebody has removed the lock. The records of the one
/// whose numbers the other has given, too, are put aside, stay there however full the queue is, and
/// are queued by hand, with numbers of their own.
#[test]
fn what_a_rival_has_written_is_put_aside_and_stays() {
    let dir = filled();
    let disk = || RealDisk::open(dir.path());
    let mut first = open(dir.path());
    assert!(disk().is_err(), "one at a time");
    fs::remove_file(dir.path().join("lock")).unwrap();
    let mut second = open(dir.path());
    let append = |log: &mut Log<RealDisk>, from: i64| {
        let record = |n: i64| NewRecord {
            kind: "custom.x".to_owned(),
            at_ms: n,
            payload: Bytes::from(format!("{{\"n\":{n}}}")),
        };
        log.append(vec![Group::of((from..from + 5).map(record).collect())], 200);
    };
    append(&mut first, 100);
    append(&mut second, 105);
    drop((first, second)); // killed
    drop(open(dir.path()));
    let put_aside = Aside::of(dir.path()).quarantine_read().unwrap();
    let [rival] = &put_aside[..] else { panic!("{put_aside:?}") };
    assert!(rival.name.starts_with("rival-"), "{rival:?}");
    assert_eq!(rival.readable.as_ref().map(|readable| readable.records), Some(5));
    let mut store = Store::open(disk().unwrap(), 0).unwrap();
    assert!(!store.drop_quarantined().unwrap(), "it does not go for want of room");
    drop(store);
    assert_eq!(kinds(&plan_with(dir.path(), Requeue::No)), []);
    let repair = plan_with(dir.path(), Requeue::Yes);
    assert_eq!(kinds(&repair), [StepKind::Stranger]);
    assert_eq!(apply(repair).records, 110);
    let mut log = open(dir.path());
    let (mut seqs, mut times) = (Vec::new(), Vec::new());
    while let Some(batch) = log.next_batch(i64::MAX) {
        seqs.extend(batch.records.iter().map(|record| record.seq));
        times.extend(batch.records.iter().map(|record| record.at_ms));
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    times.sort_unstable();
    assert_eq!((seqs, times), ((0..110).collect(), (0..110).collect()));
}

/// A pipe in the place of the lock holds nobody, and the queue is repaired around it.
#[test]
fn a_pipe_in_the_place_of_the_lock_holds_nobody() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let dir = filled();
    let path = dir.path().join("lock");
    fs::remove_file(&path).unwrap();
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let (done, ended) = std::sync::mpsc::channel();
    let at = dir.path().to_owned();
    let planned = std::thread::spawn(move || {
        let planned = Repair::plan(&at, LogLimits::default(), Requeue::No).map(drop);
        done.send(()).unwrap();
        planned
    });
    if ended.recv_timeout(std::time::Duration::from_secs(20)).is_err() {
        // Whoever waits for a writer has one, and the test ends.
        drop(fs::OpenOptions::new().read(true).write(true).open(&path));
        panic!("it waits for a writer");
    }
    planned.join().unwrap().unwrap();
    drop(open(dir.path()));
    assert!(path.is_file(), "the queue has a lock again");
}
