"""Writes `tests/fixtures/blanks.json`: texts with blanks, laid out for the model.

Each case gives a text, the token lists of its plain parts, the pieces that
fill its blanks in the order of Part B, and what must come out: ids, both
positions, the length of Part A, and the labels. Visibility follows from that length: row i
sees column j if `j < bidirectional` or `j <= i`; it is written out for small cases.
Ids are those of the vocabulary of `tests/fixtures/checkpoints/glm-post`.
"""

import json
from pathlib import Path

import common
import objectives

FIXTURES = common.HERE.parents[1] / "tests/fixtures"
CASES = [
    ("one blank", "[5 6] [MASK] [7]", [[20, 21]], [0]),
    ("two blanks in text order", "[5] [MASK] [6 7 8] [MASK] [9]", [[20], [21, 22, 23]], [0, 1]),
    ("two blanks, shuffled", "[5] [MASK] [6 7 8] [MASK] [9]", [[20], [21, 22, 23]], [1, 0]),
    ("three blanks, one empty", "[MASK] [5 6] [MASK] [7] [sMASK] [8]", [[20], [], [21, 22]], [2, 0, 1]),
    ("sentence", "[5 6 7] [sMASK] [8 9]", [[20, 21, 22, 23]], [0]),
    ("document", "[5 6 7] [gMASK]", [[20, 21, 22]], [0]),
    ("document without a prefix", "[gMASK]", [[20, 21]], [0]),
    ("neighbouring blanks", "[5] [MASK] [MASK] [6]", [[20], [21]], [0, 1]),
]


def special_ids():
    config = json.loads((FIXTURES / "checkpoints/glm-post/config.json").read_text())
    return {name: config[f"{name}_token_id"] for name in ("cls", "mask", "smask", "gmask", "sop", "eop", "eos")}


def parse(text, masks):
    """`[5 6] [MASK]` as token lists and mask ids."""
    parts = []
    for word in text.replace("[", "\0[").split("\0")[1:]:
        word = word.strip()
        parts.append(masks[word] if word in masks else [int(n) for n in word[1:-1].split()])
    return parts


def build():
    ids = special_ids()
    for name, value in ids.items():
        setattr(objectives, name.upper(), value)
    masks = {"[MASK]": ids["mask"], "[sMASK]": ids["smask"], "[gMASK]": ids["gmask"]}
    cases = []
    for name, text, pieces, order in CASES:
        s = objectives.layout(parse(text, masks), pieces, order)
        cases.append({
            "name": name, "part_a": text, "pieces": pieces, "order": order, "bidirectional": s.sep,
            "ids": s.ids.tolist(), "pos0": s.pos0.tolist(), "pos1": s.pos1.tolist(),
            "labels": s.labels.tolist(),
            "visible": ["".join("1" if v else "0" for v in row) for row in objectives.visible(len(s), s.sep)],
        })
    return {"special": ids, "cases": cases}


def text(document):
    lines = ['{"special": ' + json.dumps(document["special"]) + ', "cases": [']
    lines.append(",\n".join(" " + json.dumps(c) for c in document["cases"]))
    return "\n".join(lines) + "\n]}\n"


if __name__ == "__main__":
    path = FIXTURES / "blanks.json"
    path.write_text(text(build()))
    print(path)
