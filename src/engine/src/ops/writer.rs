//! The state of a filling, as the engine drives it.

use glm::TokenId;
use glm::prompt::{Filling, Read};

use crate::error::Result;
use crate::request::{Context, Next, Writer};

/// A [`Filling`] in the engine.
#[derive(Clone, Debug)]
pub(super) struct Blanks {
    filling: Filling,
    trims: bool,
}

impl Blanks {
    /// `trims`: pieces begin with their first word.
    pub(super) const fn new(filling: Filling, trims: bool) -> Self {
        Self { filling, trims }
    }
}

fn next(read: Read) -> Next {
    match read {
        Read::More(tokens) => Next::Feed(tokens),
        Read::Anew {
            tokens,
            bidirectional,
        } => Next::Restart(Context {
            tokens,
            bidirectional,
        }),
        Read::Nothing => Next::Done,
    }
}

impl Writer for Blanks {
    fn blank(&self) -> usize {
        self.filling.blank()
    }

    fn is_text(&self, id: TokenId) -> bool {
        self.filling.is_text(id)
    }

    fn push(&mut self, sampled: TokenId) -> Result<Next> {
        Ok(next(self.filling.push(sampled)?))
    }

    fn cut(&mut self, sampled: TokenId) -> Result<Next> {
        Ok(next(self.filling.push_last(sampled)?))
    }

    fn trims(&self) -> bool {
        self.trims
    }

    fn overhead(&self) -> usize {
        self.filling.overhead()
    }

    fn restarts(&self) -> bool {
        self.filling.restarts()
    }

    fn fork(&self) -> Box<dyn Writer> {
        Box::new(self.clone())
    }
}
