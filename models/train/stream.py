"""Training samples as a pure function of seed and step.

A step draws its own random generator from `(seed, step)`, so that resuming
needs no state but the step's number.
"""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

import objectives
from common import CORPUS, EOS
from data import GROUPS, LEVELS, TOPICS

# From which step on: shares of the processed tokens by group, the share of a
# text that becomes short blanks, and what a label counts, which is one token
# among hundreds. Towards the end the tasks that the model is
# measured on weigh more.
PHASES = [
    (0, {"wiki": .14, "help": .15, "device": .09, "recipes": .04, "wordnet": .05, "zh": .03,
         "topic": .17, "severity": .09, "intent_en": .18, "intent_zh": .06}, (0.05, 0.3), 4.0),
    (395, {"wiki": .17, "help": .20, "device": .13, "recipes": .02, "wordnet": .04, "zh": .02,
           "topic": .15, "severity": .07, "intent_en": .15, "intent_zh": .05}, (0.1, 0.35), 4.0),
    (600, {"wiki": .15, "help": .18, "device": .13, "recipes": .01, "wordnet": .03, "zh": .01,
           "topic": .17, "severity": .09, "intent_en": .17, "intent_zh": .06}, (0.1, 0.3), 4.0),
    (705, {"wiki": .12, "help": .15, "device": .12, "recipes": .01, "wordnet": .03, "zh": .01,
           "topic": .20, "severity": .10, "intent_en": .20, "intent_zh": .06}, (0.1, 0.3), 4.0),
    (903, {"wiki": .10, "help": .13, "device": .10, "recipes": .01, "wordnet": .02, "zh": .01,
           "topic": .23, "severity": .11, "intent_en": .23, "intent_zh": .06}, (0.05, 0.25), 12.0),
    (1311, {"wiki": .06, "help": .08, "device": .07, "recipes": 0, "wordnet": .01, "zh": .01,
            "topic": .34, "severity": .13, "intent_en": .24, "intent_zh": .06}, (0.05, 0.2), 12.0),
    (1590, {"wiki": .12, "help": .14, "device": .12, "recipes": .01, "wordnet": .02, "zh": .01,
            "topic": .18, "severity": .12, "intent_en": .22, "intent_zh": .06}, (0.1, 0.3), 12.0),
    (2240, {"wiki": .20, "help": .23, "device": .16, "recipes": .01, "wordnet": .01, "zh": .01,
            "topic": .09, "severity": .09, "intent_en": .06, "intent_zh": .02,
            "intent_en_wide": .09, "intent_zh_wide": .03}, (0.1, 0.28), 12.0),
    (2740, {"wiki": .10, "help": .12, "device": .11, "recipes": 0, "wordnet": 0, "zh": .01,
            "topic": .20, "severity": .11, "intent_en": .16, "intent_zh": .08,
            "intent_en_wide": .07, "intent_zh_wide": .04}, (0.1, 0.25), 12.0),
    (3000, {"wiki": .20, "help": .19, "device": .14, "recipes": .01, "wordnet": .02, "zh": .01,
            "topic": .07, "severity": .08, "intent_en": .10, "intent_zh": .04,
            "intent_en_wide": .10, "intent_zh_wide": .04}, (0.12, 0.3), 12.0),
]


@dataclass(frozen=True)
class Form:
    """How samples are cut: lengths of short blanks, windows of running text in tokens, what of running text
    becomes short blanks, whole sentences or (the rest) a document, how often a log line has blanks, too, and how
    often its level is drawn from the opinion of a classifier that does not know its integration."""

    lengths: objectives.Lengths
    window: tuple
    running: tuple = (0.64, 0.10)
    blanked_logs: float = 0.25
    doubted_logs: float = 0.0


# From which step on. The shipped model filled phrases where one word was missing, so the last parts ask for
# one word more often. It also knew 97 % of the training log lines by heart and 71 % of those of other integrations.
FORMS = [
    (0, Form(objectives.Lengths(), (24, 160))),
    (2240, Form(objectives.Lengths(0.85, (1, 1, 1, 1, 2, 3)), (20, 110))),
    (3000, Form(objectives.Lengths(0.85, (1, 1, 1, 2, 2, 3)), (20, 110), (0.76, 0.08), 0.5, 0.6)),
]


def mixture(step):
    """`(shares, blanks, label weight)` of a step."""
    return next(p[1:] for p in reversed(PHASES) if step >= p[0])


def form(step):
    """The `Form` of a step."""
    return next(f for first, f in reversed(FORMS) if step >= first)


# Mean length of a sample, Part B included; turns shares of tokens into shares of samples.
LENGTH = {"wiki": 80, "help": 87, "device": 17, "recipes": 83, "wordnet": 28, "zh": 78,
          "topic": 72, "severity": 24, "intent_en": 25.5, "intent_zh": 21,
          "intent_en_wide": 27, "intent_zh_wide": 23}
# The label word must be one token, which "debug" is not.
LEVEL_WORDS = {"error": "error", "warning": "warning", "debug": "info"}

TASKS = {
    "severity": {
        "kind": "classify", "description": "Severity of a log line: error, warning or debug.",
        "pattern": "{text} Severity: [MASK].",
        "labels": {level: [LEVEL_WORDS[level]] for level in LEVELS}, "normalize": "sum", "calibrate": False},
    "topic": {
        "kind": "classify", "description": "Topic of an encyclopaedic text, one of eleven.",
        "pattern": "{text} Topic: [MASK].",
        "labels": {topic: [topic] for topic in TOPICS}, "normalize": "sum", "calibrate": False},
    "intent": {
        "kind": "infill", "max_tokens": 64,
        "description": "A smart-home sentence (English or Chinese) as compact JSON.",
        "pattern": "{text} [gMASK]"},
}


class Stream:
    """Draws samples from the corpus."""

    def __init__(self, seed):
        self.seed = seed
        self.tokenizer = Tokenizer.from_file(str(CORPUS / "tokenizer.json"))
        self.words = objectives.Words(self.tokenizer)
        self.tokens = np.memmap(CORPUS / "tokens.bin", dtype=np.uint16, mode="r")
        index = np.load(CORPUS / "index.npy")
        self.opinions = np.cumsum(np.load(CORPUS / "opinions.npy"), axis=1)
        self.records = {g: index[index["group"] == n] for n, g in enumerate(GROUPS)}
        # Running text is drawn by length, so that every token is as likely.
        self.weights = {g: np.cumsum(r["length"]) for g, r in self.records.items()}
        encode = lambda text: self.tokenizer.encode(text, add_special_tokens=False).ids
        self.severity, self.topic, self.stop = encode(" Severity:"), encode(" Topic:"), encode(".")
        self.labels = {}
        for name, words in (("severity", [LEVEL_WORDS[level] for level in LEVELS]), ("topic", TOPICS)):
            ids = [encode(" " + w) for w in words]
            assert all(len(i) == 1 for i in ids), dict(zip(words, ids))
            self.labels[name] = [i[0] for i in ids]

    def text(self, group, rng, window=None):
        """Tokens of a random text, or of a window of it that begins at a sentence."""
        weights = self.weights[group]
        if window is None:
            record = self.records[group][rng.integers(len(weights))]
        else:
            record = self.records[group][np.searchsorted(weights, rng.integers(weights[-1]), side="right")]
        ids = self.tokens[record["start"]:record["start"] + record["length"]].astype(np.int64)
        if window and len(ids) > window:
            starts = np.append(0, np.flatnonzero(self.words.ends[ids]) + 1)
            starts = starts[starts <= len(ids) - min(window, 24)]
            start = starts[rng.integers(len(starts))]
            ids = ids[start:start + window].copy()
            ids[0] = self.words.unspaced[ids[0]]
        return ids, record

    def number(self, group, record):
        """Which of its group's records it is."""
        return int(np.searchsorted(self.records[group]["start"], record["start"]))

    def sample(self, group, rng, blanks, label_weight, form):
        o, words = objectives, self.words
        if group in ("wiki", "help", "recipes", "zh"):
            ids, _ = self.text(group, rng, int(rng.integers(*form.window)))
            short, sentence = form.running
            draw = rng.random()
            if draw < short:
                return o.infill(ids, words, rng, rng.uniform(*blanks), form.lengths)
            return o.sentences(ids, words, rng) if draw < short + sentence else o.document(ids, words, rng)
        if group == "device":
            ids, _ = self.text(group, rng)
            return o.document(ids[:160], words, rng) if rng.random() < 0.12 else o.infill(ids[:160], words, rng, rng.uniform(*blanks), form.lengths)
        if group == "wordnet":
            ids, _ = self.text(group, rng)
            ids = ids[:120]
            colon = np.flatnonzero(ids == self.colon)
            if rng.random() < 0.4 and len(colon):
                return o.pair(ids[:colon[0] + 1], ids[colon[0] + 1:])
            return o.infill(ids, words, rng)
        if group == "topic":
            ids, record = self.text(group, rng)
            ids = ids[:int(rng.integers(24, 72) if rng.random() < 0.75 else rng.integers(72, 170))]
            return o.cloze(ids, self.topic, self.stop, self.labels["topic"][record["extra"]],
                           words, rng, rng.random() < 0.2, label_weight)
        if group == "severity":
            ids, record = self.text(group, rng)
            level = record["extra"]
            if rng.random() < form.doubted_logs:
                opinion = self.opinions[self.number("severity", record)]
                level = min(int(np.searchsorted(opinion, rng.random())), len(opinion) - 1)
            return o.cloze(ids[:120], self.severity, self.stop, self.labels["severity"][level],
                           words, rng, rng.random() < form.blanked_logs, label_weight)
        ids, record = self.text(group, rng)
        return o.pair(ids[:record["extra"]], ids[record["extra"]:])

    @property
    def colon(self):
        return self.tokenizer.token_to_id(":")

    def batch(self, step, tokens):
        """Samples of one step, `(group, sample)`, at least `tokens` long in all."""
        shares, blanks, label_weight = mixture(step)
        rng = np.random.default_rng([self.seed, step])
        cut = form(step)
        share = np.array([shares.get(g, 0) / LENGTH[g] for g in GROUPS])
        share /= share.sum()
        out, total = [], 0
        while total < tokens:
            group = GROUPS[rng.choice(len(GROUPS), p=share)]
            sample = self.sample(group, rng, blanks, label_weight, cut)
            if sample is not None and len(sample) <= 480:
                out.append((group, sample))
                total += len(sample)
        return out


def micro_batches(batch, limit):
    """Groups of samples of like length, at most `limit` padded tokens each."""
    batch = sorted(batch, key=lambda item: len(item[1]))
    group = []
    for item in batch:
        n = len(item[1])
        if group and (n * (len(group) + 1) > limit or n > 1.12 * len(group[0][1]) + 3):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def collate(group):
    """numpy arrays of one padded micro-batch: ids, pos0, pos1, visible, labels, weights."""
    b, n = len(group), max(len(s) for _, s in group)
    ids = np.full((b, n), EOS)
    pos0, pos1 = np.zeros((b, n), np.int64), np.zeros((b, n), np.int64)
    labels, weights = np.full((b, n), -1), np.zeros((b, n), np.float32)
    seen = np.zeros((b, n, n), dtype=bool)
    seen[:, np.arange(n), np.arange(n)] = True
    for row, (_, s) in enumerate(group):
        m = len(s)
        ids[row, :m], pos0[row, :m], pos1[row, :m] = s.ids, s.pos0, s.pos1
        labels[row, :m], weights[row, :m] = s.labels, s.weights
        seen[row, :m, :m] = objectives.visible(m, s.sep)
    return ids, pos0, pos1, seen, labels, weights


def processed(seed, spans):
    """Tokens of each group that were processed in `spans`, `(first step, last step, tokens a step)`."""
    stream, out = Stream(seed), dict.fromkeys(GROUPS, 0)
    for first, last, tokens in spans:
        for step in range(first, last):
            for group, sample in stream.batch(step, tokens):
                out[group] += len(sample)
    return out
