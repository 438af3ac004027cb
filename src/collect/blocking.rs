//! Work that may block for ever, such as a call to a file system whose server is dead: on a thread
//! of its own, one piece at a time, waited for with a deadline.
//!
//! A thread in such a call cannot be ended. It is not one of the runtime's, so that nothing else
//! waits for it, not even the end of the process.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

/// Threads that may hang for collectors that are not there any more: each change of a collector's
/// configuration leaves one behind while its work hangs.
const LEFT_BEHIND_MAX: usize = 4;

static LEFT_BEHIND: LeftBehind = LeftBehind(Mutex::new(Vec::new()));

/// Does one kind of work, never twice at the same time.
#[derive(Debug)]
pub(super) struct Blocking<T> {
    /// What the system calls its threads.
    name: &'static str,
    /// What was begun last, if nobody has had its result yet.
    begun: Option<Begun<T>>,
    left_behind: &'static LeftBehind,
}

/// Work on its thread.
#[derive(Debug)]
struct Begun<T> {
    result: oneshot::Receiver<T>,
    thread: Weak<Alive>,
}

/// A thread has the one that counts.
#[derive(Debug)]
struct Alive;

/// The threads that nobody waits for any more.
#[derive(Debug)]
struct LeftBehind(Mutex<Vec<Weak<Alive>>>);

/// Why there is no result.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// The work has not come to an end, whether it was begun now or earlier.
    Hangs,
    /// It has no thread, or its thread has ended without a result.
    Failed(io::Error),
}

impl<T: Send + 'static> Blocking<T> {
    pub(super) fn new(name: &'static str) -> Self {
        Self::counted_in(name, &LEFT_BEHIND)
    }

    fn counted_in(name: &'static str, left_behind: &'static LeftBehind) -> Self {
        Self { name, begun: None, left_behind }
    }

    /// The result of `work`; while earlier work has not come to an end, or nobody has had its
    /// result, `work` is not begun, and that result is waited for.
    ///
    /// When the future is dropped the result is for the next call.
    pub(super) async fn run(
        &mut self,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let begun = match &mut self.begun {
            Some(earlier) => earlier,
            none if self.left_behind.count() < LEFT_BEHIND_MAX => {
                none.insert(Begun::new(self.name, work).map_err(Unfinished::Failed)?)
            }
            _ => return Err(Unfinished::Hangs),
        };
        let ended = tokio::time::timeout(limit, &mut begun.result).await;
        let ended = ended.map_err(|_| Unfinished::Hangs)?;
        self.begun = None;
        ended.map_err(|_| Unfinished::Failed(io::Error::other("its thread has ended early")))
    }
}

impl<T> Drop for Blocking<T> {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.left_behind.threads().push(begun.thread);
        }
    }
}

impl<T: Send + 'static> Begun<T> {
    fn new(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (sender, result) = oneshot::channel();
        let alive = Arc::new(Alive);
        let begun = Self { result, thread: Arc::downgrade(&alive) };
        thread(name, move || {
            sender.send(work()).ok();
            drop(alive);
        })?;
        Ok(begun)
    }
}

impl LeftBehind {
    fn count(&self) -> usize {
        let mut threads = self.threads();
        threads.retain(|thread| thread.strong_count() > 0);
        threads.len()
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Alive>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does `work` on a thread that nobody waits for.
pub(super) fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(20);

    /// Work that hangs is begun once, however often it is asked for; its result is not lost, and
    /// then work is begun again.
    #[tokio::test]
    async fn work_that_hangs_is_not_begun_again() {
        let (go_on, held) = mpsc::channel();
        let mut held = Some(held);
        let begun = Arc::new(AtomicUsize::new(0));
        let mut work = || {
            let (held, begun) = (held.take(), Arc::clone(&begun));
            move || {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                if let Some(held) = held {
                    held.recv().expect("it may go on");
                }
                number
            }
        };
        let mut blocking = Blocking::new("test");
        for _ in 0..3 {
            let result = blocking.run(SHORT, work()).await;
            assert!(matches!(result, Err(Unfinished::Hangs)), "{result:?}");
        }
        // Whoever gives up waiting loses nothing either.
        assert!(tokio::time::timeout(SHORT, blocking.run(LONG, work())).await.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        go_on.send(()).expect("it waits");
        assert_eq!(blocking.run(LONG, work()).await.expect("it has ended"), 0);
        assert_eq!(blocking.run(LONG, work()).await.expect("another one"), 1);
    }

    /// Collectors that come and go while their work hangs do not leave ever more threads behind.
    #[tokio::test]
    async fn only_some_are_left_behind() {
        static OWN: LeftBehind = LeftBehind(Mutex::new(Vec::new()));
        let begun = Arc::new(AtomicUsize::new(0));
        let (go_on, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..10 {
            let mut blocking = Blocking::counted_in("test", &OWN);
            let (held, begun) = (Arc::clone(&held), Arc::clone(&begun));
            let work = move || {
                begun.fetch_add(1, Ordering::Relaxed);
                held.lock().map(|held| held.recv().is_err()).ok()
            };
            let result = blocking.run(SHORT, work).await;
            assert!(matches!(result, Err(Unfinished::Hangs)), "{result:?}");
        }
        drop(go_on); // all of them end
        let end = crate::clock::monotonic() + LONG;
        while OWN.count() > 0 {
            assert!(crate::clock::monotonic() < end, "they end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(begun.load(Ordering::Relaxed), LEFT_BEHIND_MAX);
        let mut blocking = Blocking::counted_in("test", &OWN);
        assert_eq!(blocking.run(LONG, || 7).await.expect("it works again"), 7);
    }

    /// A panic is not for ever.
    #[tokio::test]
    async fn work_that_panics_is_a_failure() {
        let mut blocking = Blocking::<i32>::new("test");
        let result = blocking.run(LONG, || panic!("as the test wants it")).await;
        assert!(matches!(result, Err(Unfinished::Failed(_))), "{result:?}");
        assert_eq!(blocking.run(LONG, || 7).await.expect("it works"), 7);
    }
}
