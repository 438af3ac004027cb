//! Which mounts are file systems that fill up. Pure.
//!
//! The line format is that of proc(5): id, parent, major:minor, root, mount point, options,
//! optional fields, `-`, type, source, super options; space, tab, newline and backslash are
//! octal escapes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Types that hold no data of their own, or only data in memory.
const PSEUDO_TYPES: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "erofs",
    "fuse.gvfsd-fuse",
    "fuse.portal",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "mqueue",
    "nsfs",
    "overlay",
    "proc",
    "procfs",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "tracefs",
];

/// Types behind a network; asked only when PostgreSQL lives there, since they can hang.
const NETWORK_TYPES: &[&str] =
    &["9p", "ceph", "cifs", "fuse.sshfs", "glusterfs", "lustre", "nfs", "nfs4", "smb3"];

/// Trees of other programs' mounts.
const SKIPPED_TREES: &[&str] = &[
    "/dev",
    "/proc",
    "/sys",
    "/run/credentials",
    "/var/lib/docker",
    "/var/lib/containers/storage",
];

/// PostgreSQL's parallel queries fail when this one is full.
const SHARED_MEMORY: &str = "/dev/shm";

/// One file system and where it is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mount {
    /// `major:minor`, the same for every mount of one file system.
    pub(super) number: String,
    /// What of the file system is mounted; `/` is all of it.
    pub(super) root: PathBuf,
    pub(super) point: PathBuf,
    pub(super) device: String,
    pub(super) fstype: String,
    pub(super) read_only: bool,
    /// Other mount points of the same file system.
    pub(super) aliases: Vec<PathBuf>,
}

/// The mounts of a mount table, in its order; lines that are none are left out.
pub(super) fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// One mount for each file system worth watching, and always those that hold a path of `keep`.
pub(super) fn select(mounts: Vec<Mount>, keep: &[PathBuf]) -> Vec<Mount> {
    // A later mount on the same point hides the earlier one.
    let mut visible: BTreeMap<PathBuf, Mount> = BTreeMap::new();
    for mount in mounts {
        visible.insert(mount.point.clone(), mount);
    }
    let kept: Vec<&Path> = keep.iter().filter_map(|path| holder(&visible, path)).collect();
    let wanted = |mount: &Mount| {
        let point = mount.point.as_path();
        kept.contains(&point) || point == Path::new("/") || fills_up(mount)
    };
    let mut by_number: BTreeMap<&str, Vec<&Mount>> = BTreeMap::new();
    for mount in visible.values().filter(|mount| wanted(mount)) {
        by_number.entry(&mount.number).or_default().push(mount);
    }
    let mut selected: Vec<Mount> = by_number.into_values().filter_map(|m| merge(&m)).collect();
    selected.sort_by(|a, b| a.point.cmp(&b.point));
    selected
}

/// The mount point that `path` lies under.
fn holder<'a>(visible: &'a BTreeMap<PathBuf, Mount>, path: &Path) -> Option<&'a Path> {
    visible
        .keys()
        .map(PathBuf::as_path)
        .filter(|point| path.starts_with(point))
        .max_by_key(|point| point.as_os_str().len())
}

fn fills_up(mount: &Mount) -> bool {
    if mount.point == Path::new(SHARED_MEMORY) {
        return true;
    }
    let fstype = mount.fstype.as_str();
    !PSEUDO_TYPES.contains(&fstype)
        && !NETWORK_TYPES.contains(&fstype)
        && !SKIPPED_TREES.iter().any(|tree| mount.point.starts_with(tree))
}

/// The mount that shows the whole file system by the shortest path; the others are its aliases.
fn merge(mounts: &[&Mount]) -> Option<Mount> {
    let rank = |mount: &&&Mount| {
        (mount.root != Path::new("/"), mount.point.as_os_str().len(), mount.point.clone())
    };
    let chosen = *mounts.iter().min_by_key(rank)?;
    let aliases = mounts.iter().map(|m| &m.point).filter(|point| **point != chosen.point);
    Some(Mount {
        aliases: aliases.cloned().collect(),
        // Writable anywhere is writable: the others may be read-only binds.
        read_only: mounts.iter().all(|mount| mount.read_only),
        ..chosen.clone()
    })
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = text(fields.nth(2)?);
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let fstype = text(fields.next()?);
    let source = text(fields.next()?);
    let super_options = fields.next().unwrap_or_default();
    let device = if source.is_empty() { "none".to_owned() } else { source };
    let read_only = [options, super_options].into_iter().any(is_read_only);
    Some(Mount { number, root, point, device, fstype, read_only, aliases: Vec::new() })
}

fn is_read_only(options: &[u8]) -> bool {
    options.split(|byte| *byte == b',').any(|option| option == b"ro" || option == b"emergency_ro")
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match after.split_at_checked(3) {
            Some((digits, after)) if *first == b'\\' => match octal(digits) {
                Some(byte) => (byte, after),
                None => (*first, &rest[1..]),
            },
            _ => (*first, after),
        };
        plain.push(byte);
        rest = after;
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}
