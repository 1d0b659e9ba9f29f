//! How transports reach the engine.

use std::sync::Arc;

use crate::error::Result;
use crate::inbox::{Command, Done, Drain, Inbox};
use crate::mailbox::Ticket;
use crate::model::{ModelInfo, ModelSource, Reloaded};
use crate::request::Request;
use crate::status::Status;
use crate::units::RequestId;

/// The engine as everybody else sees it. Cheap to clone; no call blocks for longer than a short lock.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    inbox: Arc<Inbox>,
}

impl EngineHandle {
    pub(crate) const fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox }
    }

    /// Queues a request. Its events come out of the ticket; dropping the ticket cancels it.
    ///
    /// # Errors
    /// The refusal, with `retry_after` where waiting helps.
    pub fn submit(&self, request: Request) -> Result<Ticket> {
        self.inbox.submit(request)
    }

    /// Cancels a request by id; its last event follows within one step. `false` when it has ended or never was.
    #[must_use]
    pub fn cancel(&self, id: RequestId) -> bool {
        self.inbox.cancel(id)
    }

    /// Makes the engine look around at once rather than when its idle time is over.
    pub fn wake(&self) {
        self.inbox.wake();
    }

    /// The engine as it last described itself.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        let state = self.inbox.lock();
        let mut status = Status::clone(&state.status);
        status.phase = state.phase;
        status.turns = state.turns;
        status.queued_requests = state.queue.len();
        status.queued_tokens = state.queue.tokens().0;
        status.counters.accepted = state.accepted;
        status.counters.refused = state.refused;
        status.counters.superseded = state.superseded;
        Arc::new(status)
    }

    /// The loaded model.
    #[must_use]
    pub fn model(&self) -> Option<Arc<ModelInfo>> {
        self.inbox.lock().model.clone()
    }

    /// Replaces the model. Where there is memory for two the new one is loaded and tested while the old one
    /// serves; else it is checked as far as can be without. Then the running requests are answered, and the new one
    /// takes over. A new one that fails changes nothing. Waiting requests go on if it is the same model (by digest),
    /// and fail with `model_changed` otherwise.
    pub fn reload(&self, source: Box<dyn ModelSource>, done: Done<Reloaded>) {
        self.inbox.command(Command::Reload(source, done));
    }

    /// Drops the model when the running requests are answered. Waiting requests wait for a reload.
    pub fn unload(&self, done: Done<()>) {
        self.inbox.command(Command::Unload(done));
    }

    /// Ends the engine thread. Every accepted request gets its last event first, those that wait at once.
    pub fn shutdown(&self, drain: Drain, done: Done<()>) {
        self.inbox.command(Command::Shutdown(drain, done));
    }
}
