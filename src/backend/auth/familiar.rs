//! From where an account was used before: there its owner gets in while others guess at it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::super::network::Network;

/// So many places are remembered, the latest ones.
const KEPT_MAX: usize = 4_096;

/// Addresses with a good login, by account.
#[derive(Default)]
pub(in crate::backend) struct Familiar {
    seen: Mutex<HashMap<(String, Network), Instant>>,
}

impl Familiar {
    /// Whether `account` was logged in to from `network`.
    pub(in crate::backend) fn knows(&self, account: &str, network: Network) -> bool {
        self.lock().contains_key(&(account.to_owned(), network))
    }

    /// A good login.
    pub(in crate::backend) fn note(&self, account: String, network: Network, now: Instant) {
        let mut seen = self.lock();
        let place = (account, network);
        if seen.len() >= KEPT_MAX && !seen.contains_key(&place) {
            let oldest = seen.iter().min_by_key(|(_, at)| **at).map(|(place, _)| place.clone());
            if let Some(oldest) = oldest {
                seen.remove(&oldest);
            }
        }
        seen.insert(place, now);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, Network), Instant>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;
    use crate::clock;

    /// However many log in from however many places: the latest are remembered, and one that comes
    /// again takes no other's place.
    #[test]
    fn the_latest_places_are_remembered() {
        let familiar = Familiar::default();
        let start = clock::monotonic();
        let network = |n: usize| {
            let n = u32::try_from(n).expect("small");
            Network::from(IpAddr::from(n.to_be_bytes()))
        };
        let note = |n: usize, at: usize| {
            let at = Duration::from_millis(at.try_into().expect("small"));
            familiar.note("ann".to_owned(), network(n), start + at);
        };
        for n in 0..KEPT_MAX {
            note(n, n);
        }
        assert!(familiar.knows("ann", network(0)) && !familiar.knows("bob", network(0)));
        note(1, KEPT_MAX);
        assert!((0..KEPT_MAX).all(|n| familiar.knows("ann", network(n))), "one came again");
        for n in 0..100 {
            note(KEPT_MAX + n, KEPT_MAX + 1 + n);
        }
        assert_eq!(familiar.lock().len(), KEPT_MAX);
        assert!(familiar.knows("ann", network(1)) && familiar.knows("ann", network(KEPT_MAX + 99)));
        assert!(!familiar.knows("ann", network(0)) && !familiar.knows("ann", network(100)));
        assert!(familiar.knows("ann", network(101)));
    }
}
