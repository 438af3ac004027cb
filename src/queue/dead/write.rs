//! Writing the dead letters: added at the end, or written anew into a file that takes the place of
//! the old one. By one process, the one that has the queue open.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use fs_err::{self as fs, File};

use super::{
    super::{
        DeadLetter,
        files::{at, if_absent, sync_file},
        store::StoreError,
    },
    dead_letters,
    line::sealed,
    read::{Lines, open},
};

/// Lines of the dead letters and what becomes of them: `None` goes, `Some` stands there instead.
pub type DeadChanges = BTreeMap<String, Option<String>>;

/// The dead letters of a queue, for the process that writes them.
#[derive(Debug)]
pub struct DeadFile {
    dir: PathBuf,
    path: PathBuf,
    /// What takes the file's place; there only while it is written.
    draft: PathBuf,
    /// A sync has failed. The file may have a hole where the system says that it has written, and
    /// another sync would not say so: it is not added to any more, but written anew.
    doubtful: bool,
}

impl DeadFile {
    /// The dead letters of the queue in `dir`.
    pub fn open(dir: &Path) -> Self {
        let (path, draft) = (dead_letters(dir), dir.join("dead.ndjson.new"));
        if let Err(error) = fs::remove_file(&draft).or_else(if_absent(())) {
            tracing::warn!(%error, "what a crash has left of the dead letters stays");
        }
        Self { dir: dir.to_owned(), path, draft, doubtful: false }
    }

    /// Adds letters, each with its checksum. After an error none of them is there, or a line that
    /// is seen to be torn, or the letters of a disk that has them without saying so: who adds them
    /// again loses nothing.
    pub fn append(&mut self, letters: &[DeadLetter]) -> Result<(), StoreError> {
        let lines: String = letters.iter().map(|letter| sealed(&letter.line) + "\n").collect();
        if !self.doubtful {
            let (file, before) = self.add(&lines)?;
            let synced = file.sync_all().map_err(at("sync", &self.path));
            let Err(error) = synced.and_then(|()| sync_file(&self.dir)) else { return Ok(()) };
            tracing::warn!(%error, "the dead letters are written anew");
            self.doubtful = true;
            take_back(&file, before);
        }
        self.write_anew(|from, out| {
            if let Some(from) = from {
                copy_ended(from, out)?;
            }
            out.write_all(lines.as_bytes())
        })
    }

    /// Makes the changes in a copy that takes the file's place: after a crash it is the old or the
    /// new one. Lines that are not named stay as they are, whatever they hold.
    pub fn change(&mut self, changes: &DeadChanges) -> Result<(), StoreError> {
        self.write_anew(|from, out| {
            let Some(from) = from else { return Ok(()) };
            let mut lines = Lines::new(from, 0)?;
            while let Some(line) = lines.next()? {
                let named = std::str::from_utf8(line.text).ok().and_then(|text| changes.get(text));
                match named {
                    None => out.write_all(line.text)?,
                    Some(Some(new)) => out.write_all(sealed(new).as_bytes())?,
                    Some(None) => continue,
                }
                out.write_all(b"\n")?;
            }
            Ok(())
        })
    }

    /// Leaves about half of `bytes_max` when the letters take more than that: the newest, and the
    /// last one in any case. After a crash the file is the old or the new one.
    pub fn shorten(&mut self, bytes_max: u64) -> Result<(), StoreError> {
        let length = match fs::metadata(&self.path) {
            Ok(data) => data.len(),
            Err(error) => return if_absent(())(error).map_err(at("open", &self.path)),
        };
        if length <= bytes_max {
            return Ok(());
        }
        let mut gone = 0;
        self.write_anew(|from, out| {
            let Some(mut from) = from else { return Ok(()) };
            gone = first_line_after(&mut from, length - bytes_max / 2)?;
            from.seek(SeekFrom::Start(gone))?;
            io::copy(&mut from, out).map(|_| ())
        })?;
        tracing::error!(bytes = gone, "the oldest dead letters are removed to make room");
        Ok(())
    }

    /// Adds lines at the end, which are not synced yet. Returns the file, and its length before.
    fn add(&self, lines: &str) -> Result<(File, u64), StoreError> {
        let open = fs::OpenOptions::new().create(true).append(true).read(true).open(&self.path);
        let mut file = open.map_err(at("open", &self.path))?;
        let before = file.metadata().map_err(at("ask for the length of", &self.path))?.len();
        // In one piece, and after a line that a crash has torn on one of their own.
        let is_ended = is_ended(&file, before).map_err(at("read", &self.path))?;
        let text = [if is_ended { "" } else { "\n" }, lines].concat();
        if let Err(error) = file.write_all(text.as_bytes()) {
            take_back(&file, before);
            return Err(at("append to", &self.path)(error));
        }
        Ok((file, before))
    }

    /// Writes the file anew: `fill` gets what is there, if anything, and writes what shall be.
    fn write_anew(
        &mut self,
        fill: impl FnOnce(Option<File>, &mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let written = self
            .write_draft(fill)
            .map_err(at("write", &self.draft))
            .and_then(|()| fs::rename(&self.draft, &self.path).map_err(at("rename", &self.draft)));
        if let Err(error) = written {
            fs::remove_file(&self.draft).ok(); // on a disk that has failed it may stay
            return Err(error);
        }
        // The file itself is sound now; whether its name is, the next sync of the directory says.
        self.doubtful = false;
        sync_file(&self.dir).inspect_err(|_| self.doubtful = true)
    }

    fn write_draft(
        &self,
        fill: impl FnOnce(Option<File>, &mut BufWriter<File>) -> io::Result<()>,
    ) -> io::Result<()> {
        let from = open(&self.path)?;
        let mut out = BufWriter::new(File::create(&self.draft)?);
        fill(from, &mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// Takes away what was added after `before`. Where that fails it does no harm: whole letters come
/// twice, and a torn one is seen.
fn take_back(file: &File, before: u64) {
    if let Err(error) = file.set_len(before) {
        tracing::warn!(%error, "a part of a dead letter stays");
    }
}

/// Whether a line ends at `length`, or the file is empty.
fn is_ended(file: &File, length: u64) -> io::Result<bool> {
    let Some(last) = length.checked_sub(1) else { return Ok(true) };
    let mut byte = [0];
    file.file().read_exact_at(&mut byte, last)?;
    Ok(byte == *b"\n")
}

/// Copies everything, and ends the last line.
fn copy_ended(mut from: File, out: &mut impl Write) -> io::Result<()> {
    let length = io::copy(&mut from, out)?;
    if is_ended(&from, length)? { Ok(()) } else { out.write_all(b"\n") }
}

/// Where the first line begins that lies wholly behind byte `after`; the last one, when none does.
fn first_line_after(file: &mut File, after: u64) -> io::Result<u64> {
    file.seek(SeekFrom::Start(after))?;
    let mut reader = BufReader::new(&mut *file);
    let first = after + reader.skip_until(b'\n')? as u64;
    if !reader.fill_buf()?.is_empty() {
        return Ok(first);
    }
    let (mut lines, mut next, mut last) = (Lines::new(file.try_clone()?, 0)?, 0, 0);
    while let Some(line) = lines.next()? {
        last = next;
        next += line.length;
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::{
        super::{DeadLine, each_dead_line},
        *,
    };

    fn letter(n: u64) -> DeadLetter {
        DeadLetter { seq: n, at_ms: 0, line: format!("{{\"seq\":{n}}}") }
    }

    fn line(n: u64) -> String {
        sealed(&letter(n).line)
    }

    /// The letters that are read, and how many lines are damaged.
    fn seen(dir: &Path) -> (Vec<String>, u64) {
        let (mut letters, mut damaged) = (Vec::new(), 0);
        each_dead_line(&dead_letters(dir), |line| match line {
            DeadLine::Letter(text) => letters.push(text.to_owned()),
            DeadLine::Damaged(_) => damaged += 1,
        })
        .unwrap();
        (letters, damaged)
    }

    fn only_file(dir: &Path) {
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "nothing is left beside it");
    }

    /// Whatever stands at the end of the file, a letter gets a line of its own.
    #[test]
    fn a_letter_never_continues_a_line() {
        let (whole, old) = (line(1), letter(2).line);
        for (before, letters, damaged) in [
            ("", vec![], 0),
            ("{\"at\":\"x\",\"seq\":0,\"metr", vec![], 1),
            (&whole[..whole.len() - 1], vec![], 1),
            (&whole, vec![whole.clone()], 0),
            (&format!("{whole}\n{old}"), vec![whole.clone(), old.clone()], 0),
            (&format!("{whole}\n{old}\n{{"), vec![whole.clone(), old], 1),
            ("\n\n", vec![], 0),
            ("\0\0\0\0", vec![], 1),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dead_letters(dir.path()), before).unwrap();
            let mut file = DeadFile::open(dir.path());
            file.append(&[letter(7), letter(8)]).unwrap();
            let expected = [letters, vec![line(7), line(8)]].concat();
            assert_eq!(seen(dir.path()), (expected, damaged), "{before:?}");
            let text = fs::read(dead_letters(dir.path())).unwrap();
            assert!(text.starts_with(before.as_bytes()), "{before:?} stays");
            only_file(dir.path());
        }
    }

    #[test]
    fn the_first_letter_makes_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = DeadFile::open(dir.path());
        file.append(&[letter(1)]).unwrap();
        file.append(&[letter(2)]).unwrap();
        assert_eq!(seen(dir.path()), (vec![line(1), line(2)], 0));
        only_file(dir.path());
    }

    /// After a failed sync the system may claim to have written what it has not.
    #[test]
    fn a_file_that_failed_to_sync_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let inode = || fs::metadata(dead_letters(dir.path())).unwrap().ino();
        let mut file = DeadFile::open(dir.path());
        file.append(&[letter(1)]).unwrap();
        let torn = fs::read_to_string(dead_letters(dir.path())).unwrap() + "{\"torn";
        fs::write(dead_letters(dir.path()), torn).unwrap();
        let before = inode();
        file.doubtful = true;
        file.append(&[letter(2)]).unwrap();
        assert_eq!(seen(dir.path()), (vec![line(1), line(2)], 1));
        assert_ne!(inode(), before);
        let (before, next) = (inode(), letter(3));
        file.append(&[next]).unwrap();
        assert_eq!(inode(), before, "the new file is sound");
        assert_eq!(seen(dir.path()), (vec![line(1), line(2), line(3)], 1));
        only_file(dir.path());
    }

    #[test]
    fn lines_go_change_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dead_letters(dir.path());
        let (torn, flipped) = ("{\"at\":\"x\",\"seq\":0,\"metr", line(5).replace('5', "6"));
        let (one, two, three) = (line(1), letter(2).line, line(3));
        let lines = [&one, &two, torn, &flipped, "\0", "", &two, &three];
        fs::write(&path, lines.join("\n")).unwrap();
        let change_to = |old: &str, new: Option<&str>| (old.to_owned(), new.map(str::to_owned));
        let changes = [
            change_to(&two, None),
            change_to(&three, Some(&letter(30).line)),
            change_to(&line(4), Some(&letter(40).line)),
        ];
        DeadFile::open(dir.path()).change(&changes.into()).unwrap();
        let left = [&one, torn, &flipped, "\0", "", &line(30), ""].join("\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), left);
        assert_eq!(seen(dir.path()), (vec![one, line(30)], 3));
        only_file(dir.path());
    }

    #[test]
    fn the_oldest_letters_go_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dead_letters(dir.path());
        let mut file = DeadFile::open(dir.path());
        file.shorten(10).unwrap();
        let all: Vec<String> = (0..10).map(|n| format!("line {n}\n")).collect();
        let lines = |from: usize| all[from..].concat();
        // How much may be there, and the first line that stays.
        for (bytes_max, first) in [(70, 0), (69, 6), (40, 8), (15, 9), (13, 9), (6, 9), (0, 9)] {
            fs::write(&path, lines(0)).unwrap();
            file.shorten(bytes_max).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), lines(first), "{bytes_max}");
            only_file(dir.path());
        }
    }

    /// A letter that is larger than all that there is room for is in the ledger as a dead letter:
    /// so it is one.
    #[test]
    fn the_last_letter_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = DeadFile::open(dir.path());
        let large = DeadLetter { line: format!("{{\"x\":\"{}\"}}", "x".repeat(100)), ..letter(0) };
        for n in 1..4 {
            file.append(&[letter(n), large.clone()]).unwrap();
            file.shorten(50).unwrap();
            assert_eq!(seen(dir.path()), (vec![sealed(&large.line)], 0));
        }
    }

    #[test]
    fn without_letters_there_is_nothing_to_change() {
        let dir = tempfile::tempdir().unwrap();
        // What a crash has left of a change.
        fs::write(dir.path().join("dead.ndjson.new"), "half").unwrap();
        let mut file = DeadFile::open(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        file.change(&DeadChanges::new()).unwrap();
        assert_eq!(fs::read(dead_letters(dir.path())).unwrap(), b"");
    }
}
