//! Tokens of an answer with their text.

use glm::TokenId;
use glm::tokenizer::{Detokenizer, Tokenizer};

use crate::answer::Token;

/// A token of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextToken {
    /// The token.
    pub id: TokenId,
    /// Text that it completes; empty where it ends inside a character.
    pub text: String,
    /// Where that text begins, in bytes from the beginning of the text.
    pub offset: usize,
    /// Natural log of its probability; the first token of a prompt has none.
    pub logprob: Option<f64>,
    /// The most probable tokens in its place with their text, best first.
    pub top: Vec<(TokenId, String, f64)>,
}

/// The tokens of one text. `ends` tells tokens that end it and have no text.
pub(super) fn with_text(
    tokenizer: &Tokenizer,
    tokens: &[Token],
    ends: impl Fn(TokenId) -> bool,
) -> Vec<TextToken> {
    let mut stream = Detokenizer::default();
    let mut offset = 0;
    (tokens.iter())
        .filter(|token| !ends(token.id))
        .map(|token| {
            let before = stream.clone();
            let text = stream.push(tokenizer, token.id);
            let start = offset;
            offset += text.len();
            TextToken {
                id: token.id,
                text,
                offset: start,
                logprob: token.logprob,
                top: (token.top.iter())
                    .map(|(id, logprob)| (*id, before.clone().push(tokenizer, *id), *logprob))
                    .collect(),
            }
        })
        .collect()
}
