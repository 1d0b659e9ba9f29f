"""Draws the log of a run as SVG: loss and learning rate over steps, and one curve a group.

    python plot.py work/runs/main/log.jsonl curve.svg
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (the back end must be chosen first)


def smooth(values, span=5):
    out = []
    for n in range(len(values)):
        near = values[max(0, n - span + 1):n + 1]
        out.append(sum(near) / len(near))
    return out


def main(log, svg):
    records = [json.loads(line) for line in Path(log).open()]
    steps = [r["step"] for r in records]
    plt.rcParams.update({"svg.hashsalt": "glm", "font.size": 9})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
    left.plot(steps, smooth([r["loss"] for r in records]), color="black", label="loss, all labels")
    left.set(xlabel="step", ylabel="nats a label")
    twin = left.twinx()
    twin.plot(steps, [r["rate"] for r in records], color="tab:gray", linestyle=":", label="learning rate")
    twin.set(ylim=(0, 1.1), ylabel="learning rate, of its peak")
    for group in sorted({g for r in records for g in r["groups"]}):
        rows = [(r["step"], r["groups"][group]) for r in records if group in r["groups"]]
        right.plot([s for s, _ in rows], smooth([v for _, v in rows]), label=group)
    right.set(xlabel="step", ylabel="nats a label")
    right.legend(ncols=2, fontsize=7)
    figure.tight_layout()
    figure.savefig(svg, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
