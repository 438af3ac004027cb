use std::path::Path;

use super::*;
use crate::clock;

const HOUR: i128 = 3_600 * NANOSECONDS_PER_SECOND;

fn write(path: &Path, text: &str, age: Duration) {
    fs_err::write(path, text).unwrap();
    let file = fs_err::File::options().append(true).open(path).unwrap();
    file.set_modified(std::time::SystemTime::from(clock::now()) - age).unwrap();
}

/// The positions at the ends of all files there.
fn at_the_end(place: &Place) -> Positions {
    let sources = Positions::first(place, StartAt::End).unwrap();
    let files = sources.read.iter().map(|source| source.position(source.offset).unwrap());
    Positions::after(None, &sources, files.collect(), clock::now())
}

#[test]
fn of_many_files_the_newest_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let file = |number: u64| folder.path().join(format!("{number:04}.log"));
    let hours = |hours| Duration::from_secs(3_600 * hours);
    for number in 0..300 {
        write(&file(number), &format!("{number}\n"), hours(301 - number));
    }
    let place = Place::Directory(folder.path().to_owned());
    let first = Positions::first(&place, StartAt::End).unwrap();
    assert_eq!(first.read.len(), FILES_MAX);
    let positions = at_the_end(&place);
    assert_eq!(positions.files.len(), FILES_MAX);
    assert_eq!(positions.sources(&place, &[], clock::now()).unwrap().left_out, 0);
    // Many come at once: those that are left out are counted, the newest are read.
    for number in 300..440 {
        write(&file(number), &format!("{number}\n"), Duration::from_secs(440 - number));
    }
    let sources = positions.sources(&place, &[], clock::now()).unwrap();
    assert_eq!((sources.read.len(), sources.left_out), (FILES_MAX, 12));
    let newest = sources.read.last().unwrap();
    assert_eq!((newest.candidate.path.clone(), newest.offset), (file(439), 0));
    // One file is followed, however old it is beside what has a name like its own.
    let place = Place::File(file(0));
    write(&folder.path().join("0000.log.1"), "x", hours(400));
    for number in 0..200 {
        write(&folder.path().join(format!("0000.log.x{number}")), "x", hours(1));
    }
    let opened = Positions::first(&place, StartAt::End).unwrap().read;
    assert_eq!(opened.iter().map(|it| &it.candidate.path).collect::<Vec<_>>(), [&file(0)]);
}

#[test]
fn old_files_that_were_never_begun_are_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.log");
    write(&path, "a\n", Duration::ZERO);
    let place = Place::Directory(folder.path().to_owned());
    let positions = at_the_end(&place);
    let was_left_out = |modified: i128, changed: i128| {
        let file = fs_err::File::open(&path).unwrap();
        let candidate = Candidate { modified, changed, ..Candidate::open(&file).unwrap() };
        positions.was_left_out(&candidate, &place)
    };
    let newest = positions.newest;
    assert!(was_left_out(newest - HOUR, newest - HOUR));
    assert!(!was_left_out(newest - HOUR, newest), "it has come here since");
    assert!(!was_left_out(newest, newest));
}

#[test]
fn a_log_that_is_emptied_without_a_copy_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("pg.log"), folder.path().join("pg.log.1"));
    let place = Place::File(path.clone());
    write(&path, "one\ntwo\n", Duration::ZERO);
    let positions = at_the_end(&place);
    let emptied = || positions.sources(&place, &[], clock::now()).unwrap().emptied;
    assert_eq!(emptied(), None);
    fs_err::copy(&path, &copy).unwrap();
    write(&path, "new\n", Duration::ZERO);
    assert_eq!(emptied(), None, "the copy has what it was");
    fs_err::remove_file(&copy).unwrap();
    assert_eq!(emptied(), Some(path.clone()));
    // With what was read before still in it, nothing is lost.
    write(&path, "one\ntwo\nnew\n", Duration::ZERO);
    assert_eq!(emptied(), None);
}

#[test]
fn earlier_files_of_a_log_are_known_by_their_names() {
    let place = Place::File(PathBuf::from("/log/pg.log"));
    let check = |name: &str, expected: bool| {
        assert_eq!(place.is_earlier(&Path::new("/log").join(name)), expected, "{name}");
    };
    for name in ["pg.log.1", "pg.log-20260731", "pg.log.2026-07-31_10:00:00", "pg.log.12"] {
        check(name, true);
    }
    for name in ["pg.log", "pg.log.", "pg.log.audit", "pg.log.old.1", "pg2.log.1", "pg.log~"] {
        check(name, false);
    }
}
