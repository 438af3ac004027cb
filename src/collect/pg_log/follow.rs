//! Which file to read, from where, and what comes after it.
//!
//! A file is known by device, inode and a checksum of its first bytes, so that one that was
//! renamed is found again and one that was written anew under the same name is read from its
//! start. What was rotated away is read to its end before the next file.

use std::fs::Metadata;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How much of a file its checksum covers.
const FINGERPRINT_BYTES: usize = 256;
/// The longest line that is kept; the rest of it is cut.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Names with these endings are no logs in the stderr format.
const OTHER_FORMATS: [&str; 8] = [".csv", ".json", ".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip"];

/// Where the log is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// One file; what it was renamed to is finished, nothing else is read.
    File(PathBuf),
    /// Every log in a directory, in the order they were last written.
    Directory(PathBuf),
}

/// Up to where a file has been read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) path: PathBuf,
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) offset: u64,
    fingerprint: u32,
    fingerprint_bytes: usize,
    /// When the file was last written, as far as is known, nanoseconds since 1970.
    modified: i128,
}

/// A log on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    device: u64,
    inode: u64,
    pub(super) size: u64,
    /// Nanoseconds since 1970.
    modified: i128,
}

/// What the search for a known position found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// The same file, long enough.
    Same,
    /// The name or the inode is there, the content is another's.
    Rewritten,
    Gone,
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
    /// The logs there, the last written one at the end.
    pub(super) fn candidates(&self) -> io::Result<Vec<Candidate>> {
        let mut found = match self {
            Self::File(path) => vec![Candidate::of(path)?],
            Self::Directory(directory) => list(directory, |_| true)?,
        };
        found.sort_by(|a, b| (a.modified, &a.path).cmp(&(b.modified, &b.path)));
        Ok(found)
    }

    /// The file of `position`, wherever it was renamed to.
    pub(super) fn find(&self, position: &Position) -> io::Result<Option<Candidate>> {
        let siblings = match self {
            Self::Directory(directory) => list(directory, |_| true)?,
            Self::File(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let parent = path.parent().unwrap_or(Path::new("."));
                list(parent, |sibling| sibling.starts_with(&name))?
            }
        };
        Ok(siblings.into_iter().find(|candidate| candidate.is(position)))
    }
}

impl Candidate {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from_metadata(path, &fs_err::metadata(path)?))
    }

    fn from_metadata(path: &Path, metadata: &Metadata) -> Self {
        Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
        }
    }

    /// Whether this is the position's file.
    pub(super) fn is(&self, position: &Position) -> bool {
        (self.device, self.inode) == (position.device, position.inode)
    }

    /// Whether the file was written to after the position's.
    pub(super) fn is_after(&self, position: &Position) -> bool {
        self.modified > position.modified && !self.is(position)
    }
}

impl Position {
    /// The position `offset` in an open file.
    pub(super) fn at(file: &fs_err::File, path: &Path, offset: u64) -> io::Result<Self> {
        let candidate = Candidate::from_metadata(path, &file.metadata()?);
        let (fingerprint, fingerprint_bytes) = fingerprint(file, FINGERPRINT_BYTES)?;
        Ok(Self {
            path: candidate.path,
            device: candidate.device,
            inode: candidate.inode,
            offset,
            fingerprint,
            fingerprint_bytes,
            modified: candidate.modified,
        })
    }

    /// How long the file had not been written to at `now`; 0 when that was later.
    pub(super) fn idle(&self, now: Timestamp) -> Duration {
        let idle = now.as_nanosecond().saturating_sub(self.modified);
        Duration::from_nanos(u64::try_from(idle).unwrap_or(0))
    }

    /// Whether `file`, which has the position's inode, is still what it was.
    pub(super) fn check(&self, file: &fs_err::File) -> io::Result<Known> {
        let (fingerprint, bytes) = fingerprint(file, self.fingerprint_bytes)?;
        let same = file.metadata()?.len() >= self.offset
            && (fingerprint, bytes) == (self.fingerprint, self.fingerprint_bytes);
        Ok(if same { Known::Same } else { Known::Rewritten })
    }
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

/// The checksum of the first bytes, at most `bytes`, and how many there are.
fn fingerprint(file: &fs_err::File, bytes: usize) -> io::Result<(u32, usize)> {
    let mut buffer = Vec::with_capacity(bytes);
    let mut chunk = [0; FINGERPRINT_BYTES];
    while buffer.len() < bytes {
        let wanted = (bytes - buffer.len()).min(chunk.len());
        let read = file.file().read_at(&mut chunk[..wanted], buffer.len() as u64)?;
        if read == 0 {
            break;
        }
        buffer.extend_from_slice(&chunk[..read]);
    }
    Ok((crc32c::crc32c(&buffer), buffer.len()))
}
