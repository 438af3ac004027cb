//! A store in memory that outlives its handles, for tests: drop the log, open another on the same
//! [`MemoryDisk`], and a crash has happened. Faults are switched on and off from outside.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

use super::{
    DeadLetter,
    block::MAGIC,
    budget::DiskSpace,
    dead::DeadChanges,
    salvage::{self, Found, Scan},
    store::{SegmentWriter, StateChange, Store, StoreError},
};

/// What the "disk" holds; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Clone, Default)]
struct Disk {
    queue_id: Uuid,
    segments: BTreeMap<u64, Vec<u8>>,
    kept: BTreeMap<u64, Vec<u8>>,
    quarantined: BTreeMap<u64, Vec<u8>>,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
    dead: Vec<DeadLetter>,
    space: Option<DiskSpace>,
    /// How many more writing operations succeed; `None` = all.
    writes_left: Option<u64>,
    writes: u64,
}

impl Disk {
    fn bytes(&self, id: u64) -> &[u8] {
        let found = self.segments.get(&id).or_else(|| self.kept.get(&id));
        found.map_or(&[][..], Vec::as_slice)
    }
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
        self.lock().writes_left = Some(writes);
    }

    /// Lets all operations succeed again.
    pub fn heal(&self) {
        self.lock().writes_left = None;
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
        self.lock().state.clear();
    }

    /// Writing operations that succeeded so far.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Changes the raw bytes of a segment, as damage does.
    pub fn damage(&self, segment: u64, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(bytes) = self.lock().segments.get_mut(&segment) {
            change(bytes);
        }
    }

    /// The segments on the disk.
    pub fn segments(&self) -> Vec<u64> {
        self.lock().segments.keys().copied().collect()
    }

    /// The segments put aside.
    pub fn quarantined(&self) -> Vec<u64> {
        self.lock().quarantined.keys().copied().collect()
    }

    /// The dead letters.
    pub fn dead(&self) -> Vec<DeadLetter> {
        self.lock().dead.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self, action: &'static str) -> Result<MutexGuard<'_, Disk>, StoreError> {
        let mut disk = self.lock();
        match &mut disk.writes_left {
            Some(0) => Err(StoreError::new(action, "memory", io::ErrorKind::StorageFull)),
            left => {
                *left = left.map(|writes| writes - 1);
                disk.writes += 1;
                Ok(disk)
            }
        }
    }
}

impl Store for MemoryStore {
    type Writer = MemoryWriter;

    fn queue_id(&self) -> Uuid {
        self.0.lock().queue_id
    }

    fn create(&mut self, id: u64) -> Result<MemoryWriter, StoreError> {
        self.0.writing("create")?.segments.insert(id, Vec::new());
        Ok(MemoryWriter { disk: self.0.clone(), id })
    }

    fn segments(&self) -> Result<Vec<u64>, StoreError> {
        Ok(self.0.segments())
    }

    fn kept(&self) -> Result<Vec<u64>, StoreError> {
        Ok(self.0.lock().kept.keys().copied().collect())
    }

    fn frames(&self, id: u64) -> Result<Scan, StoreError> {
        let disk = self.0.lock();
        let bytes = disk.bytes(id);
        salvage::scan(bytes, disk.queue_id, id).map_err(|e| StoreError::new("scan", "memory", e))
    }

    fn read(&self, id: u64, frames: &[Found]) -> Result<Vec<Vec<u8>>, StoreError> {
        let disk = self.0.lock();
        let bytes = disk.bytes(id);
        let frame = |found: &Found| {
            let from = usize::try_from(found.offset).ok()?;
            bytes.get(from..from + found.head.frame_bytes()).map(<[u8]>::to_vec)
        };
        Ok(frames.iter().map(|found| frame(found).unwrap_or_default()).collect())
    }

    fn disk_bytes(&self, id: u64) -> u64 {
        self.0.lock().bytes(id).len() as u64
    }

    fn trim(&mut self, _id: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn cut(&mut self, id: u64, frames: u64) -> Result<(), StoreError> {
        let scan = self.frames(id)?;
        // In place: a full disk takes it.
        let mut disk = self.0.lock();
        let Some(bytes) = disk.segments.get_mut(&id) else { return Ok(()) };
        for found in scan.found.iter().filter(|found| found.head.number >= frames) {
            let from = usize::try_from(found.offset).unwrap_or(usize::MAX);
            bytes.get_mut(from..from + MAGIC.len()).unwrap_or_default().fill(0);
        }
        Ok(())
    }

    fn remove(&mut self, id: u64) -> Result<(), StoreError> {
        self.0.writing("remove")?.segments.remove(&id);
        Ok(())
    }

    fn quarantine(&mut self, id: u64) -> Result<(), StoreError> {
        let mut disk = self.0.writing("move")?;
        if let Some(bytes) = disk.segments.remove(&id) {
            disk.quarantined.insert(id, bytes);
        }
        Ok(())
    }

    fn keep(&mut self, id: u64) -> Result<(), StoreError> {
        let mut disk = self.0.writing("move")?;
        if let Some(bytes) = disk.segments.remove(&id) {
            disk.kept.insert(id, bytes);
        }
        Ok(())
    }

    fn drop_kept(&mut self, id: u64) -> Result<(), StoreError> {
        self.0.writing("remove")?.kept.remove(&id);
        Ok(())
    }

    fn space(&self) -> Option<DiskSpace> {
        self.0.lock().space
    }

    fn put_dead(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        self.0.writing("append to")?.dead.extend_from_slice(letters);
        Ok(())
    }

    fn change_dead(&mut self, changes: &DeadChanges) -> Result<(), StoreError> {
        let mut disk = self.0.writing("change")?;
        disk.dead.retain_mut(|letter| match changes.get(&letter.line) {
            None => true,
            Some(None) => false,
            Some(Some(line)) => {
                letter.line.clone_from(line);
                true
            }
        });
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        Ok(self.0.lock().state.clone().into_iter().collect())
    }

    fn put_state(&mut self, rows: &[StateChange]) -> Result<(), StoreError> {
        let mut disk = self.0.writing("write")?;
        for (key, value) in rows {
            match value {
                Some(value) => disk.state.insert(key.clone(), value.clone()),
                None => disk.state.remove(key),
            };
        }
        Ok(())
    }
}

impl SegmentWriter for MemoryWriter {
    /// An append that fails has written all the same, as a sync that fails may have.
    fn append(&mut self, _number: u64, frames: &[Vec<u8>]) -> Result<(), StoreError> {
        let mut disk = self.disk.lock();
        let segment = disk.segments.entry(self.id).or_default();
        segment.extend(frames.iter().flatten());
        drop(disk);
        self.disk.writing("append").map(|_| ())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.disk.writing("sync").map(|_| ())
    }

    fn close(self) -> Result<(), StoreError> {
        self.disk.writing("close").map(|_| ())
    }
}
