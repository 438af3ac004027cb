//! How long to wait after a failure: 1 s, doubling, at most 300 s, with full jitter drawn after the
//! cap, for ever.
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

    /// The pause after one more failure: `draw` (from 0 to 1) of the ceiling, and at least
    /// `at_least`, which is what the backend asked for.
    pub fn after_failure(&mut self, draw: f64, at_least: Option<Duration>) -> Duration {
        // The crate adds up to a nanosecond at random, even without its jitter.
        let ceiling = self.ceilings.next_backoff().unwrap_or(self.cap).min(self.cap);
        let ceiling = Duration::from_millis(u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX));
        ceiling.mul_f64(draw.clamp(0.0, 1.0)).max(at_least.unwrap_or_default())
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

    #[test]
    fn what_the_backend_asks_for_is_a_lower_bound() {
        let mut pace = Pace::default();
        let asked = Some(Duration::from_secs(60));
        assert_eq!(pace.after_failure(1.0, asked), Duration::from_secs(60));
        let mut pace = Pace::new(CAP, CAP);
        assert_eq!(pace.after_failure(1.0, asked), CAP);
    }
}
