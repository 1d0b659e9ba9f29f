//! The Unix socket: bound with its permissions, taken over when left behind, never shared.
//!
//! A lock file beside the socket tells whether a daemon lives: the kernel
//! frees the lock however the daemon ends. The socket is bound under another
//! name, gets its mode and group, and is then renamed into place, so that
//! nobody can connect before the permissions are right.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use nix::unistd::Group;
use tokio::net::UnixListener;

use crate::config::Http;
use crate::events;

/// Group that may use the socket where the configuration names none.
const USUAL_GROUP: &str = "glmd-clients";
/// Permissions of the lock file: nobody else needs to see it.
const LOCK_MODE: u32 = 0o600;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Another daemon serves it.
    #[error("{}: another glmd serves this socket; stop it or set http.socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has its name.
    #[error("{}: exists and is not a socket; it is not replaced", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The group of the configuration does not exist.
    #[error("http.group: there is no group `{group}`")]
    NoGroup {
        /// Its name.
        group: String,
    },
    /// The system said no.
    #[error("{}: cannot {action}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        reason: io::Error,
    },
}

/// A bound socket. Its file goes when it is dropped, if it is our own.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    own: Option<Own>,
}

/// A socket file that we made and remove.
#[derive(Debug)]
struct Own {
    /// Device and inode, to remove no socket but this one.
    identity: (u64, u64),
    _lock: File,
}

impl UnixSocket {
    /// Binds the socket of the configuration. Needs a tokio runtime.
    ///
    /// # Errors
    /// When another daemon has it, or the system refuses.
    pub fn bind(http: &Http) -> Result<Self, SocketError> {
        let path = http.socket.as_path();
        let io = |action| {
            move |reason| SocketError::Io {
                path: path.to_owned(),
                action,
                reason,
            }
        };
        if let Some(folder) = path.parent().filter(|f| !f.exists()) {
            std::fs::create_dir(folder).map_err(io("create its folder"))?;
        }
        let lock = lock(path)?;
        refuse_or_replace(path)?;
        let fresh = beside(path, ".new");
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io("replace")(e)),
            _ => {}
        }
        let listener = StdListener::bind(&fresh).map_err(io("bind"))?;
        let mode = http.octal_mode().unwrap_or(0o660);
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(mode))
            .map_err(io("set the mode"))?;
        give_group(&fresh, http.group.as_deref())?;
        std::fs::rename(&fresh, path).map_err(io("rename"))?;
        let meta = std::fs::symlink_metadata(path).map_err(io("stat"))?;
        listener.set_nonblocking(true).map_err(io("set up"))?;
        let listener = UnixListener::from_std(listener).map_err(io("listen"))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            own: Some(Own {
                identity: (meta.dev(), meta.ino()),
                _lock: lock,
            }),
        })
    }

    /// A socket that somebody else bound and keeps, such as systemd. Needs a tokio runtime.
    ///
    /// # Errors
    /// When it is no listening socket.
    pub fn inherited(listener: StdListener) -> Result<Self, SocketError> {
        let address = listener.local_addr().ok();
        let path = address
            .and_then(|address| address.as_pathname().map(Path::to_owned))
            .unwrap_or_default();
        let io = |reason| SocketError::Io {
            path: path.clone(),
            action: "use the socket of systemd",
            reason,
        };
        listener.set_nonblocking(true).map_err(io)?;
        Ok(Self {
            listener: UnixListener::from_std(listener).map_err(io)?,
            path,
            own: None,
        })
    }

    /// Where connections arrive.
    #[must_use]
    pub const fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let Some(own) = &self.own else {
            return;
        };
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == own.identity);
        if ours {
            // What stays behind is taken over by the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A name beside the socket.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Takes the lock that only a living daemon holds. The file stays: removing it
/// would let a second daemon lock a file that a third no longer sees.
fn lock(path: &Path) -> Result<File, SocketError> {
    let name = beside(path, ".lock");
    let io = |action, reason| SocketError::Io {
        path: name.clone(),
        action,
        reason,
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(LOCK_MODE)
        .open(&name)
        .map_err(|e| io("open", e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(e)) => Err(io("lock", e)),
    }
}

/// Refuses what is not a left-behind socket.
fn refuse_or_replace(path: &Path) -> Result<(), SocketError> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(reason) => {
            return Err(SocketError::Io {
                path: path.to_owned(),
                action: "stat",
                reason,
            });
        }
    };
    if !meta.file_type().is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    // A daemon in another mount of the folder may not see our lock; whoever answers lives.
    if StdStream::connect(path).is_ok() {
        return Err(SocketError::InUse {
            path: path.to_owned(),
        });
    }
    events::socket_taken_over(path);
    Ok(())
}

/// Gives the socket to the group of the configuration, or to the usual one where that is possible.
fn give_group(path: &Path, wanted: Option<&str>) -> Result<(), SocketError> {
    let name = wanted.unwrap_or(USUAL_GROUP);
    let found = Group::from_name(name).ok().flatten();
    let Some(group) = found else {
        return match wanted {
            Some(group) => Err(SocketError::NoGroup {
                group: group.to_owned(),
            }),
            None => Ok(()),
        };
    };
    match (chown(path, None, Some(group.gid.as_raw())), wanted) {
        (Ok(()), _) => Ok(()),
        (Err(reason), Some(_)) => Err(SocketError::Io {
            path: path.to_owned(),
            action: "give it to the group of http.group",
            reason,
        }),
        (Err(reason), None) => {
            events::group_not_given(name, &reason);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(folder: &Path) -> Http {
        Http {
            socket: folder.join("glmd.sock"),
            mode: "0600".into(),
            ..Http::default()
        }
    }

    #[tokio::test]
    async fn one_daemon_a_socket_and_the_mode_is_right() {
        let folder = tempfile::tempdir().expect("a folder");
        let http = http(folder.path());
        let first = UnixSocket::bind(&http).expect("free");
        let mode = std::fs::metadata(&http.socket).expect("there").mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = UnixSocket::bind(&http).expect_err("taken");
        assert!(matches!(second, SocketError::InUse { .. }), "{second}");
        assert!(http.socket.exists(), "the loser must not remove it");
        drop(first);
        assert!(!http.socket.exists());
        UnixSocket::bind(&http).expect("free again");
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_taken_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let http = http(folder.path());
        // What kill -9 leaves: the file without a listener, the lock free.
        drop(StdListener::bind(&http.socket).expect("bound"));
        assert!(http.socket.exists());
        let taken = UnixSocket::bind(&http).expect("taken over");
        StdStream::connect(taken.path()).expect("served");
    }

    #[tokio::test]
    async fn what_is_not_ours_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let http = http(folder.path());
        std::fs::write(&http.socket, "precious").expect("written");
        let refused = UnixSocket::bind(&http).expect_err("a file");
        assert!(matches!(refused, SocketError::NotASocket { .. }));
        assert_eq!(std::fs::read(&http.socket).expect("there"), b"precious");
        std::fs::remove_file(&http.socket).expect("removed");
        // A foreign server that knows nothing of our lock.
        let foreign = StdListener::bind(&http.socket).expect("bound");
        let refused = UnixSocket::bind(&http).expect_err("served");
        assert!(matches!(refused, SocketError::InUse { .. }));
        drop(foreign);
    }

    #[tokio::test]
    async fn an_inherited_socket_is_closed_and_not_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let http = http(folder.path());
        let theirs = StdListener::bind(&http.socket).expect("bound");
        let ours = theirs.try_clone().expect("a copy");
        let socket = UnixSocket::inherited(ours).expect("good");
        assert_eq!(socket.path(), http.socket);
        drop(socket);
        assert!(http.socket.exists());
        StdStream::connect(&http.socket).expect("they still listen");
    }
}
