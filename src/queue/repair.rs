//! Repairing a queue's directory while no agent has it open: first a plan, which changes nothing;
//! then, when it is wanted, the plan is carried out. Nothing is deleted: what is in the way moves
//! into a backup, and what is changed is copied there first.

mod plan;

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use fs_err::{self as fs, File};
use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde::Serialize;
use uuid::Uuid;

use super::{
    aside::Aside,
    files::{at, copy_files, move_dir, sync_file},
    format::{
        record::{Group, NewRecord, Position, Record},
        segment::BatchLimits,
    },
    log::{
        BatchKey, Log, LogLimits,
        ring::Home,
        view::{SegmentInfo, SegmentState},
        writing,
    },
    store::{
        FRAMES_FILE, QUARANTINE, StoreError, identity,
        real::{RealDisk, space},
        segment_folder,
    },
};
use crate::files::open_file;

/// A directory that is being repaired; no agent can open it meanwhile.
#[derive(Debug)]
pub struct Repair {
    dir: PathBuf,
    limits: LogLimits,
    plan: Plan,
    lock: Option<Arc<File>>,
}

/// What there is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In the order in which it is done.
    pub steps: Vec<Step>,
    /// What only a person can do.
    pub remarks: Vec<String>,
}

/// Whether segments in quarantine are queued again, as far as they can be read. What could be read
/// of them was delivered, or queued again, when they were put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeue {
    /// They stay there.
    No,
    /// They are queued again.
    Yes,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What kind of thing.
    pub kind: StepKind,
    /// Where, in the queue's directory.
    pub path: PathBuf,
    /// Records that it is about.
    pub records: u64,
    /// Bytes that the backup of it takes.
    pub backup_bytes: u64,
    /// What is wrong.
    pub what: String,
    /// What is done about it.
    pub fix: String,
    #[serde(skip)]
    action: Action,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The file that names the queue.
    Identity,
    /// The state, or one of its files, is damaged.
    State,
    /// What a kill left of a snapshot of a database.
    LeftOver,
    /// Delivered segments whose removal was under way.
    Trash,
    /// Something in `segments/` that is no segment.
    Foreign,
    /// A segment of which not everything can be read.
    Damaged,
    /// Segments that have vanished.
    Vanished,
    /// A segment in quarantine that has records to read.
    Quarantined,
    /// The same, of another queue, or of a segment that has taken its place.
    Stranger,
}

/// How a step is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    /// The path moves into the backup.
    MoveAside,
    /// The identity is written anew.
    Identify(Uuid),
    /// What can be read of this segment goes to a sound one, the rest into the ledger.
    Salvage(u64),
    /// The segment goes from quarantine to those that wait.
    Requeue(u64),
    /// The records of a stranger become records of this queue, with numbers of their own.
    Adopt(String),
    /// Opening the queue does it.
    Open,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Where everything is that was changed or moved, as it was.
    pub backup: PathBuf,
    /// Records that wait for delivery now.
    pub records: u64,
}

impl StepKind {
    /// Whether records are, or may be, at stake: otherwise it is tidying.
    pub fn is_damage(self) -> bool {
        !matches!(self, Self::LeftOver | Self::Trash | Self::Foreign)
    }
}

impl Repair {
    /// Looks for what is wrong in `dir`. Reads every segment; changes nothing. Fails when an agent
    /// has the queue open.
    pub fn plan(dir: &Path, limits: LogLimits, quarantine: Requeue) -> Result<Self, StoreError> {
        let lock = take_lock(dir)?;
        let plan = plan::of(dir, limits, quarantine)?;
        Ok(Self { dir: dir.to_owned(), limits, plan, lock })
    }

    /// What there is to do.
    pub fn steps(&self) -> &Plan {
        &self.plan
    }

    /// Does it. After an error everything is in the directory or in the backup; planning again says
    /// what is left to do.
    pub fn apply(mut self, now: Timestamp) -> Result<Repaired, StoreError> {
        let backup = self.make_backup(now)?;
        for step in &self.plan.steps {
            self.carry_out(step, &backup)?;
        }
        // The log takes the lock itself.
        self.lock = None;
        let mut log = Log::open(RealDisk::open(&self.dir)?, self.limits)?;
        // Tells the log the time: what it notes from here on is noticed now.
        log.seal(now.as_millisecond());
        for step in &self.plan.steps {
            match &step.action {
                Action::Salvage(id) => salvage(&mut log, *id, now.as_millisecond())?,
                Action::Adopt(name) => {
                    let now_ms = now.as_millisecond();
                    let place = Adopted::of(&self.dir, name)?;
                    adopt(&mut log, (&self.dir, name), self.limits.batch, now_ms)?;
                    log.seal(now_ms);
                    let to = backup.join(&step.path);
                    fs::create_dir_all(to.parent().unwrap_or(&backup))
                        .map_err(at("create", &to))?;
                    move_dir(&self.dir.join(&step.path), &to)?;
                    log.forget_position(&place.collector);
                }
                _ => {}
            }
        }
        let records = log.status().records;
        log.close(now.as_millisecond());
        Ok(Repaired { backup, records })
    }

    /// Copies what will be changed; what will be moved needs no copy.
    fn make_backup(&self, now: Timestamp) -> Result<PathBuf, StoreError> {
        let needed: u64 = self.plan.steps.iter().map(|step| step.backup_bytes).sum();
        if space(&self.dir).is_some_and(|space| space.available < needed) {
            return Err(StoreError::new("back up", &self.dir, io::ErrorKind::StorageFull));
        }
        let name = format!("backup-{}", now.strftime("%Y%m%dT%H%M%S%.3fZ"));
        let backup = self.dir.join(name);
        fs::create_dir(&backup).map_err(at("create", &backup))?;
        self.copy(Path::new("QUEUE"), &backup)?;
        self.copy(Path::new("state"), &backup)?;
        for step in &self.plan.steps {
            if matches!(step.action, Action::Salvage(_) | Action::Requeue(_)) {
                self.copy(&step.path, &backup)?;
            }
        }
        sync_file(&backup)?;
        sync_file(&self.dir)?;
        Ok(backup)
    }

    /// Copies a file or a folder of files, when it is there.
    fn copy(&self, path: &Path, backup: &Path) -> Result<(), StoreError> {
        let (from, to) = (self.dir.join(path), backup.join(path));
        let copy = || {
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent)?;
            }
            match fs::symlink_metadata(&from) {
                Ok(data) if data.is_dir() => {
                    copy_files(&from, &to)?;
                    for entry in fs::read_dir(&to)? {
                        File::open(entry?.path())?.sync_all()?;
                    }
                    File::open(&to)?.sync_all()
                }
                Ok(_) => fs::copy(&from, &to).and_then(|_| File::open(&to)?.sync_all()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        };
        copy().map_err(at("back up", &from))
    }

    /// Writes the queue's name, under the lock that is held already.
    fn identify(&self, id: Uuid) -> Result<(), StoreError> {
        let mut disk = match &self.lock {
            Some(lock) => RealDisk::held(&self.dir, Arc::clone(lock)),
            None => RealDisk::open(&self.dir)?,
        };
        identity::write(&mut disk, id)
    }

    fn carry_out(&self, step: &Step, backup: &Path) -> Result<(), StoreError> {
        let from = self.dir.join(&step.path);
        match &step.action {
            Action::MoveAside => {
                // The state was copied there already.
                let name = if step.path == Path::new("state") { "state-moved" } else { "" };
                let to = if name.is_empty() { backup.join(&step.path) } else { backup.join(name) };
                if let Some(parent) = to.parent() {
                    fs::create_dir_all(parent).map_err(at("create", parent))?;
                }
                move_dir(&from, &to)
            }
            Action::Identify(id) => self.identify(*id),
            Action::Requeue(id) => move_dir(&from, &self.dir.join(segment_folder(*id))),
            Action::Salvage(_) | Action::Adopt(_) | Action::Open => Ok(()),
        }
    }
}

/// Reads a segment as a delivery would: what is damaged goes into the ledger. Then has the log do
/// what it does by itself with a segment that is damaged: what can be read goes to a sound one.
fn salvage(log: &mut Log<RealDisk>, id: u64, now_ms: i64) -> Result<(), StoreError> {
    let Some(detail) = log.look_segment(id)? else { return Ok(()) };
    for batch in detail.batches {
        log.read(BatchKey { segment: id, number: batch.number })?;
    }
    let is_damaged = |log: &Log<RealDisk>| {
        let damaged = |segment: &SegmentInfo| segment.state == SegmentState::Damaged;
        log.segments().iter().any(|segment| segment.id == id && damaged(segment))
    };
    while is_damaged(log) && log.tend(now_ms) {}
    Ok(())
}

/// Appends what can be read of a stranger in quarantine. How far it came becomes durable with each
/// block: after a kill the next try goes on there, and gives no record a second number.
fn adopt(
    log: &mut Log<RealDisk>,
    (dir, name): (&Path, &str),
    batch: BatchLimits,
    now_ms: i64,
) -> Result<(), StoreError> {
    let place = Adopted::of(dir, name)?;
    let after = place.last(log);
    let mut failed = None;
    Aside::of(dir).each_block(name, |mut records| {
        records.retain(|record| after.is_none_or(|after| record.seq > after));
        for block in writing::blocks_of(&records, batch) {
            if failed.is_none() {
                failed = append(log, block, &place, now_ms).err();
            }
        }
    })?;
    let failed = failed.map(|error| StoreError::new("queue again", dir.join(name), error));
    failed.map_or(Ok(()), Err)
}

/// Appends one block of a stranger's records, if it can be on disk at once.
fn append(
    log: &mut Log<RealDisk>,
    block: &[Record],
    place: &Adopted,
    now_ms: i64,
) -> io::Result<()> {
    let Some(last) = block.last() else { return Ok(()) };
    if !log.takes_records(now_ms) || log.would_evict(now_ms) {
        return Err(io::Error::new(io::ErrorKind::StorageFull, "the queue is full"));
    }
    let record = |record: &Record| NewRecord {
        kind: record.kind.clone(),
        at_ms: record.at_ms,
        payload: record.payload.clone(),
    };
    let records = block.iter().map(record).collect();
    let position = Some(place.position(last.seq, now_ms.saturating_add(ADOPTED_KEPT_MS)));
    let home = log.append(vec![Group { position, ..Group::of(records) }], now_ms).home;
    match log.disk_error() {
        Some(error) => Err(io::Error::other(error.to_owned())),
        None if home != Home::Disk => Err(io::Error::other("the disk does not take its records")),
        None => Ok(()),
    }
}

/// How long it is remembered how far a stranger was queued. It is forgotten earlier when that is
/// done.
const ADOPTED_KEPT_MS: i64 = 400 * 86_400_000;

/// How far the records of a stranger have been queued: a position beside those of the collectors.
/// It is that of one copy: another that comes under the same name may have what this one lacked.
struct Adopted {
    collector: String,
    /// Device and inode of the copy's frames.
    file: [u64; 2],
}

impl Adopted {
    fn of(dir: &Path, name: &str) -> Result<Self, StoreError> {
        let path = dir.join(QUARANTINE).join(name).join(FRAMES_FILE);
        let data = fs::metadata(&path).map_err(at("open", &path))?;
        Ok(Self { collector: format!("adopted/{name}"), file: [data.dev(), data.ino()] })
    }

    fn position(&self, last_seq: u64, keep_until_ms: i64) -> Position {
        let numbers = [last_seq, self.file[0], self.file[1]];
        Position {
            collector: self.collector.clone(),
            bytes: numbers.iter().flat_map(|number| number.to_be_bytes()).collect(),
            keep_until_ms: Some(keep_until_ms),
        }
    }

    /// The last number, in the stranger's own queue, that was queued here.
    fn last(&self, log: &Log<RealDisk>) -> Option<u64> {
        let bytes = log.position(&self.collector)?;
        let (numbers, _) = bytes.as_chunks::<8>();
        let [last_seq, file @ ..] = numbers else { return None };
        let is_same = file.iter().map(|number| u64::from_be_bytes(*number)).eq(self.file);
        is_same.then(|| u64::from_be_bytes(*last_seq))
    }
}

/// The lock of the queue, when it has one; fails when somebody holds it. Writes nothing.
fn take_lock(dir: &Path) -> Result<Option<Arc<File>>, StoreError> {
    let path = dir.join("lock");
    let file = match open_file(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Nobody holds what is not a file; the queue moves it aside when it is opened.
        Err(error) if is_misplaced(&error) => return Ok(None),
        Err(error) => return Err(StoreError::new("open", &path, error)),
    };
    rustix::fs::flock(file.file(), FlockOperation::NonBlockingLockExclusive)
        .map_err(|error| StoreError::new("lock", &path, error))?;
    Ok(Some(Arc::new(file)))
}

fn is_misplaced(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::IsADirectory | io::ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests;
