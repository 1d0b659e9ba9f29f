//! Ctrl-C ends a request, not the shell.

use crate::failure::{Failure, Result};

/// Waits for `work`, or drops it at Ctrl-C: what it asked for is then cancelled in the daemon.
pub async fn or_done<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        pressed = tokio::signal::ctrl_c() => match pressed {
            Ok(()) => Err(Failure::Interrupted),
            Err(e) => Err(Failure::io("signals", e)),
        },
    }
}
