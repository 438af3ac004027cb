//! The point of no return of a registration or of a renewal: a list of moves that are completed,
//! now or later.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::link::LinkError;
use crate::link::files::{self, Readers};

/// The files whose next content is ready beside them.
#[derive(Serialize, Deserialize)]
struct Journal {
    files: Vec<PathBuf>,
}

fn journal_file(state_dir: &Path) -> PathBuf {
    state_dir.join("registration.json")
}

/// Whether a registration waits for its completion.
pub(in crate::link) fn exists(state_dir: &Path) -> bool {
    journal_file(state_dir).exists()
}

/// Promises that the prepared next content of these files replaces the old.
pub(in crate::link) fn write(state_dir: &Path, files: &[PathBuf]) -> Result<(), LinkError> {
    let absolute = |file: &PathBuf| std::path::absolute(file).unwrap_or_else(|_| file.clone());
    let journal = Journal { files: files.iter().map(absolute).collect() };
    let text = serde_json::to_vec(&journal)
        .map_err(|error| LinkError::new(format!("a path is no UTF-8: {error}"), "rename it"))?;
    for file in files {
        files::sync_folder(file)?;
    }
    files::replace(&journal_file(state_dir), &text, Readers::Owner)
}

/// Completes a registration that passed its point of no return. Does nothing when there is none.
pub fn finish(state_dir: &Path) -> Result<(), LinkError> {
    let file = journal_file(state_dir);
    let owner = match fs_err::metadata(&file) {
        Ok(found) => found.uid(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(LinkError::new(error.to_string(), "run as the agent's user"));
        }
    };
    // It names files to replace: only this user's own word counts.
    if owner != rustix::process::geteuid().as_raw() {
        return Err(LinkError::new(
            format!("{} belongs to another user (uid {owner})", file.display()),
            "complete the registration as that user: run `agent register` again",
        ));
    }
    let damaged = |why: String| {
        LinkError::new(
            format!("{} is damaged: {why}", file.display()),
            "remove it and register again with `agent register --force`",
        )
    };
    let text = files::read_private(&file, "registration")?;
    let journal: Journal =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    for path in &journal.files {
        files::commit_if_prepared(&files::next_to(path), path)?;
    }
    files::remove(&file)?;
    files::sync_folder(&file)
}

const LOCK: &str = "register.lock";
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// Keeps a second registration of the same state directory out.
pub(in crate::link) fn lock(state_dir: &Path) -> Result<File, LinkError> {
    let cannot = |error: std::io::Error| {
        LinkError::new(error.to_string(), "run as the agent's user, or set another state directory")
    };
    fs_err::create_dir_all(state_dir).map_err(cannot)?;
    let lock = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(state_dir.join(LOCK))
        .map_err(cannot)?
        .into_file();
    // A lock outlives its holder for a moment when that process was just starting another one.
    for _ in 0..LOCK_TRIES {
        if lock.try_lock().is_ok() {
            return Ok(lock);
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(LinkError::new("another registration or renewal is under way", "wait until it has ended"))
}
