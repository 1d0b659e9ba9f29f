//! Continue a text: `POST /v1/completions`, in OpenAI's shape.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::common::{Timing, Usage, request};
use crate::format::StreamOptions;

request! {
    /// A text to continue.
    pub struct CompletionRequest {
        /// The text.
        pub prompt: String,
        /// Accepted for compatibility; must be the loaded model when given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub model: Option<String>,
        /// Most tokens to write.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_tokens: Option<usize>,
        /// What a stream tells besides text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub stream_options: Option<StreamOptions>,
        /// Report the log-probability of each token and of this many alternatives.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub logprobs: Option<usize>,
        /// Repeat the prompt before the answer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub echo: Option<bool>,
        /// Accepted for compatibility, not used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub user: Option<String>,
    }
}

/// The answer, whole or one chunk of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionResponse {
    /// Identity of the request.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// Answers or what was added to them.
    pub choices: Vec<CompletionChoice>,
    /// Cost in tokens; absent in chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Cost in time; absent in chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// Which one, from 0.
    pub index: usize,
    /// Its text, or what was added to it.
    pub text: String,
    /// Log-probabilities where they were asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// `stop` or `length`; absent while it goes on.
    pub finish_reason: Option<String>,
}

/// Log-probabilities in the shape of OpenAI's completions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// Text of each token.
    pub tokens: Vec<String>,
    /// Natural log-probability of each token.
    pub token_logprobs: Vec<Option<f64>>,
    /// Alternatives of each token by their text; the first token of a prompt has none.
    pub top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
    /// Byte offset of each token in the text.
    pub text_offset: Vec<usize>,
}
