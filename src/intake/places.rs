//! Who has a connection: a bounded number of places, and an idle one gives its place to a new one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock;

/// A connection without a request for so long gives way: before, its next one may be on the way.
const IDLE_MIN: Duration = Duration::from_secs(2);

/// The places of the intake.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    table: Mutex<Table>,
    /// A place is free, or has become idle.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    holders: BTreeMap<u64, Holder>,
    next: u64,
}

#[derive(Debug)]
struct Holder {
    /// The end of the last request, or the beginning; `None` while a request is in the works.
    idle_since: Option<Instant>,
    taken_away: Arc<Notify>,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    places: Arc<Places>,
    taken_away: Arc<Notify>,
    /// A request has come when the place was another's already.
    is_last: AtomicBool,
}

/// A request in the works, on a connection that does not give way meanwhile.
#[derive(Debug)]
pub(super) struct Work {
    place: Arc<Place>,
    /// Its answer is the last of the connection.
    pub(super) is_last: bool,
}

/// Every place is held.
#[derive(Debug, PartialEq, Eq)]
struct Full {
    /// When one of them will have been idle for long enough.
    ask_again: Option<Duration>,
}

impl Places {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, table: Mutex::default(), changed: Notify::new() })
    }

    /// A place for a new connection. Waits while every place is held by one that is not idle.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            let ask_again = match self.try_take(clock::monotonic()) {
                Ok(place) => return place,
                Err(Full { ask_again }) => ask_again.unwrap_or(Duration::MAX),
            };
            let _ = tokio::time::timeout(ask_again, self.changed.notified()).await;
        }
    }

    fn try_take(self: &Arc<Self>, now: Instant) -> Result<Place, Full> {
        let mut table = self.lock();
        if table.holders.len() >= self.most {
            table.make_room(now)?;
        }
        let (number, taken_away) = (table.next, Arc::new(Notify::new()));
        table.next += 1;
        let holder = Holder { idle_since: Some(now), taken_away: Arc::clone(&taken_away) };
        table.holders.insert(number, holder);
        drop(table);
        Ok(Place { number, places: Arc::clone(self), taken_away, is_last: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Ends the connection that is idle for longest, if that is long enough.
    fn make_room(&mut self, now: Instant) -> Result<(), Full> {
        let idle = |(number, holder): (&u64, &Holder)| Some((holder.idle_since?, *number));
        let Some((since, number)) = self.holders.iter().filter_map(idle).min() else {
            return Err(Full { ask_again: None });
        };
        let left = IDLE_MIN.saturating_sub(now.saturating_duration_since(since));
        if !left.is_zero() {
            return Err(Full { ask_again: Some(left) });
        }
        if let Some(holder) = self.holders.remove(&number) {
            holder.taken_away.notify_one();
        }
        Ok(())
    }
}

impl Place {
    /// A request has come.
    pub(super) fn begin(self: &Arc<Self>) -> Work {
        let mut table = self.places.lock();
        let holder = table.holders.get_mut(&self.number);
        let is_last = holder.is_none();
        if let Some(holder) = holder {
            holder.idle_since = None;
        }
        drop(table);
        self.is_last.store(is_last, Ordering::Relaxed);
        Work { place: Arc::clone(self), is_last }
    }

    /// Ends when the place is another's; not while a request is answered that has come since: the
    /// connection ends after its answer.
    pub(super) async fn taken_away(&self) {
        self.taken_away.notified().await;
        if self.is_last.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().holders.remove(&self.number);
        self.places.changed.notify_one();
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(holder) = self.place.places.lock().holders.get_mut(&self.place.number) {
            holder.idle_since = Some(clock::monotonic());
        }
        self.place.places.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn is_away(place: &Place) -> bool {
        place.taken_away().now_or_never().is_some()
    }

    /// A new connection takes the place of the one that is idle for longest, not of one that has a
    /// request in the works, nor of one whose next request may be on its way.
    #[test]
    fn an_idle_connection_gives_way() {
        let (places, start) = (Places::new(2), clock::monotonic());
        let take = |seconds: f64| {
            let taken = places.try_take(start + Duration::from_secs_f64(seconds));
            taken.map(Arc::new)
        };
        let later = |seconds: f64| Full { ask_again: Some(Duration::from_secs_f64(seconds)) };
        let (first, second) = (take(0.0).expect("free"), take(1.0).expect("free"));
        assert_eq!(take(1.5).expect_err("nobody is idle for long"), later(0.5));
        let work = first.begin();
        assert!(!work.is_last);
        assert_eq!(take(2.0).expect_err("one is busy"), later(1.0));
        let third = take(3.0).expect("the second was idle");
        assert!(!is_away(&first) && is_away(&second));
        let _busy = third.begin();
        assert_eq!(take(600.0).expect_err("both are busy"), Full { ask_again: None });
        drop(work);
        take(600.0).expect("the first is idle");
        assert!(is_away(&first));
    }

    /// A request that comes in the moment in which its place is taken away is answered.
    #[test]
    fn a_request_that_crosses_is_answered() {
        let (places, start) = (Places::new(1), clock::monotonic());
        let first = Arc::new(places.try_take(start).expect("free"));
        let second = places.try_take(start + IDLE_MIN).expect("the first was idle");
        let work = first.begin();
        assert!(work.is_last && !is_away(&first));
        drop(work);
        assert!(!is_away(&first), "its answer may be on the way");
        drop(first);
        assert_eq!(places.lock().holders.len(), 1, "the place is the second's");
        drop(second);
        assert!(places.lock().holders.is_empty());
    }

    /// Who waits gets the place that is given back, and one that becomes idle in its time.
    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken() {
        let places = Places::new(1);
        let first = Arc::new(places.take().await);
        let work = first.begin();
        let mut waiting = Box::pin(places.take());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop((work, first));
        let second = waiting.await;
        drop(second);
        assert!(places.lock().holders.is_empty());
    }
}
