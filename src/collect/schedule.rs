//! When a collector runs next. Pure: the caller gives the time and does the waiting.

use std::time::Duration;

use jiff::Timestamp;

/// Ticks at whole multiples of the interval on the wall clock, so that the hosts of a fleet and
/// the collectors of a host give points of the same instants.
///
/// The first tick is at once. After a stall, a suspend or a step of the clock there is one tick,
/// never a burst, and two ticks are never closer than half an interval.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval: i64,
    offset: i64,
    last: Option<i64>,
}

/// The next time to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// How long to wait.
    pub after: Duration,
    /// Ticks that went by since the last one because the work took too long, or the host slept.
    pub missed: u64,
}

impl Schedule {
    /// A tick every `interval` (at least 1 ms), `offset` after the whole multiples.
    pub fn new(interval: Duration, offset: Duration) -> Self {
        let interval = millis(interval).max(1);
        Self { interval, offset: millis(offset) % interval, last: None }
    }

    /// The interval.
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval.unsigned_abs())
    }

    /// The tick after `now`, and the one that is then due.
    pub fn next(&mut self, now: Timestamp) -> Tick {
        let now = now.as_millisecond();
        let Some(last) = self.last else {
            self.last = Some(now);
            return Tick { after: Duration::ZERO, missed: 0 };
        };
        // A clock that was set back would otherwise silence the collector until it catches up.
        let last = last.min(now);
        let mut next = self.multiple_after(now);
        if next - last < self.interval / 2 {
            next += self.interval;
        }
        let missed = (next - last - self.interval / 2 - 1).max(0) / self.interval;
        self.last = Some(next);
        Tick {
            after: Duration::from_millis((next - now).unsigned_abs()),
            missed: missed.unsigned_abs(),
        }
    }

    fn multiple_after(&self, now: i64) -> i64 {
        now - (now - self.offset).rem_euclid(self.interval) + self.interval
    }
}

fn millis(duration: Duration) -> i64 {
    // The bound keeps sums of a time and an interval far from overflow.
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(i64::MAX >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the times of `calls`, and compares the due times and the missed ticks.
    fn check(interval: u64, offset: u64, calls: &[(i64, i64, u64)]) {
        let mut schedule =
            Schedule::new(Duration::from_millis(interval), Duration::from_millis(offset));
        for (now, due, missed) in calls {
            let tick = schedule.next(Timestamp::from_millisecond(*now).expect("in range"));
            let after = i64::try_from(tick.after.as_millis()).expect("small");
            assert_eq!((now + after, tick.missed), (*due, *missed), "at {now} of {calls:?}");
        }
    }

    #[test]
    fn ticks_are_aligned_and_never_a_burst() {
        // The first is at once, the others at multiples, less the one that would follow too soon.
        check(60_000, 0, &[(100_000, 100_000, 0), (100_005, 180_000, 0), (180_100, 240_000, 0)]);
        check(60_000, 0, &[(70_000, 70_000, 0), (70_005, 120_000, 0)]);
        // Work that took 150 s: one tick, two missed.
        check(60_000, 0, &[(60_000, 60_000, 0), (60_001, 120_000, 0), (270_000, 300_000, 2)]);
        // A timer that fired 2 ms early does not tick twice.
        check(60_000, 0, &[(60_000, 60_000, 0), (60_001, 120_000, 0), (119_998, 180_000, 0)]);
        // A clock set back by an hour goes on at the new time's next multiple.
        check(60_000, 0, &[(7_260_000, 7_260_000, 0), (3_601_000, 3_660_000, 0)]);
        check(60_000, 7_000, &[(60_000, 60_000, 0), (60_001, 127_000, 0)]);
        check(60_000, 67_000, &[(0, 0, 0), (1, 67_000, 0)]);
        // No interval at all is one of a millisecond, not a division by zero.
        check(0, 0, &[(5, 5, 0), (5, 6, 0), (6, 7, 0)]);
    }
}
