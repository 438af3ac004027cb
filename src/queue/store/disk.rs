//! The seam between the queue and what keeps its bytes: a tree of files below the queue's
//! directory. Everything above it is the same code on a real disk and on the simulated one.

use std::{
    io::{self, Read, Seek},
    path::Path,
};

use super::StoreError;
use crate::queue::{DeadLetter, budget::DiskSpace, dead::DeadChanges, format::rows::Rows};

/// Reads the files of a queue. Paths are relative to its directory.
pub trait ReadDisk: Send {
    /// An open file.
    type File: Read + Seek;

    /// The queue's directory, when it has one.
    fn dir(&self) -> Option<&Path> {
        None
    }

    /// The names in a folder, in no order.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Whether there is a folder of this name.
    fn has_folder(&self, folder: &Path) -> bool;

    /// Opens a file to read it.
    fn open(&self, file: &Path) -> io::Result<Self::File>;

    /// Which file stands at a path, as the system tells files apart; `None` without one.
    fn inode(&self, file: &Path) -> Option<(u64, u64)>;

    /// Bytes that a file, or everything in a folder, occupies; 0 when it is not there.
    fn occupied(&self, path: &Path) -> u64;

    /// When a file or folder was moved or changed last, seconds since 1970 UTC.
    fn changed_at(&self, path: &Path) -> Option<i64>;

    /// Room on the file system; `None` when it is not known.
    fn space(&self) -> Option<DiskSpace>;

    /// The rows of a state that a version before the journal has left; `None` without one.
    fn old_rows(&self) -> Result<Option<Rows>, StoreError>;
}

/// Changes the files of a queue. Nothing is durable before [`WriteDisk::sync`] of the file, and of
/// the folder when a name in it is new, moved or removed.
pub trait WriteDisk: ReadDisk {
    /// Makes a folder in an existing one. Succeeds if the folder exists already.
    fn make_folder(&mut self, folder: &Path) -> io::Result<()>;

    /// Writes `bytes` at byte `at` of a file, which is made when its folder is there. After an
    /// error any part of it may have been written.
    fn write(&mut self, file: &Path, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Sets blocks aside for a file up to byte `until`, as far as the file system can do that.
    fn reserve(&mut self, _file: &Path, _until: u64) -> io::Result<()> {
        Ok(())
    }

    /// Gives back what is set aside behind the end of a file.
    fn trim(&mut self, _file: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Makes a file, or the names in a folder, durable. Never asked twice for the same bytes after
    /// it has failed: the system may have forgotten them.
    fn sync(&mut self, path: &Path) -> io::Result<()>;

    /// Moves a file or a folder, over a file that is there.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file, or a folder with everything in it. What is not there is no error.
    fn remove(&mut self, path: &Path) -> io::Result<()>;

    /// Makes a segment in `folder` that takes frames, durable and empty, with `reserve` bytes of
    /// disk set aside.
    fn create_segment(&mut self, folder: &Path, reserve: u64) -> Result<(), StoreError>;

    /// Adds frames with the numbers from `number` on to an open segment: they outlive the process
    /// when this returns, and are durable after [`WriteDisk::sync_segment`]. After an error the
    /// segment must be abandoned.
    fn append(&mut self, folder: &Path, number: u64, frames: &[Vec<u8>]) -> Result<(), StoreError>;

    /// Makes durable what has been appended. After an error the segment must be abandoned.
    fn sync_segment(&mut self, folder: &Path) -> Result<(), StoreError>;

    /// Ends the writing of a segment: everything is synced, and what was set aside is given back.
    fn close_segment(&mut self, folder: &Path) -> Result<(), StoreError>;

    /// Lets go of a segment, open or not. What was synced stays.
    fn abandon_segment(&mut self, folder: &Path);

    /// Whether the queue's directory is where it was opened, with its folders and its lock.
    fn is_there(&self) -> bool;

    /// Makes the directory and its lock anew, after they have gone away.
    fn make_anew(&mut self) -> Result<(), StoreError>;

    /// Adds to the dead letters; durable when this returns.
    fn put_dead(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError>;

    /// Changes lines of the dead letters, all or none; durable when this returns.
    fn change_dead(&mut self, changes: &DeadChanges) -> Result<(), StoreError>;

    /// Removes the oldest dead letters when all of them take more than `bytes_max`: about half of
    /// that is left, so that it is not done for each new one.
    fn shorten_dead(&mut self, bytes_max: u64) -> Result<(), StoreError>;
}
