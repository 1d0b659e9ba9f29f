//! Answer a conversation: `POST /v1/chat/completions`, in OpenAI's shape.

use serde::{Deserialize, Serialize};

use crate::common::{Timing, Usage, request};
use crate::format::StreamOptions;

request! {
    /// A conversation to continue.
    pub struct ChatRequest {
        /// What was said, oldest first.
        pub messages: Vec<Message>,
        /// Accepted for compatibility; must be the loaded model when given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub model: Option<String>,
        /// Functions that the model may ask for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tools: Option<Vec<serde_json::Value>>,
        /// Most tokens to write.
        #[serde(default, alias = "max_completion_tokens", skip_serializing_if = "Option::is_none")]
        pub max_tokens: Option<usize>,
        /// What a stream tells besides text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub stream_options: Option<StreamOptions>,
        /// Accepted for compatibility, not used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub user: Option<String>,
    }
}

/// One thing that was said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool` (`observation` in GLM's words).
    pub role: String,
    /// The text.
    #[serde(default)]
    pub content: Option<String>,
    /// Functions that the assistant asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<serde_json::Value>>,
    /// Which call a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Name of the speaker or tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatResponse {
    /// Identity of the request.
    pub id: String,
    /// `chat.completion` or `chat.completion.chunk`.
    pub object: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// Answers or what was added to them.
    pub choices: Vec<ChatChoice>,
    /// Cost in tokens; absent in chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Cost in time; absent in chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
}

/// One answer, or what was added to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChoice {
    /// Which one, from 0.
    pub index: usize,
    /// The whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Answer>,
    /// What was added, in a chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<Answer>,
    /// `stop`, `length` or `tool_calls`; absent while it goes on.
    pub finish_reason: Option<String>,
}

/// What the assistant said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// `assistant`; only in the first chunk of a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The text.
    #[serde(default)]
    pub content: Option<String>,
    /// Functions that it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<serde_json::Value>>,
}
