//! The dead letters, `dead.ndjson`: one JSON object per line, whatever else is in it.
//!
//! Each carries a checksum, so that a changed byte is seen, and costs its letter. A line that is
//! torn or damaged stays where it is, for a person: nothing is added to it, and what is written
//! anew keeps it. A file whose sync has failed is never added to again.

mod line; // a line and its checksum
mod read; // pages, counts, every line
mod write; // adding at the end, and writing anew

use std::path::{Path, PathBuf};

pub use self::{
    line::DeadLine,
    read::{DeadCount, DeadPage, DeadText, each_dead_line},
    write::DeadChanges,
};
pub(super) use self::{
    read::{count, page},
    write::DeadFile,
};

/// The file of the dead letters in a queue's directory.
pub(super) const DEAD_LETTERS: &str = "dead.ndjson";

/// The dead letters of the queue in `dir`: one line each.
pub fn dead_letters(dir: &Path) -> PathBuf {
    dir.join(DEAD_LETTERS)
}
