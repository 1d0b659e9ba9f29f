//! From what the engine says to what clients read.

use std::time::Duration;

use glm_engine::Event;
use glm_engine::answer::{Finished, Reason};
use glm_engine::collect::Collected;
use glm_wire::error::ErrorDetail;
use glm_wire::{Timing, Usage};

/// What a shape knows about its request besides the events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// Identity as clients see it.
    pub id: &'a str,
    /// Time since the request was accepted.
    pub elapsed: Duration,
}

/// What an event adds to a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// Text, perhaps empty, and tokens, in the blank of an answer.
    Text {
        /// Which answer.
        choice: usize,
        /// Which blank.
        blank: usize,
        /// What was added.
        text: String,
    },
    /// An answer ended.
    Ended {
        /// Which answer.
        choice: usize,
        /// Why.
        reason: Reason,
    },
    /// Nothing that a stream tells.
    Other,
}

impl Change {
    /// What an event adds.
    pub(crate) fn of(event: &Event) -> Self {
        match event {
            Event::Part(part) => Self::Text {
                choice: part.choice,
                blank: part.blank,
                text: part.text.clone(),
            },
            Event::ChoiceEnded { choice, reason } => Self::Ended {
                choice: *choice,
                reason: *reason,
            },
            _ => Self::Other,
        }
    }
}

/// Tells the answer to one request, whole or in pieces.
pub(crate) trait Shape: Send {
    /// The JSON documents that a change adds to a stream; `so_far` has it already.
    ///
    /// None, where answers come whole.
    ///
    /// # Errors
    /// When it cannot be told.
    fn piece(
        &mut self,
        _facts: Facts<'_>,
        _change: &Change,
        _so_far: &Collected,
    ) -> Result<Vec<Vec<u8>>, ErrorDetail> {
        Ok(Vec::new())
    }

    /// The JSON documents that end a stream: the whole answer, where nothing went before it.
    ///
    /// # Errors
    /// When the answer cannot be told.
    fn last(&mut self, facts: Facts<'_>, all: &Collected) -> Result<Vec<Vec<u8>>, ErrorDetail> {
        Ok(vec![self.whole(facts, all)?])
    }

    /// The whole answer.
    ///
    /// # Errors
    /// When the answer cannot be told.
    fn whole(&mut self, facts: Facts<'_>, all: &Collected) -> Result<Vec<u8>, ErrorDetail>;
}

/// Cost in tokens as clients see it.
pub(crate) fn usage(finished: &Finished) -> Usage {
    let u = &finished.usage;
    Usage::new(u.prompt_tokens, u.completion_tokens, u.cached_tokens)
}

/// Cost in time as clients see it.
pub(crate) fn timing(finished: &Finished, elapsed: Duration) -> Timing {
    let t = &finished.timing;
    let ms = |time: Duration| {
        // Microseconds are what the clock is good for.
        (time.as_secs_f64() * 1e6).round() / 1e3
    };
    Timing {
        queue_ms: ms(t.queued),
        prefill_ms: ms(t.prefill),
        decode_ms: ms(t.decode),
        total_ms: ms(elapsed),
    }
}
