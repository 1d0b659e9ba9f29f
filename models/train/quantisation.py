"""What rounding the weights costs: a checkpoint exported under seven schemes and measured by the engine that serves.

    python quantisation.py work/release --out quantisation.json [--glmctl PATH] [--glmd PATH] [--speed] [--limit 200]

Rounded are the four linear layers of every block and the embedding table, which
is the head too: absmax (symmetric, -127..127 or -7..7) and zero point
(asymmetric, 0..15), with one scale a row or one a block of 32 inputs. Figures
come from `glmctl eval`, so activations are rounded as they are when serving;
with `--speed`, tokens a second of one text from a running glmd, on one thread.
"""

import argparse
import json
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from common import HERE, WORK
from data import EVAL

REPOSITORY = HERE.parents[1]
# Name, kind of number, weights that share a scale.
SCHEMES = [("f32", "none", "row"), ("absmax INT8, row", "int8", "row"), ("absmax INT8, block 32", "int8", "32"),
           ("absmax INT4, row", "int4", "row"), ("absmax INT4, block 32", "int4", "32"),
           ("zero point INT4, row", "int4-zp", "row"), ("zero point INT4, block 32", "int4-zp", "32")]
COLUMNS = [("bits per byte", "bits", "bits_per_byte"), ("intents EN", "intent-en", "exact"),
           ("intents ZH", "intent-zh", "exact"), ("severity", "severity", "accuracy"), ("topic", "topic", "accuracy"),
           ("one word", "infill", "exact_1")]
# Texts of the speed: each is answered by so many tokens, whatever they say.
PROMPTS, TOKENS = ["The first thing to do is to [gMASK]", "Connect the sensor to the [gMASK]", "Water is [gMASK]"], 128


def exported(glmctl, checkpoint, folder, kind, block):
    """A model directory without the schema of its tasks, which the figures do not need, and with the held-out sets."""
    plain = folder.with_name(folder.name + ".checkpoint")
    shutil.rmtree(plain, ignore_errors=True)
    shutil.copytree(checkpoint, plain)
    tasks = json.loads((plain / "tasks.json").read_text())
    tasks["intent"].pop("json_schema", None)
    (plain / "tasks.json").write_text(json.dumps(tasks))
    subprocess.run([glmctl, "export", plain, "--out", folder, "--force", "--quant", kind, "--block", block,
                    "--head", kind, "--embedding", kind], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(plain)
    shutil.copytree(EVAL, folder / "eval", dirs_exist_ok=True)
    return folder


def figures(glmctl, folder, limit):
    command = [glmctl, "eval", folder, "--json", *(["--limit", str(limit)] if limit else [])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def speed(glmctl, glmd, folder):
    """Tokens a second of one text at a time: the best of all answers, as other programs only slow it."""
    with tempfile.TemporaryDirectory() as place:
        socket = f"{place}/glmd.sock"
        daemon = subprocess.Popen([glmd, "--model", folder, "--socket", socket, "--set", "model.threads=1"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            ask = [glmctl, "--socket", socket, "infill", "--output", "json", "--max-tokens", str(TOKENS)]
            best = 0.0
            for attempt in range(100):
                done = subprocess.run([*ask, PROMPTS[attempt % len(PROMPTS)]], capture_output=True, text=True)
                if done.returncode == 0:
                    answer = json.loads(done.stdout)
                    best = max(best, 1000 * answer["usage"]["completion_tokens"] / answer["timing"]["total_ms"])
                    if attempt > 12:
                        return best
                else:
                    time.sleep(0.2)
            raise RuntimeError(done.stderr)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(20)


def text(table):
    head = ["weights", "MB", *(name for name, _, _ in COLUMNS), "tokens/s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in table.items():
        cells = [f"{row['figures'][s][m]:.{4 if s == 'bits' else 3}f}" if "figures" in row else "" for _, s, m in COLUMNS]
        fast = f"{row['tokens_per_second']:.0f}" if "tokens_per_second" in row else ""
        lines.append(f"| {name} | {row['bytes'] / 1e6:.1f} | {' | '.join(cells)} | {fast} |")
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=Path)
    p.add_argument("--out", type=Path, required=True, help="JSON; what it already holds is kept")
    p.add_argument("--glmctl", default=REPOSITORY / "target/release/glmctl")
    p.add_argument("--glmd", default=REPOSITORY / "target/release/glmd")
    p.add_argument("--speed", action="store_true", help="measure speeds in place of figures")
    p.add_argument("--limit", type=int, help="items of each set")
    a = p.parse_args()
    table = json.loads(a.out.read_text()) if a.out.exists() else {}
    for name, kind, block in SCHEMES:
        row = table.setdefault(name, {})
        wanted = "tokens_per_second" if a.speed else "figures"
        if wanted in row:
            continue
        folder = WORK / f"quantised/{kind}-{block}"
        if not (folder / "glm.json").exists():
            exported(a.glmctl, a.checkpoint, folder, kind, block)
        row["bytes"] = sum(p.stat().st_size for p in folder.glob("model.onnx*"))
        row[wanted] = speed(a.glmctl, a.glmd, folder) if a.speed else figures(a.glmctl, folder, a.limit)
        a.out.write_text(json.dumps(table, indent=1) + "\n")
    print(text(table))


if __name__ == "__main__":
    main()
