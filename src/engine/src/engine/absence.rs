//! The model gone for a while: memory is short, or nobody asks.
//!
//! Its description stays, so that prompts are still understood, and requests
//! that were accepted wait. It comes back by itself: when there is memory again
//! and, where nobody asked, when somebody does.

use crate::events;
use crate::memory;
use crate::status::Phase;
use crate::units::Moment;

use super::Engine;

/// Why the model is gone although it will come back by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// The governor said so; new requests are refused.
    Memory,
    /// Nobody asked anything; a new request brings it back.
    Idle,
}

impl Engine {
    /// Unloads the model when nobody has asked for long enough, and loads it when it may come back.
    pub(super) fn come_and_go(&mut self, now: Moment) {
        let waits = !self.inbox.lock().queue.is_empty();
        let changes = self.ending.is_some() || self.coming.is_some();
        if waits || changes || !self.running.is_empty() {
            self.busy = now;
        }
        if self.loaded.is_some() {
            let idle = now.since(self.busy);
            if self.config.idle_unload.is_some_and(|most| idle >= most) {
                events::idle(idle);
                self.leave(Absence::Idle);
            }
            return;
        }
        let wanted = match self.absence {
            None => false,
            Some(Absence::Memory) => true,
            Some(Absence::Idle) => waits,
        };
        if wanted && self.allowance.loaded {
            self.come_back();
        }
    }

    /// Gives up the model; requests keep their tokens and wait.
    pub(super) fn leave(&mut self, why: Absence) {
        while !self.running.is_empty() {
            self.preempt(self.running.len() - 1);
        }
        self.unload();
        memory::trim();
        self.absence = Some(why);
        let mut state = self.inbox.lock();
        if state.phase == Phase::Ready {
            state.phase = match why {
                Absence::Memory => Phase::Unloaded,
                Absence::Idle => Phase::Idle,
            };
        }
    }

    fn come_back(&mut self) {
        let mut state = self.inbox.lock();
        // No turn ends before it is loaded, and nobody should take that for a loop that stands still.
        if state.phase != Phase::Draining {
            state.phase = Phase::Loading;
        }
        drop(state);
        let _ = self.load_or_give_up();
    }
}
