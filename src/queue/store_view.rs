//! A queue directory to look at, for `inspect` while the agent may be running.

use std::{
    io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use super::{
    DeadLetter, aside,
    budget::DiskSpace,
    dead::DeadChanges,
    files,
    salvage::{Found, Scan},
    store::{Rows, SegmentWriter, StateChange, Store, StoreError},
    store_sled,
};

/// The queue of a directory to look at, whether another process has it open or not. Writes nothing
/// into the directory: changes are taken and forgotten.
#[derive(Debug)]
pub struct SledView {
    dir: PathBuf,
    queue_id: Uuid,
}

/// The writer of a [`SledView`]; it is never made.
#[derive(Debug)]
pub enum NoWriter {}

impl SledView {
    /// Looks at the queue in `dir`. Without its identity, what its frames say counts.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let identity = files::read_identity(dir);
        let queue_id = identity.or_else(|error| files::identity_of_frames(dir).ok_or(error))?;
        Ok(Self { dir: dir.to_owned(), queue_id })
    }
}

impl Store for SledView {
    type Writer = NoWriter;

    fn queue_id(&self) -> Uuid {
        self.queue_id
    }

    fn dir(&self) -> Option<&Path> {
        Some(&self.dir)
    }

    fn create(&mut self, _id: u64) -> Result<NoWriter, StoreError> {
        Err(StoreError::new("write to", &self.dir, io::ErrorKind::ReadOnlyFilesystem))
    }

    fn segments(&self) -> Result<Vec<u64>, StoreError> {
        files::segment_ids(&self.dir.join("segments"))
    }

    fn kept(&self) -> Result<Vec<u64>, StoreError> {
        files::segment_ids(&self.dir.join("delivered"))
    }

    fn frames(&self, id: u64) -> Result<Scan, StoreError> {
        files::scan_segment(&files::find_segment(&self.dir, id), self.queue_id, id)
    }

    fn read(&self, id: u64, frames: &[Found]) -> Result<Vec<Vec<u8>>, StoreError> {
        files::read_frames(&files::find_segment(&self.dir, id), frames)
    }

    fn disk_bytes(&self, id: u64) -> u64 {
        files::allocated_bytes(&files::find_segment(&self.dir, id))
    }

    fn trim(&mut self, _id: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn cut(&mut self, _id: u64, _frames: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn remove(&mut self, _id: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn quarantine(&mut self, _id: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn drop_quarantined(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn keep(&mut self, _id: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn drop_kept(&mut self, _id: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn space(&self) -> Option<DiskSpace> {
        files::space(&self.dir)
    }

    fn put_dead(&mut self, _letters: &[DeadLetter]) -> Result<(), StoreError> {
        Ok(())
    }

    fn change_dead(&mut self, _changes: &DeadChanges) -> Result<(), StoreError> {
        Ok(())
    }

    fn shorten_dead(&mut self, _bytes_max: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn aside_bytes(&self) -> u64 {
        aside::bytes(&self.dir)
    }

    /// From a copy: opening a database writes to it.
    fn state(&mut self) -> Result<Rows, StoreError> {
        let state = self.dir.join("state");
        let copy = std::env::temp_dir().join(format!("pganalytics-state-{}", Uuid::new_v4()));
        let copied = files::copy_files(&state, &copy).map_err(files::at("copy", &state));
        let rows = copied.and_then(|()| store_sled::read_state(&copy));
        fs_err::remove_dir_all(&copy).ok();
        rows
    }

    fn put_state(&mut self, _rows: &[StateChange]) -> Result<(), StoreError> {
        Ok(())
    }
}

impl SegmentWriter for NoWriter {
    fn append(&mut self, _number: u64, _frames: &[Vec<u8>]) -> Result<(), StoreError> {
        match *self {}
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        match *self {}
    }

    fn close(self) -> Result<(), StoreError> {
        match self {}
    }
}
