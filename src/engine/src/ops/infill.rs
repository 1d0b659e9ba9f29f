//! Fill the blanks of a text.

use std::sync::Arc;

use glm::cloze::Pattern;
use glm::manifest::Task;
use glm::prompt::{Blank, Filling, Fit, Join, Order, Prompt, Truncation, fill};
use glm::sampling::SamplingParams;
use glm::spec::SpecialIds;
use glm::tokenizer::{MaskKind, Piece, Tokenizer};

use crate::answer::{Timing, Usage};
use crate::collect::{Choice, Collected, Filled};
use crate::constraint::{Grammar, Lead};
use crate::error::Result;
use crate::request::{Generate, Work};

use super::budget::Budget;
use super::writer::Blanks;
use super::{Finish, Operations, Planned, Sampling, Terms, context};

/// Most tokens of a blank where nobody says how long: a few words, a sentence, a paragraph.
const fn usual_length(kind: MaskKind) -> usize {
    match kind {
        MaskKind::Span => 32,
        MaskKind::Sentence => 64,
        MaskKind::Document => 256,
    }
}

/// A text with blanks.
#[derive(Debug)]
pub struct Infill {
    /// The text. Without a task its `[MASK]`, `[sMASK]` and `[gMASK]` are the blanks; with one it is
    /// text, whatever it says.
    pub text: String,
    /// A named task of the model, whose pattern has the blanks.
    pub task: Option<String>,
    /// Most tokens of each blank.
    pub max_tokens: Option<usize>,
    /// Number of answers.
    pub n: usize,
    /// How tokens are chosen; the default takes the best.
    pub sampling: Sampling,
    /// How several blanks are filled.
    pub order: Order,
    /// What happens to a text that is too long.
    pub truncation: Truncation,
    /// What each blank must look like; a task's own form when absent. With a task, strings marked as
    /// quoted are of the text ([`Grammar::quoting`]).
    pub format: Option<Grammar>,
}

impl Infill {
    /// One answer to a text with blanks, all else as usual.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            task: None,
            max_tokens: None,
            n: 1,
            sampling: Sampling::default(),
            order: Order::default(),
            truncation: Truncation::default(),
            format: None,
        }
    }
}

/// The filled text.
#[derive(Clone, Debug, PartialEq)]
pub struct Infilled {
    /// The answers.
    pub choices: Vec<InfilledChoice>,
    /// Tokens of the text that were cut away to make it fit.
    pub removed: usize,
    /// What it has cost.
    pub usage: Usage,
    /// Where the time went.
    pub timing: Timing,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub struct InfilledChoice {
    /// The text with its blanks filled.
    pub text: String,
    /// The blanks, in the order of the text.
    pub blanks: Vec<InfilledBlank>,
}

/// What was written into a blank.
#[derive(Clone, Debug, PartialEq)]
pub struct InfilledBlank {
    /// Which kind of mask stood there.
    pub kind: MaskKind,
    /// The text, without the space before its first word.
    pub text: String,
    /// Tokens sampled, with the one that ended it.
    pub tokens: usize,
    /// Natural log-probability of these tokens.
    pub logprob: f64,
    /// Why it ended.
    pub finish: Finish,
}

/// Makes an [`Infilled`].
#[derive(Debug)]
pub struct InfillReader {
    tokenizer: Arc<Tokenizer>,
    special: SpecialIds,
    source: Source,
    blanks: Vec<Blank>,
    limits: Vec<usize>,
    removed: usize,
}

/// Where the blanks are.
#[derive(Debug)]
enum Source {
    Text(String),
    Task(Pattern, String),
}

impl Source {
    fn pieces(&self, tokenizer: &Tokenizer) -> glm::Result<Vec<Piece>> {
        match self {
            Self::Text(text) => tokenizer.encode_with_masks(text.trim_end()),
            Self::Task(pattern, _) => pattern.pieces(tokenizer, ""),
        }
    }

    fn fill<'a>(&self, answers: impl IntoIterator<Item = (&'a str, Join)>) -> String {
        match self {
            Self::Text(text) => fill(text, answers),
            Self::Task(pattern, text) => pattern.fill(text, answers),
        }
    }
}

impl Operations {
    /// Plans the filling of a text's blanks.
    ///
    /// # Errors
    /// When the model fills no blanks, the text has none or one of an unknown kind, the task is unknown,
    /// or the text does not fit.
    pub fn infill(&self, ask: Infill, terms: Terms) -> Result<Planned<InfillReader>> {
        let tokenizer = &self.model.tokenizer;
        let mut asked = ask.max_tokens;
        let mut format = ask.format;
        let source = match &ask.task {
            None => Source::Text(ask.text),
            Some(name) => {
                let task = self.task(name)?;
                if let Task::Infill {
                    max_tokens,
                    json_schema,
                    ..
                } = task
                {
                    asked = asked.or(Some(*max_tokens));
                    format = format.or_else(|| json_schema.clone().map(Grammar::JsonSchema));
                }
                format = format.map(|format| format.quoting(&ask.text));
                Source::Task(Pattern::trusted(task.pattern())?, ask.text)
            }
        };
        let pieces = source.pieces(tokenizer)?;
        let usual = (pieces.iter())
            .filter_map(|piece| match piece {
                Piece::Mask { kind, .. } => Some(usual_length(*kind)),
                Piece::Text(_) => None,
            })
            .collect::<Vec<_>>();
        // A text without a blank is refused by the layout.
        let usual = if usual.is_empty() { vec![1] } else { usual };
        let budget = Budget::new(self.model.capabilities.max_tokens, asked, usual)?;
        let fit = budget.fit(ask.truncation);
        let prompt = self.arrange(&source, &pieces, fit)?;
        let limits = budget.limits(prompt.tokens.len());
        let filling = Filling::new(&self.layout, &prompt, &limits, ask.order);
        let default = SamplingParams {
            // The reader adds up what each token was worth.
            logprobs: Some(0),
            ..SamplingParams::greedy()
        };
        let work = Generate {
            prompt: context(&prompt),
            writer: Box::new(Blanks::new(filling, true)),
            sampling: ask.sampling.over(default),
            n: ask.n,
            max_tokens: limits.iter().sum(),
            constraint: self.constraint(format.as_ref(), Lead::Space)?,
            prompt_logprobs: None,
        };
        Ok(Planned {
            request: self.request(Work::Generate(Box::new(work)), terms),
            reader: InfillReader {
                tokenizer: Arc::clone(tokenizer),
                special: self.layout.special().clone(),
                source,
                blanks: prompt.blanks,
                limits,
                removed: prompt.removed,
            },
        })
    }

    fn arrange(&self, source: &Source, pieces: &[Piece], fit: Fit) -> Result<Prompt> {
        Ok(match source {
            Source::Text(_) => self.layout.infill(pieces, fit)?,
            Source::Task(pattern, text) => {
                pattern.prompt(&self.model.tokenizer, text, fit, |pieces, fit| {
                    self.layout.infill(pieces, fit)
                })?
            }
        })
    }
}

impl InfillReader {
    /// The typed result.
    #[must_use]
    pub fn read(&self, collected: &Collected) -> Infilled {
        Infilled {
            choices: collected.choices.iter().map(|c| self.choice(c)).collect(),
            removed: self.removed,
            usage: collected.finished.usage,
            timing: collected.finished.timing,
        }
    }

    /// Tokens of the text that were cut away to make it fit.
    #[must_use]
    pub const fn removed(&self) -> usize {
        self.removed
    }

    fn choice(&self, choice: &Choice) -> InfilledChoice {
        let nothing = Filled::default();
        let filled = |index: usize| choice.blanks.get(index).unwrap_or(&nothing);
        let answers: Vec<(String, Join)> = (0..self.blanks.len())
            .map(|index| self.join(filled(index)))
            .collect();
        InfilledChoice {
            text: self
                .source
                .fill(answers.iter().map(|(text, join)| (text.as_str(), *join))),
            blanks: (self.blanks.iter().zip(&self.limits).enumerate())
                .map(|(index, (blank, limit))| self.blank(blank.kind, *limit, filled(index)))
                .collect(),
        }
    }

    /// The answer as it meets the text before it: with the space that its first token carries.
    fn join(&self, filled: &Filled) -> (String, Join) {
        let first = filled.tokens.first().map(|token| token.id);
        let inside = first.is_some_and(|id| self.tokenizer.continues_word(id));
        let spaced = first.is_some_and(|id| self.tokenizer.decode(&[id]).starts_with(' '));
        match (inside, spaced) {
            (true, _) => (filled.text.clone(), Join::Inside),
            (false, true) => (format!(" {}", filled.text), Join::Word),
            (false, false) => (filled.text.clone(), Join::Word),
        }
    }

    fn blank(&self, kind: MaskKind, limit: usize, filled: &Filled) -> InfilledBlank {
        let ended = (filled.tokens.last()).is_some_and(|t| self.special.ends_answer(t.id));
        InfilledBlank {
            kind,
            text: filled.text.clone(),
            tokens: filled.tokens.len(),
            logprob: filled.tokens.iter().filter_map(|t| t.logprob).sum(),
            // Shorter than it might be and not ended by the model: a stop string ended it.
            finish: match ended || filled.tokens.len() < limit {
                true => Finish::Stop,
                false => Finish::Length,
            },
        }
    }
}
