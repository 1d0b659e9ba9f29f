"""What rounding the weights costs: the held-out figures of a checkpoint under six schemes.

    python quantisation.py work/release [--split test] [--limit 300]

Weights of the four linear layers of every block and of the embedding table,
which is the head too, are rounded and spread again in f32, so that only the
rounding is measured: absmax (symmetric, -127..127 or -7..7) and zero point
(asymmetric, 0..15), with one scale a row or one a block of 32 inputs.
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer

import infer
import model as glm
from evaluate import evaluate

SCHEMES = [("f32", None, 0, 0), ("absmax INT8, row", "absmax", 8, 0), ("absmax INT8, block 32", "absmax", 8, 32),
           ("absmax INT4, row", "absmax", 4, 0), ("absmax INT4, block 32", "absmax", 4, 32),
           ("zero point INT4, row", "zeropoint", 4, 0), ("zero point INT4, block 32", "zeropoint", 4, 32)]


def rounded(weight, scheme, bits, block):
    """A weight [out, in] after rounding."""
    w = weight.reshape(-1, block) if block else weight
    if scheme == "absmax":
        top = 2 ** (bits - 1) - 1
        scale = w.abs().amax(1, keepdim=True).clamp_min(1e-12) / top
        out = (w / scale).round().clamp(-top, top) * scale
    else:
        top = 2 ** bits - 1
        low, high = w.amin(1, keepdim=True).clamp_max(0), w.amax(1, keepdim=True).clamp_min(0)
        scale = (high - low).clamp_min(1e-12) / top
        zero = (-low / scale).round()
        out = (((w / scale).round() + zero).clamp(0, top) - zero) * scale
    return out.reshape(weight.shape)


def stored_bytes(net, scheme, bits, block):
    """Bytes of weights and scales; f32 scales, zero points of the weights' own width."""
    total = 0
    for name, p in net.named_parameters():
        if scheme and p.dim() == 2 and "position" not in name:
            groups = p.numel() // block if block else p.shape[0]
            total += p.numel() * bits // 8 + groups * 4 + (groups * bits // 8 if scheme == "zeropoint" else 0)
        else:
            total += p.numel() * 4
    return total


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--split", default="test", choices=["dev", "test"])
    p.add_argument("--limit", type=int, default=0)
    a = p.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(a.checkpoint / "tokenizer.json"))
    tasks = json.loads((a.checkpoint / "tasks.json").read_text())
    print("| weights | MB | bits per byte | intent-en exact | severity | topic | 1-word infill |\n|---|---|---|---|---|---|---|")
    for name, scheme, bits, block in SCHEMES:
        net = glm.load(a.checkpoint)
        if scheme:
            with torch.no_grad():
                for key, w in net.named_parameters():
                    if w.dim() == 2 and "position" not in key:
                        w.copy_(rounded(w, scheme, bits, block))
        out = evaluate(infer.Network(net), tokenizer, tasks, a.split, a.limit)
        print(f"| {name} | {stored_bytes(net, scheme, bits, block) / 1e6:.1f} | {out['bits']['bits_per_byte']:.4f} | "
              f"{out['intent-en']['exact']:.3f} | {out['severity']['accuracy']:.3f} | {out['topic']['accuracy']:.3f} | "
              f"{out['infill']['exact_1']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
