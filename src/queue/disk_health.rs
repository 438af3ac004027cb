//! What the log does while the disk does not take records: they stay in memory, the disk is asked
//! again with growing pauses, and when it is back they are written as the segments they are.

use super::{
    log::{Active, Log},
    ring::Home,
    state,
    store::{SegmentWriter, Store, StoreError},
    writing::discard,
};

/// Whether the disk takes records, and when it is asked again.
#[derive(Debug, Default)]
pub(super) struct DiskHealth {
    pub(super) error: Option<String>,
    probe_at_ms: i64,
    failures: u32,
}

const PROBE_FIRST_MS: i64 = 1_000;
const PROBE_MAX_MS: i64 = 60_000;

impl DiskHealth {
    fn may_try(&self, now_ms: i64) -> bool {
        // A pause that is longer was begun before the clock was put back.
        let left_ms = self.probe_at_ms.saturating_sub(now_ms);
        self.error.is_none() || !(1..=PROBE_MAX_MS).contains(&left_ms)
    }

    /// Ends the pause before the disk is asked again.
    pub(super) fn ask_now(&mut self) {
        self.probe_at_ms = i64::MIN;
    }
}

impl<S: Store> Log<S> {
    /// Writes segments that are only in memory, when the disk is due to be asked again.
    pub(super) fn save_unsaved(&mut self, now_ms: i64) {
        if self.disk.error.is_none() || !self.disk.may_try(now_ms) {
            return;
        }
        let volatile = self.sealed.values().filter(|sealed| sealed.home == Home::MemoryOnly);
        for id in volatile.map(|sealed| sealed.row.id).collect::<Vec<_>>() {
            if !self.save_sealed(id, now_ms) {
                return;
            }
        }
        match self.active.take() {
            Some(active) if active.writer.is_none() => self.save_active(active, now_ms),
            active => {
                self.active = active;
                self.probe(now_ms);
            }
        }
    }

    /// Runs `call` unless the disk is known to be out of order and not due to be asked again;
    /// remembers how it went.
    pub(super) fn try_disk<T>(
        &mut self,
        now_ms: i64,
        call: impl FnOnce(&mut S) -> Result<T, StoreError>,
    ) -> Option<T> {
        if !self.disk.may_try(now_ms) {
            return None;
        }
        match call(&mut self.store) {
            Ok(value) => {
                if self.disk.error.take().is_some() {
                    tracing::warn!("the queue's disk takes records again");
                }
                self.disk.failures = 0;
                Some(value)
            }
            Err(error) => {
                self.disk_failed(&error, now_ms);
                None
            }
        }
    }

    pub(super) fn disk_failed(&mut self, error: &StoreError, now_ms: i64) {
        let wait = (PROBE_FIRST_MS << self.disk.failures.min(6)).min(PROBE_MAX_MS);
        self.disk.failures += 1;
        self.disk.probe_at_ms = now_ms + wait;
        if self.disk.error.is_none() {
            tracing::error!(%error, "the queue's disk does not take records; they stay in memory");
        }
        self.disk.error = Some(error.to_string());
    }

    fn save_active(&mut self, mut active: Active<S::Writer>, now_ms: i64) {
        let id = active.row.id;
        active.writer = self.try_disk(now_ms, |store| write_all(store, id, &active.unsaved));
        if active.writer.is_some() {
            active.unsaved = Vec::new();
            self.ring.now_on_disk(id);
        }
        self.active = Some(active);
    }

    fn save_sealed(&mut self, id: u64, now_ms: i64) -> bool {
        let Some(mut sealed) = self.sealed.remove(&id) else { return true };
        let saved = self.try_disk(now_ms, |store| write_all(store, id, &sealed.unsaved)?.close());
        if saved.is_some() {
            sealed.unsaved = Vec::new();
            sealed.home = Home::Disk;
            self.ring.now_on_disk(id);
            if let Err(error) = self.put_sealed(&sealed.row) {
                // The frames are durable; a start finds them without the row.
                self.disk_failed(&error, now_ms);
            }
        }
        self.sealed.insert(id, sealed);
        self.disk.error.is_none()
    }

    /// Asks the disk whether it takes a small write again.
    fn probe(&mut self, now_ms: i64) {
        let row = state::next_row(self.next_seq, self.last_segment);
        self.try_disk(now_ms, |store| store.put_state(std::slice::from_ref(&row)));
    }
}

fn write_all<S: Store>(
    store: &mut S,
    id: u64,
    frames: &[Vec<u8>],
) -> Result<S::Writer, StoreError> {
    let mut writer = store.create(id)?;
    match writer.append(0, frames) {
        Ok(()) => Ok(writer),
        Err(error) => {
            drop(writer);
            discard(store, id);
            Err(error)
        }
    }
}
