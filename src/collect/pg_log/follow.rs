//! The files of a log, and up to where one of them has been read.
//!
//! A file is known by device, inode and the checksums of its first bytes and of those before the
//! position, so that one that was renamed is found again and one that was written anew under the
//! same name is read from its start.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How much of a file's beginning its checksum covers.
pub(super) const HEAD_BYTES: usize = 256;
/// How much before a position its checksum covers: a few lines with their times.
pub(super) const TAIL_BYTES: u64 = 1_024;
pub(super) const NANOSECONDS_PER_SECOND: i128 = 1_000_000_000;
/// The longest line that is kept; the rest of it is cut.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Names with these endings are no logs in the stderr format.
const OTHER_FORMATS: [&str; 8] = [".csv", ".json", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip"];

/// Where the log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// One file; what it was renamed or copied to is finished, nothing else is read.
    File(PathBuf),
    /// Every log in a directory.
    Directory(PathBuf),
}

/// A file, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

/// Up to where a file has been read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) path: PathBuf,
    device: u64,
    inode: u64,
    pub(super) offset: u64,
    fingerprint: u32,
    pub(super) fingerprint_bytes: usize,
    /// The checksum of what lies before `offset`; absent from states of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tail: Option<u32>,
    /// When the file was last written, as far as is known, nanoseconds since 1970.
    pub(super) modified: i128,
    /// How long it was then.
    #[serde(default)]
    pub(super) size: u64,
    /// The file that this one is a copy of: what they share is read there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) copy_of: Option<FileId>,
    /// What was read of it last had no line of a log.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_foreign: bool,
}

/// A log on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    pub(super) size: u64,
    /// Nanoseconds since 1970.
    pub(super) modified: i128,
    /// When it was made, renamed or written last, nanoseconds since 1970.
    pub(super) changed: i128,
}

/// One line's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineEnd {
    /// A newline; `cut` bytes beyond the limit were dropped.
    Newline { bytes: u64, cut: u64 },
    /// The file ends before one.
    Partial { bytes: u64, cut: u64 },
    /// The file ends here.
    Eof,
}

impl Place {
    /// What `path` is: a directory of logs, or one log.
    pub(super) fn at(path: PathBuf) -> Self {
        if path.is_dir() { Self::Directory(path) } else { Self::File(path) }
    }

    /// The file or the directory.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Directory(path) => path,
        }
    }

    /// The logs there, each once, the last written one at the end. Beside one file, those whose
    /// names begin with its name: it may have been renamed or copied there.
    pub(super) fn candidates(&self) -> io::Result<Vec<Candidate>> {
        let mut found = match self {
            Self::File(path) => {
                let mut found = vec![Candidate::of(path)?];
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let parent = path.parent().unwrap_or(Path::new("."));
                found.extend(list(parent, |sibling| sibling.starts_with(&name))?);
                found
            }
            Self::Directory(directory) => list(directory, |_| true)?,
        };
        let mut seen = BTreeSet::new();
        found.retain(|candidate| seen.insert(candidate.id));
        found.sort_by(|a, b| (a.modified, &a.path).cmp(&(b.modified, &b.path)));
        Ok(found)
    }

    /// Whether `path` is named as a rotation names the earlier files of one log: `NAME.1`,
    /// `NAME-20260731`.
    pub(super) fn is_earlier(&self, path: &Path) -> bool {
        let Self::File(own) = self else { return false };
        let name = |path: &Path| path.file_name().map(|it| it.to_string_lossy().into_owned());
        let (Some(own), Some(name)) = (name(own), name(path)) else { return false };
        let Some(rest) = name.strip_prefix(&own) else { return false };
        let marks = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '_' | ':' | 'T' | 'Z');
        rest.contains(|c: char| c.is_ascii_digit()) && rest.chars().all(marks)
    }

    /// Whether a file that is not known yet is one to read.
    pub(super) fn takes(&self, path: &Path) -> bool {
        match self {
            Self::File(own) => own == path,
            Self::Directory(_) => true,
        }
    }
}

impl Candidate {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from_metadata(path, &fs_err::metadata(path)?))
    }

    /// An open file, whose name may be gone.
    pub(super) fn open(file: &fs_err::File) -> io::Result<Self> {
        Ok(Self::from_metadata(file.path(), &file.metadata()?))
    }

    fn from_metadata(path: &Path, metadata: &Metadata) -> Self {
        let time = |seconds, nanoseconds| {
            i128::from(seconds) * NANOSECONDS_PER_SECOND + i128::from(nanoseconds)
        };
        Self {
            path: path.to_owned(),
            id: FileId { device: metadata.dev(), inode: metadata.ino() },
            size: metadata.len(),
            modified: time(metadata.mtime(), metadata.mtime_nsec()),
            changed: time(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// How long the file had not been written to at `now`; 0 when that was later.
    pub(super) fn idle(&self, now: Timestamp) -> Duration {
        let idle = now.as_nanosecond().saturating_sub(self.modified);
        Duration::from_nanos(u64::try_from(idle).unwrap_or(0))
    }
}

impl Position {
    /// The position `offset` in an open file that began with `head` when it was opened. If it does
    /// not any more, this is a position in what it was.
    pub(super) fn at(file: &fs_err::File, head: &[u8], offset: u64) -> io::Result<Self> {
        let Candidate { path, id, size, modified, .. } = Candidate::open(file)?;
        let now = read_at(file, 0, HEAD_BYTES)?;
        let head = if now.starts_with(head) { &now } else { head };
        Ok(Self {
            path,
            device: id.device,
            inode: id.inode,
            offset,
            fingerprint: crc32c::crc32c(head),
            fingerprint_bytes: head.len(),
            tail: Some(crc32c::crc32c(&before(file, offset)?)),
            modified,
            size,
            copy_of: None,
            is_foreign: false,
        })
    }

    pub(super) fn id(&self) -> FileId {
        FileId { device: self.device, inode: self.inode }
    }

    /// Whether `file` begins as the position's file did.
    pub(super) fn begins(&self, file: &fs_err::File) -> io::Result<bool> {
        let head = read_at(file, 0, self.fingerprint_bytes)?;
        let found = (crc32c::crc32c(&head), head.len());
        Ok(found == (self.fingerprint, self.fingerprint_bytes))
    }

    /// Whether `file` holds what was read: it is the position's file, or a copy of it.
    pub(super) fn holds(&self, file: &fs_err::File) -> io::Result<bool> {
        if file.metadata()?.len() < self.offset || !self.begins(file)? {
            return Ok(false);
        }
        let Some(tail) = self.tail else { return Ok(true) };
        Ok(crc32c::crc32c(&before(file, self.offset)?) == tail)
    }

    /// Whether the same of the same file is read as at `other`.
    pub(super) fn is_where(&self, other: &Self) -> bool {
        let place = |it: &Self| (it.id(), it.offset, it.copy_of);
        place(self) == place(other)
    }
}

/// What lies right before `offset`.
fn before(file: &fs_err::File, offset: u64) -> io::Result<Vec<u8>> {
    let bytes = offset.min(TAIL_BYTES);
    read_at(file, offset - bytes, usize::try_from(bytes).unwrap_or(0))
}

/// At most `bytes` from `offset` on; fewer at the end.
pub(super) fn read_at(file: &fs_err::File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.file().read_at(room, offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// A file from `offset` on.
pub(super) fn reader(file: &fs_err::File, offset: u64) -> io::Result<BufReader<fs_err::File>> {
    let mut file = file.try_clone()?;
    file.seek(SeekFrom::Start(offset))?;
    Ok(BufReader::with_capacity(LINE_BYTES_MAX, file))
}

/// Reads a line into `line`, without its newline and cut at the limit.
pub(super) fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<LineEnd> {
    line.clear();
    let (mut bytes, mut cut) = (0, 0);
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            let partial = LineEnd::Partial { bytes, cut };
            return Ok(if bytes == 0 { LineEnd::Eof } else { partial });
        }
        let newline = buffer.iter().position(|byte| *byte == b'\n');
        let text = &buffer[..newline.unwrap_or(buffer.len())];
        let kept = text.len().min(LINE_BYTES_MAX - line.len());
        line.extend_from_slice(&text[..kept]);
        cut += (text.len() - kept) as u64;
        let used = newline.map_or(buffer.len(), |at| at + 1);
        bytes += used as u64;
        reader.consume(used);
        if newline.is_some() {
            return Ok(LineEnd::Newline { bytes, cut });
        }
    }
}

fn list(directory: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !wanted(&name) || OTHER_FORMATS.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        // A file that was removed since the directory was read is no error.
        match fs_err::metadata(entry.path()) {
            Ok(metadata) if metadata.is_file() => {
                found.push(Candidate::from_metadata(&entry.path(), &metadata));
            }
            _ => {}
        }
    }
    Ok(found)
}
