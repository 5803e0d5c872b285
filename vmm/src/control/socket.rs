//! The socket file: made with mode 0600, taken over from a process that is
//! gone, removed at an orderly end.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RenameFlags, fchmod, open, renameat_with};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 16;
/// Tries to take a path that others take or leave meanwhile.
const TRIES: u32 = 8;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A process listens there.
    #[error("{}: another process listens there: give another path, or end it", .0.display())]
    InUse(PathBuf),
    /// Something else has that name.
    #[error("{}: is there and is no socket: give another path, or remove it", .0.display())]
    NoSocket(PathBuf),
    /// The kernel refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A socket that listens, and its file, which is removed when this is dropped.
#[derive(Debug)]
pub struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that nobody else's file is removed.
    identity: Option<(u64, u64)>,
}

impl ListeningSocket {
    /// Makes the socket at `path`.
    ///
    /// # Errors
    /// [`SocketError`]; what was at `path` is still there.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |source| SocketError::Io { path: path.to_owned(), source };
        for _ in 0..TRIES {
            match bind_new(path) {
                Ok(listener) => {
                    let identity = identity(path).ok();
                    return Ok(Self { listener, path: path.to_owned(), identity });
                }
                Err(Errno::ADDRINUSE) => clear_stale(path)?,
                Err(error) => return Err(io(error.into())),
            }
        }
        Err(SocketError::InUse(path.to_owned()))
    }

    /// The listener, which does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path).ok() == self.identity {
            // It may be gone, which is what is wanted.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_new(path: &Path) -> Result<UnixListener, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets the mode that the socket has at bind(2) (unix_bind_bsd,
    // net/unix/af_unix.c), so that nobody else can ever connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Removes the socket at `path` if nobody listens on it.
///
/// Two processes may do this at a time, and one may have made its own socket
/// when the other removes what it found. So the file is moved aside first, and
/// put back if it is not the one that nobody listens on.
fn clear_stale(path: &Path) -> Result<(), SocketError> {
    let io = |source| SocketError::Io { path: path.to_owned(), source };
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(file) => file,
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NoSocket(path.to_owned()));
    }
    match is_live(path) {
        Ok(false) => {}
        Ok(true) => return Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".stale-{}", std::process::id()));
    let aside = PathBuf::from(aside);
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io)?,
    }
    if identity(&aside).ok() != Some((found.dev(), found.ino())) {
        let cwd = rustix::fs::CWD;
        // Somebody has made a third one meanwhile: then this one is lost to
        // its owner, who has a descriptor that nobody can reach; the owner's
        // clients are told so by their connect(2).
        let _ = renameat_with(cwd, &aside, cwd, path, RenameFlags::NOREPLACE);
    }
    let _ = fs::remove_file(&aside);
    Ok(())
}

/// Whether somebody listens on the socket. By way of its descriptor, so that
/// the answer is about this file whatever becomes of its name.
fn is_live(path: &Path) -> io::Result<bool> {
    let file = open(path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(name)?) {
        // EAGAIN: somebody listens and has not got round to accepting others.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn only_the_owner_may_connect_and_the_file_goes_with_its_server() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("s");
        let socket = ListeningSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn a_socket_in_use_is_left_alone() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("s");
        let first = ListeningSocket::bind(&path).unwrap();
        let error = ListeningSocket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        UnixStream::connect(&path).unwrap();
        assert!(first.listener().accept().is_ok());
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_replaced() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let socket = ListeningSocket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        drop(socket);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "letter").unwrap();
        let error = ListeningSocket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::NoSocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "letter");
        let error = ListeningSocket::bind(&folder.path().join("not/there")).unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");
    }

    #[test]
    fn a_file_that_somebody_else_made_meanwhile_stays() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("s");
        let first = ListeningSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = ListeningSocket::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }
}
