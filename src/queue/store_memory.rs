//! A store in memory that outlives its handles, for tests: drop the log, open another on the same
//! [`MemoryDisk`], and a kill has happened; with [`MemoryDisk::crash`] in between, a loss of power.
//! Faults are switched on and off from outside.
//!
//! What was written and not synced is kept apart ([`pages`]). A loss of power keeps a part of it
//! that a file system may keep, drawn from a seed: each write whole, torn at a sector, or not at
//! all; of creations, moves and removals whose directory was not synced, the first so many.

mod pages;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

use self::pages::{Node, Place};
use super::{
    DeadLetter,
    block::MAGIC,
    budget::DiskSpace,
    dead::DeadChanges,
    salvage::{self, Found, Scan},
    store::{Rows, SegmentWriter, StateChange, Store, StoreError},
};

/// What the "disk" holds; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Clone, Default)]
struct Disk {
    queue_id: Uuid,
    nodes: Vec<Node>,
    /// The state's rows, and those that a loss of power leaves.
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    state_synced: BTreeMap<Vec<u8>, Vec<u8>>,
    dead: Vec<DeadLetter>,
    dead_synced: usize,
    space: Option<DiskSpace>,
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
    unreadable: bool,
    seed: u64,
}

/// A store on a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryStore(MemoryDisk);

/// A segment being written.
#[derive(Debug)]
pub struct MemoryWriter {
    disk: MemoryDisk,
    id: u64,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        let disk = Self::default();
        disk.lock().queue_id = Uuid::new_v4();
        disk
    }

    /// A handle on it, as a process would open it.
    pub fn open(&self) -> MemoryStore {
        MemoryStore(self.clone())
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

    /// Gives nothing to read any more.
    pub fn make_unreadable(&self) {
        self.lock().faults.unreadable = true;
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
        disk.nodes.iter_mut().for_each(|node| node.crash(&mut random));
        disk.nodes.retain(|node| node.place() != Place::Nowhere);
        if random.bool() {
            disk.state = disk.state_synced.clone();
        } else {
            disk.state_synced = disk.state.clone();
        }
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

    /// Forgets all state rows, as when the state database is lost.
    pub fn lose_state(&self) {
        let mut disk = self.lock();
        disk.state.clear();
        disk.state_synced.clear();
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
        if let Some(node) = self.lock().node(segment, Place::Segments) {
            node.damage(change);
        }
    }

    /// The segments on the disk.
    pub fn segments(&self) -> Vec<u64> {
        self.lock().ids(Place::Segments)
    }

    /// The segments put aside.
    pub fn quarantined(&self) -> Vec<u64> {
        self.lock().ids(Place::Quarantine)
    }

    /// The dead letters.
    pub fn dead(&self) -> Vec<DeadLetter> {
        self.lock().dead.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation that changes something.
    fn change(&self, action: &'static str) -> Result<MutexGuard<'_, Disk>, StoreError> {
        let mut disk = self.lock();
        disk.begin(action)?;
        match &mut disk.faults.writes_left {
            Some(0) => Err(failed(action, io::ErrorKind::StorageFull)),
            left => {
                *left = left.map(|writes| writes - 1);
                Ok(disk)
            }
        }
    }

    fn relocate(&self, id: u64, from: Place, to: Place) -> Result<(), StoreError> {
        let mut disk = self.change("move")?;
        if let Some(node) = disk.node(id, from) {
            node.relocate(to);
        }
        disk.sync("sync", |disk, _| disk.nodes.iter_mut().for_each(Node::sync_place))
    }
}

impl Disk {
    fn node(&mut self, id: u64, place: Place) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.id == id && node.place() == place)
    }

    fn ids(&self, place: Place) -> Vec<u64> {
        let here = self.nodes.iter().filter(|node| node.place() == place);
        let mut ids: Vec<u64> = here.map(|node| node.id).collect();
        ids.sort_unstable();
        ids
    }

    fn dead_bytes(&self) -> u64 {
        self.dead.iter().map(|letter| letter.line.len() as u64 + 1).sum()
    }

    fn bytes(&self, id: u64) -> Result<&[u8], StoreError> {
        if self.faults.powerless || self.faults.unreadable {
            return Err(StoreError::new("read", "memory", io::Error::other("input/output error")));
        }
        let at = |place| self.nodes.iter().find(move |n| n.id == id && n.place() == place);
        let node = at(Place::Segments).or_else(|| at(Place::Kept));
        Ok(node.map_or(&[][..], Node::bytes))
    }

    fn begin(&mut self, action: &'static str) -> Result<(), StoreError> {
        if self.faults.powerless {
            return Err(failed(action, io::ErrorKind::Other));
        }
        if self.faults.read_only {
            return Err(failed(action, io::ErrorKind::ReadOnlyFilesystem));
        }
        self.faults.powerless = self.faults.power_until == Some(self.operations);
        self.operations += 1;
        Ok(())
    }

    /// Ends an operation: makes durable what `sync` makes so, unless the power has gone meanwhile
    /// or the sync fails.
    fn sync(
        &mut self,
        action: &'static str,
        sync: impl FnOnce(&mut Self, Option<&mut fastrand::Rng>),
    ) -> Result<(), StoreError> {
        if self.faults.powerless {
            return Err(failed(action, io::ErrorKind::Other));
        }
        match &mut self.faults.syncs_left {
            Some(0) => {
                self.faults.syncs_left = None;
                let mut random = fastrand::Rng::with_seed(self.faults.seed);
                sync(self, Some(&mut random));
                Err(StoreError::new(action, "memory", io::Error::other("input/output error")))
            }
            left => {
                *left = left.map(|syncs| syncs - 1);
                sync(self, None);
                self.writes += 1;
                Ok(())
            }
        }
    }

    fn sync_bytes(&mut self, id: u64) -> Result<(), StoreError> {
        self.sync("sync", |disk, random| {
            if let Some(node) = disk.node(id, Place::Segments) {
                node.sync_bytes(random);
            }
        })
    }
}

impl Store for MemoryStore {
    type Writer = MemoryWriter;

    fn queue_id(&self) -> Uuid {
        self.0.lock().queue_id
    }

    fn create(&mut self, id: u64) -> Result<MemoryWriter, StoreError> {
        let mut disk = self.0.change("create")?;
        if let Some(old) = disk.node(id, Place::Segments) {
            old.relocate(Place::Nowhere);
        }
        disk.nodes.push(Node::new(id));
        disk.sync("sync", |disk, _| disk.nodes.iter_mut().for_each(Node::sync_place))?;
        Ok(MemoryWriter { disk: self.0.clone(), id })
    }

    fn segments(&self) -> Result<Vec<u64>, StoreError> {
        Ok(self.0.segments())
    }

    fn kept(&self) -> Result<Vec<u64>, StoreError> {
        Ok(self.0.lock().ids(Place::Kept))
    }

    fn frames(&self, id: u64) -> Result<Scan, StoreError> {
        let disk = self.0.lock();
        let bytes = disk.bytes(id)?;
        salvage::scan(bytes, disk.queue_id, id).map_err(|e| StoreError::new("scan", "memory", e))
    }

    fn read(&self, id: u64, frames: &[Found]) -> Result<Vec<Vec<u8>>, StoreError> {
        let disk = self.0.lock();
        let bytes = disk.bytes(id)?;
        let frame = |found: &Found| {
            let from = usize::try_from(found.offset).ok()?;
            bytes.get(from..from + found.head.frame_bytes()).map(<[u8]>::to_vec)
        };
        Ok(frames.iter().map(|found| frame(found).unwrap_or_default()).collect())
    }

    fn disk_bytes(&self, id: u64) -> u64 {
        self.0.lock().bytes(id).map_or(0, |bytes| bytes.len() as u64)
    }

    fn trim(&mut self, _id: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn cut(&mut self, id: u64, frames: u64) -> Result<(), StoreError> {
        // In place: a full disk takes it.
        let mut disk = self.0.lock();
        disk.begin("write to")?;
        let queue = disk.queue_id;
        let Some(node) = disk.node(id, Place::Segments) else { return Ok(()) };
        let scan = salvage::scan(node.bytes(), queue, id);
        let scan = scan.map_err(|error| StoreError::new("scan", "memory", error))?;
        for found in scan.found.iter().filter(|found| found.head.number >= frames) {
            let from = usize::try_from(found.offset).unwrap_or(usize::MAX);
            node.write(from, vec![0; MAGIC.len()]);
        }
        disk.sync_bytes(id)
    }

    fn remove(&mut self, id: u64) -> Result<(), StoreError> {
        self.0.relocate(id, Place::Segments, Place::Nowhere)
    }

    fn quarantine(&mut self, id: u64) -> Result<(), StoreError> {
        self.0.relocate(id, Place::Segments, Place::Quarantine)
    }

    fn drop_quarantined(&mut self) -> Result<bool, StoreError> {
        let oldest = self.0.lock().ids(Place::Quarantine).first().copied();
        let Some(id) = oldest else { return Ok(false) };
        self.0.relocate(id, Place::Quarantine, Place::Nowhere)?;
        Ok(true)
    }

    fn keep(&mut self, id: u64) -> Result<(), StoreError> {
        self.0.relocate(id, Place::Segments, Place::Kept)
    }

    fn drop_kept(&mut self, id: u64) -> Result<(), StoreError> {
        self.0.relocate(id, Place::Kept, Place::Nowhere)
    }

    fn space(&self) -> Option<DiskSpace> {
        self.0.lock().space
    }

    fn put_dead(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        let mut disk = self.0.change("append to")?;
        disk.dead.extend_from_slice(letters);
        disk.sync("sync", |disk, random| {
            if random.is_none_or(fastrand::Rng::bool) {
                disk.dead_synced = disk.dead.len();
            }
        })
    }

    fn change_dead(&mut self, changes: &DeadChanges) -> Result<(), StoreError> {
        let mut disk = self.0.change("change")?;
        disk.dead.retain_mut(|letter| match changes.get(&letter.line) {
            None => true,
            Some(None) => false,
            Some(Some(line)) => {
                letter.line.clone_from(line);
                true
            }
        });
        disk.sync("sync", |disk, _| disk.dead_synced = disk.dead.len())
    }

    fn shorten_dead(&mut self, bytes_max: u64) -> Result<(), StoreError> {
        if self.0.lock().dead_bytes() <= bytes_max {
            return Ok(());
        }
        let mut disk = self.0.change("shorten")?;
        while disk.dead_bytes() > bytes_max / 2 {
            disk.dead.remove(0);
        }
        disk.sync("sync", |disk, _| disk.dead_synced = disk.dead.len())
    }

    fn aside_bytes(&self) -> u64 {
        let mut disk = self.0.lock();
        let quarantined = disk.ids(Place::Quarantine);
        let mut bytes =
            |id| disk.node(id, Place::Quarantine).map_or(0, |node| node.bytes().len() as u64);
        let quarantined: u64 = quarantined.into_iter().map(&mut bytes).sum();
        quarantined + disk.dead_bytes()
    }

    fn state(&mut self) -> Result<Rows, StoreError> {
        Ok(self.0.lock().state.clone().into_iter().collect())
    }

    /// After a failed sync the rows are there or not; the next that succeeds makes all durable.
    fn put_state(&mut self, rows: &[StateChange]) -> Result<(), StoreError> {
        let mut disk = self.0.change("write")?;
        let before = disk.state.clone();
        for (key, value) in rows {
            match value {
                Some(value) => disk.state.insert(key.clone(), value.clone()),
                None => disk.state.remove(key),
            };
        }
        disk.sync("sync", |disk, random| {
            if random.is_none_or(fastrand::Rng::bool) {
                disk.state_synced = disk.state.clone();
            } else {
                disk.state = before;
            }
        })
    }
}

impl SegmentWriter for MemoryWriter {
    /// An append that finds the disk full has written all the same, or a part.
    fn append(&mut self, _number: u64, frames: &[Vec<u8>]) -> Result<(), StoreError> {
        let mut disk = self.disk.lock();
        disk.begin("append to")?;
        let Some(node) = disk.node(self.id, Place::Segments) else {
            return Err(failed("append to", io::ErrorKind::NotFound));
        };
        for frame in frames {
            node.write(node.bytes().len(), frame.clone());
        }
        if disk.faults.powerless {
            return Err(failed("append to", io::ErrorKind::Other));
        }
        match &mut disk.faults.writes_left {
            Some(0) => return Err(failed("append to", io::ErrorKind::StorageFull)),
            left => *left = left.map(|writes| writes - 1),
        }
        disk.writes += 1;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.disk.change("sync")?.sync_bytes(self.id)
    }

    fn close(self) -> Result<(), StoreError> {
        self.disk.change("close")?.sync_bytes(self.id)
    }
}

fn failed(action: &'static str, kind: io::ErrorKind) -> StoreError {
    StoreError::new(action, "memory", kind)
}
