//! The clock by which records grow old. Pure.
//!
//! What goes for its age must not go on the word of a wall clock that jumps: a host whose battery
//! is empty starts years off. So ages are told by a clock of the queue's own, which runs as long as
//! the process does, is written with the state, and follows the wall clock only when the backend's
//! time has agreed with it.

/// The time, told twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock, milliseconds since 1970 UTC.
    pub wall_ms: i64,
    /// A clock that is never set, milliseconds since some moment of this process.
    pub running_ms: i64,
}

/// Where both clocks agree.
impl From<i64> for Moment {
    fn from(ms: i64) -> Self {
        Self { wall_ms: ms, running_ms: ms }
    }
}

/// See the module documentation.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::queue) struct AgeClock {
    /// What an earlier process wrote.
    earlier: Option<i64>,
    /// What it said last, and when that was.
    last: Option<(i64, i64)>,
}

impl AgeClock {
    /// Goes on from what an earlier process wrote.
    pub(in crate::queue) fn of_earlier(age_ms: Option<i64>) -> Self {
        Self { earlier: age_ms, last: None }
    }

    /// What it says now: as much more as the process has run, and never more than the wall clock. A
    /// queue that has no earlier time begins with the wall clock's.
    pub(in crate::queue) fn tell(&mut self, now: Moment) -> i64 {
        let (age_ms, running_ms) =
            self.last.unwrap_or_else(|| (self.earlier.unwrap_or(now.wall_ms), now.running_ms));
        let ran_ms = now.running_ms.saturating_sub(running_ms).max(0);
        // A wall clock that was put back makes everything younger, for as long as it is so.
        self.last = Some((age_ms.saturating_add(ran_ms), now.running_ms));
        age_ms.saturating_add(ran_ms).min(now.wall_ms)
    }

    /// The backend's time agrees with the wall clock. Returns how far that sets it ahead.
    pub(in crate::queue) fn confirm(&mut self, now: Moment) -> i64 {
        let told_ms = self.tell(now);
        self.last = Some((now.wall_ms, now.running_ms));
        now.wall_ms.saturating_sub(told_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR_MS: i64 = 365 * 86_400_000;

    fn at(wall_ms: i64, running_ms: i64) -> Moment {
        Moment { wall_ms, running_ms }
    }

    #[test]
    fn it_runs_with_the_process_and_jumps_only_when_that_is_confirmed() {
        let mut age = AgeClock::default();
        assert_eq!(age.tell(at(1_000, 0)), 1_000);
        assert_eq!(age.tell(at(1_500, 500)), 1_500);
        assert_eq!(age.tell(at(30 * YEAR_MS, 700)), 1_700, "the wall clock has jumped ahead");
        assert_eq!(age.tell(at(30 * YEAR_MS + 10, 710)), 1_710);
        assert_eq!(age.tell(at(500, 800)), 500, "and back");
        assert_eq!(age.tell(at(5_000, 900)), 1_900);
        age.confirm(at(5_100, 1_000));
        assert_eq!(age.tell(at(5_200, 1_100)), 5_200);
    }

    #[test]
    fn a_start_goes_on_from_the_end_before() {
        let mut age = AgeClock::of_earlier(Some(1_000));
        assert_eq!(age.tell(at(30 * YEAR_MS, 0)), 1_000);
        assert_eq!(age.tell(at(30 * YEAR_MS + 50, 50)), 1_050);
        let mut age = AgeClock::of_earlier(None);
        assert_eq!(age.tell(at(9, 2)), 9);
    }
}
