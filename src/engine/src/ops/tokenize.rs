//! A text as the model would read it: for debugging, no request.

use glm::prompt::{Fit, Prompt, Truncation};
use glm::tokenizer::Piece;

use crate::error::Result;

use super::Operations;

/// The longest text that is shown; more than any model here reads.
const LIMIT: usize = 1 << 20;

/// Tokens of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// The prompt: ids, positions, visibility, blanks.
    pub prompt: Prompt,
    /// Text of each token as the vocabulary spells it.
    pub pieces: Vec<String>,
}

impl Operations {
    /// A text with blanks as it would be filled, any other as it would be gone on from.
    ///
    /// # Errors
    /// For a mask that the model does not know and for an empty text that nothing stands before.
    pub fn tokenize(&self, text: &str) -> Result<Tokenized> {
        let tokenizer = &self.model.tokenizer;
        let fit = Fit {
            limit: LIMIT,
            truncation: Truncation::Refuse,
        };
        let prompt = match self.layout.family().fills_blanks() {
            true => {
                let pieces = tokenizer.encode_with_masks(text.trim_end())?;
                match pieces.iter().any(|p| matches!(p, Piece::Mask { .. })) {
                    true => self.layout.infill(&pieces, fit)?,
                    false => self.layout.complete(tokenizer.encode_plain(text)?, fit)?,
                }
            }
            false => self.layout.complete(tokenizer.encode_plain(text)?, fit)?,
        };
        Ok(Tokenized {
            pieces: (prompt.ids())
                .map(|id| tokenizer.token_text(id).unwrap_or_default())
                .collect(),
            prompt,
        })
    }
}
