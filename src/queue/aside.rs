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

use uuid::Uuid;

use super::{
    dead::{self, DeadCount, DeadPage},
    files::{at, if_absent},
    format::{
        block::{self, Codec},
        group,
        record::Record,
        salvage::Stranger,
    },
    log::index::same_block,
    store::{
        self, QUARANTINE, StoreError,
        disk::ReadDisk,
        identity,
        real::{LookedAt, occupied},
    },
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
    /// What can be read of it; only of segments, and only when that was asked for.
    pub readable: Option<Readable>,
}

/// What an entry of `quarantine/` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuarantinedKind {
    /// A segment with damage.
    Segment,
    /// A segment of another queue, one whose folder had another's name, or one that another process
    /// wrote at the same time.
    Stranger,
    /// A state with damage.
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
        for entry in list.iter_mut().filter(|entry| entry.kind.is_segment()) {
            entry.readable = Some(self.readable(&entry.name));
        }
        Ok(list)
    }

    /// What can be read of the segment `name` in quarantine.
    pub fn readable(&self, name: &str) -> Readable {
        let mut readable = Readable::default();
        let read = self.each_block(name, |records| {
            readable.blocks += 1;
            readable.records += records.len() as u64;
            for record in &records {
                let lowest = readable.first_seq.map_or(record.seq, |seq| seq.min(record.seq));
                readable.first_seq = Some(lowest);
                readable.last_seq = readable.last_seq.max(Some(record.seq));
            }
        });
        readable.error = read.err().map(|error| error.to_string());
        readable
    }

    /// Reads a segment in quarantine, block by block.
    pub(super) fn each_block(
        &self,
        name: &str,
        mut each: impl FnMut(Vec<Record>),
    ) -> Result<(), StoreError> {
        let disk = LookedAt::at(&self.dir);
        let folder = Path::new(QUARANTINE).join(name);
        let wrong = || StoreError::new("read", self.dir.join(&folder), io::ErrorKind::InvalidInput);
        let owner = match (stranger_of(name), quarantined_segment(name)) {
            (Some(owner), _) => owner,
            (None, Some(segment)) => Stranger { queue: identity::find(&disk)?, segment },
            (None, None) => return Err(wrong()),
        };
        let found = store::scan_in(&disk, &folder, owner.queue, owner.segment)?.found;
        for block in found.chunk_by(same_block) {
            let frames = store::read_frames_in(&disk, &folder, block)?;
            let records = match block.first().map(|frame| frame.head.codec) {
                Some(Codec::Records) => block::decode(&frames).map(|body| body.records),
                Some(Codec::Group) => group::decode(&frames)
                    .map(|(batches, _)| batches.into_iter().flat_map(|own| own.records).collect()),
                None => continue,
            };
            if let Ok(records) = records {
                each(records);
            }
        }
        Ok(())
    }
}

impl QuarantinedKind {
    /// Whether it has records.
    pub fn is_segment(self) -> bool {
        matches!(self, Self::Segment | Self::Stranger)
    }

    fn of(name: &str) -> Self {
        if quarantined_segment(name).is_some() {
            Self::Segment
        } else if stranger_of(name).is_some() {
            Self::Stranger
        } else if name.starts_with("state-") {
            Self::State
        } else {
            Self::Other
        }
    }
}

/// What the agent put into quarantine first, of what may go: its records were sent, or counted.
/// Those of strangers were neither.
pub(super) fn oldest_quarantined(disk: &impl ReadDisk) -> Option<String> {
    let names = disk.names(Path::new(QUARANTINE)).unwrap_or_default();
    let own = names.into_iter().filter_map(|name| {
        use QuarantinedKind::{Segment, State};
        let path = Path::new(QUARANTINE).join(&name);
        let may_go = matches!(QuarantinedKind::of(&name), Segment | State);
        (may_go && disk.has_folder(&path)).then(|| (disk.changed_at(&path), name))
    });
    own.min().map(|(_, name)| name)
}

/// Bytes of what is in quarantine, without strangers: what never goes has no part in the budget.
pub(super) fn quarantined_bytes(disk: &impl ReadDisk) -> u64 {
    let names = disk.names(Path::new(QUARANTINE)).unwrap_or_default();
    let counts = |name: &&String| QuarantinedKind::of(name) != QuarantinedKind::Stranger;
    names.iter().filter(counts).map(|name| disk.occupied(&Path::new(QUARANTINE).join(name))).sum()
}

fn quarantined(entry: &fs::DirEntry) -> Quarantined {
    let name = entry.file_name().to_string_lossy().into_owned();
    let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
    let kind = if is_dir { QuarantinedKind::of(&name) } else { QuarantinedKind::Other };
    let data = fs::symlink_metadata(entry.path()).ok();
    Quarantined {
        name,
        kind,
        // Moving a directory changes nothing in it; the inode's own time is that of the move.
        at: data.and_then(|data| Timestamp::new(data.ctime(), 0).ok()),
        disk_bytes: occupied(&entry.path()),
        readable: None,
    }
}

/// The number that the name of a segment's directory stands for.
pub(super) fn segment_of(name: &str) -> Option<u64> {
    let digits = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok()).flatten()
}

/// The same of a name in quarantine, which may have a number behind it.
pub(super) fn quarantined_segment(name: &str) -> Option<u64> {
    match name.split_once('.') {
        None => segment_of(name),
        Some((id, again)) => again.parse::<u32>().ok().and_then(|_| segment_of(id)),
    }
}

/// The name in quarantine of a segment that belongs elsewhere.
pub(super) fn stranger_name(owner: Stranger) -> String {
    format!("{STRANGER}{}-{:020}", owner.queue, owner.segment)
}

/// The same of one that another process wrote at the same time, with numbers that others have.
pub(super) fn rival_name(owner: Stranger) -> String {
    format!("{RIVAL}{}-{:020}", owner.queue, owner.segment)
}

/// Whether a name in quarantine is such a one.
pub(super) fn is_rival(name: &str) -> bool {
    name.starts_with(RIVAL)
}

/// Where the segment with this name in quarantine belongs, if it is a stranger.
pub(super) fn stranger_of(name: &str) -> Option<Stranger> {
    let name = name.strip_prefix(STRANGER).or_else(|| name.strip_prefix(RIVAL))?;
    let (queue, segment) = name.rsplit_once('-')?;
    Some(Stranger { queue: Uuid::parse_str(queue).ok()?, segment: quarantined_segment(segment)? })
}

const STRANGER: &str = "stranger-";
const RIVAL: &str = "rival-";

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

    #[test]
    fn names_in_quarantine_say_what_they_are() {
        let owner = Stranger { queue: Uuid::from_u128(5), segment: 7 };
        let name = stranger_name(owner);
        for name in [name.clone(), format!("{name}.2"), rival_name(owner)] {
            assert_eq!(stranger_of(&name), Some(owner), "{name}");
            assert_eq!(QuarantinedKind::of(&name), QuarantinedKind::Stranger);
        }
        for name in ["00000000000000000007", "00000000000000000007.1"] {
            assert_eq!(quarantined_segment(name), Some(7));
            assert_eq!(QuarantinedKind::of(name), QuarantinedKind::Segment);
        }
        assert_eq!(QuarantinedKind::of("state-x"), QuarantinedKind::State);
        for name in ["00000000000000000007.x", "stranger-7", "notes"] {
            assert_eq!(QuarantinedKind::of(name), QuarantinedKind::Other, "{name}");
        }
    }
}
