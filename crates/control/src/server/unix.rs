//! The Unix socket: who may connect, and that one process at a time owns its path.
//!
//! `<socket>.lock` is SPDK's convention: whoever holds a lock on that file owns the path, so what stands at the path
//! without an owner is a dead process's and is replaced. The kernel lets go of the lock however its holder ends.
//!
//! The lock file stays when the socket goes: removing it could pull it from under a process that has opened
//! but not locked it yet, and two would own the path.
//!
//! Rejected: `chmod` after `bind` (anybody could connect in between), `umask` (belongs to the whole process).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Who may connect, and who may lock.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Connections that wait to be accepted; the kernel may allow fewer.
const BACKLOG: i32 = 1024;

/// A socket that is bound but not served yet.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    held: Held,
}

/// The socket's path and the right to it; dropped, the socket is removed.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    /// Device and inode of the socket, to remove no other's.
    identity: (u64, u64),
    _lock: OwnedFd,
}

/// Why a socket cannot be had. One line that names the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    /// A process lives that owns the path.
    #[error(
        "another process serves JSON-RPC on {}: stop it, or choose another path with --rpc-socket",
        .0.display()
    )]
    Owned(PathBuf),
    /// What stands at the path is not ours to remove.
    #[error(
        "{} exists and is not a socket: remove it, or choose another path with --rpc-socket",
        .0.display()
    )]
    NotASocket(PathBuf),
    /// The lock file or the socket cannot be made.
    #[error("{} cannot be created ({source}): choose another path with --rpc-socket", path.display())]
    Failed {
        /// Which of the two.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl UnixSocket {
    /// Takes the path. From now on connections wait to be accepted.
    pub fn bind(path: &Path) -> Result<UnixSocket, UnixError> {
        let failed = |error: Errno| UnixError::Failed { path: path.into(), source: error.into() };
        let lock = lock(path)?;
        remove_stale(path)?;
        let listener = listen(path).map_err(failed)?;
        let status = rustix::fs::lstat(path).map_err(failed)?;
        let identity = (status.st_dev, status.st_ino);
        let held = Held { path: path.into(), identity, _lock: lock };
        Ok(UnixSocket { listener: listener.into(), held })
    }

    pub(super) fn into_parts(self) -> (UnixListener, Held) {
        (self.listener, self.held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let ours = rustix::fs::lstat(&self.path)
            .is_ok_and(|status| (status.st_dev, status.st_ino) == self.identity);
        if ours && let Err(error) = rustix::fs::unlink(&self.path) {
            tracing::warn!("{} cannot be removed: {error}", self.path.display());
        }
    }
}

fn lock(path: &Path) -> Result<OwnedFd, UnixError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::open(&lock_path, flags, MODE).and_then(|file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    });
    lock.map_err(|error| match error {
        Errno::WOULDBLOCK => UnixError::Owned(path.into()),
        error => UnixError::Failed { path: lock_path.into(), source: error.into() },
    })
}

/// Removes the socket of a process that is dead. One that answers belongs to a process that does not know of the lock.
fn remove_stale(path: &Path) -> Result<(), UnixError> {
    let failed = |error: Errno| UnixError::Failed { path: path.into(), source: error.into() };
    let status = match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        status => status.map_err(failed)?,
    };
    if FileType::from_raw_mode(status.st_mode) != FileType::Socket {
        return Err(UnixError::NotASocket(path.into()));
    }
    let probe = socket().map_err(failed)?;
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    match rustix::net::connect(&probe, &address) {
        // A full backlog is a living owner's, too.
        Ok(()) | Err(Errno::WOULDBLOCK) => Err(UnixError::Owned(path.into())),
        Err(_) => rustix::fs::unlink(path).map_err(failed),
    }
}

fn listen(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    // The mode of a socket that is not bound yet becomes that of its file.
    rustix::fs::fchmod(&socket, MODE)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rpc.sock");
        (directory, path)
    }

    #[test]
    fn only_its_owner_may_connect() {
        let (_directory, path) = place();
        let _socket = UnixSocket::bind(&path).unwrap();
        for path in [path.clone(), path.with_extension("sock.lock")] {
            let mode = path.symlink_metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_second_owner_is_refused_until_the_first_is_gone() {
        let (_directory, path) = place();
        let first = UnixSocket::bind(&path).unwrap();
        let error = UnixSocket::bind(&path).unwrap_err();
        assert!(matches!(&error, UnixError::Owned(_)));
        let line = error.to_string();
        assert!(line.contains(path.to_str().unwrap()) && line.contains("--rpc-socket"), "{line}");
        assert!(!line.contains('\n'));
        UnixStream::connect(&path).unwrap();
        drop(first);
        assert!(!path.exists());
        UnixSocket::bind(&path).unwrap();
    }

    #[test]
    fn a_dead_process_s_socket_is_replaced() {
        let (_directory, path) = place();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _socket = UnixSocket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_living_owner_without_a_lock_is_refused() {
        let (_directory, path) = place();
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(UnixSocket::bind(&path), Err(UnixError::Owned(_))));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_not_a_socket_stays() {
        let (_directory, path) = place();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(UnixSocket::bind(&path), Err(UnixError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let nowhere = path.join("rpc.sock");
        assert!(matches!(UnixSocket::bind(&nowhere), Err(UnixError::Failed { .. })));
        let long = path.with_file_name("x".repeat(120));
        assert!(matches!(UnixSocket::bind(&long), Err(UnixError::Failed { .. })));
    }

    #[test]
    fn a_socket_that_another_put_in_its_place_stays() {
        let (_directory, path) = place();
        let socket = UnixSocket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
