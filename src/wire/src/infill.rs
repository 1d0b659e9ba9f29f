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
    }
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
