"""Turns the state of a run into a checkpoint folder that `glmctl export` and `evaluate.py` take.

    python release.py work/runs/main/state.pt work/release [--average ../glm-mini --share 0.75]

With `--average`, weights are the mean of the run's and of the release that it
went on from, `--share` of the former: what a run has forgotten comes back,
and most of what it has learnt stays.
"""

import argparse
from pathlib import Path

import torch

import intents
import model as glm
import shipped
from common import CORPUS
from stream import TASKS


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("state", type=Path)
    p.add_argument("folder", type=Path)
    p.add_argument("--average", type=Path, help="a released model directory")
    p.add_argument("--share", type=float, default=0.75, help="of the run's weights in the mean")
    a = p.parse_args()
    saved = torch.load(a.state, map_location="cpu")
    net = glm.Glm(glm.Shape())
    net.load_state_dict(saved["model"])
    if a.average:
        before = shipped.load(a.average).state_dict()
        net.load_state_dict({name: a.share * w + (1 - a.share) * before[name] for name, w in net.state_dict().items()})
    tasks = dict(TASKS)
    tasks["intent"] = {**TASKS["intent"], "json_schema": intents.schema()}
    glm.save(net, a.folder, CORPUS / "tokenizer.json", tasks)
    print(f"step {saved['step']} -> {a.folder}")


if __name__ == "__main__":
    main()
