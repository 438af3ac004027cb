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
        if seen.len() >= KEPT_MAX {
            let oldest = seen.iter().min_by_key(|(_, at)| **at).map(|(place, _)| place.clone());
            if let Some(oldest) = oldest {
                seen.remove(&oldest);
            }
        }
        seen.insert((account, network), now);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, Network), Instant>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
