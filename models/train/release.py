"""Turns the state of a run into a checkpoint folder that `glmctl export` and `evaluate.py` take.

    python release.py work/runs/main/state.pt work/release
"""

import argparse
from pathlib import Path

import torch

import intents
import model as glm
from common import CORPUS
from stream import TASKS


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("state", type=Path)
    p.add_argument("folder", type=Path)
    a = p.parse_args()
    saved = torch.load(a.state, map_location="cpu")
    net = glm.Glm(glm.Shape())
    net.load_state_dict(saved["model"])
    tasks = dict(TASKS)
    tasks["intent"] = {**TASKS["intent"], "json_schema": intents.schema()}
    glm.save(net, a.folder, CORPUS / "tokenizer.json", tasks)
    print(f"step {saved['step']} -> {a.folder}")


if __name__ == "__main__":
    main()
