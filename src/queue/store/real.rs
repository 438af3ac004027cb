//! A queue's files in a directory of the system.

use std::{
    collections::BTreeMap,
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use fs_err::{self as fs, File};
use rustix::fs::{FallocateFlags, FlockOperation};
use uuid::Uuid;

use super::{
    FOLDERS, StoreError,
    disk::{ReadDisk, WriteDisk},
    sled_segment::{self, SledSegment},
};
use crate::queue::{
    DeadLetter,
    budget::DiskSpace,
    dead::{DeadChanges, DeadFile},
    files::{open_file, unwaiting},
    format::rows::Rows,
};

/// A directory that is only looked at, whether a process has the queue open or not.
pub type LookedAt = Directory<()>;

/// A directory that this process writes. One process at a time.
pub type RealDisk = Directory<Held>;

/// A directory with a queue's files, and the hold that this process has on it.
#[derive(Debug)]
pub struct Directory<H> {
    dir: PathBuf,
    hold: H,
}

/// What makes a directory this process's.
#[derive(Debug)]
pub struct Held {
    lock: Arc<File>,
    /// The queue's folders as they were opened: others may come to stand in their places.
    folders: Vec<std::fs::File>,
    open: BTreeMap<PathBuf, SledSegment>,
    dead: DeadFile,
}

const LOCK: &str = "lock";

impl LookedAt {
    /// The directory `dir`, to look at.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), hold: () }
    }
}

impl RealDisk {
    /// The directory `dir`, made when it is not there, for this process alone.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        make_folders(dir)?;
        let lock = Arc::new(lock(dir)?);
        Ok(Self::held(dir, lock))
    }

    /// Opens the directory again, any number of times, without ever letting go of it.
    pub fn hold_again(&self) -> impl Fn() -> Result<Self, StoreError> + Send + use<> {
        let (dir, lock) = (self.dir.clone(), Arc::clone(&self.hold.lock));
        move || {
            make_folders(&dir)?;
            Ok(Self::held(&dir, Arc::clone(&lock)))
        }
    }

    /// The directory `dir`, whose lock this process has already.
    pub fn held(dir: &Path, lock: Arc<File>) -> Self {
        let (open, dead) = (BTreeMap::new(), DeadFile::open(dir));
        let hold = Held { lock, folders: open_folders(dir), open, dead };
        Self { dir: dir.to_owned(), hold }
    }

    fn segment(&mut self, folder: &Path) -> Result<&mut SledSegment, StoreError> {
        let missing =
            || StoreError::new("write to", self.dir.join(folder), io::ErrorKind::NotConnected);
        self.hold.open.get_mut(folder).ok_or_else(missing)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Before another process can have the directory.
        self.open.clear();
    }
}

impl<H: Send> ReadDisk for Directory<H> {
    type File = std::fs::File;

    fn dir(&self) -> Option<&Path> {
        Some(&self.dir)
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(self.dir.join(folder))?;
        let name =
            |entry: io::Result<std::fs::DirEntry>| entry.map(|e| e.file_name().into_string());
        entries.map(name).filter_map(|name| name.map(Result::ok).transpose()).collect()
    }

    fn has_folder(&self, folder: &Path) -> bool {
        // A link to one is somebody's: what is in it is not ours to remove.
        std::fs::symlink_metadata(self.dir.join(folder)).is_ok_and(|data| data.is_dir())
    }

    fn open(&self, file: &Path) -> io::Result<std::fs::File> {
        open_file(&self.dir.join(file)).map(|open| open.into_parts().0)
    }

    fn inode(&self, file: &Path) -> Option<(u64, u64)> {
        std::fs::metadata(self.dir.join(file)).ok().map(|data| (data.dev(), data.ino()))
    }

    fn occupied(&self, path: &Path) -> u64 {
        occupied(&self.dir.join(path))
    }

    fn changed_at(&self, path: &Path) -> Option<i64> {
        // Moving a folder changes nothing in it; the inode's own time is that of the move.
        std::fs::symlink_metadata(self.dir.join(path)).ok().map(|data| data.ctime())
    }

    fn space(&self) -> Option<DiskSpace> {
        space(&self.dir)
    }

    fn old_rows(&self) -> Result<Option<Rows>, StoreError> {
        sled_segment::old_rows(&self.dir.join("state"))
    }
}

impl WriteDisk for RealDisk {
    fn make_folder(&mut self, folder: &Path) -> io::Result<()> {
        match std::fs::create_dir(self.dir.join(folder)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    fn write(&mut self, file: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        let path = self.dir.join(file);
        let mut open =
            std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        open.seek(SeekFrom::Start(at))?;
        open.write_all(bytes)
    }

    fn reserve(&mut self, file: &Path, until: u64) -> io::Result<()> {
        let open = std::fs::OpenOptions::new().write(true).open(self.dir.join(file))?;
        reserve(&open, until)
    }

    fn trim(&mut self, file: &Path) -> io::Result<()> {
        let open = std::fs::OpenOptions::new().write(true).open(self.dir.join(file))?;
        open.set_len(open.metadata()?.len())
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        let open = unwaiting().open(self.dir.join(path))?;
        // Of a file, the content and the length; of a folder, its names.
        if open.metadata()?.is_dir() { open.sync_all() } else { open.sync_data() }
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        let path = self.dir.join(path);
        let removed = match std::fs::symlink_metadata(&path) {
            Ok(data) if data.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn create_segment(&mut self, folder: &Path, reserve: u64) -> Result<(), StoreError> {
        let segment = SledSegment::create(&self.dir.join(folder), reserve)?;
        self.hold.open.insert(folder.to_owned(), segment);
        Ok(())
    }

    fn append(&mut self, folder: &Path, number: u64, frames: &[Vec<u8>]) -> Result<(), StoreError> {
        self.segment(folder)?.append(number, frames)
    }

    fn sync_segment(&mut self, folder: &Path) -> Result<(), StoreError> {
        self.segment(folder)?.sync()
    }

    fn close_segment(&mut self, folder: &Path) -> Result<(), StoreError> {
        let missing =
            || StoreError::new("close", self.dir.join(folder), io::ErrorKind::NotConnected);
        let segment = self.hold.open.remove(folder).ok_or_else(missing)?;
        segment.close()
    }

    fn abandon_segment(&mut self, folder: &Path) {
        self.hold.open.remove(folder);
    }

    fn is_there(&self) -> bool {
        let is_at = |open: &std::fs::File, path: &str| {
            let there = std::fs::metadata(self.dir.join(path)).and_then(|there| {
                let held = open.metadata()?;
                Ok((there.dev(), there.ino()) == (held.dev(), held.ino()))
            });
            there.is_ok_and(|same| same)
        };
        let folders = &self.hold.folders;
        is_at(self.hold.lock.file(), LOCK)
            && folders.len() == FOLDERS.len()
            && folders.iter().zip(FOLDERS).all(|(open, folder)| is_at(open, folder))
    }

    fn make_anew(&mut self) -> Result<(), StoreError> {
        make_folders(&self.dir)?;
        let held = self.hold.lock.metadata().ok().map(|data| (data.dev(), data.ino()));
        let path = self.dir.join(LOCK);
        let there = std::fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
        if there.is_none() || there != held {
            self.hold.lock = Arc::new(lock(&self.dir)?);
        }
        self.hold.folders = open_folders(&self.dir);
        let at = |path: PathBuf| move |error| StoreError::new("sync", path, error);
        let sync = |path: &Path| std::fs::File::open(path)?.sync_all();
        sync(&self.dir).map_err(at(self.dir.clone()))
    }

    fn put_dead(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        self.hold.dead.append(letters)
    }

    fn change_dead(&mut self, changes: &DeadChanges) -> Result<(), StoreError> {
        self.hold.dead.change(changes)
    }

    fn shorten_dead(&mut self, bytes_max: u64) -> Result<(), StoreError> {
        self.hold.dead.shorten(bytes_max)
    }
}

/// Takes the lock of the queue in `dir`; fails when another process has it.
pub fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK);
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| StoreError::new("open", &path, error))?;
    rustix::fs::flock(file.file(), FlockOperation::NonBlockingLockExclusive)
        .map_err(|error| StoreError::new("lock", &path, error))?;
    Ok(file)
}

/// Bytes on disk of a file, or of all files below a folder.
pub fn occupied(path: &Path) -> u64 {
    match std::fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| occupied(&entry.path())).sum()
        }
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    }
}

/// Room on the file system of `dir`.
pub fn space(dir: &Path) -> Option<DiskSpace> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(DiskSpace {
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

/// Sets blocks aside for a file, as far as its file system can do that: on others a full disk shows
/// later, at a write.
pub(super) fn reserve(file: &std::fs::File, until: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, until) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The directory and its folders, which are its owner's alone, also where an earlier version made
/// them for everyone: who can open the lock can hold it.
fn make_folders(dir: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(dir).map_err(|error| StoreError::new("create", dir, error))?;
    let mode = fs::metadata(dir).map_err(|error| StoreError::new("open", dir, error))?.mode();
    if mode & 0o077 != 0 {
        let own = std::fs::Permissions::from_mode(0o700);
        // Of a file system without modes, or somebody else's directory, nothing else is asked.
        if let Err(error) = fs::set_permissions(dir, own) {
            tracing::warn!(%error, "the queue's directory can be read by others");
        }
    }
    put_aside_unless(dir, LOCK, std::fs::Metadata::is_file)?;
    for folder in FOLDERS {
        put_aside_unless(dir, folder, std::fs::Metadata::is_dir)?;
        let path = dir.join(folder);
        fs::create_dir_all(&path).map_err(|error| StoreError::new("create", &path, error))?;
    }
    check_apart(dir)
}

/// Moves what stands in the place of one of the queue's files or folders, and is not one, to where
/// a person finds it. It may hold records, so it is not removed.
fn put_aside_unless(
    dir: &Path,
    name: &str,
    is_right: impl Fn(&std::fs::Metadata) -> bool,
) -> Result<(), StoreError> {
    let path = dir.join(name);
    if std::fs::symlink_metadata(&path).is_err() {
        return Ok(()); // nothing is there, or whoever opens it says why it cannot be had
    }
    match std::fs::metadata(&path) {
        Ok(data) if is_right(&data) => return Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::new("open", &path, error));
        }
        _ => {} // another kind of thing, or a link to nothing
    }
    let aside = dir.join(format!("misplaced-{name}-{}", Uuid::new_v4()));
    fs::rename(&path, &aside).map_err(|error| StoreError::new("move aside", &path, error))?;
    tracing::error!(
        path = %path.display(), kept = %aside.display(),
        "something else stood in the place of a part of the queue; it is moved aside, and the \
         queue goes on; hint: look at what it is, then remove it"
    );
    Ok(())
}

/// Fails when two of the folders are one, by a link or a mount: what is removed from the delivered
/// ones would be taken from those that wait.
fn check_apart(dir: &Path) -> Result<(), StoreError> {
    let mut seen = BTreeMap::new();
    for folder in FOLDERS {
        let path = dir.join(folder);
        let Ok(data) = std::fs::metadata(&path) else { continue };
        if let Some(other) = seen.insert((data.dev(), data.ino()), folder) {
            let message = format!(
                "it is the same directory as {other}; nothing is changed\n  hint: remove the link \
                 of the two, so that each is a directory of its own"
            );
            return Err(StoreError::new("use", path, io::Error::other(message)));
        }
    }
    Ok(())
}

/// The folders of a queue, opened: as long as they are, no other has their inodes.
fn open_folders(dir: &Path) -> Vec<std::fs::File> {
    FOLDERS.iter().filter_map(|folder| std::fs::File::open(dir.join(folder)).ok()).collect()
}
