//! Small things that everything with files on the system's disk needs.

use std::{io, path::Path};

use fs_err::{self as fs, File};

use super::store::StoreError;
pub(super) use crate::files::{open_file, unwaiting};

/// Makes a file's content, or the names in a folder, durable.
pub(super) fn sync_file(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(at("sync", path))
}

/// Moves a file or folder, durably; one that is not there has been moved already.
pub(super) fn move_dir(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).or_else(if_absent(())).map_err(at("move", from))?;
    sync_file(from.parent().unwrap_or(from))
}

/// Copies the files of a folder to a new one.
pub(super) fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Says what was tried on which path when an error becomes a [`StoreError`].
pub(super) fn at<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> StoreError + use<E> {
    let path = path.to_owned();
    move |error| StoreError::new(action, path, error)
}

/// Turns "is not there" into a value.
pub(super) fn if_absent<T>(value: T) -> impl FnOnce(io::Error) -> io::Result<T> {
    |error| if error.kind() == io::ErrorKind::NotFound { Ok(value) } else { Err(error) }
}
