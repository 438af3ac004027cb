//! Requests with the same idempotency key go one after the other, so that the second finds what the
//! first has left.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// The keys of requests in the works. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys(Arc<Mutex<HashMap<String, Arc<Turn<()>>>>>);

/// The turn of one request with its key; the next has it when this is dropped.
#[derive(Debug)]
pub(super) struct KeyTurn {
    keys: Keys,
    name: String,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Keys {
    /// Waits for the requests with this key that came before.
    pub(super) async fn turn(&self, name: &str) -> KeyTurn {
        let turn = Arc::clone(self.lock().entry(name.to_owned()).or_default());
        // Dropped while it waits, it leaves the key to whoever has the turn.
        let mut waiting = KeyTurn { keys: self.clone(), name: name.to_owned(), turn: None };
        waiting.turn = Some(turn.lock_owned().await);
        waiting
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Turn<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for KeyTurn {
    fn drop(&mut self) {
        let mut keys = self.keys.lock();
        self.turn = None;
        // Counts change under the lock only upwards, so nobody waits who is not counted.
        if keys.get(&self.name).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            keys.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_key_has_one_turn_at_a_time() {
        let keys = Keys::default();
        let first = keys.turn("a").await;
        assert!(keys.turn("b").now_or_never().is_some(), "another key does not wait");
        let mut second = Box::pin(keys.turn("a"));
        assert!((&mut second).now_or_never().is_none());
        assert!(keys.turn("a").now_or_never().is_none(), "one that gives up");
        drop(first);
        let second = second.await;
        assert!(keys.turn("a").now_or_never().is_none());
        drop(second);
        assert!(keys.lock().is_empty(), "keys that nobody has a turn with are forgotten");
    }
}
