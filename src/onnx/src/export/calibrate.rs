//! Text through the model, to see how large its activations become.

use glm::ModelSpec;
use glm::prompt::{Filling, Fit, Layout, Order, Read, Truncation};
use glm::tokenizer::{MaskKind, Piece, Tokenizer};
use glm::{Position, TokenId};

use super::{Stage, Watch, tell};
use crate::calibration::{Observer, Ranges};
use crate::reference::{Prompt, Reference, Rounding, Wanted};
use crate::weights::Weights;
use crate::{Error, Result};

/// Most tokens that are run: ranges hardly grow any more, and a model of
/// billions of weights takes minutes for so many.
const MOST_TOKENS: usize = 1024;
/// Least of them: fewer say nothing about a model.
const LEAST_TOKENS: usize = 128;
/// Texts with fewer tokens have no middle to leave out.
const SHORTEST: usize = 4;

/// Runs the lines of `text` in the form that the family reads, none of them longer than `step` tokens.
pub(super) fn ranges(
    spec: &ModelSpec,
    tokenizer: &Tokenizer,
    weights: &dyn Weights,
    (text, step): (&str, usize),
    threads: usize,
    watch: Watch<'_>,
) -> Result<Ranges> {
    let layout = Layout::new(spec, spec.special.clone())?;
    let mut prompts = Vec::new();
    let mut tokens = 0;
    for line in text.lines() {
        let ids = tokenizer.encode_plain(line.trim())?;
        if ids.len() < SHORTEST {
            continue;
        }
        let prompt = prompt(&layout, &ids, step)?;
        tokens += prompt.ids.len();
        prompts.push(prompt);
        if tokens >= MOST_TOKENS {
            break;
        }
    }
    if tokens < LEAST_TOKENS {
        return Err(Error::Option {
            option: "calibrate",
            reason: format!(
                "the text has {tokens} tokens in lines that can be used, and at least \
                 {LEAST_TOKENS} are needed: a few dozen sentences, one a line"
            ),
        });
    }
    let observer = Observer::default();
    let layers = spec.layers as u64;
    Reference::new(spec, weights, threads)
        .seen_by(&observer)
        .logits(&prompts, Wanted::Last, |done| {
            tell(watch, Stage::Calibration, done as u64, layers)
        })?;
    Ok(observer.ranges())
}

/// A text with its middle third left out, and that third as the answer; the whole text for families that write on.
fn prompt(layout: &Layout, ids: &[TokenId], step: usize) -> Result<Prompt> {
    // A mask more than the text, and what the family adds.
    let most = step.saturating_sub(layout.overhead() + 1).max(SHORTEST);
    let ids = &ids[..ids.len().min(most)];
    let fit = Fit {
        limit: step,
        truncation: Truncation::Refuse,
    };
    let (prompt, answer) = match layout.masks().next() {
        None => (layout.complete(ids.to_vec(), fit)?, &[][..]),
        Some(kind) => {
            let (before, rest) = ids.split_at(ids.len() / 3);
            let (answer, behind) = rest.split_at(rest.len() / 2);
            let pieces = [
                Piece::Text(before.to_vec()),
                // The layout knows its id.
                mask(kind),
                Piece::Text(behind.to_vec()),
            ];
            (layout.infill(&pieces, fit)?, answer)
        }
    };
    let mut filling = Filling::new(layout, &prompt, &[usize::MAX], Order::Pieces);
    let mut placed = prompt.tokens.clone();
    for id in answer {
        if let Read::More(more) = filling.push(*id)? {
            placed.extend(more);
        }
    }
    let (ids, positions): (Vec<TokenId>, Vec<Position>) = (placed.iter())
        .map(|token| (token.id, token.position))
        .unzip();
    Ok(Prompt {
        ids,
        positions,
        bidirectional: prompt.bidirectional,
        rounding: Rounding::default(),
    })
}

const fn mask(kind: MaskKind) -> Piece {
    let id = TokenId(0);
    Piece::Mask { kind, id }
}
