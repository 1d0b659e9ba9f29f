//! Text to ids and back, for debugging: `POST /v1/tokenize`, `POST /v1/detokenize`.

use serde::{Deserialize, Serialize};

/// A text to cut into tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizeRequest {
    /// The text; masks are recognised.
    pub text: String,
}

/// Its tokens as the model would read them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizeResponse {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Position numbers of each token; two for the families with 2D positions.
    pub positions: Vec<Vec<u32>>,
    /// Text of each token as the vocabulary spells it.
    pub pieces: Vec<String>,
    /// Leading tokens that all see each other.
    pub bidirectional: usize,
}

/// Ids to turn into text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    /// Token ids.
    pub ids: Vec<u32>,
}

/// The text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetokenizeResponse {
    /// The text; special tokens have none.
    pub text: String,
}
