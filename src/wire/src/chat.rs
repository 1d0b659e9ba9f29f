//! Answer a conversation: `POST /v1/chat/completions`, in OpenAI's shape.

use serde::{Deserialize, Deserializer, Serialize};

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
        /// Whether it may: `auto`, the default, or `none`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tool_choice: Option<serde_json::Value>,
        /// Report the log-probability of each token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub logprobs: Option<bool>,
        /// With this many alternatives.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub top_logprobs: Option<usize>,
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
    /// The text: a string, or a list of parts of type `text`, which are joined.
    #[serde(default, deserialize_with = "text_or_parts")]
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

/// A part of a message. Others, such as images, are refused by their type.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Part {
    Text { text: String },
}

fn text_or_parts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    /// `untagged` tells nothing of what was wrong inside, so the kinds are told apart by hand.
    fn parts<E: serde::de::Error>(value: serde_json::Value) -> Result<String, E> {
        let parts: Vec<Part> = serde_json::from_value(value).map_err(E::custom)?;
        Ok(parts.into_iter().map(|Part::Text { text }| text).collect())
    }
    match Option::<serde_json::Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(serde_json::Value::String(text)) => Ok(Some(text)),
        Some(list @ serde_json::Value::Array(_)) => parts(list).map(Some),
        Some(_) => Err(serde::de::Error::custom(
            "`content` must be a string or a list of parts",
        )),
    }
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
    /// Log-probabilities where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`; absent while it goes on.
    pub finish_reason: Option<String>,
}

/// Log-probabilities in the shape of OpenAI's chat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// The tokens, in order.
    pub content: Vec<ScoredToken>,
}

/// A token that was written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoredToken {
    /// Its text.
    pub token: String,
    /// Natural log of its probability.
    pub logprob: f64,
    /// Its text in UTF-8.
    pub bytes: Vec<u8>,
    /// The likeliest tokens in its place, best first.
    pub top_logprobs: Vec<LikelyToken>,
}

/// A token that could have been written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LikelyToken {
    /// Its text.
    pub token: String,
    /// Natural log of its probability.
    pub logprob: f64,
    /// Its text in UTF-8.
    pub bytes: Vec<u8>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_text_or_a_list_of_texts() {
        let read = |content: &str| {
            let message = format!(r#"{{"role":"user","content":{content}}}"#);
            serde_json::from_str::<Message>(&message)
        };
        assert_eq!(
            read(r#""hi""#).expect("text").content.as_deref(),
            Some("hi")
        );
        assert_eq!(read("null").expect("nothing").content, None);
        let parts = r#"[{"type":"text","text":"h"},{"type":"text","text":"i"}]"#;
        assert_eq!(read(parts).expect("parts").content.as_deref(), Some("hi"));
        let image = r#"[{"type":"image_url","image_url":{"url":"x"}}]"#;
        let told = read(image).expect_err("an image").to_string();
        assert!(told.contains("image_url"), "{told}");
        assert!(read("5").is_err());
    }
}
