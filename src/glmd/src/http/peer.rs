//! Who is at the other end, and how much each user may ask at a time.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::unix::UCred;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process of this machine, as the kernel names it (`SO_PEERCRED`, unix(7)).
    Local {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
        /// Process, when the kernel says.
        pid: Option<i32>,
    },
    /// An address; its owner has shown the token.
    Remote(SocketAddr),
}

impl Peer {
    /// From the credentials of a Unix socket.
    #[must_use]
    pub fn local(credentials: &UCred) -> Self {
        Self::Local {
            uid: credentials.uid(),
            gid: credentials.gid(),
            pid: credentials.pid(),
        }
    }

    /// Its process, if it is one of this machine.
    #[must_use]
    pub const fn pid(&self) -> Option<i32> {
        match self {
            Self::Local { pid, .. } => *pid,
            Self::Remote(_) => None,
        }
    }

    /// Under which name its requests are listed: the same for all connections of a user.
    #[must_use]
    pub fn client(&self) -> Box<str> {
        match self {
            Self::Local { uid, .. } => format!("uid:{uid}").into(),
            Self::Remote(address) => format!("tcp:{}", address.ip()).into(),
        }
    }

    /// Whether it may reload, unload and cancel what others asked: root and the daemon's own user.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        match self {
            Self::Local { uid, .. } => *uid == 0 || *uid == nix::unistd::geteuid().as_raw(),
            Self::Remote(_) => false,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { uid, gid, .. } => write!(f, "uid {uid} gid {gid}"),
            Self::Remote(address) => address.fmt(f),
        }
    }
}

/// Requests under way by client.
#[derive(Clone, Debug, Default)]
pub struct Quotas(Arc<Mutex<HashMap<Box<str>, usize>>>);

impl Quotas {
    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, usize>> {
        // Each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request until the guard is dropped; `None` when the client has `limit` already. 0 = no limit.
    #[must_use]
    pub fn enter(&self, client: &str, limit: usize) -> Option<Share> {
        let mut counts = self.lock();
        let count = counts.entry(client.into()).or_default();
        if limit > 0 && *count >= limit {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Share {
            quotas: self.clone(),
            client: client.into(),
        })
    }
}

/// A request that counts.
#[derive(Debug)]
pub struct Share {
    quotas: Quotas,
    client: Box<str>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.quotas.lock();
        if let Some(count) = counts.get_mut(&self.client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_its_share_and_no_more() {
        let quotas = Quotas::default();
        let first = quotas.enter("uid:1", 2).expect("free");
        let _second = quotas.enter("uid:1", 2).expect("free");
        assert!(quotas.enter("uid:1", 2).is_none());
        let _other = quotas.enter("uid:2", 2).expect("somebody else");
        drop(first);
        assert!(quotas.enter("uid:1", 2).is_some());
        let all: Vec<_> = (0..100).map(|_| quotas.enter("uid:3", 0)).collect();
        assert!(all.iter().all(Option::is_some));
        drop(all);
        assert!(!quotas.lock().contains_key("uid:3"), "nothing stays behind");
    }
}
