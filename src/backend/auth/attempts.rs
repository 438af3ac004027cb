//! How often one address, or one account, may try.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// So many are remembered. When there are more, the one that tried least is forgotten: whoever is
/// blocked stays so.
const KEPT_MAX: usize = 10_000;

/// Attempts of each `K` in its current window, a minute unless it is said.
pub(in crate::backend) struct Attempts<K> {
    window: Duration,
    per_window: u32,
    by_key: Mutex<HashMap<K, Window>>,
}

struct Window {
    began: Instant,
    attempts: u32,
}

impl<K: Clone + Eq + Hash> Attempts<K> {
    /// At most `per_minute` attempts.
    pub(in crate::backend) fn new(per_minute: u32) -> Self {
        Self::within(MINUTE, per_minute)
    }

    /// At most `attempts` in each `window`.
    pub(in crate::backend) fn within(window: Duration, attempts: u32) -> Self {
        Self { window, per_window: attempts, by_key: Mutex::default() }
    }

    /// How long `key` must wait for its next attempt; `None` when it need not.
    pub(in crate::backend) fn blocked(&self, key: impl Into<K>, now: Instant) -> Option<Duration> {
        self.blocked_in(&self.lock(), &key.into(), now)
    }

    /// Counts an attempt, unless `key` must wait for it: how long then. Of those that come at once,
    /// no more are let through than of those that come one after the other.
    pub(in crate::backend) fn take(&self, key: impl Into<K>, now: Instant) -> Result<(), Duration> {
        let (key, mut by_key) = (key.into(), self.lock());
        if let Some(wait) = self.blocked_in(&by_key, &key, now) {
            return Err(wait);
        }
        self.note_in(&mut by_key, key, now);
        Ok(())
    }

    /// Counts an attempt.
    pub(in crate::backend) fn note(&self, key: impl Into<K>, now: Instant) {
        self.note_in(&mut self.lock(), key.into(), now);
    }

    fn blocked_in(&self, by_key: &HashMap<K, Window>, key: &K, now: Instant) -> Option<Duration> {
        let window = by_key.get(key)?;
        if window.attempts < self.per_window { None } else { window.left(self.window, now) }
    }

    fn note_in(&self, by_key: &mut HashMap<K, Window>, key: K, now: Instant) {
        if by_key.len() >= KEPT_MAX && !by_key.contains_key(&key) {
            by_key.retain(|_, window| window.left(self.window, now).is_some());
        }
        if by_key.len() >= KEPT_MAX && !by_key.contains_key(&key) {
            let least = by_key.iter().min_by_key(|(_, window)| (window.attempts, window.began));
            if let Some(least) = least.map(|(key, _)| key.clone()) {
                by_key.remove(&least);
            }
        }
        let fresh = Window { began: now, attempts: 0 };
        let window = by_key.entry(key).or_insert(fresh);
        if window.left(self.window, now).is_none() {
            *window = Window { began: now, attempts: 0 };
        }
        window.attempts = window.attempts.saturating_add(1);
    }

    /// Takes an attempt back: it was a good one.
    pub(in crate::backend) fn forgive(&self, key: impl Into<K>) {
        if let Some(window) = self.lock().get_mut(&key.into()) {
            window.attempts = window.attempts.saturating_sub(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Window>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// What is left of its `length`.
    fn left(&self, length: Duration, now: Instant) -> Option<Duration> {
        length.checked_sub(now.saturating_duration_since(self.began)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_attempts_each_minute() {
        let attempts = Attempts::<u8>::new(2);
        let start = crate::clock::monotonic();
        let after = |seconds| start + Duration::from_secs(seconds);
        let check = |key: u8, seconds, left: Option<u64>| {
            let blocked = attempts.blocked(key, after(seconds));
            assert_eq!(blocked, left.map(Duration::from_secs), "{key} after {seconds} s");
        };
        check(1, 0, None);
        attempts.note(1, after(0));
        check(1, 1, None);
        attempts.note(1, after(1));
        check(1, 10, Some(50));
        check(2, 10, None);
        attempts.forgive(1);
        check(1, 11, None);
        attempts.note(1, after(11));
        check(1, 12, Some(48));
        check(1, 60, None);
        attempts.take(1, after(60)).expect("the first");
        check(1, 61, None);
        attempts.take(1, after(61)).expect("the second");
        assert_eq!(attempts.take(1, after(62)), Err(Duration::from_secs(58)));
    }

    /// However many come, the table has its bound, and who is blocked stays blocked.
    #[test]
    fn many_keys_neither_fill_the_memory_nor_free_a_blocked_one() {
        let attempts = Attempts::<u32>::new(2);
        let now = crate::clock::monotonic();
        for _ in 0..2 {
            attempts.note(0_u32, now);
        }
        for key in 1..12_000_u32 {
            attempts.note(key, now);
        }
        assert_eq!(attempts.lock().len(), KEPT_MAX);
        assert_eq!(attempts.blocked(0_u32, now), Some(MINUTE));
        attempts.note(20_000_u32, now + MINUTE);
        assert_eq!(attempts.lock().len(), 1);
    }
}
