//! Delivered segments that are kept for a while, so that a backend that has lost them can be
//! refilled.

use std::cell::OnceCell;

use super::{
    budget::Retain,
    log::Log,
    state::{self, KeptRow},
    store::{Store, StoreError},
};

/// A delivered segment.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) row: KeptRow,
    pub(super) disk_bytes: OnceCell<u64>,
}

impl Kept {
    pub(super) fn new(row: KeptRow) -> Self {
        Self { row, disk_bytes: OnceCell::new() }
    }
}

impl<S: Store> Log<S> {
    /// Moves a delivered segment to those that are kept. Its row says so before it moves: a start
    /// in between moves it.
    pub(super) fn keep_segment(&mut self, id: u64) -> Result<(), StoreError> {
        let Some(sealed) = self.sealed.get(&id) else { return Ok(()) };
        let kept = KeptRow { row: sealed.row.clone(), delivered_ms: self.now_ms };
        self.put(vec![state::kept_row(&kept), state::drop_segment_row(id)])?;
        self.forget(id);
        self.kept.insert(id, Kept::new(kept));
        self.store.keep(id)?;
        self.expire_kept();
        Ok(())
    }

    /// Removes what has been kept long enough.
    pub(super) fn expire_kept(&mut self) {
        loop {
            let Some((id, oldest)) = self.kept.iter().next() else { return };
            let (id, delivered_ms) = (*id, oldest.row.delivered_ms);
            let keep = match self.limits.retain {
                Retain::Off => false,
                Retain::Bytes(max) => self.kept_bytes() <= max,
                Retain::Age(max) => {
                    let max = i64::try_from(max.as_millis()).unwrap_or(i64::MAX);
                    self.now_ms.saturating_sub(delivered_ms) < max
                }
            };
            if keep || !self.drop_kept(id) {
                return;
            }
        }
    }

    /// Removes a kept segment; `false` when the disk does not do it now.
    pub(super) fn drop_kept(&mut self, id: u64) -> bool {
        let removed =
            self.store.drop_kept(id).and_then(|()| self.put(vec![state::drop_kept_row(id)]));
        if let Err(error) = &removed {
            tracing::warn!(segment = id, %error, "a delivered segment cannot be removed now");
            return false;
        }
        self.kept.remove(&id);
        if self.index.as_ref().is_some_and(|index| index.segment == id) {
            self.index = None;
        }
        true
    }

    /// Bytes on disk of the kept segments.
    pub(super) fn kept_bytes(&self) -> u64 {
        let bytes =
            |(id, kept): (&u64, &Kept)| *kept.disk_bytes.get_or_init(|| self.store.disk_bytes(*id));
        self.kept.iter().map(bytes).sum()
    }
}
