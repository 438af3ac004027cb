//! A Unix socket as a file: one agent owns it, left-overs of a killed one are replaced, strangers
//! are kept out.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use axum::serve::Listener;
use rustix::fs::OFlags;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

/// The longest path of a socket, bytes.
const PATH_BYTES_MAX: usize = 107;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent answers on it.
    #[error("{0}: another agent answers there; hint: stop it, or configure another path")]
    InUse(PathBuf),
    /// A file of another kind has its name.
    #[error("{0} exists and is no socket; hint: configure another path")]
    NoSocket(PathBuf),
    /// The system says no.
    #[error("{path}: {error}; hint: {hint}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
}

impl SocketError {
    fn io(path: &Path, error: io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::InvalidInput => "a socket's path has at most 107 bytes",
            io::ErrorKind::PermissionDenied => "let the agent's user write to that folder",
            _ => "check the path in the configuration",
        };
        Self::Io { path: path.to_owned(), error, hint }
    }
}

/// Who gets an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// Processes of the same user and of root, whatever the file's mode has become: 0600.
    Own,
    /// Whoever the file's mode and group let in: 0660, and this group unless it is the agent's.
    Group(Option<u32>),
}

/// The listening socket; its file is removed with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
    owner: u32,
    peers: Peers,
}

impl Socket {
    /// Takes the socket; one that nobody answers on any more is replaced.
    pub async fn bind(path: &Path, peers: Peers) -> Result<Self, SocketError> {
        let failed = |error| SocketError::io(path, error);
        if let Some(folder) = path.parent() {
            make_folder(folder, peers).map_err(failed)?;
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            Ok(_) if UnixStream::connect(path).await.is_ok() => {
                return Err(SocketError::InUse(path.to_owned()));
            }
            Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        }
        let listener = bind_apart(path, peers).map_err(failed)?;
        let inode = inode(path).map_err(failed)?;
        let owner = rustix::process::geteuid().as_raw();
        Ok(Self { listener, path: path.to_owned(), inode, owner, peers })
    }
}

/// Makes the folder of a socket, if it is not there. Whoever may use the socket must get to it: its
/// mode is set, by the folder above and not by its path. Those who own that one could put a link in
/// its place in between, and have another folder opened.
fn make_folder(folder: &Path, peers: Peers) -> io::Result<()> {
    let Some((above, name)) = folder.parent().zip(folder.file_name()) else { return Ok(()) };
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    std::fs::create_dir_all(above)?;
    let above = open_folder(above, OFlags::PATH | OFlags::DIRECTORY)?;
    let place = PathBuf::from(format!("/proc/self/fd/{}", above.as_raw_fd())).join(name);
    match std::fs::create_dir(&place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    if peers == Peers::Own {
        return Ok(());
    }
    let made = open_folder(&place, OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
    if made.metadata()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    made.set_permissions(PermissionsExt::from_mode(0o755))
}

fn open_folder(path: &Path, flags: OFlags) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// Makes the socket in a new folder of this user's own, and moves it to its place when its group
/// and mode are set: those who own the folder of the place could put a link there in between, and
/// have the rights of another file changed.
fn bind_apart(path: &Path, peers: Peers) -> io::Result<UnixListener> {
    // It is made under a shorter name.
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let apart = path.with_file_name(format!(".{name}.{}", uuid::Uuid::new_v4()));
    std::fs::DirBuilder::new().mode(0o700).create(&apart)?;
    let made = bind_in(&apart, path, peers);
    let removed = std::fs::remove_dir(&apart);
    made.and_then(|listener| removed.map(|()| listener))
}

fn bind_in(apart: &Path, path: &Path, peers: Peers) -> io::Result<UnixListener> {
    // Whatever its name leads to from now on, this is the folder.
    let folder = open_folder(apart, OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
    let data = folder.metadata()?;
    let is_own = data.is_dir() && data.uid() == rustix::process::geteuid().as_raw();
    if !is_own || data.mode() & 0o077 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let place = PathBuf::from(format!("/proc/self/fd/{}/s", folder.as_raw_fd()));
    let listener = UnixListener::bind(&place)?;
    let mode = match peers {
        Peers::Own => 0o600,
        Peers::Group(group) => {
            // The group first: the mode is for it.
            std::os::unix::fs::chown(&place, None, group)?;
            0o660
        }
    };
    std::fs::set_permissions(&place, PermissionsExt::from_mode(mode))?;
    std::fs::rename(&place, path)?;
    Ok(listener)
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another agent may have taken the name since.
        if inode(&self.path).is_ok_and(|found| found == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Listener for Socket {
    type Io = UnixStream;
    type Addr = SocketAddr;

    /// The next connection of somebody who may ask.
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // axum's own: it waits a little when the process has no file descriptor left.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if self.peers != Peers::Own {
                return (stream, address);
            }
            match stream.peer_cred() {
                Ok(peer) if may_ask(peer.uid(), self.owner) => return (stream, address),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "control socket: refused a stranger"),
                Err(error) => tracing::warn!(%error, "control socket: refused, user unknown"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

fn may_ask(peer: u32, owner: u32) -> bool {
    peer == owner || peer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link in the place of the socket's folder opens no other folder to everybody.
    #[test]
    fn only_a_folder_that_is_made_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mode = |name: &str| std::fs::metadata(at(name)).unwrap().mode() & 0o777;
        let closed = PermissionsExt::from_mode(0o700);
        std::fs::create_dir(at("private")).unwrap();
        std::fs::set_permissions(at("private"), closed).unwrap();
        std::os::unix::fs::symlink(at("private"), at("link")).unwrap();
        for there in ["link", "private"] {
            make_folder(&at(there), Peers::Group(None)).unwrap();
            assert_eq!(mode("private"), 0o700, "{there}");
        }
        make_folder(&at("a/new"), Peers::Group(None)).unwrap();
        assert_eq!(mode("a/new"), 0o755);
    }

    #[test]
    fn own_user_and_root_may_ask() {
        let check = |peer, owner, expected| assert_eq!(may_ask(peer, owner), expected);
        check(1000, 1000, true);
        check(0, 1000, true);
        check(0, 0, true);
        check(1001, 1000, false);
        check(1000, 0, false);
    }
}
