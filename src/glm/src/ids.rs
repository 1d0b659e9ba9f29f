//! Newtypes for the numbers that travel with a prompt.
//!
//! A token id, a token count and a position are all small integers and are
//! easily swapped in a call; the compiler keeps them apart here.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Row of the embedding table that stands for one piece of text.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct TokenId(pub u32);

impl TokenId {
    /// Index into a row of logits or into the embedding table.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl From<u32> for TokenId {
    fn from(id: u32) -> Self {
        Self(id)
    }
}

impl From<TokenId> for i64 {
    fn from(id: TokenId) -> Self {
        Self::from(id.0)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of tokens: a length, a budget or a limit.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Tokens(pub usize);

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0)
    }
}

/// Where a token sits.
///
/// Causal families use `first` alone (0, 1, 2, ...) and leave `second` at 0.
/// The 2D families place a blank's piece at the index of its mask token
/// (`first`) and count inside the piece from 1 (`second`); text that is given
/// has `second` = 0. Source: GLM (ACL 2022) section 2.1, with positions
/// counted from 0 as the released code does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Index in the given text, or of the mask token that a piece fills.
    pub first: u32,
    /// Offset inside a piece, from 1; 0 in the given text.
    pub second: u32,
}

impl Position {
    /// Position of a token of the given text (Part A).
    #[must_use]
    pub const fn context(index: u32) -> Self {
        Self {
            first: index,
            second: 0,
        }
    }

    /// Position of the `offset`-th token (from 1) of the piece that fills the mask at `mask`.
    #[must_use]
    pub const fn piece(mask: u32, offset: u32) -> Self {
        Self {
            first: mask,
            second: offset,
        }
    }
}
