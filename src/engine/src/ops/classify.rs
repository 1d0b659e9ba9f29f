//! Choose among labels by cloze.

use std::collections::BTreeMap;

use glm::cloze::{CONTENT_FREE, Cloze, Normalize, Pattern, Question, Scoring, Verdict};
use glm::manifest::Task;
use glm::prompt::{Fit, Truncation};

use crate::answer::{Scores, Timing, Usage};
use crate::collect::Collected;
use crate::error::{Error, Result};
use crate::request::{ScoreItem, Work};

use super::{Operations, Planned, Terms, context};

/// Texts, and what to choose among: a named task, or a pattern with labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classify {
    /// The texts; all are answered by one request.
    pub texts: Vec<String>,
    /// A named task of the model.
    pub task: Option<String>,
    /// Where the text and the blank stand, such as `{text} It was [MASK].`
    pub pattern: Option<String>,
    /// Words for each label.
    pub labels: Option<BTreeMap<String, Vec<String>>>,
    /// What is counted for words of several tokens; GLM's own rule when absent.
    pub scoring: Option<Scoring>,
    /// How their tokens are added up; the task's or the sum when absent.
    pub normalize: Option<Normalize>,
    /// Divide by what the pattern alone prefers; the task's or not when absent.
    pub calibrate: Option<bool>,
    /// What happens to texts that are too long. The default cuts their end off.
    pub truncation: Truncation,
}

impl Default for Classify {
    fn default() -> Self {
        Self {
            texts: Vec::new(),
            task: None,
            pattern: None,
            labels: None,
            scoring: None,
            normalize: None,
            calibrate: None,
            truncation: Truncation::Cut,
        }
    }
}

/// The verdicts.
#[derive(Clone, Debug, PartialEq)]
pub struct Classified {
    /// One for each text.
    pub verdicts: Vec<Verdict>,
    /// Tokens of each text that were cut away to make it fit.
    pub removed: Vec<usize>,
    /// The rule that counted; `None` when every word is one token.
    pub scoring: Option<Scoring>,
    /// What it has cost.
    pub usage: Usage,
    /// Where the time went.
    pub timing: Timing,
}

/// Makes a [`Classified`].
#[derive(Debug)]
pub struct ClassifyReader {
    cloze: Cloze,
    /// Items before the texts: what the pattern alone gives.
    baseline: usize,
    removed: Vec<usize>,
}

impl Operations {
    /// Plans the classification of texts: one request, however many there are.
    ///
    /// # Errors
    /// When there is no text, the task is unknown, the pattern or a label is unusable, or a text does not fit.
    pub fn classify(&self, ask: &Classify, terms: Terms) -> Result<Planned<ClassifyReader>> {
        if ask.texts.is_empty() {
            return Err(input("text", "must be given, or `texts` with at least one"));
        }
        let (pattern, question, calibrate) = self.question(ask)?;
        let tokenizer = &self.model.tokenizer;
        let cloze = Cloze::new(tokenizer, &self.layout, pattern, &question)?;
        let fit = Fit {
            limit: (self.model.capabilities.max_tokens).saturating_sub(cloze.growth()),
            truncation: ask.truncation,
        };
        let baseline = if calibrate { CONTENT_FREE.len() } else { 0 };
        let texts = (CONTENT_FREE.iter().copied().take(baseline))
            .chain(ask.texts.iter().map(String::as_str));
        let mut removed = Vec::new();
        let mut items = Vec::new();
        for text in texts {
            let prompt = cloze.prompt(tokenizer, &self.layout, text, fit)?;
            removed.push(prompt.removed);
            items.push(ScoreItem {
                prompt: context(&prompt),
                candidates: cloze.candidates(&prompt),
            });
        }
        removed.drain(..baseline);
        Ok(Planned {
            request: self.request(Work::Score(items), terms),
            reader: ClassifyReader {
                cloze,
                baseline,
                removed,
            },
        })
    }

    fn question(&self, ask: &Classify) -> Result<(Pattern, Question, bool)> {
        let (pattern, mut question, calibrate) = match (&ask.task, &ask.pattern, &ask.labels) {
            (Some(name), None, None) => match self.task(name)? {
                Task::Classify {
                    pattern,
                    labels,
                    normalize,
                    calibrate,
                    ..
                } => (
                    Pattern::trusted(pattern)?,
                    Question {
                        labels: labels.clone(),
                        scoring: Scoring::default(),
                        normalize: *normalize,
                    },
                    *calibrate,
                ),
                Task::Infill { .. } => {
                    return Err(input("task", "is one that fills blanks; use infill"));
                }
            },
            (None, Some(pattern), Some(labels)) => (
                Pattern::new(pattern)?,
                Question {
                    labels: labels.clone(),
                    ..Question::default()
                },
                false,
            ),
            (Some(_), ..) => {
                return Err(input(
                    "task",
                    "has its own pattern and labels; leave yours out, or the task",
                ));
            }
            (None, None, _) => return Err(input("pattern", "must be given, or `task`")),
            (None, Some(_), None) => return Err(input("labels", "must be given with `pattern`")),
        };
        question.scoring = ask.scoring.unwrap_or(question.scoring);
        question.normalize = ask.normalize.unwrap_or(question.normalize);
        Ok((pattern, question, ask.calibrate.unwrap_or(calibrate)))
    }
}

impl ClassifyReader {
    /// The typed result.
    ///
    /// # Errors
    /// When the model gave no finite logits, or the answer is not the one to this request.
    pub fn read(&self, collected: &Collected) -> Result<Classified> {
        let finished = &collected.finished;
        let scores: &Scores = &finished.scores;
        if scores.len() != self.baseline + self.removed.len() {
            return Err(Error::Internal {
                reason: "the answer has another number of texts than the request",
            });
        }
        let (alone, texts) = scores.split_at(self.baseline);
        let baseline = match alone {
            [] => None,
            alone => Some(self.cloze.baseline(alone)?),
        };
        Ok(Classified {
            verdicts: (texts.iter())
                .map(|scores| self.cloze.verdict(scores, baseline.as_ref()))
                .collect::<glm::Result<_>>()?,
            removed: self.removed.clone(),
            scoring: self.cloze.scoring(),
            usage: finished.usage,
            timing: finished.timing,
        })
    }
}

fn input(field: &'static str, reason: &str) -> Error {
    glm::Error::Input {
        field,
        reason: reason.to_owned(),
    }
    .into()
}
