"""Log lines with their severity, from the logger calls of `homeassistant`.

A call's format string is filled with plausible values chosen by the names of
its arguments, as a log line on disk would hold values.
"""

import ast
import re
from pathlib import Path

LEVELS = {"debug": "debug", "info": "debug", "warning": "warning", "error": "error",
          "exception": "error", "critical": "error"}
VALUES = [
    (r"err|exc|\bex\b|\be\b|reason|failure", ["Timeout", "Connection refused", "TimeoutError()", "Cannot connect to host", "401 Unauthorized", "Invalid response", "[Errno 111] Connect call failed", "500 Internal Server Error", "not found"]),
    (r"host|ip|addr|url|server", ["192.168.1.20", "10.0.0.7", "192.168.178.45:8080", "http://192.168.1.5/api", "homeassistant.local", "device.local"]),
    (r"entity", ["light.kitchen", "sensor.outdoor_temperature", "switch.garage", "climate.living_room", "cover.blinds", "lock.front_door"]),
    (r"mac|serial|unique|uuid|_id\b|\bid\b", ["a4:c1:38:2f:00:12", "0x00158d0003a1", "SN204518", "12", "7f3a", "42"]),
    (r"name|title|device|player|sensor|zone|room", ["Kitchen", "Living Room", "Bedroom Lamp", "Garage", "Thermostat", "Front Door", "Bridge"]),
    (r"state|mode|status", ["on", "off", "idle", "unavailable", "heat", "unknown", "playing"]),
    (r"time|delay|interval|timeout|duration|sec|len|count|num|retries|attempt|port|code|level|value|temp|volume|percent|speed|position|size|index", ["1", "3", "5", "10", "30", "60", "21.5", "404", "8123", "255"]),
    (r"version", ["2.1.0", "1.4", "2024.6.1", "0.9.3"]),
    (r"key|attr|param|field|option|setting|topic|service|action|command|type|event", ["brightness", "temperature", "set_value", "turn_on", "battery", "home/kitchen/state", "power", "update"]),
    (r"data|payload|response|message|msg|result|body|json|text|args|kwargs", ["{'state': 'on'}", "{}", "b'\\x01\\x02'", "None", "[]", "{\"temp\": 21.5}"]),
]
OTHER = ["kitchen", "None", "12", "sensor", "True", "0", "main", "192.168.1.20"]


def logger_calls(components: Path):
    """`(integration, level, parts)`; parts are texts and names of arguments."""
    for path in sorted(components.rglob("*.py")):
        integration = path.relative_to(components).parts[0]
        tree = parse(path.read_text())
        for node in ast.walk(tree) if tree else ():
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
                    and node.func.attr in LEVELS and node.args):
                continue
            owner = ast.unparse(node.func.value).lower()
            if "log" not in owner.split(".")[-1]:
                continue
            parts = format_parts(node.args)
            if parts:
                yield integration, LEVELS[node.func.attr], parts


def parse(source):
    """The tree of a module; `None` for the few that older interpreters cannot read."""
    source = re.sub(r"^type (\w+)(?:\[.*?\])? = ", r"\1 = ", source, flags=re.M)
    source = re.sub(r"^(\s*(?:class|def|async def) \w+)\[[^\n]*?\](?=[(:])", r"\1", source, flags=re.M)
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def format_parts(args):
    first = args[0]
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        names = [ast.unparse(a) for a in args[1:]]
        pieces = re.split(r"%(?:\([^)]*\))?[-#0 +]*[\d.*]*[sdrifxXgeEuo]", first.value.replace("%%", "\0"))
        out = []
        for n, piece in enumerate(pieces):
            if n:
                out.append((names[n - 1] if n <= len(names) else "value",))
            out.append(piece.replace("\0", "%"))
        return out
    if isinstance(first, ast.JoinedStr):
        return [v.value if isinstance(v, ast.Constant) else (ast.unparse(v.value),)
                for v in first.values]
    return None


def fill(parts, rng):
    """One line of text."""
    out = []
    for part in parts:
        if isinstance(part, str):
            out.append(part)
            continue
        name = part[0].lower().split("(")[-1][-40:]
        pool = next((values for pattern, values in VALUES if re.search(pattern, name)), OTHER)
        out.append(rng.choice(pool))
    return " ".join("".join(out).split())
