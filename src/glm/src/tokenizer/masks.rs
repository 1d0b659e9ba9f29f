//! Mask markers in text that asks for blanks to be filled.
//!
//! Encoding text never yields a mask token; a text with blanks is cut at its
//! markers here, and the parts between are encoded as plain text.

use super::Tokenizer;
use crate::prompt::{Segment, segments};
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

    /// The kind that is written like this.
    #[must_use]
    pub fn of(marker: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.marker() == marker)
    }

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

/// A part of a text that is encoded as one, and what may be a token in it rather than text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// All of it is text, whatever it says.
    Plain(&'a str),
    /// `[MASK]`, `[sMASK]` and `[gMASK]` are blanks: text that asks for them to be filled.
    Masks(&'a str),
    /// Every special token's name is that token: text that came with the model.
    Trusted(&'a str),
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
        self.encode_parts(&[Part::Masks(text)])
    }

    /// Encodes parts that stand side by side. Text between two special tokens is encoded as a
    /// whole, even when it comes from several parts: the ids are those of the joined text.
    ///
    /// # Errors
    /// As [`encode_with_masks`](Self::encode_with_masks).
    pub fn encode_parts(&self, parts: &[Part<'_>]) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut run = String::new();
        for part in parts {
            match *part {
                Part::Plain(text) => run.push_str(text),
                Part::Masks(text) => {
                    for segment in segments(text) {
                        match segment {
                            Segment::Text(text) => run.push_str(text),
                            Segment::Mask(kind) => {
                                let id = self.mask(kind)?;
                                self.push_mask(&mut pieces, &mut run, kind, id)?;
                            }
                        }
                    }
                }
                Part::Trusted(text) => {
                    for token in self.split_specials(text) {
                        match token {
                            Split::Text(text) => run.push_str(text),
                            Split::Special(id, name) => match MaskKind::of(name) {
                                Some(kind) => self.push_mask(&mut pieces, &mut run, kind, id)?,
                                None => {
                                    self.push_text(&mut pieces, &run)?;
                                    run.clear();
                                    push_ids(&mut pieces, vec![id]);
                                }
                            },
                        }
                    }
                }
            }
        }
        self.push_text(&mut pieces, &run)?;
        Ok(pieces)
    }

    fn push_mask(
        &self,
        pieces: &mut Vec<Piece>,
        run: &mut String,
        kind: MaskKind,
        id: TokenId,
    ) -> Result<()> {
        self.push_text(pieces, run.trim_end())?;
        run.clear();
        pieces.push(Piece::Mask { kind, id });
        Ok(())
    }

    fn push_text(&self, pieces: &mut Vec<Piece>, text: &str) -> Result<()> {
        push_ids(pieces, self.encode_plain(text)?);
        Ok(())
    }

    fn mask(&self, kind: MaskKind) -> Result<TokenId> {
        self.special(kind.marker()).ok_or_else(|| {
            let known: Vec<&str> = MaskKind::ALL
                .into_iter()
                .map(MaskKind::marker)
                .filter(|marker| self.special(marker).is_some())
                .collect();
            Error::Input {
                field: "text",
                reason: format!(
                    "this model has no {}; it has {}",
                    kind.marker(),
                    match known.is_empty() {
                        true => "no masks".to_owned(),
                        false => known.join(", "),
                    }
                ),
            }
        })
    }

    /// Cuts a text at the names of special tokens; of several that begin at one place the longest counts.
    pub(crate) fn split_specials<'a>(&'a self, text: &'a str) -> Vec<Split<'a>> {
        let offset = self.rules.id_offset();
        let mut found = Vec::new();
        let mut start = 0;
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let rest = &text[at..];
            let name = (self.specials.iter())
                .filter(|(_, name)| !name.is_empty() && rest.starts_with(name.as_str()))
                .max_by_key(|(_, name)| name.len());
            match name {
                None => at += c.len_utf8(),
                Some((id, name)) => {
                    found.extend((start < at).then(|| Split::Text(&text[start..at])));
                    found.push(Split::Special(TokenId(id + offset), name));
                    at += name.len();
                    start = at;
                }
            }
        }
        found.extend((start < text.len()).then(|| Split::Text(&text[start..])));
        found
    }
}

/// Text, or a special token whose name stands in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split<'a> {
    Text(&'a str),
    Special(TokenId, &'a str),
}

fn push_ids(pieces: &mut Vec<Piece>, ids: Vec<TokenId>) {
    match pieces.last_mut() {
        _ if ids.is_empty() => {}
        Some(Piece::Text(text)) => text.extend(ids),
        _ => pieces.push(Piece::Text(ids)),
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
