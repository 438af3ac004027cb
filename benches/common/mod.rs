//! What the benches share: documents like real ones, results that a script can read, and what the
//! kernel says about this process.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    reason = "measurements and made-up numbers"
)]
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use pganalytics::{
    clock,
    queue::{Budget, Group, LogLimits, NewRecord, QueueConfig},
};
use serde_json::json;

/// Prints a result; see `benches/README.md`.
#[allow(clippy::print_stdout, reason = "results are for people and scripts")]
pub fn result(name: &str, value: f64, unit: &str) {
    println!("RESULT {name} {value:.3} {unit}");
}

/// The time that `work` takes.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begun: Instant = clock::monotonic();
    let value = work();
    (value, begun.elapsed())
}

/// The middle of several measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A sysstat document of about 1 KiB whose numbers differ from one `n` to the next.
pub fn document(n: u64) -> Bytes {
    let digit = |salt: u64| n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(salt) >> 33;
    let percent = |salt| (digit(salt) % 10_000) as f64 / 100.0;
    let disk = |(device, salt): (&str, u64)| {
        json!({
            "device": device,
            "read_iops": percent(salt), "write_iops": percent(salt + 2),
            "read_mb_s": percent(salt + 4), "write_mb_s": percent(salt + 6),
            "read_ops": n * 7 + salt, "write_ops": n * 11 + salt,
            "read_sectors": n * 70 + salt, "write_sectors": n * 110 + salt,
        })
    };
    let disks = [("sda", 20), ("sdb", 40), ("nvme0n1", 60)].map(disk);
    let at = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_767_225_600 + n as i64);
    let document = json!({
        "type": "sysstat",
        "timestamp": clock::rfc3339(at),
        "cpu": {
            "user": percent(1), "system": percent(2), "idle": percent(3), "iowait": percent(4),
            "load_1m": percent(5), "load_5m": percent(6), "load_15m": percent(7), "cores": 8,
        },
        "memory": {
            "total_mb": 32_000, "free_mb": digit(8) % 32_000, "cached_mb": digit(9) % 32_000,
            "used_mb": digit(10) % 32_000, "available_mb": digit(11) % 32_000,
        },
        "disk_io": disks,
        "context_switches_s": digit(12) % 100_000,
        "uptime_s": n,
    });
    Bytes::from(document.to_string())
}

/// Records of [`document`].
pub fn records(numbers: std::ops::Range<u64>) -> Vec<NewRecord> {
    let record = |n| NewRecord { kind: "sysstat".to_owned(), at_ms: 0, payload: document(n) };
    numbers.map(record).collect()
}

/// Resident memory of this process, MiB.
pub fn resident_mib() -> f64 {
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    status.ok().and_then(|status| status.vmrss).unwrap_or(0) as f64 / 1024.0
}

/// The most memory that this process has had resident so far, MiB.
pub fn peak_mib() -> f64 {
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    status.ok().and_then(|status| status.vmhwm).unwrap_or(0) as f64 / 1024.0
}

/// Bytes that this process has sent to the storage layer.
pub fn device_bytes() -> u64 {
    procfs::process::Process::myself()
        .and_then(|process| process.io())
        .map_or(0, |io| io.write_bytes.saturating_sub(io.cancelled_write_bytes))
}

/// A number from the environment, for a longer or a shorter run.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The default queue in `dir`, without a bound on its size. Every append syncs at once.
pub fn queue_config(dir: &Path) -> QueueConfig {
    let limits = LogLimits { budget: Budget::UNBOUNDED, ..LogLimits::default() };
    QueueConfig { dir: dir.to_owned(), commit_interval: Duration::ZERO, limits }
}

/// Fills the queue in `dir` with `backlog` bytes of JSON or a little more; bytes and records.
pub fn fill(dir: &Path, backlog: u64) -> (u64, u64) {
    const GROUP_RECORDS: u64 = 1_000;
    let mut log = queue_config(dir).open_log().expect("the queue opens");
    let (mut written, mut n) = (0, 0);
    while written < backlog {
        let group = Group::of(records(n..n + GROUP_RECORDS));
        n += GROUP_RECORDS;
        written += group.records.iter().map(|record| record.payload.len() as u64).sum::<u64>();
        log.append(vec![group], 1_000);
    }
    log.close(2_000);
    (written, n)
}

/// Bytes that a directory's files occupy.
pub fn allocated(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).expect("readable").flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => data.blocks() * 512 + allocated(&entry.path()),
            Ok(data) => data.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// A directory on the disk that the bench measures: `BENCH_DIR`, else the build directory.
pub fn directory() -> tempfile::TempDir {
    let base = std::env::var_os("BENCH_DIR")
        .map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), std::path::PathBuf::from);
    tempfile::Builder::new().prefix("bench-").tempdir_in(base).expect("a directory for the bench")
}
