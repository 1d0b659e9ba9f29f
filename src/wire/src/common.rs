//! Fields that requests share, and what every answer tells about its cost.

use serde::{Deserialize, Serialize};

/// Who goes first when requests wait. A waiting request rises with time.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Work that nobody waits for.
    Low,
    /// The default.
    #[default]
    Normal,
    /// An alarm, a person in front of a screen.
    High,
}

/// Tokens that a request cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that the model wrote.
    pub completion_tokens: usize,
    /// Their sum.
    pub total_tokens: usize,
    /// Prompt tokens that were not computed again because an earlier request began the same way.
    #[serde(default)]
    pub cached_tokens: usize,
}

impl Usage {
    /// Usage of a prompt and an answer.
    #[must_use]
    pub const fn new(prompt_tokens: usize, completion_tokens: usize, cached_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            cached_tokens,
        }
    }
}

/// Where the time went, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Waiting for its turn.
    pub queue_ms: f64,
    /// From the first step to the first token.
    pub prefill_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
    /// From arrival to answer.
    pub total_ms: f64,
}

/// How to choose tokens; what is absent takes the operation's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the best token.
    pub temperature: Option<f32>,
    /// Only the smallest set of best tokens with at least this mass.
    pub top_p: Option<f32>,
    /// Only this many best tokens; 0 = all.
    pub top_k: Option<usize>,
    /// Only tokens with at least this share of the best token's probability.
    pub min_p: Option<f32>,
    /// Above 1 makes tokens that were seen less likely.
    pub repetition_penalty: Option<f32>,
    /// Same seed, same prompt, same model: same answer.
    pub seed: Option<u64>,
}

/// When and in which order a request runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Milliseconds after which nobody wants the answer.
    pub deadline_ms: Option<u64>,
    /// Who goes first.
    pub priority: Priority,
    /// Of waiting requests with the same key only the latest is answered.
    pub coalesce_key: Option<String>,
}

/// A request for text: its own fields, and those of every request for text.
///
/// `serde(flatten)` would switch off the refusal of unknown fields, so the
/// fields are written into each request.
macro_rules! request {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$fmeta:meta])* pub $field:ident : $ty:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$fmeta])* pub $field: $ty,)*
            /// Answers wanted.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub n: Option<usize>,
            /// Server-sent events instead of one answer.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub stream: Option<bool>,
            /// The answer ends before any of these.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub stop: Option<$crate::format::Stop>,
            /// What the answer must look like.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub response_format: Option<$crate::format::ResponseFormat>,
            /// Divides the logits; 0 always takes the best token.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub temperature: Option<f32>,
            /// Only the smallest set of best tokens with at least this mass.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub top_p: Option<f32>,
            /// Only this many best tokens; 0 = all.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub top_k: Option<usize>,
            /// Only tokens with at least this share of the best token's probability.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub min_p: Option<f32>,
            /// Above 1 makes tokens that were seen less likely.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub repetition_penalty: Option<f32>,
            /// Same seed, same prompt, same model: same answer.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub seed: Option<u64>,
            /// Milliseconds after which nobody wants the answer.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub deadline_ms: Option<u64>,
            /// Who goes first.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub priority: Option<$crate::Priority>,
            /// Of waiting requests with the same key only the latest is answered.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub coalesce_key: Option<String>,
        }

        impl $name {
            /// How to choose tokens.
            #[must_use]
            pub const fn sampling(&self) -> $crate::common::Sampling {
                $crate::common::Sampling {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty,
                    seed: self.seed,
                }
            }

            /// When and in which order it runs.
            #[must_use]
            pub fn control(&self) -> $crate::common::Control {
                $crate::common::Control {
                    deadline_ms: self.deadline_ms,
                    priority: self.priority.unwrap_or_default(),
                    coalesce_key: self.coalesce_key.clone(),
                }
            }
        }
    };
}
pub(crate) use request;
