//! What the engine can be asked: plain data, made by transports from parsed messages.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use glm::Placed;
use glm::TokenId;
use glm::sampling::SamplingParams;

use crate::error::Result;
use crate::units::{Epoch, Priority};

/// What the model reads before it writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The tokens, in order.
    pub tokens: Vec<Placed>,
    /// Length of the beginning whose tokens all see each other (Part A); 0 for causal families.
    pub bidirectional: usize,
}

/// What follows a sampled token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The model reads these (the sampled token, or the start of the next piece) and goes on.
    Feed(Vec<Placed>),
    /// The model reads a new context from its beginning.
    Restart(Context),
    /// The answer is complete.
    Done,
}

/// Decides what the model reads after each sampled token: the state machine of one answer.
///
/// Deterministic: its decisions depend on the tokens alone.
pub trait Writer: Send + fmt::Debug {
    /// Index of the blank that the next sampled token belongs to; 0 when there is only one.
    fn blank(&self) -> usize;

    /// Whether `id` would be part of the answer, rather than end a piece.
    fn is_text(&self, id: TokenId) -> bool;

    /// Takes a sampled token.
    ///
    /// # Errors
    /// When the token leads nowhere; the answer fails with the error.
    fn push(&mut self, sampled: TokenId) -> Result<Next>;

    /// Takes a sampled token that completes a stop string: it is the last of its piece.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    fn cut(&mut self, sampled: TokenId) -> Result<Next> {
        let _ = sampled;
        Ok(Next::Done)
    }

    /// Whether a piece begins with its first word: vocabularies whose words carry the space before
    /// them would begin it with that space.
    fn trims(&self) -> bool {
        false
    }

    /// Most tokens that the model reads beyond the prompt and one for each sampled token: the starts of
    /// pieces that follow a piece cut short. The answer fails if it reads more.
    fn overhead(&self) -> usize;

    /// Whether it may answer [`Next::Restart`]: such answers stop sharing the memory of their prompt.
    fn restarts(&self) -> bool;

    /// A writer in the same state, for another answer to the same prompt.
    fn fork(&self) -> Box<dyn Writer>;
}

/// Restricts an answer to a language: a JSON schema, a list of choices.
pub trait Constraint: Send + fmt::Debug {
    /// Sets the logits of the tokens that must not come next to minus infinity.
    ///
    /// # Errors
    /// When no token may come next or the constraint cannot be evaluated.
    fn restrict(&mut self, logits: &mut [f32]) -> Result<()>;

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// When the token is not allowed.
    fn accept(&mut self, id: TokenId) -> Result<()>;

    /// A constraint in the same state, for another answer to the same prompt.
    fn fork(&self) -> Box<dyn Constraint>;
}

/// Text to be written.
#[derive(Debug)]
pub struct Generate {
    /// What the model reads first; not empty. The logits of its last token predict the first new one.
    pub prompt: Arc<Context>,
    /// What it reads then.
    pub writer: Box<dyn Writer>,
    /// How tokens are chosen. Answer `k` of `n` uses seed `seed + k`.
    pub sampling: SamplingParams,
    /// Number of answers, which share the prompt.
    pub n: usize,
    /// Most sampled tokens of one answer, over all its blanks.
    pub max_tokens: usize,
    /// Language of the answer.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Also report the log-probability of each prompt token with this many alternatives (causal prompts).
    pub prompt_logprobs: Option<usize>,
}

/// One prompt and the continuations whose probability is wanted.
#[derive(Clone, Debug)]
pub struct ScoreItem {
    /// What the model reads first; not empty.
    pub prompt: Arc<Context>,
    /// Continuations; each shares the prompt.
    pub candidates: Vec<Vec<Placed>>,
}

/// What to do.
#[derive(Debug)]
pub enum Work {
    /// Write: fill blanks, complete, chat.
    Generate(Box<Generate>),
    /// Give the log-probability of every token of every candidate: classification, perplexity.
    Score(Vec<ScoreItem>),
}

/// A request as a transport submits it.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub work: Work,
    /// Model that the prompt was made for: [`ModelInfo::epoch`](crate::model::ModelInfo::epoch).
    pub epoch: Epoch,
    /// How urgent it is.
    pub priority: Priority,
    /// Time from submission in which the whole answer must be there.
    pub deadline: Option<Duration>,
    /// A later request of the same client with the same key replaces this one while it waits.
    pub coalesce_key: Option<Box<str>>,
    /// Who asks, as `status` shows it.
    pub client: Box<str>,
}

impl Generate {
    /// Most tokens that follow the prompt in one answer.
    #[must_use]
    pub fn growth(&self) -> usize {
        self.max_tokens.saturating_add(self.writer.overhead())
    }
}

impl Work {
    /// Tokens that the work may cost at most: read once and written.
    #[must_use]
    pub fn cost(&self) -> usize {
        match self {
            Self::Generate(g) => {
                g.n.saturating_mul(g.max_tokens)
                    .saturating_add(g.prompt.tokens.len())
            }
            Self::Score(items) => items
                .iter()
                .map(|item| {
                    item.candidates
                        .iter()
                        .map(|c| c.len().saturating_sub(1))
                        .fold(item.prompt.tokens.len(), usize::saturating_add)
                })
                .fold(0, usize::saturating_add),
        }
    }

    /// Length of the longest sequence that the work may grow to.
    #[must_use]
    pub fn longest(&self) -> usize {
        match self {
            Self::Generate(g) => g.prompt.tokens.len().saturating_add(g.growth()),
            Self::Score(items) => items
                .iter()
                .map(|item| {
                    let longest = item.candidates.iter().map(Vec::len).max().unwrap_or(0);
                    item.prompt
                        .tokens
                        .len()
                        .saturating_add(longest.saturating_sub(1))
                })
                .max()
                .unwrap_or(0),
        }
    }
}
