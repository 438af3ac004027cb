//! What a person does to a queue's directory by hand: files and folders removed, exchanged, moved,
//! and put in each other's place.

use std::path::Path;

use super::{
    attack::{KEEPING, Known, furnish},
    *,
};

/// Makes a named pipe. Not by another program: a process that begins has for a moment what this one
/// has open, the locks of other tests among it.
fn pipe(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// Q5: a state that is lost, with a backlog that is empty, gives no number a second time.
#[test]
fn no_number_is_given_again_after_the_loss_of_the_state() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![group(0..10)], 10);
    log.seal(20);
    drain(&mut log, &mut Backend::default());
    log.close(30);
    disk.lose_state();
    let mut log = open(&disk);
    assert!(log.append(vec![group(10..20)], 40).first_seq >= 10);
    drop(log);
    let fresh = MemoryDisk::new();
    drop(open(&fresh));
    assert_eq!(open(&fresh).append(vec![group(0..1)], 10).first_seq, 0, "a new queue begins at 0");
}

/// Q3: two segments whose folders were exchanged are not damaged: they stay, and it is said what is
/// wrong; with their names back they are delivered.
#[test]
fn exchanged_segments_are_not_told_to_be_damaged() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    for n in 0..3 {
        log.append(vec![group(n * 5..n * 5 + 5)], 10);
        log.seal(20);
    }
    drop(log);
    let exchange_first_two = || {
        let [a, b, ..] = disk.segments()[..] else { panic!("two segments") };
        let folder = |id: u64| std::path::PathBuf::from(format!("segments/{id:020}"));
        let mut hand = disk.open();
        hand.rename(&folder(a), Path::new("aside")).unwrap();
        hand.rename(&folder(b), &folder(a)).unwrap();
        hand.rename(Path::new("aside"), &folder(b)).unwrap();
    };
    exchange_first_two();
    let mut log = open(&disk);
    let mut backend = Backend::default();
    while let Some(batch) = log.next_batch(1_000) {
        backend.take(&batch);
        log.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    assert_all(&backend, 10..15);
    assert_eq!((log.losses(), log.status().records), (vec![], 10));
    let answer = log.segments()[0].last_answer.clone().unwrap();
    assert!(answer.contains("holds the frames of segment"), "{answer}");
    drop(log);
    exchange_first_two();
    drain(&mut open(&disk), &mut backend);
    assert_all(&backend, 0..15);
}

/// Q3: a segment that waits, and that somebody has moved to the delivered ones, is delivered.
#[test]
fn a_waiting_segment_among_the_delivered_ones_is_delivered() {
    let disk = MemoryDisk::new();
    let mut log = Log::open(disk.open(), KEEPING).unwrap();
    log.append(vec![group(0..5)], 10);
    log.seal(20);
    drop(log);
    let id = disk.segments()[0];
    let mut hand = disk.open();
    let folder = |place: &str| std::path::PathBuf::from(format!("{place}/{id:020}"));
    hand.rename(&folder("segments"), &folder("delivered")).unwrap();
    let mut log = Log::open(disk.open(), KEEPING).unwrap();
    let mut backend = Backend::default();
    drain(&mut log, &mut backend);
    assert_all(&backend, 0..5);
    assert_eq!(log.losses(), []);
}

/// Q3: a segment that waits, and that somebody has copied to the delivered ones, waits and is
/// delivered, is kept then, and is in no ledger; the copy is put aside. With the state and without.
#[test]
fn a_copy_among_the_delivered_ones_takes_nothing_from_those_that_wait() {
    for (sealed, has_state) in [(true, true), (false, true), (true, false)] {
        let dir = tempfile::tempdir().unwrap();
        let open = || Log::open(RealDisk::open(dir.path()).unwrap(), KEEPING).unwrap();
        let mut log = open();
        log.append(vec![group(0..5)], 10);
        if sealed {
            log.seal(20);
        }
        let name = format!("{:020}", log.segments()[0].id);
        drop(log); // as a kill would
        let at = |place: &str| dir.path().join(place);
        let copy = at("delivered").join(&name);
        crate::queue::files::copy_files(&at("segments").join(&name), &copy).unwrap();
        if !has_state {
            std::fs::remove_dir_all(at("state")).unwrap();
        }
        let looked = Log::look(LookedAt::at(dir.path()), KEEPING).unwrap();
        assert_eq!((looked.status().records, looked.losses()), (5, vec![]), "{sealed} {has_state}");
        drop(looked);
        let mut log = open();
        assert_eq!((log.status().records, log.losses()), (5, vec![]), "{sealed} {has_state}");
        assert!(at("quarantine").join(&name).is_dir() && !copy.exists());
        let mut backend = Backend::default();
        drain(&mut log, &mut backend);
        assert_all(&backend, 0..5);
        drop(log);
        assert_eq!((open().losses(), copy.exists()), (vec![], true), "it is kept");
    }
}

/// Q12: a folder or a pipe in the place of a file of the state, or of `QUEUE`, is put aside; and a
/// file with the notes of another queue is written anew.
#[test]
fn what_is_no_file_of_the_state_is_put_aside() {
    let furnished = || {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(RealDisk::open(dir.path()).unwrap(), KEEPING).unwrap();
        furnish(&mut log);
        let known = Known::of(&log);
        drop(log);
        (dir, known)
    };
    let folder = |path: &Path| std::fs::create_dir(path).unwrap();
    for name in ["state/a", "state/b", "QUEUE"] {
        for make in [&folder as &dyn Fn(&Path), &pipe] {
            let (dir, known) = furnished();
            let path = dir.path().join(name);
            std::fs::remove_file(&path).unwrap();
            make(&path);
            for _ in 0..2 {
                let log = Log::open(RealDisk::open(dir.path()).unwrap(), KEEPING).unwrap();
                assert_eq!(Known::of(&log), known, "{name}");
            }
            assert!(path.is_file(), "{name} is a file again");
        }
    }
    let ((dir, known), (other, _)) = (furnished(), furnished());
    std::fs::copy(other.path().join("state/a"), dir.path().join("state/a")).unwrap();
    drop(Log::open(RealDisk::open(dir.path()).unwrap(), KEEPING).unwrap());
    std::fs::remove_file(dir.path().join("state/b")).unwrap();
    let log = Log::open(RealDisk::open(dir.path()).unwrap(), KEEPING).unwrap();
    assert_eq!(Known::of(&log), known);
}

/// Q7: the file of the open segment is removed under the process: what comes is not written into
/// the void, and a kill then loses nothing that was acknowledged.
#[test]
fn an_open_segment_that_is_removed_is_noticed_at_once() {
    for whole in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(RealDisk::open(dir.path()).unwrap(), LIMITS).unwrap();
        log.append(vec![group(0..3)], 10);
        let id = log.segments()[0].id;
        let folder = dir.path().join(format!("segments/{id:020}"));
        if whole {
            std::fs::remove_dir_all(&folder).unwrap();
        } else {
            std::fs::remove_file(folder.join("db")).unwrap();
        }
        assert_eq!(log.append(vec![group(3..6)], 20).home, Home::Disk);
        drop(log); // killed
        let mut log = Log::open(RealDisk::open(dir.path()).unwrap(), LIMITS).unwrap();
        log.seal(30);
        let mut backend = Backend::default();
        drain(&mut log, &mut backend);
        assert_all(&backend, 0..6);
    }
}

/// A link in the place of the trash: what it leads to is not ours to remove.
#[test]
fn a_linked_trash_is_left_alone() {
    let (dir, precious) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(precious.path().join("thesis"), "x").unwrap();
    drop(Log::open(RealDisk::open(dir.path()).unwrap(), LIMITS).unwrap());
    std::fs::remove_dir(dir.path().join("trash")).unwrap();
    std::os::unix::fs::symlink(precious.path(), dir.path().join("trash")).unwrap();
    drop(Log::open(RealDisk::open(dir.path()).unwrap(), LIMITS).unwrap());
    assert!(precious.path().join("thesis").exists());
}

/// Q4: a batch of which a copy had a part only, because its window was still written or the copy is
/// damaged, is another batch: what the backend has taken of it keeps nothing of the whole back.
#[test]
fn a_part_of_a_batch_is_another_batch() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.append(vec![group(0..3)], 10);
    let mut backend = Backend::default();
    // A copy that is made while the window is written, and sent by another process.
    let mut copy = open(&disk.copy());
    while let Some(batch) = copy.next_batch(1_000) {
        backend.take(&batch);
        copy.delivered(batch.key, batch.records.len() as u64, &[]).unwrap();
    }
    log.append(vec![group(3..8)], 20);
    log.seal(30);
    assert_eq!(log.batches().unwrap().len(), 1, "it is one batch");
    drain(&mut log, &mut backend);
    // The backend knows by their numbers what came twice.
    let stored: BTreeSet<&Bytes> = backend.payloads().into_iter().collect();
    assert_eq!(stored, (0..8).map(payload).collect::<Vec<_>>().iter().collect());
}

/// Q3: what stands where a part of the queue should be is moved aside, and everything is delivered.
#[test]
fn what_stands_in_the_place_of_a_folder_is_moved_aside() {
    type Make = fn(&Path);
    let file = |path: &Path| std::fs::write(path, "mine").unwrap();
    let folder = |path: &Path| {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("record"), "mine").unwrap();
    };
    let link = |path: &Path| std::os::unix::fs::symlink("nowhere", path).unwrap();
    let cases: [(&str, Make); 8] = [
        ("lock", folder),
        ("lock", pipe),
        ("trash", file),
        ("trash", link),
        ("quarantine", file),
        ("quarantine", pipe),
        ("delivered", file),
        ("delivered", link),
    ];
    for (name, make) in cases {
        let dir = tempfile::tempdir().unwrap();
        let open = || Log::open(RealDisk::open(dir.path()).unwrap(), KEEPING).unwrap();
        let mut log = open();
        log.append(vec![group(0..5)], 10);
        log.close(20);
        let path = dir.path().join(name);
        if name == "lock" {
            std::fs::remove_file(&path).unwrap();
        } else {
            std::fs::remove_dir(&path).unwrap();
        }
        make(&path);
        let mut backend = Backend::default();
        drain(&mut open(), &mut backend);
        assert_all(&backend, 0..5);
        let asides = std::fs::read_dir(dir.path()).unwrap().filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.starts_with("misplaced-").then_some(name)
        });
        let asides: Vec<String> = asides.collect();
        let [aside] = &asides[..] else { panic!("{name}: {asides:?}") };
        assert!(aside.starts_with(&format!("misplaced-{name}-")), "{aside}");
    }
}

/// Q3: where two folders are one, a start takes nothing from either.
#[test]
fn folders_that_are_one_are_refused() {
    for (name, target) in [("delivered", "segments"), ("trash", "segments"), ("segments", ".")] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(RealDisk::open(dir.path()).unwrap(), LIMITS).unwrap();
        log.append(vec![group(0..5)], 10);
        log.close(20);
        let (path, away) = (dir.path().join(name), dir.path().join("away"));
        std::fs::rename(&path, &away).unwrap();
        std::os::unix::fs::symlink(target, &path).unwrap();
        let other = dir.path().join("quarantine");
        if target == "." {
            std::fs::remove_dir(&other).unwrap();
            std::os::unix::fs::symlink(target, &other).unwrap();
        }
        for _ in 0..2 {
            let error = RealDisk::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("hint: remove the link"), "{name}: {error}");
        }
        if target == "." {
            std::fs::remove_file(&other).unwrap();
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&away, &path).unwrap();
        let mut backend = Backend::default();
        drain(&mut Log::open(RealDisk::open(dir.path()).unwrap(), LIMITS).unwrap(), &mut backend);
        assert_all(&backend, 0..5);
    }
}

/// Q2: a process that is killed at any moment while it notes that a segment is delivered, and is to
/// be kept, leaves one that waits or is kept.
#[test]
fn a_kill_while_a_delivery_is_noted_keeps_the_segment() {
    for refused in [0, 1] {
        for operation in 0..20 {
            let disk = MemoryDisk::new();
            let mut log = Log::open(disk.open(), KEEPING).unwrap();
            log.append(vec![group(0..5)], 10);
            log.seal(20);
            let batch = log.next_batch(30).unwrap();
            let letter =
                |record: &Record| DeadLetter { seq: record.seq, at_ms: 0, line: "{}".to_owned() };
            let letters: Vec<DeadLetter> = batch.records.iter().take(refused).map(letter).collect();
            disk.lose_power_at(operation);
            log.delivered(batch.key, 5, &letters).ok();
            log.sync(40);
            drop(log);
            disk.heal(); // killed: what was written is there
            let mut log = Log::open(disk.open(), KEEPING).unwrap();
            let case = format!("{refused} refused, operation {operation}");
            assert_eq!(log.status().segments + log.status().kept_segments, 1, "{case}");
            drain(&mut log, &mut Backend::default());
            drop(log);
            assert_eq!((disk.segments().len(), disk.kept().len()), (0, 1), "{case}");
        }
    }
}
