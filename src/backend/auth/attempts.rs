//! How often one address may try a password or the registration secret.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(60);
/// Past windows are swept when so many addresses are remembered.
const ADDRESSES_MAX: usize = 10_000;

/// Attempts of each address in its current minute.
pub(in crate::backend) struct Attempts {
    per_window: u32,
    by_address: Mutex<HashMap<IpAddr, Window>>,
}

struct Window {
    began: Instant,
    attempts: u32,
}

impl Attempts {
    /// At most `per_minute` attempts.
    pub(in crate::backend) fn new(per_minute: u32) -> Self {
        Self { per_window: per_minute, by_address: Mutex::default() }
    }

    /// How long `address` must wait for its next attempt; `None` when it need not.
    pub(in crate::backend) fn blocked(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let by_address = self.lock();
        let window = by_address.get(&address.to_canonical())?;
        if window.attempts < self.per_window { None } else { window.left(now) }
    }

    /// Counts an attempt.
    pub(in crate::backend) fn note(&self, address: IpAddr, now: Instant) {
        let mut by_address = self.lock();
        if by_address.len() >= ADDRESSES_MAX {
            by_address.retain(|_, window| window.left(now).is_some());
        }
        let fresh = Window { began: now, attempts: 0 };
        let window = by_address.entry(address.to_canonical()).or_insert(fresh);
        if window.left(now).is_none() {
            *window = Window { began: now, attempts: 0 };
        }
        window.attempts += 1;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, Window>> {
        self.by_address.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Window {
    fn left(&self, now: Instant) -> Option<Duration> {
        WINDOW.checked_sub(now.saturating_duration_since(self.began)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_attempts_each_minute() {
        let attempts = Attempts::new(2);
        let start = crate::clock::monotonic();
        let after = |seconds| start + Duration::from_secs(seconds);
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let check = |address, seconds, left: Option<u64>| {
            let blocked = attempts.blocked(address, after(seconds));
            assert_eq!(blocked, left.map(Duration::from_secs), "{address} after {seconds} s");
        };
        check(one, 0, None);
        attempts.note(one, after(0));
        check(one, 1, None);
        attempts.note(one, after(1));
        check(one, 10, Some(50));
        check(other, 10, None);
        check(one, 60, None);
        attempts.note(one, after(60));
        check(one, 61, None);
    }
}
