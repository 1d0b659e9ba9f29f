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

/// Most tokens that are run, taken evenly from all of the text: ranges hardly
/// grow any more, a model of billions of weights takes minutes for so many, and
/// the widest activations of all of them are in memory at once.
const MOST_TOKENS: usize = 1024;
/// Least of them: fewer say nothing about a model.
const LEAST_TOKENS: usize = 128;
/// Texts with fewer tokens have no middle to leave out.
const SHORTEST: usize = 4;

/// Runs the lines of `text` in the form that the family reads, in pieces of up
/// to `step` tokens; where there are too many, some from everywhere in the text.
pub(super) fn ranges(
    spec: &ModelSpec,
    tokenizer: &Tokenizer,
    weights: &dyn Weights,
    (text, step): (&str, usize),
    threads: usize,
    watch: Watch<'_>,
) -> Result<Ranges> {
    let layout = Layout::new(spec, spec.special.clone())?;
    // A mask more than the text, and what the family adds.
    let most = step.saturating_sub(layout.overhead() + 1).max(SHORTEST);
    let mut pieces = Vec::new();
    for line in text.lines() {
        let ids = tokenizer.encode_plain(line.trim())?;
        let usable = ids.chunks(most).filter(|piece| piece.len() >= SHORTEST);
        pieces.extend(usable.map(<[TokenId]>::to_vec));
    }
    let prompts = spread(pieces, MOST_TOKENS)
        .map(|ids| prompt(&layout, &ids, step))
        .collect::<Result<Vec<_>>>()?;
    let tokens: usize = prompts.iter().map(|prompt| prompt.ids.len()).sum();
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

/// Pieces of about `most` tokens together, evenly from all of them.
fn spread(pieces: Vec<Vec<TokenId>>, most: usize) -> impl Iterator<Item = Vec<TokenId>> {
    let all: usize = pieces.iter().map(Vec::len).sum();
    // Tokens that may be taken so far, times all tokens; what was taken is subtracted.
    let mut room = 0;
    pieces.into_iter().filter(move |piece| {
        room += piece.len() * most.min(all);
        let taken = room >= piece.len() * all;
        if taken {
            room -= piece.len() * all;
        }
        taken
    })
}

/// A text with its middle third left out, and that third as the answer; the whole text for families that write on.
fn prompt(layout: &Layout, ids: &[TokenId], step: usize) -> Result<Prompt> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(lengths: &[usize]) -> Vec<Vec<TokenId>> {
        let piece =
            |(n, length): (usize, &usize)| vec![TokenId(u32::try_from(n).unwrap()); *length];
        lengths.iter().enumerate().map(piece).collect()
    }

    fn taken(lengths: &[usize], most: usize) -> Vec<u32> {
        let pieces = spread(pieces(lengths), most);
        pieces.map(|piece| piece[0].0).collect()
    }

    #[test]
    fn what_fits_is_taken_whole() {
        assert_eq!(taken(&[5, 9, 7], 21), [0, 1, 2]);
        assert_eq!(taken(&[5, 9, 7], 1000), [0, 1, 2]);
        assert_eq!(taken(&[], 10), [0; 0]);
    }

    #[test]
    fn more_is_taken_from_everywhere() {
        assert_eq!(taken(&[10; 12], 40), [2, 5, 8, 11]);
        let lengths: Vec<usize> = (0..500).map(|n| 4 + n * 7 % 60).collect();
        let found = taken(&lengths, 1000);
        let tokens: usize = found.iter().map(|n| lengths[*n as usize]).sum();
        assert!((900..=1000).contains(&tokens), "{tokens}");
        let in_half =
            |half: std::ops::Range<u32>| found.iter().filter(|n| half.contains(n)).count();
        assert!(
            in_half(0..250).abs_diff(in_half(250..500)) <= 4,
            "{found:?}"
        );
    }
}
