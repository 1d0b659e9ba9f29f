#!/usr/bin/env python3
"""Fills fuzz/corpus/ from the fixture checkpoints: headers and pickles of real layouts, without their bulk."""

import json
import struct
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CHECKPOINTS = ROOT.parent / "tests" / "fixtures" / "checkpoints"


def put(target, name, data):
    folder = ROOT / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def small_safetensors(raw):
    """The first three tensors of a file."""
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    kept, data = {}, b""
    for name, entry in sorted(header.items(), key=lambda item: item[1].get("data_offsets", [0])):
        if name != "__metadata__" and len(kept) < 3:
            begin, end = entry["data_offsets"]
            kept[name] = entry | {"data_offsets": [len(data), len(data) + end - begin]}
            data += raw[8 + length :][begin:end]
    text = json.dumps(kept).encode()
    return struct.pack("<Q", len(text)) + text + data


for path in sorted(CHECKPOINTS.glob("*/model*.safetensors")):
    put("safetensors", f"{path.parent.name}-{path.stem}", small_safetensors(path.read_bytes()))
for path in sorted(CHECKPOINTS.glob("*/pytorch_model*.bin")):
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        put("pickle", f"{path.parent.name}-{path.stem}", archive.read(pickled))
    if path.stat().st_size < 64 << 10:
        put("archive", f"{path.parent.name}-{path.stem}", path.read_bytes())
for family in range(5):
    put("prompt", f"family-{family}", bytes([family, 60, 4, 1]) + b"\x05\x80\x07\x08\x81\x09\x0a\xff\x0b")
