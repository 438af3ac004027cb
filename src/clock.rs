//! The only place that reads a clock. Everything else takes the time as an argument.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// The host's wall clock, UTC, as metrics carry it.
#[expect(clippy::disallowed_methods, reason = "this is the file that owns the clocks")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// A host's wall clock, which may be wrong: tests have hosts that are years off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostClock {
    ahead: SignedDuration,
}

impl HostClock {
    /// A clock that is `ahead` of this process's, or behind it when that is negative.
    pub fn ahead_by(ahead: SignedDuration) -> Self {
        Self { ahead }
    }

    /// What it says.
    pub fn now(self) -> Timestamp {
        now().saturating_add(self.ahead).unwrap_or(Timestamp::MAX)
    }
}

/// The monotonic clock, for rates, deadlines and ages.
#[expect(clippy::disallowed_methods, reason = "this is the file that owns the clocks")]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// CPU time that this process has used, user and system.
pub fn process_cpu() -> Duration {
    spent(ClockId::ProcessCPUTime)
}

/// CPU time that this thread has used.
pub fn thread_cpu() -> Duration {
    spent(ClockId::ThreadCPUTime)
}

fn spent(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

/// `at` as the contract writes it: RFC 3339, UTC, milliseconds, ending in `Z`.
pub fn rfc3339(at: Timestamp) -> String {
    format!("{at:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_is_utc_with_milliseconds() {
        let at = Timestamp::from_millisecond(1_700_000_000_005).expect("in range");
        assert_eq!(rfc3339(at), "2023-11-14T22:13:20.005Z");
    }
}
