//! What a model reads: ids, two positions a token, and who sees whom.
//!
//! GLM reads a text with blanks (**Part A**, every token sees every other) and
//! then writes one piece for each blank (**Part B**, each token sees Part A,
//! the earlier pieces and what stands before it in its own piece). For
//!
//! ```text
//! [CLS] a b [MASK] c eos | sop y1 y2
//! ```
//!
//! the positions are
//!
//! ```text
//! first   0 1 2 3 4 5 | 3 3 3      in Part A the index, in a piece the index of its mask
//! second  0 0 0 0 0 0 | 1 2 3      0 in Part A, in a piece counted from its start token
//! ```
//!
//! The logits at `sop` predict `y1`. The families differ in data alone:
//!
//! | family | Part A | a piece begins | positions |
//! |---|---|---|---|
//! | GLM | `[CLS]` text with masks, closed by the end token unless it ends in `[gMASK]` | `sop` | 2D |
//! | ChatGLM-6B | text with masks; `[gMASK]` behind a text without one | `sop` | 2D |
//! | ChatGLM2, ChatGLM3, GLM-4, GLM-4-0414 | none: `[gMASK] sop` and the text, causal | after the text | 1D |
//! | GLM-Edge | none: the text, causal | after the text | 1D |
//!
//! Source: GLM (ACL 2022) section 2.1, with positions counted from 0 as the
//! released code does; ChatGLM-6B's released model code for its positions.
//!
//! | item | what it is |
//! |---|---|
//! | [`Layout`] | how a family arranges a prompt |
//! | [`Prompt`] | the arranged prompt |
//! | [`Filling`] | what the model reads after each token it wrote |
//! | [`Order`] | whether pieces follow each other or are spliced into the text |
//! | [`fill`] | the text with its blanks filled |

mod filling;
mod layout;
mod text;
mod truncate;

pub use filling::{Filling, Order, Read};
pub use layout::{Fit, Layout, Truncation};
pub use text::{Join, Segment, fill, segments};

use crate::tokenizer::MaskKind;
use crate::{Position, TokenId};

/// A token and where the model is told that it sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placed {
    /// The token.
    pub id: TokenId,
    /// Its position.
    pub position: Position,
}

/// A place where the model writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Blank {
    /// Kind of its mask.
    pub kind: MaskKind,
    /// Index of its mask token in Part A.
    pub mask: u32,
}

/// A prompt up to the place where the model begins to write: the logits of
/// the last token predict the first new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Part A and the start of the first piece; the whole text for causal families.
    pub tokens: Vec<Placed>,
    /// Length of Part A, whose tokens all see each other; 0 for causal families.
    pub bidirectional: usize,
    /// Blanks in the order of the text. Causal families have none: they write on from the end.
    pub blanks: Vec<Blank>,
    /// Tokens of the text that were cut away to make it fit.
    pub removed: usize,
}

impl Prompt {
    /// Token ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = TokenId> + '_ {
        self.tokens.iter().map(|t| t.id)
    }

    /// Positions, in order.
    pub fn positions(&self) -> impl Iterator<Item = Position> + '_ {
        self.tokens.iter().map(|t| t.position)
    }

    /// How many tokens, counted from the first, the token at `index` sees. Holds for the tokens of
    /// the prompt and for all that follow it.
    #[must_use]
    pub const fn visible(&self, index: usize) -> usize {
        if index < self.bidirectional {
            self.bidirectional
        } else {
            index + 1
        }
    }

    /// Where the tokens of an answer sit when the first blank is filled with them. The first token
    /// of an answer is predicted by the last token of the prompt.
    pub fn continuation(&self) -> impl Iterator<Item = Position> + use<> {
        let first = self.next_position();
        (0..).map(move |offset| advance(first, offset))
    }

    /// Where the token after the last one sits.
    fn next_position(&self) -> Position {
        match self.tokens.last() {
            Some(last) => advance(last.position, 1),
            None => Position::default(),
        }
    }
}

/// `offset` tokens on: a piece counts its second number, causal text its first.
const fn advance(position: Position, offset: u32) -> Position {
    // A model has at most u32 positions, so nothing saturates in a prompt that fits it.
    if position.second == 0 {
        Position::context(position.first.saturating_add(offset))
    } else {
        Position::piece(position.first, position.second.saturating_add(offset))
    }
}
