//! The files of a queue directory, as far as no database is involved.
//!
//! Layout: `QUEUE` (identity), `lock`, `state/`, `segments/<id>/`, `trash/` (being removed),
//! `delivered/<id>/` (kept for a while), `quarantine/` (damaged, kept for a person), `dead.ndjson`
//! (refused records).

use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use fs_err::{self as fs, File};
use rustix::fs::FlockOperation;
use uuid::Uuid;

use super::{
    block::MAGIC,
    budget::DiskSpace,
    salvage::{self, Found, Scan},
    store::StoreError,
};

const IDENTITY_FORMAT: &str = "pganalytics-queue 1";

/// The numbers of the segments in `dir`; other names are left alone.
pub(super) fn segment_ids(dir: &Path) -> Result<Vec<u64>, StoreError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at("list", dir))?,
    };
    let mut ids: Vec<u64> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

pub(super) fn segment_dir(dir: &Path, id: u64) -> PathBuf {
    dir.join("segments").join(format!("{id:020}"))
}

pub(super) fn kept_dir(dir: &Path, id: u64) -> PathBuf {
    dir.join("delivered").join(format!("{id:020}"))
}

/// Where a segment is: among those to deliver, else among those that are kept.
pub(super) fn find_segment(dir: &Path, id: u64) -> PathBuf {
    let (waiting, kept) = (segment_dir(dir, id), kept_dir(dir, id));
    if !waiting.exists() && kept.exists() { kept } else { waiting }
}

/// Room on the file system of `dir`.
pub(super) fn space(dir: &Path) -> Option<DiskSpace> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(DiskSpace {
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

pub(super) fn read_identity(dir: &Path) -> Result<Uuid, StoreError> {
    let path = dir.join("QUEUE");
    let text = fs::read_to_string(&path).map_err(at("read", &path))?;
    let id = text.strip_prefix(IDENTITY_FORMAT).and_then(|id| Uuid::parse_str(id.trim()).ok());
    id.ok_or_else(|| {
        let message = format!("expected `{IDENTITY_FORMAT} <uuid>`");
        StoreError::new("read", path, io::Error::new(io::ErrorKind::InvalidData, message))
    })
}

/// The identity that the frames of a queue name: all that is left of one whose `QUEUE` is gone.
pub(super) fn identity_of_frames(dir: &Path) -> Option<Uuid> {
    ["segments", "delivered"].into_iter().find_map(|place| {
        let segments = dir.join(place);
        segment_ids(&segments).ok()?.into_iter().find_map(|id| {
            let file = File::open(find_segment(dir, id).join("db")).ok()?;
            salvage::queue_of(file, id).ok()?
        })
    })
}

/// Bytes on disk of all files below `dir`.
pub(super) fn allocated_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => allocated_bytes(&entry.path()),
            Ok(data) => data.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(at("open", &path))?;
    rustix::fs::flock(file.file(), FlockOperation::NonBlockingLockExclusive)
        .map_err(|error| StoreError::new("lock", &path, error))?;
    Ok(file)
}

/// The queue's identity; one that is lost is taken from the segments, which carry it: with another
/// they would be a stranger's.
pub(super) fn read_or_make_identity(dir: &Path) -> Result<Uuid, StoreError> {
    let path = dir.join("QUEUE");
    let lost = match read_identity(dir) {
        Ok(id) => return Ok(id),
        Err(error) => error,
    };
    let id = match (identity_of_frames(dir), lost.source.kind()) {
        (Some(id), _) => {
            tracing::warn!(error = %lost, %id, "the queue's id is written anew from its segments");
            id
        }
        (None, io::ErrorKind::NotFound) => Uuid::new_v4(),
        (None, _) => return Err(lost),
    };
    write_identity(&path, id)?;
    Ok(id)
}

pub(super) fn write_identity(path: &Path, id: Uuid) -> Result<(), StoreError> {
    let draft = path.with_extension("new");
    let text = format!("{IDENTITY_FORMAT} {id}\n");
    fs::write(&draft, text).map_err(at("write", &draft))?;
    sync_file(&draft)?;
    fs::rename(&draft, path).map_err(at("rename", &draft))?;
    sync_file(path.parent().unwrap_or(path))
}

pub(super) fn scan_segment(dir: &Path, queue_id: Uuid, id: u64) -> Result<Scan, StoreError> {
    let path = dir.join("db");
    match File::open(&path) {
        Ok(file) => salvage::scan(file, queue_id, id).map_err(at("read", &path)),
        Err(error) => if_absent(Scan::default())(error).map_err(at("open", &path)),
    }
}

pub(super) fn read_frames(dir: &Path, frames: &[Found]) -> Result<Vec<Vec<u8>>, StoreError> {
    let path = dir.join("db");
    let mut file = File::open(&path).map_err(at("open", &path))?;
    let mut read = |frame: &Found| {
        let mut bytes = Vec::with_capacity(frame.head.frame_bytes());
        file.seek(SeekFrom::Start(frame.offset))?;
        Read::by_ref(&mut file).take(frame.head.frame_bytes() as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    frames.iter().map(&mut read).collect::<io::Result<_>>().map_err(at("read", &path))
}

/// Overwrites the magic numbers at `offsets`, in place: that needs no free space.
pub(super) fn erase(path: &Path, offsets: impl Iterator<Item = u64>) -> Result<(), StoreError> {
    let mut offsets = offsets.peekable();
    if offsets.peek().is_none() {
        return Ok(());
    }
    let erase = || {
        let mut file = fs::OpenOptions::new().write(true).open(path)?;
        for offset in offsets {
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(&[0; MAGIC.len()])?;
        }
        file.sync_data()
    };
    erase().map_err(at("write to", path))
}

pub(super) fn move_dir(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).or_else(if_absent(())).map_err(at("move", from))?;
    sync_file(from.parent().unwrap_or(from))
}

pub(super) fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

pub(super) fn sync_file(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(at("sync", path))
}

pub(super) fn at<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> StoreError + use<E> {
    let path = path.to_owned();
    move |error| StoreError::new(action, path, error)
}

pub(super) fn if_absent<T>(value: T) -> impl FnOnce(io::Error) -> io::Result<T> {
    |error| if error.kind() == io::ErrorKind::NotFound { Ok(value) } else { Err(error) }
}
