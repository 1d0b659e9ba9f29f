//! What systemd is told and what it hands over: sd_notify(3), sd_listen_fds(3).
//!
//! Without systemd nothing of it does anything.

use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use glm_engine::EngineHandle;
use listenfd::ListenFd;
use sd_notify::NotifyState;

/// How often the start-up time is extended while the model loads, and by how much.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// The socket that systemd listens on for us, if it does.
///
/// A half-set environment is no activation: `LISTEN_PID` must be ours.
#[must_use]
pub fn inherited_socket() -> Option<UnixListener> {
    ListenFd::from_env().take_unix_listener(0).ok().flatten()
}

/// Requests are answered now.
pub fn ready(model: &str) {
    tell(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("Serving {model}.")),
    ]);
}

/// No new requests are taken.
pub fn stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("Answering what was accepted."),
    ]);
}

/// Configuration and model are read again.
pub fn reloading() {
    let mut states = vec![NotifyState::Status("Reloading.")];
    // `Type=notify-reload` wants to know since when.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        states.extend([NotifyState::Reloading, now]);
    }
    tell(&states);
}

fn tell(states: &[NotifyState<'_>]) {
    // Nobody may be listening, and the daemon does not depend on it.
    let _ = sd_notify::notify(states);
}

/// Keeps systemd patient while the model loads. Never returns.
pub async fn loading() -> Infallible {
    let (every, more) = PATIENCE;
    loop {
        let micros = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::ExtendTimeoutUsec(micros)]);
        tokio::time::sleep(every).await;
    }
}

/// Shows the watchdog that transports and engine are alive, if it wants to know. Never returns.
///
/// An engine that has work and finishes no step for the watchdog's whole time is not alive.
pub async fn live(engine: &EngineHandle) -> Infallible {
    let Some(time) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut progress = Progress::default();
    loop {
        let status = engine.status();
        let busy = status.queued_requests > 0 || !status.running.is_empty();
        if progress.is_alive(Instant::now(), status.counters.steps, busy, time) {
            tell(&[NotifyState::Watchdog]);
        }
        // Half of the time, as sd_watchdog_enabled(3) advises.
        tokio::time::sleep(time / 2).await;
    }
}

/// Whether steps are finished while there is work.
#[derive(Debug, Default)]
struct Progress {
    /// Steps at the last change, and when that was seen.
    last: Option<(u64, Instant)>,
}

impl Progress {
    fn is_alive(&mut self, now: Instant, steps: u64, busy: bool, time: Duration) -> bool {
        match self.last {
            Some((seen, since)) if busy && seen == steps => {
                now.saturating_duration_since(since) < time
            }
            _ => {
                self.last = Some((steps, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_stuck_is_not_alive() {
        let mut progress = Progress::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let time = Duration::from_secs(30);
        assert!(progress.is_alive(at(0), 5, false, time));
        assert!(progress.is_alive(at(100), 5, false, time), "nothing to do");
        assert!(progress.is_alive(at(115), 5, true, time), "just begun");
        assert!(!progress.is_alive(at(145), 5, true, time), "stuck");
        assert!(
            progress.is_alive(at(160), 6, true, time),
            "it was only slow"
        );
    }
}
