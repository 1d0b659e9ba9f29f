"""Fine-tunes a checkpoint on your own labels, as cloze classification.

    python finetune.py labels.csv my-checkpoint \\
        --task mood --pattern "{text} The mood is [MASK]." \\
        --label good=happy --label bad=sad

`labels.csv` has a header and the columns `text` and `label`. Each label is
answered by one word, which must be one token of the vocabulary; without
`--label` the label's own name is taken. The loss is cross-entropy over the
label words at the blank; a tenth of the rows, chosen by hash, is held out and
its accuracy printed after every epoch. The result is a checkpoint that
`glmctl export` takes, with the task beside those of the checkpoint it began from.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import infer
import model as glm
import objectives
from common import HERE, bucket


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("csv", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--base", type=Path, default=HERE / "work/release", help="checkpoint to begin from")
    p.add_argument("--task", default="label", help="name of the task in glm.json")
    p.add_argument("--pattern", default="{text} It is [MASK].")
    p.add_argument("--label", action="append", default=[], metavar="LABEL=WORD")
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--lr", type=float, default=1e-4)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=1)
    return p.parse_args()


def read(path):
    with path.open(newline="") as f:
        rows = [(r["text"].strip(), r["label"].strip()) for r in csv.DictReader(f)]
    if not rows:
        sys.exit(f"{path} has no rows")
    return rows


def label_words(tokenizer, labels, given):
    """`label -> (word, token)`."""
    words = dict(g.split("=", 1) for g in given)
    unknown = set(words) - set(labels)
    if unknown:
        sys.exit(f"no row has the label {sorted(unknown)[0]!r}")
    out = {}
    for label in labels:
        word = words.get(label, label)
        ids = tokenizer.encode(" " + word, add_special_tokens=False).ids
        if len(ids) != 1:
            sys.exit(f"{word!r} is {len(ids)} tokens; give the label another word with --label {label}=WORD")
        out[label] = (word, ids[0])
    if len({token for _, token in out.values()}) < len(out):
        sys.exit("two labels have the same word")
    return out


def samples(tokenizer, pattern, texts, limit=480):
    """Prompts; a text that is too long loses its last words."""
    out = []
    for text in texts:
        while True:
            s = objectives.layout(infer.parts(tokenizer, pattern.replace("{text}", text)), [[]])
            if len(s) <= limit:
                break
            text = text[: max(1, len(text) * limit // len(s) - 1)]
        out.append(s)
    return out


def scores(net, batch, columns):
    """[batch, labels] logits of the label words at the blank."""
    n = max(map(len, batch))
    ids, pos = torch.zeros(len(batch), n, dtype=torch.long), torch.zeros(2, len(batch), n, dtype=torch.long)
    seen = torch.eye(n, dtype=torch.bool).repeat(len(batch), 1, 1)
    for i, s in enumerate(batch):
        m = len(s)
        ids[i, :m] = torch.from_numpy(s.ids)
        pos[0, i, :m], pos[1, i, :m] = torch.from_numpy(s.pos0), torch.from_numpy(s.pos1)
        seen[i, :m, :m] = torch.from_numpy(objectives.visible(m, s.sep))
    rows = torch.tensor([i * n + s.sep for i, s in enumerate(batch)])
    return net(ids, pos[0], pos[1], seen, rows)[:, columns]


def main():
    a = arguments()
    if a.pattern.count("[MASK]") != 1 or "{text}" not in a.pattern:
        sys.exit("the pattern needs {text} and one [MASK]")
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    rows = read(a.csv)
    labels = sorted({label for _, label in rows})
    tokenizer = Tokenizer.from_file(str(a.base / "tokenizer.json"))
    words = label_words(tokenizer, labels, a.label)
    columns = torch.tensor([words[l][1] for l in labels])
    prompts = samples(tokenizer, a.pattern, [t for t, _ in rows])
    truth = torch.tensor([labels.index(l) for _, l in rows])
    held = [i for i, (t, _) in enumerate(rows) if bucket(t) == 0]
    train = [i for i, (t, _) in enumerate(rows) if bucket(t) != 0]
    net = glm.load(a.base)
    opt = torch.optim.AdamW(net.parameters(), lr=a.lr, weight_decay=0.01, betas=(0.9, 0.98))
    steps, step = a.epochs * -(-len(train) // a.batch), 0
    for epoch in range(a.epochs):
        net.train()
        order = np.random.default_rng([a.seed, epoch]).permutation(train)
        total = 0.0
        for at in range(0, len(order), a.batch):
            chosen = order[at:at + a.batch]
            warm = min(1.0, (step + 1) / max(1, steps // 10))
            for group in opt.param_groups:
                group["lr"] = a.lr * warm * (1 - step / steps)
            loss = F.cross_entropy(scores(net, [prompts[i] for i in chosen], columns), truth[chosen])
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            total += loss.item() * len(chosen)
            step += 1
        net.eval()
        with torch.inference_mode():
            right = [bool(scores(net, [prompts[i]], columns)[0].argmax() == truth[i]) for i in held]
        accuracy = f"{np.mean(right):.3f} of {len(held)}" if held else "no rows"
        print(f"epoch {epoch + 1}: loss {total / len(train):.3f}, held-out accuracy {accuracy}", flush=True)
    tasks = json.loads((a.base / "tasks.json").read_text()) if (a.base / "tasks.json").exists() else {}
    tasks[a.task] = {"kind": "classify", "description": f"Labels of {a.csv.name}.", "pattern": a.pattern,
                     "labels": {l: [words[l][0]] for l in labels}, "normalize": "sum", "calibrate": False}
    glm.save(net, a.out, a.base / "tokenizer.json", tasks)
    print(f"wrote {a.out}; next: glmctl export {a.out} --out DIR")


if __name__ == "__main__":
    main()
