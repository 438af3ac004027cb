//! What is refused as a whole, counted for its collector in memory and written now and then: a
//! storm of refusals is a few rows.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use uuid::Uuid;

use crate::backend::store::{RefusalCount, RefusalReason};

/// Rows that wait to be written. Only known collectors have some, and each a few.
const ROWS_MAX: usize = 65_536;

/// Counts that are not written yet.
#[derive(Default)]
pub(super) struct Refused {
    counts: Mutex<BTreeMap<(Uuid, RefusalReason), RefusalCount>>,
}

impl Refused {
    /// Counts one more.
    pub(super) fn note(&self, id: Uuid, reason: RefusalReason, message: &str, now: Timestamp) {
        self.add(id, RefusalCount::new(reason, 1, message, now));
    }

    /// Takes what is to be written.
    pub(super) fn take(&self) -> Vec<(Uuid, RefusalCount)> {
        let counts = std::mem::take(&mut *self.lock());
        counts.into_iter().map(|((id, _), count)| (id, count)).collect()
    }

    /// Keeps what could not be written.
    pub(super) fn put_back(&self, counts: Vec<(Uuid, RefusalCount)>) {
        for (id, count) in counts {
            self.add(id, count);
        }
    }

    fn add(&self, id: Uuid, count: RefusalCount) {
        let mut counts = self.lock();
        let key = (id, count.reason);
        if let Some(known) = counts.get_mut(&key) {
            known.add(count);
        } else if counts.len() < ROWS_MAX {
            counts.insert(key, count);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Uuid, RefusalReason), RefusalCount>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A storm is one row, with the last message; what could not be written is not forgotten, and
    /// older than what has come since.
    #[test]
    fn a_storm_is_one_row() {
        let (refused, start) = (Refused::default(), Timestamp::UNIX_EPOCH);
        let at = |second| start + jiff::SignedDuration::from_secs(second);
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for second in 0..1_000 {
            refused.note(one, RefusalReason::TooLarge, &format!("message {second}"), at(second));
        }
        refused.note(one, RefusalReason::BadPush, "bad", at(0));
        refused.note(other, RefusalReason::TooLarge, "large", at(0));
        let taken = refused.take();
        let expected = [
            (one, RefusalCount::new(RefusalReason::BadPush, 1, "bad", at(0))),
            (one, RefusalCount::new(RefusalReason::TooLarge, 1_000, "message 999", at(999))),
            (other, RefusalCount::new(RefusalReason::TooLarge, 1, "large", at(0))),
        ];
        assert_eq!(taken, expected);
        assert_eq!(refused.take(), []);
        refused.note(other, RefusalReason::TooLarge, "larger", at(5));
        refused.put_back(taken);
        let last = RefusalCount::new(RefusalReason::TooLarge, 2, "larger", at(5));
        assert_eq!(refused.take().pop(), Some((other, last)));
    }
}
