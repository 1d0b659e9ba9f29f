//! Choose among labels by cloze: `POST /v1/classify`, `glmd/<node>/request/classify`.
//!
//! The text is put into a pattern with one blank, and each label is spelled by
//! words ("verbalizers") that could stand in the blank; the label whose words
//! the model finds likeliest wins.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::{Control, Priority, Timing, Usage};

/// One text or several, and what to choose among.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifyRequest {
    /// The text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Several texts in one request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<Vec<String>>,
    /// A named task of the model: its pattern and labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Where the text and the blank stand, such as `{text} It was [MASK].`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Words for each label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, Vec<String>>>,
    /// How the log-probabilities of a word of several tokens become one number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalize: Option<Normalize>,
    /// Divide by what the pattern alone prefers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibrate: Option<bool>,
    /// Milliseconds after which nobody wants the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Who goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Of waiting requests with the same key only the latest is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coalesce_key: Option<String>,
}

impl ClassifyRequest {
    /// When and in which order it runs.
    #[must_use]
    pub fn control(&self) -> Control {
        Control {
            deadline_ms: self.deadline_ms,
            priority: self.priority.unwrap_or_default(),
            coalesce_key: self.coalesce_key.clone(),
        }
    }
}

/// How the tokens of a word are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// Sum of the log-probabilities: the probability of the word.
    #[default]
    Sum,
    /// Their mean, which does not punish long words.
    Mean,
}

/// The verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassifyResponse {
    /// Identity of the request.
    pub id: String,
    /// Verdict on the only or first text.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Verdicts on all texts where `texts` was sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<Verdict>,
    /// Cost in tokens.
    pub usage: Usage,
    /// Cost in time.
    pub timing: Timing,
}

/// The verdict on one text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The likeliest label.
    pub label: String,
    /// Probability of each label; they sum to 1.
    pub scores: BTreeMap<String, f64>,
    /// Natural log-probability of each label's words, before they were made to sum to 1.
    pub logprobs: BTreeMap<String, f64>,
    /// Tokens of the text that were cut off its end to make it fit.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub truncated_tokens: usize,
}

/// What most verdicts need not say.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}
