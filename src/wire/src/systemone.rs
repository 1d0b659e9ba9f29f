//! Typed questions about a state: `POST /v1/systemone`, in the shape that decision models are asked in.
//!
//! Nothing is written: every option gets the probability of its words behind
//! the question, and the answer is made of those.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::common::{Control, Priority};

/// Most questions of a request.
pub const MAX_QUESTIONS: usize = 64;

/// A state and questions about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemOneRequest {
    /// What the questions are about: text, or JSON that is read as text.
    pub state: Value,
    /// Questions by name; the answers have the same names.
    pub questions: BTreeMap<String, Question>,
    /// Any name: the model that is loaded answers, and the answer names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
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

impl SystemOneRequest {
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

/// A question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Question {
    /// Yes or no.
    Noul {
        /// What is asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instructions: Option<Value>,
        /// What yes and no mean.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        criteria: Option<YesNo>,
    },
    /// One of several options.
    Choice {
        /// What is asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instructions: Option<Value>,
        /// Options, each with what it means, or null.
        criteria: BTreeMap<String, Value>,
    },
    /// A place on a scale.
    Score {
        /// What is asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instructions: Option<Value>,
        /// The levels from low to high, in words.
        criteria: Vec<Value>,
    },
}

/// What yes and no mean.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct YesNo {
    /// Yes.
    #[serde(default, rename = "true", skip_serializing_if = "Option::is_none")]
    pub yes: Option<Value>,
    /// No.
    #[serde(default, rename = "false", skip_serializing_if = "Option::is_none")]
    pub no: Option<Value>,
}

/// The answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SystemOneResponse {
    /// Identity of the request.
    pub id: String,
    /// The model that answered.
    pub model: String,
    /// An answer to each question.
    pub answers: BTreeMap<String, Answer>,
    /// Cost in tokens.
    pub usage: SystemOneUsage,
}

/// An answer; its probabilities sum to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Answer {
    /// To yes or no.
    Noul {
        /// Probability of yes.
        noul: f64,
    },
    /// To one of several options.
    Choice {
        /// The likeliest.
        choice: String,
        /// Probability of each option.
        probabilities: BTreeMap<String, f64>,
        /// 1 when one option has all the probability, 0 when all have the same.
        confidence: f64,
    },
    /// To a place on a scale.
    Score {
        /// The expected level; the lowest is 0.
        score: f64,
        /// The levels' words.
        legend: BTreeMap<String, String>,
        /// Probability of each level.
        probabilities: BTreeMap<String, f64>,
        /// As of a choice.
        confidence: f64,
    },
}

/// Tokens that were read; none are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemOneUsage {
    /// Tokens of state, questions and options.
    pub input_tokens: usize,
    /// Always 0.
    pub output_tokens: usize,
}
