//! How long to wait after a failure: 1 s, doubling, at most 300 s, with full jitter drawn after the
//! cap, for ever; and after what the backend asked for, when it did.
//!
//! A backend that names a time names the same one to all of its agents. So what it asks for is not
//! only a lower bound: the jitter comes on top, over at least as long as was asked, within the cap.
//!
//! The `backoff` crate gives the growing ceiling and nothing else; it is unmaintained, and this is
//! the only file that names it.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

/// The ceiling after the first failure.
pub const FIRST: Duration = Duration::from_secs(1);
/// The highest ceiling.
pub const CAP: Duration = Duration::from_secs(300);

/// The pauses between tries.
#[derive(Debug)]
pub struct Pace {
    ceilings: ExponentialBackoff,
    cap: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self::new(FIRST, CAP)
    }
}

impl Pace {
    /// Pauses below `first`, then below its double, and so on up to `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        let ceilings = ExponentialBackoffBuilder::new()
            .with_initial_interval(first)
            .with_multiplier(2.0)
            .with_randomization_factor(0.0)
            .with_max_interval(cap)
            .with_max_elapsed_time(None)
            .build();
        Self { ceilings, cap }
    }

    /// The pause after one more failure: `at_least`, which is what the backend asked for, and
    /// `draw` (from 0 to 1) of the ceiling, or of what was asked when that is longer, up to the
    /// cap.
    pub fn after_failure(&mut self, draw: f64, at_least: Option<Duration>) -> Duration {
        // The crate adds up to a nanosecond at random, even without its jitter.
        let ceiling = self.ceilings.next_backoff().unwrap_or(self.cap).min(self.cap);
        let ceiling = Duration::from_millis(u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX));
        self.after(at_least.unwrap_or_default(), ceiling, draw)
    }

    /// The pause when the backend has asked for one, and the failure is counted already.
    pub fn asked(&self, draw: f64, asked: Duration) -> Duration {
        self.after(asked, Duration::ZERO, draw)
    }

    fn after(&self, asked: Duration, ceiling: Duration, draw: f64) -> Duration {
        let spread = ceiling.max(asked.min(self.cap));
        asked.saturating_add(spread.mul_f64(draw.clamp(0.0, 1.0)))
    }

    /// A pause in the upper half of the cap, for what only a person can change.
    pub fn at_cap(&self, draw: f64) -> Duration {
        self.cap.mul_f64(0.5 + draw.clamp(0.0, 1.0) / 2.0)
    }

    /// A try has succeeded: the next failure begins at the first ceiling again.
    pub fn reset(&mut self) {
        self.ceilings.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C36
    #[test]
    fn ceilings_double_up_to_the_cap_for_ever() {
        let mut pace = Pace::default();
        let ceilings: Vec<u64> = (0..12).map(|_| pace.after_failure(1.0, None).as_secs()).collect();
        assert_eq!(ceilings, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        for _ in 0..10_000 {
            assert_eq!(pace.after_failure(1.0, None), CAP);
        }
        pace.reset();
        assert_eq!(pace.after_failure(1.0, None), FIRST);
    }

    #[test]
    fn the_jitter_covers_everything_below_the_ceiling_at_the_cap_too() {
        let mut pace = Pace::new(CAP, CAP);
        assert_eq!(pace.after_failure(0.0, None), Duration::ZERO);
        assert_eq!(pace.after_failure(0.5, None), CAP / 2);
        assert_eq!((pace.at_cap(0.0), pace.at_cap(1.0)), (CAP / 2, CAP));
    }

    /// C36: 10,000 agents that were told the same time do not come in the same second.
    #[test]
    fn what_the_backend_asks_for_is_a_lower_bound_and_spreads_the_rest() {
        let check = |first, asked, expected: [u64; 2]| {
            let pause = |draw| {
                let mut pace = Pace::new(Duration::from_secs(first), CAP);
                pace.after_failure(draw, Some(Duration::from_secs(asked)))
            };
            assert_eq!([pause(0.0), pause(1.0)], expected.map(Duration::from_secs), "{asked} s");
        };
        check(1, 0, [0, 1]);
        check(1, 60, [60, 120]);
        check(128, 60, [60, 188]);
        check(1, 3600, [3600, 3900]);
        check(300, 3600, [3600, 3900]);
    }

    #[test]
    fn a_time_without_end_is_no_overflow() {
        assert_eq!(Pace::default().after_failure(1.0, Some(Duration::MAX)), Duration::MAX);
    }
}
