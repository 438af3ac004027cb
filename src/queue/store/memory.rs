//! A disk in memory that outlives its handles, for tests: drop the log, open another on the same
//! [`MemoryDisk`], and a kill has happened; with [`MemoryDisk::crash`] in between, a loss of power.
//! Faults are switched on and off from outside.
//!
//! What was written and not synced is kept apart ([`pages`], [`tree`]). A loss of power keeps a
//! part of it that a file system may keep, drawn from a seed: each write whole, torn at a sector,
//! or not at all; of names that were made, moved and removed without a sync, the first so many.

mod pages;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use self::{pages::Content, tree::Tree};
use super::{
    FOLDERS, FRAMES_FILE, KEPT, QUARANTINE, SEGMENTS, StoreError,
    disk::{ReadDisk, WriteDisk},
    segment_folder,
};
use crate::queue::{
    DeadLetter, aside,
    budget::DiskSpace,
    dead::{DEAD_LETTERS, DeadChanges},
    format::rows::Rows,
};

/// What the "disk" holds; clones share it.
#[derive(Debug, Clone)]
pub struct MemoryDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Clone, Default)]
struct Disk {
    tree: Tree,
    contents: BTreeMap<u64, Content>,
    dead: Vec<DeadLetter>,
    dead_synced: usize,
    space: Option<DiskSpace>,
    /// The folders of the segments that a process is writing.
    open: BTreeSet<PathBuf>,
    /// Whether another directory has been put in the place of the one that was opened.
    exchanged: bool,
    faults: Faults,
    /// Operations that succeeded.
    writes: u64,
    /// Operations that were begun.
    operations: u64,
}

#[derive(Debug, Clone, Default)]
struct Faults {
    /// How many more writing operations succeed on a disk that fills up; `None` = all.
    writes_left: Option<u64>,
    /// How many more syncs succeed until one fails; `None` = all.
    syncs_left: Option<u64>,
    /// The operation during which the power goes.
    power_until: Option<u64>,
    powerless: bool,
    read_only: bool,
    /// Files below this are not given to read.
    unreadable: Option<(PathBuf, io::ErrorKind)>,
    seed: u64,
}

/// No two files of any disk have the same content.
static NEXT_CONTENT: AtomicU64 = AtomicU64::new(1);

impl Default for MemoryDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryDisk {
    /// A disk with an empty directory.
    pub fn new() -> Self {
        let mut disk = Disk::default();
        for folder in FOLDERS {
            disk.tree.add(Path::new(folder), None);
        }
        disk.tree.sync(Path::new(""));
        Self(Arc::new(Mutex::new(disk)))
    }

    /// A handle on it, as a process would open it.
    #[must_use]
    pub fn open(&self) -> Self {
        self.clone()
    }

    /// Lets `writes` more writing operations succeed and then fails all of them, as a full disk.
    pub fn fill_after(&self, writes: u64) {
        self.lock().faults.writes_left = Some(writes);
    }

    /// Lets `syncs` more syncs succeed and then fails one. What it should have made durable may be
    /// so or not, and later syncs succeed without making up for it, as Linux does it.
    pub fn fail_sync_after(&self, syncs: u64, seed: u64) {
        let mut disk = self.lock();
        (disk.faults.syncs_left, disk.faults.seed) = (Some(syncs), seed);
    }

    /// Lets the power go during the operation with this number, from 0: that one is under way, and
    /// all that come after it fail.
    pub fn lose_power_at(&self, operation: u64) {
        let mut disk = self.lock();
        disk.faults.power_until = Some(disk.operations + operation);
    }

    /// Whether the power has gone.
    pub fn is_powerless(&self) -> bool {
        self.lock().faults.powerless
    }

    /// Takes no more changes, as a file system that is read-only.
    pub fn make_read_only(&self) {
        self.lock().faults.read_only = true;
    }

    /// Gives nothing below `path` to read any more.
    pub fn make_unreadable(&self, path: &str, kind: io::ErrorKind) {
        self.lock().faults.unreadable = Some((path.into(), kind));
    }

    /// Lets all operations succeed again.
    pub fn heal(&self) {
        self.lock().faults = Faults::default();
    }

    /// The power goes, if it has not gone yet, and is back: of what was not synced, a part drawn
    /// from `seed` is left. Ends all faults.
    pub fn crash(&self, seed: u64) {
        let mut disk = self.lock();
        let mut random = fastrand::Rng::with_seed(seed);
        disk.faults = Faults::default();
        disk.contents.values_mut().for_each(|content| content.crash(&mut random));
        disk.tree.crash(&mut random);
        let kept = random.usize(disk.dead_synced.min(disk.dead.len())..=disk.dead.len());
        disk.dead.truncate(kept);
        disk.dead_synced = kept;
    }

    /// Another disk that holds the same.
    #[must_use]
    pub fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Says how much room there is from now on.
    pub fn set_space(&self, available: u64, total: u64) {
        self.lock().space = Some(DiskSpace { available, total });
    }

    /// Somebody removes a file, or a folder with everything in it.
    pub fn lose(&self, path: &str) {
        let mut disk = self.lock();
        let root = Path::new("");
        let names =
            if path.is_empty() { disk.tree.names(root).unwrap_or_default() } else { vec![] };
        for path in names.iter().map(String::as_str).chain([path]).map(Path::new) {
            disk.tree.remove(path);
            disk.tree.sync(path.parent().unwrap_or(root));
        }
    }

    /// Puts the directory of `other` in the place of this one, and this one in its place, under the
    /// process that has it open.
    pub fn exchange(&self, other: &Self) {
        let (mut own, mut other) = (self.lock(), other.lock());
        std::mem::swap(&mut *own, &mut *other);
        (own.exchanged, other.exchanged) = (true, false);
        own.open.clear();
        other.open.clear();
    }

    /// Forgets all state rows, as when both files of the state are lost.
    pub fn lose_state(&self) {
        self.lose("state");
    }

    /// Writing operations that succeeded so far.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Writing operations that were begun so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Changes the raw bytes of a segment, as damage does.
    pub fn damage(&self, segment: u64, change: impl FnOnce(&mut Vec<u8>)) {
        self.damage_file(&segment_folder(segment).join(FRAMES_FILE), change);
    }

    /// Changes the raw bytes of a file, as damage does.
    pub fn damage_file(&self, file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.lock();
        if let Some(content) = disk.content(file) {
            content.damage(change);
        }
    }

    /// The files below `folder`, and what is in them.
    pub fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let disk = self.lock();
        let names = disk.tree.names(Path::new(folder)).unwrap_or_default();
        let content = |name: &String| disk.bytes(&Path::new(folder).join(name)).ok();
        names
            .into_iter()
            .filter_map(|name| Some((name.clone(), content(&name)?.to_vec())))
            .collect()
    }

    /// The segments on the disk.
    pub fn segments(&self) -> Vec<u64> {
        self.ids(SEGMENTS)
    }

    /// The segments that are delivered and kept.
    pub fn kept(&self) -> Vec<u64> {
        self.ids(KEPT)
    }

    /// The segments put aside.
    pub fn quarantined(&self) -> Vec<u64> {
        self.ids(QUARANTINE)
    }

    /// The names of segments of other queues that were put aside.
    pub fn strangers(&self) -> Vec<String> {
        let names = self.lock().tree.names(Path::new(QUARANTINE)).unwrap_or_default();
        names.into_iter().filter(|name| aside::stranger_of(name).is_some()).collect()
    }

    /// The dead letters.
    pub fn dead(&self) -> Vec<DeadLetter> {
        self.lock().dead.clone()
    }

    fn ids(&self, folder: &str) -> Vec<u64> {
        let names = self.lock().tree.names(Path::new(folder)).unwrap_or_default();
        names.iter().filter_map(|name| aside::segment_of(name)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation that takes room on the disk.
    fn grow(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.lock();
        disk.begin()?;
        disk.take_room()?;
        Ok(disk)
    }
}

impl Disk {
    fn content(&mut self, file: &Path) -> Option<&mut Content> {
        let content = self.tree.get(file)??;
        self.contents.get_mut(&content)
    }

    fn bytes(&self, file: &Path) -> io::Result<&[u8]> {
        if self.faults.powerless {
            return Err(io_error());
        }
        if let Some((path, kind)) = &self.faults.unreadable
            && file.starts_with(path)
        {
            return Err((*kind).into());
        }
        let content = self.tree.get(file).ok_or(io::ErrorKind::NotFound)?;
        let content = content.and_then(|content| self.contents.get(&content));
        content.map(Content::bytes).ok_or_else(|| io::ErrorKind::IsADirectory.into())
    }

    fn make(&mut self, file: &Path) -> io::Result<()> {
        if self.tree.get(file).is_some() {
            return Ok(());
        }
        if !file.parent().is_some_and(|folder| self.tree.is_folder(folder)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let content = NEXT_CONTENT.fetch_add(1, Ordering::Relaxed);
        self.contents.insert(content, Content::default());
        self.tree.add(file, Some(content));
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        if self.faults.powerless {
            return Err(io_error());
        }
        if self.faults.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.faults.powerless = self.faults.power_until == Some(self.operations);
        self.operations += 1;
        Ok(())
    }

    fn take_room(&mut self) -> io::Result<()> {
        match &mut self.faults.writes_left {
            Some(0) => Err(io::ErrorKind::StorageFull.into()),
            left => {
                *left = left.map(|writes| writes - 1);
                Ok(())
            }
        }
    }

    /// Ends an operation, unless the power has gone meanwhile.
    fn end(&mut self) -> io::Result<()> {
        if self.faults.powerless {
            return Err(io_error());
        }
        self.writes += 1;
        Ok(())
    }

    /// Ends an operation with a sync: makes durable what `sync` makes so, unless the power has gone
    /// meanwhile or the sync fails.
    fn end_synced(
        &mut self,
        sync: impl FnOnce(&mut Self, Option<&mut fastrand::Rng>),
    ) -> io::Result<()> {
        if self.faults.powerless {
            return Err(io_error());
        }
        match &mut self.faults.syncs_left {
            Some(0) => {
                self.faults.syncs_left = None;
                let mut random = fastrand::Rng::with_seed(self.faults.seed);
                sync(self, Some(&mut random));
                Err(io_error())
            }
            left => {
                *left = left.map(|syncs| syncs - 1);
                sync(self, None);
                self.writes += 1;
                Ok(())
            }
        }
    }

    fn sync_file(&mut self, file: &Path) -> io::Result<()> {
        self.end_synced(|disk, random| {
            if let Some(content) = disk.content(file) {
                content.sync(random);
            }
        })
    }

    fn dead_bytes(&self) -> u64 {
        self.dead.iter().map(|letter| letter.line.len() as u64 + 1).sum()
    }
}

impl ReadDisk for MemoryDisk {
    type File = io::Cursor<Vec<u8>>;

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.lock().tree.names(folder).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn has_folder(&self, folder: &Path) -> bool {
        self.lock().tree.is_folder(folder)
    }

    fn open(&self, file: &Path) -> io::Result<io::Cursor<Vec<u8>>> {
        self.lock().bytes(file).map(|bytes| io::Cursor::new(bytes.to_vec()))
    }

    fn inode(&self, file: &Path) -> Option<(u64, u64)> {
        self.lock().tree.get(file)?.map(|content| (0, content))
    }

    fn occupied(&self, path: &Path) -> u64 {
        let disk = self.lock();
        if path == Path::new(DEAD_LETTERS) {
            return disk.dead_bytes();
        }
        let bytes = |content| disk.contents.get(&content).map_or(0, |c| c.bytes().len() as u64);
        disk.tree.contents(path).map(bytes).sum()
    }

    fn changed_at(&self, _path: &Path) -> Option<i64> {
        None
    }

    fn space(&self) -> Option<DiskSpace> {
        self.lock().space
    }

    fn old_rows(&self) -> Result<Option<Rows>, StoreError> {
        Ok(None)
    }
}

impl WriteDisk for MemoryDisk {
    fn make_folder(&mut self, folder: &Path) -> io::Result<()> {
        if self.lock().tree.is_folder(folder) {
            return Ok(());
        }
        let mut disk = self.grow()?;
        if !folder.parent().is_some_and(|parent| disk.tree.is_folder(parent)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.tree.add(folder, None);
        disk.end()
    }

    /// In place, a full disk takes it; behind the end, it may have written all the same.
    fn write(&mut self, file: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.lock();
        disk.begin()?;
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let length = disk.content(file).map(|content| content.bytes().len());
        let in_place = length.is_some_and(|length| at + bytes.len() <= length);
        let room = if in_place { Ok(()) } else { disk.take_room() };
        if length.is_none() {
            disk.make(file)?;
        }
        if let Some(content) = disk.content(file) {
            content.write(at, bytes.to_vec());
        }
        room?;
        disk.end()
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        let mut disk = self.lock();
        disk.begin()?;
        if !disk.tree.is_folder(path) {
            return disk.sync_file(path);
        }
        disk.end_synced(|disk, random| {
            if random.is_none_or(fastrand::Rng::bool) {
                disk.tree.sync(path);
            }
        })
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.grow()?;
        if disk.tree.get(from).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.tree.rename(from, to);
        disk.end()
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        if self.lock().tree.get(path).is_none() {
            return Ok(());
        }
        let mut disk = self.lock();
        disk.begin()?;
        disk.tree.remove(path);
        disk.end()
    }

    fn create_segment(&mut self, folder: &Path, _reserve: u64) -> Result<(), StoreError> {
        let create = || {
            let mut disk = self.grow()?;
            disk.tree.add(folder, None);
            disk.make(&folder.join(FRAMES_FILE))?;
            disk.open.insert(folder.to_owned());
            disk.end_synced(|disk, _| {
                disk.tree.sync(folder);
                disk.tree.sync(Path::new(SEGMENTS));
            })
        };
        create().map_err(|error| failed("create", folder, error))
    }

    /// An append that finds the disk full has written all the same, or a part.
    fn append(
        &mut self,
        folder: &Path,
        _number: u64,
        frames: &[Vec<u8>],
    ) -> Result<(), StoreError> {
        let append = || {
            let mut disk = self.lock();
            disk.begin()?;
            if !disk.open.contains(folder) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let content = disk.content(&folder.join(FRAMES_FILE)).ok_or(io::ErrorKind::NotFound)?;
            for frame in frames {
                content.write(content.bytes().len(), frame.clone());
            }
            if disk.faults.powerless {
                return Err(io_error());
            }
            disk.take_room()?;
            disk.end()
        };
        append().map_err(|error| failed("append to", folder, error))
    }

    fn sync_segment(&mut self, folder: &Path) -> Result<(), StoreError> {
        let synced = self.grow().and_then(|mut disk| disk.sync_file(&folder.join(FRAMES_FILE)));
        synced.map_err(|error| failed("sync", folder, error))
    }

    fn close_segment(&mut self, folder: &Path) -> Result<(), StoreError> {
        self.sync_segment(folder)
    }

    fn abandon_segment(&mut self, _folder: &Path) {}

    fn is_there(&self) -> bool {
        let disk = self.lock();
        !disk.exchanged && FOLDERS.iter().all(|folder| disk.tree.is_folder(Path::new(folder)))
    }

    fn make_anew(&mut self) -> Result<(), StoreError> {
        for folder in FOLDERS.map(Path::new) {
            self.make_folder(folder).map_err(|error| failed("create", folder, error))?;
        }
        self.lock().exchanged = false;
        let root = Path::new("");
        self.sync(root).map_err(|error| failed("sync", root, error))
    }

    fn put_dead(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        let put = || {
            let mut disk = self.grow()?;
            disk.dead.extend_from_slice(letters);
            disk.end_synced(|disk, random| {
                if random.is_none_or(fastrand::Rng::bool) {
                    disk.dead_synced = disk.dead.len();
                }
            })
        };
        put().map_err(|error| failed("append to", Path::new(DEAD_LETTERS), error))
    }

    fn change_dead(&mut self, changes: &DeadChanges) -> Result<(), StoreError> {
        let change = || {
            let mut disk = self.grow()?;
            disk.dead.retain_mut(|letter| match changes.get(&letter.line) {
                None => true,
                Some(None) => false,
                Some(Some(line)) => {
                    letter.line.clone_from(line);
                    true
                }
            });
            disk.end_synced(|disk, _| disk.dead_synced = disk.dead.len())
        };
        change().map_err(|error| failed("change", Path::new(DEAD_LETTERS), error))
    }

    fn shorten_dead(&mut self, bytes_max: u64) -> Result<(), StoreError> {
        if self.lock().dead_bytes() <= bytes_max {
            return Ok(());
        }
        let shorten = || {
            let mut disk = self.grow()?;
            while disk.dead_bytes() > bytes_max / 2 {
                disk.dead.remove(0);
            }
            disk.end_synced(|disk, _| disk.dead_synced = disk.dead.len())
        };
        shorten().map_err(|error| failed("shorten", Path::new(DEAD_LETTERS), error))
    }
}

fn io_error() -> io::Error {
    io::Error::other("input/output error")
}

fn failed(action: &'static str, path: &Path, error: io::Error) -> StoreError {
    StoreError::new(action, path, error)
}
