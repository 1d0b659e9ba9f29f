"""Prompts and greedy answers in PyTorch, by the rules that `glmd` follows."""

import re

import numpy as np
import torch

import objectives
from common import CLS, EOP, EOS, GMASK, MASK, SMASK, SOP

MARKERS = {"[MASK]": MASK, "[sMASK]": SMASK, "[gMASK]": GMASK}


def parts(tokenizer, text):
    """Token lists and mask ids; the white space before a marker is eaten."""
    out = []
    pieces = re.split(r"(\[MASK\]|\[sMASK\]|\[gMASK\])", text)
    for n, piece in enumerate(pieces):
        if piece in MARKERS:
            out.append(MARKERS[piece])
            continue
        if n + 1 < len(pieces):
            piece = piece.rstrip()
        ids = tokenizer.encode(piece, add_special_tokens=False).ids
        if ids:
            out.append(ids)
    return out


class Network:
    """A model behind numpy: whole sequences, or Part A once and then a token at a time."""

    def __init__(self, net):
        self.net = net.eval()

    @torch.inference_mode()
    def logits(self, samples, rows):
        """Logits [len(rows), vocab] of padded samples; `rows` are `(sample, position)`."""
        n = max(len(s) for s in samples)
        ids = np.full((len(samples), n), EOS)
        pos = np.zeros((2, len(samples), n), np.int64)
        seen = np.zeros((len(samples), n, n), dtype=bool)
        seen[:, np.arange(n), np.arange(n)] = True
        for i, s in enumerate(samples):
            m = len(s)
            ids[i, :m], pos[0, i, :m], pos[1, i, :m] = s.ids, s.pos0, s.pos1
            seen[i, :m, :m] = objectives.visible(m, s.sep)
        want = torch.tensor([i * n + p for i, p in rows])
        t = torch.from_numpy
        return self.net(t(ids), t(pos[0]), t(pos[1]), t(seen), want).numpy()

    @torch.inference_mode()
    def greedy(self, samples, mask_at, max_tokens):
        """Answers of prompts of one length. `samples` hold Part A only, `mask_at[i]` the blank's index."""
        b, n = len(samples), len(samples[0])
        t = torch.from_numpy
        cache = [[] for _ in self.net.transformer["layers"]]
        self.net(t(np.stack([s.ids for s in samples])), t(np.stack([s.pos0 for s in samples])),
                 torch.zeros(b, n, dtype=torch.int64), torch.ones(b, n, n, dtype=torch.bool),
                 torch.tensor([0]), cache)
        pos0 = torch.tensor(mask_at)[:, None]
        last, out, open_ = torch.full((b, 1), SOP), [[] for _ in samples], set(range(b))
        for step in range(max_tokens):
            seen = torch.ones(b, 1, n + step + 1, dtype=torch.bool)
            logits = self.net(last, pos0, torch.full((b, 1), step + 1), seen, None, cache)
            last = logits[:, -1].argmax(-1, keepdim=True)
            for i in list(open_):
                token = last[i, 0].item()
                if token in (EOP, EOS):
                    open_.discard(i)
                else:
                    out[i].append(token)
            if not open_:
                break
        return out


def fill(network, tokenizer, texts, max_tokens, batch=64):
    """Answers of texts with one blank each."""
    prompts = []
    for text in texts:
        ps = parts(tokenizer, text)
        sample = objectives.layout(ps, [])
        at = 1 + sum(1 if isinstance(p, int) else len(p) for p in ps[:next(i for i, p in enumerate(ps) if isinstance(p, int))])
        prompts.append((sample, at))
    order = sorted(range(len(texts)), key=lambda i: len(prompts[i][0]))
    answers = [""] * len(texts)
    while order:
        length = len(prompts[order[0]][0])
        group = [i for i in order[:batch] if len(prompts[i][0]) == length]
        order = order[len(group):]
        found = network.greedy([prompts[i][0] for i in group], [prompts[i][1] for i in group], max_tokens)
        for i, ids in zip(group, found):
            answers[i] = tokenizer.decode(ids, skip_special_tokens=False)
    return answers


def score_labels(network, tokenizer, pattern, labels, texts, batch=16):
    """[texts, labels] scores of one-token label words at the blank of a pattern."""
    words = [tokenizer.encode(" " + w, add_special_tokens=False).ids for w in labels]
    assert all(len(w) == 1 for w in words)
    columns = [w[0] for w in words]
    samples = [objectives.layout(parts(tokenizer, pattern.replace("{text}", t)), [[]]) for t in texts]
    order = sorted(range(len(texts)), key=lambda i: len(samples[i]))
    scores = np.zeros((len(texts), len(labels)))
    for start in range(0, len(order), batch):
        group = order[start:start + batch]
        logits = network.logits([samples[i] for i in group], [(n, samples[i].sep) for n, i in enumerate(group)])
        scores[group] = logits[:, columns]
    return scores


class OnnxNetwork:
    """An exported model directory behind the same two calls, run by onnxruntime."""

    def __init__(self, folder, threads=1):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options,
                                                    providers=["CPUExecutionProvider"])
        past = [i for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]
        self.layers = len(past) // 2
        self.heads, self.dim = past[0].shape[1], past[0].shape[3]

    def run(self, ids, pos, seen, cache):
        """Logits [b, n, vocab] and the longer cache."""
        feed = {"input_ids": ids.astype(np.int64), "position_ids": pos.astype(np.int64), "attention_mask": seen[:, None]}
        names = [f"{n}.{part}" for n in range(self.layers) for part in ("key", "value")]
        for i, name in enumerate(names):
            feed[f"past_key_values.{name}"] = cache[i] if cache else np.zeros((len(ids), self.heads, 0, self.dim), np.float32)
        logits, *present = self.session.run(["logits", *(f"present.{n}" for n in names)], feed)
        return logits, present

    def logits(self, samples, rows):
        out = [None] * len(rows)
        for i, s in enumerate(samples):  # one by one: padding would cost more than it saves
            wanted = [(k, p) for k, (j, p) in enumerate(rows) if j == i]
            seen = objectives.visible(len(s), s.sep)[None]
            found, _ = self.run(s.ids[None], np.stack((s.pos0, s.pos1))[None], seen, None)
            for k, p in wanted:
                out[k] = found[0, p]
        return np.stack(out)

    def greedy(self, samples, mask_at, max_tokens):
        b, n = len(samples), len(samples[0])
        ids = np.stack([s.ids for s in samples])
        pos = np.stack([np.stack((s.pos0, s.pos1)) for s in samples])
        _, cache = self.run(ids, pos, np.ones((b, n, n), dtype=bool), None)
        last, out, open_ = np.full((b, 1), SOP), [[] for _ in samples], set(range(b))
        for step in range(max_tokens):
            pos = np.stack((np.array(mask_at)[:, None], np.full((b, 1), step + 1)), axis=1)
            logits, cache = self.run(last, pos, np.ones((b, 1, n + step + 1), dtype=bool), cache)
            last = logits[:, -1].argmax(-1)[:, None]
            for i in list(open_):
                token = int(last[i, 0])
                if token in (EOP, EOS):
                    open_.discard(i)
                else:
                    out[i].append(token)
            if not open_:
                break
        return out
