//! `disk_usage`: the host's file systems.

use super::Time;
use super::declare::declare;

declare! {
    /// The mounted file systems, each once, however often it is mounted.
    pub struct DiskUsage = "disk_usage", from "/proc/self/mountinfo" {
        /// When the mounts were read.
        timestamp: Time = time(host);
        /// Those that hold files of somebody.
        filesystems: Option<Vec<Filesystem>> = part;
    }

    /// One file system. Its sizes are absent when it did not answer; its inodes, too, where it
    /// counts none (btrfs).
    pub struct Filesystem, from "statvfs(3)" {
        /// The mount's source, such as `/dev/sda1`.
        device: String = key from "/proc/self/mountinfo";
        /// Where it is mounted; the shortest path when it is mounted more than once.
        mount: String = key from "/proc/self/mountinfo";
        /// The kernel's name of its type.
        fstype: Option<String> = text from "/proc/self/mountinfo";
        /// Further mount points of the same file system.
        aliases: Vec<String> = text from "/proc/self/mountinfo";
        /// `total_bytes`, one decimal.
        total_gb: Option<f64> = gauge("GiB");
        /// `used_bytes`, one decimal.
        used_gb: Option<f64> = gauge("GiB");
        /// `free_bytes`, one decimal.
        free_gb: Option<f64> = gauge("GiB");
        /// used / (used + available), as `df` counts.
        percent_used: Option<f64> = gauge("%");
        /// The size.
        total_bytes: Option<u64> = gauge("bytes") from "statvfs(3) f_blocks";
        /// Size less free.
        used_bytes: Option<u64> = gauge("bytes") from "statvfs(3) f_blocks - f_bfree";
        /// Free, root's reserve included.
        free_bytes: Option<u64> = gauge("bytes") from "statvfs(3) f_bfree";
        /// Free for ordinary users.
        available_bytes: Option<u64> = gauge("bytes") from "statvfs(3) f_bavail";
        /// All inodes.
        inodes_total: Option<u64> = gauge("inodes") from "statvfs(3) f_files";
        /// Inodes in use.
        inodes_used: Option<u64> = gauge("inodes") from "statvfs(3) f_files - f_ffree";
        /// Free inodes.
        inodes_free: Option<u64> = gauge("inodes") from "statvfs(3) f_ffree";
        /// Mounted read-only.
        read_only: Option<bool> = state from "/proc/self/mountinfo";
        /// A call to it has not returned in time and is not repeated until it has.
        stuck: Option<bool> = state from "the collector";
    }
}
