//! Which tokens go when a prompt is too long. Masks and what a family adds never do.

use crate::tokenizer::Piece;

/// Removes `excess` tokens around the blanks: the text before the first mask loses its beginning,
/// the text behind the last mask its end, the longer of the two first. Text between masks stays,
/// since a hole in it would join what the author kept apart.
///
/// Returns how many tokens it could not remove.
pub(super) fn around_masks(pieces: &mut Vec<Piece>, excess: usize) -> usize {
    let head = leading(pieces.iter());
    let tail = match head.pieces == pieces.len() {
        // No mask at all: one text, which loses its beginning.
        true => Run::default(),
        false => leading(pieces.iter().rev()),
    };
    let removable = head.tokens + tail.tokens;
    let (keep_head, keep_tail) = share(head.tokens, tail.tokens, removable - excess.min(removable));
    cut_start(pieces, head.tokens - keep_head);
    cut_end(pieces, tail.tokens - keep_tail);
    pieces.retain(|piece| !matches!(piece, Piece::Text(ids) if ids.is_empty()));
    excess - excess.min(removable)
}

/// Text pieces at one end.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    pieces: usize,
    tokens: usize,
}

fn leading<'a>(pieces: impl Iterator<Item = &'a Piece>) -> Run {
    let mut run = Run::default();
    for piece in pieces {
        let Piece::Text(ids) = piece else { break };
        run.pieces += 1;
        run.tokens += ids.len();
    }
    run
}

/// Splits `keep` tokens between two texts so that the shorter one loses last.
const fn share(head: usize, tail: usize, keep: usize) -> (usize, usize) {
    let half = keep / 2;
    if tail <= half {
        (keep - tail, tail)
    } else if head <= keep - half {
        (head, keep - head)
    } else {
        (keep - half, half)
    }
}

fn cut_start(pieces: &mut [Piece], mut count: usize) {
    for piece in pieces {
        let Piece::Text(ids) = piece else { return };
        let cut = count.min(ids.len());
        ids.drain(..cut);
        count -= cut;
    }
}

fn cut_end(pieces: &mut [Piece], mut count: usize) {
    for piece in pieces.iter_mut().rev() {
        let Piece::Text(ids) = piece else { return };
        let cut = count.min(ids.len());
        ids.truncate(ids.len() - cut);
        count -= cut;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenId;
    use crate::tokenizer::MaskKind;

    fn text(ids: std::ops::Range<u32>) -> Piece {
        Piece::Text(ids.map(TokenId).collect())
    }

    fn mask() -> Piece {
        Piece::Mask {
            kind: MaskKind::Span,
            id: TokenId(0),
        }
    }

    #[test]
    fn the_longer_side_goes_first() {
        let mut pieces = vec![text(10..20), mask(), text(30..33)];
        assert_eq!(around_masks(&mut pieces, 6), 0);
        assert_eq!(pieces, [text(16..20), mask(), text(30..33)]);
        let mut pieces = vec![text(10..20), mask(), text(30..33)];
        assert_eq!(around_masks(&mut pieces, 9), 0);
        assert_eq!(pieces, [text(18..20), mask(), text(30..32)]);
    }

    #[test]
    fn text_between_masks_stays() {
        let mut pieces = vec![text(1..3), mask(), text(5..9), mask(), text(9..10)];
        assert_eq!(around_masks(&mut pieces, 7), 4);
        assert_eq!(pieces, [mask(), text(5..9), mask()]);
    }

    #[test]
    fn text_without_masks_loses_its_beginning() {
        let mut pieces = vec![text(0..4), text(4..8)];
        assert_eq!(around_masks(&mut pieces, 5), 0);
        assert_eq!(pieces, [text(5..8)]);
    }
}
