//! How fast the backlog, or a replay, may go. Pure: it is told the time.

use std::time::Duration;

/// A limit on bytes per second. What has been sent is paid for by waiting before the next is sent,
/// so that over any time no more passes than the limit and one batch; time in which nothing was
/// sent is not saved up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    bytes_s: Option<u64>,
    paid_at: Duration,
}

impl Rate {
    /// At most `bytes_s` bytes a second; `None`: no limit.
    pub fn new(bytes_s: Option<u64>) -> Self {
        Self { bytes_s: bytes_s.map(|limit| limit.max(1)), paid_at: Duration::ZERO }
    }

    /// Changes the limit. What was sent under the last one is paid for as it was.
    pub fn set(&mut self, bytes_s: Option<u64>) {
        self.bytes_s = bytes_s.map(|limit| limit.max(1));
        if self.bytes_s.is_none() {
            self.paid_at = Duration::ZERO;
        }
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.bytes_s.is_some()
    }

    /// How long to wait before the next bytes may be sent. `now` counts from any fixed moment.
    pub fn wait(&self, now: Duration) -> Duration {
        self.paid_at.saturating_sub(now)
    }

    /// `bytes` are sent at `now`.
    pub fn spend(&mut self, bytes: u64, now: Duration) {
        let Some(bytes_s) = self.bytes_s else { return };
        let micros = u128::from(bytes) * 1_000_000 / u128::from(bytes_s);
        let cost = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        self.paid_at = self.paid_at.max(now).saturating_add(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn bytes_are_paid_for_before_the_next_are_sent() {
        let mut rate = Rate::new(Some(1_000));
        assert_eq!(rate.wait(ms(5_000)), ms(0));
        rate.spend(500, ms(5_000));
        assert_eq!(rate.wait(ms(5_000)), ms(500));
        assert_eq!(rate.wait(ms(5_400)), ms(100));
        rate.spend(500, ms(5_500));
        assert_eq!(rate.wait(ms(5_500)), ms(500));
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut rate = Rate::new(Some(1_000));
        rate.spend(1_000, ms(0));
        rate.spend(1_000, ms(60_000));
        assert_eq!(rate.wait(ms(60_000)), ms(1_000));
    }

    /// Whatever the sizes, what passes is at most the limit and one batch.
    #[test]
    fn the_limit_holds_over_any_time() {
        let (mut rate, mut now, mut sent) = (Rate::new(Some(7_919)), ms(0), 0_u64);
        for n in 0..500_u64 {
            now += rate.wait(now);
            let batch = n * 613 % 4_001;
            rate.spend(batch, now);
            let allowed = now.as_micros() * 7_919 / 1_000_000 + 4_001;
            assert!(u128::from(sent) <= allowed, "{sent} bytes after {now:?}");
            sent += batch;
        }
        assert!(now > Duration::from_secs(100), "{sent} bytes took {now:?}");
    }

    #[test]
    fn no_limit_waits_for_nothing() {
        let mut rate = Rate::new(None);
        rate.spend(u64::MAX, ms(1));
        assert_eq!(rate.wait(ms(1)), ms(0));
    }

    #[test]
    fn extreme_rates_do_not_overflow() {
        let mut rate = Rate::new(Some(0));
        rate.spend(u64::MAX, Duration::MAX);
        assert!(rate.wait(ms(0)) > ms(1));
        Rate::new(Some(u64::MAX)).spend(u64::MAX, ms(0));
    }

    #[test]
    fn a_limit_that_is_lifted_is_waited_for_no_more() {
        let mut rate = Rate::new(Some(1));
        rate.spend(1_000, ms(0));
        rate.set(None);
        assert_eq!((rate.wait(ms(0)), rate.is_limited()), (ms(0), false));
    }
}
