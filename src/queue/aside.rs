//! What lies beside the log in a queue's directory: dead letters, and what was put into quarantine.
//! Read from any process.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    block::{self, Codec},
    dead::{self, DeadCount, DeadPage, dead_letters},
    files::{allocated_bytes, at, if_absent, read_frames, read_identity, scan_segment},
    group,
    index::same_block,
    store::StoreError,
};

/// A queue's directory, as far as it can be read without the log.
#[derive(Debug, Clone)]
pub struct Aside {
    dir: PathBuf,
}

/// An entry of `quarantine/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its name in `quarantine/`.
    pub name: String,
    /// What it is.
    pub kind: QuarantinedKind,
    /// When it was put there.
    pub at: Option<Timestamp>,
    /// Bytes that it occupies.
    pub disk_bytes: u64,
    /// What can be read of it; only of a segment, and only when that was asked for.
    pub readable: Option<Readable>,
}

/// What an entry of `quarantine/` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuarantinedKind {
    /// A segment with damage.
    Segment,
    /// A state database with damage.
    State,
    /// Nothing that the agent has put there.
    Other,
}

/// What can be read of a segment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readable {
    /// Blocks.
    pub blocks: u64,
    /// Records in them.
    pub records: u64,
    /// The lowest sequence number of them.
    pub first_seq: Option<u64>,
    /// The highest.
    pub last_seq: Option<u64>,
    /// Why nothing could be read, if so.
    pub error: Option<String>,
}

impl Aside {
    /// What lies in the queue directory `dir`.
    pub fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The dead letters that begin at byte `from` of their file, `limit` of them. A last line that
    /// is still being written is left for the next page.
    pub fn dead(&self, from: u64, limit: usize) -> Result<DeadPage, StoreError> {
        dead::page(&self.dir, from, limit)
    }

    /// How many dead letters there are. Reads their file.
    pub fn dead_count(&self) -> Result<DeadCount, StoreError> {
        dead::count(&self.dir)
    }

    /// What is in `quarantine/`, by name.
    pub fn quarantine(&self) -> Result<Vec<Quarantined>, StoreError> {
        let dir = self.dir.join("quarantine");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) => return if_absent(Vec::new())(error).map_err(at("list", &dir)),
        };
        let mut list: Vec<Quarantined> =
            entries.flatten().map(|entry| quarantined(&entry)).collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    }

    /// The same, and what can be read of each segment. Reads them all.
    pub fn quarantine_read(&self) -> Result<Vec<Quarantined>, StoreError> {
        let mut list = self.quarantine()?;
        for entry in list.iter_mut().filter(|entry| entry.kind == QuarantinedKind::Segment) {
            entry.readable = Some(self.readable(&self.dir.join("quarantine").join(&entry.name)));
        }
        Ok(list)
    }

    /// What can be read of the segment in `dir`, whose name is its number.
    pub fn readable(&self, dir: &Path) -> Readable {
        self.read(dir).unwrap_or_else(|error| Readable {
            error: Some(error.to_string()),
            ..Readable::default()
        })
    }

    fn read(&self, dir: &Path) -> Result<Readable, StoreError> {
        let name = dir.file_name().and_then(|name| name.to_str());
        let Some(id) = name.and_then(segment_of) else {
            return Err(StoreError::new("read", dir, io::ErrorKind::InvalidInput));
        };
        let found = scan_segment(dir, read_identity(&self.dir)?, id)?.found;
        let mut readable = Readable::default();
        for block in found.chunk_by(same_block) {
            let frames = read_frames(dir, block)?;
            let records = match block.first().map(|frame| frame.head.codec) {
                Some(Codec::Records) => block::decode(&frames).map(|body| body.records),
                Some(Codec::Group) => group::decode(&frames)
                    .map(|(batches, _)| batches.into_iter().flat_map(|own| own.records).collect()),
                None => continue,
            };
            let Ok(records) = records else { continue };
            readable.blocks += 1;
            readable.records += records.len() as u64;
            for record in &records {
                let lowest = readable.first_seq.map_or(record.seq, |seq| seq.min(record.seq));
                readable.first_seq = Some(lowest);
                readable.last_seq = readable.last_seq.max(Some(record.seq));
            }
        }
        Ok(readable)
    }
}

/// Bytes of what lies beside the log in `dir`.
pub(super) fn bytes(dir: &Path) -> u64 {
    let dead = fs::symlink_metadata(dead_letters(dir)).map_or(0, |data| data.blocks() * 512);
    let quarantine = Aside::of(dir).quarantine().unwrap_or_default();
    dead + quarantine.iter().map(|entry| entry.disk_bytes).sum::<u64>()
}

/// Removes what the agent put into quarantine first; `false` when there is nothing of that.
pub(super) fn drop_oldest_quarantined(dir: &Path) -> Result<bool, StoreError> {
    let entries = Aside::of(dir).quarantine()?;
    let own = entries.iter().filter(|entry| entry.kind != QuarantinedKind::Other);
    let Some(oldest) = own.min_by_key(|entry| (entry.at, &entry.name)) else { return Ok(false) };
    let path = dir.join("quarantine").join(&oldest.name);
    fs::remove_dir_all(&path).map_err(at("remove", &path))?;
    tracing::error!(path = %path.display(), "removed from quarantine: the queue needs the room");
    Ok(true)
}

fn quarantined(entry: &fs::DirEntry) -> Quarantined {
    let name = entry.file_name().to_string_lossy().into_owned();
    let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
    let kind = match (is_dir, segment_of(&name), name.starts_with("state-")) {
        (true, Some(_), _) => QuarantinedKind::Segment,
        (true, None, true) => QuarantinedKind::State,
        _ => QuarantinedKind::Other,
    };
    let data = fs::symlink_metadata(entry.path()).ok();
    let bytes = data.as_ref().map_or(0, |data| data.blocks() * 512);
    Quarantined {
        name,
        kind,
        // Moving a directory changes nothing in it; the inode's own time is that of the move.
        at: data.and_then(|data| Timestamp::new(data.ctime(), 0).ok()),
        disk_bytes: if is_dir { allocated_bytes(&entry.path()) } else { bytes },
        readable: None,
    }
}

/// The number that the name of a segment's directory stands for.
pub(super) fn segment_of(name: &str) -> Option<u64> {
    let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_twenty_digits_are_a_segment() {
        assert_eq!(segment_of("00000000000000000007"), Some(7));
        assert_eq!(segment_of("7"), None);
        assert_eq!(segment_of("+0000000000000000007"), None);
        assert_eq!(segment_of("99999999999999999999"), None);
    }
}
