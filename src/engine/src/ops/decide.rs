//! Several questions about one text, each with its own options.

use std::collections::BTreeMap;

use glm::cloze::{Cloze, Pattern, Question, Verdict};
use glm::prompt::{Fit, Truncation};

use crate::answer::Usage;
use crate::collect::Collected;
use crate::error::{Error, Result};
use crate::request::{ScoreItem, Work};

use super::{Operations, Planned, Terms, context};

/// A text and questions about it; one request answers them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decide {
    /// The text. What does not fit of it is cut off its end.
    pub state: String,
    /// Questions by name.
    pub questions: BTreeMap<String, Choose>,
}

/// A question: the option whose words the model would write behind it wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choose {
    /// Lines that explain, then the question itself.
    pub instructions: String,
    /// Words of each option, by its name.
    pub options: BTreeMap<String, String>,
}

/// The verdicts.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// One for each question, by name.
    pub verdicts: BTreeMap<String, Verdict>,
    /// What it has cost.
    pub usage: Usage,
}

/// Makes a [`Decided`].
#[derive(Debug)]
pub struct DecideReader(Vec<(String, Cloze)>);

impl Operations {
    /// Plans the answers to all questions.
    ///
    /// # Errors
    /// When there is no question, or one is unusable or does not fit; the reason names it.
    pub fn decide(&self, ask: &Decide, terms: Terms) -> Result<Planned<DecideReader>> {
        if ask.questions.is_empty() {
            return Err(input("must have at least one question".to_owned()));
        }
        let mut clozes = Vec::new();
        let mut items = Vec::new();
        for (name, choose) in &ask.questions {
            let (cloze, item) = self
                .choose(&ask.state, choose)
                .map_err(|error| named(name, error))?;
            clozes.push((name.clone(), cloze));
            items.push(item);
        }
        Ok(Planned {
            request: self.request(Work::Score(items), terms),
            reader: DecideReader(clozes),
        })
    }

    fn choose(&self, state: &str, choose: &Choose) -> glm::Result<(Cloze, ScoreItem)> {
        let tokenizer = &self.model.tokenizer;
        let options = choose.options.iter();
        let question = Question {
            labels: options
                .map(|(name, words)| (name.clone(), vec![words.clone()]))
                .collect(),
            ..Question::default()
        };
        let pattern = Pattern::behind(&format!("\n{} [MASK]", choose.instructions.trim()));
        let cloze = Cloze::new(tokenizer, &self.layout, pattern, &question)?;
        let fit = Fit {
            limit: (self.model.capabilities.max_tokens).saturating_sub(cloze.growth()),
            truncation: Truncation::Cut,
        };
        let prompt = cloze.prompt(tokenizer, &self.layout, state, fit)?;
        let item = ScoreItem {
            candidates: cloze.candidates(&prompt),
            prompt: context(&prompt),
        };
        Ok((cloze, item))
    }
}

impl DecideReader {
    /// The typed result.
    ///
    /// # Errors
    /// When the model gave no finite logits, or the answer is not the one to this request.
    pub fn read(&self, collected: &Collected) -> Result<Decided> {
        let finished = &collected.finished;
        if finished.scores.len() != self.0.len() {
            return Err(Error::Internal {
                reason: "the answer has another number of questions than the request",
            });
        }
        let asked = self.0.iter().zip(finished.scores.iter());
        Ok(Decided {
            verdicts: asked
                .map(|((name, cloze), scores)| Ok((name.clone(), cloze.verdict(scores, None)?)))
                .collect::<glm::Result<_>>()?,
            usage: finished.usage,
        })
    }
}

/// What is wrong with a question, under the name that the client gave it.
fn named(name: &str, error: glm::Error) -> Error {
    match error {
        glm::Error::Input { field, reason } => input(match field {
            "labels" => format!("`{name}`: {reason}"),
            _ => format!("`{name}`: {field} {reason}"),
        }),
        other => other.into(),
    }
}

fn input(reason: String) -> Error {
    glm::Error::Input {
        field: "questions",
        reason,
    }
    .into()
}
