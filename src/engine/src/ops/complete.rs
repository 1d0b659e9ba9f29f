//! Go on from a text.

use std::sync::Arc;

use glm::prompt::{Filling, Order, Truncation};
use glm::sampling::SamplingParams;
use glm::spec::SpecialIds;
use glm::tokenizer::Tokenizer;

use crate::answer::{Reason, Timing, Usage};
use crate::collect::{Choice, Collected};
use crate::constraint::{Grammar, Lead};
use crate::error::Result;
use crate::request::{Generate, Work};

use super::budget::Budget;
use super::tokens::{TextToken, with_text};
use super::writer::Blanks;
use super::{Finish, Operations, Planned, Sampling, Terms, context};

/// Most tokens of an answer where nobody says how long: a paragraph.
pub(super) const USUAL_LENGTH: usize = 256;

/// A text to go on from. Nothing in it is a blank: `[MASK]` is six characters here.
#[derive(Clone, Debug, PartialEq)]
pub struct Complete {
    /// The text.
    pub text: String,
    /// Most tokens to write.
    pub max_tokens: Option<usize>,
    /// Number of answers.
    pub n: usize,
    /// How tokens are chosen; the default draws from the model's own distribution.
    pub sampling: Sampling,
    /// Repeat the text before each answer.
    pub echo: bool,
    /// What happens to a text that is too long: cut away is its beginning.
    pub truncation: Truncation,
    /// What the answer must look like.
    pub format: Option<Grammar>,
}

impl Complete {
    /// One answer, all else as usual.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            max_tokens: None,
            n: 1,
            sampling: Sampling::default(),
            echo: false,
            truncation: Truncation::default(),
            format: None,
        }
    }
}

/// The answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Completed {
    /// The answers.
    pub choices: Vec<CompletedChoice>,
    /// Tokens of the text with their log-probabilities, where `echo` and `logprobs` ask for them.
    pub prompt: Vec<TextToken>,
    /// Tokens of the text that were cut away to make it fit.
    pub removed: usize,
    /// What it has cost.
    pub usage: Usage,
    /// Where the time went.
    pub timing: Timing,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletedChoice {
    /// Its text, after the prompt's where `echo` asks for it.
    pub text: String,
    /// Its tokens, without the one that ended it; their offsets count from the end of the prompt.
    pub tokens: Vec<TextToken>,
    /// Why it ended.
    pub finish: Finish,
}

/// Makes a [`Completed`].
#[derive(Debug)]
pub struct CompleteReader {
    tokenizer: Arc<Tokenizer>,
    special: SpecialIds,
    echo: Option<String>,
    removed: usize,
}

impl Operations {
    /// Plans the continuation of a text.
    ///
    /// # Errors
    /// When the text is empty and the family needs one, or does not fit.
    pub fn complete(&self, ask: Complete, terms: Terms) -> Result<Planned<CompleteReader>> {
        let tokenizer = &self.model.tokenizer;
        let room = self.model.capabilities.max_tokens;
        let budget = Budget::new(room, ask.max_tokens, vec![USUAL_LENGTH])?;
        let ids = tokenizer.encode_plain(&ask.text)?;
        let prompt = self.layout.complete(ids, budget.fit(ask.truncation))?;
        let limits = budget.limits(prompt.tokens.len());
        let filling = Filling::new(&self.layout, &prompt, &limits, Order::Pieces);
        // Part A is read in both directions: its tokens have no probability of their own.
        let prompt_logprobs = match prompt.bidirectional {
            0 if ask.echo => ask.sampling.logprobs,
            _ => None,
        };
        let work = Generate {
            prompt: context(&prompt),
            // An answer of a form is that form and nothing before it.
            writer: Box::new(Blanks::new(filling, ask.format.is_some())),
            sampling: ask.sampling.over(SamplingParams::default()),
            n: ask.n,
            max_tokens: limits.iter().sum(),
            constraint: self.constraint(ask.format.as_ref(), Lead::Space)?,
            prompt_logprobs,
        };
        Ok(Planned {
            request: self.request(Work::Generate(Box::new(work)), terms),
            reader: CompleteReader {
                tokenizer: Arc::clone(tokenizer),
                special: self.layout.special().clone(),
                echo: ask.echo.then_some(ask.text),
                removed: prompt.removed,
            },
        })
    }
}

impl CompleteReader {
    /// The typed result.
    #[must_use]
    pub fn read(&self, collected: &Collected) -> Completed {
        Completed {
            choices: collected.choices.iter().map(|c| self.choice(c)).collect(),
            prompt: with_text(&self.tokenizer, &collected.prompt, |_| false),
            removed: self.removed,
            usage: collected.finished.usage,
            timing: collected.finished.timing,
        }
    }

    /// Text that comes before each answer, where `echo` asks for it: the first delta of a stream.
    #[must_use]
    pub fn echo(&self) -> Option<&str> {
        self.echo.as_deref()
    }

    fn choice(&self, choice: &Choice) -> CompletedChoice {
        let tokens: Vec<_> = choice.tokens().cloned().collect();
        let answer = choice.text();
        CompletedChoice {
            text: match &self.echo {
                Some(prompt) => format!("{prompt}{answer}"),
                None => answer,
            },
            tokens: with_text(&self.tokenizer, &tokens, |id| self.special.ends_answer(id)),
            finish: finish(choice.reason),
        }
    }
}

/// An answer without a reason has not ended; whoever reads it early cut it.
pub(super) const fn finish(reason: Option<Reason>) -> Finish {
    match reason {
        Some(Reason::Complete | Reason::Stop(_)) => Finish::Stop,
        Some(Reason::Length) | None => Finish::Length,
    }
}
