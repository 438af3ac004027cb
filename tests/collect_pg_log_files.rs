//! `pg_log`: several files in one directory. Every line is read once, whatever is done to them.

use std::collections::BTreeMap;
use std::time::Duration;

use pganalytics::clock;
use pganalytics::collect::Collector as _;
use pganalytics::collect::pg_log::StartAt;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::collect_pg_log::{Log, line};

/// The next lines: no two are the same.
fn lines(first: usize, count: usize) -> String {
    (first..first + count).map(|number| line(&format!("line {number:06}"))).collect()
}

fn expected(first: usize, count: usize) -> Vec<String> {
    (first..first + count).map(|number| format!("line {number:06}")).collect()
}

/// A directory that is followed from its first line on.
async fn directory() -> Log {
    let mut log = Log::new("");
    assert_eq!(log.messages().await, [""; 0]);
    log
}

/// Copies a file and empties it, as a log rotation with `copytruncate` does.
fn copy_truncate(log: &Log, name: &str, copy: &str) {
    fs_err::copy(log.path(name), log.path(copy)).expect("copy");
    fs_err::OpenOptions::new().write(true).truncate(true).open(log.path(name)).expect("truncate");
}

/// A pipe in the place of a log holds nobody: whoever owns the directory can put one there.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_the_place_of_a_log_holds_nobody() {
    let mut log = Log::new("a.log");
    let made = std::process::Command::new("mkfifo").arg(log.path("a.log")).status();
    assert!(made.expect("mkfifo").success());
    let pipe = log.path("a.log");
    let read = tokio::spawn(async move {
        let tried = log.collector.collect(clock::now()).await;
        let said = tried.map(drop).expect_err("not a log").to_string();
        fs_err::remove_file(log.path("a.log")).expect("remove");
        log.append("a.log", &lines(0, 3));
        (said, log.messages().await)
    });
    let read = tokio::time::timeout(Duration::from_secs(20), read).await;
    if read.is_err() {
        // Whoever waits for a writer has one, and the test ends.
        drop(fs_err::OpenOptions::new().read(true).write(true).open(pipe));
    }
    let read = read.expect("it ends");
    let (said, read) = read.expect("no panic");
    assert!(said.contains("not a file"), "{said}");
    assert_eq!(read, expected(0, 3));
}

#[tokio::test]
async fn two_active_files_are_read_once_each() {
    let mut log = directory().await;
    let mut read = Vec::new();
    for number in 0..12 {
        log.append("a.log", &lines(2 * number, 1));
        log.append("b.log", &lines(2 * number + 1, 1));
        read.extend(log.messages().await);
        if number % 3 == 2 {
            log.restart();
        }
    }
    read.extend(log.messages().await);
    assert_eq!(read, expected(0, 24));
}

#[tokio::test]
async fn a_copy_beside_the_log_is_not_read() {
    let mut log = directory().await;
    log.append("a.log", &lines(0, 20));
    let mut read = log.messages().await;
    for round in 1..4 {
        // With lines that were not read before the copy was made, and lines after it.
        log.append("a.log", &lines(20 * round, 10));
        fs_err::copy(log.path("a.log"), log.path(&format!("a.{round}.log"))).expect("copy");
        log.append("a.log", &lines(20 * round + 10, 10));
        log.restart();
        read.extend(log.messages().await);
    }
    assert_eq!(read, expected(0, 80));
    // Nor when the log is emptied, and not when it is removed.
    fs_err::write(log.path("a.log"), lines(80, 1)).expect("truncate");
    assert_eq!(log.messages().await, expected(80, 1));
    fs_err::remove_file(log.path("a.log")).expect("remove");
    log.restart();
    for _ in 0..3 {
        assert_eq!(log.messages().await, [""; 0]);
    }
}

#[tokio::test]
async fn a_copy_is_read_on_where_the_emptied_log_was() {
    for name in ["", "a.log"] {
        let mut log = Log::new(name);
        log.append("a.log", &lines(0, 11));
        let mut read = log.messages().await;
        let mut rest = 11;
        for round in 0..3 {
            log.append("a.log", &lines(rest, 11));
            copy_truncate(&log, "a.log", &format!("a.log.{round}"));
            log.append("a.log", &lines(rest + 11, 11));
            if round == 1 {
                log.restart();
            }
            read.extend(log.messages().await);
            rest += 22;
        }
        read.sort();
        assert_eq!(read, expected(0, rest), "{name:?}");
    }
}

/// The copy is seen while it is made; the end of it comes with the truncation.
#[tokio::test]
async fn a_copy_that_is_half_made_is_no_log() {
    let mut log = directory().await;
    log.append("a.log", &lines(0, 10));
    let mut read = log.messages().await;
    log.append("a.1.log", &lines(0, 3)[..100]);
    log.append("a.log", &lines(10, 5));
    read.extend(log.messages().await);
    assert_eq!(read, expected(0, 15));
    log.append("a.log", &lines(15, 5));
    let whole = fs_err::read_to_string(log.path("a.log")).expect("read");
    log.append("a.1.log", &whole[100..]);
    fs_err::write(log.path("a.log"), lines(20, 2)).expect("truncate");
    log.restart();
    read.extend(log.messages().await);
    read.sort();
    assert_eq!(read, expected(0, 22));
}

/// A copy that is written to itself is a log of its own from there on.
#[tokio::test]
async fn a_copy_that_goes_its_own_way_is_read_from_there() {
    let mut log = directory().await;
    log.append("a.log", &lines(0, 10));
    let mut read = log.messages().await;
    fs_err::copy(log.path("a.log"), log.path("b.log")).expect("copy");
    read.extend(log.messages().await);
    log.append("b.log", &lines(10, 1));
    log.append("a.log", &lines(11, 1));
    read.extend(log.messages().await);
    log.append("b.log", &lines(12, 1));
    log.append("a.log", &lines(13, 1));
    read.extend(log.messages().await);
    read.sort();
    assert_eq!(read, expected(0, 14));
}

#[tokio::test]
async fn files_that_rest_are_known_when_they_are_written_again() {
    let mut log = directory().await;
    log.append("a.log", &lines(0, 5));
    log.append("b.log", &lines(5, 5));
    assert_eq!(log.messages().await, expected(0, 10));
    for name in ["a.log", "b.log"] {
        log.set_age(name, Duration::from_secs(3_600));
    }
    assert_eq!(log.messages().await, [""; 0]);
    log.restart();
    log.append("c.log", &lines(10, 1));
    assert_eq!(log.messages().await, expected(10, 1));
    log.append("a.log", &lines(11, 1));
    assert_eq!(log.messages().await, expected(11, 1));
}

/// The first look takes the newest file, or none; what is old then is not read later.
#[tokio::test]
async fn what_was_there_before_is_not_read() {
    let mut log = Log::new("");
    log.config.start_at = StartAt::End;
    log.restart();
    log.append("a.log", &lines(0, 5));
    log.append("b.log", &lines(5, 5));
    log.messages().await;
    log.append("a.log", &lines(10, 1));
    log.append("b.log", &lines(11, 1));
    assert_eq!(log.messages().await, expected(10, 2));
    // Nor an old one that is brought back.
    log.append("old.log", &lines(20, 7));
    log.set_age("old.log", Duration::from_secs(86_400));
    assert_eq!(log.messages().await, [""; 0]);
}

/// The state of earlier versions: one file and its position.
#[tokio::test]
async fn the_position_of_an_earlier_version_is_taken_over() {
    let mut log = directory().await;
    log.append("old.log", &lines(0, 5));
    log.set_age("old.log", Duration::from_secs(5));
    log.append("a.log", &lines(5, 5));
    log.set_age("a.log", Duration::from_secs(2));
    log.messages().await;
    let state: Value = serde_json::from_slice(log.stored.as_deref().expect("a state")).expect("?");
    let files = state["positions"]["files"].as_array().expect("positions");
    let of_a = |file: &&Value| file["path"].as_str().expect("a path").ends_with("a.log");
    let mut position = files.iter().find(of_a).expect("a.log").clone();
    for new in ["tail", "size", "copy_of"] {
        position.as_object_mut().expect("an object").remove(new);
    }
    let state = json!({"position": position, "server": null});
    log.stored = Some(serde_json::to_vec(&state).expect("encodes"));
    log.restart();
    log.append("a.log", &lines(10, 1));
    log.append("new.log", &lines(11, 1));
    assert_eq!(log.messages().await, expected(10, 2));
    log.append("old.log", &lines(12, 1));
    assert_eq!(log.messages().await, expected(12, 1));
}

/// Two files and everything that is done to logs.
#[derive(Debug, Clone)]
enum Act {
    Write {
        file: usize,
        count: usize,
    },
    /// To a file that was rotated away: its writer has it open still.
    WriteLate,
    CopyTruncate(usize),
    Rename(usize),
    Backup(usize),
    /// The same content as another file under the same name.
    Recreate(usize),
    Read,
    /// Read, and not taken into the queue.
    ReadInVain,
    Restart,
}

/// Files without a line of a log, one larger than what a collection reads, hold the log up neither
/// when they turn up nor when they grow, and what was read is not read again.
#[tokio::test]
async fn foreign_files_hold_nobody_up() {
    let mut log = directory().await;
    log.config.read_bytes_max = 16 << 10;
    log.restart();
    let foreign = "INSERT INTO t\n".repeat(900);
    for round in 0..3 {
        for (name, times) in [("big.sql", 4), ("one.sql", 1), ("two.sql", 1)] {
            log.append(name, &foreign.repeat(times));
            log.set_age(name, Duration::from_secs(30));
        }
        log.append("a.log", &lines(5 * round, 5));
        assert_eq!(log.messages().await, expected(5 * round, 5), "round {round}");
        assert_eq!(log.messages().await, [""; 0]);
        log.restart();
    }
}

/// Moves the log to `.1`, and what was there on, or copies it and empties the log.
fn rotate(log: &Log, copies: bool, age: u64) {
    for number in (1..4).rev() {
        let (from, to) = (format!("pg.log.{number}"), format!("pg.log.{}", number + 1));
        if log.path(&from).exists() {
            fs_err::rename(log.path(&from), log.path(&to)).expect("rename");
        }
    }
    if copies {
        copy_truncate(log, "pg.log", "pg.log.1");
        log.set_age("pg.log.1", Duration::from_secs(age));
    } else {
        fs_err::rename(log.path("pg.log"), log.path("pg.log.1")).expect("rename");
    }
}

/// What was written between two rotations that came between two looks is read beside the log.
#[tokio::test]
async fn a_log_that_is_rotated_twice_between_two_looks_is_read_in_whole() {
    for copies in [false, true] {
        let mut log = Log::new("pg.log");
        let append = |log: &Log, first: usize, age: u64| {
            log.append("pg.log", &lines(first, 4));
            log.set_age("pg.log", Duration::from_secs(age));
        };
        log.append("pg.log.1", &lines(900, 4));
        log.append("pg.log-audit", &lines(950, 4));
        log.set_age("pg.log.1", Duration::from_secs(3_600));
        append(&log, 0, 50);
        let mut read = log.messages().await;
        append(&log, 4, 40);
        rotate(&log, copies, 40);
        append(&log, 8, 30);
        rotate(&log, copies, 30);
        append(&log, 12, 20);
        read.extend(log.messages().await);
        log.restart();
        append(&log, 16, 10);
        read.extend(log.messages().await);
        read.sort();
        assert_eq!(read, expected(0, 20), "copies: {copies}");
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let file = 0..2_usize;
    let act = prop_oneof![
        6 => (file.clone(), 1..9_usize).prop_map(|(file, count)| Act::Write { file, count }),
        1 => Just(Act::WriteLate),
        1 => file.clone().prop_map(Act::CopyTruncate),
        1 => file.clone().prop_map(Act::Rename),
        1 => file.clone().prop_map(Act::Backup),
        1 => file.prop_map(Act::Recreate),
        4 => Just(Act::Read),
        1 => Just(Act::ReadInVain),
        1 => Just(Act::Restart),
    ];
    proptest::collection::vec(act, 1..40)
}

/// A run of acts, with what was written and read.
struct Run {
    log: Log,
    written: usize,
    read: Vec<String>,
    rotated: Vec<String>,
    numbers: usize,
}

impl Run {
    fn write(&mut self, name: &str, count: usize) {
        self.log.append(name, &lines(self.written, count));
        self.written += count;
    }

    fn next(&mut self, name: &str) -> String {
        self.numbers += 1;
        format!("{name}.{}", self.numbers)
    }

    async fn act(&mut self, act: &Act) {
        let name = |file: &usize| ["a.log", "b.log"][*file];
        let exists = |run: &Self, file: &usize| run.log.path(name(file)).exists();
        match act {
            Act::Write { file, count } => self.write(name(file), *count),
            Act::WriteLate => {
                if let Some(name) = self.rotated.last().cloned() {
                    self.write(&name, 1);
                }
            }
            Act::CopyTruncate(file) if exists(self, file) => {
                let copy = self.next(name(file));
                copy_truncate(&self.log, name(file), &copy);
            }
            Act::Rename(file) if exists(self, file) => {
                let to = self.next(name(file));
                fs_err::rename(self.log.path(name(file)), self.log.path(&to)).expect("rename");
                self.rotated.push(to);
            }
            Act::Backup(file) if exists(self, file) => {
                let copy = self.next("backup");
                fs_err::copy(self.log.path(name(file)), self.log.path(&copy)).expect("copy");
            }
            Act::Recreate(file) if exists(self, file) => {
                let (own, new) = (self.log.path(name(file)), self.log.path("new.gz"));
                fs_err::copy(&own, &new).expect("copy");
                fs_err::rename(&new, &own).expect("rename");
            }
            Act::Read => {
                let read = self.log.messages().await;
                self.read.extend(read);
            }
            Act::ReadInVain => _ = self.log.read().await,
            Act::Restart => self.log.restart(),
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is written, rotated, copied and restarted in whatever order: each line once.
    #[test]
    fn every_line_is_read_once(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime");
        let (written, read) = runtime.block_on(async {
            let log = directory().await;
            let (read, rotated) = (Vec::new(), Vec::new());
            let mut run = Run { log, written: 0, read, rotated, numbers: 0 };
            for act in &acts {
                run.act(act).await;
            }
            for act in [Act::Read, Act::Restart, Act::Read] {
                run.act(&act).await;
            }
            (run.written, run.read)
        });
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for message in expected(0, written) {
            *counts.entry(message).or_default() -= 1;
        }
        for message in read {
            *counts.entry(message).or_default() += 1;
        }
        counts.retain(|_, count| *count != 0);
        prop_assert!(counts.is_empty(), "lost (-) or sent again (+): {counts:?}");
    }
}
