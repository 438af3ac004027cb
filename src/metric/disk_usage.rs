//! `disk_usage`: the host's file systems.

use serde::Serialize;

use super::Time;
use super::shape::Kind::{Amount, Array, Bool, Count, Name, Object, Percent, Text};
use super::shape::{Field, optional, required};

/// The mounted file systems at one time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename = "disk_usage")]
pub struct DiskUsage {
    /// When the mounts were read.
    pub timestamp: Time,
    /// One entry for each file system, however often it is mounted.
    pub filesystems: Vec<Filesystem>,
}

/// One file system.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Filesystem {
    /// The mount's source, such as `/dev/sda1`.
    pub device: String,
    /// Where it is mounted; the shortest path when it is mounted more than once.
    pub mount: String,
    /// The kernel's name of its type.
    pub fstype: String,
    /// Further mount points of the same file system.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Absent when the file system did not answer.
    #[serde(flatten)]
    pub space: Option<Space>,
    /// Absent when the file system did not answer or counts no inodes (btrfs).
    #[serde(flatten)]
    pub inodes: Option<Inodes>,
    /// Mounted read-only.
    pub read_only: bool,
    /// A call to it has not returned in time and is not repeated until it has.
    pub stuck: bool,
}

/// The space of a [`Filesystem`].
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Space {
    /// `total_bytes` in GiB, one decimal.
    pub total_gb: f64,
    /// `used_bytes` in GiB, one decimal.
    pub used_gb: f64,
    /// `available_bytes` in GiB, one decimal: what an ordinary user can still write.
    pub free_gb: f64,
    /// used / (used + available), as `df` counts, percent.
    pub percent_used: Option<f64>,
    /// The size.
    pub total_bytes: u64,
    /// Size less free.
    pub used_bytes: u64,
    /// Free, root's reserve included.
    pub free_bytes: u64,
    /// Free for ordinary users.
    pub available_bytes: u64,
}

/// The inodes of a [`Filesystem`].
#[expect(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Inodes {
    pub inodes_total: u64,
    pub inodes_used: u64,
    pub inodes_free: u64,
}

pub(super) const SHAPE: &[Field] = &[optional("filesystems", Array(&Object(FILESYSTEM)))];

const FILESYSTEM: &[Field] = &[
    required("device", Name),
    required("mount", Name),
    optional("fstype", Text),
    optional("aliases", Array(&Text)),
    optional("total_gb", Amount),
    optional("used_gb", Amount),
    optional("free_gb", Amount),
    optional("percent_used", Percent),
    optional("total_bytes", Count),
    optional("used_bytes", Count),
    optional("free_bytes", Count),
    optional("available_bytes", Count),
    optional("inodes_total", Count),
    optional("inodes_used", Count),
    optional("inodes_free", Count),
    optional("read_only", Bool),
    optional("stuck", Bool),
    optional("roles", Array(&Text)),
];
