//! How a backlog is opened and read. `BENCH_BACKLOG_MIB` sets its size (JSON, 4 GiB by default).
//!
//! The backlog is written here; a process of its own opens and drains it, so that its memory is
//! that of a start and not of what filled the queue. The backlog may still be in the page cache.
//!
//! - `queue_open_ms`, `queue_open_rss_mib`: the start, and the most memory that the whole process
//!   had resident by then.
//! - `queue_read_records_s`: records read and noted as delivered, per second.
//! - `queue_drain_rss_mib`: the most memory of the whole drain.
//! - `queue_drained_mib`: what is on disk when nothing is left to deliver.

#![allow(clippy::cast_precision_loss, reason = "measurements")]

mod common;

use std::path::Path;

use common::{allocated, directory, fill, peak_mib, queue_config, result, setting, timed};

/// From how many bytes on the allocator asks the system for memory, and gives it back.
const LARGE_BYTES: &str = "131072";
/// The argument that makes this program the process that opens and drains.
const DRAIN: &str = "--drain";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some([_, dir, records]) =
        arguments.iter().position(|argument| argument == DRAIN).and_then(|at| arguments.get(at..))
    {
        return drain(Path::new(dir), records.parse().expect("a number"));
    }
    let whole = arguments.iter().any(|argument| argument == "--bench");
    let backlog = setting("BENCH_BACKLOG_MIB", if whole { 4096 } else { 16 }) << 20;
    let dir = directory();
    let (written, records) = fill(dir.path(), backlog);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    result("queue_backlog_mib", mib(written), "MiB");
    result("queue_backlog_disk_mib", mib(allocated(dir.path())), "MiB");
    let this = std::env::current_exe().expect("this program has a path");
    let mut child = std::process::Command::new(this);
    child.arg(DRAIN).arg(dir.path()).arg(records.to_string());
    // What the agent's `main` sets for the whole process.
    child.env("MALLOC_MMAP_THRESHOLD_", LARGE_BYTES).env("MALLOC_TRIM_THRESHOLD_", LARGE_BYTES);
    let status = child.status().expect("the process starts");
    assert!(status.success(), "the drain failed: {status}");
    result("queue_drained_mib", mib(allocated(dir.path())), "MiB");
}

fn drain(dir: &Path, records: u64) {
    let (log, took) = timed(|| queue_config(dir).open_log());
    let mut log = log.expect("the queue opens");
    result("queue_open_ms", took.as_secs_f64() * 1e3, "ms");
    result("queue_open_rss_mib", peak_mib(), "MiB");
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
    result("queue_drain_rss_mib", peak_mib(), "MiB");
}
