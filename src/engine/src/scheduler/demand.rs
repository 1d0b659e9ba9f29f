//! How many blocks of the key/value cache a request may need at most.
//!
//! Nothing is admitted without a reservation for its worst case, so a request
//! that runs is never stopped for want of blocks.

use crate::backend::Capabilities;
use crate::request::{ScoreItem, Work};

/// The worst case of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Parts that could run side by side: 1 for answers, the number of items for scores.
    pub parts: usize,
    /// Blocks of the largest part.
    pub blocks: usize,
    /// Sequences of the largest part.
    pub sequences: usize,
}

impl Demand {
    /// Of `work` on a backend that can do `capabilities`.
    #[must_use]
    pub fn of(work: &Work, capabilities: &Capabilities) -> Self {
        match work {
            Work::Generate(g) => Self {
                parts: 1,
                blocks: shared(
                    g.prompt.tokens.len(),
                    (0..g.n).map(|_| g.growth()),
                    capabilities.fork && !g.writer.restarts(),
                    capabilities.block_tokens,
                ),
                sequences: g.n,
            },
            Work::Score(items) => Self {
                parts: items.len(),
                blocks: items
                    .iter()
                    .map(|item| of_item(item, capabilities))
                    .max()
                    .unwrap_or(0),
                // Candidates of one token are read off the prompt's logits.
                sequences: items
                    .iter()
                    .map(|item| {
                        item.candidates
                            .iter()
                            .filter(|c| c.len() > 1)
                            .count()
                            .max(1)
                    })
                    .max()
                    .unwrap_or(1),
            },
        }
    }

    /// How many parts may run side by side in `blocks` blocks and `sequences` sequences; 0 when not even one.
    #[must_use]
    pub fn parts_in(&self, blocks: usize, sequences: usize) -> usize {
        if self.blocks > blocks {
            return 0;
        }
        let by_blocks = blocks / self.blocks.max(1);
        let by_sequences = (sequences / self.sequences.max(1)).max(1);
        self.parts.min(by_blocks).min(by_sequences).max(1)
    }
}

fn of_item(item: &ScoreItem, capabilities: &Capabilities) -> usize {
    let tails = item
        .candidates
        .iter()
        .map(|c| c.len().saturating_sub(1))
        .filter(|tail| *tail > 0);
    shared(
        item.prompt.tokens.len(),
        tails,
        capabilities.fork,
        capabilities.block_tokens,
    )
}

/// Blocks of a prompt and of what follows it on several branches.
fn shared(prompt: usize, tails: impl Iterator<Item = usize>, share: bool, size: usize) -> usize {
    let size = size.max(1);
    // Without sharing every branch holds the prompt itself; with it only the
    // block in which the prompt ends is copied.
    let common = match share {
        true => prompt / size,
        false => 0,
    };
    let branches = tails
        .map(|tail| prompt.saturating_add(tail).div_ceil(size) - common)
        .fold(0, usize::saturating_add);
    // The prompt stands alone until it branches. What the prefix cache keeps is
    // not counted: it is given up when blocks are short.
    common.saturating_add(branches).max(prompt.div_ceil(size))
}
