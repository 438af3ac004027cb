//! A queue's directory: where segments are and where they go, whose queue it is, and what lies
//! aside. The bytes are kept by a disk ([`disk`]); this is the same code above each of them.

pub mod disk;
pub mod identity;
pub mod memory;
pub mod notes;
pub mod real;
pub mod sled_segment;

use std::{
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use uuid::Uuid;

use self::disk::{ReadDisk, WriteDisk};
use super::{
    aside,
    budget::DiskSpace,
    dead::DEAD_LETTERS,
    format::{
        block::MAGIC,
        salvage::{self, Found, Scan, Stranger},
        segment::SegmentRow,
    },
};

/// A queue's directory on a disk.
#[derive(Debug)]
pub struct Store<D> {
    pub(super) disk: D,
    queue_id: Uuid,
    reserve_bytes: u64,
    /// Whether the queue got its name just now.
    pub(super) is_new: bool,
}

/// Where segments wait.
const SEGMENTS: &str = "segments";
/// Where segments are that are delivered and kept.
const KEPT: &str = "delivered";
/// Where segments are that are being removed.
const TRASH: &str = "trash";
/// What a person has to look at.
pub(super) const QUARANTINE: &str = "quarantine";
/// The file of a segment that its frames are in.
pub(super) const FRAMES_FILE: &str = "db";
/// The folders of a queue, but for that of its state.
pub(super) const FOLDERS: [&str; 4] = [SEGMENTS, TRASH, QUARANTINE, KEPT];

/// The folder of a segment that waits, relative to the queue's directory.
pub(super) fn segment_folder(id: u64) -> PathBuf {
    Path::new(SEGMENTS).join(format!("{id:020}"))
}

fn kept_folder(id: u64) -> PathBuf {
    Path::new(KEPT).join(format!("{id:020}"))
}

impl<D: ReadDisk> Store<D> {
    /// Looks at the queue on `disk`, and changes nothing.
    pub fn look(disk: D) -> Result<Self, StoreError> {
        let queue_id = identity::find(&disk)?;
        Ok(Self { disk, queue_id, reserve_bytes: 0, is_new: false })
    }

    /// The queue's identity.
    pub fn queue_id(&self) -> Uuid {
        self.queue_id
    }

    /// The directory that everything is in, if it is in one.
    pub fn dir(&self) -> Option<&Path> {
        self.disk.dir()
    }

    /// The segments that wait, in order.
    pub fn segments(&self) -> Result<Vec<u64>, StoreError> {
        segment_ids(&self.disk, Path::new(SEGMENTS))
    }

    /// The segments that are delivered and kept, in order.
    pub fn kept(&self) -> Result<Vec<u64>, StoreError> {
        segment_ids(&self.disk, Path::new(KEPT))
    }

    /// Whether a segment has a folder among those that wait.
    pub fn has_segment(&self, id: u64) -> bool {
        self.disk.has_folder(&segment_folder(id))
    }

    /// Whether the file of a segment's frames has been removed, as opposed to not being given now.
    pub fn has_lost_frames(&self, id: u64) -> bool {
        let opened = self.disk.open(&segment_folder(id).join(FRAMES_FILE));
        opened.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// What a segment that is not being written holds, delivered and kept or not; nothing when it
    /// is not there. A segment that a later version wrote is an error: nothing of it is lost.
    pub fn frames(&self, id: u64) -> Result<Scan, StoreError> {
        if !self.disk.has_folder(&self.find(id)) {
            self.check_own()?; // it is hidden, and not gone
        }
        scan_in(&self.disk, &self.find(id), self.queue_id, id)
    }

    /// The same of a segment that has a row: the frames of another one in its place are not damage,
    /// but folders that somebody has exchanged.
    pub fn frames_of_row(&self, id: u64) -> Result<Scan, StoreError> {
        let scan = self.frames(id)?;
        let other = scan.stranger.filter(|other| other.queue == self.queue_id);
        let Some(other) = other.filter(|_| scan.found.is_empty()) else { return Ok(scan) };
        let message = format!(
            "it holds the frames of segment {:020}\n  hint: give the folder that name, with the \
             agent stopped",
            other.segment
        );
        let error = io::Error::new(io::ErrorKind::InvalidFilename, message);
        Err(StoreError::new("read", self.full(&self.find(id)), error))
    }

    /// The bytes of `frames` of segment `id`; damage since the scan shows when they are decoded.
    pub fn read(&self, id: u64, frames: &[Found]) -> Result<Vec<Vec<u8>>, StoreError> {
        read_frames_in(&self.disk, &self.find(id), frames)
    }

    /// Bytes that segment `id` occupies.
    pub fn disk_bytes(&self, id: u64) -> u64 {
        self.disk.occupied(&self.find(id))
    }

    /// Room on the file system; `None` when it is not known.
    pub fn space(&self) -> Option<DiskSpace> {
        self.disk.space()
    }

    /// Bytes of the dead letters and of what was put aside and may go.
    pub fn aside_bytes(&self) -> u64 {
        self.disk.occupied(Path::new(DEAD_LETTERS)) + aside::quarantined_bytes(&self.disk)
    }

    /// Fails when another queue's directory has come in the place of this one's.
    pub fn check_own(&self) -> Result<(), StoreError> {
        identity::check(&self.disk, self.queue_id)
    }

    /// Where a segment is: among those to deliver, else among those that are kept.
    fn find(&self, id: u64) -> PathBuf {
        let (waiting, kept) = (segment_folder(id), kept_folder(id));
        if !self.disk.has_folder(&waiting) && self.disk.has_folder(&kept) { kept } else { waiting }
    }
}

impl<D: WriteDisk> Store<D> {
    /// Opens the queue on `disk`, making it when it is not there. `reserve_bytes` of disk are set
    /// aside for the segment being written, so that a full disk shows before anything is accepted.
    pub fn open(mut disk: D, reserve_bytes: u64) -> Result<Self, StoreError> {
        let (queue_id, is_new) = identity::find_or_make(&mut disk)?;
        let mut store = Self { disk, queue_id, reserve_bytes, is_new };
        store.empty_trash();
        Ok(store)
    }

    /// Makes the directory anew, after it has gone away, as the queue that it was.
    pub fn make_anew(&mut self) -> Result<(), StoreError> {
        identity::check_all(&self.disk, self.queue_id)?;
        self.disk.make_anew()?;
        identity::write(&mut self.disk, self.queue_id)
    }

    /// Creates segment `id`; it is durable, empty, when this returns.
    pub fn create(&mut self, id: u64) -> Result<(), StoreError> {
        self.check_own()?;
        let folder = segment_folder(id);
        if self.disk.has_folder(&folder) {
            // An earlier try failed and could not be tidied up; its records are still in memory.
            self.remove(id)?;
        }
        let made = self.disk.create_segment(&folder, self.reserve_bytes);
        if made.is_err() {
            self.disk.abandon_segment(&folder);
            // What is left of it would be found empty at the next start.
            self.disk.remove(&folder).ok();
        }
        made
    }

    /// Adds frames with the numbers from `number` on: they outlive the process when this returns,
    /// and are durable after [`Store::sync`]. After an error the segment must be abandoned.
    pub fn append(&mut self, id: u64, number: u64, frames: &[Vec<u8>]) -> Result<(), StoreError> {
        self.disk.append(&segment_folder(id), number, frames)
    }

    /// Makes durable what has been appended. After an error the segment must be abandoned.
    pub fn sync(&mut self, id: u64) -> Result<(), StoreError> {
        self.disk.sync_segment(&segment_folder(id))
    }

    /// Syncs and closes a segment, and checks that its `frames` frames can be read.
    pub fn close(&mut self, id: u64, frames: u64) -> Result<(), StoreError> {
        let folder = segment_folder(id);
        self.disk.close_segment(&folder)?;
        self.check_own()?;
        let scan = scan_in(&self.disk, &folder, self.queue_id, id)?;
        let sound = scan.found.iter().filter(|frame| frame.head.number < frames).count();
        if sound as u64 == frames {
            return Ok(());
        }
        let message = format!("{sound} of {frames} frames can be read back");
        let error = io::Error::new(io::ErrorKind::InvalidData, message);
        Err(StoreError::new("verify", self.full(&folder), error))
    }

    /// Lets go of a segment that failed, or that is not wanted any more.
    pub fn abandon(&mut self, id: u64) {
        self.disk.abandon_segment(&segment_folder(id));
    }

    /// Segments that are created from now on set this much of the disk aside.
    pub fn set_reserve(&mut self, bytes: u64) {
        self.reserve_bytes = bytes;
    }

    /// Gives back what segment `id` reserved and did not use, after a process has left it so.
    pub fn trim(&mut self, id: u64) -> Result<(), StoreError> {
        let file = segment_folder(id).join(FRAMES_FILE);
        self.disk.trim(&file).map_err(self.at("truncate", &file))
    }

    /// Makes the frames of a segment that its row does not promise unrecognisable, in place: they
    /// were never acknowledged, and that needs no free space.
    pub fn cut(&mut self, row: &SegmentRow) -> Result<(), StoreError> {
        let scan = self.frames(row.id)?;
        let file = segment_folder(row.id).join(FRAMES_FILE);
        let mut cut = false;
        for found in scan.found.iter().filter(|found| !row.promises(&found.head)) {
            let erased = self.disk.write(&file, found.offset, &[0; MAGIC.len()]);
            erased.map_err(self.at("write to", &file))?;
            cut = true;
        }
        if cut { self.disk.sync(&file).map_err(self.at("sync", &file)) } else { Ok(()) }
    }

    /// Removes a segment. Removing what is not there is no error.
    pub fn remove(&mut self, id: u64) -> Result<(), StoreError> {
        self.throw_away(&segment_folder(id), id)
    }

    /// Puts a segment aside, for a person to look at, instead of removing it.
    pub fn quarantine(&mut self, id: u64) -> Result<(), StoreError> {
        let aside = self.free_name(&Path::new(QUARANTINE).join(format!("{id:020}")));
        self.move_folder(&segment_folder(id), &aside)
    }

    /// The same with what lies among the delivered ones.
    pub fn quarantine_kept(&mut self, id: u64) -> Result<(), StoreError> {
        let aside = self.free_name(&Path::new(QUARANTINE).join(format!("{id:020}")));
        self.move_folder(&kept_folder(id), &aside)
    }

    /// Puts a segment of another queue, or of another number, aside, under the name that its frames
    /// give it.
    pub fn quarantine_stranger(&mut self, id: u64, owner: Stranger) -> Result<PathBuf, StoreError> {
        let aside = self.free_name(&Path::new(QUARANTINE).join(aside::stranger_name(owner)));
        self.move_folder(&segment_folder(id), &aside)?;
        Ok(aside)
    }

    /// The same with a segment of this queue whose numbers another process has given, too.
    pub fn quarantine_rival(&mut self, id: u64) -> Result<PathBuf, StoreError> {
        let name = aside::rival_name(Stranger { queue: self.queue_id, segment: id });
        let aside = self.free_name(&Path::new(QUARANTINE).join(name));
        self.move_folder(&segment_folder(id), &aside)?;
        Ok(aside)
    }

    /// Gives a segment whose folder was renamed the name that its frames have; `false` when that is
    /// taken.
    pub fn rename_back(&mut self, id: u64, own: u64) -> Result<bool, StoreError> {
        let (from, to) = (segment_folder(id), segment_folder(own));
        if self.disk.has_folder(&to) || self.disk.has_folder(&kept_folder(own)) {
            return Ok(false);
        }
        self.move_folder(&from, &to).map(|()| true)
    }

    /// Removes what was put aside first and may go; `false` when there is nothing.
    pub fn drop_quarantined(&mut self) -> Result<bool, StoreError> {
        self.check_own()?;
        let Some(oldest) = aside::oldest_quarantined(&self.disk) else { return Ok(false) };
        let path = Path::new(QUARANTINE).join(oldest);
        self.disk.remove(&path).map_err(self.at("remove", &path))?;
        let path = self.full(&path);
        tracing::error!(path = %path.display(), "removed from quarantine to make room");
        Ok(true)
    }

    /// Moves a segment to those that are delivered and kept. Moving it again is no error.
    pub fn keep(&mut self, id: u64) -> Result<(), StoreError> {
        self.move_folder(&segment_folder(id), &kept_folder(id))
    }

    /// Moves a segment from those back to the ones that wait.
    pub fn keep_no_more(&mut self, id: u64) -> Result<(), StoreError> {
        self.move_folder(&kept_folder(id), &segment_folder(id))
    }

    /// Removes a segment from those. Removing what is not there is no error.
    pub fn drop_kept(&mut self, id: u64) -> Result<(), StoreError> {
        self.throw_away(&kept_folder(id), id)
    }

    /// Renames before it removes: a plain removal that is killed half-way leaves an unreadable
    /// segment.
    fn throw_away(&mut self, folder: &Path, id: u64) -> Result<(), StoreError> {
        let trash = self.free_name(&Path::new(TRASH).join(format!("{id:020}")));
        self.move_folder(folder, &trash)?;
        self.disk.remove(&trash).map_err(self.at("remove", &trash))
    }

    fn empty_trash(&mut self) {
        if !self.disk.has_folder(Path::new(TRASH)) {
            return; // a link, perhaps: what is in it is not ours to remove
        }
        for name in self.disk.names(Path::new(TRASH)).unwrap_or_default() {
            if let Err(error) = self.disk.remove(&Path::new(TRASH).join(name)) {
                tracing::warn!(%error, "cannot empty the trash");
            }
        }
    }

    /// Moves a folder, durably; one that is not there has been moved already.
    fn move_folder(&mut self, from: &Path, to: &Path) -> Result<(), StoreError> {
        match self.disk.rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved.map_err(self.at("move", from))?,
        }
        for folder in [to, from].into_iter().filter_map(Path::parent) {
            self.disk.sync(folder).map_err(self.at("sync", folder))?;
        }
        Ok(())
    }

    /// `path`, or with a number behind it when something of that name is there.
    fn free_name(&self, path: &Path) -> PathBuf {
        let numbered = |n: u32| match n {
            0 => path.to_owned(),
            n => PathBuf::from(format!("{}.{n}", path.display())),
        };
        let free = (0..u32::MAX).map(numbered).find(|name| !self.disk.has_folder(name));
        free.unwrap_or_else(|| path.to_owned())
    }
}

impl<D: ReadDisk> Store<D> {
    fn full(&self, path: &Path) -> PathBuf {
        full(&self.disk, path)
    }

    fn at(
        &self,
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> StoreError + use<D> {
        let path = self.full(path);
        move |error| StoreError::new(action, path, error)
    }
}

/// `path` as a person finds it.
pub(super) fn full(disk: &impl ReadDisk, path: &Path) -> PathBuf {
    disk.dir().map_or_else(|| path.to_owned(), |dir| dir.join(path))
}

/// The numbers of the segments in `folder`; other names are left alone.
fn segment_ids(disk: &impl ReadDisk, folder: &Path) -> Result<Vec<u64>, StoreError> {
    let names = match disk.names(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.map_err(|error| StoreError::new("list", full(disk, folder), error))?,
    };
    let mut ids: Vec<u64> = names.iter().filter_map(|name| aside::segment_of(name)).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// What the file of frames in `folder` holds; nothing when it is not there.
pub(super) fn scan_in(
    disk: &impl ReadDisk,
    folder: &Path,
    queue: Uuid,
    id: u64,
) -> Result<Scan, StoreError> {
    let file = folder.join(FRAMES_FILE);
    let scan = match disk.open(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Scan::default()),
        opened => opened.and_then(|open| salvage::scan(open, queue, id)),
    };
    let scan = scan.map_err(|error| StoreError::new("read", full(disk, &file), error))?;
    match scan.unknown_version {
        None => Ok(scan),
        Some(version) => {
            Err(StoreError::new("read", full(disk, &file), later_version("frames", version)))
        }
    }
}

/// Where the frames in `folder` belong, if they agree; `None` when there are none.
pub(super) fn owner_in(disk: &impl ReadDisk, folder: &Path) -> Option<Stranger> {
    salvage::owner_of(disk.open(&folder.join(FRAMES_FILE)).ok()?).ok()?
}

pub(super) fn read_frames_in(
    disk: &impl ReadDisk,
    folder: &Path,
    frames: &[Found],
) -> Result<Vec<Vec<u8>>, StoreError> {
    let path = folder.join(FRAMES_FILE);
    let read = || {
        let mut file = disk.open(&path)?;
        let mut read = |frame: &Found| {
            let mut bytes = Vec::with_capacity(frame.head.frame_bytes());
            file.seek(SeekFrom::Start(frame.offset))?;
            file.by_ref().take(frame.head.frame_bytes() as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        frames.iter().map(&mut read).collect::<io::Result<_>>()
    };
    read().map_err(|error| StoreError::new("read", full(disk, &path), error))
}

/// The error of bytes that only a later version understands. They stay as they are.
pub(super) fn later_version(what: &str, version: u16) -> io::Error {
    let message = format!(
        "{what} of layout {version}, which a later version of the agent has written\n  hint: run \
         that version; everything stays as it is"
    );
    io::Error::new(io::ErrorKind::Unsupported, message)
}

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
