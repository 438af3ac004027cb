//! The power goes while the queue is written: a real file system, on a loop device, loses whatever
//! it was not made to write down, and the queue is opened on what is left.
//!
//! The device keeps what it was given: the loss of a drive's own cache, when it ignores flushes, is
//! not tested here, and neither are other file systems.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::support::directory;
use crate::support::disk::Disk;
use crate::support::writer::{self, Orders, Report};

/// Cuts of the power in a run of the tests; the environment variable sets another number.
const ROUNDS: u64 = 40;
const ROUNDS_VARIABLE: &str = "PGANALYTICS_POWER_LOSS_ROUNDS";
/// Cuts per mode that may lose something.
const LOSING_ROUNDS: u64 = 8;

/// Not a test of its own: the process that writes, in the tests below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer() {
    writer::live().await;
}

/// Q1, Q2, C20: whatever was acknowledged before the power went is there when it is back, under its
/// own number and once.
#[test]
fn acknowledged_records_survive_power_loss() {
    let Some(mut disk) = Disk::new(256) else { return };
    let rounds = std::env::var(ROUNDS_VARIABLE).ok().and_then(|text| text.parse().ok());
    let rounds = rounds.unwrap_or(ROUNDS);
    let (output, seed) = (directory(), fastrand::u64(..1 << 24));
    let mut random = fastrand::Rng::with_seed(seed);
    let (queue, report) = (disk.root().join("queue"), output.path().join("report"));
    let mut said = Report::default();
    for round in 0..rounds {
        let orders =
            Orders { queue: &queue, report: &report, seed: seed + round, durability: "sync" };
        // From the middle of opening the queue to many sealed and delivered segments later.
        let pause = Duration::from_millis(random.u64(5..400));
        write_until_the_power_goes(&mut disk, &orders, output.path(), pause);
        said = Report::read(&report);
        let last_seq = said.acknowledged.last_key_value().map(|(seq, _)| *seq);
        let next_seq = reopen(&orders, &mut said, round % 2 == 1);
        let context = format!("seed {seed}, round {round}");
        assert_eq!(said.missing(), [0; 0], "{context}");
        assert!(last_seq.is_none_or(|seq| seq < next_seq), "{context}: numbers come again");
    }
    let (records, delivered) = (said.acknowledged.len(), said.delivered().len());
    assert!(records > 1_000, "seed {seed}: only {records} records");
    say(
        &format!("sync: {rounds} cuts, {records} acknowledged, {delivered} there, 0 missing"),
        seed,
    );
}

/// What `durability = "os"` loses: this is what the test above would see if the queue did not sync.
#[test]
fn without_a_sync_power_loss_costs_records() {
    let Some((missing, _)) = lose("os") else { return };
    assert!(missing > 0, "either the power was never cut, or something syncs that should not");
}

/// `durability = "interval"` loses what was acknowledged within the interval, here 20 ms, before
/// the power went, and nothing older. What the test adds is the time of a sync on a busy machine.
#[test]
fn the_interval_bounds_what_power_loss_costs() {
    let Some((_, oldest)) = lose("interval") else { return };
    assert!(oldest < Duration::from_millis(400), "lost although acknowledged {oldest:?} before");
}

/// Cuts the power several times, each time on a new queue. Returns how many acknowledged records
/// are missing, and how long before the cut the oldest of them was acknowledged.
fn lose(durability: &str) -> Option<(usize, Duration)> {
    let mut disk = Disk::new(256)?;
    let (output, seed) = (directory(), fastrand::u64(..1 << 24));
    let (mut records, mut missing, mut oldest) = (0, 0, Duration::ZERO);
    for round in 0..LOSING_ROUNDS {
        let queue = disk.root().join(format!("queue-{round}"));
        let report = output.path().join(format!("report-{round}"));
        let orders = Orders { queue: &queue, report: &report, seed: seed + round, durability };
        write_until_the_power_goes(&mut disk, &orders, output.path(), Duration::from_millis(900));
        let mut said = Report::read(&report);
        reopen(&orders, &mut said, true);
        records += said.acknowledged.len();
        missing += said.missing().len();
        oldest = oldest.max(said.oldest_missing());
    }
    say(
        &format!(
            "{durability}: {LOSING_ROUNDS} cuts, {records} acknowledged, {missing} missing, \
             the oldest {oldest:?} before the cut"
        ),
        seed,
    );
    Some((missing, oldest))
}

fn write_until_the_power_goes(
    disk: &mut Disk,
    orders: &Orders<'_>,
    output: &Path,
    pause: Duration,
) {
    let mut process = writer::start(orders, output);
    std::thread::sleep(pause);
    disk.cut_power(orders.report, writer::POWER_GOES);
    process.kill();
    disk.unmount();
    disk.mount();
}

/// Opens the queue as a process would, adds all of its batches to what was `said`, and delivers
/// them, or leaves them for the next round. Returns the next sequence number.
fn reopen(orders: &Orders<'_>, said: &mut Report, deliver: bool) -> u64 {
    let config = writer::config(orders.queue, orders.durability);
    let mut log = config.open_log().expect("the queue opens");
    let mut lines = vec![writer::POWER_IS_BACK.to_owned()];
    said.add(writer::POWER_IS_BACK);
    while let Some(batch) = log.next_batch(i64::MAX) {
        let line = writer::taken(&batch);
        said.add(&line);
        if deliver {
            lines.push(line);
            log.delivered(batch.key, batch.records.len() as u64, &[]).expect("deliver");
        }
    }
    let mut report = fs_err::OpenOptions::new().append(true).open(orders.report).expect("open");
    report.write_all((lines.join("\n") + "\n").as_bytes()).expect("write the report");
    log.status().next_seq
}

fn say(outcome: &str, seed: u64) {
    writeln!(std::io::stderr(), "power loss, seed {seed}: {outcome}").expect("say it");
}
