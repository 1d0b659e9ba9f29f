"""Builds tokenizer, corpus and held-out sets, deterministically, from the unpacked packages.

Everything lands in `work/corpus`: `tokenizer.json`, `tokens.bin` (uint16),
`index.npy` (one record a sample) and `manifest.json`; the held-out sets in
`../glm-mini/eval/*.jsonl`.
"""

import json
import random
import re
import sys
from collections import Counter

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import logs
import sources
from common import CORPUS, HERE, SPECIALS, VOCAB, WORK, bucket, sha256
from intents import Grammar

EVAL = HERE.parent / "glm-mini/eval"
RAW = WORK / "raw"
GROUPS = ["wiki", "help", "device", "recipes", "wordnet", "zh", "topic", "severity",
          "intent_en", "intent_zh", "intent_en_wide", "intent_zh_wide"]
RECORD = np.dtype([("group", "u1"), ("start", "u4"), ("length", "u4"), ("extra", "u4")])
LEVELS = ["error", "warning", "debug"]
TOPICS = sorted(sources.TOPICS.values())
INTENT_SAMPLES = {"en": 60_000, "zh-CN": 20_000}
WIDE_SAMPLES = {"en": 50_000, "zh-CN": 20_000}
TOPIC_CHARS = 640
WORD = re.compile(r"(?<![\w'-])[A-Za-z]{2,}(?![\w'-])")


def plain_texts():
    """`group -> {split: [text]}` of running text."""
    out = {g: {"train": [], "dev": [], "test": []} for g in GROUPS[:6]}
    for text, _ in sources.wiki(RAW):
        out["wiki"][sources.part(text)].append(text)
    for chinese, group in ((False, "help"), (True, "zh")):
        for page, lines in sources.help_lines(RAW, chinese):
            split = sources.part(page) if not chinese else "train"
            chunk = []
            for line in lines:
                if chunk and sum(map(len, chunk)) + len(line) > 1200:
                    out[group][split].append("\n".join(chunk))
                    chunk = []
                chunk.append(line)
            out[group][split].append("\n".join(chunk))
    for text in sources.device_strings(RAW):
        if len(text.split()) >= 4:
            out["device"][sources.part(text)].append(text)
    for text in sources.recipes(RAW):
        out["recipes"][sources.part(text)].append(text)
    for text in sources.wordnet(RAW):
        out["wordnet"][sources.part(text)].append(text)
    for text in sources.device_strings(RAW, "zh-Hans"):
        if len(text) >= 6:
            out["zh"]["train"].append(text)
    return out


def severity_lines():
    """`(split, text, level, integration)`, split by integration, one line a distinct format."""
    rng = random.Random(11)
    seen = set()
    for integration, level, parts in logs.logger_calls(RAW / "homeassistant/homeassistant/components"):
        skeleton = "".join(p if isinstance(p, str) else "%s" for p in parts).strip()
        if skeleton in seen or len(skeleton) < 8:
            continue
        seen.add(skeleton)
        split = {0: "test", 1: "dev"}.get(bucket(integration), "train")
        for _ in range(4 if split == "train" else 1):
            yield split, logs.fill(parts, rng), level, integration


def opinions(lines, folds=5):
    """f32 [lines, levels]: what a simple classifier thinks of each `(text, level, integration)` that was trained
    on other integrations.

    A line's level is partly its author's taste. A network of this size knows the training lines by heart after some
    passes; what a stranger would say of them it cannot know by heart.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    fold = np.array([bucket(f"opinion {integration}", folds) for *_, integration in lines])
    texts, levels = [t for t, *_ in lines], np.array([LEVELS.index(l) for _, l, _ in lines])
    out = np.zeros((len(lines), len(LEVELS)), np.float32)
    for n in range(folds):
        mine, others = np.flatnonzero(fold == n), np.flatnonzero(fold != n)[::2]
        vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), max_features=200_000, min_df=2, sublinear_tf=True)
        fitted = LogisticRegression(C=1, max_iter=300).fit(vectors.fit_transform([texts[i] for i in others]), levels[others])
        out[mine] = fitted.predict_proba(vectors.transform([texts[i] for i in mine])).round(3)
    return out


def intent_pairs():
    """`(split, language, sentence, json)`."""
    lists = json.loads((HERE / "slots.json").read_text())
    for language, count in INTENT_SAMPLES.items():
        grammar = Grammar(RAW, language, lists)
        rng = random.Random(f"intents {language}")
        parts = {s: [t for t in grammar.templates if t["part"] == s] for s in ("train", "dev", "test")}
        for _ in range(count):
            t = rng.choice(parts["train"])
            yield "train", language, *grammar.sample(t, rng, varied=True)
        for split, each in (("dev", 5), ("test", 10)):
            for t in parts[split]:
                distinct = sorted({grammar.sample(t, rng) for _ in range(each * 3)})
                for pair in rng.sample(distinct, min(each, len(distinct))):
                    yield split, language, *pair


def names(language):
    """Things that a slot may hold beside `slots.json`: short device strings, and common nouns of WordNet."""
    if language == "zh-CN":
        return sorted({t for t in sources.device_strings(RAW, "zh-Hans") if re.fullmatch("[\u4e00-\u9fff]{2,6}", t)})
    spoken = {t if t.isupper() else t.lower() for t in sources.device_strings(RAW)
              if re.fullmatch(r"[A-Za-z]{3,}( [A-Za-z]{2,}){0,2}", t)}
    counts = Counter(w.lower() for t in sources.device_strings(RAW) for w in WORD.findall(t))
    counts.update(w for text, _ in sources.wiki(RAW) for w in WORD.findall(text))
    nouns = (line.split(":")[0] for line in sources.wordnet(RAW, ("noun",)))
    spoken |= {n for n in nouns if re.fullmatch("[a-z]{3,}( [a-z]{3,})?", n) and all(counts[w] >= 12 for w in n.split())}
    return sorted(spoken)


def wide_pairs():
    """`(language, sentence, json)` of training templates whose free slots hold things of all kinds.

    What a name is called must be copied, not recognised; the few dozen values of
    `slots.json` can be learnt by heart, these can not.
    """
    lists = json.loads((HERE / "slots.json").read_text())
    for language, count in WIDE_SAMPLES.items():
        grammar = Grammar(RAW, language, lists, names(language))
        rng = random.Random(f"wide {language}")
        free = [t for t in grammar.templates if t["part"] == "train"]
        for _ in range(count):
            yield language, *grammar.sample(rng.choice(free), rng, varied=True)


def train_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIALS, show_progress=False, max_token_length=24,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def infill_items(texts, count, seed):
    """Held-out blanks of one, two and three words in windows of at most 60 words."""
    rng = random.Random(seed)
    sentences = [s for t in texts for line in t.split("\n")
                 for s in re.split(r"(?<=[.!?]) (?=[A-Z])", line) if 6 <= len(s.split()) <= 60]
    sentences = sorted(set(sentences))
    rng.shuffle(sentences)
    items = []
    for number, sentence in enumerate(sentences):
        words = list(WORD.finditer(sentence))
        n = 1 + number % 3
        spans = [(words[i].start(), words[i + n - 1].end()) for i in range(1, len(words) - n + 1)
                 if sentence[words[i].start() - 1] == " "
                 and re.fullmatch(r"[A-Za-z]+( [A-Za-z]+)*", sentence[words[i].start():words[i + n - 1].end()])]
        if not spans:
            continue
        a, b = rng.choice(spans)
        items.append({"text": sentence[:a] + "[MASK]" + sentence[b:], "answer": sentence[a:b], "words": n})
        if len(items) == count:
            break
    return items


def write_jsonl(name, items):
    EVAL.mkdir(parents=True, exist_ok=True)
    with (EVAL / f"{name}.jsonl").open("w") as f:
        for item in items:
            f.write(json.dumps(item, ensure_ascii=False) + "\n")


def topic_text(text):
    return text if len(text) <= TOPIC_CHARS else text[:TOPIC_CHARS].rsplit(" ", 1)[0]


def build():
    CORPUS.mkdir(parents=True, exist_ok=True)
    plain = plain_texts()
    severity = list(severity_lines())
    pairs = list(intent_pairs())
    print({g: {s: len(t) for s, t in v.items()} for g, v in plain.items()}, len(severity), len(pairs), flush=True)

    sample = random.Random(5)
    texts = []
    for group, repeat in (("wiki", 1), ("help", 1), ("device", 2), ("recipes", 1), ("wordnet", 0.4)):
        pool = plain[group]["train"]
        texts += pool * int(repeat) if repeat >= 1 else sample.sample(pool, int(len(pool) * repeat))
    texts += sample.sample(plain["zh"]["train"], len(plain["zh"]["train"]) // 6)
    texts += [t for s, t, *_ in severity if s == "train"]
    texts += [t for s, l, a, b in pairs if s == "train" for t in (a, b)]
    tokenizer = train_tokenizer(texts)
    tokenizer.save(str(CORPUS / "tokenizer.json"))
    print("tokenizer", tokenizer.get_vocab_size(), flush=True)

    records, chunks, at = [], [], 0

    def put(group, ids, extra=0):
        nonlocal at
        records.append((GROUPS.index(group), at, len(ids), extra))
        chunks.append(np.array(ids, dtype=np.uint16))
        at += len(ids)

    def encode(texts):
        return [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    for group, splits in plain.items():
        for ids in encode(splits["train"]):
            put(group, ids)
    labelled = [(t, topic) for t, topic in sources.wiki(RAW) if topic and sources.part(t) == "train"]
    for ids, (_, topic) in zip(encode([topic_text(t) for t, _ in labelled]), labelled):
        put("topic", ids, TOPICS.index(topic))
    lines = [line[1:] for line in severity if line[0] == "train"]
    for ids, (_, level, _) in zip(encode([t for t, *_ in lines]), lines):
        put("severity", ids, LEVELS.index(level))
    np.save(CORPUS / "opinions.npy", opinions(lines))
    trained = [p for p in pairs if p[0] == "train"]
    for question, answer, pair in zip(encode([p[2] for p in trained]), encode([p[3] for p in trained]), trained):
        put("intent_en" if pair[1] == "en" else "intent_zh", question + answer, len(question))
    wide = list(wide_pairs())
    for question, answer, pair in zip(encode([p[1] for p in wide]), encode([p[2] for p in wide]), wide):
        put("intent_en_wide" if pair[0] == "en" else "intent_zh_wide", question + answer, len(question))

    np.concatenate(chunks).tofile(CORPUS / "tokens.bin")
    np.save(CORPUS / "index.npy", np.array(records, dtype=RECORD))

    for split in ("dev", "test"):
        keep = {"dev": 300, "test": 1000}[split]
        topics = [{"text": topic_text(t), "label": topic} for t, topic in sources.wiki(RAW)
                  if topic and sources.part(t) == split]
        write_jsonl(f"topic.{split}", topics[:keep])
        write_jsonl(f"severity.{split}", [{"text": t, "label": l} for s, t, l, _ in severity if s == split])
        for language, name in (("en", "intent-en"), ("zh-CN", "intent-zh")):
            write_jsonl(f"{name}.{split}", [{"text": q, "answer": a} for s, l, q, a in pairs
                                            if s == split and l == language])
        for group in ("wiki", "help", "device"):
            write_jsonl(f"infill-{group}.{split}", infill_items(plain[group][split], {"dev": 150, "test": 450}[split], group))
        bits = [t[:600] for g in ("wiki", "help", "device", "recipes") for t in plain[g][split][:40 if g != "device" else 120]]
        write_jsonl(f"bits.{split}", [{"text": t} for t in bits])

    index = np.array(records, dtype=RECORD)
    manifest = {
        "packages": {n: dict(zip(("channel", "version", "licence", "taken"), p)) for n, p in sources.PACKAGES.items()},
        "groups": {g: {"samples": int((index["group"] == i).sum()), "tokens": int(index["length"][index["group"] == i].sum())}
                   for i, g in enumerate(GROUPS)},
        "sha256": {p.name: sha256(p) for p in sorted(CORPUS.glob("*")) if p.name != "manifest.json" and p.is_file()},
        "eval_sha256": {p.name: sha256(p) for p in sorted(EVAL.glob("*.jsonl"))},
    }
    (CORPUS / "manifest.json").write_text(json.dumps(manifest, indent=1))
    json.dump(manifest, sys.stdout, indent=1)


if __name__ == "__main__":
    build()
