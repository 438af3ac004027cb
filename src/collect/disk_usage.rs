//! The host's file systems, from `/proc/self/mountinfo` and `statvfs(2)`.
//!
//! A file system of a dead server blocks whoever asks it, for hours. So `statvfs` runs on threads
//! of its own with a deadline: a mount that does not answer in time is `stuck`, and is not asked
//! again until the first call has returned.

mod mounts;
mod probe;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::{CollectError, Collected, Collector, document, round2};
use crate::metric::Time;
use crate::metric::disk_usage::{DiskUsage as Document, Filesystem};
use mounts::Mount;
use probe::{Answer, Probes};

pub use probe::Statvfs;

const GIB: f64 = 1_073_741_824.0;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUsageConfig {
    /// The mount table.
    pub mountinfo: PathBuf,
    /// How long one file system may take.
    pub timeout: Duration,
    /// Paths whose file systems are listed whatever their type: PostgreSQL's directories.
    pub keep: Vec<PathBuf>,
}

/// The collector `disk_usage`.
#[derive(Debug)]
pub struct DiskUsageCollector {
    config: DiskUsageConfig,
    probes: Probes,
}

impl Default for DiskUsageConfig {
    fn default() -> Self {
        Self {
            mountinfo: PathBuf::from("/proc/self/mountinfo"),
            timeout: Duration::from_secs(2),
            keep: Vec::new(),
        }
    }
}

impl DiskUsageCollector {
    /// A collector that has asked nothing yet.
    pub fn new(config: DiskUsageConfig) -> Self {
        let probes = Probes::new(config.timeout, probe::statvfs);
        Self { config, probes }
    }
}

impl Collector for DiskUsageCollector {
    fn name(&self) -> &'static str {
        "disk_usage"
    }

    async fn collect(&mut self, now: Timestamp) -> Result<Collected, CollectError> {
        let table = fs_err::read(&self.config.mountinfo).map_err(|error| {
            CollectError::new(format!("{error}; hint: the agent needs a mounted proc file system"))
        })?;
        let mounts = mounts::select(mounts::parse(&table), &self.config.keep);
        let paths: Vec<PathBuf> = mounts.iter().map(|mount| mount.point.clone()).collect();
        let answers = self.probes.ask(paths).await;
        let filesystems =
            mounts.into_iter().zip(answers).filter_map(|(m, answer)| filesystem(m, answer));
        let metric = Document { timestamp: Time(now), filesystems: Some(filesystems.collect()) };
        Ok(Collected { metrics: vec![document(&metric)?], state: None })
    }
}

/// A mount whose answer is an error (gone meanwhile, or not ours to see) is left out.
fn filesystem(mount: Mount, answer: Answer) -> Option<Filesystem> {
    let (statvfs, stuck) = match answer {
        Answer::Known(statvfs) => (Some(statvfs), false),
        Answer::Stuck => (None, true),
        Answer::NotAsked => (None, false),
        Answer::Failed => return None,
    };
    Some(Filesystem {
        device: mount.device,
        mount: mount.point.display().to_string(),
        fstype: Some(mount.fstype),
        aliases: mount.aliases.iter().map(|alias| alias.display().to_string()).collect(),
        read_only: Some(mount.read_only),
        stuck: Some(stuck),
        ..statvfs.as_ref().map(numbers).unwrap_or_default()
    })
}

#[expect(clippy::cast_precision_loss, reason = "one decimal of a GiB is shown")]
fn numbers(statvfs: &Statvfs) -> Filesystem {
    let bytes = |blocks: u64| blocks.saturating_mul(statvfs.block_bytes);
    let gib = |bytes: u64| (bytes as f64 / GIB * 10.0).round() / 10.0;
    let used = statvfs.blocks.saturating_sub(statvfs.blocks_free);
    // What df divides by: root's reserve is neither used nor to be had.
    let usable = used.saturating_add(statvfs.blocks_available);
    // btrfs counts none.
    let inodes = |number: u64| (statvfs.inodes > 0).then_some(number);
    Filesystem {
        total_gb: Some(gib(bytes(statvfs.blocks))),
        used_gb: Some(gib(bytes(used))),
        free_gb: Some(gib(bytes(statvfs.blocks_free))),
        percent_used: (usable > 0).then(|| round2(100.0 * used as f64 / usable as f64)),
        total_bytes: Some(bytes(statvfs.blocks)),
        used_bytes: Some(bytes(used)),
        free_bytes: Some(bytes(statvfs.blocks_free)),
        available_bytes: Some(bytes(statvfs.blocks_available)),
        inodes_total: inodes(statvfs.inodes),
        inodes_used: inodes(statvfs.inodes.saturating_sub(statvfs.inodes_free)),
        inodes_free: inodes(statvfs.inodes_free),
        ..Filesystem::default()
    }
}

#[cfg(test)]
mod tests;
