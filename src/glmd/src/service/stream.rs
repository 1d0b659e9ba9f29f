//! An answer that is under way: read piece by piece or as a whole.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use glm_engine::collect::Collected;
use glm_engine::{Error, Event, Ticket};
use glm_wire::error::ErrorDetail;

use super::shape::{Change, Facts, Shape};
use super::{Watch, failure, registry};

/// JSON documents that tell an answer as it is written. Dropping it cancels the request.
pub struct Stream {
    ticket: Ticket,
    id: String,
    shape: Box<dyn Shape>,
    watch: Watch,
    /// Whether pieces are wanted; a whole answer does without.
    pieces: bool,
    collected: Collected,
    ready: VecDeque<Vec<u8>>,
    /// Why it ended without an answer; told once.
    failed: Option<ErrorDetail>,
    ended: bool,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(ticket: Ticket, shape: Box<dyn Shape>, watch: Watch, pieces: bool) -> Self {
        Self {
            id: registry::public(ticket.id()),
            ticket,
            shape,
            watch,
            pieces,
            collected: Collected::default(),
            ready: VecDeque::new(),
            failed: None,
            ended: false,
        }
    }

    /// Identity of the request as clients see it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The next document; `None` after the last. An error is the end too.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>, ErrorDetail>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next document, for hand-written futures.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Vec<u8>, ErrorDetail>>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if let Some(error) = self.failed.take() {
                return Poll::Ready(Some(Err(error)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            ready!(self.poll_event(cx));
        }
    }

    /// The whole answer, after the last piece: for transports on which pieces may be lost.
    ///
    /// # Errors
    /// When the answer cannot be told.
    pub fn all(&mut self) -> Result<Vec<u8>, ErrorDetail> {
        let facts = Facts {
            id: &self.id,
            elapsed: self.watch.elapsed(),
        };
        self.shape.whole(facts, &self.collected)
    }

    /// Waits until the request has left the queue.
    pub(super) async fn begin(&mut self) -> Result<(), ErrorDetail> {
        poll_fn(|cx| self.poll_event(cx)).await;
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Waits for the whole answer.
    pub(super) async fn whole(&mut self) -> Result<Vec<u8>, ErrorDetail> {
        while !self.ended {
            poll_fn(|cx| self.poll_event(cx)).await;
        }
        match (self.failed.take(), self.ready.pop_front()) {
            (Some(error), _) => Err(error),
            (None, Some(answer)) => Ok(answer),
            (None, None) => Err(failure::detail(&SILENT)),
        }
    }

    /// Takes in one event.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let event = ready!(self.ticket.poll_next(cx)).unwrap_or(Event::Failed(SILENT));
        self.watch.saw(&event);
        if let Err(error) = self.take(event) {
            self.failed = Some(error);
            self.ended = true;
        }
        Poll::Ready(())
    }

    fn take(&mut self, event: Event) -> Result<(), ErrorDetail> {
        let facts = Facts {
            id: &self.id,
            elapsed: self.watch.elapsed(),
        };
        let change = Change::of(&event);
        let ended = self
            .collected
            .push(event)
            .map_err(|e| failure::detail(&e))?;
        let all = &self.collected;
        let shape = &mut self.shape;
        match (ended, self.pieces) {
            (false, true) => self.ready.extend(shape.piece(facts, &change, all)?),
            (false, false) => {}
            (true, true) => self.ready.extend(shape.last(facts, all)?),
            (true, false) => self.ready.push_back(shape.whole(facts, all)?),
        }
        self.ended = ended;
        Ok(())
    }
}

/// The mailbox excludes it.
const SILENT: Error = Error::Internal {
    reason: "the answer ended without a last event",
};
