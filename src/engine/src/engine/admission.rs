//! From the queue to served, and back when memory is short.

use std::time::Duration;

use glm::Tokens;

use crate::control::Admit;
use crate::error::Error;
use crate::events;
use crate::inbox::Job;
use crate::request::Work;
use crate::scheduler::demand::Demand;
use crate::scheduler::queue::Waiting;
use crate::serving::{Entry, Served};
use crate::units::Moment;

use super::Engine;

impl Engine {
    /// Starts requests in the order of service while their worst case fits.
    pub(super) fn admit(&mut self, now: Moment) {
        if self.loaded.is_none() || !self.suspects.is_empty() || self.is_waiting_to_change() {
            return;
        }
        while let Some(next) = self.next(now) {
            match next {
                Next::Fits(waiting, parts) => self.start(waiting, parts, now),
                Next::Ends(waiting, error) => self.dismiss(&waiting, error),
            }
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

    /// Takes the next request from the queue that can start or has to end.
    ///
    /// Nobody overtakes a request that only waits for others to end. A request
    /// that could not run now even alone is passed by: it delays nobody, and
    /// nobody delays it.
    fn next(&self, now: Moment) -> Option<Next> {
        let Admit::From(lowest) = self.allowance.admit else {
            return None;
        };
        let capabilities = &self.loaded.as_ref()?.info.capabilities;
        let pool = capabilities.blocks.min(self.allowance.blocks);
        let blocks = pool.saturating_sub(self.reserved_blocks());
        let sequences = self.sequences().saturating_sub(self.reserved_sequences());
        let mut state = self.inbox.lock();
        let mut found = None;
        for (turn, waiting) in state.queue.iter() {
            let epoch = match &waiting.payload {
                Job::Fresh(request, _) => request.epoch,
                Job::Paused(served) => served.epoch,
            };
            let service = self.service(&waiting.payload);
            let late = (waiting.deadline).is_some_and(|deadline| now.after(service) > deadline);
            let mut end = match () {
                () if late => Some(Error::Deadline),
                () if epoch < state.good_since => Some(Error::ModelChanged),
                () => None,
            };
            // While memory is short most of the queue may be passed by: that must cost next to nothing.
            if end.is_none() && waiting.priority < lowest {
                continue;
            }
            let (demand, open) = match &waiting.payload {
                Job::Fresh(request, _) => (Demand::of(&request.work, capabilities), 0),
                Job::Paused(served) => (served.demand, served.open()),
            };
            if end.is_none() && demand.blocks > capabilities.blocks {
                end = Some(Error::TooLarge {
                    what: "blocks of the key/value cache",
                    needed: demand.blocks,
                    limit: capabilities.blocks,
                });
            }
            if let Some(error) = end {
                found = Some((turn, Err(error)));
                break;
            }
            let least = demand.blocks.saturating_mul(open.max(1));
            if least > pool {
                continue;
            }
            // A request that needs more sequences than there are may still have them all, alone.
            let parts = match sequences < demand.sequences && !self.running.is_empty() {
                true => 0,
                false => demand.parts_in(blocks, sequences),
            };
            if parts > 0 && parts >= open {
                found = Some((turn, Ok(parts)));
            } else if self.running.is_empty() && least <= blocks {
                // Resumed under tighter limits than it was started with: alone it may go on.
                found = Some((turn, Ok(open)));
            }
            break;
        }
        let (turn, outcome) = found?;
        let waiting = state.queue.take(turn)?;
        Some(match outcome {
            Ok(parts) => Next::Fits(waiting, parts),
            Err(error) => Next::Ends(waiting, error),
        })
    }

    /// Time that a request will take at least, as far as is known.
    fn service(&self, job: &Job) -> Duration {
        match job {
            Job::Paused(_) => Duration::ZERO,
            Job::Fresh(request, _) => match &request.work {
                Work::Generate(g) => {
                    let read = Tokens(g.prompt.tokens.len());
                    self.cost.service(read, Tokens(g.max_tokens))
                }
                Work::Score(_) => self.cost.service(Tokens(request.work.cost()), Tokens(0)),
            },
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

/// What becomes of a request whose turn it is.
enum Next {
    /// It runs, with so many of its parts side by side.
    Fits(Waiting<Job>, usize),
    /// It cannot be served any more.
    Ends(Waiting<Job>, Error),
}
