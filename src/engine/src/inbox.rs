//! Where transports and the engine thread meet: the queue, the commands and what the engine publishes.
//!
//! One lock, held for microseconds and never while a step runs. New requests
//! are checked and queued right here, so that a refusal is immediate and exact,
//! and a newer request replaces an older one even while a long step runs.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use glm::Tokens;

use crate::answer::Event;
use crate::error::{Error, Result};
use crate::mailbox::{Canceller, Outbox, Ticket, mailbox};
use crate::model::{ModelInfo, ModelSource, Reloaded};
use crate::request::{Request, Work};
use crate::scheduler::demand::Demand;
use crate::scheduler::queue::{CoalesceKey, Full, Queue, QueueLimits, Waiting};
use crate::serving::Served;
use crate::status::{Phase, Status};
use crate::units::{Clock, Epoch, Priority, RequestId};

/// Shortest and longest `retry_after`: a client should neither hammer nor go away.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));
/// When to ask again for a model that was unloaded for want of memory: levels fall no faster.
const RELOAD: Duration = Duration::from_secs(10);
/// Work a second that is assumed until some was measured, in tokens.
const FIRST_RATE: f64 = 20.0;

/// What happens to the accepted requests when the engine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Those that have begun are answered first, for at most this long; those that wait fail at once.
    For(Duration),
    /// They fail at once.
    Now,
}

/// Called on the engine thread when a command is done; must not block.
pub type Done<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// What an operator can ask of the engine thread.
pub(crate) enum Command {
    /// Replaces the model when the running requests are done.
    Reload(Box<dyn ModelSource>, Done<Reloaded>),
    /// Drops the model when the running requests are done, until a reload.
    Unload(Done<()>),
    /// Ends the thread.
    Shutdown(Drain, Done<()>),
}

/// What the engine does with new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Takes those of at least this priority.
    Open(Priority),
    /// Refuses all until memory is free again.
    Shut,
}

/// A request in the queue.
#[derive(Debug)]
pub(crate) enum Job {
    /// Not started yet.
    Fresh(Request, Outbox),
    /// Started, and waiting to go on.
    Paused(Box<Served>),
}

impl Job {
    pub(crate) fn outbox(&self) -> &Outbox {
        match self {
            Self::Fresh(_, outbox) => outbox,
            Self::Paused(served) => &served.outbox,
        }
    }
}

pub(crate) struct State {
    pub(crate) queue: Queue<Job>,
    pub(crate) commands: VecDeque<Command>,
    pub(crate) gate: Gate,
    pub(crate) phase: Phase,
    pub(crate) model: Option<Arc<ModelInfo>>,
    pub(crate) status: Arc<Status>,
    /// Tokens that running requests may still cost.
    pub(crate) running_tokens: usize,
    /// Measured tokens a second.
    pub(crate) rate: f64,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) superseded: u64,
    /// Grows with everything that the engine thread should look at.
    pub(crate) news: u64,
    /// Turns of the engine's loop that were begun.
    pub(crate) turns: u64,
    /// Prompts made for this loading of the model or a later one are good for the present one.
    pub(crate) good_since: Epoch,
    cancellers: HashMap<RequestId, Canceller>,
}

/// The meeting place.
pub(crate) struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
    pub(crate) clock: Arc<dyn Clock>,
    ids: AtomicU64,
    unread_tokens: usize,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl Inbox {
    pub(crate) fn new(clock: Arc<dyn Clock>, limits: QueueLimits, unread_tokens: usize) -> Self {
        Self {
            state: Mutex::new(State {
                queue: Queue::new(limits),
                commands: VecDeque::new(),
                gate: Gate::Open(Priority::Low),
                phase: Phase::Loading,
                model: None,
                status: Arc::default(),
                running_tokens: 0,
                rate: FIRST_RATE,
                accepted: 0,
                refused: 0,
                superseded: 0,
                news: 0,
                turns: 0,
                good_since: Epoch(0),
                cancellers: HashMap::new(),
            }),
            arrived: Condvar::new(),
            clock,
            ids: AtomicU64::new(1),
            unread_tokens,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can happen half way through a change: every change is a few assignments.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks and queues a request.
    pub(crate) fn submit(&self, request: Request) -> Result<Ticket> {
        let now = self.clock.now();
        let id = RequestId(self.ids.fetch_add(1, Ordering::Relaxed));
        let mut state = self.lock();
        if let Err(error) = state.admits(&request, id) {
            state.refused += 1;
            return Err(error);
        }
        let (outbox, ticket) = mailbox(id, self.unread_tokens);
        let canceller = outbox.canceller();
        let coalesce = request.coalesce_key.clone().map(|key| CoalesceKey {
            client: request.client.clone(),
            key,
        });
        let waiting = Waiting {
            id,
            cost: Tokens(request.work.cost()),
            priority: request.priority,
            submitted: now,
            deadline: request.deadline.map(|time| now.after(time)),
            coalesce,
            payload: Job::Fresh(request, outbox),
        };
        match state.queue.push(waiting) {
            Ok(replaced) => {
                state.accepted += 1;
                state.cancellers.insert(id, canceller);
                if let Some(older) = replaced {
                    state.superseded += 1;
                    state.cancellers.remove(&older.id);
                    let _ = older
                        .payload
                        .outbox()
                        .send(Event::Failed(Error::Superseded));
                }
                self.announce(state);
                Ok(ticket)
            }
            Err(full) => {
                let (bound, refused) = *full;
                state.refused += 1;
                let error = Error::Overloaded {
                    reason: match bound {
                        Full::Requests => "too many requests wait",
                        Full::Tokens => "the requests that wait cost too many tokens",
                    },
                    retry_after: state.retry_after(id),
                };
                drop(state);
                // Nobody holds its ticket, so nobody is told twice.
                drop(refused);
                Err(error)
            }
        }
    }

    /// Cancels a request; `false` when there is none that still runs or waits.
    pub(crate) fn cancel(&self, id: RequestId) -> bool {
        let state = self.lock();
        let found = state.cancellers.get(&id).is_some_and(Canceller::cancel);
        self.announce(state);
        found
    }

    /// Forgets a request that has ended.
    pub(crate) fn forget(&self, id: RequestId) {
        self.lock().cancellers.remove(&id);
    }

    pub(crate) fn command(&self, command: Command) {
        let mut state = self.lock();
        state.commands.push_back(command);
        self.announce(state);
    }

    /// Makes the engine thread look around.
    pub(crate) fn wake(&self) {
        self.announce(self.lock());
    }

    fn announce(&self, mut state: MutexGuard<'_, State>) {
        state.news += 1;
        drop(state);
        self.arrived.notify_one();
    }

    /// Sleeps until there is more news than `seen`, or `time` is over.
    pub(crate) fn wait(&self, seen: u64, time: Duration) {
        let state = self.lock();
        if state.news == seen {
            drop(
                self.arrived
                    .wait_timeout(state, time)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }
}

impl State {
    /// Counts a turn of the engine's loop; its news are what the turn is going to see.
    pub(crate) const fn begin_turn(&mut self) -> u64 {
        self.turns = self.turns.wrapping_add(1);
        self.news
    }

    /// Whether a request may be queued at all.
    fn admits(&self, request: &Request, id: RequestId) -> Result<()> {
        match self.phase {
            Phase::Draining | Phase::Stopped => return Err(Error::ShuttingDown),
            Phase::Loading | Phase::Unloaded | Phase::Idle | Phase::Ready => {}
        }
        let Some(model) = &self.model else {
            return Err(Error::NotLoaded {
                retry_after: self.retry_after(id),
            });
        };
        if self.phase == Phase::Unloaded {
            return Err(Error::NotLoaded {
                retry_after: self.retry_after(id).max(RELOAD),
            });
        }
        if request.epoch < self.good_since || request.epoch > model.epoch {
            return Err(Error::ModelChanged);
        }
        fits(&request.work, model)?;
        match self.gate {
            Gate::Open(lowest) if request.priority >= lowest => Ok(()),
            Gate::Open(_) => Err(Error::Overloaded {
                reason: "memory is short, low priority is not served",
                retry_after: self.retry_after(id),
            }),
            Gate::Shut => Err(Error::Overloaded {
                reason: "memory is short",
                retry_after: self.retry_after(id),
            }),
        }
    }

    /// Time in which the work at hand will be done, spread by up to a quarter so that the refused
    /// do not come back together.
    pub(crate) fn retry_after(&self, id: RequestId) -> Duration {
        let tokens = self.queue.tokens().0.saturating_add(self.running_tokens);
        #[allow(clippy::cast_precision_loss)] // An estimate.
        let seconds = tokens as f64 / self.rate.max(f64::MIN_POSITIVE);
        // Fibonacci hashing of the id: even, and no random numbers needed.
        let spread = id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        #[allow(clippy::cast_precision_loss)] // 32 bits are exact.
        let jitter = 1.0 + 0.25 * (spread as f64 / f64::from(u32::MAX));
        let (shortest, longest) = RETRY;
        Duration::try_from_secs_f64(seconds * jitter)
            .unwrap_or(longest)
            .clamp(shortest, longest)
    }
}

/// Refuses work that is malformed or could not run even alone.
fn fits(work: &Work, model: &ModelInfo) -> Result<()> {
    let input = |field: &str, reason: &str| {
        Err(Error::Invalid {
            code: "bad_input",
            message: format!("`{field}`: {reason}"),
        })
    };
    let contexts: Vec<_> = match work {
        Work::Generate(g) => {
            g.sampling.validate()?;
            if g.n == 0 || g.max_tokens == 0 {
                return input("n", "there must be at least one answer of one token");
            }
            if g.prompt_logprobs.is_some() && g.prompt.bidirectional > 0 {
                return input(
                    "echo",
                    "a text that is read in both directions has no log-probabilities",
                );
            }
            vec![&g.prompt]
        }
        Work::Score(items) => items.iter().map(|item| &item.prompt).collect(),
    };
    if contexts.is_empty() || contexts.iter().any(|c| c.tokens.is_empty()) {
        return input("text", "there must be at least one token to read");
    }
    if contexts.iter().any(|c| c.bidirectional > c.tokens.len()) {
        return input("text", "Part A is longer than the prompt");
    }
    let capabilities = &model.capabilities;
    let demand = Demand::of(work, capabilities);
    if demand.blocks > capabilities.blocks {
        return Err(Error::TooLarge {
            what: "blocks of the key/value cache",
            needed: demand.blocks,
            limit: capabilities.blocks,
        });
    }
    let longest = work.longest();
    if longest > capabilities.max_tokens {
        return Err(Error::TooLarge {
            what: "positions (prompt and answer)",
            needed: longest,
            limit: capabilities.max_tokens,
        });
    }
    // Without chunks a request that was interrupted is read again in one piece, answer included.
    let indivisible = match capabilities.chunked_prefill {
        true => contexts.iter().map(|c| c.bidirectional).max().unwrap_or(0),
        false => longest,
    };
    if indivisible > capabilities.max_step_tokens {
        return Err(Error::TooLarge {
            what: "tokens in one step",
            needed: indivisible,
            limit: capabilities.max_step_tokens,
        });
    }
    Ok(())
}
