"""Measures a checkpoint on the held-out sets, beside simple bars.

    python evaluate.py work/release [--onnx ../glm-mini] [--split test] [--limit 200] [--bars] [--json]

With `--onnx` the exported model is run by onnxruntime in place of PyTorch.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

import bars
import infer
import model as glm
import objectives
from data import EVAL


def read(name, split, limit):
    items = [json.loads(line) for line in (EVAL / f"{name}.{split}.jsonl").open()]
    if limit and len(items) > limit:
        items = random.Random(limit).sample(items, limit)
    return items


def macro_f1(truth, found):
    scores = []
    for label in sorted(set(truth)):
        hit = sum(t == f == label for t, f in zip(truth, found))
        wrong = sum((t == label) != (f == label) for t, f in zip(truth, found))
        scores.append(2 * hit / (2 * hit + wrong) if hit else 0.0)
    return float(np.mean(scores))


def classification(network, tokenizer, task, items):
    labels = list(task["labels"])
    scores = infer.score_labels(network, tokenizer, task["pattern"], [task["labels"][l][0] for l in labels],
                                [i["text"] for i in items])
    found = [labels[i] for i in scores.argmax(1)]
    truth = [i["label"] for i in items]
    return {"accuracy": float(np.mean([a == b for a, b in zip(truth, found)])),
            "macro_f1": macro_f1(truth, found), "items": len(items)}


def slots(answer):
    try:
        value = json.loads(answer)
    except ValueError:
        return set()
    return {(k, str(v)) for k, v in value.items() if k != "intent"} if isinstance(value, dict) else set()


def intent_name(answer):
    try:
        value = json.loads(answer)
    except ValueError:
        return None
    return value.get("intent") if isinstance(value, dict) else None


def intents(network, tokenizer, task, items):
    answers = infer.fill(network, tokenizer, [task["pattern"].replace("{text}", i["text"]) for i in items], task["max_tokens"])
    hit = found = wanted = 0
    for answer, item in zip(answers, items):
        a, b = slots(answer), slots(item["answer"])
        hit, found, wanted = hit + len(a & b), found + len(a), wanted + len(b)
    return {"exact": float(np.mean([a == i["answer"] for a, i in zip(answers, items)])),
            "intent_accuracy": float(np.mean([intent_name(a) == intent_name(i["answer"]) for a, i in zip(answers, items)])),
            "slot_f1": 2 * hit / max(1, found + wanted), "items": len(items)}, answers


def by_words(right, items):
    """Share of blanks that were filled exactly, for each number of words."""
    out = {}
    for n in (1, 2, 3):
        mine = [r for r, i in zip(right, items) if i["words"] == n]
        if mine:
            out[f"exact_{n}"] = float(np.mean(mine))
    return out | {"items": len(items)}


def infilling(network, tokenizer, items):
    answers = infer.fill(network, tokenizer, [i["text"] for i in items], 12)
    right = [a.strip() == i["answer"] for a, i in zip(answers, items)]
    return by_words(right, items), answers


def bits(network, tokenizer, items):
    """Bits per byte of the second half of a text as one `[gMASK]` piece, its end included."""
    nats = size = 0.0
    for item in items:
        cut = item["text"].rfind(" ", 0, len(item["text"]) // 2 + 1)
        head, tail = (item["text"][:cut], item["text"][cut:]) if cut > 0 else ("", item["text"])
        piece = tokenizer.encode(tail, add_special_tokens=False).ids
        sample = objectives.layout(infer.parts(tokenizer, head + "[gMASK]"), [piece])
        rows = np.flatnonzero(sample.labels >= 0)
        logits = torch.from_numpy(network.logits([sample], [(0, r) for r in rows]))
        nats += torch.nn.functional.cross_entropy(logits, torch.from_numpy(sample.labels[rows]), reduction="sum").item()
        size += len(tail.encode())
    return {"bits_per_byte": nats / np.log(2) / size, "items": len(items)}


def evaluate(network, tokenizer, tasks, split, limit, show=0):
    out = {}
    for name in ("severity", "topic"):
        out[name] = classification(network, tokenizer, tasks[name], read(name, split, limit))
    for language in ("en", "zh"):
        items = read(f"intent-{language}", split, limit)
        out[f"intent-{language}"], answers = intents(network, tokenizer, tasks["intent"], items)
        for item, answer in [(i, a) for i, a in zip(items, answers) if i["answer"] != a][:show]:
            print(f"  {item['text']}\n    want {item['answer']}\n    got  {answer}")
    together, right = [], []
    for group in ("wiki", "help", "device"):
        items = read(f"infill-{group}", split, limit)
        out[f"infill-{group}"], answers = infilling(network, tokenizer, items)
        together += items
        right += [a.strip() == i["answer"] for a, i in zip(answers, items)]
        for item, answer in list(zip(items, answers))[:show]:
            print(f"  {item['text']}\n    want {item['answer']!r} got {answer!r}")
    out["infill"] = by_words(right, together)
    out["bits"] = bits(network, tokenizer, read("bits", split, limit))
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--onnx", type=Path, help="a model directory exported from the checkpoint")
    p.add_argument("--split", default="test", choices=["dev", "test"])
    p.add_argument("--limit", type=int, default=0, help="a random choice of each set, always the same")
    p.add_argument("--bars", action="store_true", help="also train and measure the simple bars")
    p.add_argument("--show", type=int, default=0, help="print this many answers of each set")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(a.checkpoint / "tokenizer.json"))
    tasks = json.loads((a.checkpoint / "tasks.json").read_text())
    network = infer.OnnxNetwork(a.onnx) if a.onnx else infer.Network(glm.load(a.checkpoint))
    out = evaluate(network, tokenizer, tasks, a.split, a.limit, a.show)
    if a.bars:
        for name, values in bars.measure(a.split).items():
            out[name].update({f"bar_{k}": v for k, v in values.items()})
    if a.json:
        print(json.dumps(out, indent=1))
    else:
        for name, values in out.items():
            print(f"{name:16}", "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()))


if __name__ == "__main__":
    main()
