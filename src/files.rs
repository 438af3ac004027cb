//! Opening what should be a file, and may have become something else.

use std::{io, os::unix::fs::OpenOptionsExt, path::Path};

use fs_err::File;

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

/// How to open what is at a path to read it, without waiting for whoever writes to it.
pub fn unwaiting() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
    options
}
