"""A short check of the trainer: the loss falls, a resumed run equals one that never stopped, an export the network.

Runs on a network of two narrow layers and on texts from the repository, so
that it needs neither the corpus nor the downloads.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import common
import golden
import infer
import model as glm
import objectives
import shipped
from stream import collate, micro_batches
from train import rate, run_step, write_state

REPOSITORY = common.HERE.parents[1]
GLMCTL = Path(os.environ.get("GLMCTL", REPOSITORY / "target/debug/glmctl"))


class Arguments:
    steps, decay, warmup, first = 24, 0.25, 4, 0


def texts():
    eval_sets = sorted((REPOSITORY / "models/glm-mini/eval").glob("infill-*.dev.jsonl"))
    lines = [json.loads(line) for path in eval_sets for line in path.open()]
    return [line["text"].replace("[MASK]", line["answer"]) for line in lines]


def tokenizer_of(lines):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=512, special_tokens=common.SPECIALS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def train(ids, words, until, start=None):
    torch.manual_seed(3)
    net = glm.Glm(glm.Shape(vocab=512, hidden=64, layers=2, heads=4, inner=128, positions=128))
    opt = torch.optim.AdamW(net.parameters(), lr=3e-3)
    step, losses = 0, []
    if start:
        saved = torch.load(start)
        net.load_state_dict(saved["model"])
        opt.load_state_dict(saved["optimizer"])
        step = saved["step"]
    while step < until:
        for group in opt.param_groups:
            group["lr"] = 3e-3 * rate(step, Arguments)
        rng = np.random.default_rng([3, step])
        drawn = [objectives.infill(ids[i], words, rng) for i in rng.integers(len(ids), size=24)]
        batch = [("text", s) for s in drawn if s is not None]
        losses.append(run_step(net, batch, 1024, "cpu")[0])
        opt.step()
        opt.zero_grad()
        step += 1
    return net, opt, losses


def main():
    torch.set_num_threads(1)
    document = json.loads((REPOSITORY / "tests/fixtures/blanks.json").read_text())
    assert golden.build() == document, "tests/fixtures/blanks.json is not what objectives.py lays out"
    for value, name in enumerate("EOS CLS MASK SMASK GMASK SOP EOP".split()):
        setattr(objectives, name, value)  # golden.py lays out for another vocabulary

    lines = texts()
    tokenizer = tokenizer_of(lines)
    words = objectives.Words(tokenizer)
    ids = [np.array(e.ids[:100]) for e in tokenizer.encode_batch(lines)]
    whole, _, losses = train(ids, words, Arguments.steps)
    first, last = np.mean(losses[:4]), np.mean(losses[-4:])
    print(f"loss {first:.3f} -> {last:.3f}")
    assert last < first - 0.5, "the loss does not fall"

    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.pt"
        net, opt, _ = train(ids, words, 10)
        write_state(state, net, opt, 10)
        resumed, _, _ = train(ids, words, Arguments.steps, state)
        for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
            assert torch.equal(a, b), f"{name} differs after resuming"
        print("a resumed run equals one that never stopped, bit for bit")

        tokenizer.save(str(Path(folder) / "tokenizer.json"))
        glm.save(whole, Path(folder) / "checkpoint", Path(folder) / "tokenizer.json")
        loaded = glm.load(Path(folder) / "checkpoint")
        batch = [("text", objectives.infill(i, words, np.random.default_rng(1))) for i in ids[:4]]
        inputs = [torch.from_numpy(x) for x in collate(next(micro_batches(batch, 4096)))[:4]]
        with torch.inference_mode():
            assert torch.equal(whole(*inputs), loaded(*inputs)), "a saved checkpoint computes something else"
        print("a saved checkpoint computes the same")

        out = Path(folder) / "exported"
        subprocess.run([GLMCTL, "export", Path(folder) / "checkpoint", "--out", out, "--quant", "none"], check=True)
        samples = [sample for _, sample in batch]
        rows = [(n, at) for n, sample in enumerate(samples) for at in range(len(sample))]
        ours, exported = (n.logits(samples, rows) for n in (infer.Network(whole), infer.OnnxNetwork(out)))
        off = float(np.abs(ours - exported).max())
        assert off < 2e-4, f"the export is off by {off}"
        print(f"an export computes the same within {off:.1e}")

        small = Path(folder) / "small"
        subprocess.run([GLMCTL, "export", Path(folder) / "checkpoint", "--out", small, "--quant", "int8",
                        "--head", "int8", "--embedding", "int8"], check=True)
        again = shipped.load(small, whole.shape)
        for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values()):
            # Half a step of INT8, of a scale that is at most that of the largest weight.
            allowed = a.abs().max() / 127 * 0.51
            assert (a - b).abs().max() <= allowed, f"{name} does not come back from its release"
        print("a release can be trained on")

        # A token at a time with a cache must agree with the whole sequence at once.
        network = infer.Network(whole)
        prompt = objectives.layout(infer.parts(tokenizer, "Press the [MASK] to start"), [])
        at = int(np.flatnonzero(prompt.ids == common.MASK)[0])
        answer = network.greedy([prompt], [at], 6)[0]
        full = objectives.layout(infer.parts(tokenizer, "Press the [MASK] to start"), [answer])
        rows = [(0, full.sep + n) for n in range(len(answer))]
        assert network.logits([full], rows).argmax(-1).tolist() == answer, "cached and whole passes disagree"
        print("cached and whole passes agree")


if __name__ == "__main__":
    main()
