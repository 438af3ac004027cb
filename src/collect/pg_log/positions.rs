//! What has been read of each file of a log, and from where each is read on.
//!
//! A directory may hold several active files, and copies of them: what a log rotation makes that
//! copies and truncates, or a backup beside the log. What is in a copy is read once, in the file
//! that was there first; when that is truncated or removed, its copy is read on from where it was.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StartAt;
use super::follow::{self, Candidate, FileId, HEAD_BYTES, NANOSECONDS_PER_SECOND, Place, Position};
use crate::files;

/// The most files that are looked at, and whose positions are kept: those that were written last.
/// Each may be open during a pass.
const FILES_MAX: usize = 128;
/// Contents that are gone, of which a copy may turn up, and how long that is waited for.
const PAST_MAX: usize = 32;
const PAST_SECONDS_MAX: i64 = 600;
/// A file that turns up and was written so long before the newest known one, and before it came to
/// its place, is an old one that was brought back: nothing of it is read.
const OLD_NANOSECONDS: i128 = 600 * NANOSECONDS_PER_SECOND;
/// After this time a file whose size and time are the same is taken to be the same.
const SETTLED: Duration = Duration::from_secs(600);
/// The most bytes that are compared of two files in one pass.
const COMPARE_BYTES_MAX: u64 = 64 << 20;
/// How much is compared at once.
const CHUNK_BYTES: u64 = 64 << 10;

/// How far every file of a log has been read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Positions {
    /// Of the files that are there, in the order in which they were last written.
    pub(super) files: Vec<Position>,
    /// Of contents that are not there any more.
    #[serde(default)]
    past: Vec<Past>,
    /// When the newest file was last written, nanoseconds since 1970.
    newest: i128,
    /// What is not known and was written last up to then counts as read: an earlier version kept
    /// the position of one file only.
    #[serde(skip)]
    read_until: Option<i128>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Past {
    position: Position,
    /// Since when it is gone, seconds since 1970.
    since: i64,
}

/// A file to read in this pass.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: fs_err::File,
    pub(super) candidate: Candidate,
    /// Its first bytes.
    head: Vec<u8>,
    /// Whether it still has a name.
    pub(super) name: NameState,
    /// Where it is read from.
    pub(super) offset: u64,
    /// It is a copy of this file up to `offset`; nothing is read.
    pub(super) copy_of: Option<FileId>,
    /// What was read of it last had no line of a log.
    pub(super) is_foreign: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NameState {
    Named,
    Removed,
}

/// The files of a log.
struct Listed {
    /// Those that were written last, and the one that is followed.
    files: Vec<Candidate>,
    /// The others.
    older: Vec<Candidate>,
}

/// The files of this pass.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// In the order in which they were last written.
    pub(super) read: Vec<Source>,
    /// Files of which nothing has changed for long.
    pub(super) settled: Vec<Position>,
    /// Files that were removed, as far as they were read at last.
    pub(super) ended: Vec<Position>,
    /// Those of `read` that are not what was known under their name.
    fresh: Vec<FileId>,
    /// The one file that is followed is another than it was, or begins anew.
    rotated: Option<FileId>,
    /// How many files were written since the last pass and are not looked at: others are newer.
    pub(super) left_out: usize,
    /// The file was emptied, and what it was is nowhere else.
    pub(super) emptied: Option<PathBuf>,
    /// Why a file could not be opened.
    pub(super) unreadable: Option<io::Error>,
}

/// Where a file begins that was not known.
#[derive(Debug, Clone, Copy, Default)]
struct Beginning {
    offset: u64,
    copy_of: Option<FileId>,
    /// How much of it is known from elsewhere.
    agreed: u64,
}

impl Positions {
    /// What an earlier version has kept: the position of one file.
    pub(super) fn of_one(position: Position) -> Self {
        let newest = position.modified;
        let files = vec![position];
        Self { files, past: Vec::new(), newest, read_until: Some(newest) }
    }

    /// The files there, and from where each is read; `open` are those that may have lost their
    /// names.
    pub(super) fn sources(
        &self,
        place: &Place,
        open: &[fs_err::File],
        now: Timestamp,
    ) -> io::Result<Sources> {
        let mut sources = Sources::default();
        let (mut fresh, mut settled) = (Vec::new(), Vec::new());
        for candidate in self.listed(place, &mut sources)? {
            let known = self.files.iter().find(|position| position.id() == candidate.id);
            if let Some(position) = known.filter(|it| is_settled(it, &candidate, now)) {
                settled.push((candidate.clone(), position));
                continue;
            }
            let Some(source) = sources.open(&candidate)? else { continue };
            if sources.read.iter().chain(&fresh).any(|it| it.candidate.id == source.candidate.id) {
                continue;
            }
            // What is past is not looked for: its inode may be that of a copy of another file now.
            // An empty file's inode may be, too.
            let is_it = |it: &&Position| {
                it.id() == source.candidate.id
                    && (it.fingerprint_bytes > 0 || source.candidate.size == 0)
            };
            let mut positions = self.files.iter().filter(is_it);
            if let Some(position) = positions.try_find_held(&source.file)? {
                sources.read.push(source.from(position));
            } else {
                let id = source.candidate.id;
                sources.fresh.push(id);
                let is_own = matches!(place, Place::File(own) if *own == candidate.path);
                sources.rotated = sources.rotated.or(is_own.then_some(id));
                fresh.push(source);
            }
        }
        for file in open {
            self.add_removed(file, &mut sources)?;
        }
        let is_root = |source: &Source| source.copy_of.is_none();
        let compares = !fresh.is_empty() || !sources.read.iter().all(is_root);
        for (candidate, position) in settled {
            let mut known = position.clone();
            known.path.clone_from(&candidate.path);
            if compares && let Some(source) = sources.open(&candidate)? {
                sources.read.push(source.from(position));
            } else {
                sources.settled.push(known);
            }
        }
        // A copy whose original is gone is looked at as a new file is.
        let (known, mut copies) = std::mem::take(&mut sources.read).into_iter().partition(is_root);
        sources.read = known;
        let is_there = |it: &Position| {
            let there = sources.read.iter().chain(&copies);
            there.into_iter().any(|source| source.candidate.id == it.id())
        };
        let gone = self.files.iter().filter(|it| !is_there(it));
        let gone: Vec<&Position> = gone.chain(self.past.iter().map(|it| &it.position)).collect();
        copies.append(&mut fresh);
        for source in copies {
            if let Some(source) = self.begin(source, place, &sources, &gone)? {
                sources.read.push(source);
            }
        }
        sources.emptied = self.emptied(&sources)?;
        sources.read.sort_by_key(|source| source.candidate.modified);
        Ok(sources)
    }

    /// The files to look at; counts those that should be and are too many.
    fn listed(&self, place: &Place, sources: &mut Sources) -> io::Result<Vec<Candidate>> {
        let Listed { mut files, older } = Listed::of(place)?;
        let is_new = |it: &&Candidate| place.takes(&it.path) && it.modified > self.newest;
        sources.left_out = older.iter().filter(is_new).count();
        let is_known = |it: &Candidate| self.files.iter().any(|known| known.id() == it.id);
        files.retain(|it| is_known(it) || !self.was_left_out(it, place));
        Ok(files)
    }

    /// The files of a log that was not read before.
    pub(super) fn first(place: &Place, start_at: StartAt) -> io::Result<Sources> {
        let mut sources = Sources::default();
        for candidate in Listed::of(place)?.files {
            if place.takes(&candidate.path)
                && let Some(mut source) = sources.open(&candidate)?
            {
                source.offset = source.candidate.size;
                sources.read.push(source);
            }
        }
        if let (Some(newest), StartAt::Beginning) = (sources.read.last_mut(), start_at) {
            newest.offset = 0;
        }
        Ok(sources)
    }

    /// The newest file, if it is not among `sources`.
    pub(super) fn lost<'a>(&'a self, sources: &Sources) -> Option<&'a Position> {
        let newest = self.files.iter().max_by_key(|position| position.modified)?;
        let is_there = |it: &Source| it.candidate.id == newest.id();
        let is_settled = sources.settled.iter().any(|it| it.id() == newest.id());
        (!is_settled && !sources.read.iter().any(is_there)).then_some(newest)
    }

    /// The positions in `files`, which came of `sources`; what is not among them any more is past.
    pub(super) fn after(
        before: Option<&Self>,
        sources: &Sources,
        mut files: Vec<Position>,
        now: Timestamp,
    ) -> Self {
        let since = now.as_second();
        let mut past: Vec<Past> = before.map(|it| it.past.clone()).unwrap_or_default();
        for position in before.into_iter().flat_map(|it| &it.files) {
            let is_it = |it: &&Position| it.id() == position.id();
            let goes_on =
                !sources.fresh.contains(&position.id()) && files.iter().any(|it| is_it(&it));
            let position = sources.ended.iter().find(is_it).unwrap_or(position);
            if position.offset > 0 && !goes_on {
                past.push(Past { position: position.clone(), since });
            }
        }
        past.retain(|it| since - it.since <= PAST_SECONDS_MAX);
        past.drain(..past.len().saturating_sub(PAST_MAX));
        files.sort_by_key(|position| position.modified);
        files.drain(..files.len().saturating_sub(FILES_MAX));
        let newest = files.last().map_or(0, |position| position.modified);
        let newest = before.map_or(newest, |it| newest.max(it.newest));
        // A time in the future would make every file an old one.
        Self { files, past, newest: newest.min(now.as_nanosecond()), read_until: None }
    }

    /// Whether nothing is different that a restart would have to know.
    pub(super) fn is_where(&self, before: &Self) -> bool {
        let known = |it: &Position| before.files.iter().any(|other| it.is_where(other));
        self.files.len() == before.files.len() && self.files.iter().all(known)
    }

    /// A file that has no name any more, and may still be written to.
    fn add_removed(&self, file: &fs_err::File, sources: &mut Sources) -> io::Result<()> {
        let candidate = Candidate::open(file)?;
        if sources.read.iter().any(|source| source.candidate.id == candidate.id) {
            return Ok(());
        }
        let mut positions = self.files.iter().filter(|it| it.id() == candidate.id);
        let Some(position) = positions.try_find_held(file)? else { return Ok(()) };
        let source = Source::new(file.try_clone()?)?;
        let name = NameState::Removed;
        sources.read.push(Source { name, ..source.from(position) });
        Ok(())
    }

    /// Where a file that is not known, or is a copy, begins; none when it is not part of the log.
    fn begin(
        &self,
        source: Source,
        place: &Place,
        sources: &Sources,
        gone: &[&Position],
    ) -> io::Result<Option<Source>> {
        let offset = source.offset;
        let mut best = Beginning { offset, copy_of: None, agreed: offset };
        // Only of what is read itself: two copies of a file that is gone are not each other's.
        for twin in sources.read.iter().filter(|twin| twin.copy_of.is_none()) {
            let beginning = source.beside(twin, twin.offset.max(offset))?;
            let was_its = source.copy_of == Some(twin.candidate.id);
            if beginning.agreed > best.agreed || was_its {
                best = beginning;
            }
        }
        for position in gone {
            if position.fingerprint_bytes == 0 {
                continue; // any file begins so
            }
            let agreed = if position.holds(&source.file)? {
                position.offset
            } else if source.candidate.size < position.offset && position.begins(&source.file)? {
                source.candidate.size
            } else {
                0
            };
            if agreed > best.agreed {
                best = Beginning { offset: agreed, copy_of: None, agreed };
            }
        }
        let is_known = self.files.iter().any(|it| it.id() == source.candidate.id);
        if best.agreed == 0 && !is_known {
            // Rotated more than once since the last pass: what came in between is another file.
            let is_between = sources.rotated.is_some()
                && place.is_earlier(&source.candidate.path)
                && source.candidate.modified > self.newest;
            if !place.takes(&source.candidate.path) && !is_between {
                return Ok(None);
            }
            if self.is_old(&source.candidate) && matches!(place, Place::Directory(_)) {
                best.offset = source.candidate.size;
            }
        }
        Ok(Some(Source { offset: best.offset, copy_of: best.copy_of, ..source }))
    }

    /// Whether a file was there long before the last pass, and that did not look at it.
    fn was_left_out(&self, candidate: &Candidate, place: &Place) -> bool {
        let touched = candidate.modified.max(candidate.changed);
        matches!(place, Place::Directory(_))
            && self.read_until.is_none()
            && touched < self.newest - OLD_NANOSECONDS
    }

    /// The one file that is followed, if it begins anew and no other file holds what it was.
    fn emptied(&self, sources: &Sources) -> io::Result<Option<PathBuf>> {
        let was_read = |it: &&Position| Some(it.id()) == sources.rotated && it.offset > 0;
        let Some(position) = self.files.iter().find(was_read) else { return Ok(None) };
        for source in &sources.read {
            if source.candidate.id != position.id() && position.holds(&source.file)? {
                return Ok(None);
            }
        }
        Ok(Some(position.path.clone()))
    }

    fn is_old(&self, candidate: &Candidate) -> bool {
        let is_brought = candidate.modified < candidate.changed - OLD_NANOSECONDS
            && candidate.modified < self.newest - OLD_NANOSECONDS;
        is_brought || self.read_until.is_some_and(|until| candidate.modified <= until)
    }
}

impl Listed {
    fn of(place: &Place) -> io::Result<Self> {
        let mut all = place.candidates()?;
        let newest = all.split_off(all.len().saturating_sub(FILES_MAX));
        let is_own = |it: &Candidate| matches!(place, Place::File(own) if *own == it.path);
        let (mut files, older): (Vec<_>, _) = all.into_iter().partition(is_own);
        files.extend(newest);
        Ok(Self { files, older })
    }
}

impl Sources {
    /// Opens a file; none when it has gone since, or may not be read.
    fn open(&mut self, candidate: &Candidate) -> io::Result<Option<Source>> {
        match files::open_file(&candidate.path) {
            // What is there now may be another file than the one that was listed.
            Ok(file) => Source::new(file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                self.unreadable = Some(error);
                Ok(None)
            }
        }
    }
}

impl Source {
    fn new(file: fs_err::File) -> io::Result<Self> {
        let candidate = Candidate::open(&file)?;
        let head = follow::read_at(&file, 0, HEAD_BYTES)?;
        let name = NameState::Named;
        Ok(Self { file, candidate, head, name, offset: 0, copy_of: None, is_foreign: false })
    }

    /// The position `offset` in it.
    pub(super) fn position(&self, offset: u64) -> io::Result<Position> {
        let mut position = Position::at(&self.file, &self.head, offset)?;
        position.copy_of = self.copy_of;
        position.is_foreign = self.is_foreign;
        Ok(position)
    }

    fn from(self, position: &Position) -> Self {
        let Position { offset, copy_of, is_foreign, .. } = *position;
        Self { offset, copy_of, is_foreign, ..self }
    }

    /// What this file is beside `twin`, of which `done` is known to be the same if what lies right
    /// before it is.
    fn beside(&self, twin: &Self, done: u64) -> io::Result<Beginning> {
        let size = self.candidate.size;
        let done = done.min(size).min(twin.candidate.size);
        let is_same = |offset: u64, bytes: u64| {
            let bytes = usize::try_from(bytes).unwrap_or(HEAD_BYTES);
            let own = follow::read_at(&self.file, offset, bytes)?;
            io::Result::Ok(own == follow::read_at(&twin.file, offset, bytes)?)
        };
        let tail = done.min(follow::TAIL_BYTES);
        let from_done = is_same(0, done.min(HEAD_BYTES as u64))? && is_same(done - tail, tail)?;
        let from = if from_done { done } else { 0 };
        let agreed = common(&self.file, &twin.file, from, size.min(twin.candidate.size))?;
        let compared_all = agreed - from < COMPARE_BYTES_MAX;
        if agreed > 0 && (agreed == size || !compared_all) {
            let copy_of = Some(twin.candidate.id);
            return Ok(Beginning { offset: agreed, copy_of, agreed });
        }
        let offset = line_start(&self.file, agreed)?;
        Ok(Beginning { offset, copy_of: None, agreed: offset })
    }
}

/// Finds the first position whose content a file holds.
trait FindHeld<'p> {
    fn try_find_held(&mut self, file: &fs_err::File) -> io::Result<Option<&'p Position>>;
}

impl<'p, I: Iterator<Item = &'p Position>> FindHeld<'p> for I {
    fn try_find_held(&mut self, file: &fs_err::File) -> io::Result<Option<&'p Position>> {
        for position in self {
            if position.holds(file)? {
                return Ok(Some(position));
            }
        }
        Ok(None)
    }
}

/// Whether the file of `position` is read to its end and has not been written to for long.
fn is_settled(position: &Position, candidate: &Candidate, now: Timestamp) -> bool {
    let known = (position.size, position.modified);
    known == (candidate.size, candidate.modified)
        && position.offset == position.size
        && candidate.idle(now) > SETTLED
}

/// Up to where two files are the same, from `from` to `end`.
fn common(one: &fs_err::File, other: &fs_err::File, from: u64, end: u64) -> io::Result<u64> {
    let end = end.min(from.saturating_add(COMPARE_BYTES_MAX));
    let mut at = from;
    while at < end {
        let bytes = usize::try_from((end - at).min(CHUNK_BYTES)).unwrap_or(HEAD_BYTES);
        let (one, other) = (follow::read_at(one, at, bytes)?, follow::read_at(other, at, bytes)?);
        let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
        at += same as u64;
        if same < bytes {
            break;
        }
    }
    Ok(at)
}

/// Where the line begins that `offset` is in, or `offset` where that is far away.
fn line_start(file: &fs_err::File, offset: u64) -> io::Result<u64> {
    let bytes = offset.min(CHUNK_BYTES);
    let from = offset - bytes;
    let text = follow::read_at(file, from, usize::try_from(bytes).unwrap_or(HEAD_BYTES))?;
    let newline = text.iter().rposition(|byte| *byte == b'\n');
    Ok(newline.map_or(if from == 0 { 0 } else { offset }, |at| from + at as u64 + 1))
}

#[cfg(test)]
mod tests;
