//! The writer: the segment that takes records, the newest records in memory, and whether the disk
//! takes any.

use super::{
    LogLimits,
    disk_health::DiskHealth,
    ring::{Home, Ring},
};
use crate::queue::format::{
    record::{Position, Record},
    segment::{self, BatchPlan, SegmentRow},
};

/// See the module documentation.
#[derive(Debug)]
pub(in crate::queue) struct Writer {
    pub(in crate::queue) active: Option<Active>,
    pub(in crate::queue) ring: Ring,
    pub(in crate::queue) health: DiskHealth,
    /// What a segment being written reserves on disk.
    pub(in crate::queue) reserve_bytes: u64,
    /// How far this process's first segment keeps from the last of the one before.
    first_leap: Option<u64>,
}

/// The segment that takes records.
#[derive(Debug)]
pub(in crate::queue) struct Active {
    pub(in crate::queue) row: SegmentRow,
    pub(in crate::queue) plans: Vec<BatchPlan>,
    /// Whether the disk takes its records.
    pub(in crate::queue) on_disk: bool,
    pub(in crate::queue) unsaved: Vec<Vec<u8>>,
    /// Acknowledged before it was synced, in the order of the appends.
    pub(in crate::queue) unsynced: Vec<(Vec<Record>, Vec<Position>)>,
    /// What the segment was when it was synced last.
    pub(in crate::queue) synced: (SegmentRow, Vec<BatchPlan>),
}

impl Writer {
    pub(in crate::queue) fn new(limits: &LogLimits) -> Self {
        Self {
            active: None,
            ring: Ring::new(limits.ring_bytes_max),
            health: DiskHealth::default(),
            reserve_bytes: limits.reserve_bytes(),
            first_leap: Some(segment::first_leap()),
        }
    }

    /// The number of the next segment.
    pub(in crate::queue) fn next_id(&mut self, last: u64, now_ms: i64) -> u64 {
        let leap = self.first_leap.take();
        segment::next_id(last, now_ms, leap.unwrap_or_else(|| segment::window_leap(last, now_ms)))
    }
}

impl Active {
    pub(in crate::queue) fn new(row: SegmentRow, on_disk: bool) -> Self {
        let synced = (row.clone(), Vec::new());
        let (plans, unsaved, unsynced) = (Vec::new(), Vec::new(), Vec::new());
        Self { row, plans, on_disk, unsaved, unsynced, synced }
    }

    pub(in crate::queue) fn home(&self) -> Home {
        if self.on_disk { Home::Disk } else { Home::MemoryOnly }
    }
}
