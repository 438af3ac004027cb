//! A process that appends to a queue and drains it as fast as it can, and writes down what it was
//! told: it is this test binary, started again for one test.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use pganalytics::queue::{Batch, Group, Home, LogLimits, NewRecord, Queue, QueueConfig};
use uuid::Uuid;

use super::process::Process;

const DIRECTORY: &str = "PGANALYTICS_TEST_WRITER_QUEUE";
const REPORT: &str = "PGANALYTICS_TEST_WRITER_REPORT";
const SEED: &str = "PGANALYTICS_TEST_WRITER_SEED";
const DURABILITY: &str = "PGANALYTICS_TEST_WRITER_DURABILITY";

/// What a writer is told.
pub struct Orders<'a> {
    pub queue: &'a Path,
    pub report: &'a Path,
    pub seed: u64,
    pub durability: &'a str,
}

/// What writers have written down.
#[derive(Debug, Default)]
pub struct Report {
    /// Sequence numbers that were acknowledged as being on disk, and the record's own number.
    pub acknowledged: BTreeMap<u64, u64>,
    /// Batches that were taken to be delivered.
    pub taken: BTreeMap<Uuid, Vec<(u64, u64)>>,
    /// Records that were taken about when the power went: a process goes on for a moment without
    /// its disk, as it would not without power. They may be in the queue, or delivered.
    doubtful: BTreeSet<(u64, u64)>,
    in_doubt: bool,
    /// When each record was acknowledged, milliseconds since the system's start.
    acknowledged_ms: BTreeMap<u64, u64>,
    /// When the power went last.
    pub cut_ms: u64,
}

/// The word of the line after which the power goes, with the time.
pub const POWER_GOES: &str = "X";
/// The line after which it is back.
pub const POWER_IS_BACK: &str = "Y";

/// Starts a writer.
pub fn start(orders: &Orders<'_>, output: &Path) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["power_loss::a_writer", "--exact", "--test-threads=1"]);
    command.env(DIRECTORY, orders.queue).env(REPORT, orders.report);
    command.env(SEED, orders.seed.to_string()).env(DURABILITY, orders.durability);
    Process::start(command, output)
}

/// The queue of a writer.
pub fn config(dir: &Path, durability: &str) -> QueueConfig {
    let mut limits = LogLimits { segment_bytes_max: 1 << 20, ..LogLimits::default() };
    limits.durability = match durability {
        "os" => pganalytics::queue::Durability::Os,
        "interval" => pganalytics::queue::Durability::Interval,
        _ => pganalytics::queue::Durability::Sync,
    };
    let commit_interval = Duration::from_millis(if durability == "sync" { 2 } else { 20 });
    QueueConfig { dir: dir.to_owned(), commit_interval, limits }
}

/// The life of a writer, when this process was started as one; else nothing.
pub async fn live() {
    let Some(dir) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let text = |name| std::env::var(name).expect("the writer's environment");
    let report = fs_err::OpenOptions::new().append(true).create(true).open(text(REPORT));
    let report = Arc::new(Mutex::new(report.expect("open the report")));
    let say = move |line: String| {
        let mut report = report.lock().expect("nobody panicked");
        report.write_all((line + "\n").as_bytes()).expect("write the report");
    };
    let seed: u64 = text(SEED).parse().expect("a number");
    let (queue, _thread) = config(&dir, &text(DURABILITY)).start().expect("open the queue");
    for producer in 0..2 {
        tokio::spawn(produce(queue.clone(), (seed << 1 | producer) << 24, say.clone()));
    }
    let mut random = fastrand::Rng::with_seed(seed);
    // Sealing syncs in every mode: where the syncs are what is tested, windows are longer.
    let window_ms = if text(DURABILITY) == "sync" { 30 } else { 300 };
    loop {
        tokio::time::sleep(Duration::from_millis(random.u64(..window_ms))).await;
        queue.seal().await.expect("seal");
        for _ in 0..random.usize(..4) {
            let Some(batch) = queue.next_batch().await.expect("read") else { break };
            say(taken(&batch));
            let (key, records) = (batch.key, batch.records.len() as u64);
            if random.u8(..10) == 0 {
                queue.put_back(key, "503".to_owned(), 0).await.expect("put back");
            } else {
                // After the power has gone this fails, and the process is killed.
                queue.delivered(key, records, Vec::new()).await.ok();
            }
        }
    }
}

async fn produce(queue: Queue, first: u64, say: impl Fn(String)) {
    let mut random = fastrand::Rng::with_seed(first);
    let mut next = first;
    loop {
        let numbers = next..next + random.u64(1..40);
        next = numbers.end;
        let appended = queue.append(group(numbers.clone(), &mut random)).await.expect("append");
        if appended.home == Home::Disk {
            let (first, records) = (appended.first_seq, appended.records);
            say(format!("A {first} {records} {} {}", numbers.start, monotonic_ms()));
        }
    }
}

fn group(numbers: Range<u64>, random: &mut fastrand::Rng) -> Group {
    let records = numbers.map(|n| {
        // Now and then a record of several frames.
        let filler = if random.u16(..2_000) == 0 { 300 << 10 } else { random.usize(..1_500) };
        let filler: String =
            std::iter::repeat_with(|| random.alphanumeric()).take(filler).collect();
        let payload = Bytes::from(format!("{{\"n\":{n},\"filler\":\"{filler}\"}}"));
        NewRecord { kind: "custom.noise".to_owned(), at_ms: 1_700_000_000_000, payload }
    });
    Group { records: records.collect(), ..Group::default() }
}

/// What is written down of a batch before it is delivered.
pub fn taken(batch: &Batch) -> String {
    let record = |record: &pganalytics::queue::Record| {
        let text = std::str::from_utf8(&record.payload).expect("JSON is UTF-8");
        let n = text.trim_start_matches("{\"n\":").split(',').next().expect("a number");
        format!(" {}:{n}", record.seq)
    };
    format!("T {}", batch.id) + &batch.records.iter().map(record).collect::<String>()
}

impl Report {
    /// Reads a report; a last line that was cut short says nothing.
    pub fn read(path: &Path) -> Self {
        let text = fs_err::read_to_string(path).unwrap_or_default();
        let mut report = Self::default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            report.add(line);
        }
        report
    }

    /// Takes one line. Panics when it contradicts what was said before.
    #[track_caller]
    pub fn add(&mut self, line: &str) {
        let mut words = line.split(' ');
        match words.next() {
            Some("A") => {
                let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
                let [seq, records, n, at_ms] = numbers[..] else { panic!("{line}") };
                for at in 0..records {
                    let before = self.acknowledged.insert(seq + at, n + at);
                    assert_eq!(before, None, "number {} was given twice", seq + at);
                    self.acknowledged_ms.insert(seq + at, at_ms);
                }
            }
            Some("T") => {
                let id = words.next().and_then(|id| id.parse().ok()).expect("an id");
                let pair = |word: &str| {
                    let (seq, n) = word.split_once(':').expect("a pair");
                    (seq.parse().expect("a number"), n.parse().expect("a number"))
                };
                let records: Vec<(u64, u64)> = words.map(pair).collect();
                if self.in_doubt {
                    self.doubtful.extend(records);
                    return;
                }
                let known = self.taken.entry(id).or_insert_with(|| records.clone());
                assert_eq!(*known, records, "batch {id} changed its content");
            }
            Some(POWER_GOES) => {
                self.in_doubt = true;
                self.cut_ms = words.next().and_then(|word| word.parse().ok()).expect("a time");
            }
            Some(POWER_IS_BACK) => self.in_doubt = false,
            _ => panic!("{line}"),
        }
    }

    /// Every record of every batch; panics when two batches have one record.
    #[track_caller]
    pub fn delivered(&self) -> BTreeMap<u64, u64> {
        let mut delivered = BTreeMap::new();
        for (id, records) in &self.taken {
            for (seq, n) in records {
                let before = delivered.insert(*seq, *n);
                assert_eq!(before, None, "number {seq} is in batch {id} and in another");
            }
        }
        delivered
    }

    /// The acknowledged records that are in no batch.
    #[track_caller]
    pub fn missing(&self) -> Vec<u64> {
        let delivered = self.delivered();
        let lacks = |(seq, n): (&u64, &u64)| {
            let there = delivered.get(seq) == Some(n) || self.doubtful.contains(&(*seq, *n));
            (!there).then_some(*seq)
        };
        self.acknowledged.iter().filter_map(lacks).collect()
    }

    /// How long before the power went the oldest missing record was acknowledged.
    #[track_caller]
    pub fn oldest_missing(&self) -> Duration {
        let times = self.missing().into_iter().filter_map(|seq| self.acknowledged_ms.get(&seq));
        let oldest = times.min().copied().unwrap_or(self.cut_ms);
        Duration::from_millis(self.cut_ms.saturating_sub(oldest))
    }
}

/// Milliseconds since the system has started, as another process sees them too.
fn monotonic_ms() -> u64 {
    let text = fs_err::read_to_string("/proc/uptime").expect("Linux");
    let (seconds, rest) = text.split_once('.').expect("seconds");
    let hundredths: u64 = rest[..2].parse().expect("a number");
    seconds.parse::<u64>().expect("a number") * 1_000 + hundredths * 10
}
