//! When to try to connect again. Pure but for the jitter.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
/// Each try is a line in the server's log when it is up and refuses.
const LONGEST: Duration = Duration::from_secs(60);

/// The wait after failed tries: doubling, with jitter so that a fleet does not knock in step.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    wait: Duration,
    until: Instant,
    message: String,
}

impl Backoff {
    /// What the last try said, when it is too early for the next.
    pub(super) fn waits(&self, now: Instant) -> Option<String> {
        self.waiting.as_ref().filter(|w| now < w.until).map(|w| w.message.clone())
    }

    /// A try has failed.
    pub(super) fn failed(&mut self, message: String, now: Instant) {
        let wait = self.waiting.as_ref().map_or(FIRST, |w| (w.wait * 2).min(LONGEST));
        let until = now + wait.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.waiting = Some(Waiting { wait, until, message });
    }

    /// A try was good.
    pub(super) fn reset(&mut self) {
        self.waiting = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute() {
        let mut backoff = Backoff::default();
        let mut now = crate::clock::monotonic();
        assert_eq!(backoff.waits(now), None);
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            backoff.failed("down".to_owned(), now);
            let longest = Duration::from_secs(wait);
            assert_eq!(backoff.waits(now + longest.mul_f64(0.49)), Some("down".to_owned()));
            now += longest;
            assert_eq!(backoff.waits(now), None);
        }
        backoff.failed("down".to_owned(), now);
        backoff.reset();
        assert_eq!(backoff.waits(now), None);
    }
}
