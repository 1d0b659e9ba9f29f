"""GLM's objective: blanks in a text (Part A) and the pieces that fill them (Part B).

Part A is `[CLS]`, the text with a mask token for every blank and, unless it
ends in `[gMASK]`, the end token. Each piece is `<|startofpiece|>` and the
blank's tokens; its labels are the same tokens and `<|endofpiece|>`. `pos0` of
a piece is the index of its mask token in Part A, `pos1` counts from 1 within
the piece; Part A has its own index and 0. Part A sees itself, a piece sees
Part A and everything before itself.
"""

from dataclasses import dataclass

import numpy as np

from common import CLS, EOP, EOS, GMASK, MASK, SMASK, SOP


@dataclass
class Sample:
    """One sequence. `labels` is -1 where nothing is predicted; `weights` weighs the others."""

    ids: np.ndarray
    pos0: np.ndarray
    pos1: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    sep: int

    def __len__(self):
        return len(self.ids)


# Weight of the extra label at a short blank's own mask token; see `layout`.
HINT = 0.5


def layout(parts, pieces, order=None, weights=None, hint=0.0):
    """A sample from `parts`, a list of token lists and mask ids in text order.

    `pieces[i]` fills the i-th mask of `parts`; `order` is the order of the
    pieces in Part B. With `hint`, the mask tokens themselves are asked for the
    first token of their piece, with that weight: their own states are what a
    piece's first token has to look at, and are learnt faster for being asked.
    """
    a, masks = [CLS], []
    for part in parts:
        if isinstance(part, int):
            masks.append(len(a))
            a.append(part)
        else:
            a.extend(part)
    if a[-1] != GMASK:
        a.append(EOS)
    sep = len(a)
    ids, pos0, pos1 = a, list(range(sep)), [0] * sep
    labels, weight = [-1] * sep, [0.0] * sep
    for i in order if order is not None else range(len(pieces)):
        piece = list(pieces[i])
        ids = ids + [SOP] + piece
        labels += piece + [EOP]
        pos0 += [masks[i]] * (len(piece) + 1)
        pos1 += range(1, len(piece) + 2)
        weight += [1.0 if weights is None else weights[i]] * (len(piece) + 1)
        if hint:
            labels[masks[i]] = piece[0] if piece else EOP
            weight[masks[i]] = hint
    return Sample(np.array(ids), np.array(pos0), np.array(pos1), np.array(labels),
                  np.array(weight, dtype=np.float32), sep)


def visible(length, sep):
    """bool [length, length]: row i sees column j."""
    j = np.arange(length)
    return (j[None, :] < sep) | (j[None, :] <= j[:, None])


class Words:
    """Where words begin and end, told from tokens."""

    def __init__(self, tokenizer):
        size = tokenizer.get_vocab_size()
        spell = [tokenizer.id_to_token(i) for i in range(size)]
        first = [s[0] if s else "" for s in spell]
        # Byte-level spelling: U+0120 is a space, characters of 0xE3..0xE9 lead Chinese ones.
        chinese = [s and 0xE3 <= ord(s[0]) <= 0xE9 and len(s) >= 3 for s in spell]
        self.begins = np.array([f == "\u0120" or bool(c) for f, c in zip(first, chinese)])
        self.breaks = self.begins | np.array([not (f.isascii() and f.isalnum()) and not (f and ord(f) >= 0x80) or bool(c)
                                              for f, c in zip(first, chinese)])
        self.breaks |= np.array([f == "\u010a" for f in first])
        ends = [s.replace("\u0120", "")[-1:] in list(".!?;") or s.endswith("\u010a") or s in ("\u00e3\u0122\u0124",) for s in spell]
        self.ends = np.array(ends)
        vocab = tokenizer.get_vocab()
        self.unspaced = np.array([vocab.get(s[1:], i) if s.startswith("\u0120") else i for i, s in enumerate(spell)])


def cut(ids, spans, mask=MASK):
    """Parts and pieces of a text whose `spans` (sorted, disjoint) become blanks."""
    parts, pieces, at = [], [], 0
    for a, b in spans:
        parts += [ids[at:a].tolist(), mask]
        pieces.append(ids[a:b].tolist())
        at = b
    parts.append(ids[at:].tolist())
    return [p for p in parts if not isinstance(p, list) or p], pieces


@dataclass(frozen=True)
class Lengths:
    """Lengths of short blanks: `words` at random in this share of them, Poisson(3) tokens in the others."""

    share: float = 0.5
    words: tuple = (1, 1, 2, 3)


def word_spans(ids, words, rng, ratio, lengths=Lengths()):
    """Spans of whole words of the wanted lengths until `ratio` of the text is covered."""
    n = len(ids)
    starts = np.flatnonzero(words.begins[ids])
    if n > 1 and rng.random() < 0.1:
        starts = np.append(starts, 0)
    if not len(starts):
        return []
    breaks = words.breaks[ids]
    taken = np.zeros(n + 1, dtype=bool)
    spans, covered = [], 0
    for start in rng.permutation(starts):
        if covered >= max(1, ratio * n):
            break
        if rng.random() < lengths.share:
            left, end = rng.choice(lengths.words), start + 1
            while end < n:
                if breaks[end]:
                    left -= 1
                    if left == 0 or not words.begins[ids[end]]:
                        break
                end += 1
        else:
            end = min(n, start + 1 + min(int(rng.poisson(2)), 12))
            while end < n and not breaks[end]:
                end += 1
        if end - start > max(2, n // 2) or taken[max(0, start - 1):end + 1].any():
            continue
        taken[start:end] = True
        covered += end - start
        spans.append((int(start), int(end)))
    return sorted(spans)


def infill(ids, words, rng, ratio=0.2, lengths=Lengths()):
    """Short blanks, their pieces shuffled."""
    spans = word_spans(ids, words, rng, ratio, lengths)
    if not spans:
        return None
    parts, pieces = cut(ids, spans)
    return layout(parts, pieces, rng.permutation(len(pieces)), hint=HINT)


def sentences(ids, words, rng, ratio=0.15):
    """Whole sentences as `[sMASK]` blanks."""
    edges = [0, *(np.flatnonzero(words.ends[ids]) + 1).tolist()]
    found = [(a, b) for a, b in zip(edges, edges[1:]) if 3 <= b - a <= 60 and (a == 0 or words.begins[ids[a]])]
    if len(found) < 2:
        return infill(ids, words, rng)
    spans, covered = [], 0
    for i in rng.permutation(len(found)):
        if covered >= ratio * len(ids):
            break
        spans.append(found[i])
        covered += found[i][1] - found[i][0]
    parts, pieces = cut(ids, sorted(spans), SMASK)
    return layout(parts, pieces, rng.permutation(len(pieces)))


def document(ids, words, rng):
    """The last 50 to 100 % of a text as one `[gMASK]` blank."""
    n = len(ids)
    want = int(n * (1 - rng.uniform(0.5, 1.0)))
    starts = np.flatnonzero(words.begins[ids])
    start = 0 if not len(starts) else int(starts[np.abs(starts - want).argmin()])
    return layout([ids[:start].tolist(), GMASK] if start else [GMASK], [ids[start:].tolist()])


def cloze(text, before, after, label, words, rng, blanks, weight):
    """`{text}{before}[MASK]{after}` with a label word; `blanks` of the text's words are blanks too."""
    spans = word_spans(text, words, rng, 0.12) if blanks else []
    parts, pieces = cut(text, spans)
    parts += [before, MASK, after]
    pieces.append([label])
    order = rng.permutation(len(pieces))
    return layout(parts, pieces, order, [1.0] * len(spans) + [weight], HINT)


def pair(question, answer, weight=1.0):
    """`{question}[gMASK]` with its answer."""
    return layout([question.tolist(), GMASK], [answer.tolist()], weights=[weight])
