//! Root steps down: in a directory of somebody else's, a command of root's is that user's.
//!
//! Whoever owns a directory can put links, files and folders in the way of a command that works in
//! it. Done by root, such a command would write, move or give away what is root's; done by the
//! owner, it can do nothing that the owner could not do without it. And what it makes there is the
//! owner's, who has to go on with it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use rustix::process::{Gid, Uid};
use rustix::thread;

use crate::backend::BackendConfig;
use crate::cli::terminal;
use crate::config::Config;

/// As many links as the system follows in one path.
const LINKS_MAX: usize = 40;

/// A user, and what it owns.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    user: u32,
    group: u32,
    path: PathBuf,
}

/// Becomes the owner of the directories that the agent works in, if this is root and that is not.
pub fn of_host(file: &Path, config: &Config) -> anyhow::Result<()> {
    let (tls, state, queue) = (&config.link.tls, &config.agent.state_dir, &config.queue.dir);
    // Whose the file is says where this writes.
    step_down(&[state, queue, &tls.key_file, &tls.cert_file, file])
}

/// Becomes the owner of the backend's directory, if this is root and that is not.
pub fn of_backend(file: Option<&Path>, config: &BackendConfig) -> anyhow::Result<()> {
    let store = config.store_url();
    let store = store.strip_prefix("sqlite:").map(Path::new);
    let places = [Some(config.data_dir.as_path()), store, file];
    step_down(&places.into_iter().flatten().collect::<Vec<_>>())
}

/// Becomes the first user who is not root and owns one of `places`, or what leads there.
pub fn step_down(places: &[&Path]) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    for place in places {
        let owner = owner(place).with_context(|| format!("{}", place.display()))?;
        let Some(owner) = owner.filter(|owner| is_known_here(owner.user)) else { continue };
        let (user, path) = (owner.user, owner.path.display());
        become_user(&owner).with_context(|| {
            format!(
                "{path} is of user {user}, whom root cannot become; hint: run this as that user"
            )
        })?;
        terminal::complain(&format!("root works here as user {user}, who owns {path}"));
        return Ok(());
    }
    Ok(())
}

/// The last owner on the way to `path` who is not root: who can say what is at its end. What is
/// not there yet is made by the owner of what is.
fn owner(path: &Path) -> io::Result<Option<Owner>> {
    let path = std::path::absolute(path)?;
    let mut rest = names(&path);
    let (mut at, mut owner, mut links) = (PathBuf::from("/"), None, 0);
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        let data = match std::fs::symlink_metadata(&next) {
            Err(error) if is_absence(&error) => break,
            data => data?,
        };
        if data.uid() != 0 {
            owner = Some(Owner { user: data.uid(), group: data.gid(), path: next.clone() });
        }
        if !data.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(io::Error::other("too many links lead there"));
        }
        let target = std::fs::read_link(&next)?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        for name in names(&target).into_iter().rev() {
            rest.push_front(name);
        }
    }
    Ok(owner)
}

/// Whoever needs what is not there says so.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().filter_map(name).collect()
}

/// Becomes a user for good, with the groups of its account; one without an account has the group
/// of what it owns, unless that is root's.
fn become_user(owner: &Owner) -> io::Result<()> {
    // Each thread is who it is: there must be no other yet.
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the process has threads already"));
    }
    let own = if owner.group == 0 { owner.user } else { owner.group };
    let (group, groups) = match account(owner.user) {
        Some((name, group)) => (group, groups_of(&name)),
        None => (own, Vec::new()),
    };
    let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(group));
    // Only root may change groups: they go first.
    thread::set_thread_groups(&groups)?;
    thread::set_thread_res_gid(group, group, group)?;
    Ok(thread::set_thread_res_uid(user, user, user)?)
}

/// The name and the group of a user of this system.
fn account(user: u32) -> Option<(String, u32)> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id, group) = (fields.next()?, fields.nth(1)?, fields.next()?);
        (id.parse() == Ok(user)).then_some((name.to_owned(), group.parse().ok()?))
    })
}

/// The groups that a user is a member of beside its own.
fn groups_of(name: &str) -> Vec<Gid> {
    let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let groups = text.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let (group, members) = (fields.next()?.parse().ok()?, fields.next()?);
        members.split(',').any(|member| member == name).then(|| Gid::from_raw(group))
    });
    groups.collect()
}

/// Whether this user namespace has the user. Root of a namespace without it has no power over what
/// is that user's, nor over what is the system's.
fn is_known_here(user: u32) -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return true };
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return true;
        };
        (first..first.saturating_add(count)).contains(&u64::from(user))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    #[test]
    fn the_last_owner_on_the_way_decides() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "CI runs as root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["roots/in", "a/b", "a/roots"] {
            fs_err::create_dir_all(at(name)).unwrap();
        }
        symlink("../roots/in", at("a/link")).unwrap();
        symlink(at("roots"), at("a/absolute")).unwrap();
        symlink("loop", at("loop")).unwrap();
        for (name, user) in [("a", 7), ("a/b", 8), ("a/link", 9)] {
            lchown(at(name), Some(user), Some(user)).unwrap();
        }
        let check = |name: &str, expected: Option<u32>| {
            let found = owner(&at(name)).unwrap();
            assert_eq!(found.map(|owner| owner.user), expected, "{name}");
        };
        check("roots", None);
        check("roots/in/not/there", None);
        check("a", Some(7));
        check("a/b", Some(8));
        check("a/b/not/there", Some(8));
        check("a/roots", Some(7));
        check("a/link", Some(9));
        check("a/link/x", Some(9));
        check("a/absolute/in", Some(7));
        check("a/../roots", Some(7));
        assert!(owner(&at("loop")).is_err());
    }
}
