"""The network: a GLM with learned 2D positions and GLM-130B's post-norm block (alpha 1).

Tensor names and layouts are those of the published GLM checkpoints, so that
`glmctl export` takes what `save` writes.
"""

import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from common import CLS, EOP, EOS, GMASK, MASK, MAX_POSITION, SMASK, SOP, VOCAB


@dataclass
class Shape:
    """Sizes of a model. `positions` is the highest position; its tables have one row more."""

    vocab: int = VOCAB
    hidden: int = 384
    layers: int = 6
    heads: int = 12
    inner: int = 1536
    positions: int = MAX_POSITION
    eps: float = 1e-12


def attend(q, k, v, visible):
    """Attention of `q` [b, heads, n, d] to `k` and `v` [b, heads, m, d] where `visible` [b, 1, n, m].

    Plain products: on a CPU the fused kernel's backward pass takes twice as
    long as all of this for sequences of some dozen tokens.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    scores = scores.masked_fill(~visible, float("-inf"))
    return torch.softmax(scores.float(), -1).to(v.dtype) @ v


class Block(nn.Module):
    """`a = LN(x); h = a + attention(a); m = LN(h); out = m + mlp(m)`."""

    def __init__(self, s: Shape):
        super().__init__()
        self.heads = s.heads
        self.input_layernorm = nn.LayerNorm(s.hidden, eps=s.eps)
        self.attention = nn.ModuleDict({
            "query_key_value": nn.Linear(s.hidden, 3 * s.hidden),
            "dense": nn.Linear(s.hidden, s.hidden)})
        self.post_attention_layernorm = nn.LayerNorm(s.hidden, eps=s.eps)
        self.mlp = nn.ModuleDict({
            "dense_h_to_4h": nn.Linear(s.hidden, s.inner),
            "dense_4h_to_h": nn.Linear(s.inner, s.hidden)})

    def forward(self, x, visible, cache=None):
        """`x` [b, n, hidden]; `visible` bool [b, 1, n, past + n]; `cache` a list that keeps [k, v]."""
        b, n, width = x.shape
        a = self.input_layernorm(x)
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2)
                   for t in self.attention["query_key_value"](a).chunk(3, dim=-1))
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
            cache[:] = [k, v]
        mixed = attend(q, k, v, visible)
        h = a + self.attention["dense"](mixed.transpose(1, 2).reshape(b, n, width))
        m = self.post_attention_layernorm(h)
        return m + self.mlp["dense_4h_to_h"](F.gelu(self.mlp["dense_h_to_4h"](m)))


class Glm(nn.Module):
    """Logits from tokens and their two positions."""

    def __init__(self, s: Shape):
        super().__init__()
        self.shape = s
        self.word_embeddings = nn.Embedding(s.vocab, s.hidden)
        self.transformer = nn.ModuleDict({
            "position_embeddings": nn.Embedding(s.positions + 1, s.hidden),
            "block_position_embeddings": nn.Embedding(s.positions + 1, s.hidden),
            "layers": nn.ModuleList(Block(s) for _ in range(s.layers)),
            "final_layernorm": nn.LayerNorm(s.hidden, eps=s.eps)})
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
        nn.init.zeros_(self.transformer["block_position_embeddings"].weight)

    def forward(self, ids, pos0, pos1, visible, rows=None, cache=None):
        """`ids`, `pos0`, `pos1` int [b, n]; `visible` bool [b, n, past + n].

        `rows` selects rows of the flattened [b * n] whose logits are wanted.
        Returns [b, n, vocab], or [rows, vocab].
        """
        t = self.transformer
        x = self.word_embeddings(ids) + t["position_embeddings"](pos0) + t["block_position_embeddings"](pos1)
        visible = visible.unsqueeze(1)
        for number, layer in enumerate(t["layers"]):
            x = layer(x, visible, None if cache is None else cache[number])
        x = t["final_layernorm"](x)
        if rows is not None:
            x = x.flatten(0, 1)[rows]
        return F.linear(x, self.word_embeddings.weight)


def config(s: Shape) -> dict:
    """`config.json` as the original GLM code writes it, with the keys of the post-norm form."""
    return {
        "architectures": ["GLMForConditionalGeneration"], "model_type": "glm",
        "attention_dropout_prob": 0.0, "attention_scale": 1.0, "block_position_encoding": True,
        "embedding_dropout_prob": 0.0, "hidden_size": s.hidden, "initializer_range": 0.02,
        "max_sequence_length": s.positions, "num_attention_heads": s.heads, "num_layers": s.layers,
        "output_dropout_prob": 0.0, "output_predict": True, "pool_token": "cls",
        "relative_encoding": False, "spell_func": "lstm", "spell_length": None,
        "torch_dtype": "float32", "vocab_size": s.vocab, "hidden_act": "gelu",
        "inner_hidden_size": s.inner, "layernorm_epsilon": s.eps, "layernorm_order": "post",
        "residual_alpha": 1.0, "tie_word_embeddings": True, "pad_token_id": EOS,
        "cls_token_id": CLS, "mask_token_id": MASK, "smask_token_id": SMASK,
        "gmask_token_id": GMASK, "sop_token_id": SOP, "eop_token_id": EOP, "eos_token_id": EOS,
    }


def save(model: Glm, folder: Path, tokenizer: Path, tasks: dict | None = None) -> None:
    """Writes a checkpoint folder that `glmctl export` takes; replaces an old one in one rename."""
    folder = Path(folder)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({k: v.detach().contiguous().clone() for k, v in model.state_dict().items()},
              part / "model.safetensors", metadata={"format": "pt"})
    (part / "config.json").write_text(json.dumps(config(model.shape), indent=2) + "\n")
    shutil.copy(tokenizer, part / "tokenizer.json")
    (part / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]", "mask_token": "[MASK]",
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["[sMASK]", "[gMASK]", "<|startofpiece|>", "<|endofpiece|>"],
    }, indent=2) + "\n")
    if tasks:
        (part / "tasks.json").write_text(json.dumps(tasks, indent=2, ensure_ascii=False) + "\n")
    if folder.exists():
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
        os.rename(part, folder)
        shutil.rmtree(old)
    else:
        os.rename(part, folder)


def load(folder: Path) -> Glm:
    """A checkpoint folder of this layout."""
    c = json.loads((Path(folder) / "config.json").read_text())
    model = Glm(Shape(c["vocab_size"], c["hidden_size"], c["num_layers"], c["num_attention_heads"],
                      c["inner_hidden_size"], c["max_sequence_length"], c["layernorm_epsilon"]))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model


def from_minilm(folder: Path, tokenizer, layers: int | None = None) -> Glm:
    """A model that starts as all-MiniLM-L6-v2, or its first `layers`, with another vocabulary.

    BERT's post-norm block is this block shifted by one norm: the norm of the
    embeddings becomes the first input norm, each layer's output norm the next
    one's input norm, the last one the final norm. Token type 0 is folded into
    the positions. A new token's embedding is the mean of the old vocabulary's
    pieces of the same lower-cased string, plus one shared vector for each
    spelling that the old vocabulary does not tell apart.
    """
    c = json.loads((folder / "config.json").read_text())
    w = load_file(folder / "model.safetensors")
    w = {k.removeprefix("bert."): v for k, v in w.items()}
    model = Glm(Shape(hidden=c["hidden_size"], layers=layers or c["num_hidden_layers"],
                      heads=c["num_attention_heads"], inner=c["intermediate_size"],
                      eps=c["layer_norm_eps"]))
    state = model.state_dict()

    def norm(source, target):
        for kind in ("weight", "bias"):
            state[f"{target}.{kind}"].copy_(w[f"{source}.{kind}"])

    with torch.no_grad():
        table = w["embeddings.position_embeddings.weight"] + w["embeddings.token_type_embeddings.weight"][0]
        state["transformer.position_embeddings.weight"].copy_(torch.cat((table, table[-1:])))
        norm("embeddings.LayerNorm", "transformer.layers.0.input_layernorm")
        for n in range(model.shape.layers):
            old, new = f"encoder.layer.{n}", f"transformer.layers.{n}"
            for kind in ("weight", "bias"):
                state[f"{new}.attention.query_key_value.{kind}"].copy_(torch.cat(
                    [w[f"{old}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]))
            norm(f"{old}.attention.output.dense", f"{new}.attention.dense")
            norm(f"{old}.attention.output.LayerNorm", f"{new}.post_attention_layernorm")
            norm(f"{old}.intermediate.dense", f"{new}.mlp.dense_h_to_4h")
            norm(f"{old}.output.dense", f"{new}.mlp.dense_4h_to_h")
            last = n + 1 == model.shape.layers
            norm(f"{old}.output.LayerNorm",
                 "transformer.final_layernorm" if last else f"transformer.layers.{n + 1}.input_layernorm")
        state["word_embeddings.weight"].copy_(
            embeddings(w["embeddings.word_embeddings.weight"], folder / "tokenizer.json", tokenizer))
    return model


def embeddings(old, old_tokenizer: Path, tokenizer):
    """[vocab, hidden] embeddings of a byte-level vocabulary from those of BERT's."""
    from tokenizers import Tokenizer
    bert = Tokenizer.from_file(str(old_tokenizer))
    bert.no_padding()
    bert.no_truncation()
    vocab = bert.get_vocab()
    g = torch.Generator().manual_seed(1)
    length = old.norm(dim=1).median()
    mean = old[1000:].mean(0)
    marks = torch.randn(3, old.shape[1], generator=g)
    marks *= 0.25 * length / marks.norm(dim=1, keepdim=True)
    out = mean + 0.2 * length / math.sqrt(old.shape[1]) * torch.randn(VOCAB, old.shape[1], generator=g)
    names = {"[CLS]": "[CLS]", "[MASK]": "[MASK]", "[sMASK]": "[MASK]", "[gMASK]": "[MASK]",
             "<|endoftext|>": "[SEP]", "<|endofpiece|>": "[SEP]", "<|startofpiece|>": "[CLS]"}
    for piece, number in tokenizer.get_vocab().items():
        if piece in names:
            out[number] = old[vocab[names[piece]]] + 0.05 * (out[number] - mean)
            continue
        text = tokenizer.decode([number])
        word = text.strip()
        if not word or "\ufffd" in word:
            continue
        inner = not text.startswith(" ") and word.isascii() and word.isalpha()
        low = word.lower()
        if inner and len(low) < 4 and "##" + low in vocab:
            ids = [vocab["##" + low]]
        else:
            ids = [i for i in bert.encode(low, add_special_tokens=False).ids if i != vocab["[UNK]"]]
        if not ids:
            continue
        out[number] = old[ids].mean(0) + 0.02 * (out[number] - mean)
        out[number] += marks[0] * inner + marks[1] * (word[0] != low[0]) + marks[2] * (len(word) > 1 and word.isupper())
    return out
