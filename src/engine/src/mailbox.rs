//! The bounded way of an answer from the engine thread to its reader.
//!
//! The engine never waits for a reader. Parts that are not read yet are joined,
//! and when more tokens than the limit wait, the request is cancelled. The
//! engine's end delivers exactly one last event, whatever happens: dropping it
//! is a failure that the reader learns.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use crate::answer::{Event, Part};
use crate::error::Error;
use crate::units::RequestId;

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    unread: usize,
    ended: bool,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    cancelled: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held cannot leave the queue half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        self.arrived.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Both ends of a mailbox that holds at most `limit` unread tokens.
pub(crate) fn mailbox(id: RequestId, limit: usize) -> (Outbox, Ticket) {
    let shared = Arc::new(Shared::default());
    let outbox = Outbox {
        shared: Arc::clone(&shared),
        limit,
    };
    (outbox, Ticket { id, shared })
}

/// The engine's end.
pub(crate) struct Outbox {
    shared: Arc<Shared>,
    limit: usize,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Outbox {
    /// Sends an event; nothing is sent after a last one.
    ///
    /// # Errors
    /// [`Error::SlowReader`] when more tokens than the limit are unread.
    pub(crate) fn send(&self, event: Event) -> Result<(), Error> {
        let mut state = self.shared.lock();
        if state.ended {
            return Ok(());
        }
        state.ended = event.is_last();
        match event {
            Event::Part(part) => {
                if part.text.is_empty() && part.tokens.is_empty() {
                    return Ok(());
                }
                state.unread += part.tokens.len();
                join(&mut state.events, part);
            }
            Event::Prompt(tokens) => {
                // Bounded by the prompt, which was accepted: not the reader's fault.
                state.events.push_back(Event::Prompt(tokens));
            }
            other => state.events.push_back(other),
        }
        let unread = state.unread;
        self.shared.notify(state);
        if unread > self.limit {
            return Err(Error::SlowReader { unread });
        }
        Ok(())
    }

    /// Whether the owner gave the request up.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Relaxed)
    }

    /// A way to cancel the request that does not keep it alive.
    pub(crate) fn canceller(&self) -> Canceller {
        Canceller(Arc::downgrade(&self.shared))
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // Ignored after a last event; a request must never end in silence.
        let _ = self.send(Event::Failed(Error::Internal {
            reason: "the request was dropped without an answer",
        }));
    }
}

/// Joins a part to the last unread event when it continues it.
fn join(events: &mut VecDeque<Event>, part: Part) {
    if let Some(Event::Part(last)) = events.back_mut()
        && last.choice == part.choice
        && last.blank == part.blank
    {
        last.text.push_str(&part.text);
        last.tokens.extend(part.tokens);
        return;
    }
    events.push_back(Event::Part(part));
}

/// Cancels a request from elsewhere.
#[derive(Clone)]
pub(crate) struct Canceller(Weak<Shared>);

impl Canceller {
    /// Asks for the end; `false` when the request is gone.
    pub(crate) fn cancel(&self) -> bool {
        self.0.upgrade().is_some_and(|shared| {
            shared.cancelled.store(true, Ordering::Relaxed);
            !shared.lock().ended
        })
    }
}

/// An accepted request, and the reader's end of its answer. Dropping it cancels the request.
pub struct Ticket {
    id: RequestId,
    shared: Arc<Shared>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ticket").field(&self.id).finish()
    }
}

impl Ticket {
    /// Identity of the request.
    #[must_use]
    pub const fn id(&self) -> RequestId {
        self.id
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The next event, for hand-written futures; `Ready(None)` after the last.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut state = self.shared.lock();
        match take(&mut state) {
            Some(event) => Poll::Ready(Some(event)),
            None if state.ended => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The next event if there is one now.
    pub fn try_next(&mut self) -> Option<Event> {
        take(&mut self.shared.lock())
    }

    /// Waits for the next event; `None` after the last. For threads, not for async tasks.
    pub fn next_blocking(&mut self) -> Option<Event> {
        let mut state = self.shared.lock();
        loop {
            if let Some(event) = take(&mut state) {
                return Some(event);
            }
            if state.ended {
                return None;
            }
            state = self
                .shared
                .arrived
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks for the end. The last event still comes, at most one step later.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
        let mut state = self.shared.lock();
        state.events.clear();
        state.unread = 0;
    }
}

fn take(state: &mut State) -> Option<Event> {
    let event = state.events.pop_front()?;
    if let Event::Part(part) = &event {
        state.unread -= part.tokens.len();
    }
    Some(event)
}
