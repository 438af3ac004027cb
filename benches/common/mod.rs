//! What the benches share: documents like real ones, results that a script can read, and what the
//! kernel says about this process.

#![allow(dead_code, reason = "each bench uses a part of it")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use pganalytics::{clock, queue::NewRecord};

/// Prints a result; see `benches/README.md`.
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
    let digit = |salt: u64| (n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(salt)) >> 33;
    let percent = |salt| format!("{}.{:02}", digit(salt) % 100, digit(salt + 1) % 100);
    let disk = |name: &str, salt: u64| {
        format!(
            r#"{{"device":"{name}","read_iops":{},"write_iops":{},"read_mb_s":{},"write_mb_s":{},"read_ops":{},"write_ops":{},"read_sectors":{},"write_sectors":{}}}"#,
            percent(salt),
            percent(salt + 2),
            percent(salt + 4),
            percent(salt + 6),
            n * 7 + salt,
            n * 11 + salt,
            n * 70 + salt,
            n * 110 + salt,
        )
    };
    let minute = n / 60 % 60;
    Bytes::from(format!(
        r#"{{"type":"sysstat","timestamp":"2026-01-01T{:02}:{minute:02}:{:02}.{:03}Z","cpu":{{"user":{},"system":{},"idle":{},"iowait":{},"load_1m":{},"load_5m":{},"load_15m":{},"cores":8}},"memory":{{"total_mb":32000,"free_mb":{},"cached_mb":{},"used_mb":{},"available_mb":{}}},"disk_io":[{},{},{}],"context_switches_s":{},"uptime_s":{n}}}"#,
        n / 3600 % 24,
        n % 60,
        n / 86_400 % 1000,
        percent(1),
        percent(2),
        percent(3),
        percent(4),
        percent(5),
        percent(6),
        percent(7),
        digit(8) % 32_000,
        digit(9) % 32_000,
        digit(10) % 32_000,
        digit(11) % 32_000,
        disk("sda", 20),
        disk("sdb", 40),
        disk("nvme0n1", 60),
        digit(12) % 100_000,
    ))
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

/// A directory on the disk that the bench measures: `BENCH_DIR`, else the build directory.
pub fn directory() -> tempfile::TempDir {
    let base = std::env::var_os("BENCH_DIR")
        .map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), std::path::PathBuf::from);
    tempfile::Builder::new().prefix("bench-").tempdir_in(base).expect("a directory for the bench")
}
