//! How a family arranges text and blanks.

use super::truncate::around_masks;
use super::{Blank, Placed, Prompt};
use crate::spec::SpecialIds;
use crate::tokenizer::{MaskKind, Piece};
use crate::{Error, Family, ModelSpec, Position, Result, TokenId};

/// What happens to a text that is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Truncation {
    /// It is refused.
    #[default]
    Refuse,
    /// Tokens far from the blanks are cut away; a mask never is.
    Cut,
}

/// How long a prompt may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Most tokens of the prompt, the start of the first piece included.
    pub limit: usize,
    /// What happens beyond.
    pub truncation: Truncation,
}

/// Arranges prompts for one model.
#[derive(Clone, Debug)]
pub struct Layout {
    family: Family,
    special: SpecialIds,
}

/// The ids that bidirectional families cannot do without.
#[derive(Clone, Copy)]
struct PieceIds {
    sop: TokenId,
    /// `[CLS]` and the end of Part A; ChatGLM-6B has neither.
    around: Option<(TokenId, TokenId)>,
}

impl Layout {
    /// The layout of a model; `special` are its ids, completed by its tokenizer
    /// ([`Tokenizer::specials`](crate::tokenizer::Tokenizer::specials)).
    ///
    /// # Errors
    /// [`Error::Config`] naming the special token that the family needs and the model lacks.
    pub fn new(spec: &ModelSpec, special: SpecialIds) -> Result<Self> {
        let layout = Self {
            family: spec.family,
            special,
        };
        match spec.family {
            family if family.fills_blanks() => {
                layout.piece_ids()?;
                if layout.masks().next().is_none() {
                    return Err(missing("mask_token_id"));
                }
            }
            _ => {
                layout.prefix()?;
            }
        }
        Ok(layout)
    }

    /// The family.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The special ids.
    #[must_use]
    pub const fn special(&self) -> &SpecialIds {
        &self.special
    }

    /// Kinds of blank that the model was trained to fill; none for causal families.
    pub fn masks(&self) -> impl Iterator<Item = MaskKind> + '_ {
        let fills = self.family.fills_blanks();
        (MaskKind::ALL.into_iter()).filter(move |kind| fills && self.mask_id(*kind).is_some())
    }

    /// A text with blanks ([`encode_with_masks`](crate::tokenizer::Tokenizer::encode_with_masks)).
    /// The model's own id of each mask is used, whatever id the pieces carry.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a causal family, [`Error::Input`] for a text without a blank or with a
    /// mask that the model does not know, [`Error::TooLong`] for a text that does not fit.
    pub fn infill(&self, pieces: &[Piece], fit: Fit) -> Result<Prompt> {
        if !self.family.fills_blanks() {
            return Err(Error::Unsupported {
                what: "filling blanks",
                family: self.family.name(),
                hint: "it writes on from the end of a text: use generate or chat",
            });
        }
        for piece in pieces {
            if let Piece::Mask { kind, .. } = piece {
                self.known(*kind)?;
            }
        }
        if !pieces.iter().any(|p| matches!(p, Piece::Mask { .. })) {
            return Err(Error::Input {
                field: "text",
                reason: format!(
                    "has no blank; write {} where something is missing",
                    self.mask_names()
                ),
            });
        }
        self.blanks(pieces.to_vec(), fit)
    }

    /// A text to be continued: a blank at its end, or the text alone for causal families.
    ///
    /// # Errors
    /// [`Error::TooLong`] for a text that does not fit.
    pub fn complete(&self, ids: Vec<TokenId>, fit: Fit) -> Result<Prompt> {
        if self.family.fills_blanks() {
            let kind = match self.special.gmask {
                Some(_) => MaskKind::Document,
                None => MaskKind::Span,
            };
            let id = self.known(kind)?;
            return self.blanks(vec![Piece::Text(ids), Piece::Mask { kind, id }], fit);
        }
        self.causal(self.prefix()?, vec![Piece::Text(ids)], fit)
    }

    /// A cloze: a text with exactly one blank. Causal families take it when the blank is at the end.
    ///
    /// # Errors
    /// [`Error::Input`] for another number of blanks or, in causal families, text behind the blank;
    /// [`Error::TooLong`] for a text that does not fit.
    pub fn cloze(&self, pieces: &[Piece], fit: Fit) -> Result<Prompt> {
        let is_mask = |p: &Piece| matches!(p, Piece::Mask { .. });
        let input = |reason: &str| Error::Input {
            field: "pattern",
            reason: reason.to_owned(),
        };
        if pieces.iter().filter(|p| is_mask(p)).count() != 1 {
            return Err(input("must have exactly one blank"));
        }
        if self.family.fills_blanks() {
            return self.infill(pieces, fit);
        }
        match pieces.split_last() {
            Some((last, text)) if is_mask(last) => self.causal(self.prefix()?, text.to_vec(), fit),
            _ => Err(input(
                "has text behind its blank; this model only writes on from the end, put the blank last",
            )),
        }
    }

    /// A conversation whose ids are complete (role tokens and all). Nothing of it is ever cut away.
    ///
    /// # Errors
    /// [`Error::TooLong`] for a conversation that does not fit.
    pub fn conversation(&self, ids: Vec<TokenId>, limit: usize) -> Result<Prompt> {
        let fit = Fit {
            limit,
            truncation: Truncation::Refuse,
        };
        if self.family.fills_blanks() {
            return self.complete(ids, fit);
        }
        self.causal(Vec::new(), vec![Piece::Text(ids)], fit)
    }

    /// Tokens that a prompt has besides the text and the masks.
    #[must_use]
    pub fn overhead(&self) -> usize {
        match self.piece_ids() {
            Ok(ids) => 1 + ids.around.map_or(0, |_| 2),
            Err(_) => self.prefix().map_or(0, |p| p.len()),
        }
    }

    /// What stands before every text of a causal family.
    ///
    /// # Errors
    /// [`Error::Config`] naming the token that is missing.
    pub(crate) fn prefix(&self) -> Result<Vec<TokenId>> {
        match self.family {
            Family::ChatGlm2 | Family::ChatGlm3 | Family::Glm4 | Family::Glm40414 => Ok(vec![
                self.special
                    .gmask
                    .ok_or_else(|| missing("gmask_token_id"))?,
                self.special.sop.ok_or_else(|| missing("sop_token_id"))?,
            ]),
            Family::GlmEdge | Family::Glm | Family::ChatGlm => Ok(Vec::new()),
        }
    }

    fn piece_ids(&self) -> Result<PieceIds> {
        if !self.family.fills_blanks() {
            return Err(missing("sop_token_id"));
        }
        let around = match self.family {
            Family::ChatGlm => None,
            _ => Some((
                self.special.cls.ok_or_else(|| missing("cls_token_id"))?,
                // In every released model one token ends texts and pads them.
                (self.special.part_a_end)
                    .or(self.special.eos.first().copied())
                    .or(self.special.pad)
                    .ok_or_else(|| missing("part_a_end_token_id"))?,
            )),
        };
        Ok(PieceIds {
            sop: self.special.sop.ok_or_else(|| missing("sop_token_id"))?,
            around,
        })
    }

    const fn mask_id(&self, kind: MaskKind) -> Option<TokenId> {
        match kind {
            MaskKind::Span => self.special.mask,
            MaskKind::Sentence => self.special.smask,
            MaskKind::Document => self.special.gmask,
        }
    }

    fn known(&self, kind: MaskKind) -> Result<TokenId> {
        self.mask_id(kind).ok_or_else(|| Error::Input {
            field: "text",
            reason: format!(
                "this model has no {}; it fills {}",
                kind.marker(),
                self.mask_names()
            ),
        })
    }

    fn mask_names(&self) -> String {
        let names: Vec<&str> = self.masks().map(MaskKind::marker).collect();
        match names.split_last() {
            Some((last, [])) => (*last).to_owned(),
            Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
            None => "no blanks".to_owned(),
        }
    }

    fn blanks(&self, mut pieces: Vec<Piece>, fit: Fit) -> Result<Prompt> {
        let ids = self.piece_ids()?;
        let document_last = matches!(
            pieces.last(),
            Some(Piece::Mask {
                kind: MaskKind::Document,
                ..
            })
        );
        let around = match ids.around {
            None => 0,
            Some(_) if document_last => 1,
            Some(_) => 2,
        };
        // One more for the start of the first piece.
        let removed = fit_pieces(&mut pieces, around + 1, fit)?;
        let mut part_a = Vec::new();
        let mut blanks = Vec::new();
        part_a.extend(ids.around.map(|(cls, _)| cls));
        for piece in pieces {
            match piece {
                Piece::Text(text) => part_a.extend(text),
                Piece::Mask { kind, .. } => {
                    blanks.push(Blank {
                        kind,
                        mask: position(part_a.len())?,
                    });
                    part_a.push(self.known(kind)?);
                }
            }
        }
        part_a.extend(ids.around.filter(|_| !document_last).map(|(_, end)| end));
        let first = blanks.first().map_or(0, |b| b.mask);
        Ok(Prompt {
            bidirectional: part_a.len(),
            tokens: open(&part_a, ids.sop, first)?,
            blanks,
            removed,
        })
    }

    fn causal(&self, prefix: Vec<TokenId>, mut pieces: Vec<Piece>, fit: Fit) -> Result<Prompt> {
        let removed = fit_pieces(&mut pieces, prefix.len(), fit)?;
        let mut ids = prefix;
        for piece in pieces {
            match piece {
                Piece::Text(text) => ids.extend(text),
                Piece::Mask { id, .. } => ids.push(id),
            }
        }
        if ids.is_empty() {
            return Err(Error::Input {
                field: "text",
                reason: "is empty; there must be something to go on from".to_owned(),
            });
        }
        Ok(Prompt {
            tokens: in_line(&ids)?,
            bidirectional: 0,
            blanks: Vec::new(),
            removed,
        })
    }
}

/// Part A and the start of the piece that fills the mask at `mask`.
pub(super) fn open(part_a: &[TokenId], sop: TokenId, mask: u32) -> Result<Vec<Placed>> {
    let mut tokens = in_line(part_a)?;
    tokens.push(Placed {
        id: sop,
        position: Position::piece(mask, 1),
    });
    Ok(tokens)
}

fn in_line(ids: &[TokenId]) -> Result<Vec<Placed>> {
    ids.iter()
        .enumerate()
        .map(|(index, id)| {
            Ok(Placed {
                id: *id,
                position: Position::context(position(index)?),
            })
        })
        .collect()
}

fn position(index: usize) -> Result<u32> {
    u32::try_from(index).map_err(|_| Error::TooLong {
        needed: index,
        limit: u32::MAX as usize,
        hint: "shorten the text",
    })
}

/// Makes the pieces and `others` more tokens fit. Returns how many tokens went.
fn fit_pieces(pieces: &mut Vec<Piece>, others: usize, fit: Fit) -> Result<usize> {
    let length: usize = pieces
        .iter()
        .map(|p| match p {
            Piece::Text(ids) => ids.len(),
            Piece::Mask { .. } => 1,
        })
        .sum();
    let needed = length + others;
    let excess = needed.saturating_sub(fit.limit);
    let rest = match fit.truncation {
        Truncation::Cut => around_masks(pieces, excess),
        Truncation::Refuse => excess,
    };
    match rest {
        0 => Ok(excess),
        _ => Err(Error::TooLong {
            needed,
            limit: fit.limit,
            hint: "shorten the text or ask for fewer tokens",
        }),
    }
}

fn missing(key: &str) -> Error {
    Error::Config {
        key: key.to_owned(),
        reason: "is needed by this family, and neither config.json nor the tokenizer gives it"
            .to_owned(),
    }
}
