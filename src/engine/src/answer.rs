//! What the engine answers: a stream of events that ends with exactly one [`Event::Finished`] or [`Event::Failed`].

use std::time::Duration;

use glm::TokenId;

use crate::error::Error;

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// The token.
    pub id: TokenId,
    /// Natural log of its probability, when asked for.
    pub logprob: Option<f64>,
    /// The most probable tokens in its place, best first, when asked for.
    pub top: Vec<(TokenId, f64)>,
}

/// A part of an answer. Neighbouring parts are joined when the reader is slow.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Which of the `n` answers.
    pub choice: usize,
    /// Which blank of the prompt.
    pub blank: usize,
    /// Text that is certain: whole characters, nothing that may become a stop string.
    pub text: String,
    /// Tokens sampled since the last part. Their text may still be held back.
    pub tokens: Vec<Token>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The model ended it.
    Complete,
    /// A stop string was found: its index.
    Stop(usize),
    /// It reached `max_tokens`, or the model has no more positions.
    Length,
}

impl Reason {
    /// OpenAI's `finish_reason`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete | Self::Stop(_) => "stop",
            Self::Length => "length",
        }
    }
}

/// What a request has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, counted once however many answers share it.
    pub prompt_tokens: usize,
    /// Of these, tokens that were found in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens sampled.
    pub completion_tokens: usize,
    /// Tokens computed, with those computed again after a preemption.
    pub computed_tokens: usize,
    /// Times that the request had to give up its memory and start over.
    pub preemptions: usize,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From submission to the first step.
    pub queued: Duration,
    /// From the first step to the first token or score.
    pub prefill: Duration,
    /// From there to the end.
    pub decode: Duration,
}

/// Log-probability of every token of every candidate of every item, in the order of the request.
pub type Scores = Vec<Vec<Vec<f64>>>;

/// The end of a request that succeeded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Finished {
    /// What it has cost.
    pub usage: Usage,
    /// Where the time went.
    pub timing: Timing,
    /// Scores, for [`Work::Score`](crate::request::Work::Score).
    pub scores: Scores,
}

/// What happens to an accepted request, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It left the queue.
    Started {
        /// Time from submission.
        queued: Duration,
    },
    /// Log-probabilities of the prompt; the first token has none.
    Prompt(Vec<Token>),
    /// A part of an answer.
    Part(Part),
    /// An answer ended; the request goes on until all have.
    ChoiceEnded {
        /// Which of the `n` answers.
        choice: usize,
        /// Why.
        reason: Reason,
    },
    /// The last event: all is there.
    Finished(Box<Finished>),
    /// The last event: nothing more will come.
    Failed(Error),
}

impl Event {
    /// Whether it is the last.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Finished(_) | Self::Failed(_))
    }
}
