//! Fill the blanks of a text: `POST /v1/infill`, `glmd/<node>/request/infill`.

use serde::{Deserialize, Serialize};

use crate::common::{Timing, Usage, request};

request! {
    /// A text with `[MASK]`, `[sMASK]` or `[gMASK]` where something is missing.
    pub struct InfillRequest {
        /// The text. A mask is a blank: `[MASK]` a few words, `[sMASK]` a sentence, `[gMASK]` the rest.
        pub text: String,
        /// A named task of the model whose pattern wraps `text`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub task: Option<String>,
        /// Most tokens in one blank.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_tokens: Option<usize>,
        /// Answers wanted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub n: Option<usize>,
        /// Server-sent events instead of one answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub stream: Option<bool>,
        /// The answer ends before any of these.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub stop: Option<Stop>,
        /// What the answer must look like.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub response_format: Option<ResponseFormat>,
    }
}

/// One stop string or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Stop {
    /// The strings.
    #[must_use]
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(s) => vec![s],
            Self::Many(all) => all,
        }
    }
}

/// What an answer must look like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ResponseFormat {
    /// Anything.
    Text,
    /// Some JSON object.
    JsonObject,
    /// JSON that a schema accepts.
    JsonSchema {
        /// The schema and its name.
        json_schema: JsonSchema,
    },
    /// Text that a regular expression matches as a whole.
    Regex {
        /// The expression.
        pattern: String,
    },
    /// One of these texts.
    Choice {
        /// The texts.
        choices: Vec<String>,
    },
}

/// A named JSON schema, as OpenAI writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonSchema {
    /// Name; used in messages only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Description; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Always obeyed, whatever it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// The schema.
    pub schema: serde_json::Value,
}

/// The filled text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InfillResponse {
    /// Identity of the request.
    pub id: String,
    /// The text with its blanks filled by the first answer.
    pub text: String,
    /// The blanks of the first answer, in the order of the text.
    pub blanks: Vec<Blank>,
    /// All answers where more than one was wanted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<InfillChoice>,
    /// Cost in tokens.
    pub usage: Usage,
    /// Cost in time.
    pub timing: Timing,
}

/// One of several answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InfillChoice {
    /// Which one, from 0.
    pub index: usize,
    /// The text with its blanks filled.
    pub text: String,
    /// The blanks.
    pub blanks: Vec<Blank>,
}

/// What was written into one blank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Blank {
    /// Which blank of the text, from 0.
    pub index: usize,
    /// What was written.
    pub text: String,
    /// Its tokens.
    pub tokens: usize,
    /// Natural log-probability of the blank, its end included.
    pub logprob: f64,
    /// Why it ended: `stop` (the model ended it) or `length`.
    pub finish_reason: String,
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InfillChunk {
    /// Identity of the request.
    pub id: String,
    /// Which answer, from 0.
    pub index: usize,
    /// Which blank, from 0.
    pub blank: usize,
    /// Text that was added to it.
    pub delta: String,
}
