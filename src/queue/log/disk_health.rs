//! What the log does while the disk does not take records: they stay in memory, the disk is asked
//! again with growing pauses, and when it is back they are written as the segments they are.

use super::{Log, ring::Home, writer::Active, writing::discard};
use crate::queue::store::{Store, StoreError, disk::WriteDisk};

/// Whether the disk takes records, and when it is asked again.
#[derive(Debug, Default)]
pub(in crate::queue) struct DiskHealth {
    error: Option<String>,
    probe_at_ms: i64,
    failures: u32,
}

const PROBE_FIRST_MS: i64 = 1_000;
const PROBE_MAX_MS: i64 = 60_000;

impl DiskHealth {
    /// Why the disk takes no records at present.
    pub(in crate::queue) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    fn may_try(&self, now_ms: i64) -> bool {
        // A pause that is longer was begun before the clock was put back.
        let left_ms = self.probe_at_ms.saturating_sub(now_ms);
        self.error.is_none() || !(1..=PROBE_MAX_MS).contains(&left_ms)
    }

    /// Ends the pause before the disk is asked again.
    pub(in crate::queue) fn ask_now(&mut self) {
        self.probe_at_ms = i64::MIN;
    }
}

impl<D: WriteDisk> Log<D> {
    /// Writes segments that are only in memory, when the disk is due to be asked again.
    pub(super) fn save_unsaved(&mut self, now_ms: i64) {
        if self.writer.health.error.is_none() || !self.writer.health.may_try(now_ms) {
            return;
        }
        if !self.store.disk.is_there() {
            self.restore(now_ms);
            return;
        }
        let volatile = self.backlog.sealed().filter(|sealed| sealed.home == Home::MemoryOnly);
        for id in volatile.map(|sealed| sealed.row.id).collect::<Vec<_>>() {
            if !self.save_sealed(id, now_ms) {
                return;
            }
        }
        match self.writer.active.take() {
            Some(active) if !active.on_disk => self.save_active(active, now_ms),
            active => {
                self.writer.active = active;
                self.probe(now_ms);
            }
        }
    }

    /// Runs `call` unless the disk is known to be out of order and not due to be asked again;
    /// remembers how it went.
    pub(super) fn try_disk<T>(
        &mut self,
        now_ms: i64,
        call: impl FnOnce(&mut Store<D>) -> Result<T, StoreError>,
    ) -> Option<T> {
        if !self.writer.health.may_try(now_ms) {
            return None;
        }
        match call(&mut self.store) {
            Ok(value) => {
                self.disk_works();
                Some(value)
            }
            Err(error) => {
                self.disk_failed(&error, now_ms);
                None
            }
        }
    }

    fn disk_works(&mut self) {
        if self.writer.health.error.take().is_some() {
            tracing::warn!("the queue's disk takes records again");
        }
        self.writer.health.failures = 0;
    }

    pub(super) fn disk_failed(&mut self, error: &StoreError, now_ms: i64) {
        let health = &mut self.writer.health;
        let wait = (PROBE_FIRST_MS << health.failures.min(6)).min(PROBE_MAX_MS);
        health.failures += 1;
        health.probe_at_ms = now_ms.saturating_add(wait);
        if health.error.is_none() {
            tracing::error!(%error, "the queue's disk does not take records; they stay in memory");
        }
        health.error = Some(error.to_string());
    }

    pub(super) fn save_active(&mut self, mut active: Active, now_ms: i64) {
        let id = active.row.id;
        let saved = self.try_disk(now_ms, |store| write_all(store, id, &active.unsaved));
        if saved.is_some() {
            active.on_disk = true;
            active.unsaved = Vec::new();
            active.synced = (active.row.clone(), active.plans.clone());
            self.writer.ring.now_on_disk(id);
        }
        self.writer.active = Some(active);
    }

    pub(super) fn save_sealed(&mut self, id: u64, now_ms: i64) -> bool {
        let Some(mut sealed) = self.backlog.remove(id) else { return true };
        let (frames, unsaved) = (sealed.row.frames, std::mem::take(&mut sealed.unsaved));
        let saved = self.try_disk(now_ms, |store| {
            write_all(store, id, &unsaved)?;
            store.close(id, frames)
        });
        sealed.unsaved = unsaved;
        if saved.is_some() {
            sealed.saved();
            self.index = self.index.take().filter(|index| index.segment != id);
            self.looked_at = None;
            self.writer.ring.now_on_disk(id);
            let none = (&[][..], now_ms);
            if let Err(error) = self.journal.put_sealed(&mut self.store, &sealed.row, none) {
                // The frames are durable; a start finds them without the row.
                self.disk_failed(&error, now_ms);
            }
        }
        self.backlog.insert(sealed);
        self.writer.health.error.is_none()
    }

    /// Asks the disk whether it takes a small write again.
    fn probe(&mut self, now_ms: i64) {
        if !self.writer.health.may_try(now_ms) {
            return;
        }
        self.journal.touch();
        match self.put(Vec::new()) {
            Ok(()) => self.disk_works(),
            Err(error) => self.disk_failed(&error, now_ms),
        }
    }
}

/// Writes all frames of a segment to a new one; they are durable when this returns.
fn write_all<D: WriteDisk>(
    store: &mut Store<D>,
    id: u64,
    frames: &[Vec<u8>],
) -> Result<(), StoreError> {
    store.create(id)?;
    let written = store.append(id, 0, frames).and_then(|()| store.sync(id));
    if written.is_err() {
        store.abandon(id);
        discard(store, id);
    }
    written
}
