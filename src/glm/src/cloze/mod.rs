//! Classification by cloze: which word would the model write into the blank?
//!
//! A [`Pattern`] turns a text into a cloze (`{text} It was [MASK].`), each
//! label is spelled by words ("verbalizers") that could stand in the blank,
//! and the label whose words are likeliest wins (pattern-exploiting training,
//! Schick and Schütze 2021; GLM, ACL 2022, section 2.3).
//!
//! * When every verbalizer is **one token**, a single forward pass over the
//!   prompt is enough: the log-probabilities of the verbalizers are gathered
//!   at the start of the piece.
//! * Otherwise each verbalizer is a **candidate** that is read after the
//!   prompt, and what is counted is the [`Scoring`]'s rule.
//!
//! For a label with verbalizers `v`, `score = ln sum_v exp(score_v)`; the
//! probabilities are the softmax over the labels' scores. **Calibration**
//! divides by the probabilities that the pattern alone gives
//! ([`CONTENT_FREE`]), so that a label is not preferred because its word is
//! common (Zhao et al. 2021, "Calibrate before use").

mod pattern;
mod score;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::manifest::Normalize;
pub use pattern::Pattern;
pub use score::{Baseline, Verdict};

use crate::prompt::{Fit, Layout, Placed, Prompt};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, TokenId};

/// Texts without content, whose averaged probabilities calibrate.
pub const CONTENT_FREE: [&str; 2] = ["", "N/A"];

/// Most labels of a question, and most verbalizers over all of them: each verbalizer of several
/// tokens is a sequence of its own for the engine.
pub const MAX_VERBALIZERS: usize = 256;
/// Most tokens of a verbalizer: they are words, not texts.
pub const MAX_VERBALIZER_TOKENS: usize = 64;

/// What is counted for a verbalizer of several tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// Its tokens and the end of the piece: GLM's evaluation code. Where every verbalizer is one
    /// token, the end is not counted there either.
    #[default]
    Evaluation,
    /// Its tokens alone: the multiple-choice head of GLM's Hugging Face code.
    MultipleChoice,
}

/// What to choose among and how it is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Verbalizers of each label.
    pub labels: BTreeMap<String, Vec<String>>,
    /// What is counted.
    pub scoring: Scoring,
    /// How it is added up.
    pub normalize: Normalize,
}

/// A question in the ids of one model.
#[derive(Clone, Debug)]
pub struct Cloze {
    pattern: Pattern,
    labels: Vec<String>,
    candidates: Vec<Candidate>,
    normalize: Normalize,
    scoring: Option<Scoring>,
}

#[derive(Clone, Debug)]
struct Candidate {
    /// Index among the labels.
    label: usize,
    /// Tokens whose log-probabilities count.
    ids: Vec<TokenId>,
}

impl Cloze {
    /// Encodes the verbalizers.
    ///
    /// # Errors
    /// [`Error::Input`] for fewer than two labels, a label without verbalizers, a verbalizer that the
    /// vocabulary cannot express, one that two labels share, or too many of them.
    pub fn new(
        tokenizer: &Tokenizer,
        layout: &Layout,
        pattern: Pattern,
        question: &Question,
    ) -> Result<Self> {
        if question.labels.len() < 2 {
            return Err(labels("needs at least two labels to choose among"));
        }
        if question.labels.values().map(Vec::len).sum::<usize>() > MAX_VERBALIZERS {
            return Err(labels(format!(
                "has more than {MAX_VERBALIZERS} verbalizers in all"
            )));
        }
        let spaced = tokenizer.space_is_text() && pattern.blank_follows_space();
        let mut candidates: Vec<Candidate> = Vec::new();
        for (label, (name, words)) in question.labels.iter().enumerate() {
            if words.is_empty() {
                return Err(labels(format!("`{name}` has no verbalizers")));
            }
            for word in words {
                let ids = encode(tokenizer, name, word, spaced)?;
                match candidates.iter().find(|c| c.ids == ids) {
                    Some(twin) if twin.label != label => {
                        let other = question.labels.keys().nth(twin.label);
                        return Err(labels(format!(
                            "`{name}` and `{}` share the verbalizer `{word}`",
                            other.map_or("", String::as_str)
                        )));
                    }
                    Some(_) => {}
                    None => candidates.push(Candidate { label, ids }),
                }
            }
        }
        let single = candidates.iter().all(|c| c.ids.len() == 1);
        let scoring = (!single).then_some(question.scoring);
        if scoring == Some(Scoring::Evaluation)
            && let Some(end) = layout
                .special()
                .eop
                .filter(|_| layout.masks().next().is_some())
        {
            for candidate in &mut candidates {
                candidate.ids.push(end);
            }
        }
        Ok(Self {
            pattern,
            labels: question.labels.keys().cloned().collect(),
            candidates,
            normalize: question.normalize,
            scoring,
        })
    }

    /// The rule that counts; `None` when every verbalizer is one token and one forward pass is enough.
    #[must_use]
    pub const fn scoring(&self) -> Option<Scoring> {
        self.scoring
    }

    /// Labels, in the order of the scores.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Most tokens that a candidate makes the model read after the prompt.
    #[must_use]
    pub fn growth(&self) -> usize {
        let longest = self.candidates.iter().map(|c| c.ids.len()).max();
        longest.unwrap_or(0).saturating_sub(1)
    }

    /// The cloze of a text. When it does not fit, the text loses its end, never the pattern.
    ///
    /// # Errors
    /// [`Error::Input`] for a pattern without exactly one blank, [`Error::TooLong`] when it does not fit.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        layout: &Layout,
        text: &str,
        fit: Fit,
    ) -> Result<Prompt> {
        (self.pattern).prompt(tokenizer, text, fit, |pieces, fit| {
            layout.cloze(pieces, fit)
        })
    }

    /// The candidates after a prompt, in a fixed order: what [`verdict`](Self::verdict) wants scores of.
    #[must_use]
    pub fn candidates(&self, prompt: &Prompt) -> Vec<Vec<Placed>> {
        self.candidates
            .iter()
            .map(|candidate| {
                (candidate.ids.iter().zip(prompt.continuation()))
                    .map(|(id, position)| Placed { id: *id, position })
                    .collect()
            })
            .collect()
    }
}

/// Ids of one verbalizer.
fn encode(tokenizer: &Tokenizer, label: &str, word: &str, spaced: bool) -> Result<Vec<TokenId>> {
    let ids = match spaced && !word.starts_with(char::is_whitespace) {
        true => tokenizer.encode_plain(&format!(" {word}"))?,
        false => tokenizer.encode_plain(word)?,
    };
    if ids.is_empty() || ids.iter().any(|id| tokenizer.is_unknown(*id)) {
        return Err(labels(format!(
            "`{label}`: the vocabulary cannot express `{word}`"
        )));
    }
    if ids.len() > MAX_VERBALIZER_TOKENS {
        return Err(labels(format!(
            "`{label}`: a verbalizer has {} tokens, at most {MAX_VERBALIZER_TOKENS} are accepted",
            ids.len()
        )));
    }
    Ok(ids)
}

fn labels(reason: impl Into<String>) -> Error {
    Error::Input {
        field: "labels",
        reason: reason.into(),
    }
}
