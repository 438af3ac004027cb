//! The dead letters: a file of lines. The queue does not know what is in them.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use fs_err::{self as fs, File};

use super::{
    files::{at, if_absent, sync_file},
    store::StoreError,
};

/// Lines of the dead letters and what becomes of them: `None` goes, `Some` stands there instead.
pub type DeadChanges = BTreeMap<String, Option<String>>;

/// The file of the dead letters in a queue's directory.
pub(super) const DEAD_LETTERS: &str = "dead.ndjson";

/// The dead letters of the queue in `dir`: one line each.
pub fn dead_letters(dir: &Path) -> PathBuf {
    dir.join(DEAD_LETTERS)
}

/// Adds letters; durable when this returns.
pub(super) fn put(dir: &Path, letters: &[super::DeadLetter]) -> Result<(), StoreError> {
    let path = dead_letters(dir);
    let lines: String = letters.iter().flat_map(|letter| [letter.line.as_str(), "\n"]).collect();
    let append = || {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&path)?;
        file.write_all(lines.as_bytes())?;
        file.sync_all()
    };
    append().map_err(at("append to", &path))?;
    sync_file(dir)
}

/// Makes the changes in a copy that takes the file's place: after a crash it is the old or the new
/// one. Lines that are not named stay as they are, whatever they hold.
pub(super) fn change(dir: &Path, changes: &DeadChanges) -> Result<(), StoreError> {
    let (path, next) = (dead_letters(dir), dir.join("dead.ndjson.new"));
    copy(&path, &next, changes).map_err(at("write", &next))?;
    fs::rename(&next, &path).map_err(at("rename", &next))?;
    sync_file(dir)
}

/// Leaves about half of `bytes_max` when the letters take more than that: the newest. After a crash
/// the file is the old or the new one.
pub(super) fn shorten(dir: &Path, bytes_max: u64) -> Result<(), StoreError> {
    let (path, next) = (dead_letters(dir), dir.join("dead.ndjson.new"));
    let length = match fs::metadata(&path) {
        Ok(data) => data.len(),
        Err(error) => return if_absent(())(error).map_err(at("open", &path)),
    };
    if length <= bytes_max {
        return Ok(());
    }
    let left = copy_end(&path, &next, length - bytes_max / 2).map_err(at("write", &next))?;
    fs::rename(&next, &path).map_err(at("rename", &next))?;
    sync_file(dir)?;
    tracing::error!(bytes = length - left, "the oldest dead letters are removed to make room");
    Ok(())
}

/// Copies the whole lines that begin after byte `after`; their length.
fn copy_end(from: &Path, to: &Path, after: u64) -> io::Result<u64> {
    let mut reader = BufReader::new(File::open(from)?);
    reader.seek(SeekFrom::Start(after))?;
    reader.skip_until(b'\n')?;
    let mut out = File::create(to)?;
    let copied = io::copy(&mut reader, &mut out)?;
    out.sync_all()?;
    Ok(copied)
}

fn copy(from: &Path, to: &Path, changes: &DeadChanges) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(to)?);
    if let Some(file) = File::open(from).map(Some).or_else(if_absent(None))? {
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let named = std::str::from_utf8(text).ok().and_then(|text| changes.get(text));
            let text = named.map_or(Some(text), |new| new.as_ref().map(String::as_bytes));
            if let Some(text) = text {
                out.write_all(text)?;
                out.write_all(b"\n")?;
            }
            line.clear();
        }
    }
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_change_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dead_letters(dir.path());
        fs::write(&path, b"one\ntwo\n\xff\xfe\ntwo\nthree").unwrap();
        let change_to = |old: &str, new: Option<&str>| (old.to_owned(), new.map(str::to_owned));
        let changes =
            [change_to("two", None), change_to("three", Some("3")), change_to("four", Some("4"))];
        change(dir.path(), &changes.into()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\n\xff\xfe\n3\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn the_oldest_letters_go_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let path = dead_letters(dir.path());
        shorten(dir.path(), 10).unwrap();
        let all: Vec<String> = (0..10).map(|n| format!("line {n}\n")).collect();
        let lines = |from: usize| all[from..].concat();
        fs::write(&path, lines(0)).unwrap();
        shorten(dir.path(), 70).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), lines(0), "there is room for all");
        shorten(dir.path(), 69).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), lines(6));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn without_letters_there_is_nothing_to_change() {
        let dir = tempfile::tempdir().unwrap();
        change(dir.path(), &DeadChanges::new()).unwrap();
        assert_eq!(fs::read(dead_letters(dir.path())).unwrap(), b"");
    }
}
