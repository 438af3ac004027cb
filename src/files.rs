//! Opening what should be a file, and may have become something else.

use std::{
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt},
    path::Path,
};

use fs_err::File;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open files to the most that the system lets this process have.
pub fn allow_many() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return Ok(());
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    Ok(())
}

/// Opens a file to be read. What stands in the place of one is an error at once: a pipe would hold
/// the reader until somebody writes to it.
pub fn open_file(path: &Path) -> io::Result<File> {
    let open = unwaiting().open(path)?;
    match open.metadata()?.file_type() {
        kind if kind.is_file() => Ok(File::from_parts(open, path)),
        kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file")),
    }
}

/// All of a file's text; the error has its path. See [`open_file`].
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut content = Vec::new();
    open_file(path).and_then(|mut file| file.read_to_end(&mut content)).map_err(named)?;
    Ok(content)
}

/// Why a secret file is not read.
#[derive(Debug)]
pub enum Unreadable {
    /// It cannot be opened or read; the error has its path.
    Failed(io::Error),
    /// Its group or others can read or write it; its mode.
    Open(u32),
}

/// All of a file that holds a secret, unless its group or others can read or write it.
pub fn read_private(path: &Path) -> Result<Vec<u8>, Unreadable> {
    let (content, mode) = read_with_mode(path).map_err(Unreadable::Failed)?;
    let is_open = mode & 0o077 != 0;
    if is_open { Err(Unreadable::Open(mode)) } else { Ok(content) }
}

/// All of a file, and its mode. The error has its path.
pub fn read_with_mode(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = open_file(path).map_err(named)?;
    let mode = file.metadata().map_err(named)?.mode() & 0o7777;
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(named)?;
    Ok((content, mode))
}

/// How to open what is at a path to read it, without waiting for whoever writes to it.
pub fn unwaiting() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    options
}
