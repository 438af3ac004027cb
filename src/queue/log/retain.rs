//! Delivered segments that are kept for a while, so that a backend that has lost them can be
//! refilled.

use super::Log;
use crate::queue::{
    budget::Retain,
    format::rows::{self, KeptRow},
    store::{StoreError, disk::WriteDisk},
};

impl<D: WriteDisk> Log<D> {
    /// Moves a delivered segment to those that are kept. Its row says so before it moves: a start
    /// in between moves it.
    pub(super) fn keep_segment(&mut self, id: u64) -> Result<(), StoreError> {
        let Some(sealed) = self.backlog.get(id) else { return Ok(()) };
        let kept = KeptRow { row: sealed.row.clone(), delivered_ms: self.now_ms };
        let changes = vec![rows::kept_row(&kept), rows::drop_segment_row(id)];
        let none = (&[][..], self.now_ms);
        self.journal.put_with_positions(&mut self.store, (id, changes), none)?;
        self.forget(id);
        self.backlog.insert_kept(kept);
        self.move_kept(id)?;
        self.expire_kept();
        Ok(())
    }

    /// Moves the segments that could not be moved when they were delivered.
    pub(super) fn keep_again(&mut self) {
        let late = self.backlog.kept().filter(|kept| !kept.moved).map(|kept| kept.row.row.id);
        for id in late.collect::<Vec<_>>() {
            if let Err(error) = self.move_kept(id) {
                tracing::debug!(segment = id, %error, "a delivered segment cannot be moved now");
            }
        }
    }

    fn move_kept(&mut self, id: u64) -> Result<(), StoreError> {
        self.store.keep(id)?;
        self.backlog.moved(id);
        Ok(())
    }

    /// Removes what has been kept long enough.
    pub(super) fn expire_kept(&mut self) {
        loop {
            let Some(oldest) = self.backlog.kept().next() else { return };
            let (id, delivered_ms) = (oldest.row.row.id, oldest.row.delivered_ms);
            let keep = match self.limits.retain {
                Retain::Off => false,
                Retain::Bytes(max) => self.backlog.kept_bytes(&self.store) <= max,
                Retain::Age(max) => {
                    let max = i64::try_from(max.as_millis()).unwrap_or(i64::MAX);
                    self.age_ms.saturating_sub(delivered_ms) < max
                }
            };
            if keep || !self.drop_kept(id) {
                return;
            }
        }
    }

    /// Removes a kept segment; `false` when the disk does not do it now.
    pub(super) fn drop_kept(&mut self, id: u64) -> bool {
        let moved = self.backlog.get_kept(id).is_some_and(|kept| kept.moved);
        let removed = if moved { self.store.drop_kept(id) } else { self.store.remove(id) };
        let removed = removed.and_then(|()| self.put(vec![rows::drop_kept_row(id)]));
        if let Err(error) = &removed {
            tracing::warn!(segment = id, %error, "a delivered segment cannot be removed now");
            return false;
        }
        self.backlog.remove_kept(id);
        if self.index.as_ref().is_some_and(|index| index.segment == id) {
            self.index = None;
        }
        true
    }
}
