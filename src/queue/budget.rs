//! How much the queue may keep, and what happens when it is full. Pure: the log acts on it.

use std::time::Duration;

/// When the disk is synced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Before an append is acknowledged: nothing acknowledged is lost by kill -9 or power loss.
    #[default]
    Sync,
    /// At most `commit_interval` after it was acknowledged: power loss costs that at most, kill -9
    /// nothing.
    Interval,
    /// When a segment is closed: power loss costs what the system had not written, kill -9 nothing.
    Os,
}

/// What happens when the queue is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFull {
    /// The oldest segments go.
    #[default]
    EvictOldest,
    /// What comes is not taken.
    EvictNewest,
    /// Appends wait: the collectors stop.
    Block,
    /// Every second sample of the oldest windows goes, then every second of what is left.
    Thin,
}

/// How much the queue may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Bytes on disk of all segments, what is set aside for the one being written, dead letters and
    /// quarantine included.
    pub bytes_max: u64,
    /// Older segments are evicted.
    pub age_max: Option<Duration>,
    /// Percent of the file system; with less free space the queue does not grow.
    pub disk_free_min_percent: u8,
    /// See [`OnFull`].
    pub on_full: OnFull,
}

/// Delivered segments that are kept, so that a backend that has lost them can be refilled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Retain {
    /// None.
    #[default]
    Off,
    /// The newest, up to so many bytes on disk. They count towards the queue's budget and go first.
    Bytes(u64),
    /// Those delivered within this time.
    Age(Duration),
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that this process may still use.
    pub available: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Budget {
    /// The smallest `bytes_max`.
    pub const BYTES_MIN: u64 = 16 << 20;

    /// No bound at all.
    pub const UNBOUNDED: Self = Self {
        bytes_max: u64::MAX,
        age_max: None,
        disk_free_min_percent: 0,
        on_full: OnFull::EvictOldest,
    };

    /// Bytes of dead letters; the oldest go when there are more.
    pub fn dead_bytes_max(&self) -> u64 {
        self.bytes_max / 8
    }

    /// Whether `space` is below `disk_free_min_percent`.
    pub fn is_low(&self, space: DiskSpace) -> bool {
        let min = u128::from(space.total) * u128::from(self.disk_free_min_percent) / 100;
        u128::from(space.available) < min
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_max: 1 << 30, disk_free_min_percent: 5, ..Self::UNBOUNDED }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_low_below_the_percentage() {
        let budget = Budget { disk_free_min_percent: 5, ..Budget::UNBOUNDED };
        let low = |available| budget.is_low(DiskSpace { available, total: 1_000 });
        assert_eq!([low(49), low(50), low(1_000)], [true, false, false]);
        assert!(!Budget::UNBOUNDED.is_low(DiskSpace { available: 0, total: 1_000 }));
    }
}
