//! What the daemon tells the operator: one function an event.
//!
//! Never a prompt and never an answer. ERROR: something that was promised is
//! lost. WARN: the daemon helped itself or refuses somebody. INFO: the state
//! changed. DEBUG: a connection or request came or went.

use std::fmt::Display;
use std::path::Path;

use tracing::{debug, error, info, warn};

use crate::http::Peer;

pub(crate) fn starting(model: &Path) {
    info!(version = env!("CARGO_PKG_VERSION"), model = %model.display(), "glmd starts");
}

pub(crate) fn listening(address: &dyn Display) {
    info!(%address, "listening");
}

pub(crate) fn socket_taken_over(path: &Path) {
    warn!(path = %path.display(), "a socket that nobody serves was left behind and is replaced");
}

pub(crate) fn group_not_given(group: &str, reason: &dyn Display) {
    warn!(group, %reason, "the socket keeps the group of the process");
}

pub(crate) fn accept_failed(reason: &dyn Display) {
    warn!(%reason, "a connection could not be accepted");
}

pub(crate) fn connected(peer: &Peer) {
    debug!(%peer, pid = peer.pid(), "connection opened");
}

pub(crate) fn disconnected(peer: &Peer, reason: Option<&dyn Display>) {
    match reason {
        Some(reason) => debug!(%peer, %reason, "connection ended"),
        None => debug!(%peer, "connection closed"),
    }
}

pub(crate) fn too_many_connections(peer: &Peer) {
    warn!(%peer, "connection refused, too many are open");
}

pub(crate) fn ready(model: &str) {
    info!(model, "ready");
}

pub(crate) fn draining(seconds: u64) {
    info!(
        seconds,
        "no new requests; those that were accepted are answered"
    );
}

pub(crate) fn stopping_now() {
    warn!("asked twice: requests that are not answered yet fail");
}

pub(crate) fn stopped() {
    info!("glmd stopped");
}

pub(crate) fn reloading() {
    info!("configuration and model are reloaded");
}

pub(crate) fn reload_refused(reason: &dyn Display) {
    error!(%reason, "the reload changed nothing");
}

pub(crate) fn needs_restart(key: &str) {
    warn!(key, "the new value is used after a restart");
}

pub(crate) fn reloaded(model: &str, old_served: bool) {
    info!(model, old_served, "reloaded");
}
