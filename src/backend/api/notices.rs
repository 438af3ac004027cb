//! What is said of a collector once, however often it happens.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::clock;

/// The same is said again after so long.
const AGAIN: Duration = Duration::from_secs(3600);
/// So many things are remembered; beyond them the one that was said first is forgotten, and said
/// again when it comes.
const KEPT_MAX: usize = 4_096;

/// When each thing was said last.
#[derive(Default)]
pub(super) struct Notices {
    said: Mutex<HashMap<(Uuid, &'static str), Instant>>,
}

impl Notices {
    /// Whether `what` is to be said of `collector` now.
    pub(super) fn is_first(&self, collector: Uuid, what: &'static str) -> bool {
        self.is_first_at(collector, what, clock::monotonic())
    }

    /// Whether [`Notices::is_first`] would say no: for who must look first whether it may be said.
    pub(super) fn was_said(&self, collector: Uuid, what: &'static str) -> bool {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let at = said.get(&(collector, what));
        at.is_some_and(|at| clock::monotonic().saturating_duration_since(*at) < AGAIN)
    }

    fn is_first_at(&self, collector: Uuid, what: &'static str, now: Instant) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < AGAIN;
        if said.get(&(collector, what)).is_some_and(is_recent) {
            return false;
        }
        if said.len() >= KEPT_MAX {
            said.retain(|_, at| is_recent(at));
        }
        if said.len() >= KEPT_MAX
            && let Some(oldest) = said.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
        {
            said.remove(&oldest);
        }
        said.insert((collector, what), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_said_once_an_hour() {
        let notices = Notices::default();
        let start = clock::monotonic();
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let check = |collector, what, minutes: u64, first| {
            let at = start + Duration::from_secs(60 * minutes);
            assert_eq!(notices.is_first_at(collector, what, at), first, "{what} at {minutes}");
        };
        check(one, "expired", 0, true);
        check(one, "expired", 59, false);
        check(one, "signature", 59, true);
        check(other, "expired", 59, true);
        check(one, "expired", 60, true);
    }

    /// However many things were said, the next one is said, too: the oldest are forgotten.
    #[test]
    fn nobody_uses_up_what_can_be_said() {
        let notices = Notices::default();
        let start = clock::monotonic();
        let (count, id) = (KEPT_MAX as u64, |n: u64| Uuid::from_u128(n.into()));
        let first = |n: u64, ms: u64| {
            notices.is_first_at(id(n), "refused", start + Duration::from_millis(ms))
        };
        assert!((0..count + 100).all(|n| first(n, n)));
        assert_eq!(notices.said.lock().expect("sound").len(), KEPT_MAX);
        assert!(!first(count + 99, count + 100) && !first(100, count + 100));
        assert!(first(99, count + 100), "it was forgotten");
    }
}
