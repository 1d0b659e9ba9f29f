//! From the queue to served, and back when memory is short.

use std::time::Duration;

use glm::Tokens;

use crate::answer::Event;
use crate::error::Error;
use crate::events;
use crate::inbox::Job;
use crate::request::Work;
use crate::scheduler::demand::Demand;
use crate::scheduler::queue::Waiting;
use crate::serving::{Entry, Served};
use crate::status::Phase;
use crate::units::Moment;

use super::Engine;

impl Engine {
    /// Starts requests in the order of service while their worst case fits.
    ///
    /// The first in the queue is never overtaken: what it needs comes free as
    /// others end.
    pub(super) fn admit(&mut self, now: Moment) {
        if self.loaded.is_none() || !self.suspects.is_empty() || self.is_waiting_to_change() {
            return;
        }
        while let Some((waiting, parts)) = self.next_that_fits(now) {
            let (waiting, error) = match waiting {
                Next::Fits(waiting) => {
                    self.start(waiting, parts, now);
                    continue;
                }
                Next::Late(waiting) => (waiting, Error::Deadline),
                Next::Stale(waiting) => (waiting, Error::ModelChanged),
                Next::Never(waiting) => (waiting, self.too_large()),
            };
            self.count(&error);
            let _ = waiting.payload.outbox().send(Event::Failed(error));
            self.inbox.forget(waiting.id);
        }
    }

    fn too_large(&self) -> Error {
        Error::Overloaded {
            reason: "the key/value cache is smaller than the request needs",
            retry_after: self.inbox.lock().retry_after(crate::units::RequestId(0)),
        }
    }

    /// Blocks that running requests may need at most.
    pub(super) fn reserved_blocks(&self) -> usize {
        self.running.iter().map(|s| s.demand.blocks * s.parts).sum()
    }

    fn reserved_sequences(&self) -> usize {
        self.running
            .iter()
            .map(|s| s.demand.sequences * s.parts)
            .sum()
    }

    fn next_that_fits(&self, now: Moment) -> Option<(Next, usize)> {
        let loaded = self.loaded.as_ref()?;
        let capabilities = &loaded.info.capabilities;
        let blocks = capabilities.blocks.saturating_sub(self.reserved_blocks());
        let sequences = self.sequences().saturating_sub(self.reserved_sequences());
        let mut state = self.inbox.lock();
        if state.phase != Phase::Ready && state.phase != Phase::Draining {
            return None;
        }
        let good_since = state.good_since;
        let (turn, waiting) = state.queue.first()?;
        let (demand, stale, service) = match &waiting.payload {
            Job::Fresh(request, _) => {
                let prompt = match &request.work {
                    Work::Generate(g) => (Tokens(g.prompt.tokens.len()), Tokens(g.max_tokens)),
                    work @ Work::Score(_) => (Tokens(work.cost()), Tokens(0)),
                };
                (
                    Demand::of(&request.work, capabilities),
                    request.epoch < good_since,
                    self.cost.service(prompt.0, prompt.1),
                )
            }
            Job::Paused(served) => (served.demand, served.epoch < good_since, Duration::ZERO),
        };
        let late = waiting
            .deadline
            .is_some_and(|deadline| now.after(service) > deadline);
        if late || stale {
            let waiting = state.queue.take(turn)?;
            let next = match late {
                true => Next::Late(waiting),
                false => Next::Stale(waiting),
            };
            return Some((next, 0));
        }
        // A request that needs more sequences than there are may still have them all.
        if sequences < demand.sequences && !self.running.is_empty() {
            return None;
        }
        let open = match &waiting.payload {
            Job::Fresh(..) => 0,
            Job::Paused(served) => served.open(),
        };
        match demand.parts_in(blocks, sequences) {
            parts if parts > 0 && parts >= open => {
                Some((Next::Fits(state.queue.take(turn)?), parts))
            }
            // Alone and still too large: the cache has shrunk since the request was accepted.
            _ if self.running.is_empty() => Some((Next::Never(state.queue.take(turn)?), 0)),
            _ => None,
        }
    }

    fn start(&mut self, waiting: Waiting<Job>, parts: usize, now: Moment) {
        let Some(loaded) = &self.loaded else { return };
        match waiting.payload {
            Job::Paused(mut served) => {
                served.parts = parts;
                served.open_items();
                self.running.push(*served);
            }
            Job::Fresh(request, outbox) => {
                let entry = Entry {
                    id: waiting.id,
                    submitted: waiting.submitted,
                    deadline: waiting.deadline,
                    started: now,
                    demand: Demand::of(&request.work, &loaded.info.capabilities),
                    parts,
                };
                match Served::start(request, outbox, entry, &loaded.banned) {
                    Ok(served) => self.running.push(served),
                    Err(error) => {
                        self.count(&error);
                        self.inbox.forget(waiting.id);
                    }
                }
            }
        }
    }

    /// Sends a served request back to the queue. It keeps its tokens and its turn, and gives up its memory.
    pub(super) fn preempt(&mut self, index: usize) {
        let mut served = self.running.remove(index);
        self.evict(&mut served);
        served.usage.preemptions += 1;
        self.counters.preemptions += 1;
        events::preempted(served.id);
        self.inbox.lock().queue.put_back(Waiting {
            id: served.id,
            cost: Tokens(served.remaining()),
            priority: served.priority,
            submitted: served.submitted,
            deadline: served.deadline,
            coalesce: None,
            payload: Job::Paused(Box::new(served)),
        });
    }
}

/// What becomes of the first in the queue.
enum Next {
    /// It runs.
    Fits(Waiting<Job>),
    /// It cannot be answered in time any more.
    Late(Waiting<Job>),
    /// It was made for another model.
    Stale(Waiting<Job>),
    /// It does not fit even alone.
    Never(Waiting<Job>),
}
