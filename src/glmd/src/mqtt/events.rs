//! What an operator should know about MQTT: log lines, and figures beside them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::link::settings::Address;

/// Figures since the start of the process.
#[derive(Debug, Default)]
pub struct Figures {
    /// Connections that were accepted.
    pub connections: AtomicU64,
    /// Messages that the broker delivered again.
    pub redelivered: AtomicU64,
    /// Requests that were answered from the journal.
    pub repeated: AtomicU64,
    /// Messages that were not published for want of room, or because the broker does not take them.
    pub dropped: AtomicU64,
    /// Messages that were no requests.
    pub ignored: AtomicU64,
    /// Answers that were published without a copy on the disk.
    pub journal_failures: AtomicU64,
}

/// The figures of this process; a process has one session.
pub static FIGURES: Figures = Figures {
    connections: AtomicU64::new(0),
    redelivered: AtomicU64::new(0),
    repeated: AtomicU64::new(0),
    dropped: AtomicU64::new(0),
    ignored: AtomicU64::new(0),
    journal_failures: AtomicU64::new(0),
};

fn count(figure: &AtomicU64) {
    figure.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn connected(broker: &Address, session_present: bool) {
    count(&FIGURES.connections);
    info!(?broker, session_present, "Connected to the MQTT broker.");
}

pub(super) fn lost(broker: &Address, reason: &str, wait: Duration) {
    let wait_s = wait.as_secs_f64();
    warn!(?broker, reason, wait_s, "No connection to the MQTT broker.");
}

pub(super) fn subscription_refused(filters: &str) {
    error!(
        filters,
        "The MQTT broker refused subscriptions; allow them in its access list."
    );
}

pub(super) fn redelivered() {
    count(&FIGURES.redelivered);
}

pub(super) fn postponed() {
    warn!(
        "The MQTT broker handed over more requests than there is room for; they are left with it until those that are here are answered."
    );
}

pub(super) fn repeated() {
    count(&FIGURES.repeated);
    debug!("Answered a repeated request from the journal.");
}

pub(super) fn dropped(what: &str) {
    count(&FIGURES.dropped);
    debug!(what, "Dropped a message.");
}

pub(super) fn ignored(reason: &str) {
    count(&FIGURES.ignored);
    debug!(reason, "Ignored a message.");
}

pub(super) fn refused(code: &str) {
    debug!(code, "Refused a request.");
}

pub(super) fn answer_refused(reason: &str) {
    warn!(
        reason,
        "The MQTT broker did not take an answer; its access list may forbid the response topic."
    );
}

pub(super) fn journal_failed(reason: &str) {
    count(&FIGURES.journal_failures);
    error!(
        reason,
        "Cannot keep answers for repetitions; after a crash a request may be answered twice."
    );
}
