//! One pass over the log: from the committed position to its end, or to the limit.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::entry::{Line, Placed, Reading, Stitcher};
use super::follow::{self, Candidate, Known, LineEnd, Place, Position};
use super::{Followed, PgLogConfig, StartAt};
use crate::collect::{CollectError, document};
use crate::metric::Time;
use crate::metric::pg_log::{Entry, PgLog};

/// An entry that is written to no more for this long is complete.
const IDLE_COMPLETE: Duration = Duration::from_secs(2);
/// After this many bytes other tasks of the thread get their turn.
const YIELD_BYTES: u64 = 256 << 10;
/// So many lines without a single prefix mean that the prefix is another.
const FOREIGN_LINES_MAX: u64 = 50;
/// A metric's JSON without its entries.
const METRIC_OVERHEAD_BYTES: usize = 2_048;

/// What a pass works with.
pub(super) struct Pass<'a> {
    now: Timestamp,
    config: &'a PgLogConfig,
    place: &'a Place,
    reading: &'a Reading,
}

/// What a pass gave.
#[derive(Default)]
pub(super) struct Read {
    pub(super) metrics: Vec<Value>,
    /// Where the next pass begins; absent when nothing has moved.
    pub(super) position: Option<Position>,
    pub(super) file: Option<fs_err::File>,
    pub(super) untimed: u64,
    /// The file that was followed, when it is not there any more.
    pub(super) gone: Option<PathBuf>,
    /// It stopped at the limit.
    pub(super) more: bool,
}

/// A file to read, from where, and whether another comes after it.
struct Segment {
    file: fs_err::File,
    offset: u64,
    follows: Follows,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    Nothing,
    AnotherFile,
}

/// How reading a segment ended.
struct Ended {
    /// Up to where it is done with.
    offset: u64,
    more: bool,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        now: Timestamp,
        config: &'a PgLogConfig,
        place: &'a Place,
        reading: &'a Reading,
    ) -> Self {
        Self { now, config, place, reading }
    }

    pub(super) async fn run(&self, committed: &Followed) -> Result<Read, CollectError> {
        let first_time = committed.position.is_none();
        let mut read = Read::default();
        let segments = self.segments(committed, &mut read).map_err(|error| unreadable(&error))?;
        let mut budget = self.config.read_bytes_max;
        for segment in segments {
            let path = segment.file.path().to_owned();
            let ended = self.segment(&segment, budget, &mut read).await?;
            budget = budget.saturating_sub(ended.offset - segment.offset);
            let position = Position::at(&segment.file, &path, ended.offset);
            let position = position.map_err(|error| unreadable(&error))?;
            let moved = committed.position.as_ref().is_none_or(|before| {
                (before.device, before.inode, before.offset)
                    != (position.device, position.inode, position.offset)
            });
            if moved {
                read.position = Some(position);
                read.file = Some(segment.file);
            }
            if ended.more {
                read.more = true;
                break;
            }
        }
        if first_time
            && read.metrics.is_empty()
            && let Some(position) = &read.position
        {
            // An empty metric carries the position into the queue, so that a restart goes on here.
            let empty = Span { path: &position.path, from: position.offset, to: position.offset };
            let metric = self.metric(&empty, Vec::new(), 0)?;
            read.metrics.push(metric);
        }
        Ok(read)
    }

    /// The files to read now, in their order.
    fn segments(&self, committed: &Followed, read: &mut Read) -> io::Result<Vec<Segment>> {
        let candidates = self.place.candidates()?;
        let Some(position) = &committed.position else {
            return self.first(&candidates);
        };
        let mut segments = Vec::new();
        let mut start_over = None;
        let found = self.place.find(position)?;
        // An open file is read to its end even when its name is gone.
        let file = match (&found, &committed.file) {
            (Some(candidate), _) => Some(fs_err::File::open(&candidate.path)?),
            (None, Some(file)) => Some(file.try_clone()?),
            (None, None) => None,
        };
        let known = file.as_ref().map_or(Ok(Known::Gone), |file| position.check(file))?;
        match (known, file) {
            (Known::Same, Some(file)) => {
                let offset = position.offset;
                segments.push(Segment { file, offset, follows: Follows::Nothing });
            }
            (Known::Rewritten, Some(file)) => {
                start_over = found.map(|candidate| candidate.path);
                segments.push(Segment { file, offset: 0, follows: Follows::Nothing });
            }
            _ => read.gone = Some(position.path.clone()),
        }
        let next = candidates.iter().filter(|c| self.comes_after(c, position, known));
        for candidate in next.filter(|c| start_over.as_ref() != Some(&c.path)) {
            if let Some(last) = segments.last_mut() {
                last.follows = Follows::AnotherFile;
            }
            let file = fs_err::File::open(&candidate.path)?;
            segments.push(Segment { file, offset: 0, follows: Follows::Nothing });
        }
        Ok(segments)
    }

    fn comes_after(&self, candidate: &Candidate, position: &Position, known: Known) -> bool {
        match self.place {
            // The one name is always the newest log, whatever its time.
            Place::File(_) => !candidate.is(position) || known == Known::Gone,
            Place::Directory(_) => candidate.is_after(position),
        }
    }

    fn first(&self, candidates: &[Candidate]) -> io::Result<Vec<Segment>> {
        let Some(newest) = candidates.last() else { return Ok(Vec::new()) };
        let offset = match self.config.start_at {
            StartAt::End => newest.size,
            StartAt::Beginning => 0,
        };
        let file = fs_err::File::open(&newest.path)?;
        Ok(vec![Segment { file, offset, follows: Follows::Nothing }])
    }

    /// Reads one file and adds its metrics.
    async fn segment(
        &self,
        segment: &Segment,
        budget: u64,
        read: &mut Read,
    ) -> Result<Ended, CollectError> {
        let path = segment.file.path();
        let mut stitcher = Stitcher::new(self.reading);
        let (at, more) =
            self.lines(segment, budget, &mut stitcher).await.map_err(|error| unreadable(&error))?;
        let idle = Position::at(&segment.file, path, at)
            .map_err(|error| unreadable(&error))?
            .idle(self.now);
        let complete = segment.follows == Follows::AnotherFile || (idle >= IDLE_COMPLETE && !more);
        // One entry that is longer than the limit would otherwise hold its own place for ever.
        let stuck = more && stitcher.open_at() == Some(segment.offset);
        if complete || stuck {
            stitcher.finish();
        }
        if stitcher.matched == 0 && stitcher.foreign > FOREIGN_LINES_MAX {
            return Err(CollectError::new(format!(
                "{}: no line begins with log_line_prefix and an English level; \
                 hint: name the prefix in pg_log.line_prefix; lc_messages must be English or C",
                path.display()
            )));
        }
        let offset = stitcher.open_at().unwrap_or(at);
        read.untimed += stitcher.untimed;
        let span = Span { path, from: segment.offset, to: offset };
        self.metrics(&span, std::mem::take(&mut stitcher.done), read)?;
        Ok(Ended { offset, more })
    }

    /// Feeds lines up to the end or the budget; returns where it stopped and whether by budget.
    async fn lines(
        &self,
        segment: &Segment,
        budget: u64,
        stitcher: &mut Stitcher<'_>,
    ) -> io::Result<(u64, bool)> {
        let mut reader = follow::reader(&segment.file, segment.offset)?;
        let mut at = segment.offset;
        let mut yield_at = at + YIELD_BYTES;
        let mut bytes = Vec::new();
        loop {
            if at - segment.offset >= budget {
                return Ok((at, true));
            }
            if at >= yield_at {
                yield_at = at + YIELD_BYTES;
                tokio::task::yield_now().await;
            }
            let (length, cut) = match follow::read_line(&mut reader, &mut bytes)? {
                LineEnd::Newline { bytes, cut } => (bytes, cut),
                // A file that another one follows gets no newline any more.
                LineEnd::Partial { bytes, cut } if segment.follows == Follows::AnotherFile => {
                    (bytes, cut)
                }
                LineEnd::Partial { .. } | LineEnd::Eof => return Ok((at, false)),
            };
            let text = String::from_utf8_lossy(&bytes);
            let end = at + length;
            stitcher.push(Line { text: &text, start: at, end, cut: cut > 0 });
            at = end;
        }
    }

    /// Splits the entries over metrics of the allowed size.
    fn metrics(
        &self,
        span: &Span<'_>,
        entries: Vec<Placed>,
        read: &mut Read,
    ) -> Result<(), CollectError> {
        let mut part: Vec<Placed> = Vec::new();
        let mut bytes = METRIC_OVERHEAD_BYTES;
        let mut from = span.from;
        for placed in entries {
            let size = serde_json::to_vec(&placed.entry).map_or(0, |json| json.len() + 1);
            if !part.is_empty() && bytes + size > self.config.metric_bytes_max {
                let to = placed.start;
                let whole = Span { from, to, ..*span };
                read.metrics.push(self.entries_metric(&whole, std::mem::take(&mut part))?);
                (from, bytes) = (to, METRIC_OVERHEAD_BYTES);
            }
            bytes += size;
            part.push(placed);
        }
        let last = Span { from, ..*span };
        if !part.is_empty() || last.to > last.from {
            read.metrics.push(self.entries_metric(&last, part)?);
        }
        Ok(())
    }

    fn entries_metric(&self, span: &Span<'_>, placed: Vec<Placed>) -> Result<Value, CollectError> {
        let inside: u64 = placed.iter().map(|placed| placed.end - placed.start).sum();
        let skipped = (span.to - span.from).saturating_sub(inside);
        self.metric(span, placed.into_iter().map(|placed| placed.entry).collect(), skipped)
    }

    fn metric(
        &self,
        span: &Span<'_>,
        entries: Vec<Entry>,
        skipped_bytes: u64,
    ) -> Result<Value, CollectError> {
        let mut counts = BTreeMap::new();
        for entry in &entries {
            *counts.entry(entry.level.clone()).or_insert(0) += 1;
        }
        document(&PgLog {
            timestamp: Time(self.now),
            database: self.config.connection.database.clone(),
            entries,
            counts,
            file: span.path.display().to_string(),
            from_offset: span.from,
            to_offset: span.to,
            skipped_bytes,
        })
    }
}

/// A stretch of a file.
#[derive(Clone, Copy)]
struct Span<'a> {
    path: &'a Path,
    from: u64,
    to: u64,
}

fn unreadable(error: &io::Error) -> CollectError {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; hint: log_file_mode = 0640 and the server's group for the agent's user"
        }
        io::ErrorKind::NotFound => "; hint: is pg_log.path right?",
        _ => "",
    };
    CollectError::new(format!("{error}{hint}"))
}
