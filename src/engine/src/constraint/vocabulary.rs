//! A model's tokens as bytes, in the form that masks are computed from.

use std::fmt;
use std::sync::Arc;

use glm::TokenId;
use glm::spec::SpecialIds;
use glm::tokenizer::Tokenizer;
use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::error::{Error, Result};

/// First byte of tokens that are not text: no UTF-8 text has it.
const NOT_TEXT: u8 = 0xFF;

/// Tokens of a model, for compiling grammars. Built once for each loaded model: a few bytes for
/// each byte of the vocabulary's text.
pub struct Vocabulary {
    factory: ParserFactory,
    ends: Vec<TokenId>,
    exact: bool,
    family: &'static str,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary")
            .field("ends", &self.ends)
            .field("exact", &self.exact)
            .finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// The vocabulary of a model.
    ///
    /// # Errors
    /// [`Error::Constraint`] for a model without an end token or one whose vocabulary cannot be indexed.
    pub fn new(tokenizer: &Tokenizer, special: &SpecialIds, family: &'static str) -> Result<Self> {
        let ends: Vec<TokenId> = (special.eop.iter().chain(&special.eos).copied())
            .filter(|id| id.index() < tokenizer.size())
            .collect();
        let Some(first) = ends.first() else {
            return Err(failed("the model has no token that ends an answer"));
        };
        let size = u32::try_from(tokenizer.size()).map_err(failed)?;
        let words: Vec<Vec<u8>> = (0..size)
            .map(|id| word(tokenizer, &ends, TokenId(id)))
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(size, first.0), &words);
        let ids: Vec<u32> = ends.iter().map(|id| id.0).collect();
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&ids)));
        let mut factory = ParserFactory::new_simple(&env).map_err(failed)?;
        factory.quiet();
        *factory.limits_mut() = super::limits();
        Ok(Self {
            factory,
            ends,
            exact: tokenizer.keeps_spaces(),
            family,
        })
    }

    pub(super) const fn factory(&self) -> &ParserFactory {
        &self.factory
    }

    /// Tokens that end an answer.
    pub(super) fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    /// Whether text can be written to the letter.
    pub(super) const fn is_exact(&self) -> bool {
        self.exact
    }

    pub(super) const fn family(&self) -> &'static str {
        self.family
    }
}

/// Bytes that a token adds to a text. Tokens that are not text can never be part of a grammar.
fn word(tokenizer: &Tokenizer, ends: &[TokenId], id: TokenId) -> Vec<u8> {
    if ends.contains(&id) {
        let mut name = vec![NOT_TEXT];
        name.extend(tokenizer.token_text(id).unwrap_or_default().into_bytes());
        return name;
    }
    tokenizer.token_bytes(id).unwrap_or_default()
}

fn failed(error: impl fmt::Display) -> Error {
    Error::Constraint {
        reason: error.to_string(),
    }
}
