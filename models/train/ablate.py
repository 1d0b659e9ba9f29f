"""What each part of the objective does: small networks at the same number of processed tokens.

    python ablate.py --out ablation.json --svg ablation.svg [--steps 400]

Texts are paragraphs of the help books and strings of device dialogues, in the
released vocabulary. Every network starts as the first three layers of MiniLM,
which was trained with neither objective's layout: from random weights this
many tokens teach words' frequencies and no variant can differ. Every variant
draws from the same sequence of texts and blanks of whole words:

* `glm`: pieces in shuffled order, 2D positions;
* `in order`: pieces in text order;
* `1D`: one position, which goes on counting in Part B, pieces shuffled; nothing
  but the first position could tell which blank a piece fills;
* `1D, in order`: the same with pieces in text order, as the order can tell it too;
* `masked`: no Part B; a blank is as many mask tokens as it has tokens, predicted
  at once, as BERT does. It must be told a blank's length, or try them all.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import infer
import model as glm
import objectives
from common import EOP, EOS, MASK, SOP
from evaluate import by_words, read
from stream import Stream, collate, micro_batches
from train import MINILM, optimizer, run_step

LAYERS = 3
VARIANTS = ["glm", "in order", "1D", "1D, in order", "masked"]
GROUPS = ["help", "device"]
WINDOW = 80  # tokens of a text
LENGTHS = objectives.Lengths(0.85, (1, 1, 2, 3))
LONGEST = 8  # tokens of a blank that a masked network tries


def one_dimensional(sample):
    """The same sample with one position for every token and none within pieces."""
    sample.pos0 = np.arange(len(sample))
    sample.pos1 = np.zeros(len(sample), np.int64)
    return sample


def masked(parts, pieces):
    """Part A alone, a mask token for each token of a blank."""
    blanks = iter(pieces)
    ids, labels = [objectives.CLS], [-1]
    for part in parts:
        known = not isinstance(part, int)
        piece = part if known else next(blanks)
        ids += piece if known else [MASK] * len(piece)
        labels += [-1] * len(piece) if known else piece
    ids, labels = np.array([*ids, EOS]), np.array([*labels, -1])
    return objectives.Sample(ids, np.arange(len(ids)), np.zeros(len(ids), np.int64), labels,
                             (labels >= 0).astype(np.float32), len(ids))


def lay_out(variant, parts, pieces, order):
    """A sample of a variant; `order` is that of the pieces where they are shuffled."""
    if variant == "masked":
        return masked(parts, pieces)
    sample = objectives.layout(parts, pieces, None if "in order" in variant else order)
    return one_dimensional(sample) if variant.startswith("1D") else sample


class Texts:
    """Training paragraphs by group."""

    def __init__(self):
        stream = Stream(0)
        self.tokenizer, self.words, self.ids = stream.tokenizer, stream.words, {}
        for group in GROUPS:
            ids = [stream.tokens[r["start"]:r["start"] + r["length"]].tolist() for r in stream.records[group]]
            lines = [line for text in self.tokenizer.decode_batch(ids) for line in text.split("\n")]
            encoded = self.tokenizer.encode_batch(lines, add_special_tokens=False)
            self.ids[group] = [np.array(e.ids[:WINDOW]) for e in encoded if len(e.ids) > 7]


def batch(texts, variant, seed, step, tokens):
    """Samples of one step, a pure function of seed and step."""
    rng = np.random.default_rng([seed, step])
    out, total = [], 0
    while total < tokens:
        group = GROUPS[rng.integers(len(GROUPS))]
        ids = texts.ids[group][rng.integers(len(texts.ids[group]))]
        spans = objectives.word_spans(ids, texts.words, rng, rng.uniform(0.1, 0.25), LENGTHS)
        if spans:
            parts, pieces = objectives.cut(ids, spans)
            out.append((group, lay_out(variant, parts, pieces, rng.permutation(len(pieces)))))
            total += len(out[-1][1])
    return out


@torch.inference_mode()
def losses(net, samples):
    """Nats of every label but ends of pieces, a list a sample: the length counts for none."""
    out = [None] * len(samples)
    numbered = [(n, s) for n, s in enumerate(samples)]
    for group in micro_batches(numbered, 4096):
        ids, pos0, pos1, seen, labels, _ = (torch.from_numpy(x) for x in collate(group))
        rows = (labels >= 0).flatten().nonzero().squeeze(1)
        each = F.cross_entropy(net(ids, pos0, pos1, seen, rows), labels.flatten()[rows], reduction="none")
        each, mine, labels = each.numpy(), (rows // ids.shape[1]).numpy(), labels.flatten()[rows].numpy()
        for n, (number, _) in enumerate(group):
            out[number] = each[(mine == n) & (labels != EOP)]
    return out


def answers_of_glm(net, tokenizer, items, flat):
    """Greedy answers, a whole sequence a token: slow, but it serves 1D positions too."""
    prompts = [infer.parts(tokenizer, i["text"]) for i in items]
    found, open_ = [[] for _ in items], list(range(len(items)))
    network = infer.Network(net)
    for _ in range(12):
        samples = {i: objectives.layout(prompts[i], [found[i]]) for i in open_}
        if flat:
            samples = {i: one_dimensional(s) for i, s in samples.items()}
        for at in range(0, len(open_), 64):
            some = sorted(open_, key=lambda i: len(samples[i]))[at:at + 64]
            logits = network.logits([samples[i] for i in some], [(n, len(samples[i]) - 1) for n, i in enumerate(some)])
            for i, token in zip(some, logits.argmax(-1).tolist()):
                found[i].append(token)
        open_ = [i for i in open_ if found[i][-1] not in (EOP, EOS, SOP)]
        if not open_:
            break
    return [tokenizer.decode([t for t in ids if t not in (EOP, EOS, SOP)], skip_special_tokens=False) for ids in found]


def filled(net, prompts, lengths):
    """Tokens and mean log-probability of blanks of known `lengths`, filled from left to right."""
    found, score = [[] for _ in prompts], np.zeros(len(prompts))
    network = infer.Network(net)
    for n in range(max(lengths)):
        open_ = sorted((i for i in range(len(prompts)) if n < lengths[i]), key=lambda i: len(prompts[i]))
        for at in range(0, len(open_), 64):
            some = open_[at:at + 64]
            samples, rows = [], []
            for row, i in enumerate(some):
                piece = found[i] + [MASK] * (lengths[i] - n)
                sample = masked(prompts[i], [piece])
                rows.append((row, int(np.flatnonzero(sample.ids == MASK)[0])))
                samples.append(sample)
            logp = torch.log_softmax(torch.from_numpy(network.logits(samples, rows)), -1).numpy()
            for i, p in zip(some, logp):
                found[i].append(int(p.argmax()))
                score[i] += p.max()
    return found, score / np.array(lengths)


def answers_of_masked(net, tokenizer, items):
    """Answers where the length is told, and where every length is tried and the best mean log-probability taken."""
    prompts = [infer.parts(tokenizer, i["text"]) for i in items]
    true = [len(tokenizer.encode(" " + i["answer"], add_special_tokens=False).ids) for i in items]
    told, _ = filled(net, prompts, true)
    tries = [filled(net, prompts, [n] * len(items)) for n in range(1, LONGEST + 1)]
    best = np.argmax([score for _, score in tries], 0)
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
    return [decode(t) for t in told], [decode(tries[b][0][i]) for i, b in enumerate(best)]


def exact(answers, items):
    return by_words([a.strip() == i["answer"] for a, i in zip(answers, items)], items)


class Held:
    """The held-out sentences with one blank, and again with several."""

    def __init__(self, texts, limit):
        self.tokenizer, self.items = texts.tokenizer, []
        for group in GROUPS:
            self.items += read(f"infill-{group}", "test", limit)
        encode = lambda text: self.tokenizer.encode(text, add_special_tokens=False).ids
        self.one = [(infer.parts(self.tokenizer, i["text"]), [encode(" " + i["answer"])]) for i in self.items]
        rng = np.random.default_rng(7)
        self.several = []
        for item in self.items:
            ids = np.array(encode(item["text"].replace("[MASK]", item["answer"])))
            spans = objectives.word_spans(ids, texts.words, rng, 0.2, LENGTHS)
            if len(spans) > 1:
                parts, pieces = objectives.cut(ids, spans)
                self.several.append((parts, pieces, rng.permutation(len(pieces))))

    def nats(self, net, variant):
        """Mean nats a token of lone blanks, and of several in text order and shuffled."""
        mean = lambda samples: float(np.mean(np.concatenate(losses(net, samples))))
        out = {"one": mean([lay_out(variant, p, q, [0]) for p, q in self.one])}
        if variant == "masked":
            return out | {"several": mean([masked(p, q) for p, q, _ in self.several])}
        ordered = "1D, in order" if variant.startswith("1D") else "in order"
        shuffled = variant if "in order" not in variant else "1D" if variant.startswith("1D") else "glm"
        return out | {"several": mean([lay_out(ordered, *s) for s in self.several]),
                      "several_shuffled": mean([lay_out(shuffled, *s) for s in self.several])}


def train(texts, variant, held, a):
    """A network and its held-out curve `[step, nats of lone blanks]`."""
    torch.manual_seed(a.seed)
    net = glm.from_minilm(MINILM, texts.tokenizer, LAYERS)
    opt = optimizer(net, a)
    curve, seen, base = [], 0, [group["lr"] for group in opt.param_groups]
    for step in range(a.steps):
        for group, lr in zip(opt.param_groups, base):
            group["lr"] = lr * min(1.0, (step + 1) / 40, (a.steps - step) / (0.4 * a.steps))
        drawn = batch(texts, variant, a.seed, step, a.tokens)
        run_step(net, drawn, a.tokens, "cpu", a.bf16)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        seen += sum(len(s) for _, s in drawn)
        if (step + 1) % max(1, a.steps // 6) == 0:
            nats = losses(net, [lay_out(variant, p, q, [0]) for p, q in held.one])
            curve.append([seen, round(float(np.mean(np.concatenate(nats))), 4)])
            print(f"{variant:14} step {step + 1} {curve[-1]}", flush=True)
    return net.eval(), curve


def measure(net, variant, held):
    out = {"nats": {k: round(v, 4) for k, v in held.nats(net, variant).items()}}
    if variant == "masked":
        told, tried = answers_of_masked(net, held.tokenizer, held.items)
        out["exact_length_told"] = exact(told, held.items)
    else:
        tried = answers_of_glm(net, held.tokenizer, held.items, variant.startswith("1D"))
    return out | {"exact": exact(tried, held.items)}


def draw(table, svg):
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"svg.hashsalt": "glm", "font.size": 9})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
    for name, row in table.items():
        left.plot([x / 1e6 for x, _ in row["curve"]], [y for _, y in row["curve"]], label=name)
    left.set(xlabel="million tokens processed", ylabel="nats a token of held-out blanks")
    left.legend(fontsize=7)
    bars = {name: row["exact"] for name, row in table.items()}
    if "masked" in table:
        bars["masked, length told"] = table["masked"]["exact_length_told"]
    for n, (name, row) in enumerate(bars.items()):
        right.bar(np.arange(3) + (n - len(bars) / 2) * 0.13, [100 * row[f"exact_{k}"] for k in (1, 2, 3)], 0.13, label=name)
    right.set(xticks=range(3), xticklabels=["one word", "two words", "three words"], ylabel="blanks filled exactly, %")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(svg, metadata={"Date": None})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="JSON; variants that it already holds are not run again")
    p.add_argument("--svg", type=Path)
    p.add_argument("--variants", nargs="*", default=[*VARIANTS, "glm, other seed"])
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    p.add_argument("--lr", type=float, default=7e-4)
    p.add_argument("--embedding-lr", type=float, default=1.5e-3)
    p.add_argument("--bf16", action="store_true", help="products in bfloat16, for processors that have it")
    p.add_argument("--limit", type=int, default=0, help="held-out blanks of each set")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    table = json.loads(a.out.read_text()) if a.out.exists() else {}
    first, texts = a.seed, Texts()
    held = Held(texts, a.limit)
    for name in a.variants:
        if name in table:
            continue
        a.seed, variant = (first + 1, "glm") if name == "glm, other seed" else (first, name)
        net, curve = train(texts, variant, held, a)
        table[name] = measure(net, variant, held) | {"tokens": curve[-1][0], "curve": curve}
        a.out.write_text(json.dumps(table, indent=1) + "\n")
    if a.svg:
        draw(table, a.svg)
    for name, row in table.items():
        print(f"{name:20} nats {row['nats']}  exact " + "  ".join(f"{row['exact'][f'exact_{n}']:.3f}" for n in (1, 2, 3)))


if __name__ == "__main__":
    main()
