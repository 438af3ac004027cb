//! What is said of a collector once, however often it happens.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::clock;

/// The same is said again after so long.
const AGAIN: Duration = Duration::from_secs(3600);
/// So many things are remembered; what comes beyond them is not said.
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

    fn is_first_at(&self, collector: Uuid, what: &'static str, now: Instant) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < AGAIN;
        if said.get(&(collector, what)).is_some_and(is_recent) {
            return false;
        }
        if said.len() >= KEPT_MAX {
            said.retain(|_, at| is_recent(at));
        }
        if said.len() >= KEPT_MAX {
            return false;
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
        for n in 0..5_000 {
            check(Uuid::from_u128(n + 10), "many", 61, n + 3 < KEPT_MAX as u128);
        }
        check(one, "late", 61, false);
        check(one, "late", 200, true);
    }
}
