//! Mask markers in text that asks for blanks to be filled.
//!
//! Encoding text never yields a mask token; a text with blanks is cut at its
//! markers here, and the parts between are encoded as plain text.

use super::Tokenizer;
use crate::{Error, Result, TokenId};

/// The three kinds of blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskKind {
    /// `[MASK]`: a short span.
    Span,
    /// `[sMASK]`: a sentence.
    Sentence,
    /// `[gMASK]`: a document, or the rest of one.
    Document,
}

impl MaskKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Span, Self::Sentence, Self::Document];

    /// How it is written in text.
    #[must_use]
    pub const fn marker(self) -> &'static str {
        match self {
            Self::Span => "[MASK]",
            Self::Sentence => "[sMASK]",
            Self::Document => "[gMASK]",
        }
    }
}

/// A part of a text with blanks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Ids of plain text.
    Text(Vec<TokenId>),
    /// One blank.
    Mask {
        /// Its kind.
        kind: MaskKind,
        /// Its token.
        id: TokenId,
    },
}

impl Tokenizer {
    /// Encodes a text in which `[MASK]`, `[sMASK]` and `[gMASK]` are blanks.
    ///
    /// White space before a marker is eaten, as the released tokenizers do.
    ///
    /// # Errors
    /// [`Error::Input`] for a marker whose token the vocabulary does not have,
    /// and whatever [`encode_plain`](Self::encode_plain) reports.
    pub fn encode_with_masks(&self, text: &str) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((at, kind)) = next_marker(rest) {
            self.push_text(&mut pieces, rest[..at].trim_end())?;
            let marker = kind.marker();
            let id = self.special(marker).ok_or_else(|| Error::Input {
                field: "text",
                reason: format!("this model has no {marker} token; use [MASK]"),
            })?;
            pieces.push(Piece::Mask { kind, id });
            rest = &rest[at + marker.len()..];
        }
        self.push_text(&mut pieces, rest)?;
        Ok(pieces)
    }

    fn push_text(&self, pieces: &mut Vec<Piece>, text: &str) -> Result<()> {
        let ids = self.encode_plain(text)?;
        if !ids.is_empty() {
            pieces.push(Piece::Text(ids));
        }
        Ok(())
    }
}

/// Flat ids, and the index of each mask among them.
#[must_use]
pub fn flatten(pieces: &[Piece]) -> (Vec<TokenId>, Vec<usize>) {
    let mut ids = Vec::new();
    let mut masks = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => ids.extend_from_slice(text),
            Piece::Mask { id, .. } => {
                masks.push(ids.len());
                ids.push(*id);
            }
        }
    }
    (ids, masks)
}

fn next_marker(text: &str) -> Option<(usize, MaskKind)> {
    MaskKind::ALL
        .into_iter()
        .filter_map(|kind| Some((text.find(kind.marker())?, kind)))
        .min_by_key(|(at, _)| *at)
}
