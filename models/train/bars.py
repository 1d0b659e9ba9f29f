"""Bars to print beside the model's figures: TF-IDF with logistic regression, and a trigram filler."""

import json
from collections import Counter, defaultdict

import numpy as np

import sources
from data import EVAL, RAW, WORD, plain_texts, severity_lines, topic_text


def read(name, split):
    return [json.loads(line) for line in (EVAL / f"{name}.{split}.jsonl").open()]


def regression(train, test):
    """Accuracy and macro-F1 of TF-IDF (one and two words) with logistic regression, C = 4, untuned."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    vectors = TfidfVectorizer(ngram_range=(1, 2), max_features=100_000, sublinear_tf=True)
    x = vectors.fit_transform([t for t, _ in train])
    fitted = LogisticRegression(C=4, max_iter=300).fit(x, [l for _, l in train])
    truth = [i["label"] for i in test]
    found = fitted.predict(vectors.transform([i["text"] for i in test]))
    return {"accuracy": accuracy_score(truth, found), "macro_f1": f1_score(truth, found, average="macro")}


class Trigram:
    """Fills a blank by counts: two words to the left, backing off, times one word to the right."""

    def __init__(self, texts):
        self.one, self.two, self.three = Counter(), defaultdict(Counter), defaultdict(Counter)
        for text in texts:
            words = ["<s>", "<s>", *WORD.findall(text)]
            for a, b, c in zip(words, words[1:], words[2:]):
                self.one[c] += 1
                self.two[b][c] += 1
                self.three[a, b][c] += 1
        self.total = sum(self.one.values())
        self.totals = {id(t): t.total() for tables in (self.two, self.three) for t in tables.values()}
        self.common = [w for w, _ in self.one.most_common(2000)]

    def left(self, word, a, b):
        p = self.one[word] / self.total
        for table, weight in ((self.two.get(b), 0.6), (self.three.get((a, b)), 0.7)):
            if table:
                p = (1 - weight) * p + weight * table[word] / self.totals[id(table)]
        return p

    def fill(self, text, count):
        before, after = (WORD.findall(half) for half in text.split("[MASK]"))
        words = ["<s>", "<s>", *before]
        right = after[0] if after else None
        for n in range(count):
            a, b = words[-2:]
            options = set(self.two.get(b, ())) | set(self.three.get((a, b), ())) | set(self.common)
            last = n + 1 == count

            def score(w):
                p = self.left(w, a, b)
                if last and right is not None:
                    p *= self.left(right, b, w)
                return p
            words.append(max(sorted(options), key=score))
        return " ".join(words[-count:])


def measure(split):
    train = [(t, l) for s, t, l, _ in severity_lines() if s == "train"]
    out = {"severity": regression(train, read("severity", split))}
    train = [(topic_text(t), topic) for t, topic in sources.wiki(RAW) if topic and sources.part(t) == "train"]
    out["topic"] = regression(train, read("topic", split))
    plain = plain_texts()
    filler = Trigram([t for g in ("wiki", "help", "device", "recipes", "wordnet") for t in plain[g]["train"]])
    together = []
    for group in ("wiki", "help", "device"):
        items = read(f"infill-{group}", split)
        right = [filler.fill(i["text"], i["words"]) == i["answer"] for i in items]
        together += [(r, i["words"]) for r, i in zip(right, items)]
        out[f"infill-{group}"] = {f"exact_{n}": float(np.mean([r for r, i in zip(right, items) if i["words"] == n])) for n in (1, 2, 3)}
    out["infill"] = {f"exact_{n}": float(np.mean([r for r, w in together if w == n])) for n in (1, 2, 3)}
    return out


if __name__ == "__main__":
    print(json.dumps(measure("test"), indent=1))
