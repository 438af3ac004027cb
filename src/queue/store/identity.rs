//! The queue's identity: the file `QUEUE`, and what else in the directory says whose queue it is.

use std::{
    io::{self, Read},
    path::Path,
};

use uuid::Uuid;

use super::{
    FRAMES_FILE, KEPT, QUARANTINE, SEGMENTS, StoreError,
    disk::{ReadDisk, WriteDisk},
    full, later_version, notes,
};
use crate::queue::format::salvage;

const FILE: &str = "QUEUE";
const FORMAT: &str = "pganalytics-queue";
const VERSION: u16 = 1;

/// What the file `QUEUE` says.
pub fn read(disk: &impl ReadDisk) -> Result<Uuid, StoreError> {
    let path = Path::new(FILE);
    let read = || {
        let mut text = String::new();
        disk.open(path)?.read_to_string(&mut text)?;
        let mut words = text.split_ascii_whitespace();
        let known = words.next() == Some(FORMAT);
        let version = words.next().and_then(|version| version.parse::<u16>().ok());
        if let Some(version) = version.filter(|version| known && *version > VERSION) {
            return Err(later_version("a queue", version));
        }
        let id = words.next().and_then(|id| Uuid::parse_str(id).ok());
        id.filter(|_| known && version == Some(VERSION)).ok_or_else(|| {
            let message = format!("expected `{FORMAT} {VERSION} <uuid>`");
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    };
    read().map_err(|error| StoreError::new("read", full(disk, path), error))
}

/// The queue's identity: what `QUEUE` says, when the journal or a frame agrees with it, or when
/// there is neither. A name that nothing agrees with counts as missing: with it, everything in the
/// queue would be a stranger's. Fails when nothing says whose queue it is.
pub fn find(disk: &impl ReadDisk) -> Result<Uuid, StoreError> {
    let named = read(disk);
    if let Err(error) = &named
        && !is_lost(&error.source)
    {
        return named; // it may be there, and only not be given
    }
    let noted = notes::queues(disk)?;
    let is_noted = |id: &Uuid| noted.contains(id);
    if named.as_ref().is_ok_and(is_noted) {
        return named;
    }
    let in_frames = frames_queues(disk);
    if let Ok(id) = named
        && in_frames.contains(&id)
    {
        return Ok(id);
    }
    noted.first().or(in_frames.first()).copied().map_or(named, Ok)
}

/// Fails when the directory is another queue's: one that was mounted, or moved, over it under the
/// process. Nothing may be written there.
pub fn check(disk: &impl ReadDisk, own: Uuid) -> Result<(), StoreError> {
    match read(disk) {
        Ok(named) if named != own => Err(another(disk, named, own)),
        _ => Ok(()),
    }
}

/// The same of a directory that has come in the place of one, and may have lost its name.
pub fn check_all(disk: &impl ReadDisk, own: Uuid) -> Result<(), StoreError> {
    match find(disk) {
        Ok(found) if found != own => Err(another(disk, found, own)),
        Err(error) if !is_lost(&error.source) => Err(error),
        _ => Ok(()),
    }
}

fn another(disk: &impl ReadDisk, found: Uuid, own: Uuid) -> StoreError {
    let message = format!(
        "it holds another queue, {found}, which has come in the place of {own}; nothing is written \
         there\n  hint: is it the right one? Restart the agent, and it goes on with that; until \
         then records stay in memory, and are sent from there"
    );
    StoreError::new("use", full(disk, Path::new(FILE)), io::Error::other(message))
}

/// The same as [`find`]; a name that is lost is written anew, and a new queue gets one.
/// Says, too, whether it is new.
pub fn find_or_make(disk: &mut impl WriteDisk) -> Result<(Uuid, bool), StoreError> {
    let named = read(disk);
    let (id, is_new) = match find(disk) {
        Ok(id) => (id, false),
        // Nothing says what it was, so there is nothing that would not be found under another.
        Err(error) if is_lost(&error.source) => (Uuid::new_v4(), true),
        Err(error) => return Err(error),
    };
    match named {
        Ok(named) if named == id => return Ok((id, false)),
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
            tracing::info!(%id, "the queue's id is written");
        }
        Ok(named) => {
            tracing::error!(%id, %named, "QUEUE named another queue; it is written anew");
        }
        Err(error) => tracing::error!(%id, %error, "the queue's id is written anew"),
    }
    write(disk, id)?;
    Ok((id, is_new))
}

/// Writes the file `QUEUE`; durable when this returns.
pub fn write(disk: &mut impl WriteDisk, id: Uuid) -> Result<(), StoreError> {
    let (path, draft) = (Path::new(FILE), Path::new("QUEUE.new"));
    let text = format!("{FORMAT} {VERSION} {id}\n");
    let mut write = || {
        put_folder_aside(disk, path)?;
        disk.remove(draft)?;
        disk.write(draft, 0, text.as_bytes())?;
        disk.sync(draft)?;
        disk.rename(draft, path)?;
        disk.sync(Path::new(""))
    };
    let written = write();
    written.map_err(|error| StoreError::new("write", full(disk, path), error))
}

/// Moves a folder that stands where a file should be to where a person finds it.
pub(super) fn put_folder_aside(disk: &mut impl WriteDisk, path: &Path) -> io::Result<()> {
    if !disk.has_folder(path) {
        return Ok(());
    }
    let aside = Path::new(QUARANTINE).join(format!("state-{}", Uuid::new_v4()));
    disk.rename(path, &aside)
}

/// The queues that the segments' first frames name.
fn frames_queues(disk: &impl ReadDisk) -> Vec<Uuid> {
    let mut queues = Vec::new();
    for folder in [SEGMENTS, KEPT].map(Path::new) {
        for name in disk.names(folder).unwrap_or_default() {
            let file = disk.open(&folder.join(name).join(FRAMES_FILE));
            let first = file.and_then(salvage::first_owner).ok().flatten();
            if let Some(first) = first.filter(|first| !queues.contains(&first.queue)) {
                queues.push(first.queue);
            }
        }
    }
    queues
}

/// Whether a file is lost, as opposed to not given now.
pub(super) fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | InvalidData | IsADirectory | NotADirectory)
}
