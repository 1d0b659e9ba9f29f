//! The socket that a service manager listens on and hands over: sd_listen_fds(3).
//!
//! What is offered is decided from the environment alone (`offered`); the
//! descriptor is looked at before it is trusted. An environment that was set
//! by half is refused rather than guessed at: descriptor 3 may be anything.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use socket2::SockRef;

/// Who the descriptors are for, and how many there are.
const PID: &str = "LISTEN_PID";
const COUNT: &str = "LISTEN_FDS";

/// Why what is handed over cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// One variable is there and its twin is not.
    #[error(
        "socket activation: {present} is set and {absent} is not; a service manager sets both. \
         Unset {present} to let glmd bind http.socket itself"
    )]
    HalfSet {
        /// The variable that is there.
        present: &'static str,
        /// The one that is missing.
        absent: &'static str,
    },
    /// A variable is no number.
    #[error("socket activation: {name}={value:?} is not a number")]
    NotANumber {
        /// The variable.
        name: &'static str,
        /// What it says.
        value: OsString,
    },
    /// More sockets than there is use for.
    #[error(
        "socket activation: {count} sockets are handed over and glmd serves one; \
         leave a single ListenStream= in glmd.socket"
    )]
    TooMany {
        /// How many.
        count: u32,
    },
    /// The descriptor is something else.
    #[error(
        "socket activation: descriptor 3 is no listening Unix stream socket: {reason}; \
         glmd.socket needs ListenStream= with a path, and Accept=no"
    )]
    NotAListener {
        /// What is wrong with it.
        reason: io::Error,
    },
}

/// The socket that a service manager listens on for us, if it does.
///
/// # Errors
/// When the environment speaks of sockets, and there is none that could be served.
pub fn inherited_socket() -> Result<Option<UnixListener>, ActivationError> {
    let (pid, count) = (std::env::var_os(PID), std::env::var_os(COUNT));
    if !offered(pid, count, std::process::id())? {
        return Ok(None);
    }
    let refuse = |reason| ActivationError::NotAListener { reason };
    let listener = (ListenFd::from_env().take_unix_listener(0)).map_err(refuse)?;
    let listener = listener.ok_or_else(|| refuse(io::ErrorKind::NotFound.into()))?;
    // A connection that was accepted already is a Unix stream socket, too.
    match SockRef::from(&listener).is_listener() {
        Ok(true) => Ok(Some(listener)),
        Ok(false) => Err(refuse(io::Error::other("it is a connection"))),
        Err(reason) => Err(refuse(reason)),
    }
}

/// Whether one socket is offered to the process `ours`.
fn offered(
    pid: Option<OsString>,
    count: Option<OsString>,
    ours: u32,
) -> Result<bool, ActivationError> {
    let half = |present, absent| Err(ActivationError::HalfSet { present, absent });
    let (pid, count) = match (pid, count) {
        (None, None) => return Ok(false),
        (None, Some(_)) => return half(COUNT, PID),
        (Some(_), None) => return half(PID, COUNT),
        (Some(pid), Some(count)) => (number(PID, pid)?, number(COUNT, count)?),
    };
    match count {
        // Meant for the process that started us, which forgot to tidy up.
        _ if pid != ours => Ok(false),
        0 => Ok(false),
        1 => Ok(true),
        count => Err(ActivationError::TooMany { count }),
    }
}

fn number(name: &'static str, value: OsString) -> Result<u32, ActivationError> {
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or(ActivationError::NotANumber { name, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_whole_and_ours() {
        let offered = |pid: Option<&str>, count: Option<&str>| {
            offered(pid.map(Into::into), count.map(Into::into), 7).map_err(|e| e.to_string())
        };
        assert_eq!(offered(None, None), Ok(false));
        assert_eq!(offered(Some("7"), Some("1")), Ok(true));
        assert_eq!(offered(Some("7"), Some("0")), Ok(false));
        assert_eq!(offered(Some("8"), Some("1")), Ok(false));
        assert_eq!(offered(Some("8"), Some("5")), Ok(false));
        for (pid, count, word) in [
            (Some("7"), None, "LISTEN_FDS"),
            (None, Some("1"), "LISTEN_PID"),
            (Some(""), Some("1"), "LISTEN_PID"),
            (Some("7"), Some("-1"), "LISTEN_FDS"),
            (Some("7"), Some("one"), "\"one\""),
            (Some("7"), Some("2"), "2 sockets"),
        ] {
            let told = offered(pid, count).expect_err("refused");
            assert!(told.contains(word), "{told}");
        }
    }
}
