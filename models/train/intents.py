"""Smart-home sentences with their meaning, from the templates of `home-assistant-intents`.

The template language is hassil's: `(a|b)` alternatives, `(a;b)` permutation,
`[x]` optional, `<rule>` expansion rule, `{list:slot}` slot. A template gives a
sentence and a compact JSON object; both are drawn at random.
"""

import json
from pathlib import Path

from common import HERE, WORK, bucket

SLOT_ORDER = ["name", "area", "floor", "domain", "device_class"]
PREFIXED = {"light", "switch", "fan", "media_player", "climate", "cover", "lock", "valve",
            "binary_sensor", "sensor", "vacuum", "lawn_mower"}
# Slots that hold whatever a user says, and how often they hold one of the `names` that a grammar was given.
FREE = {"name": 0.4, "item": 0.4, "search_query": 0.4, "timer_name": 0.4, "zone": 0.3}
ANY_DEVICE = ["light", "switch", "fan", "media_player", "cover"]
POLITE = {"en": ["please ", "can you ", "could you ", "hey, "], "zh-CN": ["请", "麻烦", "帮我"]}


class Parser:
    """One template as a tree of tuples `(kind, children)`."""

    def __init__(self, text):
        self.text, self.at = text, 0

    def parse(self):
        tree = self.group(None)
        assert self.at == len(self.text), self.text
        return tree

    def group(self, close):
        """Everything up to `close`: alternatives, a permutation or a sequence."""
        items, parts, glue = [], [], None
        while self.at < len(self.text) and self.text[self.at] != close:
            char = self.text[self.at]
            if char == "\\":
                parts.append(("text", self.text[self.at + 1]))
                self.at += 2
            elif char in "|;":
                items.append(("seq", parts))
                parts, glue = [], char
                self.at += 1
            elif char in "([":
                self.at += 1
                inner = self.group(")" if char == "(" else "]")
                self.at += 1
                parts.append(inner if char == "(" else ("opt", [inner]))
            elif char in "<{":
                end = self.text.index(">" if char == "<" else "}", self.at)
                parts.append(("rule" if char == "<" else "slot", self.text[self.at + 1:end]))
                self.at = end + 1
            else:
                start = self.at
                while self.at < len(self.text) and self.text[self.at] not in "\\|;([<{)]":
                    self.at += 1
                parts.append(("text", self.text[start:self.at]))
                if self.at == start:
                    raise ValueError(f"stray {char} in {self.text}")
        if glue is None:
            return ("seq", parts)
        items.append(("seq", parts))
        return ("alt" if glue == "|" else "perm", items)


class Grammar:
    """The templates of one language."""

    def __init__(self, raw: Path, language: str, lists: dict, names: list | None = None):
        base = raw / "home_assistant_intents/home_assistant_intents"
        data = json.loads((base / f"data/{language}.json").read_text())
        self.language, self.words, self.names = language, lists[language], names
        self.lists = data["lists"]
        self.rules = {k: Parser(v).parse() for k, v in data["expansion_rules"].items()}
        self.trees = {}
        self.templates = []
        for intent, body in sorted(data["intents"].items()):
            for block in body["data"]:
                combination = block.get("metadata", {}).get("slot_combination", "default")
                for sentence in block["sentences"]:
                    self.templates.append({
                        "intent": intent, "combination": combination, "sentence": sentence,
                        "tree": Parser(sentence).parse(), "slots": block.get("slots", {}),
                        "domains": block.get("requires_context", {}).get("domain", []),
                    })
        self.split()

    def split(self):
        """Marks whole templates as test, dev or train.

        By hash, but the first template of an (intent, slot combination) always trains:
        an intent that was never seen cannot be answered.
        """
        seen = set()
        for t in self.templates:
            key = (t["intent"], t["combination"], json.dumps(t["slots"], sort_keys=True))
            part = bucket(f"{self.language}|{t['intent']}|{t['sentence']}")
            t["part"] = {0: "test", 1: "dev"}.get(part, "train") if key in seen else "train"
            if t["part"] == "train":
                seen.add(key)

    def sample(self, template, rng, varied=False):
        """One sentence and its JSON text."""
        slots = dict(template["slots"])
        text = "".join(self.expand(template["tree"], template, slots, rng)).strip()
        text = " ".join(text.split())
        if varied:
            if rng.random() < 0.15:
                text = rng.choice(POLITE[self.language]) + text
            if rng.random() < 0.3:
                text = text[:1].upper() + text[1:]
            if rng.random() < 0.3:
                text += rng.choice(["。", "！"] if self.language != "en" else [".", ".", "?", "!"])
        order = [s for s in SLOT_ORDER if s in slots] + sorted(set(slots) - set(SLOT_ORDER))
        meaning = {"intent": template["intent"], **{s: slots[s] for s in order}}
        return text, json.dumps(meaning, ensure_ascii=False, separators=(",", ":"))

    def expand(self, node, template, slots, rng):
        kind, value = node
        if kind == "text":
            return [value]
        if kind == "seq":
            return [p for child in value for p in self.expand(child, template, slots, rng)]
        if kind == "alt":
            return self.expand(rng.choice(value), template, slots, rng)
        if kind == "opt":
            return self.expand(value[0], template, slots, rng) if rng.random() < 0.4 else []
        if kind == "perm":
            out = []
            for child in rng.sample(value, len(value)):
                out += [" ", *self.expand(child, template, slots, rng), " "]
            return out
        if kind == "rule":
            return self.expand(self.rules[value], template, slots, rng)
        name, _, slot = value.partition(":")
        spoken, meant = self.fill(name, template, rng)
        slots[slot or name] = meant
        return [spoken]

    def fill(self, name, template, rng):
        """A spoken value of a slot list and what it means."""
        words = self.words
        key = {"todo_list_item": "item", "shopping_list_item": "item"}.get(name, name)
        if self.names and rng.random() < FREE.get(key, 0):
            value = rng.choice(self.names)
            return value, value
        if name == "name":
            domain = rng.choice(template["domains"] or ANY_DEVICE)
            value = rng.choice(words["name"][domain])
            if domain in PREFIXED and rng.random() < 0.6:
                value = rng.choice(words["prefix"]) + (" " if self.language == "en" else "") + value
            return value, value
        if name in ("area", "floor"):
            value = rng.choice(words[name])
            return value, value
        entry = self.lists[name]
        if "values" in entry:
            choice = rng.choice(entry["values"])
            if isinstance(choice, str):
                choice = {"in": choice, "out": choice}
            tree = self.trees.setdefault(choice["in"], Parser(choice["in"]).parse())
            spoken = "".join(self.expand(tree, template, {}, rng))
            return spoken, choice.get("out", spoken)
        if "range" in entry:
            r = entry["range"]
            low, high = (10, 30) if name == "temperature" and rng.random() < 0.8 else (r["from"], r["to"])
            number = rng.randrange(low, high + 1, r.get("step", 1))
            return str(number), number * r.get("multiplier", 1)
        value = rng.choice(words[key])
        return value, value


# Values of slots that are not said in one way only; all other strings are quoted from the sentence.
NUMBERS = {"brightness", "percentage", "position", "volume_level", "hours", "minutes", "seconds",
           "start_hours", "start_minutes", "start_seconds"}
# An intent with more combinations, which is one that sets a timer by another, may leave out any of their slots.
MOST_FORMS = 16
STATES = ["on", "off", "open", "closed", "opening", "closing", "locked", "unlocked"]


def schema():
    """JSON schema of the answers: for each intent the combinations of slots that `home-assistant-intents` documents.

    Slots stand in the order of the training answers. A name, an area or an item is a run of words of the
    sentence (`x-quoted`).
    """
    raw = WORK / "raw"
    documented = json.loads((raw / "home_assistant_intents/home_assistant_intents/intents.json").read_text())
    lists = json.loads((HERE / "slots.json").read_text())
    grammars = [Grammar(raw, language, lists) for language in ("en", "zh-CN")]
    templates = [t for g in grammars for t in g.templates]

    def outputs(name):
        """What a list of the package makes of its spoken values."""
        entries = (v for g in grammars for v in g.lists.get(name, {}).get("values", ()))
        return {v if isinstance(v, str) else v["out"] for v in entries}

    def fixed(slot, intent=None):
        return {t["slots"][slot] for t in templates if slot in t["slots"] and intent in (None, t["intent"])}

    def number(low, high):
        return {"type": "integer", "minimum": low, "maximum": high}

    shapes = {
        "quoted": {"type": "string", "x-quoted": True},
        "device_class": {"enum": sorted(outputs("cover_classes") | fixed("device_class"))},
        "state": {"anyOf": [{"enum": STATES}, {"$ref": "#/$defs/quoted"}]},
        "color": {"enum": sorted(outputs("color"))},
        "media_class": {"enum": sorted(outputs("media_class") | fixed("media_class"))},
        "number": number(0, 100),
        "temperature": number(0, 10_000),
        "volume_step": {"anyOf": [{"enum": ["up", "down"]}, number(-100, 100)]},
    }

    def value(slot, intent):
        if slot == "domain":
            return {"enum": sorted(fixed(slot, intent))}
        return {"$ref": f"#/$defs/{slot if slot in shapes else 'number' if slot in NUMBERS else 'quoted'}"}

    order = lambda slots: [s for s in SLOT_ORDER if s in slots] + sorted(set(slots) - set(SLOT_ORDER))
    forms = []
    for intent in sorted({t["intent"] for t in templates}):
        combinations = {tuple(order(c["slots"])) for c in documented[intent]["slot_combinations"].values()}
        combinations = {c for c in combinations if "domain" not in c or fixed("domain", intent)}
        if len(combinations) > MOST_FORMS:
            always = set.intersection(*map(set, combinations))
            combinations = {tuple(order(set().union(*combinations)))}
        else:
            always = set().union(*combinations)
        for slots in sorted(combinations):
            properties = {"intent": {"const": intent}, **{s: value(s, intent) for s in slots}}
            forms.append({"type": "object", "properties": properties,
                          "required": ["intent", *(s for s in slots if s in always)], "additionalProperties": False})
    return {"$defs": shapes, "anyOf": forms}
