//! What all requests share, and no collector, or other owner, has more of than its part.
//!
//! An owner takes from its own part first, and only with that stands in the line of all. So it
//! never has more in that line than its part, over however many connections it comes: the others
//! wait behind that much of it at most, and it waits for itself.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};
use uuid::Uuid;

/// Something countable, for all and for each owner: a collector, unless it is said.
#[derive(Debug)]
pub(super) struct Divided<K = Uuid> {
    all: Arc<Semaphore>,
    /// Of one owner.
    part: usize,
    /// The parts of owners that hold or wait for something. Each lives as long as its permits.
    parts: Mutex<HashMap<K, Weak<Semaphore>>>,
}

/// What somebody has of it, given back when it is dropped.
#[derive(Debug)]
pub(in crate::backend) struct Taken {
    of_all: OwnedSemaphorePermit,
    of_part: Option<OwnedSemaphorePermit>,
}

impl<K: Eq + Hash> Divided<K> {
    /// As many as `all`, of which one owner has at most `part`.
    pub(super) fn new(all: usize, part: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), part, parts: Mutex::default() }
    }

    /// Takes `count` for an owner, or for somebody who has no part. Waits for its turn, in the
    /// order of those that ask.
    pub(super) async fn take(&self, of: Option<K>, count: u32) -> Result<Taken, AcquireError> {
        let of_part = match of {
            Some(owner) => Some(self.part(owner).acquire_many_owned(count).await?),
            None => None,
        };
        let of_all = Arc::clone(&self.all).acquire_many_owned(count).await?;
        Ok(Taken { of_all, of_part })
    }

    /// The same, if nobody has to be waited for.
    pub(super) fn try_take(&self, of: Option<K>, count: u32) -> Result<Taken, TryAcquireError> {
        let of_part = of.map(|owner| self.part(owner).try_acquire_many_owned(count)).transpose()?;
        let of_all = Arc::clone(&self.all).try_acquire_many_owned(count)?;
        Ok(Taken { of_all, of_part })
    }

    /// The most that one owner can take.
    pub(super) fn part_max(&self) -> usize {
        self.part
    }

    #[cfg(test)]
    pub(super) fn available(&self) -> usize {
        self.all.available_permits()
    }

    fn part(&self, owner: K) -> Arc<Semaphore> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = parts.get(&owner).and_then(Weak::upgrade) {
            return part;
        }
        parts.retain(|_, part| part.strong_count() > 0);
        let part = Arc::new(Semaphore::new(self.part));
        parts.insert(owner, Arc::downgrade(&part));
        part
    }
}

impl Taken {
    /// How many it is.
    pub(super) fn count(&self) -> usize {
        self.of_all.num_permits()
    }

    /// Takes `count` more, if nobody has to be waited for.
    pub(super) fn grow(&mut self, count: u32) -> Result<(), TryAcquireError> {
        let more =
            |of: &OwnedSemaphorePermit| Arc::clone(of.semaphore()).try_acquire_many_owned(count);
        let of_part = self.of_part.as_ref().map(more).transpose()?;
        self.of_all.merge(more(&self.of_all)?);
        if let (Some(held), Some(more)) = (&mut self.of_part, of_part) {
            held.merge(more);
        }
        Ok(())
    }

    /// Gives back what is more than `count`.
    pub(super) fn shrink_to(&mut self, count: usize) {
        let more = self.count().saturating_sub(count);
        drop(self.of_all.split(more));
        if let Some(held) = &mut self.of_part {
            drop(held.split(more));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const GREEDY: Uuid = Uuid::from_u128(1);

    fn at_once(divided: &Divided, of: Option<Uuid>, count: u32) -> Option<Taken> {
        divided.take(of, count).now_or_never()?.ok()
    }

    /// However much one collector asks for, the others have the rest at once, and stand behind no
    /// more of it than its part.
    #[tokio::test]
    async fn one_collector_leaves_the_others_theirs() {
        let divided = Divided::new(8, 4);
        let mut held: Vec<_> = (0..4).map(|_| at_once(&divided, Some(GREEDY), 1)).collect();
        assert!(held.iter().all(Option::is_some));
        let mut waiting: Vec<_> =
            (0..20).map(|_| Box::pin(divided.take(Some(GREEDY), 1))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let others: Vec<_> =
            (2..6).map(|n| at_once(&divided, Some(Uuid::from_u128(n)), 1)).collect();
        assert!(others.iter().all(Option::is_some));
        // All is taken: who comes now is before what the greedy one could not take.
        let mut late = Box::pin(divided.take(Some(Uuid::from_u128(9)), 1));
        assert!(late.as_mut().now_or_never().is_none());
        held.pop();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        assert!(late.now_or_never().is_some());
    }

    /// What is taken step by step is of the same part; who is not a collector has none.
    #[tokio::test]
    async fn a_part_is_not_outgrown() {
        let divided = Divided::new(8, 4);
        let mut held = at_once(&divided, Some(GREEDY), 3).expect("room");
        held.grow(2).expect_err("over its part");
        held.grow(1).expect("its part");
        held.grow(1).expect_err("over its part");
        assert_eq!((held.count(), divided.all.available_permits()), (4, 4));
        let mut user = at_once(&divided, None, 3).expect("room");
        user.grow(1).expect("room");
        user.grow(1).expect_err("all is taken");
        drop(held);
        user.grow(4).expect("room");
        assert_eq!(user.count(), 8);
    }

    /// What is given back early is there for the others, and for its owner.
    #[tokio::test]
    async fn less_is_held_than_was_taken() {
        let divided = Divided::new(8, 4);
        let mut held = divided.try_take(Some(GREEDY), 4).expect("room");
        divided.try_take(Some(GREEDY), 1).expect_err("its part is taken");
        held.shrink_to(5);
        held.shrink_to(1);
        assert_eq!((held.count(), divided.available()), (1, 7));
        drop(divided.try_take(Some(GREEDY), 3).expect("room"));
        divided.try_take(Some(GREEDY), 4).expect_err("over its part");
        drop(held);
        assert_eq!(divided.available(), 8);
    }

    /// The table has the collectors that hold something, and not those that came once.
    #[tokio::test]
    async fn parts_end_with_what_is_held() {
        let divided = Divided::new(8, 4);
        let held = at_once(&divided, Some(GREEDY), 4).expect("room");
        for n in 2..20 {
            at_once(&divided, Some(Uuid::from_u128(n)), 1).expect("room");
        }
        assert!(divided.parts.lock().expect("sound").len() <= 2);
        assert!(at_once(&divided, Some(GREEDY), 1).is_none(), "its part is still the same");
        drop(held);
        assert!(at_once(&divided, Some(GREEDY), 4).is_some());
    }
}
