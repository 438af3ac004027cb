//! The seam between the log and what keeps its bytes: segments of frames, and small state rows.

use std::{
    io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    DeadLetter,
    budget::DiskSpace,
    dead::DeadChanges,
    salvage::{Found, Scan},
};

/// Keeps frames and state. Implemented on disk by [`super::store_sled::SledStore`] and in memory,
/// with faults, by [`super::store_memory::MemoryStore`].
pub trait Store: Send {
    /// An open segment that takes frames.
    type Writer: SegmentWriter;

    /// The queue's identity, made on first use.
    fn queue_id(&self) -> Uuid;

    /// The directory that it keeps everything in, if it has one.
    fn dir(&self) -> Option<&Path> {
        None
    }

    /// Creates segment `id`; it is durable, empty, when this returns.
    fn create(&mut self, id: u64) -> Result<Self::Writer, StoreError>;

    /// The segments that exist, in order.
    fn segments(&self) -> Result<Vec<u64>, StoreError>;

    /// The segments that are delivered and kept, in order.
    fn kept(&self) -> Result<Vec<u64>, StoreError>;

    /// What a segment that is not being written holds, delivered and kept or not; nothing when it
    /// is not there.
    fn frames(&self, id: u64) -> Result<Scan, StoreError>;

    /// The bytes of `frames` of segment `id`; damage since the scan shows when they are decoded.
    fn read(&self, id: u64, frames: &[Found]) -> Result<Vec<Vec<u8>>, StoreError>;

    /// Bytes that segment `id` occupies.
    fn disk_bytes(&self, id: u64) -> u64;

    /// Makes the frames of segment `id` from `frames` on unrecognisable, in place: they were never
    /// acknowledged.
    fn cut(&mut self, id: u64, frames: u64) -> Result<(), StoreError>;

    /// Segments that are created from now on set this much of the disk aside.
    fn set_reserve(&mut self, _bytes: u64) {}

    /// Gives back what segment `id` reserved and did not use, after its writer is gone.
    fn trim(&mut self, id: u64) -> Result<(), StoreError>;

    /// Removes a segment. Removing what is not there is no error.
    fn remove(&mut self, id: u64) -> Result<(), StoreError>;

    /// Puts a segment aside, for a person to look at, instead of removing it.
    fn quarantine(&mut self, id: u64) -> Result<(), StoreError>;

    /// Removes what was put aside first; `false` when there is nothing.
    fn drop_quarantined(&mut self) -> Result<bool, StoreError>;

    /// Moves a segment to those that are delivered and kept. Moving it again is no error.
    fn keep(&mut self, id: u64) -> Result<(), StoreError>;

    /// Removes a segment from those. Removing what is not there is no error.
    fn drop_kept(&mut self, id: u64) -> Result<(), StoreError>;

    /// Room on the file system; `None` when it is not known.
    fn space(&self) -> Option<DiskSpace>;

    /// Adds to the dead letters; durable when this returns.
    fn put_dead(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError>;

    /// Changes lines of the dead letters, all or none; durable when this returns.
    fn change_dead(&mut self, changes: &DeadChanges) -> Result<(), StoreError>;

    /// Removes the oldest dead letters when all of them take more than `bytes_max`: about half of
    /// that is left, so that it is not done for each new one.
    fn shorten_dead(&mut self, bytes_max: u64) -> Result<(), StoreError>;

    /// Bytes of the dead letters and of what was put aside.
    fn aside_bytes(&self) -> u64;

    /// All state rows.
    fn state(&mut self) -> Result<Rows, StoreError>;

    /// Sets (`Some`) and deletes (`None`) state rows; durable, all or none, when this returns.
    fn put_state(&mut self, rows: &[StateChange]) -> Result<(), StoreError>;
}

/// A segment that takes frames.
pub trait SegmentWriter: Send {
    /// Adds frames with the numbers from `number` on: they outlive the process when this returns,
    /// and are durable after [`SegmentWriter::sync`]. After an error the writer must be dropped.
    fn append(&mut self, number: u64, frames: &[Vec<u8>]) -> Result<(), StoreError>;

    /// Makes durable what has been appended. After an error the writer must be dropped.
    fn sync(&mut self) -> Result<(), StoreError>;

    /// Syncs and closes the segment, gives back what it reserved, and checks that what was appended
    /// can be read.
    fn close(self) -> Result<(), StoreError>;
}

/// State rows, key and value.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// A key and its new value; `None` deletes.
pub type StateChange = (Vec<u8>, Option<Vec<u8>>);

/// A store that did not do what it was asked. Never retried on the same handle.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}{}", .path.display(), hint(.source))]
pub struct StoreError {
    /// What was tried.
    pub action: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl StoreError {
    /// An error of `action` on `path`.
    pub fn new(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self { action, path: path.into(), source: source.into() }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "\n  hint: the file system has no free blocks or inodes: see `df -h` and `df -i`; \
             records stay in memory until it has"
        }
        io::ErrorKind::ReadOnlyFilesystem => "\n  hint: the file system is mounted read-only",
        io::ErrorKind::PermissionDenied => {
            "\n  hint: the agent's user must own the queue directory"
        }
        io::ErrorKind::WouldBlock => "\n  hint: another process has the queue open",
        _ => "",
    }
}
