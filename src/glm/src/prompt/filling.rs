//! What the model reads after each token that it wrote.

use std::sync::Arc;

use super::layout::open;
use super::{Blank, Layout, Placed, Prompt, advance};
use crate::{Position, Result, TokenId};

/// How several blanks are filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// One piece after the other, each seeing those before it: what GLM was trained for.
    #[default]
    Pieces,
    /// A finished piece takes the place of its mask, and the text is read anew for the next blank:
    /// how GLM-130B is run.
    Splice,
}

/// What the model reads next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// These tokens follow what it has read.
    More(Vec<Placed>),
    /// It reads anew from the beginning.
    Anew {
        /// All tokens.
        tokens: Vec<Placed>,
        /// Length of Part A.
        bidirectional: usize,
    },
    /// Nothing: all is written.
    Nothing,
}

/// State of one answer: which blank is being filled and where its next token sits.
///
/// Blanks are filled in the order of the text. A piece ends with an end token, which is never
/// read, or when it has its most tokens; the next one begins with `sop` at its own mask.
#[derive(Clone, Debug)]
pub struct Filling {
    ends: Arc<[TokenId]>,
    /// Most sampled tokens of each piece.
    limits: Arc<[usize]>,
    blank: usize,
    /// Tokens of the present piece.
    written: usize,
    /// Where the next token sits.
    next: Position,
    plan: Plan,
}

#[derive(Clone, Debug)]
enum Plan {
    /// One text that goes on.
    Line,
    Pieces {
        sop: TokenId,
        blanks: Arc<[Blank]>,
    },
    Splice {
        sop: TokenId,
        /// Part A with the finished pieces in it.
        part_a: Vec<TokenId>,
        /// Masks that are still in it.
        masks: Vec<u32>,
        piece: Vec<TokenId>,
    },
}

impl Filling {
    /// The state after reading `prompt`. `limits` are the most tokens of each blank; where it is
    /// too short, its last entry counts.
    #[must_use]
    pub fn new(layout: &Layout, prompt: &Prompt, limits: &[usize], order: Order) -> Self {
        let special = layout.special();
        let ends: Vec<TokenId> = special
            .eop
            .into_iter()
            .chain(special.eos.iter().copied())
            .collect();
        let plan = match (special.sop, prompt.blanks.as_slice(), order) {
            (_, [], _) | (None, ..) => Plan::Line,
            (Some(sop), blanks, Order::Pieces) => Plan::Pieces {
                sop,
                blanks: blanks.into(),
            },
            (Some(sop), blanks, Order::Splice) => Plan::Splice {
                sop,
                part_a: prompt.ids().take(prompt.bidirectional).collect(),
                masks: blanks.iter().rev().map(|b| b.mask).collect(),
                piece: Vec::new(),
            },
        };
        Self {
            ends: ends.into(),
            limits: limits.into(),
            blank: 0,
            written: 0,
            next: prompt.next_position(),
            plan,
        }
    }

    /// Index of the blank that the next token belongs to.
    #[must_use]
    pub const fn blank(&self) -> usize {
        self.blank
    }

    /// Whether a token would be part of an answer, rather than end a piece.
    #[must_use]
    pub fn is_text(&self, id: TokenId) -> bool {
        !self.ends.contains(&id)
    }

    /// Takes a token that the model wrote.
    ///
    /// # Errors
    /// [`Error::TooLong`](crate::Error::TooLong) when a spliced text has more tokens than positions can count.
    pub fn push(&mut self, id: TokenId) -> Result<Read> {
        if !self.is_text(id) {
            return self.next_piece(None);
        }
        let placed = self.place(id);
        if self.written >= self.limit() {
            return self.next_piece(Some(placed));
        }
        Ok(Read::More(vec![placed]))
    }

    /// Takes a token that the model wrote and ends its piece, as when a stop string is complete.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_last(&mut self, id: TokenId) -> Result<Read> {
        if !self.is_text(id) {
            return self.next_piece(None);
        }
        let placed = self.place(id);
        self.next_piece(Some(placed))
    }

    /// Most tokens that are read beyond one for each token written: the start of a piece that
    /// follows a piece without an end token.
    #[must_use]
    pub fn overhead(&self) -> usize {
        match &self.plan {
            Plan::Pieces { blanks, .. } => blanks.len() - 1 - self.blank.min(blanks.len() - 1),
            Plan::Line | Plan::Splice { .. } => 0,
        }
    }

    /// Whether it may answer [`Read::Anew`].
    #[must_use]
    pub const fn restarts(&self) -> bool {
        matches!(&self.plan, Plan::Splice { masks, .. } if masks.len() > 1)
    }

    fn place(&mut self, id: TokenId) -> Placed {
        let position = self.next;
        self.next = advance(self.next, 1);
        self.written += 1;
        if let Plan::Splice { piece, .. } = &mut self.plan {
            piece.push(id);
        }
        Placed { id, position }
    }

    fn limit(&self) -> usize {
        let limit = self.limits.get(self.blank).or(self.limits.last());
        limit.copied().unwrap_or(usize::MAX)
    }

    /// `unread` is a token that ends its piece without an end token: later pieces see it.
    fn next_piece(&mut self, unread: Option<Placed>) -> Result<Read> {
        self.written = 0;
        match &mut self.plan {
            Plan::Line => Ok(Read::Nothing),
            Plan::Pieces { sop, blanks } => {
                let Some(blank) = blanks.get(self.blank + 1) else {
                    return Ok(Read::Nothing);
                };
                self.blank += 1;
                let start = Placed {
                    id: *sop,
                    position: Position::piece(blank.mask, 1),
                };
                self.next = advance(start.position, 1);
                Ok(Read::More(unread.into_iter().chain([start]).collect()))
            }
            Plan::Splice {
                sop,
                part_a,
                masks,
                piece,
            } => {
                if masks.len() < 2 {
                    return Ok(Read::Nothing);
                }
                let Some(mask) = masks.pop() else {
                    return Ok(Read::Nothing);
                };
                // What follows the mask moves by the length of the piece less the mask itself.
                let grown = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                for later in masks.iter_mut() {
                    *later = later.saturating_add(grown).saturating_sub(1);
                }
                let at = mask as usize;
                part_a.splice(at..at + 1, piece.drain(..));
                let tokens = open(part_a, *sop, masks.last().copied().unwrap_or_default())?;
                self.blank += 1;
                self.next = match tokens.last() {
                    Some(start) => advance(start.position, 1),
                    None => Position::default(),
                };
                Ok(Read::Anew {
                    bidirectional: part_a.len(),
                    tokens,
                })
            }
        }
    }
}
