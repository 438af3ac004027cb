//! Files that others must not read, and files that are replaced whole or not at all.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::LinkError;
use crate::files::{self, Unreadable};

/// Who may read a file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Mode 0600, from the moment the file exists.
    Owner,
    /// Mode 0644.
    Everyone,
}

/// Where the next content of `path` is prepared: beside it, so that a rename is atomic.
pub fn next_to(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    path.with_file_name(name)
}

/// Replaces `path` by `content`: after a crash it holds the old or the new content, whole.
pub fn replace(path: &Path, content: &[u8], readers: Readers) -> Result<(), LinkError> {
    let next = next_to(path);
    prepare(&next, content, readers)?;
    commit(&next, path)
}

/// Writes `content` to a new file, durable; a left-over of an earlier attempt is removed first.
pub fn prepare(path: &Path, content: &[u8], readers: Readers) -> Result<(), LinkError> {
    if let Some(folder) = parent(path) {
        fs_err::create_dir_all(folder).map_err(|error| cannot_write(&error))?;
    }
    remove(path)?;
    let mode = if readers == Readers::Owner { 0o600 } else { 0o644 };
    // `create_new` never follows a link that someone else has put here.
    let mut file = fs_err::OpenOptions::new();
    file.write(true).create_new(true).options_mut().mode(mode);
    let mut file = file.open(path).map_err(|error| cannot_write(&error))?;
    // A umask may have taken what everyone is to have.
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .map_err(|error| cannot_write(&error))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(|error| cannot_write(&error))
}

/// Moves a prepared file to its place and makes the move durable.
pub fn commit(prepared: &Path, path: &Path) -> Result<(), LinkError> {
    fs_err::rename(prepared, path).map_err(|error| cannot_write(&error))?;
    sync_folder(path)
}

/// Like [`commit`]; when nothing is prepared, another process has moved it already.
pub fn commit_if_prepared(prepared: &Path, path: &Path) -> Result<(), LinkError> {
    match fs_err::rename(prepared, path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(cannot_write(&error)),
        Ok(()) => sync_folder(path),
    }
}

/// Removes a file if it exists.
pub fn remove(path: &Path) -> Result<(), LinkError> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(cannot_write(&error)),
        _ => Ok(()),
    }
}

/// Makes renames and removals beside `path` durable.
pub fn sync_folder(path: &Path) -> Result<(), LinkError> {
    let Some(folder) = parent(path) else { return Ok(()) };
    fs_err::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| cannot_write(&error))
}

fn parent(path: &Path) -> Option<&Path> {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Some(Path::new(".")),
        parent => parent,
    }
}

fn cannot_write(error: &std::io::Error) -> LinkError {
    let hint = match error.kind() {
        std::io::ErrorKind::StorageFull => "free some space on that disk",
        _ => "run as the agent's user, and let it write there",
    };
    LinkError::new(error.to_string(), hint)
}

/// Reads a secret file; refuses one that its group or others can read. `key` names it in errors.
pub fn read_private(path: &Path, key: &str) -> Result<Vec<u8>, LinkError> {
    files::read_private(path).map_err(|unreadable| match unreadable {
        Unreadable::Failed(error) => cannot_read(&error, key),
        Unreadable::Open(mode) => LinkError::new(
            format!("{key} {} can be read by others (mode {mode:04o})", path.display()),
            format!("chmod 600 {}", path.display()),
        ),
    })
}

/// Reads a file of the agent's user, and its mode; `key` is the setting that names it.
pub fn read(path: &Path, key: &str) -> Result<(Vec<u8>, u32), LinkError> {
    files::read_with_mode(path).map_err(|error| cannot_read(&error, key))
}

fn cannot_read(error: &std::io::Error, key: &str) -> LinkError {
    LinkError::new(format!("{key}: {error}"), "let the agent's user own and read it")
}
