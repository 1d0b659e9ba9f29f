"""Exports of the fixture checkpoints, and how to run their graphs in plain onnxruntime."""

import json
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINTS = ROOT / "tests" / "fixtures" / "checkpoints"
FIXTURES = sorted(path.name for path in CHECKPOINTS.iterdir())
GLMCTL = Path(os.environ.get("GLMCTL", ROOT / "target" / "debug" / "glmctl"))

_scratch = tempfile.TemporaryDirectory(prefix="glmd-exports-")


@cache
def export(name, quant):
    """Exports a fixture once and returns the model directory."""
    out = Path(_scratch.name) / f"{name}-{quant}"
    command = [GLMCTL, "export", CHECKPOINTS / name, "--out", out, "--quant", quant]
    if quant != "none":
        command += ["--block", "32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{name}: {done.stderr}"
    return out


class Case:
    """A golden case: ids, positions, who sees whom, and the logits of another implementation."""

    def __init__(self, raw, tensors):
        self.name = raw["name"]
        self.ids = np.array([raw["input_ids"]], np.int64)
        self.positions = np.array([raw["position_ids"]], np.int64)
        self.bidirectional = raw["bidirectional"]
        self.prompt = raw["prompt_len"]
        self.logits = tensors[raw["logits"]]

    def __len__(self):
        return self.ids.shape[1]

    def visible(self):
        """True where row i sees column j."""
        i, j = np.arange(len(self))[:, None], np.arange(len(self))[None, :]
        return (j < self.bidirectional) | (j <= i)


class Model:
    """An exported graph in plain onnxruntime, on one thread."""

    def __init__(self, directory):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # Warnings about optional inputs are noise here; errors still show.
        options.log_severity_level = 3
        path = str(directory / "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs = {item.name: item for item in self.session.get_inputs()}
        self.prefix_lm = "position_ids" in inputs
        self.caches = {
            name: tuple(item.shape[axis] for axis in (1, 3))
            for name, item in inputs.items()
            if name.startswith("past_key_values.")
        }

    def empty(self, batch=1):
        """A past without tokens."""
        return {name: np.zeros((batch, heads, 0, dim), np.float32) for name, (heads, dim) in self.caches.items()}

    def run(self, ids, past, positions=None, mask=None):
        """Runs tokens [batch, tokens] after `past`; returns logits and the new past.

        `mask` is [batch, tokens, total], true where a key is seen; for causal graphs it is [batch, total], 1 for a token.
        """
        batch, tokens = ids.shape
        total = next(iter(past.values())).shape[2] + tokens
        feeds = {"input_ids": ids, **past}
        if self.prefix_lm:
            feeds["position_ids"] = positions
            feeds["attention_mask"] = mask[:, None]
        else:
            feeds["attention_mask"] = np.ones((batch, total), np.int64) if mask is None else mask
        names = [name.replace("past_key_values", "present") for name in past]
        logits, *present = self.session.run(["logits", *names], feeds)
        for name, cache in zip(names, present):
            assert cache.shape[2] == total, f"{name} has {cache.shape[2]} tokens, not {total}"
        return logits, dict(zip(past, present))

    def run_case(self, case, cuts):
        """Logits of a case fed in pieces that end at `cuts`, through the cache."""
        rows, past, begin, visible = [], self.empty(), 0, case.visible()
        for end in [*cuts, len(case)]:
            piece = slice(begin, end)
            extra = {}
            if self.prefix_lm:
                extra = {"positions": case.positions[:, :, piece], "mask": visible[None, piece, :end]}
            logits, past = self.run(case.ids[:, piece], past, **extra)
            rows.append(logits[0])
            begin = end
        return np.concatenate(rows)


def cases(name):
    """The golden cases that the graph can run as its configuration describes it."""
    directory = CHECKPOINTS / name
    tensors = load_file(directory / "golden.safetensors")
    for raw in json.loads((directory / "golden.json").read_text())["cases"]:
        in_order = raw["position_ids"][0] == list(range(len(raw["input_ids"])))
        # A causal graph counts positions itself; `-erf` was made with another activation.
        if (raw["bidirectional"] or in_order) and not raw["name"].endswith("-erf"):
            yield Case(raw, tensors)
