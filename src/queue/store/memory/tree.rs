//! The names of files and folders as the system sees them, and as a loss of power leaves them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Which content a name has; `None` is a folder.
pub(super) type Entry = Option<u64>;

/// All names below the queue's directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    names: BTreeMap<PathBuf, Entry>,
    synced: BTreeMap<PathBuf, Entry>,
    /// Not synced, in their order.
    changes: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Add(PathBuf, Entry),
    Move(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Tree {
    pub(super) fn get(&self, path: &Path) -> Option<Entry> {
        self.names.get(path).copied()
    }

    pub(super) fn is_folder(&self, path: &Path) -> bool {
        path == Path::new("") || self.get(path) == Some(None)
    }

    /// The names in a folder; `None` when it is not there.
    pub(super) fn names(&self, folder: &Path) -> Option<Vec<String>> {
        let own = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?;
            (path.parent() == Some(folder)).then(|| name.to_owned())
        };
        self.is_folder(folder).then(|| self.names.keys().filter_map(own).collect())
    }

    /// The contents of a file, or of all files in a folder.
    pub(super) fn contents(&self, path: &Path) -> impl Iterator<Item = u64> {
        let below = self.names.iter().filter(move |(name, _)| name.starts_with(path));
        below.filter_map(|(_, entry)| *entry)
    }

    pub(super) fn add(&mut self, path: &Path, entry: Entry) {
        self.change(Change::Add(path.to_owned(), entry));
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) {
        self.change(Change::Move(from.to_owned(), to.to_owned()));
    }

    pub(super) fn remove(&mut self, path: &Path) {
        self.change(Change::Remove(path.to_owned()));
    }

    /// Makes durable what has happened up to the last change in `folder`.
    pub(super) fn sync(&mut self, folder: &Path) {
        let last = self.changes.iter().rposition(|change| change.is_in(folder));
        let done = last.map_or(0, |last| last + 1);
        self.sync_first(done);
    }

    /// Leaves what was synced, and the first so many of the other changes.
    pub(super) fn crash(&mut self, random: &mut fastrand::Rng) {
        let kept = random.usize(..=self.changes.len());
        self.sync_first(kept);
        self.changes.clear();
        self.names.clone_from(&self.synced);
    }

    fn sync_first(&mut self, count: usize) {
        for change in self.changes.drain(..count) {
            change.apply(&mut self.synced);
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

impl Change {
    fn is_in(&self, folder: &Path) -> bool {
        let own = |path: &Path| path.parent() == Some(folder);
        match self {
            Self::Add(path, _) | Self::Remove(path) => own(path),
            Self::Move(from, to) => own(from) || own(to),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        match self {
            Self::Add(path, entry) => {
                names.insert(path.clone(), *entry);
            }
            Self::Remove(path) => names.retain(|name, _| !name.starts_with(path)),
            Self::Move(from, to) => {
                names.retain(|name, _| !name.starts_with(to));
                let moved: Vec<PathBuf> =
                    names.keys().filter(|name| name.starts_with(from)).cloned().collect();
                for name in moved {
                    let (Some(entry), Ok(rest)) = (names.remove(&name), name.strip_prefix(from))
                    else {
                        continue;
                    };
                    // Joining nothing would add a slash.
                    let name = if rest == Path::new("") { to.clone() } else { to.join(rest) };
                    names.insert(name, entry);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_keeps_what_was_synced_and_the_first_of_the_rest() {
        let path = Path::new;
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let mut tree = Tree::default();
            tree.add(path("a"), None);
            tree.add(path("b"), None);
            tree.sync(path(""));
            tree.add(path("a/1"), Some(1));
            tree.add(path("a/2"), Some(2));
            tree.rename(path("a/1"), path("b/1"));
            tree.rename(path("b"), path("c"));
            assert_eq!(tree.names(path("c")), Some(vec!["1".to_owned()]));
            assert_eq!((tree.names(path("b")), tree.get(path("c/1"))), (None, Some(Some(1))));
            tree.crash(&mut fastrand::Rng::with_seed(seed));
            left.insert(format!("{:?}", tree.names.keys().collect::<Vec<_>>()));
        }
        assert_eq!(left.len(), 5, "{left:?}");
    }
}
