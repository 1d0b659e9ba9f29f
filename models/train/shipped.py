"""Weights of a released model directory, for going on where only the release is left.

The integers of `MatMulNBits` and `GatherBlockQuantized` are spread in f32 again,
so what comes back is the model as it answers, rounding included.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

import model as glm

# A linear layer or norm of a block in the graph, and in a checkpoint.
BLOCK = {
    "attention_norm": "input_layernorm",
    "attention.qkv": "attention.query_key_value",
    "attention.output": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "mlp.in": "mlp.dense_h_to_4h",
    "mlp.out": "mlp.dense_4h_to_h",
}
# The stored integer that stands for zero.
ZERO = 128


def spread(values, scales):
    """f32 [out, in] of 8-bit `values` [out, blocks, 32] or [out, in] and `scales` [out, blocks]."""
    blocks = values.reshape(*scales.shape, -1).astype(np.float32) - ZERO
    return (blocks * scales[..., None]).reshape(len(values), -1)


def load(folder: Path, shape: glm.Shape | None = None) -> glm.Glm:
    """The network of an INT8 export with INT8 embedding and head.

    Raises `KeyError` with the tensor's name where the export is of another form.
    """
    graph = onnx.load(Path(folder) / "model.onnx").graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    net = glm.Glm(shape or glm.Shape())
    names = {"positions": "transformer.position_embeddings",
             "block_positions": "transformer.block_position_embeddings",
             "embedding": "word_embeddings", "final_norm": "transformer.final_layernorm"}
    for n in range(net.shape.layers):
        names |= {f"layers.{n}.{a}": f"transformer.layers.{n}.{b}" for a, b in BLOCK.items()}
    state = {}
    for ours, theirs in names.items():
        if f"{ours}.values" in stored:
            state[f"{theirs}.weight"] = spread(stored[f"{ours}.values"], stored[f"{ours}.scales"])
        else:
            state[f"{theirs}.weight"] = stored[f"{ours}.weight"]
        if f"{ours}.bias" in stored:
            state[f"{theirs}.bias"] = stored[f"{ours}.bias"]
    net.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return net
