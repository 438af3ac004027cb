//! Reading the dead letters, from any process, while they are added to.

use std::{
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    path::Path,
};

use fs_err::File;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    super::{
        files::{at, if_absent, open_file},
        store::StoreError,
    },
    dead_letters,
    line::{self, DeadLine},
};

/// Lines of the dead letters, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadPage {
    /// The lines.
    pub lines: Vec<DeadText>,
    /// Where the next page begins in the file; `None` when there is no more.
    pub next: Option<u64>,
    /// Where the lines of this page end in the file: what is added later is from here on.
    pub end: u64,
}

/// A line that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadText {
    /// A letter as it was written.
    Letter(String),
    /// Torn, or changed since it was written.
    Damaged(Vec<u8>),
}

/// How much is in the dead letters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadCount {
    /// Letters.
    pub letters: u64,
    /// Lines that are damaged; they stay where they are.
    #[serde(default)]
    pub damaged: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// When the last one was added.
    pub newest_at: Option<Timestamp>,
}

/// The lines of an open file, one after the other.
pub(super) struct Lines {
    reader: BufReader<File>,
    line: Vec<u8>,
}

/// A line as it stands in the file.
pub(super) struct Line<'a> {
    /// Without its end.
    pub(super) text: &'a [u8],
    /// Bytes in the file.
    pub(super) length: u64,
    /// Whether it has an end. Only the last line may have none: it is being written, or torn.
    pub(super) ended: bool,
}

impl Lines {
    /// The lines from byte `from` on.
    pub(super) fn new(mut file: File, from: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(from))?;
        Ok(Self { reader: BufReader::with_capacity(64 << 10, file), line: Vec::new() })
    }

    /// `None`: the file ends here.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let length = self.reader.read_until(b'\n', &mut self.line)? as u64;
        let ended = self.line.ends_with(b"\n");
        let text = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        Ok((length > 0).then_some(Line { text, length, ended }))
    }
}

impl Line<'_> {
    /// What it is; `None` when it is empty, or still being written.
    fn read(&self) -> Option<DeadLine<'_>> {
        match line::read(self.text) {
            DeadLine::Damaged(text) if text.is_empty() || !self.ended => None,
            read => Some(read),
        }
    }
}

/// Opens the dead letters in `dir`; `None` when there are none.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    open_file(path).map(Some).or_else(if_absent(None))
}

/// Calls `each` with every line of the dead letters in the file at `path`. A last line that is
/// still being written is left out.
pub fn each_dead_line(path: &Path, mut each: impl FnMut(DeadLine<'_>)) -> io::Result<()> {
    let Some(file) = open(path)? else { return Ok(()) };
    let mut lines = Lines::new(file, 0)?;
    while let Some(line) = lines.next()? {
        if let Some(read) = line.read() {
            each(read);
        }
    }
    Ok(())
}

/// The letters that begin at byte `from` of their file, `limit` of them.
pub fn page(dir: &Path, from: u64, limit: usize) -> Result<DeadPage, StoreError> {
    let path = dead_letters(dir);
    read_page(&path, from, limit).map_err(at("read", &path))
}

fn read_page(path: &Path, from: u64, limit: usize) -> io::Result<DeadPage> {
    let mut page = DeadPage { end: from, ..DeadPage::default() };
    let Some(file) = open(path)? else { return Ok(DeadPage::default()) };
    let length = file.metadata()?.len();
    let mut lines = Lines::new(file, from)?;
    while page.lines.len() < limit {
        let Some(line) = lines.next()? else { return Ok(page) };
        match line.read() {
            Some(DeadLine::Letter(text)) => page.lines.push(DeadText::Letter(text.to_owned())),
            Some(DeadLine::Damaged(text)) => page.lines.push(DeadText::Damaged(text.to_vec())),
            None if !line.ended => return Ok(page),
            None => {}
        }
        page.end += line.length;
    }
    page.next = (page.end < length).then_some(page.end);
    Ok(page)
}

/// How many there are. Reads the file.
pub fn count(dir: &Path) -> Result<DeadCount, StoreError> {
    let path = dead_letters(dir);
    read_count(&path).map_err(at("read", &path))
}

fn read_count(path: &Path) -> io::Result<DeadCount> {
    let mut count = DeadCount::default();
    let Some(file) = open(path)? else { return Ok(count) };
    let data = file.metadata()?;
    each_dead_line(path, |line| match line {
        DeadLine::Letter(_) => count.letters += 1,
        DeadLine::Damaged(_) => count.damaged += 1,
    })?;
    count.bytes = data.len();
    if count.letters > 0 {
        count.newest_at = data.modified().ok().and_then(|time| Timestamp::try_from(time).ok());
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_letters_are_read_in_pages() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        assert_eq!(page(dir, 0, 10).unwrap(), DeadPage::default());
        assert_eq!(count(dir).unwrap(), DeadCount::default());
        let sealed = line::sealed(r#"{"a":3}"#);
        let text = format!("{{\"a\":1}}\n\n{{\"a\":22\n{sealed}\n{{\"torn");
        fs_err::write(dead_letters(dir), &text).unwrap();
        let first = page(dir, 0, 2).unwrap();
        let letter = |text: &str| DeadText::Letter(text.to_owned());
        assert_eq!(first.lines, [letter(r#"{"a":1}"#), DeadText::Damaged(b"{\"a\":22".to_vec())]);
        let second = page(dir, first.next.unwrap(), 2).unwrap();
        assert_eq!(second.lines, [letter(&sealed)]);
        let end = text.len() as u64 - 6;
        assert_eq!((second.next, second.end), (None, end), "a torn line is left for later");
        let count = count(dir).unwrap();
        assert_eq!((count.letters, count.damaged, count.bytes), (2, 1, text.len() as u64));
        assert!(count.newest_at.is_some());
    }

    /// A last line that has everything but its end is a letter already.
    #[test]
    fn a_whole_last_line_is_a_letter() {
        let folder = tempfile::tempdir().unwrap();
        for last in [r#"{"a":1}"#, &line::sealed(r#"{"a":1}"#)] {
            fs_err::write(dead_letters(folder.path()), last).unwrap();
            let page = page(folder.path(), 0, 10).unwrap();
            assert_eq!(page.lines, [DeadText::Letter(last.to_owned())]);
            assert_eq!(count(folder.path()).unwrap().letters, 1);
        }
    }
}
