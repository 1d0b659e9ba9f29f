//! What a service manager is told: sd_notify(3).
//!
//! Without one nothing of it does anything.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use glm_engine::EngineHandle;
use glm_engine::status::{Phase, Status};
use sd_notify::NotifyState;

/// How often the start-up time is extended while the model loads, and by how much.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// How often the line of `systemctl status` may change: a person reads it.
const NEWS: Duration = Duration::from_secs(5);

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

/// Keeps the manager patient while the model loads. Never returns.
pub async fn loading() -> Infallible {
    let (every, more) = PATIENCE;
    loop {
        let micros = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
        tell(&[
            NotifyState::ExtendTimeoutUsec(micros),
            NotifyState::Status("Loading the model."),
        ]);
        tokio::time::sleep(every).await;
    }
}

/// Shows the manager that transports and engine are alive, and what they do. Never returns.
///
/// An engine that finishes no turn of its loop for the watchdog's whole time is not alive.
pub async fn live(engine: &EngineHandle) -> Infallible {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    let watchdog = sd_notify::watchdog_enabled();
    // Half of the time, as sd_watchdog_enabled(3) advises.
    let pause = watchdog.map_or(NEWS, |time| NEWS.min(time / 2));
    let mut pulse = Pulse::default();
    let mut told = String::new();
    loop {
        let status = engine.status();
        if let Some(time) = watchdog
            && pulse.is_felt(Instant::now(), &status, time)
        {
            tell(&[NotifyState::Watchdog]);
        }
        let model = engine.model();
        let line = line(model.as_ref().map(|info| info.id.as_str()), &status);
        if line != told {
            tell(&[NotifyState::Status(&line)]);
            told = line;
        }
        tokio::time::sleep(pause).await;
    }
}

/// One line for `systemctl status`.
fn line(model: Option<&str>, status: &Status) -> String {
    match (model, status.phase) {
        (Some(model), Phase::Ready) => format!(
            "Serving {model} on {}: {} running, {} waiting, memory {}.",
            status.backend.unwrap_or("no backend"),
            status.running.len(),
            status.queued_requests,
            status.level.name()
        ),
        (Some(model), Phase::Idle) => {
            format!("Nobody asks: {model} is loaded with the next request.")
        }
        (_, phase) => format!("The model is not served: {}.", phase.name()),
    }
}

/// Whether the engine's loop goes round.
#[derive(Debug, Default)]
struct Pulse {
    /// Turns at the last change, and when that was seen.
    last: Option<(u64, Instant)>,
}

impl Pulse {
    fn is_felt(&mut self, now: Instant, status: &Status, time: Duration) -> bool {
        match self.last {
            // A model takes as long to load as the disk wants; the manager was asked for time when it started.
            Some((turns, since)) if turns == status.turns && status.phase != Phase::Loading => {
                now.saturating_duration_since(since) < time
            }
            _ => {
                self.last = Some((status.turns, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_has_no_pulse() {
        let mut pulse = Pulse::default();
        let start = Instant::now();
        let mut felt = |seconds, turns, phase| {
            let status = Status {
                phase,
                turns,
                ..Status::default()
            };
            let now = start + Duration::from_secs(seconds);
            pulse.is_felt(now, &status, Duration::from_secs(30))
        };
        assert!(felt(0, 5, Phase::Ready));
        assert!(felt(15, 5, Phase::Ready), "a long step");
        assert!(!felt(30, 5, Phase::Ready), "stuck");
        assert!(felt(40, 6, Phase::Ready), "it was only slow");
        assert!(felt(100, 6, Phase::Loading), "a reload takes its time");
        assert!(felt(120, 6, Phase::Ready));
        assert!(!felt(131, 6, Phase::Ready), "stuck again");
    }

    #[test]
    fn the_line_says_what_is_served() {
        let mut status = Status {
            phase: Phase::Ready,
            backend: Some("tract-paged"),
            queued_requests: 2,
            ..Status::default()
        };
        assert_eq!(
            line(Some("glm-mini"), &status),
            "Serving glm-mini on tract-paged: 0 running, 2 waiting, memory green."
        );
        status.phase = Phase::Idle;
        assert_eq!(
            line(Some("glm-mini"), &status),
            "Nobody asks: glm-mini is loaded with the next request."
        );
        status.phase = Phase::Unloaded;
        assert_eq!(line(None, &status), "The model is not served: unloaded.");
    }
}
