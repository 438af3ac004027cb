//! The two files of the journal: every note is written to both, so that neither a damaged byte nor
//! a lost file takes a row. What one of them has lost is written anew from the rows in memory.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    QUARANTINE, StoreError,
    disk::{ReadDisk, WriteDisk},
    full, identity, later_version,
};
use crate::queue::format::{
    note::{self, Kind, NotesRead, Number},
    rows::{Rows, StateChange},
};

/// The state's folder.
const FOLDER: &str = "state";
/// A new one, until it is complete.
const DRAFT: &str = "state.new";
const FILES: [&str; 2] = ["a", "b"];
/// A file that is written anew, until it is complete.
const FILE_DRAFT: &str = "draft";
/// A file may be so much larger than its rows before it is written anew.
const SLACK_BYTES: u64 = 128 << 10;
/// Disk that is set aside behind the end of a file, so that a full disk takes deliveries, which
/// make room.
const RESERVE_BYTES: u64 = 64 << 10;

/// The rows of the state, in memory and in two files.
#[derive(Debug, Default)]
pub struct Notes {
    queue: Uuid,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The number of the last note that counts.
    last: u64,
    /// The number that was given last.
    given: u64,
    files: [NotesFile; 2],
    /// Whether the rows are those of an earlier version's state.
    is_of_earlier: bool,
}

/// What is known of one of the files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum NotesFile {
    /// It is not to be added to: it is not there, damaged, or in doubt after a failed sync.
    #[default]
    Stale,
    /// It has everything.
    Sound {
        /// Which file it is: one that somebody has put in its place is not added to.
        inode: Option<(u64, u64)>,
        bytes: u64,
        /// How long it was when it was written anew.
        snapshot_bytes: u64,
        /// Up to where disk is set aside.
        reserved: u64,
    },
}

/// What a person has to know of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Both files have everything, or there is no state yet.
    Sound,
    /// These files lack something, which the other one has: the next start writes them anew.
    Behind(Vec<PathBuf>),
    /// Nothing of it can be read.
    Lost(String),
}

/// What was found of the state.
enum Found {
    Notes(Notes),
    /// There is something, and none of it can be read.
    Lost(String),
    Nothing,
}

impl Notes {
    /// Reads the state of `queue`, and changes nothing. A state that is lost is empty; one that
    /// cannot be read now is an error.
    pub fn look(disk: &impl ReadDisk, queue: Uuid) -> Result<Self, StoreError> {
        let empty = Self { queue, ..Self::default() };
        match find(disk, queue)? {
            Found::Notes(notes) => Ok(notes),
            Found::Nothing => Ok(disk.old_rows()?.map_or_else(Self::default, Self::of_rows(queue))),
            Found::Lost(why) => {
                tracing::error!(why, "the queue's state is lost; segments are read instead");
                Ok(empty)
            }
        }
    }

    /// Reads the state of `queue`, and finishes what an earlier process has begun. One that is lost
    /// is put aside; that of an earlier version is taken over.
    pub fn open(disk: &mut impl WriteDisk, queue: Uuid) -> Result<Self, StoreError> {
        finish_taking_over(disk)?;
        match find(disk, queue)? {
            Found::Notes(mut notes) => {
                notes.make_durable(disk);
                return Ok(notes);
            }
            Found::Nothing => match disk.old_rows() {
                Ok(None) => {}
                Ok(Some(rows)) => {
                    let mut notes = Self::of_rows(queue)(rows);
                    if let Err(error) = notes.take_over(disk) {
                        tracing::warn!(%error, "the state stays as an earlier version wrote it");
                    }
                    return Ok(notes);
                }
                Err(error) if error.source.kind() == io::ErrorKind::InvalidData => {
                    put_aside(disk, &error.to_string())?;
                }
                Err(error) => return Err(error),
            },
            Found::Lost(why) => put_aside(disk, &why)?,
        }
        Ok(Self { queue, ..Self::default() })
    }

    /// What was found may be what a process that was killed had written and not synced yet. A file
    /// that cannot be synced is written anew.
    fn make_durable(&mut self, disk: &mut impl WriteDisk) {
        let folder = Path::new(FOLDER);
        let files = FILES.iter().zip(&mut self.files);
        for (name, file) in files.filter(|(_, file)| **file != NotesFile::Stale) {
            let synced = disk.sync(&folder.join(name)).and_then(|()| disk.sync(folder));
            if synced.is_err() {
                *file = NotesFile::Stale;
            }
        }
    }

    fn of_rows(queue: Uuid) -> impl FnOnce(Rows) -> Self {
        move |rows| {
            let rows = rows.into_iter().collect();
            Self { queue, rows, is_of_earlier: true, ..Self::default() }
        }
    }

    /// Writes the rows of an earlier version's state into a journal, which takes its place. When
    /// that fails the next write of a row does it.
    fn take_over(&mut self, disk: &mut impl WriteDisk) -> Result<(), StoreError> {
        let (folder, draft) = (Path::new(FOLDER), Path::new(DRAFT));
        let old = Path::new(super::TRASH).join(FOLDER);
        let mut write = || {
            disk.remove(draft)?;
            disk.make_folder(draft)?;
            for n in 0..FILES.len() {
                self.write_anew(disk, draft, n)?;
            }
            disk.sync(Path::new(""))?;
            disk.rename(folder, &old)?;
            disk.rename(draft, folder)?;
            disk.sync(Path::new(""))?;
            disk.remove(&old)
        };
        let written = write();
        if written.is_err() {
            self.files = [NotesFile::Stale; 2];
        }
        written.map_err(|error| StoreError::new("write", full(disk, draft), error))?;
        tracing::info!(rows = self.rows.len(), "the state of an earlier version is taken over");
        Ok(())
    }

    /// Whether nothing was found, of this version or an earlier one.
    pub fn is_blank(&self) -> bool {
        self.last == 0 && !self.is_of_earlier
    }

    /// Whether one of the files is to be written anew.
    pub fn is_behind(&self) -> bool {
        self.last > 0 && self.files.contains(&NotesFile::Stale)
    }

    /// All rows.
    pub fn rows(&self) -> &BTreeMap<Vec<u8>, Vec<u8>> {
        &self.rows
    }

    /// Sets and deletes rows; durable, all or none, when this returns. One file that takes them is
    /// enough; the other is written anew with the next.
    pub fn put(
        &mut self,
        disk: &mut impl WriteDisk,
        rows: &[StateChange],
    ) -> Result<(), StoreError> {
        self.given += 1;
        let number = Number { own: self.given, after: self.last };
        let change = note::encode(Kind::Change, self.queue, number, rows);
        let undo: Vec<StateChange> =
            rows.iter().map(|(key, _)| (key.clone(), self.rows.get(key).cloned())).collect();
        note::apply(&mut self.rows, rows);
        let tries = [0, 1].map(|n| self.put_in(disk, n, &change));
        let taken = tries.iter().any(Result::is_ok);
        if taken {
            self.last = number.own;
        }
        let failed =
            tries.into_iter().zip(FILES).find_map(|(tried, file)| Some((tried.err()?, file)));
        let Some((error, file)) = failed else { return Ok(()) };
        let error = StoreError::new("write", full(disk, &Path::new(FOLDER).join(file)), error);
        if taken {
            tracing::warn!(%error, "one of the two files of the state fails; the other has it all");
            return Ok(());
        }
        // In its place, or in that of a later one, comes a snapshot.
        note::apply(&mut self.rows, &undo);
        Err(error)
    }

    /// Writes both files anew, after their folder has gone away.
    pub fn make_anew(&mut self, disk: &mut impl WriteDisk) -> Result<(), StoreError> {
        self.files = [NotesFile::Stale; 2];
        self.put(disk, &[])
    }

    /// Whether the files that have everything are where they were written.
    pub fn are_there(&self, disk: &impl ReadDisk) -> bool {
        let mut files = FILES.iter().zip(&self.files);
        files.all(|(name, file)| {
            *file == NotesFile::Stale || disk.inode(&Path::new(FOLDER).join(name)).is_some()
        })
    }

    fn put_in(&mut self, disk: &mut impl WriteDisk, n: usize, change: &[u8]) -> io::Result<()> {
        let folder = Path::new(FOLDER);
        let file = folder.join(FILES[n]);
        let NotesFile::Sound { inode, bytes, snapshot_bytes, reserved } = self.files[n] else {
            return self.write_stale(disk, n);
        };
        if inode.is_none() || disk.inode(&file) != inode {
            self.files[n] = NotesFile::Stale;
            return self.write_stale(disk, n);
        }
        let end = bytes + change.len() as u64;
        if end > 4 * snapshot_bytes + SLACK_BYTES && self.write_anew(disk, folder, n).is_ok() {
            return Ok(());
        }
        // What is written of it when that fails is written over by the next.
        disk.write(&file, bytes, change)?;
        self.files[n] = NotesFile::Stale;
        disk.sync(&file)?;
        let reserved = reserve(disk, &file, end, reserved);
        self.files[n] = NotesFile::Sound { inode, bytes: end, snapshot_bytes, reserved };
        Ok(())
    }

    /// Writes a file anew, and its folder if that has gone away.
    fn write_stale(&mut self, disk: &mut impl WriteDisk, n: usize) -> io::Result<()> {
        identity::check(disk, self.queue).map_err(|error| error.source)?;
        let folder = Path::new(FOLDER);
        disk.make_folder(folder)?;
        disk.sync(Path::new(""))?;
        self.write_anew(disk, folder, n)
    }

    /// Writes a file anew, as one snapshot, in the place of the old one.
    fn write_anew(&mut self, disk: &mut impl WriteDisk, folder: &Path, n: usize) -> io::Result<()> {
        let (draft, file) = (folder.join(FILE_DRAFT), folder.join(FILES[n]));
        let rows: Vec<StateChange> =
            self.rows.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        let number = Number { own: self.given, after: self.last };
        let snapshot = note::encode(Kind::Snapshot, self.queue, number, &rows);
        disk.remove(&draft)?;
        identity::put_folder_aside(disk, &file)?;
        disk.write(&draft, 0, &snapshot)?;
        disk.sync(&draft)?;
        disk.rename(&draft, &file)?;
        self.files[n] = NotesFile::Stale;
        disk.sync(folder)?;
        let bytes = snapshot.len() as u64;
        let reserved = reserve(disk, &file, bytes, 0);
        let inode = disk.inode(&file);
        self.files[n] = NotesFile::Sound { inode, bytes, snapshot_bytes: bytes, reserved };
        Ok(())
    }
}

/// How the state of `queue` is. Changes nothing.
pub fn check(disk: &impl ReadDisk, queue: Uuid) -> Result<Check, StoreError> {
    Ok(match find(disk, queue)? {
        Found::Lost(why) => Check::Lost(why),
        Found::Nothing => match disk.old_rows() {
            Err(error) if error.source.kind() == io::ErrorKind::InvalidData => {
                Check::Lost(error.to_string())
            }
            read => read.map(|_| Check::Sound)?,
        },
        Found::Notes(notes) => {
            let files = FILES.iter().zip(notes.files);
            let behind = files.filter(|(_, file)| *file == NotesFile::Stale);
            let behind: Vec<PathBuf> =
                behind.map(|(name, _)| Path::new(FOLDER).join(name)).collect();
            if behind.is_empty() { Check::Sound } else { Check::Behind(behind) }
        }
    })
}

/// The queues that the journal's notes name, the newest first.
pub fn queues(disk: &impl ReadDisk) -> Result<Vec<Uuid>, StoreError> {
    let mut queues = Vec::new();
    for n in 0..FILES.len() {
        let notes = read_file(disk, n)?.unwrap_or_default().notes;
        for note in notes.iter().rev() {
            if !queues.contains(&note.queue) {
                queues.push(note.queue);
            }
        }
    }
    Ok(queues)
}

fn find(disk: &impl ReadDisk, queue: Uuid) -> Result<Found, StoreError> {
    let mut read = [read_file(disk, 0), read_file(disk, 1)];
    // A device that does not give one file has damaged it. Anything else may be over in a moment,
    // and the other file may be the one that is behind.
    if let [Err(error), Ok(Some(_))] | [Ok(Some(_)), Err(error)] = &read
        && error.source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
    {
        tracing::error!(%error, "one of the two files of the state cannot be read");
        read.iter_mut().filter(|read| read.is_err()).for_each(|read| *read = Ok(None));
    }
    let [a, b] = read;
    let read = [a?, b?];
    if read == [None, None] {
        return Ok(Found::Nothing);
    }
    let own = |read: &&NotesRead| read.notes.iter().any(|note| note.queue == queue);
    let notes = read.iter().flatten().filter(own).flat_map(|read| &read.notes);
    let Some(merged) = note::merge(notes.filter(|note| note.queue == queue)) else {
        let other = read.iter().flatten().find_map(|read| read.notes.first());
        return Ok(Found::Lost(match other {
            Some(note) => format!("it is that of the queue {}", note.queue),
            None => "nothing of it can be read".to_owned(),
        }));
    };
    if merged.incomplete {
        tracing::error!("the queue's state is damaged in both of its files; rows may be missing");
    }
    let files = [0, 1].map(|n| {
        let inode = disk.inode(&Path::new(FOLDER).join(FILES[n]));
        standing((read[n].as_ref(), inode), queue, merged.number)
    });
    for (file, _) in FILES.iter().zip(&files).filter(|(_, standing)| **standing == NotesFile::Stale)
    {
        let path = full(disk, &Path::new(FOLDER).join(file));
        tracing::warn!(path = %path.display(), "lacks a part of the state; the other file has it");
    }
    let (rows, last) = (merged.rows, merged.number);
    Ok(Found::Notes(Notes { queue, rows, last, given: last, files, is_of_earlier: false }))
}

/// Whether a file can be added to: it has the last note, and nothing else.
fn standing(
    (read, inode): (Option<&NotesRead>, Option<(u64, u64)>),
    queue: Uuid,
    number: u64,
) -> NotesFile {
    let Some(read) = read.filter(|read| !read.damaged && !read.torn) else {
        return NotesFile::Stale;
    };
    let begins = read.notes.first().is_some_and(|note| note.kind == Kind::Snapshot);
    let ends = read.notes.last().is_some_and(|note| note.number.own == number);
    let whole = read.notes.is_sorted_by(|a, b| b.number.after == a.number.own);
    let own = read.notes.iter().all(|note| note.queue == queue);
    if !(begins && ends && whole && own) {
        return NotesFile::Stale;
    }
    let bytes = read.sound_bytes;
    NotesFile::Sound { inode, bytes, snapshot_bytes: 0, reserved: 0 }
}

fn read_file(disk: &impl ReadDisk, n: usize) -> Result<Option<NotesRead>, StoreError> {
    let path = Path::new(FOLDER).join(FILES[n]);
    let read = || {
        let mut bytes = Vec::new();
        disk.open(&path)?.read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(note::read(&bytes))
    };
    let failed = |error| StoreError::new("read", full(disk, &path), error);
    match read() {
        Ok(NotesRead { unknown_version: Some(version), .. }) => {
            Err(failed(later_version("the state", version)))
        }
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Something else stands in its place: it is lost, and will be put aside.
        Err(error) if identity::is_lost(&error) => {
            Ok(Some(NotesRead { damaged: true, ..NotesRead::default() }))
        }
        Err(error) => Err(failed(error)),
    }
}

/// A start after the process ended in the middle of taking over the state of an earlier version:
/// the new one was complete when the old one was moved away, and not before.
fn finish_taking_over(disk: &mut impl WriteDisk) -> Result<(), StoreError> {
    let (folder, draft) = (Path::new(FOLDER), Path::new(DRAFT));
    if !disk.has_folder(draft) {
        return Ok(());
    }
    let finished =
        if disk.has_folder(folder) { disk.remove(draft) } else { disk.rename(draft, folder) };
    let finished = finished.and_then(|()| disk.sync(Path::new("")));
    finished.map_err(|error| StoreError::new("move", full(disk, draft), error))
}

/// Moves a state that is lost to where a person finds it.
fn put_aside(disk: &mut impl WriteDisk, why: &str) -> Result<(), StoreError> {
    let folder = Path::new(FOLDER);
    let aside: PathBuf = Path::new(QUARANTINE).join(format!("state-{}", Uuid::new_v4()));
    let moved = disk.rename(folder, &aside).and_then(|()| disk.sync(Path::new("")));
    moved.map_err(|error| StoreError::new("move aside", full(disk, folder), error))?;
    tracing::error!(
        why, kept = %full(disk, &aside).display(),
        "the queue's state is lost and starts anew; batches may be sent again"
    );
    Ok(())
}

fn reserve(disk: &mut impl WriteDisk, file: &Path, end: u64, reserved: u64) -> u64 {
    if reserved >= end + RESERVE_BYTES / 2 {
        return reserved;
    }
    match disk.reserve(file, end + RESERVE_BYTES) {
        Ok(()) => end + RESERVE_BYTES,
        Err(_) => reserved, // a full disk; asked again with the next note
    }
}
