//! One pass over the log: from the committed position to its end, or to the limit. It blocks: its
//! place is a thread that may hang.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::entry::{Line, Placed, Reading, Stitcher};
use super::follow::{self, Candidate, LineEnd, Place, Position};
use super::positions::{NameState, Positions, Source, Sources};
use super::{Followed, OpenFiles, PgLogConfig};
use crate::collect::{CollectError, document};
use crate::metric::Time;
use crate::metric::pg_log::{Entry, PgLog};

/// An entry that is written to no more for this long is complete.
const IDLE_COMPLETE: Duration = Duration::from_secs(2);
/// A last line without a newline is complete when the file is written to no more for this long.
const IDLE_ENDED: Duration = Duration::from_secs(600);
/// The most files that are kept open: what is written to a file that was removed is read.
const OPEN_MAX: usize = 8;
/// So many lines without a single prefix mean that the prefix is another.
const FOREIGN_LINES_MAX: u64 = 51;
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
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) metrics: Vec<Value>,
    /// Where the next pass begins.
    pub(super) followed: Followed,
    /// That is elsewhere than where this one began.
    pub(super) has_moved: bool,
    pub(super) untimed: u64,
    /// The file that was written last, when it is not there any more.
    pub(super) gone: Option<PathBuf>,
    /// What it was of is nowhere any more: it was emptied.
    pub(super) emptied: Option<PathBuf>,
    /// Files without a single line of a log, which were passed over to their ends.
    pub(super) passed_over: Vec<PathBuf>,
    /// How many files were written to and not looked at.
    pub(super) left_out: usize,
    /// Why one of several files could not be read.
    pub(super) unreadable: Option<String>,
    /// It stopped at the limit.
    pub(super) more: bool,
    /// Lines with the prefix and a level, and without.
    matched: u64,
    foreign: u64,
}

/// Whether more may be written to a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writing {
    GoesOn,
    /// It has no name any more, and another file is written to.
    Ended,
}

/// How reading a file ended.
struct Ended {
    /// Up to where it is done with.
    offset: u64,
    more: bool,
    text: Text,
}

/// What the lines of a file are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Text {
    /// Those of a log, or too few to tell.
    Log,
    /// Many, and none begins as the log's lines do.
    Foreign,
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

    pub(super) fn run(&self, committed: &Followed) -> Result<Read, CollectError> {
        let before = committed.positions.as_ref();
        let sources = match before {
            Some(positions) => positions.sources(self.place, &committed.open.0, self.now),
            None => Positions::first(self.place, self.config.start_at),
        };
        let mut sources = sources.map_err(|error| unreadable(&error))?;
        let mut read = Read::default();
        if let Some(error) = sources.unreadable.take().map(|error| unreadable(&error)) {
            if sources.read.is_empty() && sources.settled.is_empty() {
                return Err(error);
            }
            read.unreadable = Some(error.to_string());
        }
        let lost = before.and_then(|before| before.lost(&sources));
        read.gone = lost.map(|position| position.path.clone());
        read.emptied = sources.emptied.take();
        read.left_out = sources.left_out;
        let positions = self.sources(&mut sources, &mut read)?;
        if let (None, true, Some(newest)) = (before, read.metrics.is_empty(), positions.last()) {
            // An empty metric carries the position into the queue, so that a restart goes on here.
            let at = newest.offset;
            let metric = self.metric(&Span { path: &newest.path, from: at, to: at }, vec![], 0)?;
            read.metrics.push(metric);
        }
        let positions = Positions::after(before, &sources, positions, self.now);
        read.has_moved = before.is_none_or(|before| !positions.is_where(before));
        let open = sources.read.into_iter().rev().take(OPEN_MAX).map(|source| source.file);
        read.followed = Followed { positions: Some(positions), open: OpenFiles(open.collect()) };
        Ok(read)
    }

    /// Reads the files, the one written last at the end, and returns up to where. Those that are
    /// done with are taken out of `sources`.
    fn sources(
        &self,
        sources: &mut Sources,
        read: &mut Read,
    ) -> Result<Vec<Position>, CollectError> {
        let newest = sources.read.iter().filter(|it| it.name == NameState::Named);
        let newest = newest.map(|source| source.candidate.modified).max();
        let mut positions = std::mem::take(&mut sources.settled);
        let mut budget = self.config.read_bytes_max;
        let (mut copies, mut kept) = (Vec::new(), Vec::new());
        for source in std::mem::take(&mut sources.read) {
            if source.copy_of.is_some() {
                copies.push(source);
                continue;
            }
            let is_removed = source.name == NameState::Removed;
            let writing = match newest {
                Some(newest) if is_removed && newest > source.candidate.modified => Writing::Ended,
                _ => Writing::GoesOn,
            };
            let ended = if budget == 0 {
                let offset = source.offset;
                let text = if source.is_foreign { Text::Foreign } else { Text::Log };
                Ended { offset, more: offset < source.candidate.size, text }
            } else {
                self.source(&source, writing, budget, read)?
            };
            // What is not of the log takes nothing away from what is.
            if ended.text == Text::Log {
                budget = budget.saturating_sub(ended.offset.saturating_sub(source.offset));
            }
            read.more |= ended.more;
            let mut position = source.position(ended.offset).map_err(|error| unreadable(&error))?;
            position.is_foreign = ended.text == Text::Foreign;
            if writing == Writing::GoesOn || ended.more {
                positions.push(position);
                kept.push(source);
            } else {
                sources.ended.push(position);
            }
        }
        for copy in copies {
            // What is not done with in the other file may have to be read here.
            let mut others = positions.iter().chain(&sources.ended);
            let twin = others.find(|position| Some(position.id()) == copy.copy_of);
            let offset = twin.map_or(0, |twin| twin.offset).min(copy.offset);
            positions.push(copy.position(offset).map_err(|error| unreadable(&error))?);
        }
        if let (0, FOREIGN_LINES_MAX.., Some(newest)) = (read.matched, read.foreign, kept.last()) {
            return Err(CollectError::new(format!(
                "{}: no line begins with log_line_prefix and a level that is known; \
                 hint: name the prefix in pg_log.line_prefix",
                newest.file.path().display()
            )));
        }
        sources.read = kept;
        Ok(positions)
    }

    /// Reads one file and adds its metrics.
    fn source(
        &self,
        source: &Source,
        writing: Writing,
        budget: u64,
        read: &mut Read,
    ) -> Result<Ended, CollectError> {
        let path = source.file.path();
        let mut stitcher = Stitcher::new(self.reading);
        let (at, more) = self
            .lines(source, writing, budget, &mut stitcher)
            .map_err(|error| unreadable(&error))?;
        let idle = Candidate::open(&source.file).map_err(|error| unreadable(&error))?;
        let is_idle = idle.idle(self.now) >= IDLE_COMPLETE;
        let complete = !more && (is_idle || writing == Writing::Ended);
        // One entry that is longer than the limit would otherwise hold its own place for ever.
        let stuck = more && stitcher.open_at() == Some(source.offset);
        if complete || stuck {
            stitcher.finish();
        }
        let is_many = stitcher.foreign >= FOREIGN_LINES_MAX;
        let is_foreign = stitcher.matched == 0 && (is_many || source.is_foreign);
        let text = if is_foreign { Text::Foreign } else { Text::Log };
        let is_passed_over = is_foreign && more && (source.offset == 0 || source.is_foreign);
        let offset = match stitcher.open_at() {
            _ if is_passed_over => source.candidate.size,
            open => open.unwrap_or(at),
        };
        if is_passed_over && !source.is_foreign {
            read.passed_over.push(path.to_owned());
        }
        read.untimed += stitcher.untimed;
        read.matched += stitcher.matched;
        if !source.is_foreign {
            read.foreign += stitcher.foreign; // what is known to be no log tells nothing of the log
        }
        let span = Span { path, from: source.offset, to: offset };
        self.metrics(&span, std::mem::take(&mut stitcher.done), read)?;
        Ok(Ended { offset, more: more && !is_passed_over, text })
    }

    /// Feeds lines up to the end or the budget; returns where it stopped and whether by budget.
    fn lines(
        &self,
        source: &Source,
        writing: Writing,
        budget: u64,
        stitcher: &mut Stitcher<'_>,
    ) -> io::Result<(u64, bool)> {
        let mut reader = follow::reader(&source.file, source.offset)?;
        let mut at = source.offset;
        let mut bytes = Vec::new();
        let is_ended = writing == Writing::Ended || source.candidate.idle(self.now) >= IDLE_ENDED;
        loop {
            if at - source.offset >= budget {
                return Ok((at, true));
            }
            let (length, cut) = match follow::read_line(&mut reader, &mut bytes)? {
                LineEnd::Newline { bytes, cut } => (bytes, cut),
                LineEnd::Partial { bytes, cut } if is_ended => (bytes, cut),
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
            instance: Some(self.config.instance.clone()),
            database: self.config.connection.database.clone(),
            entries: Some(entries),
            counts,
            file: Some(span.path.display().to_string()),
            from_offset: Some(span.from),
            to_offset: Some(span.to),
            skipped_bytes: Some(skipped_bytes),
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
