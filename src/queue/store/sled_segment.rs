//! The file that a segment's frames are in: one sled database per segment. sled is fast at
//! appending and weak at three things, which this file contains:
//! - `flush` does not sync. Every append ends with our own `fdatasync` on the database file.
//! - `open` of an existing database writes to it, needs free space, and can wipe it after damage.
//!   So a segment is opened once, when it is created; once closed it is read by looking for its
//!   frames in the raw file ([`crate::queue::format::salvage`]), which is checked when the segment
//!   is closed.
//! - It panics where others return errors, when a handle is dropped too. Every call into it and
//!   every drop is caught here; an error or a panic means that the handle is never used again.

use std::{
    io,
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use fs_err::{self as fs, File};
use uuid::Uuid;

use super::{StoreError, real::reserve};
use crate::queue::{
    files::{at, copy_files, sync_file},
    format::rows::Rows,
};

/// Frames per tree. With more, sled would rewrite a whole leaf into a blob file that is not synced.
const TREE_FRAMES: u64 = 8;
/// sled's own segment size; frozen, because a database refuses to be opened with another.
const SLED_SEGMENT_BYTES: usize = 512 << 10;
/// The same in the state database of earlier versions, whose rows were small.
const OLD_STATE_SEGMENT_BYTES: usize = 64 << 10;
const CACHE_BYTES: u64 = 8 << 20;

/// A segment being written.
#[derive(Debug)]
pub struct SledSegment {
    handles: Handles,
    file: File,
    /// Device and inode of the file.
    inode: (u64, u64),
    synced: bool,
    /// Whether the file was seen in its place since the last sync.
    seen: bool,
}

/// sled's handles of a database. However they go, they go guarded: after an error sled may panic
/// once more when they are dropped.
#[derive(Debug)]
struct Handles {
    dir: PathBuf,
    /// `None` once they have been dropped.
    open: Option<(sled::Db, Option<(u64, sled::Tree)>)>,
}

impl SledSegment {
    /// Makes a segment in the folder `dir`, durable and empty, with `reserve_bytes` of disk set
    /// aside.
    pub fn create(dir: &Path, reserve_bytes: u64) -> Result<Self, StoreError> {
        fs::create_dir(dir).map_err(at("create", dir))?;
        let config = sled::Config::new()
            .path(dir)
            .segment_size(SLED_SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .use_compression(false);
        let handles = Handles::open("create", dir, &config)?;
        let path = dir.join("db");
        let file = fs::OpenOptions::new().write(true).open(&path).map_err(at("open", &path))?;
        reserve(file.file(), reserve_bytes).map_err(at("reserve space for", &path))?;
        file.sync_all().map_err(at("sync", &path))?;
        sync_file(&dir.join("conf"))?;
        sync_file(dir)?;
        sync_file(dir.parent().unwrap_or(dir))?;
        let inode = inode(&file.metadata().map_err(at("look at", &path))?);
        Ok(Self { handles, file, inode, synced: true, seen: true })
    }

    /// See [`super::disk::WriteDisk::append`].
    pub fn append(&mut self, number: u64, frames: &[Vec<u8>]) -> Result<(), StoreError> {
        self.see("append to")?;
        let Handles { dir, open } = &mut self.handles;
        let Some((db, tree)) = open else {
            return Err(StoreError::new("append to", &*dir, io::ErrorKind::NotConnected));
        };
        guarded("append to", dir, || {
            for (number, frame) in (number..).zip(frames) {
                let wanted = number / TREE_FRAMES;
                let current = match tree.take() {
                    Some((open, current)) if open == wanted => current,
                    _ => db.open_tree(format!("t/{wanted}"))?,
                };
                current.insert(number.to_be_bytes(), frame.as_slice())?;
                *tree = Some((wanted, current));
            }
            db.flush().map(|_| ())
        })?;
        self.synced = false;
        Ok(())
    }

    /// See [`super::disk::WriteDisk::sync_segment`].
    pub fn sync(&mut self) -> Result<(), StoreError> {
        if !self.seen {
            self.see("sync")?;
        }
        self.seen = false;
        self.file.sync_data().map_err(at("sync", &self.handles.dir))?;
        self.synced = true;
        Ok(())
    }

    /// Fails when the file is not where it was made any more: a start does not find what goes into
    /// it.
    fn see(&mut self, action: &'static str) -> Result<(), StoreError> {
        let gone = match std::fs::metadata(self.handles.dir.join("db")) {
            Ok(there) => inode(&there) != self.inode,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if gone {
            return Err(StoreError::new(action, &self.handles.dir, io::ErrorKind::NotFound));
        }
        self.seen = true;
        Ok(())
    }

    /// See [`super::disk::WriteDisk::close_segment`].
    pub fn close(mut self) -> Result<(), StoreError> {
        self.handles.close()?;
        if !self.synced {
            self.sync()?;
        }
        let give_back = || self.file.set_len(self.file.metadata()?.len());
        give_back().map_err(at("truncate", &self.handles.dir))
    }
}

fn inode(data: &std::fs::Metadata) -> (u64, u64) {
    (data.dev(), data.ino())
}

impl Handles {
    fn open(action: &'static str, dir: &Path, config: &sled::Config) -> Result<Self, StoreError> {
        let db = guarded(action, dir, || config.open())?;
        Ok(Self { dir: dir.to_owned(), open: Some((db, None)) })
    }

    fn close(&mut self) -> Result<(), StoreError> {
        let open = self.open.take();
        guarded("close", &self.dir, || {
            drop(open);
            Ok(())
        })
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "a failed segment did not close cleanly");
        }
    }
}

/// The rows of the state database that a version before the journal has left in `dir`; `None`
/// without one. From a copy: opening a database writes to it.
pub fn old_rows(dir: &Path) -> Result<Option<Rows>, StoreError> {
    match fs::symlink_metadata(dir.join("db")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(at("open", dir))?,
    };
    let copy = std::env::temp_dir().join(format!("pganalytics-state-{}", Uuid::new_v4()));
    let rows = copy_files(dir, &copy).map_err(at("copy", dir)).and_then(|()| read_rows(&copy));
    fs::remove_dir_all(&copy).ok();
    rows.map(Some)
}

fn read_rows(dir: &Path) -> Result<Rows, StoreError> {
    // A kill while sled writes a snapshot leaves this, and it would keep the copy from opening.
    for entry in fs::read_dir(dir).map_err(at("list", dir))?.flatten() {
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            fs::remove_file(entry.path()).map_err(at("remove", dir))?;
        }
    }
    let config = sled::Config::new()
        .path(dir)
        .segment_size(OLD_STATE_SEGMENT_BYTES)
        .cache_capacity(1 << 20)
        .flush_every_ms(None)
        .use_compression(false);
    let handles = Handles::open("open", dir, &config)?;
    guarded("read", dir, || {
        let rows = handles.open.iter().flat_map(|(db, _)| db.iter());
        rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
    })
}

/// Calls into sled; a panic becomes an error.
fn guarded<T>(
    action: &'static str,
    path: &Path,
    call: impl FnOnce() -> sled::Result<T>,
) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) => Err(StoreError::new(action, path, from_sled(error))),
        Ok(Err(error)) => {
            let error = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
            Err(StoreError::new(action, path, error))
        }
        Err(panic) => {
            let why = panic.downcast_ref::<String>().map_or("no reason given", String::as_str);
            let text = format!("the database panicked: {why}");
            let kind = kind_of(&text).unwrap_or(io::ErrorKind::InvalidData);
            Err(StoreError::new(action, path, io::Error::new(kind, text)))
        }
    }
}

/// sled wraps the operating system's error into text when it passes it on; the kind is what counts.
fn from_sled(error: io::Error) -> io::Error {
    match kind_of(&error.to_string()) {
        Some(kind) if error.kind() == io::ErrorKind::Other => {
            io::Error::new(kind, error.to_string())
        }
        _ => error,
    }
}

fn kind_of(text: &str) -> Option<io::ErrorKind> {
    let kinds = [
        ("StorageFull", io::ErrorKind::StorageFull),
        ("ReadOnlyFilesystem", io::ErrorKind::ReadOnlyFilesystem),
        ("PermissionDenied", io::ErrorKind::PermissionDenied),
        ("could not acquire lock", io::ErrorKind::WouldBlock),
    ];
    kinds.into_iter().find(|(word, _)| text.contains(word)).map(|(_, kind)| kind)
}
