//! What an answer may look like and how it is delivered.

use serde::{Deserialize, Serialize};

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

/// What a stream tells besides text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    #[serde(default)]
    pub include_usage: bool,
}
