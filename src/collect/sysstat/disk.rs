//! `/proc/diskstats`: rates of whole disks. Pure.

use std::time::Duration;

use procfs::DiskStat;

use super::delta::rate;
use crate::collect::round2;
use crate::metric::sysstat::DiskIo;

/// The kernel counts in sectors of this size whatever the disk's own.
const SECTOR_BYTES: u32 = 512;
const MIB: f64 = 1_048_576.0;
/// The kernel keeps times in 32 bits of milliseconds (Documentation/admin-guide/iostats.rst).
const MILLIS_WRAP: u64 = 1 << 32;

/// Whether `/proc/diskstats` means a disk by `name`: partitions would count its traffic twice,
/// loop and RAM devices have none of their own.
pub(super) fn is_whole(name: &str) -> bool {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if stem.len() == name.len() {
        return true;
    }
    if matches!(stem, "ram" | "zram" | "loop" | "fd" | "sr") {
        return false;
    }
    // sda1, vdb2, xvda15: a letter disk with a number is a partition.
    let letters = ["sd", "vd", "hd", "xvd"].iter().find_map(|bus| stem.strip_prefix(bus));
    if letters.is_some_and(|l| !l.is_empty() && l.bytes().all(|b| b.is_ascii_lowercase())) {
        return false;
    }
    // nvme0n1p2, mmcblk0p1: a number disk with a `p` and a number is a partition.
    let numbered = ["nvme", "mmcblk"].iter().any(|bus| stem.starts_with(bus));
    !(numbered && stem.ends_with('p'))
}

/// Every disk now there, with rates where it was there before.
pub(super) fn disks(
    before: Option<&[DiskStat]>,
    after: &[DiskStat],
    elapsed: Duration,
) -> Vec<DiskIo> {
    let same = |disk: &DiskStat| before?.iter().find(|before| before.name == disk.name);
    let disks = after.iter().map(|disk| DiskIo {
        device: disk.name.clone(),
        read_ops: Some(disk.reads),
        write_ops: Some(disk.writes),
        read_sectors: Some(disk.sectors_read),
        write_sectors: Some(disk.sectors_written),
        read_bytes: disk.sectors_read.checked_mul(SECTOR_BYTES.into()),
        write_bytes: disk.sectors_written.checked_mul(SECTOR_BYTES.into()),
        read_ms: Some(disk.time_reading),
        write_ms: Some(disk.time_writing),
        busy_ms: Some(disk.time_in_progress),
        ..same(disk).and_then(|before| rates(before, disk, elapsed)).unwrap_or_default()
    });
    disks.collect()
}

/// Absent when a counter of operations fell: another disk has taken the name.
fn rates(before: &DiskStat, after: &DiskStat, elapsed: Duration) -> Option<DiskIo> {
    let read_iops = rate(before.reads, after.reads, elapsed)?;
    let write_iops = rate(before.writes, after.writes, elapsed)?;
    let read_sectors = rate(before.sectors_read, after.sectors_read, elapsed)?;
    let write_sectors = rate(before.sectors_written, after.sectors_written, elapsed)?;
    let elapsed_ms = elapsed.as_secs_f64() * 1000.0;
    let busy = millis(before.time_in_progress, after.time_in_progress);
    let weighted = millis(before.weighted_time_in_progress, after.weighted_time_in_progress);
    Some(DiskIo {
        read_iops: Some(round2(read_iops)),
        write_iops: Some(round2(write_iops)),
        read_mb_s: Some(round2(read_sectors * f64::from(SECTOR_BYTES) / MIB)),
        write_mb_s: Some(round2(write_sectors * f64::from(SECTOR_BYTES) / MIB)),
        read_await_ms: wait(millis(before.time_reading, after.time_reading), read_iops, elapsed),
        write_await_ms: wait(millis(before.time_writing, after.time_writing), write_iops, elapsed),
        queue_depth: Some(round2(weighted / elapsed_ms)),
        busy_percent: Some(round2((100.0 * busy / elapsed_ms).min(100.0))),
        ..DiskIo::default()
    })
}

/// Milliseconds between two values of a counter that may have wrapped.
#[expect(clippy::cast_precision_loss, reason = "32 bits fit in 53")]
fn millis(before: u64, after: u64) -> f64 {
    let passed = match after.checked_sub(before) {
        Some(passed) => passed,
        None if before < MILLIS_WRAP => after + (MILLIS_WRAP - before),
        None => 0,
    };
    passed as f64
}

fn wait(millis: f64, iops: f64, elapsed: Duration) -> Option<f64> {
    let operations = iops * elapsed.as_secs_f64();
    (operations > 0.0).then(|| round2(millis / operations))
}
