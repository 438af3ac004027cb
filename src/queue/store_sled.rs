//! The store on disk: one sled database per segment, and a small one for state.
//!
//! sled is fast at appending and weak at three things, which this file contains:
//! - `flush` does not sync. Every append ends with our own `fdatasync` on the database file.
//! - `open` of an existing database writes to it, needs free space, and can wipe it after damage.
//!   So a segment is opened once, when it is created; once closed it is read by looking for its
//!   frames in the raw file ([`super::salvage`]), which is checked when the segment is closed.
//! - It panics where others return errors. Every call into it is caught here; an error or a panic
//!   means that the handle is dropped and never used again.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

use fs_err::{self as fs, File};
use rustix::fs::FallocateFlags;
use uuid::Uuid;

use super::{
    DeadLetter, aside,
    budget::DiskSpace,
    dead::{DeadChanges, DeadFile},
    files::{
        allocated_bytes, at, erase, find_segment, if_absent, kept_dir, lock, move_dir, read_frames,
        read_or_make_identity, scan_segment, segment_dir, segment_ids, space, sync_file,
    },
    salvage::{Found, Scan},
    store::{Rows, SegmentWriter, StateChange, Store, StoreError},
};

/// Frames per tree. With more, sled would rewrite a whole leaf into a blob file that is not synced.
const TREE_FRAMES: u64 = 8;
/// sled's own segment size; frozen, because a database refuses to be opened with another.
const SLED_SEGMENT_BYTES: usize = 512 << 10;
/// The same for the state database, whose rows are small.
const STATE_SEGMENT_BYTES: usize = 64 << 10;
const CACHE_BYTES: u64 = 8 << 20;

/// A store in a directory. One process at a time.
#[derive(Debug)]
pub struct SledStore {
    dir: PathBuf,
    reserve_bytes: u64,
    queue_id: Uuid,
    state: Option<sled::Db>,
    /// A sync of the state database has failed: it may have a hole where the system says it has
    /// written, so it is never synced again, and its rows move to a new one.
    state_doubtful: bool,
    dead: DeadFile,
    _lock: File,
}

/// A segment being written.
#[derive(Debug)]
pub struct SledWriter {
    dir: PathBuf,
    /// `None` only while it is being closed.
    db: Option<sled::Db>,
    tree: Option<(u64, sled::Tree)>,
    file: File,
    frames: u64,
    synced: bool,
    queue_id: Uuid,
    id: u64,
}

impl SledStore {
    /// Opens the store in `dir`, making it when it is not there. `reserve_bytes` of disk are set
    /// aside for the segment being written, so that a full disk shows before anything is accepted.
    pub fn open(dir: &Path, reserve_bytes: u64) -> Result<Self, StoreError> {
        for name in ["segments", "trash", "quarantine", "delivered"] {
            let path = dir.join(name);
            fs::create_dir_all(&path).map_err(at("create", &path))?;
        }
        let lock = lock(dir)?;
        let queue_id = read_or_make_identity(dir)?;
        let mut store = Self::new(dir, reserve_bytes, queue_id, lock);
        store.finish_renewal();
        store.empty_trash();
        if let Err(error) = store.open_state() {
            tracing::warn!(%error, "the queue's state cannot be opened; segments are read instead");
        }
        Ok(store)
    }

    fn new(dir: &Path, reserve_bytes: u64, queue_id: Uuid, lock: File) -> Self {
        let (dead, dir, state) = (DeadFile::open(dir), dir.to_owned(), None);
        Self { dir, reserve_bytes, queue_id, state, state_doubtful: false, dead, _lock: lock }
    }

    /// Writes the rows of the state database to a new one, which takes its place.
    fn renew_state(&mut self) -> Result<(), StoreError> {
        let (dir, draft) = (self.dir.join("state"), self.dir.join("state.new"));
        let rows = read_state(&dir)?;
        fs::remove_dir_all(&draft).or_else(if_absent(())).map_err(at("remove", &draft))?;
        let db = open_state_database(&draft)?;
        let rows = rows.into_iter().map(|(key, value)| (key, Some(value))).collect::<Vec<_>>();
        write_rows(&db, &draft, &rows)?;
        sync_file(&draft.join("db"))?;
        guarded("close", &draft, || {
            drop(db);
            Ok(())
        })?;
        let aside = self.dir.join("trash").join(format!("state-{}", Uuid::new_v4()));
        move_dir(&dir, &aside)?;
        move_dir(&draft, &dir)?;
        self.state_doubtful = false;
        self.empty_trash();
        Ok(())
    }

    /// A start after the process ended in the middle of [`Self::renew_state`]: the new database was
    /// complete when the old one was moved away, and not before.
    fn finish_renewal(&self) {
        let (dir, draft) = (self.dir.join("state"), self.dir.join("state.new"));
        if !draft.exists() {
            return;
        }
        let finished = if dir.exists() {
            fs::remove_dir_all(&draft).map_err(at("remove", &draft))
        } else {
            move_dir(&draft, &dir)
        };
        if let Err(error) = finished {
            tracing::warn!(%error, "the renewal of the queue's state is not finished");
        }
    }

    fn empty_trash(&self) {
        let trash = self.dir.join("trash");
        for entry in fs::read_dir(&trash).into_iter().flatten().flatten() {
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!(%error, "cannot empty the trash");
            }
        }
    }

    fn open_state(&mut self) -> Result<&sled::Db, StoreError> {
        if self.state_doubtful {
            self.renew_state()?;
        }
        if self.state.is_none() {
            let dir = self.dir.join("state");
            let opened = open_state_database(&dir);
            let opened = match opened {
                Err(error) if is_damage(&error.source) => {
                    let aside =
                        self.dir.join("quarantine").join(format!("state-{}", Uuid::new_v4()));
                    fs::rename(&dir, &aside).map_err(at("move aside", &dir))?;
                    tracing::error!(
                        %error, kept = %aside.display(),
                        "the queue's state is damaged and starts anew; batches may be sent again"
                    );
                    open_state_database(&dir)
                }
                other => other,
            };
            self.state = Some(opened?);
        }
        self.state.as_ref().ok_or_else(|| {
            StoreError::new("open", self.dir.join("state"), io::ErrorKind::NotConnected)
        })
    }
}

impl Store for SledStore {
    type Writer = SledWriter;

    fn queue_id(&self) -> Uuid {
        self.queue_id
    }

    fn dir(&self) -> Option<&Path> {
        Some(&self.dir)
    }

    fn create(&mut self, id: u64) -> Result<SledWriter, StoreError> {
        let dir = segment_dir(&self.dir, id);
        if dir.exists() {
            // An earlier try failed and could not be tidied up; its records are still in memory.
            self.remove(id)?;
        }
        let made = create_segment(&dir, self.reserve_bytes, self.queue_id, id);
        if made.is_err() {
            // What is left of it would be found empty at the next start.
            fs::remove_dir_all(&dir).ok();
        }
        made
    }

    fn segments(&self) -> Result<Vec<u64>, StoreError> {
        segment_ids(&self.dir.join("segments"))
    }

    fn kept(&self) -> Result<Vec<u64>, StoreError> {
        segment_ids(&self.dir.join("delivered"))
    }

    fn frames(&self, id: u64) -> Result<Scan, StoreError> {
        scan_segment(&find_segment(&self.dir, id), self.queue_id, id)
    }

    fn read(&self, id: u64, frames: &[Found]) -> Result<Vec<Vec<u8>>, StoreError> {
        read_frames(&find_segment(&self.dir, id), frames)
    }

    fn disk_bytes(&self, id: u64) -> u64 {
        allocated_bytes(&find_segment(&self.dir, id))
    }

    fn set_reserve(&mut self, bytes: u64) {
        self.reserve_bytes = bytes;
    }

    fn trim(&mut self, id: u64) -> Result<(), StoreError> {
        let path = segment_dir(&self.dir, id).join("db");
        let file = fs::OpenOptions::new().write(true).open(&path).map_err(at("open", &path))?;
        give_back(&file).map_err(at("truncate", &path))
    }

    fn cut(&mut self, id: u64, frames: u64) -> Result<(), StoreError> {
        let scan = self.frames(id)?;
        let offsets = scan.found.iter().filter(|found| found.head.number >= frames);
        erase(&segment_dir(&self.dir, id).join("db"), offsets.map(|found| found.offset))
    }

    fn remove(&mut self, id: u64) -> Result<(), StoreError> {
        throw_away(&self.dir, &segment_dir(&self.dir, id), id)
    }

    fn quarantine(&mut self, id: u64) -> Result<(), StoreError> {
        let aside = self.dir.join("quarantine").join(format!("{id:020}"));
        move_dir(&segment_dir(&self.dir, id), &aside)
    }

    fn drop_quarantined(&mut self) -> Result<bool, StoreError> {
        aside::drop_oldest_quarantined(&self.dir)
    }

    fn keep(&mut self, id: u64) -> Result<(), StoreError> {
        let kept = kept_dir(&self.dir, id);
        move_dir(&segment_dir(&self.dir, id), &kept)?;
        sync_file(&self.dir.join("delivered"))
    }

    fn drop_kept(&mut self, id: u64) -> Result<(), StoreError> {
        throw_away(&self.dir, &kept_dir(&self.dir, id), id)
    }

    fn space(&self) -> Option<DiskSpace> {
        space(&self.dir)
    }

    fn put_dead(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        self.dead.append(letters)
    }

    fn change_dead(&mut self, changes: &DeadChanges) -> Result<(), StoreError> {
        self.dead.change(changes)
    }

    fn shorten_dead(&mut self, bytes_max: u64) -> Result<(), StoreError> {
        self.dead.shorten(bytes_max)
    }

    fn aside_bytes(&self) -> u64 {
        aside::bytes(&self.dir)
    }

    fn state(&mut self) -> Result<Rows, StoreError> {
        let path = self.dir.join("state");
        let db = self.open_state()?;
        let rows = read_rows(db, &path);
        if rows.is_err() {
            self.state = None;
        }
        rows
    }

    fn put_state(&mut self, rows: &[StateChange]) -> Result<(), StoreError> {
        let path = self.dir.join("state");
        let db = self.open_state()?;
        let written = write_rows(db, &path, rows);
        let put = written
            .and_then(|()| sync_file(&path.join("db")).inspect_err(|_| self.state_doubtful = true));
        if put.is_err() {
            self.state = None;
        }
        put
    }
}

impl SegmentWriter for SledWriter {
    fn append(&mut self, number: u64, frames: &[Vec<u8>]) -> Result<(), StoreError> {
        let (Some(db), tree) = (&self.db, &mut self.tree) else {
            return Err(StoreError::new("append to", &self.dir, io::ErrorKind::NotConnected));
        };
        guarded("append to", &self.dir, || {
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
        self.frames = self.frames.max(number + frames.len() as u64);
        self.synced = false;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(at("sync", &self.dir))?;
        self.synced = true;
        Ok(())
    }

    fn close(mut self) -> Result<(), StoreError> {
        self.close_database()?;
        if !self.synced {
            self.sync()?;
        }
        let (dir, frames) = (&self.dir, self.frames);
        give_back(&self.file).map_err(at("truncate", dir))?;
        let scan = scan_segment(dir, self.queue_id, self.id)?;
        let sound = scan.found.iter().filter(|frame| frame.head.number < frames).count();
        if sound as u64 == frames {
            Ok(())
        } else {
            let message = format!("{sound} of {frames} frames can be read back");
            Err(StoreError::new("verify", dir, io::Error::new(io::ErrorKind::InvalidData, message)))
        }
    }
}

impl SledWriter {
    fn close_database(&mut self) -> Result<(), StoreError> {
        let open = (self.tree.take(), self.db.take());
        guarded("close", &self.dir, || {
            drop(open);
            Ok(())
        })
    }
}

impl Drop for SledWriter {
    fn drop(&mut self) {
        // After an error sled may panic once more when it is dropped.
        if let Err(error) = self.close_database() {
            tracing::warn!(%error, "a failed segment did not close cleanly");
        }
    }
}

/// The rows of the state database in `dir`, which nobody else has open.
pub(super) fn read_state(dir: &Path) -> Result<Rows, StoreError> {
    read_rows(&open_state_database(dir)?, dir)
}

/// Sets and deletes rows; they are durable after a sync.
fn write_rows(db: &sled::Db, path: &Path, rows: &[StateChange]) -> Result<(), StoreError> {
    guarded("write", path, || {
        let mut batch = sled::Batch::default();
        for (key, value) in rows {
            match value {
                Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                None => batch.remove(key.as_slice()),
            }
        }
        db.apply_batch(batch)?;
        db.flush().map(|_| ())
    })
}

fn read_rows(db: &sled::Db, path: &Path) -> Result<Rows, StoreError> {
    guarded("read", path, || {
        db.iter().map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
    })
}

/// Renames before it removes: a plain removal that is killed half-way leaves an unreadable segment.
fn throw_away(dir: &Path, segment: &Path, id: u64) -> Result<(), StoreError> {
    let trash = dir.join("trash").join(format!("{id:020}"));
    move_dir(segment, &trash)?;
    fs::remove_dir_all(&trash).or_else(if_absent(())).map_err(at("remove", &trash))
}

fn create_segment(
    dir: &Path,
    reserve_bytes: u64,
    queue_id: Uuid,
    id: u64,
) -> Result<SledWriter, StoreError> {
    fs::create_dir(dir).map_err(at("create", dir))?;
    let config = sled::Config::new()
        .path(dir)
        .segment_size(SLED_SEGMENT_BYTES)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None)
        .use_compression(false);
    let db = guarded("create", dir, || config.open())?;
    let path = dir.join("db");
    let file = fs::OpenOptions::new().write(true).open(&path).map_err(at("open", &path))?;
    match rustix::fs::fallocate(file.file(), FallocateFlags::KEEP_SIZE, 0, reserve_bytes) {
        // A file system that cannot reserve shows a full disk later, at an append.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(StoreError::new("reserve space for", path, error)),
    }
    file.sync_all().map_err(at("sync", &path))?;
    sync_file(&dir.join("conf"))?;
    sync_file(dir)?;
    sync_file(dir.parent().unwrap_or(dir))?;
    let (dir, frames, synced) = (dir.to_owned(), 0, true);
    Ok(SledWriter { dir, db: Some(db), tree: None, file, frames, synced, queue_id, id })
}

/// Frees the reserved blocks behind the end of a file.
fn give_back(file: &File) -> io::Result<()> {
    file.set_len(file.metadata()?.len())
}

fn open_state_database(dir: &Path) -> Result<sled::Db, StoreError> {
    // A kill while sled writes a snapshot leaves this, and every later open would fail.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            fs::remove_file(entry.path()).ok();
        }
    }
    let config = sled::Config::new()
        .path(dir)
        .segment_size(STATE_SEGMENT_BYTES)
        .cache_capacity(1 << 20)
        .flush_every_ms(None)
        .use_compression(false);
    let db = once_released(|| guarded("open", dir, || config.open()))?;
    for path in [dir.join("conf"), dir.join("db"), dir.to_owned()] {
        sync_file(&path)?;
    }
    sync_file(dir.parent().unwrap_or(dir))?;
    Ok(db)
}

/// Waits for a handle of this process that has been dropped: sled's threads may still be at work on
/// it, and hold its lock until they are done. No other process gets as far as that lock.
fn once_released<T>(open: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    const TRIES: u32 = 1_000;
    for _ in 0..TRIES {
        match open() {
            Err(error) if error.source.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
    open()
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

fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sled's threads hold the lock of a database for a while after it was closed. A state that is
    /// not opened for that would be taken for one that is lost.
    #[test]
    fn a_state_that_is_still_being_closed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(dir.path(), 1 << 20).unwrap();
        store.put_state(&[(vec![1], Some(vec![2]))]).unwrap();
        drop(store);
        let held = once_released(|| {
            let file = File::open(dir.path().join("state/db")).map_err(at("open", dir.path()))?;
            rustix::fs::flock(file.file(), rustix::fs::FlockOperation::NonBlockingLockExclusive)
                .map_err(|error| StoreError::new("lock", dir.path(), error))?;
            Ok(file)
        });
        let held = held.unwrap();
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(held);
        });
        let rows = SledStore::open(dir.path(), 1 << 20).unwrap().state().unwrap();
        assert_eq!(rows, [(vec![1], vec![2])]);
        release.join().unwrap();
    }

    /// After a failed sync the system may claim to have written what it has not: the rows move to
    /// a new database, and nothing of the old one stays.
    #[test]
    fn a_state_that_failed_to_sync_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SledStore::open(dir.path(), 1 << 20).unwrap();
        let row = |n: u8| (vec![n], Some(vec![n; 10]));
        store.put_state(&[row(1), row(2)]).unwrap();
        let file = || {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(dir.path().join("state/db")).unwrap().ino()
        };
        let before = file();
        (store.state, store.state_doubtful) = (None, true);
        store.put_state(&[row(3), (vec![1], None)]).unwrap();
        assert_ne!(file(), before);
        store.state = None;
        let rows = store.state().unwrap();
        assert_eq!(rows, [(vec![2], vec![2; 10]), (vec![3], vec![3; 10])]);
        assert_eq!(fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
        // The process ends between the two renames.
        drop(store);
        fs::rename(dir.path().join("state"), dir.path().join("state.new")).unwrap();
        let mut store = SledStore::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(store.state().unwrap(), rows);
        // It ends before them.
        drop(store);
        fs::create_dir(dir.path().join("state.new")).unwrap();
        let mut store = SledStore::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(store.state().unwrap(), rows);
        assert!(!dir.path().join("state.new").exists());
    }
}
