//! How a backlog is opened and read: time and memory of the start, records read per second, and
//! what is left on disk. `BENCH_BACKLOG_MIB` sets its size (JSON).

#![allow(clippy::cast_precision_loss, reason = "measurements")]

mod common;

use common::{directory, document, resident_mib, result, setting, timed};
use pganalytics::queue::{Group, LogLimits, NewRecord, QueueConfig};

const GROUP_RECORDS: u64 = 1_000;

fn main() {
    let backlog = setting("BENCH_BACKLOG_MIB", 512) << 20;
    let dir = directory();
    let config = QueueConfig {
        dir: dir.path().to_owned(),
        commit_interval: std::time::Duration::ZERO,
        limits: LogLimits::default(),
    };
    let (written, records) = fill(&config, backlog);
    let before = resident_mib();
    let (log, took) = timed(|| config.open_log());
    let mut log = log.expect("the queue opens");
    result("queue_backlog_mib", written as f64 / f64::from(1 << 20), "MiB");
    result("queue_open_ms", took.as_secs_f64() * 1e3, "ms");
    result("queue_open_rss_mib", resident_mib() - before, "MiB");
    let (read, took) = timed(|| {
        let mut read = 0;
        while let Some(batch) = log.next_batch(i64::MAX) {
            read += batch.records.len() as u64;
            log.delivered(batch.key, batch.records.len() as u64, &[]).expect("the disk works");
        }
        read
    });
    assert_eq!(read, records, "every record is read");
    result("queue_read_records_s", read as f64 / took.as_secs_f64(), "records/s");
    result("queue_drain_rss_mib", resident_mib() - before, "MiB");
    drop(log);
    result("queue_drained_mib", allocated(dir.path()) as f64 / f64::from(1 << 20), "MiB");
}

fn fill(config: &QueueConfig, backlog: u64) -> (u64, u64) {
    let mut log = config.open_log().expect("the queue opens");
    let (mut written, mut n) = (0, 0);
    while written < backlog {
        let record = |n| NewRecord { kind: "sysstat".to_owned(), at_ms: 0, payload: document(n) };
        let group: Vec<NewRecord> = (n..n + GROUP_RECORDS).map(record).collect();
        n += GROUP_RECORDS;
        written += group.iter().map(|record| record.payload.len() as u64).sum::<u64>();
        log.append(vec![Group::of(group)], 1_000);
    }
    log.close(2_000);
    (written, n)
}

fn allocated(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).expect("readable").flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => allocated(&entry.path()),
            Ok(data) => data.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
