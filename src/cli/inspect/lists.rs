//! `inspect segments` and `inspect batches`.

use serde::Serialize;

use super::{Shown, heading, tables};
use crate::cli::screen::{Screen, cut};
use crate::queue::{BatchInfo, QueueStatus, SegmentInfo, SegmentState};
use crate::units;

/// Segments, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Segments {
    /// The segments.
    pub(super) segments: Vec<SegmentInfo>,
    /// Rows of the table.
    #[serde(skip)]
    pub(super) limit: usize,
}

/// Batches, oldest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Batches {
    /// The batches.
    pub(super) batches: Vec<BatchInfo>,
    /// Rows of the table.
    #[serde(skip)]
    pub(super) limit: usize,
}

impl Shown for Segments {
    fn page(&self, screen: &Screen, queue: &QueueStatus) -> String {
        let table = tables::segments(screen, &self.segments, self.limit);
        format!("{}\n\n{table}", heading(screen, queue))
    }

    fn facts(&self, _queue: &QueueStatus) -> Vec<(String, String)> {
        self.segments.iter().map(segment_fact).collect()
    }

    fn is_damaged(&self) -> bool {
        self.segments.iter().any(|segment| segment.state == SegmentState::Damaged)
    }
}

impl Shown for Batches {
    fn page(&self, screen: &Screen, queue: &QueueStatus) -> String {
        let table = tables::batches(screen, &self.batches, self.limit);
        format!("{}\n\n{table}", heading(screen, queue))
    }

    fn facts(&self, _queue: &QueueStatus) -> Vec<(String, String)> {
        let fact = |batch: &BatchInfo| {
            let state = tables::batch_word(batch.state);
            let text = format!(
                "{state}, {} records{}",
                batch.records,
                tried(batch.attempts, batch.last_answer.as_deref())
            );
            (format!("batch {} {}/{}", batch.id, batch.segment, batch.number), text)
        };
        self.batches.iter().map(fact).collect()
    }

    fn is_damaged(&self) -> bool {
        false
    }
}

/// A segment in a line, without its age.
pub(super) fn segment_fact(segment: &SegmentInfo) -> (String, String) {
    let text = format!(
        "{}, {} records, {} on disk, {}/{} sent{}",
        tables::segment_word(segment),
        segment.records,
        units::show_size(segment.disk_bytes),
        segment.delivered,
        segment.batches,
        tried(segment.attempts, segment.last_answer.as_deref()),
    );
    (format!("segment {}", segment.id), text)
}

fn tried(attempts: u32, answer: Option<&str>) -> String {
    match answer {
        Some(answer) => format!(", {attempts} tries, {}", cut(answer, 60)),
        None => String::new(),
    }
}
